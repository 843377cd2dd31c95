package middleware

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"strings"

	"github.com/pgtenancy/pgtenancy"
)

// TenantOpts are what Tenant may be told. The zero value is as good as nil.
type TenantOpts struct {
	// ErrorHandler answers requests that have no tenant: err is the Resolver's, or wraps the Directory's. It may log err and call
	// WriteError, write a page of its own with the status of ErrorStatus, or serve what needs no tenant, such as the
	// service's front page where err is ErrUnresolved. The error wraps context.Canceled where the client went away.
	//
	// Defaults to WriteError. Answers with status 503 are logged as well, to slog.Default, unless the client went away.
	ErrorHandler func(w http.ResponseWriter, r *http.Request, err error)

	// StripPrefix is the prefix of a pgtenancy.PathPrefix. It is removed from the path, together with the ID after it, before the next
	// handler sees it: with "/t", /t/acme/orders becomes /orders, and /t/acme becomes /. What else is escaped in the path
	// stays so (URL.Path and URL.RawPath are cut alike, on a copy), and the request's RequestURI, Pattern and path values
	// stay as they are. The path of a request without the prefix is not changed.
	//
	// The path is read by PathPrefix itself, whichever Resolver found the tenant, so that what is removed is what resolves.
	// A path that PathPrefix calls malformed, or that names another tenant than the Resolver found, is an *InvalidError.
	//
	// A handler below does not know of the prefix. Its links and redirects have to begin with it and the ID, and those that a
	// mux makes by itself do not: an http.ServeMux that has the pattern /orders/ alone sends a client of /orders to /orders/, where
	// there is no tenant, so it needs both patterns. Paths that it would clean are refused, but for empty segments further down.
	// Where that is a burden, leave the prefix in the path and in the patterns: /t/{tenant}/orders.
	//
	// Defaults to "", which removes nothing. Tenant panics with what PathPrefix panics with.
	StripPrefix string

	// Skip reports which requests pass as they are, without a tenant. What they do with a Pool is ErrNoTenant, and MatchTenant and
	// RateLimit refuse them with status 500, so these go around the other routes only. It must be safe for concurrent use. Defaults
	// to none.
	Skip func(*http.Request) bool
}

// Tenant returns middleware that resolves the tenant of each request, looks it up in dir and puts it in the request's
// context. Where that fails the request ends there, with TenantOpts.ErrorHandler. opts may be nil.
//
// The ResponseWriter is passed on as it is, so that streaming, hijacking and http.ResponseController work.
//
// Tenant panics where dir or resolve is nil.
func Tenant(dir pgtenancy.Directory, resolve pgtenancy.Resolver, opts *TenantOpts) func(http.Handler) http.Handler {
	if dir == nil {
		panic("middleware.Tenant: the directory is nil")
	}
	if resolve == nil {
		panic("middleware.Tenant: the resolver is nil")
	}
	var o TenantOpts
	if opts != nil {
		o = *opts
	}
	if o.ErrorHandler == nil {
		o.ErrorHandler = logAndWriteError
	}
	var underPrefix pgtenancy.Resolver
	if o.StripPrefix != "" {
		underPrefix = pgtenancy.PathPrefix(o.StripPrefix)
	}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if o.Skip != nil && o.Skip(r) {
				next.ServeHTTP(w, r)
				return
			}
			t, key, err := find(dir, resolve, r)
			stripped := r.URL
			if err == nil && underPrefix != nil {
				stripped, err = strip(o.StripPrefix, underPrefix, r, t, key)
			}
			if err != nil {
				o.ErrorHandler(w, r, err)
				return
			}
			r = r.WithContext(pgtenancy.WithTenant(r.Context(), t))
			r.URL = stripped
			next.ServeHTTP(w, r)
		})
	}
}

// find returns the tenant of a request and the key that it was found by. The tenant is active, whatever a Directory of the
// service's own may think of.
func find(dir pgtenancy.Directory, resolve pgtenancy.Resolver, r *http.Request) (pgtenancy.Tenant, pgtenancy.Key, error) {
	key, err := resolve(r)
	if err != nil {
		return pgtenancy.Tenant{}, key, err
	}
	t, err := dir.Lookup(r.Context(), key)
	if err == nil {
		switch t.State() {
		case pgtenancy.Active:
			return t, key, nil
		case pgtenancy.Suspended:
			err = pgtenancy.ErrTenantSuspended
		case pgtenancy.Provisioning, pgtenancy.Deleted:
			err = pgtenancy.ErrTenantNotFound
		default:
			err = errors.New("the directory returned the zero Tenant without an error")
		}
	}
	return pgtenancy.Tenant{}, key, &lookupError{err}
}

// strip returns the URL of a request without the prefix and the ID after it. underPrefix is the PathPrefix of the prefix; t is the
// tenant that was found, by key.
func strip(prefix string, underPrefix pgtenancy.Resolver, r *http.Request, t pgtenancy.Tenant, key pgtenancy.Key) (*url.URL, error) {
	inPath, err := underPrefix(r)
	if errors.Is(err, pgtenancy.ErrUnresolved) {
		return r.URL, nil
	}
	if err != nil {
		return nil, err
	}
	id, _ := inPath.ID()
	if inPath != key && id != t.ID() { // it may be the tenant's in the directory alone, or a domain of the tenant resolved
		return nil, malformed("TenantOpts.StripPrefix "+prefix, r.URL.EscapedPath(), "must not name another tenant than the request otherwise does")
	}
	n := len(strings.TrimSuffix(prefix, "/")) + len("/") + len(id) // in the escaped path too: PathPrefix takes nothing escaped
	u := *r.URL
	u.Path = u.Path[n:]
	if u.RawPath != "" {
		u.RawPath = r.URL.EscapedPath()[n:]
	}
	if u.Path == "" {
		u.Path, u.RawPath = "/", ""
	}
	return &u, nil
}

func logAndWriteError(w http.ResponseWriter, r *http.Request, err error) {
	// A client that went away is not told anything, yet something has to be written: net/http would otherwise say 200, also to a
	// client that is still there because it was the server that ended the context.
	if ErrorStatus(err) == http.StatusServiceUnavailable && !errors.Is(r.Context().Err(), context.Canceled) {
		slog.ErrorContext(r.Context(), "pgtenancy: cannot look up the tenant of a request", "error", err)
	}
	WriteError(w, err)
}
