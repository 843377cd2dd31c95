package pgtenancy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgtenancy/pgtenancy/internal/migration"
)

// GoMigration is a migration that is written in Go.
type GoMigration struct {
	// Name is that of the file in FleetConfig.Migrations that it stands in for, without ".sql": "tenant/003_backfill".
	Name string

	// Up and Down run in a transaction in the tenant's scope, or in the shared schemas, that also records the migration.
	// Committing tx ends a savepoint only, and rolling it back is an error. They are called again where they met a lock that
	// others held for too long. Up also runs where a schema is built only to look at it, in a transaction that is rolled back: for
	// each Backup and for Drift with DriftOpts.Fresh; and Restore and Clone may run it twice. So what it does elsewhere must bear being
	// repeated. It panics where Fleet was called. Down is nil for a migration that has no way back.
	Up   func(ctx context.Context, tx pgx.Tx) error
	Down func(ctx context.Context, tx pgx.Tx) error
}

// loadMigrations reads the directories shared and tenant, of which one may be missing, and adds the migrations in Go.
func loadMigrations(fsys fs.FS, funcs []GoMigration) (shared, tenant migrations, err error) {
	if fsys == nil && len(funcs) == 0 {
		return migrations{}, migrations{}, nil
	}
	byDir := map[string][]migration.Migration{}
	for _, g := range funcs {
		dir, name, _ := strings.Cut(g.Name, "/")
		if dir != "shared" && dir != "tenant" {
			return migrations{}, migrations{}, invalid("GoMigration.Name", g.Name, `must begin with "shared/" or "tenant/"`)
		}
		if g.Up == nil {
			return migrations{}, migrations{}, invalid("GoMigration.Up", g.Name, "must not be nil")
		}
		m := migration.Migration{Name: name, File: g.Name, Up: migration.Script{File: g.Name, Func: g.Up}}
		if g.Down != nil {
			m.Down = &migration.Script{File: g.Name, Func: g.Down}
		}
		byDir[dir] = append(byDir[dir], m)
	}
	found := len(funcs) > 0
	load := func(dir string) (migrations, error) {
		all, err := migration.Load(fsys, dir, byDir[dir])
		if errors.Is(err, fs.ErrNotExist) {
			return migrations{}, nil
		}
		if err != nil {
			return migrations{}, migrationFileError(err)
		}
		found = true
		return newMigrations(all)
	}
	if shared, err = load("shared"); err == nil {
		tenant, err = load("tenant")
	}
	if err == nil && !found {
		err = invalid("FleetConfig.Migrations", "", `must have a directory "shared" or "tenant" at its top; of an embed.FS that has them below another one, take fs.Sub`)
	}
	return shared, tenant, err
}

// migrationFileError tells what is wrong with a file in the library's own errors.
func migrationFileError(err error) error {
	var e *migration.Error
	switch {
	case !errors.As(err, &e):
		return fmt.Errorf("pgtenancy: read migrations: %w", err)
	case e.Line > 0:
		return &MigrationError{File: e.File, Line: e.Line, Err: errors.New(e.Msg)}
	}
	return invalid("FleetConfig.Migrations", e.File, e.Msg)
}

// MigrationError says which migration failed for which tenant, and where.
type MigrationError struct {
	Tenant string // the tenant's ID, "" for a shared migration and for a file that cannot be read
	File   string // "tenant/002_orders.sql"; "" where it failed before the first one
	Line   int    // in File, 1 for the first; 0 where it is not known
	Err    error  // PostgreSQL's own, where it was PostgreSQL's
}

// Error names the tenant, the file, the line and the error.
func (e *MigrationError) Error() string {
	var b strings.Builder
	b.WriteString("pgtenancy: ")
	if e.Tenant != "" {
		b.WriteString("tenant " + e.Tenant + ": ")
	}
	if e.File != "" {
		b.WriteString(e.File)
		if e.Line > 0 {
			b.WriteString(":" + strconv.Itoa(e.Line))
		}
		b.WriteString(": ")
	}
	b.WriteString(strings.TrimPrefix(e.Err.Error(), "pgtenancy: "))
	return b.String()
}

// Unwrap returns Err.
func (e *MigrationError) Unwrap() error { return e.Err }

