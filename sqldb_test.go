package pgtenancy_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/big"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/pgtenancy/pgtenancy"
)

func ExamplePool_DB() {
	ctx := context.Background()
	pool, err := pgtenancy.NewPool(ctx, "postgres://app@localhost/shop")
	must(err)
	defer pool.Close() // and the *sql.DB with it

	db := pool.DB() // gorm.Open(postgres.New(postgres.Config{Conn: db})), bun.NewDB(db, pgdialect.New()), sqlx.NewDb(db, "pgx"), ...
	count, err := db.Prepare("select count(*) from orders where total > $1")
	must(err)

	for _, id := range []string{"acme", "globex"} {
		tenant, err := pgtenancy.NewTenant(pgtenancy.TenantInfo{ID: id})
		must(err)
		ctx := pgtenancy.WithTenant(ctx, tenant) // middleware.Tenant does this for a request
		var n int
		must(count.QueryRowContext(ctx, 100).Scan(&n)) // acme's orders, then globex's
	}
}

// A session through database/sql: here for an advisory lock around something that uses the connection.
func ExampleDriverConn() {
	var (
		ctx  context.Context // carries a tenant
		pool *pgtenancy.Pool
	)
	conn, err := pool.DB().Conn(ctx)
	must(err)
	defer conn.Close() // ends the session, the lock with it
	must(conn.Raw(func(c any) error {
		_, err := c.(pgtenancy.DriverConn).Acquire(ctx)
		return err
	}))
	_, err = conn.ExecContext(ctx, "select pg_advisory_lock(42)")
	must(err)
}

// A sqlQuerier is what sql.DB, sql.Conn and sql.Tx have in common.
type sqlQuerier interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
	PrepareContext(ctx context.Context, query string) (*sql.Stmt, error)
}

// sqlUses are all the ways to run SQL, each of which checks that it reaches the tenant.
var sqlUses = []struct {
	name string
	run  func(ctx context.Context, q sqlQuerier, tenant pgtenancy.Tenant) error
}{
	{"Exec", func(ctx context.Context, q sqlQuerier, tenant pgtenancy.Tenant) error {
		return sqlAffected(3)(q.ExecContext(ctx, "update notes set n = n where tenant = $1", tenant.ID()))
	}},
	{"Exec without arguments", func(ctx context.Context, q sqlQuerier, _ pgtenancy.Tenant) error {
		return sqlAffected(1)(q.ExecContext(ctx, "insert into log (note) values ('exec')"))
	}},
	{"Exec of a statement without rows", func(ctx context.Context, q sqlQuerier, _ pgtenancy.Tenant) error {
		return sqlAffected(0)(q.ExecContext(ctx, "do 'begin perform 1; end'"))
	}},
	{"Query", func(ctx context.Context, q sqlQuerier, tenant pgtenancy.Tenant) error {
		rows, err := q.QueryContext(ctx, "select id, tenant from notes where n >= $1 order by id", 1)
		return sqlTenants(rows, err, tenant)
	}},
	{"Query closed early", func(ctx context.Context, q sqlQuerier, _ pgtenancy.Tenant) error {
		rows, err := q.QueryContext(ctx, "select tenant from notes")
		if err != nil {
			return err
		}
		rows.Next()
		return errors.Join(rows.Close(), rows.Err())
	}},
	{"Query without a result", func(ctx context.Context, q sqlQuerier, _ pgtenancy.Tenant) error {
		rows, err := q.QueryContext(ctx, "insert into log (note) values ('query')")
		if err != nil {
			return err
		}
		defer rows.Close()
		return want(rows.Err(), !rows.Next(), "a row")
	}},
	{"QueryRow", func(ctx context.Context, q sqlQuerier, tenant pgtenancy.Tenant) error {
		return sqlWhose(ctx, q, tenant)
	}},
	{"QueryRow without a row", func(ctx context.Context, q sqlQuerier, _ pgtenancy.Tenant) error {
		var got string
		err := q.QueryRowContext(ctx, "select tenant from notes where n = $1", 77).Scan(&got)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		return want(err, false, "a row %q", got)
	}},
	{"QueryRow returning", func(ctx context.Context, q sqlQuerier, tenant pgtenancy.Tenant) error {
		var got string
		err := q.QueryRowContext(ctx, "insert into log (note) values ($1) returning tenant", "returning").Scan(&got)
		return want(err, got == tenant.ID(), "got %q", got)
	}},
	{"Prepare", func(ctx context.Context, q sqlQuerier, tenant pgtenancy.Tenant) error {
		stmt, err := q.PrepareContext(ctx, "select id, tenant from notes where n >= $1 order by id")
		if err != nil {
			return err
		}
		defer stmt.Close()
		for range 2 {
			rows, err := stmt.QueryContext(ctx, 1)
			if err := sqlTenants(rows, err, tenant); err != nil {
				return err
			}
		}
		if err := sqlAffected(3)(stmt.ExecContext(ctx, 1)); err != nil {
			return err
		}
		return stmt.Close()
	}},
}

// sqlTenants checks that there are three rows, all of them the tenant's.
func sqlTenants(rows *sql.Rows, err error, tenant pgtenancy.Tenant) error {
	if err != nil {
		return err
	}
	defer rows.Close()
	n := 0
	for ; rows.Next(); n++ {
		var id int64
		var got string
		if err := rows.Scan(&id, &got); err != nil {
			return err
		}
		if got != tenant.ID() {
			return fmt.Errorf("read a row of %q", got)
		}
	}
	return want(rows.Err(), n == 3, "%d rows", n)
}

func sqlWhose(ctx context.Context, q sqlQuerier, tenant pgtenancy.Tenant) error {
	var got string
	err := q.QueryRowContext(ctx, whoseSQL).Scan(&got)
	return want(err, got == tenant.ID()+" "+tenant.ID()+" "+tenant.Schema(), "rows, setting and schema are %q", got)
}

func sqlAffected(n int64) func(sql.Result, error) error {
	return func(result sql.Result, err error) error {
		if err != nil {
			return err
		}
		got, err := result.RowsAffected()
		return want(err, got == n, "%d rows affected, want %d", got, n)
	}
}

// inTx runs f in a transaction.
func inTx(ctx context.Context, db interface {
	BeginTx(context.Context, *sql.TxOptions) (*sql.Tx, error)
}, f func(*sql.Tx) error,
) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if err := f(tx); err != nil {
		return err
	}
	return tx.Commit()
}

func beginTx(t *testing.T, db *sql.DB, ctx context.Context) *sql.Tx {
	t.Helper()
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tx.Rollback() })
	return tx
}

