package pgtenancy

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgtenancy/pgtenancy/internal/fair"
	"github.com/pgtenancy/pgtenancy/internal/wire"
)

// Entry is a way to set the scope of a statement. All of them set the same, and take one round trip.
type Entry int

// The entries.
const (
	// EntrySettings sets the scope with one statement that calls set_config. It is right on PostgreSQL and behind poolers.
	EntrySettings Entry = iota

	// EntryFunction calls the stored function pgtenancy.enter, which Fleet.Migrate installs. It is for AWS RDS Proxy, which
	// pins a session to a client for a SET or a set_config that it sees, and documents that calls of stored functions do not
	// pin (https://docs.aws.amazon.com/AmazonRDS/latest/AuroraUserGuide/rds-proxy-pinning.html).
	EntryFunction

	// EntrySetLocal sets the tenant's setting with SET LOCAL, and each statement has BEGIN and COMMIT around it. It is for row
	// level security on Citus, which passes SET LOCAL on to its workers where citus.propagate_set_commands is 'local', and
	// never a set_config.
	EntrySetLocal
)

// MaxTenantsPerConnDefault is PoolConfig.MaxTenantsPerConn unless something else is said.
const MaxTenantsPerConnDefault = 1024

// maxConnLifetime is pgxpool's default.
const maxConnLifetime = time.Hour

// Limits bounds what one tenant may take of a Pool, in one process: the tenant's share of the database is that times the
// number of processes. In each field 0 is no bound.
type Limits struct {
	// Conns is the number of connections that the tenant may have at a time. A transaction holds one, and so do rows and batch
	// results until they are closed. A caller that needs two at a time must not be bounded to one.
	Conns int

	// Waiters is the number of callers that may wait for a connection for the tenant. One more gets ErrTenantBusy at once.
	// Less than 0 is none at all.
	Waiters int

	// StatementTimeout, LockTimeout and IdleInTransactionTimeout set statement_timeout, lock_timeout and
	// idle_in_transaction_session_timeout while a statement or transaction of the tenant runs. They are rounded down to
	// milliseconds, and are at least one.
	StatementTimeout         time.Duration
	LockTimeout              time.Duration
	IdleInTransactionTimeout time.Duration
}

func (l Limits) timeouts() wire.Timeouts {
	return wire.Timeouts{Statement: l.StatementTimeout, Lock: l.LockTimeout, IdleInTransaction: l.IdleInTransactionTimeout}
}

// TenantStat is what one tenant, or all of them, have and had of a Pool's connections.
type TenantStat struct {
	InUse   int           // connections
	Waiting int           // callers that wait for one
	Waited  int64         // times that a caller had to wait
	Wait    time.Duration // how long they did, in all
	Refused int64         // times that Limits.Waiters was reached
}

// Total returns the figures of all tenants together, since the Pool was made.
func (s *Stat) Total() TenantStat { return s.total }

// Tenants returns the figures of the tenants that have connections or wait for one now, each since it last had neither, by
// ID. The statements of Pool.Shared count under "". The map is the caller's.
func (s *Stat) Tenants() map[string]TenantStat { return s.tenants }

func tenantStats(q *fair.Queue) (total TenantStat, tenants map[string]TenantStat) {
	tenants = make(map[string]TenantStat)
	for id, s := range q.Keys() {
		tenants[id] = TenantStat(s)
	}
	return TenantStat(q.Stat()), tenants
}

// conns are connections that tenants take in turn.
type conns struct {
	*pgxpool.Pool
	queue *fair.Queue
}

// startRoleSQL returns the role that ALTER ROLE and ALTER DATABASE make a session start with.
const startRoleSQL = `coalesce((
	select substr(c, 6)
	from pg_catalog.pg_db_role_setting s cross join unnest(s.setconfig) c
	where c like 'role=%'
		and s.setdatabase in (0, (select d.oid from pg_catalog.pg_database d where d.datname = current_database()))
		and s.setrole in (0, (select r.oid from pg_catalog.pg_roles r where r.rolname = session_user))
	order by s.setdatabase <> 0 and s.setrole <> 0 desc, s.setrole <> 0 desc, s.setdatabase <> 0 desc
	limit 1
), 'none')`

