package pgtenancy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy/internal/catalog"
	"github.com/pgtenancy/pgtenancy/internal/ident"
	"github.com/pgtenancy/pgtenancy/internal/layout"
	"github.com/pgtenancy/pgtenancy/internal/migration"
	"github.com/pgtenancy/pgtenancy/internal/wire"
)

// BackupOpts says what Backup writes, and how.
type BackupOpts struct {
	// Tenants are the IDs of those to back up, of any state but Provisioning: one that is deleted has its data until a purge begins.
	// Defaults to nil, for all that are active or suspended; a list without an ID is for none.
	Tenants []string

	// Parallel is the number of tenants at a time. Defaults to ParallelDefault. It is at most one less than the number of
	// connections that FleetConfig.Owner allows, since one more holds the snapshot.
	Parallel int

	// Shared are shared tables of which the backup of a tenant also has its rows, as {"public", "users"}: those that row level
	// security shows to the tenant, but for those of Policy.Global that are everybody's. The owner must be bound by the policies, as
	// Policy has it. A table comes after those that it references. Defaults to none.
	Shared []pgx.Identifier

	// OnProgress is called after each tenant. Calls do not overlap. Defaults to none.
	OnProgress func(BackupProgress)
}

// BackupProgress is how far Backup has got.
type BackupProgress struct {
	Tenant string // the ID of the tenant that is finished
	Err    error  // its error, nil where it has been backed up
	Object BackupObject

	Done    int // tenants finished, those that failed among them
	Failed  int
	Total   int // tenants to back up
	Elapsed time.Duration
}

// BackupObject is the backup of one tenant.
type BackupObject struct {
	Tenant string // its ID
	Name   string // in the store
	Rows   int64
	Bytes  int64 // as they are in the store, compressed

	// Drift is how the schema differs from what its migrations make: see Fleet.Backup.
	Drift []Difference
}

// BackupReport says what Backup wrote.
type BackupReport struct {
	Objects  []BackupObject // ordered by tenant
	Rows     int64
	Bytes    int64
	Waves    int // snapshots that were taken
	Duration time.Duration
}

// BackupError lists the tenants that could not be backed up. All others are.
type BackupError struct {
	Failed []TenantError // ordered by ID
}

// Error lists the first few of the failures.
func (e *BackupError) Error() string {
	return "pgtenancy: backup: " + summarize(len(e.Failed), func(i int) string { return e.Failed[i].Error() })
}

// Unwrap returns the errors of all tenants that failed.
func (e *BackupError) Unwrap() []error {
	errs := make([]error, len(e.Failed))
	for i := range e.Failed {
		errs[i] = &e.Failed[i]
	}
	return errs
}

// A snapshot holds back vacuum in the whole database. So a wave of tenants has one of its own, and none of them is begun when
// the wave is older than this: the snapshot ends with the tenants that are under way then.
const (
	waveSize    = 256
	waveTime    = 2 * time.Minute
	waveTables  = 512 // that one transaction reads: each is a lock or two until it ends
	backupTries = 4   // of a tenant that is being changed meanwhile
	backupLock  = "10s"
)

