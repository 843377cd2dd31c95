package pgtenancy_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy"
)

// fickleFiles fail in the schemas that are in the table bad.
var fickleFiles = sqlFiles(
	"shared/001_bad.sql", "create table bad (schema text);",
	"tenant/001_a.sql", "create table a ();\ndo $$ begin if exists (select from bad where schema = current_schema()) then raise 'bad tenant'; end if; end $$;",
)

// fickle returns a fleet of n tenants that need fickleFiles, of which some fail.
func (db *fleetDB) fickle(t *testing.T, n int, bad ...string) *pgtenancy.Fleet {
	t.Helper()
	fleet := db.migrated(t, fickleFiles)
	db.makeTenants(t, n)
	for _, id := range bad {
		db.exec(t, "insert into bad values ('tenant_"+id+"')")
	}
	return fleet
}

// done counts the tenants that have had a migration.
func (db *fleetDB) done(t *testing.T, version int) int {
	t.Helper()
	return db.count(t, fmt.Sprintf("select count(*) from pgtenancy.tenants where version = %d", version))
}

// stopped returns the error of a run that was stopped.
func stopped(t *testing.T, err error) *pgtenancy.MigrateError {
	t.Helper()
	var all *pgtenancy.MigrateError
	if !errors.As(err, &all) || all.Stopped == nil {
		t.Fatalf("error %v, want a *MigrateError that was stopped", err)
	}
	return all
}

func failedTenants(e *pgtenancy.MigrateError) (ids []string) {
	for _, f := range e.Failed {
		ids = append(ids, f.Tenant)
	}
	return ids
}

func TestMigrateTenants(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	fleet := db.migrated(t, notesFiles)
	db.makeTenants(t, 6)
	db.exec(t, "update pgtenancy.tenants set state = 'deleted' where id = 't00005'; update pgtenancy.tenants set state = 'suspended' where id = 't00006'")
	for _, ids := range [][]string{{"t00001", "nobody"}, {"t00001", "t00005"}, {""}} {
		_, err := fleet.Migrate(bare(t), &pgtenancy.MigrateOpts{Tenants: ids})
		checkInvalid(t, fmt.Sprint(ids), err, "MigrateOpts.Tenants")
	}
	report, err := fleet.Migrate(bare(t), &pgtenancy.MigrateOpts{Tenants: []string{}})
	check(t, "no tenants", err)
	checkEqual(t, "tenants of none", report.Tenants+db.done(t, 1), 0)

	ids := []string{"t00006", "t00002", "t00002"}
	report, err = fleet.Migrate(bare(t), &pgtenancy.MigrateOpts{Tenants: ids})
	check(t, "Migrate", err)
	checkEqual(t, "tenants", report.Tenants, 2)
	checkList(t, "the caller's slice", ids, "t00006", "t00002", "t00002")
	checkList(t, "done", db.texts(t, "select id from pgtenancy.tenants where version = 1 order by 1"), "t00002", "t00006")
	checkEqual(t, "the rest", migrate(t, fleet).Tenants, 3)
}

func TestMigrateTarget(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	files := with(notesFiles, "tenant/002_b.sql", "create table b ();", "tenant/003_c.sql", "create table c ();")
	fleet := db.migrated(t, files)
	db.makeTenants(t, 3)
	for _, target := range []int64{-1, 4, 20240101} {
		_, err := fleet.Migrate(bare(t), &pgtenancy.MigrateOpts{Target: target})
		checkInvalid(t, fmt.Sprint(target), err, "MigrateOpts.Target")
		_, err = fleet.MigrateDown(bare(t), target, nil)
		checkInvalid(t, fmt.Sprint(target), err, "MigrateDown's version")
	}
	checkEqual(t, "tenants that were migrated for it", db.done(t, 0), 3)
	for _, tt := range []struct {
		target  int64
		applied int
	}{{2, 6}, {2, 0}, {1, 0}, {3, 3}, {0, 0}} {
		report, err := fleet.Migrate(bare(t), &pgtenancy.MigrateOpts{Target: tt.target})
		check(t, "Migrate", err)
		checkEqual(t, fmt.Sprintf("applied for %d", tt.target), report.Applied, tt.applied)
	}
	checkEqual(t, "tables", db.count(t, "select count(*) from pg_tables where schemaname like 'tenant_t%'"), 9)
	checkEqual(t, "after all", migrate(t, fleet).Applied, 0)
}

