package pgtenancy_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgtenancy/pgtenancy"
)

// listeners returns how many connections listen on the database.
func (db *directoryDB) listeners(t *testing.T) (n int) {
	t.Helper()
	err := db.admin.QueryRow(t.Context(), `select count(*) from pg_stat_activity
		where datname = current_database() and query = 'listen pgtenancy'`).Scan(&n)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// killListeners ends the connections that listen.
func (db *directoryDB) killListeners(t *testing.T) {
	t.Helper()
	db.exec(t, `select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and query = 'listen pgtenancy'`)
}

// expectState checks whether acme is active for the directory, by ID and by domain.
func expectState(t *testing.T, dir pgtenancy.Directory, active bool, reason string) {
	t.Helper()
	for _, k := range []pgtenancy.Key{pgtenancy.ByID("acme"), pgtenancy.ByDomain("shop.acme.example")} {
		_, err := dir.Lookup(t.Context(), k)
		if active && err != nil || !active && !errors.Is(err, pgtenancy.ErrTenantSuspended) {
			t.Errorf("%s: Lookup(%v): %v", reason, k, err)
		}
	}
}

const (
	suspendSQL = "update pgtenancy.tenants set state = 'suspended' where id = 'acme'"
	resumeSQL  = "update pgtenancy.tenants set state = 'active' where id = 'acme'"
)

func TestDirectoryListens(t *testing.T) {
	t.Parallel()
	db := newDirectoryDB(t, directoryTables)
	dir := db.listening(t)
	expectState(t, dir, true, "at first")
	db.exec(t, suspendSQL)
	expectState(t, dir, true, "nobody knows yet")
	if _, err := dir.Lookup(t.Context(), pgtenancy.ByID("globex")); err != nil {
		t.Fatal(err)
	}
	db.queries.n.Store(0)
	heard := int64(0)
	notify := func(payload string) {
		t.Helper()
		if _, err := db.admin.Exec(t.Context(), "select pg_notify('pgtenancy', $1)", payload); err != nil {
			t.Fatal(err)
		}
		heard++
		await(t, "the notification", func() bool { return dir.Stat().Notifications == heard })
	}

	notify("globex")
	expectState(t, dir, true, "another tenant was forgotten")
	notify("acme")
	expectState(t, dir, false, "the tenant was forgotten")
	db.exec(t, resumeSQL)
	notify("")
	expectState(t, dir, true, "all were forgotten")
	await(t, "the query for the other tenant", func() bool { return db.queries.n.Load() >= 5 })
	db.queries.expect(t, 5, "the tenant and its domain, twice, and another that was forgotten")
	db.exec(t, "notify another, 'acme'")

	if s := dir.Stat(); s.Listens != 1 || s.ListenErr != nil || db.listeners(t) != 1 {
		t.Errorf("stat is %+v, with %d connections", s, db.listeners(t))
	}
}

// The Fleet's own directory listens too, with the pool's credentials, and what the control plane sends reaches it.
func TestFleetListens(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	fleet, other := db.open(t, notesFiles), db.open(t, notesFiles)
	migrate(t, fleet)
	provision(t, fleet, "acme")
	if _, err := other.Lookup(bare(t), pgtenancy.ByID("acme")); err != nil {
		t.Fatal(err)
	}
	await(t, "the start of listening", func() bool { return other.DirectoryStat().Listening })
	if fleet.DirectoryStat().Listening {
		t.Error("a fleet that looked nothing up listens")
	}
	if _, err := other.Lookup(bare(t), pgtenancy.ByID("acme")); err != nil {
		t.Fatal(err)
	}
	db.exec(t, suspendSQL)
	if err := fleet.Notify(bare(t), "acme"); err != nil {
		t.Fatal(err)
	}
	await(t, "the notification", func() bool { return other.DirectoryStat().Notifications > 0 })
	if _, err := other.Lookup(bare(t), pgtenancy.ByID("acme")); !errors.Is(err, pgtenancy.ErrTenantSuspended) {
		t.Errorf("after the notification: %v", err)
	}
	if err := fleet.Notify(bare(t), ""); err != nil {
		t.Fatal(err)
	}
	await(t, "the notification", func() bool { return other.DirectoryStat().Notifications > 1 })
}

func TestDirectoryListensAgain(t *testing.T) {
	t.Parallel()
	var mute atomic.Bool
	db := newDirectoryDB(t, directoryTables, func(cfg *pgtenancy.PoolConfig) {
		cfg.Direct = cfg.Conns.Copy()
		dial := cfg.Direct.ConnConfig.DialFunc
		cfg.Direct.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if mute.Load() {
				return nil, errors.New("the cable is out")
			}
			return dial(ctx, network, addr)
		}
	})
	dir := db.listening(t)
	expectState(t, dir, true, "at first")
	mute.Store(true)
	db.killListeners(t)
	await(t, "the loss of the connection", func() bool { s := dir.Stat(); return !s.Listening && s.ListenErr != nil })
	db.exec(t, suspendSQL)
	db.exec(t, "notify pgtenancy, 'acme'")
	expectState(t, dir, true, "what is remembered stays until it listens again")
	mute.Store(false)
	await(t, "the listening again", func() bool { return dir.Stat().Listening })
	expectState(t, dir, false, "what was notified meanwhile is lost, and so all is read again")
	if s := dir.Stat(); s.Listens != 2 || s.ListenErr != nil {
		t.Errorf("stat is %+v", s)
	}
}

