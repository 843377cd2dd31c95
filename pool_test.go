package pgtenancy_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy"
)

// uses are all the ways to run SQL, each of which checks that it reaches the tenant.
var uses = []struct {
	name string
	run  func(ctx context.Context, q querier, tenant pgtenancy.Tenant) error
}{
	{"Exec", func(ctx context.Context, q querier, tenant pgtenancy.Tenant) error {
		tag, err := q.Exec(ctx, "update notes set n = n where tenant = $1", tenant.ID())
		return want(err, tag.RowsAffected() == 3, "%s rows", tag)
	}},
	{"Exec without arguments", func(ctx context.Context, q querier, _ pgtenancy.Tenant) error {
		tag, err := q.Exec(ctx, "insert into log (note) values ('exec')")
		return want(err, tag.String() == "INSERT 0 1", "tag %s", tag)
	}},
	{"Query", func(ctx context.Context, q querier, tenant pgtenancy.Tenant) error {
		rows, err := q.Query(ctx, "select id, tenant from notes where n >= $1 order by id", 1)
		if err != nil {
			return err
		}
		defer rows.Close()
		n := 0
		for rows.Next() {
			var id int64
			var got string
			if err := rows.Scan(&id, &got); err != nil {
				return err
			}
			if got != tenant.ID() {
				return fmt.Errorf("read a row of %q", got)
			}
			n++
		}
		return want(rows.Err(), n == 3, "%d rows", n)
	}},
	{"Query closed early", func(ctx context.Context, q querier, _ pgtenancy.Tenant) error {
		rows, err := q.Query(ctx, "select tenant from notes")
		if err != nil {
			return err
		}
		rows.Next()
		rows.Close()
		return rows.Err()
	}},
	{"QueryRow", func(ctx context.Context, q querier, tenant pgtenancy.Tenant) error {
		var got string
		err := q.QueryRow(ctx, whoseSQL).Scan(&got)
		return want(err, got == tenant.ID()+" "+tenant.ID()+" "+tenant.Schema(), "got %q", got)
	}},
	{"QueryRow without a row", func(ctx context.Context, q querier, _ pgtenancy.Tenant) error {
		var got string
		err := q.QueryRow(ctx, "select tenant from notes where n = $1", 77).Scan(&got)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		return want(err, false, "a row %q", got)
	}},
	{"QueryRow returning", func(ctx context.Context, q querier, tenant pgtenancy.Tenant) error {
		var got string
		err := q.QueryRow(ctx, "insert into log (note) values ($1) returning tenant", "returning").Scan(&got)
		return want(err, got == tenant.ID(), "got %q", got)
	}},
	{"SendBatch", func(ctx context.Context, q querier, tenant pgtenancy.Tenant) error {
		b := &pgx.Batch{}
		var got []string
		scan := func(row pgx.Row) error {
			var s string
			err := row.Scan(&s)
			got = append(got, s)
			return err
		}
		b.Queue("insert into log (note) values ($1) returning tenant", "batch").QueryRow(scan)
		b.Queue("update notes set n = n")
		b.Queue("select max(tenant) from notes where n > $1", 0).QueryRow(scan)
		err := q.SendBatch(ctx, b).Close()
		return want(err, fmt.Sprint(got) == fmt.Sprint([]string{tenant.ID(), tenant.ID()}), "got %v", got)
	}},
	{"CopyFrom", func(ctx context.Context, q querier, _ pgtenancy.Tenant) error {
		n, err := q.CopyFrom(ctx, pgx.Identifier{"log"}, []string{"note"}, pgx.CopyFromRows([][]any{{"copy"}, {"copy"}}))
		return want(err, n == 2, "%d rows", n)
	}},
	{"Begin", func(ctx context.Context, q querier, tenant pgtenancy.Tenant) error {
		return pgx.BeginFunc(ctx, beginner{q}, func(tx pgx.Tx) error {
			for range 2 {
				var got string
				if err := tx.QueryRow(ctx, "select max(tenant) from notes").Scan(&got); err != nil || got != tenant.ID() {
					return fmt.Errorf("got %q, %w", got, err)
				}
			}
			return nil
		})
	}},
	{"nested Begin", func(ctx context.Context, q querier, tenant pgtenancy.Tenant) error {
		return pgx.BeginFunc(ctx, beginner{q}, func(tx pgx.Tx) error {
			sub, err := tx.Begin(ctx)
			if err != nil {
				return err
			}
			if _, err := sub.Exec(ctx, "select 1/0"); err == nil {
				return errors.New("no error from 1/0")
			}
			if err := sub.Rollback(ctx); err != nil {
				return err
			}
			return pgx.BeginFunc(ctx, tx, func(sub pgx.Tx) error {
				var got string
				err := sub.QueryRow(ctx, "select max(tenant) from notes").Scan(&got)
				return want(err, got == tenant.ID(), "got %q", got)
			})
		})
	}},
}

