package wire

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Query is one statement of a user's, after pgx's options were taken off its arguments.
type Query struct {
	SQL           string
	Args          []any
	Mode          pgx.QueryExecMode // 0 is the pool's
	Formats       pgx.QueryResultFormats
	FormatsByOID  pgx.QueryResultFormatsByOID
	DiscardRows   bool // the caller wants the command tag only
	InTransaction bool // give it BEGIN and COMMIT of its own: CALL and DO, which may contain a COMMIT
}

// ParseArgs takes pgx's options off the front of args.
func ParseArgs(ctx context.Context, conn *pgx.Conn, sql string, args []any) (Query, error) {
	q := Query{SQL: sql, Args: args}
	var rewriter pgx.QueryRewriter
options:
	for len(q.Args) > 0 {
		switch arg := q.Args[0].(type) {
		case pgx.QueryResultFormats:
			q.Formats = arg
		case pgx.QueryResultFormatsByOID:
			q.FormatsByOID = arg
		case pgx.QueryExecMode:
			q.Mode = arg
		case pgx.QueryRewriter:
			rewriter = arg
		default:
			break options
		}
		q.Args = q.Args[1:]
	}
	if rewriter != nil {
		var err error
		if q.SQL, q.Args, err = rewriter.RewriteQuery(ctx, conn, q.SQL, q.Args); err != nil {
			return q, fmt.Errorf("rewrite query failed: %w", err)
		}
	}
	return q, CheckMode(q.Mode)
}

// CheckMode refuses the modes that cannot carry a scope.
func CheckMode(mode pgx.QueryExecMode) error {
	switch mode {
	case 0, pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeExec:
		return nil
	case pgx.QueryExecModeSimpleProtocol:
		return errors.New("query exec mode simple_protocol cannot carry a scope with its statement: use cache_statement, cache_describe or exec")
	case pgx.QueryExecModeDescribeExec:
		return errors.New("query exec mode describe_exec needs two round trips, which a pooler may send to two servers: use cache_describe or exec")
	}
	return fmt.Errorf("unknown query exec mode %d", mode)
}

// call is one pipeline under way, up to the end of the user's statement.
type call struct {
	c      *Conn
	ctx    context.Context
	r      results
	commit bool // a COMMIT of ours is still to come
	outer  bool // no transaction may be open afterwards
	ended  bool
	err    error
}

// start sends q and waits until the server answers it. Outside a transaction it enters the scope s first; inside one,
// and in a session that has its scope, enter is false and s only tells descriptions apart.
//
// A server error comes back from here or from finish; whichever it is, nothing of the pipeline has happened then, as long
// as no transaction was open before. That is what makes it safe to send again.
func (c *Conn) start(ctx context.Context, s *Scope, enter bool, q *Query, k *call) (*pgconn.ResultReader, error) {
	var first *failure
	for {
		rr, sd, known, err := c.tryStart(ctx, s, enter, q, first, k)
		if err == nil {
			return rr, nil
		}
		if first != nil || !c.stale(s, q.SQL, known, err) || c.pg.IsClosed() || ctx.Err() != nil {
			return nil, explain(err)
		}
		if c.TxStatus() != 'I' && !errors.As(err, new(encodeError)) {
			return nil, explain(err) // the transaction has failed with it
		}
		first = &failure{err, sd}
	}
}

// failure is why a statement is tried again.
type failure struct {
	err error
	sd  *pgconn.StatementDescription // that it relied on, if it did
}

// final reports whether trying again would fail in the same way, sd being what the statement is described as now.
func (f *failure) final(sd *pgconn.StatementDescription) bool {
	return f.sd != nil && slices.Equal(f.sd.ParamOIDs, sd.ParamOIDs) && sameTypes(f.sd.Fields, sd.Fields) &&
		!isCode(f.err, lostCodes...) && !isCode(f.err, "0A000")
}

// encodeError is the error of an argument that the description's type cannot take.
type encodeError struct{ error }

func (e encodeError) Unwrap() error { return e.error }