// deafConn is a connection whose network is gone, from some time on, without either end being told.
type deafConn struct {
	net.Conn
	deaf *atomic.Bool
}

func (c *deafConn) Write(b []byte) (int, error) {
	if c.deaf.Load() {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

func (c *deafConn) Read(b []byte) (int, error) {
	for {
		n, err := c.Conn.Read(b)
		if !c.deaf.Load() || err != nil {
			return n, err
		}
	}
}

func TestDirectoryNoticesDeadConnection(t *testing.T) {
	t.Parallel()
	var deaf atomic.Bool
	db := newDirectoryDB(t, directoryTables, func(cfg *pgtenancy.PoolConfig) {
		cfg.Direct = cfg.Conns.Copy()
		dial := cfg.Direct.ConnConfig.DialFunc
		cfg.Direct.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := dial(ctx, network, addr)
			if err != nil || deaf.Load() {
				return conn, err // the network is there again for new connections
			}
			return &deafConn{Conn: conn, deaf: &deaf}, nil
		}
	})
	dir := pgtenancy.NewDirectory(db.pool)
	dir.CheckOften(10*time.Millisecond, time.Second)
	db.listen(t, dir)
	expectState(t, dir, true, "at first")
	time.Sleep(100 * time.Millisecond) // for checks that find nothing wrong; a slow machine does fewer
	listens := dir.Stat().Listens
	deaf.Store(true)
	db.exec(t, suspendSQL)
	db.exec(t, "notify pgtenancy, 'acme'")
	await(t, "the listening again", func() bool { s := dir.Stat(); return s.Listens > listens && s.Listening })
	expectState(t, dir, false, "it was not told, but found out")
}

// Checks do not make it forget, as listening again would.
func TestDirectoryChecksConnection(t *testing.T) {
	t.Parallel()
	var written atomic.Int64
	db := newDirectoryDB(t, directoryTables, func(cfg *pgtenancy.PoolConfig) {
		cfg.Direct = cfg.Conns.Copy()
		tapped(cfg.Direct, func(b []byte) { written.Add(int64(bytes.Count(b, []byte("listen pgtenancy")))) }, nil)
	})
	dir := pgtenancy.NewDirectory(db.pool)
	dir.CheckOften(time.Millisecond, time.Minute)
	db.listen(t, dir)
	expectState(t, dir, true, "at first")
	await(t, "the checks", func() bool { return written.Load() > 10 })
	expectState(t, dir, true, "after many checks")
	db.queries.expect(t, 2, "it is remembered")
	if s := dir.Stat(); s.Listens != 1 || db.listeners(t) != 1 {
		t.Errorf("stat is %+v, with %d connections", s, db.listeners(t))
	}
	db.exec(t, suspendSQL)
	db.exec(t, "notify pgtenancy, 'acme'")
	await(t, "the notification", func() bool { return dir.Stat().Notifications == 1 })
	expectState(t, dir, false, "it was told")
}

// tappedConn shows what is written, and may change what is read.
type tappedConn struct {
	net.Conn
	written func([]byte)
	read    func([]byte)
}

func (c *tappedConn) Write(b []byte) (int, error) {
	c.written(b)
	return c.Conn.Write(b)
}

func (c *tappedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.read != nil {
		c.read(b[:n])
	}
	return n, err
}

// tapped makes all connections of cfg tapped.
func tapped(cfg *pgxpool.Config, written, read func([]byte)) {
	dial := cfg.ConnConfig.DialFunc
	cfg.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &tappedConn{conn, written, read}, nil
	}
}

