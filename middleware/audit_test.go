package middleware_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgtenancy/pgtenancy"
	"github.com/pgtenancy/pgtenancy/middleware"
	"github.com/pgtenancy/pgtenancy/pgtenancytest"
)

// auditPatience ends what hangs.
const auditPatience = time.Minute

// fakeSink keeps events, where fail lets it.
type fakeSink struct {
	fail func(ctx context.Context, events []pgtenancy.AuditEvent) error

	mu      sync.Mutex
	events  []pgtenancy.AuditEvent
	batches int
}

func (s *fakeSink) WriteAudit(ctx context.Context, events []pgtenancy.AuditEvent) error {
	if s.fail != nil {
		if err := s.fail(ctx, events); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, events...)
	s.batches++
	return nil
}

// all returns the events after Close.
func (s *fakeSink) all(t *testing.T, a *middleware.Auditor) []pgtenancy.AuditEvent {
	t.Helper()
	closeAuditor(t, a)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.events
}

func closeAuditor(t *testing.T, a *middleware.Auditor) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), auditPatience)
	defer cancel()
	if err := a.Close(ctx); err != nil {
		t.Errorf("Close: %v", err)
	}
}

// audit is middleware.Audit, closed with the test. What it reports goes to the test's log.
func audit(t *testing.T, sink pgtenancy.AuditSink, o middleware.AuditOpts) (func(http.Handler) http.Handler, *middleware.Auditor) {
	t.Helper()
	if o.Report == nil {
		o.Report = func(err error) { t.Log(err) }
	}
	wrap, a := middleware.Audit(sink, &o)
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = a.Close(ctx)
	})
	return wrap, a
}

func auditAwait(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(auditPatience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

var auditMeasured = cmp.Options{cmpopts.IgnoreFields(pgtenancy.AuditEvent{}, "At", "Duration"), cmpopts.EquateComparable(netip.Addr{})}

func TestAudit(t *testing.T) {
	t.Parallel()
	sink := &fakeSink{}
	wrap, a := audit(t, sink, middleware.AuditOpts{
		Fields: func(r *http.Request) map[string]any { return map[string]any{"agent": r.UserAgent(), "own": "no"} },
		Skip:   func(r *http.Request) bool { return r.URL.Path == "/healthz" },
	})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /orders/{id}", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusEarlyHints)
		w.WriteHeader(http.StatusTeapot)
	})
	mux.HandleFunc("POST /orders", func(w http.ResponseWriter, r *http.Request) {
		e := middleware.AuditEvent(r.Context())
		e.Actor, e.Action, e.Fields = "ann", "order.create", map[string]any{"own": "yes"}
	})
	mux.HandleFunc("/healthz", func(http.ResponseWriter, *http.Request) {})
	h := middleware.Tenant(&fakeDirectory{}, subdomain, nil)(wrap(mux))
	serveAudit := func(method, path, id string) {
		r := httptest.NewRequest(method, path, nil)
		r.Host, r.RemoteAddr = "acme.app.example", "10.0.0.1:1234"
		r.Header.Set("X-Request-Id", id)
		r.Header.Set("User-Agent", "test")
		serve(h, r.WithContext(pgtenancy.WithActor(r.Context(), "bob")))
	}
	serveAudit("GET", "/orders/1", "r1")
	serveAudit("POST", "/orders", strings.Repeat("x", 1000))
	serveAudit("GET", "/none", "")
	serveAudit("GET", "/healthz", "")

	client := netip.MustParseAddr("10.0.0.1")
	fields := map[string]any{"agent": "test", "own": "no"}
	want := []pgtenancy.AuditEvent{
		{Tenant: "acme", Actor: "bob", Method: "GET", Route: "GET /orders/{id}", Status: 418, RequestID: "r1", Client: client, Fields: fields},
		{
			Tenant: "acme", Actor: "ann", Action: "order.create", Method: "POST", Route: "POST /orders", Status: 200, RequestID: strings.Repeat("x", 128), Client: client,
			Fields: map[string]any{"agent": "test", "own": "yes"},
		},
		{Tenant: "acme", Actor: "bob", Method: "GET", Status: 404, Client: client, Fields: fields},
	}
	got := sink.all(t, a)
	if diff := cmp.Diff(want, got, auditMeasured); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	for _, e := range got {
		if e.At.IsZero() || e.Duration <= 0 {
			t.Errorf("at %v, for %v", e.At, e.Duration)
		}
	}
	if s := a.Stat(); s != (middleware.AuditStat{Written: 3}) {
		t.Errorf("%+v", s)
	}
	middleware.AuditEvent(context.Background()).Actor = "nobody's"
}

