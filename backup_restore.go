package pgtenancy

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy/internal/ident"
	"github.com/pgtenancy/pgtenancy/internal/layout"
	"github.com/pgtenancy/pgtenancy/internal/migration"
	"github.com/pgtenancy/pgtenancy/internal/wire"
)

// RestoreOpts says what Restore makes of a backup.
type RestoreOpts struct {
	// As is the ID of the tenant to make, to have it beside the one that was backed up. Defaults to that one's.
	As string

	// Replace has the tenant in place of the one that has the ID, which keeps its domains, its attributes and its state, and whose
	// data is set aside and not lost: see Restore. Where there is none, it is made as without Replace: with the attributes in the
	// backup, and with the domains unless As is another ID. Without Replace, a tenant that is there is ErrTenantExists.
	Replace bool

	// AcceptDrift restores the rows of a schema that differed from what its migrations make, into what they make. Where that has
	// no place for a row, it is an error still. Without it, a backup with Manifest.Drift is a *DriftError.
	AcceptDrift bool

	// Reason goes into the history: see Change.
	Reason string
}

// DriftError is the error of Restore for a backup, and of Clone for a tenant, whose schema is not as its migrations make it.
type DriftError struct {
	Object      string // the backup; "" for Clone
	Tenant      string // the ID of the tenant that was to be cloned; "" for Restore
	Differences []Difference
}

// Error names the first few of the differences.
func (e *DriftError) Error() string {
	const most = 5
	var parts []string
	for _, d := range e.Differences[:min(len(e.Differences), most)] {
		parts = append(parts, fmt.Sprintf("%s %s: migrations make %q, it had %q", d.Kind, d.Object, d.Want, d.Have))
	}
	if n := len(e.Differences) - most; n > 0 {
		parts = append(parts, fmt.Sprintf("and %d more", n))
	}
	if e.Tenant != "" {
		return fmt.Sprintf("pgtenancy: the schema of tenant %s is not as its migrations make it: %s", e.Tenant, strings.Join(parts, "; "))
	}
	return fmt.Sprintf("pgtenancy: the schema of the backup %s was not as its migrations make it; see RestoreOpts.AcceptDrift: %s", e.Object, strings.Join(parts, "; "))
}

// Restore makes a tenant of a backup, and returns it, in service: beside the one that was backed up, in its place, or in another
// database. It builds the schema with the migrations in the backup, puts in the rows and the state of the sequences, and then
// runs those of the fleet's migrations that come after, with constraints that are deferred made immediate before. The tenant is
// made in one transaction: what is in the way, of the backup or of the call, changes nothing, nor does the end of the process or
// of the server, and the tenant is there for everybody when Restore returns, suspended only where it replaces one that was. A
// transaction before that one builds the schema, as Clone has it, so that nobody who works with shared tables waits while rows
// are put in; only who would delete a row that they reference does, and where migrations cannot run ahead. The migrations that
// come after take their locks at the end.
//
// Rows are checked by constraints, foreign keys at the end, and no trigger fires for them. What migrations themselves inserted
// is replaced. Materialized views that had been populated are refreshed. A backup is checked against its checksums before
// anything is visible. But those find damage only: Restore runs the migrations in the backup as the owner's role, so take
// none from a store that others can write to.
//
// In the place of a tenant, which must be active or suspended, that one becomes a deleted one under an ID that begins with its own
// and "-old-": Undelete brings it back beside the restored one, and Purge removes it. It serves on until Restore is done, but for
// migrations and changes, which wait. What is written until then is there. A transaction that begins before and ends after may
// see both: where that matters, call Suspend first. Rows of shared tables are restored only where the tenant keeps its ID: those that it has are
// updated by primary key, missing ones inserted and others deleted, with all triggers and keys of these tables in force.
//
// The errors: ErrTenantExists where the ID, the schema or a domain is taken; ErrTenantState where the tenant to replace is
// neither active nor suspended; ErrTenantInUse, where others are at work on it for longer than ChangeWaitDefault;
// ErrBackupDamaged; *DriftError; ErrMigrationChanged where the fleet's migrations do not go on where the backup ends, for no
// Migrate could go on either; *MigrationError; *InvalidError for As and where a migration in Go is missing;
// FleetConfig.BeforeChange's own; fs.ErrNotExist of most stores where there is no such object. opts may be nil.
func (f *Fleet) Restore(ctx context.Context, store Store, object string, opts *RestoreOpts) (Tenant, error) {
	r := &restore{fleet: f, object: object}
	if opts != nil {
		r.opts = *opts
	}
	if err := checkReason("RestoreOpts.Reason", r.opts.Reason); err != nil {
		return Tenant{}, err
	}
	if err := f.registryReady(ctx); err != nil {
		return Tenant{}, err
	}
	body, err := store.Get(ctx, object)
	if err != nil {
		return Tenant{}, fmt.Errorf("pgtenancy: restore %s: %w", object, err)
	}
	defer body.Close()
	if r.archive, err = newArchiveReader(contextReader{ctx, body}); err != nil {
		return Tenant{}, fmt.Errorf("%w (%s)", err, object)
	}
	if err := r.check(); err != nil {
		return Tenant{}, err
	}
	defer func() { f.dropBuilt(ctx, r.built) }() // where it was not used
	if err := f.withOwner(ctx, func(wc *conn) error { return r.run(ctx, wc) }); err != nil {
		return Tenant{}, r.why(err)
	}
	r.built = ""
	f.afterChanges(ctx, r.asideChanges)
	f.afterChanges(ctx, r.changes)
	return r.tenant, nil
}

