package middleware

import (
	"context"
	"errors"
	"log/slog"
	"net/http"

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

	// Skip reports which requests pass as they are, without a tenant. What they do with a Pool is ErrNoTenant. It must be
	// safe for concurrent use. Defaults to none.
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
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if o.Skip != nil && o.Skip(r) {
				next.ServeHTTP(w, r)
				return
			}
			t, err := find(dir, resolve, r)
			if err != nil {
				o.ErrorHandler(w, r, err)
				return
			}
			next.ServeHTTP(w, r.WithContext(pgtenancy.WithTenant(r.Context(), t)))
		})
	}
}

// find returns the tenant of a request. It is active, whatever a Directory of the service's own may think of.
func find(dir pgtenancy.Directory, resolve pgtenancy.Resolver, r *http.Request) (pgtenancy.Tenant, error) {
	key, err := resolve(r)
	if err != nil {
		return pgtenancy.Tenant{}, err
	}
	t, err := dir.Lookup(r.Context(), key)
	if err == nil {
		switch t.State() {
		case pgtenancy.Active:
			return t, nil
		case pgtenancy.Suspended:
			err = pgtenancy.ErrTenantSuspended
		case pgtenancy.Provisioning, pgtenancy.Deleted:
			err = pgtenancy.ErrTenantNotFound
		default:
			err = errors.New("the directory returned the zero Tenant without an error")
		}
	}
	return pgtenancy.Tenant{}, &lookupError{err}
}

func logAndWriteError(w http.ResponseWriter, r *http.Request, err error) {
	// A client that went away is not told anything, yet something has to be written: net/http would otherwise say 200, also to a
	// client that is still there because it was the server that ended the context.
	if ErrorStatus(err) == http.StatusServiceUnavailable && !errors.Is(r.Context().Err(), context.Canceled) {
		slog.ErrorContext(r.Context(), "pgtenancy: cannot look up the tenant of a request", "error", err)
	}
	WriteError(w, err)
}
