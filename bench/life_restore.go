package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing/fstest"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy"
	"github.com/pgtenancy/pgtenancy/pgtenancytest"
)

// The table of restore, as a migration makes it, and as whoever fills it by hand would do it last.
const (
	eventsTable = `create table events (
	id bigint generated always as identity,
	account bigint not null,
	kind text not null,
	amount numeric(12, 2) not null,
	created_at timestamptz not null
);
`
	eventsKeys = `alter table events add primary key (id);
create index events_created_at on events (created_at);
`
	eventsRows = `insert into events (account, kind, amount, created_at)
	select i % 5000, 'kind ' || md5((i % 97)::text), (i % 100000) / 100.0, timestamptz '2026-01-01 00:00:00Z' + i * interval '1 second'
	from generate_series(1, $1::bigint) i`
)

// restoreWays are compared with the first of them.
var restoreWays = []struct{ key, what string }{
	{"psql", "psql: the table with its keys, `\\copy`"},
	{"psql-late", "psql: the table, `\\copy`, then its keys"},
	{"restore", "`Fleet.Restore`"},
}

// measureRestore compares Restore of one large tenant with psql, and measures its memory.
func measureRestore(ctx context.Context, o *options, out io.Writer, server *pgtenancytest.Server, setup migrateSetup) error {
	dir, err := os.MkdirTemp("", "pgtenancy-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	db, err := createMigrateDB(ctx, server, "restore", 0, o.workers, true)
	if err != nil {
		return err
	}
	files := fstest.MapFS{"tenant/001_events.sql": {Data: []byte(eventsTable + eventsKeys)}}
	return db.withFleet(ctx, files, nil, func(fleet *pgtenancy.Fleet) error {
		return db.exec(ctx, func(conn *pgx.Conn) error {
			return compareRestores(ctx, o, out, setup, &restorer{db, fleet, conn, pgtenancy.DirStore(dir), dir})
		})
	})
}

// restorer is what restores need.
type restorer struct {
	db    *migrateDB
	fleet *pgtenancy.Fleet
	conn  *pgx.Conn
	store pgtenancy.Store
	dir   string
}

// tenant makes one with rows and returns its backup, with the memory that it took.
func (r *restorer) tenant(ctx context.Context, id string, rows int) (o pgtenancy.BackupObject, heap, live float64, err error) {
	if _, err := r.fleet.Provision(ctx, id, &pgtenancy.ProvisionOpts{Seed: func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, eventsRows, rows)
		return err
	}}); err != nil {
		return o, 0, 0, err
	}
	if err := settle(ctx, r.conn); err != nil {
		return o, 0, 0, err
	}
	heap, live, err = peakHeap(func() error {
		report, err := r.fleet.Backup(ctx, r.store, &pgtenancy.BackupOpts{Tenants: []string{id}})
		if err == nil {
			o = report.Objects[0]
		}
		return err
	})
	if err == nil && o.Rows != int64(rows) {
		err = fmt.Errorf("%d rows were backed up, want %d", o.Rows, rows)
	}
	return o, heap, live, err
}

// export writes a tenant's rows to a file as COPY has them.
func (r *restorer) export(ctx context.Context, schema string) (file string, err error) {
	file = filepath.Join(r.dir, "events.txt")
	f, err := os.Create(file)
	if err != nil {
		return "", err
	}
	_, err = r.conn.PgConn().CopyTo(ctx, f, "copy "+schema+".events to stdout")
	return file, errors.Join(err, f.Close())
}

// psqlScript is what psql is given for a schema.
func psqlScript(key, schema, file string, rows int) string {
	before, after := eventsTable+eventsKeys, ""
	if key == "psql-late" {
		before, after = eventsTable, eventsKeys
	}
	return fmt.Sprintf("create schema %s;\nset search_path to %[1]s;\n%s\\copy events from '%s'\n%sselect setval('events_id_seq', %d);\n",
		schema, before, file, after, rows)
}

// digest returns what depends on all rows and on all that a table has.
func (r *restorer) digest(ctx context.Context, schema string) (digest string, err error) {
	err = r.conn.QueryRow(ctx, fmt.Sprintf(`select concat_ws(' ', count(*), sum(hashtextextended(e::text, 0)), (
			select string_agg(regexp_replace(indexdef, '%s\.', ''), ';' order by indexdef) from pg_catalog.pg_indexes where schemaname = '%[1]s'
		), (select concat(last_value, is_called) from %[1]s.events_id_seq)) from %[1]s.events e`, schema)).Scan(&digest)
	return digest, err
}