func sqlConn(t *testing.T, db *sql.DB) *sql.Conn {
	t.Helper()
	conn, err := db.Conn(bare(t)) // which needs no tenant
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func TestDBScoping(t *testing.T) {
	t.Parallel()
	needsDirect(t)
	forModes(t, func(t *testing.T, opts ...option) {
		base := newDB(t)
		var be backend
		p := base.pool(t, append(opts, be.option)...)
		db := p.DB()
		conn := sqlConn(t, db)
		all, err := db.Prepare("select id, tenant from notes where n >= $1")
		if err != nil {
			t.Fatal(err)
		}
		defer all.Close()
		for range 4 { // unnamed, prepared, warm, and pushed out where few are kept
			for _, use := range sqlUses {
				for _, tenant := range base.tenants() {
					ctx := as(t, tenant)
					name := use.name + " as " + tenant.ID()
					check(t, name+" on DB", use.run(ctx, db, tenant))
					be.check(t, name+" on DB")
					check(t, name+" on Conn", use.run(ctx, conn, tenant))
					be.check(t, name+" on Conn")
					check(t, name+" on Tx", inTx(ctx, db, func(tx *sql.Tx) error {
						return errors.Join(use.run(ctx, tx, tenant), use.run(bare(t), tx, tenant))
					}))
					be.check(t, name+" on Tx")
					check(t, name+" on Tx of Conn", inTx(ctx, conn, func(tx *sql.Tx) error { return use.run(ctx, tx, tenant) }))
					be.check(t, name+" on Tx of Conn")

					rows, err := all.QueryContext(ctx, 1)
					check(t, "one Stmt for all as "+tenant.ID(), sqlTenants(rows, err, tenant))
					check(t, "one Stmt in a Tx as "+tenant.ID(), inTx(ctx, db, func(tx *sql.Tx) error {
						rows, err := tx.Stmt(all).Query(1)
						return sqlTenants(rows, err, tenant)
					}))
					be.check(t, "a Stmt")
				}
			}
		}
		for _, tenant := range base.tenants() {
			// Three uses write a row each: on DB, Conn, Tx of Conn once, on Tx twice.
			if n, w := base.count(t, "select count(*) from "+tenant.Schema()+".log where tenant = '"+tenant.ID()+"'"), 4*3*5; n != w {
				t.Errorf("%s wrote %d rows, want %d", tenant, n, w)
			}
		}
		if n := base.count(t, "select count(*) from public.log"); n != 0 {
			t.Errorf("%d rows were written to public", n)
		}
		if n := p.Stat().NewConnsCount(); n != 1 {
			t.Errorf("the pool made %d connections, want 1", n)
		}
	})
}

// Many goroutines of all tenants share a few connections, both virtual and real.
func TestDBConcurrently(t *testing.T) {
	t.Parallel()
	base := newDB(t)
	for _, open := range []int{0, 1, 2, 5} {
		t.Run(fmt.Sprintf("SetMaxOpenConns(%d)", open), func(t *testing.T) {
			t.Parallel()
			db := base.pool(t, maxConns(3), capacity(4)).DB()
			db.SetMaxOpenConns(open)
			all, err := db.Prepare("select id, tenant from notes where n >= $1")
			if err != nil {
				t.Fatal(err)
			}
			defer all.Close()
			var wg sync.WaitGroup
			for i := range 12 {
				tenant := base.tenants()[i%3]
				ctx := as(t, tenant)
				wg.Go(func() {
					for range 5 {
						for _, use := range sqlUses {
							check(t, use.name+" as "+tenant.ID(), use.run(ctx, db, tenant))
							check(t, use.name+" on Tx as "+tenant.ID(), inTx(ctx, db, func(tx *sql.Tx) error {
								rows, err := tx.StmtContext(ctx, all).QueryContext(ctx, 1)
								return errors.Join(sqlTenants(rows, err, tenant), use.run(ctx, tx, tenant))
							}))
						}
						rows, err := all.QueryContext(ctx, 1)
						check(t, "Stmt as "+tenant.ID(), sqlTenants(rows, err, tenant))
					}
				})
			}
			wg.Wait()
		})
	}
}

// Without a tenant nothing is sent, and not even a connection is made.
func TestDBNoTenant(t *testing.T) {
	t.Parallel()
	base := newDB(t)
	var w wireCounter
	p := base.pool(t, w.option)
	db := p.DB()
	conn := sqlConn(t, db)
	contexts := []struct {
		name string
		ctx  context.Context
		want error
	}{
		{"no tenant", bare(t), pgtenancy.ErrNoTenant},
		{"the zero tenant", as(t, pgtenancy.Tenant{}), pgtenancy.ErrNoTenant},
		{"a suspended one", as(t, newTenantOf(t, pgtenancy.TenantInfo{ID: "acme", State: pgtenancy.Suspended})), pgtenancy.ErrTenantSuspended},
		{"a deleted one", as(t, newTenantOf(t, pgtenancy.TenantInfo{ID: "acme", State: pgtenancy.Deleted})), pgtenancy.ErrTenantNotFound},
	}
	for _, c := range contexts {
		for _, use := range sqlUses {
			checkIs(t, use.name+" with "+c.name, use.run(c.ctx, db, base.acme), c.want)
			checkIs(t, use.name+" on Conn with "+c.name, use.run(c.ctx, conn, base.acme), c.want)
		}
		_, err := db.BeginTx(c.ctx, nil)
		checkIs(t, "BeginTx with "+c.name, err, c.want)
		err = conn.Raw(func(c2 any) error {
			_, err := c2.(pgtenancy.DriverConn).Acquire(c.ctx)
			return err
		})
		checkIs(t, "Acquire with "+c.name, err, c.want)
	}
	_, err := db.Exec("select 1")
	checkIs(t, "Exec without a context", err, pgtenancy.ErrNoTenant)
	_, err = db.Begin()
	checkIs(t, "Begin without a context", err, pgtenancy.ErrNoTenant)
	if w.sent() {
		t.Error("something was sent")
	}
	check(t, "Ping", db.PingContext(bare(t)))
	check(t, "Ping on Conn", conn.PingContext(bare(t)))
	missing := newTenant(t, "missing")
	for _, use := range sqlUses {
		checkIs(t, use.name+" in a schema that is missing", use.run(as(t, missing), db, missing), pgtenancy.ErrTenantNotFound)
	}
	_, err = db.BeginTx(as(t, missing), nil)
	checkIs(t, "BeginTx in a schema that is missing", err, pgtenancy.ErrTenantNotFound)
	base.checkWorks(t, p)
}

func TestDBTx(t *testing.T) {
	t.Parallel()
	needsDirect(t)
	tests := []struct {
		name string
		run  func(t *testing.T, base *testDB, tx *sql.Tx, cancel context.CancelFunc)
		want int // rows that were written and stay
	}{
		{"commit", func(t *testing.T, base *testDB, tx *sql.Tx, _ context.CancelFunc) {
			check(t, "without a context", sqlWhose(bare(t), tx, base.acme))
			check(t, "Commit", tx.Commit())
			checkIs(t, "Commit again", tx.Commit(), sql.ErrTxDone)
		}, 1},
		{"another tenant", func(t *testing.T, base *testDB, tx *sql.Tx, _ context.CancelFunc) {
			for _, use := range sqlUses {
				checkIs(t, use.name, use.run(as(t, base.globex), tx, base.globex), pgtenancy.ErrTenantMismatch)
				check(t, use.name+" as before", use.run(as(t, base.acme), tx, base.acme))
			}
			_, err := tx.Exec("delete from log where note <> 'tx'")
			check(t, "Exec", err)
			check(t, "Commit", tx.Commit())
		}, 1},
		{"rollback", func(t *testing.T, _ *testDB, tx *sql.Tx, _ context.CancelFunc) {
			check(t, "Rollback", tx.Rollback())
			checkIs(t, "Commit", tx.Commit(), sql.ErrTxDone)
			_, err := tx.Exec("select 1")
			checkIs(t, "Exec", err, sql.ErrTxDone)
		}, 0},
		{"savepoints as text", func(t *testing.T, _ *testDB, tx *sql.Tx, _ context.CancelFunc) {
			for _, query := range []string{"savepoint a", "insert into log (note) values ('lost')", "rollback to savepoint a", "release savepoint a"} {
				_, err := tx.Exec(query)
				check(t, query, err)
			}
			for _, query := range []string{"commit", "rollback", "set search_path = public", "listen x"} {
				_, err := tx.Exec(query)
				checkIs(t, query, err, pgtenancy.ErrStatementRefused)
			}
			check(t, "Commit", tx.Commit())
		}, 1},
		{"an error, and Commit", func(t *testing.T, _ *testDB, tx *sql.Tx, _ context.CancelFunc) {
			_, err := tx.Exec("select 1/0")
			checkCode(t, "1/0", err, "22012")
			checkCode(t, "Query after it", tx.QueryRow("select 1").Scan(new(int)), "25P02")
			checkIs(t, "Commit", tx.Commit(), pgx.ErrTxCommitRollback)
		}, 0},
		{"an error, and Rollback", func(t *testing.T, _ *testDB, tx *sql.Tx, _ context.CancelFunc) {
			checkCode(t, "1/0", tx.QueryRow("select 1/0").Scan(new(int)), "22012")
			check(t, "Rollback", tx.Rollback())
		}, 0},
		{"a deferred constraint", func(t *testing.T, _ *testDB, tx *sql.Tx, _ context.CancelFunc) {
			_, err := tx.Exec("update notes set parent = 77")
			check(t, "Exec", err)
			checkCode(t, "Commit", tx.Commit(), "23503")
		}, 0},
		{"cancelled", func(t *testing.T, _ *testDB, tx *sql.Tx, cancel context.CancelFunc) {
			cancel()
			if err := tx.Commit(); !errors.Is(err, context.Canceled) && !errors.Is(err, sql.ErrTxDone) {
				t.Errorf("Commit: %v", err)
			}
		}, 0},
		{"cancelled while rows are open", func(t *testing.T, _ *testDB, tx *sql.Tx, cancel context.CancelFunc) {
			rows, err := tx.Query("select n, repeat('x', 10000) from generate_series(1, 1000000) n")
			if err != nil || !rows.Next() {
				t.Fatal("no row: ", err)
			}
			cancel()
			for rows.Next() {
			}
			checkIs(t, "rows", rows.Err(), context.Canceled)
		}, 0},
		{"cancelled while a statement runs that has another context", func(t *testing.T, base *testDB, tx *sql.Tx, cancel context.CancelFunc) {
			defer base.onceAsleep(t, cancel)()
			_, err := tx.ExecContext(bare(t), "select pg_sleep(100)")
			checkIs(t, "Exec", err, context.Canceled)
		}, 0},
		{"Rollback while rows are open", func(t *testing.T, _ *testDB, tx *sql.Tx, _ context.CancelFunc) {
			rows, err := tx.Query("select n from generate_series(1, 1000) n")
			if err != nil || !rows.Next() {
				t.Fatal("no row: ", err)
			}
			check(t, "Rollback", tx.Rollback())
			for rows.Next() {
			}
		}, 0},
		{"the backend is killed", func(t *testing.T, _ *testDB, tx *sql.Tx, _ context.CancelFunc) {
			_, err := tx.Exec("select pg_terminate_backend(pg_backend_pid())")
			checkCode(t, "the last statement", err, "57P01")
			if _, err = tx.Exec("insert into log (note) values ('after')"); err == nil || errors.Is(err, driver.ErrBadConn) {
				t.Errorf("Exec after it: %v", err)
			}
			if err := tx.Commit(); err == nil || errors.Is(err, driver.ErrBadConn) {
				t.Errorf("Commit: %v", err)
			}
		}, 0},
		{"a panic in an argument", func(t *testing.T, base *testDB, tx *sql.Tx, _ context.CancelFunc) {
			mustPanic(t, func() { _, _ = tx.Exec("select $1::text", panicky{}) })
			check(t, "after it", sqlWhose(bare(t), tx, base.acme))
			check(t, "Commit", tx.Commit())
		}, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			base := newDB(t)
			var be backend
			p := base.pool(t, be.option)
			ctx, cancel := context.WithCancel(as(t, base.acme))
			defer cancel()
			tx := beginTx(t, p.DB(), ctx)
			if _, err := tx.Exec("insert into log (note) values ('tx')"); err != nil {
				t.Fatal(err)
			}
			tt.run(t, base, tx, cancel)
			base.checkWorks(t, p)
			be.check(t, tt.name)
			if n := base.count(t, "select count(*) from tenant_acme.log"); n != tt.want {
				t.Errorf("%d rows stay, want %d", n, tt.want)
			}
		})
	}
}

