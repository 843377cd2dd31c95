package pgtenancy_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy"
)

// dated returns tenant migrations that have timestamps; each makes a table.
func dated(days ...int) fstest.MapFS {
	files := fstest.MapFS{}
	for _, day := range days {
		files = with(files, fmt.Sprintf("tenant/202401%02d_make.sql", day), fmt.Sprintf("create table t%d ();", day))
	}
	return files
}

// checkProblem checks for the one error of a tenant that stands for all, and that nothing was changed for it.
func (db *fleetDB) checkProblem(t *testing.T, what string, fleet *pgtenancy.Fleet, sentinel error, file string) {
	t.Helper()
	const registry = "select t::text from pgtenancy.tenants t union all select m::text from pgtenancy.migrations m order by 1"
	before := db.texts(t, registry)
	check1 := func(what string, err error) {
		t.Helper()
		checkIs(t, what, err, sentinel)
		var all *pgtenancy.MigrateError
		var failed *pgtenancy.MigrationError
		if !errors.As(err, &all) || !errors.As(err, &failed) || failed.File != file {
			t.Errorf("%s: error %v, want a *MigrateError with %q", what, err, file)
		}
	}
	_, err := fleet.Migrate(bare(t), nil)
	check1(what, err)
	_, err = fleet.Migrate(bare(t), &pgtenancy.MigrateOpts{DryRun: true})
	check1(what+", DryRun", err)
	status, err := fleet.Status(bare(t))
	check(t, what+": Status", err)
	if !slices.ContainsFunc(status.Problems, func(e *pgtenancy.MigrationError) bool { return errors.Is(e, sentinel) && e.File == file }) {
		t.Errorf("%s: Status has problems %v, want %v of %q", what, status.Problems, sentinel, file)
	}
	checkList(t, what+": the registry", db.texts(t, registry), before...)
}

func TestMigrateOutOfOrder(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	db.migrated(t, dated(1, 3))
	db.makeTenants(t, 3)
	migrate(t, db.open(t, dated(1, 3)))
	fleet := db.open(t, dated(1, 2, 3, 4))
	db.checkProblem(t, "a file in between", fleet, pgtenancy.ErrOutOfOrder, "tenant/20240102_make.sql")

	// Allowed, with a target below it first: that has nothing to do.
	report, err := fleet.Migrate(bare(t), &pgtenancy.MigrateOpts{AllowOutOfOrder: true, Target: 20240101})
	check(t, "Migrate", err)
	checkEqual(t, "applied", report.Applied, 0)
	provision(t, fleet, "acme") // in order
	report, err = fleet.Migrate(bare(t), &pgtenancy.MigrateOpts{AllowOutOfOrder: true, Target: 20240102})
	check(t, "Migrate", err)
	checkEqual(t, "applied", report.Applied, 3)
	checkList(t, "standings", db.texts(t, "select distinct version::text from pgtenancy.tenants order by 1"), "20240103", "20240104")
	report, err = fleet.Migrate(bare(t), nil)
	check(t, "Migrate", err)
	checkEqual(t, "applied", report.Applied, 3)
	checkEqual(t, "standings", db.count(t, "select count(distinct (version, digest)) from pgtenancy.tenants"), 1)
	checkEqual(t, "tables", db.count(t, "select count(*) from pg_tables where schemaname like 'tenant_%'"), 16)
	checkEqual(t, "nothing is left", migrate(t, fleet).Applied, 0)

	// A way down takes the highest version first, whatever ran last; these have none.
	_, err = fleet.MigrateDown(bare(t), 20240103, nil)
	checkInvalid(t, "MigrateDown", err, "MigrateDown's version")
}

// A tenant that lacks only what is above the target needs nothing, while others need something.
func TestMigrateOutOfOrderTarget(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	provision(t, db.migrated(t, dated(1, 2, 4)), "acme")
	db.makeTenants(t, 2)
	fleet := db.open(t, dated(1, 2, 3, 4))
	var seen []string
	report, err := fleet.Migrate(bare(t), &pgtenancy.MigrateOpts{AllowOutOfOrder: true, Target: 20240102, OnProgress: func(p pgtenancy.Progress) { seen = append(seen, p.Tenant) }})
	check(t, "Migrate", err)
	slices.Sort(seen)
	checkList(t, "progress", seen, "t00001", "t00002")
	checkEqual(t, "tenants", report.Tenants, 2)
	checkEqual(t, "applied", report.Applied, 4)
}

