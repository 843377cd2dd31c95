package middleware

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"math"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/pgtenancy/pgtenancy"
	"github.com/pgtenancy/pgtenancy/internal/lru"
)

// ErrRateLimited is what RateLimit refuses a request with whose tenant is over its Rate.
var ErrRateLimited = errors.New("middleware: the tenant is over its rate limit")

// Unlimited is the Rate.Requests of a tenant without a limit.
const Unlimited = -1

// Rate is how much a tenant may ask for: a bucket of Burst requests that fills at a steady pace, Requests in Per. After a rest
// the tenant has Burst requests at once, so that it can come to Burst and Requests within one Per.
//
// The zero Rate is not valid, lest a plan that somebody forgot be one without a limit.
type Rate struct {
	Requests int           // in Per: 1 to 1,000,000,000, or Unlimited, whatever the other fields are
	Per      time.Duration // more than 0, at most 366 days
	Burst    int           // at most 1,000,000,000. 0 stands for Requests
}

const (
	mostRequests = 1_000_000_000
	longestPer   = 366 * 24 * time.Hour
)

// check returns the Rate with the default of Burst filled in, or an *InvalidError.
func (r Rate) check() (Rate, error) {
	switch {
	case r.Requests < 1 || r.Requests > mostRequests:
		return r, &pgtenancy.InvalidError{Field: "Rate.Requests", Value: strconv.Itoa(r.Requests), Rule: "must be from 1 to 1000000000, or Unlimited"}
	case r.Per <= 0 || r.Per > longestPer:
		return r, &pgtenancy.InvalidError{Field: "Rate.Per", Value: r.Per.String(), Rule: "must be more than 0 and at most 366 days"}
	case r.Burst < 0 || r.Burst > mostRequests:
		return r, &pgtenancy.InvalidError{Field: "Rate.Burst", Value: strconv.Itoa(r.Burst), Rule: "must be from 1 to 1000000000, or 0 for Requests"}
	case r.Burst == 0:
		r.Burst = r.Requests
	}
	return r, nil
}

// interval returns the nanoseconds in which a bucket gets one request more.
func (r Rate) interval() float64 { return float64(r.Per) / float64(r.Requests) }

// Limiter counts the requests of each tenant. It must be safe for concurrent use.
//
// RateLimit has one in the memory of the process. Replicas that are to share one budget need one outside of it, such as
// Redis: interop/redis in the repository is one to copy.
type Limiter interface {
	// Allow decides about a request of t that counts as cost requests, and takes them from its bucket if it is allowed. r is
	// valid, with Burst filled in, and cost is from 1 to r.Burst. A tenant's r changes with its plan. The error says that the
	// limiter could not tell.
	Allow(ctx context.Context, t pgtenancy.Tenant, r Rate, cost int) (Decision, error)
}

// Decision is what a Limiter says about a request.
type Decision struct {
	Allowed    bool
	Remaining  int           // requests that the tenant has left now
	RetryAfter time.Duration // from now, until a refused request would be allowed; not looked at where Allowed
	Reset      time.Duration // from now, until the tenant has Rate.Burst requests again
}

