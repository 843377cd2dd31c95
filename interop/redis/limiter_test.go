package limiter_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/pgtenancy/pgtenancy"
	limiter "github.com/pgtenancy/pgtenancy/interop/redis"
	"github.com/pgtenancy/pgtenancy/middleware"
)

// patience is how long anything may take. It ends what hangs.
const patience = time.Minute

// server is a redis-server of a test's own.
type server struct {
	addr string
	stop func()
}

// start starts a server that ends with the test, and at the latest with the process.
func start(t *testing.T) *server {
	t.Helper()
	program, err := exec.LookPath("redis-server")
	if err != nil {
		t.Skip("no redis-server in PATH")
	}
	for try := 0; ; try++ {
		s, said := listen(t, program)
		if s != nil {
			return s
		}
		if try == 2 {
			t.Fatalf("redis-server does not start:\n%s", said)
		}
	}
}

// listen starts a server on a free port. It returns nil and what the server said where it does not answer, as when somebody else
// took the port meanwhile.
func listen(t *testing.T, program string) (s *server, said string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_, port, _ := net.SplitHostPort(addr)
	l.Close()

	dir := t.TempDir()

	// The shell reads to the end of the pipe, whose other end is this process's, and then ends Redis, which is gone when the shell is.
	sh := exec.Command("/bin/sh", "-c", `"$@" & read -r eof; kill -KILL $!; wait`, "sh", program,
		"--bind", "127.0.0.1", "--port", port, "--save", "", "--appendonly", "no", "--dir", dir)
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
		alive.Close() // which ends it
		sh.Wait()
	})
	t.Cleanup(stop)
	client := newClient(t, addr)
	for deadline := time.Now().Add(patience / 3); ; time.Sleep(10 * time.Millisecond) {
		if config, err := client.ConfigGet(t.Context(), "dir").Result(); err == nil && config["dir"] == dir { // it is this one
			return &server{addr, stop}, ""
		}
		if time.Now().After(deadline) {
			stop()
			return nil, log.String()
		}
	}
}

func newClient(t *testing.T, addr string) *redis.Client {
	t.Helper()
	client := redis.NewClient(&redis.Options{Addr: addr, ContextTimeoutEnabled: true, MaxRetries: -1})
	t.Cleanup(func() { client.Close() })
	return client
}

func newTenant(t *testing.T, id string) pgtenancy.Tenant {
	t.Helper()
	tenant, err := pgtenancy.NewTenant(pgtenancy.TenantInfo{ID: id})
	if err != nil {
		t.Fatal(err)
	}
	return tenant
}

// slow is a rate that adds nothing while a test runs.
var slow = middleware.Rate{Requests: 1, Per: 100 * time.Hour, Burst: 100}