func TestMigrateSharedOutOfOrder(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	files := sqlFiles("shared/20240101_a.sql", "create table a ();", "shared/20240103_c.sql", "create table c ();")
	db.migrated(t, files)
	fleet := db.open(t, with(files, "shared/20240102_b.sql", "create table b ();", "shared/20240104_d.sql", "create table d ();"))
	db.checkProblem(t, "a shared file in between", fleet, pgtenancy.ErrOutOfOrder, "shared/20240102_b.sql")
	report, err := fleet.Migrate(bare(t), &pgtenancy.MigrateOpts{AllowOutOfOrder: true})
	check(t, "Migrate", err)
	checkList(t, "shared", report.Shared, "20240102_b", "20240104_d")
	checkEqual(t, "nothing is left", len(migrate(t, fleet).Shared), 0)
	db.checkProblem(t, "a shared file that is gone", db.open(t, with(files, "shared/20240104_d.sql", "create table d ();")), pgtenancy.ErrMigrationChanged, "")
}

func TestMigrateChanged(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	files := with(dated(1, 2, 3), "shared/001_a.sql", "create table a ();\nselect 1;")
	fleet := db.migrated(t, files)
	provision(t, fleet, "acme")
	db.makeTenants(t, 2)
	_, err := fleet.Migrate(bare(t), &pgtenancy.MigrateOpts{Target: 20240102})
	check(t, "Migrate", err)

	without := with(files)
	delete(without, "tenant/20240102_make.sql")
	for _, tt := range []struct {
		name  string
		files fstest.MapFS
		file  string
	}{
		{"a changed file", with(files, "tenant/20240102_make.sql", "create table t2 (id int);"), "tenant/20240102_make.sql"},
		{"the newest changed", with(files, "tenant/20240103_make.sql", "create table t3 (id int);"), "tenant/20240103_make.sql"},
		{"a comment", with(files, "tenant/20240102_make.sql", "-- x\ncreate table t2 ();"), "tenant/20240102_make.sql"},
		{"a shared file", with(files, "shared/001_a.sql", "create table a ();\nselect 2;"), "shared/001_a.sql"},
		{"a file that is gone", without, ""},
	} {
		db.checkProblem(t, tt.name, db.open(t, tt.files), pgtenancy.ErrMigrationChanged, tt.file)
	}

	// What does not count as a change.
	for _, tt := range []struct {
		name  string
		files fstest.MapFS
	}{
		{"line ends", with(files, "shared/001_a.sql", "create table a ();\r\nselect 1;")},
		{"another name", func() fstest.MapFS {
			renamed := with(without, "tenant/20240102_renamed.sql", "create table t2 ();")
			return renamed
		}()},
	} {
		status, err := db.open(t, tt.files).Status(bare(t))
		if err != nil || len(status.Problems) != 0 {
			t.Errorf("%s: %+v, %v", tt.name, status, err)
		}
	}
	checkEqual(t, "tenants", migrate(t, fleet).Tenants, 2)
}

func TestBaseline(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	fleet := db.migrated(t, dated(1, 2, 3))
	db.makeTenants(t, 6)
	db.exec(t, "update pgtenancy.tenants set state = 'deleted' where id = 't00005'; update pgtenancy.tenants set state = 'suspended' where id = 't00006'")
	_, err := fleet.Migrate(bare(t), &pgtenancy.MigrateOpts{Tenants: []string{"t00004"}, Target: 20240101})
	check(t, "Migrate", err)
	checkEqual(t, "version before", lookup(t, fleet, "t00002").Version(), 0)
	for _, version := range []int64{0, -1, 1, 20240105} {
		_, err := fleet.Baseline(bare(t), version, nil)
		checkInvalid(t, fmt.Sprint(version), err, "Baseline's version")
	}
	for _, id := range []string{"nobody", "t00005", "t00004"} {
		_, err := fleet.Baseline(bare(t), 20240102, &pgtenancy.BaselineOpts{Tenants: []string{"t00001", id}})
		checkInvalid(t, id, err, "BaselineOpts.Tenants")
	}
	n, err := fleet.Baseline(bare(t), 20240102, &pgtenancy.BaselineOpts{Tenants: []string{"t00002", "t00006"}})
	check(t, "Baseline", err)
	checkEqual(t, "recorded", n, 2)
	checkEqual(t, "version after", lookup(t, fleet, "t00002").Version(), 20240102)
	n, err = fleet.Baseline(bare(t), 20240102, nil)
	check(t, "Baseline", err)
	checkEqual(t, "recorded", n, 2) // t00001 and t00003
	checkList(t, "versions", db.texts(t, "select id || ' ' || version from pgtenancy.tenants order by 1"),
		"t00001 20240102", "t00002 20240102", "t00003 20240102", "t00004 20240101", "t00005 0", "t00006 20240102")
	checkEqual(t, "history without a run", db.count(t, "select count(*) from pgtenancy.migrations where duration is null and name ~ '_make$'"), 8)
	n, err = fleet.Baseline(bare(t), 20240102, nil)
	check(t, "Baseline", err)
	checkEqual(t, "recorded again", n, 0)
	report := migrate(t, fleet)
	checkEqual(t, "tenants", report.Tenants, 5)
	checkEqual(t, "applied", report.Applied, 4+2)
	checkList(t, "tables", db.texts(t, "select distinct tablename from pg_tables where schemaname in ('tenant_t00001', 'tenant_t00006')"), "t3")
	checkEqual(t, "standings", db.count(t, "select count(distinct (version, digest)) from pgtenancy.tenants where state <> 'deleted'"), 1)
}