// failedAt returns the error of a statement of a script, or with -1 of what goes around them. PostgreSQL says at which
// character it found an error of syntax or name.
func failedAt(tenant string, s *migration.Script, statement int, err error) *MigrationError {
	e := &MigrationError{Tenant: tenant, File: s.File, Err: err}
	if statement >= 0 {
		st := s.Statements[statement]
		e.Line = st.Line
		var pgErr *pgconn.PgError
		if errors.As(err, &pgErr) && pgErr.Position > 0 {
			at := 0
			for n := range st.SQL {
				if at++; at == int(pgErr.Position) {
					e.Line += strings.Count(st.SQL[:n], "\n")
					break
				}
			}
		}
	}
	return e
}

// MigrateError lists what Migrate could not do. Everything else is done, unless it was stopped.
type MigrateError struct {
	Failed []*MigrationError // ordered by tenant

	// Stopped says why it went no further: ErrMigrateStopped with the reason, the error of MigrateOpts.AfterWave, or a lost
	// connection. It is nil where all tenants were tried.
	Stopped error
}

// Error lists the first few of the failures.
func (e *MigrateError) Error() string {
	var parts []string
	if e.Stopped != nil {
		parts = append(parts, strings.TrimPrefix(e.Stopped.Error(), "pgtenancy: "))
	}
	if len(e.Failed) > 0 {
		parts = append(parts, summarize(len(e.Failed), func(i int) string {
			return strings.TrimPrefix(e.Failed[i].Error(), "pgtenancy: ")
		}))
	}
	return "pgtenancy: migrate: " + strings.Join(parts, ": ")
}

// Unwrap returns all failures.
func (e *MigrateError) Unwrap() []error {
	errs := make([]error, 0, len(e.Failed)+1)
	if e.Stopped != nil {
		errs = append(errs, e.Stopped)
	}
	for _, failed := range e.Failed {
		errs = append(errs, failed)
	}
	return errs
}

// MigrateOpts says how Migrate and MigrateDown work. The zero value goes through the whole fleet.
type MigrateOpts struct {
	// Tenants are the IDs of those to migrate. Defaults to all that are active or suspended.
	Tenants []string

	// Target is the version at which tenants' migrations end. Defaults to the newest. MigrateDown has an argument for it.
	Target int64

	// Parallel is the number of tenants that are migrated at a time. Defaults to ParallelDefault, and is at most the number of
	// connections that FleetConfig.Owner allows.
	Parallel int

	// Canary are the IDs of tenants that go first, and CanaryCount is how many others go with them. Where one of these fails,
	// no other tenant is tried. Defaults to none.
	Canary      []string
	CanaryCount int

	// WaveSize is how many tenants go together after the canaries: the next wave begins when all of them are done. Defaults to
	// all.
	WaveSize int

	// AfterWave is called between waves, the canaries' being the first: to look at error rates, or to wait for a while. An
	// error ends the run before the next wave. Defaults to none.
	AfterWave func(ctx context.Context, w Wave) error

	// MaxFailures and MaxFailureShare stop the run: no further tenant is begun when that many have failed, or that share of all
	// that needed work, as 0.01. Default to going on past any number of failures.
	MaxFailures     int
	MaxFailureShare float64

	// LockTimeout is how long a statement waits for a lock: for so long, new queries of the table queue up behind it. A
	// migration that does not get its locks is rolled back and tried again later, with pauses that grow and vary, until
	// LockRetry has passed since its first try; other tenants go on meanwhile. It does not count for statements that run in no
	// transaction, which wait without being in anybody's way. LockTimeout defaults to the lock_timeout that the owner's
	// connections have, and where that is 0 to LockTimeoutDefault; LockRetry to LockRetryDefault.
	LockTimeout time.Duration
	LockRetry   time.Duration

	// AllowOutOfOrder also runs migrations that were added below the version of a tenant, instead of ErrOutOfOrder.
	AllowOutOfOrder bool

	// DryRun changes nothing, and has the report say in Plan what would be done.
	DryRun bool

	// OnProgress is called for each tenant, after those that were sent together. Calls do not overlap, and a slow one holds the
	// run up. Defaults to none.
	OnProgress func(Progress)
}

// The defaults of MigrateOpts.
const (
	ParallelDefault    = 4
	LockTimeoutDefault = 500 * time.Millisecond
	LockRetryDefault   = 5 * time.Minute
)

