package pgtenancy_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgtenancy/pgtenancy"
	"github.com/pgtenancy/pgtenancy/pgtenancytest"
)

// fleetDB is an empty database with a role that owns it and is no superuser, and one that owns nothing.
type fleetDB struct {
	testDB
	owner, app string
}

// newFleetDB creates a database. Roles belong to the server, so each database has its own.
func newFleetDB(t *testing.T) *fleetDB {
	t.Helper()
	db := &fleetDB{}
	t.Cleanup(func() { // after the database was dropped
		conn, err := pgx.Connect(context.Background(), db.urlOf(t, "", "postgres"))
		if err != nil {
			return
		}
		defer conn.Close(context.Background())
		for _, role := range []string{db.owner, db.app} {
			conn.Exec(context.Background(), "drop role if exists "+role)
		}
	})
	db.url = pgtenancytest.Database(t)
	name := db.name(t)
	suffix := name[strings.LastIndexByte(name, '_')+1:]
	db.owner, db.app = "owner_"+suffix, "app_"+suffix
	db.exec(t, fmt.Sprintf(`create role %[1]s login; create role %[2]s login;
		alter database %[3]s owner to %[1]s; alter schema public owner to %[1]s`, db.owner, db.app, pgx.Identifier{name}.Sanitize()))
	return db
}

func (db *fleetDB) name(t *testing.T) string {
	t.Helper()
	u, err := url.Parse(db.url)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimPrefix(u.Path, "/")
}

// urlOf returns the database's URL for another user, or that of another database, where these are not "".
func (db *fleetDB) urlOf(t *testing.T, user, name string) string {
	t.Helper()
	u, err := url.Parse(db.url)
	if err != nil {
		t.Fatal(err)
	}
	if user != "" {
		u.User = url.User(user)
	}
	if name != "" {
		u.Path = "/" + name
	}
	return u.String()
}

// as returns a connection of a role's, below everything that would scope it.
func (db *fleetDB) as(t *testing.T, role string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), db.urlOf(t, role, ""))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// execAs runs statements as a role.
func (db *fleetDB) execAs(t *testing.T, role, sql string) {
	t.Helper()
	conn := db.as(t, role)
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatalf("%.200s: %v", sql, err)
	}
}

func (db *fleetDB) poolConfig(t *testing.T, role string) *pgxpool.Config {
	t.Helper()
	c, err := pgxpool.ParseConfig(db.urlOf(t, role, ""))
	if err != nil {
		t.Fatal(err)
	}
	c.MaxConns = 4
	return c
}

// config returns the usual configuration: the data plane's role and the owner's are two.
func (db *fleetDB) config(t *testing.T, migrations fs.FS) pgtenancy.FleetConfig {
	t.Helper()
	return pgtenancy.FleetConfig{
		PoolConfig: pgtenancy.PoolConfig{Conns: db.poolConfig(t, db.app)},
		Owner:      db.poolConfig(t, db.owner),
		Migrations: migrations,
	}
}

type fleetOption func(*pgtenancy.FleetConfig)

// ownerConns bounds the owner's connections. With one of them, one that was not given back stops everything.
func ownerConns(n int32) fleetOption {
	return func(c *pgtenancy.FleetConfig) { c.Owner.MaxConns = n }
}

// open returns a fleet, which is closed with the test; no connection is in use then.
func (db *fleetDB) open(t *testing.T, migrations fs.FS, opts ...fleetOption) *pgtenancy.Fleet {
	t.Helper()
	cfg := db.config(t, migrations)
	for _, o := range opts {
		o(&cfg)
	}
	fleet, err := pgtenancy.Open(bare(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeFleet(t, fleet) })
	return fleet
}

func closeFleet(t *testing.T, fleet *pgtenancy.Fleet) {
	t.Helper()
	closed := make(chan struct{})
	go func() { fleet.Close(); close(closed) }()
	select {
	case <-closed:
	case <-time.After(patience):
		t.Error("Close waits for a connection that was not given back")
	}
}

// migrated is open, then Migrate.
func (db *fleetDB) migrated(t *testing.T, migrations fs.FS, opts ...fleetOption) *pgtenancy.Fleet {
	t.Helper()
	fleet := db.open(t, migrations, opts...)
	migrate(t, fleet)
	return fleet
}