func TestMigrateInvalidOpts(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	fleet := db.migrated(t, notesFiles)
	db.makeTenants(t, 2)
	for _, tt := range []struct {
		field string
		opts  pgtenancy.MigrateOpts
	}{
		{"MigrateOpts.MaxFailures", pgtenancy.MigrateOpts{MaxFailures: -1}},
		{"MigrateOpts.MaxFailureShare", pgtenancy.MigrateOpts{MaxFailureShare: -0.1}},
		{"MigrateOpts.MaxFailureShare", pgtenancy.MigrateOpts{MaxFailureShare: 1.1}},
		{"MigrateOpts.CanaryCount", pgtenancy.MigrateOpts{CanaryCount: -1}},
		{"MigrateOpts.WaveSize", pgtenancy.MigrateOpts{WaveSize: -1}},
		{"MigrateOpts.Canary", pgtenancy.MigrateOpts{Canary: []string{"t00001", "nobody"}}},
		{"MigrateOpts.Canary", pgtenancy.MigrateOpts{Canary: []string{"t00001"}, Tenants: []string{"t00002"}}},
	} {
		_, err := fleet.Migrate(bare(t), &tt.opts)
		checkInvalid(t, fmt.Sprintf("%+v", tt.opts), err, tt.field)
	}
	checkEqual(t, "tenants that were migrated for it", db.done(t, 1), 0)
}

func TestMigrateCanaries(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		opts   pgtenancy.MigrateOpts
		bad    []string
		first  []string // that go first
		failed []string
	}{
		{"by ID", pgtenancy.MigrateOpts{Canary: []string{"t00007", "t00003", "t00003"}}, nil, []string{"t00003", "t00007"}, nil},
		{"a number", pgtenancy.MigrateOpts{CanaryCount: 3}, nil, []string{"t00001", "t00002", "t00003"}, nil},
		{"both", pgtenancy.MigrateOpts{Canary: []string{"t00002"}, CanaryCount: 2}, nil, []string{"t00001", "t00002", "t00003"}, nil},
		{"one fails", pgtenancy.MigrateOpts{Canary: []string{"t00007", "t00003"}, CanaryCount: 1}, []string{"t00003", "t00009"}, []string{"t00001", "t00003", "t00007"}, []string{"t00003"}},
		{"another one fails", pgtenancy.MigrateOpts{Canary: []string{"t00007"}}, []string{"t00009"}, []string{"t00007"}, nil},
		{"of some", pgtenancy.MigrateOpts{Tenants: []string{"t00004", "t00005", "t00006"}, CanaryCount: 1}, nil, []string{"t00004"}, nil},
		{"all", pgtenancy.MigrateOpts{CanaryCount: 1000}, nil, []string{"t00001", "t00002", "t00003", "t00004", "t00005", "t00006", "t00007", "t00008", "t00009", "t00010"}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			db := newFleetDB(t)
			fleet := db.fickle(t, 10, tt.bad...)
			total := cmp.Or(len(tt.opts.Tenants), 10)
			var order []string
			var waves []pgtenancy.Wave
			tt.opts.OnProgress = func(p pgtenancy.Progress) {
				order = append(order, p.Tenant)
				if want := 1 + min(1, (len(order)-1)/len(tt.first)); p.Wave != want || p.Total != total {
					t.Errorf("tenant %d has progress %+v, want wave %d of %d tenants", len(order), p, want, total)
				}
			}
			tt.opts.AfterWave = func(_ context.Context, w pgtenancy.Wave) error {
				waves = append(waves, w)
				checkEqual(t, "tenants when the canaries are done", len(order), len(tt.first))
				checkEqual(t, "schemas when the canaries are done", db.done(t, 1), len(tt.first))
				return nil
			}
			_, err := fleet.Migrate(bare(t), &tt.opts)
			canaries := order[:len(tt.first)]
			slices.Sort(canaries)
			checkList(t, "canaries", canaries, tt.first...)
			switch {
			case len(tt.failed) > 0:
				checkIs(t, "Migrate", err, pgtenancy.ErrMigrateStopped)
				checkList(t, "failed", failedTenants(stopped(t, err)), tt.failed...)
				checkEqual(t, "tried", len(order), len(tt.first))
				checkEqual(t, "done", db.done(t, 1), len(tt.first)-len(tt.failed))
				checkEqual(t, "calls of AfterWave", len(waves), 0)
				return
			case len(tt.bad) == 0:
				check(t, "Migrate", err)
			case err == nil || errors.Is(err, pgtenancy.ErrMigrateStopped):
				t.Errorf("error %v, want that of a tenant", err)
			}
			checkEqual(t, "tried", len(order), total)
			if total == len(tt.first) { // nobody comes after them
				checkEqual(t, "calls of AfterWave", len(waves), 0)
			} else if want := (pgtenancy.Wave{Number: 1, Canary: true, Done: len(tt.first)}); len(waves) != 1 || waves[0] != want {
				t.Errorf("waves %+v, want %+v", waves, want)
			}
		})
	}
}