// panicky panics when pgx asks for its value. Of a Scanner that panics there is nothing to test here: up to Go 1.26
// database/sql then waits for itself when the rows are closed, and so it does in a transaction when a query's argument
// panics (https://go.dev/issue/76465).
type panicky struct{}

func (panicky) Value() (driver.Value, error) { panic("ouch") }

func mustPanic(t *testing.T, f func()) {
	t.Helper()
	defer func() {
		if r := recover(); r != "ouch" {
			t.Errorf("panic %v, want ouch", r)
		}
	}()
	f()
}

// panickyCodec panics when pgx asks how to read a value.
type panickyCodec struct{ pgtype.TextCodec }

func (panickyCodec) PlanScan(*pgtype.Map, uint32, int16, any) pgtype.ScanPlan { panic("ouch") }

func TestDBPanics(t *testing.T) {
	t.Parallel()
	base := newDB(t)
	p := base.pool(t, func(c *pgtenancy.PoolConfig) {
		c.Conns.AfterConnect = func(_ context.Context, conn *pgx.Conn) error {
			conn.TypeMap().RegisterType(&pgtype.Type{Name: "float8", OID: pgtype.Float8OID, Codec: panickyCodec{}})
			return nil
		}
	})
	db := p.DB()
	ctx := as(t, base.acme)
	mustPanic(t, func() { _, _ = db.ExecContext(ctx, "select $1::text", panicky{}) })
	mustPanic(t, func() { _ = db.QueryRowContext(ctx, "select $1::text", panicky{}).Scan(new(string)) })
	mustPanic(t, func() { _ = db.QueryRowContext(ctx, "select 1::float8").Scan(new(string)) })
	base.checkWorks(t, p)
	check(t, "after it", sqlWhose(ctx, db, base.acme))
}

