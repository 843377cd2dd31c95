package pgtenancy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy/internal/catalog"
	"github.com/pgtenancy/pgtenancy/internal/ident"
	"github.com/pgtenancy/pgtenancy/internal/layout"
	"github.com/pgtenancy/pgtenancy/internal/wire"
)

// CloneOpts says how a clone differs from its source.
type CloneOpts struct {
	// Attributes are the service's own. Defaults to those of the source; an empty map is for none.
	Attributes map[string]string

	// Domains are hosts of the clone's own, as in ProvisionOpts. It gets none of the source's.
	Domains []string

	// Empty are tables whose rows are not copied, as "sessions". Their sequences go on from where the source's are.
	Empty []string

	// Seed is called when the rows are there: to remove what must not leave the source, say. It runs as ProvisionOpts.Seed does.
	Seed func(ctx context.Context, tx pgx.Tx) error

	// Reason goes into the history: see Change.
	Reason string
}

// Clone makes a tenant that has the rows of another one, which is active or suspended, and goes on being read and written to. The
// schema is built by the tenant migrations at hand, or taken from KeepSpares; the rows are copied inside the database, all of one
// moment, and the sequences go on from where the source's are. The source has to be at the newest version, and as the migrations
// make it.
//
// The clone is made in one transaction: it is there for everybody when Clone returns, and nothing of it is when a step fails, or
// when the process or the server ends. Without a spare, a transaction before that one builds the schema, so that who writes to shared
// tables that it references waits for the migrations only, and not for the rows; it is dropped where it is not used, and where the
// process ends by a later Clone, Restore or KeepSpares, after five minutes. Migrations that write to other tables than the
// tenant's, make roles or large objects, or whose result has the schema's name in it, run in the one transaction; so do those that
// fail, and with FleetConfig.IsolateRoles those that leave a table or sequence to another role than the owner's. Clone
// waits up to ChangeWaitDefault for a migration of the source and for other locks. Until it is done, a migration of the source, and
// whoever alters one of its tables, waits for it; and so does who deletes rows of shared tables that the migrations reference.
//
// The copied rows are checked by constraints, and foreign keys within the schema at the end; no trigger and no rule acts on them.
// What migrations themselves inserted is replaced. Populated materialized views are refreshed. Rows of shared tables are not
// copied, nor are large objects: a column that has their OID points to the source's.
//
// The errors: ErrTenantNotFound where the source does not exist; ErrTenantState where it is neither active nor suspended;
// ErrTenantInUse; ErrMigrationChanged where its history is not that of the migrations at hand; *DriftError where its schema is
// not what they make; *InvalidError also where it is at another version, and where it has more tables than the lock table of the
// server has room for; and those of Provision. opts may be nil.
func (f *Fleet) Clone(ctx context.Context, from, to string, opts *CloneOpts) (Tenant, error) {
	c := &clone{fleet: f, from: from}
	if opts != nil {
		c.opts = *opts
	}
	var err error
	if c.tenant, c.domains, err = f.newTenant(to, "", c.opts.Attributes, c.opts.Domains); err != nil {
		return Tenant{}, err
	}
	if err := checkReason("CloneOpts.Reason", c.opts.Reason); err != nil {
		return Tenant{}, err
	}
	if err := f.registryReady(ctx); err != nil {
		return Tenant{}, err
	}
	c.tenant.version = f.tenant.newest()
	changes := madeChanges(ChangeClone, c.tenant, c.domains, c.opts.Reason)
	changes[0].From = from
	defer func() { f.dropBuilt(ctx, c.built) }() // where it was not used
	if err := f.withOwner(ctx, func(wc *conn) error { return c.run(ctx, wc, changes) }); err != nil {
		return Tenant{}, err
	}
	c.built = ""
	f.afterChanges(ctx, changes)
	return c.tenant, nil
}

// clone is one call of Clone.
type clone struct {
	fleet   *Fleet
	opts    CloneOpts
	from    string
	source  Tenant
	layout  layout.Layout // of the source
	tenant  Tenant        // the clone
	domains []string
	built   string // the schema that was built for it, "" where none was
}

func (c *clone) failed(err error) error {
	var invalid *InvalidError
	switch {
	case errors.As(err, &invalid):
		return err
	case isCode(err, "55P03", "40P01"): // lock_not_available, deadlock_detected
		err = fmt.Errorf("%w: %w", ErrTenantInUse, err)
	}
	return fmt.Errorf("pgtenancy: clone %s as %s: %w", c.from, c.tenant, err)
}