// Files are changed, renamed, removed or made one after they ran, and that is right.
func TestBaselineAccepts(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	provision(t, db.migrated(t, dated(1, 2, 3)), "acme")
	for _, tt := range []struct {
		name  string
		files fstest.MapFS
		want  []string
	}{
		{"changed", with(dated(1, 2, 3), "tenant/20240102_make.sql", "create table if not exists t2 ();"), []string{"20240101_make", "20240102_make", "20240103_make"}},
		{"removed", dated(1, 3), []string{"20240101_make", "20240103_make"}},
		{"made one", sqlFiles("tenant/20240103_all.sql", "create table t1 (); create table t2 (); create table t3 ();"), []string{"20240103_all"}},
		{"added", with(dated(1, 3), "tenant/20240102_null.sql", "select 1"), []string{"20240101_make", "20240102_null", "20240103_make"}},
	} {
		fleet := db.open(t, with(tt.files, "tenant/20240104_more.sql", "create table if not exists more ();"))
		if _, err := fleet.Migrate(bare(t), nil); !errors.Is(err, pgtenancy.ErrMigrationChanged) && !errors.Is(err, pgtenancy.ErrOutOfOrder) {
			t.Errorf("%s: error %v, want one about the history", tt.name, err)
		}
		n, err := fleet.Baseline(bare(t), 20240103, nil)
		check(t, "Baseline", err)
		checkEqual(t, tt.name+": recorded", n, 1)
		checkList(t, tt.name+": history", db.texts(t, "select name from pgtenancy.migrations order by version"), tt.want...)
		checkEqual(t, tt.name+": applied", migrate(t, fleet).Applied, 1)
		provision(t, fleet, "new")
		checkEqual(t, tt.name+": standings", db.count(t, "select count(distinct (version, digest)) from pgtenancy.tenants"), 1)
		// As if that one had not run.
		db.exec(t, `drop schema tenant_new cascade; delete from pgtenancy.tenants where id = 'new'; delete from pgtenancy.migrations where tenant_id = 'new' or version = 20240104;
			update pgtenancy.tenants set version = 20240103, digest = 1`)
	}
}

func TestBaselineMany(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	fleet := db.migrated(t, dated(1, 2))
	db.registerTenants(t, 2001)
	n, err := fleet.Baseline(bare(t), 20240102, nil)
	check(t, "Baseline", err)
	checkEqual(t, "recorded", n, 2001)
	checkEqual(t, "history", db.count(t, "select count(*) from pgtenancy.migrations"), 4002)
	checkEqual(t, "applied", migrate(t, fleet).Applied, 0)
}

// registerTenants makes rows for n tenants without schemas.
func (db *fleetDB) registerTenants(t *testing.T, n int) {
	t.Helper()
	db.exec(t, fmt.Sprintf(`insert into pgtenancy.tenants (id, schema_name, state)
		select 't' || to_char(i, 'FM00000'), 'tenant_t' || to_char(i, 'FM00000'), 'active' from generate_series(1, %d) i`, n))
}

func TestAdoptVersion(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	fleet := db.migrated(t, dated(1, 2, 3))
	db.execAs(t, db.owner, "create schema old; create table old.t1 (); create table old.t2 ()")
	_, err := fleet.Adopt(bare(t), "acme", "old", &pgtenancy.AdoptOpts{Version: 2})
	checkInvalid(t, "Adopt", err, "AdoptOpts.Version")
	_, err = fleet.Adopt(bare(t), "acme", "old", &pgtenancy.AdoptOpts{Version: 20240102})
	check(t, "Adopt", err)
	checkList(t, "history", db.texts(t, "select name || coalesce(' ' || duration, '') from pgtenancy.migrations order by version"), "20240101_make", "20240102_make")
	checkEqual(t, "applied", migrate(t, fleet).Applied, 1)
	checkEqual(t, "version", lookup(t, fleet, "acme").Version(), 20240103)
}