func TestDBTxOptions(t *testing.T) {
	t.Parallel()
	base := newDB(t)
	p := base.pool(t)
	db := p.DB()
	tests := []struct {
		opts sql.TxOptions
		want string
	}{
		{sql.TxOptions{}, "read committed off"},
		{sql.TxOptions{Isolation: sql.LevelReadUncommitted}, "read uncommitted off"},
		{sql.TxOptions{Isolation: sql.LevelReadCommitted}, "read committed off"},
		{sql.TxOptions{Isolation: sql.LevelRepeatableRead}, "repeatable read off"},
		{sql.TxOptions{Isolation: sql.LevelSnapshot}, "repeatable read off"},
		{sql.TxOptions{Isolation: sql.LevelSerializable, ReadOnly: true}, "serializable on"},
	}
	for _, tt := range tests {
		tx, err := db.BeginTx(as(t, base.acme), &tt.opts)
		if err != nil {
			t.Fatal(err)
		}
		var got string
		check(t, "query", tx.QueryRow("select current_setting('transaction_isolation') || ' ' || current_setting('transaction_read_only')").Scan(&got))
		if got != tt.want {
			t.Errorf("%+v: %s, want %s", tt.opts, got, tt.want)
		}
		check(t, "Rollback", tx.Rollback())
	}
	for _, level := range []sql.IsolationLevel{sql.LevelLinearizable, sql.LevelWriteCommitted, 77} {
		if _, err := db.BeginTx(as(t, base.acme), &sql.TxOptions{Isolation: level}); err == nil {
			t.Errorf("%s: no error", level)
		}
	}
	base.checkWorks(t, p)
}

// A sql.Conn is no session: it holds no connection, and serves any tenant.
func TestDBConn(t *testing.T) {
	t.Parallel()
	base := newDB(t)
	p := base.pool(t)
	db := p.DB()
	conn := sqlConn(t, db)
	for _, tenant := range base.tenants() {
		check(t, "as "+tenant.ID(), sqlWhose(as(t, tenant), conn, tenant))
	}
	checkIdle(t, p)
	for _, query := range []string{"listen x", "set work_mem = '1MB'", "begin", "prepare x as select 1"} {
		_, err := conn.ExecContext(as(t, base.acme), query)
		checkIs(t, query, err, pgtenancy.ErrStatementRefused)
	}
	tx, err := conn.BeginTx(as(t, base.acme), nil)
	if err != nil {
		t.Fatal(err)
	}
	// While it has a transaction, its statements are in it, and there can be no other.
	_, err = conn.ExecContext(bare(t), "insert into log (note) values ('conn')")
	check(t, "Exec beside the Tx", err)
	checkIs(t, "as another tenant", sqlWhose(as(t, base.globex), conn, base.globex), pgtenancy.ErrTenantMismatch)
	if _, err := conn.BeginTx(as(t, base.acme), nil); err == nil {
		t.Error("no error from a second transaction")
	}
	if err := acquireSession(conn, as(t, base.acme)); err == nil {
		t.Error("no error from Acquire in a transaction")
	}
	check(t, "Ping", conn.PingContext(bare(t))) // the pool has no other connection
	check(t, "Rollback", tx.Rollback())
	if n := base.count(t, "select count(*) from tenant_acme.log"); n != 0 {
		t.Errorf("%d rows stay", n)
	}
	check(t, "after it as another tenant", sqlWhose(as(t, base.globex), conn, base.globex))
	check(t, "Close", conn.Close())
	base.checkWorks(t, p)
}

func acquireSession(conn *sql.Conn, ctx context.Context) error {
	return conn.Raw(func(c any) error {
		_, err := c.(pgtenancy.DriverConn).Acquire(ctx)
		return err
	})
}

// Acquire makes it one.
func TestDriverConnAcquire(t *testing.T) {
	t.Parallel()
	needsDirect(t)
	base := newDB(t)
	var be backend
	p := base.pool(t, be.option)
	db := p.DB()
	ctx := as(t, base.acme)
	conn := sqlConn(t, db)
	check(t, "before", sqlWhose(as(t, base.globex), conn, base.globex))
	check(t, "Acquire", acquireSession(conn, ctx))
	check(t, "Acquire again", acquireSession(conn, bare(t)))
	checkIs(t, "Acquire as another", acquireSession(conn, as(t, base.globex)), pgtenancy.ErrTenantMismatch)
	for _, use := range sqlUses {
		check(t, use.name, use.run(ctx, conn, base.acme))
		check(t, use.name+" without a tenant", use.run(bare(t), conn, base.acme))
		checkIs(t, use.name+" as another", use.run(as(t, base.globex), conn, base.globex), pgtenancy.ErrTenantMismatch)
		check(t, use.name+" in Tx", inTx(bare(t), conn, func(tx *sql.Tx) error { return use.run(bare(t), tx, base.acme) }))
	}
	_, err := conn.BeginTx(as(t, base.globex), nil)
	checkIs(t, "BeginTx as another", err, pgtenancy.ErrTenantMismatch)
	for _, query := range []string{
		"listen orders", "set work_mem = '77kB'", "create temporary table kept (n int)", "insert into kept values (1)",
		"select pg_advisory_lock(42)", "declare c cursor with hold for select 1",
	} {
		_, err := conn.ExecContext(ctx, query)
		check(t, query, err)
	}
	var got string
	check(t, "Scan", conn.QueryRowContext(ctx, "select current_setting('work_mem') || n from kept").Scan(&got))
	if got != "77kB1" {
		t.Errorf("the session has %q", got)
	}
	check(t, "Ping", conn.PingContext(ctx))
	_, err = conn.ExecContext(ctx, "notify orders, 'hello'")
	check(t, "notify", err)
	check(t, "Raw", conn.Raw(func(c any) error {
		session, err := c.(pgtenancy.DriverConn).Acquire(ctx)
		if err != nil {
			return err
		}
		n, err := session.Conn().WaitForNotification(ctx)
		return want(err, n != nil && n.Payload == "hello", "notification %v", n)
	}))
	check(t, "Close", conn.Close())
	checkIdle(t, p)
	be.check(t, "Close")
	base.checkWorks(t, p)

	conn = sqlConn(t, db)
	check(t, "a new one", sqlWhose(as(t, base.globex), conn, base.globex))
	check(t, "Acquire", acquireSession(conn, ctx))
	_, err = conn.ExecContext(ctx, "select pg_terminate_backend(pg_backend_pid())")
	checkCode(t, "the last statement", err, "57P01")
	check(t, "Close", conn.Close())
	base.checkWorks(t, p)

	// What was begun below database/sql ends with the connection too.
	conn = sqlConn(t, db)
	check(t, "Raw", conn.Raw(func(c any) error {
		_, err := c.(driver.ConnBeginTx).BeginTx(ctx, driver.TxOptions{})
		return err
	}))
	check(t, "Close", conn.Close())
	base.checkWorks(t, p)
	be.check(t, "a transaction through Raw")
}