// The server is net/http's, which has all that a ResponseWriter may have.
func TestAuditResponseWriter(t *testing.T) {
	t.Parallel()
	sink := &fakeSink{}
	wrap, a := audit(t, sink, middleware.AuditOpts{})
	flushed := make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("/flush", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "one ")
		w.(http.Flusher).Flush()
		<-flushed // the client has it
		io.WriteString(w, "two")
	})
	mux.HandleFunc("/control", func(w http.ResponseWriter, r *http.Request) {
		c := http.NewResponseController(w)
		if err := errors.Join(c.SetWriteDeadline(time.Time{}), c.EnableFullDuplex(), c.Flush()); err != nil {
			t.Error(err)
		}
	})
	mux.HandleFunc("/copy", func(w http.ResponseWriter, r *http.Request) {
		if n, err := io.Copy(w, strings.NewReader("copied")); n != 6 || err != nil {
			t.Errorf("copy: %d, %v", n, err)
		}
	})
	hijack := func(get func(w http.ResponseWriter) (net.Conn, *bufio.ReadWriter, error)) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			conn, _, err := get(w)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			fmt.Fprint(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi")
		}
	}
	mux.HandleFunc("/hijack", hijack(func(w http.ResponseWriter) (net.Conn, *bufio.ReadWriter, error) { return w.(http.Hijacker).Hijack() }))
	mux.HandleFunc("/hijack/controller", hijack(func(w http.ResponseWriter) (net.Conn, *bufio.ReadWriter, error) {
		return http.NewResponseController(w).Hijack()
	}))
	mux.HandleFunc("/panic", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "much")
		panic(http.ErrAbortHandler)
	})
	mux.HandleFunc("/empty", func(http.ResponseWriter, *http.Request) {})
	audited := wrap(mux)
	var serving sync.WaitGroup // the server does not wait for what was hijacked
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		serving.Add(1)
		defer serving.Done()
		audited.ServeHTTP(w, r)
	}))
	defer server.Close()

	get := func(path string) (string, error) {
		resp, err := server.Client().Get(server.URL + path)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		if path == "/flush" {
			if _, err := io.ReadFull(resp.Body, make([]byte, 4)); err != nil {
				t.Error(err)
			}
			close(flushed)
		}
		b, err := io.ReadAll(resp.Body)
		return string(b), err
	}
	for path, want := range map[string]string{"/flush": "two", "/control": "", "/copy": "copied", "/hijack": "hi", "/hijack/controller": "hi", "/empty": ""} {
		if got, err := get(path); got != want || err != nil {
			t.Errorf("%s: %q, %v", path, got, err)
		}
	}
	if _, err := get("/panic"); err == nil {
		t.Error("the panic did not go on")
	}
	server.Close()
	serving.Wait()
	got := map[string]int{}
	for _, e := range sink.all(t, a) {
		got[e.Route] = e.Status
	}
	want := map[string]int{"/flush": 200, "/control": 200, "/copy": 200, "/hijack": 101, "/hijack/controller": 101, "/panic": 500, "/empty": 200}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
}

// plainWriter is a ResponseWriter that can nothing else.
type plainWriter struct{ http.ResponseWriter }

