package pgtenancy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgtenancy/pgtenancy/internal/ident"
	"github.com/pgtenancy/pgtenancy/internal/wire"
)

// ProvisionOpts says what a new tenant starts with.
type ProvisionOpts struct {
	// Attributes are the service's own: plan, region, ...
	Attributes map[string]string

	// Domains are hosts of the tenant's own, as "shop.acme.com". Each belongs to one tenant only.
	Domains []string

	// SeedFS has files that put the first rows into the new schema, before Seed does: those named *.sql and *.csv, in the order of
	// their names, and nothing in directories.
	//
	// The statements of a *.sql file run as Seed's do. A *.csv file goes into the table of its name, which a number may stand
	// before: 020_countries.csv is for the tenant's countries. Its first line names the columns as they are in the catalog; the
	// others get their defaults. It is read as COPY reads CSV: a value of nothing is NULL, and "" an empty text. As with COPY,
	// a sequence does not know of values that are given for its column. Defaults to none.
	SeedFS fs.FS

	// Seed puts the first rows into the new schema. Its context carries the tenant. The transaction is the one that
	// provisions: what tx is given is there when the tenant is, and not otherwise. Committing tx ends a savepoint only, and
	// rolling it back is an error, whatever Seed returns. Rows of shared tables are checked by their policies. Defaults to
	// none.
	Seed func(ctx context.Context, tx pgx.Tx) error

	// IfNotExists returns the tenant with the ID that is there already, as it is, where that is active, so that a request may
	// be repeated. Nothing else of these options is done then.
	IfNotExists bool

	// Reason goes into the history: see Change.
	Reason string
}

// Provision makes a tenant: its row in the registry, its schema, all tenant migrations, the seed. All of it is one
// transaction: the tenant is there for everybody when Provision returns, and nothing of it stays when a step fails or Provision is
// interrupted. Where KeepSpares has a schema ready, the transaction takes that instead of building one.
//
// Where the connection is lost or ctx ends while the transaction commits, nobody knows whether it has: the error is the connection's, and the
// tenant may be there. So it is with all methods that are one transaction. ProvisionOpts.IfNotExists makes it safe to call again.
//
// The errors: ErrTenantExists where the ID, the schema or a domain is taken, of any number of concurrent calls for one ID
// all but one get it, unless they all asked for ProvisionOpts.IfNotExists; *InvalidError for an ID, an attribute, a domain or
// a file of the seed that breaks a rule; *MigrationError for a migration that fails; the seed's and FleetConfig.BeforeChange's own.
// opts may be nil.
func (f *Fleet) Provision(ctx context.Context, id string, opts *ProvisionOpts) (Tenant, error) {
	var o ProvisionOpts
	if opts != nil {
		o = *opts
	}
	t, domains, err := f.newTenant(id, "", o.Attributes, o.Domains)
	if err != nil {
		return Tenant{}, err
	}
	if err := checkReason("ProvisionOpts.Reason", o.Reason); err != nil {
		return Tenant{}, err
	}
	files, err := loadSeeds(o.SeedFS)
	if err != nil {
		return Tenant{}, err
	}
	if t, err = f.withRole(t); err != nil {
		return Tenant{}, err
	}
	t.version = f.tenant.newest()
	if err := f.registryReady(ctx); err != nil {
		return Tenant{}, err
	}
	changes := madeChanges(ChangeProvision, t, domains, o.Reason)
	err = f.withOwner(ctx, func(wc *conn) error { return f.provision(ctx, wc, t, domains, files, o.Seed, changes) })
	if err != nil {
		if o.IfNotExists && errors.Is(err, ErrTenantExists) {
			return f.existing(ctx, id, err)
		}
		return Tenant{}, err
	}
	f.afterChanges(ctx, changes)
	return t, nil
}

// existing returns the active tenant with an ID, from the registry itself, or else the error otherwise.
func (f *Fleet) existing(ctx context.Context, id string, otherwise error) (Tenant, error) {
	rows, _ := f.owner.conns.Query(ctx, `select `+tenantColumns+` from pgtenancy.tenants t where t.id = $1 and t.state = 'active'`, id) // the error is in rows
	t, err := pgx.CollectExactlyOneRow(rows, scanTenant)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return Tenant{}, otherwise
	case err != nil:
		return Tenant{}, fmt.Errorf("pgtenancy: provision %s: %w", id, err)
	}
	f.directory.forget(id) // it may be remembered that there was none
	return t, nil
}

