package wire

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pgtenancy/pgtenancy/internal/ident"
)

// Scope is what a statement runs in.
type Scope struct {
	Value    string // of the tenant's setting
	Own      string // the tenant's schema, quoted: the first part of the value of search_path
	Others   string // the rest of it
	Schema   string // what current_schema() must be in it
	Role     string // "" is the connection's own
	Version  int64  // of the schema, which tells descriptions apart
	Timeouts Timeouts
}

// Timeouts bound what a statement may take. 0 keeps the connection's.
type Timeouts struct{ Statement, Lock, IdleInTransaction time.Duration }

// Entry is a way to set a scope.
type Entry int

// The entries. Each sets the same.
const (
	EntrySettings Entry = iota // one statement that calls set_config
	EntryFunction              // a call of the stored function pgtenancy.enter, which calls set_config
	EntrySetLocal              // a SET LOCAL for the tenant's setting, then as EntrySettings; always with BEGIN and COMMIT
)

// ErrNoSchema is the error of a scope whose schema does not exist, or on which its role has no USAGE. It wraps
// PostgreSQL's.
var ErrNoSchema = errors.New("no usable schema")

// EnterFunction returns the statement that makes the function of EntryFunction. It sets the settings in order, so that a
// role comes last: the role need not be allowed to call set_config.
const EnterFunction = `create function pgtenancy.enter(names text[], vals text[], wanted text) returns int
language plpgsql as $$
begin
	for i in 1 .. pg_catalog.cardinality(names) loop
		perform pg_catalog.set_config(names[i], vals[i], true);
	end loop;
	if pg_catalog.current_schema() is distinct from wanted then
		raise exception using errcode = '22P02',
			message = pg_catalog.concat('no usable schema: ', wanted, ' in ', pg_catalog.current_schemas(false));
	end if;
	return 0;
end
$$`

// set is the number of settings that enter always sets, before timeouts: search_path, the tenant's, role.
const set = 3

var timeoutNames = [...]string{"statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"}

// enterStatement is the statement that sets a scope with certain timeouts.
type enterStatement struct {
	sql   string
	oids  []uint32
	names string // of the settings, as an array; for EntryFunction
}