// Backup writes a backup of each tenant to store: one object, named by the ID and the moment,
// "acme/20060102T150405.000000Z.tar.gz", so that the last by name is the newest. It stands for itself. It has the rows of all
// tables and the state of all sequences, the migrations that built the schema, what the registry says of the tenant, and
// checksums of all of it; see Manifest. It is a tar file, compressed with gzip, that can be unpacked without this library. The moment
// is by the database's clock, in UTC. Store.List with the prefix "acme/" has those of acme, and without the slash those of acme-2
// too. opts may be nil.
//
// All rows of one tenant are of one moment, while the application goes on writing; they are read without locks that it would
// notice. Tenants are read in waves of up to 256, each from one snapshot, in which no tenant is begun after two minutes, so
// that vacuum is not held back for long: only by the largest tenants. A tenant that is migrated or whose tables are altered or
// truncated meanwhile is read again. Memory depends on neither the size of tables nor the number of tenants, but for the
// report.
//
// Not in it are roles and grants but what Provision grants, extensions, shared schemas but for BackupOpts.Shared, large
// objects, and the rows of foreign tables. Rows that the owner's role may not see, by a policy that is forced on it, are an error.
// Migrations in Go are not in it either: a restore needs the same ones at hand.
//
// A restore builds the schema by its migrations. So Backup compares the schema with what they make, which it finds out by
// building it in a transaction that it rolls back, once for each version, the migrations in Go with it. One that differs is
// backed up, since its rows are what matters, and BackupObject.Drift says how: make it right, or Restore will want to be told
// what to do. A tenant whose history is not that of the migrations at hand cannot be backed up: ErrMigrationChanged. Nor can one
// with a migration that was begun and is not finished, before the next Migrate.
//
// It goes on past a tenant that fails, and returns a *BackupError that lists those. It stops early when ctx is cancelled or the
// database cannot be reached, and returns that error then, joined with those of the tenants. The report says what was
// written, also where there is an error. An object is there as a whole or not at all, whatever ends the call: calling it again
// writes new ones. Deleting old ones is the service's, with Store.List and Store.Delete.
//
// This is for one tenant's sake: to have last week's data of one customer, beside the present or in its place, or to move them.
// It does not replace the backup of the whole cluster, with pgBackRest or its like, which alone brings back everything up to
// the last transaction; and pg_dump is right for the registry and the shared schemas. Have both.
func (f *Fleet) Backup(ctx context.Context, store Store, opts *BackupOpts) (*BackupReport, error) {
	b := &backup{fleet: f, store: store, report: &BackupReport{}, started: time.Now(), catalog: catalog.New(), built: map[int64]builtShape{}, diffs: map[[2]catalog.Shape][]Difference{}}
	if opts != nil {
		b.opts = *opts
	}
	defer func() { b.report.Duration = time.Since(b.started) }()
	err := b.run(ctx)
	slices.SortFunc(b.report.Objects, func(x, y BackupObject) int { return strings.Compare(x.Tenant, y.Tenant) })
	if len(b.failed) > 0 {
		slices.SortFunc(b.failed, func(x, y TenantError) int { return strings.Compare(x.Tenant.id, y.Tenant.id) })
		err = errors.Join(err, &BackupError{b.failed})
	}
	return b.report, err
}

// backup is one call of Backup.
type backup struct {
	fleet   *Fleet
	store   Store
	opts    BackupOpts
	shared  []ManifestTable
	own     []string          // for each of these the condition for the tenant's rows among those that it sees; "" for all
	files   map[string][]byte // the tenants' migrations, as they were when the fleet was opened
	server  string
	started time.Time

	catalog *catalog.Catalog
	built   map[int64]builtShape              // by version
	diffs   map[[2]catalog.Shape][]Difference // of two shapes

	mu     sync.Mutex
	report *BackupReport
	failed []TenantError
	total  int
	again  []string // tenants for another wave
	tries  map[string]int
}

// builtShape is what migrations make, or why they make nothing.
type builtShape struct {
	shape catalog.Shape
	err   error
}

func (b *backup) run(ctx context.Context) error {
	f := b.fleet
	if b.opts.Parallel <= 0 {
		b.opts.Parallel = ParallelDefault
	}
	b.opts.Parallel = min(b.opts.Parallel, int(f.owner.cfg.Conns.MaxConns)-1)
	if b.opts.Parallel < 1 {
		return invalid("FleetConfig.Owner", "", "must allow two connections for Backup: pool_max_conns is 1")
	}
	if err := f.registryReady(ctx); err != nil {
		return err
	}
	if err := b.readFiles(); err != nil {
		return err
	}
	if err := b.readShared(ctx); err != nil {
		return err
	}
	b.tries = map[string]int{}
	if b.opts.Tenants != nil {
		return b.named(ctx, unique(b.opts.Tenants))
	}
	const which = ` from pgtenancy.tenants t where ` + migrated
	if err := f.owner.conns.QueryRow(ctx, `select count(*)`+which).Scan(&b.total); err != nil {
		return fmt.Errorf("pgtenancy: backup: list tenants: %w", err)
	}
	for after := ""; ; {
		rows, _ := f.owner.conns.Query(ctx, `select t.id`+which+` and t.id > $1 order by t.id limit $2`, after, waveSize) // the error is in rows
		ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return fmt.Errorf("pgtenancy: backup: list tenants: %w", err)
		}
		if err := b.waves(ctx, ids); err != nil || len(ids) < waveSize {
			return err
		}
		after = ids[len(ids)-1]
	}
}

