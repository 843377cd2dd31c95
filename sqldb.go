package pgtenancy

import (
	"cmp"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pgtenancy/pgtenancy/internal/wire"
)

// DB returns the pool as a *sql.DB, for ORMs and other code that is written for database/sql. Every statement runs as the
// tenant in its context. Without one it is ErrNoTenant, and so are the methods that take no context, except in a
// transaction. Values are read and written as by pgx's package stdlib.
//
// The connections of the *sql.DB are virtual: one takes a connection of the pool for a statement, until its rows are
// closed, and for a transaction, until it ends. Hence:
//
//   - Prepare keeps the SQL and sends nothing, for the pool prepares statements itself, per tenant. One *sql.Stmt serves all
//     tenants. Mistakes in its SQL show when it is used.
//   - A *sql.Conn is no session: its statements run on whatever connection is free, each as the tenant in its context. One
//     that is to be a session, for advisory locks, LISTEN, SET or temporary tables, is made one by [DriverConn].
//   - An error comes as it is. database/sql never sends a statement again by itself, since it might have run.
//   - When the context of BeginTx ends, so does a statement that is running in the transaction.
//   - SetMaxOpenConns bounds what code behind the *sql.DB takes of the pool at once. How many connections there are and how
//     long they live is up to PoolConfig.Conns.
//   - sql.Named is refused. pgx.NamedArgs and the other options of pgx are taken as the first arguments.
//
// It is the same *sql.DB at every call. Pool.Close closes it. Closing it earlier leaves the pool open, and the next call
// returns a new one.
func (p *Pool) DB() *sql.DB {
	h := &p.db
	h.mu.Lock()
	if h.db == nil {
		h.db = sql.OpenDB(&sqlConnector{pool: p})
		h.db.SetMaxIdleConns(int(p.cfg.Conns.MaxConns)) // they cost next to nothing, opening them hardly more
	}
	db, closed := h.db, h.closed
	h.mu.Unlock()
	if closed {
		_ = db.Close()
	}
	return db
}

// DriverConn is what a *sql.Conn of Pool.DB hands to the function of its Raw method.
type DriverConn interface {
	// Acquire makes the *sql.Conn a session of the tenant in ctx: it takes the connection that Pool.Acquire returns, on
	// which the statements and transactions of the *sql.Conn run from now on, also with a context that carries no tenant.
	// Closing the *sql.Conn releases it. Called again it returns the same connection. In a transaction it is refused.
	//
	// The result may be used while no other goroutine uses the *sql.Conn, for CopyFrom, SendBatch, WaitForNotification and
	// the like.
	Acquire(ctx context.Context) (*Conn, error)
}

// sqlDB is the *sql.DB of a Pool, once it was asked for.
type sqlDB struct {
	mu     sync.Mutex
	db     *sql.DB
	closed bool // the pool is, so there will be no other
}

// closeDB closes the *sql.DB, with the goroutine that it has.
func (p *Pool) closeDB() {
	p.db.mu.Lock()
	p.db.closed = true
	db := p.db.db
	p.db.mu.Unlock()
	if db != nil {
		_ = db.Close() // closing virtual connections does not fail
	}
}

// sqlConnector makes virtual connections.
type sqlConnector struct{ pool *Pool }

var (
	_ driver.Connector = (*sqlConnector)(nil)
	_ io.Closer        = (*sqlConnector)(nil)
	_ driver.Driver    = (*sqlDriver)(nil)
)

// Connect sends nothing.
func (c *sqlConnector) Connect(context.Context) (driver.Conn, error) {
	return &sqlConn{pool: c.pool}, nil
}

func (c *sqlConnector) Driver() driver.Driver { return &sqlDriver{} }

// Close is called when the *sql.DB was closed.
func (c *sqlConnector) Close() error {
	c.pool.db.mu.Lock()
	defer c.pool.db.mu.Unlock()
	if !c.pool.db.closed {
		c.pool.db.db = nil
	}
	return nil
}

type sqlDriver struct{}

