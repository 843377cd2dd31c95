package middleware_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pgtenancy/pgtenancy"
	"github.com/pgtenancy/pgtenancy/middleware"
)

// plans are the rates of tenants by their ID.
type plans map[string]middleware.Rate

func (p plans) rate(t pgtenancy.Tenant) middleware.Rate { return p[t.ID()] }

// always returns a limit that is the same for each tenant.
func always(r middleware.Rate) func(pgtenancy.Tenant) middleware.Rate {
	return func(pgtenancy.Tenant) middleware.Rate { return r }
}

func newTenant(t testing.TB, id string) pgtenancy.Tenant {
	t.Helper()
	tenant, err := pgtenancy.NewTenant(pgtenancy.TenantInfo{ID: id})
	if err != nil {
		t.Fatal(err)
	}
	return tenant
}

// as returns a request of a tenant.
func as(t testing.TB, id string) *http.Request {
	t.Helper()
	return httptest.NewRequest(http.MethodGet, "/orders", nil).WithContext(pgtenancy.WithTenant(context.Background(), newTenant(t, id)))
}

// fields are what RateLimit writes.
type fields struct {
	status                        int
	policy, rateLimit, retryAfter string
}

func fieldsOf(status int, h http.Header) fields {
	return fields{status, h.Get("RateLimit-Policy"), h.Get("RateLimit"), h.Get("Retry-After")}
}

func ask(t testing.TB, h http.Handler, id string) fields {
	t.Helper()
	w := serve(h, as(t, id))
	return fieldsOf(w.Code, w.Header())
}

// passes returns how many of n requests of a tenant pass.
func passes(t testing.TB, h http.Handler, id string, n int) int {
	t.Helper()
	passed := 0
	for range n {
		if ask(t, h, id).status == http.StatusOK {
			passed++
		}
	}
	return passed
}

// pipes is a listener whose connections are in memory, so that the clock of a synctest bubble goes on while a server waits.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

func (p *pipes) dial(context.Context, string, string) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case p.conns <- server:
		return client, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

// A burst passes, the next request does not, and after Retry-After one does again: a server, with the tenant from the host.
func TestRateLimit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := plans{"acme": {Requests: 3, Per: time.Minute}, "globex": {Requests: 2, Per: time.Second, Burst: 1}, "initech": {Requests: middleware.Unlimited}}
		tenant := middleware.Tenant(&fakeDirectory{}, subdomain, nil)
		limited := middleware.RateLimit(p.rate, nil)
		l := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
		server := &http.Server{Handler: tenant(limited(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusTeapot) // the fields are on whatever the handler answers
		})))}
		served := make(chan error)
		go func() { served <- server.Serve(l) }()
		transport := &http.Transport{DialContext: l.dial}
		defer func() {
			transport.CloseIdleConnections()
			if err := server.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
			if err := <-served; !errors.Is(err, http.ErrServerClosed) {
				t.Error(err)
			}
		}()
		check := func(id string, want fields) {
			t.Helper()
			resp, err := (&http.Client{Transport: transport}).Get("http://" + id + ".app.example/orders")
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, fieldsOf(resp.StatusCode, resp.Header), cmp.AllowUnexported(fields{})); diff != "" {
				t.Errorf("%s after %v: %s", id, time.Since(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)), diff)
			}
			if want.status != http.StatusTooManyRequests {
				return
			}
			var problem map[string]any
			if err := json.Unmarshal(body, &problem); err != nil {
				t.Fatalf("%v in %s", err, body)
			}
			wantProblem := map[string]any{
				"type": "about:blank", "title": "Too Many Requests", "status": 429.0, "detail": "The tenant has made too many requests.",
			}
			if diff := cmp.Diff(wantProblem, problem); diff != "" {
				t.Error(diff)
			}
			if resp.Header.Get("Content-Type") != "application/problem+json" || resp.Header.Get("Cache-Control") != "no-store" {
				t.Errorf("the header is %v", resp.Header)
			}
		}
		const acme, globex = `"default";q=3;w=60`, `"default";q=2;w=1`

		check("acme", fields{418, acme, `"default";r=2;t=20`, ""})
		check("acme", fields{418, acme, `"default";r=1;t=20`, ""})
		time.Sleep(5 * time.Second)
		check("acme", fields{418, acme, `"default";r=0;t=15`, ""})
		check("acme", fields{429, acme, `"default";r=0;t=15`, "15"})
		check("globex", fields{418, globex, `"default";r=0;t=1`, ""}) // does not share
		check("globex", fields{429, globex, `"default";r=0;t=1`, "1"})
		check("initech", fields{418, "", "", ""})
		time.Sleep(15*time.Second - time.Nanosecond)
		check("acme", fields{429, acme, `"default";r=0;t=1`, "1"}) // a nanosecond early
		time.Sleep(time.Nanosecond)
		check("acme", fields{418, acme, `"default";r=0;t=20`, ""})
		check("acme", fields{429, acme, `"default";r=0;t=20`, "20"})
		time.Sleep(30 * time.Second)
		check("acme", fields{418, acme, `"default";r=0;t=10`, ""})
		time.Sleep(time.Hour) // a bucket holds no more than the burst
		check("acme", fields{418, acme, `"default";r=2;t=20`, ""})
		check("globex", fields{418, globex, `"default";r=0;t=1`, ""})
	})
}

