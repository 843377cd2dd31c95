package pgtenancy_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgtenancy/pgtenancy"
)

func TestMigrationFiles(t *testing.T) {
	t.Parallel()
	const ok = "select 1"
	tests := []struct {
		name  string
		files fstest.MapFS
		file  string // that the error names
		line  int    // in it, of a *MigrationError; 0 for an *InvalidError
	}{
		{"a gap", sqlFiles("tenant/001_a.sql", ok, "tenant/003_c.sql", ok), "tenant/003_c.sql", 0},
		{"the first is missing", sqlFiles("tenant/2_b.sql", ok), "tenant/2_b.sql", 0},
		{"number 0", sqlFiles("tenant/000_a.sql", ok, "tenant/001_b.sql", ok), "tenant/000_a.sql", 0},
		{"a number twice", sqlFiles("shared/001_a.sql", ok, "shared/1_b.sql", ok), "shared/1_b.sql", 0},
		{"no number", sqlFiles("tenant/orders.sql", ok), "tenant/orders.sql", 0},
		{"no name", sqlFiles("tenant/001.sql", ok), "tenant/001.sql", 0},
		{"a negative number", sqlFiles("tenant/-1_a.sql", ok), "tenant/-1_a.sql", 0},
		{"two formats", sqlFiles("tenant/001_a.up.sql", ok, "tenant/002_b.sql", ok), "tenant/002_b.sql", 0},
		{"only the way down", sqlFiles("tenant/001_a.up.sql", ok, "tenant/002_b.down.sql", ok), "tenant/002_b.down.sql", 0},
		{"a number beyond 64 bits", sqlFiles("tenant/99999999999999999999_a.sql", ok), "tenant/99999999999999999999_a.sql", 0},
		{"an empty file", sqlFiles("tenant/001_a.sql", ""), "tenant/001_a.sql", 0},
		{"comments only", sqlFiles("tenant/001_a.sql", "-- later\n;/* or never */"), "tenant/001_a.sql", 0},
		{"a string without an end", sqlFiles("tenant/001_a.sql", ok, "tenant/002_b.sql", "select 1;\n\nselect 'it''s;\n"), "tenant/002_b.sql", 3},
		{"a function without an end", sqlFiles("tenant/001_a.sql", "\ndo $$ begin end"), "tenant/001_a.sql", 2},
		{"psql's commands", sqlFiles("tenant/001_a.sql", "select 1;\n\\connect other\n"), "tenant/001_a.sql", 2},
		{"COPY with data", sqlFiles("tenant/001_a.sql", "copy t from stdin;\n1\n\\.\n"), "tenant/001_a.sql", 1},
		{"BEGIN", sqlFiles("shared/001_a.sql", "-- first\nBEGIN;\nselect 1;"), "shared/001_a.sql", 2},
		{"COMMIT in the middle", sqlFiles("shared/001_a.sql", "BEGIN;\nselect 1;\nCOMMIT;\nselect 2"), "shared/001_a.sql", 1},
		{"COMMIT", sqlFiles("tenant/001_a.sql", "select 1;\ncommit"), "tenant/001_a.sql", 2},
		{"ROLLBACK", sqlFiles("tenant/001_a.sql", "select 1;\nrollback"), "tenant/001_a.sql", 2},
		{"SET for the session", sqlFiles("tenant/001_a.sql", "select 1;\n\n  set search_path = x"), "tenant/001_a.sql", 3},
		{"SET ROLE for the session", sqlFiles("tenant/001_a.sql", "set role x"), "tenant/001_a.sql", 1},
		{"RESET", sqlFiles("tenant/001_a.sql", "reset all"), "tenant/001_a.sql", 1},
	}
	db := &fleetDB{owner: "nobody", app: "nobody"}
	db.url = "postgres://nobody@127.0.0.1:1/nothing" // these are found before anything connects
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := pgtenancy.Open(bare(t), db.config(t, tt.files))
			if tt.line == 0 {
				var invalid *pgtenancy.InvalidError
				if !errors.As(err, &invalid) || invalid.Field != "FleetConfig.Migrations" || invalid.Value != tt.file {
					t.Errorf("error %v, want an *InvalidError for %s", err, tt.file)
				}
				return
			}
			var failed *pgtenancy.MigrationError
			if !errors.As(err, &failed) || failed.File != tt.file || failed.Line != tt.line || failed.Tenant != "" {
				t.Errorf("error %v, want a *MigrationError at %s:%d", err, tt.file, tt.line)
			}
		})
	}
}