// Open is what sql.Open would call if the driver had a name.
func (*sqlDriver) Open(string) (driver.Conn, error) {
	return nil, errors.New("pgtenancy: the driver opens no connections by name: use Pool.DB")
}

// sqlConn is a virtual connection. It has no state that outlives a transaction, unless it was made a session.
type sqlConn struct {
	pool    *Pool
	tx      *sqlTx // the transaction under way, nil without one
	session *Conn  // after Acquire
}

var (
	_ DriverConn                = (*sqlConn)(nil)
	_ driver.ConnBeginTx        = (*sqlConn)(nil)
	_ driver.ConnPrepareContext = (*sqlConn)(nil)
	_ driver.ExecerContext      = (*sqlConn)(nil)
	_ driver.NamedValueChecker  = (*sqlConn)(nil)
	_ driver.Pinger             = (*sqlConn)(nil)
	_ driver.QueryerContext     = (*sqlConn)(nil)
	_ driver.SessionResetter    = (*sqlConn)(nil)
	_ driver.Validator          = (*sqlConn)(nil)
)

var errSQLConnInTx = errors.New("pgtenancy: the connection is in a transaction")

func (c *sqlConn) Acquire(ctx context.Context) (*Conn, error) {
	switch {
	case c.tx != nil:
		return nil, errSQLConnInTx
	case c.session != nil:
		return c.session, c.session.enter(ctx)
	}
	session, err := c.pool.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	c.session = session
	return session, nil
}

// statement returns what a statement with ctx runs on, the context to run it with, and what to call at its end.
func (c *sqlConn) statement(ctx context.Context) (sqlQuerier, context.Context, func()) {
	switch {
	case c.tx != nil:
		ctx, done := c.tx.join(ctx)
		return c.tx.tx, ctx, done
	case c.session != nil:
		return c.session, ctx, func() {}
	}
	return c.pool, ctx, func() {}
}

// sqlQuerier is what Pool, Conn and pgx.Tx have in common.
type sqlQuerier interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

func (c *sqlConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	q, ctx, done := c.statement(ctx)
	defer done()
	tag, err := q.Exec(ctx, query, sqlArgs(nil, args)...)
	if err != nil {
		return nil, err
	}
	return driver.RowsAffected(tag.RowsAffected()), nil
}

func (c *sqlConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	q, ctx, done := c.statement(ctx)
	rows := pgx.Rows(wire.ErrRows{})
	opened := false
	defer func() {
		if !opened { // also where an argument or a codec of the user's panics
			rows.Close()
			done()
		}
	}()
	rows, err := q.Query(ctx, query, sqlArgs([]any{sqlFormats}, args)...)
	if err != nil {
		return nil, err
	}
	// The first row is read here, so that the error of a statement that fails at once is the error of the query, as it is
	// with other drivers. Where there is none, rows are closed now and know nothing of their columns.
	r := &sqlRows{rows: rows, done: done, columns: sqlColumns(rows)}
	r.first = rows.Next()
	if err := rows.Err(); err != nil {
		return nil, err
	}
	opened = true
	return r, nil
}

// sqlArgs appends the values of args to the options before them.
func sqlArgs(options []any, args []driver.NamedValue) []any {
	for _, a := range args {
		options = append(options, a.Value)
	}
	return options
}

// CheckNamedValue lets every value through, since pgx knows more types than database/sql, and calls driver.Valuer itself.
func (c *sqlConn) CheckNamedValue(v *driver.NamedValue) error {
	if v.Name != "" {
		return errors.New("pgtenancy: sql.Named is not supported: use $1, or @name with pgx.NamedArgs")
	}
	return nil
}

func (c *sqlConn) Prepare(query string) (driver.Stmt, error) { return &sqlStmt{c, query}, nil }

func (c *sqlConn) PrepareContext(_ context.Context, query string) (driver.Stmt, error) {
	return c.Prepare(query)
}

func (c *sqlConn) Begin() (driver.Tx, error) {
	return c.BeginTx(context.Background(), driver.TxOptions{})
}