func TestRateLimitFields(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		rate    middleware.Rate
		passing int           // requests that pass before the one that counts
		after   time.Duration // and then
		want    fields
		reason  string
	}{
		{name: "the draft's example", rate: middleware.Rate{Requests: 100, Per: time.Minute}, passing: 49, want: fields{200, `"default";q=100;w=60`, `"default";r=50;t=1`, ""}},
		{name: "a second exactly", rate: middleware.Rate{Requests: 1, Per: time.Second, Burst: 1000}, passing: 7, want: fields{200, `"default";q=1;w=1`, `"default";r=992;t=1`, ""}, reason: "not 2, for a nanosecond of rounding"},
		{name: "a third", rate: middleware.Rate{Requests: 3, Per: time.Second}, passing: 3, want: fields{429, `"default";q=3;w=1`, `"default";r=0;t=1`, "1"}, reason: "Retry-After is in whole seconds"},
		{name: "burst above the rate", rate: middleware.Rate{Requests: 1, Per: time.Hour, Burst: 3}, passing: 3, after: time.Second, want: fields{429, `"default";q=1;w=3600`, `"default";r=0;t=3599`, "3599"}},
		{name: "burst below the rate", rate: middleware.Rate{Requests: 1000, Per: time.Second, Burst: 1}, want: fields{200, `"default";q=1000;w=1`, `"default";r=0;t=1`, ""}},
		{name: "a fraction of a second", rate: middleware.Rate{Requests: 10, Per: 100 * time.Millisecond}, want: fields{200, `"default";q=100;w=1`, `"default";r=9;t=1`, ""}, reason: "a window has whole seconds"},
		{name: "a second and a half", rate: middleware.Rate{Requests: 1, Per: 1500 * time.Millisecond}, passing: 1, want: fields{429, `"default";q=1;w=2`, `"default";r=0;t=2`, "2"}, reason: "no more than the rate is promised"},
		{name: "as fast as can be", rate: middleware.Rate{Requests: 1_000_000_000, Per: 1}, want: fields{200, `"default";q=999999999999999;w=1`, `"default";r=999999999;t=1`, ""}, reason: "an integer in a field has 15 digits"},
		{name: "as slow as can be", rate: middleware.Rate{Requests: 1, Per: 366 * 24 * time.Hour}, passing: 1, want: fields{429, `"default";q=1;w=31622400`, `"default";r=0;t=31622400`, "31622400"}},
		{name: "as slow, with the largest burst", rate: middleware.Rate{Requests: 1, Per: 366 * 24 * time.Hour, Burst: 1_000_000_000}, passing: 9, want: fields{200, `"default";q=1;w=31622400`, `"default";r=999999990;t=31622400`, ""}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				h := middleware.RateLimit(always(tt.rate), nil)(echo)
				if n := passes(t, h, "acme", tt.passing); n != tt.passing {
					t.Errorf("%d of %d pass", n, tt.passing)
				}
				time.Sleep(tt.after)
				if diff := cmp.Diff(tt.want, ask(t, h, "acme"), cmp.AllowUnexported(fields{})); diff != "" {
					t.Errorf("%s: %s", tt.reason, diff)
				}
			})
		})
	}
}

// Whatever a tenant does, no more passes than burst and rate allow; and what waits as it was told passes.
func TestRateLimitKeepsRate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		random := rand.New(rand.NewPCG(1, 2))
		for range 50 {
			rate := middleware.Rate{
				Requests: 1 + random.IntN(100), Per: 1 + time.Duration(random.Int64N(int64(time.Minute))), Burst: 1 + random.IntN(20),
			}
			h := middleware.RateLimit(always(rate), nil)(echo)
			start, passed := time.Now(), 0
			for range 100 {
				f := ask(t, h, "acme")
				if f.status == http.StatusOK {
					passed++
				}
				filled := float64(time.Since(start)) * float64(rate.Requests) / float64(rate.Per)
				if most := float64(rate.Burst) + filled + 1e-6; float64(passed) > most {
					t.Fatalf("%+v: %d have passed, at most %.1f may", rate, passed, most)
				}
				switch {
				case f.status == http.StatusOK:
					time.Sleep(time.Duration(random.Float64() * 1.5 * float64(rate.Per) / float64(rate.Requests)))
				case random.IntN(2) == 0:
					s, err := strconv.Atoi(f.retryAfter)
					if err != nil {
						t.Fatal(err)
					}
					time.Sleep(time.Duration(s) * time.Second)
					if f := ask(t, h, "acme"); f.status != http.StatusOK {
						t.Fatalf("%+v: %+v after %d s", rate, f, s)
					}
					passed++
				}
			}
		}
	})
}

