package middleware_test

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgtenancy/pgtenancy"
	"github.com/pgtenancy/pgtenancy/middleware"
	"github.com/pgtenancy/pgtenancy/pgtenancytest"
)

// nowhere is a ResponseWriter for any number of requests.
type nowhere struct{ header http.Header }

func (w nowhere) Header() http.Header         { return w.header }
func (w nowhere) Write(b []byte) (int, error) { return len(b), nil }
func (w nowhere) WriteHeader(int)             {}

// BenchmarkTenant measures what the middleware adds to a request whose tenant is in the directory's memory: each case less
// bare. The goal is at most a microsecond and 3 allocations by subdomain.
func BenchmarkTenant(b *testing.B) {
	conns, err := pgxpool.ParseConfig(pgtenancytest.Database(b))
	if err != nil {
		b.Fatal(err)
	}
	fleet, err := pgtenancy.Open(b.Context(), pgtenancy.FleetConfig{PoolConfig: pgtenancy.PoolConfig{Conns: conns}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(fleet.Close)
	if _, err := fleet.Migrate(b.Context(), nil); err != nil {
		b.Fatal(err)
	}
	if _, err := fleet.Provision(b.Context(), "acme", &pgtenancy.ProvisionOpts{Domains: []string{"shop.acme.example"}}); err != nil {
		b.Fatal(err)
	}

	served := 0
	bare := http.HandlerFunc(func(_ http.ResponseWriter, _ *http.Request) { served++ })
	subdomain, path := pgtenancy.Subdomain("app.example"), pgtenancy.PathPrefix("/t")
	benchmarks := []struct {
		name, url string
		handler   http.Handler
	}{
		{"bare", "http://acme.app.example/orders", bare},
		{"tenant", "http://acme.app.example/orders", middleware.Tenant(fleet, subdomain, nil)(bare)},
		{"domain", "http://shop.acme.example/orders", middleware.Tenant(fleet, pgtenancy.First(subdomain, pgtenancy.Domain()), nil)(bare)},
		{"path", "http://app.example/t/acme/orders", middleware.Tenant(fleet, path, nil)(bare)},
		{"stripped", "http://app.example/t/acme/orders", middleware.Tenant(fleet, path, &middleware.TenantOpts{StripPrefix: "/t"})(bare)},
	}
	for _, bb := range benchmarks {
		b.Run(bb.name, func(b *testing.B) {
			r, w := httptest.NewRequest(http.MethodGet, bb.url, nil), nowhere{http.Header{}}
			served = 0
			bb.handler.ServeHTTP(w, r) // from here on the tenant is in memory
			if served != 1 {
				b.Fatal("the handler was not reached")
			}
			b.ReportAllocs()
			for b.Loop() {
				bb.handler.ServeHTTP(w, r)
			}
			if served != b.N+1 {
				b.Errorf("%d requests of %d were served", served, b.N+1)
			}
		})
	}
}