func compareRestores(ctx context.Context, o *options, out io.Writer, setup migrateSetup, r *restorer) error {
	var memory strings.Builder
	memory.WriteString("\n### Memory of Backup and Restore of one tenant\n\n" +
		"| rows | Backup: heap at most, MiB | live at most, MiB | Restore: heap at most, MiB | live at most, MiB |\n|--:|--:|--:|--:|--:|\n")
	var object pgtenancy.BackupObject
	for _, rows := range []int{max(1, o.life.restoreRows/10), o.life.restoreRows} {
		id := fmt.Sprintf("rows-%d", rows)
		var heap, live float64
		var err error
		if object, heap, live, err = r.tenant(ctx, id, rows); err != nil {
			return err
		}
		heap2, live2, err := peakHeap(func() error {
			_, err := r.fleet.Restore(ctx, r.store, object.Name, &pgtenancy.RestoreOpts{As: "copy"})
			return err
		})
		if err := errors.Join(err, remove(ctx, r.fleet, "copy")); err != nil {
			return err
		}
		fmt.Fprintf(&memory, "| %d | %.1f | %.1f | %.1f | %.1f |\n", rows, heap/(1<<20), live/(1<<20), heap2/(1<<20), live2/(1<<20))
	}
	source := pgtenancy.SchemaPrefixDefault + strings.ReplaceAll(object.Tenant, "-", "_")
	file, err := r.export(ctx, source)
	if err != nil {
		return err
	}
	want, err := r.digest(ctx, source)
	if err != nil {
		return err
	}
	psql, skipped := client(setup.bin, "psql")

	const id, schema = "beside", pgtenancy.SchemaPrefixDefault + "beside"
	run := func(key string) error {
		if key == "restore" {
			_, err := r.fleet.Restore(ctx, r.store, object.Name, &pgtenancy.RestoreOpts{As: id})
			return err
		}
		sql := psqlScript(key, schema, file, o.life.restoreRows)
		return runClient(ctx, sql, psql, "-X", "-q", "-1", "-v", "ON_ERROR_STOP=1", r.db.conns.ConnString())
	}
	clean := func(key string) error {
		if key == "restore" {
			return remove(ctx, r.fleet, id)
		}
		_, err := r.conn.Exec(ctx, "set client_min_messages to warning; drop schema "+schema+" cascade")
		return err
	}
	ways := slices.Clone(restoreWays)
	if skipped != nil {
		ways = slices.DeleteFunc(ways, func(w struct{ key, what string }) bool { return w.key != "restore" })
	}
	order := slices.Clone(ways)
	shuffle := rand.New(rand.NewPCG(o.seed, 0))
	var rounds []map[string]float64 // seconds by key
	for range o.life.rounds {
		of := map[string]float64{}
		shuffle.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		for _, w := range order {
			if _, err := r.conn.Exec(ctx, "checkpoint"); err != nil { // nor is the disk full in the end
				return err
			}
			runtime.GC() // what the one before left
			start := time.Now()
			if err := run(w.key); err != nil {
				return fmt.Errorf("%s: %w", w.what, err)
			}
			of[w.key] = time.Since(start).Seconds()
			have, err := r.digest(ctx, schema)
			if err != nil {
				return err
			}
			if have != want {
				return fmt.Errorf("%s: there is %s, want %s", w.what, have, want)
			}
			if err := clean(w.key); err != nil {
				return err
			}
		}
		rounds = append(rounds, of)
	}

	var b strings.Builder
	fmt.Fprintf(&b, "\n### Restore of a tenant with %d rows in one table, fsync %s: seconds, median of %d (min to max)\n\n",
		o.life.restoreRows, setup.fsync, o.life.rounds)
	if skipped != nil {
		fmt.Fprintf(&b, "`psql` is left out: %v.\n\n", skipped)
	}
	b.WriteString("| way | seconds | rows/s | times the first |\n|---|--:|--:|--:|\n")
	for _, w := range ways {
		seconds := collect(rounds, func(of map[string]float64) float64 { return of[w.key] })
		fmt.Fprintf(&b, "| %s | %s | %.0f | %.2f |\n", w.what, spread(seconds), float64(o.life.restoreRows)/median(seconds),
			median(collect(rounds, func(of map[string]float64) float64 { return of[w.key] / of[ways[0].key] })))
	}
	b.WriteString(memory.String())
	return write(out, &b)
}
