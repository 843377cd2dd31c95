package pgtenancy

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgtenancy/pgtenancy/internal/ident"
	"github.com/pgtenancy/pgtenancy/internal/wire"
)

// tx is a transaction that has its tenant's scope. Nested ones are savepoints of the outermost.
type tx struct {
	binding
	pool      *Pool
	conn      *conn
	scope     *wire.Scope
	commitSQL string
	release   func() // gives the connection back; nil in a nested one

	outer      *tx // nil in the outermost
	savepoint  string
	savepoints int // made so far, in the outermost
	closed     bool
}

var _ pgx.Tx = (*tx)(nil)

// enter checks that the transaction is open and may be used with ctx.
func (t *tx) enter(ctx context.Context) error {
	for o := t; o != nil; o = o.outer {
		if o.closed {
			return pgx.ErrTxClosed
		}
	}
	if t.conn.TxStatus() == 'I' {
		// Something ended the transaction under us, and the scope with it.
		return fmt.Errorf("pgtenancy: the transaction is over on the server: %w", pgx.ErrTxClosed)
	}
	return t.match(ctx)
}

func (t *tx) root() *tx {
	for t.outer != nil {
		t = t.outer
	}
	return t
}

// Begin starts a nested transaction: a savepoint.
func (t *tx) Begin(ctx context.Context) (pgx.Tx, error) {
	if err := t.enter(ctx); err != nil {
		return nil, err
	}
	root := t.root()
	root.savepoints++
	name := "sp_" + strconv.Itoa(root.savepoints)
	if _, err := t.conn.Pgx().Exec(ctx, "savepoint "+name); err != nil {
		return nil, err
	}
	return &tx{binding: t.binding, pool: t.pool, conn: t.conn, scope: t.scope, outer: t, savepoint: name}, nil
}

// Commit as in pgx.Tx.
func (t *tx) Commit(ctx context.Context) error {
	if err := t.enter(ctx); err != nil {
		if errors.Is(err, pgx.ErrTxClosed) {
			t.close()
		}
		return err
	}
	defer t.close()
	if t.outer != nil {
		_, err := t.conn.Pgx().Exec(ctx, "release savepoint "+t.savepoint)
		return err
	}
	sql := "commit"
	if t.commitSQL != "" {
		sql = t.commitSQL
	}
	tag, err := t.conn.Pgx().Exec(ctx, sql)
	if err != nil {
		if t.conn.TxStatus() != 'I' {
			_ = t.conn.Pgx().Close(ctx) // here, since rows that are still open would race with the pool's closing it
		}
		return err
	}
	if tag.String() == "ROLLBACK" {
		return pgx.ErrTxCommitRollback
	}
	return nil
}

// Rollback as in pgx.Tx, except that it works on a cancelled context too.
func (t *tx) Rollback(ctx context.Context) error {
	for o := t; o != nil; o = o.outer {
		if o.closed {
			return pgx.ErrTxClosed
		}
	}
	defer t.close()
	if t.conn.Pgx().IsClosed() {
		return nil // the server has rolled back
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), wire.CleanupTimeout)
	defer cancel()
	sql := "rollback"
	if t.outer != nil {
		sql = "rollback to savepoint " + t.savepoint
	}
	_, err := t.conn.Pgx().Exec(ctx, sql)
	if err != nil && t.outer == nil {
		_ = t.conn.Pgx().Close(ctx) // its state is unknown
	}
	return err
}

func (t *tx) close() {
	if t.closed {
		return
	}
	t.closed = true
	if t.release != nil {
		t.release()
	}
}

func (t *tx) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	if err := t.enter(ctx); err != nil {
		return pgconn.CommandTag{}, err
	}
	return t.pool.exec(ctx, t.conn, t.scope, inTx, sql, args)
}

func (t *tx) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	if err := t.enter(ctx); err != nil {
		return wire.ErrRows{Error: err}, err
	}
	return t.pool.query(ctx, t.conn, t.scope, inTx, lease{}, sql, args)
}

func (t *tx) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	return rowOf(t.Query(ctx, sql, args...))
}

func (t *tx) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	if err := t.enter(ctx); err != nil {
		return pgx.FailedBatchResults(b, err)
	}
	br, err := t.pool.sendBatch(ctx, t.conn, t.scope, inTx, func() {}, b)
	if err != nil {
		return pgx.FailedBatchResults(b, err)
	}
	return br
}

func (t *tx) CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, src pgx.CopyFromSource) (int64, error) {
	if err := t.enter(ctx); err != nil {
		return 0, err
	}
	return copyFrom(ctx, t.conn.Pgx(), table, columns, src)
}

// copyFrom lets pgx copy. Its connections describe the table anew each time, since they run in exec mode.
func copyFrom(ctx context.Context, conn *pgx.Conn, table pgx.Identifier, columns []string, src pgx.CopyFromSource) (int64, error) {
	n, err := conn.CopyFrom(ctx, table, columns, src)
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.Code == "0A000" && pgErr.Message == "COPY FROM not supported with row-level security" {
		err = fmt.Errorf("%w: insert into %s with INSERT ... SELECT FROM unnest, or with SendBatch", err, ident.QuoteAll(table...))
	}
	return n, err
}

// Prepare is refused: the pool prepares statements itself, per tenant.
func (t *tx) Prepare(_ context.Context, name, _ string) (*pgconn.StatementDescription, error) {
	return nil, errPrepare(name)
}

func errPrepare(name string) error {
	return fmt.Errorf("%w: preparing %q by name: pass the SQL to Exec or Query, which prepare it per tenant", ErrStatementRefused, name)
}

// LargeObjects panics, since pgx's type leaves no room for an error.
func (t *tx) LargeObjects() pgx.LargeObjects {
	panic("pgtenancy: large objects belong to no schema and would be shared by all tenants: store them in a bytea column")
}

// Conn returns the connection below. What is sent there is not checked.
func (t *tx) Conn() *pgx.Conn { return t.conn.Pgx() }
