package pgtenancy

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgtenancy/pgtenancy/internal/ident"
	"github.com/pgtenancy/pgtenancy/internal/wire"
)

// SettingDefault is the setting that row level security policies of shared tables compare with.
const SettingDefault = "app.current_tenant"

// PoolConfig configures a Pool. Only Conns is required.
type PoolConfig struct {
	// Conns says how to connect and how many connections to keep. Required, from pgxpool.ParseConfig. Its hooks are kept.
	//
	// Its DefaultQueryExecMode may be QueryExecModeCacheStatement (pgx's default), or QueryExecModeCacheDescribe or
	// QueryExecModeExec behind a transaction pooler that does not support prepared statements. StatementCacheCapacity
	// bounds the prepared statements of one connection. A search_path in it is refused: it would be wrong for every tenant.
	// A MaxConnLifetime of 0 is taken for pgxpool's default of an hour.
	Conns *pgxpool.Config

	// Direct is a way to the database past a transaction pooler, for Acquire and LISTEN. It may have few connections.
	// Defaults to nil, which says that Conns is direct.
	Direct *pgxpool.Config

	// SharedSchemas follow the tenant's schema in search_path. Defaults to {"public"}. An empty, non-nil slice leaves only
	// the tenant's schema.
	SharedSchemas []string

	// Setting is the custom setting that holds SettingValue while a statement runs. Defaults to SettingDefault.
	Setting string

	// SettingValue makes the value of Setting, for services whose shared tables have another key than the ID. It is called
	// for every statement, must be fast and safe for concurrent use. Defaults to Tenant.ID.
	SettingValue func(Tenant) string

	// Entry is the way in which the scope is set. Defaults to EntrySettings, which is right but for AWS RDS Proxy and Citus.
	Entry Entry

	// Limits bounds what one tenant may take of the pool, from its plan, say. It is called for every statement, must be fast
	// and safe for concurrent use. Defaults to no bounds: tenants that wait are served in turn all the same.
	Limits func(Tenant) Limits

	// MaxTenantsPerConn is the number of distinct tenants, give or take a tenth, after which a connection is closed and
	// replaced: a backend never gives back the 7 to 12 kB that its caches take for each table that it has touched. Defaults to
	// MaxTenantsPerConnDefault, and where Direct is set, behind a pooler, to none: there the pooler's server_lifetime does
	// it. Less than 0 is none.
	MaxTenantsPerConn int
}

// Pool is a pool of connections whose every statement runs as the tenant in its context: unqualified names resolve in the
// tenant's schema, then in the shared ones, and the setting app.current_tenant carries the tenant's ID. Without a tenant
// in the context its methods return ErrNoTenant and send nothing.
//
// The scope is set in the same round trip as the statement that it serves and ends with that statement's transaction.
// Nothing stays on a connection, so a Pool works on a direct connection and behind a transaction pooler alike.
//
// What pgx users expect holds: NamedArgs and other query rewriters, QueryResultFormats, QueryExecMode arguments, the
// tracers of Conns.ConnConfig.Tracer (they see the SQL as the caller wrote it), pgx.ErrNoRows, *pgconn.PgError,
// cancellation by context. A Pool satisfies the interfaces that generated code asks of a pgxpool.Pool. What differs:
//
//   - Exec takes one statement, also without arguments. Several go into SendBatch.
//   - Statements that would outlive their transaction on a shared connection are refused with ErrStatementRefused:
//     BEGIN and COMMIT as text, SET, RESET, DISCARD, LISTEN, PREPARE. Begin and Acquire are there for them.
//   - What PostgreSQL runs outside transactions only (VACUUM, CREATE INDEX CONCURRENTLY) needs Acquire.
//   - Tx.LargeObjects panics: large objects belong to no schema, so one tenant could read another's.
//   - Tx.Prepare and Batch.BeginTx return an error.
//
// A Pool is safe for concurrent use.
type Pool struct {
	cfg    PoolConfig // with its defaults; Conns and Direct as the caller gave them
	conns  *conns
	direct *conns // the same as conns where that is direct
	wire   *wire.Shared
	shared wire.Scope // the scope without a tenant
	suffix string     // of search_path, after the tenant's schema
	check  func(Tenant) error
	roles  bool // a tenant without a role is refused
	db     sqlDB

	background background // what listens for directories

	queryTracer pgx.QueryTracer
	batchTracer pgx.BatchTracer
}