// run clones in one transaction, which sees what is committed meanwhile. Only the statement that copies needs all rows to be of
// one moment, and it is one. With one snapshot for the whole transaction, a row of a shared table that is updated meanwhile could
// not be referenced any more. Where there is no spare, another transaction builds the schema before.
func (c *clone) run(ctx context.Context, wc *conn, changes []Change) (err error) {
	committed := false
	defer func() { // also when the seed panics
		if !committed && wc.TxStatus() != 'I' {
			_ = wc.Rollback(ctx) // a connection on which that fails is closed
		}
	}()
	f := c.fleet
	ctx = WithTenant(ctx, c.tenant) // the caller's may carry another
	if err := c.lock(ctx, wc); err != nil {
		return c.failed(err)
	}
	claim := f.claimStep()
	var build bool
	if err := wc.Pgx().QueryRow(ctx, `select not exists (select from pgtenancy.spares s where `+ofSpares+`) and not exists (select from pgtenancy.tenants t where t.id = $4)`,
		f.spareArgs(c.tenant.id)...).Scan(&build); err != nil {
		return c.failed(err)
	}
	if build { // now that nothing seems to be in the way
		if err := wc.Rollback(ctx); err != nil {
			return c.failed(err)
		}
		if c.built, err = f.buildAhead(ctx, wc, f, c.tenant, nil); err != nil {
			return c.failed(err)
		}
		if c.built != "" {
			claim = claimBuilt(c.built)
		}
		if err := c.lock(ctx, wc); err != nil {
			return c.failed(err)
		}
	}
	outer, run, err := f.begin(ctx, wc, c.tenant, c.domains, claim, wire.Step{SQL: rebuild(true)})
	if err != nil {
		return err
	}
	if _, err := wc.Run(ctx, run); err != nil {
		return taken(c.tenant, err)
	}
	if err := c.compare(ctx, wc); err != nil {
		return err
	}
	if err := c.copy(ctx, wc, outer.scope); err != nil {
		return c.failed(err)
	}
	committed, err = f.finish(ctx, outer, c.tenant, nil, nil, c.opts.Seed, changes)
	return err
}

// lock begins the transaction, keeps migrations away from the source, and all that alters its tables, and checks whether it can be
// cloned.
func (c *clone) lock(ctx context.Context, wc *conn) error {
	f := c.fleet
	_, err := wc.Run(ctx, []wire.Step{
		{SQL: beginSQL},
		{SQL: `select pg_catalog.set_config('lock_timeout', $1, true)`, Args: []any{timeoutSetting(ChangeWaitDefault)}},
		{SQL: `select pg_catalog.pg_advisory_xact_lock_shared($1)`, Args: []any{tenantLock(c.from)}},
	})
	if err != nil {
		return err
	}
	var at standing
	var unfinished bool
	rows, _ := wc.Pgx().Query(ctx, `select `+tenantColumns+`, t.digest, exists (select from pgtenancy.unfinished u where u.tenant_id = t.id)
		from pgtenancy.tenants t where t.id = $1`, c.from) // the error is in rows
	c.source, err = pgx.CollectExactlyOneRow(rows, func(row pgx.CollectableRow) (Tenant, error) { return scanTenantAnd(row, &at.digest, &unfinished) })
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return ErrTenantNotFound
	case err != nil:
		return err
	case c.source.state != Active && c.source.state != Suspended:
		return fmt.Errorf("%w: it is %s", ErrTenantState, c.source.state)
	case unfinished:
		return invalid("Clone's source", c.from, "must have no unfinished migration: run Migrate first")
	case c.source.version != c.tenant.version:
		return invalid("Clone's source", c.from, fmt.Sprintf("must be at version %d, the newest of the migrations at hand, and is at %d: run Migrate first",
			c.tenant.version, c.source.version))
	case at.digest != f.tenant.digest(len(f.tenant.all)):
		return fmt.Errorf("%w: Migrate says what it was", ErrMigrationChanged)
	}
	if c.opts.Attributes == nil {
		c.tenant.attrs = c.source.attrs
	}
	if c.tenant, err = f.withRole(c.tenant); err != nil { // by all that it is made of
		return err
	}

	// Of each table the table itself, its indexes, its TOAST table with its index, and its sequences; those of the source are not
	// read but for the table and its indexes.
	var locks, room int
	err = wc.Pgx().QueryRow(ctx, `select coalesce(sum(case when c.relkind in ('r', 'p', 'm', 'i', 'I') then 2 else 1 end + case when c.reltoastrelid <> 0 then 2 else 0 end), 0),
			`+lockTable+` / 2
		from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace where n.nspname = $1`, c.source.schema).Scan(&locks, &room)
	if err != nil {
		return err
	}
	if locks > room {
		return invalid("Clone's source", c.from, fmt.Sprintf("must have fewer tables and indexes: the clone would take %d locks at once, and no more than %d of the server's lock table are for it; "+
			"raise max_locks_per_transaction", locks, room))
	}
	layouts, err := layout.Read(ctx, wc.Pgx(), []string{c.source.schema})
	if err != nil {
		return err
	}
	c.layout = layouts[0]
	names := make([]string, len(c.layout.Tables))
	for i, t := range c.layout.Tables {
		names[i] = ident.QuoteAll(c.source.schema, t.Name)
	}
	for _, name := range c.opts.Empty {
		if !slices.ContainsFunc(c.layout.Tables, func(t layout.Table) bool { return t.Name == name }) {
			return invalid("CloneOpts.Empty", name, "must be a table of the source, and no partition")
		}
	}
	if len(names) > 0 {
		_, err = wc.Run(ctx, []wire.Step{{SQL: "lock table " + strings.Join(names, ", ") + " in access share mode"}})
	}
	return err
}

