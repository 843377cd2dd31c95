package pgtenancy_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy"
)

func limits(of map[string]pgtenancy.Limits) option {
	return func(c *pgtenancy.PoolConfig) {
		c.Limits = func(t pgtenancy.Tenant) pgtenancy.Limits { return of[t.ID()] }
	}
}

// A tenant has as many connections and waiters as it may, and leaves the rest to others.
func TestLimitsConns(t *testing.T) {
	t.Parallel()
	needsDirect(t) // Direct has a queue of its own
	db := newDB(t)
	p := db.pool(t, maxConns(3), limits(map[string]pgtenancy.Limits{
		"acme":   {Conns: 1, Waiters: 1},
		"globex": {Conns: 1, Waiters: -1},
	}))
	for _, tenant := range []pgtenancy.Tenant{db.acme, db.globex} {
		tx, err := p.Begin(as(t, tenant))
		check(t, "Begin", err)
		defer tx.Rollback(bare(t))
	}
	_, err := p.Exec(as(t, db.globex), "select 1")
	checkIs(t, "where none may wait", err, pgtenancy.ErrTenantBusy)

	waits := make(chan error, 1)
	ctx, cancel := context.WithCancel(as(t, db.acme))
	go func() {
		_, err := p.Exec(ctx, "select 1")
		waits <- err
	}()
	await(t, "one that waits", func() bool { return p.Stat().Tenants()["acme"].Waiting > 0 })
	for name, err := range map[string]error{
		"Exec":      second(p.Exec(as(t, db.acme), "select 1")),
		"Query":     second(p.Query(as(t, db.acme), "select 1")),
		"QueryRow":  p.QueryRow(as(t, db.acme), "select 1").Scan(nil),
		"SendBatch": p.SendBatch(as(t, db.acme), batchOf("select 1")).Close(),
		"Begin":     second(p.Begin(as(t, db.acme))),
		"Acquire":   second(p.Acquire(as(t, db.acme))),
	} {
		checkIs(t, name+" behind one that waits", err, pgtenancy.ErrTenantBusy)
	}
	checkWhose(t, p, as(t, db.initech), db.initech) // has the third connection
	got := p.Stat().Tenants()
	if a, g := got["acme"], got["globex"]; a.InUse != 1 || a.Waiting != 1 || a.Refused < 5 || g.InUse != 1 || g.Refused != 1 || len(got) != 2 {
		t.Errorf("the figures are %+v", got)
	}
	cancel()
	checkIs(t, "the one that waited", <-waits, context.Canceled)
	if s := p.Stat().Total(); s.InUse != 2 || s.Waiting != 0 || s.Waited != 1 {
		t.Errorf("in all: %+v", s)
	}
}

func second[T any](_ T, err error) error { return err }

func batchOf(sql ...string) *pgx.Batch {
	b := &pgx.Batch{}
	for _, s := range sql {
		b.Queue(s)
	}
	return b
}

// Tenants that wait are served in turn, not in the order of their callers.
func TestFairness(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	p := db.pool(t)
	tx, err := p.Begin(as(t, db.initech))
	check(t, "Begin", err)
	var mu sync.Mutex
	var served []string
	var wg sync.WaitGroup
	wait := func(tenant pgtenancy.Tenant) {
		before := p.Stat().Total().Waiting
		wg.Go(func() {
			err := pgx.BeginFunc(as(t, tenant), p, func(pgx.Tx) error {
				mu.Lock()
				served = append(served, tenant.ID())
				mu.Unlock()
				return nil
			})
			check(t, "BeginFunc", err)
		})
		await(t, "one more that waits", func() bool { return p.Stat().Total().Waiting > before })
	}
	for range 10 {
		wait(db.acme)
	}
	wait(db.globex)
	check(t, "Rollback", tx.Rollback(bare(t)))
	wg.Wait()
	if at := slices.Index(served, "globex"); at != 1 {
		t.Errorf("globex, which came last and alone, was served as number %d of %v", at, served)
	}
}