// newTenant checks what a tenant is to be made of. schema is "" for the one that goes with the ID.
func (f *Fleet) newTenant(id, schema string, attributes map[string]string, domains []string) (Tenant, []string, error) {
	if schema == "" {
		if err := checkID(f.prefix, id); err != nil {
			return Tenant{}, nil, err
		}
		schema = ident.SchemaOf(f.prefix, id)
	}
	if slices.Contains(f.pool.cfg.SharedSchemas, schema) {
		return Tenant{}, nil, invalid("Tenant.Schema", schema, "must not be one of PoolConfig.SharedSchemas")
	}
	if strings.HasPrefix(schema, asidePrefix) {
		return Tenant{}, nil, invalid("Tenant.Schema", schema, "must not begin with '"+asidePrefix+"', as those of deleted tenants do")
	}
	if strings.HasPrefix(schema, sparePrefix) && strings.HasSuffix(schema, "_") {
		return Tenant{}, nil, invalid("Tenant.Schema", schema, "must not be a name as those of KeepSpares are")
	}
	if err := checkAttributes(attributes); err != nil {
		return Tenant{}, nil, err
	}
	t, err := NewTenant(TenantInfo{ID: id, Schema: schema, Attributes: attributes})
	if err != nil {
		return Tenant{}, nil, err
	}
	canonical := make([]string, len(domains))
	for i, d := range domains {
		if canonical[i], err = canonicalDomain(d); err != nil {
			return Tenant{}, nil, err
		}
	}
	// All calls insert them in one order, so that none waits for another that waits for it.
	slices.Sort(canonical)
	return t, slices.Compact(canonical), nil
}

// provision does the work of Provision on a connection of the owner's.
func (f *Fleet) provision(ctx context.Context, wc *conn, t Tenant, domains []string, files []seedFile, seed func(context.Context, pgx.Tx) error, changes []Change) (err error) {
	committed := false
	defer func() { // also when seed panics
		if !committed && wc.TxStatus() != 'I' {
			_ = wc.Rollback(ctx) // a connection on which that fails is closed
		}
	}()

	ctx = WithTenant(ctx, t) // the caller's may carry another
	outer, run, err := f.begin(ctx, wc, t, domains, f.claimStep(), wire.Step{SQL: beginSQL})
	if err != nil {
		return err
	}
	committed, err = f.finish(ctx, outer, t, run, files, seed, changes)
	return err
}

// begin runs the first steps for a new tenant, in the transaction that they begin or that is open: it registers the tenant and makes
// the schema, of the spare that claim takes where there is one. The steps that it returns are left to do.
func (f *Fleet) begin(ctx context.Context, wc *conn, t Tenant, domains []string, claim wire.Step, first ...wire.Step) (outer *tx, run []wire.Step, err error) {
	tags, err := wc.Run(ctx, append(append(first, f.registerSteps(t, domains)...), claim))
	if err != nil {
		return nil, nil, taken(t, err)
	}
	outer = &tx{binding: binding{tenant: t}, pool: f.owner, conn: wc, scope: f.ownerScope(t)}
	spare := tags[len(tags)-1].RowsAffected() > 0
	if spare {
		run = append(run, renameStep(t))
		if t.role != "" { // as a spare has no role, it has no grants yet
			run = append(append(run, f.roleSteps(t)...), f.grantSteps(t, true)...)
		}
	} else {
		var p pipeline
		p.add(origin{}, wire.Step{SQL: "create schema " + t.path})
		p.add(origin{}, f.roleSteps(t)...)
		p.add(origin{}, f.grantSteps(t, false)...)
		if err := f.build(ctx, outer, t, &p, nil); err != nil {
			return nil, nil, err
		}
	}
	return outer, append(run, f.historySteps(t, spare)...), nil
}

// finish runs the last steps for a new tenant, its seed and what goes with each change, and commits, in the transaction that has
// made the tenant.
func (f *Fleet) finish(ctx context.Context, outer *tx, t Tenant, run []wire.Step, files []seedFile, seed func(context.Context, pgx.Tx) error,
	changes []Change,
) (committed bool, err error) {
	wc := outer.conn
	run = append(run, changeSteps(changes)...)
	if len(files) == 0 && seed == nil && f.before == nil && f.after == nil { // nothing to wait for
		if _, err := wc.Run(ctx, append(append(run, f.joinSteps(t)...), wire.Step{SQL: "commit"})); err != nil {
			return false, taken(t, err)
		}
		return true, nil
	}
	if _, err := wc.Run(ctx, append(run, wire.Step{Scope: outer.scope}, wire.Step{SQL: rowSecurity("on")})); err != nil {
		return false, taken(t, err)
	}
	for i := range files {
		if err := files[i].run(ctx, outer); err != nil {
			return false, fmt.Errorf("pgtenancy: provision %s: seed: %w", t, err)
		}
	}
	if seed != nil {
		if err := runSeed(ctx, outer, seed); err != nil {
			return false, fmt.Errorf("pgtenancy: provision %s: seed: %w", t, err)
		}
	}
	if err := f.beforeChanges(ctx, wc, t, changes); err != nil {
		return false, fmt.Errorf("pgtenancy: provision %s: %w", t, err)
	}
	if err := f.join(ctx, wc, t); err != nil {
		return false, taken(t, err)
	}
	if err := outer.Commit(ctx); err != nil {
		return false, taken(t, err)
	}
	return true, nil
}

