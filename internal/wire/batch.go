package wire

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// BatchHooks are told of a batch's progress. Both may be nil.
type BatchHooks struct {
	Query func(data pgx.TraceBatchQueryData)
	Close func(error) // once, when the batch is closed
}

// Batch sends all queries of b in one pipeline. With enter it is a transaction of its own; without, it runs in the one
// that is open. Where a statement of it was never seen before there is one more round trip to describe all of those.
//
// It returns an error where the batch failed before its first result; then hooks are not called.
func (c *Conn) Batch(ctx context.Context, s *Scope, enter bool, b *pgx.Batch, hooks BatchHooks) (*BatchResults, error) {
	for again := false; ; again = true {
		br, known, err := c.tryBatch(ctx, s, enter, b, again)
		if err == nil {
			br.hooks = hooks
			return br, nil
		}
		stale := false
		for _, q := range b.QueuedQueries {
			stale = c.stale(s, q.SQL, known, err) || stale
		}
		if !stale || again || c.TxStatus() != 'I' || c.pg.IsClosed() || ctx.Err() != nil {
			return nil, explain(err)
		}
	}
}

func (c *Conn) tryBatch(ctx context.Context, s *Scope, enter bool, b *pgx.Batch, again bool) (br *BatchResults, known bool, err error) {
	mode := c.shared.mode
	c.pipeline++
	described := make(map[string]*pgconn.StatementDescription)
	if mode != pgx.QueryExecModeExec {
		var missing []string
		for _, q := range b.QueuedQueries {
			if _, ok := described[q.SQL]; ok {
				continue
			}
			var sd *pgconn.StatementDescription
			if !again {
				sd = c.shared.lookup(s, q.SQL)
			}
			if described[q.SQL] = sd; sd == nil {
				missing = append(missing, q.SQL)
			}
		}
		known = len(missing) < len(described)
		if len(missing) > 0 {
			sds, err := c.describe(ctx, s, enter, missing...)
			if err != nil {
				return nil, false, err
			}
			for i, sd := range sds {
				c.shared.store(s, missing[i], sd, again)
				described[missing[i]] = sd
			}
		}
	}

	for _, sd := range described {
		if err := c.learn(ctx, sd); err != nil {
			return nil, false, err
		}
	}

	steps := make([]step, 0, len(b.QueuedQueries)+4)
	if enter {
		c.serve(s)
		steps = c.enterSteps(append(steps, unnamed("begin")), s, false)
	}
	for i, q := range b.QueuedQueries {
		sd := described[q.SQL]
		if sd != nil && len(sd.ParamOIDs) != len(q.Arguments) {
			return nil, known, c.unsent(steps, encodeError{fmt.Errorf("batch query %d: expected %d arguments, got %d", i, len(sd.ParamOIDs), len(q.Arguments))})
		}
		var eqb pgx.ExtendedQueryBuilder // the values of all queries are needed at once
		if err := eqb.Build(c.types, sd, q.Arguments); err != nil {
			return nil, known, c.unsent(steps, encodeError{fmt.Errorf("batch query %d: %w", i, err)})
		}
		var oids []uint32
		if sd != nil {
			oids = sd.ParamOIDs
		}
		st := c.statement(stmtKey{schema: s.Schema, role: s.Role, sql: q.SQL}, mode, oids, false)
		st.values, st.formats, st.resultFormats = eqb.ParamValues, eqb.ParamFormats, eqb.ResultFormats
		steps = append(steps, st)
	}
	if enter {
		steps = append(steps, unnamed("commit"))
	}

	k := &call{c: c, ctx: ctx, outer: enter, commit: enter}
	c.send(ctx, steps, &k.r)
	if enter {
		if err = k.r.skip(); err == nil {
			err = c.entered(&k.r, false)
		}
		if err != nil {
			k.fail(err)
			return nil, known, k.finish()
		}
	}
	return &BatchResults{k: k, scope: s, b: b}, known, nil
}

// unsent takes back the statements that would have been parsed by steps that are not sent.
func (c *Conn) unsent(steps []step, err error) error {
	for _, st := range steps {
		if st.stmt != nil && st.parse != "" {
			c.prepared.Delete(st.stmt.key)
		}
	}
	return err
}

// BatchResults reads the results of a batch. It is pgx.BatchResults.
type BatchResults struct {
	k      *call
	scope  *Scope
	b      *pgx.Batch
	next   int
	open   *batchRows // of the last query, perhaps closed
	err    error
	closed bool
	hooks  BatchHooks
}

var _ pgx.BatchResults = (*BatchResults)(nil)

// advance returns the result of the next query.
func (br *BatchResults) advance() (q *pgx.QueuedQuery, rr *pgconn.ResultReader, started time.Time, err error) {
	started = time.Now()
	br.closeRows()
	switch {
	case br.err != nil:
		return nil, nil, started, br.err
	case br.closed:
		return nil, nil, started, errors.New("batch already closed")
	case br.next >= len(br.b.QueuedQueries):
		return nil, nil, started, errors.New("no more results in batch")
	}
	q = br.b.QueuedQueries[br.next]
	br.next++
	if rr, err = br.k.r.next(); err != nil {
		br.fail(q, err)
		br.trace(q, started, pgconn.CommandTag{}, br.err)
		return q, nil, started, br.err
	}
	return q, rr, started, nil
}