// Wave is a number of tenants that were migrated together.
type Wave struct {
	Number int // 1 for the first
	Canary bool
	Done   int // tenants, those that failed among them
	Failed int
}

// Progress is how far Migrate has got.
type Progress struct {
	Tenant string // the ID of the tenant that is finished
	Err    error  // its error, nil where it is at its version now
	Wave   int    // its wave, 1 for the first
	Done   int    // tenants finished by this call, those that failed among them
	Failed int
	Total  int // tenants that needed work; it changes where other processes take some of them, or provision more

	Elapsed   time.Duration // since the first tenant was begun
	Rate      float64       // tenants finished in a second, since then
	Remaining time.Duration // for the rest, at that rate
}

// MigrateReport says what Migrate did.
type MigrateReport struct {
	Registry bool     // the registry was installed or upgraded
	Shared   []string // the shared migrations that ran, by name
	Tenants  int      // tenants that needed migrations and are at their version now
	Applied  int      // tenant migrations that ran, over all tenants
	Duration time.Duration
	Plan     *MigratePlan // of MigrateOpts.DryRun
}

// MigratePlan is what Migrate would do.
type MigratePlan struct {
	Registry bool               // the registry would be installed or upgraded
	Shared   []PlannedMigration // in their order
	Tenants  []PlannedTenants   // those that need the same together, the most first
}

// PlannedTenants are tenants that need the same migrations.
type PlannedTenants struct {
	Version    int64 // at which they are
	Tenants    []string
	Migrations []PlannedMigration // in their order
}

// PlannedMigration is one migration that would run.
type PlannedMigration struct {
	Version int64
	Name    string
	File    string
	SQL     string // its statements; "" for one in Go
	NoTx    bool   // it is no transaction
}

// Migrate installs or upgrades the registry, runs the shared migrations that have not run yet, then those of each tenant,
// several tenants at a time. Each migration of a tenant is a transaction of its own, which also records it. Suspended
// tenants are migrated too. Any number of processes may run it at once and share the work. Where there is nothing to do,
// that takes one query, whatever the number of tenants.
//
// Migrations run as the owner's role with the search_path and the setting that the tenant's statements have, and with
// row_security off: a statement that a policy would have filtered in silence fails instead. SET LOCAL row_security = on
// in a file asks for the filtering. What a file changes of PostgreSQL's settings ends with it.
//
// Before anything else it compares what the registry says has run with the migrations at hand. One that was changed or
// removed after it ran is ErrMigrationChanged, one that was added below a tenant's version ErrOutOfOrder, each in a
// *MigrateError that says where, and nothing is changed.
//
// A shared migration that fails ends it with a *MigrationError. A tenant's migration that fails ends that tenant's; the
// others go on, and the error is a *MigrateError that lists who failed at what. To go on later, whatever ended it, call
// Migrate again: what has been done is known for each tenant and migration. One that runs in no transaction is known
// statement by statement, and what a crash left of a statement is looked for and finished: an invalid index is dropped
// and built again.
//
// All migrations of a tenant, and several tenants where they go fast, are sent together, and only the last commit of what is
// sent together waits for the disk. What OnProgress and the report tell of has; of the rest a crash of the server may undo
// some, each migration whole and with its record. The report says what was done, also where there is an error. opts may be nil.
//
// When all is done and there were shared migrations, it looks at them as Open does, and may return ErrRLSBypassed.
func (f *Fleet) Migrate(ctx context.Context, opts *MigrateOpts) (*MigrateReport, error) {
	report, err := f.rollout(ctx, opts, nil)
	if len(report.Shared) > 0 { // Open has not seen these tables
		if bypassed := f.checkBypass(ctx); bypassed != nil {
			err = errors.Join(err, bypassed)
		}
	}
	return report, err
}

// MigrateDown takes tenants back to a version, 0 for before the first, by the ways down of their migrations, the newest
// first. Where one of these has none, that is an error and nothing is changed. It works as Migrate does in everything
// else, and leaves shared migrations alone. opts may be nil.
//
// A process whose migrations go further will migrate the tenants again when it calls Migrate.
func (f *Fleet) MigrateDown(ctx context.Context, version int64, opts *MigrateOpts) (*MigrateReport, error) {
	return f.rollout(ctx, opts, &version)
}

