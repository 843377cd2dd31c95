// Package limiter counts the requests of each tenant in Redis, so that all replicas of a service share one budget:
//
//	client := redis.NewClient(&redis.Options{Addr: addr, ContextTimeoutEnabled: true, MaxRetries: -1, ReadTimeout: 200 * time.Millisecond})
//	limited := middleware.RateLimit(rateOf, &middleware.RateLimitOpts{Limiter: limiter.New(client, "api")})
//
// It is [redis_rate] with keys of its own. Where Redis cannot be reached each request waits for the client's timeouts, so
// they had better be short. Whether it passes then is RateLimitOpts.FailOpen's to say.
//
// [redis_rate]: https://github.com/go-redis/redis_rate
package limiter

import (
	"context"
	"fmt"
	"time"

	"github.com/go-redis/redis_rate/v10"
	"github.com/redis/go-redis/v9"

	"github.com/pgtenancy/pgtenancy"
	"github.com/pgtenancy/pgtenancy/middleware"
)

// Limiter is a middleware.Limiter. It is safe for concurrent use.
type Limiter struct {
	limiter *redis_rate.Limiter
	name    string
}

var _ middleware.Limiter = (*Limiter)(nil)

// New returns a Limiter. Limiters of one name share their budgets, wherever they run. The client stays the caller's.
func New(client redis.UniversalClient, name string) *Limiter {
	return &Limiter{redis_rate.NewLimiter(client), name}
}

// Allow asks Redis, in one round trip. A tenant whose rate changes begins with a full bucket, once for each rate: a few plans do no
// harm, but a rate that is computed anew for each request would be no limit. The clock is that of Redis. Where it is set back, a
// tenant that has used up its burst waits for as much longer.
func (l *Limiter) Allow(ctx context.Context, t pgtenancy.Tenant, r middleware.Rate, cost int) (middleware.Decision, error) {
	// What Redis keeps is the time at which the bucket is full. That of a slow rate would keep a faster one waiting for as long,
	// so each rate has a bucket. An ID has no ':', so that no tenant's key is another's whatever the name is.
	key := fmt.Sprintf("%s:%s:%d/%d/%d", l.name, t.ID(), r.Requests, r.Per, r.Burst)
	res, err := l.limiter.AllowN(ctx, key, redis_rate.Limit{Rate: r.Requests, Period: r.Per, Burst: r.Burst}, cost)
	if err != nil {
		return middleware.Decision{}, err
	}
	return middleware.Decision{
		Allowed:    res.Allowed > 0,
		Remaining:  res.Remaining,
		RetryAfter: res.RetryAfter.Round(time.Microsecond), // which is what Redis's clock has
		Reset:      res.ResetAfter.Round(time.Microsecond),
	}, nil
}
