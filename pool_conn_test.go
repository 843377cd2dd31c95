package pgtenancy_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy"
)

// acquire returns a connection that is released when the test is over.
func acquire(t *testing.T, s scope, ctx context.Context) *pgtenancy.Conn {
	t.Helper()
	c, err := s.Acquire(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Release)
	return c
}

func TestConnSession(t *testing.T) {
	t.Parallel()
	needsDirect(t)
	db := newDB(t)
	var be backend
	p := db.pool(t, be.option)
	pid := func() uint32 { checkWhose(t, p, as(t, db.globex), db.globex); return be.pid() }
	before := pid()
	for range 3 {
		c := acquire(t, p, as(t, db.acme))
		for _, sql := range []string{
			"set statement_timeout = '1min'",
			"create temp table scratch (n int)",
			"insert into scratch values (1)",
			"listen news",
			"select pg_advisory_lock(7)",
			"prepare p as select 1",
			"declare c cursor with hold for select * from notes",
			"set app.current_tenant = 'mine'",
			"vacuum scratch",
			"begin",
			"insert into log (note) values ('text')",
			"savepoint s",
			"rollback to s",
			"commit",
			"call_me",
		} {
			_, err := c.Exec(bare(t), sql)
			if sql == "call_me" {
				checkCode(t, sql, err, "42601")
				continue
			}
			check(t, sql, err)
		}
		var timeout, setting string
		err := c.QueryRow(bare(t), "select current_setting('statement_timeout'), current_setting('app.current_tenant')").Scan(&timeout, &setting)
		if err != nil || timeout != "1min" || setting != "mine" {
			t.Errorf("what was set is %q and %q, %v", timeout, setting, err)
		}
		b := &pgx.Batch{}
		b.Queue("set lock_timeout = '1s'")
		b.Queue("unlisten news")
		check(t, "session state in a batch", c.SendBatch(bare(t), b).Close())
		b = &pgx.Batch{}
		b.BeginTx(pgx.TxOptions{})
		checkIs(t, "Batch.BeginTx", c.SendBatch(bare(t), b).Close(), pgtenancy.ErrStatementRefused)
		check(t, "Ping", c.Ping(bare(t)))
		c.Release()
		c.Release()
		be.check(t, "Release")
		_, err = p.Exec(as(t, db.acme), "select * from scratch")
		checkCode(t, "the temporary table of a session", err, "42P01")
	}
	if after := pid(); after != before {
		t.Errorf("the backend is %d, was %d", after, before)
	}
	if n := db.count(t, "select count(*) from tenant_acme.log"); n != 3 {
		t.Errorf("%d rows, want 3", n)
	}
}

// A connection that was given back reaches nobody else's.
func TestConnAfterRelease(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	var w wireCounter
	p := db.pool(t, w.option)
	c := acquire(t, p, as(t, db.acme))
	c.Release()
	w.reset()
	for _, use := range uses {
		if err := use.run(bare(t), c, db.acme); err == nil {
			t.Errorf("%s on a released connection: no error", use.name)
		}
	}
	if err := c.Ping(bare(t)); err == nil {
		t.Error("Ping on a released connection: no error")
	}
	if w.sent() {
		t.Error("something was sent")
	}
	db.checkWorks(t, p)
}

func TestConnMismatch(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	var w wireCounter
	p := db.pool(t, w.option)
	c := acquire(t, p, as(t, db.acme))
	w.reset()
	for _, use := range uses {
		checkIs(t, use.name, use.run(as(t, db.globex), c, db.globex), pgtenancy.ErrTenantMismatch)
	}
	if w.sent() {
		t.Error("something was sent")
	}
	checkWhose(t, c, as(t, db.acme), db.acme)
	tx, err := c.BeginTx(bare(t), pgx.TxOptions{AccessMode: pgx.ReadOnly})
	if err != nil {
		t.Fatal(err)
	}
	_, err = tx.Exec(as(t, db.globex), "select 1")
	checkIs(t, "a transaction on it", err, pgtenancy.ErrTenantMismatch)
	checkWhose(t, tx, bare(t), db.acme)
	check(t, "Commit", tx.Commit(bare(t)))
	checkWhose(t, c, bare(t), db.acme)
	c.Release()
	db.checkWorks(t, p)
}