// A second is a second and a request a request, whatever floating-point numbers make of them.
func TestRateLimitRounding(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		random := rand.New(rand.NewPCG(3, 4))
		for range 60 {
			interval := 100 * time.Millisecond * time.Duration(1+random.IntN(300))
			t1 := strconv.Itoa(int((interval + time.Second - 1) / time.Second)) // until there is one
			n, burst := 1+random.IntN(1000), 2+random.IntN(20)
			h := middleware.RateLimit(always(middleware.Rate{Requests: n, Per: time.Duration(n) * interval, Burst: burst}), nil)(echo)
			time.Sleep(time.Duration(random.Int64N(int64(time.Hour))))
			passes(t, h, "acme", burst)
			for range 5 {
				waits := 1 + random.IntN(burst-1)
				time.Sleep(time.Duration(waits) * interval)
				for left := waits - 1; left >= 0; left-- {
					if got, want := ask(t, h, "acme").rateLimit, fmt.Sprintf(`"default";r=%d;t=%s`, left, t1); got != want {
						t.Fatalf("%d in %d times %v: RateLimit: %s, want %s", n, n, interval, got, want)
					}
				}
				if f := ask(t, h, "acme"); f.status != http.StatusTooManyRequests || f.retryAfter != t1 {
					t.Fatalf("%d in %d times %v: %+v", n, n, interval, f)
				}
			}
			for left := interval; left > time.Second; left -= time.Second {
				want := strconv.Itoa(int((left + time.Second - 1) / time.Second))
				if f := ask(t, h, "acme"); f.status != http.StatusTooManyRequests || f.retryAfter != want {
					t.Fatalf("%d in %d times %v, %v before there is one more: %+v", n, n, interval, left, f)
				}
				time.Sleep(time.Second)
			}
		}
	})
}

// Goroutines together pass as often as one would. The clock of the bubble stands still while one of them runs.
func TestRateLimitConcurrent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const goroutines, tenants, burst = 32, 10, 57
		h := middleware.RateLimit(always(middleware.Rate{Requests: burst, Per: time.Hour}), nil)(echo)
		var passed [tenants]atomic.Int32
		var wg sync.WaitGroup
		for g := range goroutines {
			wg.Go(func() {
				for i := range 10 * tenants {
					tenant := (g + i) % tenants
					if ask(t, h, fmt.Sprintf("tenant-%d", tenant)).status == http.StatusOK {
						passed[tenant].Add(1)
					}
				}
			})
		}
		wg.Wait()
		for i := range passed {
			if n := passed[i].Load(); n != burst {
				t.Errorf("%d requests of tenant %d passed, want %d", n, i, burst)
			}
		}
	})
}

// A bucket stays as full, in parts of the burst, when the plan changes. So nobody gains by changing it to and fro.
func TestRateLimitPlanChange(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		small, large := middleware.Rate{Requests: 4, Per: time.Minute}, middleware.Rate{Requests: 100, Per: time.Second}
		p := plans{"acme": small}
		h := middleware.RateLimit(p.rate, nil)(echo)
		change := func(to middleware.Rate, want fields) {
			t.Helper()
			p["acme"] = to
			if diff := cmp.Diff(want, ask(t, h, "acme"), cmp.AllowUnexported(fields{})); diff != "" {
				t.Error(diff)
			}
		}
		const ofSmall, ofLarge = `"default";q=4;w=60`, `"default";q=100;w=1`
		change(small, fields{200, ofSmall, `"default";r=3;t=15`, ""})
		change(large, fields{200, ofLarge, `"default";r=74;t=1`, ""}) // three of four are 75 of 100
		if n := passes(t, h, "acme", 24); n != 24 {
			t.Errorf("%d pass", n)
		}
		change(small, fields{200, ofSmall, `"default";r=1;t=15`, ""}) // 50 of 100 are two of four
		change(small, fields{200, ofSmall, `"default";r=0;t=15`, ""})
		change(large, fields{429, ofLarge, `"default";r=0;t=1`, "1"}) // nothing is nothing
		change(small, fields{429, ofSmall, `"default";r=0;t=15`, "15"})
		p["acme"] = large
		time.Sleep(10 * time.Millisecond) // in which the new plan adds one
		change(large, fields{429, ofLarge, `"default";r=0;t=1`, "1"})
		time.Sleep(10 * time.Millisecond)
		change(large, fields{200, ofLarge, `"default";r=0;t=1`, ""})
		change(middleware.Rate{Requests: middleware.Unlimited}, fields{status: 200})
		change(large, fields{429, ofLarge, `"default";r=0;t=1`, "1"})
	})
}