// BaselineOpts says what Baseline is about.
type BaselineOpts struct {
	// Tenants are IDs. Defaults to all that are active or suspended.
	Tenants []string

	// Shared records migrations of the shared schemas, instead of tenants'.
	Shared bool
}

// Baseline records that tenants have had all migrations up to a version, without running any: for schemas that were made
// by other means. It takes tenants at version 0. It also takes those that are at the version already, to record them
// anew: that is the way to accept that files were changed, renamed or removed after they ran, and to forget a migration that is
// unfinished. Others are left as they are, and are an error where they are named. It returns the number of tenants, or with
// Shared of shared schemas, for which it recorded anything new. opts may be nil.
func (f *Fleet) Baseline(ctx context.Context, version int64, opts *BaselineOpts) (int, error) {
	var o BaselineOpts
	if opts != nil {
		o = *opts
	}
	ms := &f.tenant
	if o.Shared {
		ms = &f.shared
	}
	n, ok := ms.upTo(version)
	if !ok || n == 0 {
		return 0, invalid("Baseline's version", strconv.FormatInt(version, 10), "must be that of a migration")
	}
	if o.Shared && o.Tenants != nil {
		return 0, invalid("BaselineOpts.Tenants", "", "must be nil with BaselineOpts.Shared")
	}
	if err := f.registryReady(ctx); err != nil {
		return 0, err
	}
	if o.Tenants != nil {
		var others []string
		err := f.owner.conns.QueryRow(ctx, `select coalesce(array_agg(i), '{}') from unnest($1::text[]) i where not exists (
			select from pgtenancy.tenants t where t.id = i and t.version in (0, $2) and `+migrated+`)`, o.Tenants, version).Scan(&others)
		if err != nil {
			return 0, fmt.Errorf("pgtenancy: baseline: %w", err)
		}
		if len(others) > 0 {
			return 0, invalid("BaselineOpts.Tenants", others[0], fmt.Sprintf("must be a tenant that is active or suspended, at version 0 or %d", version))
		}
	}
	total := 0
	for after := ""; ; {
		var page []string
		err := pgx.BeginTxFunc(ctx, f.owner.conns, pgx.TxOptions{BeginQuery: beginSQL}, func(tx pgx.Tx) (err error) {
			if o.Shared {
				page, err = lockShared(ctx, tx, version)
			} else {
				rows, _ := tx.Query(ctx, `select t.id from pgtenancy.tenants t
					where t.id > $1 and t.version in (0, $2) and `+migrated+` and ($3::text[] is null or t.id = any($3))
					order by t.id limit $4 for update`, after, version, o.Tenants, tenantsPage) // the error is in rows
				page, err = pgx.CollectRows(rows, pgx.RowTo[string])
			}
			if err != nil || len(page) == 0 {
				return err
			}
			recorded, err := baseline(ctx, tx, page, ms, n)
			total += recorded
			return err
		})
		if err != nil {
			return total, fmt.Errorf("pgtenancy: baseline: %w", err)
		}
		if o.Shared || len(page) < tenantsPage {
			break
		}
		after = page[len(page)-1]
	}
	if total > 0 {
		if err := f.tellAll(ctx); err != nil {
			return total, fmt.Errorf("pgtenancy: baseline: %w", err)
		}
	}
	return total, nil
}