// What is no migration in the directories is none.
func TestMigrationFilesOthers(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	fleet := db.migrated(t, with(notesFiles, "tenant/README.md", "orders", "tenant/old.sql/x.sql", "nonsense", "tenant/002_more.sql",
		"\uFEFF-- with Windows' line ends\r\ncreate table more ();\r\ncreate table most ();\r\n", "other/x.sql", "nonsense"))
	acme := provision(t, fleet, "acme")
	checkEqual(t, "version", acme.Version(), 2)
	_, err := fleet.Pool().Exec(as(t, acme), "insert into most default values")
	check(t, "a table", err)
}

// runsFiles count how often each of them ran.
var runsFiles = sqlFiles(
	"shared/001_runs.sql", "create table runs (what text); insert into runs values ('shared 1');",
	"shared/002_more.sql", "insert into runs values ('shared 2')",
	"tenant/001_notes.sql", "create table notes (id int); insert into runs values (current_schema() || ' 1')",
	"tenant/002_more.sql", "alter table notes add body text; insert into runs values (current_schema() || ' 2')",
)

func TestMigrate(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	old := with(runsFiles)
	delete(old, "tenant/002_more.sql")
	delete(old, "shared/002_more.sql")

	// A fresh database.
	before := db.open(t, old)
	report := migrate(t, before)
	checkEqual(t, "registry installed", report.Registry, true)
	checkList(t, "shared migrations", report.Shared, "001_runs")
	checkEqual(t, "tenants", report.Tenants, 0)
	for _, id := range []string{"one", "suspended", "deleted"} {
		checkEqual(t, "version", provision(t, before, id).Version(), 1)
	}
	db.makeTenants(t, 1) // at version 0
	db.exec(t, "update pgtenancy.tenants set state = id where id in ('suspended', 'deleted')")

	// A new version of the service.
	fleet := db.open(t, runsFiles)
	checkEqual(t, "version before", lookup(t, fleet, "one").Version(), 1)
	provision(t, fleet, "two") // it has all of them already
	report = migrate(t, fleet)
	checkEqual(t, "registry installed", report.Registry, false)
	checkList(t, "shared migrations", report.Shared, "002_more")
	checkEqual(t, "tenants", report.Tenants, 3)
	checkEqual(t, "applied", report.Applied, 4)
	if report.Duration <= 0 {
		t.Error("it took no time")
	}
	checkEqual(t, "version after", lookup(t, fleet, "one").Version(), 2)
	checkList(t, "versions", db.texts(t, "select id || ' ' || version from pgtenancy.tenants order by id"),
		"deleted 1", "one 2", "suspended 2", "t00001 2", "two 2")
	checkList(t, "runs", db.texts(t, "select what from runs order by what"), "shared 1", "shared 2", "tenant_deleted 1",
		"tenant_one 1", "tenant_one 2", "tenant_suspended 1", "tenant_suspended 2", "tenant_t00001 1", "tenant_t00001 2",
		"tenant_two 1", "tenant_two 2")

	// The history says what ran, and who ran it.
	checkList(t, "history", db.texts(t, `select concat_ws(' ', tenant_id, version, name) from pgtenancy.migrations
		where length(checksum) = 64 and applied_by = '`+db.owner+`' and duration > '0' and applied_at > now() - interval '1 minute' order by 1`),
		" 1 001_runs", " 2 002_more", "deleted 1 001_notes", "one 1 001_notes", "one 2 002_more", "suspended 1 001_notes",
		"suspended 2 002_more", "t00001 1 001_notes", "t00001 2 002_more", "two 1 001_notes", "two 2 002_more")
	checkEqual(t, "checksums", db.count(t, "select count(distinct checksum) from pgtenancy.migrations"), 4)

	// The version before finds nothing to do, and goes on working.
	report = migrate(t, before)
	checkEqual(t, "tenants of the version before", report.Tenants+report.Applied+len(report.Shared), 0)
	checkEqual(t, "version of a new tenant", provision(t, before, "late").Version(), 1)
	checkEqual(t, "tenants to catch up", migrate(t, fleet).Tenants, 1)
}