// The timeouts of a tenant hold for its statements, and for nobody's after them.
func TestLimitsTimeouts(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	for name, entry := range map[string]pgtenancy.Entry{"settings": pgtenancy.EntrySettings, "function": pgtenancy.EntryFunction, "set local": pgtenancy.EntrySetLocal} {
		t.Run(name, func(t *testing.T) {
			db.installEnter(t)
			var b backend
			p := db.pool(t, b.option, func(c *pgtenancy.PoolConfig) { c.Entry = entry }, limits(map[string]pgtenancy.Limits{
				"acme":    {IdleInTransactionTimeout: 100 * time.Millisecond, StatementTimeout: time.Hour},
				"globex":  {LockTimeout: 100 * time.Millisecond},
				"initech": {StatementTimeout: 100 * time.Millisecond}, // which nothing of initech's has to keep within
			}))
			const sleep = "select pg_sleep(0.3)"
			for range 3 {
				_, err := p.Exec(as(t, db.initech), sleep)
				checkCode(t, "a statement that takes too long", err, "57014")
				err = pgx.BeginFunc(as(t, db.initech), p, func(tx pgx.Tx) error { return second(tx.Exec(as(t, db.initech), sleep)) })
				checkCode(t, "in a transaction", err, "57014")
				_, err = p.Exec(as(t, db.globex), sleep)
				check(t, "another tenant's", err)
				b.check(t, "timeouts")
			}
			lock, err := db.admin(t).Begin(t.Context())
			check(t, "Begin", err)
			_, err = lock.Exec(t.Context(), "lock tenant_globex.notes")
			check(t, "lock", err)
			_, err = p.Exec(as(t, db.globex), "select 1 from notes")
			checkCode(t, "a lock that is not to be had", err, "55P03")
			check(t, "Rollback", lock.Rollback(t.Context()))
			tx, err := p.Begin(as(t, db.acme))
			check(t, "Begin", err)
			defer tx.Rollback(bare(t))
			await(t, "the end of a transaction that idles", func() bool {
				return db.count(t, "select count(*) from pg_stat_activity where datname = current_database() and state = 'idle in transaction'") == 0
			})
			if _, err := tx.Exec(as(t, db.acme), "select 1"); err == nil {
				t.Error("a transaction may idle for longer than it may")
			}
			_ = tx.Rollback(bare(t))
			db.checkWorks(t, p)
		})
	}
}

// A connection ends when it has served enough tenants.
func TestMaxTenantsPerConn(t *testing.T) {
	t.Parallel()
	needsDirect(t)
	db := newDB(t)
	for _, tt := range []struct {
		name string
		most int
		want int // connections, of two statements for each of three tenants
	}{
		{"two", 2, 3},
		{"three", 3, 2},
		{"the default", 0, 1},
		{"none", -1, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := db.pool(t, func(c *pgtenancy.PoolConfig) { c.MaxTenantsPerConn = tt.most })
			pids := map[uint32]bool{}
			for range 2 {
				for _, tenant := range db.tenants() {
					var pid uint32
					check(t, "QueryRow", p.QueryRow(as(t, tenant), "select pg_backend_pid()").Scan(&pid))
					pids[pid] = true
				}
			}
			if len(pids) != tt.want {
				t.Errorf("%d connections served 2 times 3 tenants, want %d", len(pids), tt.want)
			}
			checkIdle(t, p)
		})
	}
}

// A storm over tenants with limits loses no place and mixes up nothing.
func TestLimitsStorm(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	p := db.pool(t, maxConns(3), limits(map[string]pgtenancy.Limits{
		"acme": {Conns: 2, Waiters: 4}, "globex": {Conns: 1}, "initech": {Waiters: 8, StatementTimeout: time.Minute},
	}), func(c *pgtenancy.PoolConfig) { c.MaxTenantsPerConn = 2 })
	var wg sync.WaitGroup
	for g := range 24 {
		wg.Go(func() {
			for i := range 25 {
				tenant := db.tenants()[(g+i)%3]
				ctx, cancel := context.WithTimeout(as(t, tenant), time.Duration(1+(g*i)%40)*time.Millisecond)
				var whose string
				err := p.QueryRow(ctx, "select tenant from notes where id = 1").Scan(&whose)
				cancel()
				if err == nil && whose != tenant.ID() {
					t.Errorf("as %s: a row of %s", tenant, whose)
				}
				if err != nil && !errors.Is(err, pgtenancy.ErrTenantBusy) && !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("as %s: %v", tenant, err)
				}
			}
		})
	}
	wg.Wait()
	checkIdle(t, p)
	if s := p.Stat(); s.Total().InUse != 0 || s.Total().Waiting != 0 || len(s.Tenants()) != 0 {
		t.Errorf("left: %+v", fmt.Sprint(s.Total(), s.Tenants()))
	}
	db.checkWorks(t, p)
}

