package pgtenancy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgtenancy/pgtenancy/internal/ident"
	"github.com/pgtenancy/pgtenancy/internal/wire"
)

// FleetConfig configures a Fleet. Only PoolConfig.Conns is required.
type FleetConfig struct {
	// PoolConfig configures the data plane, which Fleet.Pool hands out.
	PoolConfig PoolConfig

	// Owner connects as the role that owns the schemas, directly and not through a transaction pooler. It needs CREATE on the
	// database. Defaults to PoolConfig.Direct, and where that is nil to PoolConfig.Conns.
	Owner *pgxpool.Config

	// AppRole is the role that is granted the use of tenants' schemas and of the registry: USAGE on the schemas, SELECT,
	// INSERT, UPDATE and DELETE on their tables, USAGE and SELECT on their sequences. Shared tables are granted by the
	// migrations that make them. Defaults to the user of PoolConfig.Conns; nothing is granted where that is Owner's too.
	AppRole string

	// Migrations has the directories shared and tenant with files named NNN_name.sql, numbered from 1 without a gap. Those in
	// shared run once, in the first of PoolConfig.SharedSchemas; those in tenant run in each tenant's schema. Each file is one
	// transaction, except that Provision runs all of tenant in one: before PostgreSQL 17, a file cannot use there what one before
	// it has added to an enum type. Unqualified names resolve as they do in the Pool. Defaults to none, for a service with a
	// migration tool of its own.
	Migrations fs.FS

	// SchemaPrefix comes before a new tenant's ID in the name of its schema. Defaults to SchemaPrefixDefault.
	SchemaPrefix string
}

// Fleet is the control plane: the registry of tenants and everything that changes it. It is a cached Directory, and
// hands out the data plane with Pool. It is safe for concurrent use, by any number of processes at once.
type Fleet struct {
	pool      *Pool
	owner     *Pool // whose connections own the schemas; the same as pool where nothing else was configured
	directory *CachedDirectory
	prefix    string
	appRole   string // "" where nothing has to be granted
	shared    []migration
	tenant    []migration
	ready     atomic.Bool // the registry was seen to be one that this version works with
}

var _ Directory = (*Fleet)(nil)

