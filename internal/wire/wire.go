// Package wire sends statements together with the scope that they run in.
//
// A statement outside an explicit transaction travels in one pipeline, which is one round trip and one implicit
// transaction:
//
//	[enter] [Parse] Bind Describe Execute Sync
//
// enter sets search_path, the tenant's setting and where asked the role, all local to that transaction, and fails when
// the tenant's schema is not what unqualified names would now resolve to. Nothing stays on the connection, so nothing has
// to be reset, and a transaction pooler in between does no harm.
//
// Parameters are encoded by a description of the statement that is cached in the process. It only encodes: Parse always
// declares the types that encoded the values, and rows are decoded by the description that the server sends in the same
// pipeline, or on a connection that is known to be direct has sent when it prepared the statement, whose result cannot
// change from then on. A stale description costs a retry or an error, never a wrong value.
package wire

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pgtenancy/pgtenancy/internal/lru"
)

// CleanupTimeout bounds what has to be sent after a context was cancelled: ROLLBACK and the clearing of a session.
const CleanupTimeout = 5 * time.Second

// Shared is what all connections of one pool have in common. It is safe for concurrent use.
type Shared struct {
	mode       pgx.QueryExecMode
	statements int // server statements kept by one connection
	entry      Entry
	setting    string
	enter      [2][1 << len(timeoutNames)]enterStatement // for a transaction and for a session, by the timeouts that are set

	started atomic.Int64 // when the epoch of prepared statements began: see newEpoch

	mu           sync.Mutex
	descriptions *lru.Cache[describeKey, description]
	types        *lru.Cache[uint32, *typeSpec]
}

// What a process keeps at most.
const (
	descriptionsDefault = 4096
	typesDefault        = 1 << 16
)

// Options say how statements are sent.
type Options struct {
	Mode       pgx.QueryExecMode // by default: QueryExecModeCacheStatement, QueryExecModeCacheDescribe or QueryExecModeExec
	Statements int               // that one connection keeps prepared, at most
	Entry      Entry
	Setting    string // the name of the tenant's setting; validated
}

// NewShared returns the state of a pool.
func NewShared(o Options) *Shared {
	sh := &Shared{
		mode: o.Mode, statements: o.Statements, entry: o.Entry, setting: o.Setting,
		descriptions: lru.New[describeKey, description](descriptionsDefault),
		types:        lru.New[uint32, *typeSpec](typesDefault),
	}
	for mask := range sh.enter[0] {
		sh.enter[0][mask] = newEnterStatement(o.Entry, o.Setting, mask, false)
		sh.enter[1][mask] = newEnterStatement(o.Entry, o.Setting, mask, true)
	}
	return sh
}

// newEpoch makes the text of statements that are prepared from now on differ from what it was. PgBouncer does not pass on
// the Close of a prepared statement, and would give its stale or lost one to whoever prepares the same text again.
func (sh *Shared) newEpoch() { sh.started.Store(time.Now().UnixNano()) }

// epoch returns what that text ends in.
func (sh *Shared) epoch() string {
	if t := sh.started.Load(); t != 0 {
		return "\n/* " + strconv.FormatInt(t, 36) + " */"
	}
	return ""
}

// Conn sends statements on one connection. Like the connection it is not safe for concurrent use.
type Conn struct {
	conn   *pgx.Conn
	pg     *pgconn.PgConn
	types  *pgtype.Map
	shared *Shared
	role   []byte
	direct bool
	eqb    pgx.ExtendedQueryBuilder
	batch  pgconn.Batch // of the last pipeline; here to spare an allocation

	values [][]byte // room for enter's parameters,
	text   []byte   // and for their text

	learned map[uint32]bool // types that users created, as far as this connection was told of them
	changed []uint32        // those of them that have other fields now

	served map[string]struct{} // the schemas of tenants that it has served

	prepared *lru.Cache[stmtKey, *stmt]    // what the server has
	seen     *lru.Cache[stmtKey, struct{}] // what was sent once, unnamed
	close    []string                      // names that the server may forget, told with the next pipeline
	pipeline int64                         // counts pipelines, so that one does not evict what it is about to use
}

// stmtKey tells server statements apart. PostgreSQL would plan one statement anew whenever search_path differs, and
// refuse it where a type of its own differs.
type stmtKey struct{ schema, role, sql string }

// stmt is a prepared statement on the server.
type stmt struct {
	key  stmtKey
	name string
	oids []uint32 // of the parameters, as declared
	used int64    // the last pipeline that used it
	sd   *pgconn.StatementDescription
}

