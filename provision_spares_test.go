package pgtenancy_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgtenancy/pgtenancy"
	"github.com/pgtenancy/pgtenancy/pgtenancytest"
)

// keepSpares keeps spares until it is told to stop, or the test ends.
func keepSpares(t *testing.T, fleet *pgtenancy.Fleet, n int) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(bare(t))
	done := make(chan error, 1)
	go func() { done <- fleet.KeepSpares(ctx, n) }()
	stop = sync.OnceFunc(func() {
		cancel()
		check(t, "KeepSpares", <-done)
	})
	t.Cleanup(stop)
	return stop
}

const spareCountSQL = "select count(*) from pgtenancy.spares"

// stock has n spares made, and nobody who keeps them.
func (db *fleetDB) stock(t *testing.T, fleet *pgtenancy.Fleet, n int) {
	t.Helper()
	stop := keepSpares(t, fleet, n)
	db.awaitCount(t, spareCountSQL, n)
	stop()
}

func (db *fleetDB) awaitCount(t *testing.T, sql string, n int) {
	t.Helper()
	conn := db.admin(t)
	defer conn.Close(context.Background())
	await(t, fmt.Sprintf("%d of %s", n, sql), func() bool {
		var got int
		return conn.QueryRow(bare(t), sql).Scan(&got) == nil && got == n
	})
}

// schemasSQL selects the OIDs of the schemas that have a name like that, which they keep when they are renamed.
const schemasSQL = "select oid::text from pg_namespace where nspname like '%s' order by oid"

func (db *fleetDB) spareSchemas(t *testing.T) []string {
	t.Helper()
	return db.texts(t, fmt.Sprintf(schemasSQL, `pgtenancy\_spare\_%`))
}

// spareFiles make something of each kind that has a name, or knows one.
func spareFiles(db *fleetDB) fstest.MapFS {
	return with(shopFiles(db),
		"tenant/003_more.sql", `
			create type status as enum ('new', 'paid');
			create table orders (id bigint generated always as identity primary key, note bigint references notes on delete cascade, status status not null default 'new',
				n serial, unique (n));
			insert into orders default values;
			create function total() returns bigint language sql stable as 'select count(*) from orders';
			create function stamp() returns trigger language plpgsql as $$ begin insert into log (what) values (tg_table_schema || ' ' || tg_table_name); return null; end $$;
			create trigger stamp after insert on orders for each row execute function stamp();
			create materialized view sums as select status, count(*) as n from orders group by status;
			do $$ begin execute format('create table %I.made (id int)', current_schema()); end $$;
			comment on table orders is 'what was ordered';`,
	)
}

