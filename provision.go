package pgtenancy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"unicode/utf8"

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

	// Seed puts the first rows into the new schema. Its context carries the tenant. The transaction is the one that
	// provisions: what tx is given is there when the tenant is, and not otherwise. Committing tx ends a savepoint only, and
	// rolling it back is an error, whatever Seed returns. Rows of shared tables are checked by their policies. Defaults to
	// none.
	Seed func(ctx context.Context, tx pgx.Tx) error
}

// Provision makes a tenant: its row in the registry, its schema, all tenant migrations, the seed. All of it is one
// transaction: the tenant is there for everybody when Provision returns, and nothing of it stays when a step fails.
//
// The errors: ErrTenantExists where the ID, the schema or a domain is taken, of any number of concurrent calls for one ID
// all but one get it; *InvalidError for an ID, an attribute or a domain that breaks a rule; *MigrationError for a migration
// that fails; the seed's own. opts may be nil.
func (f *Fleet) Provision(ctx context.Context, id string, opts *ProvisionOpts) (Tenant, error) {
	var o ProvisionOpts
	if opts != nil {
		o = *opts
	}
	t, domains, err := f.newTenant(id, "", o.Attributes, o.Domains)
	if err != nil {
		return Tenant{}, err
	}
	t.version = f.tenant.newest()
	if err := f.registryReady(ctx); err != nil {
		return Tenant{}, err
	}
	if err := f.withOwner(ctx, func(wc *conn) error { return f.provision(ctx, wc, t, domains, o.Seed) }); err != nil {
		return Tenant{}, err
	}
	f.directory.forget(t.id)
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
	for name, value := range attributes {
		if !utf8.ValidString(name) || !utf8.ValidString(value) {
			return Tenant{}, nil, invalid("Tenant.Attributes", name, "must be valid UTF-8 in name and value")
		}
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
func (f *Fleet) provision(ctx context.Context, wc *conn, t Tenant, domains []string, seed func(context.Context, pgx.Tx) error) (err error) {
	committed := false
	defer func() { // also when seed panics
		if !committed && wc.TxStatus() != 'I' {
			_ = wc.Rollback(ctx) // a connection on which that fails is closed
		}
	}()

	ctx = WithTenant(ctx, t) // the caller's may carry another
	if _, err := wc.Run(ctx, append([]wire.Step{{SQL: beginSQL}}, f.registerSteps(t, domains)...)); err != nil {
		return taken(t, err)
	}
	scope := f.ownerScope(t)
	outer := &tx{binding: binding{tenant: t}, pool: f.owner, conn: wc, scope: scope}
	var p pipeline
	p.add(origin{}, wire.Step{SQL: "create schema " + t.path})
	p.add(origin{}, f.grantSteps(t, false)...)
	if err := f.build(ctx, outer, t, &p, nil); err != nil {
		return err
	}
	run := append(f.historySteps(t, false), notifyStep(t.id), wire.Step{Scope: scope}, wire.Step{SQL: rowSecurity("on")})
	if _, err := wc.Run(ctx, run); err != nil {
		return fmt.Errorf("pgtenancy: provision %s: %w", t, err)
	}

	if seed != nil {
		if err := runSeed(ctx, outer, seed); err != nil {
			return fmt.Errorf("pgtenancy: provision %s: seed: %w", t, err)
		}
	}
	if err := outer.Commit(ctx); err != nil {
		return taken(t, err)
	}
	committed = true
	return nil
}

// build runs all tenant migrations in the transaction tx, after the steps of p. after, which may be nil, is called after
// each of them.
func (f *Fleet) build(ctx context.Context, tx *tx, t Tenant, p *pipeline, after func(version int64) error) error {
	s := &schema{tenant: t, scope: tx.scope}
	send := func() error {
		if len(p.steps) == 0 {
			return nil
		}
		_, err := p.run(ctx, tx.conn, s)
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
			p.add(origin{&m.Up, around}, wire.Step{Scope: s.scope})
			if err := send(); err != nil {
				return err
			}
			if err := runSeed(ctx, tx, m.Up.Func); err != nil {
				return failedAt(t.id, &m.Up, around, err)
			}
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

// grantSteps gives the application's role the use of the tenant's schema: of what is made there later, and with existing
// of what is there already.
func (f *Fleet) grantSteps(t Tenant, existing bool) []wire.Step {
	if f.appRole == "" {
		return nil
	}
	role := ident.Quote(f.appRole)
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

	// Attributes and Domains are as in ProvisionOpts.
	Attributes map[string]string
	Domains    []string
}

// Adopt makes a tenant of an existing schema of any legal name, and grants the application's role the use of it. Nothing
// in the schema is changed. It is one transaction. opts may be nil.
//
// The errors: ErrTenantExists where the ID, the schema or a domain belongs to a tenant already; *InvalidError for a value
// that breaks a rule, also where there is no such schema.
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
	t.version = o.Version
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
		run := append([]wire.Step{{SQL: beginSQL}}, f.registerSteps(t, domains)...)
		run = append(append(run, f.historySteps(t, true)...), notifyStep(t.id))
		run = append(append(run, f.grantSteps(t, true)...), wire.Step{SQL: "commit"})
		if _, err := wc.Run(ctx, run); err != nil {
			return taken(t, err)
		}
		return nil
	})
	if err != nil {
		return Tenant{}, err
	}
	f.directory.forget(t.id)
	return t, nil
}
