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
	"net/url"
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

func TestTenantStripPrefix(t *testing.T) {
	t.Parallel()
	inPath, host := pgtenancy.PathPrefix("/t"), pgtenancy.First(pgtenancy.Header("X-Tenant"), subdomain, pgtenancy.PathPrefix("/t"))
	tests := []struct {
		name, prefix  string
		resolve       pgtenancy.Resolver
		target        string
		status        int
		tenant        string
		path, rawPath string // of the next handler's URL
		reason        string
	}{
		{name: "orders", target: "/t/acme/orders", tenant: "acme", path: "/orders"},
		{name: "slash at the end of the prefix", prefix: "/t/", target: "/t/acme/orders", tenant: "acme", path: "/orders", reason: "it makes no difference"},
		{name: "ends after the ID", target: "/t/acme", tenant: "acme", path: "/", reason: "a path is not empty"},
		{name: "ends after the slash", target: "/t/acme/", tenant: "acme", path: "/"},
		{name: "slash at the end", target: "/t/acme/orders/", tenant: "acme", path: "/orders/"},
		{name: "query", target: "/t/acme?q=/t/acme", tenant: "acme", path: "/"},
		{name: "escaped slash", target: "/t/acme/a%2Fb/c", tenant: "acme", path: "/a/b/c", rawPath: "/a%2Fb/c", reason: "it is still one segment"},
		{name: "escaped space", target: "/t/acme/a%20b", tenant: "acme", path: "/a b", reason: "the default encoding needs no RawPath"},
		{name: "something not escaped", target: "/t/acme/a%2Fb|", tenant: "acme", path: "/a/b|", rawPath: "/a/b%7C", reason: "as URL.EscapedPath has it without a prefix"},
		{name: "escaped percent sign", target: "/t/acme/%252e%252e/x", tenant: "acme", path: "/%2e%2e/x", reason: "unescaped once, it has no dot segment"},
		{name: "escaped letter", target: "/t/acme/%6Frders", tenant: "acme", path: "/orders", rawPath: "/%6Frders", reason: "as the client sent it"},
		{name: "prefix again", target: "/t/acme/t/globex/orders", tenant: "acme", path: "/t/globex/orders", reason: "it is removed once"},
		{name: "ID again", target: "/t/t/t", tenant: "t", path: "/t"},
		{name: "two slashes below", target: "/t/acme/a//b", tenant: "acme", path: "/a//b", reason: "the service's to read"},
		{name: "root", prefix: "/", resolve: pgtenancy.PathPrefix("/"), target: "/acme/orders", tenant: "acme", path: "/orders"},
		{name: "long prefix", prefix: "/api/t", resolve: pgtenancy.PathPrefix("/api/t"), target: "/api/t/acme/orders", tenant: "acme", path: "/orders"},
		{name: "absolute form", target: "http://app.example/t/acme/orders", tenant: "acme", path: "/orders"},

		{name: "no prefix in the path", resolve: host, target: "http://acme.app.example/orders", tenant: "acme", path: "/orders", reason: "nothing to remove"},
		{name: "prefix alone", resolve: host, target: "http://acme.app.example/t/", tenant: "acme", path: "/t/", reason: "nothing to remove"},
		{name: "begins alike", resolve: host, target: "http://acme.app.example/tt/acme", tenant: "acme", path: "/tt/acme", reason: "another path"},
		{name: "both agree", resolve: host, target: "http://acme.app.example/t/acme/orders", tenant: "acme", path: "/orders"},
		{name: "both disagree", resolve: host, target: "http://acme.app.example/t/globex/orders", status: 400, reason: "the path is another tenant's"},
		{name: "malformed beside another resolver", resolve: host, target: "http://acme.app.example/t/a_b/orders", status: 400, reason: "the path is no tenant's"},
		{name: "escaped ID beside another resolver", resolve: host, target: "http://acme.app.example/t/%61cme/orders", status: 400, reason: "acme for a handler, not for PathPrefix"},
		{name: "escaped prefix beside another resolver", resolve: host, target: "http://acme.app.example/%74/globex/orders", status: 400, reason: "globex for a handler, nobody's for PathPrefix"},
		{name: "other prefix than the resolver's", prefix: "/x", target: "/t/acme/orders", tenant: "acme", path: "/t/acme/orders", reason: "not below the one to remove"},
		{name: "other prefix, other segment", prefix: "/t/acme", target: "/t/acme/orders/1", status: 400, reason: "the resolver says acme, the prefix to remove orders"},

		{name: "two slashes after the ID", target: "/t/acme//evil.example/", status: 400, reason: "what is left would be a host in a redirect"},
		{name: "up", target: "/t/acme/../globex/orders", status: 400, reason: "whose is it?"},
		{name: "escaped ID", target: "/t/%61cme/orders", status: 400, reason: "it would not be cut where it was read"},
		{name: "escaped slash in the ID, something not escaped", target: "/t/acme%2Forders/|", status: 400, reason: "it would not be cut where it was read"},
		{name: "escaped slash in the ID", target: "/t/acme%2Forders", status: 400, reason: "it would not be cut where it was read"},
		{name: "no tenant", target: "/healthz", status: 404},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if tt.prefix == "" {
				tt.prefix = "/t"
			}
			if tt.resolve == nil {
				tt.resolve = inPath
			}
			if tt.status == 0 {
				tt.status = http.StatusOK
			}
			called := false
			tenant := middleware.Tenant(&fakeDirectory{}, tt.resolve, &middleware.TenantOpts{StripPrefix: tt.prefix})
			h := tenant(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				called = true
				if got, _ := pgtenancy.TenantFromContext(r.Context()); got.ID() != tt.tenant {
					t.Errorf("the tenant is %q, want %q", got, tt.tenant)
				}
				if r.URL.Path != tt.path || r.URL.RawPath != tt.rawPath {
					t.Errorf("Path %q, RawPath %q, want %q and %q: %s", r.URL.Path, r.URL.RawPath, tt.path, tt.rawPath, tt.reason)
				}
				if tt.rawPath != "" && r.URL.EscapedPath() != tt.rawPath {
					t.Errorf("EscapedPath %q, want %q: Path and RawPath do not fit", r.URL.EscapedPath(), tt.rawPath)
				}
				if r.RequestURI != tt.target {
					t.Errorf("RequestURI %q", r.RequestURI)
				}
			}))
			r := httptest.NewRequest(http.MethodGet, tt.target, nil)
			before := *r.URL
			w := serve(h, r)
			if w.Code != tt.status || called != (tt.status == http.StatusOK) {
				t.Errorf("status %d, want %d: %s", w.Code, tt.status, tt.reason)
			}
			if *r.URL != before {
				t.Errorf("the URL of the caller's request became %v", r.URL)
			}
		})
	}
}

