package middleware_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy"
	"github.com/pgtenancy/pgtenancy/middleware"
	"github.com/pgtenancy/pgtenancy/pgtenancytest"
)

// fakeDirectory finds a tenant for every key, or fails.
type fakeDirectory struct {
	state pgtenancy.State
	zero  bool
	err   error
	asked []pgtenancy.Key
}

func (d *fakeDirectory) Lookup(_ context.Context, k pgtenancy.Key) (pgtenancy.Tenant, error) {
	d.asked = append(d.asked, k)
	if d.err != nil || d.zero {
		return pgtenancy.Tenant{}, d.err
	}
	id, _ := k.ID()
	return pgtenancy.NewTenant(pgtenancy.TenantInfo{ID: id, State: d.state})
}

// echo answers with the ID of the tenant in the context.
var echo = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	t, ok := pgtenancy.TenantFromContext(r.Context())
	fmt.Fprintf(w, "%s %v", t, ok)
})

func request(host string) *http.Request {
	r := httptest.NewRequest(http.MethodGet, "/orders", nil)
	r.Host = host
	return r
}

func serve(h http.Handler, r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

var subdomain = pgtenancy.Subdomain("app.example")

func TestTenant(t *testing.T) {
	t.Parallel()
	dir := &fakeDirectory{}
	w := serve(middleware.Tenant(dir, subdomain, nil)(echo), request("acme.app.example:8080"))
	if w.Code != http.StatusOK || w.Body.String() != "acme true" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if len(dir.asked) != 1 || dir.asked[0] != pgtenancy.ByID("acme") {
		t.Errorf("the directory was asked for %v", dir.asked)
	}
}

func TestTenantErrors(t *testing.T) {
	t.Parallel()
	secret := errors.New("dial 10.0.0.7: secret")
	invalid := &pgtenancy.InvalidError{Field: "Tenant.Schema", Value: "pg_secret", Rule: "must not be secret"}
	tests := []struct {
		name       string
		dir        fakeDirectory
		host       string
		status     int
		detail     string
		retryAfter string
		reason     string
	}{
		{name: "unresolved", host: "app.example", status: 404, detail: "The request names no tenant."},
		{name: "malformed", host: "<b>secret</b>.app.example", status: 400, detail: "The request names a tenant in a malformed way."},
		{name: "nested", host: "secret.acme.app.example", status: 400, detail: "The request names a tenant in a malformed way."},
		{name: "not found", dir: fakeDirectory{err: pgtenancy.ErrTenantNotFound}, status: 404, detail: "There is no such tenant."},
		{name: "not found, wrapped", dir: fakeDirectory{err: fmt.Errorf("%w: %w", pgtenancy.ErrTenantNotFound, secret)}, status: 404, detail: "There is no such tenant."},
		{name: "suspended", dir: fakeDirectory{err: pgtenancy.ErrTenantSuspended}, status: 403, detail: "The tenant is suspended."},
		{name: "down", dir: fakeDirectory{err: secret}, status: 503, detail: "The tenant cannot be looked up at the moment.", retryAfter: "5"},
		{name: "no registry", dir: fakeDirectory{err: pgtenancy.ErrRegistryOutdated}, status: 503, detail: "The tenant cannot be looked up at the moment.", retryAfter: "5"},
		{name: "timeout", dir: fakeDirectory{err: context.DeadlineExceeded}, status: 503, detail: "The tenant cannot be looked up at the moment.", retryAfter: "5"},
		{
			name: "directory with an invalid row", dir: fakeDirectory{err: invalid}, status: 503, retryAfter: "5",
			detail: "The tenant cannot be looked up at the moment.", reason: "the client's request is not to blame",
		},
		{
			name: "suspended, without an error", dir: fakeDirectory{state: pgtenancy.Suspended}, status: 403,
			detail: "The tenant is suspended.", reason: "a directory of the service's own may leave states to others",
		},
		{name: "deleted, without an error", dir: fakeDirectory{state: pgtenancy.Deleted}, status: 404, detail: "There is no such tenant."},
		{name: "provisioning, without an error", dir: fakeDirectory{state: pgtenancy.Provisioning}, status: 404, detail: "There is no such tenant."},
		{name: "nothing, without an error", dir: fakeDirectory{zero: true}, status: 503, detail: "The tenant cannot be looked up at the moment.", retryAfter: "5"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if tt.host == "" {
				tt.host = "acme.app.example"
			}
			called := false
			next := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { called = true })
			w := httptest.NewRecorder()
			w.Header().Set("Content-Length", "3") // of whatever an outer middleware had in mind
			middleware.Tenant(&tt.dir, subdomain, nil)(next).ServeHTTP(w, request(tt.host))

			if called {
				t.Error("the handler was called")
			}
			if w.Code != tt.status {
				t.Errorf("status %d, want %d: %s", w.Code, tt.status, tt.reason)
			}
			want := http.Header{
				"Content-Type":           {"application/problem+json"},
				"Cache-Control":          {"no-store"},
				"X-Content-Type-Options": {"nosniff"},
			}
			if tt.retryAfter != "" {
				want.Set("Retry-After", tt.retryAfter)
			}
			if diff := cmp.Diff(want, w.Header()); diff != "" {
				t.Error(diff)
			}
			var body map[string]any
			if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil {
				t.Fatalf("%v in %s", err, w.Body)
			}
			wantBody := map[string]any{
				"type": "about:blank", "title": http.StatusText(tt.status), "status": float64(tt.status), "detail": tt.detail,
			}
			if diff := cmp.Diff(wantBody, body); diff != "" {
				t.Error(diff)
			}
			if strings.Contains(w.Body.String(), "secret") {
				t.Errorf("the answer tells too much: %s", w.Body)
			}
		})
	}
}