func TestStatus(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	files := with(dated(1, 2, 3), "shared/001_a.sql", "create table a ();")
	queries := countingTracer{}
	fleet := db.open(t, files, queries.option)
	_, err := fleet.Status(bare(t))
	checkIs(t, "Status without a registry", err, pgtenancy.ErrRegistryOutdated)
	migrate(t, fleet)
	db.makeTenants(t, 6)
	db.exec(t, "update pgtenancy.tenants set state = 'deleted' where id = 't00006'; update pgtenancy.tenants set state = 'suspended' where id = 't00005'")
	for id, target := range map[string]int64{"t00001": 20240102, "t00003": 20240103, "t00005": 20240102} {
		_, err := fleet.Migrate(bare(t), &pgtenancy.MigrateOpts{Tenants: []string{id}, Target: target})
		check(t, "Migrate", err)
	}
	more := db.open(t, with(files, "shared/002_b.sql", "create table b ();"), queries.option, readOnly)
	before := queries.count()
	status, err := more.Status(bare(t))
	if err != nil {
		t.Fatal(err)
	}
	checkEqual(t, "queries", queries.count()-before, 1)
	text := func(s pgtenancy.SchemaStatus) string { return fmt.Sprint(s.Version, " ", s.Count, " ", s.Pending) }
	checkEqual(t, "newest", status.Newest, 20240103)
	checkEqual(t, "shared", text(status.Shared), "1 1 [002_b]")
	var got []string
	for _, g := range status.Tenants {
		got = append(got, text(g))
	}
	checkList(t, "tenants", got, "0 2 [20240101_make 20240102_make 20240103_make]", "20240102 2 [20240103_make]", "20240103 1 []")
	if len(status.Problems)+len(status.Unfinished) != 0 {
		t.Errorf("problems %v, unfinished %v", status.Problems, status.Unfinished)
	}

	// Tenants with the same problem are one.
	status, err = db.open(t, with(files, "tenant/20240102_make.sql", "select 2")).Status(bare(t))
	if err != nil || len(status.Problems) != 2 { // of those at two versions
		t.Errorf("problems %v, %v", status.Problems, err)
	}
}

// Where there is nothing to do, that is one query, whatever the number of tenants.
func TestMigrateNothing(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	queries := countingTracer{}
	var w wireCounter
	files := with(dated(1, 2), "shared/001_a.sql", "create table a ();")
	fleet := db.open(t, files, queries.option, ownerConns(1), func(c *pgtenancy.FleetConfig) { w.option(&pgtenancy.PoolConfig{Conns: c.Owner}) })
	migrate(t, fleet)
	db.registerTenants(t, 2000)
	_, err := fleet.Baseline(bare(t), 20240102, nil)
	check(t, "Baseline", err)
	for _, opts := range []*pgtenancy.MigrateOpts{nil, {AllowOutOfOrder: true, Canary: nil, CanaryCount: 3, WaveSize: 10}, {Target: 20240101}} {
		before := queries.count()
		w.reset()
		report, err := fleet.Migrate(bare(t), opts)
		check(t, "Migrate", err)
		checkEqual(t, "tenants", report.Tenants+report.Applied+len(report.Shared), 0)
		checkEqual(t, "queries", queries.count()-before, 1)
		if n := w.roundTrips(); n > 3 { // to make sure that the connection lives, and to prepare the query
			t.Errorf("%d round trips", n)
		}
	}
	before := queries.count()
	_, err = fleet.MigrateDown(bare(t), 20240102, nil)
	check(t, "MigrateDown", err)
	checkEqual(t, "queries of MigrateDown", queries.count()-before, 1)
}

