package pgtenancy_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pgtenancy/pgtenancy"
)

// Types of the tenants' own have one name and many OIDs.
func TestEnums(t *testing.T) {
	t.Parallel()
	forModes(t, func(t *testing.T, opts ...option) {
		db := newDB(t)
		p := db.pool(t, opts...)
		for range 4 {
			for _, tenant := range db.tenants() {
				ctx := as(t, tenant)
				own := "from " + tenant.ID()
				_, err := p.Exec(ctx, "update notes set status = $1 where n = 1", own)
				check(t, "parameter", err)
				var got string
				err = p.QueryRow(ctx, "select status from notes where status = $1", own).Scan(&got)
				check(t, "parameter and result", want(err, got == own, "got %q", got))
				err = p.QueryRow(ctx, "select array_agg(status order by n)::text from notes where status = any ($1::text[]::status[])", []string{own, "new"}).Scan(&got)
				check(t, "array", want(err, got == fmt.Sprintf("{%q,new,new}", own), "got %s", got))
				rows, _ := p.Query(ctx, "select status, 'new'::status, null::status from notes where n = 1")
				values, err := pgx.CollectOneRow(rows, func(row pgx.CollectableRow) ([]any, error) { return row.Values() })
				check(t, "Values", want(err, fmt.Sprint(values) == "["+own+" new <nil>]", "got %v", values))
				b := &pgx.Batch{}
				b.Queue("select status from notes where status = $1", own).QueryRow(func(row pgx.Row) error { return row.Scan(&got) })
				check(t, "in a batch", want(p.SendBatch(ctx, b).Close(), got == own, "got %q", got))
				_, err = p.Exec(ctx, "update notes set status = $1 where n = 1", "from nobody")
				checkCode(t, "a label that is not there", err, "22P02")
			}
		}
		// Made anew, it has another OID.
		for range 3 {
			db.exec(t, `set search_path = tenant_acme; alter table notes alter status drop default, alter status type text;
				drop type status; create type status as enum ('new', 'from acme');
				alter table notes alter status type status using status::status, alter status set default 'new'`)
			for range 3 {
				for _, tenant := range db.tenants() {
					ctx := as(t, tenant)
					own := "from " + tenant.ID()
					_, err := p.Exec(ctx, "update notes set status = $1 where n = 1", own)
					check(t, "parameter of a new type", err)
					var got string
					err = p.QueryRow(ctx, "select status from notes where status = $1", own).Scan(&got)
					check(t, "result of a new type", want(err, got == own, "got %q", got))
				}
			}
		}
	})
}

