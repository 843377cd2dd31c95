package pgtenancy

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgtenancy/pgtenancy/internal/wire"
)

// Scope is a Pool bound to one tenant, or to none: see Pool.For and Pool.Shared. Its methods are Pool's. It holds no
// connection, needs no closing, and is safe for concurrent use.
type Scope struct {
	pool   *Pool
	tenant Tenant
	shared bool
}

// Tenant returns the tenant that s is bound to, the zero Tenant for Pool.Shared.
func (s *Scope) Tenant() Tenant { return s.tenant }

// binding is a tenant, or none on purpose, that statements are bound to.
type binding struct {
	tenant Tenant
	shared bool
}

// match checks that ctx carries no other tenant than the one that is bound.
func (b binding) match(ctx context.Context) error {
	t, ok := TenantFromContext(ctx)
	if !ok || b.shared || t.id == b.tenant.id && t.schema == b.tenant.schema {
		return nil
	}
	return fmt.Errorf("%w: bound to %q, the context carries %q", ErrTenantMismatch, b.tenant.id, t.id)
}

func (s *Scope) binding() binding { return binding{s.tenant, s.shared} }

// enter checks that s may be used with ctx and returns what its statements run in.
func (s *Scope) enter(ctx context.Context) (wire.Scope, error) {
	if s.shared {
		return s.pool.shared, nil
	}
	if s.tenant.id == "" {
		return wire.Scope{}, ErrNoTenant
	}
	if err := s.binding().match(ctx); err != nil {
		return wire.Scope{}, err
	}
	return s.pool.wireScope(s.tenant)
}

// Exec is Pool.Exec for the tenant of s.
func (s *Scope) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	ws, err := s.enter(ctx)
	if err != nil {
		return pgconn.CommandTag{}, err
	}
	c, err := s.pool.acquire(ctx, s.pool.conns, s.tenant)
	if err != nil {
		return pgconn.CommandTag{}, err
	}
	defer c.Release()
	return s.pool.exec(ctx, c.conn, &ws, single, sql, args)
}

// Query is Pool.Query for the tenant of s.
func (s *Scope) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	ws, err := s.enter(ctx)
	if err != nil {
		return wire.ErrRows{Error: err}, err
	}
	c, err := s.pool.acquire(ctx, s.pool.conns, s.tenant)
	if err != nil {
		return wire.ErrRows{Error: err}, err
	}
	sent := false
	defer func() {
		if !sent { // also where a rewriter or an argument of the caller's panics
			c.Release()
		}
	}()
	rows, err := s.pool.query(ctx, c.conn, &ws, single, c, sql, args)
	sent = err == nil
	return rows, err
}

// QueryRow is Pool.QueryRow for the tenant of s.
func (s *Scope) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	return rowOf(s.Query(ctx, sql, args...))
}

// SendBatch is Pool.SendBatch for the tenant of s.
func (s *Scope) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	ws, err := s.enter(ctx)
	if err != nil {
		return pgx.FailedBatchResults(b, err)
	}
	c, err := s.pool.acquire(ctx, s.pool.conns, s.tenant)
	if err != nil {
		return pgx.FailedBatchResults(b, err)
	}
	sent := false
	defer func() {
		if !sent {
			c.Release()
		}
	}()
	br, err := s.pool.sendBatch(ctx, c.conn, &ws, single, c.Release, b)
	if err != nil {
		return pgx.FailedBatchResults(b, err)
	}
	sent = true
	return br
}

// CopyFrom is Pool.CopyFrom for the tenant of s.
func (s *Scope) CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, src pgx.CopyFromSource) (n int64, err error) {
	err = pgx.BeginFunc(ctx, s, func(tx pgx.Tx) error {
		n, err = tx.CopyFrom(ctx, table, columns, src)
		return err
	})
	if err != nil {
		return 0, err
	}
	return n, nil
}

// Begin is Pool.Begin for the tenant of s.
func (s *Scope) Begin(ctx context.Context) (pgx.Tx, error) { return s.BeginTx(ctx, pgx.TxOptions{}) }

// BeginTx is Pool.BeginTx for the tenant of s.
func (s *Scope) BeginTx(ctx context.Context, opts pgx.TxOptions) (pgx.Tx, error) {
	ws, err := s.enter(ctx)
	if err != nil {
		return nil, err
	}
	c, err := s.pool.acquire(ctx, s.pool.conns, s.tenant)
	if err != nil {
		return nil, err
	}
	sql := wire.BeginSQL(opts)
	tctx, end := s.pool.trace(ctx, &c.Conn, sql, nil)
	err = notFound(c.Begin(tctx, &ws, sql))
	end(pgconn.NewCommandTag("BEGIN"), err)
	if err != nil {
		c.Release()
		return nil, err
	}
	return &tx{pool: s.pool, conn: c.conn, scope: &ws, binding: s.binding(), commitSQL: opts.CommitQuery, release: c.Release}, nil
}

// notFound tells a missing schema for what it is to the caller. PostgreSQL's part of the error names the schema.
func notFound(err error) error {
	if errors.Is(err, wire.ErrNoSchema) {
		return fmt.Errorf("%w: %w", ErrTenantNotFound, err)
	}
	return err
}

// A place is where a statement runs.
type place int

const (
	single  place = iota // in a transaction of its own: enter travels with it
	inTx                 // in a transaction that has the scope
	session              // on a connection whose session has the scope
	batch                // the same, in a batch
)