// named backs up tenants by ID.
func (b *backup) named(ctx context.Context, ids []string) error {
	var unknown []string
	err := b.fleet.owner.conns.QueryRow(ctx, `select coalesce(array_agg(i), '{}') from unnest($1::text[]) i
		where not exists (select from pgtenancy.tenants t where t.id = i and t.state <> 'provisioning')`, ids).Scan(&unknown)
	if err != nil {
		return fmt.Errorf("pgtenancy: backup: %w", err)
	}
	if len(unknown) > 0 {
		return fmt.Errorf("%w: %s", ErrTenantNotFound, strings.Join(unknown[:min(len(unknown), 3)], ", "))
	}
	b.total = len(ids)
	for part := range slices.Chunk(ids, waveSize) {
		if err := b.waves(ctx, part); err != nil {
			return err
		}
	}
	return nil
}

// readFiles reads the migrations again, which must be what the fleet has.
func (b *backup) readFiles() error {
	b.files = map[string][]byte{}
	var funcs []migration.Migration
	for i := range b.fleet.tenant.all {
		m := &b.fleet.tenant.all[i]
		if m.Up.Func != nil {
			funcs = append(funcs, *m)
			continue
		}
		text, err := fs.ReadFile(b.fleet.files, m.File)
		if err != nil {
			return fmt.Errorf("pgtenancy: backup: read migrations: %w", err)
		}
		b.files[m.File] = text
	}
	again, err := loadCarried(b.files, funcs)
	if err != nil {
		return err
	}
	if n := len(again.all); again.digest(n) != b.fleet.tenant.digest(n) {
		return fmt.Errorf("%w: since the fleet was opened", ErrMigrationChanged)
	}
	return nil
}

// readShared looks at BackupOpts.Shared.
func (b *backup) readShared(ctx context.Context) error {
	if len(b.opts.Shared) == 0 {
		return nil
	}
	for _, name := range b.opts.Shared {
		text := strings.Join(name, ".")
		if len(name) != 2 || !slices.Contains(b.fleet.pool.cfg.SharedSchemas, name[0]) {
			return invalid("BackupOpts.Shared", text, "must have one of PoolConfig.SharedSchemas and a name")
		}
		if err := invalid("BackupOpts.Shared", text, ident.CheckName(name[1])); err != nil {
			return err
		}
	}
	return b.fleet.withOwner(ctx, func(wc *conn) error {
		for _, name := range b.opts.Shared {
			t, err := readSharedTable(ctx, wc, name[0], name[1])
			if err != nil {
				return err
			}
			b.shared = append(b.shared, t)
			// Rows that are everybody's are not the tenant's to restore.
			var own string
			err = wc.Pgx().QueryRow(ctx, `select coalesce(max(pg_catalog.pg_get_expr(p.polqual, p.polrelid)), '') from pg_catalog.pg_policy p
				where p.polrelid = $1::text::pg_catalog.regclass and p.polname = $2
					and exists (select from pg_catalog.pg_policy g where g.polrelid = p.polrelid and g.polname = $3)`,
				ident.QuoteAll(name...), isolationPolicy, globalPolicy).Scan(&own)
			if err != nil {
				return fmt.Errorf("pgtenancy: shared table %s: %w", strings.Join(name, "."), err)
			}
			b.own = append(b.own, own)
		}
		return nil
	})
}

// readSharedTable returns a shared table, which must be one whose policies the owner is bound by.
func readSharedTable(ctx context.Context, wc *conn, schema, name string) (ManifestTable, error) {
	text := schema + "." + name
	layouts, err := layout.Read(ctx, wc.Pgx(), []string{schema})
	if err != nil {
		return ManifestTable{}, fmt.Errorf("pgtenancy: shared table %s: %w", text, err)
	}
	i := slices.IndexFunc(layouts[0].Tables, func(t layout.Table) bool { return t.Name == name })
	if i < 0 {
		return ManifestTable{}, invalid("BackupOpts.Shared", text, "must be a table")
	}
	var bound bool
	if err := wc.Pgx().QueryRow(ctx, `select pg_catalog.row_security_active($1)`, ident.QuoteAll(schema, name)).Scan(&bound); err != nil {
		return ManifestTable{}, fmt.Errorf("pgtenancy: shared table %s: %w", text, err)
	}
	if !bound {
		return ManifestTable{}, invalid("BackupOpts.Shared", text,
			"must be a table with row level security that binds the owner's role: it is forced, and the role neither is a superuser nor has BYPASSRLS")
	}
	t := manifestTable(&layouts[0].Tables[i])
	t.Schema = schema
	return t, nil
}