// tryStart reports in known whether it relied on what was known of the user's statement before.
func (c *Conn) tryStart(ctx context.Context, s *Scope, enter bool, q *Query, first *failure, k *call) (rr *pgconn.ResultReader, sd *pgconn.StatementDescription, known bool, err error) {
	user, sd, known, err := c.bind(ctx, s, enter, q, first)
	if err != nil {
		return nil, sd, known, err
	}
	known = known || user.parse == ""
	var room [5]step
	steps := room[:0]
	*k = call{c: c, ctx: ctx, outer: enter, commit: enter && (q.InTransaction || c.shared.entry == EntrySetLocal)}
	if k.commit {
		steps = append(steps, unnamed("begin"))
	}
	if enter {
		c.serve(s)
		steps = c.enterSteps(steps, s, false)
	}
	steps = append(steps, user)
	if k.commit {
		steps = append(steps, unnamed("commit"))
	}
	c.send(ctx, steps, &k.r)
	if k.commit {
		err = k.r.skip()
	}
	if err == nil && enter {
		err = c.entered(&k.r, false)
	}
	if err == nil {
		rr, err = k.r.next()
	}
	if err == nil && q.DiscardRows {
		_, err = rr.Close() // the whole answer is read here, so that an error in it can still be retried
	}
	if err != nil {
		k.fail(err)
		return nil, sd, known, k.finish()
	}
	if sd != nil && !q.DiscardRows && !sameTypes(sd.Fields, rr.FieldDescriptions()) {
		c.shared.forget(s, q.SQL) // the formats were picked for other types
	}
	return rr, sd, known, nil
}

func sameTypes(described, got []pgconn.FieldDescription) bool {
	return slices.EqualFunc(described, got, func(a, b pgconn.FieldDescription) bool { return a.DataTypeOID == b.DataTypeOID })
}

// bind encodes q's arguments and returns its step, and the description that it relied on, where it did.
func (c *Conn) bind(ctx context.Context, s *Scope, enter bool, q *Query, first *failure) (st step, sd *pgconn.StatementDescription, known bool, err error) {
	mode := q.Mode
	if mode == 0 {
		mode = c.shared.mode
	}
	c.pipeline++
	if mode != pgx.QueryExecModeExec && !(q.DiscardRows && len(q.Args) == 0) {
		if first == nil {
			sd = c.shared.lookup(s, q.SQL)
		}
		if known = sd != nil; !known {
			sds, err := c.describe(ctx, s, enter, q.SQL)
			if err != nil {
				return step{}, nil, false, err
			}
			sd = sds[0]
			final := first != nil && first.final(sd)
			c.shared.store(s, q.SQL, sd, first != nil && !final)
			if final {
				return step{}, sd, false, first.err
			}
		}
		if err := c.learn(ctx, sd); err != nil {
			return step{}, sd, false, err
		}
		if len(sd.ParamOIDs) != len(q.Args) {
			return step{}, sd, known, encodeError{fmt.Errorf("expected %d arguments, got %d", len(sd.ParamOIDs), len(q.Args))}
		}
	}
	if err := c.eqb.Build(c.types, sd, q.Args); err != nil {
		return step{}, sd, known, encodeError{err}
	}
	var oids []uint32
	formats := c.eqb.ResultFormats
	if sd != nil {
		oids = sd.ParamOIDs
		if q.FormatsByOID != nil {
			formats = make([]int16, len(sd.Fields))
			for i := range formats {
				formats[i] = q.FormatsByOID[sd.Fields[i].DataTypeOID]
			}
		}
	}
	if q.Formats != nil {
		formats = q.Formats
	}
	if q.DiscardRows && sd == nil {
		formats = nil
	}
	st = c.statement(stmtKey{schema: s.Schema, role: s.Role, sql: q.SQL}, mode, oids, false)
	st.values, st.formats, st.resultFormats = c.eqb.ParamValues, c.eqb.ParamFormats, formats
	return st, sd, known, nil
}

