package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing/fstest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"github.com/pgtenancy/pgtenancy"
	"github.com/pgtenancy/pgtenancy/pgtenancytest"
)

// migrateTables is how many tables a tenant has after the first migrations, each of a file of its own.
const migrateTables = 10

// migrationFiles returns the first n migrations, as goose and pgtenancy read them: tables, and then columns for one of them.
func migrationFiles(n int) fstest.MapFS {
	files := fstest.MapFS{}
	for i := range n {
		var name, up string
		if i < migrateTables {
			name, up = fmt.Sprintf("items_%d", i), tableSQL(i)
		} else {
			name, up = fmt.Sprintf("note_%d", i), fmt.Sprintf("alter table items_%d add column note_%d text;\n", migrateTables/2, i)
		}
		files[fmt.Sprintf("tenant/%03d_%s.sql", i+1, name)] = &fstest.MapFile{Data: []byte("-- +goose Up\n" + up)}
	}
	return files
}

func tableSQL(i int) string {
	parent := ""
	if i > 0 {
		parent = fmt.Sprintf("\tparent_id bigint not null references items_%d (id),\n", i-1)
	}
	return fmt.Sprintf(`create table items_%[1]d (
	id bigint generated always as identity primary key,
%[2]s	number text not null,
	status text not null default 'new',
	amount numeric(12, 2) not null default 0,
	details jsonb not null default '{}',
	created_at timestamptz not null default now(),
	updated_at timestamptz
);
create index items_%[1]d_created_at on items_%[1]d (created_at);
`, i, parent)
}

// migrateSetup is one server to measure on.
type migrateSetup struct {
	bin   string // of the server's programs
	dir   string // for its files, "" for the default
	fsync string // "on" or "off"
}

// start starts the server. Those of pgtenancytest are set up to forget and take no settings, so it gets programs that
// add ours. No checkpoint and no autovacuum comes while it runs: they would hit one way and spare the next.
func (s migrateSetup) start(ctx context.Context) (*pgtenancytest.Server, error) {
	if os.Getenv("DATABASE_URL") != "" {
		return nil, errors.New("migrate starts servers of its own: unset DATABASE_URL")
	}
	bin, err := os.MkdirTemp("", "pgtenancy-bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(bin)
	settings := "-c fsync=" + s.fsync + " -c synchronous_commit=on -c full_page_writes=on -c shared_buffers=512MB" +
		" -c autovacuum=off -c checkpoint_timeout=1d -c max_wal_size=64GB"
	for name, args := range map[string]string{"initdb": "", "postgres": settings} {
		script := fmt.Sprintf("#!/bin/sh\nexec '%s' \"$@\" %s\n", filepath.Join(s.bin, name), args)
		if err := os.WriteFile(filepath.Join(bin, name), []byte(script), 0o755); err != nil {
			return nil, err
		}
	}
	if err := os.Chmod(bin, 0o755); err != nil { // root's server runs as another user
		return nil, err
	}
	env := map[string]string{"PGTENANCY_POSTGRES_BIN": bin}
	if s.dir != "" {
		env["TMPDIR"] = s.dir
	}
	for name, value := range env {
		if old, ok := os.LookupEnv(name); ok {
			defer func() { _ = os.Setenv(name, old) }()
		} else {
			defer func() { _ = os.Unsetenv(name) }()
		}
		if err := os.Setenv(name, value); err != nil {
			return nil, err
		}
	}
	return pgtenancytest.Start(ctx)
}

// installedBin returns where the programs of the server that pgtenancytest starts are.
func installedBin(ctx context.Context) (string, error) {
	server, err := pgtenancytest.Start(ctx)
	if err != nil {
		return "", err
	}
	defer server.Close()
	bin, _, ok := strings.Cut(server.Source(), " (PostgreSQL ")
	if !ok {
		return "", fmt.Errorf("%w: migrate needs a server's programs, and there is only %s", errSkipped, server.Source())
	}
	return bin, nil
}

// migrateDB is a database with empty schemas.
type migrateDB struct {
	conns   *pgxpool.Config
	schemas []string // quoted
	workers int
}

// createMigrateDB creates a database for newMigrateDB.
func createMigrateDB(ctx context.Context, server *pgtenancytest.Server, name string, n, workers int, registered bool) (*migrateDB, error) {
	url, err := server.CreateDatabase(ctx, name)
	if err != nil {
		return nil, err
	}
	return newMigrateDB(ctx, url, n, workers, registered)
}

// newMigrateDB makes n empty schemas in the empty database at url. With registered the registry has a tenant for each.
func newMigrateDB(ctx context.Context, url string, n, workers int, registered bool) (*migrateDB, error) {
	conns, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, err
	}
	db := &migrateDB{conns: conns, workers: workers}
	if registered {
		if err := db.migrate(ctx, nil); err != nil { // installs the registry
			return nil, err
		}
	}
	return db, db.exec(ctx, func(conn *pgx.Conn) error {
		var b strings.Builder
		for i := range n {
			id := tenantID(i)
			schema := pgtenancy.SchemaPrefixDefault + id
			db.schemas = append(db.schemas, pgx.Identifier{schema}.Sanitize())
			fmt.Fprintf(&b, "create schema %s;", db.schemas[i])
			if registered {
				fmt.Fprintf(&b, "insert into pgtenancy.tenants (id, schema_name, state) values ('%s', '%s', 'active');", id, schema)
			}
			if (i+1)%500 == 0 || i+1 == n {
				if _, err := conn.Exec(ctx, b.String()); err != nil {
					return err
				}
				b.Reset()
			}
		}
		_, err := conn.Exec(ctx, "vacuum analyze")
		return err
	})
}