// A table changes under statements that are prepared and described: the value is right, or there is an error.
func TestTableChanges(t *testing.T) {
	t.Parallel()
	changes := []struct{ from, to, value, want string }{
		{"int", "bigint", "4200000000", "4200000000"},
		{"bigint", "float8", "4200", "4200"},
		{"text", "int", "42", "42"},
		{"int", "text", "42", "42"},
		{"int", "numeric", "42.5", "42.5"},
		{"float8", "int", "42", "42"},
		{"int", "smallint", "42", "42"},
		{"text", "jsonb", `{"a": 1}`, `{"a": 1}`},
		{"int", "status", "paid", "paid"},
		{"status", "text", "any", "any"},
		{"int", "int[]", "{1,2}", "{1,2}"},
		{"bytea", "text", `\x41`, `\x41`},
	}
	forModes(t, func(t *testing.T, opts ...option) {
		db := newDB(t)
		p := db.pool(t, opts...)
		for i, c := range changes {
			table := fmt.Sprintf("t%d", i)
			for _, tenant := range db.tenants() {
				db.exec(t, fmt.Sprintf("set search_path = %[1]s; create table %[2]s (id int, v %[3]s); insert into %[2]s values (1, null), (2, null); grant all on %[2]s to app", tenant.Schema(), table, c.from))
			}
			update := "update " + table + " set v = $1 where id = $2"
			read := "select v, id from " + table + " where v is not null and id = $1"
			star := "select * from " + table + " where id = $1"
			old := map[string]any{"status": "new", "text": "1", "timestamptz": "2020-01-01", "bytea": []byte{1}, "int": 1, "bigint": int64(1), "float8": 1.5}[c.from]
			for range 3 {
				for _, tenant := range []pgtenancy.Tenant{db.acme, db.globex} {
					_, err := p.Exec(as(t, tenant), update, old, 1)
					check(t, "before "+c.from+" to "+c.to, err)
					for _, sql := range []string{read, star} {
						rows, _ := p.Query(as(t, tenant), sql, 1)
						_, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) ([]any, error) { return row.Values() })
						check(t, "before "+c.from+" to "+c.to, err)
					}
				}
			}
			db.exec(t, fmt.Sprintf("set search_path = tenant_acme; alter table %[1]s drop v; alter table %[1]s add v %[2]s, add extra text default 'x'", table, c.to))
			for round := range 3 {
				name := fmt.Sprintf("%s to %s, round %d", c.from, c.to, round)
				ctx := as(t, db.acme)
				_, err := p.Exec(ctx, update, c.value, 1)
				check(t, name+": write", err)
				var got string
				check(t, name+": what was written", db.admin(t).QueryRow(t.Context(), "select v::text from tenant_acme."+table+" where id = 1").Scan(&got))
				if got != c.want {
					t.Errorf("%s: %q was written, want %q", name, got, c.want)
				}
				var id int
				var none, extra any
				for range 2 {
					err = p.QueryRow(ctx, "select v::text, id from "+table+" where v is not null and id = $1", 1).Scan(&got, &id)
					check(t, name+": read as text", want(err, got == c.want && id == 1, "got %q", got))
					rows, _ := p.Query(ctx, read, 1)
					values, err := pgx.CollectOneRow(rows, func(row pgx.CollectableRow) ([]any, error) { return row.Values() })
					if err != nil || len(values) != 2 || values[1] != int32(1) {
						t.Errorf("%s: Values %v, %v", name, values, err)
					}
					if err := p.QueryRow(ctx, star, 1).Scan(&id, &none, &extra); err != nil || extra != "x" {
						t.Errorf("%s: select *: %v, %v", name, extra, err)
					}
				}
				b := &pgx.Batch{}
				b.Queue(update, c.value, 2)
				b.Queue(star, 2)
				check(t, name+": batch", p.SendBatch(ctx, b).Close())
				// The tenant of the old shape is as before.
				_, err = p.Exec(as(t, db.globex), update, old, 1)
				check(t, name+": the other tenant", err)
				err = p.QueryRow(as(t, db.globex), star, 1).Scan(&id, &none)
				check(t, name+": the other tenant", err)
			}
		}
	})
}

// In a transaction a stale statement is an error, since what came before cannot be sent again; the next one is right.
func TestTableChangesInTx(t *testing.T) {
	t.Parallel()
	if os.Getenv(poolerModeEnv) != "" {
		t.Skip("nothing is prepared")
	}
	db := newDB(t)
	p := db.pool(t)
	ctx := as(t, db.acme)
	read := func() error {
		return pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error {
			rows, _ := tx.Query(ctx, "select * from notes")
			_, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) ([]any, error) { return row.Values() })
			return err
		})
	}
	for range 3 {
		check(t, "before", read())
	}
	db.exec(t, "alter table tenant_acme.notes add extra text")
	err := read()
	checkCode(t, "the first", err, "0A000")
	check(t, "the second", read())
	check(t, "the third", read())
}

// Dropped tables and columns are errors, and public's are not read instead.
func TestTableDropped(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	p := db.pool(t)
	ctx := as(t, db.acme)
	for range 3 {
		_, err := p.Exec(ctx, "select status from notes where n = $1", 1)
		check(t, "before", err)
	}
	db.exec(t, "alter table tenant_acme.notes drop status")
	for range 3 {
		_, err := p.Exec(ctx, "select status from notes where n = $1", 1)
		checkCode(t, "a column that is gone", err, "42703")
	}
	for range 3 {
		checkWhose(t, p, ctx, db.acme)
	}
}

// ownTypesSQL is a schema's types of its own: %[1]s is the schema, %[2]s the tenant's ID, %[3]s fields of the composite in
// another order for every other tenant.
const ownTypesSQL = `
	create domain %[1]s.email as text check (value like '%%@%%');
	create type %[1]s.point3 as (%[3]s);
	create type %[1]s.span as range (subtype = int);
	create table %[1]s.things (
		id       int primary key,
		statuses %[1]s.status[],
		address  %[1]s.email,
		mails    %[1]s.email[],
		at       %[1]s.point3,
		path     %[1]s.point3[],
		spans    %[1]s.span
	);
	grant all on %[1]s.things to app;
`