// NewPool returns a Pool for connString, in the form that pgxpool.ParseConfig takes. It does not wait for a connection.
// Close must be called on it.
func NewPool(ctx context.Context, connString string) (*Pool, error) {
	conns, err := pgxpool.ParseConfig(connString)
	if err != nil {
		return nil, fmt.Errorf("pgtenancy: connection string: %w", err) // pgx masks the password
	}
	return NewPoolWithConfig(ctx, &PoolConfig{Conns: conns})
}

// NewPoolWithConfig returns a Pool for cfg, which it copies. It does not wait for a connection. Close must be called on
// it. The error for a field that breaks a rule is an *InvalidError.
func NewPoolWithConfig(ctx context.Context, cfg *PoolConfig) (*Pool, error) {
	c, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	p := &Pool{cfg: c, wire: wire.NewShared(wire.Options{
		Mode:       c.Conns.ConnConfig.DefaultQueryExecMode,
		Statements: c.Conns.ConnConfig.StatementCacheCapacity,
		Entry:      wire.Entry(c.Entry),
		Setting:    c.Setting,
	})}
	if p.conns, err = newConns(ctx, c.Conns, p.wire, c.Direct != nil, c.Direct == nil && c.Entry != EntryFunction); err != nil {
		return nil, err
	}
	p.direct = p.conns
	if c.Direct != nil {
		if p.direct, err = newConns(ctx, c.Direct, p.wire, false, true); err != nil {
			p.conns.Close()
			return nil, err
		}
	}
	quoted := make([]string, 0, len(c.SharedSchemas)+1)
	for _, s := range c.SharedSchemas {
		quoted = append(quoted, ident.Quote(s))
	}
	// pg_temp is named, and last, because PostgreSQL would otherwise search it first: a temporary table could then stand
	// in for a tenant's.
	p.suffix = ", " + strings.Join(append(quoted, "pg_temp"), ", ")
	p.shared = wire.Scope{Version: wire.SharedVersion, Own: "pg_catalog", Others: p.suffix, Schema: "pg_catalog"}
	if len(c.SharedSchemas) > 0 {
		p.shared.Own, p.shared.Others, p.shared.Schema = "", strings.TrimPrefix(p.suffix, ", "), c.SharedSchemas[0]
	}
	p.queryTracer = c.Conns.ConnConfig.Tracer
	p.batchTracer, _ = c.Conns.ConnConfig.Tracer.(pgx.BatchTracer)
	return p, nil
}

// neutral returns the configuration of the connections below. Their own caches of statements are off: pgx keys them by SQL
// alone, while the same SQL is another statement for every tenant.
func neutral(c *pgxpool.Config) *pgxpool.Config {
	c = c.Copy()
	c.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
	c.ConnConfig.StatementCacheCapacity = 0
	c.ConnConfig.DescriptionCacheCapacity = 0
	return c
}

func (cfg *PoolConfig) withDefaults() (PoolConfig, error) {
	if cfg == nil {
		return PoolConfig{}, invalid("PoolConfig", "", "must not be nil")
	}
	c := *cfg
	if err := checkConns("PoolConfig.Conns", c.Conns); err != nil {
		return c, err
	}
	c.Conns = c.Conns.Copy()
	if err := wire.CheckMode(c.Conns.ConnConfig.DefaultQueryExecMode); err != nil {
		return c, invalid("PoolConfig.Conns.ConnConfig.DefaultQueryExecMode", c.Conns.ConnConfig.DefaultQueryExecMode.String(), "is not possible: "+err.Error())
	}
	if c.Direct != nil {
		if err := checkConns("PoolConfig.Direct", c.Direct); err != nil {
			return c, err
		}
		c.Direct = c.Direct.Copy()
	}
	if c.SharedSchemas == nil {
		c.SharedSchemas = []string{"public"}
	}
	c.SharedSchemas = slices.Clone(c.SharedSchemas)
	for _, s := range c.SharedSchemas {
		if err := invalid("PoolConfig.SharedSchemas", s, ident.CheckSchema(s)); err != nil {
			return c, err
		}
	}
	if c.Setting == "" {
		c.Setting = SettingDefault
	}
	if err := invalid("PoolConfig.Setting", c.Setting, ident.CheckSetting(c.Setting)); err != nil {
		return c, err
	}
	if c.SettingValue == nil {
		c.SettingValue = Tenant.ID
	}
	if c.Entry < EntrySettings || c.Entry > EntrySetLocal {
		return c, invalid("PoolConfig.Entry", fmt.Sprint(int(c.Entry)), "must be one of the package's entries")
	}
	if c.MaxTenantsPerConn == 0 && c.Direct == nil {
		c.MaxTenantsPerConn = MaxTenantsPerConnDefault
	}
	if c.Conns.MaxConnLifetime <= 0 {
		c.Conns.MaxConnLifetime = maxConnLifetime // pgx would take 0 for no bound
	}
	return c, nil
}