func lookup(t *testing.T, fleet *pgtenancy.Fleet, id string) pgtenancy.Tenant {
	t.Helper()
	tenant, err := fleet.Lookup(bare(t), pgtenancy.ByID(id))
	if err != nil {
		t.Fatalf("Lookup(%q): %v", id, err)
	}
	return tenant
}

// 200 tenants, with PostgreSQL's default number of locks; when there is nothing to do, their number does not matter.
func TestMigrateMany(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	files := sqlFiles("tenant/001_tables.sql", "create table a (id int primary key); create table b (id int primary key, a int references a); create index on b (a)")
	w := &wireCounter{}
	fleet := db.open(t, files, func(c *pgtenancy.FleetConfig) { w.option(&pgtenancy.PoolConfig{Conns: c.Owner}) })
	migrate(t, fleet)
	w.reset()
	migrate(t, fleet)
	none := w.roundTrips()
	if none > 20 {
		t.Errorf("%d round trips to find that there is nothing to do", none)
	}

	db.makeTenants(t, 200)
	var last pgtenancy.Progress
	calls := 0
	report, err := fleet.Migrate(bare(t), &pgtenancy.MigrateOpts{Parallel: 100, OnProgress: func(p pgtenancy.Progress) {
		calls++
		last = p
		if p.Tenant == "" || p.Err != nil || p.Done != calls || p.Failed != 0 || p.Total != 200 {
			t.Errorf("progress %+v at call %d", p, calls)
		}
	}})
	check(t, "Migrate", err)
	checkEqual(t, "progress", last.Done, 200)
	checkEqual(t, "tenants", report.Tenants, 200)
	checkEqual(t, "tables", db.count(t, "select count(*) from pg_tables where schemaname like 'tenant_t%'"), 400)

	w.reset()
	migrate(t, fleet)
	checkEqual(t, "round trips with 200 tenants", w.roundTrips(), none)
}

func TestMigrateConcurrently(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	var fleets []*pgtenancy.Fleet
	for range 4 {
		fleets = append(fleets, db.open(t, runsFiles))
	}
	run := func() (shared, applied int) {
		var mu sync.Mutex
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				report, err := fleets[i%4].Migrate(bare(t), nil)
				mu.Lock()
				defer mu.Unlock()
				check(t, "Migrate", err)
				shared += len(report.Shared)
				applied += report.Applied
			})
		}
		wg.Wait()
		return shared, applied
	}
	shared, _ := run()
	checkEqual(t, "shared migrations reported", shared, 2)
	checkList(t, "runs", db.texts(t, "select what from runs order by 1"), "shared 1", "shared 2")

	db.makeTenants(t, 20)
	_, applied := run()
	checkEqual(t, "tenant migrations reported", applied, 40)
	checkEqual(t, "runs", db.count(t, "select count(*) from runs"), 42)
	checkEqual(t, "runs", db.count(t, "select count(distinct what) from runs"), 42)
}

// migrateURLEnv has "URL of the application, URL of the owner" in a process that TestMigrateProcesses started.
const migrateURLEnv = "PGTENANCY_TEST_MIGRATE"