// restore is one call of Restore.
type restore struct {
	fleet   *Fleet
	opts    RestoreOpts
	object  string
	archive *archiveReader
	from    *Fleet // with the migrations in the backup
	history *Fleet // with those that the tenant will have had
	later   *Fleet // with those of the fleet that come after
	tenant  Tenant
	domains []string // that it gets
	aside   Tenant   // the one that was there, under its new ID
	built   string   // the schema that was built ahead, "" where none was
	on      []string // what is left to do to it when the rows are there, in that name

	changes, asideChanges []Change
}

// loadCarried returns the migrations of a backup. files are the texts by name.
func loadCarried(files map[string][]byte, funcs []migration.Migration) (migrations, error) {
	if len(files) == 0 && len(funcs) == 0 {
		return migrations{}, nil
	}
	var buf bytes.Buffer // a zip file is an fs.FS
	zw := zip.NewWriter(&buf)
	for name, text := range files {
		w, err := zw.CreateHeader(&zip.FileHeader{Name: name})
		if err == nil {
			_, err = w.Write(text)
		}
		if err != nil {
			return migrations{}, err
		}
	}
	if err := zw.Close(); err != nil {
		return migrations{}, err
	}
	fsys, err := zip.NewReader(bytes.NewReader(buf.Bytes()), int64(buf.Len()))
	if err != nil {
		return migrations{}, err
	}
	all, err := migration.Load(fsys, "tenant", funcs)
	if err != nil {
		return migrations{}, migrationFileError(err)
	}
	return newMigrations(all)
}

// check compares the backup with the fleet, and says whom it makes.
func (r *restore) check() error {
	f, m := r.fleet, r.archive.manifest
	if len(m.Drift) > 0 && !r.opts.AcceptDrift {
		return &DriftError{Object: r.object, Differences: m.Drift}
	}
	var funcs []migration.Migration
	for _, mm := range m.Migrations {
		if mm.File != "" {
			continue
		}
		i := slices.IndexFunc(f.tenant.all, func(g migration.Migration) bool { return g.Name == mm.Name && g.Up.Func != nil })
		if i < 0 {
			return invalid("FleetConfig.GoMigrations", "tenant/"+mm.Name, "must be there, as it is one of those that built the schema of the backup")
		}
		funcs = append(funcs, f.tenant.all[i])
	}
	carried, err := loadCarried(r.archive.files, funcs)
	if err != nil {
		return err
	}
	if carried.newest() != m.Version || carried.digest(len(carried.all)) != m.Digest {
		return damaged("its migrations are not those of version %d", m.Version)
	}
	r.from = &Fleet{owner: f.owner, tenant: carried}

	// Which of the two has more?
	n := min(len(carried.all), len(f.tenant.all))
	if carried.digest(n) != f.tenant.digest(n) {
		return fmt.Errorf("%w: those of the backup %s and those at hand differ before version %d", ErrMigrationChanged, r.object,
			max(carried.all[n-1].Version, f.tenant.all[n-1].Version)+1)
	}
	r.history = f
	if len(carried.all) > n { // the backup is of a newer version of the service
		r.history = r.from
	}
	r.later = &Fleet{owner: f.owner, tenant: migrations{all: f.tenant.all[n:]}}

	id, schema, domains := m.Tenant, m.Schema, m.Domains
	if r.opts.As != "" && r.opts.As != m.Tenant {
		id, schema, domains = r.opts.As, "", nil
	}
	if id == "" || m.Schema == "" {
		return damaged("%s has no tenant", manifestFile)
	}
	if r.tenant, r.domains, err = f.newTenant(id, schema, m.Attributes, domains); err != nil {
		return err
	}
	r.tenant, err = f.withRole(r.tenant)
	return err
}