func TestAuditPlainResponseWriter(t *testing.T) {
	t.Parallel()
	wrap, _ := audit(t, &fakeSink{}, middleware.AuditOpts{})
	for _, tt := range []struct {
		name            string
		w               http.ResponseWriter
		flusher, hijack bool
	}{
		{"plain", plainWriter{httptest.NewRecorder()}, false, false},
		{"as of HTTP/2", httptest.NewRecorder(), true, false},
	} {
		wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, flusher := w.(http.Flusher)
			_, hijacker := w.(http.Hijacker)
			if flusher != tt.flusher || hijacker != tt.hijack {
				t.Errorf("%s: Flusher %v, Hijacker %v", tt.name, flusher, hijacker)
			}
		})).ServeHTTP(tt.w, request("acme.app.example"))
	}
}

// blocked is a sink that waits for release, and says when it began to.
func blocked() (sink *fakeSink, began chan struct{}, release chan struct{}) {
	began, release = make(chan struct{}, 1000), make(chan struct{})
	return &fakeSink{fail: func(ctx context.Context, _ []pgtenancy.AuditEvent) error {
		began <- struct{}{}
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}}, began, release
}

func TestAuditQueueFull(t *testing.T) {
	t.Parallel()
	sink, began, release := blocked()
	var mu sync.Mutex
	var reports []error
	wrap, a := audit(t, sink, middleware.AuditOpts{Queue: 3, Batch: 1, Interval: time.Nanosecond, Report: func(err error) {
		mu.Lock()
		defer mu.Unlock()
		reports = append(reports, err)
	}})
	h := wrap(echo)
	serve(h, request("x"))
	<-began // it has its place until it is written
	for range 5 {
		if w := serve(h, request("x")); w.Code != 200 {
			t.Errorf("status %d", w.Code)
		}
	}
	if s := a.Stat(); s != (middleware.AuditStat{Queued: 3, Dropped: 3}) {
		t.Errorf("full: %+v", s)
	}
	close(release)
	if got := len(sink.all(t, a)); got != 3 {
		t.Errorf("%d events", got)
	}
	if s := a.Stat(); s != (middleware.AuditStat{Written: 3, Dropped: 3}) {
		t.Errorf("after: %+v", s)
	}
	serve(h, request("x"))
	if s := a.Stat(); s.Dropped != 4 {
		t.Errorf("after Close: %+v", s)
	}
	mu.Lock()
	defer mu.Unlock()
	var dropped *middleware.AuditDroppedError
	if len(reports) != 1 || !errors.As(reports[0], &dropped) || dropped.Events != 3 {
		t.Errorf("reports: %v", reports)
	}
}

// A request waits for a place as long as it may, and gets it where one becomes free.
func TestAuditWait(t *testing.T) {
	t.Parallel()
	sink, began, release := blocked()
	wrap, a := audit(t, sink, middleware.AuditOpts{Queue: 1, Wait: time.Hour})
	h := wrap(echo)
	serve(h, request("x"))
	<-began
	done := make(chan struct{})
	go func() { serve(h, request("x")); close(done) }()
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	serve(h, request("x").WithContext(gone)) // waits no longer than its client
	close(release)
	<-done
	if got := len(sink.all(t, a)); got != 2 {
		t.Errorf("%d events", got)
	}
	if s := a.Stat(); s.Dropped != 1 {
		t.Errorf("%+v", s)
	}

	sink, began, _ = blocked()
	wrap, a = audit(t, sink, middleware.AuditOpts{Queue: 1, Wait: time.Millisecond})
	serve(wrap(echo), request("x"))
	<-began
	serve(wrap(echo), request("x"))
	if s := a.Stat(); s.Dropped != 1 {
		t.Errorf("after the wait: %+v", s)
	}
}