// RateLimitOpts are what RateLimit may be told. The zero value is as good as nil.
type RateLimitOpts struct {
	// Limiter counts. Defaults to one in memory, of this process alone: n replicas together let n times the Rate pass. A
	// tenant's bucket stays as full, in parts of Burst, when its Rate changes.
	Limiter Limiter

	// MaxTenants is about how many buckets the default Limiter keeps, at some 300 bytes each. When there are as many, it forgets, of
	// those that were not used for longest, one that is full again, which makes no difference. Where it finds none, since more
	// tenants than this are using up requests, it forgets one that is not full. Until that one would have been full, any tenant
	// without a bucket might be its owner: it gets the request that it comes with and then what its Rate adds, not Burst at
	// once. So a tenant that has many others push its bucket out gains one request each time. Defaults to 100,000.
	MaxTenants int

	// FailOpen lets requests pass where the Limiter fails. Each failure is logged to slog.Default. A request whose own context
	// has ended does not pass, as it is the client who can end it. Defaults to false: they are answered with status 503.
	FailOpen bool

	// Cost returns how many requests a request counts as, from 0 to Rate.Burst. One of cost 0 passes as it is: nobody is
	// asked, and it needs no tenant. It must be safe for concurrent use. Defaults to 1 for each.
	Cost func(*http.Request) int

	// Name is what the header fields call the Rate, where a request passes more than one RateLimit. It has letters, digits,
	// '-', '_' and '.'. Defaults to "default".
	Name string

	// ErrorHandler answers requests that do not pass. err is ErrRateLimited for a tenant that is over its Rate; Retry-After and
	// the RateLimit fields are in w.Header() then, and the status ought to be 429. Otherwise err wraps the Limiter's, or is a
	// mistake of the service: pgtenancy.ErrNoTenant, or a *pgtenancy.InvalidError for a Rate or cost that is not valid.
	//
	// Defaults to WriteError: status 429, 503 for the Limiter's errors and 500 for mistakes. All but the first are logged as well,
	// to slog.Default, unless the client went away.
	ErrorHandler func(w http.ResponseWriter, r *http.Request, err error)
}

// RateLimit returns middleware that limits the requests of each tenant. It goes inside of Tenant, whose tenant it counts for:
// requests without one do not pass. limit returns the Rate of a tenant, as a rule by an attribute such as its plan. It
// is called for each request, so that a change counts from the tenant's next request on, and must be safe for concurrent use.
// opts may be nil.
//
// Inside of MatchTenant, only a tenant's own users can use up its requests. Outside of it anybody can who names the tenant.
//
// A request that is one too many is answered with status 429 and Retry-After in seconds. It does not count. All answers to
// requests that were counted or refused have the header fields RateLimit-Policy and RateLimit of the IETF draft
// draft-ietf-httpapi-ratelimit-headers, here for 100 requests a minute of which 50 are left, with more in a second:
//
//	RateLimit-Policy: "default";q=100;w=60
//	RateLimit: "default";r=50;t=1
//
// What one call of RateLimit returns has one budget for a tenant, whatever handlers it is put around.
//
// The ResponseWriter is passed on as it is. RateLimit panics where limit is nil, opts.MaxTenants is negative or given together
// with a Limiter, and where opts.Name has another character.
func RateLimit(limit func(pgtenancy.Tenant) Rate, opts *RateLimitOpts) func(http.Handler) http.Handler {
	if limit == nil {
		panic("middleware.RateLimit: limit is nil")
	}
	var o RateLimitOpts
	if opts != nil {
		o = *opts
	}
	switch {
	case o.MaxTenants < 0:
		panic("middleware.RateLimit: MaxTenants is negative")
	case o.MaxTenants > 0 && o.Limiter != nil:
		panic("middleware.RateLimit: MaxTenants is for the default Limiter, and there is another")
	case o.MaxTenants == 0:
		o.MaxTenants = 100_000
	}
	if o.Limiter == nil {
		o.Limiter = newBuckets(o.MaxTenants)
	}
	if o.Name == "" {
		o.Name = "default"
	}
	if strings.ContainsFunc(o.Name, func(c rune) bool {
		return !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.ContainsRune("-_.", c))
	}) {
		panic(fmt.Sprintf("middleware.RateLimit: the name %q must have only letters, digits, '-', '_' and '.'", o.Name))
	}
	if o.ErrorHandler == nil {
		o.ErrorHandler = logAndWriteRateLimit
	}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			cost := 1
			if o.Cost != nil {
				cost = o.Cost(r)
			}
			if cost == 0 {
				next.ServeHTTP(w, r)
				return
			}
			t, ok := pgtenancy.TenantFromContext(r.Context())
			if !ok {
				o.ErrorHandler(w, r, fmt.Errorf("middleware.RateLimit, which goes inside of middleware.Tenant: %w", pgtenancy.ErrNoTenant))
				return
			}
			per := limit(t)
			if per.Requests == Unlimited {
				next.ServeHTTP(w, r)
				return
			}
			per, err := per.check()
			if err == nil && (cost < 0 || cost > per.Burst) {
				rule := fmt.Sprintf("must be from 0 to the rate's burst, %d", per.Burst)
				err = &pgtenancy.InvalidError{Field: "RateLimitOpts.Cost", Value: strconv.Itoa(cost), Rule: rule}
			}
			if err != nil {
				o.ErrorHandler(w, r, fmt.Errorf("limit the rate of tenant %q: %w", t.ID(), &setupError{err}))
				return
			}
			d, err := o.Limiter.Allow(r.Context(), t, per, cost)
			if err != nil {
				err = fmt.Errorf("limit the rate of tenant %q: %w", t.ID(), &limiterError{err})
				if !o.FailOpen || r.Context().Err() != nil {
					o.ErrorHandler(w, r, err)
					return
				}
				slog.ErrorContext(r.Context(), "pgtenancy: a request passes without a limit", "error", err)
				next.ServeHTTP(w, r)
				return
			}
			writeRateLimit(w.Header(), o.Name, per, d)
			if !d.Allowed {
				o.ErrorHandler(w, r, ErrRateLimited)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
}

