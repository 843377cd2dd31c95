package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing/fstest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgtenancy/pgtenancy"
	"github.com/pgtenancy/pgtenancy/pgtenancytest"
)

// rolesFleet is a fleet with roles of tenants, or without.
type rolesFleet struct {
	what  string
	group string // "" without
	admin *pgxpool.Config
	app   *pgxpool.Config
	owner *pgxpool.Config
	fleet *pgtenancy.Fleet

	tenants []pgtenancy.Tenant
	rates   []float64 // statements a second, of each round

	provisions, warm, fresh, after []time.Duration
}

// rolesSelect is the statement of the requests. No tenant has rows: all else that it costs would be the same.
const rolesSelect = "select name from orders where id = $1"

// probes is how often a round measures what is not counted in a second.
const probes = 10

// compareRoles measures what FleetConfig.IsolateRoles costs with many tenants: to make one, and to run its statements, on a connection
// that knows the role, on a new one, and after another tenant was made, which has backends forget who is a member of what.
func compareRoles(ctx context.Context, o *options, out io.Writer, server *pgtenancytest.Server) (err error) {
	all := []*rolesFleet{{what: "one role"}, {what: "a role for each tenant", group: "bench_" + strings.ToLower(rand.Text()[:10])}}
	for _, f := range all {
		name := "bench_" + strings.ToLower(rand.Text()[:10])
		url, createErr := server.CreateDatabase(ctx, name)
		if createErr != nil {
			return createErr
		}
		defer func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Minute)
			defer cancel()
			if f.fleet != nil {
				f.fleet.Close()
			}
			err = errors.Join(err, server.DropDatabase(ctx, name), f.dropRoles(ctx))
		}()
		if err := f.open(ctx, o, url); err != nil {
			return err
		}
	}

	r := mathrand.New(mathrand.NewPCG(o.seed, 3))
	order := slices.Clone(all)
	const turn = 20 // tenants that one of them makes, before the other does
	for n := 0; n < o.rolesTenants; n += turn {
		r.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		for _, f := range order {
			for range min(turn, o.rolesTenants-n) {
				if err := f.provision(ctx); err != nil {
					return err
				}
			}
		}
	}
	for range o.rounds {
		r.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		for _, f := range order {
			if err := f.run(ctx, o); err != nil {
				return fmt.Errorf("%s: %w", f.what, err)
			}
			if err := f.probe(ctx, r); err != nil {
				return fmt.Errorf("%s: %w", f.what, err)
			}
		}
	}

	var ratios []float64
	for i, rate := range all[1].rates {
		ratios = append(ratios, rate/all[0].rates[i])
	}
	slices.Sort(ratios)
	var b strings.Builder
	fmt.Fprintf(&b, "\n### Roles of tenants: %d tenants in turn, %d connections, %d at a time\n\n", o.rolesTenants, o.conns, o.goroutines)
	fmt.Fprintf(&b, "| | statements/s | lowest | highest | of the first | p50 | first on a new connection, p50 | first after a Provision, p50 | Provision, the first tenth, p50 | Provision, the last tenth, p50 |\n")
	fmt.Fprintf(&b, "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n")
	for i, f := range all {
		slices.Sort(f.rates)
		ratio := "1"
		if i > 0 {
			ratio = fmt.Sprintf("%.3f", median(ratios))
		}
		tenth := max(len(f.provisions)/10, 1)
		fmt.Fprintf(&b, "| %s | %.0f | %.0f | %.0f | %s |", f.what, median(f.rates), f.rates[0], f.rates[len(f.rates)-1], ratio)
		for _, ds := range [][]time.Duration{f.warm, f.fresh, f.after, f.provisions[:tenth], f.provisions[len(f.provisions)-tenth:]} {
			ds = slices.Sorted(slices.Values(ds))
			fmt.Fprintf(&b, " %v |", quantile(ds, 0.5).Round(time.Microsecond))
		}
		fmt.Fprintln(&b)
	}
	return write(out, &b)
}