func TestMigrateDown(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	files := sqlFiles(
		"shared/001_runs.sql", "create table runs (what text, schema text default current_schema());",
		"tenant/001_a.up.sql", "create table a ();", "tenant/001_a.down.sql", "drop table a; insert into runs values ('1');",
		"tenant/002_b.up.sql", "create table b ();", "tenant/002_b.down.sql", "drop table b; insert into runs values ('2');",
		"tenant/003_c.up.sql", "create table c ();", "tenant/003_c.down.sql", "drop table c; insert into runs values ('3');",
	)
	fleet := db.open(t, files)
	_, err := fleet.MigrateDown(bare(t), 0, nil)
	checkIs(t, "without a registry", err, pgtenancy.ErrRegistryOutdated)
	migrate(t, fleet)
	db.makeTenants(t, 3)
	migrate(t, fleet)
	provision(t, fleet, "acme")
	down := func(version int64, opts *pgtenancy.MigrateOpts) *pgtenancy.MigrateReport {
		t.Helper()
		report, err := fleet.MigrateDown(bare(t), version, opts)
		check(t, "MigrateDown", err)
		return report
	}
	report, err := fleet.MigrateDown(bare(t), 1, &pgtenancy.MigrateOpts{DryRun: true})
	if err != nil || len(report.Plan.Tenants) != 1 || len(report.Plan.Tenants[0].Tenants) != 4 ||
		report.Plan.Tenants[0].Migrations[0].File != "tenant/003_c.down.sql" || !strings.HasPrefix(report.Plan.Tenants[0].Migrations[0].SQL, "drop table c") {
		t.Errorf("DryRun: %+v, %v", report.Plan, err)
	}
	checkEqual(t, "applied to one", down(2, &pgtenancy.MigrateOpts{Tenants: []string{"acme"}}).Applied, 1)
	report = down(1, nil)
	checkEqual(t, "tenants", report.Tenants, 4)
	checkEqual(t, "applied", report.Applied, 7)
	checkList(t, "runs", db.texts(t, "select what || ' ' || count(*) from runs group by what order by 1"), "2 4", "3 4")
	checkList(t, "tables", db.texts(t, "select distinct tablename from pg_tables where schemaname like 'tenant_%'"), "a")
	checkList(t, "history", db.texts(t, "select distinct name from pgtenancy.migrations where tenant_id <> ''"), "001_a")
	checkEqual(t, "version", lookup(t, fleet, "acme").Version(), 1)
	checkEqual(t, "applied again", down(1, nil).Applied, 0)
	checkEqual(t, "applied at 0", down(0, nil).Applied, 4)
	checkList(t, "standings", db.texts(t, "select distinct version || ' ' || digest from pgtenancy.tenants"), "0 0")
	checkEqual(t, "applied up again", migrate(t, fleet).Applied, 12)
	provision(t, fleet, "globex")
	checkEqual(t, "standings", db.count(t, "select count(distinct (version, digest)) from pgtenancy.tenants"), 1)

	// Where a way down is missing, nothing is changed, the tenants for which it would do not either.
	delete(files, "tenant/002_b.down.sql")
	down(2, &pgtenancy.MigrateOpts{Tenants: []string{"acme"}})
	fleet = db.open(t, files)
	_, err = fleet.MigrateDown(bare(t), 1, nil)
	checkInvalid(t, "a missing way down", err, "MigrateDown's version")
	if !strings.Contains(err.Error(), "tenant/002_b.up.sql") {
		t.Errorf("error does not name the file: %v", err)
	}
	checkList(t, "versions", db.texts(t, "select version || ' ' || count(*) from pgtenancy.tenants group by version order by 1"), "2 1", "3 4")
	checkEqual(t, "above it", down(2, nil).Tenants, 4)

	// A way down that fails.
	files = with(files, "tenant/002_b.down.sql", "drop table b;\nselect 1 / 0;")
	_, err = db.open(t, files).MigrateDown(bare(t), 1, nil)
	var all *pgtenancy.MigrateError
	if !errors.As(err, &all) || len(all.Failed) != 5 || all.Failed[0].File != "tenant/002_b.down.sql" || all.Failed[0].Line != 2 {
		t.Errorf("error %v, want that of five tenants", err)
	}

	// A version of the service that does not know what ran.
	old := with(files)
	delete(old, "tenant/002_b.up.sql")
	delete(old, "tenant/002_b.down.sql")
	delete(old, "tenant/003_c.up.sql")
	delete(old, "tenant/003_c.down.sql")
	_, err = db.open(t, old).MigrateDown(bare(t), 0, nil)
	checkIs(t, "an older version of the service", err, pgtenancy.ErrMigrationChanged)
	checkEqual(t, "tenants", db.done(t, 2), 5)
}