// A session is on a direct connection.
func TestDriverConnDirect(t *testing.T) {
	t.Parallel()
	base := newDB(t)
	p := base.pool(t, func(c *pgtenancy.PoolConfig) { c.Direct = base.conns(t) })
	conn := sqlConn(t, p.DB())
	check(t, "Acquire", acquireSession(conn, as(t, base.acme)))
	check(t, "Exec", sqlWhose(bare(t), conn, base.acme))
	if s := p.Stat(); s.Direct.AcquiredConns() != 1 || s.AcquiredConns() != 0 {
		t.Errorf("%d direct connections, %d others", s.Direct.AcquiredConns(), s.AcquiredConns())
	}
	check(t, "Close", conn.Close())
	base.checkWorks(t, p)
}

// Nothing is sent a second time, as the first may have done its work.
func TestDBKilled(t *testing.T) {
	t.Parallel()
	needsDirect(t)
	base := newDB(t)
	base.exec(t, "create sequence tenant_acme.times; grant all on sequence tenant_acme.times to app") // which no rollback takes back
	var w wireCounter
	var be backend
	p := base.pool(t, w.option, be.option)
	db := p.DB()
	ctx := as(t, base.acme)
	stmt, err := db.Prepare("select nextval('times'), pg_terminate_backend(pg_backend_pid())")
	if err != nil {
		t.Fatal(err)
	}
	defer stmt.Close()
	conn := sqlConn(t, db)
	tests := []struct {
		name string
		run  func() error
	}{
		{"Exec", func() error {
			_, err := db.ExecContext(ctx, "select nextval('times'), pg_terminate_backend(pg_backend_pid())")
			return err
		}},
		{"Query", func() error {
			rows, err := db.QueryContext(ctx, "select nextval('times'), pg_terminate_backend(pg_backend_pid())")
			if err != nil {
				return err
			}
			for rows.Next() { // the row may come before the end
			}
			return rows.Err()
		}},
		{"Exec on Stmt", func() error { _, err := stmt.ExecContext(ctx); return err }},
		{"Query on Stmt", func() error { return stmt.QueryRowContext(ctx).Scan(new(int), new(bool)) }},
		{"Exec on Conn", func() error {
			_, err := conn.ExecContext(ctx, "select nextval('times'), pg_terminate_backend(pg_backend_pid())")
			return err
		}},
	}
	for i, tt := range tests {
		check(t, "before it", sqlWhose(ctx, db, base.acme))
		w.reset()
		checkCode(t, tt.name, tt.run(), "57P01")
		if w.dials != 0 {
			t.Errorf("%s: %d new connections", tt.name, w.dials)
		}
		if n := base.count(t, "select last_value from tenant_acme.times"); n != i+1 {
			t.Errorf("%s: %d statements ran in all, want %d", tt.name, n, i+1)
		}
		base.checkWorks(t, p)
	}

	// A connection that died while nobody looked.
	base.kill(t, be.pid())
	w.reset()
	_, err = db.ExecContext(ctx, "insert into log (note) values ('once')")
	n := base.count(t, "select count(*) from tenant_acme.log")
	if err == nil || errors.Is(err, driver.ErrBadConn) || n != 0 || w.dials != 0 {
		t.Errorf("on a dead connection: %v, %d rows, %d new connections", err, n, w.dials)
	}
	base.checkWorks(t, p)
}

func TestDBRows(t *testing.T) {
	t.Parallel()
	base := newDB(t)
	p := base.pool(t)
	db := p.DB()
	acquired := func(what string, n int32) {
		t.Helper()
		if got := p.Stat().AcquiredConns(); got != n {
			t.Errorf("%s: %d connections are in use, want %d", what, got, n)
		}
	}
	ctx, cancel := context.WithCancel(as(t, base.acme))
	defer cancel()

	rows, err := db.QueryContext(ctx, "select n from generate_series(1, 3) n")
	check(t, "Query", err)
	acquired("open rows", 1)
	check(t, "Close", rows.Close())
	check(t, "Close again", rows.Close())
	acquired("closed rows", 0)

	rows, err = db.QueryContext(ctx, "select n from generate_series(1, 3) n")
	check(t, "Query", err)
	for rows.Next() {
	}
	acquired("rows that were read", 0)

	// They are closed when the context ends, also where nobody reads them.
	_, err = db.QueryContext(ctx, "select n, repeat('x', 10000) from generate_series(1, 1000000) n")
	check(t, "Query", err)
	acquired("leaked rows", 1)
	cancel()
	checkIdle(t, p)
	base.checkWorks(t, p)

	ctx, cancel = context.WithCancel(as(t, base.acme))
	defer cancel()
	rows, err = db.QueryContext(ctx, "select n, repeat('x', 10000) from generate_series(1, 1000000) n")
	check(t, "Query", err)
	n := 0
	for ; rows.Next(); n++ {
		if n == 10 {
			cancel()
		}
	}
	checkIs(t, "rows", rows.Err(), context.Canceled)
	if n == 0 || n == 1000000 {
		t.Errorf("%d rows", n)
	}
	base.checkWorks(t, p)

	ctx, cancel = context.WithTimeout(as(t, base.acme), 100*time.Millisecond)
	defer cancel()
	_, err = db.ExecContext(ctx, "select pg_sleep(25)")
	checkIs(t, "Exec", err, context.DeadlineExceeded)
	base.checkWorks(t, p)

	ctx = as(t, base.acme)
	_, err = db.QueryContext(ctx, "select 1/(n-1) from generate_series(1, 3) n")
	checkCode(t, "an error in the first row, from Query", err, "22012")
	rows, err = db.QueryContext(ctx, "select 1/(n-3) from generate_series(1, 3) n")
	check(t, "Query", err)
	for n = 0; rows.Next(); n++ {
	}
	checkCode(t, "an error in the third row", rows.Err(), "22012")
	if n != 2 {
		t.Errorf("%d rows before the error", n)
	}

	// Deferred constraints fail after the last row.
	var id int
	err = db.QueryRowContext(ctx, "insert into notes (parent) values (77) returning id").Scan(&id)
	checkCode(t, "QueryRow with a deferred constraint", err, "23503")
	rows, err = db.QueryContext(ctx, "insert into notes (parent) values (77) returning id")
	check(t, "Query", err)
	for rows.Next() {
	}
	checkCode(t, "Query with a deferred constraint", rows.Err(), "23503")
	_, err = db.ExecContext(ctx, "insert into notes (parent) values (77)")
	checkCode(t, "Exec with a deferred constraint", err, "23503")
	base.checkWorks(t, p)
}

