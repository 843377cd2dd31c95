package layout

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy/internal/ident"
)

// ReadInsertRules is ReadRules for rows that come by INSERT, which rewrite rules act on too.
func ReadInsertRules(ctx context.Context, q Querier, schema string) (Rules, error) {
	r, err := ReadRules(ctx, q, schema)
	if err != nil {
		return Rules{}, err
	}
	var table, name, enabled string
	rows, _ := q.Query(ctx, rewriteSQL, schema) // the error is in rows
	_, err = pgx.ForEachRow(rows, []any{&table, &name, &enabled}, func() error {
		table = ident.QuoteAll(schema, table)
		r.Off = append(r.Off, "alter table "+table+" disable rule "+ident.Quote(name))
		on := " enable rule "
		if enabled == "A" {
			on = " enable always rule "
		}
		r.On = append(r.On, "alter table "+table+on+ident.Quote(name))
		return nil
	})
	if err != nil {
		return Rules{}, fmt.Errorf("read the rules: %w", err)
	}
	return r, nil
}

// Inserts returns the statements that insert all rows of one schema into another of the same structure, one for each table that
// has rows but for some, in no order. They are for a search_path that begins with the second, as is q. Values of types of the schema's own become
// those of the other's same type, and names of its objects, in columns of types such as regclass, those of the other's.
func Inserts(ctx context.Context, q Querier, from, to string, but []string) ([]string, error) {
	rows, _ := q.Query(ctx, insertSQL, from, to) // the error is in rows
	var statements []string
	var table, schemaName string
	var partitioned bool
	var columns, types, how []string
	_, err := pgx.ForEachRow(rows, []any{&table, &partitioned, &schemaName, &columns, &types, &how}, func() error {
		if slices.Contains(but, table) {
			return nil
		}
		var into, values []string
		for i, c := range columns {
			value := "s." + ident.Quote(c)
			switch how[i] {
			case "own":
				value += "::pg_catalog.text::" + types[i]
			case "reg":
				named := `(^|[(,])` + regexp.QuoteMeta(schemaName) + `\.`
				value = "pg_catalog.regexp_replace(" + value + "::pg_catalog.text, " + ident.Literal(named) + ", " + ident.Literal(`\1`) + ", 'g')::" + types[i]
			}
			into, values = append(into, ident.Quote(c)), append(values, value)
		}
		sql := "insert into " + ident.QuoteAll(to, table)
		if len(into) > 0 {
			sql += " (" + strings.Join(into, ", ") + ")"
		}
		sql += " overriding system value select " + strings.Join(values, ", ") + " from "
		if !partitioned {
			sql += "only " // a table that others inherit from
		}
		statements = append(statements, sql+ident.QuoteAll(from, table)+" s")
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the columns: %w", err)
	}
	return statements, nil
}

// insertSQL selects the tables of schema $2 that rows are inserted into, with what to do about each column when they come from $1. A
// domain over a type of everybody's takes the values of another one.
const insertSQL = `
select c.relname::text, c.relkind = 'p', pg_catalog.quote_ident($1),
	coalesce(array_agg(a.attname::text order by a.attnum) filter (where a.attnum is not null), '{}'),
	coalesce(array_agg(pg_catalog.format_type(a.atttypid, a.atttypmod) order by a.attnum) filter (where a.attnum is not null), '{}'),
	coalesce(array_agg(case
			when t.typnamespace = n.oid and not (t.typtype = 'd' and b.typnamespace <> n.oid) then 'own'
			when t.oid in ('pg_catalog.regclass'::regtype, 'pg_catalog.regtype'::regtype, 'pg_catalog.regproc'::regtype,
				'pg_catalog.regprocedure'::regtype, 'pg_catalog.regoper'::regtype, 'pg_catalog.regoperator'::regtype) then 'reg'
			else '' end order by a.attnum) filter (where a.attnum is not null), '{}')
from pg_catalog.pg_class c
	join pg_catalog.pg_namespace n on n.oid = c.relnamespace
	left join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''
	left join pg_catalog.pg_type t on t.oid = a.atttypid
	left join pg_catalog.pg_type b on b.oid = t.typbasetype
where n.nspname = $2 and c.relkind in ('r', 'p') and not c.relispartition
group by c.relname, c.relkind
order by c.relname`

// rewriteSQL selects the rules of a schema's tables that act on INSERT.
const rewriteSQL = `
select c.relname, w.rulename, w.ev_enabled::text
from pg_catalog.pg_rewrite w
	join pg_catalog.pg_class c on c.oid = w.ev_class
	join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where n.nspname = $1 and c.relkind in ('r', 'p') and w.ev_type = '3' and w.ev_enabled in ('O', 'A')
order by c.relname, w.rulename`