// A tenant whose rate is another one at each request, as where limit goes by the load, gets neither more nor less than such rates add.
func TestRateLimitChangesAlways(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := plans{}
		h := middleware.RateLimit(p.rate, nil)(echo)
		const burst, seconds = 5, 1000
		passed := 0
		for i := range seconds {
			p["acme"] = middleware.Rate{Requests: 5, Per: 50*time.Second + time.Duration(i%3), Burst: burst} // one in ten seconds
			passed += passes(t, h, "acme", 1)
			time.Sleep(time.Second)
		}
		if want := burst + seconds/10; passed < want-1 || passed > want {
			t.Errorf("%d requests have passed, want %d", passed, want)
		}
	})
}

// A bucket that is full goes before one that is not, though that one was not used for longer.
func TestRateLimitForgetsFullFirst(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := plans{"slow": {Requests: 2, Per: time.Hour}, "slower": {Requests: 2, Per: 2 * time.Hour}}
		for i := range 10 {
			p[fmt.Sprintf("fast-%d", i)] = middleware.Rate{Requests: 2, Per: time.Second}
		}
		h := middleware.RateLimit(p.rate, &middleware.RateLimitOpts{MaxTenants: 3})(echo)
		check := func(id string, want int) {
			t.Helper()
			if n := passes(t, h, id, 3); n != want {
				t.Errorf("%d requests of %s pass, want %d", n, id, want)
			}
		}
		check("slower", 2)
		check("slow", 2)
		for i := range 10 {
			check(fmt.Sprintf("fast-%d", i), 2) // it has its burst
			time.Sleep(time.Second)             // and is full again, when the next one comes
		}
		check("slower", 0)
		check("slow", 0)

		// Where none is full, the one goes that is soonest.
		check("fast-0", 2)
		check("fast-1", 1)
		check("slower", 0)
		check("slow", 0)
		time.Sleep(time.Second)
		check("fast-2", 2)
	})
}

// Tenants that are more than there are buckets, and short of requests all, do not get bursts for nothing.
func TestRateLimitForgets(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const tenants, buckets, burst, rounds = 100, 20, 10, 5
		h := middleware.RateLimit(always(middleware.Rate{Requests: burst, Per: time.Hour}), &middleware.RateLimitOpts{MaxTenants: buckets})(echo)
		all := func(n int) map[int]int { // how many tenants had how many of n requests pass
			passed := map[int]int{}
			for i := range tenants {
				passed[passes(t, h, fmt.Sprintf("tenant-%d", i), n)]++
			}
			return passed
		}
		// What fits gets a burst, what does not fit any more gets the request that it comes with, in every round.
		if diff := cmp.Diff(map[int]int{burst: buckets, 1: tenants - buckets}, all(burst+1)); diff != "" {
			t.Error(diff)
		}
		for range rounds {
			passed := all(2 * burst)
			if passed[0]+passed[1] != tenants {
				t.Errorf("tenants that had so many requests pass: %v", passed)
			}
		}
		time.Sleep(time.Hour) // all are full again, also those that were forgotten
		if diff := cmp.Diff(map[int]int{burst: buckets, 1: tenants - buckets}, all(burst+1)); diff != "" {
			t.Error(diff)
		}
		time.Sleep(time.Hour)
		if n := passes(t, h, "somebody-else", burst); n != burst {
			t.Errorf("%d pass", n)
		}
	})
}

// Not parallel: it measures the memory of the process.
func TestRateLimitMemory(t *testing.T) {
	const tenants = 10_000
	requests := make([]*http.Request, tenants)
	for i := range requests {
		requests[i] = as(t, fmt.Sprintf("tenant-%d", i))
	}
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	for _, tt := range []struct {
		name                    string
		maxTenants, least, most int64
	}{
		{"bounded", 100, 0, 200 << 10},
		{"as documented", 0, tenants * 150, tenants * 450},
	} {
		before := heap()
		h := middleware.RateLimit(always(middleware.Rate{Requests: 1, Per: time.Hour}), &middleware.RateLimitOpts{MaxTenants: int(tt.maxTenants)})(echo)
		w := httptest.NewRecorder()
		for _, r := range requests {
			clear(w.Header())
			w.Body.Reset()
			h.ServeHTTP(w, r)
		}
		took := heap() - before
		runtime.KeepAlive(h)
		if took < tt.least || took > tt.most {
			t.Errorf("%s: %d tenants take %d bytes, want %d to %d", tt.name, tenants, took, tt.least, tt.most)
		}
	}
	runtime.KeepAlive(requests)
}