// Canaries that have nothing to do are no wave.
func TestMigrateCanariesDone(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	fleet := db.fickle(t, 4)
	_, err := fleet.Migrate(bare(t), &pgtenancy.MigrateOpts{Tenants: []string{"t00002"}})
	check(t, "Migrate", err)
	_, err = fleet.Migrate(bare(t), &pgtenancy.MigrateOpts{Canary: []string{"t00002"}, OnProgress: func(p pgtenancy.Progress) {
		checkEqual(t, "wave", p.Wave, 1)
	}, AfterWave: func(_ context.Context, w pgtenancy.Wave) error { return fmt.Errorf("unexpected %+v", w) }})
	check(t, "Migrate", err)
	checkEqual(t, "done", db.done(t, 1), 4)
}

func TestMigrateWaves(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	fleet := db.fickle(t, 25, "t00003")
	var waves []pgtenancy.Wave
	opts := &pgtenancy.MigrateOpts{CanaryCount: 2, WaveSize: 10, AfterWave: func(_ context.Context, w pgtenancy.Wave) error {
		waves = append(waves, w)
		// The next one has not begun, and goes in the order of the IDs.
		checkEqual(t, "tenants after a wave", db.done(t, 1), []int{2, 11, 21}[len(waves)-1])
		checkEqual(t, "the last tenant", db.texts(t, "select max(id) from pgtenancy.tenants where version = 1")[0], []string{"t00002", "t00012", "t00022"}[len(waves)-1])
		if len(waves) == 3 {
			return errSentinel
		}
		return nil
	}}
	report, err := fleet.Migrate(bare(t), opts)
	checkIs(t, "Migrate", err, errSentinel)
	e := stopped(t, err)
	checkIs(t, "Stopped", e.Stopped, errSentinel)
	checkList(t, "failed", failedTenants(e), "t00003")
	want := []pgtenancy.Wave{{Number: 1, Canary: true, Done: 2}, {Number: 2, Done: 10, Failed: 1}, {Number: 3, Done: 10}}
	if !slices.Equal(waves, want) {
		t.Errorf("waves %+v, want %+v", waves, want)
	}
	checkEqual(t, "reported", report.Tenants, 21)
	checkEqual(t, "done", db.done(t, 1), 21)

	// What is left is less than a wave, but for the one that fails again.
	waves = nil
	opts.CanaryCount = 0
	_, err = fleet.Migrate(bare(t), opts)
	if errors.Is(err, errSentinel) || !strings.Contains(err.Error(), "t00003") || len(waves) != 0 || db.done(t, 1) != 24 {
		t.Errorf("error %v after waves %+v, %d tenants done", err, waves, db.done(t, 1))
	}
}

var errSentinel = errors.New("the error rate is up")