// lostCodes are what PostgreSQL says where it does not have the prepared statements that it was taken to have.
var lostCodes = []string{
	"26000", // invalid_sql_statement_name: the server lost it, or a pooler switched servers
	"42P05", // duplicate_prepared_statement: the server has one that was taken for lost
}

// stale reports whether err may come from relying on what was known of a statement, and forgets that.
//
// Both the types that encoded the arguments and the statement on the server may be older than the table: after a
// migration, or behind a pooler.
func (c *Conn) stale(s *Scope, sql string, known bool, err error) bool {
	switch {
	case errors.As(err, new(encodeError)):
		c.shared.forget(s, sql)
		return known
	case isCode(err, lostCodes...):
		c.lose()
		return true
	case isCode(err,
		"0A000", // feature_not_supported: cached plan must not change result type (RevalidateCachedQuery)
		"08P01", // protocol_violation: number of result formats (PortalSetResultFormat) or parameters
		"42704", // undefined_object: a declared type is gone
		"42804", // datatype_mismatch: a column has another type than was declared
		"42883", // undefined_function: no operator for the declared type
		"42P18", // indeterminate_datatype
		"22P02", // invalid_text_representation: text for a type that the column no longer has
		"22003", // numeric_value_out_of_range: the same, where the column became wider
		"22007", // invalid_datetime_format
		"22008", // datetime_field_overflow
		"XX000", // internal_error: cache lookup failed for a type that is gone
	):
		if st, ok := c.prepared.Get(stmtKey{schema: s.Schema, role: s.Role, sql: sql}); ok {
			c.drop(st)
		}
		c.shared.forget(s, sql)
		if pgErr := new(pgconn.PgError); errors.As(err, &pgErr) && pgErr.Routine == "RevalidateCachedQuery" { // the plan of a prepared statement
			c.shared.newEpoch()
		}
		return known
	}
	return false
}

// fail records the error that ended the call.
func (k *call) fail(err error) {
	if k.err == nil {
		k.err = err
	}
}

// finish reads to the end of the pipeline, and rolls back what is open of it. Success is known only here: deferred
// constraints fail after the command tag.
func (k *call) finish() error {
	if k.ended {
		return k.err
	}
	k.ended = true
	if k.commit && k.err == nil {
		rr, err := k.r.next()
		if err == nil {
			var tag pgconn.CommandTag
			if tag, err = rr.Close(); err == nil && tag.String() == "ROLLBACK" {
				err = pgx.ErrTxCommitRollback
			}
		}
		if err != nil {
			k.fail(err)
		}
	}
	if err := k.r.end(); err != nil {
		k.fail(err)
	}
	if k.err != nil {
		k.c.unkeep(&k.r)
	}
	if k.outer && !k.c.pg.IsClosed() && k.c.TxStatus() != 'I' {
		_ = k.c.Rollback(k.ctx) // a connection on which that fails is closed
	}
	return k.err
}

// explain adds advice to errors of PostgreSQL that come from the way statements are sent here.
func explain(err error) error {
	if err == nil {
		return nil
	}
	switch {
	case isCode(err, "42601") && hasMessage(err, "cannot insert multiple commands into a prepared statement"):
		return fmt.Errorf("%w: send one statement a call, or several with SendBatch", err)
	case isCode(err, "25001"):
		return fmt.Errorf("%w: use Acquire for what cannot run in a transaction", err)
	}
	return err
}

func hasMessage(err error, message string) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.Message == message
}

// Exec sends q and returns its command tag.
func (c *Conn) Exec(ctx context.Context, s *Scope, enter bool, q Query) (pgconn.CommandTag, error) {
	q.DiscardRows = true
	var k call
	rr, err := c.start(ctx, s, enter, &q, &k)
	if err != nil {
		return pgconn.CommandTag{}, err
	}
	tag, _ := rr.Close()
	if err := k.finish(); err != nil {
		return pgconn.CommandTag{}, explain(err)
	}
	return tag, nil
}
