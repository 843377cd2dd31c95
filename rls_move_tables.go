package pgtenancy

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pgtenancy/pgtenancy/internal/ident"
)

// movedTable is a table on both sides.
type movedTable struct {
	policy      Policy
	shared, own *movedRelation
	into        []string // columns to insert into
	values      []string // what, of s
	columns     []string // of both that are compared
	where       string   // of s
}

type movedRelation struct {
	schema, name   string
	ord            int
	oid            uint32
	kind, owner    string
	owned          bool // the role is the owner, or as good as it
	bound, parent  bool
	guarded        bool
	noPolicy       []string
	restricted     bool
	columns        []movedColumn
	triggers, back []string // statements that switch triggers off and on again
}

type movedColumn struct {
	name, typ           string
	oid                 uint32
	generated, required bool
	number              bool
	sequence            *movedSequence
}

type movedSequence struct {
	oid       uint32
	path      string // quoted
	increment int64
}

func (r *movedRelation) path() string { return ident.QuoteAll(r.schema, r.name) }

// String returns the name as it is in messages.
func (r *movedRelation) String() string { return r.schema + "." + r.name }

func (r *movedRelation) column(name string) *movedColumn {
	for i := range r.columns {
		if r.columns[i].name == name {
			return &r.columns[i]
		}
	}
	return nil
}

// mine returns the condition for the tenant's rows s of the shared table.
func (t *movedTable) mine() string {
	return "s." + ident.Quote(t.policy.Column) + " = " + t.policy.tenant()
}

func (m *mover) from(t *movedTable) *movedRelation {
	if m.back {
		return t.own
	}
	return t.shared
}

func (m *mover) to(t *movedTable) *movedRelation {
	if m.back {
		return t.shared
	}
	return t.own
}

// movedRelationsSQL selects the tables with the names $2 in the schemas $1, and whether the role may do $3 there besides reading.
const movedRelationsSQL = `
select r.ord::int - 1, c.oid, c.relkind::text, pg_catalog.pg_get_userbyid(c.relowner)::text, pg_catalog.pg_has_role(c.relowner, 'usage'), pg_catalog.row_security_active(c.oid),
	c.relkind = 'r' and exists (select from pg_catalog.pg_inherits i where i.inhparent = c.oid),
	exists (select from pg_catalog.pg_trigger t where t.tgrelid = c.oid and t.tgname = '` + guardName + `' and t.tgenabled in ('O', 'A')),
	array(select case x.cmd when 'r' then 'select' when 'a' then 'insert' else 'delete' end from unnest(array['r', $3::text]) x (cmd) where not exists (
		select from pg_catalog.pg_policy p where p.polrelid = c.oid and p.polpermissive and p.polcmd::text in ('*', x.cmd) and ` + policyApplies + `)),
	exists (select from pg_catalog.pg_policy p where p.polrelid = c.oid and not p.polpermissive and ` + policyApplies + `)
from unnest($1::text[], $2::text[]) with ordinality r (schema, name, ord)
	join pg_catalog.pg_namespace n on n.nspname = r.schema
	join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = r.name`

const policyApplies = `(0 = any(p.polroles) or exists (select from unnest(p.polroles) o where pg_catalog.pg_has_role(o, 'usage')))`

// movedColumnsSQL selects the columns of tables, each with the sequence that it gets values from.
const movedColumnsSQL = `
select a.attrelid, a.attname::text, pg_catalog.format_type(a.atttypid, a.atttypmod), a.atttypid, a.attgenerated <> '',
	a.attnotnull and not a.atthasdef and a.attidentity = '', coalesce(s.seqrelid, 0), coalesce(sn.nspname::text, ''), coalesce(sc.relname::text, ''), coalesce(s.seqincrement, 0)
from pg_catalog.pg_attribute a
	left join pg_catalog.pg_sequence s on s.seqrelid = coalesce((
			select d.refobjid from pg_catalog.pg_attrdef f
				join pg_catalog.pg_depend d on d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass and d.objid = f.oid and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
				join pg_catalog.pg_class c on c.oid = d.refobjid and c.relkind = 'S'
			where f.adrelid = a.attrelid and f.adnum = a.attnum limit 1
		), (
			select d.objid from pg_catalog.pg_depend d join pg_catalog.pg_class c on c.oid = d.objid and c.relkind = 'S'
			where d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
				and d.refobjid = a.attrelid and d.refobjsubid = a.attnum and d.deptype in ('a', 'i') limit 1
		))
	left join pg_catalog.pg_class sc on sc.oid = s.seqrelid
	left join pg_catalog.pg_namespace sn on sn.oid = sc.relnamespace
where a.attrelid = any($1::oid[]) and a.attnum > 0 and not a.attisdropped
order by a.attrelid, a.attnum`