type point3 struct {
	X int32
	Y float64
	L string
}

// Enums, domains, composites, ranges and arrays of them go in and come out on one connection that serves tenants whose
// types have the same names, and some of them another shape.
func TestOwnTypes(t *testing.T) {
	t.Parallel()
	for _, m := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe} {
		t.Run(m.String(), func(t *testing.T) {
			db := newDB(t)
			for _, tenant := range db.tenants() {
				db.exec(t, fmt.Sprintf(ownTypesSQL, tenant.Schema(), tenant.ID(), "x int, y float8, l text"))
			}
			p := db.pool(t, mode(m))
			for i := range 4 {
				for _, tenant := range db.tenants() {
					ctx := as(t, tenant)
					own := "from " + tenant.ID()
					in := point3{int32(i), 2.5, tenant.ID()}
					_, err := p.Exec(ctx, `insert into things values ($1, $2, $3, $4, $5, $6, $7)`, i,
						[]string{own, "new"}, "a@"+tenant.ID(), []string{"b@x", "c@x"}, in, []point3{in, {9, 9, "nine"}}, pgtype.Range[int32]{Lower: 1, Upper: 5, LowerType: pgtype.Inclusive, UpperType: pgtype.Exclusive, Valid: true})
					check(t, "parameters", err)
					var statuses, mails []string
					var address string
					var at point3
					var path []point3
					var span pgtype.Range[int32]
					err = p.QueryRow(ctx, `select statuses, address, mails, at, path, spans from things where id = $1 and at = $2::point3`, i, in).
						Scan(&statuses, &address, &mails, &at, &path, &span)
					check(t, "results", err)
					got := fmt.Sprint(statuses, address, mails, at, path, span.Lower, span.Upper)
					want := fmt.Sprint([]string{own, "new"}, "a@"+tenant.ID(), []string{"b@x", "c@x"}, in, []point3{in, {9, 9, "nine"}}, 1, 5)
					if got != want {
						t.Errorf("as %s: %s, want %s", tenant, got, want)
					}
				}
			}
			// The same in a process that knows the types already, on a connection that does not.
			tx, err := p.Begin(as(t, db.acme))
			check(t, "Begin", err)
			check(t, "Close", tx.Conn().Close(bare(t)))
			check(t, "Rollback", tx.Rollback(bare(t)))
			for _, tenant := range db.tenants() {
				var path []point3
				check(t, "on a new connection", p.QueryRow(as(t, tenant), `select path from things where id = $1`, 1).Scan(&path))
				if len(path) != 2 || path[0].L != tenant.ID() {
					t.Errorf("as %s: %v", tenant, path)
				}
			}
		})
	}
}

// A composite type that gets other fields keeps its OID. What was known of it must never be used for the new ones.
func TestOwnTypeChanges(t *testing.T) {
	t.Parallel()
	for _, m := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe} {
		t.Run(m.String(), func(t *testing.T) {
			db := newDB(t)
			db.exec(t, `create type tenant_acme.pair as (a int, b bigint); create table tenant_acme.pairs (p tenant_acme.pair);
				insert into tenant_acme.pairs values (row(1, 2)); grant all on tenant_acme.pairs to app`)
			p := db.pool(t, mode(m))
			ctx := as(t, db.acme)
			read := func() (map[string]any, error) {
				rows, _ := p.Query(ctx, "select p from pairs")
				return pgx.CollectExactlyOneRow(rows, func(row pgx.CollectableRow) (map[string]any, error) {
					values, err := row.Values()
					if err != nil {
						return nil, err
					}
					return values[0].(map[string]any), nil
				})
			}
			for range 3 {
				got, err := read()
				check(t, "read", err)
				if fmt.Sprint(got) != "map[a:1 b:2]" {
					t.Errorf("got %v", got)
				}
			}
			db.exec(t, `alter type tenant_acme.pair drop attribute b cascade, add attribute c float8 cascade`)
			db.exec(t, `update tenant_acme.pairs set p.c = 4200`)
			if got, err := read(); err == nil && fmt.Sprint(got) != "map[a:1 c:4200]" {
				t.Errorf("after the change: %v", got)
			}
			for range 3 {
				got, err := read()
				check(t, "read again", err)
				if fmt.Sprint(got) != "map[a:1 c:4200]" {
					t.Errorf("read again: %v", got)
				}
			}
		})
	}
}