// beginner hides the other methods of a querier from pgx.BeginFunc.
type beginner struct{ q querier }

func (b beginner) Begin(ctx context.Context) (pgx.Tx, error) { return b.q.Begin(ctx) }

// want returns err, or an error where ok is false.
func want(err error, ok bool, format string, args ...any) error {
	if err == nil && !ok {
		return fmt.Errorf(format, args...)
	}
	return err
}

// Every method reaches its own tenant on one connection that serves them all in turn, and leaves nothing on it.
func TestScoping(t *testing.T) {
	t.Parallel()
	needsDirect(t)
	forModes(t, func(t *testing.T, opts ...option) {
		db := newDB(t)
		var be backend
		p := db.pool(t, append(opts, be.option)...)
		for round := range 4 { // unnamed, prepared, warm, and pushed out where few are kept
			for _, use := range uses {
				for _, tenant := range db.tenants() {
					ctx := as(t, tenant)
					name := fmt.Sprintf("round %d: %s as %s", round, use.name, tenant)
					check(t, name+" on Pool", use.run(ctx, p, tenant))
					be.check(t, name+" on Pool")
					check(t, name+" on Scope", use.run(bare(t), p.For(tenant), tenant))
					be.check(t, name+" on Scope")
					check(t, name+" on Tx", pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error { return use.run(ctx, tx, tenant) }))
					be.check(t, name+" on Tx")
				}
			}
		}
		for _, use := range uses {
			for _, tenant := range db.tenants() {
				err := p.AcquireFunc(as(t, tenant), func(c *pgtenancy.Conn) error {
					return errors.Join(use.run(bare(t), c, tenant), use.run(bare(t), c, tenant), use.run(as(t, tenant), c, tenant))
				})
				check(t, use.name+" on Conn", err)
				be.check(t, use.name+" on Conn")
			}
		}
		for _, tenant := range db.tenants() {
			// Per round: Exec, QueryRow returning, SendBatch one row each, CopyFrom two; on Pool, Scope and Tx; thrice on Conn.
			if n, w := db.count(t, "select count(*) from "+tenant.Schema()+".log where tenant = '"+tenant.ID()+"'"), 4*5*3+5*3; n != w {
				t.Errorf("%s wrote %d rows, want %d", tenant, n, w)
			}
		}
		if n := db.count(t, "select count(*) from public.log"); n != 0 {
			t.Errorf("%d rows were written to public", n)
		}
		if n := p.Stat().NewConnsCount(); n != 1 {
			t.Errorf("the pool made %d connections, want 1", n)
		}
	})
}

// Many goroutines of all tenants share a few connections.
func TestScopingConcurrently(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	p := db.pool(t, maxConns(3), capacity(4))
	var wg sync.WaitGroup
	for i := range 12 {
		tenant := db.tenants()[i%3]
		ctx := as(t, tenant)
		wg.Go(func() {
			for range 10 {
				for _, use := range uses {
					check(t, use.name+" as "+tenant.ID(), use.run(ctx, p, tenant))
				}
			}
		})
	}
	wg.Wait()
}