// The files of other tools, from the first migration to the last, and back.
func TestMigrateFormats(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		files fstest.MapFS
	}{
		{"golang-migrate", sqlFiles(
			"tenant/20240101120000_notes.up.sql", "BEGIN;\nCREATE TABLE notes (body text);\nCOMMIT;\n",
			"tenant/20240101120000_notes.down.sql", "DROP TABLE IF EXISTS notes;",
			"tenant/20240101130000_index.up.sql", "CREATE INDEX CONCURRENTLY notes_body ON notes (body);",
			"tenant/20240101130000_index.down.sql", "DROP INDEX CONCURRENTLY notes_body;",
			"tenant/20240101140000_touch.up.sql", "CREATE FUNCTION touch() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RETURN 1; END; $$;",
			"tenant/20240101140000_touch.down.sql", "DROP FUNCTION touch();")},
		{"goose", sqlFiles(
			"tenant/00001_notes.sql", "-- +goose Up\nCREATE TABLE notes (body text);\n\n-- +goose Down\nDROP TABLE notes;\n",
			"tenant/00002_index.sql", "-- +goose NO TRANSACTION\n-- +goose Up\nCREATE INDEX CONCURRENTLY notes_body ON notes (body);\n-- +goose Down\nDROP INDEX CONCURRENTLY notes_body;\n",
			"tenant/00003_touch.sql", "-- +goose Up\n-- +goose StatementBegin\nCREATE FUNCTION touch() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RETURN 1; END; $$;\n-- +goose StatementEnd\n-- +goose Down\nDROP FUNCTION touch();\n")},
		{"tern", sqlFiles(
			"tenant/001_notes.sql", "create table notes (body text);\n---- create above / drop below ----\ndrop table notes;\n",
			"tenant/002_index.sql", "---- tern: disable-tx ----\ncreate index concurrently notes_body on notes (body);\n---- create above / drop below ----\n---- tern: disable-tx ----\ndrop index concurrently notes_body;\n",
			"tenant/003_touch.sql", "create function touch() returns int language plpgsql as $$ begin return 1; end; $$;\n---- create above / drop below ----\ndrop function touch();\n")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			db := newFleetDB(t)
			fleet := db.migrated(t, tt.files)
			db.makeTenants(t, 2)
			for range 2 {
				report := migrate(t, fleet)
				checkEqual(t, "tenants", report.Tenants, 2)
				checkEqual(t, "applied", report.Applied, 6)
				db.checkIndexes(t, 2, "notes_body")
				checkEqual(t, "functions", db.count(t, "select count(*) from pg_proc where proname = 'touch'"), 2)
				report, err := fleet.MigrateDown(bare(t), 0, nil)
				check(t, "MigrateDown", err)
				checkEqual(t, "applied", report.Applied, 6)
				checkEqual(t, "what is left", db.count(t, "select count(*) from pg_class where relnamespace::regnamespace::text like 'tenant_%'")+
					db.count(t, "select count(*) from pg_proc where proname = 'touch'"), 0)
			}
			provision(t, fleet, "acme")
			db.checkIndexes(t, 1, "notes_body")
		})
	}
}

func TestGoMigrations(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	files := sqlFiles("shared/001_runs.sql", "create table runs (what text, schema text default current_schema());", "tenant/001_a.sql", "create table a (id int);",
		"tenant/003_c.sql", "insert into runs values ('c ' || current_setting('work_mem'))")
	goMigrations := func(c *pgtenancy.FleetConfig) {
		run := func(what string) func(context.Context, pgx.Tx) error {
			return func(ctx context.Context, tx pgx.Tx) error {
				in, ok := pgtenancy.TenantFromContext(ctx)
				if ok != (what != "shared") {
					t.Errorf("%s: tenant %v in the context: %v", what, in, ok)
				}
				if what != "shared" {
					if _, err := tx.Exec(ctx, "insert into a values (1)"); err != nil {
						return err
					}
				}
				_, err := tx.Exec(ctx, "insert into runs values ($1 || ' ' || set_config('work_mem', '77MB', true))", what)
				return err
			}
		}
		c.GoMigrations = []pgtenancy.GoMigration{
			{Name: "shared/002_go", Up: run("shared")},
			{Name: "tenant/002_go", Up: run("up"), Down: run("down")},
		}
	}
	fleet := db.open(t, files, goMigrations)
	checkList(t, "shared", migrate(t, fleet).Shared, "001_runs", "002_go")
	db.makeTenants(t, 2)
	report := migrate(t, fleet)
	checkEqual(t, "applied", report.Applied, 6)
	provision(t, fleet, "acme")
	checkList(t, "runs", db.texts(t, "select what || ' ' || schema from runs order by 1"), "c 4MB tenant_acme", "c 4MB tenant_t00001", "c 4MB tenant_t00002",
		"shared 77MB public", "up 77MB tenant_acme", "up 77MB tenant_t00001", "up 77MB tenant_t00002")
	checkEqual(t, "rows", db.count(t, "select count(*) from tenant_t00001.a")+db.count(t, "select count(*) from tenant_acme.a"), 2)
	checkEqual(t, "standings", db.count(t, "select count(distinct (version, digest)) from pgtenancy.tenants"), 1)
	checkEqual(t, "nothing is left", migrate(t, fleet).Applied, 0)

	_, err := fleet.MigrateDown(bare(t), 2, nil)
	checkInvalid(t, "a file without a way down", err, "MigrateDown's version")
	db.exec(t, "delete from pgtenancy.migrations where version = 3; update pgtenancy.tenants set version = 2")
	n, err := fleet.Baseline(bare(t), 2, nil)
	check(t, "Baseline", err)
	checkEqual(t, "recorded", n, 3)
	_, err = fleet.MigrateDown(bare(t), 1, nil)
	check(t, "MigrateDown", err)
	checkEqual(t, "runs", db.count(t, "select count(*) from runs where what like 'down%'"), 3)
}

