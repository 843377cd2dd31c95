// Package middleware puts a tenant into the context of HTTP requests, for any router that takes net/http middleware.
//
//	tenant := middleware.Tenant(fleet, pgtenancy.Subdomain("app.example"), nil)
//	mux.Handle("GET /orders", tenant(orders))
//
// In orders, r.Context() carries the tenant, and a pgtenancy.Pool that is given this context works in the tenant's schema.
// A request for which there is no tenant does not get there: it is answered with problem details (RFC 9457) and one of these
// statuses.
//
//	400  the request names a tenant in a malformed way
//	403  the tenant is suspended
//	404  the request names no tenant, or one that does not exist
//	503  the directory could not tell
//
// # Where it goes
//
// Around the whole mux, or around the routes that need a tenant. The second is what pgtenancy.PathValue needs, since the mux
// sets path values only while it routes. Requests without a tenant, such as health checks, are routes outside of it or are
// let through with TenantOpts.Skip.
//
// # What it does not do
//
// It does not say who the user is. The client chooses the host, the path and, unless a proxy prevents it, the headers that name
// the tenant, so that after this middleware the service has to check that the user belongs to the tenant in the context.
package middleware