// It is one sql.DB, which goes with the pool, and which may go before it.
func TestDBClose(t *testing.T) {
	t.Parallel()
	base := newDB(t)
	p := base.pool(t)
	db := p.DB()
	if p.DB() != db {
		t.Error("DB returned another one")
	}
	check(t, "Exec", sqlWhose(as(t, base.acme), db, base.acme))
	check(t, "Close", db.Close())
	check(t, "Close again", db.Close())
	closed := sqlWhose(as(t, base.acme), db, base.acme)
	if closed == nil {
		t.Error("it works when it is closed")
	}
	base.checkWorks(t, p)
	second := p.DB()
	if second == db {
		t.Error("DB returned the closed one")
	}
	check(t, "another one", sqlWhose(as(t, base.acme), second, base.acme))
	check(t, "Close of the first", db.Close())
	if p.DB() != second {
		t.Error("DB returned a third one")
	}
	if _, err := db.Driver().Open("postgres://localhost"); err == nil {
		t.Error("the driver opens connections by name")
	}

	rows, err := second.QueryContext(as(t, base.acme), "select n from generate_series(1, 3) n")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { p.Close(); close(done) }()
	for n := 0; n < 3; n++ { // Close waits for them
		if !rows.Next() {
			t.Errorf("row %d is gone: %v", n, rows.Err())
		}
	}
	check(t, "Close", rows.Close())
	<-done
	for _, db := range []*sql.DB{second, p.DB()} {
		if err := sqlWhose(as(t, base.acme), db, base.acme); err == nil || err.Error() != closed.Error() {
			t.Errorf("after Pool.Close: %v, want %v", err, closed)
		}
	}
	other := base.pool(t)
	other.Close()
	if err := sqlWhose(as(t, base.acme), other.DB(), base.acme); err == nil || err.Error() != closed.Error() {
		t.Errorf("first asked for after Pool.Close: %v, want %v", err, closed)
	}
}

// plainDB is pgx's own driver on a connection to acme's schema.
func (db *testDB) plainDB(t *testing.T, m pgx.QueryExecMode) *sql.DB {
	t.Helper()
	conns := db.conns(t)
	conns.ConnConfig.DefaultQueryExecMode = m
	conns.ConnConfig.RuntimeParams["search_path"] = "tenant_acme, public, pg_temp"
	plain := stdlib.OpenDB(*conns.ConnConfig)
	plain.SetMaxOpenConns(1)
	t.Cleanup(func() { plain.Close() })
	return plain
}

// equalOpts compare what was scanned, times with their zone.
var equalOpts = cmp.Options{
	cmpopts.EquateNaNs(),
	cmp.Comparer(func(a, b time.Time) bool {
		return a.Equal(b) && a.Location().String() == b.Location().String() && a.String() == b.String()
	}),
	cmp.Comparer(func(a, b reflect.Type) bool { return a == b }),
	cmp.Comparer(func(a, b *big.Int) bool { return fmt.Sprint(a) == fmt.Sprint(b) }),
}

// sqlValues are expressions of all kinds of types.
var sqlValues = []string{
	"true", "false", "null::bool",
	"'-32768'::int2", "42::int4", "'-9223372036854775808'::int8", "null::int8",
	"1.1::float4", "'nan'::float4", "'infinity'::float4", "2.5::float8", "'-infinity'::float8", "1e-300::float8",
	"12345.6789::numeric(10,4)", "1e40::numeric", "'nan'::numeric", "0::numeric", "null::numeric", "'$12.50'::money",
	"'text'::text", "''::text", "'Ünï ☃'::varchar(20)", "'x'::varchar", "'pad'::char(6)", "'c'::\"char\"", "'name'::name", "null::text", "'unknown'",
	`'\xdeadbeef00'::bytea`, "''::bytea", "null::bytea",
	"'2024-02-29'::date", "'infinity'::date", "'0044-03-15 BC'::date",
	"'2024-02-29 12:34:56.789012'::timestamp", "'infinity'::timestamp", "'-infinity'::timestamp",
	"'2024-02-29 12:34:56.789012+02'::timestamptz", "'infinity'::timestamptz", "null::timestamptz",
	"'12:34:56.789'::time", "'12:34:56+02'::timetz", "'1 year 2 mons 3 days 04:05:06.7'::interval",
	`'{"a": [1, null]}'::json`, `'{"b": 1, "a": "x"}'::jsonb`, "'null'::jsonb", "null::jsonb", "'<a>b</a>'::xml", "'$.a'::jsonpath",
	"'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid", "null::uuid",
	"'{1,2,null}'::int4[]", `'{a,"b c",null}'::text[]`, "'{}'::int8[]", "'{{1,2},{3,4}}'::int4[]", "'{2024-01-01}'::date[]", "array['paid']::status[]",
	"'[1,5)'::int4range", "'{[1,2),[3,4)}'::int4multirange", "tstzrange('2024-01-01 00:00+00', null)",
	"'192.168.0.1/24'::inet", "'10.0.0.0/8'::cidr", "'08:00:2b:01:02:03'::macaddr", "'(1,2)'::point", "'((0,0),(1,1))'::box", "B'1010'::bit(4)", "B'101'::varbit(7)",
	"4294967295::oid", "'1234'::xid", "'77'::cid", "'16/B374D848'::pg_lsn", "'pg_class'::regclass", "'a fat cat'::tsvector", "'(0,1)'::tid",
	"'paid'::status", "null::status", "'from acme'::status", "row(1, 'a', null)", "(select l from (select 'acme' as tenant, 'x' as note) l)", "''::void",
}

