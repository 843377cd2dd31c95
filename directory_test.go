package pgtenancy_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgtenancy/pgtenancy"
	"github.com/pgtenancy/pgtenancy/pgtenancytest"
)

// directoryTables are the registry's tables that a Directory reads.
const directoryTables = `
	create schema pgtenancy;
	create table pgtenancy.tenants (
		id text primary key,
		schema_name text not null unique,
		role_name text not null default '',
		state text not null,
		version bigint not null,
		attributes jsonb not null default '{}'
	);
	create table pgtenancy.domains (domain text primary key, tenant_id text not null references pgtenancy.tenants (id));
	insert into pgtenancy.tenants (id, schema_name, role_name, state, version, attributes) values
		('acme', 'tenant_acme', '', 'active', 7, '{"plan": "gold", "region": "eu"}'),
		('globex', 'Globex "2"', 'globex_role', 'active', 0, '{}'),
		('late', 'tenant_late', '', 'suspended', 1, '{}'),
		('young', 'tenant_young', '', 'provisioning', 1, '{}'),
		('dead', 'tenant_dead', '', 'deleted', 1, '{}'),
		('broken', 'pg_toast', '', 'active', 1, '{}'),
		('odd', 'tenant_odd', '', 'asleep', 1, '{}'),
		('listed', 'tenant_listed', '', 'active', 1, '{"plan": ["gold"]}');
	insert into pgtenancy.domains (tenant_id, domain) values
		('acme', 'shop.acme.example'), ('acme', 'xn--bcher-kva.example'), ('late', 'late.example'), ('young', 'young.example'),
		('dead', 'dead.example'), ('broken', 'broken.example');
`

// registryQueries counts the queries that go to the registry.
type registryQueries struct{ n atomic.Int64 }

func (q *registryQueries) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if strings.Contains(data.SQL, "pgtenancy.") {
		q.n.Add(1)
	}
	return ctx
}

func (q *registryQueries) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// expect checks how many queries there were since the last call.
func (q *registryQueries) expect(t *testing.T, want int64, reason string) {
	t.Helper()
	if got := q.n.Swap(0); got != want {
		t.Errorf("%d queries to the registry, want %d: %s", got, want, reason)
	}
}

// directoryDB is a database with a registry, a pool and a connection to change things by.
type directoryDB struct {
	pool    *pgtenancy.Pool
	queries *registryQueries
	admin   *pgx.Conn
}

func newDirectoryDB(t *testing.T, sql string, configure ...func(*pgtenancy.PoolConfig)) *directoryDB {
	t.Helper()
	url := pgtenancytest.Database(t)
	admin, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { admin.Close(context.Background()) })
	db := &directoryDB{queries: &registryQueries{}, admin: admin}
	if sql != "" {
		db.exec(t, sql)
	}
	conns, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	conns.ConnConfig.Tracer = db.queries
	cfg := &pgtenancy.PoolConfig{Conns: conns}
	for _, f := range configure {
		f(cfg)
	}
	if db.pool, err = pgtenancy.NewPoolWithConfig(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.pool.Close)
	return db
}