func TestRateLimitCost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := middleware.RateLimit(always(middleware.Rate{Requests: 10, Per: 10 * time.Second}), &middleware.RateLimitOpts{
			Cost: func(r *http.Request) int {
				cost, _ := strconv.Atoi(r.URL.Query().Get("cost"))
				return cost
			},
		})(echo)
		check := func(cost int, want fields) {
			t.Helper()
			r := as(t, "acme")
			r.URL.RawQuery = fmt.Sprintf("cost=%d", cost)
			w := serve(h, r)
			if diff := cmp.Diff(want, fieldsOf(w.Code, w.Header()), cmp.AllowUnexported(fields{})); diff != "" {
				t.Errorf("cost %d: %s", cost, diff)
			}
		}
		const policy = `"default";q=10;w=10`
		check(7, fields{200, policy, `"default";r=3;t=1`, ""})
		check(5, fields{429, policy, `"default";r=3;t=1`, "2"}) // what is refused takes nothing
		check(0, fields{200, "", "", ""})
		check(3, fields{200, policy, `"default";r=0;t=1`, ""})
		check(0, fields{200, "", "", ""})
		check(10, fields{429, policy, `"default";r=0;t=1`, "10"})
		time.Sleep(10 * time.Second)
		check(10, fields{200, policy, `"default";r=0;t=1`, ""})
		check(11, fields{500, "", "", ""}) // would never pass
		check(-1, fields{500, "", "", ""})

		r := httptest.NewRequest(http.MethodGet, "/healthz", nil)
		if w := serve(h, r); w.Code != http.StatusOK {
			t.Errorf("without a tenant, at no cost: %d %s", w.Code, w.Body)
		}
	})
}

// fakeLimiter decides as it is told.
type fakeLimiter struct {
	decision middleware.Decision
	err      error
	asked    []string
}

func (l *fakeLimiter) Allow(_ context.Context, t pgtenancy.Tenant, r middleware.Rate, cost int) (middleware.Decision, error) {
	l.asked = append(l.asked, fmt.Sprintf("%s %d %v %d %d", t, r.Requests, r.Per, r.Burst, cost))
	return l.decision, l.err
}

func TestRateLimitLimiter(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name     string
		decision middleware.Decision
		want     fields
		reason   string
	}{
		{name: "allowed", decision: middleware.Decision{Allowed: true, Remaining: 1, Reset: 40 * time.Second}, want: fields{200, "3;w=60", "1;t=20", ""}},
		{name: "full", decision: middleware.Decision{Allowed: true, Remaining: 3}, want: fields{200, "3;w=60", "3", ""}, reason: "there will not be more"},
		{name: "too full", decision: middleware.Decision{Allowed: true, Remaining: 4, Reset: -1}, want: fields{200, "3;w=60", "4", ""}},
		{name: "negative", decision: middleware.Decision{Allowed: true, Remaining: -1}, want: fields{200, "3;w=60", "0;t=1", ""}},
		{name: "refused", decision: middleware.Decision{RetryAfter: 1, Reset: time.Minute}, want: fields{429, "3;w=60", "0;t=1", "1"}, reason: "t is not after Retry-After"},
		{name: "refused for good", decision: middleware.Decision{}, want: fields{429, "3;w=60", "0;t=1", "1"}, reason: "Retry-After is at least 1"},
		{name: "refused, negative", decision: middleware.Decision{RetryAfter: -time.Hour}, want: fields{429, "3;w=60", "0;t=1", "1"}},
	}
	for _, tt := range tests {
		l := &fakeLimiter{decision: tt.decision}
		h := middleware.RateLimit(always(middleware.Rate{Requests: 3, Per: time.Minute}), &middleware.RateLimitOpts{Limiter: l, Name: "A-b_1."})(echo)
		tt.want.policy, tt.want.rateLimit = `"A-b_1.";q=`+tt.want.policy, `"A-b_1.";r=`+tt.want.rateLimit
		if diff := cmp.Diff(tt.want, ask(t, h, "acme"), cmp.AllowUnexported(fields{})); diff != "" {
			t.Errorf("%s: %s: %s", tt.name, tt.reason, diff)
		}
		if diff := cmp.Diff([]string{"acme 3 1m0s 3 1"}, l.asked); diff != "" {
			t.Errorf("%s: %s", tt.name, diff)
		}
	}
}