// Without a tenant nothing is sent, and not even a connection is made.
func TestNoTenant(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	suspended := newTenantOf(t, pgtenancy.TenantInfo{ID: "acme", State: pgtenancy.Suspended})
	deleted := newTenantOf(t, pgtenancy.TenantInfo{ID: "acme", State: pgtenancy.Deleted})
	shared := newTenantOf(t, pgtenancy.TenantInfo{ID: "acme", Schema: "common"})
	tests := []struct {
		name   string
		ctx    context.Context
		scope  func(p *pgtenancy.Pool) scope
		target error // nil for an *InvalidError
		reason string
	}{
		{"no tenant", bare(t), onPool, pgtenancy.ErrNoTenant, "nothing defaults to a tenant"},
		{"zero tenant in the context", as(t, pgtenancy.Tenant{}), onPool, pgtenancy.ErrNoTenant, "as a failed lookup returns it"},
		{"zero tenant in For", bare(t), func(p *pgtenancy.Pool) scope { return p.For(pgtenancy.Tenant{}) }, pgtenancy.ErrNoTenant, "as a failed lookup returns it"},
		{"zero tenant in For with a tenant in the context", as(t, db.acme), func(p *pgtenancy.Pool) scope { return p.For(pgtenancy.Tenant{}) }, pgtenancy.ErrNoTenant, "For decides"},
		{"suspended", as(t, suspended), onPool, pgtenancy.ErrTenantSuspended, "the handle says so"},
		{"suspended in For", bare(t), func(p *pgtenancy.Pool) scope { return p.For(suspended) }, pgtenancy.ErrTenantSuspended, "the handle says so"},
		{"deleted", as(t, deleted), onPool, pgtenancy.ErrTenantNotFound, "the handle says so"},
		{"another tenant than For's", as(t, db.globex), func(p *pgtenancy.Pool) scope { return p.For(db.acme) }, pgtenancy.ErrTenantMismatch, "two tenants that disagree"},
		{
			"the same ID with another schema", as(t, newTenantOf(t, pgtenancy.TenantInfo{ID: "acme", Schema: "old_acme"})),
			func(p *pgtenancy.Pool) scope { return p.For(db.acme) }, pgtenancy.ErrTenantMismatch, "a schema is what is read",
		},
		{"a shared schema for a tenant's", as(t, shared), onPool, nil, "all tenants would write to it"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var w wireCounter
			p := db.pool(t, w.option, func(c *pgtenancy.PoolConfig) { c.SharedSchemas = []string{"public", "common"} })
			for _, use := range uses {
				if err := use.run(tt.ctx, tt.scope(p), db.acme); !refused(err, tt.target) {
					t.Errorf("%s: error %v, want %v: %s", use.name, err, tt.target, tt.reason)
				}
			}
			s := tt.scope(p)
			if _, err := s.BeginTx(tt.ctx, pgx.TxOptions{AccessMode: pgx.ReadOnly}); !refused(err, tt.target) {
				t.Errorf("BeginTx: error %v, want %v", err, tt.target)
			}
			if _, err := s.Acquire(tt.ctx); !refused(err, tt.target) {
				t.Errorf("Acquire: error %v, want %v", err, tt.target)
			}
			if err := s.AcquireFunc(tt.ctx, func(*pgtenancy.Conn) error { t.Error("called"); return nil }); !refused(err, tt.target) {
				t.Errorf("AcquireFunc: error %v, want %v", err, tt.target)
			}
			if w.sent() {
				t.Error("something was sent")
			}
		})
	}
}

// refused reports whether err is target, or an *InvalidError where target is nil.
func refused(err, target error) bool {
	if target == nil {
		return errors.As(err, new(*pgtenancy.InvalidError))
	}
	return errors.Is(err, target)
}

// scope is what Pool and Scope have in common.
type scope interface {
	querier
	BeginTx(ctx context.Context, opts pgx.TxOptions) (pgx.Tx, error)
	Acquire(ctx context.Context) (*pgtenancy.Conn, error)
	AcquireFunc(ctx context.Context, f func(*pgtenancy.Conn) error) error
}

func onPool(p *pgtenancy.Pool) scope { return p }