// Open returns a Fleet. It connects, checks the configuration, the migrations and the registry, and changes nothing.
//
// A registry that is missing or older than this version of the library is no error yet, so that Migrate can install or
// upgrade it; all other methods return ErrRegistryOutdated until then. A registry that is too new for this version is
// ErrRegistryOutdated at once.
//
// Close must be called on the Fleet.
func Open(ctx context.Context, cfg FleetConfig) (*Fleet, error) {
	f := &Fleet{prefix: cfg.SchemaPrefix}
	if f.prefix == "" {
		f.prefix = SchemaPrefixDefault
	}
	if err := invalid("FleetConfig.SchemaPrefix", f.prefix, ident.CheckPrefix(f.prefix)); err != nil {
		return nil, err
	}
	if cfg.Migrations != nil {
		var err error
		if f.shared, f.tenant, err = loadMigrations(cfg.Migrations); err != nil {
			return nil, err
		}
	}
	if cfg.AppRole != "" {
		if err := invalid("FleetConfig.AppRole", cfg.AppRole, ident.CheckName(cfg.AppRole)); err != nil {
			return nil, err
		}
	}
	if cfg.Owner != nil {
		if err := checkConns("FleetConfig.Owner", cfg.Owner); err != nil {
			return nil, err
		}
	}

	pool, err := NewPoolWithConfig(ctx, &cfg.PoolConfig)
	if err != nil {
		return nil, err
	}
	f.pool, f.owner = pool, pool
	if cfg.Owner == nil {
		cfg.Owner = cfg.PoolConfig.Direct
	}
	if cfg.Owner != nil {
		ownerConfig := cfg.PoolConfig
		ownerConfig.Conns, ownerConfig.Direct = cfg.Owner, nil
		if f.owner, err = NewPoolWithConfig(ctx, &ownerConfig); err != nil {
			pool.Close()
			var invalid *InvalidError
			if errors.As(err, &invalid) {
				invalid.Field = strings.Replace(invalid.Field, "PoolConfig.Conns", "FleetConfig.Owner", 1)
			}
			return nil, err
		}
	}
	f.directory = NewDirectory(pool)
	f.appRole = cfg.AppRole
	if f.appRole == "" {
		f.appRole = pool.cfg.Conns.ConnConfig.User
	}
	if f.appRole == f.owner.cfg.Conns.ConnConfig.User {
		f.appRole = ""
	}

	if err := f.registryReady(ctx); err != nil && (!errors.Is(err, ErrRegistryOutdated) || errors.Is(err, errRegistryTooNew)) {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Close closes the fleet and its Pool. It waits until connections in use have been given back.
func (f *Fleet) Close() {
	f.pool.Close()
	if f.owner != f.pool {
		f.owner.Close()
	}
}

// Pool returns the data plane. It is closed with the Fleet.
func (f *Fleet) Pool() *Pool { return f.pool }

// Lookup returns the tenant of k, from memory where it was looked up before: see CachedDirectory.
func (f *Fleet) Lookup(ctx context.Context, k Key) (Tenant, error) { return f.directory.Lookup(ctx, k) }

// ownerScope returns what statements of the control plane run in for t, whatever its state and role.
func (f *Fleet) ownerScope(t Tenant) *wire.Scope {
	p := f.owner
	return &wire.Scope{
		Value: p.cfg.SettingValue(t), Own: t.path, Others: p.suffix, Schema: t.schema, Version: t.version,
	}
}

// withOwner calls fn with a connection of the role that owns the schemas.
func (f *Fleet) withOwner(ctx context.Context, fn func(*conn) error) error {
	c, err := f.owner.acquire(ctx, f.owner.conns, Tenant{})
	if err != nil {
		return fmt.Errorf("pgtenancy: %w", err)
	}
	defer c.Release()
	return fn(c.conn)
}

// TenantsOpts says which tenants.
type TenantsOpts struct {
	// States defaults to {Active}.
	States []State
}

// tenantsPage is how many tenants one query reads, so that neither a connection nor memory is held for all of them.
const tenantsPage = 1000

// Tenants iterates over the tenants in the registry, ordered by ID. It reads a page at a time and holds no connection in
// between, so that it is no snapshot: a tenant that comes or goes meanwhile may be seen or not. opts may be nil. An error
// ends it.
func (f *Fleet) Tenants(ctx context.Context, opts *TenantsOpts) iter.Seq2[Tenant, error] {
	states := []State{Active}
	if opts != nil && len(opts.States) > 0 {
		states = opts.States
	}
	return func(yield func(Tenant, error) bool) {
		if err := f.registryReady(ctx); err != nil {
			yield(Tenant{}, err)
			return
		}
		names := make([]string, len(states))
		for i, s := range states {
			names[i] = s.String()
		}
		for after := ""; ; {
			rows, _ := f.owner.conns.Query(ctx, `select `+tenantColumns+` from pgtenancy.tenants t
				where t.state = any($1::text[]) and t.id > $2 order by t.id limit $3`, names, after, tenantsPage) // the error is in rows
			page, err := pgx.CollectRows(rows, scanTenant)
			if err != nil {
				yield(Tenant{}, fmt.Errorf("pgtenancy: list tenants: %w", err))
				return
			}
			for _, t := range page {
				if !yield(t, nil) {
					return
				}
			}
			if len(page) < tenantsPage {
				return
			}
			after = page[len(page)-1].id
		}
	}
}

// EachOpts says over which tenants Each goes, and how.
type EachOpts struct {
	// Parallel is the number of calls at a time. Defaults to 1.
	Parallel int

	// States defaults to {Active}. Pool refuses tenants that are suspended or deleted.
	States []State
}

// EachError lists the tenants for which the function of Each failed.
type EachError struct {
	Failed []TenantError // ordered by ID
}

// TenantError is an error for one tenant.
type TenantError struct {
	Tenant Tenant
	Err    error
}

// Error names the tenant and its error.
func (e *TenantError) Error() string { return fmt.Sprintf("tenant %s: %v", e.Tenant, e.Err) }

// Unwrap returns Err.
func (e *TenantError) Unwrap() error { return e.Err }

// Error lists the first few of the failures.
func (e *EachError) Error() string {
	return "pgtenancy: " + summarize(len(e.Failed), func(i int) string { return e.Failed[i].Error() })
}

// Unwrap returns the errors of all tenants that failed.
func (e *EachError) Unwrap() []error {
	errs := make([]error, len(e.Failed))
	for i := range e.Failed {
		errs[i] = &e.Failed[i]
	}
	return errs
}

// summarize joins the first few of n failures.
func summarize(n int, text func(int) string) string {
	const most = 3
	var b strings.Builder
	fmt.Fprintf(&b, "%d failed: ", n)
	for i := range min(n, most) {
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(text(i))
	}
	if n > most {
		fmt.Fprintf(&b, "; and %d more", n-most)
	}
	return b.String()
}

// Each calls fn for each tenant, with a context that carries it. It goes on past a tenant for which fn fails, and returns
// an *EachError that lists those. It stops early when ctx is cancelled or the registry cannot be read, and returns that
// error then, joined with those of the tenants. opts may be nil. It returns when all calls have.
func (f *Fleet) Each(ctx context.Context, opts *EachOpts, fn func(ctx context.Context, t Tenant) error) error {
	var o EachOpts
	if opts != nil {
		o = *opts
	}
	var mu sync.Mutex
	var failed []TenantError
	err := parallel(ctx, max(o.Parallel, 1), f.Tenants(ctx, &TenantsOpts{States: o.States}), func(t Tenant) {
		if err := fn(WithTenant(ctx, t), t); err != nil {
			mu.Lock()
			defer mu.Unlock()
			failed = append(failed, TenantError{t, err})
		}
	})
	if len(failed) == 0 {
		return err
	}
	slices.SortFunc(failed, func(a, b TenantError) int { return strings.Compare(a.Tenant.id, b.Tenant.id) })
	return errors.Join(err, &EachError{failed})
}

// parallel calls fn for each item, n at a time, until the items end or have an error, or ctx is cancelled. It returns when
// all calls have.
func parallel[T any](ctx context.Context, n int, items iter.Seq2[T, error], fn func(T)) error {
	queue := make(chan T)
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			for item := range queue {
				fn(item)
			}
		})
	}
	defer wg.Wait()
	defer close(queue)
	for item, err := range items {
		if err != nil {
			return err
		}
		select {
		case queue <- item:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// The registry.

// registryVersion is the version of the registry that this version of the library installs. It works with a newer one
// whose column oldest is at most this.
const registryVersion = 1

// registryLock is the key of the transaction-level advisory lock that upgrades of the registry and shared migrations hold:
// the first eight bytes of the SHA-256 of "pgtenancy/registry".
const registryLock = -8183244772174092182

// registrySteps has for each version the statements that make it of the one before.
var registrySteps = [][]string{
	1: {
		`create schema pgtenancy`,
		`create table pgtenancy.registry (
			version int not null, -- of these tables
			oldest int not null -- the oldest version of the library's that can work with them
		)`,
		`create unique index registry_one_row on pgtenancy.registry ((true))`,
		`insert into pgtenancy.registry (version, oldest) values (0, 0)`,
		`create table pgtenancy.tenants (
			id text primary key,
			schema_name text not null unique,
			role_name text not null default '',
			state text not null check (state in ('provisioning', 'active', 'suspended', 'deleted')),
			version bigint not null default 0, -- the last migration applied to the schema
			attributes jsonb not null default '{}' check (jsonb_typeof(attributes) = 'object'),
			created_at timestamptz not null default now(),
			updated_at timestamptz not null default now()
		)`,
		`create table pgtenancy.domains (
			domain text primary key,
			tenant_id text not null references pgtenancy.tenants (id) on delete cascade
		)`,
		`create index domains_tenant_id on pgtenancy.domains (tenant_id)`,
		`create table pgtenancy.migrations (
			tenant_id text not null, -- '' for those of the shared schemas
			version bigint not null,
			name text not null,
			checksum text not null, -- SHA-256 of the file, in hexadecimal
			duration interval not null,
			applied_at timestamptz not null default now(),
			applied_by text not null default session_user,
			primary key (tenant_id, version)
		)`,
		wire.EnterFunction,
		`revoke all on function pgtenancy.enter (text[], text[], text) from public`,
	},
}

var errRegistryTooNew = errors.New("registry is too new")

// registryReady checks that the registry is one that this version works with.
func (f *Fleet) registryReady(ctx context.Context) error {
	if f.ready.Load() {
		return nil
	}
	var version, oldest int
	err := f.owner.conns.QueryRow(ctx, `select version, oldest from pgtenancy.registry`).Scan(&version, &oldest)
	if err := checkRegistry(version, oldest, err); err != nil {
		return err
	}
	f.ready.Store(true)
	return nil
}

func checkRegistry(version, oldest int, err error) error {
	switch {
	case isCode(err, "3F000", "42P01"): // invalid_schema_name, undefined_table
		return fmt.Errorf("%w: there is none: run Fleet.Migrate: %w", ErrRegistryOutdated, err)
	case err != nil:
		return fmt.Errorf("pgtenancy: read the registry's version: %w", err)
	case oldest > registryVersion:
		return fmt.Errorf("%w: %w: it is of version %d, this library knows %d: update the library", ErrRegistryOutdated, errRegistryTooNew, version, registryVersion)
	case version < registryVersion:
		return fmt.Errorf("%w: it is of version %d, this library needs %d: run Fleet.Migrate", ErrRegistryOutdated, version, registryVersion)
	}
	return nil
}

// installRegistry installs or upgrades the registry and makes shared schemas that are missing, in one transaction. It
// returns the version that it found, 0 where there was none.
func (f *Fleet) installRegistry(ctx context.Context) (from int, err error) {
	err = pgx.BeginTxFunc(ctx, f.owner.conns, pgx.TxOptions{BeginQuery: beginSQL}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `select pg_advisory_xact_lock($1)`, registryLock); err != nil {
			return err
		}
		var exists bool
		if err := tx.QueryRow(ctx, `select to_regclass('pgtenancy.registry') is not null`).Scan(&exists); err != nil {
			return err
		}
		if exists {
			var oldest int
			if err := tx.QueryRow(ctx, `select version, oldest from pgtenancy.registry`).Scan(&from, &oldest); err != nil {
				return err
			}
			if err := checkRegistry(from, oldest, nil); errors.Is(err, errRegistryTooNew) {
				return err
			}
		}
		for v := from + 1; v <= registryVersion; v++ {
			for _, sql := range registrySteps[v] {
				if _, err := tx.Exec(ctx, sql); err != nil {
					return err
				}
			}
			if _, err := tx.Exec(ctx, `update pgtenancy.registry set version = $1, oldest = $2`, v, 1); err != nil {
				return err
			}
		}
		return f.prepareShared(ctx, tx)
	})
	if err != nil {
		return 0, fmt.Errorf("pgtenancy: install the registry: %w", err)
	}
	return from, nil
}