// Code behind database/sql sees of the pool what it sees of pgx's own driver.
func TestDBValues(t *testing.T) {
	t.Parallel()
	needsDirect(t)
	types := []func() any{
		func() any { return new(any) },
		func() any { return new(string) },
		func() any { return new([]byte) },
		func() any { return new(int) },
		func() any { return new(int64) },
		func() any { return new(float64) },
		func() any { return new(float32) },
		func() any { return new(bool) },
		func() any { return new(time.Time) },
		func() any { return new(*string) },
		func() any { return new(*int64) },
		func() any { return new(*time.Time) },
		func() any { return new(json.RawMessage) },
		func() any { return new(sql.NullString) },
		func() any { return new(sql.NullInt64) },
		func() any { return new(sql.NullTime) },
		func() any { return new(sql.Null[float64]) },
		func() any { return new(pgtype.UUID) },
		func() any { return new(pgtype.Numeric) },
		func() any { return new(pgtype.Timestamptz) },
		func() any { return new([]int32) },
		func() any { return new([]*string) },
		func() any { return new(pgtype.Range[int]) },
	}
	for _, m := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeExec} {
		t.Run(m.String(), func(t *testing.T) {
			t.Parallel()
			base := newDB(t)
			p := base.pool(t, mode(m))
			plain, db := base.plainDB(t, m), p.DB()
			ctx := as(t, base.acme)
			// scan reads one value, once as each type, and tells what the column is.
			scan := func(db *sql.DB, expr string) (got []any) {
				for i, newOf := range types {
					v := newOf()
					dest := v
					if i >= len(types)-3 {
						dest = pgtype.NewMap().SQLScanner(v)
					}
					err := db.QueryRowContext(ctx, "select "+expr+" as v").Scan(dest)
					got = append(got, fmt.Sprintf("%T: %v", v, err), reflect.ValueOf(v).Elem().Interface())
				}
				rows, err := db.QueryContext(ctx, "select "+expr+" as v where false")
				if err != nil {
					return append(got, err.Error())
				}
				defer rows.Close()
				columns, err := rows.ColumnTypes()
				if err != nil {
					return append(got, err.Error())
				}
				name := columns[0].DatabaseTypeName()
				if _, ok := pgtype.NewMap().TypeForName(strings.ToLower(name)); !ok {
					name = "not one of PostgreSQL's own" // the pool knows more of them
				}
				return append(got, columns[0].Name(), name, columns[0].ScanType())
			}
			for _, expr := range sqlValues {
				if diff := cmp.Diff(scan(plain, expr), scan(db, expr), equalOpts); diff != "" {
					t.Errorf("%s: -stdlib +pool:\n%s", expr, diff)
				}
			}
			// All at once, as rows of a table.
			query := "select " + strings.Join(sqlValues, ", ") + " from generate_series(1, 3)"
			for range 3 {
				want, err := scanAll(plain.QueryContext(ctx, query))
				check(t, "stdlib", err)
				got, err := scanAll(db.QueryContext(ctx, query))
				check(t, "pool", err)
				if diff := cmp.Diff(want, got, equalOpts); diff != "" || len(got) != 3 {
					t.Errorf("%d rows, -stdlib +pool:\n%s", len(got), diff)
				}
			}
		})
	}
}

func scanAll(rows *sql.Rows, err error) (all [][]any, _ error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		return nil, err
	}
	for rows.Next() {
		row, dests := make([]any, len(columns)), make([]any, len(columns))
		for i := range row {
			dests[i] = &row[i]
		}
		if err := rows.Scan(dests...); err != nil {
			return nil, err
		}
		all = append(all, row)
	}
	return all, rows.Err()
}

func TestDBArguments(t *testing.T) {
	t.Parallel()
	needsDirect(t)
	at := time.Date(2024, 2, 29, 12, 34, 56, 789012000, time.FixedZone("", 7200))
	text, none := "text", (*string)(nil)
	tests := []struct {
		query string
		args  []any
	}{
		{"select $1::int2", []any{int8(-3)}},
		{"select $1::int4", []any{42}},
		{"select $1::int4", []any{"42"}},
		{"select $1::int4", []any{int64(math.MaxInt64)}},
		{"select $1::int8", []any{uint64(math.MaxUint64)}},
		{"select $1::int8", []any{sql.NullInt64{}}},
		{"select $1::int8", []any{sql.NullInt64{Int64: 7, Valid: true}}},
		{"select $1::float8", []any{1.25}},
		{"select $1::numeric", []any{"12345678901234567890.5"}},
		{"select $1::numeric", []any{pgtype.Numeric{Int: big.NewInt(125), Exp: -2, Valid: true}}},
		{"select $1::bool", []any{true}},
		{"select $1::text", []any{"text"}},
		{"select $1::text", []any{&text}},
		{"select $1::text", []any{none}},
		{"select $1::text", []any{nil}},
		{"select $1::text", []any{42}},
		{"select $1::text", []any{[]byte("bytes")}},
		{"select $1::text", []any{valuer{"a value"}}},
		{"select $1::text", []any{valuer{nil}}},
		{"select $1::text", []any{struct{ X int }{1}}},
		{"select $1::bytea", []any{[]byte{0, 1, 255}}},
		{"select $1::date", []any{at}},
		{"select $1::timestamp", []any{at}},
		{"select $1::timestamptz", []any{at}},
		{"select $1::timestamptz", []any{"2024-02-29 12:00:00+00"}},
		{"select $1::interval", []any{90 * time.Second}},
		{"select $1::json", []any{json.RawMessage(`{"a":1}`)}},
		{"select $1::jsonb", []any{map[string]any{"a": []int{1, 2}}}},
		{"select $1::jsonb", []any{[]byte(`{"a":1}`)}},
		{"select $1::jsonb", []any{`{"a":1}`}},
		{"select $1::uuid", []any{"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"}},
		{"select $1::uuid", []any{[16]byte{1, 2, 3}}},
		{"select $1::uuid", []any{pgtype.UUID{Bytes: [16]byte{1, 2, 3}, Valid: true}}},
		{"select $1::int4[]", []any{[]int{1, 2, 3}}},
		{"select $1::text[]", []any{[]string{"a", "b c"}}},
		{"select $1::text[]", []any{[]*string{&text, nil}}},
		{"select n from notes where n = any($1) order by n", []any{[]int32{1, 3, 5}}},
		{"select $1::status", []any{"paid"}},
		{"select $1::status", []any{"no such"}},
		{"select $1::status[]", []any{[]string{"paid", "new"}}},
		{"select $1::int4 + $2::int4", []any{1, 2}},
		{"select @a::int4 + @b::int4", []any{pgx.NamedArgs{"a": 1, "b": 2}}},
		{"select $1::int4", []any{pgx.QueryExecModeExec, 7}},
		{"select $1::int4", []any{pgx.QueryResultFormats{pgx.TextFormatCode}, 7}},
		{"select $1::int4", nil},
		{"select $1::int4", []any{1, 2}},
		{"select $1::int4", []any{sql.Named("a", 1)}},
	}
	for _, m := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeExec} {
		t.Run(m.String(), func(t *testing.T) {
			t.Parallel()
			base := newDB(t)
			p := base.pool(t, mode(m))
			plain, db := base.plainDB(t, m), p.DB()
			ctx := as(t, base.acme)
			for _, tt := range tests {
				want, wantErr := scanAll(plain.QueryContext(ctx, tt.query, tt.args...))
				got, gotErr := scanAll(db.QueryContext(ctx, tt.query, tt.args...))
				if len(tt.args) == 1 && reflect.TypeOf(tt.args[0]) == reflect.TypeFor[sql.NamedArg]() {
					wantErr = io.EOF // pgx's driver takes its value for $1
					if gotErr == nil || !strings.Contains(gotErr.Error(), "pgx.NamedArgs") {
						t.Errorf("sql.Named: %v", gotErr)
					}
					want = nil
				}
				if diff := cmp.Diff(want, got, equalOpts); diff != "" || (wantErr != nil) != (gotErr != nil) || sqlState(wantErr) != sqlState(gotErr) {
					t.Errorf("%s with %#v: stdlib says %v, the pool %v\n%s", tt.query, tt.args, wantErr, gotErr, diff)
				}
			}
			base.checkWorks(t, p)
		})
	}
}