// newEnterStatement returns the statement for the timeouts whose bits are in mask, for the transaction or the session.
//
// PostgreSQL skips a schema in search_path that is missing, or on which the role has no USAGE, without a word. So the
// statement compares what the path became, and its cast fails where that is not the tenant's schema. concat is STABLE,
// which keeps the planner from folding the failing cast into a constant.
//
// It has one column, since what set_config returns would have to be sent back: the results are joined to something that is
// never null. The arguments of an operator are evaluated from left to right, and CASE evaluates its conditions in order.
//
// The role is always set, also to none: what a tenant's SQL has set for the session stays with that tenant so.
func newEnterStatement(entry Entry, setting string, mask int, session bool) enterStatement {
	names := []string{"search_path", setting, "role"}
	if entry == EntrySetLocal && !session {
		names[1] = ""
	}
	for i, name := range timeoutNames {
		if mask&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	if entry == EntryFunction && !session {
		e := enterStatement{sql: "select pgtenancy.enter($1, $2, $3)", oids: []uint32{pgtype.TextArrayOID, pgtype.TextArrayOID, pgtype.TextOID}}
		quoted := make([]string, 0, len(names))
		for _, i := range enterOrder(len(names)) {
			quoted = append(quoted, arrayElement(names[i]))
		}
		e.names = "{" + strings.Join(quoted, ",") + "}"
		return e
	}
	local := "true"
	if session {
		local = "false"
	}
	oids := make([]uint32, len(names)+1)
	calls := make([]string, len(names))
	for i, name := range names {
		oids[i] = pgtype.TextOID
		calls[i] = fmt.Sprintf("pg_catalog.set_config(%s, $%d, %s)", ident.Literal(name), i+1, local)
		if name == "" {
			calls[i] = fmt.Sprintf("$%d", i+1)
		}
	}
	oids[len(names)] = pgtype.TextOID
	return enterStatement{oids: oids, sql: fmt.Sprintf("select case when %s is null then 1 "+
		"when pg_catalog.current_schema()::pg_catalog.text operator(pg_catalog.=) $%d then 0 "+
		"else pg_catalog.concat('no usable schema: ', $%[2]d, ' in ', pg_catalog.current_schemas(false))::pg_catalog.int4 end",
		"("+strings.Join(calls, " operator(pg_catalog.||) ")+")", len(names)+1)}
}

// enterOrder is the order in which the function sets the settings: the role last.
func enterOrder(n int) []int {
	order := []int{0, 1}
	for i := set; i < n; i++ {
		order = append(order, i)
	}
	return append(order, 2)
}

func arrayElement(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

// enterSteps appends the steps that set a scope. They are good until it is called again.
func (c *Conn) enterSteps(steps []step, s *Scope, session bool) []step {
	text := append(append(c.text[:0], s.Own...), s.Others...)
	path := len(text)
	text = append(text, s.Value...)
	value := len(text)
	text = append(text, s.Schema...)
	schema := len(text)
	text = append(text, s.Role...)
	role := len(text)
	values := append(c.values[:0], text[:path:path], text[path:value:value], c.role)
	if s.Role != "" {
		values[2] = text[schema:role:role]
	}
	mask := 0
	for i, d := range [...]time.Duration{s.Timeouts.Statement, s.Timeouts.Lock, s.Timeouts.IdleInTransaction} {
		if d > 0 {
			mask |= 1 << i
			values = append(values, strconv.AppendInt(nil, max(d.Milliseconds(), 1), 10))
		}
	}
	e := &c.shared.enter[0][mask]
	if session {
		e = &c.shared.enter[1][mask]
	}
	if c.shared.entry == EntrySetLocal && !session {
		steps = append(steps, unnamed("set local "+c.shared.setting+" = "+ident.Literal(s.Value)))
	}
	if e.names != "" {
		elements := make([]string, 0, len(values))
		for _, i := range enterOrder(len(values)) {
			elements = append(elements, arrayElement(string(values[i])))
		}
		values = append(values[:0], []byte(e.names), []byte("{"+strings.Join(elements, ",")+"}"))
	}
	values = append(values, text[value:schema:schema])
	c.text, c.values = text, values
	st := c.statement(stmtKey{sql: e.sql}, c.shared.mode, e.oids, true)
	st.values, st.enter = values, e.names == ""
	return append(steps, st)
}

// entered reads the results of enterSteps.
func (c *Conn) entered(r *results, session bool) error {
	if c.shared.entry == EntrySetLocal && !session {
		if err := r.skip(); err != nil {
			return err
		}
	}
	return c.guarded(r)
}

// guarded reads the result of the statement with the guard, the last of enterSteps.
func (c *Conn) guarded(r *results) error {
	err := r.skip()
	if err == nil {
		return nil
	}
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		switch {
		case pgErr.Code == "22P02":
			return &noSchemaError{pgErr}
		case c.shared.entry == EntryFunction && (pgErr.Code == "42883" || pgErr.Code == "3F000" || pgErr.Code == "42501"):
			return fmt.Errorf("the function pgtenancy.enter, which Fleet.Migrate installs, cannot be called: %w", err)
		}
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
	c.serve(s)
	return c.retryLost(func() error {
		c.pipeline++
		return c.run(ctx, c.enterSteps([]step{unnamed(begin)}, s, false), 1, false)
	})
}

// EnterSession sets the scope for the session. The connection must not go back to a pool before Discard.
func (c *Conn) EnterSession(ctx context.Context, s *Scope) error {
	c.serve(s)
	return c.retryLost(func() error {
		c.pipeline++
		return c.run(ctx, c.enterSteps(nil, s, true), 0, true)
	})
}

// run sends steps of which those from index enter on are enterSteps', and reads their results. A transaction that it
// opened and that fails is rolled back.
func (c *Conn) run(ctx context.Context, steps []step, enter int, session bool) error {
	inTx := c.TxStatus() != 'I'
	var r results
	c.send(ctx, steps, &r)
	var err error
	for i := 0; i < enter && err == nil; i++ {
		err = r.skip()
	}
	if err == nil {
		err = c.entered(&r, session)
	}
	if endErr := r.end(); err == nil {
		err = endErr
	}
	if err != nil {
		c.unkeep(&r)
		if !inTx && c.TxStatus() != 'I' {
			_ = c.Rollback(ctx) // a connection on which that fails is closed
		}
	}
	return err
}

// retryLost calls f again when the server has lost a statement that the connection took for prepared.
func (c *Conn) retryLost(f func() error) error {
	err := f()
	if isCode(err, lostCodes...) && c.TxStatus() == 'I' {
		c.lose()
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
	if err == nil {
		return false
	}
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