// why returns the reason of a failure: where the backup is damaged, that is it.
func (r *restore) why(err error) error {
	var pgErr interface{ SQLState() string }
	if errors.Is(err, ErrBackupDamaged) || !errors.As(err, &pgErr) || !strings.HasPrefix(pgErr.SQLState(), "22") && !strings.HasPrefix(pgErr.SQLState(), "23") {
		return err
	}
	if endErr := r.archive.end(); errors.Is(endErr, ErrBackupDamaged) {
		return fmt.Errorf("%w (%s): %w", endErr, r.object, err)
	}
	return err
}

// buildAhead builds the schema where nothing seems to be in the way of the restore.
func (r *restore) buildAhead(ctx context.Context, wc *conn) (err error) {
	t := r.tenant
	rows, _ := wc.Pgx().Query(ctx, `select `+tenantColumns+` from pgtenancy.tenants t where t.id = $1`, t.id) // the error is in rows
	was, err := pgx.CollectExactlyOneRow(rows, scanTenant)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
	case err != nil:
		return err
	case !r.opts.Replace || was.state != Active && was.state != Suspended:
		return nil
	default:
		t = was
	}
	r.built, err = r.fleet.buildAhead(ctx, wc, r.from, t, func(schema string, scope *wire.Scope) error {
		_, err := wc.Run(ctx, []wire.Step{{Scope: scope}, {SQL: "set constraints all immediate"}, {SQL: rowSecurity("off")}})
		if err != nil {
			return err
		}
		layouts, err := layout.Read(ctx, wc.Pgx(), []string{schema})
		if err != nil {
			return err
		}
		r.on, err = r.empty(ctx, wc, &layouts[0])
		return err
	})
	return err
}

// empty makes a schema ready for rows, and returns the statements for when they are there. Its locks are such that who deletes
// rows of shared tables waits, for these ask all who reference them.
func (r *restore) empty(ctx context.Context, wc *conn, l *layout.Layout) (on []string, err error) {
	rules, err := layout.ReadRules(ctx, wc.Pgx(), l.Schema)
	if err != nil {
		return nil, err
	}
	var off []wire.Step
	for _, sql := range rules.Off {
		off = append(off, wire.Step{SQL: sql})
	}
	if len(l.Tables) > 0 { // rows that migrations put there
		names := make([]string, len(l.Tables))
		for i := range l.Tables {
			names[i] = ident.QuoteAll(l.Schema, l.Tables[i].Name)
		}
		off = append(off, wire.Step{SQL: "truncate " + strings.Join(names, ", ")})
	}
	_, err = wc.Run(ctx, off)
	return rules.On, err
}

