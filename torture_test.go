package pgtenancy_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	osuser "os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/pgtenancy/pgtenancy"
	"github.com/pgtenancy/pgtenancy/internal/wire"
	"github.com/pgtenancy/pgtenancy/pgtenancytest"
	"github.com/pgtenancy/pgtenancy/pgtenancytest/hammer"
)

// bouncersEnv names programs of PgBouncer to torture the pool behind, separated by colons; it is looked for where that is not set.
// PGTENANCY_HAMMER_DURATION and PGTENANCY_HAMMER_SEED are the hammer's.
const bouncersEnv = "PGTENANCY_PGBOUNCER"

// tortureRoles are made once in a server: two that tenants run as, and one that nobody ever should.
const tortureRoles = roleSQL + `;
do $$ begin
	create role torture_a;
	create role torture_b;
	create role torture_other;
exception when duplicate_object or unique_violation then null;
end $$;
grant torture_a, torture_b, torture_other to app;
`

// TestTorture hammers a pool on direct connections, some of which a proxy cuts.
func TestTorture(t *testing.T) {
	// Not in parallel with others, which it would slow down.
	for _, e := range []struct {
		name  string
		entry pgtenancy.Entry
		time  time.Duration
	}{
		{"settings", pgtenancy.EntrySettings, tortureTime()},
		{"function", pgtenancy.EntryFunction, tortureTime() / 3},
		{"set local", pgtenancy.EntrySetLocal, tortureTime() / 3},
	} {
		t.Run(e.name, func(t *testing.T) {
			h := newTorture(t)
			front := newCutter(t, h.server)
			h.run(t, hammer.Config{Duration: e.time}, func(c *pgtenancy.PoolConfig) {
				h.via(t, c.Conns, front)
				c.Entry = e.entry
				c.MaxTenantsPerConn = 100
			})
		})
	}
}

// TestTortureLeavesNothing looks at connections that were given back. Without users' SQL that sets things itself they are as
// they were; without migrations no statement has to be prepared anew; and without trouble from outside none is lost.
func TestTortureLeavesNothing(t *testing.T) {
	h := newTorture(t)
	var looked atomic.Int64
	without := []hammer.Fault{hammer.Settings, hammer.Migrate, hammer.Terminate}
	h.run(t, hammer.Config{Duration: tortureTime() / 3, Without: without}, func(c *pgtenancy.PoolConfig) {
		c.Conns.AfterRelease = func(conn *pgx.Conn) bool {
			got, err := state(context.Background(), conn)
			if err != nil {
				t.Errorf("after a release: %v", err)
				return false
			}
			looked.Add(1)
			if want := ` |  | app | app | 0 | off | 0 | 0 | 0`; got != want {
				t.Errorf("after a release the connection has\n\t%s\nwant\n\t%s", got, want)
			}
			return true
		}
	})
	if looked.Load() == 0 {
		t.Error("no connection was looked at")
	}
}

// TestTorturePgBouncer does it behind PgBouncer in transaction mode, with cuts on both sides of it.
func TestTorturePgBouncer(t *testing.T) {
	for _, b := range findBouncers(t) {
		modes := []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement}
		if !b.prepares {
			modes = []pgx.QueryExecMode{pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeExec}
		}
		for _, m := range modes {
			t.Run(b.version+" "+m.String(), func(t *testing.T) {
				h := newTorture(t)
				front := newCutter(t, b.start(t, newCutter(t, h.server), "app"))
				h.run(t, hammer.Config{Duration: tortureTime()}, mode(m), func(c *pgtenancy.PoolConfig) {
					c.Direct = c.Conns.Copy()
					c.Direct.MaxConns = 4
					h.via(t, c.Conns, front)
				})
			})
		}
	}
}

// TestTortureFindsLeaks shows that the hammer sees what it is made for: it catches the usual ways to do this with session state.
func TestTortureFindsLeaks(t *testing.T) {
	t.Run("SET, then a query, on a pool", func(t *testing.T) {
		h := newTorture(t)
		h.findsLeaks(t, func(c *pgxpool.Config) hammer.DB { return setThenQuery{newPgxPool(t, c)} })
	})
	t.Run("SET on each connection acquired, behind PgBouncer", func(t *testing.T) {
		h := newTorture(t)
		b := findBouncers(t)[0]
		address := b.start(t, h.server, "app")
		h.findsLeaks(t, func(c *pgxpool.Config) hammer.DB {
			h.via(t, c, address)
			if !b.prepares {
				c.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
			}
			c.PrepareConn = func(ctx context.Context, conn *pgx.Conn) (bool, error) {
				err := setSession(ctx, conn)
				return err == nil, err
			}
			return newPgxPool(t, c)
		})
	})
}