// A mux above has routed the request, a mux below routes what is left: each sees its own patterns and values.
func TestTenantStripPrefixBetweenMuxes(t *testing.T) {
	t.Parallel()
	below := http.NewServeMux()
	below.HandleFunc("GET /orders/{id}", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s %s", r.Pattern, r.PathValue("id"), r.PathValue("tenant"))
	})
	before := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		pattern, value := r.Pattern, r.PathValue("tenant")
		below.ServeHTTP(w, r)
		fmt.Fprintf(w, " in %s %s", pattern, value)
	})
	above := http.NewServeMux()
	above.Handle("/t/{tenant}/", middleware.Tenant(&fakeDirectory{}, pgtenancy.PathPrefix("/t"), &middleware.TenantOpts{StripPrefix: "/t"})(before))
	w := serve(above, httptest.NewRequest(http.MethodGet, "/t/acme/orders/a%2Fb", nil))
	if want := "GET /orders/{id} a/b  in /t/{tenant}/ acme"; w.Body.String() != want {
		t.Errorf("%d %q, want %q", w.Code, w.Body, want)
	}
}

// The tenant's directory may know it by another name than the request does.
func TestTenantStripPrefixAlias(t *testing.T) {
	t.Parallel()
	dir := aliases{"old-name": "acme", "acme": "acme"}
	byHeader := pgtenancy.First(pgtenancy.Header("X-Tenant"), pgtenancy.PathPrefix("/t"))
	h := middleware.Tenant(dir, byHeader, &middleware.TenantOpts{StripPrefix: "/t"})(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.URL.Path)
	}))
	for _, tt := range []struct {
		header, path string
		status       int
	}{
		{"", "/t/old-name/orders", 200}, {"", "/t/acme/orders", 200}, {"old-name", "/t/acme/orders", 200}, {"acme", "/t/old-name/orders", 400},
	} {
		r := httptest.NewRequest(http.MethodGet, tt.path, nil)
		if tt.header != "" {
			r.Header.Set("X-Tenant", tt.header)
		}
		if w := serve(h, r); w.Code != tt.status || tt.status == 200 && w.Body.String() != "/orders" {
			t.Errorf("%+v: %d %s", tt, w.Code, w.Body)
		}
	}
}

