package pgtenancy

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgtenancy/pgtenancy/internal/wire"
)

// Conn is a connection whose session belongs to one tenant: see Pool.Acquire. Its methods check the tenant of their
// context as Pool's do. SET, LISTEN and other session state are allowed; what a caller sets search_path or the tenant's
// setting to is the caller's until Release.
//
// A Conn is not safe for concurrent use.
type Conn struct {
	binding
	pool  *Pool
	conn  *conn
	scope *wire.Scope
	lease lease

	release  sync.Once
	released atomic.Bool
}

// errReleased keeps a Conn from reaching whoever has the connection after it.
var errReleased = errors.New("pgtenancy: the connection was released")

// enter checks that the connection is still the caller's and may be used with ctx.
func (c *Conn) enter(ctx context.Context) error {
	if c.released.Load() {
		return errReleased
	}
	return c.match(ctx)
}

// Acquire is Pool.Acquire for the tenant of s.
func (s *Scope) Acquire(ctx context.Context) (*Conn, error) {
	ws, err := s.enter(ctx)
	if err != nil {
		return nil, err
	}
	l, err := s.pool.acquire(ctx, s.pool.direct, s.tenant)
	if err != nil {
		return nil, err
	}
	c := &Conn{binding: s.binding(), pool: s.pool, conn: l.conn, scope: &ws, lease: l}
	if err := c.conn.EnterSession(ctx, &ws); err != nil {
		c.Release() // it may be half set
		return nil, notFound(err)
	}
	return c, nil
}

// AcquireFunc is Pool.AcquireFunc for the tenant of s.
func (s *Scope) AcquireFunc(ctx context.Context, f func(*Conn) error) error {
	c, err := s.Acquire(ctx)
	if err != nil {
		return err
	}
	defer c.Release()
	return f(c)
}

// Release clears the session with DISCARD ALL and gives the connection back. A connection that is closed, busy, in a
// transaction, or does not clear within five seconds is destroyed. Calls after the first do nothing.
func (c *Conn) Release() {
	c.release.Do(func() {
		c.released.Store(true)
		pg := c.conn.Pgx().PgConn()
		if pg.IsClosed() || pg.IsBusy() || pg.TxStatus() != 'I' || c.conn.Discard(context.Background()) != nil {
			c.lease.end()
		}
		c.lease.Release()
	})
}

// Exec as on Pool.
func (c *Conn) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	if err := c.enter(ctx); err != nil {
		return pgconn.CommandTag{}, err
	}
	return c.pool.exec(ctx, c.conn, c.scope, session, sql, args)
}

// Query as on Pool. The rows must be closed before the connection can be used again.
func (c *Conn) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	if err := c.enter(ctx); err != nil {
		return wire.ErrRows{Error: err}, err
	}
	return c.pool.query(ctx, c.conn, c.scope, session, lease{}, sql, args)
}

// QueryRow as on Pool.
func (c *Conn) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	return rowOf(c.Query(ctx, sql, args...))
}

// SendBatch as on Pool. The results must be closed before the connection can be used again.
func (c *Conn) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	if err := c.enter(ctx); err != nil {
		return pgx.FailedBatchResults(b, err)
	}
	br, err := c.pool.sendBatch(ctx, c.conn, c.scope, session, func() {}, b)
	if err != nil {
		return pgx.FailedBatchResults(b, err)
	}
	return br
}

// CopyFrom as on Pool.
func (c *Conn) CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, src pgx.CopyFromSource) (int64, error) {
	if err := c.enter(ctx); err != nil {
		return 0, err
	}
	return copyFrom(ctx, c.conn.Pgx(), table, columns, src)
}

// Begin starts a transaction on the connection. See BeginTx.
func (c *Conn) Begin(ctx context.Context) (pgx.Tx, error) { return c.BeginTx(ctx, pgx.TxOptions{}) }

// BeginTx starts a transaction on the connection. Ending it leaves the connection acquired.
func (c *Conn) BeginTx(ctx context.Context, opts pgx.TxOptions) (pgx.Tx, error) {
	if err := c.enter(ctx); err != nil {
		return nil, err
	}
	if _, err := c.conn.Pgx().Exec(ctx, wire.BeginSQL(opts)); err != nil {
		return nil, err
	}
	return &tx{pool: c.pool, conn: c.conn, scope: c.scope, binding: c.binding, commitSQL: opts.CommitQuery}, nil
}

// Ping checks that the connection answers.
func (c *Conn) Ping(ctx context.Context) error {
	if c.released.Load() {
		return errReleased
	}
	return c.conn.Pgx().Ping(ctx)
}

// Conn returns the connection below, for WaitForNotification and the like. It must not be used after Release.
func (c *Conn) Conn() *pgx.Conn { return c.conn.Pgx() }