// prepare checks a statement and takes pgx's options off its arguments.
func (p *Pool) prepare(ctx context.Context, wc *wire.Conn, ws *wire.Scope, at place, sql string, args []any) (wire.Query, error) {
	q, err := wire.ParseArgs(ctx, wc.Pgx(), sql, args)
	if err != nil {
		return q, fmt.Errorf("pgtenancy: %w", err)
	}
	if ws.Role != "" {
		if err := checkRole(p.cfg.Setting, q.SQL); err != nil {
			return q, err
		}
	}
	q.InTransaction, err = checkStatement(at, q.SQL)
	return q, err
}

// exec runs one statement. The connection stays the caller's.
func (p *Pool) exec(ctx context.Context, c *conn, ws *wire.Scope, at place, sql string, args []any) (tag pgconn.CommandTag, err error) {
	ctx, end := p.trace(ctx, &c.Conn, sql, args)
	defer func() { end(tag, err) }()
	q, err := p.prepare(ctx, &c.Conn, ws, at, sql, args)
	if err != nil {
		return tag, err
	}
	tag, err = c.Exec(ctx, ws, at == single, q)
	return tag, notFound(err)
}

// rows are those of a statement of a Pool's.
type rows struct {
	wire.Rows
	lease lease // given back when they are closed; zero in a transaction or session
	end   func(pgconn.CommandTag, error)
}

// RowsClosed is called by wire.
func (r *rows) RowsClosed(tag pgconn.CommandTag, err error) {
	l, end := r.lease, r.end
	r.lease, r.end = lease{}, nil
	if end != nil {
		end(tag, err)
	}
	if l.pooled != nil {
		l.Release()
	}
}

// row is rows of which the first is wanted. It is a type of its own to be pgx.Row.
type row rows

func (r *row) Scan(dest ...any) error { return wire.ScanRow((*rows)(r), dest) }

type errRow struct{ err error }

func (r errRow) Scan(...any) error { return r.err }

// rowOf takes what query returned.
func rowOf(r pgx.Rows, err error) pgx.Row {
	if err != nil {
		return errRow{err}
	}
	return (*row)(r.(*rows))
}

// query runs one statement. Where it returns no error, closing the rows releases the lease.
func (p *Pool) query(ctx context.Context, c *conn, ws *wire.Scope, at place, l lease, sql string, args []any) (pgx.Rows, error) {
	r := c.newRows()
	r.lease = l
	if p.queryTracer != nil {
		ctx, r.end = p.trace(ctx, &c.Conn, sql, args)
	}
	q, err := p.prepare(ctx, &c.Conn, ws, at, sql, args)
	if err == nil {
		if err = c.Query(ctx, ws, at == single, q, &r.Rows, r); err == nil {
			return r, nil
		}
	}
	err = notFound(err)
	if r.end != nil {
		r.end(pgconn.CommandTag{}, err)
	}
	return wire.ErrRows{Error: err}, err
}

// sendBatch runs a batch. Where it returns no error, closing the results calls release.
func (p *Pool) sendBatch(ctx context.Context, c *conn, ws *wire.Scope, at place, release func(), b *pgx.Batch) (br pgx.BatchResults, err error) {
	hooks := wire.BatchHooks{Close: func(error) { release() }}
	if p.batchTracer != nil {
		ctx = p.batchTracer.TraceBatchStart(ctx, c.Pgx(), pgx.TraceBatchStartData{Batch: b})
		end := func(err error) { p.batchTracer.TraceBatchEnd(ctx, c.Pgx(), pgx.TraceBatchEndData{Err: err}) }
		defer func() {
			if err != nil {
				end(err)
			}
		}()
		hooks.Query = func(data pgx.TraceBatchQueryData) { p.batchTracer.TraceBatchQuery(ctx, c.Pgx(), data) }
		hooks.Close = func(err error) { end(err); release() }
	}
	in := inTx
	if at == session {
		in = batch
	}
	for _, q := range b.QueuedQueries {
		parsed, err := wire.ParseArgs(ctx, c.Pgx(), q.SQL, q.Arguments)
		if err != nil {
			return nil, fmt.Errorf("pgtenancy: %w", err)
		}
		if _, err := checkStatement(in, parsed.SQL); err != nil {
			return nil, err
		}
		if ws.Role != "" {
			if err := checkRole(p.cfg.Setting, parsed.SQL); err != nil {
				return nil, err
			}
		}
		q.SQL, q.Arguments = parsed.SQL, parsed.Args
	}
	results, err := c.Batch(ctx, ws, at == single, b, hooks)
	if err != nil {
		return nil, notFound(err)
	}
	return results, nil
}

// trace tells the tracer of a statement. The function that it returns must be called at its end.
func (p *Pool) trace(ctx context.Context, wc *wire.Conn, sql string, args []any) (context.Context, func(pgconn.CommandTag, error)) {
	if p.queryTracer == nil {
		return ctx, func(pgconn.CommandTag, error) {}
	}
	ctx = p.queryTracer.TraceQueryStart(ctx, wc.Pgx(), pgx.TraceQueryStartData{SQL: sql, Args: args})
	return ctx, func(tag pgconn.CommandTag, err error) {
		p.queryTracer.TraceQueryEnd(ctx, wc.Pgx(), pgx.TraceQueryEndData{CommandTag: tag, Err: err})
	}
}