func TestMigrateProcesses(t *testing.T) {
	t.Parallel()
	if urls := os.Getenv(migrateURLEnv); urls != "" {
		migrateInProcess(t, urls)
		return
	}
	db := newFleetDB(t)
	var wg sync.WaitGroup
	for range 2 {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestMigrateProcesses$", "-test.v")
		cmd.Env = append(os.Environ(), migrateURLEnv+"="+db.urlOf(t, db.app, "")+" "+db.urlOf(t, db.owner, ""))
		wg.Go(func() {
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.Contains(string(out), "migrated in another process") {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	wg.Wait()
	checkList(t, "runs", db.texts(t, "select what from runs order by 1"), "shared 1", "shared 2", "tenant_acme 1", "tenant_acme 2")
}

func migrateInProcess(t *testing.T, urls string) {
	app, owner, _ := strings.Cut(urls, " ")
	cfg := pgtenancy.FleetConfig{Migrations: runsFiles}
	var err error
	if cfg.PoolConfig.Conns, err = pgxpool.ParseConfig(app); err != nil {
		t.Fatal(err)
	}
	if cfg.Owner, err = pgxpool.ParseConfig(owner); err != nil {
		t.Fatal(err)
	}
	fleet, err := pgtenancy.Open(bare(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer fleet.Close()
	migrate(t, fleet)
	if _, err := fleet.Provision(bare(t), "acme", nil); err != nil && !errors.Is(err, pgtenancy.ErrTenantExists) {
		t.Fatal(err)
	}
	t.Log("migrated in another process")
}

// One tenant's rows do not fit a migration.
func TestMigrateOneFails(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	files := with(notesFiles)
	fleet := db.migrated(t, files)
	db.makeTenants(t, 30)
	migrate(t, fleet)
	db.exec(t, "insert into tenant_t00017.notes (body) values ('bad'), ('good')")

	next := db.open(t, with(files,
		"tenant/002_fits.sql", "create table fits ();",
		"tenant/003_check.sql", "alter table notes add column checked bool not null default true;\n\nalter table notes\n  add check (body <> 'bad');\n",
		"tenant/004_last.sql", "create table last ();"))
	var progress []pgtenancy.Progress
	report, err := next.Migrate(bare(t), &pgtenancy.MigrateOpts{OnProgress: func(p pgtenancy.Progress) { progress = append(progress, p) }})
	var all *pgtenancy.MigrateError
	if !errors.As(err, &all) || len(all.Failed) != 1 {
		t.Fatalf("error %v, want a *MigrateError for one tenant", err)
	}
	failed := all.Failed[0]
	if failed.Tenant != "t00017" || failed.File != "tenant/003_check.sql" || failed.Line != 3 {
		t.Errorf("failed: %s %s:%d", failed.Tenant, failed.File, failed.Line)
	}
	checkCode(t, "Migrate", err, "23514")
	for _, want := range []string{"t00017", "tenant/003_check.sql:3", "1 failed"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error does not say %q: %v", want, err)
		}
	}
	checkEqual(t, "tenants", report.Tenants, 29)
	checkEqual(t, "applied", report.Applied, 29*3+1)
	last := progress[len(progress)-1]
	if len(progress) != 30 || last.Done != 30 || last.Failed != 1 || last.Total != 30 {
		t.Errorf("%d calls, the last %+v", len(progress), last)
	}
	for _, p := range progress {
		if (p.Err != nil) != (p.Tenant == "t00017") {
			t.Errorf("progress %+v", p)
		}
	}

	// What it had before is as it was.
	checkList(t, "versions", db.texts(t, "select distinct version || ' ' || (id = 't00017') from pgtenancy.tenants order by 1"), "2 true", "4 false")
	checkList(t, "columns", db.texts(t, "select column_name from information_schema.columns where table_schema = 'tenant_t00017' order by 1"), "body", "id")
	checkEqual(t, "history", db.count(t, "select count(*) from pgtenancy.migrations where tenant_id = 't00017'"), 2)

	// Again, to no avail; then with the row mended.
	report, err = next.Migrate(bare(t), nil)
	if !errors.As(err, &all) || report.Tenants != 0 || report.Applied != 0 {
		t.Errorf("again: %+v, %v", report, err)
	}
	db.exec(t, "update tenant_t00017.notes set body = 'mended' where body = 'bad'")
	report = migrate(t, next)
	checkEqual(t, "tenants", report.Tenants, 1)
	checkEqual(t, "applied", report.Applied, 2)
}

func TestMigrateAllFail(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	fleet := db.migrated(t, sqlFiles("tenant/001_bad.sql", "create table a ();\nselect 1 / 0;"))
	db.makeTenants(t, 10)
	db.exec(t, "drop schema tenant_t00003")
	report, err := fleet.Migrate(bare(t), nil)
	checkEqual(t, "tenants", report.Tenants+report.Applied, 0)
	var all *pgtenancy.MigrateError
	if !errors.As(err, &all) || len(all.Failed) != 10 {
		t.Fatalf("error %v, want a *MigrateError for 10 tenants", err)
	}
	for i, failed := range all.Failed {
		checkEqual(t, "tenant", failed.Tenant, fmt.Sprintf("t%05d", i+1))
		if failed.Tenant == "t00003" {
			checkIs(t, "a missing schema", failed, pgtenancy.ErrTenantNotFound)
		} else {
			checkCode(t, "a statement", failed, "22012")
			checkEqual(t, "line", failed.Line, 2)
		}
	}
	checkEqual(t, "tables", db.count(t, "select count(*) from pg_tables where schemaname like 'tenant_t%'"), 0)
	checkEqual(t, "history", db.count(t, "select count(*) from pgtenancy.migrations"), 0)
}

func TestMigrateSharedFails(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	files := with(notesFiles, "shared/001_a.sql", "create table a ();", "shared/002_b.sql", "create table b ();\nselekt 1;", "shared/003_c.sql", "create table c ();")
	fleet := db.open(t, files)
	report, err := fleet.Migrate(bare(t), nil)
	var failed *pgtenancy.MigrationError
	if !errors.As(err, &failed) || failed.Tenant != "" || failed.File != "shared/002_b.sql" || failed.Line != 2 {
		t.Errorf("error %v, want a *MigrationError at shared/002_b.sql:2", err)
	}
	checkCode(t, "Migrate", err, "42601")
	checkList(t, "reported", report.Shared, "001_a")
	checkList(t, "tables", db.texts(t, "select tablename from pg_tables where schemaname = 'public'"), "a")

	mended := db.migrated(t, with(files, "shared/002_b.sql", "create table b ();"))
	checkList(t, "tables", db.texts(t, "select tablename from pg_tables where schemaname = 'public' order by 1"), "a", "b", "c")
	provision(t, mended, "acme")
}

func TestMigrateSharedWithoutUsage(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	db.exec(t, "alter schema public owner to postgres; revoke all on schema public from public; grant usage on schema public to "+db.app)
	fleet := db.open(t, sqlFiles("shared/001_a.sql", "create table a ();"))
	_, err := fleet.Migrate(bare(t), nil)
	var failed *pgtenancy.MigrationError
	if !errors.As(err, &failed) || errors.Is(err, pgtenancy.ErrTenantNotFound) {
		t.Errorf("error %v, want a *MigrationError that is about no tenant", err)
	}
}

func TestMigrationErrorLine(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	tests := []struct {
		name string
		sql  string
		line int
	}{
		{"the statement's", "select 1;\n\nselect 1/0;", 3},
		{"a name on a later line", "select 1;\nselect\n  1,\n  nothing\n  , 2;", 4},
		{"syntax on a later line", "create table a (\n  id int,\n  id2 int int\n);", 3},
		{"after characters of more bytes", "select 'äöü€😀äöü€😀äöü€😀',\n  '漢字漢字漢字',\n  nothing;\nselect 1;", 3},
		{"after Windows' line ends", "select\r\n\r\n  nothing;\r\n", 3},
		{"after comments", "-- one\n/* two\nthree */\nselect -- four\n  nothing;", 5},
		{"the first character", "nonsense;", 1},
		{"deferred to the commit", "create table p (id int primary key);\ncreate table c (p int references p deferrable initially deferred);\ninsert into c values (1);", 0},
		{"in a function", "create function f() returns int language plpgsql as $$\nbegin\n  return 1 / 0;\nend $$;\nselect f();", 5},
	}
	fleet := db.migrated(t, nil)
	for i, tt := range tests {
		id := fmt.Sprintf("t%d", i)
		files := sqlFiles("tenant/001_x.sql", tt.sql)
		_, err := db.open(t, files).Provision(bare(t), id, nil)
		var failed *pgtenancy.MigrationError
		switch {
		case tt.line == 0 && err == nil:
			t.Errorf("%s: no error", tt.name)
		case tt.line == 0:
		case !errors.As(err, &failed) || failed.File != "tenant/001_x.sql" || failed.Line != tt.line || failed.Tenant != id:
			t.Errorf("%s: Provision: error %v, want one of line %d", tt.name, err, tt.line)
		}

		db.exec(t, fmt.Sprintf(`create schema %q authorization %s`, id, db.owner))
		if _, err := fleet.Adopt(bare(t), id, id, nil); err != nil {
			t.Fatal(err)
		}
		_, err = db.open(t, files).Migrate(bare(t), nil)
		if !errors.As(err, &failed) || failed.File != "tenant/001_x.sql" || failed.Line != tt.line || failed.Tenant != id || !errors.As(err, new(*pgconn.PgError)) {
			t.Errorf("%s: Migrate: error %v, want one of line %d", tt.name, err, tt.line)
		}
		db.exec(t, fmt.Sprintf("delete from pgtenancy.tenants; drop schema %q cascade", id))
	}
}

// A data migration of a table with FORCE ROW LEVEL SECURITY would change nothing, and nobody would know.
func TestMigrateRowSecurity(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	files := sqlFiles("shared/001_users.sql", "create table users (tenant_id text, name text);\nalter table users enable row level security;\n"+
		"alter table users force row level security;\ncreate policy p on users using (tenant_id = current_setting('app.current_tenant', true));")
	db.migrated(t, files)
	db.exec(t, "insert into users values ('acme', 'Ann'), ('globex', 'Bob')")

	const lower = "update users set name = lower(name);"
	_, err := db.open(t, with(files, "shared/002_lower.sql", lower)).Migrate(bare(t), nil)
	checkCode(t, "Migrate", err, insufficientPrivilege)
	checkList(t, "users", db.texts(t, "select name from users order by 1"), "Ann", "Bob")

	files = with(files, "shared/002_lower.sql", "set local row_security = on;\n"+lower)
	db.migrated(t, files)
	checkList(t, "users", db.texts(t, "select name from users order by 1"), "Ann", "Bob") // as it asked for

	// With what the owner may do, it is done.
	files = with(files, "shared/003_lower.sql", "alter table users no force row level security;\n"+lower+"\nalter table users force row level security;")
	fleet := db.migrated(t, files)
	checkList(t, "users", db.texts(t, "select name from users order by 1"), "ann", "bob")

	// A tenant's migrations likewise.
	provision(t, fleet, "acme")
	bad := with(files, "tenant/001_lower.sql", "update users set name = upper(name);")
	_, err = db.open(t, bad).Provision(bare(t), "globex", nil)
	checkCode(t, "Provision", err, insufficientPrivilege)
	_, err = db.open(t, bad).Migrate(bare(t), nil)
	checkCode(t, "Migrate", err, insufficientPrivilege)
	good := with(files, "tenant/001_upper.sql", "set local row_security = on; update users set name = upper(name);")
	provision(t, db.migrated(t, good), "initech")
	checkList(t, "users", db.texts(t, "select name from users order by 1"), "ANN", "bob")
}

// Provision runs all files in one transaction, Migrate each in one of its own; they must not see a difference.
func TestMigrateSettings(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, set string }{
		{"search_path", "set local search_path = public"},
		{"the tenant", "set local app.current_tenant = 'evil'"},
		{"row_security", "set local row_security = on"},
		{"a timeout", "set local lock_timeout = '7s'"},
		{"a setting with a unit", "set local work_mem = '77MB'"},
		{"a setting of the session's own", "set local statement_timeout = '7s'"},
		{"the time zone", "set local time zone 'Asia/Tokyo'"},
		{"the role", "set local role %s"},
		{"by set_config", "select set_config('lock_timeout', '7s', true)"},
		{"in a block", "do $$ begin\n set local lock_timeout = '7s'; end $$"},
	}
	db := newFleetDB(t)
	db.exec(t, fmt.Sprintf("grant %s to %s", db.app, db.owner))
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			settings := `select concat_ws(' ', current_user, current_setting('search_path'), current_setting('app.current_tenant'),
				current_setting('row_security'), current_setting('lock_timeout'), current_setting('work_mem'), current_setting('statement_timeout'), current_setting('timezone')) as settings`
			files := sqlFiles(
				"tenant/001_a.sql", "create table before as "+settings,
				"tenant/002_b.sql", "create table b ();\n"+strings.Replace(tt.set, "%s", db.app, 1)+";\nselect 1;",
				"tenant/003_c.sql", "create table after as "+settings,
			)
			fleet := db.migrated(t, files, func(c *pgtenancy.FleetConfig) {
				c.Owner.ConnConfig.RuntimeParams["lock_timeout"] = "3s"
				c.Owner.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
					_, err := conn.Exec(ctx, "set statement_timeout = '20s'")
					return err
				}
			})
			var seeded string
			_, err := fleet.Provision(bare(t), "t00001", &pgtenancy.ProvisionOpts{Seed: func(ctx context.Context, tx pgx.Tx) error {
				return tx.QueryRow(ctx, settings).Scan(&seeded)
			}})
			if err != nil {
				t.Fatal(err)
			}
			want := db.texts(t, "select settings from tenant_t00001.before")
			checkList(t, "Provision: the next file's settings", db.texts(t, "select settings from tenant_t00001.after"), want...)
			checkEqual(t, "Provision: the seed's settings", seeded, strings.Replace(want[0], " off ", " on ", 1))

			const again = "drop schema tenant_t00001 cascade; truncate pgtenancy.migrations; delete from pgtenancy.tenants"
			db.exec(t, again)
			db.makeTenants(t, 1)
			migrate(t, fleet)
			defer db.exec(t, again)
			checkList(t, "Migrate: settings", db.texts(t, "select settings from tenant_t00001.before"), want...)
			checkList(t, "Migrate: the next file's settings", db.texts(t, "select settings from tenant_t00001.after"), want...)
		})
	}
}

