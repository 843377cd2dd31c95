package pgtenancy_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgtenancy/pgtenancy"
)

// planFiles have a shared table that each tenant's references.
var planFiles = sqlFiles("shared/001_plans.sql", "create table plans (id int primary key, used int default 0); insert into plans values (1), (2);",
	"tenant/001_orders.sql", `create table customers (id bigint generated always as identity primary key, plan int references public.plans);
		create table orders (id bigint generated always as identity primary key, customer bigint references customers, body text);`)

const planRows = "insert into customers (plan) values (1); insert into orders (customer, body) select 1, md5(i::text) from generate_series(1, 5000) i"

// checkPlansFree checks that nobody who writes to the shared table has to wait, but for the rows that are referenced.
func (db *fleetDB) checkPlansFree(t *testing.T, while, sql string) {
	t.Helper()
	conn := db.as(t, db.owner)
	defer conn.Close(context.Background())
	_, err := conn.Exec(bare(t), "set lock_timeout = '2s'; begin; "+sql+"; rollback", pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		t.Errorf("a writer of the shared table while %s: %v; locks: %q", while, err, db.texts(t, `select l.mode || ' ' || l.granted || ' ' || l.pid from pg_locks l where l.relation = 'plans'::regclass`))
	}
}

// checkNoSpares checks that there is no schema that belongs to nobody.
func (db *fleetDB) checkNoSpares(t *testing.T) {
	t.Helper()
	checkList(t, "schemas that belong to nobody", db.spareSchemas(t))
	checkEqual(t, "their rows", db.count(t, spareCountSQL), 0)
}

// gate is a store whose objects stop in the middle.
type gate struct {
	pgtenancy.Store
	after           int64
	entered, closed chan struct{}
}

func newGate(store pgtenancy.Store, after int64) *gate {
	return &gate{store, after, make(chan struct{}), make(chan struct{})}
}

func (g *gate) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	r, err := g.Store.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	var once sync.Once
	wait := func() { once.Do(func() { close(g.entered); <-g.closed }) }
	return struct {
		io.Reader
		io.Closer
	}{io.MultiReader(io.LimitReader(r, g.after), readerFunc(func([]byte) (int, error) { wait(); return 0, io.EOF }), r), r}, nil
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

// Neither Restore nor Clone keeps others from shared tables while rows are put in, which may take long.
func TestSharedTablesStayFree(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	fleet := db.migrated(t, planFiles)
	acme := provision(t, fleet, "acme")
	db.execTenant(t, acme, planRows)
	was := db.contents(t, acme)
	store := pgtenancy.DirStore(t.TempDir())
	o := backup(t, fleet, store, nil)["acme"]
	for _, opts := range []*pgtenancy.RestoreOpts{{As: "twin"}, {Replace: true}} {
		g := newGate(store, o.Bytes-30_000)
		done := make(chan pgtenancy.Tenant, 1)
		go func() {
			tenant, err := fleet.Restore(bare(t), g, o.Name, opts)
			check(t, "Restore", err)
			done <- tenant
		}()
		<-g.entered
		await(t, "rows that are put in", func() bool { // before that is a build
			return db.count(t, "select count(*) from pg_stat_activity where datname = current_database() and query like 'copy %' and state = 'active'") > 0
		})
		db.checkPlansFree(t, "Restore puts rows in", "update plans set used = used + 1; insert into plans values (3); delete from plans where id > 1")
		close(g.closed)
		checkSame(t, db, acme, was, <-done)
		db.checkNoSpares(t)
	}
	twin, err := fleet.Clone(bare(t), "acme", "clone", &pgtenancy.CloneOpts{Seed: func(ctx context.Context, tx pgx.Tx) error { // the transaction that copies
		db.checkPlansFree(t, "Clone is not done", "update plans set used = used + 1; insert into plans values (3)")
		return nil
	}})
	check(t, "Clone", err)
	checkSame(t, db, acme, was, twin)
	db.checkNoSpares(t)

	// What fails leaves nothing.
	_, err = fleet.Clone(bare(t), "acme", "never", &pgtenancy.CloneOpts{Seed: func(context.Context, pgx.Tx) error { return errors.New("no") }})
	if err == nil {
		t.Error("Clone with a seed that fails is no error")
	}
	db.checkNoSpares(t)
	recovered(func() {
		fleet.Clone(bare(t), "acme", "never", &pgtenancy.CloneOpts{Seed: func(context.Context, pgx.Tx) error { panic("no") }})
	})
	db.checkNoSpares(t)
	ctx, cancel := context.WithCancel(bare(t))
	g := newGate(store, o.Bytes-30_000)
	go func() { <-g.entered; cancel(); close(g.closed) }()
	_, err = fleet.Restore(ctx, g, o.Name, &pgtenancy.RestoreOpts{As: "never"})
	checkIs(t, "Restore", err, context.Canceled)
	db.checkNoSpares(t)
	checkEqual(t, "left", db.cloneLeft(t, "never"), 0)
}

