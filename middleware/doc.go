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
//	403  the tenant is suspended, or the user is not one of its own
//	404  the request names no tenant, or one that does not exist
//	429  the tenant has made too many requests
//	500  the service has put its middleware together in a wrong way
//	503  the directory or the limiter could not tell
//
// # Where it goes
//
// Around the whole mux, or around the routes that need a tenant. The second is what pgtenancy.PathValue needs, since the mux
// sets path values only while it routes. Requests without a tenant, such as health checks, are routes outside of it or are
// let through with TenantOpts.Skip. MatchTenant and RateLimit have no such option: without a tenant they answer with status 500, so
// what Skip lets through must not pass them.
//
// What a request passes, from the outside in:
//
//	ForwardedHost  behind a proxy that changes Host, since all that follows looks at Host
//	Tenant         whom the request is for
//	the service's  who sent it
//	MatchTenant    whether the two belong together
//	RateLimit      whether the tenant may do that now
//	Audit          that it did, around the mux
//
// With pgtenancy.Claim the tenant comes from the authentication, which goes around Tenant then.
//
//	handler := forwarded(tenant(authenticate(match(limit(audit(mux))))))
//
// Audit outside of RateLimit, or of MatchTenant, also records what these refuse.
//
// # Who the user is
//
// Tenant does not say. The client chooses the host, the path, the cookies and, unless a proxy prevents it, the headers that
// name the tenant. So after it the service has to check that the user belongs to the tenant in the context, or a session
// that was opened with one tenant is good for all. MatchTenant does that, given the tenant of a session.
package middleware
