package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgtenancy/pgtenancy"
)

// rlsCustomers is how many customers a tenant has, over whom its orders are spread.
const rlsCustomers = 100

// rlsShop is how the rows of tenants are in shared tables: order i is of tenant i modulo the number of tenants, and so is customer i,
// so that the rows of a tenant are all over the table.
type rlsShop struct {
	tenants []tenant
	rows    int // of orders
}

// count and sum are those of the orders of the tenant at k.
func (s *rlsShop) count(k int) int { return (s.rows - k + len(s.tenants) - 1) / len(s.tenants) }

func (s *rlsShop) sum(k int) (sum int64) {
	for i := k; i < s.rows; i += len(s.tenants) {
		sum += amount(i)
	}
	return sum
}

func amount(i int) int64 { return int64(i % 997) }

// fill makes the tables in a schema of their own, which all ways have the like of. guard follows, for each table.
func (s *rlsShop) fill(ctx context.Context, conn *pgx.Conn, schema, role string, guard func(table string) string) error {
	n := len(s.tenants)
	for _, sql := range []string{
		`create schema {s}`,
		`create table {s}.customers (id bigint not null, tenant_id text not null, name text not null)`,
		`insert into {s}.customers select i, 't' || lpad((i % {n})::text, 5, '0'), 'customer ' || i from generate_series(0, {n} * {c} - 1) i`,
		`create table {s}.orders (id bigint not null, tenant_id text not null, customer_id bigint not null, amount bigint not null, note text not null)`,
		`insert into {s}.orders select i, 't' || lpad((i % {n})::text, 5, '0'), i % {n} + {n} * (i / {n} % {c}), i % 997, repeat('x', 60) from generate_series(0, {rows} - 1) i`,
		`alter table {s}.customers add primary key (id)`,
		`create index on {s}.customers (tenant_id, id)`,
		`alter table {s}.orders add primary key (id)`,
		`create index on {s}.orders (tenant_id, id)`,
		`grant usage on schema {s} to {role}`,
		`grant select on {s}.customers, {s}.orders to {role}`,
		guard("customers"),
		guard("orders"),
		`vacuum analyze {s}.customers`,
		`vacuum analyze {s}.orders`,
	} {
		sql = strings.NewReplacer("{s}", schema, "{n}", strconv.Itoa(n), "{c}", strconv.Itoa(rlsCustomers), "{rows}", strconv.Itoa(s.rows), "{role}", role).Replace(sql)
		if _, err := conn.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol); err != nil {
			return fmt.Errorf("%.60s: %w", sql, err)
		}
	}
	return nil
}

// rlsQuery is a query without the tenant, which row level security adds, and with it as $1. A row is the last argument. {s} is the
// schema.
type rlsQuery struct {
	name           string
	guarded, plain string
	check          func(s *rlsShop, k, row int, got [][2]int64) error
	row            bool // it has one
}

var rlsQueries = []rlsQuery{
	{
		name: "a row by its primary key", row: true,
		guarded: `select id, amount from {s}.orders where id = $1`,
		plain:   `select id, amount from {s}.orders where id = $2 and tenant_id = $1`,
		check: func(_ *rlsShop, _, row int, got [][2]int64) error {
			return expect(got, 1, [2]int64{int64(row), amount(row)})
		},
	},
	{
		name:    "the 50 newest rows",
		guarded: `select id, amount from {s}.orders order by id desc limit 50`,
		plain:   `select id, amount from {s}.orders where tenant_id = $1 order by id desc limit 50`,
		check: func(s *rlsShop, k, _ int, got [][2]int64) error {
			last := k + (s.count(k)-1)*len(s.tenants)
			return expect(got, min(50, s.count(k)), [2]int64{int64(last), amount(last)})
		},
	},
	{
		name:    "count and sum of all rows",
		guarded: `select count(*), sum(amount)::bigint from {s}.orders`,
		plain:   `select count(*), sum(amount)::bigint from {s}.orders where tenant_id = $1`,
		check: func(s *rlsShop, k, _ int, got [][2]int64) error {
			return expect(got, 1, [2]int64{int64(s.count(k)), s.sum(k)})
		},
	},
	{
		name: "a join, grouped",
		guarded: `select c.id, sum(o.amount)::bigint from {s}.orders o join {s}.customers c on c.id = o.customer_id
			where o.amount > 900 group by c.id order by c.id limit 1000`,
		plain: `select c.id, sum(o.amount)::bigint from {s}.orders o join {s}.customers c on c.id = o.customer_id
			where o.amount > 900 and o.tenant_id = $1 and c.tenant_id = $1 group by c.id order by c.id limit 1000`,
		check: func(s *rlsShop, k, _ int, got [][2]int64) error {
			n := len(s.tenants)
			sums := map[int64]int64{}
			for i := k; i < s.rows; i += n {
				if a := amount(i); a > 900 {
					sums[int64(i%n+n*(i/n%rlsCustomers))] += a
				}
			}
			for _, row := range got {
				if sums[row[0]] != row[1] {
					return fmt.Errorf("customer %d has %d, want %d", row[0], row[1], sums[row[0]])
				}
			}
			return expect(got, len(sums))
		},
	},
}

// expect checks the number of rows, and what the first ones are.
func expect(got [][2]int64, n int, first ...[2]int64) error {
	if len(got) != n || !slices.Equal(got[:min(len(first), n)], first[:min(len(first), n)]) {
		return fmt.Errorf("%d rows, the first %v; want %d rows, the first %v", len(got), got[:min(1, len(got))], n, first)
	}
	return nil
}