// run restores in one transaction. Another one builds the schema before.
func (r *restore) run(ctx context.Context, wc *conn) (err error) {
	committed := false
	defer func() {
		if !committed && wc.TxStatus() != 'I' {
			_ = wc.Rollback(ctx) // a connection on which that fails is closed
		}
	}()
	f := r.fleet
	if err := r.buildAhead(ctx, wc); err != nil {
		return r.failed(err)
	}
	if _, err := wc.Run(ctx, []wire.Step{{SQL: beginSQL}}); err != nil {
		return r.failed(err)
	}
	domains := r.domains
	if r.opts.Replace {
		if domains, err = r.setAside(ctx, wc); err != nil {
			return err
		}
	}
	r.tenant.version = r.history.tenant.newest()
	r.changes = madeChanges(ChangeRestore, r.tenant, r.domains, r.opts.Reason)
	r.changes[0].From = r.object
	t := r.tenant
	ctx = WithTenant(ctx, t) // the caller's may carry another
	tags, err := wc.Run(ctx, append(r.history.registerSteps(t, domains), claimBuilt(r.built)))
	if err != nil {
		return taken(t, err)
	}
	claimed := tags[len(tags)-1].RowsAffected() > 0

	scope := f.ownerScope(t)
	outer := &tx{binding: binding{tenant: t}, pool: f.owner, conn: wc, scope: scope}
	var p pipeline
	if claimed {
		run := []wire.Step{renameStep(t)}
		if t.role != "" { // as a spare has no role, it has no grants yet
			run = append(append(run, f.roleSteps(t)...), f.grantSteps(t, true)...)
		}
		if _, err := wc.Run(ctx, run); err != nil {
			return taken(t, err)
		}
	} else {
		p.add(origin{}, wire.Step{SQL: "create schema " + t.path})
		p.add(origin{}, f.roleSteps(t)...)
		p.add(origin{}, f.grantSteps(t, false)...)
		p.add(origin{}, wire.Step{SQL: rebuild(true)})
		if err := r.from.build(ctx, outer, t, &p, nil); err != nil {
			return err
		}
	}
	if err := r.load(ctx, wc, scope, claimed); err != nil {
		return err
	}
	p.add(origin{}, wire.Step{SQL: moving("")}, wire.Step{SQL: rebuild(false)})
	if err := r.later.build(ctx, outer, t, &p, nil); err != nil {
		return err
	}
	if _, err := wc.Run(ctx, append(r.history.historySteps(t, false), changeSteps(r.changes)...)); err != nil {
		return r.failed(err)
	}
	if len(r.asideChanges) > 0 {
		if err := f.beforeChanges(ctx, wc, r.aside, r.asideChanges); err != nil {
			return r.failed(err)
		}
	}
	if err := f.beforeChanges(ctx, wc, t, r.changes); err != nil {
		return r.failed(err)
	}
	if err := f.join(ctx, wc, t); err != nil {
		return taken(t, err)
	}
	if err := outer.Commit(ctx); err != nil {
		return taken(t, err)
	}
	committed = true
	return nil
}

func (r *restore) failed(err error) error {
	if errors.Is(err, ErrBackupDamaged) {
		return fmt.Errorf("%w (%s)", err, r.object)
	}
	if isCode(err, "55P03", "40P01") { // lock_not_available, deadlock_detected
		err = fmt.Errorf("%w: %w", ErrTenantInUse, err)
	}
	return fmt.Errorf("pgtenancy: restore %s as %s: %w", r.object, r.tenant, err)
}