// build runs all tenant migrations in the transaction tx, after the steps of p. after, which may be nil, is called after
// each of them.
func (f *Fleet) build(ctx context.Context, tx *tx, t Tenant, p *pipeline, after func(version int64) error) error {
	s := &schema{tenant: t, scope: tx.scope}
	send := func() error {
		if len(p.steps) == 0 {
			return nil
		}
		_, err := p.run(ctx, tx.conn, always(s))
		p.steps, p.origins = nil, nil
		var failed *MigrationError
		if err != nil && !errors.As(err, &failed) {
			return taken(t, err)
		}
		return err
	}
	for i := range f.tenant.all {
		m := &f.tenant.all[i]
		p.add(origin{&m.Up, around}, wire.Step{SQL: rowSecurity("off")})
		if m.Up.Func == nil {
			p.script(&m.Up, s.scope)
		} else {
			p.add(origin{&m.Up, around}, wire.Step{Scope: s.scope}, wire.Step{SQL: saveSettings})
			if err := send(); err != nil {
				return err
			}
			if err := runSeed(ctx, tx, m.Up.Func); err != nil {
				return failedAt(t.id, &m.Up, around, err)
			}
			p.add(origin{&m.Up, around}, wire.Step{SQL: restoreRole}, wire.Step{SQL: restoreSettings})
		}
		if after != nil {
			if err := send(); err != nil {
				return err
			}
			if err := after(m.Version); err != nil {
				return err
			}
		}
	}
	return send()
}

// runSeed calls seed in a savepoint, so that it cannot end the transaction.
func runSeed(ctx context.Context, outer pgx.Tx, seed func(context.Context, pgx.Tx) error) error {
	inner, err := outer.Begin(ctx)
	if err != nil {
		return err
	}
	tx := &seedTx{Tx: inner}
	if err := seed(ctx, tx); err != nil {
		return err
	}
	if tx.rolledBack {
		return pgx.ErrTxCommitRollback
	}
	if err := inner.Commit(ctx); err != nil && !errors.Is(err, pgx.ErrTxClosed) {
		return err
	}
	return nil
}

// seedTx tells a seed that rolled back, which fails, from one that committed itself.
type seedTx struct {
	pgx.Tx
	rolledBack bool
}

func (t *seedTx) Rollback(ctx context.Context) error {
	err := t.Tx.Rollback(ctx)
	t.rolledBack = t.rolledBack || err == nil
	return err
}

// registerSteps writes the tenant into the registry.
func (f *Fleet) registerSteps(t Tenant, domains []string) []wire.Step {
	n, _ := f.tenant.upTo(t.version)
	steps := []wire.Step{{
		SQL: `insert into pgtenancy.tenants (id, schema_name, role_name, state, version, digest, attributes)
			values ($1, $2, $3, $4, $5, $6, $7::text::jsonb)`,
		Args: []any{t.id, t.schema, t.role, t.state.String(), t.version, f.tenant.digest(n), attributesJSON(t)},
	}}
	for _, d := range domains {
		steps = append(steps, wire.Step{SQL: `insert into pgtenancy.domains (domain, tenant_id) values ($1, $2)`, Args: []any{d, t.id}})
	}
	return steps
}

// grantSteps gives the application's role, or the tenant's own, the use of the tenant's schema: of what is made there later, and
// with existing of what is there already. A spare gets its grants with its tenant where that has a role.
func (f *Fleet) grantSteps(t Tenant, existing bool) []wire.Step {
	role := ident.Quote(f.appRole)
	switch {
	case t.role != "":
		role = ident.Quote(t.role)
	case f.appRole == "" || f.roles != "":
		return nil
	}
	steps := []wire.Step{
		{SQL: "grant usage on schema " + t.path + " to " + role},
		{SQL: "alter default privileges in schema " + t.path + " grant select, insert, update, delete on tables to " + role},
		{SQL: "alter default privileges in schema " + t.path + " grant usage, select on sequences to " + role},
	}
	if existing {
		steps = append(steps,
			wire.Step{SQL: "grant select, insert, update, delete on all tables in schema " + t.path + " to " + role},
			wire.Step{SQL: "grant usage, select on all sequences in schema " + t.path + " to " + role})
	}
	return steps
}