// compare checks that the source is as its migrations make it.
func (c *clone) compare(ctx context.Context, wc *conn) error {
	cat := catalog.New()
	shapes, err := cat.ReadTx(ctx, wc.Pgx(), []catalog.Schema{{Name: c.source.schema, Role: c.source.role}, {Name: c.tenant.schema, Role: c.tenant.role}})
	if err != nil {
		return c.failed(err)
	}
	e := &DriftError{Tenant: c.from}
	for _, d := range cat.Diff(shapes[1], shapes[0]) {
		e.Differences = append(e.Differences, Difference(d))
	}
	if len(e.Differences) > 0 {
		return e
	}
	return nil
}

// copy puts the source's rows into the clone's schema.
func (c *clone) copy(ctx context.Context, wc *conn, scope *wire.Scope) error {
	from, to := c.source.schema, c.tenant.schema
	// What is left for the commit to check is in the way of ALTER TABLE: of migrations, and of the rows.
	_, err := wc.Run(ctx, []wire.Step{
		{Scope: scope}, {SQL: "set constraints all immediate"}, {SQL: saveSettings}, {SQL: copySettings}, {SQL: rowSecurity("off")},
	})
	if err != nil {
		return err
	}
	layouts, err := layout.Read(ctx, wc.Pgx(), []string{to})
	if err != nil {
		return err
	}
	l := &layouts[0]
	rules, err := layout.ReadInsertRules(ctx, wc.Pgx(), to)
	if err != nil {
		return err
	}
	inserts, err := layout.Inserts(ctx, wc.Pgx(), from, to, c.opts.Empty)
	if err != nil {
		return err
	}

	var run []wire.Step
	for _, sql := range rules.Off {
		run = append(run, wire.Step{SQL: sql})
	}
	if len(l.Tables) > 0 { // rows that migrations put there
		names := make([]string, len(l.Tables))
		for i := range l.Tables {
			names[i] = ident.QuoteAll(to, l.Tables[i].Name)
		}
		run = append(run, wire.Step{SQL: "truncate " + strings.Join(names, ", ")})
	}
	if len(inserts) > 0 {
		for i := range inserts {
			inserts[i] = fmt.Sprintf("t%d as (%s)", i, inserts[i])
		}
		run = append(run, wire.Step{SQL: "with " + strings.Join(inserts, ", ") + " select"})
	}
	for _, name := range l.Sequences { // read after the rows, so that none of these is ahead
		run = append(run, wire.Step{SQL: "select pg_catalog.setval(" + ident.Literal(ident.QuoteAll(to, name)) + "::pg_catalog.regclass, s.last_value, s.is_called) from " +
			ident.QuoteAll(from, name) + " s"})
	}
	for _, sql := range rules.On {
		run = append(run, wire.Step{SQL: sql})
	}
	for _, name := range c.layout.Views {
		run = append(run, wire.Step{SQL: "refresh materialized view " + ident.QuoteAll(to, name)})
	}
	for _, name := range l.Views {
		if !slices.Contains(c.layout.Views, name) {
			run = append(run, wire.Step{SQL: "refresh materialized view " + ident.QuoteAll(to, name) + " with no data"})
		}
	}
	run = append(run, wire.Step{SQL: "set constraints all deferred"}) // for a seed that counts on those that are
	_, err = wc.Run(ctx, append(run, wire.Step{SQL: restoreRole}, wire.Step{SQL: restoreSettings}))
	return err
}
