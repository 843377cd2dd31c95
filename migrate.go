package pgtenancy

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgtenancy/pgtenancy/internal/ident"
	"github.com/pgtenancy/pgtenancy/internal/sqlsplit"
	"github.com/pgtenancy/pgtenancy/internal/wire"
)

// migration is one file.
type migration struct {
	version    int64
	name       string // as the registry records it
	file       string // its path in the file system
	checksum   string
	source     string
	statements []sqlsplit.Statement
}

var migrationFile = regexp.MustCompile(`^([0-9]+)_([A-Za-z0-9_-]+)\.sql$`)

// loadMigrations reads the directories shared and tenant. One of the two may be missing.
func loadMigrations(fsys fs.FS) (shared, tenant []migration, err error) {
	shared, errShared := loadDirectory(fsys, "shared")
	tenant, errTenant := loadDirectory(fsys, "tenant")
	missing := errors.Is(errShared, fs.ErrNotExist)
	switch {
	case missing && errors.Is(errTenant, fs.ErrNotExist):
		return nil, nil, invalid("FleetConfig.Migrations", "", `must have a directory "shared" or "tenant" at its top; of an embed.FS that has them below another one, take fs.Sub`)
	case errShared != nil && !missing:
		return nil, nil, errShared
	case errTenant != nil && !errors.Is(errTenant, fs.ErrNotExist):
		return nil, nil, errTenant
	}
	return shared, tenant, nil
}

func loadDirectory(fsys fs.FS, dir string) ([]migration, error) {
	entries, err := fs.ReadDir(fsys, dir)
	if err != nil {
		return nil, fmt.Errorf("pgtenancy: read migrations: %w", err)
	}
	var ms []migration
	for _, e := range entries {
		if e.IsDir() || path.Ext(e.Name()) != ".sql" {
			continue
		}
		file := path.Join(dir, e.Name())
		parts := migrationFile.FindStringSubmatch(e.Name())
		if parts == nil {
			return nil, invalid("FleetConfig.Migrations", file, "must be named NNN_name.sql, with letters, digits, '-' and '_' in its name")
		}
		version, err := strconv.ParseInt(parts[1], 10, 64)
		if err != nil {
			return nil, invalid("FleetConfig.Migrations", file, "must have a number that fits into 64 bits")
		}
		source, err := fs.ReadFile(fsys, file)
		if err != nil {
			return nil, fmt.Errorf("pgtenancy: read migrations: %w", err)
		}
		m := migration{version: version, name: strings.TrimSuffix(e.Name(), ".sql"), file: file, source: string(source)}
		sum := sha256.Sum256(source)
		m.checksum = hex.EncodeToString(sum[:])
		if err := m.split(); err != nil {
			return nil, err
		}
		ms = append(ms, m)
	}
	slices.SortFunc(ms, func(a, b migration) int { return cmp.Compare(a.version, b.version) })
	for i := range ms {
		switch want := int64(i + 1); {
		case i > 0 && ms[i].version == ms[i-1].version:
			return nil, invalid("FleetConfig.Migrations", ms[i].file, "must not have the number of "+ms[i-1].file)
		case ms[i].version != want:
			return nil, invalid("FleetConfig.Migrations", ms[i].file, fmt.Sprintf("must not leave a gap: number %d is missing", want))
		}
	}
	return ms, nil
}

// split fills in the statements.
func (m *migration) split() error {
	var err error
	if m.statements, err = sqlsplit.Split(m.source); err != nil {
		e := &MigrationError{File: m.file, Err: err}
		var splitErr *sqlsplit.Error
		if errors.As(err, &splitErr) {
			e.Line, e.Err = splitErr.Line, errors.New(splitErr.Msg)
		}
		return e
	}
	if len(m.statements) == 0 {
		return invalid("FleetConfig.Migrations", m.file, "must have a statement")
	}
	for _, st := range m.statements {
		if _, err := checkStatement(inTx, st.SQL); err != nil {
			return &MigrationError{File: m.file, Line: st.Line, Err: err}
		}
	}
	return nil
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
	b.WriteString(e.Err.Error())
	return b.String()
}