func tenantID(i int) string { return fmt.Sprintf("t%05d", i) }

// exec calls f with a connection.
func (db *migrateDB) exec(ctx context.Context, f func(conn *pgx.Conn) error) error {
	conn, err := pgx.ConnectConfig(ctx, db.conns.ConnConfig.Copy())
	if err != nil {
		return err
	}
	return errors.Join(f(conn), conn.Close(context.WithoutCancel(ctx)))
}

// each calls f for each schema, several at a time, with the number of the one who calls.
func (db *migrateDB) each(ctx context.Context, f func(ctx context.Context, worker int, schema string) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var all sync.WaitGroup
	for worker := range db.workers {
		all.Go(func() {
			for i := int(next.Add(1)) - 1; i < len(db.schemas) && ctx.Err() == nil; i = int(next.Add(1)) - 1 {
				if err := f(ctx, worker, db.schemas[i]); err != nil {
					cancel(fmt.Errorf("%s: %w", db.schemas[i], err))
				}
			}
		})
	}
	all.Wait()
	return context.Cause(ctx)
}

// migrate calls Fleet.Migrate.
func (db *migrateDB) migrate(ctx context.Context, files fs.FS) error {
	return db.withFleet(ctx, files, nil, func(fleet *pgtenancy.Fleet) error {
		_, err := fleet.Migrate(ctx, &pgtenancy.MigrateOpts{Parallel: db.workers})
		return err
	})
}

// withFleet calls f with a new Fleet.
func (db *migrateDB) withFleet(ctx context.Context, files fs.FS, tracer pgx.QueryTracer, f func(*pgtenancy.Fleet) error) error {
	cfg := pgtenancy.FleetConfig{PoolConfig: pgtenancy.PoolConfig{Conns: db.conns.Copy()}, Owner: db.conns.Copy(), Migrations: files}
	cfg.Owner.MaxConns = int32(db.workers + 2) // one reads which tenants there are
	cfg.Owner.ConnConfig.Tracer = tracer
	fleet, err := pgtenancy.Open(ctx, cfg)
	if err != nil {
		return err
	}
	defer fleet.Close()
	return f(fleet)
}

// migrator is a way to run migrations.
type migrator struct {
	key, what string
	run       func(ctx context.Context, db *migrateDB, files fstest.MapFS, had int) error // the first had have run
}