// movedTriggersSQL selects the triggers that fire on rows of tables and their partitions. Before PostgreSQL 15 a partition's copy of
// its parent's is marked as internal, as are those that check keys.
const movedTriggersSQL = `
select r.oid, n.nspname::text, c.relname::text, t.tgname::text, t.tgenabled::text
from unnest($1::oid[]) r (oid)
	join pg_catalog.pg_class c on c.oid = r.oid or c.oid in (select p.relid from pg_catalog.pg_partition_tree(r.oid) p)
	join pg_catalog.pg_namespace n on n.oid = c.relnamespace
	join pg_catalog.pg_trigger t on t.tgrelid = c.oid
	join pg_catalog.pg_proc p on p.oid = t.tgfoid
where t.tgenabled in ('O', 'A')
	and (not t.tgisinternal or t.tgparentid <> 0 and (p.pronamespace <> 'pg_catalog'::pg_catalog.regnamespace or p.proname !~ '^(RI_FKey_|unique_key_recheck)'))
order by 1, 2, 3, 4`

// read looks at the tables of both sides.
func (m *mover) read(ctx context.Context) error {
	var schemas, names []string
	for _, t := range m.tables {
		t.shared = &movedRelation{schema: t.policy.Table[0], name: t.policy.Table[1]}
		t.own = &movedRelation{schema: m.schema, name: t.policy.Table[1]}
		schemas, names = append(schemas, t.shared.schema, t.own.schema), append(names, t.shared.name, t.own.name)
	}
	at := func(i int) *movedRelation {
		if i%2 == 0 {
			return m.tables[i/2].shared
		}
		return m.tables[i/2].own
	}
	writes := "d"
	if m.back {
		writes = "a"
	}
	var r movedRelation
	byOID := map[uint32]*movedRelation{}
	var oids, own []uint32
	rows, _ := m.conn.Query(ctx, movedRelationsSQL, schemas, names, writes) // the error is in rows
	_, err := pgx.ForEachRow(rows, []any{&r.ord, &r.oid, &r.kind, &r.owner, &r.owned, &r.bound, &r.parent, &r.guarded, &r.noPolicy, &r.restricted}, func() error {
		to := at(r.ord)
		r.schema, r.name = to.schema, to.name
		*to = r
		byOID[r.oid], oids = to, append(oids, r.oid)
		if r.ord%2 == 1 {
			own = append(own, r.oid)
		}
		return nil
	})
	if err != nil {
		return err
	}
	var missing []string
	for _, t := range m.tables {
		for _, r := range []*movedRelation{t.shared, t.own} {
			switch {
			case r.oid == 0:
				missing = append(missing, r.String()+" is not there")
			case r.kind != "r" && r.kind != "p":
				missing = append(missing, r.String()+" is no table")
			case !r.owned:
				missing = append(missing, "the role does not own "+r.String())
			case r.parent:
				missing = append(missing, "other tables inherit from "+r.String())
			}
		}
	}
	if len(missing) > 0 {
		return m.refuse(missing)
	}
	var of uint32
	var c movedColumn
	var s movedSequence
	var schema, name string
	rows, _ = m.conn.Query(ctx, movedColumnsSQL, oids) // the error is in rows
	_, err = pgx.ForEachRow(rows, []any{&of, &c.name, &c.typ, &c.oid, &c.generated, &c.required, &s.oid, &schema, &name, &s.increment}, func() error {
		c.sequence, c.number = nil, slices.Contains([]uint32{pgtype.Int2OID, pgtype.Int4OID, pgtype.Int8OID, pgtype.NumericOID}, c.oid)
		if s.oid != 0 {
			c.sequence = &movedSequence{s.oid, ident.QuoteAll(schema, name), s.increment}
		}
		byOID[of].columns = append(byOID[of].columns, c)
		return nil
	})
	if err != nil {
		return err
	}
	var trigger, enabled string
	rows, _ = m.conn.Query(ctx, movedTriggersSQL, own) // the error is in rows
	_, err = pgx.ForEachRow(rows, []any{&of, &schema, &name, &trigger, &enabled}, func() error {
		table, on := "alter table only "+ident.QuoteAll(schema, name), " enable trigger "
		if enabled == "A" {
			on = " enable always trigger "
		}
		r := byOID[of]
		r.triggers, r.back = append(r.triggers, table+" disable trigger "+ident.Quote(trigger)), append(r.back, table+on+ident.Quote(trigger))
		return nil
	})
	return err
}