// A request passes two limits; the fields have both.
func TestRateLimitTwice(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		minute := middleware.RateLimit(always(middleware.Rate{Requests: 10, Per: time.Minute}), &middleware.RateLimitOpts{Name: "minute"})
		day := middleware.RateLimit(always(middleware.Rate{Requests: 1, Per: 24 * time.Hour}), &middleware.RateLimitOpts{Name: "day"})
		h := minute(day(echo))
		serve(h, as(t, "acme"))
		w := serve(h, as(t, "acme"))
		got := map[string][]string{"Policy": w.Header()["Ratelimit-Policy"], "Limit": w.Header()["Ratelimit"], "After": w.Header()["Retry-After"]}
		want := map[string][]string{
			"Policy": {`"minute";q=10;w=60`, `"day";q=1;w=86400`},
			"Limit":  {`"minute";r=8;t=6`, `"day";r=0;t=86400`},
			"After":  {"86400"},
		}
		if w.Code != http.StatusTooManyRequests || !cmp.Equal(want, got) {
			t.Errorf("%d %s", w.Code, cmp.Diff(want, got))
		}
	})
}

// Not parallel: it replaces the default logger.
func TestRateLimitErrors(t *testing.T) {
	var log bytes.Buffer
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&log, nil)))
	t.Cleanup(func() { slog.SetDefault(before) })
	cancelled, cancel := context.WithCancel(pgtenancy.WithTenant(t.Context(), newTenant(t, "acme")))
	cancel()
	late, cancel := context.WithTimeout(pgtenancy.WithTenant(t.Context(), newTenant(t, "acme")), 0)
	defer cancel()
	down := errors.New("dial 10.0.0.7: secret")
	good := middleware.Rate{Requests: 1, Per: time.Second}
	tests := []struct {
		name   string
		ctx    context.Context
		rate   middleware.Rate
		opts   middleware.RateLimitOpts
		status int
		is     error
		logged string
		reason string
	}{
		{name: "no tenant", ctx: t.Context(), rate: good, status: 500, is: pgtenancy.ErrNoTenant, logged: "middleware.RateLimit, which goes inside of middleware.Tenant", reason: "wired outside of Tenant"},
		{name: "no tenant, fail open", ctx: t.Context(), rate: good, opts: middleware.RateLimitOpts{FailOpen: true}, status: 500, is: pgtenancy.ErrNoTenant, logged: "goes inside", reason: "only the limiter may fail"},
		{name: "zero", status: 500, logged: `Rate.Requests \"0\" must be from 1`, reason: "a plan that is not in a map"},
		{name: "zero, fail open", opts: middleware.RateLimitOpts{FailOpen: true}, status: 500, logged: "Rate.Requests"},
		{name: "negative", rate: middleware.Rate{Requests: -2, Per: 1}, status: 500, logged: "Rate.Requests"},
		{name: "too many", rate: middleware.Rate{Requests: 1_000_000_001, Per: 1}, status: 500, logged: "Rate.Requests"},
		{name: "no time", rate: middleware.Rate{Requests: 1}, status: 500, logged: "Rate.Per"},
		{name: "negative time", rate: middleware.Rate{Requests: 1, Per: -1}, status: 500, logged: "Rate.Per"},
		{name: "long time", rate: middleware.Rate{Requests: 1, Per: 366*24*time.Hour + 1}, status: 500, logged: "Rate.Per"},
		{name: "negative burst", rate: middleware.Rate{Requests: 1, Per: 1, Burst: -1}, status: 500, logged: "Rate.Burst"},
		{name: "large burst", rate: middleware.Rate{Requests: 1, Per: 1, Burst: 1_000_000_001}, status: 500, logged: "Rate.Burst"},
		{
			name: "cost", rate: good, opts: middleware.RateLimitOpts{FailOpen: true, Cost: func(*http.Request) int { return 2 }},
			status: 500, logged: `RateLimitOpts.Cost \"2\" must be from 0 to the rate's burst, 1`,
		},
		{name: "down", rate: good, opts: middleware.RateLimitOpts{Limiter: &fakeLimiter{err: down}}, status: 503, is: down, logged: `tenant \"acme\": dial 10.0.0.7`},
		{name: "down, fail open", rate: good, opts: middleware.RateLimitOpts{Limiter: &fakeLimiter{err: down}, FailOpen: true}, status: 200, logged: "passes without a limit"},
		{
			name: "down, client gone", ctx: cancelled, rate: good, opts: middleware.RateLimitOpts{Limiter: &fakeLimiter{err: context.Canceled}},
			status: 503, is: context.Canceled, reason: "nobody has to know",
		},
		{
			name: "client gone, fail open", ctx: cancelled, rate: good, opts: middleware.RateLimitOpts{Limiter: &fakeLimiter{err: context.Canceled}, FailOpen: true},
			status: 503, is: context.Canceled, reason: "a client could otherwise send requests without limit and go away",
		},
		{
			name: "late, fail open", ctx: late, rate: good, opts: middleware.RateLimitOpts{Limiter: &fakeLimiter{err: context.DeadlineExceeded}, FailOpen: true},
			status: 503, is: context.DeadlineExceeded, logged: "deadline exceeded",
		},
	}
	for _, tt := range tests {
		if tt.ctx == nil {
			tt.ctx = pgtenancy.WithTenant(t.Context(), newTenant(t, "acme"))
		}
		called := false
		next := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { called = true })
		log.Reset()
		w := httptest.NewRecorder()
		w.Header().Set("Content-Length", "3") // of whatever an outer middleware had in mind
		middleware.RateLimit(always(tt.rate), &tt.opts)(next).ServeHTTP(w, httptest.NewRequestWithContext(tt.ctx, http.MethodGet, "/", nil))
		if w.Code != tt.status || called != (tt.status == http.StatusOK) {
			t.Errorf("%s: %d, want %d: %s", tt.name, w.Code, tt.status, tt.reason)
		}
		if !strings.Contains(log.String(), tt.logged) || tt.logged == "" && log.Len() > 0 {
			t.Errorf("%s: logged %q, want %q: %s", tt.name, &log, tt.logged, tt.reason)
		}
		if tt.status == http.StatusOK {
			continue
		}
		var body struct {
			Status int
			Title  string
			Detail string
		}
		if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || body.Status != tt.status || body.Title != http.StatusText(tt.status) || body.Detail == "" {
			t.Errorf("%s: %v in %s", tt.name, err, w.Body)
		}
		if strings.Contains(w.Body.String(), "secret") || strings.Contains(w.Body.String(), "Rate.") {
			t.Errorf("%s: the answer tells too much: %s", tt.name, w.Body)
		}
		want := http.Header{"Content-Type": {"application/problem+json"}, "Cache-Control": {"no-store"}, "X-Content-Type-Options": {"nosniff"}}
		if tt.status == http.StatusServiceUnavailable {
			want.Set("Retry-After", "5")
		}
		if diff := cmp.Diff(want, w.Header()); diff != "" {
			t.Errorf("%s: %s", tt.name, diff)
		}

		// A handler of the service's own gets an error that says what it was.
		var got error
		tt.opts.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, err error) {
			got = err
			w.WriteHeader(http.StatusTeapot)
		}
		w = httptest.NewRecorder()
		middleware.RateLimit(always(tt.rate), &tt.opts)(next).ServeHTTP(w, httptest.NewRequestWithContext(tt.ctx, http.MethodGet, "/", nil))
		var invalid *pgtenancy.InvalidError
		if w.Code != http.StatusTeapot || (tt.is != nil && !errors.Is(got, tt.is)) || (tt.is == nil) != errors.As(got, &invalid) {
			t.Errorf("%s: %d for %v", tt.name, w.Code, got)
		}
		if s := middleware.ErrorStatus(got); s < 500 {
			t.Errorf("%s: ErrorStatus says %d, as if the client were to blame", tt.name, s)
		}
		if errors.Is(got, middleware.ErrRateLimited) {
			t.Errorf("%s: %v is ErrRateLimited", tt.name, got)
		}
	}
}

