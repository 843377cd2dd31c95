package middleware_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pgtenancy/pgtenancy"
	"github.com/pgtenancy/pgtenancy/middleware"
)

// session is the tenant of a session, which the tests have in a header.
func session(r *http.Request) (string, bool) {
	v := r.Header.Values("X-Session")
	if len(v) == 0 {
		return "", false
	}
	return v[0], true
}

func TestMatchTenant(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name      string
		host      string // "" for a request that Skip lets pass
		session   []string
		anonymous bool
		status    int
		detail    string
		err       error
		reason    string
	}{
		{name: "same", host: "acme.app.example", session: []string{"acme"}, status: 200},
		{
			name: "replayed", host: "globex.app.example", session: []string{"acme"}, status: 403, err: middleware.ErrSubjectMismatch,
			detail: "The request is authenticated for another tenant.", reason: "the cookie of acme's user at another subdomain",
		},
		{
			name: "replayed, anonymous may pass", host: "globex.app.example", session: []string{"acme"}, anonymous: true, status: 403,
			err: middleware.ErrSubjectMismatch, detail: "The request is authenticated for another tenant.", reason: "it is not anonymous",
		},
		{
			name: "empty", host: "acme.app.example", session: []string{""}, anonymous: true, status: 403, err: middleware.ErrSubjectMismatch,
			detail: "The request is authenticated for another tenant.", reason: "a session without a tenant is not a request without a session",
		},
		{
			name: "case", host: "acme.app.example", session: []string{"ACME"}, status: 403, err: middleware.ErrSubjectMismatch,
			detail: "The request is authenticated for another tenant.", reason: "IDs have no case",
		},
		{
			name: "anonymous", host: "acme.app.example", status: 403, err: middleware.ErrNoSubject,
			detail: "The request is not authenticated.", reason: "refused unless the service says otherwise",
		},
		{name: "anonymous may pass", host: "acme.app.example", anonymous: true, status: 200},
		{
			name: "no tenant", session: []string{"acme"}, status: 500, err: pgtenancy.ErrNoTenant,
			detail: "The service does not know which tenant the request is for.", reason: "nothing to compare with",
		},
		{
			name: "no tenant, anonymous may pass", anonymous: true, status: 500, err: pgtenancy.ErrNoTenant,
			detail: "The service does not know which tenant the request is for.", reason: "nothing to be anonymous in",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var got error
			for _, opts := range []*middleware.MatchTenantOpts{
				{Anonymous: tt.anonymous},
				{Anonymous: tt.anonymous, ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
					got = err
					middleware.WriteError(w, err)
				}},
			} {
				h := middleware.MatchTenant(session, opts)(echo)
				h = middleware.Tenant(&fakeDirectory{}, subdomain, &middleware.TenantOpts{
					Skip: func(r *http.Request) bool { return r.Host == "" },
				})(h)
				r := request(tt.host)
				for _, s := range tt.session {
					r.Header.Add("X-Session", s)
				}
				w := serve(h, r)
				if w.Code != tt.status {
					t.Errorf("status %d, want %d: %s", w.Code, tt.status, tt.reason)
				}
				if tt.status == http.StatusOK {
					if w.Body.String() != "acme true" {
						t.Errorf("body %s", w.Body)
					}
					continue
				}
				var body map[string]any
				if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil {
					t.Fatalf("%v in %s", err, w.Body)
				}
				want := map[string]any{"type": "about:blank", "title": http.StatusText(tt.status), "status": float64(tt.status), "detail": tt.detail}
				if diff := cmp.Diff(want, body); diff != "" {
					t.Error(diff)
				}
			}
			if !errors.Is(got, tt.err) {
				t.Errorf("the handler got %v, want %v", got, tt.err)
			}
		})
	}
}

// Users of several tenants: the function looks at the one that the request is for.
func TestMatchTenantSeveral(t *testing.T) {
	t.Parallel()
	member := map[string]bool{"acme": true, "globex": true}
	h := middleware.Tenant(&fakeDirectory{}, subdomain, nil)(middleware.MatchTenant(func(r *http.Request) (string, bool) {
		if t, _ := pgtenancy.TenantFromContext(r.Context()); member[t.ID()] {
			return t.ID(), true
		}
		return "", true
	}, nil)(echo))
	for host, want := range map[string]int{"acme.app.example": 200, "globex.app.example": 200, "initech.app.example": 403} {
		if w := serve(h, request(host)); w.Code != want {
			t.Errorf("%s: %d, want %d", host, w.Code, want)
		}
	}
}

// Not parallel: it replaces the default logger.
func TestMatchTenantLogs(t *testing.T) {
	var log bytes.Buffer
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&log, nil)))
	t.Cleanup(func() { slog.SetDefault(before) })
	h := middleware.MatchTenant(session, nil)(echo)
	serve(h, request("acme.app.example"))
	if !strings.Contains(log.String(), pgtenancy.ErrNoTenant.Error()) {
		t.Errorf("that the service is wired wrongly is not logged: %q", &log)
	}
	log.Reset()
	serve(middleware.Tenant(&fakeDirectory{}, subdomain, nil)(h), request("acme.app.example"))
	if log.Len() != 0 {
		t.Errorf("anybody can be anonymous: %s", &log)
	}
}

func TestMatchTenantPanics(t *testing.T) {
	t.Parallel()
	defer func() {
		if got := recover(); got != "middleware.MatchTenant: the subject function is nil" {
			t.Errorf("panic %v", got)
		}
	}()
	middleware.MatchTenant(nil, nil)
}

// The session's cookie of one tenant is of no use at another's host, whatever else the request says.
func ExampleMatchTenant() {
	sessions := map[string]string{"s3cr3t": "acme"} // the service's own, made at login: tenants by session
	match := middleware.MatchTenant(func(r *http.Request) (string, bool) {
		c, err := r.Cookie("__Host-session")
		if err != nil {
			return "", false
		}
		id, ok := sessions[c.Value]
		return id, ok
	}, nil)
	tenant := middleware.Tenant(customers{"acme": "gold", "globex": "free"}, pgtenancy.Subdomain("app.example"), nil)
	handler := tenant(match(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t, _ := pgtenancy.TenantFromContext(r.Context())
		fmt.Fprintln(w, "orders of", t)
	})))

	for _, host := range []string{"acme.app.example", "globex.app.example"} {
		r := httptest.NewRequest(http.MethodGet, "/orders", nil)
		r.Host = host
		r.AddCookie(&http.Cookie{Name: "__Host-session", Value: "s3cr3t"})
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		fmt.Print(w.Body)
	}
	// Output:
	// orders of acme
	// {"type":"about:blank","title":"Forbidden","status":403,"detail":"The request is authenticated for another tenant."}
}