func TestMigrateMaxFailures(t *testing.T) {
	t.Parallel()
	var bad []string
	for i := range 20 {
		bad = append(bad, fmt.Sprintf("t%05d", i+1))
	}
	tests := []struct {
		name string
		opts pgtenancy.MigrateOpts
		want int // failures, and with more than one at a time those that were under way
	}{
		{"the first", pgtenancy.MigrateOpts{MaxFailures: 1, Parallel: 1}, 1},
		{"some", pgtenancy.MigrateOpts{MaxFailures: 5, Parallel: 1}, 5},
		{"some at a time", pgtenancy.MigrateOpts{MaxFailures: 5, Parallel: 3}, 5},
		{"a share", pgtenancy.MigrateOpts{MaxFailureShare: 0.2, Parallel: 1}, 4},
		{"a small share", pgtenancy.MigrateOpts{MaxFailureShare: 0.01, Parallel: 1}, 1},
		{"a share of all waves", pgtenancy.MigrateOpts{MaxFailureShare: 0.2, Parallel: 1, WaveSize: 3}, 4},
		{"both", pgtenancy.MigrateOpts{MaxFailureShare: 0.5, MaxFailures: 3, Parallel: 1}, 3},
		{"no limit", pgtenancy.MigrateOpts{}, 20},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			db := newFleetDB(t)
			_, err := db.fickle(t, 20, bad...).Migrate(bare(t), &tt.opts)
			var all *pgtenancy.MigrateError
			if !errors.As(err, &all) {
				t.Fatalf("error %v, want a *MigrateError", err)
			}
			checkEqual(t, "stopped", errors.Is(err, pgtenancy.ErrMigrateStopped), tt.want < 20)
			if n := len(all.Failed); n < tt.want || n > tt.want+max(tt.opts.Parallel, 1)-1 {
				t.Errorf("%d failures, want %d", n, tt.want)
			}
		})
	}

	// One that is below the limit stops nothing.
	db := newFleetDB(t)
	_, err := db.fickle(t, 20, "t00004", "t00011").Migrate(bare(t), &pgtenancy.MigrateOpts{MaxFailures: 3, MaxFailureShare: 0.15})
	if err == nil || errors.Is(err, pgtenancy.ErrMigrateStopped) {
		t.Errorf("error %v, want that of two tenants", err)
	}
	checkEqual(t, "done", db.done(t, 1), 18)
}

// readOnly makes all that the owner's connections would change an error.
func readOnly(c *pgtenancy.FleetConfig) {
	c.Owner.ConnConfig.RuntimeParams["default_transaction_read_only"] = "on"
}

func TestMigrateDryRun(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	dry := func(opts pgtenancy.MigrateOpts, fleet *pgtenancy.Fleet) *pgtenancy.MigrateReport {
		t.Helper()
		opts.DryRun = true
		report, err := fleet.Migrate(bare(t), &opts)
		if err != nil || report.Plan == nil {
			t.Fatalf("DryRun: %+v, %v", report, err)
		}
		if report.Tenants+report.Applied+len(report.Shared) != 0 {
			t.Errorf("a dry run reports that it did something: %+v", report)
		}
		return report
	}
	files := with(runsFiles, "tenant/003_index.sql", "create index concurrently on_body on notes (body);")
	goFour := func(c *pgtenancy.FleetConfig) {
		c.GoMigrations = []pgtenancy.GoMigration{{Name: "tenant/004_go", Up: func(context.Context, pgx.Tx) error { return nil }}}
	}

	// Without a registry.
	plan := dry(pgtenancy.MigrateOpts{}, db.open(t, files, readOnly)).Plan
	checkEqual(t, "registry", plan.Registry, true)
	checkEqual(t, "tenants", len(plan.Tenants), 0)
	if len(plan.Shared) != 2 || plan.Shared[0] != (pgtenancy.PlannedMigration{
		Version: 1, Name: "001_runs", File: "shared/001_runs.sql", SQL: "create table runs (what text);\ninsert into runs values ('shared 1');\n",
	}) {
		t.Errorf("shared: %+v", plan.Shared)
	}
	checkEqual(t, "schemas", db.count(t, "select count(*) from pg_namespace where nspname = 'pgtenancy'"), 0)
	checkEqual(t, "tables", db.count(t, "select count(*) from pg_tables where schemaname = 'public'"), 0)

	// Tenants at three places.
	fleet := db.migrated(t, files, goFour)
	db.makeTenants(t, 6)
	for id, target := range map[string]int64{"t00002": 2, "t00004": 2, "t00006": 4} {
		_, err := fleet.Migrate(bare(t), &pgtenancy.MigrateOpts{Tenants: []string{id}, Target: target})
		check(t, "Migrate", err)
	}
	registry := "select t::text from pgtenancy.tenants t union all select m::text from pgtenancy.migrations m union all select r::text from pgtenancy.registry r order by 1"
	before := db.texts(t, registry)
	db.exec(t, "revoke usage on schema pgtenancy from "+db.app) // which Migrate would grant again
	fleet = db.open(t, files, goFour, readOnly)
	report := dry(pgtenancy.MigrateOpts{}, fleet)
	checkEqual(t, "registry", report.Registry, false)
	var got []string
	for _, g := range report.Plan.Tenants {
		line := fmt.Sprint(g.Version, g.Tenants)
		for _, m := range g.Migrations {
			line += fmt.Sprintf(" %d %s %v", m.Version, m.File, m.NoTx)
		}
		got = append(got, line)
	}
	checkList(t, "plan", got,
		"0 [t00001 t00003 t00005] 1 tenant/001_notes.sql false 2 tenant/002_more.sql false 3 tenant/003_index.sql true 4 tenant/004_go false",
		"2 [t00002 t00004] 3 tenant/003_index.sql true 4 tenant/004_go false")
	last := report.Plan.Tenants[1].Migrations
	checkEqual(t, "SQL", last[0].SQL, "create index concurrently on_body on notes (body);\n")
	checkEqual(t, "SQL of a function", last[1].SQL, "")
	plan = dry(pgtenancy.MigrateOpts{Tenants: []string{"t00001", "t00006"}, Target: 2}, fleet).Plan
	if len(plan.Tenants) != 1 || len(plan.Tenants[0].Migrations) != 2 {
		t.Errorf("plan of some tenants: %+v", plan.Tenants)
	}
	checkList(t, "the registry", db.texts(t, registry), before...)

	// What would be an error is one.
	_, err := db.open(t, with(files, "tenant/002_more.sql", "select 1"), goFour, readOnly).Migrate(bare(t), &pgtenancy.MigrateOpts{DryRun: true})
	checkIs(t, "a changed file", err, pgtenancy.ErrMigrationChanged)
}