func TestRateLimitErrorHandler(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		opts := &middleware.RateLimitOpts{
			ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
				if !errors.Is(err, middleware.ErrRateLimited) {
					t.Errorf("error %v", err)
				}
				http.Error(w, "try again in "+w.Header().Get("Retry-After")+" s", http.StatusTooManyRequests)
			},
		}
		h := middleware.RateLimit(always(middleware.Rate{Requests: 1, Per: 24 * time.Hour}), opts)(echo)
		*opts = middleware.RateLimitOpts{} // the caller's again
		if w := serve(h, as(t, "acme")); w.Body.String() != "acme true" {
			t.Errorf("%d %s", w.Code, w.Body)
		}
		w := serve(h, as(t, "acme"))
		if w.Code != http.StatusTooManyRequests || w.Body.String() != "try again in 86400 s\n" || w.Header().Get("RateLimit") != `"default";r=0;t=86400` {
			t.Errorf("%d %q %v", w.Code, w.Body, w.Header())
		}
	})
}

// One call has one budget, whatever it is put around.
func TestRateLimitShares(t *testing.T) {
	t.Parallel()
	limited := middleware.RateLimit(always(middleware.Rate{Requests: 2, Per: 24 * time.Hour}), nil)
	a, b := limited(echo), limited(echo)
	for i, h := range []http.Handler{a, b, a, b} {
		if got := ask(t, h, "acme").status; got == http.StatusOK != (i < 2) {
			t.Errorf("request %d: status %d", i+1, got)
		}
	}
}

