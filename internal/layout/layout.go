// Package layout tells where the rows of schemas are and what is in the way of putting them into another schema: tables in an
// order for inserting, the columns that take values, foreign keys, triggers, sequences.
package layout

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy/internal/ident"
)

// Layout is what one schema has.
type Layout struct {
	Schema string
	Exists bool

	// Tables have the rows, each row in one of them: ordinary and unlogged tables, and of partitioned ones the root, which its
	// partitions' rows are read from and inserted into. Foreign tables have none: their rows are elsewhere. They are in the order
	// in which rows can be inserted: a table comes after those that its foreign keys reference, unless both are Cyclic.
	Tables []Table

	// Sequences are all of the schema's, also those of identity columns, ordered by name.
	Sequences []string

	// Views are the materialized views that have been populated, in the order in which they were made, which is one in which they
	// can be refreshed.
	Views []string

	// OIDs are those of all tables, partitions included, and Stamp is what [Stamp] returned for them at the time.
	OIDs  []uint32
	Stamp string
}

// Table is one that has rows.
type Table struct {
	Name        string
	Columns     []Column // that take values, in their order: no generated ones, and none at all in a table without any
	Partitioned bool     // COPY TO must be from a query
	Where       string   // the condition in that query; "" is none
	Unlogged    bool

	// IdentityAlways says that INSERT needs OVERRIDING SYSTEM VALUE. COPY does not.
	IdentityAlways bool

	// Cyclic says that the table's foreign keys and those of another one reference each other, perhaps by way of more: no order
	// of inserting is right for them. One that references itself is fine, in one statement.
	Cyclic bool
}

// Column is one of a table's.
type Column struct {
	Name string
	Type string // as format_type has it
}

// List returns the columns' names, quoted and between parentheses, with a space before it, and "" where there are none:
// what follows the table in COPY and INSERT.
func (t *Table) List() string {
	if len(t.Columns) == 0 {
		return ""
	}
	return " (" + t.Names() + ")"
}

// Names returns the columns' names, quoted, with commas in between.
func (t *Table) Names() string {
	names := make([]string, len(t.Columns))
	for i, c := range t.Columns {
		names[i] = ident.Quote(c.Name)
	}
	return strings.Join(names, ", ")
}

// CopyTo returns the statement that reads the table's rows in the text format.
func (t *Table) CopyTo(schema string) string {
	if t.Partitioned { // of which COPY reads none by itself before PostgreSQL 18
		where := ""
		if t.Where != "" {
			where = " where " + t.Where
		}
		return "copy (select " + t.Names() + " from " + ident.QuoteAll(schema, t.Name) + where + ") to stdout"
	}
	return "copy " + ident.QuoteAll(schema, t.Name) + t.List() + " to stdout"
}

// CopyFrom returns the statement that inserts rows in the text format.
func (t *Table) CopyFrom(schema string) string {
	return "copy " + ident.QuoteAll(schema, t.Name) + t.List() + " from stdin"
}