func migrate(t *testing.T, fleet *pgtenancy.Fleet) *pgtenancy.MigrateReport {
	t.Helper()
	report, err := fleet.Migrate(bare(t), nil)
	if err != nil {
		t.Fatalf("Migrate: %v", err)
	}
	return report
}

func provision(t *testing.T, fleet *pgtenancy.Fleet, id string) pgtenancy.Tenant {
	t.Helper()
	tenant, err := fleet.Provision(bare(t), id, nil)
	if err != nil {
		t.Fatalf("Provision(%q): %v", id, err)
	}
	return tenant
}

// sqlFiles returns a file system: a name, a content, a name, ...
func sqlFiles(namesAndContents ...string) fstest.MapFS {
	files := fstest.MapFS{}
	for i := 0; i < len(namesAndContents); i += 2 {
		files[namesAndContents[i]] = &fstest.MapFile{Data: []byte(namesAndContents[i+1])}
	}
	return files
}

// with returns the files and some more.
func with(files fstest.MapFS, namesAndContents ...string) fstest.MapFS {
	more := sqlFiles(namesAndContents...)
	for name, file := range files {
		if _, ok := more[name]; !ok {
			more[name] = file
		}
	}
	return more
}

// notesFiles has one tenant migration.
var notesFiles = sqlFiles("tenant/001_notes.sql", "create table notes (id bigint generated by default as identity primary key, body text not null);")

// makeTenants makes n tenants at version 0 with empty schemas, t00001 and so on, faster than Provision would.
func (db *fleetDB) makeTenants(t *testing.T, n int) {
	t.Helper()
	db.execAs(t, db.owner, fmt.Sprintf(`do $$
		begin
			for i in 1..%d loop
				execute format('create schema tenant_t%%s', to_char(i, 'FM00000'));
				insert into pgtenancy.tenants (id, schema_name, state) values ('t' || to_char(i, 'FM00000'), 'tenant_t' || to_char(i, 'FM00000'), 'active');
			end loop;
		end $$`, n))
}

// list returns the IDs of the tenants in some states.
func list(t *testing.T, fleet *pgtenancy.Fleet, states ...pgtenancy.State) (ids []string) {
	t.Helper()
	for tenant, err := range fleet.Tenants(bare(t), &pgtenancy.TenantsOpts{States: states}) {
		if err != nil {
			t.Fatalf("Tenants: %v", err)
		}
		ids = append(ids, tenant.ID())
	}
	return ids
}

// texts returns the one column that sql selects, seen by the superuser.
func (db *fleetDB) texts(t *testing.T, sql string) []string {
	t.Helper()
	conn := db.admin(t)
	defer conn.Close(context.Background())
	rows, _ := conn.Query(t.Context(), sql)
	got, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return got
}

func checkInvalid(t *testing.T, what string, err error, field string) {
	t.Helper()
	var invalid *pgtenancy.InvalidError
	if !errors.As(err, &invalid) {
		t.Errorf("%s: error %v, want an *InvalidError", what, err)
	} else if invalid.Field != field {
		t.Errorf("%s: error for %s, want %s: %v", what, invalid.Field, field, err)
	}
}

func checkEqual[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func checkList(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

// catalogSQL selects everything that could have been changed.
const catalogSQL = `select x from (
	select concat_ws(' ', 'class', oid, relname, relacl::text, relowner) x from pg_class
	union all select concat_ws(' ', 'namespace', oid, nspname, nspacl::text) from pg_namespace
	union all select concat_ws(' ', 'default acl', oid, defaclacl::text) from pg_default_acl
	union all select concat_ws(' ', 'proc', oid, proname, proacl::text) from pg_proc
	union all select concat_ws(' ', 'setting', setdatabase, setrole, setconfig::text) from pg_db_role_setting
		where setdatabase = (select oid from pg_database where datname = current_database())
) x order by x`

func TestOpenChangesNothing(t *testing.T) {
	t.Parallel()
	for name, installed := range map[string]bool{"without registry": false, "with registry": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := newFleetDB(t)
			if installed {
				db.migrated(t, notesFiles)
			}
			before := db.texts(t, catalogSQL)
			fleet := db.open(t, with(notesFiles, "shared/001_x.sql", "create table x ()"))
			checkList(t, "catalog after Open", db.texts(t, catalogSQL), before...)
			if fleet.Pool() == nil {
				t.Error("no pool")
			}
		})
	}
}