// historySteps records that t has had all migrations up to its version, in this transaction or without being run.
func (f *Fleet) historySteps(t Tenant, adopted bool) []wire.Step {
	n, _ := f.tenant.upTo(t.version)
	if n == 0 {
		return nil
	}
	var versions []int64
	var names, checksums []string
	for i := range f.tenant.all[:n] {
		m := &f.tenant.all[i]
		versions, names, checksums = append(versions, m.Version), append(names, m.Name), append(checksums, m.Checksum)
	}
	return []wire.Step{{
		SQL: `insert into pgtenancy.migrations (tenant_id, version, name, checksum, duration)
			select $1, m.version, m.name, m.checksum, case when not $5::bool then (pg_catalog.clock_timestamp() - pg_catalog.transaction_timestamp()) / $6::int end
			from unnest($2::bigint[], $3::text[], $4::text[]) m (version, name, checksum)`,
		Args: []any{t.id, versions, names, checksums, adopted, n},
	}}
}

// taken tells a name that somebody else has for what it is.
func taken(t Tenant, err error) error {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		switch {
		case pgErr.Code == "23505" && pgErr.SchemaName == "pgtenancy":
			return fmt.Errorf("%w: %s: %w", ErrTenantExists, t, err)
		case roleTaken(t, err):
			return fmt.Errorf("%w: %s: %w", errRoleExists(t), t, err)
		case pgErr.Code == "42P06": // duplicate_schema
			return fmt.Errorf("%w: schema %s of %s is there already, and may be taken in with Adopt: %w", ErrTenantExists, t.path, t, err)
		}
	}
	return fmt.Errorf("pgtenancy: provision %s: %w", t, err)
}

// AdoptOpts says what is known of a schema that Adopt takes in.
type AdoptOpts struct {
	// Version is the last of the tenant migrations that the schema already has. The next Migrate runs the later ones. Defaults
	// to 0: it has none.
	Version int64

	// Attributes, Domains and Reason are as in ProvisionOpts.
	Attributes map[string]string
	Domains    []string
	Reason     string
}

// Adopt makes a tenant of an existing schema of any legal name, and grants the application's role the use of it, or with
// FleetConfig.IsolateRoles the tenant's role, while the application's loses that. Nothing in the schema is changed. It is one
// transaction. opts may be nil.
//
// The errors: ErrTenantExists where the ID, the schema or a domain belongs to a tenant already; *InvalidError for a value
// that breaks a rule, also where there is no such schema; FleetConfig.BeforeChange's own.
func (f *Fleet) Adopt(ctx context.Context, id, schema string, opts *AdoptOpts) (Tenant, error) {
	var o AdoptOpts
	if opts != nil {
		o = *opts
	}
	if schema == "" {
		return Tenant{}, invalid("Tenant.Schema", "", "must not be empty")
	}
	t, domains, err := f.newTenant(id, schema, o.Attributes, o.Domains)
	if err != nil {
		return Tenant{}, err
	}
	if _, ok := f.tenant.upTo(o.Version); !ok {
		return Tenant{}, invalid("AdoptOpts.Version", fmt.Sprint(o.Version), "must be the version of a tenant migration, or 0")
	}
	if err := checkReason("AdoptOpts.Reason", o.Reason); err != nil {
		return Tenant{}, err
	}
	if t, err = f.withRole(t); err != nil {
		return Tenant{}, err
	}
	t.version = o.Version
	changes := madeChanges(ChangeAdopt, t, domains, o.Reason)
	if err := f.registryReady(ctx); err != nil {
		return Tenant{}, err
	}
	err = f.withOwner(ctx, func(wc *conn) error {
		var exists bool
		if err := wc.Pgx().QueryRow(ctx, `select exists (select from pg_catalog.pg_namespace where nspname = $1)`, schema).Scan(&exists); err != nil {
			return fmt.Errorf("pgtenancy: adopt %s: %w", t, err)
		}
		if !exists {
			return invalid("Tenant.Schema", schema, "must be the name of a schema that exists")
		}
		committed := false
		defer func() { // also when BeforeChange panics
			if !committed && wc.TxStatus() != 'I' {
				_ = wc.Rollback(ctx) // a connection on which that fails is closed
			}
		}()
		run := append([]wire.Step{{SQL: beginSQL}}, f.registerSteps(t, domains)...)
		run = append(append(run, f.historySteps(t, true)...), changeSteps(changes)...)
		if t.role != "" {
			run = append(append(run, f.revokeSteps(t.schema)...), f.roleSteps(t)...)
		}
		if _, err := wc.Run(ctx, append(run, f.grantSteps(t, true)...)); err != nil {
			return taken(t, err)
		}
		if err := f.beforeChanges(ctx, wc, t, changes); err != nil {
			return fmt.Errorf("pgtenancy: adopt %s: %w", t, err)
		}
		if _, err := wc.Run(ctx, append(f.joinSteps(t), wire.Step{SQL: "commit"})); err != nil {
			return taken(t, err)
		}
		committed = true
		return nil
	})
	if err != nil {
		return Tenant{}, err
	}
	f.afterChanges(ctx, changes)
	return t, nil
}