// limiterError is the error of a Limiter. It tells it from a mistake of the service.
type limiterError struct{ error }

func (e *limiterError) Unwrap() error { return e.error }

// writeRateLimit adds the header fields. They are lists, to which another RateLimit may add.
func writeRateLimit(h http.Header, name string, r Rate, d Decision) {
	quota, window := int64(r.Requests), int64(r.Per/time.Second)
	if r.Per%time.Second != 0 { // the window has whole seconds
		window++
		quota = int64(min(float64(quota)*(float64(window)/r.Per.Seconds()), 999_999_999_999_999)) // the most that the field can hold
	}
	var retryAfter int64
	if !d.Allowed {
		retryAfter = max(seconds(d.RetryAfter), 1)
	}
	b := make([]byte, 0, 128)
	b = append(append(append(b, '"'), name...), `";q=`...)
	b = strconv.AppendInt(b, quota, 10)
	b = append(b, ";w="...)
	b = strconv.AppendInt(b, window, 10)
	policy := len(b)
	b = append(append(append(b, '"'), name...), `";r=`...)
	b = strconv.AppendInt(b, int64(max(d.Remaining, 0)), 10)
	if d.Remaining < r.Burst {
		// From what is missing now, until it is one less. A client may go by it, so it is not after Retry-After.
		more := max(seconds(d.Reset-nanoseconds(float64(r.Burst-d.Remaining-1)*r.interval())), 1)
		if !d.Allowed {
			more = min(more, retryAfter)
		}
		b = append(b, ";t="...)
		b = strconv.AppendInt(b, more, 10)
	}
	text := string(b)
	values := []string{text[:policy], text[policy:]} // one allocation for both, as h.Add would make two
	addField(h, "Ratelimit-Policy", values[:1:1])
	addField(h, "Ratelimit", values[1:])
	if !d.Allowed {
		h.Set("Retry-After", strconv.FormatInt(retryAfter, 10))
	}
}

// addField adds a value to a field whose name is canonical.
func addField(h http.Header, name string, value []string) {
	if before := h[name]; before != nil {
		value = append(before, value...)
	}
	h[name] = value
}

// seconds rounds up.
func seconds(d time.Duration) int64 {
	s := int64(d / time.Second)
	if d%time.Second > 0 {
		s++
	}
	return s
}

// nanoseconds rounds to the next, which takes away what floating-point numbers add to a full second.
func nanoseconds(ns float64) time.Duration {
	if ns >= math.MaxInt64 {
		return math.MaxInt64
	}
	return time.Duration(math.Round(ns))
}

func logAndWriteRateLimit(w http.ResponseWriter, r *http.Request, err error) {
	if !errors.Is(err, ErrRateLimited) && !errors.Is(r.Context().Err(), context.Canceled) {
		slog.ErrorContext(r.Context(), "pgtenancy: cannot limit the rate of a request", "error", err)
	}
	WriteError(w, err)
}