// Migrations that cannot be run ahead run in the transaction of the tenant: none of what they do elsewhere is there without it.
func TestBuiltInOneTransaction(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, sql string }{
		{"a shared table", "insert into public.seen values (current_setting('app.current_tenant'));"},
		{"a table elsewhere", "insert into elsewhere.seen values (current_setting('app.current_tenant'));"},
		{"the schema's name in rows", "create table names (name text); insert into names values (current_schema());"},
		{"the schema's name in a default", "do $$ begin execute format('create table names (name text default %L)', current_schema()); end $$;"},
		{"a large object", "do $$ begin perform lo_from_bytea(0, 'a'); end $$;"},
		{"a function", "do $$ begin execute format('create function public.%I () returns int language sql as ''select 1''', 'of_' || current_setting('app.current_tenant')); end $$;"},
		{"a role", "do $$ begin execute format('create role %I', current_database() || ':' || current_setting('app.current_tenant')); end $$;"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			db := newFleetDB(t)
			db.exec(t, "alter role "+db.owner+" createrole")
			defer func() { // roles belong to the server
				for _, role := range db.texts(t, "select quote_ident(rolname) from pg_roles where starts_with(rolname, current_database() || ':')") {
					db.exec(t, "drop role "+role)
				}
			}()
			fleet := db.migrated(t, with(planFiles, "shared/002_seen.sql", "create table public.seen (id text); create schema elsewhere; create table elsewhere.seen (id text);", "tenant/002_seen.sql", tt.sql))
			acme := provision(t, fleet, "acme")
			store := pgtenancy.DirStore(t.TempDir())
			o := backup(t, fleet, store, nil)["acme"]
			twin := restore(t, fleet, store, o.Name, &pgtenancy.RestoreOpts{As: "twin"})
			checkSame(t, db, pgtenancy.Tenant{}, db.contents(t, acme), twin)
			clone, err := fleet.Clone(bare(t), "acme", "clone", nil)
			if err != nil {
				t.Fatal(err)
			}
			checkSame(t, db, pgtenancy.Tenant{}, db.contents(t, acme), clone)
			seen := db.texts(t, "select id from public.seen union all select id from elsewhere.seen order by 1")
			if len(seen) > 0 {
				checkList(t, "seen", seen, "acme", "clone", "twin")
			}
			db.checkNoSpares(t)
			checkEqual(t, "names of spares", db.count(t, `select count(*) from pg_attrdef where pg_get_expr(adbin, adrelid) like '%spare%'`), 0)
			const made = `select (select count(*) from pg_largeobject_metadata) + (select count(*) from pg_roles where starts_with(rolname, current_database() || ':')) + (select count(*) from pg_proc where starts_with(proname, 'of_'))`
			before := db.count(t, made)
			_, err = fleet.Clone(bare(t), "acme", "never", &pgtenancy.CloneOpts{Seed: func(context.Context, pgx.Tx) error { return errors.New("no") }})
			if err == nil {
				t.Error("Clone with a seed that fails is no error")
			}
			checkEqual(t, "large objects, roles and functions", db.count(t, made), before)
			checkList(t, "seen", db.texts(t, "select id from public.seen union all select id from elsewhere.seen order by 1"), seen...)
		})
	}
}

// A migration in Go finds the tenant that is to be, and its schema as it is called.
func TestBuiltAheadGo(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	var mu sync.Mutex
	ids := map[string]bool{}
	fleet := db.migrated(t, planFiles, func(c *pgtenancy.FleetConfig) {
		c.GoMigrations = []pgtenancy.GoMigration{{Name: "tenant/002_go", Up: func(ctx context.Context, tx pgx.Tx) error {
			tenant, ok := pgtenancy.TenantFromContext(ctx)
			var schema, value string
			err := tx.QueryRow(ctx, "select current_schema(), current_setting('app.current_tenant')").Scan(&schema, &value)
			mu.Lock()
			defer mu.Unlock()
			ids[value] = true
			if !ok || tenant.Schema() != schema || tenant.ID() != value {
				t.Errorf("the tenant is %q in %s, and the context has %q in %s", value, schema, tenant.ID(), tenant.Schema())
			}
			return errors.Join(err, second(tx.Exec(ctx, "create table made (id int)")))
		}}}
	})
	acme := provision(t, fleet, "acme")
	clone, err := fleet.Clone(bare(t), "acme", "clone", nil)
	check(t, "Clone", err)
	checkSame(t, db, acme, db.contents(t, acme), clone)
	checkEqual(t, "run for the clone", ids["clone"], true)
}