func TestMigrateProgress(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	fleet := db.fickle(t, 7, "t00002")
	var all []pgtenancy.Progress
	report, err := fleet.Migrate(bare(t), &pgtenancy.MigrateOpts{Parallel: 1, WaveSize: 4, OnProgress: func(p pgtenancy.Progress) { all = append(all, p) }})
	if err == nil || len(all) != 7 {
		t.Fatalf("error %v, progress %+v", err, all)
	}
	failed := 0
	for i, p := range all {
		if p.Err != nil {
			checkEqual(t, "the tenant that failed", p.Tenant, "t00002")
			failed++
		}
		rate := float64(p.Done) / p.Elapsed.Seconds()
		remaining := time.Duration(float64(p.Total-p.Done) / rate * float64(time.Second))
		if p.Done != i+1 || p.Failed != failed || p.Total != 7 || p.Wave != 1+i/4 || p.Elapsed <= 0 || p.Elapsed > report.Duration ||
			i > 0 && p.Elapsed < all[i-1].Elapsed || p.Rate < rate*0.999 || p.Rate > rate*1.001 || (p.Remaining-remaining).Abs() > time.Millisecond {
			t.Errorf("progress %+v at call %d", p, i+1)
		}
	}
	checkEqual(t, "failed", failed, 1)
	if report.Tenants != 6 || report.Applied != 6 || report.Duration <= 0 || report.Plan != nil || report.Registry {
		t.Errorf("report %+v", report)
	}
}

// A process of the older version provisions tenants while this one migrates.
func TestMigrateProvisionedMeanwhile(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 3} {
		t.Run(fmt.Sprintf("waves of %d", size), func(t *testing.T) {
			t.Parallel()
			db := newFleetDB(t)
			old := db.migrated(t, notesFiles)
			db.makeTenants(t, 10)
			fleet := db.open(t, with(notesFiles, "tenant/002_b.sql", "create table b ();"))
			total := 0
			report, err := fleet.Migrate(bare(t), &pgtenancy.MigrateOpts{WaveSize: size, OnProgress: func(p pgtenancy.Progress) {
				total = p.Total
				switch p.Done {
				case 2:
					checkEqual(t, "version of a late tenant", provision(t, old, "a-late").Version(), 1)
				case 10:
					checkEqual(t, "version of a later tenant", provision(t, old, "later").Version(), 1)
				}
			}})
			check(t, "Migrate", err)
			checkEqual(t, "tenants", report.Tenants, 12)
			checkEqual(t, "total", total, 12)
			checkEqual(t, "done", db.done(t, 2), 12)
			checkEqual(t, "tables", db.count(t, "select count(*) from pg_tables where tablename = 'b'"), 12)
		})
	}
}