func checkConns(field string, conns *pgxpool.Config) error {
	if conns == nil || conns.ConnConfig == nil {
		return invalid(field, "", "must be a configuration from pgxpool.ParseConfig")
	}
	for name, value := range conns.ConnConfig.RuntimeParams {
		if strings.EqualFold(name, "search_path") {
			return invalid(field, value, "must not set search_path: every statement gets its tenant's own")
		}
		// PostgreSQL reads a '-' in the name of an option as '_'.
		if strings.EqualFold(name, "options") && strings.Contains(strings.ReplaceAll(strings.ToLower(value), "-", "_"), "search_path") {
			return invalid(field, value, "must not set search_path in options: every statement gets its tenant's own")
		}
	}
	return nil
}

// Close closes all connections. It waits until those in use have been given back.
func (p *Pool) Close() {
	p.background.close()
	p.closeDB()
	p.conns.Close()
	if p.direct != p.conns {
		p.direct.Close()
	}
}

// Config returns a copy of the configuration, with its defaults filled in.
func (p *Pool) Config() *PoolConfig {
	c := p.cfg
	c.Conns = c.Conns.Copy()
	if c.Direct != nil {
		c.Direct = c.Direct.Copy()
	}
	c.SharedSchemas = slices.Clone(c.SharedSchemas)
	return &c
}

// Stat is a snapshot of a Pool's statistics.
type Stat struct {
	*pgxpool.Stat // of the connections for statements and transactions

	// Direct is the same of the connections that PoolConfig.Direct describes, nil where there are none of their own.
	Direct *pgxpool.Stat

	total   TenantStat
	tenants map[string]TenantStat
}

// Stat returns a snapshot of the pool's statistics.
func (p *Pool) Stat() *Stat {
	s := &Stat{Stat: p.conns.Stat()}
	s.total, s.tenants = tenantStats(p.conns.queue)
	if p.direct != p.conns {
		s.Direct = p.direct.Stat()
	}
	return s
}

// Ping checks that a connection can be had and answers. It needs no tenant.
func (p *Pool) Ping(ctx context.Context) error { return p.conns.Ping(ctx) }

// For returns the pool bound to t, for jobs, scripts and tests. The context of its methods need not carry a tenant; one
// that carries another is ErrTenantMismatch.
func (p *Pool) For(t Tenant) *Scope { return &Scope{pool: p, tenant: t} }

// Shared returns the pool bound to no tenant: unqualified names resolve in the shared schemas only, and the tenant's
// setting is empty, so that row level security shows no tenant's rows. Any context will do, one with a tenant too.
func (p *Pool) Shared() *Scope { return &Scope{pool: p, shared: true} }

// scope returns the pool bound to the tenant of ctx.
func (p *Pool) scope(ctx context.Context) (Scope, error) {
	t, ok := TenantFromContext(ctx)
	if !ok {
		return Scope{}, ErrNoTenant
	}
	return Scope{pool: p, tenant: t}, nil
}