// Unwrap returns Err.
func (e *MigrationError) Unwrap() error { return e.Err }

// failed returns the error of statement i. PostgreSQL says at which character it found an error of syntax or name.
func (m *migration) failed(tenant string, i int, err error) *MigrationError {
	e := &MigrationError{Tenant: tenant, File: m.file, Err: err}
	if i < len(m.statements) {
		st := m.statements[i]
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

// MigrateError lists what Migrate could not do. Everything else is done.
type MigrateError struct {
	Failed []*MigrationError // ordered by tenant
}

// Error lists the first few of the failures.
func (e *MigrateError) Error() string {
	return "pgtenancy: migrate: " + summarize(len(e.Failed), func(i int) string {
		return strings.TrimPrefix(e.Failed[i].Error(), "pgtenancy: ")
	})
}

// Unwrap returns all failures.
func (e *MigrateError) Unwrap() []error {
	errs := make([]error, len(e.Failed))
	for i := range e.Failed {
		errs[i] = e.Failed[i]
	}
	return errs
}

// MigrateOpts says how Migrate works.
type MigrateOpts struct {
	// Parallel is the number of tenants that are migrated at a time. Defaults to 4, and is at most the number of connections
	// that FleetConfig.Owner allows.
	Parallel int

	// OnProgress is called after each tenant. Calls do not overlap. Defaults to none.
	OnProgress func(Progress)
}

// ParallelDefault is how many tenants Migrate works on at a time unless MigrateOpts says otherwise.
const ParallelDefault = 4

// Progress is how far Migrate has got.
type Progress struct {
	Tenant string // the ID of the tenant that is finished
	Err    error  // its error, nil where it is at the newest version now
	Done   int    // tenants finished, those that failed among them
	Failed int
	Total  int // tenants that needed work; it grows where one is provisioned meanwhile by an older process
}

// MigrateReport says what Migrate did.
type MigrateReport struct {
	Registry bool     // the registry was installed or upgraded
	Shared   []string // the shared migrations that ran, by name
	Tenants  int      // tenants that needed migrations and are at the newest version now
	Applied  int      // tenant migrations that ran, over all tenants
	Duration time.Duration
}

// Migrate installs or upgrades the registry, runs the shared migrations that have not run yet, then those of each tenant,
// several tenants at a time. Each migration of a tenant is a transaction of its own, which also records it. Suspended
// tenants are migrated too. Any number of processes may run it at once: what one has done, the others skip.
//
// Migrations run as the owner's role with the search_path and the setting that the tenant's statements have, and with
// row_security off: a statement that a policy would have filtered in silence fails instead. SET LOCAL row_security = on
// in a file asks for the filtering. What a file changes of PostgreSQL's settings ends with it.
//
// A shared migration that fails ends it with a *MigrationError. A tenant's migration that fails ends that tenant's; the
// others go on, and the error is a *MigrateError that lists who failed at what. To go on later, call Migrate again.
// The report says what was done in either case. opts may be nil.
func (f *Fleet) Migrate(ctx context.Context, opts *MigrateOpts) (*MigrateReport, error) {
	var o MigrateOpts
	if opts != nil {
		o = *opts
	}
	if o.Parallel <= 0 {
		o.Parallel = ParallelDefault
	}
	o.Parallel = min(o.Parallel, int(f.owner.cfg.Conns.MaxConns))
	started := time.Now()
	report := &MigrateReport{}
	defer func() { report.Duration = time.Since(started) }()

	from, err := f.installRegistry(ctx)
	if err != nil {
		return report, err
	}
	report.Registry = from < registryVersion
	f.ready.Store(true)
	if report.Shared, err = f.migrateShared(ctx); err != nil {
		return report, err
	}
	return report, f.migrateTenants(ctx, o, report)
}

// migrateShared runs shared migrations, one transaction each, under the registry's lock.
func (f *Fleet) migrateShared(ctx context.Context) (ran []string, err error) {
	err = f.withOwner(ctx, func(wc *conn) error {
		var version int64
		if err := wc.Pgx().QueryRow(ctx, `select coalesce(max(version), 0) from pgtenancy.migrations where tenant_id = ''`).Scan(&version); err != nil {
			return fmt.Errorf("pgtenancy: migrate: %w", err)
		}
		for i := range f.shared {
			m := &f.shared[i]
			if m.version <= version {
				continue
			}
			did, err := f.migrateOne(ctx, wc, m, Tenant{}, &f.owner.shared,
				wire.Step{SQL: `select pg_catalog.pg_advisory_xact_lock($1)`, Args: []any{registryLock}},
				// A statement of its own, and so a snapshot taken under the lock.
				wire.Step{SQL: `select where not exists (select from pgtenancy.migrations where tenant_id = '' and version >= $1)`, Args: []any{m.version}})
			if err != nil {
				return err
			}
			if did {
				ran = append(ran, m.name)
			}
		}
		return nil
	})
	return ran, err
}

// migrateTenants runs tenant migrations until no tenant that has not failed is behind.
func (f *Fleet) migrateTenants(ctx context.Context, o MigrateOpts, report *MigrateReport) error {
	if len(f.tenant) == 0 {
		return nil
	}
	newest := f.tenant[len(f.tenant)-1].version
	var mu sync.Mutex
	var p Progress
	failed := map[string]*MigrationError{}
	for {
		behind, err := f.behind(ctx, newest)
		if err != nil {
			return errors.Join(err, migrateError(failed))
		}
		behind = slices.DeleteFunc(behind, func(t Tenant) bool { return failed[t.id] != nil })
		if len(behind) == 0 {
			break
		}
		p.Total += len(behind)
		items := func(yield func(Tenant, error) bool) {
			for _, t := range behind {
				if !yield(t, nil) {
					return
				}
			}
		}
		if err := parallel(ctx, o.Parallel, items, func(t Tenant) {
			applied, err := f.migrateTenant(ctx, t)
			f.directory.forget(t.id)
			mu.Lock()
			defer mu.Unlock()
			report.Applied += applied
			p.Tenant, p.Err = t.id, nil
			p.Done++
			if err != nil {
				p.Err = err
				p.Failed++
				failed[t.id] = err
			} else {
				report.Tenants++
			}
			if o.OnProgress != nil {
				o.OnProgress(p)
			}
		}); err != nil {
			return errors.Join(fmt.Errorf("pgtenancy: migrate: %w", err), migrateError(failed))
		}
	}
	return migrateError(failed)
}

func migrateError(failed map[string]*MigrationError) error {
	if len(failed) == 0 {
		return nil
	}
	e := &MigrateError{}
	for _, err := range failed {
		e.Failed = append(e.Failed, err)
	}
	slices.SortFunc(e.Failed, func(a, b *MigrationError) int { return strings.Compare(a.Tenant, b.Tenant) })
	return e
}

// behind returns the tenants that are below a version.
func (f *Fleet) behind(ctx context.Context, version int64) ([]Tenant, error) {
	rows, _ := f.owner.conns.Query(ctx, `select `+tenantColumns+` from pgtenancy.tenants t
		where t.version < $1 and t.state in ('active', 'suspended') order by t.id`, version) // the error is in rows
	ts, err := pgx.CollectRows(rows, scanTenant)
	if err != nil {
		return nil, fmt.Errorf("pgtenancy: migrate: list tenants: %w", err)
	}
	return ts, nil
}

// migrateTenant runs what t has not had yet.
func (f *Fleet) migrateTenant(ctx context.Context, t Tenant) (applied int, failed *MigrationError) {
	err := f.withOwner(ctx, func(wc *conn) error {
		for i := range f.tenant {
			m := &f.tenant[i]
			if m.version <= t.version {
				continue
			}
			// The row's lock keeps other processes from this tenant; its version says whether they were faster.
			did, err := f.migrateOne(ctx, wc, m, t, f.ownerScope(t), wire.Step{
				SQL: `update pgtenancy.tenants set version = $2, updated_at = now()
					where id = $1 and version = $2 - 1 and state in ('active', 'suspended')`,
				Args: []any{t.id, m.version},
			})
			if err != nil {
				return err
			}
			if did {
				applied++
			}
		}
		return nil
	})
	if err != nil && !errors.As(err, &failed) {
		failed = &MigrationError{Tenant: t.id, Err: err}
	}
	return applied, failed
}

// migrateOne runs a migration in a transaction. claim locks what the migration is about; where its last step touches no
// row, the migration has been run by somebody else, and false is returned.
func (f *Fleet) migrateOne(ctx context.Context, wc *conn, m *migration, t Tenant, scope *wire.Scope, claim ...wire.Step) (did bool, err error) {
	started := time.Now()
	fail := func(i int, err error) (bool, error) {
		if wc.TxStatus() != 'I' {
			_ = wc.Rollback(ctx) // a connection on which that fails is closed
		}
		if t.id != "" {
			err = notFound(err)
		}
		return false, m.failed(t.id, i, err)
	}
	run := append([]wire.Step{{SQL: beginSQL}}, claim...)
	tags, err := wc.Run(ctx, append(run, m.before(scope)...))
	if err != nil {
		return fail(len(m.statements), err)
	}
	if tags[len(claim)].RowsAffected() == 0 {
		return false, wc.Rollback(ctx)
	}
	if tags, err = wc.Run(ctx, m.steps()); err != nil {
		return fail(len(tags), err)
	}
	_, err = wc.Run(ctx, []wire.Step{
		{
			SQL: `insert into pgtenancy.migrations (tenant_id, version, name, checksum, duration)
				values ($1, $2, $3, $4, make_interval(secs => $5))`,
			Args: []any{t.id, m.version, m.name, m.checksum, time.Since(started).Seconds()},
		},
		{SQL: "commit"},
	})
	if err != nil {
		return fail(len(m.statements), err)
	}
	return true, nil
}

// rowSecurity returns the statement that sets row_security for the rest of a transaction.
func rowSecurity(value string) string {
	return "select pg_catalog.set_config('row_security', " + ident.Literal(value) + ", true)"
}

// mayChangeSettings finds SET LOCAL and set_config, and much else, which does no harm.
var mayChangeSettings = regexp.MustCompile(`(?i)\bset(_config)?\b`)

// before returns the steps that go before m's statements.
func (m *migration) before(scope *wire.Scope) []wire.Step {
	steps := []wire.Step{{Scope: scope}, {SQL: rowSecurity("off")}}
	if mayChangeSettings.MatchString(m.source) {
		steps = append(steps, wire.Step{SQL: saveSettings})
	}
	return steps
}

// steps returns m's statements, and after them what undoes their changes of settings: what comes next in the transaction
// is ours, or another file.
func (m *migration) steps() []wire.Step {
	var steps []wire.Step
	for _, st := range m.statements {
		steps = append(steps, wire.Step{SQL: st.SQL})
	}
	if mayChangeSettings.MatchString(m.source) {
		steps = append(steps, wire.Step{SQL: restoreRole}, wire.Step{SQL: restoreSettings})
	}
	return steps
}

// PostgreSQL cannot undo SET LOCAL before the transaction ends. So the values are kept in a setting of our own, which ends
// with the transaction too. role is none of pg_settings, and the right to the others may depend on it.
const (
	saveSettings = `select pg_catalog.set_config('pgtenancy.saved', (pg_catalog.jsonb_object_agg(s.name, s.setting)
			|| pg_catalog.jsonb_build_object('role', pg_catalog.current_setting('role')))::text, true)
		from pg_catalog.pg_settings s where s.source = 'session'`
	restoreRole     = `select pg_catalog.set_config('role', pg_catalog.current_setting('pgtenancy.saved')::pg_catalog.jsonb ->> 'role', true)`
	restoreSettings = `select pg_catalog.set_config(s.name, v.value, true)
		from pg_catalog.pg_settings s,
			lateral (select coalesce(pg_catalog.current_setting('pgtenancy.saved')::pg_catalog.jsonb ->> s.name, s.reset_val) as value) v
		where s.source = 'session' and s.name not like 'transaction%' and s.setting <> v.value`
)