func TestMigrateDeletedMeanwhile(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	fleet := db.migrated(t, notesFiles)
	const tenants = 40
	db.makeTenants(t, tenants)
	var gone []string
	report, err := fleet.Migrate(bare(t), &pgtenancy.MigrateOpts{Parallel: 1, OnProgress: func(p pgtenancy.Progress) {
		if p.Done != 1 { // some of those that are left have been chosen already
			return
		}
		gone = db.texts(t, "select id from pgtenancy.tenants where version = 0 order by id")
		for i, id := range gone {
			if i%3 == 0 {
				db.exec(t, fmt.Sprintf("update pgtenancy.tenants set state = 'deleted' where id = '%s'", id))
			} else {
				db.exec(t, fmt.Sprintf("drop schema tenant_%[1]s cascade; delete from pgtenancy.tenants where id = '%[1]s'", id))
			}
		}
	}})
	check(t, "Migrate", err)
	if len(gone) == 0 {
		t.Error("no tenant was left to be deleted")
	}
	checkEqual(t, "tenants", report.Tenants, tenants-len(gone))
	checkEqual(t, "done", db.done(t, 1), tenants-len(gone))
	checkEqual(t, "history", db.count(t, "select count(*) from pgtenancy.migrations"), tenants-len(gone))
}

// A transaction of the service's holds a lock on a tenant's table for long. Nobody else waits for it, and those who read the
// table do not wait for the migration for longer than it waits itself.
func TestMigrateLockedTable(t *testing.T) {
	t.Parallel()
	tenants := 300
	if testing.Short() {
		tenants = 40
	}
	db := newFleetDB(t)
	db.migrated(t, notesFiles)
	db.makeTenants(t, tenants)
	migrate(t, db.open(t, notesFiles))
	db.exec(t, "insert into tenant_t00017.notes (body) values ('x')")
	blocker := db.admin(t)
	if _, err := blocker.Exec(bare(t), "begin; select * from tenant_t00017.notes"); err != nil {
		t.Fatal(err)
	}

	fleet := db.open(t, with(notesFiles, "tenant/002_alter.sql", "alter table notes add more text;"))
	others := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		report, err := fleet.Migrate(bare(t), &pgtenancy.MigrateOpts{LockTimeout: 100 * time.Millisecond, OnProgress: func(p pgtenancy.Progress) {
			if p.Done == tenants-1 {
				close(others)
			}
			checkEqual(t, "total", p.Total, tenants)
			checkEqual(t, "the locked one is the last", p.Tenant == "t00017", p.Done == tenants)
		}})
		check(t, "Migrate", err)
		checkEqual(t, "tenants", report.Tenants, tenants)
	})
	select {
	case <-others:
	case <-time.After(patience):
		t.Error("the other tenants wait for the one that is locked")
	}
	reader := db.admin(t)
	for range 2 {
		db.awaitBlocked(t, "alter table notes", true)
		var body string
		ctx, cancel := context.WithTimeout(bare(t), patience)
		check(t, "reading the locked table", reader.QueryRow(ctx, "select body from tenant_t00017.notes").Scan(&body))
		cancel()
		checkEqual(t, "version", db.done(t, 1), 1)
		db.awaitBlocked(t, "alter table notes", false)
	}
	if _, err := blocker.Exec(bare(t), "commit"); err != nil {
		t.Error(err)
	}
	wg.Wait()
	checkEqual(t, "done", db.done(t, 2), tenants)
}

// awaitBlocked waits until a statement that has a text waits for somebody, or none does.
func (db *fleetDB) awaitBlocked(t *testing.T, text string, blocked bool) {
	t.Helper()
	conn := db.admin(t)
	defer conn.Close(context.Background())
	await(t, fmt.Sprintf("%q is blocked: %v", text, blocked), func() bool {
		var n int
		err := conn.QueryRow(bare(t), `select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'
			and pid <> pg_backend_pid() and query ilike '%' || $1 || '%'`, text).Scan(&n)
		return err == nil && n > 0 == blocked
	})
}

