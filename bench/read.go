package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

// chooser makes a function that chooses the next tenant of n.
type chooser func(r *rand.Rand, n int) func() int

var choosers = map[string]chooser{
	"uniform": func(r *rand.Rand, n int) func() int { return func() int { return r.IntN(n) } },
	// A few tenants make most requests: of 2,000, the first makes 17 % and the first 100 make 72 %.
	"zipf": func(r *rand.Rand, n int) func() int {
		z := rand.NewZipf(r, 1.1, 1, uint64(n-1))
		return func() int { return int(z.Uint64()) }
	},
}

// load is what is asked of a strategy for one round.
type load struct {
	goroutines int
	choose     chooser
	seed       uint64
	time       time.Duration
}

// sample is what one round of one strategy came to. Allocations are the whole program's.
type sample struct {
	ops           int64
	time          time.Duration
	allocs, bytes uint64
}

func (s sample) perSecond() float64 { return float64(s.ops) / s.time.Seconds() }

// measure reads rows of tenants as fast as it goes for a round, and checks that each is the right tenant's.
func measure(ctx context.Context, db *database, read read, l load) (sample, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var stop atomic.Bool
	var ops atomic.Int64
	var before, after runtime.MemStats
	runtime.GC() // what the strategy before left
	runtime.ReadMemStats(&before)
	start := time.Now()
	timer := time.AfterFunc(l.time, func() { stop.Store(true) })
	defer timer.Stop()
	var all sync.WaitGroup
	for g := range l.goroutines {
		all.Go(func() {
			r := rand.New(rand.NewPCG(l.seed, uint64(g)))
			next := l.choose(r, len(db.tenants))
			n := int64(0)
			for ; !stop.Load() && ctx.Err() == nil; n++ {
				if err := readOne(ctx, read, &db.tenants[next()], 0, r.IntN(rows)); err != nil {
					cancel(err)
				}
			}
			ops.Add(n)
		})
	}
	all.Wait()
	s := sample{ops: ops.Load(), time: time.Since(start)}
	runtime.ReadMemStats(&after)
	s.allocs, s.bytes = after.Mallocs-before.Mallocs, after.TotalAlloc-before.TotalAlloc
	return s, context.Cause(ctx)
}

// readOne reads row i+1 and checks whose it is.
func readOne(ctx context.Context, read read, t *tenant, table, i int) error {
	name, err := read(ctx, t, table, i+1)
	if err == nil && name != t.names[i] {
		err = fmt.Errorf("row %q of %s came instead of %q", name, t.tables[table], t.names[i])
	}
	return err
}

// contender is a strategy that takes part in the rounds.
type contender struct {
	strategy
	err     error // why it takes no part
	samples []sample
}

// round opens the strategy, warms it up and measures it, and closes it: no other one has a connection meanwhile, which every
// snapshot on the server would pay for.
func (c *contender) round(ctx context.Context, o *options, db *database, l load) (s sample, err error) {
	read, closeRead, err := c.open(ctx, db, o.conns)
	if err != nil {
		return sample{}, err
	}
	defer closeRead()
	warm := l
	warm.time = o.warm
	if _, err := measure(ctx, db, read, warm); err != nil {
		return sample{}, err
	}
	return measure(ctx, db, read, l)
}

// compareReads measures all strategies in rounds. Each round takes all of them, in another order, so that whatever disturbs the
// machine for a while disturbs them alike.
func compareReads(ctx context.Context, o *options, out, raw io.Writer, db *database, where, choice string) error {
	var table, rawLines strings.Builder
	var all []*contender
	for _, s := range o.strategies {
		all = append(all, &contender{strategy: s})
	}
	r := rand.New(rand.NewPCG(o.seed, 0))
	order := slices.Clone(all)
	for range o.rounds {
		l := load{goroutines: o.goroutines, choose: choosers[choice], seed: r.Uint64(), time: o.round}
		r.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		for _, c := range order {
			if c.err != nil {
				continue
			}
			s, err := c.round(ctx, o, db, l)
			switch {
			case errors.Is(err, errSkipped):
				c.err = err
				continue
			case err != nil:
				return fmt.Errorf("%s, %s, %s: %w", where, choice, c.key, err)
			}
			c.samples = append(c.samples, s)
			ops := max(1, s.ops)
			fmt.Fprintf(&rawLines, "BenchmarkRead/tenants=%d/at=%s/choice=%s/by=%s-%d %d %d ns/op %d B/op %d allocs/op\n", len(db.tenants), where, choice,
				c.key, o.goroutines, s.ops, s.time.Nanoseconds()/ops, s.bytes/uint64(ops), s.allocs/uint64(ops))
		}
	}

	fmt.Fprintf(&table, "\n### Read by primary key: %d tenants, %s, %s\n\n", len(db.tenants), choice, where)
	fmt.Fprintf(&table, "| way | queries/s, median | min | max | of the first | allocs/query | B/query |\n|---|--:|--:|--:|--:|--:|--:|\n")
	for _, c := range all {
		if c.err != nil {
			fmt.Fprintf(&table, "| %s | %v | | | | | |\n", c.what, c.err)
			continue
		}
		rate := collect(c.samples, sample.perSecond)
		ratio := "-"
		if first := all[0]; first.err == nil {
			ratios := make([]float64, len(c.samples))
			for i, s := range c.samples { // of the same round, since rounds differ
				ratios[i] = s.perSecond() / first.samples[i].perSecond()
			}
			slices.Sort(ratios)
			ratio = fmt.Sprintf("%.2f", median(ratios))
		}
		allocs := collect(c.samples, func(s sample) float64 { return float64(s.allocs) / float64(max(1, s.ops)) })
		bytes := collect(c.samples, func(s sample) float64 { return float64(s.bytes) / float64(max(1, s.ops)) })
		fmt.Fprintf(&table, "| %s | %.0f | %.0f | %.0f | %s | %.0f | %.0f |\n",
			c.what, median(rate), rate[0], rate[len(rate)-1], ratio, median(allocs), median(bytes))
	}
	return errors.Join(write(out, &table), write(raw, &rawLines))
}

// write writes and checks what the many prints into a Builder need not check.
func write(w io.Writer, b *strings.Builder) error {
	_, err := io.WriteString(w, b.String())
	return err
}

// collect returns f of all, sorted.
func collect[T any, N cmp.Ordered](all []T, f func(T) N) []N {
	values := make([]N, len(all))
	for i, s := range all {
		values[i] = f(s)
	}
	slices.Sort(values)
	return values
}

// median of sorted values.
func median(sorted []float64) float64 {
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// quantile of sorted values, by the nearest rank.
func quantile(sorted []time.Duration, q float64) time.Duration {
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

// roundTrip returns the median time of a query that does nothing, on a connection by itself.
func roundTrip(ctx context.Context, db *database) (time.Duration, error) {
	conn, err := pgx.ConnectConfig(ctx, db.app.ConnConfig.Copy())
	if err != nil {
		return 0, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var times []time.Duration
	for range 200 {
		start := time.Now()
		if _, err := conn.Exec(ctx, "select"); err != nil {
			return 0, err
		}
		times = append(times, time.Since(start))
	}
	slices.Sort(times)
	return quantile(times, 0.5), nil
}