// A schema that cannot be used is an error, though every table of it is there in public.
func TestNoSchema(t *testing.T) {
	t.Parallel()
	forModes(t, func(t *testing.T, opts ...option) {
		db := newDB(t)
		missing := newTenant(t, "missing")
		denied := newTenant(t, "denied")
		dropped := newTenant(t, "dropped")
		db.exec(t, "create schema tenant_denied; create table tenant_denied.notes as table public.notes; create table tenant_denied.log as table public.log")
		db.exec(t, fmt.Sprintf(schemaSQL, "tenant_dropped", "dropped"))
		p := db.pool(t, opts...)
		for range 3 {
			for _, use := range uses { // every statement is known and prepared
				check(t, use.name, use.run(as(t, dropped), p, dropped))
			}
		}
		db.exec(t, "set client_min_messages = error; drop schema tenant_dropped cascade")
		for range 3 {
			for _, tenant := range []pgtenancy.Tenant{missing, denied, dropped} {
				for _, use := range uses {
					checkIs(t, use.name+" as "+tenant.ID(), use.run(as(t, tenant), p, tenant), pgtenancy.ErrTenantNotFound)
				}
				c, err := p.Acquire(as(t, tenant))
				if err == nil {
					c.Release()
				}
				checkIs(t, "Acquire as "+tenant.ID(), err, pgtenancy.ErrTenantNotFound)
				_, err = p.Exec(as(t, tenant), "do $$ begin insert into log values ('x'); end $$")
				checkIs(t, "DO as "+tenant.ID(), err, pgtenancy.ErrTenantNotFound)
				db.checkWorks(t, p)
			}
		}
		if n := db.count(t, "select (select count(*) from public.log) + (select count(*) from tenant_denied.log)"); n != 0 {
			t.Errorf("%d rows were written elsewhere", n)
		}
	})
}

// A schema that was made after its tenant was tried for is found.
func TestSchemaMadeLater(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	p := db.pool(t)
	later := newTenant(t, "later")
	for range 3 {
		var got string
		checkIs(t, "before", p.QueryRow(as(t, later), whoseSQL).Scan(&got), pgtenancy.ErrTenantNotFound)
	}
	db.exec(t, fmt.Sprintf(schemaSQL, "tenant_later", "later"))
	checkWhose(t, p, as(t, later), later)
}

func TestShared(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	p := db.pool(t, capacity(0)) // no statement is kept
	for range 3 {
		for _, ctx := range []context.Context{bare(t), as(t, db.acme), as(t, pgtenancy.Tenant{})} {
			checkWhose(t, p, as(t, db.globex), db.globex)
			var got string
			err := p.Shared().QueryRow(ctx, whoseSQL).Scan(&got)
			if err != nil || got != "public  public" {
				t.Errorf("Shared: got %q, %v", got, err)
			}
			check(t, "Shared in a transaction", pgx.BeginFunc(ctx, p.Shared(), func(tx pgx.Tx) error {
				return tx.QueryRow(ctx, whoseSQL).Scan(&got)
			}))
			check(t, "Shared in a session", p.Shared().AcquireFunc(ctx, func(c *pgtenancy.Conn) error {
				return c.QueryRow(ctx, whoseSQL).Scan(&got)
			}))
			if got != "public  public" {
				t.Errorf("Shared: got %q", got)
			}
		}
	}
	if got := p.Shared().Tenant(); got != (pgtenancy.Tenant{}) {
		t.Errorf("Shared().Tenant() = %v, want none", got)
	}
	if got := p.For(db.acme).Tenant(); got != db.acme {
		t.Errorf("For(acme).Tenant() = %v", got)
	}
}

func TestSharedSchemas(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	db.exec(t, `create schema "Of All"; create table "Of All".rates as select 7 as rate; create table public.only_here as select 8 as n;
		grant usage on schema "Of All" to app; grant select on all tables in schema "Of All", public to app`)
	with := func(schemas ...string) option {
		return func(c *pgtenancy.PoolConfig) { c.SharedSchemas = schemas }
	}
	n := func(p scope, sql string) (n int, err error) {
		err = p.QueryRow(as(t, db.acme), sql).Scan(&n)
		return n, err
	}

	p := db.pool(t, with("Of All"))
	if got, err := n(p, "select rate from rates"); err != nil || got != 7 {
		t.Errorf("a shared table: %d, %v", got, err)
	}
	_, err := n(p, "select n from only_here")
	checkCode(t, "a table in public, which is not shared", err, "42P01")
	if got, err := n(p.Shared(), "select rate from rates"); err != nil || got != 7 {
		t.Errorf("a shared table without a tenant: %d, %v", got, err)
	}

	p = db.pool(t, with([]string{}...), func(c *pgtenancy.PoolConfig) { c.SharedSchemas = []string{} })
	checkWhose(t, p, as(t, db.acme), db.acme)
	_, err = n(p, "select n from only_here")
	checkCode(t, "a table in public, where nothing is shared", err, "42P01")
	_, err = n(p.Shared(), "select n from only_here")
	checkCode(t, "a table in public, where nothing is shared, without a tenant", err, "42P01")
	if got, err := n(p.Shared(), "select 1"); err != nil || got != 1 {
		t.Errorf("nothing shared, no tenant: %d, %v", got, err)
	}
}

