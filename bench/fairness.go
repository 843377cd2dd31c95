package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgtenancy/pgtenancy"
)

// request is one request of a tenant, which takes a known time on the server.
type request func(ctx context.Context, t *tenant) error

// series is the latency of one tenant's requests on one pool, with or without another tenant's flood.
type series struct {
	what  string
	flood bool
	color string
	do    request

	latencies []time.Duration
	floodRate []float64 // of each round
}

// openRequests opens a plain pool and ours, each of conns connections.
func openRequests(ctx context.Context, db *database, conns int, service time.Duration) (plain, ours request, closePools func(), err error) {
	pgxPool, err := pgxpool.NewWithConfig(ctx, db.conns(conns))
	if err != nil {
		return nil, nil, nil, err
	}
	pool, err := newPool(ctx, db, conns)
	if err != nil {
		pgxPool.Close()
		return nil, nil, nil, err
	}
	const query = "select pg_sleep($1)"
	plain = func(ctx context.Context, _ *tenant) error {
		_, err := pgxPool.Exec(ctx, query, service.Seconds())
		return err
	}
	ours = func(ctx context.Context, t *tenant) error {
		_, err := pool.Exec(pgtenancy.WithTenant(ctx, t.handle), query, service.Seconds())
		return err
	}
	return plain, ours, func() { pgxPool.Close(); pool.Close() }, nil
}

// flood keeps goroutines requests of t under way until stop is called, which waits for them and returns how many there were in
// a second.
func flood(ctx context.Context, do request, t *tenant, goroutines int) (stop func() (float64, error)) {
	var stopping atomic.Bool
	var ops atomic.Int64
	var all sync.WaitGroup
	errs := make(chan error, 1)
	for range goroutines {
		all.Go(func() {
			for !stopping.Load() && ctx.Err() == nil {
				if err := do(ctx, t); err != nil {
					select {
					case errs <- err:
					default:
					}
					return
				}
				ops.Add(1)
			}
		})
	}
	start := time.Now()
	return func() (float64, error) {
		rate := float64(ops.Load()) / time.Since(start).Seconds()
		stopping.Store(true) // not by cancelling, which would close the connections
		all.Wait()
		select {
		case err := <-errs:
			return rate, err
		default:
			return rate, nil
		}
	}
}

// compareFairness lets the first tenant flood the pool while the second makes one request at a time.
func compareFairness(ctx context.Context, o *options, out io.Writer, db *database) error {
	plain, ours, closePools, err := openRequests(ctx, db, o.conns, o.service)
	if err != nil {
		return err
	}
	defer closePools()
	all := []*series{
		{what: "pgxpool, alone", color: "#9aa0a6", do: plain},
		{what: "pgxpool, beside a flood", flood: true, color: "#d93025", do: plain},
		{what: "pgtenancy, alone", color: "#8ab4f8", do: ours},
		{what: "pgtenancy, beside a flood", flood: true, color: "#1a56c4", do: ours},
	}
	r := rand.New(rand.NewPCG(o.seed, 1))
	order := slices.Clone(all)
	for round := range o.rounds + 1 {
		r.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		for _, s := range order {
			length := o.round
			if round == 0 {
				length /= 4
			}
			if err := s.run(ctx, o, db, length, round > 0); err != nil {
				return fmt.Errorf("%s: %w", s.what, err)
			}
		}
	}

	var b strings.Builder
	fmt.Fprintf(&b, "\n### One tenant's requests of %v, one at a time, while another makes %d at once (%d connections)\n\n", o.service, o.flood, o.conns)
	fmt.Fprintf(&b, "| pool | requests | p50 | p99 | max | the flood's requests/s |\n|---|--:|--:|--:|--:|--:|\n")
	for _, s := range all {
		slices.Sort(s.latencies)
		rate := ""
		if s.flood {
			slices.Sort(s.floodRate)
			rate = fmt.Sprintf("%.0f", median(s.floodRate))
		}
		fmt.Fprintf(&b, "| %s | %d | %s | %s | %s | %s |\n", s.what, len(s.latencies), millis(quantile(s.latencies, 0.5)),
			millis(quantile(s.latencies, 0.99)), millis(s.latencies[len(s.latencies)-1]), rate)
	}
	if err := write(out, &b); err != nil || o.svg == "" {
		return err
	}
	title := fmt.Sprintf("Latency of one tenant's %v requests on a pool of %d connections", o.service, o.conns)
	return os.WriteFile(o.svg, []byte(plot(title, all)), 0o644)
}

