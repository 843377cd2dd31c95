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

// ErrorStatus returns the status that says to a client why its request has no tenant: 404 for ErrUnresolved and
// ErrTenantNotFound, 403 for ErrTenantSuspended, 400 for an *InvalidError of the Resolver, and 503 for all else, which says
// that the Directory could not tell.
func ErrorStatus(err error) int {
	var invalid *pgtenancy.InvalidError
	var lookup *lookupError
	switch {
	case errors.Is(err, pgtenancy.ErrUnresolved), errors.Is(err, pgtenancy.ErrTenantNotFound):
		return http.StatusNotFound
	case errors.Is(err, pgtenancy.ErrTenantSuspended):
		return http.StatusForbidden
	case errors.As(err, &invalid) && !errors.As(err, &lookup):
		return http.StatusBadRequest
	}
	return http.StatusServiceUnavailable
}

// WriteError answers a request that has no tenant with the status of ErrorStatus and problem details (RFC 9457). They show
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

func detail(err error, status int) string {
	switch {
	case errors.Is(err, pgtenancy.ErrUnresolved):
		return "The request names no tenant."
	case status == http.StatusNotFound:
		return "There is no such tenant."
	case status == http.StatusForbidden:
		return "The tenant is suspended."
	case status == http.StatusBadRequest:
		return "The request names a tenant in a malformed way."
	}
	return "The tenant cannot be looked up at the moment."
}