func TestAuditRequired(t *testing.T) {
	t.Parallel()
	sink, began, release := blocked()
	wrap, a := audit(t, sink, middleware.AuditOpts{Queue: 2, Batch: 1, Required: true})
	var served atomic.Int32
	inside, leave := make(chan struct{}), make(chan struct{})
	h := wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		served.Add(1)
		if r.URL.Path == "/slow" {
			inside <- struct{}{}
			<-leave
		}
	}))
	serve(h, request("x"))
	<-began
	done := make(chan struct{})
	go func() {
		defer close(done)
		serve(h, httptest.NewRequest("GET", "/slow", nil))
	}()
	<-inside // a request under way has its place already
	w := serve(h, request("x"))
	var problem struct{ Detail string }
	if err := json.Unmarshal(w.Body.Bytes(), &problem); w.Code != 503 || err != nil || problem.Detail != "The request cannot be recorded at the moment." {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if n := served.Load(); n != 2 {
		t.Errorf("%d handlers ran", n)
	}
	close(leave)
	<-done
	close(release)
	if got := len(sink.all(t, a)); got != 2 {
		t.Errorf("%d events", got)
	}
	if w := serve(h, request("x")); w.Code != 503 {
		t.Errorf("after Close: %d", w.Code)
	}
	if s := a.Stat(); s != (middleware.AuditStat{Written: 2, Refused: 2}) {
		t.Errorf("%+v", s)
	}

	// What fails to make the event gives the place back.
	wrap, a = audit(t, &fakeSink{}, middleware.AuditOpts{Queue: 1, Required: true, Actor: func(*http.Request) string { panic("no actor") }})
	func() {
		defer func() { _ = recover() }()
		serve(wrap(echo), request("x"))
	}()
	if s := a.Stat(); s.Queued != 0 {
		t.Errorf("after a panic: %+v", s)
	}
}

var errSink = errors.New("the sink is down")

// A batch is tried again until it is written, in one piece.
func TestAuditSinkFailing(t *testing.T) {
	t.Parallel()
	var failures atomic.Int32
	sink := &fakeSink{fail: func(context.Context, []pgtenancy.AuditEvent) error {
		if failures.Add(1) <= 3 {
			return errSink
		}
		return nil
	}}
	reports := make(chan error, 100)
	wrap, a := audit(t, sink, middleware.AuditOpts{Report: func(err error) { reports <- err }})
	serve(wrap(echo), request("x"))
	if got := len(sink.all(t, a)); got != 1 {
		t.Errorf("%d events", got)
	}
	if len(reports) != 3 || !errors.Is(<-reports, errSink) {
		t.Errorf("%d reports", len(reports))
	}
	if s := a.Stat(); s != (middleware.AuditStat{Written: 1}) {
		t.Errorf("%+v", s)
	}
}

// A batch that the sink does not take keeps its place as long as others have one.
func TestAuditSinkFailingAndFull(t *testing.T) {
	t.Parallel()
	tried := make(chan struct{}, 1000)
	sink := &fakeSink{fail: func(_ context.Context, events []pgtenancy.AuditEvent) error {
		tried <- struct{}{}
		if events[0].RequestID == "bad" {
			return errSink
		}
		return nil
	}}
	wrap, a := audit(t, sink, middleware.AuditOpts{Queue: 2, Batch: 1})
	h := wrap(echo)
	send := func(id string) {
		r := request("x")
		r.Header.Set("X-Request-Id", id)
		serve(h, r)
	}
	send("bad")
	<-tried
	<-tried
	if s := a.Stat(); s != (middleware.AuditStat{Queued: 1}) {
		t.Errorf("with room: %+v", s)
	}
	send("good")
	auditAwait(t, "the bad one to be dropped", func() bool { return a.Stat() == middleware.AuditStat{Written: 1, Dropped: 1} })
}

// Close is over when ctx is, and says what was lost.
func TestAuditClose(t *testing.T) {
	t.Parallel()
	for _, required := range []bool{false, true} {
		sink := &fakeSink{fail: func(context.Context, []pgtenancy.AuditEvent) error { return errSink }}
		wrap, a := audit(t, sink, middleware.AuditOpts{Required: required, Interval: time.Hour, Batch: 2})
		for range 3 {
			serve(wrap(echo), request("x"))
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
		err := a.Close(ctx)
		cancel()
		var dropped *middleware.AuditDroppedError
		if !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &dropped) || dropped.Events != 3 {
			t.Errorf("Close: %v", err)
		}
		if s := a.Stat(); s != (middleware.AuditStat{Dropped: 3}) {
			t.Errorf("%+v", s)
		}
		closeAuditor(t, a) // again
	}
}