// wireScope returns what t's statements run in.
func (p *Pool) wireScope(t Tenant) (wire.Scope, error) {
	switch t.state {
	case Suspended:
		return wire.Scope{}, fmt.Errorf("%w: %s", ErrTenantSuspended, t.id)
	case Deleted:
		return wire.Scope{}, fmt.Errorf("%w: %s is deleted", ErrTenantNotFound, t.id)
	}
	if slices.Contains(p.cfg.SharedSchemas, t.schema) {
		return wire.Scope{}, invalid("Tenant.Schema", t.schema, "must not be one of PoolConfig.SharedSchemas")
	}
	if p.roles && t.role == "" {
		return wire.Scope{}, fmt.Errorf("%w: tenant %s has no role: see Fleet.IsolateTenants", ErrNotIsolated, t.id)
	}
	if p.check != nil {
		if err := p.check(t); err != nil {
			return wire.Scope{}, err
		}
	}
	var limits Limits
	if p.cfg.Limits != nil {
		limits = p.cfg.Limits(t)
	}
	value := p.cfg.SettingValue(t)
	if strings.IndexByte(value, 0) >= 0 {
		return wire.Scope{}, invalid("PoolConfig.SettingValue", value, "must not return a NUL character")
	}
	return wire.Scope{
		Value: value, Own: t.path, Others: p.suffix, Schema: t.schema, Role: t.role, Version: t.version, Timeouts: limits.timeouts(),
	}, nil
}

// Exec runs one statement as the tenant in ctx. Otherwise it is as pgxpool.Pool's.
func (p *Pool) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	s, err := p.scope(ctx)
	if err != nil {
		return pgconn.CommandTag{}, err
	}
	return s.Exec(ctx, sql, args...)
}

// Query runs one statement as the tenant in ctx. Its rows hold a connection until they are closed, which reading them to
// the end does. Otherwise it is as pgxpool.Pool's.
func (p *Pool) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	s, err := p.scope(ctx)
	if err != nil {
		return wire.ErrRows{Error: err}, err
	}
	return s.Query(ctx, sql, args...)
}

// QueryRow runs one statement as the tenant in ctx. All errors come from the row's Scan, which must be called, for it
// gives the connection back. Otherwise it is as pgxpool.Pool's.
func (p *Pool) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	return rowOf(p.Query(ctx, sql, args...))
}

// SendBatch runs the batch as the tenant in ctx, in one transaction of its own. Nothing of it stays when one of its
// statements fails. Its results hold a connection until they are closed; the batch is committed then.
func (p *Pool) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	s, err := p.scope(ctx)
	if err != nil {
		return pgx.FailedBatchResults(b, err)
	}
	return s.SendBatch(ctx, b)
}

// CopyFrom copies rows into a table as the tenant in ctx, in one transaction of its own. PostgreSQL refuses COPY into a
// table with row level security: such rows go in with INSERT ... SELECT FROM unnest, or with SendBatch.
func (p *Pool) CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, src pgx.CopyFromSource) (int64, error) {
	s, err := p.scope(ctx)
	if err != nil {
		return 0, err
	}
	return s.CopyFrom(ctx, table, columns, src)
}

// Begin starts a transaction as the tenant in ctx. See BeginTx.
func (p *Pool) Begin(ctx context.Context) (pgx.Tx, error) { return p.BeginTx(ctx, pgx.TxOptions{}) }

// BeginTx starts a transaction as the tenant in ctx, in one round trip. It holds a connection until Commit or Rollback.
// As with pgx, ctx governs only the start. The transaction's Rollback works on a cancelled context too.
func (p *Pool) BeginTx(ctx context.Context, opts pgx.TxOptions) (pgx.Tx, error) {
	s, err := p.scope(ctx)
	if err != nil {
		return nil, err
	}
	return s.BeginTx(ctx, opts)
}

// Acquire returns a connection of its own whose session belongs to the tenant in ctx, for what lives longer than a
// transaction or cannot run in one: LISTEN, session advisory locks, temporary tables, VACUUM. Release must be called on
// it. Behind a transaction pooler it needs PoolConfig.Direct.
func (p *Pool) Acquire(ctx context.Context) (*Conn, error) {
	s, err := p.scope(ctx)
	if err != nil {
		return nil, err
	}
	return s.Acquire(ctx)
}

// AcquireFunc calls f with a connection as Acquire returns it, and releases it afterwards, also when f panics. ctx governs
// the acquiring only.
func (p *Pool) AcquireFunc(ctx context.Context, f func(*Conn) error) error {
	s, err := p.scope(ctx)
	if err != nil {
		return err
	}
	return s.AcquireFunc(ctx, f)
}