// A tenant of a spare is like one that was built, in everything.
func TestProvisionSpare(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	var heard []string
	fleet := db.migrated(t, spareFiles(db), func(c *pgtenancy.FleetConfig) {
		c.GoMigrations = []pgtenancy.GoMigration{{Name: "tenant/004_go", Up: func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "insert into notes (body) values ('in Go')")
			return err
		}}}
		c.AfterChange = func(_ context.Context, c pgtenancy.Change) {
			heard = append(heard, c.Tenant+" "+string(c.Kind)+" "+c.To)
		}
	})
	built := provision(t, fleet, "built")
	db.stock(t, fleet, 2)
	spares := db.spareSchemas(t)
	checkEqual(t, "schemas", len(spares), 2)
	var two pgtenancy.Tenant
	one, err := fleet.Provision(bare(t), "one-1", &pgtenancy.ProvisionOpts{
		Attributes: map[string]string{"plan": "pro"}, Domains: []string{"one.example"},
		Seed: func(ctx context.Context, tx pgx.Tx) error {
			two = provision(t, fleet, "two") // while one has its spare, and does not wait for it
			_, err := tx.Exec(ctx, "insert into notes (body) values (current_setting('app.current_tenant') || ' ' || current_schema())")
			return err
		},
	})
	check(t, "Provision", err)
	later := provision(t, fleet, "later")
	checkList(t, "schemas of the tenants that took a spare", db.texts(t,
		"select oid::text from pg_namespace where nspname in ('tenant_one_1', 'tenant_two') order by oid"), spares...)
	checkEqual(t, "spares left", db.count(t, spareCountSQL), 0)
	checkList(t, "changes", heard, "built provision active", "two provision active", "one-1 provision active", "one-1 add domain one.example", "later provision active")
	checkList(t, "the history", db.texts(t, "select tenant_id || ' ' || string_agg(version || ' ' || name || ' ' || (duration is null), ',' order by version) from pgtenancy.migrations where tenant_id in ('built', 'two') group by tenant_id order by tenant_id"),
		"built 1 001_notes false,2 002_log false,3 003_more false,4 004_go false", "two 1 001_notes true,2 002_log true,3 003_more true,4 004_go true")
	checkEqual(t, "standings", db.count(t, "select count(distinct (version, digest)) from pgtenancy.tenants"), 1)
	r, err := fleet.Drift(bare(t), &pgtenancy.DriftOpts{Fresh: true})
	check(t, "Drift", err)
	if r.Drifted != 0 || r.Tenants != 4 {
		t.Error(r)
	}
	for _, tenant := range []pgtenancy.Tenant{built, one, two, later} {
		checkEqual(t, "looked up", lookup(t, fleet, tenant.ID()), tenant)
		ctx := as(t, tenant)
		if _, err := fleet.Pool().Exec(ctx, "insert into orders default values"); err != nil {
			t.Errorf("%s: %v", tenant, err)
		}
		var total, n int
		var logged, notes string
		err := fleet.Pool().QueryRow(ctx, "select total(), (select max(n) from orders), (select string_agg(what, ',') from log), (select string_agg(body, ',' order by id) from notes)").
			Scan(&total, &n, &logged, &notes)
		check(t, tenant.ID(), err)
		checkEqual(t, "orders", total, 2)
		checkEqual(t, "the serial column", n, 2)
		checkEqual(t, "what the trigger knew", logged, tenant.Schema()+" orders")
		want := "in Go"
		if tenant == one {
			want += ",one-1 tenant_one_1"
		}
		checkEqual(t, "notes", notes, want)
	}
}