// What a function leaves when it does not end well.
func TestGoMigrationFails(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		up   func(ctx context.Context, tx pgx.Tx) error
		want error // nil where it works, or where code says what PostgreSQL's is
		code string
	}{
		{"an error", func(context.Context, pgx.Tx) error { return errSentinel }, errSentinel, ""},
		{"PostgreSQL's error that it hides", func(ctx context.Context, tx pgx.Tx) error { tx.Exec(ctx, "select 1 / 0"); return nil }, nil, "25P02"},
		{"it rolls back", func(ctx context.Context, tx pgx.Tx) error { return tx.Rollback(ctx) }, pgx.ErrTxCommitRollback, ""},
		{"it commits", func(ctx context.Context, tx pgx.Tx) error { return tx.Commit(ctx) }, nil, ""},
		{"a statement that ends the transaction", func(ctx context.Context, tx pgx.Tx) error { _, err := tx.Exec(ctx, "commit"); return err }, pgtenancy.ErrStatementRefused, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			db := newFleetDB(t)
			works := tt.want == nil && tt.code == ""
			config := func(dir string) fleetOption {
				return func(c *pgtenancy.FleetConfig) {
					c.GoMigrations = []pgtenancy.GoMigration{{Name: dir + "/001_go", Up: func(ctx context.Context, tx pgx.Tx) error {
						if _, err := tx.Exec(ctx, "create table made ()"); err != nil {
							return err
						}
						return tt.up(ctx, tx)
					}}}
				}
			}
			db.migrated(t, nil)
			db.makeTenants(t, 1)
			for _, dir := range []string{"tenant", "shared"} {
				fleet := db.open(t, nil, config(dir), ownerConns(1))
				_, err := fleet.Migrate(bare(t), nil)
				if works {
					check(t, dir, err)
					continue
				}
				var failed *pgtenancy.MigrationError
				if !errors.Is(err, tt.want) && tt.want != nil || sqlState(err) != tt.code || !errors.As(err, &failed) || failed.File != dir+"/001_go" {
					t.Errorf("%s: error %v, want %v of %s/001_go", dir, err, tt.want, dir)
				}
			}
			made := db.count(t, "select count(*) from pg_tables where tablename = 'made'")
			recorded := db.count(t, "select count(*) from pgtenancy.migrations")
			if works {
				checkEqual(t, "made and recorded", made+recorded, 4)
			} else {
				checkEqual(t, "made and recorded", made+recorded, 0)
			}
			if _, err := db.open(t, nil, config("tenant"), ownerConns(1)).Provision(bare(t), "acme", nil); !errors.Is(err, tt.want) && tt.want != nil || sqlState(err) != tt.code || (err == nil) != works {
				t.Errorf("Provision: error %v, want %v", err, tt.want)
			}
		})
	}
}

// A function that panics leaves nothing, not even a connection in use.
func TestGoMigrationPanics(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	panics := func(name string) fleetOption {
		return func(c *pgtenancy.FleetConfig) {
			c.GoMigrations = []pgtenancy.GoMigration{{Name: name, Up: func(ctx context.Context, tx pgx.Tx) error {
				_, err := tx.Exec(ctx, "create table made ()")
				check(t, "create", err)
				panic("in a function")
			}}}
		}
	}
	fleet := db.open(t, nil, panics("shared/001_go"), ownerConns(1))
	for range 2 {
		checkEqual(t, "the panic", recovered(func() { fleet.Migrate(bare(t), nil) }), any("in a function"))
	}
	db.migrated(t, nil)
	fleet = db.open(t, nil, panics("tenant/001_go"), ownerConns(1))
	for range 2 {
		checkEqual(t, "the panic", recovered(func() { fleet.Provision(bare(t), "acme", nil) }), any("in a function"))
	}
	db.makeTenants(t, 2)
	for range 2 {
		if thrown := fmt.Sprint(recovered(func() { fleet.Migrate(bare(t), nil) })); !strings.Contains(thrown, "in a function") || !strings.Contains(thrown, "migrate_history_test.go") {
			t.Errorf("Migrate panicked with %s", thrown)
		}
	}
	db.exec(t, "delete from pgtenancy.tenants")
	checkEqual(t, "made", db.count(t, "select count(*) from pg_tables where tablename = 'made'"), 0)
	checkEqual(t, "recorded", db.count(t, "select count(*) from pgtenancy.migrations")+db.count(t, "select count(*) from pgtenancy.tenants"), 0)
}