// A temporary table, of whatever made one, does not stand in for a tenant's.
func TestTemporaryTableComesLast(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	p := db.pool(t)
	check(t, "Begin", pgx.BeginFunc(as(t, db.acme), p, func(tx pgx.Tx) error {
		if _, err := tx.Exec(bare(t), "create temp table notes on commit drop as select 'temp' as tenant"); err != nil {
			return err
		}
		checkWhose(t, tx, as(t, db.acme), db.acme)
		return nil
	}))
}

// The setting has another name and another value than the defaults.
func TestSetting(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	values := map[string]string{"acme": "42", "globex": `it's "\ 1`, "initech": ""}
	p := db.pool(t, func(c *pgtenancy.PoolConfig) {
		c.Setting = "My_App.tenant.key"
		c.SettingValue = func(t pgtenancy.Tenant) string { return values[t.ID()] }
	})
	for range 3 {
		for _, tenant := range db.tenants() {
			var got, standard string
			err := p.QueryRow(as(t, tenant), "select current_setting('my_app.tenant.key'), coalesce(current_setting('app.current_tenant', true), '')").Scan(&got, &standard)
			if err != nil || got != values[tenant.ID()] || standard != "" {
				t.Errorf("%s: got %q and %q, %v", tenant, got, standard, err)
			}
		}
	}
	p = db.pool(t, func(c *pgtenancy.PoolConfig) {
		c.SettingValue = func(pgtenancy.Tenant) string { return "a\x00b" }
	})
	_, err := p.Exec(as(t, db.acme), "select 1")
	if !errors.As(err, new(*pgtenancy.InvalidError)) {
		t.Errorf("a value with NUL: error %v", err)
	}
}

// Tenants have roles of their own, schemas of any name, and IDs that look alike.
func TestNames(t *testing.T) {
	t.Parallel()
	needsDirect(t)
	db := newDB(t)
	role := "Role of " + t.Name() // belongs to the server
	db.exec(t, `do $$ begin create role "`+role+`" role app; exception when duplicate_object or unique_violation then null; end $$`)
	t.Cleanup(func() { db.exec(t, `drop owned by "`+role+`"; drop role "`+role+`"`) })
	infos := []pgtenancy.TenantInfo{
		{ID: "a", Schema: "a b"},
		{ID: "b", Schema: "a", Role: role},
		{ID: "c", Schema: "a b", Role: role},
		{ID: "d", Schema: `q"uo'te, $user`},
		{ID: "e", Schema: `*/ select 1 /*`},
		{ID: "f", Schema: "--\n;\r%2A"},
		{ID: "g", Schema: "Größe 😀"},
		{ID: "h", Schema: `back\slash`},
		{ID: "i", Schema: "x123456789012345678901234567890123456789012345678901234567890ab"},
		{ID: "j", Schema: "user"},
	}
	var be backend
	p := db.pool(t, be.option)
	tenants := map[pgtenancy.Tenant]bool{}
	for _, info := range infos {
		tenant := newTenantOf(t, info)
		tenants[tenant] = true
		q := pgx.Identifier{info.Schema}.Sanitize()
		db.exec(t, fmt.Sprintf("create schema if not exists %[1]s; create table if not exists %[1]s.t as select $x$%[2]s$x$::text as schema; grant usage on schema %[1]s to app, %[3]q; grant select on %[1]s.t to app, %[3]q",
			q, info.Schema, role))
	}
	for range 4 {
		for tenant := range tenants {
			var schema, current, user string
			err := p.QueryRow(as(t, tenant), "select schema, current_schema(), current_user from t -- a comment").Scan(&schema, &current, &user)
			wantUser := tenant.Role()
			if wantUser == "" {
				wantUser = "app"
			}
			if err != nil || schema != tenant.Schema() || current != tenant.Schema() || user != wantUser {
				t.Errorf("schema %q, role %q: got %q, %q as %q, %v", tenant.Schema(), tenant.Role(), schema, current, user, err)
			}
			be.check(t, "a statement of "+tenant.Schema())
			check(t, "AcquireFunc", p.AcquireFunc(as(t, tenant), func(c *pgtenancy.Conn) error {
				return want(c.QueryRow(bare(t), "select schema, current_schema(), current_user from t").Scan(&schema, &current, &user),
					schema == tenant.Schema() && user == wantUser, "a session has %q as %q", schema, user)
			}))
			be.check(t, "a session of "+tenant.Schema())
		}
	}
	for name, info := range map[string]pgtenancy.TenantInfo{
		"a role that the connection is no member of": {ID: "x", Schema: "a", Role: "postgres"},
		"a role that does not exist":                 {ID: "x", Schema: "a", Role: "nobody at all"},
	} {
		for range 3 {
			_, err := p.Exec(as(t, newTenantOf(t, info)), "select 1")
			if err == nil || errors.Is(err, pgtenancy.ErrTenantNotFound) {
				t.Errorf("%s: error %v", name, err)
			}
			be.check(t, name)
		}
	}
	db.checkWorks(t, p)
}

