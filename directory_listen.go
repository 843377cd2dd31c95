package pgtenancy

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgtenancy/pgtenancy/internal/wire"
)

// notifyStep tells all directories on the database to forget the tenant with this ID, and where it is "" all tenants. It goes
// into the transaction that changes the registry, so that they hear of it when that is committed. PostgreSQL lets one
// transaction that notifies commit at a time, in the whole cluster.
func notifyStep(id string) wire.Step {
	return wire.Step{SQL: `select pg_catalog.pg_notify('pgtenancy', $1)`, Args: []any{id}}
}

// listenSQL is sent to begin with and again to ask whether the connection is there, which does nothing more on the server
// than telling whoever looks at pg_stat_activity what the connection is for.
const listenSQL = "listen pgtenancy"

// How a listener goes about it.
const (
	listenCheck      = 30 * time.Second // between checks of an idle connection
	listenTimeout    = 30 * time.Second // for connecting
	listenCheckLimit = 10 * time.Second // for the answer to a check
	listenCloseLimit = time.Second      // for a goodbye that nobody may be there to hear
	listenWaitLeast  = 100 * time.Millisecond
	listenWaitMost   = 30 * time.Second
)

// listener makes a directory forget what it is told to.
type listener struct {
	directory *CachedDirectory
	pool      *Pool
	conns     *pgxpool.Config
	direct    bool // conns is known to lead past a pooler, or to one that keeps sessions
	check     time.Duration
	limit     time.Duration // for the answer to a check
}

// newListener returns a listener, or why there can be none.
func newListener(d *CachedDirectory, p *Pool) (*listener, error) {
	cfg := &p.cfg
	l := &listener{directory: d, pool: p, conns: cfg.Conns, check: listenCheck, limit: listenCheckLimit}
	mode := cfg.Conns.ConnConfig.DefaultQueryExecMode
	switch {
	case cfg.Direct != nil:
		l.conns, l.direct = cfg.Direct, true
	case cfg.Entry == EntryFunction:
		return nil, fmt.Errorf("%w: PoolConfig.Entry is EntryFunction", errPooler)
	case mode != pgx.QueryExecModeCacheStatement:
		return nil, fmt.Errorf("%w: PoolConfig.Conns.ConnConfig.DefaultQueryExecMode is %s", errPooler, mode)
	}
	return l, nil
}

var errPooler = errors.New("pgtenancy: no LISTEN through a pooler, which PoolConfig.Conns seems to lead to: set PoolConfig.Direct")

// run listens until ctx ends.
func (l *listener) run(ctx context.Context) {
	for wait := listenWaitLeast; ; wait = min(2*wait, listenWaitMost) {
		began := time.Now()
		err := l.listen(ctx)
		if ctx.Err() != nil {
			err = nil // it was told to
		}
		l.directory.listening(false, err)
		if ctx.Err() != nil || errors.Is(err, errPooler) {
			return
		}
		if time.Since(began) > listenWaitMost { // it did not just come and go
			wait = listenWaitLeast
		}
		select {
		case <-time.After(wait/2 + rand.N(wait/2)): // not all processes at once
		case <-ctx.Done():
			return
		}
	}
}

// listen listens on one connection, until that fails or ctx ends.
func (l *listener) listen(ctx context.Context) error {
	starting, cancel := context.WithTimeout(ctx, listenTimeout)
	defer cancel()
	var ended atomic.Bool
	cfg, err := l.config(starting, &ended)
	if err != nil {
		return err
	}
	conn, err := pgconn.ConnectConfig(starting, cfg)
	if err != nil {
		return err
	}
	defer func() {
		ended.Store(true)
		goodbye, cancel := context.WithTimeout(context.Background(), listenCloseLimit)
		defer cancel()
		_ = conn.Close(goodbye) // it may be closed, and its end be waited for by pgconn
		_ = conn.Conn().Close()
		<-conn.CleanupDone()
	}()

	if !l.direct {
		result, err := conn.Exec(starting, "select pg_catalog.pg_backend_pid()").ReadAll()
		if err != nil {
			return err
		}
		if pid := string(result[0].Rows[0][0]); pid != strconv.FormatUint(uint64(conn.PID()), 10) {
			return fmt.Errorf("%w: the server's process is %s, and not %d as the connection was told", errPooler, pid, conn.PID())
		}
	}
	if _, err := conn.Exec(starting, listenSQL).ReadAll(); err != nil {
		return err
	}
	l.directory.listening(true, nil)
	for {
		if err := l.wait(ctx, conn); err != nil {
			return err
		}
	}
}

// config returns how to connect. What the pool does with its connections is not for this one: it has no statements.
func (l *listener) config(ctx context.Context, ended *atomic.Bool) (*pgconn.Config, error) {
	cfg := l.conns.ConnConfig.Copy()
	if l.conns.BeforeConnect != nil {
		if err := l.conns.BeforeConnect(ctx, cfg); err != nil {
			return nil, err
		}
	}
	// The end of a wait must not cancel anything on the server, as the caller's handler may have it.
	cfg.BuildContextWatcherHandler = func(c *pgconn.PgConn) ctxwatch.Handler {
		return &pgconn.DeadlineContextWatcherHandler{Conn: c.Conn()}
	}
	cfg.OnNotification = func(_ *pgconn.PgConn, n *pgconn.Notification) {
		if n.Channel == "pgtenancy" {
			l.directory.notified(n.Payload)
		}
	}
	// pgconn dials once more to cancel what a broken connection may be at. Nobody shall wait for that.
	dial := cfg.DialFunc
	cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if ended.Load() {
			return nil, net.ErrClosed
		}
		return dial(ctx, network, addr)
	}
	return &cfg.Config, nil
}

// wait waits for a notification, which pgconn hands to the directory, or for the time to check the connection, and checks it.
func (l *listener) wait(ctx context.Context, conn *pgconn.PgConn) error {
	idle, cancel := context.WithTimeout(ctx, l.check)
	defer cancel()
	err := conn.WaitForNotification(idle)
	if err == nil || ctx.Err() != nil || conn.IsClosed() {
		return err
	}
	answer, cancel := context.WithTimeout(ctx, l.limit)
	defer cancel()
	_, err = conn.Exec(answer, listenSQL).ReadAll()
	return err
}

// listening notes whether the directory hears of changes, and if not why. What it did not hear of is lost, and so what it
// remembers when it begins to.
func (d *CachedDirectory) listening(yes bool, err error) {
	if yes {
		d.forgetAll()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stat.Listening, d.stat.ListenErr = yes, err
	if yes {
		d.stat.Listens++
	}
}

// notified forgets the tenant with this ID, or all where it is "".
func (d *CachedDirectory) notified(id string) {
	if id == "" {
		d.forgetAll()
	} else {
		d.renew(id, 0)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stat.Notifications++
}

// background is what runs beside a Pool until that is closed.
type background struct {
	mu      sync.Mutex
	cancel  []context.CancelFunc
	closed  bool
	running sync.WaitGroup
}

// run calls f in a goroutine with a context that ends when the pool is closed. It does nothing when that was done.
func (b *background) run(f func(context.Context)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	b.cancel = append(b.cancel, cancel)
	b.running.Go(func() { f(ctx) })
}

// close ends what runs and waits for it.
func (b *background) close() {
	b.mu.Lock()
	b.closed = true
	for _, cancel := range b.cancel {
		cancel()
	}
	b.mu.Unlock()
	b.running.Wait()
}