func TestTenantErrorHandler(t *testing.T) {
	t.Parallel()
	down := errors.New("down")
	var got error
	h := middleware.Tenant(&fakeDirectory{err: down}, subdomain, &middleware.TenantOpts{
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			got = err
			if errors.Is(err, pgtenancy.ErrUnresolved) {
				echo.ServeHTTP(w, r)
				return
			}
			http.Error(w, "sorry", middleware.ErrorStatus(err))
		},
	})(echo)
	tests := []struct {
		name, host string
		status     int
		body       string
		want       error
	}{
		{"front page", "app.example", http.StatusOK, " false", pgtenancy.ErrUnresolved},
		{"down", "acme.app.example", http.StatusServiceUnavailable, "sorry\n", down},
	}
	for _, tt := range tests {
		w := serve(h, request(tt.host))
		if w.Code != tt.status || w.Body.String() != tt.body || !errors.Is(got, tt.want) {
			t.Errorf("%s: %d %q for %v", tt.name, w.Code, w.Body, got)
		}
	}
}

// The options are the caller's again once Tenant has returned.
func TestTenantCopiesOpts(t *testing.T) {
	t.Parallel()
	opts := &middleware.TenantOpts{}
	h := middleware.Tenant(&fakeDirectory{}, subdomain, opts)(echo)
	opts.Skip = func(*http.Request) bool { return true }
	if w := serve(h, request("acme.app.example")); w.Body.String() != "acme true" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestTenantSkip(t *testing.T) {
	t.Parallel()
	dir := &fakeDirectory{err: errors.New("down")}
	h := middleware.Tenant(dir, subdomain, &middleware.TenantOpts{
		Skip: func(r *http.Request) bool { return r.URL.Path == "/healthz" },
	})(echo)
	r := httptest.NewRequest(http.MethodGet, "/healthz", nil)
	r.Host = "acme.app.example"
	if w := serve(h, r); w.Code != http.StatusOK || w.Body.String() != " false" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if len(dir.asked) != 0 {
		t.Errorf("the directory was asked for %v", dir.asked)
	}
	if w := serve(h, request("acme.app.example")); w.Code != http.StatusServiceUnavailable {
		t.Errorf("another path: %d %s", w.Code, w.Body)
	}
}

// Not parallel: it replaces the default logger.
func TestTenantLogs(t *testing.T) {
	var log bytes.Buffer
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&log, nil)))
	t.Cleanup(func() { slog.SetDefault(before) })
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	late, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	tests := []struct {
		name   string
		ctx    context.Context
		err    error
		logged bool
		status int
		reason string
	}{
		{"down", t.Context(), errors.New("connection refused"), true, 503, "somebody has to know why"},
		{"not found", t.Context(), pgtenancy.ErrTenantNotFound, false, 404, "anybody can ask for what does not exist"},
		{"client gone", cancelled, context.Canceled, false, 503, "nobody waits; net/http would say 200 if nothing were written"},
		{"server's deadline", late, context.DeadlineExceeded, true, 503, "the directory is slow"},
	}
	for _, tt := range tests {
		log.Reset()
		w := serve(middleware.Tenant(&fakeDirectory{err: tt.err}, subdomain, nil)(echo), request("acme.app.example").WithContext(tt.ctx))
		if logged := strings.Contains(log.String(), tt.err.Error()); logged != tt.logged || w.Code != tt.status {
			t.Errorf("%s: %d, logged %q: %s", tt.name, w.Code, &log, tt.reason)
		}
	}
}