// NewConn returns the Conn of conn. There must be one only, which knows what the server has. role is that of scopes that
// name none, "none" for the one that the connection has logged in as. direct says that it is one backend's for as long as
// it lasts, with nothing in between that prepares statements on other backends.
func NewConn(conn *pgx.Conn, shared *Shared, role string, direct bool) *Conn {
	return &Conn{
		conn: conn, pg: conn.PgConn(), types: conn.TypeMap(), shared: shared, role: []byte(role), direct: direct,
		prepared: lru.New[stmtKey, *stmt](shared.statements),
		seen:     lru.New[stmtKey, struct{}](shared.statements),
	}
}

// serve notes that the connection serves a tenant.
func (c *Conn) serve(s *Scope) {
	if _, ok := c.served[s.Schema]; !ok {
		if c.served == nil {
			c.served = make(map[string]struct{})
		}
		c.served[s.Schema] = struct{}{}
	}
}

// Served returns the number of tenants that the connection has served. Its backend keeps what it knows of each one's tables
// until the connection ends.
func (c *Conn) Served() int { return len(c.served) }

// Forget drops all knowledge of statements on the server, as after DISCARD ALL.
func (c *Conn) Forget() {
	c.prepared.Clear()
	c.seen.Clear()
	c.close = nil
}

// Pgx returns the connection below.
func (c *Conn) Pgx() *pgx.Conn { return c.conn }

// TxStatus returns 'I' outside a transaction, 'T' inside one and 'E' inside a failed one.
func (c *Conn) TxStatus() byte { return c.pg.TxStatus() }

// Rollback ends a transaction that failed, on a context that outlives a cancelled one. A connection on which that fails
// is closed.
func (c *Conn) Rollback(ctx context.Context) error {
	if c.pg.IsClosed() {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), CleanupTimeout)
	defer cancel()
	err := c.pg.Exec(ctx, "rollback").Close()
	if err != nil {
		_ = c.pg.Close(ctx) // the error that counts is the one above
	}
	return err
}

// A step is one statement of a pipeline.
type step struct {
	stmt          *stmt  // the server's statement; nil for an unnamed one
	enter         bool   // its result is known beforehand, and needs no description
	parse         string // the text to parse first; "" where the server has it
	oids          []uint32
	values        [][]byte
	formats       []int16
	resultFormats []int16
}

// unnamed returns a step without parameters.
func unnamed(sql string) step { return step{parse: sql} }

// results reads what a pipeline answers, a statement at a time.
type results struct {
	mrr    *pgconn.MultiResultReader // of what was sent as a batch
	p      *pgconn.Pipeline          // of what was not
	parsed []*stmt                   // to come, in the order of their Parse
	err    error
	ended  bool
}

var errNoMoreResults = errors.New("no more results in the pipeline")

// send sends the steps as one pipeline, that is with one Sync. Its answer is read from r.
func (c *Conn) send(ctx context.Context, steps []step, r *results) {
	rides := len(c.close) > 0
	for i := range steps {
		rides = rides || steps[i].stmt != nil && steps[i].parse != ""
	}
	if !rides {
		// pgconn's Batch allocates less than its Pipeline, but can parse unnamed statements only.
		c.batch = pgconn.Batch{}
		for i := range steps {
			switch s := &steps[i]; {
			case s.stmt == nil:
				c.batch.ExecParams(s.parse, s.values, s.oids, s.formats, s.resultFormats)
			case s.enter:
				c.batch.ExecStatement(s.stmt.description(), s.values, s.formats, s.resultFormats)
			case c.direct && s.stmt.sd != nil:
				// PostgreSQL refuses to run a prepared statement whose result has other columns than when it was prepared (0A000), so
				// that it need not be described again. A pooler may have prepared it again elsewhere.
				c.batch.ExecStatement(s.stmt.sd, s.values, s.formats, s.resultFormats)
			default:
				c.batch.ExecPrepared(s.stmt.name, s.values, s.formats, s.resultFormats)
			}
		}
		r.mrr = c.pg.ExecBatch(ctx, &c.batch)
		return
	}
	r.p = c.pg.StartPipeline(ctx)
	for _, name := range c.close {
		r.p.SendDeallocate(name)
	}
	for i := range steps {
		s := &steps[i]
		switch {
		case s.stmt == nil:
			r.p.SendQueryParams(s.parse, s.values, s.oids, s.formats, s.resultFormats)
			continue
		case s.parse != "":
			r.p.SendPrepare(s.stmt.name, s.parse, s.oids)
			r.parsed = append(r.parsed, s.stmt)
		}
		r.p.SendQueryPrepared(s.stmt.name, s.values, s.formats, s.resultFormats)
	}
	if r.err = r.p.Sync(); r.err == nil {
		c.close = nil
	}
}

// description returns what enter's statement answers with: one column.
func (s *stmt) description() *pgconn.StatementDescription {
	if s.sd == nil {
		s.sd = &pgconn.StatementDescription{Name: s.name, Fields: make([]pgconn.FieldDescription, 1)}
	}
	return s.sd
}