// rlsWay is one way to ask a query.
type rlsWay struct {
	what, schema string
	guarded      bool
	query        func(ctx context.Context, t *tenant, sql string, args ...any) (pgx.Rows, error)
}

// ask asks a query once, and returns how long that took.
func (w *rlsWay) ask(ctx context.Context, s *rlsShop, q *rlsQuery, r *rand.Rand) (time.Duration, error) {
	k := r.IntN(len(s.tenants))
	row := k + r.IntN(s.count(k))*len(s.tenants)
	t := &s.tenants[k]
	sql, args := q.plain, []any{t.handle.ID()}
	if w.guarded {
		sql, args = q.guarded, nil
	}
	if q.row {
		args = append(args, row)
	}
	sql = strings.ReplaceAll(sql, "{s}", w.schema)
	start := time.Now()
	rows, _ := w.query(ctx, t, sql, args...) // the error is in rows
	got, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (v [2]int64, err error) {
		err = row.Scan(&v[0], &v[1])
		return v, err
	})
	took := time.Since(start)
	if err == nil {
		err = q.check(s, k, row, got)
	}
	if err != nil {
		return 0, fmt.Errorf("%s: %s: %s: %w", q.name, w.what, t.handle.ID(), err)
	}
	return took, nil
}

// medianTime asks a query for a time, and returns the median.
func (w *rlsWay) medianTime(ctx context.Context, s *rlsShop, q *rlsQuery, r *rand.Rand, limit time.Duration) (time.Duration, error) {
	var times []time.Duration
	for end := time.Now().Add(limit); len(times) == 0 || time.Now().Before(end); {
		took, err := w.ask(ctx, s, q, r)
		if err != nil {
			return 0, err
		}
		times = append(times, took)
	}
	slices.Sort(times)
	return quantile(times, 0.5), nil
}

// compareRLS compares queries of a table with row level security with the same that have the tenant in their text, in rounds of all
// ways in random order, one request at a time.
func compareRLS(ctx context.Context, o *options, out io.Writer, db *database) error {
	conn, err := pgx.ConnectConfig(ctx, db.admin.ConnConfig.Copy())
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	s := &rlsShop{db.tenants, o.rlsRows}
	if err := s.fill(ctx, conn, "plain", db.role, func(string) string { return "" }); err != nil {
		return err
	}
	if err := s.fill(ctx, conn, "guarded", db.role, func(table string) string {
		return pgtenancy.Policy{Table: pgx.Identifier{"guarded", table}, Role: db.role}.SQL()
	}); err != nil {
		return err
	}
	if err := s.fill(ctx, conn, "subquery", db.role, func(table string) string {
		return pgtenancy.Policy{Table: pgx.Identifier{"subquery", table}, Role: db.role}.SQL() +
			fmt.Sprintf("alter policy tenant_isolation on subquery.%s using (tenant_id = (select nullif(current_setting('%s', true), '')));", table, pgtenancy.SettingDefault)
	}); err != nil {
		return err
	}

	plain, err := pgxpool.NewWithConfig(ctx, db.conns(1))
	if err != nil {
		return err
	}
	defer plain.Close()
	pool, err := newPool(ctx, db, 1)
	if err != nil {
		return err
	}
	defer pool.Close()
	ours := func(ctx context.Context, t *tenant, sql string, args ...any) (pgx.Rows, error) {
		return pool.Query(pgtenancy.WithTenant(ctx, t.handle), sql, args...)
	}
	ways := []*rlsWay{
		{"pgtenancy, `tenant_id = $1` in the query", "plain", false, ours},
		{"pgtenancy, row level security", "guarded", true, ours},
		{"the same, the setting in a scalar subquery", "subquery", true, ours},
		{"pgxpool, `tenant_id = $1` in the query", "plain", false, func(ctx context.Context, _ *tenant, sql string, args ...any) (pgx.Rows, error) {
			return plain.Query(ctx, sql, args...)
		}},
	}
	return compareWays(ctx, o, out, s, ways)
}

// compareWays measures the ways and prints them beside the first.
func compareWays(ctx context.Context, o *options, out io.Writer, s *rlsShop, ways []*rlsWay) error {
	r := rand.New(rand.NewPCG(o.seed, 0))
	medians := make([][][]time.Duration, len(rlsQueries)) // by query, way and round
	for i := range medians {
		medians[i] = make([][]time.Duration, len(ways))
	}
	for range o.rounds {
		for i := range rlsQueries {
			for _, w := range r.Perm(len(ways)) {
				n := time.Duration(len(rlsQueries)) // which share the time of a way
				if _, err := ways[w].medianTime(ctx, s, &rlsQueries[i], r, o.warm/n); err != nil {
					return err
				}
				took, err := ways[w].medianTime(ctx, s, &rlsQueries[i], r, o.round/n)
				if err != nil {
					return err
				}
				medians[i][w] = append(medians[i][w], took)
			}
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "\n### Row level security: a table of %d rows of %d tenants, one request at a time\n\n", s.rows, len(s.tenants))
	fmt.Fprintf(&b, "| query | way | µs, median | min | max | of the first |\n|---|---|--:|--:|--:|--:|\n")
	for i, q := range rlsQueries {
		for w, way := range ways {
			ratios := make([]float64, o.rounds)
			for round := range ratios { // of the same round, since rounds differ
				ratios[round] = float64(medians[i][w][round]) / float64(medians[i][0][round])
			}
			slices.SortFunc(ratios, cmp.Compare[float64])
			us := collect(medians[i][w], func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 })
			fmt.Fprintf(&b, "| %s | %s | %.0f | %.0f | %.0f | %.2f |\n", q.name, way.what, median(us), us[0], us[len(us)-1], median(ratios))
		}
	}
	return write(out, &b)
}