func (db *directoryDB) exec(t *testing.T, sql string) {
	t.Helper()
	if _, err := db.admin.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// listening returns a directory that hears of changes already, and so forgets no more than it is told to.
func (db *directoryDB) listening(t *testing.T) *pgtenancy.CachedDirectory {
	t.Helper()
	dir := pgtenancy.NewDirectory(db.pool)
	db.listen(t, dir)
	return dir
}

func (db *directoryDB) listen(t *testing.T, dir *pgtenancy.CachedDirectory) {
	t.Helper()
	if _, err := dir.Lookup(t.Context(), pgtenancy.ByID("starts-it")); !errors.Is(err, pgtenancy.ErrTenantNotFound) {
		t.Fatal(err)
	}
	await(t, "the start of listening", func() bool { return dir.Stat().Listening })
	db.queries.n.Store(0)
}

func TestDirectory(t *testing.T) {
	t.Parallel()
	acme := &pgtenancy.TenantInfo{ID: "acme", Schema: "tenant_acme", Version: 7, Attributes: map[string]string{"plan": "gold", "region": "eu"}}
	globex := &pgtenancy.TenantInfo{ID: "globex", Schema: `Globex "2"`, Role: "globex_role"}
	tests := []struct {
		name string
		k    pgtenancy.Key
		want *pgtenancy.TenantInfo
		err  error
	}{
		{"active", pgtenancy.ByID("acme"), acme, nil},
		{"with role", pgtenancy.ByID("globex"), globex, nil},
		{"by domain", pgtenancy.ByDomain("shop.acme.example"), acme, nil},
		{"by domain, not canonical", pgtenancy.ByDomain("Bücher.example.:443"), acme, nil},
		{"suspended", pgtenancy.ByID("late"), nil, pgtenancy.ErrTenantSuspended},
		{"suspended, by domain", pgtenancy.ByDomain("late.example"), nil, pgtenancy.ErrTenantSuspended},
		{"provisioning", pgtenancy.ByID("young"), nil, pgtenancy.ErrTenantNotFound},
		{"provisioning, by domain", pgtenancy.ByDomain("young.example"), nil, pgtenancy.ErrTenantNotFound},
		{"deleted", pgtenancy.ByID("dead"), nil, pgtenancy.ErrTenantNotFound},
		{"deleted, by domain", pgtenancy.ByDomain("dead.example"), nil, pgtenancy.ErrTenantNotFound},
		{"missing", pgtenancy.ByID("nobody"), nil, pgtenancy.ErrTenantNotFound},
		{"missing, by domain", pgtenancy.ByDomain("acme"), nil, pgtenancy.ErrTenantNotFound},
		{"domain as ID", pgtenancy.ByID("shop.acme.example"), nil, pgtenancy.ErrTenantNotFound},
		{"injection", pgtenancy.ByID("' or true --"), nil, pgtenancy.ErrTenantNotFound},
	}
	db := newDirectoryDB(t, directoryTables)
	for _, tt := range tests {
		dir := db.listening(t)
		var want pgtenancy.Tenant
		if tt.want != nil {
			var err error
			if want, err = pgtenancy.NewTenant(*tt.want); err != nil {
				t.Fatal(err)
			}
		}
		for range 3 {
			got, err := dir.Lookup(t.Context(), tt.k)
			if !errors.Is(err, tt.err) || got != want {
				t.Errorf("%s: got %v, %v, want %v, %v", tt.name, got, err, want, tt.err)
			}
		}
		if n := db.queries.n.Load(); n > 1 {
			t.Errorf("%s: %d queries, want 1 at most", tt.name, n)
		}
	}
}

// The tenant in the caller's context is not the one that the directory is asked for.
func TestDirectoryIgnoresTenantInContext(t *testing.T) {
	t.Parallel()
	db := newDirectoryDB(t, directoryTables)
	gone, err := pgtenancy.NewTenant(pgtenancy.TenantInfo{ID: "gone", Role: "no_such_role"})
	if err != nil {
		t.Fatal(err)
	}
	got, err := pgtenancy.NewDirectory(db.pool).Lookup(pgtenancy.WithTenant(t.Context(), gone), pgtenancy.ByID("acme"))
	if err != nil || got.ID() != "acme" {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestDirectoryFailures(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, sql string
		k         pgtenancy.Key
		outdated  bool
	}{
		{"no registry", "drop schema pgtenancy cascade", pgtenancy.ByID("acme"), true},
		{"no table of domains", "drop table pgtenancy.domains", pgtenancy.ByDomain("shop.acme.example"), true},
		{"no column", "alter table pgtenancy.tenants drop column attributes", pgtenancy.ByID("acme"), true},
		{"no public schema", "drop schema public", pgtenancy.ByID("acme"), false},
		{"schema that no tenant can have", "", pgtenancy.ByID("broken"), false},
		{"schema that no tenant can have, by domain", "", pgtenancy.ByDomain("broken.example"), false},
		{"unknown state", "", pgtenancy.ByID("odd"), false},
		{"attribute that is no string", "", pgtenancy.ByID("listed"), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			db := newDirectoryDB(t, directoryTables+tt.sql)
			dir := pgtenancy.NewDirectory(db.pool)
			for range 2 {
				got, err := dir.Lookup(t.Context(), tt.k)
				var invalid *pgtenancy.InvalidError
				if err == nil || errors.Is(err, pgtenancy.ErrTenantNotFound) || errors.As(err, &invalid) || errors.Is(err, pgtenancy.ErrRegistryOutdated) != tt.outdated {
					t.Errorf("got %v, %v", got, err)
				}
			}
			db.queries.expect(t, 2, "a failure is not remembered")
		})
	}
}

func TestDirectoryWithFewRights(t *testing.T) {
	t.Parallel()
	const role = "pgtenancy_directory_reader" // of the server that other tests share
	db := newDirectoryDB(t, directoryTables+`
		do $$ begin
			create role `+role+`;
		exception when duplicate_object or unique_violation then null;
		end $$;`, func(cfg *pgtenancy.PoolConfig) { cfg.Conns.ConnConfig.RuntimeParams["role"] = role })
	t.Cleanup(func() { db.admin.Exec(context.Background(), "drop owned by "+role) })
	dir := pgtenancy.NewDirectory(db.pool)
	if _, err := dir.Lookup(t.Context(), pgtenancy.ByID("acme")); err == nil || errors.Is(err, pgtenancy.ErrTenantNotFound) {
		t.Errorf("without any rights: %v", err)
	}
	db.exec(t, "grant usage on schema pgtenancy to "+role+"; grant select on pgtenancy.tenants, pgtenancy.domains to "+role)
	for _, k := range []pgtenancy.Key{pgtenancy.ByID("acme"), pgtenancy.ByDomain("shop.acme.example")} {
		if _, err := dir.Lookup(t.Context(), k); err != nil {
			t.Errorf("%v: %v", k, err)
		}
	}
}

func TestDirectorySingleFlight(t *testing.T) {
	t.Parallel()
	db := newDirectoryDB(t, directoryTables)
	dir := db.listening(t)
	lock, err := db.admin.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lock.Exec(t.Context(), "lock table pgtenancy.tenants"); err != nil {
		t.Fatal(err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error)
	go func() {
		_, err := dir.Lookup(ctx, pgtenancy.ByID("acme"))
		gone <- err
	}()
	for db.queries.n.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if got, err := dir.Lookup(t.Context(), pgtenancy.ByID("acme")); err != nil || got.ID() != "acme" {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Errorf("the caller that went away got %v", err)
	}
	time.Sleep(10 * time.Millisecond) // whoever asks later is served from memory, which is not what is tested here
	if err := lock.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	db.queries.expect(t, 1, "all wait for the query of the first, though it went away")
}

func TestDirectoryMakesPoolRefuse(t *testing.T) {
	t.Parallel()
	db := newDirectoryDB(t, directoryTables+"create schema tenant_acme")
	dir := db.listening(t)
	handle, err := dir.Lookup(t.Context(), pgtenancy.ByID("acme"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.pool.For(handle).Exec(t.Context(), "select"); err != nil {
		t.Errorf("active: %v", err)
	}
	db.exec(t, "update pgtenancy.tenants set state = 'suspended' where id = 'acme'")
	if _, err := dir.Lookup(t.Context(), pgtenancy.ByDomain("shop.acme.example")); !errors.Is(err, pgtenancy.ErrTenantSuspended) {
		t.Errorf("Lookup by a domain that was not asked for before: %v", err)
	}
	if _, err := db.pool.For(handle).Exec(t.Context(), "select"); !errors.Is(err, pgtenancy.ErrTenantSuspended) {
		t.Errorf("the pool took the handle of a tenant that is known to be suspended: %v", err)
	}
}

// One row that makes no tenant does not keep others from being found that are read with it.
func TestDirectoryReadsManyAtOnce(t *testing.T) {
	t.Parallel()
	db := newDirectoryDB(t, directoryTables)
	dir := db.listening(t)
	lock, err := db.admin.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lock.Exec(t.Context(), "lock table pgtenancy.tenants"); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	lookup := func(k pgtenancy.Key, id string, want error) {
		wg.Go(func() {
			got, err := dir.Lookup(t.Context(), k)
			var invalid *pgtenancy.InvalidError
			if got.ID() != id || want != nil && !errors.Is(err, want) || (err == nil) != (id != "") || errors.As(err, &invalid) {
				t.Errorf("Lookup(%v) = %v, %v, want %q, %v", k, got, err, id, want)
			}
		})
	}
	for i := range int64(4) { // as many as there may be at a time: the others wait for these
		lookup(pgtenancy.ByID(fmt.Sprint("blocks", i)), "", pgtenancy.ErrTenantNotFound)
		await(t, "the query", func() bool { return db.queries.n.Load() == i+1 })
	}
	lookup(pgtenancy.ByID("acme"), "acme", nil)
	lookup(pgtenancy.ByDomain("shop.acme.example"), "acme", nil)
	lookup(pgtenancy.ByID("globex"), "globex", nil)
	lookup(pgtenancy.ByID("late"), "", pgtenancy.ErrTenantSuspended)
	lookup(pgtenancy.ByDomain("dead.example"), "", pgtenancy.ErrTenantNotFound)
	lookup(pgtenancy.ByDomain("nobody.example"), "", pgtenancy.ErrTenantNotFound)
	lookup(pgtenancy.ByID("broken"), "", nil)
	lookup(pgtenancy.ByDomain("broken.example"), "", nil)
	lookup(pgtenancy.ByID("odd"), "", nil)
	lookup(pgtenancy.ByID("listed"), "", nil)
	await(t, "the lookups", func() bool { return dir.Stat().Misses == 1+4+10 }) // and by the helper
	if err := lock.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if n := db.queries.n.Load(); n > 8 { // each of the four that land may let one go, before the last of them has
		t.Errorf("%d queries for 14 keys", n)
	}
}

// What a scan of random names costs the database is bounded by time, however many names there are, and tenants are found
// all the while.
func TestDirectoryScan(t *testing.T) {
	t.Parallel()
	names, scanners := int64(100_000), 2000
	if testing.Short() {
		names = 20_000
	}
	db := newDirectoryDB(t, directoryTables)
	dir := db.listening(t)
	began := time.Now()
	var next atomic.Int64
	var wg sync.WaitGroup
	for range scanners {
		wg.Go(func() {
			for next.Add(1) <= names && !t.Failed() {
				name := strconv.FormatUint(rand.Uint64(), 36)
				k := pgtenancy.ByID(name)
				if rand.IntN(2) == 0 {
					k = pgtenancy.ByDomain(name + ".example")
				}
				if _, err := dir.Lookup(t.Context(), k); !errors.Is(err, pgtenancy.ErrTenantNotFound) {
					t.Errorf("Lookup(%v): %v", k, err)
				}
			}
		})
	}
	scanned := make(chan struct{})
	go func() { wg.Wait(); close(scanned) }()
	for done := false; !done; {
		select {
		case <-scanned:
			done = true
		case <-time.After(10 * time.Millisecond):
		}
		for _, k := range []pgtenancy.Key{pgtenancy.ByID("acme"), pgtenancy.ByID("globex"), pgtenancy.ByDomain("shop.acme.example")} {
			if _, err := dir.Lookup(t.Context(), k); err != nil {
				t.Errorf("Lookup(%v): %v", k, err)
			}
		}
	}
	took, queries := time.Since(began), db.queries.n.Load()
	// A hundred to begin with and then a hundred a second, four under way, and three keys that are read again each minute.
	if most := 100 + int64(took/(10*time.Millisecond)) + 4 + 3*int64(took/time.Minute+1); queries > most {
		t.Errorf("%d queries in %v, want %d at most", queries, took, most)
	}
	s := dir.Stat()
	if s.Queries != queries+1 || s.Negative > 10_000 || s.Tenants != 2 || s.Domains != 1 || s.Failures != 0 { // 1 of the helper's
		t.Errorf("stat is %+v, %d queries", s, queries)
	}
	t.Logf("%d names in %v: %d queries", names, took, queries)
}

func TestDirectoryConfigInvalid(t *testing.T) {
	t.Parallel()
	db := newDirectoryDB(t, "")
	tests := []struct {
		field string
		cfg   pgtenancy.DirectoryConfig
	}{
		{"TTL", pgtenancy.DirectoryConfig{TTL: -1}},
		{"NegativeTTL", pgtenancy.DirectoryConfig{NegativeTTL: -time.Second}},
		{"Capacity", pgtenancy.DirectoryConfig{Capacity: -1}},
		{"StaleFor", pgtenancy.DirectoryConfig{StaleFor: -time.Hour}},
	}
	for _, tt := range tests {
		d, err := pgtenancy.NewDirectoryWithConfig(db.pool, tt.cfg)
		if d != nil {
			t.Errorf("%s: there is a directory", tt.field)
		}
		checkInvalid(t, "NewDirectoryWithConfig", err, "DirectoryConfig."+tt.field)
		_, err = pgtenancy.Open(t.Context(), pgtenancy.FleetConfig{PoolConfig: *db.pool.Config(), Directory: tt.cfg})
		checkInvalid(t, "Open", err, "FleetConfig.Directory."+tt.field)
	}
}

func TestNewDirectoryPanics(t *testing.T) {
	t.Parallel()
	defer func() {
		if diff := cmp.Diff(any("pgtenancy.NewDirectory: the pool is nil"), recover()); diff != "" {
			t.Error(diff)
		}
	}()
	pgtenancy.NewDirectory(nil)
}