// next returns the next statement's result, or the error that ended the pipeline. The result before must be closed.
func (r *results) next() (*pgconn.ResultReader, error) {
	if r.mrr != nil {
		if r.mrr.NextResult() {
			return r.mrr.ResultReader(), nil
		}
		if err := r.mrr.Close(); err != nil {
			return nil, err
		}
		return nil, errNoMoreResults
	}
	for r.err == nil && !r.ended {
		result, err := r.p.GetResults()
		if err != nil {
			r.err = err
			break
		}
		switch result := result.(type) {
		case *pgconn.StatementDescription:
			result.Name = r.parsed[0].name // which a pipeline does not fill in
			r.parsed[0].sd = result
			r.parsed = r.parsed[1:]
		case *pgconn.ResultReader:
			return result, nil
		case *pgconn.PipelineSync, nil:
			r.ended = true
		}
	}
	if r.err != nil {
		return nil, r.err
	}
	return nil, errNoMoreResults
}

// skip reads the next statement's result to its end.
func (r *results) skip() error {
	rr, err := r.next()
	if err == nil {
		_, err = rr.Close()
	}
	return err
}

// end reads to the end of the pipeline. It returns the error that ended it.
func (r *results) end() error {
	if r.mrr != nil {
		return r.mrr.Close()
	}
	for {
		if _, err := r.next(); err != nil {
			break
		}
	}
	if err := r.p.Close(); err != nil && r.err == nil {
		r.err = err
	}
	return r.err
}

// statement returns the step for sql as seen from a tenant's schema, with nothing bound yet. At its first use on a
// connection a statement is unnamed, so that many tenants times many statements do not push each other out; from the
// second on the server keeps it. always skips that.
func (c *Conn) statement(key stmtKey, mode pgx.QueryExecMode, oids []uint32, always bool) step {
	if mode != pgx.QueryExecModeCacheStatement || c.prepared.Cap() == 0 {
		return step{parse: tagged(key), oids: oids}
	}
	if s, ok := c.prepared.Get(key); ok {
		if slices.Equal(s.oids, oids) {
			s.used = c.pipeline
			return step{stmt: s, oids: oids}
		}
		c.drop(s)
	} else if _, ok := c.seen.Get(key); !ok && !always {
		c.seen.Put(key, struct{}{})
		return step{parse: tagged(key), oids: oids}
	}
	text := tagged(key) + c.shared.epoch()
	if c.prepared.Len() >= c.prepared.Cap() {
		oldest, _ := c.prepared.Oldest()
		if oldest.used == c.pipeline {
			return step{parse: text, oids: oids} // all of them are about to be used
		}
		c.drop(oldest)
	}
	c.seen.Delete(key)
	s := &stmt{key: key, name: statementName(text, oids), oids: oids, used: c.pipeline}
	c.prepared.Put(key, s) // for the rest of this pipeline; unkeep takes it back if the server never gets it
	return step{stmt: s, parse: text, oids: oids}
}

// unkeep takes back the statements of a failed pipeline that the server did not parse. They are closed all the same, since
// PgBouncer has seen them, and ends a connection that parses one name twice.
func (c *Conn) unkeep(r *results) {
	for _, s := range r.parsed {
		c.drop(s)
	}
}

// drop forgets a statement and has the server forget it, which does not mind where it has none of that name.
func (c *Conn) drop(s *stmt) {
	c.prepared.Delete(s.key)
	c.close = append(c.close, s.name)
}

// lose drops every statement, when the server turned out not to have what it was taken to have.
func (c *Conn) lose() {
	c.shared.newEpoch()
	for {
		s, ok := c.prepared.Oldest()
		if !ok {
			return
		}
		c.drop(s)
	}
}

// tagged returns the text that is sent: what the user wrote, and whose it is. PgBouncer shares prepared statements by
// their text, so tenants must not have the same one; and logs and pg_stat_activity show it.
func tagged(key stmtKey) string {
	switch {
	case key.schema == "":
		return key.sql
	case key.role == "":
		return key.sql + "\n/* " + commentEscaper.Replace(key.schema) + " */"
	default:
		return key.sql + "\n/* " + commentEscaper.Replace(key.schema) + " " + commentEscaper.Replace(key.role) + " */"
	}
}

var commentEscaper = strings.NewReplacer("%", "%25", " ", "%20", "*", "%2A", "/", "%2F", "\n", "%0A", "\r", "%0D")

// statementName names a statement after all that it is, so that even a pooler that mixes up the statements of its clients
// can only ever run the same one under that name.
func statementName(text string, oids []uint32) string {
	h := sha256.New()
	h.Write([]byte(text))
	for _, oid := range oids {
		fmt.Fprintf(h, "\x00%d", oid)
	}
	return "pgtenancy_" + hex.EncodeToString(h.Sum(nil)[:16])
}
