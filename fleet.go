package pgtenancy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
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

	// AllowBypassRLS lets the user of PoolConfig.Conns be a role that row level security does not bind: a superuser, one with
	// BYPASSRLS, or the owner of a table that has it enabled and not forced. Statements of any tenant then read and write the rows
	// of all tenants in shared tables. It is for processes that serve nobody, such as one that migrates. Defaults to false: Open
	// returns ErrRLSBypassed where a table in PoolConfig.SharedSchemas has row level security that the role bypasses, and so does
	// Migrate when it has made one.
	AllowBypassRLS bool

	// IsolateRoles gives each tenant a role of its own, which its statements run as, so that SQL that somebody else wrote reaches
	// no other tenant's rows either. It is the name of a role that these are members of, and that their names begin with: with "shop",
	// the statements of acme run as "shop:acme", where acme is what PoolConfig.SettingValue returns for the tenant when it is made,
	// and must return as long as it is there. Roles belong to the server: two databases on one need two names.
	//
	// Tenants' roles have the use of their schemas instead of AppRole. Of shared tables they have what migrations grant to the role
	// IsolateRoles, with Policy.IsolateRoles set. A superuser prepares the database with IsolateRolesSQL, and Open refuses one where
	// that was not done, or was undone, with ErrNotIsolated. A fleet that has tenants already gives them roles with IsolateTenants.
	//
	// What a tenant's role cannot do: create anything, temporary tables included, run DO and EXECUTE, and leave the role with SET or RESET,
	// also on a connection from Acquire. What functions with SECURITY DEFINER do, what extensions do that run SQL that they are given, and
	// what is done with Tx.Conn and Conn.Conn, is not held back. Pool.Shared runs as the application's role.
	//
	// Defaults to "": all statements run as the user of PoolConfig.Conns.
	IsolateRoles string

	// Migrations has the directories shared and tenant. What is in shared runs once, in the first of PoolConfig.SharedSchemas;
	// what is in tenant runs in each tenant's schema. Unqualified names resolve as they do in the Pool. Defaults to none, for a
	// service with a migration tool of its own.
	//
	// Each directory has files of one format: plain NNN_name.sql; NNN_name.up.sql and NNN_name.down.sql as golang-migrate has
	// them; goose's with "-- +goose Up" and "-- +goose Down"; tern's with "---- create above / drop below ----". NNN is a number
	// from 1 without a gap, or a timestamp of 8 digits and more, as 20060102150405.
	//
	// Each file is one transaction, unless it has a statement that cannot be in one, such as CREATE INDEX CONCURRENTLY, or asks
	// for it: in its format's way, or with "-- pgtenancy: no transaction" before the first statement. Its statements then run
	// one by one. Provision runs all of tenant in one transaction, with what was meant to be concurrent in its plain form: before
	// PostgreSQL 17, a file cannot use there what one before it has added to an enum type.
	Migrations fs.FS

	// GoMigrations are migrations that are functions, between those in files. Defaults to none.
	GoMigrations []GoMigration

	// SchemaPrefix comes before a new tenant's ID in the name of its schema. Defaults to SchemaPrefixDefault.
	SchemaPrefix string

	// Directory says how long and how much Fleet.Lookup remembers.
	Directory DirectoryConfig

	// Retention is how long after Delete the data of a tenant is kept, whatever happens: Purge refuses before, unless it is
	// forced to. Defaults to RetentionDefault.
	Retention time.Duration

	// BeforeChange is called for each change of a tenant, in the transaction of the change: see Change. Where it returns an
	// error, or panics, all is rolled back and the method that changes the tenant fails with that error. What tx is given is
	// there when the change is, and not otherwise: this is the place for what must happen with it, such as removing the rows of
	// shared tables when a purge begins, or writing down what is to be told to others. Unqualified names are those of the
	// shared schemas. ctx carries the tenant as it was before the change; committing tx ends a savepoint only. The tenant is
	// locked meanwhile, so that a call of Fleet's for it would wait in vain. Defaults to none.
	BeforeChange func(ctx context.Context, tx pgx.Tx, c Change) error

	// AfterChange is called for each change, after it was committed and by the same goroutine, before the method that made it
	// returns. It is not called where the process ends in between, nor by other processes. Defaults to none.
	AfterChange func(ctx context.Context, c Change)
}

// RetentionDefault is the default of FleetConfig.Retention.
const RetentionDefault = 30 * 24 * time.Hour