// aliases is a directory that knows tenants by several names.
type aliases map[string]string

func (a aliases) Lookup(_ context.Context, k pgtenancy.Key) (pgtenancy.Tenant, error) {
	name, _ := k.ID()
	return pgtenancy.NewTenant(pgtenancy.TenantInfo{ID: a[name]})
}

// What is removed is what was resolved: the client's path is the prefix, the ID and what the next handler sees.
func FuzzStripPrefix(f *testing.F) {
	for _, path := range []string{
		"/t/acme/orders", "/t/acme", "/t/acme/", "/t/acme/a%2Fb", "/t/acme/%20", "/t/acme//x", "/t/acme/%2e%2e/x", "/t/%61cme/x", "/t/acme?q", "/t/a;b/c",
		"http://h/t/acme/x", "/t/acme/\\x", "/t/acme/%", "/t/acme/%61|", "/t/%61/|", "/t/acme/\u00e9%c3%a9",
	} {
		f.Add(path)
	}
	var seen *http.Request
	dir := &fakeDirectory{}
	tenant := middleware.Tenant(dir, pgtenancy.PathPrefix("/t"), &middleware.TenantOpts{StripPrefix: "/t"})
	h := tenant(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen = r }))
	f.Fuzz(func(t *testing.T, target string) {
		u, err := url.ParseRequestURI(target)
		if err != nil {
			return
		}
		seen, dir.asked = nil, nil
		w := httptest.NewRecorder()
		h.ServeHTTP(w, &http.Request{URL: u})
		if seen == nil {
			if w.Code != http.StatusBadRequest && w.Code != http.StatusNotFound {
				t.Errorf("%q: status %d", target, w.Code)
			}
			return
		}
		id, _ := pgtenancy.TenantFromContext(seen.Context())
		rest, escaped := seen.URL.Path, seen.URL.EscapedPath()
		if u.Path != "/t/"+id.ID()+rest && (u.Path != "/t/"+id.ID() || rest != "/") {
			t.Errorf("%q became tenant %v and path %q", target, id, rest)
		}
		if u.EscapedPath() != "/t/"+id.ID()+escaped && (u.EscapedPath() != "/t/"+id.ID() || escaped != "/") {
			t.Errorf("%q became tenant %v and escaped path %q", target, id, escaped)
		}
		if strings.HasPrefix(rest, "//") || !strings.HasPrefix(rest, "/") {
			t.Errorf("%q became the path %q", target, rest)
		}
		if seen.URL.RawQuery != u.RawQuery {
			t.Errorf("%q has the query %q below", target, seen.URL.RawQuery)
		}
	})
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
		`pgtenancy.PathPrefix: "t" must begin with '/'`: func() {
			middleware.Tenant(&fakeDirectory{}, subdomain, &middleware.TenantOpts{StripPrefix: "t"})
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
		{"of a handler's pool, outside of Tenant", fmt.Errorf("orders: %w", pgtenancy.ErrNoTenant), 500},
		{"of MatchTenant", fmt.Errorf("%w: acme", middleware.ErrSubjectMismatch), 403},
		{"anonymous", middleware.ErrNoSubject, 403},
		{"of RateLimit", middleware.ErrRateLimited, 429},
		{"of Audit", middleware.ErrAuditFull, 503},
		{"of a handler's pool, of another tenant", fmt.Errorf("orders: %w", pgtenancy.ErrTenantMismatch), 500},
		{"of a handler's pool, refused", fmt.Errorf("orders: %w", pgtenancy.ErrStatementRefused), 500},
		{"of a handler's pool, with its queue full", fmt.Errorf("orders: %w", pgtenancy.ErrTenantBusy), 503},
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