// torture is a database with many tenants.
type torture struct {
	url     *url.URL
	server  string // its address
	tenants []pgtenancy.Tenant
}

func newTorture(t *testing.T) *torture {
	t.Helper()
	u, err := url.Parse(pgtenancytest.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	h := &torture{url: u, server: u.Host}
	conn, err := pgx.Connect(t.Context(), u.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	sql := tortureRoles + "create schema pgtenancy; grant usage on schema pgtenancy to public;" + wire.EnterFunction + ";"
	tenants := 200
	if testing.Short() {
		tenants = 50
	}
	for i := range tenants {
		info := pgtenancy.TenantInfo{ID: fmt.Sprintf("t%03d", i)}
		switch i % 4 {
		case 1:
			info.Role = "torture_a"
		case 2:
			info.Role = "torture_b"
		}
		if i%5 == 4 {
			info.Schema = fmt.Sprintf(`Of "%s", %%s */ -- $1`, info.ID)
		}
		tenant := newTenantOf(t, info)
		h.tenants = append(h.tenants, tenant)
		sql += fmt.Sprintf("create schema %[1]s; grant usage on schema %[1]s to public;", pgx.Identifier{tenant.Schema()}.Sanitize())
	}
	if _, err := conn.Exec(t.Context(), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	return h
}

// conns returns a configuration to connect as the role app, past all that is in between.
func (h *torture) conns(t *testing.T) *pgxpool.Config {
	t.Helper()
	u := *h.url
	u.User = url.User("app")
	c, err := pgxpool.ParseConfig(u.String())
	if err != nil {
		t.Fatal(err)
	}
	c.MaxConns = 8
	return c
}

// via makes c connect to another address.
func (h *torture) via(t *testing.T, c *pgxpool.Config, address string) {
	t.Helper()
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	c.ConnConfig.Host, c.ConnConfig.Port, c.ConnConfig.Fallbacks = host, uint16(n), nil
}

func tortureTime() time.Duration {
	if testing.Short() {
		return 2 * time.Second
	}
	return 30 * time.Second
}

// run hammers a pool.
func (h *torture) run(t *testing.T, hc hammer.Config, opts ...option) {
	t.Helper()
	before := []goleak.Option{goleak.IgnoreCurrent(), goleak.IgnoreAnyFunction("github.com/pgtenancy/pgtenancy_test.pass")}
	cfg := &pgtenancy.PoolConfig{Conns: h.conns(t)}
	cfg.Conns.ConnConfig.StatementCacheCapacity = 100 // so that some are pushed out
	cfg.Limits = func(tenant pgtenancy.Tenant) pgtenancy.Limits {
		if tenant == h.tenants[0] || tenant == h.tenants[1] {
			return pgtenancy.Limits{Conns: 2, StatementTimeout: 20 * time.Second}
		}
		return pgtenancy.Limits{}
	}
	for _, o := range opts {
		o(cfg)
	}
	p, err := pgtenancy.NewPoolWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	hc.Admin, hc.Tenants = h.url.String(), h.tenants
	if !slices.Contains(hc.Without, hammer.Settings) {
		hc.Ops = []hammer.Op{{Name: "role", Weight: 2, Do: func(ctx context.Context, _ pgtenancy.Tenant, rnd *rand.Rand) error {
			_, err := p.Exec(ctx, "select set_config('role', 'torture_other', $1)", rnd.IntN(2) == 0)
			return err
		}}}
	}
	hammer.Run(t, p, hc)
	p.Close()
	if err := findLeaks(before...); err != nil {
		t.Error(err)
	}
}

// findsLeaks hammers what leaks, and fails where that is not found out.
func (h *torture) findsLeaks(t *testing.T, db func(*pgxpool.Config) hammer.DB) {
	t.Helper()
	var tenants []pgtenancy.Tenant
	for _, tenant := range h.tenants {
		if tenant.Role() == "" {
			tenants = append(tenants, tenant)
		}
	}
	r := &recorder{TB: t}
	hammer.Run(r, db(h.conns(t)), hammer.Config{
		Admin: h.url.String(), Tenants: tenants, Duration: 2 * time.Second,
		Without: []hammer.Fault{hammer.Cancel, hammer.Terminate, hammer.Settings, hammer.Migrate},
	})
	for what, text := range map[string]string{
		"rows of other tenants that were read":     hammer.ErrLeak.Error(),
		"rows that were written to another tenant": "audit: ",
	} {
		if !strings.Contains(r.failures.String(), text) {
			t.Errorf("the hammer did not find %s, only:\n%s", what, r.failures.String())
		}
	}
}

// recorder takes note of failures.
type recorder struct {
	testing.TB
	failures strings.Builder
}

func (r *recorder) Errorf(format string, args ...any) { fmt.Fprintf(&r.failures, format+"\n", args...) }

func newPgxPool(t *testing.T, c *pgxpool.Config) pgxPool {
	t.Helper()
	p, err := pgxpool.NewWithConfig(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return pgxPool{p}
}

// pgxPool is a pgxpool.Pool whose batch results may be closed twice. pgx 5.12 touches the connection's caches again where
// those of a batch that failed are, when the connection may be somebody else's already.
type pgxPool struct{ *pgxpool.Pool }

func (p pgxPool) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	return &closedOnce{BatchResults: p.Pool.SendBatch(ctx, b)}
}

type closedOnce struct {
	pgx.BatchResults
	closed bool
	err    error
}

func (r *closedOnce) Close() error {
	if !r.closed {
		r.err = r.BatchResults.Close()
		r.closed = true // not where a callback panicked: then the connection is still held
	}
	return r.err
}

// setSession sets the tenant of ctx for the session.
func setSession(ctx context.Context, q interface {
	Exec(context.Context, string, ...any) (pgconn.CommandTag, error)
},
) error {
	tenant, ok := pgtenancy.TenantFromContext(ctx)
	if !ok {
		return errors.New("no tenant")
	}
	_, err := q.Exec(ctx, "select set_config('search_path', $1, false), set_config('app.current_tenant', $2, false)",
		pgx.Identifier{tenant.Schema()}.Sanitize()+", public", tenant.ID())
	return err
}

// setThenQuery is what a middleware that sets search_path and a handler that queries come to.
type setThenQuery struct{ pgxPool }

func (p setThenQuery) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	if err := setSession(ctx, p.Pool); err != nil {
		return pgconn.CommandTag{}, err
	}
	return p.Pool.Exec(ctx, sql, args...)
}

func (p setThenQuery) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	if err := setSession(ctx, p.Pool); err != nil {
		return nil, err
	}
	return p.Pool.Query(ctx, sql, args...)
}

func (p setThenQuery) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	_ = setSession(ctx, p.Pool)
	return p.Pool.QueryRow(ctx, sql, args...)
}