// Fleet is the control plane: the registry of tenants and everything that changes it. It is a cached Directory, and
// hands out the data plane with Pool. It is safe for concurrent use, by any number of processes at once.
type Fleet struct {
	pool      *Pool
	owner     *Pool // whose connections own the schemas; the same as pool where nothing else was configured
	directory *CachedDirectory
	prefix    string
	appRole   string // "" where nothing has to be granted
	roles     string // FleetConfig.IsolateRoles
	options   bool   // memberships of roles have options, as from PostgreSQL 16 on
	shared    migrations
	tenant    migrations
	files     fs.FS         // FleetConfig.Migrations
	waves     chan struct{} // holds one where no wave of Backup is under way
	retention time.Duration
	bypass    bool // FleetConfig.AllowBypassRLS
	before    func(context.Context, pgx.Tx, Change) error
	after     func(context.Context, Change)
	ready     atomic.Bool // the registry was seen to be one that this version works with
}

var _ Directory = (*Fleet)(nil)

// Open returns a Fleet. It connects, checks the configuration, the migrations and the registry, and changes nothing.
//
// A registry that is missing or older than this version of the library is no error yet, so that Migrate can install or
// upgrade it; all other methods return ErrRegistryOutdated until then. A registry that is too new for this version is
// ErrRegistryOutdated at once. So is ErrRLSBypassed, see FleetConfig.AllowBypassRLS; it goes by the name of the user in
// PoolConfig.Conns, and CheckRLS tells more.
//
// With FleetConfig.IsolateRoles, a database that is not prepared for it is ErrNotIsolated.
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
	var err error
	if f.shared, f.tenant, err = loadMigrations(cfg.Migrations, cfg.GoMigrations); err != nil {
		return nil, err
	}
	f.files, f.waves = cfg.Migrations, make(chan struct{}, 1)
	f.waves <- struct{}{}
	f.bypass, f.before, f.after = cfg.AllowBypassRLS, cfg.BeforeChange, cfg.AfterChange
	if f.retention = cfg.Retention; f.retention < 0 {
		return nil, invalid("FleetConfig.Retention", f.retention.String(), "must not be negative")
	} else if f.retention == 0 {
		f.retention = RetentionDefault
	}
	if _, err := cfg.Directory.withDefaults("FleetConfig.Directory"); err != nil {
		return nil, err
	}
	if cfg.AppRole != "" {
		if err := invalid("FleetConfig.AppRole", cfg.AppRole, ident.CheckName(cfg.AppRole)); err != nil {
			return nil, err
		}
	}
	if f.roles = cfg.IsolateRoles; f.roles != "" {
		if err := checkRoles("FleetConfig.IsolateRoles", f.roles); err != nil {
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
	f.directory, _ = NewDirectoryWithConfig(pool, cfg.Directory) // which was checked
	pool.roles = f.roles != ""
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
	if err := f.isolated(ctx); err != nil {
		f.Close()
		return nil, err
	}
	if err := f.checkBypass(ctx); err != nil {
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

// DirectoryStat returns a snapshot of the statistics of Lookup.
func (f *Fleet) DirectoryStat() DirectoryStat { return f.directory.Stat() }

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
// error then, joined with those of the tenants. opts may be nil. It returns when all calls have. It panics where fn does, when the
// other calls that have begun are over, with a value that has fn's and its stack as text.
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
// all calls have. A panic or a runtime.Goexit of fn's ends it too, and goes on in the caller of parallel, who can recover it.
func parallel[T any](ctx context.Context, n int, items iter.Seq2[T, error], fn func(T)) error {
	queue := make(chan T)
	var wg sync.WaitGroup
	var once sync.Once
	var panicked error // nil after a Goexit
	stop := make(chan struct{})
	for range n {
		wg.Go(func() {
			ended := false
			defer func() {
				if ended {
					return
				}
				v := recover()
				once.Do(func() { panicked = panicError(v); close(stop) })
			}()
			for item := range queue {
				fn(item)
			}
			ended = true
		})
	}
	defer func() {
		close(queue)
		wg.Wait()
		select {
		case <-stop:
			rethrow(panicked)
		default:
		}
	}()
	for item, err := range items {
		if err != nil {
			return err
		}
		select {
		case <-stop:
			return nil
		default: // where both are possible, the next one takes either
		}
		select {
		case queue <- item:
		case <-stop:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// panicError returns what a goroutine that recovered v panics with elsewhere: v and the stack of now, as text. It is nil where v is.
func panicError(v any) error {
	switch v := v.(type) {
	case nil:
		return nil
	case error:
		return fmt.Errorf("%w\n\n%s", v, debug.Stack())
	default:
		return fmt.Errorf("%v\n\n%s", v, debug.Stack())
	}
}

// rethrow does in this goroutine what another one did: panic, or end with runtime.Goexit where err is nil.
func rethrow(err error) {
	if err == nil {
		runtime.Goexit()
	}
	panic(err)
}