// Row level security sees the tenant, whatever method carries it, and nobody without one.
func TestRowLevelSecurity(t *testing.T) {
	t.Parallel()
	forModes(t, func(t *testing.T, opts ...option) {
		db := newDB(t)
		p := db.pool(t, opts...)
		names := func(q querier, ctx context.Context) string {
			rows, _ := q.Query(ctx, "select name from users order by name")
			got, err := pgx.CollectRows(rows, pgx.RowTo[string])
			check(t, "select", err)
			return fmt.Sprint(got)
		}
		for range 3 {
			for _, tt := range []struct {
				q    querier
				ctx  context.Context
				want string
			}{
				{p, as(t, db.acme), "[ann art]"},
				{p, as(t, db.globex), "[gus]"},
				{p.Shared(), as(t, db.globex), "[]"},
				{p.For(db.initech), bare(t), "[ida]"},
				{p.Shared(), bare(t), "[]"},
			} {
				if got := names(tt.q, tt.ctx); got != tt.want {
					t.Errorf("got %s, want %s", got, tt.want)
				}
			}
			_, err := p.Exec(as(t, db.acme), "insert into users (tenant, name) values ($1, $2)", "globex", "mole")
			checkCode(t, "insert of another tenant's row", err, "42501")
			_, err = p.Exec(as(t, db.acme), "update users set tenant = 'globex'")
			checkCode(t, "update into another tenant's row", err, "42501")
			_, err = p.Shared().Exec(bare(t), "insert into users (tenant, name) values ('acme', 'mole')")
			checkCode(t, "insert without a tenant", err, "42501")
			tag, err := p.Exec(as(t, db.acme), "delete from users where name = $1", "gus")
			if err != nil || tag.RowsAffected() != 0 {
				t.Errorf("delete of another tenant's row: %s, %v", tag, err)
			}
			if !behindPooler() { // PgBouncer 1.24 gets the answers to a Close wrong after a COPY that failed
				_, err = p.CopyFrom(as(t, db.acme), pgx.Identifier{"users"}, []string{"tenant", "name"}, pgx.CopyFromRows([][]any{{"acme", "x"}}))
				checkCode(t, "COPY, which PostgreSQL refuses", err, "0A000")
			}
			b := &pgx.Batch{}
			b.Queue("insert into users (name) values ($1)", "abe")
			b.Queue("delete from users where name = $1", "abe")
			check(t, "SendBatch", p.SendBatch(as(t, db.acme), b).Close())
		}
		if n := db.count(t, "select count(*) from users"); n != 4 {
			t.Errorf("%d users, want 4", n)
		}
	})
}