// What a migration in Go made as another role is the tenant's role's, or is not, whether it was built ahead or not. No spare can be had
// of it.
func TestBuiltAheadSetRole(t *testing.T) {
	t.Parallel()
	db := newRolesDB(t)
	other := db.owner + "_other"
	db.exec(t, fmt.Sprintf("create role %[1]s; grant %[1]s to %[2]s; grant execute on function set_config to %[1]s", other, db.owner))
	defer func() { db.exec(t, fmt.Sprintf("drop owned by %[1]s cascade; drop role %[1]s", other)) }() // roles belong to the server
	fleet := db.migrated(t, planFiles, db.isolate, func(c *pgtenancy.FleetConfig) {
		c.GoMigrations = []pgtenancy.GoMigration{{Name: "tenant/002_go", Up: func(ctx context.Context, tx pgx.Tx) error {
			var schema string
			err := tx.QueryRow(ctx, "select quote_ident(current_schema())").Scan(&schema)
			for _, sql := range []string{
				"grant usage, create on schema " + schema + " to " + other, "create table given (id int)", "alter table given owner to " + other,
				"set local role " + other, "create table made (id int)",
			} {
				err = errors.Join(err, second(tx.Exec(ctx, sql)))
			}
			return err
		}}}
	})
	provision(t, fleet, "acme")
	store := pgtenancy.DirStore(t.TempDir())
	o := backup(t, fleet, store, nil)["acme"]
	_, err := fleet.Clone(bare(t), "acme", "clone", nil)
	check(t, "Clone", err)
	restore(t, fleet, store, o.Name, &pgtenancy.RestoreOpts{As: "twin"})
	checkList(t, "tables that the tenants' roles may read", db.texts(t, `select r.rolname::text from pg_roles r, pg_class c
		where starts_with(r.rolname, '`+db.group+`:') and c.relname in ('given', 'made') and has_table_privilege(r.oid, c.oid, 'select') order by 1`),
		db.group+":acme", db.group+":clone", db.group+":twin")
	db.checkNoSpares(t)
	checkInvalid(t, "spares", fleet.KeepSpares(bare(t), 1), "FleetConfig.Migrations")
}

// aheadEnv has the URLs of the application and of the owner in a process that is to be killed.
const aheadEnv = "PGTENANCY_TEST_CLONE"

// A process is killed in the middle of Clone. Nothing of the clone is there, and what was built for it goes.
func TestCloneKilled(t *testing.T) {
	t.Parallel()
	if urls := strings.Fields(os.Getenv(aheadEnv)); len(urls) > 0 {
		cloneToBeKilled(t, planFiles, urls[0], urls[1])
		return
	}
	db := newFleetDB(t)
	fleet := db.migrated(t, planFiles)
	acme := provision(t, fleet, "acme")
	db.execTenant(t, acme, planRows)
	was := db.contents(t, acme)
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestCloneKilled$")
	cmd.Env = append(os.Environ(), aheadEnv+"="+db.urlOf(t, db.app, "")+" "+db.urlOf(t, db.owner, ""))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	await(t, "a clone whose rows are there", func() bool {
		return db.count(t, "select count(*) from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'") > 0
	})
	cmd.Process.Kill()
	cmd.Wait()
	db.exec(t, "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'") // which does not see that its client is gone
	db.awaitQuiet(t)
	checkEqual(t, "left of the clone", db.cloneLeft(t, "twin"), 0)
	left := db.spareSchemas(t)
	checkEqual(t, "schemas that were built", len(left), 1)

	// Nobody takes it, not even for a new tenant, and while it is young nobody drops it: its process might live.
	provision(t, fleet, "other")
	twin, err := fleet.Clone(bare(t), "acme", "twin", nil)
	check(t, "Clone", err)
	checkSame(t, db, acme, was, twin)
	checkList(t, "schemas that were built", db.spareSchemas(t), left...)
	db.exec(t, "update pgtenancy.spares set kept_at = now() - interval '6 minutes'")
	_, err = fleet.Clone(bare(t), "acme", "third", nil)
	check(t, "Clone", err)
	db.checkNoSpares(t)
}

func cloneToBeKilled(t *testing.T, files fstest.MapFS, app, owner string) {
	cfg := pgtenancy.FleetConfig{Migrations: files}
	var err error
	if cfg.PoolConfig.Conns, err = pgxpool.ParseConfig(app); err != nil {
		t.Fatal(err)
	}
	if cfg.Owner, err = pgxpool.ParseConfig(owner); err != nil {
		t.Fatal(err)
	}
	cfg.Owner.ConnConfig.RuntimeParams["application_name"] = killedName
	fleet, err := pgtenancy.Open(bare(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer fleet.Close()
	_, err = fleet.Clone(bare(t), "acme", "twin", &pgtenancy.CloneOpts{Seed: func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "select pg_sleep(1000)")
		return err
	}})
	t.Errorf("Clone came to its end: %v", err)
}