func TestGoMigrationInvalid(t *testing.T) {
	t.Parallel()
	db := &fleetDB{owner: "nobody", app: "nobody"}
	db.url = "postgres://nobody@127.0.0.1:1/nothing" // these are found before anything connects
	up := func(context.Context, pgx.Tx) error { return nil }
	for _, tt := range []struct {
		name  string
		field string
		m     []pgtenancy.GoMigration
	}{
		{"no name", "GoMigration.Name", []pgtenancy.GoMigration{{Up: up}}},
		{"no directory", "GoMigration.Name", []pgtenancy.GoMigration{{Name: "002_go", Up: up}}},
		{"another directory", "GoMigration.Name", []pgtenancy.GoMigration{{Name: "other/002_go", Up: up}}},
		{"no function", "GoMigration.Up", []pgtenancy.GoMigration{{Name: "tenant/002_go"}}},
		{"no number", "FleetConfig.Migrations", []pgtenancy.GoMigration{{Name: "tenant/go", Up: up}}},
		{"a file's name", "FleetConfig.Migrations", []pgtenancy.GoMigration{{Name: "tenant/002_go.sql", Up: up}}},
		{"a file's number", "FleetConfig.Migrations", []pgtenancy.GoMigration{{Name: "tenant/001_go", Up: up}}},
		{"a gap", "FleetConfig.Migrations", []pgtenancy.GoMigration{{Name: "tenant/003_go", Up: up}}},
		{"a number twice", "FleetConfig.Migrations", []pgtenancy.GoMigration{{Name: "tenant/002_go", Up: up}, {Name: "tenant/002_other", Up: up}}},
		{"a directory below", "FleetConfig.Migrations", []pgtenancy.GoMigration{{Name: "tenant/more/002_go", Up: up}}},
	} {
		cfg := db.config(t, sqlFiles("tenant/001_a.sql", "select 1"))
		cfg.GoMigrations = tt.m
		_, err := pgtenancy.Open(bare(t), cfg)
		checkInvalid(t, tt.name, err, tt.field)
	}
}

// A shared file that was changed after it ran is accepted by Baseline, too.
func TestBaselineShared(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	files := with(notesFiles, "shared/001_a.sql", "create table a ();", "shared/002_b.sql", "create table b ();")
	db.migrated(t, files)
	fleet := db.open(t, with(files, "shared/001_a.sql", "create table a (); -- mended"))
	_, err := fleet.Migrate(bare(t), nil)
	checkIs(t, "Migrate", err, pgtenancy.ErrMigrationChanged)
	_, err = fleet.Baseline(bare(t), 3, &pgtenancy.BaselineOpts{Shared: true})
	checkInvalid(t, "a version that is none", err, "Baseline's version")
	_, err = fleet.Baseline(bare(t), 2, &pgtenancy.BaselineOpts{Shared: true, Tenants: []string{}})
	checkInvalid(t, "Tenants", err, "BaselineOpts.Tenants")
	n, err := fleet.Baseline(bare(t), 1, &pgtenancy.BaselineOpts{Shared: true})
	check(t, "Baseline at another version", err)
	checkEqual(t, "recorded at another version", n, 0)
	n, err = fleet.Baseline(bare(t), 2, &pgtenancy.BaselineOpts{Shared: true})
	check(t, "Baseline", err)
	checkEqual(t, "recorded", n, 1)
	checkEqual(t, "shared migrations that ran", len(migrate(t, fleet).Shared), 0)
	n, err = fleet.Baseline(bare(t), 2, &pgtenancy.BaselineOpts{Shared: true})
	check(t, "Baseline again", err)
	checkEqual(t, "recorded again", n, 0)

	// Tables that were there before the fleet was.
	other := newFleetDB(t)
	other.execAs(t, other.owner, "create table public.a (); create table public.b ();")
	fleet = other.open(t, sqlFiles("shared/001_none.sql", "select 1"))
	migrate(t, fleet)
	fleet = other.open(t, sqlFiles("shared/001_none.sql", "select 1", "shared/002_a.sql", "create table a ();"))
	if _, err := fleet.Migrate(bare(t), nil); sqlState(err) != "42P07" {
		t.Errorf("Migrate: error %v, want 42P07", err)
	}
}

// A role that a function takes on is not the one that records it.
func TestGoMigrationRole(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	db.exec(t, fmt.Sprintf("grant %s to %s", db.app, db.owner))
	as := func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "set local role "+db.app)
		return err
	}
	fleet := db.migrated(t, notesFiles, func(c *pgtenancy.FleetConfig) {
		c.GoMigrations = []pgtenancy.GoMigration{{Name: "tenant/002_role", Up: as, Down: as}}
	})
	db.makeTenants(t, 1)
	checkEqual(t, "applied", migrate(t, fleet).Applied, 2)
	report, err := fleet.MigrateDown(bare(t), 1, nil)
	check(t, "MigrateDown", err)
	checkEqual(t, "taken back", report.Applied, 1)
	provision(t, fleet, "acme")
}