// The others are compared with pgtenancy.
var migrators = []migrator{
	{"limit", "bare pgx: all statements as one string, one transaction a tenant", runLimit},
	{"pgtenancy", "`Fleet.Migrate`", func(ctx context.Context, db *migrateDB, files fstest.MapFS, _ int) error {
		return db.migrate(ctx, files)
	}},
	{"goose", "a goose Provider a tenant, each with a `sql.DB`", runGoose},
	{"goose-set", "the same, with a connection a worker and `SET search_path`", runGooseSet},
}

// runLimit sends for each tenant one message, with nothing that would remember what was done.
func runLimit(ctx context.Context, db *migrateDB, files fstest.MapFS, had int) error {
	var up strings.Builder
	names, err := fs.Glob(files, "tenant/*")
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names[had:] {
		up.Write(files[name].Data)
	}
	conns := make([]*pgx.Conn, db.workers)
	for i := range conns {
		if conns[i], err = pgx.ConnectConfig(ctx, db.conns.ConnConfig.Copy()); err != nil {
			return err
		}
		defer conns[i].Close(context.WithoutCancel(ctx))
	}
	return db.each(ctx, func(ctx context.Context, worker int, schema string) error {
		_, err := conns[worker].PgConn().Exec(ctx, "begin; set local search_path to "+schema+", public;"+up.String()+"commit").ReadAll()
		return err
	})
}

// runGoose gives each tenant a sql.DB whose connections have its search_path, so that it also holds where goose connects anew.
func runGoose(ctx context.Context, db *migrateDB, files fstest.MapFS, _ int) error {
	return db.each(ctx, func(ctx context.Context, _ int, schema string) error {
		cfg := db.conns.ConnConfig.Copy()
		cfg.RuntimeParams["search_path"] = schema + ", public"
		d := stdlib.OpenDB(*cfg)
		return errors.Join(gooseUp(ctx, d, files), d.Close())
	})
}

func runGooseSet(ctx context.Context, db *migrateDB, files fstest.MapFS, _ int) error {
	dbs := make([]*sql.DB, db.workers)
	for i := range dbs {
		dbs[i] = stdlib.OpenDB(*db.conns.ConnConfig.Copy())
		defer dbs[i].Close()
		dbs[i].SetMaxOpenConns(1)
	}
	return db.each(ctx, func(ctx context.Context, worker int, schema string) error {
		if _, err := dbs[worker].ExecContext(ctx, "set search_path to "+schema+", public"); err != nil {
			return err
		}
		return gooseUp(ctx, dbs[worker], files)
	})
}

func gooseUp(ctx context.Context, d *sql.DB, files fs.FS) error {
	sub, err := fs.Sub(files, "tenant")
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(goose.DialectPostgres, d, sub)
	if err != nil {
		return err
	}
	_, err = p.Up(ctx)
	return err
}

// migrateCase is what is asked of the migrators, one case after the other on the same schemas.
type migrateCase struct {
	what       string
	had, files int
}

var migrateCases = []migrateCase{
	{fmt.Sprintf("%d tables in %[1]d files", migrateTables), 0, migrateTables},
	{"one file more: ADD COLUMN", migrateTables, migrateTables + 1},
	{"nothing to do", migrateTables + 1, migrateTables + 1},
}

// check returns an error where a schema has not what the first n files make.
func (db *migrateDB) check(ctx context.Context, n int) error {
	return db.exec(ctx, func(conn *pgx.Conn) error {
		var tables, notes int
		err := conn.QueryRow(ctx, `select count(*) filter (where a.attname = 'id'), count(*) filter (where a.attname <> 'id')
			from pg_catalog.pg_attribute a join pg_catalog.pg_class c on c.oid = a.attrelid
			where c.relkind = 'r' and c.relname like 'items\_%' and (a.attname = 'id' or a.attname like 'note\_%')`).Scan(&tables, &notes)
		wantTables := len(db.schemas) * min(n, migrateTables)
		wantNotes := len(db.schemas) * max(0, n-migrateTables)
		if err == nil && (tables != wantTables || notes != wantNotes) {
			err = fmt.Errorf("%d tables and %d new columns after %d files, want %d and %d", tables, notes, n, wantTables, wantNotes)
		}
		return err
	})
}