// Many requests at once are written in few batches, each once and before Close returns.
func TestAuditBatches(t *testing.T) {
	t.Parallel()
	sink := &fakeSink{}
	wrap, a := audit(t, sink, middleware.AuditOpts{Interval: time.Hour, Batch: 50})
	h := wrap(echo)
	const clients, each = 8, 100
	var wg sync.WaitGroup
	for c := range clients {
		wg.Go(func() {
			for i := range each {
				r := request("x")
				r.Header.Set("X-Request-Id", fmt.Sprint(c, " ", i))
				serve(h, r)
			}
		})
	}
	wg.Wait()
	seen := map[string]int{}
	for _, e := range sink.all(t, a) {
		seen[e.RequestID]++
	}
	for id, n := range seen {
		if n != 1 {
			t.Errorf("%s was written %d times", id, n)
		}
	}
	if len(seen) != clients*each || sink.batches > clients*each/50+1 {
		t.Errorf("%d events in %d batches", len(seen), sink.batches)
	}
}

// A handler's map may be one that it shares, and be changed when the request is over.
func TestAuditFieldsShared(t *testing.T) {
	t.Parallel()
	sink, began, release := blocked()
	wrap, a := audit(t, sink, middleware.AuditOpts{Fields: func(*http.Request) map[string]any { return map[string]any{"more": 1} }})
	shared := map[string]any{"service": "orders"}
	h := wrap(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { middleware.AuditEvent(r.Context()).Fields = shared }))
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { serve(h, request("acme.app.example")) })
	}
	wg.Wait()
	<-began
	shared["late"] = true
	close(release)
	for _, e := range sink.all(t, a) {
		if diff := cmp.Diff(map[string]any{"service": "orders", "more": 1}, e.Fields); diff != "" {
			t.Errorf("fields (-want +got):\n%s", diff)
		}
	}
}

func TestAuditPanics(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]func(){
		"sink":  func() { middleware.Audit(nil, nil) },
		"queue": func() { middleware.Audit(&fakeSink{}, &middleware.AuditOpts{Queue: -1}) },
		"wait":  func() { middleware.Audit(&fakeSink{}, &middleware.AuditOpts{Wait: -1}) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			f()
		}()
	}
}

// End to end: requests of two tenants, the log in PostgreSQL, and each tenant's part of it.
func TestAuditPostgreSQL(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), auditPatience)
	defer cancel()
	conns, err := pgxpool.ParseConfig(pgtenancytest.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	fleet, err := pgtenancy.Open(ctx, pgtenancy.FleetConfig{PoolConfig: pgtenancy.PoolConfig{Conns: conns}})
	if err != nil {
		t.Fatal(err)
	}
	defer fleet.Close()
	if _, err := fleet.Migrate(ctx, nil); err != nil {
		t.Fatal(err)
	}
	tenants := map[string]pgtenancy.Tenant{}
	for _, id := range []string{"acme", "globex"} {
		if tenants[id], err = fleet.Provision(ctx, id, nil); err != nil {
			t.Fatal(err)
		}
	}
	wrap, a := audit(t, fleet.Audit(), middleware.AuditOpts{})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /orders", func(w http.ResponseWriter, r *http.Request) {})
	h := middleware.Tenant(fleet, subdomain, nil)(wrap(mux))
	for _, id := range []string{"acme", "globex", "acme"} {
		serve(h, request(id+".app.example"))
	}
	closeAuditor(t, a)
	for id, want := range map[string]int{"acme": 2, "globex": 1} {
		n := 0
		for e, err := range fleet.Audit().Events(pgtenancy.WithTenant(ctx, tenants[id]), nil) {
			if n++; err != nil || e.Tenant != id || e.Route != "GET /orders" || e.Status != 200 {
				t.Errorf("%s: %+v, %v", id, e, err)
			}
		}
		if n != want {
			t.Errorf("%s: %d events", id, n)
		}
	}
}