func TestMigrateCancelled(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	fleet := db.migrated(t, notesFiles)
	db.makeTenants(t, 100)
	ctx, cancel := context.WithCancel(bare(t))
	defer cancel()
	report, err := fleet.Migrate(ctx, &pgtenancy.MigrateOpts{Parallel: 2, OnProgress: func(p pgtenancy.Progress) {
		if p.Done == 5 {
			cancel()
		}
	}})
	checkIs(t, "Migrate", err, context.Canceled)
	await(t, "what PostgreSQL was at", func() bool {
		return db.count(t, "select count(*) from pg_stat_activity where usename = '"+db.owner+"' and state <> 'idle'") == 0
	})
	n := db.count(t, "select count(*) from pgtenancy.tenants where version = 1")
	if n < 5 || n > 50 || n < report.Tenants {
		t.Errorf("%d tenants are done, %d of them reported, after it was cancelled at 5", n, report.Tenants)
	}
	checkEqual(t, "tables", db.count(t, "select count(*) from pg_tables where schemaname like 'tenant_t%'"), n)
	checkEqual(t, "tenants after resuming", migrate(t, fleet).Tenants, 100-n)

	_, err = fleet.Migrate(ctx, nil)
	checkIs(t, "Migrate", err, context.Canceled)
}

// Cancelled in the last tenants, with failures before: neither error hides the other.
func TestMigrateCancelledAtTheEnd(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	fleet := db.migrated(t, sqlFiles("tenant/001_bad.sql", "select 1/0"))
	db.makeTenants(t, 1)
	ctx, cancel := context.WithCancel(bare(t))
	defer cancel()
	_, err := fleet.Migrate(ctx, &pgtenancy.MigrateOpts{OnProgress: func(pgtenancy.Progress) { cancel() }})
	checkIs(t, "Migrate", err, context.Canceled)
	checkCode(t, "Migrate", err, "22012")
}