// Who was let in and then waited, for a turn or for a new connection, is refused where the tenant was suspended meanwhile.
func TestSuspendedWhileWaiting(t *testing.T) {
	t.Parallel()
	needsDirect(t)
	db := newFleetDB(t)
	var slow atomic.Bool
	dialing, dial := make(chan struct{}), make(chan struct{})
	elsewhere := db.migrated(t, notesFiles)
	acme, globex := provision(t, elsewhere, "acme"), provision(t, elsewhere, "globex")
	fleet := db.open(t, notesFiles, func(c *pgtenancy.FleetConfig) {
		c.PoolConfig.Limits = func(tenant pgtenancy.Tenant) pgtenancy.Limits {
			if tenant.ID() == "acme" {
				return pgtenancy.Limits{Conns: 1}
			}
			return pgtenancy.Limits{}
		}
		c.PoolConfig.Conns.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if slow.CompareAndSwap(true, false) {
				close(dialing)
				<-dial
			}
			return (&net.Dialer{}).DialContext(ctx, network, addr)
		}
	})
	pool := fleet.Pool()
	suspend := func(tenant pgtenancy.Tenant) {
		t.Helper()
		before := fleet.DirectoryStat().Notifications
		check(t, "Suspend", elsewhere.Suspend(bare(t), tenant.ID(), nil))
		await(t, "a notification", func() bool { return fleet.DirectoryStat().Notifications > before }) // and then it is read anew
		await(t, "the news of it", func() bool {
			_, err := fleet.Lookup(bare(t), pgtenancy.ByID(tenant.ID()))
			return errors.Is(err, pgtenancy.ErrTenantSuspended)
		})
	}
	begin := func(tenant pgtenancy.Tenant) pgx.Tx {
		t.Helper()
		tx, err := pool.Begin(as(t, tenant))
		if err != nil {
			t.Fatal(err)
		}
		return tx
	}
	lookup(t, fleet, "acme")
	await(t, "it to listen", func() bool { return fleet.DirectoryStat().Listening }) // then it forgets all
	lookup(t, fleet, "acme")
	lookup(t, fleet, "globex")
	waits := make(chan error, 1)
	insert := func(tenant pgtenancy.Tenant) {
		_, err := pool.Exec(as(t, tenant), "insert into notes (body) values ('late')")
		waits <- err
	}

	tx := begin(acme)
	go insert(acme)
	await(t, "one that waits for its turn", func() bool { return pool.Stat().Tenants()["acme"].Waiting > 0 })
	suspend(acme)
	check(t, "Commit", tx.Commit(bare(t)))
	checkIs(t, "the one that waited for its turn", <-waits, pgtenancy.ErrTenantSuspended)

	var held []pgx.Tx // all connections that there are
	for pool.Stat().IdleConns() > 0 {
		held = append(held, begin(globex))
	}
	slow.Store(true)
	go insert(globex)
	<-dialing
	check(t, "Commit", held[0].Commit(bare(t))) // with which the news come
	suspend(globex)
	close(dial)
	checkIs(t, "the one that waited for a connection", <-waits, pgtenancy.ErrTenantSuspended)
	for _, tx := range held[1:] {
		check(t, "Rollback", tx.Rollback(bare(t)))
	}
	checkEqual(t, "what came late", db.count(t, "select (select count(*) from tenant_acme.notes) + (select count(*) from tenant_globex.notes)"), 0)
	checkIdle(t, pool)
}