// setAside makes the tenant that is there a deleted one under another ID, and has the new one be as it was but for its data. It
// returns the domains of the new one, which has no other ones than that.
func (r *restore) setAside(ctx context.Context, wc *conn) (domains []string, err error) {
	f := r.fleet
	_, err = wc.Run(ctx, []wire.Step{
		{SQL: `select pg_catalog.set_config('lock_timeout', $1, true)`, Args: []any{timeoutSetting(ChangeWaitDefault)}},
		{SQL: `select pg_catalog.pg_advisory_xact_lock($1)`, Args: []any{tenantLock(r.tenant.id)}},
	})
	if err != nil {
		return nil, r.failed(err)
	}
	var unfinished bool
	rows, _ := wc.Pgx().Query(ctx, `select `+tenantColumns+`, exists (select from pgtenancy.unfinished u where u.tenant_id = t.id)
		from pgtenancy.tenants t where t.id = $1 for update`, r.tenant.id) // the error is in rows
	was, err := pgx.CollectExactlyOneRow(rows, func(row pgx.CollectableRow) (Tenant, error) { return scanTenantAnd(row, &unfinished) })
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return r.domains, nil
	case err != nil:
		return nil, r.failed(err)
	case was.state != Active && was.state != Suspended:
		return nil, r.failed(fmt.Errorf("%w: it is %s", ErrTenantState, was.state))
	case unfinished:
		return nil, r.failed(fmt.Errorf("%w: one of its migrations has been begun and is not finished: run Fleet.Migrate first", ErrTenantState))
	}
	room := ident.MaxBytes - max(len(f.prefix), len(f.roles)+len(roleSeparator)) - len("-old-12345678")
	id := strings.TrimRight(cut(was.id, room), "-") + "-old-" + strings.ToLower(rand.Text()[:8])
	if r.aside, _, err = f.newTenant(id, "", nil, nil); err != nil {
		return nil, err
	}
	var renamed []wire.Step
	if was.role != "" {
		if f.roles == "" {
			return nil, invalid("FleetConfig.IsolateRoles", "", "must be set: tenant "+was.id+" has a role of its own")
		}
		r.aside.role = f.roles + roleSeparator + id // its schema's grants go with it
		renamed = []wire.Step{{SQL: "alter role " + ident.Quote(was.role) + " rename to " + ident.Quote(r.aside.role)}}
	}
	r.aside.state = Deleted
	r.asideChanges = []Change{{Tenant: id, Kind: ChangeRestore, From: was.id, To: Deleted.String(), Reason: r.opts.Reason}}
	err = wc.Pgx().QueryRow(ctx, `with gone as (delete from pgtenancy.domains where tenant_id = $1 returning domain)
		select coalesce(pg_catalog.array_agg(domain order by domain), '{}') from gone`, was.id).Scan(&domains)
	if err != nil {
		return nil, r.failed(err)
	}
	name := asideName(id)
	_, err = wc.Run(ctx, append([]wire.Step{
		{SQL: "alter schema " + was.path + " rename to " + ident.Quote(name)},
		{
			SQL:  `update pgtenancy.tenants set id = $2, schema_name = $3, state = 'deleted', deleted_schema = $4, role_name = $5, updated_at = now() where id = $1`,
			Args: []any{was.id, id, r.aside.schema, name, r.aside.role},
		},
		{SQL: `update pgtenancy.migrations set tenant_id = $2 where tenant_id = $1`, Args: []any{was.id, id}},
		{SQL: `select pg_catalog.set_config('lock_timeout', s.reset_val, true) from pg_catalog.pg_settings s where s.name = 'lock_timeout'`},
	}, append(renamed, changeSteps(r.asideChanges)...)...))
	if err != nil {
		return nil, r.failed(err)
	}
	r.domains = nil
	r.tenant, err = f.withRole(was)
	return domains, err
}

// load puts the rows into the schema that was built, ahead where it was claimed.
func (r *restore) load(ctx context.Context, wc *conn, scope *wire.Scope, claimed bool) error {
	m, t := r.archive.manifest, r.tenant
	// What migrations have left for the commit to check is in the way of the rest.
	_, err := wc.Run(ctx, []wire.Step{
		{Scope: scope}, {SQL: "set constraints all immediate"}, {SQL: saveSettings}, {SQL: copySettings}, {SQL: rowSecurity("off")}, {SQL: moving("restore")},
	})
	if err != nil {
		return r.failed(err)
	}
	layouts, err := layout.Read(ctx, wc.Pgx(), []string{t.schema})
	if err != nil {
		return r.failed(err)
	}
	l := &layouts[0]
	if err := r.compare(l); err != nil {
		return err
	}
	rules := make([]string, len(r.on))
	if claimed {
		name := strings.NewReplacer(ident.Quote(r.built), t.path, r.built, t.path)
		for i, sql := range r.on {
			rules[i] = name.Replace(sql)
		}
	} else if rules, err = r.empty(ctx, wc, l); err != nil {
		return r.failed(err)
	}

	var on []wire.Step
	for i := range m.Shared {
		if t.id != m.Tenant {
			_, err = io.Copy(io.Discard, r.archive.read())
		} else {
			var gone []wire.Step
			gone, err = r.shared(ctx, wc, i)
			on = append(gone, on...) // what references others goes first
		}
		if err != nil {
			return r.failed(err)
		}
	}
	for i := range m.Tables {
		if err := r.rows(ctx, wc, copyTable(&m.Tables[i]).CopyFrom(t.schema), &m.Tables[i]); err != nil {
			return r.failed(err)
		}
	}
	if err := r.archive.end(); err != nil {
		return r.failed(err)
	}

	if len(on) > 0 {
		on = slices.Insert(on, 0, wire.Step{SQL: rowSecurity("on")})
	}
	for _, s := range m.Sequences {
		if slices.Contains(l.Sequences, s.Name) {
			on = append(on, wire.Step{SQL: l.SetSQL(s.Name, s.LastValue, s.IsCalled)})
		}
	}
	// What triggers and deferrable keys have queued is in the way of ALTER TABLE.
	on = append(on, wire.Step{SQL: rowSecurity("off")}, wire.Step{SQL: "set constraints all immediate"})
	for _, sql := range rules {
		on = append(on, wire.Step{SQL: sql})
	}
	for _, name := range append(l.Views, slices.DeleteFunc(slices.Clone(m.Views), func(v string) bool { return slices.Contains(l.Views, v) })...) {
		on = append(on, wire.Step{SQL: "refresh materialized view " + ident.QuoteAll(t.schema, name)})
	}
	on = append(on, wire.Step{SQL: restoreRole}, wire.Step{SQL: restoreSettings})
	if _, err := wc.Run(ctx, on); err != nil {
		return r.failed(err)
	}
	return nil
}