func TestMigrateKilledBackend(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	fleet := db.migrated(t, with(sqlFiles("tenant/001_a.sql", "create table a ();\ndo $$ begin\n"+
		"if exists (select from killed where schema = current_schema()) then perform pg_terminate_backend(pg_backend_pid()); end if; end $$;\ncreate table b ();"),
		"shared/001_killed.sql", "create table killed (schema text)"), ownerConns(2))
	db.makeTenants(t, 6)
	db.exec(t, "insert into killed values ('tenant_t00002'), ('tenant_t00005')")
	report, err := fleet.Migrate(bare(t), nil)
	var all *pgtenancy.MigrateError
	if !errors.As(err, &all) || len(all.Failed) != 2 || all.Failed[0].Tenant != "t00002" || all.Failed[1].Tenant != "t00005" {
		t.Fatalf("error %v, want a *MigrateError for t00002 and t00005", err)
	}
	checkEqual(t, "line", all.Failed[0].Line, 2)
	checkEqual(t, "tenants", report.Tenants, 4)
	db.exec(t, "delete from killed")
	checkEqual(t, "tenants after it was run again", migrate(t, fleet).Tenants, 2)
}

func TestMigrateStatements(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	files := sqlFiles(
		"tenant/001_functions.sql", `
			create table notes (id int, body text default 'a;b', "a;b" int);
			-- a comment; with a semicolon
			create function touch() returns trigger language plpgsql as $body$
			begin
				new.body := new.body || $x$;touched;$x$;
				return new;
			end;
			$body$;
			create trigger touch before insert on notes for each row execute function touch();
			create function twice(n int) returns int language sql begin atomic select 2 * n; end;
			do $$ begin for i in 1..3 loop insert into notes (id) values (i); end loop; end; $$;
			insert into notes values (4, E'it\'s;', 1);`,
		"tenant/002_enum.sql", "create type status as enum ('new'); alter table notes add status status default 'new';",
		"tenant/003_procedure.sql", "create procedure clean() language plpgsql as $$ begin delete from notes where id = 1; end $$; call clean();",
	)
	fleet := db.migrated(t, files)
	provision(t, fleet, "acme")
	db.makeTenants(t, 1)
	migrate(t, fleet)
	for _, schema := range []string{"tenant_acme", "tenant_t00001"} {
		checkList(t, schema, db.texts(t, "select concat_ws(' ', id, body, status) from "+schema+".notes order by id"),
			"2 a;b;touched; new", "3 a;b;touched; new", "4 it's;;touched; new")
	}
}

// Isolation levels of the owner's role do not change what a migration that waited for another one sees.
func TestMigrateIsolationLevel(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	db.exec(t, fmt.Sprintf("alter role %s set default_transaction_isolation = 'serializable'", db.owner))
	var wg sync.WaitGroup
	for range 4 {
		fleet := db.open(t, runsFiles)
		wg.Go(func() {
			_, err := fleet.Migrate(bare(t), nil)
			check(t, "Migrate", err)
		})
	}
	wg.Wait()
	checkList(t, "runs", db.texts(t, "select what from runs order by 1"), "shared 1", "shared 2")
}