// match compares the tables of both sides.
func (m *mover) match() error {
	var problems []string
	fail := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	for _, t := range m.tables {
		from, to := m.from(t), m.to(t)
		key := t.shared.column(t.policy.Column)
		switch {
		case key == nil:
			fail("%s has no column %q", t.shared, t.policy.Column)
			continue
		case t.own.bound:
			fail("the role is bound by row level security of %s", t.own)
		case t.shared.bound && len(t.shared.noPolicy) > 0:
			fail("no policy of %s lets the role %s", t.shared, strings.Join(t.shared.noPolicy, " and "))
		case t.shared.bound && t.shared.restricted:
			fail("a restrictive policy of %s applies to the role", t.shared)
		}
		t.where, t.into, t.values, t.columns = "true", nil, nil, nil
		if !m.back {
			t.where = t.mine()
		}
		for _, c := range to.columns {
			name := ident.Quote(c.name)
			source := from.column(c.name)
			switch {
			case c.generated:
				if source != nil && !source.generated {
					fail("column %q is generated in %s, and not in %s", c.name, to, from)
				}
				continue
			case m.back && c.name == t.policy.Column:
				t.into, t.values = append(t.into, name), append(t.values, t.policy.tenant())
				if source != nil {
					t.columns = append(t.columns, name)
				}
				continue
			case source == nil:
				if c.required {
					fail("column %q of %s is not in %s, and has no default", c.name, to, from)
				}
				continue
			}
			value := "s." + name
			if source.oid != c.oid { // which must read the same
				value += "::pg_catalog.text::" + c.typ
			}
			t.into, t.values, t.columns = append(t.into, name), append(t.values, value), append(t.columns, name)
		}
		for _, c := range from.columns {
			if to.column(c.name) == nil && !c.generated && (m.back || c.name != t.policy.Column) {
				fail("column %q of %s is not in %s", c.name, from, to)
			}
		}
	}
	if len(problems) > 0 {
		return m.refuse(problems)
	}
	return nil
}

// none checks that there is nothing to move.
func (m *mover) none(ctx context.Context) (moved []Moved, err error) {
	var problems []string
	for _, t := range m.tables {
		var some bool
		if err := m.conn.QueryRow(ctx, "select exists (select from "+m.from(t).path()+" s where "+t.where+")").Scan(&some); err != nil {
			return nil, err
		}
		if some {
			problems = append(problems, "the tenant has rows in "+m.from(t).String()+", and the rows of its schema come from elsewhere: run Migrate or delete them first")
		}
		moved = append(moved, Moved{Table: slices.Clone(t.policy.Table)})
	}
	if len(problems) > 0 {
		return nil, m.refuse(problems)
	}
	return moved, nil
}

// references checks that no row of another table references one that moves: what then follows of a key's actions is nobody's wish. The
// rows are locked first, so that none begins to.
func (m *mover) references(ctx context.Context) error {
	var oids []uint32
	by := map[uint32]*movedTable{}
	for _, t := range m.tables {
		oids, by[m.from(t).oid] = append(oids, m.from(t).oid), t
	}
	type reference struct {
		of               uint32
		name, table      string
		path             string
		columns, foreign []string
	}
	var all []reference
	var r reference
	var schema string
	rows, _ := m.conn.Query(ctx, `select k.confrelid, k.conname::text, n.nspname::text, c.relname::text,
			array(select a.attname::text from unnest(k.conkey) with ordinality u (num, ord)
				join pg_catalog.pg_attribute a on a.attrelid = k.conrelid and a.attnum = u.num order by u.ord),
			array(select a.attname::text from unnest(k.confkey) with ordinality u (num, ord)
				join pg_catalog.pg_attribute a on a.attrelid = k.confrelid and a.attnum = u.num order by u.ord)
		from pg_catalog.pg_constraint k join pg_catalog.pg_class c on c.oid = k.conrelid join pg_catalog.pg_namespace n on n.oid = c.relnamespace
		where k.contype = 'f' and k.conparentid = 0 and k.confrelid = any($1::oid[]) and not k.conrelid = any($1::oid[])
		order by 3, 4, 2`, oids) // the error is in rows
	_, err := pgx.ForEachRow(rows, []any{&r.of, &r.name, &schema, &r.table, &r.columns, &r.foreign}, func() error {
		ref := r
		ref.path, ref.table = ident.QuoteAll(schema, r.table), schema+"."+r.table
		all = append(all, ref)
		return nil
	})
	if err != nil || len(all) == 0 {
		return err
	}
	locked := map[uint32]bool{}
	for _, r := range all {
		if t := by[r.of]; !locked[r.of] {
			locked[r.of] = true
			if err := m.exec(ctx, "select pg_catalog.count(*) from (select from "+m.from(t).path()+" s where "+t.where+" for update) x"); err != nil {
				return err
			}
		}
	}
	var problems []string
	for _, r := range all {
		t := by[r.of]
		same := []string{t.where}
		for i := range r.columns {
			same = append(same, "s."+ident.Quote(r.foreign[i])+" = c."+ident.Quote(r.columns[i]))
		}
		var n int64
		err := m.conn.QueryRow(ctx, "select pg_catalog.count(*) from "+r.path+" c where exists (select from "+m.from(t).path()+" s where "+strings.Join(same, " and ")+")").Scan(&n)
		if err != nil {
			return err
		}
		if n > 0 {
			problems = append(problems, fmt.Sprintf("%d rows of %s reference rows of %s by the foreign key %q", n, r.table, m.from(t), r.name))
		}
	}
	if len(problems) > 0 {
		return m.refuse(problems)
	}
	return nil
}

// refuse returns the error for what is in the way.
func (m *mover) refuse(reasons []string) error {
	const most = 10
	if n := len(reasons) - most; n > 0 {
		reasons = append(reasons[:most:most], fmt.Sprintf("and %d more", n))
	}
	return invalid(m.field(), "", "cannot be moved: "+strings.Join(reasons, "; "))
}
