package wire

import (
	"context"
	"errors"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pgtenancy/pgtenancy/internal/ident"
)

// Scope is what a statement runs in.
type Scope struct {
	Setting string // the name of the tenant's setting; validated
	Value   string // its value
	Path    string // the value of search_path; its names quoted
	Schema  string // what current_schema() must be in it
	Role    string // "" keeps the connection's
	Version int64  // of the schema, which tells descriptions apart
}

// ErrNoSchema is the error of a scope whose schema does not exist, or on which its role has no USAGE. It wraps
// PostgreSQL's.
var ErrNoSchema = errors.New("no usable schema")

// enterOIDs are the types of enter's parameters, all text.
var enterOIDs = []uint32{pgtype.TextOID, pgtype.TextOID, pgtype.TextOID, pgtype.TextOID}

// enterSQL returns the statement that sets a scope, for the transaction or for the session.
//
// PostgreSQL skips a schema in search_path that is missing, or on which the role has no USAGE, without a word. So the
// statement compares what the path became, and its cast fails where that is not the tenant's schema. concat is STABLE,
// which keeps the planner from folding the failing cast into a constant.
func (s *Scope) enterSQL(session bool) string {
	local := "true"
	if session {
		local = "false"
	}
	var b strings.Builder
	b.WriteString("select ")
	if s.Role != "" {
		b.WriteString("pg_catalog.set_config('role', $4, " + local + "), ")
	}
	b.WriteString("pg_catalog.set_config('search_path', $1, " + local + "), " +
		"pg_catalog.set_config(" + ident.Literal(s.Setting) + ", $2, " + local + "), " +
		"case when pg_catalog.current_schema()::pg_catalog.text operator(pg_catalog.=) $3 then 0 " +
		"else pg_catalog.concat('no usable schema: ', $3, ' in ', pg_catalog.current_schemas(false))::pg_catalog.int4 end")
	return b.String()
}

func (c *Conn) enter(s *Scope, session bool) step {
	values := [][]byte{[]byte(s.Path), []byte(s.Value), []byte(s.Schema)}
	if s.Role != "" {
		values = append(values, []byte(s.Role))
	}
	st := c.statement(stmtKey{sql: s.enterSQL(session)}, c.shared.mode, enterOIDs[:len(values)], true)
	st.values = values
	return st
}

// entered reads enter's result.
func entered(r results) error {
	rr, err := r.next()
	if err == nil {
		_, err = rr.Close()
	}
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.Code == "22P02" {
		return &noSchemaError{pgErr}
	}
	return err
}

// noSchemaError is PostgreSQL's error of the failing cast, told for what it is.
type noSchemaError struct{ err *pgconn.PgError }

func (e *noSchemaError) Error() string {
	return strings.Trim(strings.TrimPrefix(e.err.Message, "invalid input syntax for type integer: "), `"`)
}

func (e *noSchemaError) Unwrap() []error { return []error{ErrNoSchema, e.err} }

// Begin starts a transaction with the statement begin and sets the scope in it, in one round trip.
func (c *Conn) Begin(ctx context.Context, s *Scope, begin string) error {
	return c.retryLost(func() error {
		c.pipeline++
		return c.run(ctx, []step{unnamed(begin), c.enter(s, false)}, 1)
	})
}

// Enter sets the scope inside a transaction that is open already.
func (c *Conn) Enter(ctx context.Context, s *Scope) error {
	c.pipeline++
	return c.run(ctx, []step{c.enter(s, false)}, 0)
}

// EnterSession sets the scope for the session. The connection must not go back to a pool before Discard.
func (c *Conn) EnterSession(ctx context.Context, s *Scope) error {
	return c.retryLost(func() error {
		c.pipeline++
		return c.run(ctx, []step{c.enter(s, true)}, 0)
	})
}

// run sends steps of which the one at index enter is enter, and reads their results. An open transaction that fails is
// rolled back.
func (c *Conn) run(ctx context.Context, steps []step, enter int) error {
	inTx := c.TxStatus() != 'I'
	r := c.send(ctx, steps)
	var err error
	for i := 0; i < len(steps) && err == nil; i++ {
		if i == enter {
			err = entered(r)
			continue
		}
		var rr *pgconn.ResultReader
		if rr, err = r.next(); err == nil {
			_, err = rr.Close()
		}
	}
	if endErr := r.end(); err == nil {
		err = endErr
	}
	if err != nil {
		c.unkeep(r)
		if !inTx && c.TxStatus() != 'I' {
			_ = c.Rollback(ctx) // a connection on which that fails is closed
		}
	}
	return err
}

// retryLost calls f again when the server has lost a statement that the connection took for prepared.
func (c *Conn) retryLost(f func() error) error {
	err := f()
	if isCode(err, "26000") && c.TxStatus() == 'I' {
		c.Forget()
		err = f()
	}
	return err
}

// Discard clears all state of the session.
func (c *Conn) Discard(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), CleanupTimeout)
	defer cancel()
	c.Forget()
	if err := c.conn.DeallocateAll(ctx); err != nil { // pgx's own knowledge of the statements that a user prepared
		return err
	}
	return c.pg.Exec(ctx, "discard all").Close()
}

func isCode(err error, codes ...string) bool {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return false
	}
	for _, code := range codes {
		if pgErr.Code == code {
			return true
		}
	}
	return false
}

// BeginSQL returns the statement that begins a transaction with the options.
func BeginSQL(o pgx.TxOptions) string {
	if o.BeginQuery != "" {
		return o.BeginQuery
	}
	sql := "begin"
	if o.IsoLevel != "" {
		sql += " isolation level " + string(o.IsoLevel)
	}
	if o.AccessMode != "" {
		sql += " " + string(o.AccessMode)
	}
	if o.DeferrableMode != "" {
		sql += " " + string(o.DeferrableMode)
	}
	return sql
}
