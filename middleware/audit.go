package middleware

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/pgtenancy/pgtenancy"
)

// AuditOpts are what Audit may be told. The zero value is as good as nil. All functions must be safe for concurrent use.
type AuditOpts struct {
	// Actor says who makes the request. It is called after the handler, with the request that the handler got. Defaults to what
	// pgtenancy.WithActor put into its context. What the handler has put into AuditEvent goes before it.
	Actor func(*http.Request) string

	// Client says where the request comes from. Defaults to the request's RemoteAddr, which behind a proxy is the proxy's.
	Client func(*http.Request) netip.Addr

	// RequestID ties the event to logs and traces. Defaults to the header X-Request-Id of the request, which a client may have made up.
	// At most 128 bytes are kept.
	RequestID func(*http.Request) string

	// Fields are the service's own, beside those that the handler has put into AuditEvent. The map is copied, and what its values
	// point to is not: that must not be changed afterwards.
	// Defaults to none.
	Fields func(*http.Request) map[string]any

	// Skip reports which requests are not recorded, such as health checks. Defaults to none.
	Skip func(*http.Request) bool

	// Queue is how many events may be in memory at a time, waiting and being written. Defaults to AuditQueueDefault.
	Queue int

	// Wait is how long a request waits at most where the queue is full. Defaults to 0: not at all.
	Wait time.Duration

	// Required makes a request fail, before its handler runs, when the queue has no place for its event within Wait: it is answered
	// by ErrorHandler. Without it the request is served, and its event dropped and counted.
	//
	// It is no promise that an event gets to the sink: what is in memory is lost with the process. What must not happen without
	// being recorded is recorded with pgtenancy.RecordAudit, in its transaction.
	Required bool

	// ErrorHandler answers the requests that Required fails, with ErrAuditFull. Defaults to WriteError: status 503.
	ErrorHandler func(w http.ResponseWriter, r *http.Request, err error)

	// Batch is how many events the sink is given at a time at most, and Interval how long an event waits for others. They default
	// to AuditBatchDefault and AuditIntervalDefault.
	Batch    int
	Interval time.Duration

	// Report is told of errors: those of the sink, and *AuditDroppedError after events were dropped. It must return soon. Defaults to
	// an error in slog.Default.
	Report func(error)
}

// Defaults of AuditOpts.
const (
	AuditQueueDefault    = 8192
	AuditBatchDefault    = 500
	AuditIntervalDefault = 200 * time.Millisecond
)

// How the sink is tried again, and how long it may take.
const (
	auditRetry     = 100 * time.Millisecond // after the first failure; doubled with each
	auditRetryMost = 10 * time.Second
	auditWrite     = 30 * time.Second // one attempt
	auditRequestID = 128
)

// ErrAuditFull is what AuditOpts.ErrorHandler is given: the sink has been too slow for AuditOpts.Queue, or the Auditor is closed.
var ErrAuditFull = errors.New("middleware: no place for the request's audit event")

// AuditDroppedError says how many events were dropped since it was reported last.
type AuditDroppedError struct{ Events int64 }

// Error says how many.
func (e *AuditDroppedError) Error() string {
	return fmt.Sprintf("middleware: %d audit events dropped", e.Events)
}

// AuditStat counts events.
type AuditStat struct {
	Queued  int   // in memory, with the places that AuditOpts.Required holds for requests under way
	Written int64 // taken by the sink
	Dropped int64 // lost: no place was free, or the sink failed for too long
	Refused int64 // requests that AuditOpts.Required failed
}

// Auditor is what Audit runs. It is safe for concurrent use.
type Auditor struct {
	sink   pgtenancy.AuditSink
	opts   AuditOpts
	places chan struct{} // one for each event in memory
	wake   chan struct{} // holds one where the writer has something new to look at

	mu       sync.Mutex
	waiting  []pgtenancy.AuditEvent
	closed   bool
	stat     AuditStat
	reported int64 // of those dropped

	closing chan struct{}
	cancel  context.CancelFunc // ends what the writer does
	ended   chan struct{}
}

