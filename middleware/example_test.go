package middleware_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"

	"github.com/pgtenancy/pgtenancy"
	"github.com/pgtenancy/pgtenancy/middleware"
)

// customers is a directory of the service's own. With the registry it is a Fleet, or pgtenancy.NewDirectory(pool).
type customers map[string]string // plans by ID

func (c customers) Lookup(_ context.Context, k pgtenancy.Key) (pgtenancy.Tenant, error) {
	id, _ := k.ID()
	plan, ok := c[id]
	if !ok {
		return pgtenancy.Tenant{}, pgtenancy.ErrTenantNotFound
	}
	return pgtenancy.NewTenant(pgtenancy.TenantInfo{ID: id, Attributes: map[string]string{"plan": plan}})
}

// The middleware goes around the whole mux: every request has a tenant, but for the health check.
func ExampleTenant() {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
	mux.HandleFunc("GET /plan", func(w http.ResponseWriter, r *http.Request) {
		t, _ := pgtenancy.TenantFromContext(r.Context()) // a Pool that is given r.Context() works in this tenant's schema
		plan, _ := t.Attribute("plan")
		fmt.Fprintf(w, "%s has the %s plan", t, plan)
	})
	tenant := middleware.Tenant(customers{"acme": "gold"}, pgtenancy.Subdomain("app.example"), &middleware.TenantOpts{
		Skip: func(r *http.Request) bool { return r.URL.Path == "/healthz" },
	})
	handler := tenant(mux) // for http.ListenAndServe

	for _, url := range []string{
		"http://acme.app.example/plan", "http://globex.app.example/plan", "http://app.example/plan", "http://192.0.2.1/healthz",
	} {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, url, nil))
		fmt.Println(w.Code, w.Body)
	}
	// Output:
	// 200 acme has the gold plan
	// 404 {"type":"about:blank","title":"Not Found","status":404,"detail":"There is no such tenant."}
	//
	// 404 {"type":"about:blank","title":"Not Found","status":404,"detail":"The request names no tenant."}
	//
	// 200 ok
}

// The middleware goes around one route, whose pattern names the tenant.
func ExampleTenant_pathValue() {
	tenant := middleware.Tenant(customers{"acme": "gold"}, pgtenancy.PathValue("tenant"), nil)
	mux := http.NewServeMux()
	mux.Handle("GET /t/{tenant}/plan", tenant(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t, _ := pgtenancy.TenantFromContext(r.Context())
		fmt.Fprint(w, t)
	})))

	w := httptest.NewRecorder()
	mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/t/acme/plan", nil))
	fmt.Println(w.Code, w.Body)
	// Output:
	// 200 acme
}

// All tenants share a host, and the mux below knows nothing of them: its patterns begin where the tenant's name ends.
func ExampleTenant_stripPrefix() {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /plan", func(w http.ResponseWriter, r *http.Request) {
		t, _ := pgtenancy.TenantFromContext(r.Context())
		fmt.Fprintf(w, "%s, at %s", t, r.URL.Path)
	})
	tenant := middleware.Tenant(customers{"acme": "gold"}, pgtenancy.PathPrefix("/t"), &middleware.TenantOpts{StripPrefix: "/t"})

	w := httptest.NewRecorder()
	tenant(mux).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/t/acme/plan", nil))
	fmt.Println(w.Code, w.Body)
	// Output:
	// 200 acme, at /plan
}

// The service is reached through a proxy in 10.0.0.0/8, which asks for it by another name and says what the client's was.
func ExampleForwardedHost() {
	forwarded := middleware.ForwardedHost(netip.MustParsePrefix("10.0.0.0/8"))
	tenant := middleware.Tenant(customers{"acme": "gold"}, pgtenancy.Subdomain("app.example"), nil)
	handler := forwarded(tenant(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t, _ := pgtenancy.TenantFromContext(r.Context())
		fmt.Fprintln(w, t, r.Host)
	})))

	for _, peer := range []string{"10.1.2.3:4711", "192.0.2.1:4711"} {
		r := httptest.NewRequest(http.MethodGet, "http://origin.internal/", nil)
		r.RemoteAddr = peer
		r.Header.Set("X-Forwarded-Host", "acme.app.example")
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		fmt.Print(w.Code, " ", w.Body)
	}
	// Output:
	// 200 acme acme.app.example
	// 404 {"type":"about:blank","title":"Not Found","status":404,"detail":"The request names no tenant."}
}