// lockShared locks the shared schemas' record. It returns the ID under which the registry has them, or nothing where they are
// neither at version 0 nor at the version.
func lockShared(ctx context.Context, tx pgx.Tx, version int64) ([]string, error) {
	if _, err := tx.Exec(ctx, `select pg_advisory_xact_lock($1)`, registryLock); err != nil {
		return nil, err
	}
	rows, _ := tx.Query(ctx, `select '' from pgtenancy.registry where shared_version in (0, $1)`, version) // the error is in rows
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// baseline records that the tenants of a page have had the first n migrations and no others, and returns for how many that is
// new. The one ID of the shared schemas is "".
func baseline(ctx context.Context, tx pgx.Tx, page []string, ms *migrations, n int) (int, error) {
	var versions []int64
	var names, checksums []string
	for i := range ms.all[:n] {
		m := &ms.all[i]
		versions, names, checksums = append(versions, m.Version), append(names, m.Name), append(checksums, m.Checksum)
	}
	if _, err := tx.Exec(ctx, `delete from pgtenancy.unfinished where tenant_id = any($1)`, page); err != nil {
		return 0, err
	}
	if _, err := tx.Exec(ctx, `delete from pgtenancy.migrations where tenant_id = any($1) and version <> all($2)`, page, versions); err != nil {
		return 0, err
	}
	if _, err := tx.Exec(ctx, `insert into pgtenancy.migrations as old (tenant_id, version, name, checksum)
		select t, m.version, m.name, m.checksum from unnest($1::text[]) t, unnest($2::bigint[], $3::text[], $4::text[]) m (version, name, checksum)
		on conflict (tenant_id, version) do update set name = excluded.name, checksum = excluded.checksum
			where (old.name, old.checksum) <> (excluded.name, excluded.checksum)`, page, versions, names, checksums); err != nil {
		return 0, err
	}
	to := standing{versions[n-1], ms.digests[n]}
	var tag pgconn.CommandTag
	var err error
	if page[0] == "" {
		tag, err = tx.Exec(ctx, `update pgtenancy.registry set shared_version = $1, shared_digest = $2
			where (shared_version, shared_digest) <> ($1, $2)`, to.version, to.digest)
	} else {
		tag, err = tx.Exec(ctx, `update pgtenancy.tenants set version = $2, digest = $3, updated_at = now()
			where id = any($1) and (version, digest) <> ($2, $3)`, page, to.version, to.digest)
	}
	return int(tag.RowsAffected()), err
}

// FleetStatus is where the schemas of a fleet stand.
type FleetStatus struct {
	Newest   int64             // the version of the newest tenant migration, 0 where there is none
	Shared   SchemaStatus      // of the shared schemas
	Tenants  []SchemaStatus    // by version
	Problems []*MigrationError // for which Migrate would do nothing; each is of all tenants with it, and names one of them

	// Unfinished are the migrations that run in no transaction and are under way, or were when something crashed. Migrate
	// finishes these.
	Unfinished []UnfinishedMigration
}

// SchemaStatus is where some schemas stand.
type SchemaStatus struct {
	Version int64
	Count   int      // of schemas
	Pending []string // the migrations that they need, by name
}

// UnfinishedMigration is a migration that runs in no transaction and has begun.
type UnfinishedMigration struct {
	Tenant  string // "" for a shared one
	Version int64
	Began   time.Time // its present statement
}

// Status says where the schemas stand and what they need. It changes nothing. It is one query, and one more for each group
// of tenants that have had other migrations than those at hand.
func (f *Fleet) Status(ctx context.Context) (*FleetStatus, error) {
	for {
		status, err := f.status(ctx)
		if !errors.Is(err, errClaimed) { // a tenant with a history to look at moved on meanwhile
			return status, err
		}
	}
}

func (f *Fleet) status(ctx context.Context) (*FleetStatus, error) {
	s, err := f.survey(ctx, nil)
	if err != nil {
		return nil, err
	}
	status := &FleetStatus{Newest: f.tenant.newest(), Unfinished: s.unfinished}
	status.Shared = SchemaStatus{Version: s.shared.version, Count: 1}
	shared := planner{fleet: f, ms: &f.shared, target: f.shared.newest()}
	tenants := planner{fleet: f, ms: &f.tenant, target: f.tenant.newest()}
	add := func(p *planner, of string, at standing, st *SchemaStatus) error {
		tasks, err := p.tasks(ctx, of, at)
		var problems *MigrateError
		if errors.As(err, &problems) {
			status.Problems = append(status.Problems, problems.Failed...)
			return nil
		}
		for _, t := range tasks {
			st.Pending = append(st.Pending, t.m.Name)
		}
		return err
	}
	if err := add(&shared, "", s.shared, &status.Shared); err != nil {
		return nil, err
	}
	for _, g := range s.groups {
		st := SchemaStatus{Version: g.at.version, Count: g.count}
		if err := add(&tenants, g.example, g.at, &st); err != nil {
			return nil, err
		}
		if n := len(status.Tenants); n > 0 && status.Tenants[n-1].Version == st.Version && slices.Equal(status.Tenants[n-1].Pending, st.Pending) {
			status.Tenants[n-1].Count += st.Count
			continue
		}
		status.Tenants = append(status.Tenants, st)
	}
	return status, nil
}