// open prepares the database and opens the fleet, both sides as the same kinds of roles.
func (f *rolesFleet) open(ctx context.Context, o *options, url string) (err error) {
	if f.admin, err = pgxpool.ParseConfig(url); err != nil {
		return err
	}
	f.app, f.owner = f.admin.Copy(), f.admin.Copy()
	suffix := strings.ToLower(rand.Text()[:10])
	f.app.ConnConfig.User, f.owner.ConnConfig.User = "bench_app_"+suffix, "bench_owner_"+suffix
	f.app.ConnConfig.Password, f.owner.ConnConfig.Password = rand.Text(), rand.Text()
	f.app.MaxConns, f.owner.MaxConns = int32(o.conns), 2
	sql := fmt.Sprintf("create role %s login password '%s'; create role %s login password '%s'; alter database %s owner to %[3]s; alter schema public owner to %[3]s;",
		f.app.ConnConfig.User, f.app.ConnConfig.Password, f.owner.ConnConfig.User, f.owner.ConnConfig.Password, f.admin.ConnConfig.Database)
	if f.group != "" {
		sql += pgtenancy.IsolateRolesSQL(f.group, f.app.ConnConfig.User, f.owner.ConnConfig.User)
	}
	conn, err := pgx.ConnectConfig(ctx, f.admin.ConnConfig.Copy())
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol); err != nil {
		return err
	}
	f.fleet, err = pgtenancy.Open(ctx, pgtenancy.FleetConfig{
		PoolConfig:   pgtenancy.PoolConfig{Conns: f.app, MaxTenantsPerConn: -1},
		Owner:        f.owner,
		IsolateRoles: f.group,
		Migrations:   fstest.MapFS{"tenant/001_orders.sql": {Data: []byte("create table orders (id bigint primary key, name text not null);")}},
	})
	if err != nil {
		return err
	}
	_, err = f.fleet.Migrate(ctx, nil)
	return err
}

// dropRoles drops the roles of the database, which must be dropped before: those of tenants, many in a transaction, and then the others.
func (f *rolesFleet) dropRoles(ctx context.Context) error {
	if f.app == nil {
		return nil
	}
	cfg := f.admin.ConnConfig.Copy()
	cfg.Database = "postgres"
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	names := []string{f.app.ConnConfig.User, f.owner.ConnConfig.User}
	if f.group != "" {
		rows, _ := conn.Query(ctx, "select rolname::text from pg_roles where starts_with(rolname::text, $1)", f.group+":") // the error is in rows
		roles, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return err
		}
		names = append(append(roles, f.group), names...)
	}
	for chunk := range slices.Chunk(names, 100) {
		for i := range chunk {
			chunk[i] = pgx.Identifier{chunk[i]}.Sanitize()
		}
		if _, err := conn.Exec(ctx, "drop role if exists "+strings.Join(chunk, ", ")); err != nil {
			return err
		}
	}
	return nil
}

// provision makes one tenant more.
func (f *rolesFleet) provision(ctx context.Context) error {
	start := time.Now()
	t, err := f.fleet.Provision(ctx, tenantID(len(f.tenants)), nil)
	if err != nil {
		return err
	}
	f.provisions, f.tenants = append(f.provisions, time.Since(start)), append(f.tenants, t)
	return nil
}

// statement runs the statement for a tenant, and returns what it took.
func (f *rolesFleet) statement(ctx context.Context, pool *pgtenancy.Pool, t pgtenancy.Tenant) (time.Duration, error) {
	start := time.Now()
	var name string
	err := pool.QueryRow(pgtenancy.WithTenant(ctx, t), rolesSelect, 1).Scan(&name)
	if !errors.Is(err, pgx.ErrNoRows) {
		return 0, fmt.Errorf("tenant %s: %w", t, errors.Join(err, errors.New("no rows were expected")))
	}
	return time.Since(start), nil
}

// run has all tenants in turn, for the time to warm up and then for that of a round.
func (f *rolesFleet) run(ctx context.Context, o *options) error {
	var next atomic.Int64
	rate, latencies, err := round(ctx, o, func(int, int) error {
		_, err := f.statement(ctx, f.fleet.Pool(), f.tenants[int(next.Add(1))%len(f.tenants)])
		return err
	})
	f.rates, f.warm = append(f.rates, rate), append(f.warm, latencies...)
	return err
}

// probe measures one statement on a connection that is new, and one on a connection that is warm, after another tenant was made. A
// connection is new after it was made for a statement without a tenant.
func (f *rolesFleet) probe(ctx context.Context, r *mathrand.Rand) error {
	any := func() pgtenancy.Tenant { return f.tenants[r.IntN(len(f.tenants))] }
	for range probes {
		conns := f.app.Copy()
		conns.MaxConns = 1
		pool, err := pgtenancy.NewPoolWithConfig(ctx, &pgtenancy.PoolConfig{Conns: conns})
		if err != nil {
			return err
		}
		err = func() error {
			defer pool.Close()
			if err := pool.Ping(ctx); err != nil {
				return err
			}
			took, err := f.statement(ctx, pool, any())
			if err != nil {
				return err
			}
			f.fresh = append(f.fresh, took)
			for range 3 { // it knows the members now
				if _, err := f.statement(ctx, pool, any()); err != nil {
					return err
				}
			}
			if err := f.provision(ctx); err != nil {
				return err
			}
			if took, err = f.statement(ctx, pool, any()); err == nil {
				f.after = append(f.after, took)
			}
			return err
		}()
		if err != nil {
			return err
		}
	}
	return nil
}
