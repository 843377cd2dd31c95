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
	k        *call
	tag      pgconn.CommandTag
	err      error
	closed   bool
	onClose  func(pgconn.CommandTag, error)
}

// Query sends q and returns its rows. onClose is called once, when they are closed; it is not called where Query returns
// an error.
func (c *Conn) Query(ctx context.Context, s *Scope, enter bool, q Query, onClose func(pgconn.CommandTag, error)) (*Rows, error) {
	k, rr, err := c.start(ctx, s, enter, q)
	if err != nil {
		return nil, err
	}
	return &Rows{Rows: pgx.RowsFromResultReader(c.types, rr), k: k, onClose: onClose}, nil
}

// Close reads what is left and ends the pipeline.
func (r *Rows) Close() {
	if r.closed {
		return
	}
	r.closed = true
	r.Rows.Close()
	r.tag, r.err = r.Rows.CommandTag(), r.Rows.Err()
	if r.err != nil {
		// Either the statement failed, or decoding its rows did. In the second case the statement itself stands.
		r.k.finish()
	} else {
		r.err = r.k.finish()
	}
	r.err = explain(r.err)
	if r.onClose != nil {
		r.onClose(r.tag, r.err)
	}
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

// Row is the first row of a query, as pgx.Row.
type Row struct{ Rows pgx.Rows }

// Scan reads the first row and ends the query. It returns pgx.ErrNoRows where there is none.
func (r Row) Scan(dest ...any) error {
	defer r.Rows.Close() // also when a Scanner of the user's panics
	if err := r.Rows.Err(); err != nil {
		return err
	}
	for _, d := range dest {
		if _, ok := d.(*pgtype.DriverBytes); ok {
			return fmt.Errorf("cannot scan into *pgtype.DriverBytes from QueryRow")
		}
	}
	if !r.Rows.Next() {
		if err := r.Rows.Err(); err != nil {
			return err
		}
		return pgx.ErrNoRows
	}
	if err := r.Rows.Scan(dest...); err != nil {
		return err
	}
	r.Rows.Close()
	return r.Rows.Err()
}