func (p setThenQuery) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	_ = setSession(ctx, p.Pool)
	return p.pgxPool.SendBatch(ctx, b)
}

func (p setThenQuery) CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, src pgx.CopyFromSource) (int64, error) {
	_ = setSession(ctx, p.Pool)
	return p.Pool.CopyFrom(ctx, table, columns, src)
}

func (p setThenQuery) Begin(ctx context.Context) (pgx.Tx, error) {
	if err := setSession(ctx, p.Pool); err != nil {
		return nil, err
	}
	return p.Pool.Begin(ctx)
}

// newCutter starts a proxy in front of target that cuts each connection after a random number of bytes, anywhere in a message. It
// returns the proxy's address.
func newCutter(t *testing.T, target string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var open sync.Map
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			open.Store(conn, nil)
			wg.Go(func() {
				defer open.Delete(conn)
				cutOne(conn.(*net.TCPConn), target)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		open.Range(func(conn, _ any) bool { conn.(net.Conn).Close(); return true })
		wg.Wait()
	})
	return l.Addr().String()
}

// cutOne passes bytes between a client and target until one of them ends or it is time for the cut.
func cutOne(client *net.TCPConn, target string) {
	defer client.Close()
	conn, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	server := conn.(*net.TCPConn)
	defer server.Close()
	var left atomic.Int64
	left.Store(int64(rand.ExpFloat64() * 500_000))
	if rand.IntN(20) == 0 {
		left.Store(rand.Int64N(500)) // while it connects
	}
	var wg sync.WaitGroup
	wg.Go(func() { pass(server, client, &left) })
	pass(client, server, &left)
	wg.Wait()
}