func TestTenantPanics(t *testing.T) {
	t.Parallel()
	for want, f := range map[string]func(){
		"middleware.Tenant: the directory is nil": func() { middleware.Tenant(nil, subdomain, nil) },
		"middleware.Tenant: the resolver is nil":  func() { middleware.Tenant(&fakeDirectory{}, nil, nil) },
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

func TestErrorStatus(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		err  error
		want int
	}{
		{"of a handler's pool", fmt.Errorf("orders: %w", pgtenancy.ErrTenantSuspended), 403},
		{"of a resolver", fmt.Errorf("token: %w", &pgtenancy.InvalidError{Field: "Token"}), 400},
		{"both", errors.Join(pgtenancy.ErrTenantNotFound, &pgtenancy.InvalidError{}), 404},
		{"any", io.EOF, 503},
	}
	for _, tt := range tests {
		if got := middleware.ErrorStatus(tt.err); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
}

// A server streams, and lets a handler take the connection over, through the middleware.
func TestTenantStreams(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("/stream", func(w http.ResponseWriter, r *http.Request) {
		echo(w, r)
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Error(err)
		}
		<-release
	})
	mux.HandleFunc("/hijack", func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		fmt.Fprint(conn, "HTTP/1.1 299 Taken\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		conn.Close()
	})
	server := httptest.NewServer(middleware.Tenant(&fakeDirectory{}, subdomain, nil)(mux))
	t.Cleanup(server.Close)
	get := func(path string) *http.Response {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = "acme.app.example"
		resp, err := server.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}

	resp := get("/stream")
	first := make([]byte, len("acme true"))
	if _, err := io.ReadFull(bufio.NewReader(resp.Body), first); err != nil || string(first) != "acme true" {
		t.Errorf("%q, %v before the handler ended", first, err)
	}
	close(release)
	resp.Body.Close()
	resp = get("/hijack")
	resp.Body.Close()
	if resp.StatusCode != 299 {
		t.Errorf("hijacked: %s", resp.Status)
	}
}

// From a host to rows of the tenant, on a real database.
func TestTenantWithDirectory(t *testing.T) {
	t.Parallel()
	url := pgtenancytest.Database(t)
	admin, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { admin.Close(context.Background()) })
	if _, err := admin.Exec(t.Context(), `
		create schema pgtenancy;
		create table pgtenancy.tenants (
			id text primary key,
			schema_name text not null unique,
			role_name text not null default '',
			state text not null,
			version bigint not null,
			attributes jsonb not null default '{}'
		);
		create table pgtenancy.domains (domain text primary key, tenant_id text not null references pgtenancy.tenants (id));
		insert into pgtenancy.tenants (id, schema_name, state, version) values
			('acme', 'tenant_acme', 'active', 1), ('globex', 'tenant_globex', 'active', 1), ('late', 'tenant_late', 'suspended', 1);
		insert into pgtenancy.domains values ('shop.globex.example', 'globex');
		create schema tenant_acme; create table tenant_acme.orders as select 'of acme' as what;
		create schema tenant_globex; create table tenant_globex.orders as select 'of globex' as what;
	`); err != nil {
		t.Fatal(err)
	}
	pool, err := pgtenancy.NewPool(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	orders := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var what string
		if err := pool.QueryRow(r.Context(), "select what from orders").Scan(&what); err != nil {
			what = err.Error()
		}
		fmt.Fprint(w, what)
	})
	resolve := pgtenancy.First(pgtenancy.PathValue("tenant"), subdomain, pgtenancy.Domain())
	tenant := middleware.Tenant(pgtenancy.NewDirectory(pool), resolve, nil)
	mux := http.NewServeMux()
	mux.Handle("GET /orders", tenant(orders))
	mux.Handle("GET /t/{tenant}/orders", tenant(orders))

	tests := []struct {
		name, host, path string
		status           int
		body             string
	}{
		{"subdomain", "acme.app.example", "/orders", 200, "of acme"},
		{"domain", "Shop.Globex.example:8443", "/orders", 200, "of globex"},
		{"path", "app.example", "/t/globex/orders", 200, "of globex"},
		{"path before subdomain", "acme.app.example", "/t/globex/orders", 200, "of globex"},
		{"suspended", "late.app.example", "/orders", 403, ""},
		{"unknown subdomain", "nobody.app.example", "/orders", 404, ""},
		{"unknown domain", "nobody.example", "/orders", 404, ""},
		{"reserved", "www.app.example", "/orders", 404, ""},
		{"address", "192.0.2.1", "/orders", 404, ""},
		{"malformed path", "acme.app.example", "/t/a_b/orders", 400, ""},
	}
	for _, tt := range tests {
		r := httptest.NewRequest(http.MethodGet, tt.path, nil)
		r.Host = tt.host
		w := serve(mux, r)
		if w.Code != tt.status || tt.body != "" && w.Body.String() != tt.body {
			t.Errorf("%s: %d %s, want %d %s", tt.name, w.Code, w.Body, tt.status, tt.body)
		}
	}
}