// run makes requests of the second tenant for a time, at least one.
func (s *series) run(ctx context.Context, o *options, db *database, length time.Duration, keep bool) (err error) {
	if s.flood {
		stop := flood(ctx, s.do, &db.tenants[0], o.flood)
		defer func() {
			rate, floodErr := stop()
			if keep {
				s.floodRate = append(s.floodRate, rate)
			}
			err = errors.Join(err, floodErr)
		}()
		select { // the queue has to fill
		case <-time.After(min(length, 300*time.Millisecond)):
		case <-ctx.Done():
		}
	}
	for end := time.Now().Add(length); ; {
		start := time.Now()
		if err := s.do(ctx, &db.tenants[1]); err != nil {
			return err
		}
		now := time.Now()
		if keep {
			s.latencies = append(s.latencies, now.Sub(start))
		}
		if now.After(end) {
			return nil
		}
	}
}

func millis(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1e3)
}

// plot draws the share of requests that took at most so long, over the logarithm of the time, as SVG.
func plot(title string, all []*series) string {
	const width, height, left, right, top, bottom = 760, 380, 60, 20, 70, 50
	low, high := math.Inf(1), math.Inf(-1)
	for _, s := range all { // sorted
		low = min(low, s.latencies[0].Seconds())
		high = max(high, s.latencies[len(s.latencies)-1].Seconds())
	}
	low, high = low/1.1, high*1.1
	x := func(seconds float64) float64 {
		return left + (width-left-right)*math.Log(seconds/low)/math.Log(high/low)
	}
	y := func(share float64) float64 { return height - bottom - (height-top-bottom)*share }

	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="13" fill="#202124">`+"\n", width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#fff"/>`+"\n", width, height)
	fmt.Fprintf(&b, `<text x="%d" y="24" font-size="15">%s</text>`+"\n", left, title)
	for i := range 5 {
		share := float64(i) / 4
		fmt.Fprintf(&b, `<path d="M%d %.1fH%d" stroke="#e0e0e0"/><text x="%d" y="%.1f" text-anchor="end">%.0f %%</text>`+"\n",
			left, y(share), width-right, left-8, y(share)+4, share*100)
	}
	for decade := math.Pow(10, math.Floor(math.Log10(low))); decade < high; decade *= 10 {
		for _, digit := range []float64{1, 2, 5} {
			if v := decade * digit; v >= low && v <= high {
				fmt.Fprintf(&b, `<path d="M%.1f %dV%d" stroke="#e0e0e0"/><text x="%.1f" y="%d" text-anchor="middle">%g ms</text>`+"\n",
					x(v), top, height-bottom, x(v), height-bottom+18, math.Round(v*1e6)/1e3)
			}
		}
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="middle">answered within (logarithmic)</text>`+"\n", (left+width-right)/2, height-10)
	legend := left
	for _, s := range all {
		fmt.Fprintf(&b, `<rect x="%d" y="42" width="14" height="4" fill="%s"/><text x="%d" y="49" font-size="12">%s</text>`+"\n",
			legend, s.color, legend+19, s.what)
		legend += 19 + 7*len(s.what) + 14
		fmt.Fprintf(&b, `<path fill="none" stroke="%s" stroke-width="2" stroke-linejoin="round" d="M%.1f %.1f`, s.color, x(s.latencies[0].Seconds()), y(0))
		points := min(len(s.latencies), 400)
		for p := 1; p <= points; p++ {
			share := float64(p) / float64(points)
			at := s.latencies[int(share*float64(len(s.latencies)))-1]
			fmt.Fprintf(&b, "L%.1f %.1f", x(at.Seconds()), y(share))
		}
		b.WriteString("\"/>\n")
	}
	b.WriteString("</svg>\n")
	return b.String()
}