// closeRows closes the rows that a caller left open. They would otherwise read the next query's results, or those of
// whoever has the connection next.
func (br *BatchResults) closeRows() {
	if br.open != nil {
		br.open.Close()
	}
}

func (br *BatchResults) fail(q *pgx.QueuedQuery, err error) {
	if br.k.c.stale(br.scope, q.SQL, true, err) {
		br.k.c.shared.distrust(br.scope, q.SQL) // too late to send it again, but not to know better next time
	}
	br.k.fail(err)
	if br.err == nil {
		br.err = explain(err)
	}
}

func (br *BatchResults) trace(q *pgx.QueuedQuery, started time.Time, tag pgconn.CommandTag, err error) {
	if br.hooks.Query != nil {
		br.hooks.Query(pgx.TraceBatchQueryData{SQL: q.SQL, Args: q.Arguments, CommandTag: tag, Err: err, ReadStartTime: started})
	}
}

// Exec as in pgx.BatchResults.
func (br *BatchResults) Exec() (pgconn.CommandTag, error) {
	q, rr, started, err := br.advance()
	if err != nil {
		return pgconn.CommandTag{}, err
	}
	tag, err := rr.Close()
	if err != nil {
		br.fail(q, err)
	}
	br.trace(q, started, tag, br.err)
	return tag, br.err
}

// Query as in pgx.BatchResults.
func (br *BatchResults) Query() (pgx.Rows, error) {
	q, rr, started, err := br.advance()
	if err != nil {
		return ErrRows{err}, err
	}
	br.open = &batchRows{Rows: pgx.RowsFromResultReader(br.k.c.types, rr), br: br, rr: rr, q: q, started: started}
	return br.open, nil
}

// QueryRow as in pgx.BatchResults.
func (br *BatchResults) QueryRow() pgx.Row {
	rows, _ := br.Query() // the error is in rows
	return batchRow{rows}
}

// Tx returns nil: Batch.BeginTx is refused.
func (br *BatchResults) Tx() pgx.Tx { return nil }

// Close as in pgx.BatchResults. It also commits, where the batch is a transaction of its own.
func (br *BatchResults) Close() error {
	if br.closed {
		return br.err
	}
	br.closeRows()
	var callbackErr error
	for br.err == nil && callbackErr == nil && br.next < len(br.b.QueuedQueries) {
		if q := br.b.QueuedQueries[br.next]; q.Fn != nil {
			callbackErr = q.Fn(br)
		} else {
			_, _ = br.Exec() // the error is kept
		}
	}
	for br.err == nil && br.next < len(br.b.QueuedQueries) {
		_, _ = br.Exec() // a callback failed: the rest is only read; it is committed all the same, as with pgx
	}
	br.closeRows()
	br.closed = true
	if err := br.k.finish(); err != nil && br.err == nil {
		br.err = explain(err)
	}
	if br.err == nil {
		br.err = callbackErr
	}
	if br.hooks.Close != nil {
		br.hooks.Close(br.err)
	}
	return br.err
}

// batchRows are the rows of one query of a batch. Closing them leaves the rest of the batch.
type batchRows struct {
	pgx.Rows
	br      *BatchResults
	rr      *pgconn.ResultReader
	q       *pgx.QueuedQuery
	started time.Time
	closed  bool
}

func (r *batchRows) Close() {
	if r.closed {
		return
	}
	r.closed = true
	r.Rows.Close()
	if _, err := r.rr.Close(); err != nil { // not an error of decoding, which does not end the batch
		r.br.fail(r.q, err)
	}
	r.br.trace(r.q, r.started, r.Rows.CommandTag(), r.Rows.Err())
}

func (r *batchRows) Next() bool {
	if r.closed {
		return false
	}
	if r.Rows.Next() {
		return true
	}
	r.Close()
	return false
}

func (r *batchRows) FieldDescriptions() []pgconn.FieldDescription {
	if r.closed {
		return nil
	}
	return r.Rows.FieldDescriptions()
}

func (r *batchRows) Scan(dest ...any) error {
	if r.closed {
		return cmp.Or(r.Rows.Err(), errRowsClosed)
	}
	err := r.Rows.Scan(dest...)
	if err != nil {
		r.Close()
	}
	return err
}

func (r *batchRows) Values() ([]any, error) {
	values, err := r.Rows.Values()
	if err != nil {
		r.Close()
	}
	return values, err
}

func (r *batchRows) Conn() *pgx.Conn { return r.br.k.c.conn }

type batchRow struct{ rows pgx.Rows }

func (r batchRow) Scan(dest ...any) error { return ScanRow(r.rows, dest) }