// buckets is the Limiter in memory. Tenants are spread over shards, so that requests rarely wait for each other.
type buckets struct {
	seed   maphash.Seed
	shards []shard // as many as a power of two
}

type shard struct {
	mu      sync.Mutex
	buckets *lru.Cache[string, bucket] // by the tenant's ID

	// Until then, a tenant that has no bucket may be one whose bucket was forgotten before it was full.
	short time.Time
}

type bucket struct {
	id      string
	rate    Rate
	limiter *rate.Limiter
}

func newBuckets(most int) *buckets {
	shards := 64
	for shards > 1 && most/shards < 256 { // small ones would not fill alike
		shards /= 2
	}
	m := &buckets{maphash.MakeSeed(), make([]shard, shards)}
	for i := range m.shards {
		m.shards[i].buckets = lru.New[string, bucket]((most + shards - 1) / shards)
	}
	return m
}

func (m *buckets) Allow(_ context.Context, t pgtenancy.Tenant, r Rate, cost int) (Decision, error) {
	s := &m.shards[maphash.String(m.seed, t.ID())&uint64(len(m.shards)-1)]
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now() // locked: a rate.Limiter that is given an earlier time than before counts the time between twice
	b, ok := s.buckets.Get(t.ID())
	switch {
	case !ok:
		b = s.add(t.ID(), r, cost, now)
	case b.rate != r:
		missing := 1 - b.limiter.TokensAt(now)/float64(b.rate.Burst)
		b.rate, b.limiter = r, newLimiter(r, missing*float64(r.Burst), now)
		s.buckets.Put(b.id, b)
	}
	d := Decision{Allowed: b.limiter.AllowN(now, cost)}
	tokens, interval := b.limiter.TokensAt(now), r.interval()
	d.Remaining = int(tokens + min(0.5/interval, 1e-6)) // what it lacks for less than a nanosecond is rounding
	d.Reset = nanoseconds((float64(r.Burst) - tokens) * interval)
	if !d.Allowed {
		d.RetryAfter = nanoseconds((float64(cost) - tokens) * interval)
	}
	return d, nil
}

// newLimiter returns one from which some requests are taken already.
func newLimiter(r Rate, taken float64, now time.Time) *rate.Limiter {
	l := rate.NewLimiter(rate.Limit(float64(time.Second)/r.interval()), r.Burst)
	// It takes whole requests only: one more than it ought to, at a time from which that much of it has come back by now. Without,
	// a tenant whose Rate changes often would lose each time what had come.
	whole := math.Ceil(taken - 1e-6)
	back := nanoseconds(max(whole-taken, 0) * r.interval())
	l.AllowN(now.Add(-back), min(int(whole), r.Burst))
	return l
}

// add makes a bucket for a tenant that has none, which is a full one unless the tenant's may have been forgotten.
func (s *shard) add(id string, r Rate, cost int, now time.Time) bucket {
	if s.buckets.Len() == s.buckets.Cap() {
		s.forget(now)
	}
	taken := 0
	if now.Before(s.short) {
		taken = r.Burst - cost
	}
	b := bucket{id, r, newLimiter(r, float64(taken), now)}
	s.buckets.Put(id, b)
	return b
}

// forget makes room: of the buckets that were not used for longest, it deletes the one that is full first.
func (s *shard) forget(now time.Time) {
	var first bucket
	wait := time.Duration(math.MaxInt64)
	for range 8 {
		b, _ := s.buckets.Oldest()
		full := nanoseconds((float64(b.rate.Burst) - b.limiter.TokensAt(now)) * b.rate.interval())
		if full < wait {
			first, wait = b, full
		}
		if wait == 0 {
			break
		}
		s.buckets.Get(b.id) // to the other end, so that the next time looks at others
	}
	s.buckets.Delete(first.id)
	if short := now.Add(wait); wait > 0 && short.After(s.short) {
		s.short = short
	}
}