// Audit returns middleware that records each request in sink, and the Auditor that writes what is recorded, which must be closed when
// the server has shut down, and before what the sink needs is:
//
//	audit, auditor := middleware.Audit(fleet.Audit(), nil)
//	defer auditor.Close(ctx)
//	server.Handler = tenant(audit(mux))
//
// An event has the tenant, the method, the route's pattern, the status of the answer, the time of the handler, and what AuditOpts
// and AuditEvent add. It is put into a queue after the handler and written by a goroutine, in batches; the request waits for
// AuditOpts.Wait at most, and never for the sink. Where the sink fails, a batch is tried again while there is place for more.
// When the queue is full by then, the batch is dropped, and counted, and the next one tried; with Required it is tried until
// Close.
//
// Audit goes inside Tenant and around the mux, so that it sees the tenant in the request's context and the mux notes the route's pattern in the
// request that Audit gave it. Middleware between Audit and the mux that calls Request.WithContext hides the pattern: it goes outside, or
// the handler puts it into AuditEvent. The route of a request that no pattern matches is "".
//
// The status is 200 where the handler wrote nothing, 101 where it took the connection over, and 500 where it panicked, whatever
// it had written before; the panic goes on. Flush, Hijack, io.Copy's ReadFrom and http.ResponseController work as below.
//
// Audit panics where sink is nil or an option is negative.
func Audit(sink pgtenancy.AuditSink, opts *AuditOpts) (func(http.Handler) http.Handler, *Auditor) {
	if sink == nil {
		panic("middleware.Audit: the sink is nil")
	}
	var o AuditOpts
	if opts != nil {
		o = *opts
	}
	if o.Queue < 0 || o.Batch < 0 || o.Interval < 0 || o.Wait < 0 {
		panic("middleware.Audit: AuditOpts has a negative number")
	}
	o.defaults()
	ctx, cancel := context.WithCancel(context.Background())
	a := &Auditor{
		sink: sink, opts: o, cancel: cancel,
		places: make(chan struct{}, o.Queue), wake: make(chan struct{}, 1), closing: make(chan struct{}), ended: make(chan struct{}),
	}
	go a.run(ctx)
	return a.wrap, a
}

func (o *AuditOpts) defaults() {
	if o.Queue == 0 {
		o.Queue = AuditQueueDefault
	}
	if o.Batch == 0 {
		o.Batch = AuditBatchDefault
	}
	o.Batch = min(o.Batch, o.Queue)
	if o.Interval == 0 {
		o.Interval = AuditIntervalDefault
	}
	if o.Actor == nil {
		o.Actor = func(r *http.Request) string {
			actor, _ := pgtenancy.ActorFromContext(r.Context())
			return actor
		}
	}
	if o.Client == nil {
		o.Client = remoteAddr
	}
	if o.RequestID == nil {
		o.RequestID = func(r *http.Request) string { return r.Header.Get("X-Request-Id") }
	}
	if o.ErrorHandler == nil {
		o.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, err error) { WriteError(w, err) }
	}
	if o.Report == nil {
		o.Report = func(err error) { slog.Error("pgtenancy: audit", "error", err) }
	}
}

func remoteAddr(r *http.Request) netip.Addr {
	a, _ := netip.ParseAddrPort(r.RemoteAddr) // of a Unix socket there is none
	return a.Addr().Unmap()
}

type auditKey struct{}

// AuditEvent returns the event of the request, for the handler to add to: the Actor, the Action, Fields, a Route. What it sets
// stays. It belongs to the goroutine that serves the request, until the handler returns: http.TimeoutHandler, which leaves a
// handler running, goes outside of Audit. The map of its Fields is copied then, and what the values of the map point to must not
// be changed later. Where no Audit is around the handler, it is an event that nobody records.
func AuditEvent(ctx context.Context) *pgtenancy.AuditEvent {
	if a, ok := ctx.Value(auditKey{}).(*audited); ok {
		return &a.event
	}
	return &pgtenancy.AuditEvent{}
}

// audited is a request that is recorded: its context and its ResponseWriter, in one piece of memory.
type audited struct {
	context.Context
	w      http.ResponseWriter
	event  pgtenancy.AuditEvent
	status int
}

// Value as in context.Context.
func (a *audited) Value(key any) any {
	if key == (auditKey{}) {
		return a
	}
	return a.Context.Value(key)
}

func (a *Auditor) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if a.opts.Skip != nil && a.opts.Skip(r) {
			next.ServeHTTP(w, r)
			return
		}
		if a.opts.Required && !a.reserve(r.Context()) {
			a.mu.Lock()
			a.stat.Refused++
			a.mu.Unlock()
			a.opts.ErrorHandler(w, r, ErrAuditFull)
			return
		}
		q := &audited{Context: r.Context(), w: w}
		q.event.At, q.event.Method = time.Now(), r.Method
		inner := r.WithContext(q)
		returned := false
		defer func() { // without recover, so that the panic keeps its stack
			switch {
			case !returned:
				q.status = http.StatusInternalServerError
			case q.status == 0:
				q.status = http.StatusOK
			}
			a.record(q, inner)
		}()
		next.ServeHTTP(q.writer(), inner)
		returned = true
	})
}