// compareMigrations measures on each server.
func compareMigrations(ctx context.Context, o *options, out io.Writer) error {
	bins := o.bins
	if len(bins) == 0 {
		bin, err := installedBin(ctx)
		if err != nil {
			return err
		}
		bins = []string{bin}
	}
	for _, bin := range bins {
		for _, fsync := range o.fsync {
			setup := migrateSetup{bin: bin, fsync: fsync}
			if fsync == "on" {
				setup.dir = o.disk
			}
			if err := compareMigrators(ctx, o, out, setup); err != nil {
				return fmt.Errorf("%s, fsync %s: %w", bin, fsync, err)
			}
		}
		if err := measureFleet(ctx, o, out, migrateSetup{bin: bin, fsync: "off"}); err != nil {
			return fmt.Errorf("%s: %w", bin, err)
		}
	}
	return nil
}

// compareMigrators runs the cases in rounds. Each round has a new server with a database for each migrator, so that all
// find the same; in each case they take turns in another order.
func compareMigrators(ctx context.Context, o *options, out io.Writer, setup migrateSetup) error {
	times := make([][]map[string]time.Duration, len(migrateCases)) // of a tenant, by case, round and migrator
	r := rand.New(rand.NewPCG(o.seed, 0))
	order := slices.Clone(migrators)
	tenants := o.migrateTenants
	if setup.fsync == "on" {
		tenants = min(tenants, o.fsyncTenants)
	}
	gooseTenants := min(tenants, o.gooseTenants)
	for round := range o.migrateRounds {
		err := func() error {
			server, err := setup.start(ctx)
			if err != nil {
				return err
			}
			defer server.Close()
			if round == 0 {
				if err := describeServer(ctx, out, server); err != nil {
					return err
				}
			}
			dbs := map[string]*migrateDB{}
			for _, m := range migrators {
				n := tenants
				if strings.HasPrefix(m.key, "goose") {
					n = gooseTenants
				}
				if dbs[m.key], err = createMigrateDB(ctx, server, m.key, n, o.workers, m.key == "pgtenancy"); err != nil {
					return err
				}
			}
			for i, c := range migrateCases {
				of := map[string]time.Duration{}
				r.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
				for _, m := range order {
					if c.had == c.files && m.key == "limit" {
						continue
					}
					db := dbs[m.key]
					runtime.GC() // what the one before left
					start := time.Now()
					if err := m.run(ctx, db, migrationFiles(c.files), c.had); err != nil {
						return fmt.Errorf("%s: %s: %w", c.what, m.key, err)
					}
					of[m.key] = time.Since(start) / time.Duration(len(db.schemas))
					if err := db.check(ctx, c.files); err != nil {
						return fmt.Errorf("%s: %s: %w", c.what, m.key, err)
					}
				}
				times[i] = append(times[i], of)
			}
			return nil
		}()
		if err != nil {
			return err
		}
	}

	var b strings.Builder
	fmt.Fprintf(&b, "\n### Migrations of %d tenants, %d at a time, fsync %s: milliseconds a tenant, median (min to max)\n\n", tenants, o.workers, setup.fsync)
	fmt.Fprintf(&b, "goose gets %d of them.\n\n", gooseTenants)
	head, line := "| way |", "|---|"
	for _, c := range migrateCases {
		head, line = head+" "+c.what+" | times pgtenancy's |", line+"--:|--:|"
	}
	fmt.Fprintf(&b, "%s\n%s\n", head, line)
	for _, m := range migrators {
		fmt.Fprintf(&b, "| %s |", m.what)
		for i := range migrateCases {
			if times[i][0][m.key] == 0 {
				b.WriteString(" | |")
				continue
			}
			ms := collect(times[i], func(of map[string]time.Duration) float64 { return of[m.key].Seconds() * 1000 })
			ratios := collect(times[i], func(of map[string]time.Duration) float64 { return of[m.key].Seconds() / of["pgtenancy"].Seconds() })
			fmt.Fprintf(&b, " %.3f (%.3f to %.3f) | %.2f |", median(ms), ms[0], ms[len(ms)-1], median(ratios))
		}
		b.WriteString("\n")
	}
	return write(out, &b)
}

