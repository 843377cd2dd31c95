package middleware

import (
	"encoding/json"
	"errors"
	"net/http"

	"github.com/pgtenancy/pgtenancy"
)

// lookupError is the error of a Directory. It keeps an *InvalidError in it from being blamed on the request.
type lookupError struct{ error }

func (e *lookupError) Unwrap() error { return e.error }

// setupError is a mistake of the service's own, which no client is to be blamed for.
type setupError struct{ error }

func (e *setupError) Unwrap() error { return e.error }

// ErrorStatus returns the status that says to a client why its request is refused: 404 for ErrUnresolved and
// ErrTenantNotFound, 403 for ErrTenantSuspended, ErrSubjectMismatch and ErrNoSubject, 429 for ErrRateLimited, 400 for an
// *InvalidError of the Resolver, 500 for ErrNoTenant, which says that no Tenant middleware goes around the handler, and for
// other mistakes of the service, ErrTenantMismatch and ErrStatementRefused among them, and 503 for all else, which says that the
// Directory or a Limiter could not tell, or that the tenant is busy.
func ErrorStatus(err error) int {
	var invalid *pgtenancy.InvalidError
	var lookup *lookupError
	var setup *setupError
	switch {
	case errors.As(err, &setup):
		return http.StatusInternalServerError
	case errors.Is(err, ErrRateLimited):
		return http.StatusTooManyRequests
	case errors.Is(err, pgtenancy.ErrUnresolved), errors.Is(err, pgtenancy.ErrTenantNotFound):
		return http.StatusNotFound
	case errors.Is(err, pgtenancy.ErrTenantSuspended), errors.Is(err, ErrSubjectMismatch), errors.Is(err, ErrNoSubject):
		return http.StatusForbidden
	case errors.Is(err, pgtenancy.ErrNoTenant), errors.Is(err, pgtenancy.ErrTenantMismatch), errors.Is(err, pgtenancy.ErrStatementRefused):
		return http.StatusInternalServerError
	case errors.As(err, &invalid) && !errors.As(err, &lookup):
		return http.StatusBadRequest
	}
	return http.StatusServiceUnavailable
}

// WriteError answers a request that is refused with the status of ErrorStatus and problem details (RFC 9457). They show
// nothing of err but its kind. The answer is not to be cached; with status 503 it asks to try again after a few
// seconds.
func WriteError(w http.ResponseWriter, err error) {
	status := ErrorStatus(err)
	// It cannot fail: a problem is strings and a number.
	body, _ := json.Marshal(problem{"about:blank", http.StatusText(status), status, detail(err, status)})
	h := w.Header()
	h.Del("Content-Length") // of an answer that was meant to be another
	h.Set("Content-Type", "application/problem+json")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	if status == http.StatusServiceUnavailable {
		h.Set("Retry-After", "5")
	}
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // the client is gone where that fails
}

type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
}

// malformed returns the *InvalidError for what a client or proxy sent, of which it keeps no more than a log can bear.
func malformed(field, value, rule string) error {
	const most = 128
	if len(value) > most {
		value = value[:most] + "..."
	}
	return &pgtenancy.InvalidError{Field: field, Value: value, Rule: rule}
}

func detail(err error, status int) string {
	switch {
	case errors.Is(err, pgtenancy.ErrUnresolved):
		return "The request names no tenant."
	case status == http.StatusNotFound:
		return "There is no such tenant."
	case errors.Is(err, pgtenancy.ErrTenantSuspended):
		return "The tenant is suspended."
	case errors.Is(err, ErrSubjectMismatch):
		return "The request is authenticated for another tenant."
	case errors.Is(err, ErrNoSubject):
		return "The request is not authenticated."
	case errors.Is(err, ErrRateLimited):
		return "The tenant has made too many requests."
	case errors.As(err, new(*limiterError)):
		return "The requests of the tenant cannot be counted at the moment."
	case errors.Is(err, ErrAuditFull):
		return "The request cannot be recorded at the moment."
	case errors.As(err, new(*setupError)):
		return "The service is not set up for this request."
	case errors.Is(err, pgtenancy.ErrNoTenant):
		return "The service does not know which tenant the request is for."
	case status == http.StatusInternalServerError:
		return "The service has made a mistake."
	case status == http.StatusBadRequest:
		return "The request names a tenant in a malformed way."
	case errors.Is(err, pgtenancy.ErrTenantBusy):
		return "The tenant has too many requests under way."
	case errors.As(err, new(*lookupError)):
		return "The tenant cannot be looked up at the moment."
	}
	return "The request cannot be served at the moment."
}
