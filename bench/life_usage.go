package main

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy"
	"github.com/pgtenancy/pgtenancy/pgtenancytest"
)

// measureUsage measures what tells how large tenants are, beside the shortest SQL for it.
func measureUsage(ctx context.Context, o *options, out io.Writer, server *pgtenancytest.Server, _ migrateSetup) error {
	db, err := createMigrateDB(ctx, server, "usage", o.life.usageTenants, o.workers, true)
	if err != nil {
		return err
	}
	if err := runLimit(ctx, db, migrationFiles(o.life.usageTables), 0); err != nil {
		return err
	}
	if err := db.fill(ctx, o.life.usageTables, rows); err != nil {
		return err
	}
	if err := db.exec(ctx, func(conn *pgx.Conn) error { return settle(ctx, conn) }); err != nil {
		return err
	}
	u := usageTable{o: o}
	fmt.Fprintf(&u.text, "\n### What tenants take: %d tenants of %d tables in the database, median of %d\n\n",
		o.life.usageTenants, o.life.usageTables, o.life.rounds)
	u.text.WriteString("| call | tenants | ms | min | max | queries | heap at most, MiB | live at most, MiB |\n" +
		"|---|--:|--:|--:|--:|--:|--:|--:|\n")
	err = db.withFleet(ctx, nil, &u.count, func(fleet *pgtenancy.Fleet) error {
		return db.exec(ctx, func(conn *pgx.Conn) error { return u.measure(ctx, fleet, conn) })
	})
	if err != nil {
		return err
	}
	return write(out, &u.text)
}

// usageTable is the table of what tenants take.
type usageTable struct {
	o     *options
	count queryCount // of the fleet's
	text  strings.Builder
}

func (u *usageTable) measure(ctx context.Context, fleet *pgtenancy.Fleet, conn *pgx.Conn) error {
	all := u.o.life.usageTenants
	few := max(1, all/10)
	usage := func(n int, exact bool) func() (int, error) {
		opts := &pgtenancy.UsageOpts{Exact: exact}
		for i := 0; n < all && i < n; i++ { // otherwise it is asked for all
			opts.Tenants = append(opts.Tenants, tenantID(i))
		}
		return func() (got int, err error) {
			have := 0
			for t, err := range fleet.Usage(ctx, opts) {
				if err != nil {
					return 0, err
				}
				got++
				if t.Relations > 0 && t.Bytes() > 0 {
					have++
				}
			}
			if want := min(n, all); have != want {
				return 0, fmt.Errorf("%d tenants have tables, want %d", have, want)
			}
			return got, nil
		}
	}
	bare := func(of string) func() (int, error) {
		return func() (got int, err error) {
			u.count.Add(1)
			rows, _ := conn.Query(ctx, `select n.nspname, sum(`+of+`)::bigint
				from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
				where n.nspname like 'tenant\_%' and c.relkind = 'r' group by n.nspname`) // the error is in rows
			var schema string
			var size int64
			_, err = pgx.ForEachRow(rows, []any{&schema, &size}, func() error { got++; return nil })
			return got, err
		}
	}
	for _, c := range []struct {
		what string
		n    int
		do   func() (int, error)
	}{
		{"`Fleet.Usage`", few, usage(few, false)},
		{"`Fleet.Usage`", all, usage(all, false)},
		{"bare pgx: `sum(relpages)` of the tables", all, bare("c.relpages")},
		{"`Fleet.Usage`, exact", few, usage(few, true)},
		{"`Fleet.Usage`, exact", all, usage(all, true)},
		{"bare pgx: `sum(pg_total_relation_size(oid))`", all, bare("pg_catalog.pg_total_relation_size(c.oid)")},
		{"`Fleet.SampleUsage`", all, func() (int, error) { return all, fleet.SampleUsage(ctx) }},
	} {
		if err := u.call(c.what, c.n, c.do); err != nil {
			return err
		}
	}
	// What there is to remember of a tenant does not depend on its tables.
	if _, err := conn.Exec(ctx, `insert into pgtenancy.tenants (id, schema_name, state)
		select 'more' || i, 'more' || i, 'active' from generate_series(1, $1) i`, 2*all); err != nil {
		return err
	}
	if _, err := conn.Exec(ctx, "vacuum analyze pgtenancy.tenants"); err != nil {
		return err
	}
	return u.call("`Fleet.Usage`, two thirds of them without a schema", 3*all, usage(3*all, false))
}

// call measures do, which returns a number of tenants, and adds a row to the table.
func (u *usageTable) call(what string, tenants int, do func() (int, error)) error {
	checked := func() error {
		n, err := do()
		if err == nil && n != tenants {
			err = fmt.Errorf("%d tenants, want %d", n, tenants)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		return nil
	}
	heap, live, err := peakHeap(checked) // the first, to warm up
	if err != nil {
		return err
	}
	var ms []float64
	for range u.o.life.rounds {
		runtime.GC() // what the one before left
		u.count.Store(0)
		start := time.Now()
		if err := checked(); err != nil {
			return err
		}
		ms = append(ms, time.Since(start).Seconds()*1000)
	}
	slices.Sort(ms)
	fmt.Fprintf(&u.text, "| %s | %d | %.0f | %.0f | %.0f | %d | %.1f | %.1f |\n", what, tenants, median(ms), ms[0], ms[len(ms)-1],
		u.count.Load(), heap/(1<<20), live/(1<<20))
	return nil
}