func manifestTable(t *layout.Table) ManifestTable {
	m := ManifestTable{Name: t.Name}
	for _, c := range t.Columns {
		m.Columns = append(m.Columns, ManifestColumn(c))
	}
	return m
}

// waves backs up some tenants, in as many waves as that takes.
func (b *backup) waves(ctx context.Context, ids []string) error {
	for len(ids) > 0 {
		left, err := b.wave(ctx, ids)
		if err != nil {
			return err
		}
		ids = left
	}
	return nil
}

// member is a tenant of a wave, as the snapshot has it.
type member struct {
	Tenant            // whose schema is the one that has its data now
	registered string // its own, which is another one where it is deleted
	digest     int64
	domains    []string
	unfinished bool
	purging    bool
	layout     layout.Layout
	shape      catalog.Shape
}

// snapshot is one for the tenants of a wave.
type snapshot struct {
	id string // as PostgreSQL exported it
	at time.Time
}

// wave backs up tenants from one snapshot, and returns those that are left for another.
func (b *backup) wave(ctx context.Context, ids []string) (left []string, err error) {
	f := b.fleet
	// Two calls that each have a connection and wait for one more would wait for each other.
	select {
	case <-f.waves:
		defer func() { f.waves <- struct{}{} }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	b.report.Waves++
	err = f.withOwner(ctx, func(wc *conn) error {
		if len(ids) > driftKeep {
			defer func() { _ = wc.Pgx().Close(context.WithoutCancel(ctx)) }()
		}
		before, err := b.list(ctx, wc, ids)
		if err != nil {
			return err
		}
		if err := b.shapes(ctx, wc, before); err != nil {
			return err
		}

		// Nothing that ends an idle session may end this one.
		_, err = wc.Run(ctx, []wire.Step{
			{SQL: "begin isolation level repeatable read read only"},
			{SQL: "select pg_catalog.set_config('idle_in_transaction_session_timeout', '0', true)"},
		})
		if err != nil {
			return fmt.Errorf("pgtenancy: backup: %w", err)
		}
		defer func() { _ = wc.Rollback(ctx) }() // a connection on which that fails is closed
		var snap snapshot
		var micros int64 // a timestamp is text that depends on datestyle
		err = wc.Pgx().QueryRow(ctx, `select pg_catalog.pg_export_snapshot(), (extract(epoch from pg_catalog.now()) * 1000000)::int8,
				pg_catalog.current_setting('server_version')`).Scan(&snap.id, &micros, &b.server)
		if err != nil {
			return fmt.Errorf("pgtenancy: backup: export a snapshot: %w", err)
		}
		snap.at = time.UnixMicro(micros)
		members, err := b.list(ctx, wc, ids)
		if err != nil {
			return err
		}
		b.gone(len(ids) - len(members))
		names := make([]string, len(members))
		for i, m := range members {
			names[i] = m.schema
		}
		layouts, err := layout.Read(ctx, wc.Pgx(), names)
		if err != nil {
			return fmt.Errorf("pgtenancy: backup: %w", err)
		}
		for i := range members {
			members[i].layout = layouts[i]
		}
		deadline := time.Now().Add(waveTime)
		return parallel(ctx, b.opts.Parallel, func(yield func(*member, error) bool) {
			for _, m := range members {
				i := slices.IndexFunc(before, func(o *member) bool { return o.id == m.id })
				switch {
				case time.Now().After(deadline):
					b.later(m.id)
				case i < 0 || !before[i].same(m): // the shape may be of another version than the rows
					b.retry(m, errChanged)
				default:
					m.shape = before[i].shape
					if !yield(m, nil) {
						return
					}
				}
			}
		}, func(m *member) { b.tenant(ctx, snap, m) })
	})
	left, b.again = b.again, nil
	slices.Sort(left)
	return left, err
}

// gone notes that tenants are not there any more.
func (b *backup) gone(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.total -= n
}

func (b *backup) later(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.again = append(b.again, id)
}

// errChanged says that a tenant was migrated or altered while it was read.
var errChanged = errors.New("its schema is being changed all the time")

// retry leaves a tenant for another wave, unless that was tried often enough.
func (b *backup) retry(m *member, err error) {
	b.mu.Lock()
	b.tries[m.id]++
	tries := b.tries[m.id]
	b.mu.Unlock()
	if tries < backupTries {
		b.later(m.id)
	} else {
		b.done(m, BackupObject{}, err)
	}
}

// same reports whether two readings of a tenant are of one version of its schema.
func (m *member) same(o *member) bool {
	return m.version == o.version && m.digest == o.digest && m.schema == o.schema
}

// list reads tenants from the registry. Those that are gone since they were listed are not in it.
func (b *backup) list(ctx context.Context, wc *conn, ids []string) ([]*member, error) {
	rows, _ := wc.Pgx().Query(ctx, `select `+tenantColumns+`, coalesce(t.deleted_schema, t.schema_name), t.purging is not null,
			t.digest, exists (select from pgtenancy.unfinished u where u.tenant_id = t.id),
			(select coalesce(array_agg(d.domain order by d.domain), '{}') from pgtenancy.domains d where d.tenant_id = t.id)
		from pgtenancy.tenants t where t.id = any($1) order by t.id`, ids) // the error is in rows
	members, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*member, error) {
		var m member
		var now string
		var err error
		m.Tenant, err = scanTenantAnd(row, &now, &m.purging, &m.digest, &m.unfinished, &m.domains)
		m.registered, m.schema, m.path = m.schema, now, ident.Quote(now)
		return &m, err
	})
	if err != nil {
		return nil, fmt.Errorf("pgtenancy: backup: list tenants: %w", err)
	}
	return members, nil
}