// record completes the event of a request and queues it.
func (a *Auditor) record(q *audited, r *http.Request) {
	e := &q.event
	queued := false
	defer func() { // where a function of the service's panics
		if !queued && a.opts.Required {
			<-a.places
		}
	}()
	e.Duration = time.Since(e.At)
	if e.Tenant == "" {
		t, _ := pgtenancy.TenantFromContext(q.Context)
		e.Tenant = t.ID()
	}
	if e.Route == "" {
		e.Route = r.Pattern
	}
	if e.Status == 0 {
		e.Status = q.status
	}
	if e.Actor == "" {
		e.Actor = a.opts.Actor(r)
	}
	if e.RequestID == "" {
		e.RequestID = a.opts.RequestID(r)
	}
	if len(e.RequestID) > auditRequestID {
		e.RequestID = strings.ToValidUTF8(e.RequestID[:auditRequestID], "")
	}
	if !e.Client.IsValid() {
		e.Client = a.opts.Client(r)
	}
	e.Fields = maps.Clone(e.Fields) // the handler may have put in one that it shares, or goes on to change
	if a.opts.Fields != nil {
		for k, v := range a.opts.Fields(r) {
			if e.Fields == nil {
				e.Fields = map[string]any{}
			}
			if _, ok := e.Fields[k]; !ok {
				e.Fields[k] = v
			}
		}
	}
	if !a.opts.Required && !a.reserve(q.Context) {
		a.drop(1)
		return
	}
	queued = true
	a.mu.Lock()
	if a.closed { // by now
		<-a.places
		a.stat.Dropped++
		a.mu.Unlock()
		return
	}
	a.waiting = append(a.waiting, *e)
	n := len(a.waiting)
	a.mu.Unlock()
	if n == 1 || n == a.opts.Batch {
		a.wakeUp()
	}
}

// reserve takes a place in the queue, and waits for one as long as it may.
func (a *Auditor) reserve(ctx context.Context) bool {
	select {
	case <-a.closing:
		return false
	default:
	}
	select {
	case a.places <- struct{}{}:
		return true
	default:
	}
	if a.opts.Wait == 0 {
		return false
	}
	timer := time.NewTimer(a.opts.Wait)
	defer timer.Stop()
	select {
	case a.places <- struct{}{}:
		return true
	case <-timer.C:
	case <-a.closing:
	case <-ctx.Done():
	}
	return false
}

func (a *Auditor) wakeUp() {
	select {
	case a.wake <- struct{}{}:
	default: // it is about to look
	}
}

func (a *Auditor) drop(n int) {
	a.mu.Lock()
	a.stat.Dropped += int64(n)
	a.mu.Unlock()
}

// run writes batches until the Auditor is closed and all are written, or ctx is cancelled.
func (a *Auditor) run(ctx context.Context) {
	defer close(a.ended)
	batch := make([]pgtenancy.AuditEvent, 0, a.opts.Batch)
	for {
		select {
		case <-a.wake: // there is something, also what take has left
		case <-a.closing:
		}
		a.gather()
		var last bool
		if batch, last = a.take(batch[:0]); len(batch) > 0 {
			a.write(ctx, batch)
		}
		a.reportDropped()
		if last && len(batch) == 0 {
			return
		}
	}
}

// gather waits for a batch to become full.
func (a *Auditor) gather() {
	timer := time.NewTimer(a.opts.Interval)
	defer timer.Stop()
	for {
		a.mu.Lock()
		n := len(a.waiting)
		a.mu.Unlock()
		if n == 0 || n >= a.opts.Batch {
			return
		}
		select {
		case <-a.wake:
		case <-timer.C:
			return
		case <-a.closing:
			return
		}
	}
}

// take moves the oldest events into batch. last says that none will come.
func (a *Auditor) take(batch []pgtenancy.AuditEvent) (_ []pgtenancy.AuditEvent, last bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := min(len(a.waiting), a.opts.Batch)
	batch = append(batch, a.waiting[:n]...)
	rest := copy(a.waiting, a.waiting[n:])
	clear(a.waiting[rest:])
	a.waiting = a.waiting[:rest]
	if rest > 0 {
		a.wakeUp()
	}
	return batch, a.closed
}

