package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy"
	"github.com/pgtenancy/pgtenancy/middleware"
)

// auditTenants is how many tenants' requests there are.
const auditTenants = 20

// auditSeries is a service, with or without the audit log.
type auditSeries struct {
	what  string
	url   string
	drain func(context.Context) error // waits until the log has been written

	rates     []float64 // of each round
	latencies []time.Duration
}

// auditHandler is the GET /orders of examples/quickstart.
func auditHandler(fleet *pgtenancy.Fleet, audit func(http.Handler) http.Handler) http.Handler {
	type order struct {
		ID   int    `json:"id"`
		Name string `json:"name"`
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /orders", func(w http.ResponseWriter, r *http.Request) {
		rows, _ := fleet.Pool().Query(r.Context(), "select id, name from orders order by id") // the error is in rows
		orders, err := pgx.CollectRows(rows, pgx.RowToStructByPos[order])
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(orders) // the client sees it, where that fails
	})
	return middleware.Tenant(fleet, pgtenancy.Subdomain("localhost"), nil)(audit(mux))
}

// compareAudit lets clients make one request after the other over loopback, of a service with middleware.Audit on PostgreSQL's sink
// and of the same without.
func compareAudit(ctx context.Context, o *options, out io.Writer, db *database) (err error) {
	fleet, err := pgtenancy.Open(ctx, pgtenancy.FleetConfig{PoolConfig: pgtenancy.PoolConfig{Conns: db.conns(o.conns)}, Owner: db.admin.Copy()})
	if err != nil {
		return err
	}
	defer fleet.Close()
	if _, err := fleet.Migrate(ctx, nil); err != nil {
		return err
	}
	var hosts []string
	for _, t := range db.tenants {
		if _, err := fleet.Adopt(ctx, t.handle.ID(), t.handle.Schema(), nil); err != nil {
			return err
		}
		hosts = append(hosts, t.handle.ID()+".localhost")
	}
	reported := make(chan error, 1)
	audit, auditor := middleware.Audit(fleet.Audit(), &middleware.AuditOpts{Report: func(err error) {
		select {
		case reported <- err:
		default:
		}
	}})
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		err = errors.Join(err, auditor.Close(ctx))
	}()
	drain := func(ctx context.Context) error {
		for auditor.Stat().Queued > 0 {
			select {
			case <-time.After(time.Millisecond):
			case err := <-reported:
				return err
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	}
	all := []*auditSeries{{what: "without", drain: func(context.Context) error { return nil }}, {what: "with middleware.Audit", drain: drain}}
	for i, wrap := range []func(http.Handler) http.Handler{func(h http.Handler) http.Handler { return h }, audit} {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		server := &http.Server{Handler: auditHandler(fleet, wrap), ReadHeaderTimeout: 10 * time.Second}
		defer server.Close()
		go func() { _ = server.Serve(listener) }() // until it is closed
		all[i].url = "http://" + listener.Addr().String() + "/orders"
	}

	r := rand.New(rand.NewPCG(o.seed, 2))
	order := slices.Clone(all)
	for range o.rounds {
		r.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		for _, s := range order {
			if err := s.run(ctx, o, hosts); err != nil {
				return fmt.Errorf("%s: %w", s.what, err)
			}
		}
	}
	start := time.Now()
	sealed, err := fleet.SealAudit(ctx)
	if err != nil {
		return err
	}
	sealing := time.Since(start)
	stat := auditor.Stat()
	if stat.Dropped > 0 {
		return fmt.Errorf("%d events dropped, %d written", stat.Dropped, stat.Written)
	}

	var ratios []float64
	for i, rate := range all[1].rates {
		ratios = append(ratios, rate/all[0].rates[i])
	}
	slices.Sort(ratios)
	var b strings.Builder
	fmt.Fprintf(&b, "\n### GET /orders over loopback, %d clients, %d connections, %d tenants\n\n", o.goroutines, o.conns, len(hosts))
	fmt.Fprintf(&b, "| audit log | requests/s | lowest | highest | of the first | p50 | p99 |\n|---|--:|--:|--:|--:|--:|--:|\n")
	for i, s := range all {
		slices.Sort(s.rates)
		slices.Sort(s.latencies)
		ratio := "1"
		if i > 0 {
			ratio = fmt.Sprintf("%.3f", median(ratios))
		}
		fmt.Fprintf(&b, "| %s | %.0f | %.0f | %.0f | %s | %v | %v |\n", s.what, median(s.rates), s.rates[0], s.rates[len(s.rates)-1], ratio,
			quantile(s.latencies, 0.5).Round(time.Microsecond), quantile(s.latencies, 0.99).Round(time.Microsecond))
	}
	fmt.Fprintf(&b, "\n%d events were written, none dropped. Sealing %d of them took %v.\n", stat.Written, sealed, sealing.Round(time.Millisecond))
	return write(out, &b)
}

// run makes requests for the time to warm up, and then for that of a round, in which the log of the first is written as that of the round is
// afterwards.
func (s *auditSeries) run(ctx context.Context, o *options, hosts []string) error {
	transport := &http.Transport{MaxIdleConnsPerHost: o.goroutines}
	defer transport.CloseIdleConnections()
	c := &http.Client{Transport: transport}
	rate, latencies, err := round(ctx, o, func(client, n int) error { return getOrders(ctx, c, s.url, hosts[(client+n)%len(hosts)]) })
	if err != nil {
		return err
	}
	s.rates, s.latencies = append(s.rates, rate), append(s.latencies, latencies...)
	return s.drain(ctx)
}

func getOrders(ctx context.Context, client *http.Client, url, host string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Host = host
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	tenant, _, _ := strings.Cut(host, ".")
	if resp.StatusCode != http.StatusOK || !strings.Contains(string(body), `"`+tenant+`/1"`) {
		return fmt.Errorf("%s: status %d, %.100s", host, resp.StatusCode, body)
	}
	return nil
}