func pass(to, from *net.TCPConn, left *atomic.Int64) {
	defer to.CloseWrite()
	buf := make([]byte, 8192)
	for {
		n, err := from.Read(buf)
		if over := -left.Add(-int64(n)); over >= 0 {
			_, _ = to.Write(buf[:max(0, int64(n)-over)])
			if rand.IntN(2) == 0 {
				_, _ = to.SetLinger(0), from.SetLinger(0) // a reset instead of an end
			}
			to.Close()
			from.Close()
			return
		}
		if _, werr := to.Write(buf[:n]); err != nil || werr != nil {
			return
		}
	}
}

// bouncer is a program of PgBouncer.
type bouncer struct {
	program  string
	version  string // as "1.24.1"
	prepares bool   // prepared statements work in transaction mode
}

// findBouncers returns the programs that there are. It skips the test where there are none.
func findBouncers(t *testing.T) (found []bouncer) {
	t.Helper()
	programs := filepath.SplitList(os.Getenv(bouncersEnv))
	if len(programs) == 0 {
		for _, name := range []string{"pgbouncer", "/usr/sbin/pgbouncer"} {
			if p, err := exec.LookPath(name); err == nil {
				programs = append(programs, p)
				break
			}
		}
	}
	if len(programs) == 0 {
		t.Skipf("no pgbouncer in PATH, /usr/sbin or %s", bouncersEnv)
	}
	for _, p := range programs {
		out, err := exec.Command(p, "--version").Output()
		if err != nil {
			t.Fatalf("%s --version: %v", p, err)
		}
		var major, minor int
		line, _, _ := strings.Cut(string(out), "\n")
		version := strings.TrimPrefix(strings.TrimSpace(line), "PgBouncer ")
		if _, err := fmt.Sscanf(version, "%d.%d", &major, &minor); err != nil {
			t.Fatalf("%s says it is %q", p, line)
		}
		found = append(found, bouncer{p, version, major > 1 || minor >= 21})
	}
	return found
}

// supervise keeps a program running, as a service manager would, since PgBouncer 1.18 does not survive all of this ("server in bad
// state"). It reads to the end of the pipe, whose other end is this process's, and then ends the program.
const supervise = `(
	trap 'kill -KILL $p; exit' TERM
	while :; do
		"$@" & p=$!
		wait $p
		echo "` + supervised + `: $?"
		sleep 0.1
	done
) & read -r eof; kill -TERM $!; wait`

const supervised = "ended by itself"

// start starts a PgBouncer in front of server, for users who need no password, and returns its address. It ends with the test, and at the
// latest with the process.
func (b bouncer) start(t *testing.T, server string, users ...string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "pgbouncer")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	serverHost, serverPort, _ := net.SplitHostPort(server)
	_, port, _ := net.SplitHostPort(address)
	ini := fmt.Sprintf(`[databases]
* = host=%s port=%s

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %s
unix_socket_dir =
auth_type = trust
auth_file = %s/users.txt
pool_mode = transaction
default_pool_size = 4
max_client_conn = 1000
server_login_retry = 0.05
log_connections = 0
log_disconnections = 0
`, serverHost, serverPort, port, dir)
	if b.prepares {
		ini += "max_prepared_statements = 50\n" // fewer than clients have
	}
	for name, text := range map[string]string{"pgbouncer.ini": ini, "users.txt": `"` + strings.Join(users, "\" \"\"\n\"") + "\" \"\"\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	args := []string{"-c", supervise, "sh", b.program}
	if os.Geteuid() == 0 { // as whom it refuses to run
		for _, name := range []string{"postgres", "nobody"} {
			if _, err := osuser.Lookup(name); err == nil {
				args = append(args, "-u", name)
				break
			}
		}
	}
	sh := exec.Command("/bin/sh", append(args, filepath.Join(dir, "pgbouncer.ini"))...)
	var log strings.Builder
	sh.Stdout, sh.Stderr = &log, &log
	alive, err := sh.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := sh.Start(); err != nil {
		t.Fatal(err)
	}
	stop := sync.OnceFunc(func() {
		alive.Close()
		_ = sh.Wait()
	})
	t.Cleanup(func() {
		stop()
		said := log.String()
		if n := strings.Count(said, supervised); n > 0 {
			t.Logf("PgBouncer %s ended by itself %d times", b.version, n)
		}
		if t.Failed() {
			t.Logf("PgBouncer says:\n%s", said[max(0, len(said)-2000):])
		}
	})
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if conn, err := net.Dial("tcp", address); err == nil {
			conn.Close()
			return address
		} else if time.Now().After(deadline) {
			stop()
			t.Fatalf("PgBouncer does not start: %v\n%s", err, log.String())
		}
	}
}