// write writes a batch, or drops it.
func (a *Auditor) write(ctx context.Context, batch []pgtenancy.AuditEvent) {
	written := false
	for pause := auditRetry; ctx.Err() == nil; pause = min(2*pause, auditRetryMost) {
		attempt, cancel := context.WithTimeout(ctx, auditWrite)
		err := a.sink.WriteAudit(attempt, batch)
		cancel()
		if written = err == nil; written {
			break
		}
		a.opts.Report(fmt.Errorf("middleware: write %d audit events: %w", len(batch), err))
		if !a.opts.Required && len(a.places) == cap(a.places) {
			break
		}
		select {
		case <-time.After(pause/2 + rand.N(pause)):
		case <-ctx.Done():
		}
	}
	a.mu.Lock()
	if written {
		a.stat.Written += int64(len(batch))
	} else {
		a.stat.Dropped += int64(len(batch))
	}
	a.mu.Unlock()
	for range batch {
		<-a.places
	}
}

func (a *Auditor) reportDropped() {
	a.mu.Lock()
	n := a.stat.Dropped - a.reported
	a.reported = a.stat.Dropped
	a.mu.Unlock()
	if n > 0 {
		a.opts.Report(&AuditDroppedError{n})
	}
}

// Stat returns a snapshot of the counts.
func (a *Auditor) Stat() AuditStat {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.stat
	s.Queued = len(a.places)
	return s
}

// Close writes what is queued and ends the goroutine. When ctx is done it stops, drops what is left and returns an error that wraps that of ctx
// and an *AuditDroppedError. Call it when the server has shut down: events of requests that end later are dropped, and with Required
// later requests refused. It may be called again.
func (a *Auditor) Close(ctx context.Context) error {
	a.mu.Lock()
	if !a.closed {
		a.closed = true
		close(a.closing)
	}
	before := a.stat.Dropped
	a.mu.Unlock()
	stop := context.AfterFunc(ctx, a.cancel)
	defer stop()
	<-a.ended
	a.cancel()
	if dropped := a.Stat().Dropped - before; dropped > 0 && ctx.Err() != nil {
		return fmt.Errorf("middleware: close the auditor: %w: %w", ctx.Err(), &AuditDroppedError{dropped})
	}
	return nil
}

// WriteHeader as in http.ResponseWriter.
func (a *audited) WriteHeader(status int) {
	if a.status == 0 && (status >= 200 || status == http.StatusSwitchingProtocols) { // others are about what is to come
		a.status = status
	}
	a.w.WriteHeader(status)
}

// auditWriter is the ResponseWriter of a request. It is a type of its own since audited has a context's methods. Each of the next
// has what the one that it stands for may have: that of HTTP/2 and that of HTTP/1.
type auditWriter struct{ *audited }

type auditFlusher struct{ auditWriter }

type auditHijacker struct{ auditFlusher }

var (
	_ http.Flusher  = auditFlusher{}
	_ http.Hijacker = auditHijacker{}
	_ io.ReaderFrom = auditHijacker{}
)

func (a *audited) writer() http.ResponseWriter {
	w := auditWriter{a}
	if _, ok := a.w.(http.Flusher); !ok {
		return w
	}
	if _, ok := a.w.(http.Hijacker); !ok {
		return auditFlusher{w}
	}
	return auditHijacker{auditFlusher{w}}
}

func (w auditWriter) Header() http.Header { return w.w.Header() }

func (w auditWriter) Write(b []byte) (int, error) {
	w.began()
	return w.w.Write(b)
}

// WriteString is io.StringWriter's.
func (w auditWriter) WriteString(s string) (int, error) {
	w.began()
	return io.WriteString(w.w, s)
}

func (a *audited) began() {
	if a.status == 0 {
		a.status = http.StatusOK
	}
}

// Unwrap is for http.ResponseController.
func (w auditWriter) Unwrap() http.ResponseWriter { return w.w }

func (w auditFlusher) Flush() {
	w.began()
	w.w.(http.Flusher).Flush()
}

func (w auditHijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := w.w.(http.Hijacker).Hijack()
	if err == nil && w.status == 0 {
		w.status = http.StatusSwitchingProtocols
	}
	return conn, rw, err
}

func (w auditHijacker) ReadFrom(r io.Reader) (int64, error) {
	w.began()
	return io.Copy(w.w, r)
}