// Credentials may come from a hook, and be others each time.
func TestDirectoryListensWithHook(t *testing.T) {
	t.Parallel()
	for _, direct := range []bool{false, true} {
		var calls atomic.Int64
		db := newDirectoryDB(t, directoryTables, func(cfg *pgtenancy.PoolConfig) {
			conns := cfg.Conns
			if direct {
				conns = cfg.Conns.Copy()
				cfg.Direct = conns
			}
			user := conns.ConnConfig.User
			conns.ConnConfig.User = "no such user"
			conns.BeforeConnect = func(_ context.Context, c *pgx.ConnConfig) error {
				calls.Add(1)
				c.User = user
				return nil
			}
		})
		dir := db.listening(t)
		before := calls.Load()
		db.killListeners(t)
		await(t, "the listening again", func() bool { s := dir.Stat(); return s.Listens == 2 && s.Listening })
		if calls.Load() == before {
			t.Errorf("direct %t: the hook was not called again", direct)
		}
	}
}

// The connection is none of the pool's, which may have no other to give.
func TestDirectoryListensBesidePool(t *testing.T) {
	t.Parallel()
	db := newDirectoryDB(t, directoryTables+"create schema tenant_acme", func(cfg *pgtenancy.PoolConfig) { cfg.Conns.MaxConns = 1 })
	dir := db.listening(t)
	handle, err := dir.Lookup(t.Context(), pgtenancy.ByID("acme"))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := db.pool.For(handle).Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	db.killListeners(t)
	await(t, "the listening again", func() bool { s := dir.Stat(); return s.Listens == 2 && s.Listening })
}

func TestDirectoryStopsListening(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		dial  func(ctx context.Context) error
		ready func(pgtenancy.DirectoryStat) bool
	}{
		{"listening", nil, func(s pgtenancy.DirectoryStat) bool { return s.Listening }},
		{"connecting", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }, nil},
		{"after a failure", func(context.Context) error { return errors.New("no route") }, func(s pgtenancy.DirectoryStat) bool {
			return s.ListenErr != nil && strings.Contains(s.ListenErr.Error(), "no route")
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dialled, ended := make(chan struct{}, 1000), make(chan struct{}, 1000)
			db := newDirectoryDB(t, directoryTables, func(cfg *pgtenancy.PoolConfig) {
				cfg.Direct = cfg.Conns.Copy()
				dial := cfg.Direct.ConnConfig.DialFunc
				cfg.Direct.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
					dialled <- struct{}{}
					if tt.dial != nil {
						defer func() { ended <- struct{}{} }()
						return nil, tt.dial(ctx)
					}
					return dial(ctx, network, addr)
				}
			})
			dir := pgtenancy.NewDirectory(db.pool)
			if n := len(dialled); n != 0 {
				t.Errorf("%d connections before there was a lookup", n)
			}
			if _, err := dir.Lookup(t.Context(), pgtenancy.ByID("acme")); err != nil {
				t.Fatal(err)
			}
			<-dialled
			if tt.ready != nil {
				await(t, "the listener", func() bool { return tt.ready(dir.Stat()) })
			}
			closed := make(chan struct{})
			go func() { db.pool.Close(); close(closed) }()
			select {
			case <-closed:
			case <-time.After(20 * time.Second): // less than it waits for a connection, or between attempts in the end
				t.Fatal("Close waits")
			}
			if tt.dial != nil && len(ended) == 0 {
				t.Error("Close did not wait for the attempt to connect")
			}
			s := dir.Stat()
			if s.Listening {
				t.Errorf("stat is %+v", s)
			}
			await(t, "the end of the connection", func() bool { return db.listeners(t) == 0 })
			if _, err := dir.Lookup(t.Context(), pgtenancy.ByID("globex")); err == nil {
				t.Error("a closed pool was asked")
			}
		})
	}
	t.Run("never started", func(t *testing.T) {
		t.Parallel()
		db := newDirectoryDB(t, directoryTables)
		dir := pgtenancy.NewDirectory(db.pool)
		db.pool.Close()
		if _, err := dir.Lookup(t.Context(), pgtenancy.ByID("acme")); err == nil {
			t.Error("a closed pool was asked")
		}
		if dir.Stat().Listening || db.listeners(t) != 0 {
			t.Error("it listens after Close")
		}
	})
	t.Run("started meanwhile", func(t *testing.T) {
		t.Parallel()
		db := newDirectoryDB(t, directoryTables)
		dir := pgtenancy.NewDirectory(db.pool)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() { _, _ = dir.Lookup(t.Context(), pgtenancy.ByID("acme")) })
			wg.Go(db.pool.Close)
		}
		wg.Wait()
		await(t, "the end of the connection", func() bool { return db.listeners(t) == 0 })
	})
}