// newConns returns connections to the server, or with pooler to a pooler in front of it.
//
// Each connection learns the role of statements whose tenant has none: what ALTER ROLE, the connection string or the user's
// hook has made it. Behind a pooler it may be what somebody else's SQL has made it, and only ALTER ROLE counts. With probe it
// also finds out whether there is a pooler that nobody told of.
func newConns(ctx context.Context, cfg *pgxpool.Config, shared *wire.Shared, pooler, probe bool) (*conns, error) {
	cfg = neutral(cfg)
	after := cfg.AfterConnect
	cfg.AfterConnect = func(ctx context.Context, c *pgx.Conn) error {
		if after != nil {
			if err := after(ctx, c); err != nil {
				return err
			}
		}
		role := "pg_catalog.current_setting('role')"
		if pooler {
			role = startRoleSQL
		}
		sql := "select " + role
		if probe {
			// A pooler makes up the process that it says the connection has. On a connection without one, nothing resolves outside a
			// scope; and PostgreSQL, which works out the path anew before each scope is entered, has an easy one.
			sql += fmt.Sprintf(", case when pg_catalog.pg_backend_pid() operator(pg_catalog.=) %d then pg_catalog.set_config('search_path', '', false) end",
				c.PgConn().PID())
		}
		result := c.PgConn().ExecParams(ctx, sql, nil, nil, nil, nil).Read()
		if result.Err != nil {
			return result.Err
		}
		direct := probe && result.Rows[0][1] != nil
		c.PgConn().CustomData()[customData] = &conn{Conn: *wire.NewConn(c, shared, string(result.Rows[0][0]), direct)}
		return nil
	}
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("pgtenancy: %w", err)
	}
	return &conns{pool, fair.New(int(cfg.MaxConns))}, nil
}

// conn is what is kept with a connection for as long as it lasts.
type conn struct {
	wire.Conn
	rows []rows // room for those to come: a rows of its own for each query would be one allocation more
}

func (c *conn) newRows() *rows {
	if len(c.rows) == 0 {
		c.rows = make([]rows, 16)
	}
	r := &c.rows[0]
	c.rows = c.rows[1:]
	return r
}

// lease is a connection in use by one tenant.
type lease struct {
	*conn
	pooled *pgxpool.Conn
	of     *conns
	tenant string
	most   int // tenants that the connection may serve; 0 or less is any number
}

// acquire returns a connection for a statement or transaction of t, in its turn. The caller releases it. Where it had to wait for its
// turn or for a connection to be made, it is checked again whether t may have one: it may have been suspended or deleted meanwhile.
func (p *Pool) acquire(ctx context.Context, of *conns, t Tenant) (lease, error) {
	var limit fair.Limit
	if p.cfg.Limits != nil && t.id != "" {
		l := p.cfg.Limits(t)
		limit = fair.Limit{Places: l.Conns, Waiters: l.Waiters}
	}
	waited, err := of.queue.Acquire(ctx, t.id, limit)
	if err != nil {
		if errors.Is(err, fair.ErrBusy) {
			err = fmt.Errorf("%w: %s", ErrTenantBusy, t.id)
		}
		return lease{}, err
	}
	pooled, err := of.Acquire(ctx)
	if err != nil {
		of.queue.Release(t.id)
		return lease{}, err
	}
	c := pooled.Conn().PgConn().CustomData()[customData].(*conn)
	if (waited || c.Served() == 0) && p.check != nil && t.id != "" {
		if err := p.check(t); err != nil {
			pooled.Release()
			of.queue.Release(t.id)
			return lease{}, err
		}
	}
	return lease{c, pooled, of, t.id, p.cfg.MaxTenantsPerConn}, nil
}

// customData is where pgconn keeps a conn with its connection.
const customData = "pgtenancy"

// Release gives the connection back, or ends it where it has served enough tenants. It must be called once.
func (l lease) Release() {
	if l.most > 0 && l.Served() >= l.jittered(l.most) {
		l.end() // the pool makes another one
	}
	l.pooled.Release()
	l.of.queue.Release(l.tenant)
}

// end closes the connection, which takes it out of the pool when it is released.
func (l lease) end() {
	ctx, cancel := context.WithTimeout(context.Background(), wire.CleanupTimeout)
	defer cancel()
	_ = l.Pgx().Close(ctx) // nothing is left to do with it
}

var jitterSeed = maphash.MakeSeed()

// jittered spreads n by up to a tenth to either side, the same for a connection each time, so that connections do not end
// all at once.
func (l lease) jittered(n int) int {
	spread := n / 10
	if spread == 0 {
		return n
	}
	pid := l.Pgx().PgConn().PID()
	return n - spread + int(maphash.Comparable(jitterSeed, pid)%uint64(2*spread+1))
}