func copyTable(m *ManifestTable) *layout.Table {
	t := &layout.Table{Name: m.Name}
	for _, c := range m.Columns {
		t.Columns = append(t.Columns, layout.Column(c))
	}
	return t
}

// compare checks that there is a place for all rows.
func (r *restore) compare(l *layout.Layout) error {
	e := &DriftError{Object: r.object}
	missing := func(kind, object string) {
		e.Differences = append(e.Differences, Difference{Kind: kind, Object: object, Have: kind})
	}
	m := r.archive.manifest
	for _, mt := range m.Tables {
		i := slices.IndexFunc(l.Tables, func(t layout.Table) bool { return t.Name == mt.Name })
		if i < 0 {
			missing("table", mt.Name)
			continue
		}
		for _, c := range mt.Columns {
			if !slices.ContainsFunc(l.Tables[i].Columns, func(lc layout.Column) bool { return lc.Name == c.Name }) {
				missing("column", mt.Name+"."+c.Name)
			}
		}
	}
	for _, s := range m.Sequences {
		if !slices.Contains(l.Sequences, s.Name) && !r.opts.AcceptDrift {
			missing("sequence", s.Name)
		}
	}
	if len(e.Differences) > 0 {
		return e
	}
	return nil
}

// rows puts the next table's rows where sql says.
func (r *restore) rows(ctx context.Context, wc *conn, sql string, t *ManifestTable) error {
	from := r.archive.read()
	tag, err := wc.Pgx().PgConn().CopyFrom(ctx, from, sql)
	switch {
	case err != nil && wc.Pgx().IsClosed(): // pgconn does not wait for its goroutine then, which may still be reading
		if ctx.Err() != nil {
			err = fmt.Errorf("%w: %w", ctx.Err(), err)
		}
		return fmt.Errorf("table %s: %w", t.Name, err)
	case from.err != nil && !errors.Is(from.err, io.EOF): // PostgreSQL was only told of it
		return from.err
	case err != nil:
		return fmt.Errorf("table %s: %w", t.Name, err)
	case tag.RowsAffected() != from.sum.rows:
		return fmt.Errorf("table %s: %d rows went in, and %d are in the backup", t.Name, tag.RowsAffected(), from.sum.rows)
	}
	return nil
}