// Many take the same few spares at once: each gets another one, or builds. One that fails gives its spare back.
func TestProvisionSpareRace(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	fleets := []*pgtenancy.Fleet{db.migrated(t, spareFiles(db)), db.open(t, spareFiles(db))}
	const tenants, most = 12, 5
	db.stock(t, fleets[0], most)
	spares := db.spareSchemas(t)
	_, err := fleets[0].Provision(bare(t), "failed", &pgtenancy.ProvisionOpts{Seed: func(context.Context, pgx.Tx) error { return os.ErrInvalid }})
	checkIs(t, "a seed that fails", err, os.ErrInvalid)
	checkList(t, "spares after it", db.spareSchemas(t), spares...)
	var wg sync.WaitGroup
	for i := range tenants {
		for _, fleet := range fleets { // of the two, one is too late
			wg.Go(func() {
				if _, err := fleet.Provision(bare(t), fmt.Sprintf("t%d", i), nil); err != nil && !errors.Is(err, pgtenancy.ErrTenantExists) {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	checkEqual(t, "tenants", len(list(t, fleets[0])), tenants)
	var left, taken []string
	for _, oid := range db.texts(t, fmt.Sprintf(schemasSQL, `tenant\_t%`)) {
		if slices.Contains(spares, oid) {
			taken = append(taken, oid)
		}
	}
	left = db.spareSchemas(t)
	all := append(slices.Clone(left), taken...)
	slices.Sort(all)
	slices.Sort(spares)
	checkList(t, "spares that are left or were taken", all, spares...)
	if len(taken) == 0 {
		t.Error("no spare was taken")
	}
	checkEqual(t, "rows of those left", db.count(t, spareCountSQL), len(left))
	r, err := fleets[0].Drift(bare(t), nil)
	check(t, "Drift", err)
	if r.Drifted > 0 || r.Tenants != tenants {
		t.Error(r)
	}
}

// Two processes keep n together, and never more, while tenants come.
func TestKeepSparesTogether(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	const n = 3
	fleets := []*pgtenancy.Fleet{db.migrated(t, notesFiles), db.open(t, notesFiles)}
	db.execAs(t, db.owner, fmt.Sprintf(`create function pgtenancy.not_more() returns trigger language plpgsql as $$ begin
			if (select count(*) from pgtenancy.spares) > %d then raise 'too many spares'; end if; return null; end $$;
		create constraint trigger not_more after insert on pgtenancy.spares deferrable initially deferred for each row execute function pgtenancy.not_more()`, n))
	for _, fleet := range fleets {
		keepSpares(t, fleet, n)
	}
	for i := range 3 {
		db.awaitCount(t, spareCountSQL, n)
		for j := range 2 {
			provision(t, fleets[j], fmt.Sprintf("t%d-%d", i, j))
		}
	}
	db.awaitCount(t, spareCountSQL, n)
	checkEqual(t, "schemas", len(db.spareSchemas(t)), n)
}

// checkSpares checks that each spare and each tenant has its schema, whole, and that there are no others.
func (db *fleetDB) checkSpares(t *testing.T, when string, tables int) {
	t.Helper()
	checkEqual(t, when+": names without a schema, and schemas without a name", db.count(t, `select count(*)
		from (select schema_name from pgtenancy.spares union all select schema_name from pgtenancy.tenants) s
			full join (select nspname::text from pg_namespace where nspname ~ '^(tenant_|pgtenancy_spare)') n on n.nspname = s.schema_name
		where s.schema_name is null or n.nspname is null`), 0)
	checkEqual(t, when+": schemas that are not whole", db.count(t, fmt.Sprintf(`select count(*) from pg_namespace n
		where n.nspname ~ '^(tenant_|pgtenancy_spare)' and (select count(*) from pg_tables t where t.schemaname = n.nspname) <> %d`, tables)), 0)
	checkEqual(t, when+": tenants without their history", db.count(t, "select count(*) from pgtenancy.tenants t where not exists (select from pgtenancy.migrations m where m.tenant_id = t.id)"), 0)
}

const sparesURLEnv = "PGTENANCY_TEST_SPARES_URLS"

// severalFiles have a table for each migration.
func severalFiles(n int) fstest.MapFS {
	files := fstest.MapFS{}
	for i := range n {
		files[fmt.Sprintf("tenant/%03d_t.sql", i+1)] = &fstest.MapFile{Data: fmt.Appendf(nil, "create table t%d (id bigint primary key);", i+1)}
	}
	return files
}

// A process that keeps spares and provisions is killed, again and again, with SIGKILL.
func TestKeepSparesKilled(t *testing.T) {
	t.Parallel()
	if urls := os.Getenv(sparesURLEnv); urls != "" {
		keepSparesToBeKilled(t, urls)
		return
	}
	kills := 5
	if testing.Short() {
		kills = 2
	}
	db := newFleetDB(t)
	fleet := db.migrated(t, severalFiles(5))
	for i := range kills {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKeepSparesKilled$", "-test.v")
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %d", sparesURLEnv, db.urlOf(t, db.app, ""), db.urlOf(t, db.owner, ""), i))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for left := rand.N(8) + 1; left > 0 && lines.Scan(); {
			if strings.HasPrefix(lines.Text(), "provisioned ") {
				left--
			}
		}
		time.Sleep(rand.N(10 * time.Millisecond)) // any point is as good as another
		cmd.Process.Kill()
		for lines.Scan() {
		}
		cmd.Wait()
		db.awaitQuiet(t)
		db.checkSpares(t, fmt.Sprintf("after kill %d", i+1), 5)
	}
	db.stock(t, fleet, db.count(t, spareCountSQL)+2)
	db.checkSpares(t, "at the end", 5)
	if len(list(t, fleet)) < kills {
		t.Error("no tenants were provisioned")
	}
}

// keepSparesToBeKilled provisions as fast as it can beside KeepSpares.
func keepSparesToBeKilled(t *testing.T, args string) {
	f := strings.Fields(args)
	cfg := pgtenancy.FleetConfig{Migrations: severalFiles(5)}
	var err error
	if cfg.PoolConfig.Conns, err = pgxpool.ParseConfig(f[0]); err != nil {
		t.Fatal(err)
	}
	if cfg.Owner, err = pgxpool.ParseConfig(f[1]); err != nil {
		t.Fatal(err)
	}
	cfg.Owner.ConnConfig.RuntimeParams["application_name"] = killedName
	fleet, err := pgtenancy.Open(bare(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 { // each of which builds, and then waits
		keepSpares(t, fleet, 10)
	}
	for i := 0; ; i++ {
		provision(t, fleet, fmt.Sprintf("t%s-%d", f[2], i))
		fmt.Println("provisioned", i)
	}
}

// Each version of a service has spares of its own, and those that nobody keeps go.
func TestKeepSparesStale(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	old := db.migrated(t, severalFiles(2))
	db.stock(t, old, 3)
	db.exec(t, "drop schema "+db.texts(t, "select schema_name from pgtenancy.spares order by 1 limit 1")[0]+" cascade")
	newer := db.migrated(t, severalFiles(3))
	keepSpares(t, newer, 2)
	db.awaitCount(t, spareCountSQL, 4) // without the one that has no schema
	checkEqual(t, "version", provision(t, newer, "new").Version(), 3)
	checkEqual(t, "version", provision(t, old, "old").Version(), 2)
	checkEqual(t, "old spares", db.count(t, spareCountSQL+" where version = 2"), 1)
	db.awaitCount(t, spareCountSQL+" where version = 3", 2)
	for _, tenant := range []string{"new", "old"} {
		version := lookup(t, newer, tenant).Version()
		checkEqual(t, "tables of "+tenant, db.count(t, "select count(*) from pg_tables where schemaname = 'tenant_"+tenant+"'"), int(version))
	}
	db.exec(t, "update pgtenancy.spares set kept_at = now() - interval '6 minutes'")
	db.awaitCount(t, spareCountSQL, 2) // a look at the others has kept them
	db.checkSchemas(t, 3, 2)
	provision(t, old, "later") // builds
	checkEqual(t, "tables", db.count(t, "select count(*) from pg_tables where schemaname = 'tenant_later'"), 2)

	// One of another configuration is not for this fleet.
	other := db.open(t, severalFiles(3), func(c *pgtenancy.FleetConfig) { c.AppRole = "app" })
	db.exec(t, roleSQL)
	before := db.spareSchemas(t)
	provision(t, other, "other")
	checkList(t, "spares", db.spareSchemas(t), before...)
}

// checkSchemas checks that there are n spares, each with some tables.
func (db *fleetDB) checkSchemas(t *testing.T, tables, n int) {
	t.Helper()
	checkEqual(t, "spares with their tables", db.count(t, fmt.Sprintf(`select count(*) from pg_namespace n where n.nspname like 'pgtenancy\_spare\_%%'
		and (select count(*) from pg_tables t where t.schemaname = n.nspname) = %d`, tables)), n)
	checkEqual(t, "spares", len(db.spareSchemas(t)), n)
}

// While a fleet is migrated from version to version, by a newer one each, tenants are never of another version than what they have.
func TestKeepSparesDeploy(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	const versions = 4
	var wg sync.WaitGroup
	for v := 1; v <= versions; v++ {
		fleet := db.migrated(t, severalFiles(v))
		stop := keepSpares(t, fleet, 2)
		db.awaitCount(t, fmt.Sprintf("%s where version = %d", spareCountSQL, v), 2)
		wg.Go(func() {
			defer stop()
			for i := range 8 { // also when the next version is there
				tenant, err := fleet.Provision(bare(t), fmt.Sprintf("v%d-%d", v, i), nil)
				check(t, "Provision", err)
				checkEqual(t, "version", tenant.Version(), int64(v))
			}
		})
	}
	wg.Wait()
	const wrong = `select count(*) from pgtenancy.tenants t where t.version <> (select count(*) from pg_tables p where p.schemaname = t.schema_name)
		or t.version <> (select count(*) from pgtenancy.migrations m where m.tenant_id = t.id)`
	checkEqual(t, "tenants with another version than they have", db.count(t, wrong), 0)
	fleet := db.migrated(t, severalFiles(versions))
	checkEqual(t, "tenants at the newest version", db.count(t, fmt.Sprintf("select count(*) from pgtenancy.tenants where version = %d", versions)), 8*versions)
	checkEqual(t, "tenants with another version than they have", db.count(t, wrong), 0)
	r, err := fleet.Drift(bare(t), nil)
	check(t, "Drift", err)
	checkEqual(t, "tenants that differ", r.Drifted, 0)
}

// No spare is made of migrations that know whose schema it is.
func TestKeepSparesRefuses(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	shared := sqlFiles("shared/001_all.sql", "create table everybody (what text);", "tenant/001_notes.sql", "create table notes (id int, body text);")
	db.migrated(t, shared)
	for _, test := range []struct{ name, sql, object string }{
		{"a row", "insert into notes (body) select 'of ' || current_schema()", "rows of notes"},
		{"a row with the setting", "insert into notes (body) values (current_setting('app.current_tenant'))", "rows of notes"},
		{"a row of a partition", "create table p (a text) partition by list (a); create table p1 partition of p default; insert into p values (current_schema())", "rows of p1"},
		{"a materialized view", "create materialized view v as select current_setting('app.current_tenant') as s", "rows of v"},
		{"a shared table", "insert into everybody values ('one more')", "public.everybody"},
		{"a default", "do $$ begin execute format('alter table notes alter body set default %L', current_schema()); end $$", "a default of notes"},
		{"a function's path", "create function f() returns int language sql set search_path from current as 'select 1'", "function f"},
		{"a function's body", "do $$ begin execute format('create function f() returns bigint language sql as %L', 'select count(*) from ' || current_schema() || '.notes'); end $$", "function f"},
		{"a comment", "do $$ begin execute format('comment on table notes is %L', 'of ' || current_schema()); end $$", "a comment"},
		{"a constraint", "do $$ begin execute format('alter table notes add constraint c check (body <> %L)', current_schema()); end $$", "constraint c"},
		{"a view", "do $$ begin execute format('create view v as select %L::text as s', current_schema()); end $$", "view v"},
		{"a trigger", "create function f() returns trigger language plpgsql as 'begin return null; end'; do $$ begin execute format('create trigger tr after insert on notes execute function f(%L)', current_schema()); end $$", "trigger tr"},
		{"a policy", "do $$ begin execute format('create policy p on notes using (body = %L)', current_schema()); end $$", "policy p"},
		{"the name of a table", "do $$ begin execute format('create table %I ()', current_schema()); end $$", "the name of "},
	} {
		fleet := db.open(t, with(shared, "tenant/002_more.sql", test.sql+";"))
		err := fleet.KeepSpares(bare(t), 1)
		checkInvalid(t, test.name, err, "FleetConfig.Migrations")
		if err != nil && !strings.Contains(err.Error(), test.object) {
			t.Errorf("%s: error %v, want %s in it", test.name, err, test.object)
		}
		checkEqual(t, test.name+": schemas", len(db.spareSchemas(t)), 0)
	}

	fleet := db.open(t, with(shared, "tenant/002_more.sql", "select 1;\nselect current_setting('app.current_tenant')::int;"))
	var failed *pgtenancy.MigrationError
	err := fleet.KeepSpares(bare(t), 1)
	if !errors.As(err, &failed) || failed.Line != 2 || failed.Tenant != "" {
		t.Errorf("error %v, want a *MigrationError of line 2", err)
	}
	fleet = db.open(t, shared, func(c *pgtenancy.FleetConfig) {
		c.GoMigrations = []pgtenancy.GoMigration{{Name: "tenant/002_go", Up: func(ctx context.Context, tx pgx.Tx) error {
			if tenant, ok := pgtenancy.TenantFromContext(ctx); ok {
				t.Errorf("a migration in Go finds tenant %s", tenant)
			}
			_, err := tx.Exec(ctx, "insert into notes (body) values (current_setting('app.current_tenant'))")
			return err
		}}}
	})
	checkInvalid(t, "a migration in Go", fleet.KeepSpares(as(t, newTenant(t, "acme")), 1), "FleetConfig.Migrations")
	checkInvalid(t, "n", fleet.KeepSpares(bare(t), 0), "KeepSpares's n")
	checkInvalid(t, "no migrations", db.open(t, nil).KeepSpares(bare(t), 1), "FleetConfig.Migrations")
	_, err = fleet.Adopt(bare(t), "acme", "pgtenancy_spare_abc_", nil)
	checkInvalid(t, "Adopt", err, "Tenant.Schema")
	checkIs(t, "no registry", newFleetDB(t).open(t, shared).KeepSpares(bare(t), 1), pgtenancy.ErrRegistryOutdated)
}

// A keeper outlives a lost connection and a lock, and builds nothing while the shared migrations are others.
func TestKeepSparesPatient(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	files := with(notesFiles, "shared/001_plans.sql", "create table plans (id int primary key);", "tenant/002_orders.sql", "create table orders (plan int references plans);")
	fleet := db.open(t, files)
	db.migrated(t, notesFiles)
	keepSpares(t, fleet, 2)
	migrate(t, fleet)
	db.awaitCount(t, spareCountSQL, 2)
	locker := db.as(t, db.owner)
	if _, err := locker.Exec(bare(t), "begin; lock table plans in access exclusive mode"); err != nil {
		t.Fatal(err)
	}
	provision(t, fleet, "acme")
	await(t, "a keeper that waits", func() bool {
		return db.count(t, "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'") > 0
	})
	db.exec(t, "select pg_terminate_backend(pid) from pg_stat_activity where usename = '"+db.owner+"' and wait_event_type = 'Lock'")
	if _, err := locker.Exec(bare(t), "rollback"); err != nil {
		t.Fatal(err)
	}
	db.awaitCount(t, spareCountSQL, 2)
}

// provisionFiles have as many tables as a small service.
func provisionFiles() fstest.MapFS {
	var sql strings.Builder
	for i := range 12 {
		fmt.Fprintf(&sql, `create table t%[1]d (id bigint generated by default as identity primary key, note text not null default '',
			total numeric(10, 2) check (total > 0), made timestamptz default now(), parent bigint references t%[1]d);
			create index on t%[1]d (note);`, i)
	}
	return sqlFiles("tenant/001_tables.sql", sql.String())
}

func BenchmarkProvision(b *testing.B)      { benchmarkProvision(b, false) }
func BenchmarkProvisionSpare(b *testing.B) { benchmarkProvision(b, true) }

func benchmarkProvision(b *testing.B, spares bool) {
	conns, err := pgxpool.ParseConfig(pgtenancytest.Database(b))
	if err != nil {
		b.Fatal(err)
	}
	fleet, err := pgtenancy.Open(b.Context(), pgtenancy.FleetConfig{PoolConfig: pgtenancy.PoolConfig{Conns: conns}, Migrations: provisionFiles()})
	if err != nil {
		b.Fatal(err)
	}
	defer fleet.Close()
	if _, err := fleet.Migrate(b.Context(), nil); err != nil {
		b.Fatal(err)
	}
	const stock = 100
	fill := func() {
		ctx, cancel := context.WithCancel(b.Context())
		done := make(chan error, 1)
		go func() { done <- fleet.KeepSpares(ctx, stock) }()
		for n := 0; n < stock && err == nil; {
			err = fleet.Pool().Shared().QueryRow(ctx, "select count(*) from pgtenancy.spares").Scan(&n)
		}
		cancel()
		if kept := <-done; err != nil || kept != nil {
			b.Fatal(err, kept)
		}
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if spares && i%stock == 0 {
			b.StopTimer()
			fill()
			b.StartTimer()
		}
		if _, err := fleet.Provision(b.Context(), fmt.Sprintf("t%d", i), nil); err != nil {
			b.Fatal(err)
		}
	}
}