func (c *sqlConn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	if c.tx != nil {
		return nil, errSQLConnInTx
	}
	var options pgx.TxOptions
	switch level := sql.IsolationLevel(opts.Isolation); level {
	case sql.LevelDefault:
	case sql.LevelReadUncommitted:
		options.IsoLevel = pgx.ReadUncommitted
	case sql.LevelReadCommitted:
		options.IsoLevel = pgx.ReadCommitted
	case sql.LevelRepeatableRead, sql.LevelSnapshot: // which PostgreSQL's repeatable read is
		options.IsoLevel = pgx.RepeatableRead
	case sql.LevelSerializable:
		options.IsoLevel = pgx.Serializable
	default:
		return nil, fmt.Errorf("pgtenancy: PostgreSQL has no isolation level %s", level)
	}
	if opts.ReadOnly {
		options.AccessMode = pgx.ReadOnly
	}
	begin := c.pool.BeginTx
	if c.session != nil {
		begin = c.session.BeginTx
	}
	tx, err := begin(ctx, options)
	if err != nil {
		return nil, err
	}
	c.tx = &sqlTx{conn: c, tx: tx, ctx: ctx}
	return c.tx, nil
}

// Ping needs no tenant.
func (c *sqlConn) Ping(ctx context.Context) error {
	switch {
	case c.tx != nil:
		return c.tx.tx.Conn().Ping(ctx)
	case c.session != nil:
		return c.session.Ping(ctx)
	}
	return c.pool.Ping(ctx)
}

// ResetSession has nothing to reset: IsValid was asked before.
func (c *sqlConn) ResetSession(context.Context) error { return nil }

// IsValid is asked when a statement, a transaction or a *sql.Conn gives the connection back. A session ends with the
// *sql.Conn that it was made for.
func (c *sqlConn) IsValid() bool { return c.tx == nil && c.session == nil }

func (c *sqlConn) Close() error {
	if c.tx != nil {
		_ = c.tx.Rollback() // it was begun through Raw, and nobody is left to tell
	}
	if c.session != nil {
		c.session.Release()
	}
	return nil
}

// sqlTx is a transaction of a virtual connection.
type sqlTx struct {
	conn *sqlConn
	tx   pgx.Tx
	ctx  context.Context // of BeginTx: driver.Tx has no other for Commit
}

func (t *sqlTx) Commit() error {
	t.conn.tx = nil
	return t.tx.Commit(t.ctx)
}

// Rollback is also how database/sql ends a transaction whose context has ended.
func (t *sqlTx) Rollback() error {
	t.conn.tx = nil
	return t.tx.Rollback(t.ctx)
}