// queryCount counts queries.
type queryCount struct{ atomic.Int64 }

func (c *queryCount) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	c.Add(1)
	return ctx
}

func (c *queryCount) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// measureFleet measures what only pgtenancy has, or what the size of the fleet must not matter for.
func measureFleet(ctx context.Context, o *options, out io.Writer, setup migrateSetup) error {
	server, err := setup.start(ctx)
	if err != nil {
		return err
	}
	defer server.Close()
	if err := describeServer(ctx, out, server); err != nil {
		return err
	}
	if err := measureNothing(ctx, o, out, server); err != nil {
		return err
	}
	if err := measureDrift(ctx, o, out, server); err != nil {
		return err
	}
	return measureHeap(ctx, o, out, server)
}

// measureNothing measures Migrate where all tenants are at the newest version.
func measureNothing(ctx context.Context, o *options, out io.Writer, server *pgtenancytest.Server) error {
	var b strings.Builder
	b.WriteString("\n### Nothing to migrate, Open and Close included\n\n| tenants | ms, median | min | max | queries |\n|--:|--:|--:|--:|--:|\n")
	db, err := createMigrateDB(ctx, server, "nothing", 1, o.workers, true)
	if err != nil {
		return err
	}
	files := migrationFiles(migrateTables)
	if err := db.migrate(ctx, files); err != nil {
		return err
	}
	for _, n := range []int{o.migrateTenants, 10 * o.migrateTenants} {
		err := db.exec(ctx, func(conn *pgx.Conn) error {
			// They need no schemas, since nobody looks.
			if _, err := conn.Exec(ctx, `insert into pgtenancy.tenants (id, schema_name, state, version, digest)
				select 'more' || i, 'more' || i, state, version, digest from pgtenancy.tenants t, generate_series(2, $1) i where t.id = $2
				on conflict do nothing`, n, tenantID(0)); err != nil {
				return err
			}
			_, err := conn.Exec(ctx, "vacuum analyze pgtenancy.tenants")
			return err
		})
		if err != nil {
			return err
		}
		var times []float64
		var queries int64
		for range o.migrateRounds {
			var count queryCount
			start := time.Now()
			err := db.withFleet(ctx, files, &count, func(fleet *pgtenancy.Fleet) error {
				count.Store(0)
				report, err := fleet.Migrate(ctx, &pgtenancy.MigrateOpts{Parallel: o.workers})
				if err == nil && report.Tenants != 0 {
					err = fmt.Errorf("%d tenants of %d were migrated that needed nothing", report.Tenants, n)
				}
				queries = count.Load()
				return err
			})
			if err != nil {
				return err
			}
			times = append(times, time.Since(start).Seconds()*1000)
		}
		slices.Sort(times)
		fmt.Fprintf(&b, "| %d | %.2f | %.2f | %.2f | %d |\n", n, median(times), times[0], times[len(times)-1], queries)
	}
	return write(out, &b)
}

