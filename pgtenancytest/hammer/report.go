package hammer

import (
	"cmp"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgtenancy/pgtenancy"
)

// failuresMax failures end the work early, once it has run for failuresAfter: what is broken needs no more proof. As many are shown, and as
// many again of what is found afterwards.
const (
	failuresMax   = 20
	failuresAfter = time.Second
)

// counts is what happened. It is safe for concurrent use.
type counts struct {
	mu       sync.Mutex
	calls    map[string]int
	ok       map[string]int
	last     map[string]error // of those of Config.Ops
	made     map[Fault]int
	errors   map[string]int
	failures []string
	room     int // for failures
	more     int // for which there was no room
}

// fail records a failure of the run.
func (h *hammer) fail(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.failures) < h.room {
		h.failures = append(h.failures, fmt.Sprintf(format, args...))
		return
	}
	h.more++
	if time.Since(h.start) > failuresAfter {
		h.stop()
	}
}

func (h *hammer) made(f Fault, n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.counts.made[f] += n
}

// called records how an operation ended.
func (h *hammer) called(c *call, op operation, err error) {
	h.mu.Lock()
	h.calls[op.name]++
	if err == nil {
		h.ok[op.name]++
	} else {
		h.errors[class(err)]++
		h.last[op.name] = err
	}
	h.mu.Unlock()
	switch {
	case err == nil:
	case errors.Is(err, ErrLeak), errors.Is(err, errValue):
		h.fail("%s: %v", op.name, err)
	case !op.callers && !h.explained(c, err):
		h.fail("%s as %s: an error that no fault explains (%s): %v", op.name, c.tenant.ID(), class(err), err)
	}
}

// report logs what happened, and fails the test where it has to.
func (h *hammer) report(t TB) (failed bool) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, op := range h.cfg.Ops {
		if n := h.calls[op.Name]; n >= 20 && h.ok[op.Name] == 0 {
			h.failures = append(h.failures, fmt.Sprintf("%s never succeeded in %d calls; its last error: %v", op.Name, n, h.last[op.Name]))
		}
	}
	var b strings.Builder
	total := 0
	for _, name := range slices.Sorted(maps.Keys(h.calls)) {
		fmt.Fprintf(&b, " %s %d/%d", name, h.ok[name], h.calls[name])
		total += h.calls[name]
	}
	b.WriteString("\nfaults:")
	for _, f := range faults {
		if n := h.counts.made[f]; n > 0 {
			fmt.Fprintf(&b, " %s %d", f, n)
		}
	}
	b.WriteString("\nerrors:")
	for _, name := range slices.SortedFunc(maps.Keys(h.errors), func(a, b string) int { return cmp.Compare(h.errors[b], h.errors[a]) }) {
		fmt.Fprintf(&b, " %s %d", name, h.errors[name])
	}
	t.Logf("hammer: %d operations in %v by %d workers as %d tenants, %d rows audited, %s=%d\noperations that succeeded:%s",
		total, h.took.Round(time.Millisecond), h.cfg.Workers, len(h.tenants), h.audited, seedEnv, h.cfg.Seed, b.String())
	for _, f := range h.failures {
		t.Errorf("hammer: %s", f)
	}
	if h.more > 0 {
		t.Errorf("hammer: and %d more failures", h.more)
	}
	return len(h.failures) > 0
}

func code(err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return pgErr.Code
	}
	return ""
}

// class names the kind of an error, for the report.
func class(err error) string {
	switch {
	case errors.Is(err, ErrLeak):
		return "leak"
	case errors.Is(err, errValue):
		return "value"
	case errors.Is(err, pgtenancy.ErrTenantNotFound):
		return "tenant-not-found"
	case code(err) != "":
		return code(err)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return "context"
	case errors.Is(err, pgx.ErrTxClosed):
		return "tx-closed"
	case errors.Is(err, sql.ErrTxDone), errors.Is(err, sql.ErrConnDone):
		return "sql-done"
	case isConnError(err):
		return "connection"
	case isGarbled(err):
		return "garbled"
	case strings.Contains(err.Error(), "can't scan into dest"), strings.HasPrefix(err.Error(), "pgtenancy: column "):
		return "scan"
	}
	return "other"
}

func isConnError(err error) bool {
	var netErr net.Error
	return errors.As(err, new(*pgconn.ConnectError)) || errors.As(err, &netErr) || errors.Is(err, io.EOF) ||
		errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, driver.ErrBadConn) ||
		strings.Contains(err.Error(), "conn closed") // pgconn has no name for it
}

// isLost reports whether err says that the connection, or what ran on it, was ended from outside.
func isLost(err error) bool {
	switch c := code(err); c {
	case "57P01", "57P02", "57P03", "57014", "08P01":
		return true
	default:
		return strings.HasPrefix(c, "08") || isConnError(err)
	}
}

// isGarbled reports whether err says that what came was no message: see verdict.
func isGarbled(err error) bool {
	if errors.As(err, new(*pgproto3.ExceededMaxBodyLenErr)) {
		return true
	}
	for _, text := range []string{"body is invalid", "unknown message type", "body must have length"} { // pgproto3's, without a name
		if strings.Contains(err.Error(), text) {
			return true
		}
	}
	return false
}

// explained reports whether one of the faults explains the error of a built-in operation.
func (h *hammer) explained(c *call, err error) bool {
	switch class(err) {
	case "context", "sql-done":
		return c.hurried
	case "scan":
		return h.pooled // a garbled row: see verdict
	case "57014":
		return h.with(Terminate) || c.hurried // a cancel request reaches whatever the backend does next
	case "42703", "0A000", "42804", "42883", "42704", "42P18", "XX000":
		return h.with(Migrate)
	case "26000":
		return h.with(Settings) // the server has forgotten a statement, in a transaction
	}
	return h.with(Terminate) && (isLost(err) || isGarbled(err)) // or the network, or a pooler, has ended the connection
}