// join returns ctx for a statement in the transaction, ended by the transaction's context too: database/sql would let the
// statement run and wait for it before it rolls back.
func (t *sqlTx) join(ctx context.Context) (context.Context, func()) {
	if t.ctx.Done() == nil || t.ctx.Done() == ctx.Done() {
		return ctx, func() {}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(t.ctx, func() { cancel(context.Cause(t.ctx)) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// sqlStmt is a statement that the pool prepares when it runs.
type sqlStmt struct {
	conn  *sqlConn
	query string
}

var (
	_ driver.StmtExecContext  = (*sqlStmt)(nil)
	_ driver.StmtQueryContext = (*sqlStmt)(nil)
)

func (s *sqlStmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	return s.conn.ExecContext(ctx, s.query, args)
}

func (s *sqlStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	return s.conn.QueryContext(ctx, s.query, args)
}

// Exec and Query are of old, before there were contexts. database/sql does not call them.
func (s *sqlStmt) Exec([]driver.Value) (driver.Result, error) { return nil, errors.ErrUnsupported }
func (s *sqlStmt) Query([]driver.Value) (driver.Rows, error)  { return nil, errors.ErrUnsupported }
func (s *sqlStmt) NumInput() int                              { return -1 } // the pool finds out
func (s *sqlStmt) Close() error                               { return nil }

// sqlRows reads the rows of a statement for database/sql, which calls Close when it has read them.
type sqlRows struct {
	rows    pgx.Rows
	done    func()
	columns []sqlColumn
	first   bool // there is a first row, not handed out yet
}

var (
	_ driver.RowsColumnTypeDatabaseTypeName = (*sqlRows)(nil)
	_ driver.RowsColumnTypeLength           = (*sqlRows)(nil)
	_ driver.RowsColumnTypePrecisionScale   = (*sqlRows)(nil)
	_ driver.RowsColumnTypeScanType         = (*sqlRows)(nil)
)

func (r *sqlRows) Next(dest []driver.Value) error {
	if !r.first && !r.rows.Next() {
		return cmp.Or(r.rows.Err(), io.EOF)
	}
	r.first = false
	for i, raw := range r.rows.RawValues() {
		if raw == nil {
			dest[i] = nil
			continue
		}
		var err error
		if dest[i], err = r.columns[i].read(raw); err != nil {
			return fmt.Errorf("pgtenancy: column %q: %w", r.columns[i].Name, err)
		}
	}
	return nil
}

func (r *sqlRows) Close() error {
	r.rows.Close()
	r.done()
	return r.rows.Err()
}

func (r *sqlRows) Columns() []string {
	names := make([]string, len(r.columns))
	for i := range r.columns {
		names[i] = r.columns[i].Name
	}
	return names
}

// ColumnTypeDatabaseTypeName returns the name of the type without its schema, which would be another for every tenant. It
// returns the OID where the name is not known: of the types that users made in QueryExecModeExec.
func (r *sqlRows) ColumnTypeDatabaseTypeName(i int) string {
	c := &r.columns[i]
	if c.known == nil {
		return strconv.FormatUint(uint64(c.DataTypeOID), 10)
	}
	name := c.known.Name
	if dot := strings.LastIndex(name, `"."`); dot >= 0 {
		name = strings.ReplaceAll(name[dot+3:len(name)-1], `""`, `"`)
	}
	return strings.ToUpper(name)
}

// sqlTypmodHeader is what PostgreSQL adds to some type modifiers.
const sqlTypmodHeader = 4

func (r *sqlRows) ColumnTypeLength(i int) (int64, bool) {
	switch c := &r.columns[i]; c.DataTypeOID {
	case pgtype.TextOID, pgtype.ByteaOID:
		return math.MaxInt64, true
	case pgtype.VarcharOID, pgtype.BPCharOID:
		if c.TypeModifier < sqlTypmodHeader {
			return math.MaxInt64, true
		}
		return int64(c.TypeModifier - sqlTypmodHeader), true
	case pgtype.VarbitOID:
		if c.TypeModifier < 0 {
			return math.MaxInt64, true
		}
		return int64(c.TypeModifier), true
	}
	return 0, false
}

func (r *sqlRows) ColumnTypePrecisionScale(i int) (precision, scale int64, ok bool) {
	c := &r.columns[i]
	if c.DataTypeOID != pgtype.NumericOID || c.TypeModifier < sqlTypmodHeader {
		return 0, 0, false
	}
	mod := int64(c.TypeModifier - sqlTypmodHeader)
	return mod >> 16 & 0xffff, mod&0x7ff ^ 0x400 - 0x400, true // the scale has a sign in its eleven bits
}

func (r *sqlRows) ColumnTypeScanType(i int) reflect.Type {
	switch r.columns[i].DataTypeOID {
	case pgtype.BoolOID:
		return reflect.TypeFor[bool]()
	case pgtype.Int2OID:
		return reflect.TypeFor[int16]()
	case pgtype.Int4OID:
		return reflect.TypeFor[int32]()
	case pgtype.Int8OID:
		return reflect.TypeFor[int64]()
	case pgtype.Float4OID:
		return reflect.TypeFor[float32]()
	case pgtype.Float8OID, pgtype.NumericOID:
		return reflect.TypeFor[float64]()
	case pgtype.DateOID, pgtype.TimestampOID, pgtype.TimestamptzOID:
		return reflect.TypeFor[time.Time]()
	case pgtype.ByteaOID:
		return reflect.TypeFor[[]byte]()
	}
	return reflect.TypeFor[string]()
}

// sqlColumn is a column of the rows. It is made while they are open, since what they know ends with them.
type sqlColumn struct {
	pgconn.FieldDescription
	known *pgtype.Type // nil where pgx does not know it
	read  func([]byte) (driver.Value, error)
}

func sqlColumns(rows pgx.Rows) []sqlColumn {
	fields, types := rows.FieldDescriptions(), rows.TypeMap()
	columns := make([]sqlColumn, len(fields))
	for i, f := range fields {
		known, _ := types.TypeForOID(f.DataTypeOID)
		columns[i] = sqlColumn{f, known, sqlReader(types, f)}
	}
	return columns
}

// sqlFormats are the types whose values database/sql has types for. They are sent in binary, all others as text.
var sqlFormats = pgx.QueryResultFormatsByOID{
	pgtype.BoolOID:        pgx.BinaryFormatCode,
	pgtype.Int2OID:        pgx.BinaryFormatCode,
	pgtype.Int4OID:        pgx.BinaryFormatCode,
	pgtype.Int8OID:        pgx.BinaryFormatCode,
	pgtype.Float4OID:      pgx.BinaryFormatCode,
	pgtype.Float8OID:      pgx.BinaryFormatCode,
	pgtype.OIDOID:         pgx.BinaryFormatCode,
	pgtype.XIDOID:         pgx.BinaryFormatCode,
	pgtype.CIDOID:         pgx.BinaryFormatCode,
	pgtype.ByteaOID:       pgx.BinaryFormatCode,
	pgtype.DateOID:        pgx.BinaryFormatCode,
	pgtype.TimestampOID:   pgx.BinaryFormatCode,
	pgtype.TimestamptzOID: pgx.BinaryFormatCode,
}

// sqlReader returns a function that makes of a value what database/sql expects.
func sqlReader(types *pgtype.Map, f pgconn.FieldDescription) func([]byte) (driver.Value, error) {
	switch f.DataTypeOID {
	case pgtype.BoolOID:
		return sqlRead(types, f, sqlAsIs[bool])
	case pgtype.Int2OID, pgtype.Int4OID, pgtype.Int8OID:
		return sqlRead(types, f, sqlAsIs[int64])
	case pgtype.OIDOID, pgtype.XIDOID, pgtype.CIDOID:
		return sqlRead(types, f, func(v uint32) (driver.Value, error) { return int64(v), nil })
	case pgtype.Float4OID:
		return sqlRead(types, f, func(v float32) (driver.Value, error) { return float64(v), nil })
	case pgtype.Float8OID:
		return sqlRead(types, f, sqlAsIs[float64])
	case pgtype.ByteaOID, pgtype.JSONOID, pgtype.JSONBOID, pgtype.XMLOID:
		return sqlRead(types, f, sqlAsIs[[]byte])
	case pgtype.DateOID:
		return sqlRead(types, f, pgtype.Date.Value) // a time.Time, or infinity as a string
	case pgtype.TimestampOID:
		return sqlRead(types, f, pgtype.Timestamp.Value)
	case pgtype.TimestamptzOID:
		return sqlRead(types, f, pgtype.Timestamptz.Value)
	}
	return sqlRead(types, f, sqlAsIs[string])
}

func sqlAsIs[T any](v T) (driver.Value, error) { return v, nil }

func sqlRead[T any](types *pgtype.Map, f pgconn.FieldDescription, value func(T) (driver.Value, error)) func([]byte) (driver.Value, error) {
	plan := types.PlanScan(f.DataTypeOID, f.Format, new(T))
	return func(raw []byte) (driver.Value, error) {
		var v T
		if err := plan.Scan(raw, &v); err != nil {
			return nil, err
		}
		return value(v)
	}
}