// measureDrift measures Drift with more and more tenants in one database, and of the first of them when there are many others.
func measureDrift(ctx context.Context, o *options, out io.Writer, server *pgtenancytest.Server) error {
	few := max(1, o.migrateTenants/10)
	sizes := []int{few, o.migrateTenants, 2 * o.migrateTenants}
	db, err := createMigrateDB(ctx, server, "drift", sizes[len(sizes)-1], o.workers, true)
	if err != nil {
		return err
	}
	files := migrationFiles(migrateTables)
	var b strings.Builder
	fmt.Fprintf(&b, "\n### Drift, tenants of %d tables\n\n| tenants | of those with tables | ms, median | min | max | queries | µs/tenant |\n|--:|--:|--:|--:|--:|--:|--:|\n", migrateTables)
	had := 0
	for _, n := range sizes {
		// The other schemas stay empty, and their tenants are none yet.
		ids := make([]string, n)
		for i := range ids {
			ids[i] = tenantID(i)
		}
		if err := db.withFleet(ctx, files, nil, func(fleet *pgtenancy.Fleet) error {
			_, err := fleet.Migrate(ctx, &pgtenancy.MigrateOpts{Parallel: o.workers, Tenants: ids[had:]})
			return err
		}); err != nil {
			return err
		}
		if err := db.exec(ctx, func(conn *pgx.Conn) error {
			_, err := conn.Exec(ctx, "vacuum analyze")
			return err
		}); err != nil {
			return err
		}
		had = n
		asked := [][]string{ids}
		if n == o.migrateTenants {
			asked = append(asked, ids[:few])
		}
		for _, of := range asked {
			var times []float64
			var count queryCount
			err := db.withFleet(ctx, files, &count, func(fleet *pgtenancy.Fleet) error {
				for range o.migrateRounds {
					count.Store(0)
					start := time.Now()
					report, err := fleet.Drift(ctx, &pgtenancy.DriftOpts{Tenants: of})
					if err != nil {
						return err
					}
					if report.Tenants != len(of) || report.Drifted != 0 {
						return fmt.Errorf("%d of %d tenants drifted, want none of %d", report.Drifted, report.Tenants, len(of))
					}
					times = append(times, time.Since(start).Seconds()*1000)
				}
				return nil
			})
			if err != nil {
				return err
			}
			slices.Sort(times)
			fmt.Fprintf(&b, "| %d | %d | %.1f | %.1f | %.1f | %d | %.0f |\n", len(of), n, median(times), times[0], times[len(times)-1],
				count.Load(), median(times)*1000/float64(len(of)))
		}
	}
	return write(out, &b)
}

// measureHeap measures how much of the heap Migrate uses at most, with few and many tenants.
func measureHeap(ctx context.Context, o *options, out io.Writer, server *pgtenancytest.Server) error {
	var b strings.Builder
	b.WriteString("\n### Memory of Migrate, one small migration\n\n| tenants | heap at most, MiB | live at most, MiB | µs/tenant |\n|--:|--:|--:|--:|\n")
	files := fstest.MapFS{"tenant/001_notes.sql": {Data: []byte("create table notes (id int)")}}
	for i, n := range []int{max(1, o.migrateTenants/2), 5 * o.migrateTenants} {
		db, err := createMigrateDB(ctx, server, fmt.Sprintf("memory_%d", i), n, o.workers, true)
		if err != nil {
			return err
		}
		start := time.Now()
		heap, live, err := peakHeap(func() error { return db.migrate(ctx, files) })
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "| %d | %.1f | %.1f | %.0f |\n", n, heap/(1<<20), live/(1<<20), float64(time.Since(start).Microseconds())/float64(n))
	}
	return write(out, &b)
}

// peakHeap returns the most that the heap's objects took, and those of them that a garbage collection found alive, beyond
// what was there before f.
func peakHeap(f func() error) (heap, live float64, err error) {
	defer debug.SetGCPercent(debug.SetGCPercent(20)) // so that it is seen often enough what is alive
	samples := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/gc/heap/live:bytes"}}
	read := func() (float64, float64) {
		metrics.Read(samples)
		return float64(samples[0].Value.Uint64()), float64(samples[1].Value.Uint64())
	}
	runtime.GC()
	heap0, live0 := read()
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for tick := time.NewTicker(time.Millisecond); ; {
			select {
			case <-stop:
				tick.Stop()
				return
			case <-tick.C:
				h, l := read()
				heap, live = max(heap, h-heap0), max(live, l-live0)
			}
		}
	}()
	err = f()
	close(stop)
	<-done
	return heap, live, err
}