// shapes describes the schemas of members, and for each version that is new what migrations make.
func (b *backup) shapes(ctx context.Context, wc *conn, members []*member) error {
	d := drift{fleet: b.fleet, catalog: b.catalog, shapes: map[string]catalog.Shape{}}
	schemas := make([]catalog.Schema, len(members))
	for i, m := range members {
		schemas[i] = catalog.Schema{Name: m.schema, Role: m.role}
		if _, ok := b.built[m.version]; !ok {
			b.built[m.version] = builtShape{}
			d.tenants = append(d.tenants, m.Tenant)
		}
	}
	if len(d.tenants) > 0 {
		err := d.build(ctx, wc)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		for _, t := range d.tenants {
			b.built[t.version] = builtShape{d.fresh[t.version], err}
		}
	}
	shapes, err := b.catalog.Read(ctx, wc.Pgx(), schemas)
	if err != nil {
		return fmt.Errorf("pgtenancy: backup: %w", err)
	}
	for i, m := range members {
		m.shape = shapes[i]
	}
	return nil
}

// drift returns how a schema differs from what its migrations make.
func (b *backup) drift(m *member) (diffs []Difference) {
	built := b.built[m.version]
	if built.err != nil {
		return []Difference{{Kind: "migrations", Want: "a schema", Have: built.err.Error()}}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	key := [2]catalog.Shape{built.shape, m.shape}
	diffs, ok := b.diffs[key]
	if !ok {
		for _, d := range b.catalog.Diff(built.shape, m.shape) {
			diffs = append(diffs, Difference(d))
		}
		b.diffs[key] = diffs
	}
	return diffs
}

// tenant backs up one.
func (b *backup) tenant(ctx context.Context, snap snapshot, m *member) {
	o, err := b.write(ctx, snap, m)
	switch {
	case ctx.Err() != nil:
		b.done(m, o, ctx.Err())
	case errors.Is(err, errChanged) || isCode(err,
		"42P01", "42703", "3F000", "XX000", // undefined_table, undefined_column, invalid_schema_name, internal_error: dropped meanwhile
		"55P03", "40P01", "40001"): // lock_not_available, deadlock_detected, serialization_failure
		b.retry(m, err)
	default:
		b.done(m, o, err)
	}
}

// done notes that a tenant is finished.
func (b *backup) done(m *member, o BackupObject, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil {
		b.failed = append(b.failed, TenantError{m.Tenant, err})
		o = BackupObject{}
	} else {
		b.report.Objects = append(b.report.Objects, o)
		b.report.Rows += o.Rows
		b.report.Bytes += o.Bytes
	}
	if b.opts.OnProgress != nil {
		b.opts.OnProgress(BackupProgress{
			Tenant: m.id, Err: err, Object: o, Done: len(b.report.Objects) + len(b.failed), Failed: len(b.failed), Total: b.total,
			Elapsed: time.Since(b.started),
		})
	}
}

// manifest says what the backup of a tenant will have.
func (b *backup) manifest(snap snapshot, m *member) (*Manifest, error) {
	n, ok := b.fleet.tenant.upTo(m.version)
	switch {
	case m.purging:
		return nil, fmt.Errorf("%w: it is being purged", ErrTenantState)
	case !m.layout.Exists:
		return nil, fmt.Errorf("%w: its schema %s does not exist", ErrTenantNotFound, m.path)
	case m.unfinished:
		return nil, errors.New("one of its migrations has been begun and is not finished: run Fleet.Migrate first")
	case !ok || b.fleet.tenant.digest(n) != m.digest:
		return nil, fmt.Errorf("%w: it is at version %d with another history than that of the migrations at hand, which a restore would need", ErrMigrationChanged, m.version)
	}
	man := &Manifest{
		Format: backupFormat, CreatedAt: snap.at.UTC(), Server: b.server,
		Tenant: m.id, Schema: m.registered, Attributes: map[string]string{}, Domains: m.domains,
		Version: m.version, Digest: m.digest, Fingerprint: strings.NewReplacer("{", "", "}", "", " ", "").Replace(fmt.Sprintf("%x", m.shape)),
		Drift: b.drift(m), Shared: slices.Clone(b.shared), Views: m.layout.Views,
	}
	for name, value := range m.Attributes() {
		man.Attributes[name] = value
	}
	for i := range b.fleet.tenant.all[:n] {
		g := &b.fleet.tenant.all[i]
		mm := ManifestMigration{Version: g.Version, Name: g.Name, Checksum: g.Checksum}
		if g.Up.Func == nil {
			mm.File, mm.SHA256 = g.File, sha256Hex(b.files[g.File])
		}
		man.Migrations = append(man.Migrations, mm)
	}
	for i := range m.layout.Tables {
		man.Tables = append(man.Tables, manifestTable(&m.layout.Tables[i]))
	}
	return man, nil
}

// write writes the backup of a tenant. The error is errChanged where it must be read again.
func (b *backup) write(ctx context.Context, snap snapshot, m *member) (o BackupObject, err error) {
	man, err := b.manifest(snap, m)
	if err != nil {
		return o, err
	}
	o = BackupObject{Tenant: m.id, Name: objectName(m.id, snap.at), Drift: man.Drift}
	err = b.fleet.withOwner(ctx, func(wc *conn) error {
		defer func() {
			if wc.TxStatus() != 'I' {
				_ = wc.Rollback(ctx) // a connection on which that fails is closed
			}
		}()
		if err := b.begin(ctx, wc, snap, m); err != nil {
			return err
		}
		if man.Sequences, err = sequences(ctx, wc, &m.layout); err != nil {
			return err
		}
		// The store reads what is written here.
		r, w := io.Pipe()
		end := make(chan error, 1)
		body := &countingReader{Reader: r}
		var thrown func() // where Put panics or calls runtime.Goexit
		go func() {
			var err error
			returned := false
			defer func() {
				if !returned {
					panicked := panicError(recover())
					thrown, err = func() { rethrow(panicked) }, errors.New("the store panicked")
				}
				_ = r.CloseWithError(cmp.Or(err, io.ErrClosedPipe))
				end <- err
			}()
			err = b.store.Put(ctx, o.Name, body)
			if err == nil && !body.ended {
				err = errors.New("the store says that it is done before the end")
			}
			returned = true
		}()
		rows, err := b.copy(ctx, wc, snap, m, man, w)
		if err == nil {
			err = b.unchanged(ctx, wc, m)
		}
		_ = w.CloseWithError(err) // with nil it is the end
		putErr := <-end
		if thrown != nil {
			thrown()
		}
		if err == nil || errors.Is(err, putErr) && putErr != nil {
			err = putErr
		}
		o.Rows, o.Bytes = rows, body.n
		return err
	})
	return o, err
}

// countingReader counts what is read from it, and knows whether that was all.
type countingReader struct {
	io.Reader
	n     int64
	ended bool
}

func (r *countingReader) Read(b []byte) (int, error) {
	n, err := r.Reader.Read(b)
	r.n += int64(n)
	r.ended = errors.Is(err, io.EOF)
	return n, err
}

// copySettings make COPY write what reads the same everywhere, whatever the database's settings are, and read it.
const copySettings = `select pg_catalog.set_config(s.name, s.value, true)
	from (values ('datestyle', 'ISO, YMD'), ('intervalstyle', 'postgres'), ('timezone', 'UTC'), ('extra_float_digits', '3'), ('bytea_output', 'hex'), ('array_nulls', 'on'),
		('lc_monetary', 'C'), ('xmloption', 'content'), ('client_encoding', 'UTF8'), ('statement_timeout', '0'),
		('idle_in_transaction_session_timeout', '0')) s (name, value)`

// begin begins a transaction that sees the snapshot, as the tenant, so that names in columns of types such as regclass are as
// the tenant writes them.
func (b *backup) begin(ctx context.Context, wc *conn, snap snapshot, m *member) error {
	_, err := wc.Run(ctx, []wire.Step{
		{SQL: "begin isolation level repeatable read read only", Keep: true},
		{SQL: "set transaction snapshot " + ident.Literal(snap.id)},
		{Scope: b.fleet.ownerScope(m.Tenant)},
		{SQL: copySettings, Keep: true},
		{SQL: "select pg_catalog.set_config('lock_timeout', '" + backupLock + "', true)", Keep: true},
		{SQL: rowSecurity("off"), Keep: true},
	})
	return err
}

// sequences reads their state.
func sequences(ctx context.Context, wc *conn, l *layout.Layout) ([]ManifestSequence, error) {
	if len(l.Sequences) == 0 {
		return nil, nil
	}
	rows, _ := wc.Pgx().Query(ctx, l.StateSQL(), pgx.QueryExecModeSimpleProtocol) // the error is in rows
	return pgx.CollectRows(rows, pgx.RowToStructByPos[ManifestSequence])
}

// copy writes the backup to w, and returns the number of its rows. It ends the transaction.
func (b *backup) copy(ctx context.Context, wc *conn, snap snapshot, m *member, man *Manifest, w io.Writer) (rows int64, err error) {
	a, err := newArchiveWriter(w, man, func(file string) []byte { return b.files[file] })
	if err != nil {
		return 0, err
	}
	var queries []query
	if len(b.shared) > 0 {
		queries = append(queries, query{sql: rowSecurity("on")})
		for i := range b.shared {
			t := copyTable(&b.shared[i])
			t.Partitioned, t.Where = true, b.own[i] // from a query, to which policies apply
			queries = append(queries, query{t.Name, t.CopyTo(b.shared[i].Schema)})
		}
		queries = append(queries, query{sql: rowSecurity("off")})
	}
	for i := range m.layout.Tables {
		if i > 0 && i%waveTables == 0 { // what one transaction locks is bounded
			if err := copyOut(ctx, wc.Pgx().PgConn(), append(queries, query{sql: "rollback"}), a); err != nil {
				return 0, err
			}
			if err := b.begin(ctx, wc, snap, m); err != nil {
				return 0, err
			}
			queries = nil
		}
		t := &m.layout.Tables[i]
		queries = append(queries, query{t.Name, t.CopyTo(m.schema)})
	}
	if err := copyOut(ctx, wc.Pgx().PgConn(), append(queries, query{sql: "rollback"}), a); err != nil {
		return 0, err
	}
	for _, end := range a.ends {
		rows += end.Rows
	}
	return rows, a.close()
}

// unchanged checks that the schema is as the snapshot saw it. What is altered or truncated while it is read is not of one
// moment, and what was migrated has other migrations.
func (b *backup) unchanged(ctx context.Context, wc *conn, m *member) error {
	now, err := b.list(ctx, wc, []string{m.id})
	if err != nil {
		return err
	}
	stamp, err := layout.Stamp(ctx, wc.Pgx(), m.layout.OIDs)
	if err != nil {
		return err
	}
	if len(now) == 0 || !now[0].same(m) || now[0].unfinished || now[0].purging || stamp != m.layout.Stamp {
		return errChanged
	}
	return nil
}