func TestConnListen(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	p := db.pool(t, maxConns(2))
	c := acquire(t, p, as(t, db.acme))
	_, err := c.Exec(bare(t), "listen news")
	check(t, "LISTEN", err)
	_, err = p.Exec(as(t, db.acme), "select pg_notify('news', $1)", "hello")
	check(t, "pg_notify", err)
	n, err := c.Conn().WaitForNotification(bare(t))
	if err != nil || n.Payload != "hello" {
		t.Errorf("notification %v, %v", n, err)
	}
	checkWhose(t, c, bare(t), db.acme)
	c.Release()
	db.checkWorks(t, p)
}

// Whatever state a connection is released in, the next tenant gets a clean one.
func TestConnReleaseDestroys(t *testing.T) {
	t.Parallel()
	needsDirect(t)
	tests := []struct {
		name string
		run  func(t *testing.T, db *testDB, c *pgtenancy.Conn)
	}{
		{"transaction open", func(t *testing.T, _ *testDB, c *pgtenancy.Conn) {
			tx, err := c.Begin(bare(t))
			if err != nil {
				t.Fatal(err)
			}
			_, err = tx.Exec(bare(t), "insert into log (note) values ('x')")
			check(t, "insert", err)
		}},
		{"transaction open by text", func(t *testing.T, _ *testDB, c *pgtenancy.Conn) {
			_, err := c.Exec(bare(t), "begin")
			check(t, "begin", err)
			_, err = c.Exec(bare(t), "insert into log (note) values ('x')")
			check(t, "insert", err)
		}},
		{"rows open", func(t *testing.T, _ *testDB, c *pgtenancy.Conn) {
			rows, err := c.Query(bare(t), "select n, repeat('x', 10000) from generate_series(1, 1000) n")
			check(t, "Query", err)
			rows.Next()
		}},
		{"batch open", func(t *testing.T, _ *testDB, c *pgtenancy.Conn) {
			b := &pgx.Batch{}
			b.Queue("select 1")
			c.SendBatch(bare(t), b)
		}},
		{"connection closed", func(t *testing.T, _ *testDB, c *pgtenancy.Conn) {
			c.Conn().Close(bare(t))
		}},
		{"backend killed", func(t *testing.T, db *testDB, c *pgtenancy.Conn) {
			db.kill(t, c.Conn().PgConn().PID())
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			db := newDB(t)
			p := db.pool(t)
			c := acquire(t, p, as(t, db.acme))
			before := c.Conn().PgConn().PID()
			tt.run(t, db, c)
			c.Release()
			db.checkWorks(t, p)
			c = acquire(t, p, as(t, db.acme))
			if c.Conn().PgConn().PID() == before {
				t.Error("the connection is back in the pool")
			}
			c.Release()
			if n := db.count(t, "select count(*) from tenant_acme.log"); n != 0 {
				t.Errorf("%d rows stay", n)
			}
		})
	}
}

// kill ends a backend and waits until it is gone.
func (db *testDB) kill(t *testing.T, pid uint32) {
	t.Helper()
	conn := db.admin(t)
	defer conn.Close(context.Background())
	var gone bool
	if err := conn.QueryRow(bare(t), "select pg_terminate_backend($1, $2)", pid, patience.Milliseconds()).Scan(&gone); err != nil || !gone {
		t.Fatalf("backend %d is gone: %t, %v", pid, gone, err)
	}
}

