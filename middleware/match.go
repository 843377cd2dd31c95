package middleware

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"

	"github.com/pgtenancy/pgtenancy"
)

var (
	// ErrSubjectMismatch is what MatchTenant refuses a request with whose subject belongs to another tenant than the request is for.
	ErrSubjectMismatch = errors.New("middleware: the subject belongs to another tenant")

	// ErrNoSubject is what MatchTenant refuses a request with that nobody authenticated.
	ErrNoSubject = errors.New("middleware: the request has no subject")
)

// MatchTenantOpts are what MatchTenant may be told. The zero value is as good as nil.
type MatchTenantOpts struct {
	// Anonymous lets requests without a subject pass. They work in the tenant that they name, so the handlers below have to be fit
	// for anybody: a login page, a public shop. Defaults to false: such a request is refused.
	Anonymous bool

	// ErrorHandler answers requests that are refused: err is or wraps ErrSubjectMismatch, ErrNoSubject or pgtenancy.ErrNoTenant. It
	// may log err and call WriteError, or send the user to the service's login. It must not serve the tenant's data.
	//
	// Defaults to WriteError. That there is no tenant is logged as well, to slog.Default.
	ErrorHandler func(w http.ResponseWriter, r *http.Request, err error)
}

// MatchTenant returns middleware that lets a request pass only where its subject belongs to the tenant in its context. It goes
// inside of Tenant, which says whom the request is for, and of the service's own authentication, which says who
// sent it. A session cookie or a token that one tenant's user was given is thus of no use with the host, the path or the header
// of another.
//
// subject returns the ID of the tenant that the authenticated user of a request belongs to, from the session or the verified
// token, never from what the request merely says; and false where nobody is authenticated. Where users belong to several
// tenants, it asks whether the one in the request's context is among them, and returns that one's ID if so. It must be
// safe for concurrent use. opts may be nil.
//
// A request is refused with status 403 where the IDs are not the same, an empty one included, and where there is no subject:
// see MatchTenantOpts.Anonymous. It is 403 and not 401 since only the service knows which challenge would go with 401.
//
// Without a tenant in the context every request is refused with status 500, whoever sent it: there is nothing to compare with.
// MatchTenant goes around Tenant then instead of inside of it, or TenantOpts.Skip let the request pass. No client can mend that,
// the service has to.
//
// MatchTenant panics where subject is nil.
func MatchTenant(subject func(*http.Request) (id string, ok bool), opts *MatchTenantOpts) func(http.Handler) http.Handler {
	if subject == nil {
		panic("middleware.MatchTenant: the subject function is nil")
	}
	var o MatchTenantOpts
	if opts != nil {
		o = *opts
	}
	if o.ErrorHandler == nil {
		o.ErrorHandler = logAndWriteMismatch
	}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			t, ok := pgtenancy.TenantFromContext(r.Context())
			if !ok {
				o.ErrorHandler(w, r, fmt.Errorf("middleware.MatchTenant: %w", pgtenancy.ErrNoTenant))
				return
			}
			id, ok := subject(r)
			switch {
			case !ok && !o.Anonymous:
				o.ErrorHandler(w, r, ErrNoSubject)
			case ok && id != t.ID():
				o.ErrorHandler(w, r, fmt.Errorf("%w: %.64q, not %s", ErrSubjectMismatch, id, t))
			default:
				next.ServeHTTP(w, r)
			}
		})
	}
}

func logAndWriteMismatch(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, pgtenancy.ErrNoTenant) {
		slog.ErrorContext(r.Context(), "pgtenancy: cannot match the subject of a request", "error", err)
	}
	WriteError(w, err)
}