func TestRateLimitPanics(t *testing.T) {
	t.Parallel()
	limit := always(middleware.Rate{Requests: 1, Per: time.Second})
	for want, f := range map[string]func(){
		"middleware.RateLimit: limit is nil":           func() { middleware.RateLimit(nil, nil) },
		"middleware.RateLimit: MaxTenants is negative": func() { middleware.RateLimit(limit, &middleware.RateLimitOpts{MaxTenants: -1}) },
		"middleware.RateLimit: MaxTenants is for the default Limiter, and there is another": func() {
			middleware.RateLimit(limit, &middleware.RateLimitOpts{MaxTenants: 1, Limiter: &fakeLimiter{}})
		},
		`middleware.RateLimit: the name "a\"b" must have only letters, digits, '-', '_' and '.'`: func() {
			middleware.RateLimit(limit, &middleware.RateLimitOpts{Name: `a"b`})
		},
		`middleware.RateLimit: the name "é" must have only letters, digits, '-', '_' and '.'`: func() {
			middleware.RateLimit(limit, &middleware.RateLimitOpts{Name: "é"})
		},
	} {
		func() {
			defer func() {
				if got := recover(); got != want {
					t.Errorf("panic %v, want %q", got, want)
				}
			}()
			f()
		}()
	}
}

// Each plan has a rate. A tenant that uses up its own is told when to come back.
func ExampleRateLimit() {
	plans := map[string]middleware.Rate{
		"gold":   {Requests: 100, Per: time.Second},
		"silver": {Requests: 1, Per: time.Hour, Burst: 2}, // one an hour, two after a rest
	}
	limited := middleware.RateLimit(func(t pgtenancy.Tenant) middleware.Rate {
		plan, _ := t.Attribute("plan")
		return plans[plan]
	}, nil)
	tenant := middleware.Tenant(customers{"acme": "gold", "globex": "silver"}, pgtenancy.Subdomain("app.example"), nil)
	handler := tenant(limited(echo))

	for _, host := range []string{"globex", "globex", "globex", "acme"} {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "http://"+host+".app.example/", nil))
		fmt.Println(host, w.Code, w.Header().Get("RateLimit-Policy"))
	}
	// Output:
	// globex 200 "default";q=1;w=3600
	// globex 200 "default";q=1;w=3600
	// globex 429 "default";q=1;w=3600
	// acme 200 "default";q=100;w=1
}

// discard is a ResponseWriter that costs nothing.
type discard struct{ h http.Header }

func (d discard) Header() http.Header         { return d.h }
func (d discard) Write(b []byte) (int, error) { return len(b), nil }
func (d discard) WriteHeader(int)             {}

// current is a context that becomes another one. It spares the benchmark a request for each tenant, which no cache has at hand
// when its turn comes, as a server does that has just read it.
type current struct{ context.Context }

// BenchmarkRateLimit has requests of 10,000 tenants in turn. What RateLimit takes is the difference to the bare handler.
func BenchmarkRateLimit(b *testing.B) {
	const tenants = 10_000
	contexts := make([]context.Context, tenants)
	for i := range contexts {
		contexts[i] = pgtenancy.WithTenant(b.Context(), newTenant(b, fmt.Sprintf("tenant-%d", i)))
	}
	nothing := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	plenty, once := middleware.Rate{Requests: 1_000_000_000, Per: time.Second}, middleware.Rate{Requests: 1, Per: 24 * time.Hour}
	for _, bb := range []struct {
		name string
		h    http.Handler
	}{
		{"bare", nothing},
		{"allowed", middleware.RateLimit(always(plenty), nil)(nothing)},
		{"refused", middleware.RateLimit(always(once), &middleware.RateLimitOpts{
			ErrorHandler: func(http.ResponseWriter, *http.Request, error) {},
		})(nothing)},
		{"forgetting", middleware.RateLimit(always(once), &middleware.RateLimitOpts{MaxTenants: tenants / 10})(nothing)}, // with every request
	} {
		run := func(start int, next func() bool) {
			w, ctx := discard{http.Header{}}, &current{}
			r := httptest.NewRequest(http.MethodGet, "/", nil).WithContext(ctx)
			for i := start; next(); i++ {
				ctx.Context = contexts[i%tenants]
				clear(w.h)
				bb.h.ServeHTTP(w, r)
			}
		}
		warm := 0
		run(0, func() bool { warm++; return warm <= tenants })
		b.Run(bb.name+"/serial", func(b *testing.B) {
			b.ReportAllocs()
			run(0, b.Loop)
		})
		b.Run(bb.name+"/parallel", func(b *testing.B) {
			b.ReportAllocs()
			var starts atomic.Int64
			b.RunParallel(func(pb *testing.PB) { run(int(starts.Add(1))*997, pb.Next) })
		})
	}
}