func allow(t *testing.T, l *limiter.Limiter, id string, r middleware.Rate, cost int) middleware.Decision {
	t.Helper()
	d, err := l.Allow(t.Context(), newTenant(t, id), r, cost)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// Replicas, each with connections of its own, share one budget exactly. Two tenants do not, and neither do two names.
func TestShared(t *testing.T) {
	t.Parallel()
	s := start(t)
	replicas := []*limiter.Limiter{
		limiter.New(newClient(t, s.addr), "api"), limiter.New(newClient(t, s.addr), "api"), limiter.New(newClient(t, s.addr), "export"),
	}
	acme, globex := newTenant(t, "acme"), newTenant(t, "globex")
	var passed [2]struct{ acme, globex atomic.Int32 } // by name
	var wg sync.WaitGroup
	for g := range 24 {
		l, count := replicas[g%3], &passed[g%3/2]
		wg.Go(func() {
			for range 20 {
				for _, tenant := range []pgtenancy.Tenant{acme, globex} {
					d, err := l.Allow(t.Context(), tenant, slow, 1)
					switch {
					case err != nil:
						t.Error(err)
					case d.Allowed && tenant == acme:
						count.acme.Add(1)
					case d.Allowed:
						count.globex.Add(1)
					}
				}
			}
		})
	}
	wg.Wait()
	for i := range passed {
		if a, g := passed[i].acme.Load(), passed[i].globex.Load(); int(a) != slow.Burst || int(g) != slow.Burst {
			t.Errorf("name %d: %d requests of acme and %d of globex have passed, want %d of each", i, a, g, slow.Burst)
		}
	}
}

func TestDecision(t *testing.T) {
	t.Parallel()
	s := start(t)
	l := limiter.New(newClient(t, s.addr), "api")
	within := func(what string, got, least, most time.Duration) {
		t.Helper()
		if got < least || got > most {
			t.Errorf("%s: %v, want %v to %v", what, got, least, most)
		}
	}
	r := middleware.Rate{Requests: 10, Per: 10 * time.Hour, Burst: 5} // patience is a part of an hour
	d := allow(t, l, "acme", r, 3)
	if !d.Allowed || d.Remaining < 1 || d.Remaining > 2 { // Redis rounds down
		t.Errorf("%+v", d)
	}
	within("Reset", d.Reset, 3*time.Hour-patience, 3*time.Hour)
	d = allow(t, l, "acme", r, 5)
	if d.Allowed {
		t.Errorf("%+v", d)
	}
	within("RetryAfter", d.RetryAfter, 3*time.Hour-patience, 3*time.Hour)
	within("Reset", d.Reset, 3*time.Hour-patience, 3*time.Hour)
	if d := allow(t, l, "acme", r, 2); !d.Allowed || d.Remaining != 0 { // what was refused took nothing
		t.Errorf("%+v", d)
	}
}

// A change of plan counts from the next request on, also one from a rate that would take days to fill its bucket.
func TestPlanChange(t *testing.T) {
	t.Parallel()
	s := start(t)
	l := limiter.New(newClient(t, s.addr), "api")
	if d := allow(t, l, "acme", slow, slow.Burst); !d.Allowed {
		t.Errorf("%+v", d)
	}
	if d := allow(t, l, "acme", slow, 1); d.Allowed {
		t.Errorf("%+v", d)
	}
	fast := middleware.Rate{Requests: 100, Per: time.Second, Burst: 100}
	if d := allow(t, l, "acme", fast, fast.Burst); !d.Allowed {
		t.Errorf("after the upgrade: %+v", d)
	}
	if d := allow(t, l, "acme", slow, 1); d.Allowed {
		t.Errorf("after the downgrade: %+v", d)
	}
}

// No two tenants have one key, also under names that look like a part of it, and every key expires.
func TestKeys(t *testing.T) {
	t.Parallel()
	s := start(t)
	client := newClient(t, s.addr)
	pairs := [][2]string{
		{"api", "acme"}, {"api", "globex"}, {"api", "acme1"}, {"apia", "cme"}, {"api:acme", "acme"}, {"", "api"}, {":api", "acme"}, {"api:acme:1", "acme"}, {"*", "acme"},
	}
	rates := []middleware.Rate{
		{Requests: 1, Per: time.Hour, Burst: 1},
		{Requests: 1, Per: time.Hour, Burst: 11},
		{Requests: 11, Per: time.Hour, Burst: 1},
		{Requests: 1, Per: 11 * time.Hour, Burst: 1},
	}
	for _, p := range pairs {
		l := limiter.New(client, p[0])
		for _, r := range rates {
			if d := allow(t, l, p[1], r, r.Burst); !d.Allowed {
				t.Errorf("tenant %s of %q does not have %+v of its own: %+v", p[1], p[0], r, d)
			}
		}
	}
	keys, err := client.Keys(t.Context(), "*").Result()
	if err != nil || len(keys) != len(pairs)*len(rates) {
		t.Errorf("%d keys, want %d: %v, %v", len(keys), len(pairs)*len(rates), keys, err)
	}
	for _, k := range keys {
		ttl, err := client.TTL(t.Context(), k).Result()
		if err != nil || ttl <= 0 || ttl > 11*time.Hour {
			t.Errorf("%s expires in %v, %v; its bucket is full in 11 hours at most", k, ttl, err)
		}
	}
}

// Not parallel: it replaces the default logger.
func TestDown(t *testing.T) {
	var log bytes.Buffer
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&log, nil)))
	t.Cleanup(func() { slog.SetDefault(before) })
	s := start(t)
	ask := func(failOpen bool, ctx context.Context) *httptest.ResponseRecorder {
		t.Helper()
		h := middleware.RateLimit(func(pgtenancy.Tenant) middleware.Rate { return slow }, &middleware.RateLimitOpts{
			Limiter: limiter.New(newClient(t, s.addr), "api"), FailOpen: failOpen,
		})(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "passed") }))
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(pgtenancy.WithTenant(ctx, newTenant(t, "acme")), http.MethodGet, "/", nil))
		return w
	}
	for _, failOpen := range []bool{false, true} {
		if w := ask(failOpen, t.Context()); w.Code != http.StatusOK || w.Header().Get("RateLimit") == "" {
			t.Errorf("up: %d %v", w.Code, w.Header())
		}
		cancelled, cancel := context.WithCancel(t.Context())
		cancel()
		if w := ask(failOpen, cancelled); w.Code != http.StatusServiceUnavailable {
			t.Errorf("up, request cancelled, FailOpen %t: %d", failOpen, w.Code)
		}
	}
	if log.Len() > 0 {
		t.Errorf("logged: %s", &log)
	}
	s.stop()
	if w := ask(false, t.Context()); w.Code != http.StatusServiceUnavailable || w.Header().Get("RateLimit") != "" {
		t.Errorf("down: %d %v", w.Code, w.Header())
	}
	if w := ask(true, t.Context()); w.Code != http.StatusOK || w.Body.String() != "passed" || w.Header().Get("RateLimit") != "" {
		t.Errorf("down, FailOpen: %d %v", w.Code, w.Header())
	}
	if n := strings.Count(log.String(), s.addr); n != 2 {
		t.Errorf("%d of 2 failures are logged with the reason:\n%s", n, &log)
	}
}

// Errors reach errors.Is.
func TestCancelled(t *testing.T) {
	t.Parallel()
	s := start(t)
	l := limiter.New(newClient(t, s.addr), "api")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if d, err := l.Allow(ctx, newTenant(t, "acme"), slow, 1); !errors.Is(err, context.Canceled) || d.Allowed {
		t.Errorf("%+v, %v", d, err)
	}
	if d := allow(t, l, "acme", slow, slow.Burst); !d.Allowed {
		t.Errorf("what was cancelled counted: %+v", d)
	}
}