// shared puts the tenant's rows of a shared table there, in place of those that have their keys. It returns the steps that
// delete the others, for when the rows that may reference them are there.
func (r *restore) shared(ctx context.Context, wc *conn, i int) (gone []wire.Step, err error) {
	t := &r.archive.manifest.Shared[i]
	if _, err := readSharedTable(ctx, wc, t.Schema, t.Name); err != nil {
		return nil, err
	}
	temp := copyTable(t)
	name, names := ident.QuoteAll(t.Schema, t.Name), temp.Names()
	temp.Name = fmt.Sprintf("pgtenancy_restore_%d", i)
	tempName := ident.QuoteAll("pg_temp", temp.Name)
	_, err = wc.Run(ctx, []wire.Step{
		{SQL: rowSecurity("on")},
		{SQL: "create temporary table " + ident.Quote(temp.Name) + " on commit drop as select " + names + " from " + name + " with no data"},
	})
	if err != nil {
		return nil, err
	}
	if err := r.rows(ctx, wc, temp.CopyFrom("pg_temp"), t); err != nil {
		return nil, err
	}

	rows, _ := wc.Pgx().Query(ctx, `select a.attname, pg_catalog.array_position(i.indkey::int2[], a.attnum) is not null, a.attidentity = 'a' or a.attgenerated <> ''
		from pg_catalog.pg_attribute a left join pg_catalog.pg_index i on i.indrelid = a.attrelid and i.indisprimary
		where a.attrelid = $1::text::pg_catalog.regclass and a.attnum > 0 and not a.attisdropped`, name) // the error is in rows
	var key, set, same []string
	var column string
	var inKey, always bool
	_, err = pgx.ForEachRow(rows, []any{&column, &inKey, &always}, func() error {
		q := ident.Quote(column)
		switch {
		case inKey:
			key, same = append(key, q), append(same, "t."+q+" = r."+q)
		case !always && slices.ContainsFunc(t.Columns, func(c ManifestColumn) bool { return c.Name == column }):
			set = append(set, q+" = excluded."+q)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var put []wire.Step
	insert := "insert into " + name + " (" + names + ") overriding system value select " + names + " from " + tempName
	switch {
	case len(key) == 0:
		put = append(put, wire.Step{SQL: "delete from " + name})
	case len(set) == 0:
		insert += " on conflict (" + strings.Join(key, ", ") + ") do nothing"
	default:
		insert += " on conflict (" + strings.Join(key, ", ") + ") do update set " + strings.Join(set, ", ")
	}
	if len(key) > 0 {
		gone = []wire.Step{{SQL: "delete from " + name + " t where not exists (select from " + tempName + " r where " + strings.Join(same, " and ") + ")"}}
	}
	if _, err := wc.Run(ctx, append(put, wire.Step{SQL: insert}, wire.Step{SQL: rowSecurity("off")})); err != nil {
		return nil, fmt.Errorf("shared table %s: %w", t.Name, err)
	}
	if err := sharedSequences(ctx, wc, t, tempName); err != nil {
		return nil, fmt.Errorf("shared table %s: %w", t.Name, err)
	}
	return gone, nil
}

// sharedSequences has the sequences of a shared table go on past the values that the rows in temp have: in another database than
// that of the backup they are not so far.
func sharedSequences(ctx context.Context, wc *conn, t *ManifestTable, temp string) error {
	type sequence struct {
		Column, Schema, Name string
		Increment            int64
	}
	rows, _ := wc.Pgx().Query(ctx, `select a.attname::text, n.nspname::text, c.relname::text, s.seqincrement
		from pg_catalog.pg_attribute a, pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace join pg_catalog.pg_sequence s on s.seqrelid = c.oid
		where a.attrelid = $1::text::pg_catalog.regclass and a.attnum > 0 and not a.attisdropped
			and c.oid = pg_catalog.pg_get_serial_sequence($1, a.attname)::pg_catalog.regclass
			and a.atttypid in ('int2'::pg_catalog.regtype, 'int4'::pg_catalog.regtype, 'int8'::pg_catalog.regtype)
		order by a.attnum`, ident.QuoteAll(t.Schema, t.Name)) // the error is in rows
	found, err := pgx.CollectRows(rows, pgx.RowToStructByPos[sequence])
	if err != nil {
		return err
	}
	for _, s := range found {
		if !slices.ContainsFunc(t.Columns, func(c ManifestColumn) bool { return c.Name == s.Column }) {
			continue
		}
		values := "select " + farthest(s.Increment) + "(" + ident.Quote(s.Column) + ")::pg_catalog.int8 from " + temp
		if err := advance(ctx, wc.Pgx(), ident.QuoteAll(s.Schema, s.Name), s.Increment, values); err != nil {
			return err
		}
	}
	return nil
}
