package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy"
	"github.com/pgtenancy/pgtenancy/pgtenancytest"
)

// fill puts rows into the first tables of all schemas.
func (db *migrateDB) fill(ctx context.Context, tables, rows int) error {
	conns := make([]*pgx.Conn, db.workers)
	for i := range conns {
		var err error
		if conns[i], err = pgx.ConnectConfig(ctx, db.conns.ConnConfig.Copy()); err != nil {
			return err
		}
		defer conns[i].Close(context.WithoutCancel(ctx))
	}
	return db.each(ctx, func(ctx context.Context, worker int, schema string) error {
		var b strings.Builder
		for i := range tables {
			column, value := "", ""
			if i > 0 {
				column, value = "parent_id, ", "i, "
			}
			fmt.Fprintf(&b, "insert into %s.items_%d (%snumber, amount, details) "+
				"select %s'N-' || i, i / 4.0, json_build_object('note', md5(i::text)) from generate_series(1, %d) i;", schema, i, column, value, rows)
		}
		_, err := conns[worker].Exec(ctx, b.String())
		return err
	})
}

// backupTimes are those of one round, for one tenant.
type backupTimes struct{ backup, dump time.Duration }

// measureBackup backs up fleets of three sizes, each in a database of its own.
func measureBackup(ctx context.Context, o *options, out io.Writer, server *pgtenancytest.Server, setup migrateSetup) error {
	dir, err := os.MkdirTemp("", "pgtenancy-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)

	var b strings.Builder
	fmt.Fprintf(&b, "\n### Backup, tenants of %d tables with %d rows each, %d at a time: milliseconds a tenant, median of %d (min to max)\n\n",
		migrateTables, o.life.backupRows, o.workers, o.life.rounds)
	dump, err := client(setup.bin, "pg_dump")
	if err == nil { // it refuses a server that is newer
		err = runClient(ctx, "", dump, "-s", "-f", os.DevNull, server.URL())
	}
	if err != nil {
		dump = ""
		fmt.Fprintf(&b, "`pg_dump` is left out: %s.\n\n", strings.ReplaceAll(err.Error(), "\n", ", "))
	} else {
		fmt.Fprintf(&b, "`pg_dump` gets %d of them.\n\n", o.life.dumpTenants)
	}
	b.WriteString("| tenants | `Fleet.Backup` | kB/tenant | heap at most, MiB | live at most, MiB " +
		"| `pg_dump -Fc -Z1 -n` for each | times `Fleet.Backup` |\n" +
		"|--:|--:|--:|--:|--:|--:|--:|\n")
	for _, n := range slices.Compact([]int{max(1, o.life.backupTenants/10), max(1, o.life.backupTenants*3/10), o.life.backupTenants}) {
		row, err := measureBackups(ctx, o, server, n, dir, dump)
		if err != nil {
			return err
		}
		b.WriteString(row)
	}
	return write(out, &b)
}

// measureBackups measures with n tenants, and returns a row of the table.
func measureBackups(ctx context.Context, o *options, server *pgtenancytest.Server, n int, dir, dump string) (string, error) {
	db, err := createMigrateDB(ctx, server, fmt.Sprintf("backup_%d", n), n, o.workers, true)
	if err != nil {
		return "", err
	}
	files := migrationFiles(migrateTables)
	if err := db.migrate(ctx, files); err != nil {
		return "", err
	}
	if err := db.fill(ctx, migrateTables, o.life.backupRows); err != nil {
		return "", err
	}
	if err := db.exec(ctx, func(conn *pgx.Conn) error { return settle(ctx, conn) }); err != nil {
		return "", err
	}
	var bytes int64
	backup := func(fleet *pgtenancy.Fleet) (time.Duration, error) {
		to := filepath.Join(dir, "store")
		start := time.Now()
		report, err := fleet.Backup(ctx, pgtenancy.DirStore(to), &pgtenancy.BackupOpts{Parallel: o.workers})
		took := time.Since(start)
		if err != nil {
			return 0, err
		}
		if want := int64(n * migrateTables * o.life.backupRows); len(report.Objects) != n || report.Rows != want {
			return 0, fmt.Errorf("%d tenants with %d rows, want %d with %d", len(report.Objects), report.Rows, n, want)
		}
		bytes = report.Bytes
		return took / time.Duration(n), os.RemoveAll(to)
	}
	// Some of the tenants, from everywhere.
	sample := *db
	sample.schemas = nil
	for i := range min(n, o.life.dumpTenants) {
		sample.schemas = append(sample.schemas, db.schemas[i*n/min(n, o.life.dumpTenants)])
	}
	dumps := func() (time.Duration, error) {
		start := time.Now()
		err := sample.each(ctx, func(ctx context.Context, worker int, schema string) error {
			file := filepath.Join(dir, fmt.Sprintf("dump_%d", worker))
			return runClient(ctx, "", dump, "-Fc", "-Z1", "-n", schema, "-f", file, db.conns.ConnString())
		})
		return time.Since(start) / time.Duration(len(sample.schemas)), err
	}

	var rounds []backupTimes
	var heap, live float64
	r := rand.New(rand.NewPCG(o.seed, 0))
	err = db.withFleet(ctx, files, nil, func(fleet *pgtenancy.Fleet) (err error) {
		heap, live, err = peakHeap(func() error { _, err := backup(fleet); return err }) // the first, to warm up
		if err != nil {
			return err
		}
		for range o.life.rounds {
			var of backupTimes
			ways := []func() error{func() (err error) { of.backup, err = backup(fleet); return err }}
			if dump != "" {
				ways = append(ways, func() (err error) { of.dump, err = dumps(); return err })
			}
			r.Shuffle(len(ways), func(i, j int) { ways[i], ways[j] = ways[j], ways[i] })
			for _, way := range ways {
				runtime.GC() // what the one before left
				if err := way(); err != nil {
					return err
				}
			}
			rounds = append(rounds, of)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	ms := collect(rounds, func(t backupTimes) float64 { return t.backup.Seconds() * 1000 })
	row := fmt.Sprintf("| %d | %s | %.1f | %.1f | %.1f |", n, spread(ms), float64(bytes)/1000/float64(n), heap/(1<<20), live/(1<<20))
	if dump == "" {
		return row + " | |\n", nil
	}
	ms = collect(rounds, func(t backupTimes) float64 { return t.dump.Seconds() * 1000 })
	return fmt.Sprintf("%s %s | %.1f |\n", row, spread(ms),
		median(collect(rounds, func(t backupTimes) float64 { return t.dump.Seconds() / t.backup.Seconds() }))), nil
}