func TestAcquireFunc(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	p := db.pool(t)
	ouch := errors.New("ouch")
	for _, s := range []scope{p, p.For(db.acme)} {
		checkIs(t, "the callback's error", s.AcquireFunc(as(t, db.acme), func(*pgtenancy.Conn) error { return ouch }), ouch)
		func() {
			defer func() {
				if recover() == nil {
					t.Error("the panic is gone")
				}
			}()
			_ = s.AcquireFunc(as(t, db.acme), func(*pgtenancy.Conn) error { panic(ouch) })
		}()
		db.checkWorks(t, p)
	}
	ctx, cancel := context.WithCancel(as(t, db.acme))
	cancel()
	_, err := p.Acquire(ctx)
	checkIs(t, "Acquire on a cancelled context", err, context.Canceled)
	db.checkWorks(t, p)
}

// Direct connections are another pool.
func TestDirect(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	p := db.pool(t, func(c *pgtenancy.PoolConfig) { c.Direct = db.conns(t) })
	c := acquire(t, p, as(t, db.acme))
	checkWhose(t, c, bare(t), db.acme)
	checkWhose(t, p, as(t, db.globex), db.globex) // on the one connection of the other pool
	if s := p.Stat(); s.Direct == nil || s.Direct.AcquiredConns() != 1 || s.AcquiredConns() != 0 {
		t.Errorf("Stat: %d, direct %v", s.AcquiredConns(), s.Direct)
	}
	c.Release()
	if s := db.pool(t).Stat(); s.Direct != nil && !behindPooler() {
		t.Error("Stat has direct connections where there are none of their own")
	}
}

// A role that the connection starts with, however it came by it, is the role of tenants that have none of their own; what a
// tenant's SQL makes of it for the session is not.
func TestRole(t *testing.T) {
	t.Parallel()
	needsDirect(t)
	db := newDB(t)
	role := fmt.Sprintf("actor_%d", time.Now().UnixNano()) // roles belong to the server
	db.exec(t, "create role "+role+"; grant "+role+" to app; create role "+role+"_login login; grant app to "+role+"_login; alter role "+role+"_login set role = app")
	t.Cleanup(func() {
		db.exec(t, "drop owned by "+role+"; drop role "+role+"_login; drop role "+role)
	})
	own := newTenantOf(t, pgtenancy.TenantInfo{ID: "acme", Role: role})
	db.exec(t, "grant usage on schema tenant_acme to "+role)
	tests := []struct {
		name string
		opt  option
		want string
	}{
		{"the login role", func(*pgtenancy.PoolConfig) {}, "app"},
		{"in the connection string", func(c *pgtenancy.PoolConfig) { c.Conns.ConnConfig.RuntimeParams["role"] = role }, role},
		{"in its options", func(c *pgtenancy.PoolConfig) { c.Conns.ConnConfig.RuntimeParams["options"] = "-c role=" + role }, role},
		{"by ALTER ROLE", func(c *pgtenancy.PoolConfig) { c.Conns.ConnConfig.User = role + "_login" }, "app"},
		{"by ALTER ROLE, behind a pooler", func(c *pgtenancy.PoolConfig) {
			c.Conns.ConnConfig.User = role + "_login"
			c.Direct = c.Conns.Copy()
		}, "app"},
		{"in a hook", func(c *pgtenancy.PoolConfig) {
			c.Conns.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
				_, err := conn.Exec(ctx, "set role "+role)
				return err
			}
		}, role},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			db.exec(t, "grant usage on schema tenant_globex to "+role)
			p := db.pool(t, tt.opt)
			who := func(tenant pgtenancy.Tenant) (s string) {
				check(t, "QueryRow", p.QueryRow(as(t, tenant), "select current_user").Scan(&s))
				return s
			}
			for range 3 {
				if got := who(db.globex); got != tt.want {
					t.Errorf("a tenant without a role runs as %s, want %s", got, tt.want)
				}
				if got := who(own); got != role {
					t.Errorf("a tenant with a role runs as %s, want %s", got, role)
				}
				_, err := p.Exec(as(t, db.globex), "select set_config('role', 'none', false), set_config('search_path', 'tenant_initech', false)")
				check(t, "set_config", err)
				_, err = p.Exec(as(t, db.globex), "do $$ begin execute 'set role "+role+"'; end $$")
				check(t, "DO", err)
			}
		})
	}
}
