package wire

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// Rows reads the rows of a statement. It is pgx.Rows; closing it ends the pipeline.
type Rows struct {
	pgx.Rows // decodes
	k        call
	tag      pgconn.CommandTag
	err      error
	closed   bool
	closer   RowsCloser
}

// RowsCloser is told once when rows are closed.
type RowsCloser interface {
	RowsClosed(pgconn.CommandTag, error)
}

// Query sends q and has its rows read from r, which must be new. closer is told when they are closed, but not where Query
// returns an error.
func (c *Conn) Query(ctx context.Context, s *Scope, enter bool, q Query, r *Rows, closer RowsCloser) error {
	rr, err := c.start(ctx, s, enter, &q, &r.k)
	if err != nil {
		return err
	}
	r.Rows, r.closer = pgx.RowsFromResultReader(c.types, rr), closer
	return nil
}

// Close reads what is left and ends the pipeline.
func (r *Rows) Close() {
	if r.closed {
		return
	}
	r.closed = true
	r.Rows.Close()
	r.tag, r.err = r.Rows.CommandTag(), r.Rows.Err()
	// Where decoding the rows failed, that is the error, and the statement itself stands.
	if err := r.k.finish(); r.err == nil {
		r.err = err
	}
	r.err = explain(r.err)
	closer := r.closer
	r.Rows, r.closer, r.k = nil, nil, call{c: r.k.c} // rows lie side by side in memory: the last of them keeps all of it
	closer.RowsClosed(r.tag, r.err)
}

// Next as in pgx.Rows.
func (r *Rows) Next() bool {
	if r.closed {
		return false
	}
	if r.Rows.Next() {
		return true
	}
	r.Close()
	return false
}

// errRowsClosed keeps closed rows from looking at the results of whoever has the connection after them.
var errRowsClosed = errors.New("rows are closed")

// FieldDescriptions as in pgx.Rows, and nil when they are closed.
func (r *Rows) FieldDescriptions() []pgconn.FieldDescription {
	if r.closed {
		return nil
	}
	return r.Rows.FieldDescriptions()
}

// Scan as in pgx.Rows.
func (r *Rows) Scan(dest ...any) error {
	if r.closed {
		return cmp.Or(r.err, errRowsClosed)
	}
	err := r.Rows.Scan(dest...)
	if err != nil {
		r.Close()
	}
	return err
}

// Values as in pgx.Rows.
func (r *Rows) Values() ([]any, error) {
	if r.closed {
		return nil, cmp.Or(r.err, errRowsClosed)
	}
	values, err := r.Rows.Values()
	if err != nil {
		r.Close()
	}
	return values, err
}

// Err as in pgx.Rows.
func (r *Rows) Err() error {
	if r.closed {
		return r.err
	}
	return r.Rows.Err()
}

// RawValues as in pgx.Rows, and nil when they are closed.
func (r *Rows) RawValues() [][]byte {
	if r.closed {
		return nil
	}
	return r.Rows.RawValues()
}

// TypeMap as in pgx.Rows.
func (r *Rows) TypeMap() *pgtype.Map { return r.k.c.types }

// CommandTag as in pgx.Rows.
func (r *Rows) CommandTag() pgconn.CommandTag { return r.tag }

// Conn returns the connection that the rows come from.
func (r *Rows) Conn() *pgx.Conn { return r.k.c.conn }

// ErrRows are rows that have failed.
type ErrRows struct{ Error error }

var _ pgx.Rows = ErrRows{}

func (ErrRows) Close()                                       {}                             //nolint:revive // pgx.Rows
func (r ErrRows) Err() error                                 { return r.Error }             //nolint:revive // pgx.Rows
func (ErrRows) CommandTag() pgconn.CommandTag                { return pgconn.CommandTag{} } //nolint:revive // pgx.Rows
func (ErrRows) FieldDescriptions() []pgconn.FieldDescription { return nil }                 //nolint:revive // pgx.Rows
func (ErrRows) Next() bool                                   { return false }               //nolint:revive // pgx.Rows
func (r ErrRows) Scan(...any) error                          { return r.Error }             //nolint:revive // pgx.Rows
func (r ErrRows) Values() ([]any, error)                     { return nil, r.Error }        //nolint:revive // pgx.Rows
func (ErrRows) RawValues() [][]byte                          { return nil }                 //nolint:revive // pgx.Rows
func (ErrRows) Conn() *pgx.Conn                              { return nil }                 //nolint:revive // pgx.Rows
func (ErrRows) TypeMap() *pgtype.Map                         { return nil }                 //nolint:revive // pgx.Rows

// ScanRow reads the first row and closes the rows, as pgx.Row's Scan does. It returns pgx.ErrNoRows where there is none.
func ScanRow(rows pgx.Rows, dest []any) error {
	defer rows.Close() // also when a Scanner of the user's panics
	if err := rows.Err(); err != nil {
		return err
	}
	for _, d := range dest {
		if _, ok := d.(*pgtype.DriverBytes); ok {
			return fmt.Errorf("cannot scan into *pgtype.DriverBytes from QueryRow")
		}
	}
	if !rows.Next() {
		if err := rows.Err(); err != nil {
			return err
		}
		return pgx.ErrNoRows
	}
	if err := rows.Scan(dest...); err != nil {
		return err
	}
	rows.Close()
	return rows.Err()
}