func TestMigrateLockRetry(t *testing.T) {
	t.Parallel()
	for _, dir := range []string{"tenant", "shared"} {
		t.Run(dir, func(t *testing.T) {
			t.Parallel()
			db := newFleetDB(t)
			files := with(notesFiles, "shared/001_users.sql", "create table users ();")
			db.migrated(t, files)
			db.makeTenants(t, 5)
			migrate(t, db.open(t, files))
			table := map[string]string{"tenant": "notes", "shared": "users"}[dir]
			fleet := db.open(t, with(files, dir+"/002_alter.sql", "select 1;\nalter table "+table+" add more text;"))
			blocker := db.admin(t)
			if _, err := blocker.Exec(bare(t), "begin; lock table "+map[string]string{"tenant": "tenant_t00002.notes", "shared": "users"}[dir]); err != nil {
				t.Fatal(err)
			}
			opts := &pgtenancy.MigrateOpts{LockTimeout: 5 * time.Millisecond, LockRetry: 20 * time.Millisecond}
			_, err := fleet.Migrate(bare(t), opts)
			checkCode(t, "Migrate", err, "55P03")
			var failed *pgtenancy.MigrationError
			if !errors.As(err, &failed) || failed.File != dir+"/002_alter.sql" || failed.Line != 2 {
				t.Errorf("error %v, want one at %s/002_alter.sql:2", err, dir)
			}
			if dir == "tenant" {
				checkEqual(t, "tenant", failed.Tenant, "t00002")
				checkEqual(t, "done", db.done(t, 2), 4)
			}

			// It is tried again and again.
			opts.LockTimeout, opts.LockRetry = 50*time.Millisecond, 0
			var wg sync.WaitGroup
			wg.Go(func() {
				_, err := fleet.Migrate(bare(t), opts)
				check(t, "Migrate", err)
			})
			for range 2 {
				db.awaitBlocked(t, "alter table", true)
				db.awaitBlocked(t, "alter table", false)
			}
			blocker.Exec(bare(t), "commit")
			wg.Wait()
			checkEqual(t, "nothing is left to do", migrate(t, fleet).Applied, 0)
		})
	}
}

// How long a migration waits for a lock.
func TestMigrateLockTimeout(t *testing.T) {
	t.Parallel()
	files := sqlFiles(
		"shared/001_s.sql", "create table s as select current_setting('lock_timeout') as v;",
		"tenant/001_s.sql", "insert into s select current_setting('lock_timeout');",
		"tenant/003_s.sql", "-- pgtenancy: no transaction\ninsert into s select current_setting('lock_timeout');",
	)
	for _, tt := range []struct{ name, owner, opts, want string }{
		{"the default", "", "0", "500ms"},
		{"the connection's", "3s", "0", "3s"},
		{"the option", "3s", "70ms", "70ms"},
		{"a very short one", "", "1ns", "1ms"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			db := newFleetDB(t)
			d, err := time.ParseDuration(tt.opts)
			check(t, "duration", err)
			fleet := db.open(t, files, func(c *pgtenancy.FleetConfig) {
				if tt.owner != "" {
					c.Owner.ConnConfig.RuntimeParams["lock_timeout"] = tt.owner
				}
				c.GoMigrations = []pgtenancy.GoMigration{{Name: "tenant/002_s", Up: func(ctx context.Context, tx pgx.Tx) error {
					_, err := tx.Exec(ctx, "insert into s select current_setting('lock_timeout')")
					return err
				}}}
			})
			_, err = fleet.Migrate(bare(t), &pgtenancy.MigrateOpts{LockTimeout: d})
			check(t, "Migrate", err)
			db.makeTenants(t, 1)
			_, err = fleet.Migrate(bare(t), &pgtenancy.MigrateOpts{LockTimeout: d})
			check(t, "Migrate", err)
			checkList(t, "lock_timeout", db.texts(t, "select v from s"), tt.want, tt.want, tt.want, tt.want)
		})
	}
}