// valuer is a type that database/sql knows how to write.
type valuer struct{ v any }

func (v valuer) Value() (driver.Value, error) { return v.v, nil }

func TestDBColumnTypes(t *testing.T) {
	t.Parallel()
	base := newDB(t)
	p := base.pool(t)
	tests := []struct {
		expr             string
		length           int64
		hasLength        bool
		precision, scale int64
		isDecimal        bool
	}{
		{"null::varchar(20)", 20, true, 0, 0, false},
		{"null::varchar", math.MaxInt64, true, 0, 0, false},
		{"null::char(6)", 6, true, 0, 0, false},
		{"null::varbit(7)", 7, true, 0, 0, false},
		{"null::varbit", math.MaxInt64, true, 0, 0, false},
		{"null::text", math.MaxInt64, true, 0, 0, false},
		{"null::bytea", math.MaxInt64, true, 0, 0, false},
		{"null::int4", 0, false, 0, 0, false},
		{"null::numeric(10,4)", 0, false, 10, 4, true},
		{"null::numeric(7)", 0, false, 7, 0, true},
		{"null::numeric", 0, false, 0, 0, false},
	}
	if base.count(t, "select current_setting('server_version_num')::int") >= 150000 {
		tests = append(tests, tests[len(tests)-1])
		last := &tests[len(tests)-1]
		last.expr, last.precision, last.scale, last.isDecimal = "null::numeric(3,-2)", 3, -2, true
	}
	for _, tt := range tests {
		rows, err := p.DB().QueryContext(as(t, base.acme), "select "+tt.expr)
		if err != nil {
			t.Fatal(err)
		}
		types, err := rows.ColumnTypes()
		check(t, "ColumnTypes", err)
		if length, ok := types[0].Length(); length != tt.length || ok != tt.hasLength {
			t.Errorf("%s: length %d, %t", tt.expr, length, ok)
		}
		if precision, scale, ok := types[0].DecimalSize(); precision != tt.precision || scale != tt.scale || ok != tt.isDecimal {
			t.Errorf("%s: decimal size %d, %d, %t", tt.expr, precision, scale, ok)
		}
		check(t, "Close", rows.Close())
	}

	base.exec(t, `create schema "a"".b"; grant usage on schema "a"".b" to app; create type "a"".b"."My "".T" as enum ('x')`)
	rows, err := p.DB().QueryContext(as(t, base.acme), `select null::status, null::status[], null::"a"".b"."My "".T", null::notes, 1`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	types, err := rows.ColumnTypes()
	check(t, "ColumnTypes", err)
	for i, want := range []string{"STATUS", "_STATUS", `MY ".T`, "NOTES", "INT4"} {
		if got := types[i].DatabaseTypeName(); got != want {
			t.Errorf("type %s, want %s", got, want)
		}
	}
}

// What is known of an empty result does not come from a connection that somebody else has by now.
func TestDBColumnsOfEmptyResult(t *testing.T) {
	t.Parallel()
	base := newDB(t)
	p := base.pool(t, func(c *pgtenancy.PoolConfig) {
		c.Conns.AfterConnect = func(_ context.Context, conn *pgx.Conn) error {
			conn.TypeMap().RegisterType(&pgtype.Type{Name: "mine", OID: 700700, Codec: pgtype.TextCodec{}})
			return nil
		}
	})
	var wg sync.WaitGroup
	for range 4 {
		ctx := as(t, base.acme)
		wg.Go(func() {
			for range 50 {
				rows, err := p.DB().QueryContext(ctx, "select id, status, body from notes where false")
				if err != nil {
					t.Error(err)
					return
				}
				check(t, "another statement", sqlWhose(ctx, p.DB(), base.acme)) // on the same connection, the only one
				types, err := rows.ColumnTypes()
				check(t, "ColumnTypes", err)
				if len(types) != 3 || types[0].Name() != "id" || types[0].DatabaseTypeName() != "INT8" || types[2].Name() != "body" {
					t.Errorf("columns %v", types)
				}
				check(t, "Close", rows.Close())
			}
		})
	}
	wg.Wait()
}

// A table that changes its types under a statement that is in use costs an error at most, never a wrong value.
func TestDBColumnChangesType(t *testing.T) {
	t.Parallel()
	needsDirect(t)
	forModes(t, func(t *testing.T, opts ...option) {
		base := newDB(t)
		p := base.pool(t, opts...)
		ctx := as(t, base.acme)
		for _, typ := range []string{"int8", "numeric", "text", "float8", "int4", "jsonb", "text", "bytea", "int4"} {
			base.exec(t, "alter table tenant_acme.notes drop n; alter table tenant_acme.notes add n "+typ+" default '1'")
			for range 4 {
				var got string
				err := p.DB().QueryRowContext(ctx, "select n from notes limit 1").Scan(&got)
				if err == nil && got != "1" {
					t.Errorf("%s: got %q", typ, got)
				}
			}
			var got string
			check(t, typ, p.DB().QueryRowContext(ctx, "select n from notes limit 1").Scan(&got))
		}
		base.checkWorks(t, p)
	})
}

func TestDBErrors(t *testing.T) {
	t.Parallel()
	base := newDB(t)
	p := base.pool(t)
	db := p.DB()
	ctx := as(t, base.acme)
	result, err := db.ExecContext(ctx, "insert into log (note) values ('x'), ('y')")
	check(t, "Exec", err)
	if _, err := result.LastInsertId(); err == nil {
		t.Error("no error from LastInsertId")
	}
	_, err = db.ExecContext(ctx, "insert into notes (body) values ($1)", "bad")
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.ConstraintName != "notes_body_check" {
		t.Errorf("error %v, want PostgreSQL's", err)
	}
	_, err = db.ExecContext(ctx, "select 1; select 2")
	checkCode(t, "two statements", err, "42601")
	stmt, err := db.PrepareContext(ctx, "select nonsense")
	check(t, "Prepare", err)
	_, err = stmt.ExecContext(ctx)
	checkCode(t, "nonsense when it is used", err, "42703")
	check(t, "Close", stmt.Close())
	base.checkWorks(t, p)
}