func TestOpenWithoutRegistry(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	fleet := db.open(t, notesFiles)
	db.exec(t, "create schema old authorization "+db.owner)
	ctx := bare(t)
	calls := func(t *testing.T, check func(t *testing.T, what string, err error)) {
		t.Helper()
		_, err := fleet.Lookup(ctx, pgtenancy.ByDomain("nobody.example"))
		if !errors.Is(err, pgtenancy.ErrTenantNotFound) {
			check(t, "Lookup", err)
		}
		for _, err := range fleet.Tenants(ctx, nil) {
			check(t, "Tenants", err)
		}
		check(t, "Each", fleet.Each(ctx, nil, func(context.Context, pgtenancy.Tenant) error { return nil }))
		_, err = fleet.Provision(ctx, "acme", nil)
		check(t, "Provision", err)
		_, err = fleet.Adopt(ctx, "old", "old", nil)
		check(t, "Adopt", err)
	}
	calls(t, func(t *testing.T, what string, err error) {
		t.Helper()
		checkIs(t, what, err, pgtenancy.ErrRegistryOutdated)
	})
	checkEqual(t, "registry installed", migrate(t, fleet).Registry, true)
	calls(t, check)
	checkList(t, "tenants", list(t, fleet), "acme", "old")
}

func TestOpenRegistryVersion(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name            string
		version, oldest int
		want            error
	}{
		{"too new", 99, 99, pgtenancy.ErrRegistryOutdated},
		{"newer, and still works with this version", 99, 1, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			db := newFleetDB(t)
			before := db.migrated(t, notesFiles) // a replica of long ago
			db.exec(t, fmt.Sprintf("update pgtenancy.registry set version = %d, oldest = %d", tt.version, tt.oldest))

			fleet, err := pgtenancy.Open(bare(t), db.config(t, notesFiles))
			if !errors.Is(err, tt.want) {
				t.Errorf("Open: error %v, want %v", err, tt.want)
			}
			report, err := before.Migrate(bare(t), nil)
			if !errors.Is(err, tt.want) || report.Registry {
				t.Errorf("Migrate: registry %v, error %v, want %v", report.Registry, err, tt.want)
			}
			checkEqual(t, "version in the registry", db.count(t, "select version from pgtenancy.registry"), tt.version)
			if fleet == nil {
				return
			}
			defer closeFleet(t, fleet)
			provision(t, fleet, "acme")
			_, err = fleet.Lookup(bare(t), pgtenancy.ByID("acme"))
			check(t, "Lookup", err)
		})
	}
}

func TestOpenInvalid(t *testing.T) {
	t.Parallel()
	db := &fleetDB{owner: "nobody", app: "nobody"}
	db.url = "postgres://nobody@127.0.0.1:1/nothing" // these are found before anything connects
	param := func(name, value string) func(*pgtenancy.FleetConfig) {
		return func(c *pgtenancy.FleetConfig) { c.Owner.ConnConfig.RuntimeParams[name] = value }
	}
	tests := []struct {
		name   string
		field  string
		change func(*pgtenancy.FleetConfig)
	}{
		{"no way to connect", "PoolConfig.Conns", func(c *pgtenancy.FleetConfig) { c.PoolConfig.Conns = nil }},
		{"no way to connect, as the owner", "FleetConfig.Owner", func(c *pgtenancy.FleetConfig) { c.Owner = &pgxpool.Config{} }},
		{"search_path of the owner", "FleetConfig.Owner", param("search_path", "x")},
		{"search_path of the owner in other letters", "FleetConfig.Owner", param("Search_Path", "x")},
		{"search_path in the owner's options", "FleetConfig.Owner", param("options", "-c search_path=x")},
		{"simple protocol of the owner", "FleetConfig.Owner.ConnConfig.DefaultQueryExecMode", func(c *pgtenancy.FleetConfig) {
			c.Owner.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
		}},
		{"simple protocol", "PoolConfig.Conns.ConnConfig.DefaultQueryExecMode", func(c *pgtenancy.FleetConfig) {
			c.PoolConfig.Conns.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
		}},
		{"prefix that PostgreSQL reserves", "FleetConfig.SchemaPrefix", func(c *pgtenancy.FleetConfig) { c.SchemaPrefix = "pg_" }},
		{"prefix with other characters", "FleetConfig.SchemaPrefix", func(c *pgtenancy.FleetConfig) { c.SchemaPrefix = "Tenant-" }},
		{"prefix that leaves no room", "FleetConfig.SchemaPrefix", func(c *pgtenancy.FleetConfig) { c.SchemaPrefix = strings.Repeat("x", 60) }},
		{"role that is too long", "FleetConfig.AppRole", func(c *pgtenancy.FleetConfig) { c.AppRole = strings.Repeat("x", 64) }},
		{"shared schema that PostgreSQL reserves", "PoolConfig.SharedSchemas", func(c *pgtenancy.FleetConfig) { c.PoolConfig.SharedSchemas = []string{"pg_catalog"} }},
		{"migrations below another directory", "FleetConfig.Migrations", func(c *pgtenancy.FleetConfig) { c.Migrations = sqlFiles("db/tenant/001_x.sql", "select 1") }},
		{"no migrations in the file system", "FleetConfig.Migrations", func(c *pgtenancy.FleetConfig) { c.Migrations = fstest.MapFS{} }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg := db.config(t, nil)
			tt.change(&cfg)
			fleet, err := pgtenancy.Open(bare(t), cfg)
			if fleet != nil {
				t.Error("Open returned a fleet")
			}
			checkInvalid(t, "Open", err, tt.field)
		})
	}
}