// Querier is a connection or a transaction.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// Read returns the layouts of schemas, in their order, with two queries for all of them. It takes no lock on their tables, and
// sees what the snapshot of the transaction sees, if q is one with such a snapshot.
func Read(ctx context.Context, q Querier, schemas []string) ([]Layout, error) {
	layouts := make([]Layout, len(schemas))
	for i, s := range schemas {
		layouts[i].Schema = s
	}
	rows, _ := q.Query(ctx, relationsSQL, schemas) // the error is in rows
	var ord int
	var kind, name, stamp string
	var unlogged, always bool
	var columns, types []string
	var oids []uint32
	_, err := pgx.ForEachRow(rows, []any{&ord, &kind, &name, &unlogged, &always, &columns, &types, &oids, &stamp}, func() error {
		l := &layouts[ord-1]
		l.Exists = true
		switch kind {
		case "n":
			l.OIDs, l.Stamp = oids, stamp
		case "S":
			l.Sequences = append(l.Sequences, name)
		case "m":
			l.Views = append(l.Views, name)
		default:
			t := Table{Name: name, Partitioned: kind == "p", Unlogged: unlogged, IdentityAlways: always}
			for i := range columns {
				t.Columns = append(t.Columns, Column{columns[i], types[i]})
			}
			l.Tables = append(l.Tables, t)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the layout: %w", err)
	}

	references := make([]map[string][]string, len(schemas)) // by the referencing table
	var table, referenced string
	rows, _ = q.Query(ctx, referencesSQL, schemas) // the error is in rows
	_, err = pgx.ForEachRow(rows, []any{&ord, &table, &referenced}, func() error {
		if references[ord-1] == nil {
			references[ord-1] = map[string][]string{}
		}
		references[ord-1][table] = append(references[ord-1][table], referenced)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the layout: %w", err)
	}
	for i := range layouts {
		layouts[i].order(references[i])
	}
	return layouts, nil
}

// Stamp returns a text that changes when the columns or the storage of one of the tables do: by TRUNCATE, ALTER TABLE, DROP
// TABLE. What a snapshot shows of their rows before and after is not of one moment where it differs.
func Stamp(ctx context.Context, q Querier, oids []uint32) (string, error) {
	rows, _ := q.Query(ctx, stampSQL, oids) // the error is in rows
	stamp, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[string])
	if err != nil {
		return "", fmt.Errorf("read the stamp of tables: %w", err)
	}
	return stamp, nil
}

// order sorts the tables, and tells those that are in a cycle: Tarjan's strongly connected components, which come out after
// those that they lead to.
func (l *Layout) order(references map[string][]string) {
	if len(references) == 0 {
		return
	}
	at := make(map[string]int, len(l.Tables))
	for i, t := range l.Tables {
		at[t.Name] = i
	}
	number, low := make([]int, len(l.Tables)), make([]int, len(l.Tables))
	on := make([]bool, len(l.Tables))
	var stack []int
	var sorted []Table
	next := 1
	var visit func(i int)
	visit = func(i int) {
		number[i], low[i] = next, next
		next++
		stack, on[i] = append(stack, i), true
		for _, name := range references[l.Tables[i].Name] {
			j, ok := at[name]
			if !ok {
				continue // a partition, of which the root is the one that counts
			}
			if number[j] == 0 {
				visit(j)
				low[i] = min(low[i], low[j])
			} else if on[j] {
				low[i] = min(low[i], number[j])
			}
		}
		if low[i] != number[i] {
			return
		}
		from := slices.Index(stack, i)
		for _, j := range stack[from:] {
			on[j] = false
			l.Tables[j].Cyclic = len(stack)-from > 1
			sorted = append(sorted, l.Tables[j])
		}
		stack = stack[:from]
	}
	for i := range l.Tables {
		if number[i] == 0 {
			visit(i)
		}
	}
	l.Tables = sorted
}

// StateSQL returns the query for the name, last_value and is_called of all sequences, "" where there are none. Their state is of
// no snapshot: what is read after a snapshot was taken is never behind the rows in it. It locks each sequence against being
// altered.
func (l *Layout) StateSQL() string {
	parts := make([]string, len(l.Sequences))
	for i, name := range l.Sequences {
		parts[i] = "select " + ident.Literal(name) + "::text, last_value, is_called from " + ident.QuoteAll(l.Schema, name)
	}
	return strings.Join(parts, " union all ")
}

// SetSQL returns the statement that puts a sequence of the schema where another one is: the next value follows on the last.
func (l *Layout) SetSQL(sequence string, lastValue int64, isCalled bool) string {
	return fmt.Sprintf("select pg_catalog.setval(%s::pg_catalog.regclass, %d, %t)",
		ident.Literal(ident.QuoteAll(l.Schema, sequence)), lastValue, isCalled)
}

// Rules are what a schema does with rows that are put into it. While they are off, rows can come in any order, and nothing of the
// schema's own acts on them. Foreign keys that lead out of the schema stay in force: what they reference is there already, to check
// them anew would look at it through its policies, and to drop one would keep everybody from the table that it references.
type Rules struct {
	Off []string // drop foreign keys within the schema, and disable triggers
	On  []string // enable triggers and add foreign keys again, which checks them
}

// ReadRules returns the statements that switch the rules of a schema off and on again, for its owner. Names are in full unless
// search_path has them: it must be the same when they run. On also puts back the comments that foreign keys had.
func ReadRules(ctx context.Context, q Querier, schema string) (Rules, error) {
	var r Rules
	var table, name, definition, comment, enabled string
	rows, _ := q.Query(ctx, foreignKeysSQL, schema) // the error is in rows
	_, err := pgx.ForEachRow(rows, []any{&table, &name, &definition, &comment}, func() error {
		table = ident.QuoteAll(schema, table)
		r.Off = append(r.Off, "alter table "+table+" drop constraint "+ident.Quote(name))
		r.On = append(r.On, "alter table "+table+" add constraint "+ident.Quote(name)+" "+definition)
		if comment != "" {
			r.On = append(r.On, "comment on constraint "+ident.Quote(name)+" on "+table+" is "+ident.Literal(comment))
		}
		return nil
	})
	if err != nil {
		return Rules{}, fmt.Errorf("read the foreign keys: %w", err)
	}
	rows, _ = q.Query(ctx, triggersSQL, schema) // the error is in rows
	_, err = pgx.ForEachRow(rows, []any{&table, &name, &enabled}, func() error {
		// ONLY, as the partitions' triggers are listed by themselves, and may be in another state.
		table = ident.QuoteAll(schema, table)
		r.Off = append(r.Off, "alter table only "+table+" disable trigger "+ident.Quote(name))
		on := " enable trigger "
		if enabled == "A" {
			on = " enable always trigger "
		}
		r.On = append(r.On, "alter table only "+table+on+ident.Quote(name))
		return nil
	})
	if err != nil {
		return Rules{}, fmt.Errorf("read the triggers: %w", err)
	}
	return r, nil
}