// What may succeed when it is tried again is. A sequence counts the tries, since it takes no part in transactions.
func TestMigrateTriedAgain(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, code string
		again      bool
	}{
		{"a lock", "55P03", true},
		{"a deadlock", "40P01", true},
		{"a serialization failure", "40001", true},
		{"a full disk", "53100", false},
		{"a cancelled statement", "57014", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			db := newFleetDB(t)
			fails := func(sequence string) string {
				return "create table made ();\ndo $$ begin if nextval('" + sequence + "') < 3 then raise 'try %', currval('" + sequence + "') using errcode = '" + tt.code + "'; end if; end $$;"
			}
			db.exec(t, "create sequence tries; create sequence shared_tries; grant usage on sequence tries, shared_tries to "+db.owner)
			fleet := db.migrated(t, sqlFiles("tenant/001_a.sql", fails("tries")))
			db.makeTenants(t, 1)
			report, err := fleet.Migrate(bare(t), nil)
			both := db.open(t, sqlFiles("tenant/001_a.sql", fails("tries"), "shared/001_a.sql", fails("shared_tries")))
			if tt.again {
				check(t, "Migrate", err)
				checkEqual(t, "tenants", report.Tenants, 1)
				checkEqual(t, "applied", report.Applied, 1)
				checkList(t, "shared", migrate(t, both).Shared, "001_a")
				return
			}
			checkCode(t, "Migrate", err, tt.code)
			checkEqual(t, "tries", db.count(t, "select last_value from tries"), 1)
			_, err = both.Migrate(bare(t), nil)
			checkCode(t, "Migrate", err, tt.code)
			checkEqual(t, "tries", db.count(t, "select last_value from shared_tries"), 1)
		})
	}
}

// Only the last commit of a tenant waits for the disk, and those of migrations that are no transaction.
func TestMigrateCommits(t *testing.T) {
	t.Parallel()
	const record = "insert into s values ('%s ' || current_setting('synchronous_commit'));"
	db := newFleetDB(t)
	db.exec(t, "alter role "+db.owner+" set synchronous_commit = on")
	files := sqlFiles("shared/001_s.sql", "create table s (v text); "+fmt.Sprintf(record, "shared 1"), "shared/002_s.sql", fmt.Sprintf(record, "shared 2"))
	for i := range 55 { // more than one pipeline
		files[fmt.Sprintf("tenant/%03d_s.sql", i+1)] = sqlFiles("x", fmt.Sprintf(record, fmt.Sprintf("%03d", i+1)))["x"]
	}
	files = with(files, "tenant/030_s.sql", "-- pgtenancy: no transaction\n"+fmt.Sprintf(record, "030"))
	fleet := db.migrated(t, files)
	db.makeTenants(t, 1)
	checkEqual(t, "applied", migrate(t, fleet).Applied, 55)
	checkList(t, "commits that wait", db.texts(t, "select v from s where v like '% on' order by 1"), "030 on", "055 on", "shared 2 on")
	checkEqual(t, "commits that do not", db.count(t, "select count(*) from s where v like '% off'"), 54)
}

// A tenant that another process is at work on keeps nobody from the others.
func TestMigrateNobodyWaits(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	db.migrated(t, notesFiles)
	db.makeTenants(t, 20)
	migrate(t, db.open(t, notesFiles))
	files := with(notesFiles, "tenant/002_b.sql", "alter table notes add more text;")
	one, other := db.open(t, files), db.open(t, files)
	blocker := db.admin(t)
	if _, err := blocker.Exec(bare(t), "begin; select * from tenant_t00001.notes"); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := one.Migrate(bare(t), &pgtenancy.MigrateOpts{Tenants: []string{"t00001"}, LockTimeout: time.Hour})
		check(t, "Migrate", err)
	})
	db.awaitBlocked(t, "alter table notes", true)
	wg.Go(func() {
		_, err := other.Migrate(bare(t), &pgtenancy.MigrateOpts{Parallel: 1})
		check(t, "Migrate", err)
	})
	await(t, "the other tenants", func() bool { return db.done(t, 2) == 19 })
	blocker.Exec(bare(t), "commit")
	wg.Wait()
	checkEqual(t, "done", db.done(t, 2), 20)
}