// The caller's configurations may be used for something else afterwards.
func TestOpenCopiesConfig(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	cfg := db.config(t, notesFiles)
	fleet, err := pgtenancy.Open(bare(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer closeFleet(t, fleet)
	cfg.Owner.ConnConfig.Database, cfg.PoolConfig.Conns.ConnConfig.Database = "gone", "gone"
	migrate(t, fleet)
	provision(t, fleet, "acme")
}

func TestOpenCannotConnect(t *testing.T) {
	t.Parallel()
	db := &fleetDB{owner: "nobody", app: "nobody"}
	db.url = "postgres://nobody:sekret@127.0.0.1:1/nothing"
	fleet, err := pgtenancy.Open(bare(t), db.config(t, nil))
	if fleet != nil || err == nil || errors.Is(err, pgtenancy.ErrRegistryOutdated) || strings.Contains(err.Error(), "sekret") {
		t.Errorf("Open = %v, %v, want that it cannot connect", fleet, err)
	}
}

// One role may do everything.
func TestFleetOneRole(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	fleet, err := pgtenancy.Open(bare(t), pgtenancy.FleetConfig{
		PoolConfig: pgtenancy.PoolConfig{Conns: db.poolConfig(t, db.owner)},
		Migrations: with(notesFiles, "shared/001_plans.sql", "create table plans (name text); insert into plans values ('pro')"),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer closeFleet(t, fleet)
	migrate(t, fleet)
	acme := provision(t, fleet, "acme")
	var n int
	err = fleet.Pool().QueryRow(as(t, acme), "with i as (insert into notes (body) values ('x') returning id) select i.id + count(*) from i, plans group by i.id").Scan(&n)
	check(t, "a statement", err)
	checkEqual(t, "grants", db.count(t, "select count(*) from pg_default_acl"), 0)
	checkEqual(t, "connections in use", fleet.Pool().Stat().AcquiredConns(), 0)
}

// AppRole may be a group that the roles of several services are members of.
func TestFleetAppRole(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	group := db.app + "_group"
	db.exec(t, fmt.Sprintf("create role %s; grant %[1]s to %s", group, db.app))
	t.Cleanup(func() { db.exec(t, "drop owned by "+group+"; drop role "+group) })
	fleet := db.migrated(t, notesFiles, func(c *pgtenancy.FleetConfig) { c.AppRole = group })
	acme := provision(t, fleet, "acme")
	_, err := fleet.Pool().Exec(as(t, acme), "insert into notes (body) values ('x')")
	check(t, "insert", err)
	_, err = fleet.Lookup(bare(t), pgtenancy.ByID("acme"))
	check(t, "Lookup", err)
	db.exec(t, fmt.Sprintf("revoke %s from %s", group, db.app))
	_, err = fleet.Pool().Exec(as(t, acme), "insert into notes (body) values ('x')")
	checkIs(t, "insert without the group", err, pgtenancy.ErrTenantNotFound)
}

func TestFleetSharedSchemas(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	fleet := db.migrated(t, with(notesFiles, "shared/001_plans.sql", "create table plans (name text); grant select on plans to "+db.app),
		func(c *pgtenancy.FleetConfig) { c.PoolConfig.SharedSchemas = []string{"Common things", "public"} })
	acme := provision(t, fleet, "acme")
	var schema string
	err := fleet.Pool().QueryRow(as(t, acme), "select relnamespace::regnamespace::text from pg_class where oid = 'plans'::regclass").Scan(&schema)
	check(t, "a shared table", err)
	checkEqual(t, "its schema", schema, `"Common things"`)
	_, err = fleet.Provision(bare(t), "globex", nil)
	check(t, "Provision", err)
	_, err = fleet.Adopt(bare(t), "common", "Common things", nil)
	checkInvalid(t, "Adopt of a shared schema", err, "Tenant.Schema")
}

func TestFleetTenants(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	fleet := db.migrated(t, nil)
	const n = 2500 // more than two of the pages that it reads
	db.exec(t, `insert into pgtenancy.tenants (id, schema_name, state)
		select id, 'tenant_' || id, coalesce((array['active', 'suspended', 'deleted', 'provisioning'])[1 + i % 10], 'active')
		from generate_series(1, 2500) i, lateral (select 't' || to_char(i, 'FM00000') as id) x`)
	states := []pgtenancy.State{pgtenancy.Active, pgtenancy.Suspended, pgtenancy.Deleted, pgtenancy.Provisioning}
	count := map[pgtenancy.State]int{}
	for i := 1; i <= n; i++ {
		count[append(states, slices.Repeat(states[:1], 6)...)[i%10]]++
	}
	tests := []struct {
		name   string
		states []pgtenancy.State
		want   int
	}{
		{"by default those in service", nil, count[pgtenancy.Active]},
		{"one state", []pgtenancy.State{pgtenancy.Suspended}, count[pgtenancy.Suspended]},
		{"two states", []pgtenancy.State{pgtenancy.Deleted, pgtenancy.Provisioning}, count[pgtenancy.Deleted] + count[pgtenancy.Provisioning]},
		{"all states", states, n},
	}
	for _, tt := range tests {
		got := list(t, fleet, tt.states...)
		checkEqual(t, tt.name, len(got), tt.want)
		if !slices.IsSorted(got) || len(slices.Compact(slices.Clone(got))) != len(got) {
			t.Errorf("%s: not sorted, or twice the same", tt.name)
		}
	}
	for _, err := range fleet.Tenants(bare(t), nil) { // nil options
		check(t, "Tenants", err)
		break // holds no connection, which Close would wait for
	}

	// The ends of pages.
	for _, n := range []int{1000, 999, 1001, 2000} {
		db.exec(t, fmt.Sprintf("update pgtenancy.tenants set state = case when id <= 't' || to_char(%d, 'FM00000') then 'active' else 'deleted' end", n))
		checkEqual(t, "tenants in service", len(list(t, fleet)), n)
	}

	ctx, cancel := context.WithCancel(bare(t))
	defer cancel()
	var seen int
	var last error
	for _, err := range fleet.Tenants(ctx, nil) {
		if err != nil {
			last = err
			continue
		}
		seen++
		cancel()
	}
	checkIs(t, "Tenants after its context was cancelled", last, context.Canceled)
	checkEqual(t, "tenants of the page that it had", seen, 1000)
}

// recovered returns what f panics with.
func recovered(f func()) (r any) {
	defer func() { r = recover() }()
	f()
	return nil
}

func TestFleetEach(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	fleet := db.migrated(t, notesFiles)
	db.makeTenants(t, 20)
	migrate(t, fleet)
	db.exec(t, "update pgtenancy.tenants set state = 'suspended' where id in ('t00001', 't00002')")
	ctx := bare(t)

	t.Run("parallel", func(t *testing.T) {
		var running, calls atomic.Int32
		three := make(chan struct{}) // closed when three calls run at a time
		err := fleet.Each(ctx, &pgtenancy.EachOpts{Parallel: 3}, func(ctx context.Context, tenant pgtenancy.Tenant) error {
			if n := running.Add(1); n > 3 {
				t.Errorf("%d calls at a time", n)
			}
			defer running.Add(-1)
			if calls.Add(1) == 3 {
				close(three)
			}
			if in, ok := pgtenancy.TenantFromContext(ctx); !ok || in != tenant || tenant.Version() != 1 {
				t.Errorf("called for %v with %v in the context", tenant, in)
			}
			select {
			case <-three:
			case <-time.After(patience):
				t.Error("no three calls at a time")
			}
			return nil
		})
		check(t, "Each", err)
		checkEqual(t, "calls", calls.Load(), 18)
	})
	t.Run("one at a time, of any state", func(t *testing.T) {
		var ids []string
		err := fleet.Each(ctx, &pgtenancy.EachOpts{States: []pgtenancy.State{pgtenancy.Suspended}}, func(_ context.Context, tenant pgtenancy.Tenant) error {
			ids = append(ids, tenant.ID())
			return nil
		})
		check(t, "Each", err)
		checkList(t, "called for", ids, "t00001", "t00002")
	})
	t.Run("goes on past errors", func(t *testing.T) {
		errOdd := errors.New("odd")
		var mu sync.Mutex
		calls := 0
		err := fleet.Each(ctx, &pgtenancy.EachOpts{Parallel: 4}, func(_ context.Context, tenant pgtenancy.Tenant) error {
			mu.Lock()
			defer mu.Unlock()
			calls++
			if tenant.ID() >= "t00015" {
				return fmt.Errorf("%s: %w", tenant, errOdd)
			}
			return nil
		})
		checkEqual(t, "calls", calls, 18)
		checkIs(t, "Each", err, errOdd)
		var each *pgtenancy.EachError
		var one *pgtenancy.TenantError
		if !errors.As(err, &each) || !errors.As(err, &one) {
			t.Fatalf("error %v, want an *EachError of *TenantErrors", err)
		}
		var ids []string
		for _, f := range each.Failed {
			ids = append(ids, f.Tenant.ID())
			checkIs(t, f.Tenant.ID(), f.Err, errOdd)
		}
		checkList(t, "failed", ids, "t00015", "t00016", "t00017", "t00018", "t00019", "t00020")
		for _, want := range []string{"6 failed", "t00015", "t00017", "3 more"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("error does not say %q: %v", want, err)
			}
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		errMine := errors.New("mine")
		var calls atomic.Int32
		err := fleet.Each(ctx, &pgtenancy.EachOpts{Parallel: 2}, func(ctx context.Context, _ pgtenancy.Tenant) error {
			calls.Add(1)
			cancel()
			<-ctx.Done()
			return errMine
		})
		checkIs(t, "Each", err, context.Canceled)
		checkIs(t, "Each", err, errMine)
		if n := calls.Load(); n > 6 {
			t.Errorf("%d calls after it was cancelled", n)
		}
	})
	t.Run("panics", func(t *testing.T) {
		for _, value := range []any{"in a function", errors.New("an error that is thrown")} {
			both := make(chan struct{})
			var calls, over atomic.Int32
			thrown := recovered(func() {
				fleet.Each(ctx, &pgtenancy.EachOpts{Parallel: 2}, func(context.Context, pgtenancy.Tenant) error {
					if calls.Add(1) == 2 {
						close(both)
						panic(value)
					}
					<-both
					time.Sleep(10 * time.Millisecond) // so that who does not wait for it is seen
					over.Add(1)
					return nil
				})
			})
			err, _ := thrown.(error)
			if err == nil || !strings.Contains(err.Error(), fmt.Sprint(value)) || !strings.Contains(err.Error(), "fleet_test.go") {
				t.Errorf("Each panicked with %v", thrown)
			}
			if want, ok := value.(error); ok {
				checkIs(t, "the panic", err, want)
			}
			if over.Load() != calls.Load()-1 || calls.Load() > 3 {
				t.Errorf("%d calls, %d of them over", calls.Load(), over.Load())
			}
		}
		left := make(chan struct{})
		go func() {
			defer close(left)
			fleet.Each(ctx, nil, func(context.Context, pgtenancy.Tenant) error { runtime.Goexit(); return nil })
			t.Error("Each returned")
		}()
		<-left
	})
	t.Run("works as the tenant", func(t *testing.T) {
		err := fleet.Each(ctx, &pgtenancy.EachOpts{Parallel: 4}, func(ctx context.Context, tenant pgtenancy.Tenant) error {
			var schema string
			err := fleet.Pool().QueryRow(ctx, "select current_schema()").Scan(&schema)
			if err == nil && schema != tenant.Schema() {
				err = fmt.Errorf("in schema %s", schema)
			}
			return err
		})
		// The tenants were made without grants.
		checkIs(t, "Each", err, pgtenancy.ErrTenantNotFound)
	})
}