// prepareShared makes the shared schemas that are missing, and grants the application's role what it needs of them and of
// the registry, where it has not got that yet.
func (f *Fleet) prepareShared(ctx context.Context, tx pgx.Tx) error {
	for _, schema := range f.pool.cfg.SharedSchemas {
		var exists bool
		if err := tx.QueryRow(ctx, `select exists (select from pg_catalog.pg_namespace where nspname = $1)`, schema).Scan(&exists); err != nil {
			return err
		}
		if !exists {
			if _, err := tx.Exec(ctx, `create schema `+ident.Quote(schema)); err != nil {
				return err
			}
		}
	}
	if f.appRole == "" {
		return nil
	}
	for _, schema := range append([]string{"pgtenancy"}, f.pool.cfg.SharedSchemas...) {
		var granted bool
		if err := tx.QueryRow(ctx, `select has_schema_privilege($1, $2, 'usage')`, f.appRole, schema).Scan(&granted); err != nil {
			return err
		}
		if !granted {
			if _, err := tx.Exec(ctx, `grant usage on schema `+ident.Quote(schema)+` to `+ident.Quote(f.appRole)); err != nil {
				return err
			}
		}
	}
	const enter = `pgtenancy.enter (text[], text[], text)`
	var granted bool
	if err := tx.QueryRow(ctx, `select has_function_privilege($1, $2, 'execute')`, f.appRole, enter).Scan(&granted); err != nil {
		return err
	}
	if !granted {
		if _, err := tx.Exec(ctx, `grant execute on function `+enter+` to `+ident.Quote(f.appRole)); err != nil {
			return err
		}
	}
	for _, table := range []string{"registry", "tenants", "domains"} {
		var granted bool
		if err := tx.QueryRow(ctx, `select has_table_privilege($1, $2, 'select')`, f.appRole, "pgtenancy."+table).Scan(&granted); err != nil {
			return err
		}
		if !granted {
			if _, err := tx.Exec(ctx, `grant select on `+ident.QuoteAll("pgtenancy", table)+` to `+ident.Quote(f.appRole)); err != nil {
				return err
			}
		}
	}
	return nil
}

// beginSQL begins a transaction of the control plane's, whose statements must see what was committed while they waited for
// a lock, whatever default_transaction_isolation is.
const beginSQL = "begin isolation level read committed"

func isCode(err error, codes ...string) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && slices.Contains(codes, pgErr.Code)
}

func attributesJSON(t Tenant) string {
	m := map[string]string{}
	for name, value := range t.Attributes() {
		m[name] = value
	}
	b, _ := json.Marshal(m) // a map of strings always can be
	return string(b)
}