// A pooler answers for another process than the one that it told the connection of.
func TestDirectoryDoesNotListenThroughPooler(t *testing.T) {
	t.Parallel()
	lie := func(b []byte) { // BackendKeyData: its type, length 12, the process, the key
		if i := bytes.Index(b, []byte{'K', 0, 0, 0, 12}); i >= 0 && len(b) >= i+9 {
			binary.BigEndian.PutUint32(b[i+5:], binary.BigEndian.Uint32(b[i+5:])+1)
		}
	}
	tests := []struct {
		name      string
		read      func([]byte)
		configure func(*pgtenancy.PoolConfig)
		listens   bool
	}{
		{"another process", lie, func(*pgtenancy.PoolConfig) {}, false},
		{"exec", nil, func(cfg *pgtenancy.PoolConfig) { cfg.Conns.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec }, false},
		{"cache_describe", nil, func(cfg *pgtenancy.PoolConfig) {
			cfg.Conns.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
		}, false},
		{"Direct, to one that keeps sessions", lie, func(cfg *pgtenancy.PoolConfig) { cfg.Direct = cfg.Conns.Copy() }, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var listens atomic.Int64
			db := newDirectoryDB(t, directoryTables, func(cfg *pgtenancy.PoolConfig) {
				tapped(cfg.Conns, func(b []byte) { listens.Add(int64(bytes.Count(b, []byte("listen pgtenancy")))) }, tt.read)
				tt.configure(cfg)
			})
			dir := pgtenancy.NewDirectory(db.pool)
			expectState(t, dir, true, "at first")
			if tt.listens {
				await(t, "the start of listening", func() bool { return dir.Stat().Listening })
				return
			}
			await(t, "the refusal", func() bool { return dir.Stat().ListenErr != nil })
			s := dir.Stat()
			if s.Listening || !strings.Contains(s.ListenErr.Error(), "set PoolConfig.Direct") || listens.Load() != 0 {
				t.Errorf("stat is %+v; LISTEN was sent %d times", s, listens.Load())
			}
		})
	}
}

// RDS Proxy gives a client that listens a connection of its own for good, which is what it is there to avoid.
func TestDirectoryDoesNotListenThroughRDSProxy(t *testing.T) {
	t.Parallel()
	db := newDirectoryDB(t, "", func(cfg *pgtenancy.PoolConfig) { cfg.Entry = pgtenancy.EntryFunction })
	if err := pgtenancy.NewDirectory(db.pool).Stat().ListenErr; err == nil || !strings.Contains(err.Error(), "EntryFunction") {
		t.Errorf("got %v", err)
	}
}
