package main

import (
	"cmp"
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strings"
	"testing/fstest"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy"
	"github.com/pgtenancy/pgtenancy/pgtenancytest"
)

// provisionWay is a way to make a tenant.
type provisionWay struct {
	key, what string
	grants    bool // to a role of the application's
}

var provisionWays = func() (ways []provisionWay) {
	for _, grants := range []bool{false, true} {
		ways = append(ways,
			provisionWay{"limit", "bare pgx: CREATE SCHEMA and all statements as one string, one transaction", grants},
			provisionWay{"build", "`Fleet.Provision`, which builds the schema", grants},
			provisionWay{"spare", "`Fleet.Provision`, a spare is there", grants})
	}
	return ways
}()

// provisioner makes tenants in each way.
type provisioner struct {
	db             *migrateDB
	role           string                    // that is granted the use of schemas
	conn, watch    *pgx.Conn                 // the limit's, and one to look and to clean up
	fleets, keeper map[bool]*pgtenancy.Fleet // with grants and without: the one that is measured, and that of another process
	up             string                    // all migrations
	schemas        []string                  // made in this round
	tenants        []string                  // those of them that are registered
	bare           []string                  // those that are not, quoted
	next           int
}

func newProvisioner(ctx context.Context, db *migrateDB, files fstest.MapFS) (_ *provisioner, err error) {
	p := &provisioner{db: db, fleets: map[bool]*pgtenancy.Fleet{}, keeper: map[bool]*pgtenancy.Fleet{}}
	p.role = "bench_" + strings.ToLower(crand.Text()[:10])
	defer func() {
		if err != nil {
			p.close(ctx)
		}
	}()
	for _, conn := range []**pgx.Conn{&p.conn, &p.watch} {
		if *conn, err = pgx.ConnectConfig(ctx, db.conns.ConnConfig.Copy()); err != nil {
			return nil, err
		}
	}
	if _, err := p.watch.Exec(ctx, "create role "+p.role); err != nil {
		return nil, err
	}
	for _, of := range []map[bool]*pgtenancy.Fleet{p.fleets, p.keeper} {
		for _, grants := range []bool{false, true} {
			cfg := pgtenancy.FleetConfig{PoolConfig: pgtenancy.PoolConfig{Conns: db.conns.Copy()}, Migrations: files}
			if grants {
				cfg.AppRole = p.role
			}
			if of[grants], err = pgtenancy.Open(ctx, cfg); err != nil {
				return nil, err
			}
		}
	}
	p.up, err = script(files)
	return p, err
}

// script returns all migrations as one string.
func script(files fs.FS) (string, error) {
	names, err := fs.Glob(files, "tenant/*")
	if err != nil {
		return "", err
	}
	var b strings.Builder
	slices.Sort(names)
	for _, name := range names {
		text, err := fs.ReadFile(files, name)
		if err != nil {
			return "", err
		}
		b.Write(text)
	}
	return b.String(), nil
}

func (p *provisioner) close(ctx context.Context) {
	for _, of := range []map[bool]*pgtenancy.Fleet{p.fleets, p.keeper} {
		for _, fleet := range of {
			if fleet != nil {
				fleet.Close()
			}
		}
	}
	ctx = context.WithoutCancel(ctx)
	if p.watch != nil {
		_, _ = p.watch.Exec(ctx, "drop owned by "+p.role+"; drop role "+p.role) // which may not be there yet
	}
	for _, conn := range []*pgx.Conn{p.conn, p.watch} {
		if conn != nil {
			_ = conn.Close(ctx)
		}
	}
}

// make makes a tenant, and returns how long that took.
func (p *provisioner) make(ctx context.Context, w provisionWay) (time.Duration, error) {
	p.next++
	id := fmt.Sprintf("new-%d", p.next)
	schema := pgtenancy.SchemaPrefixDefault + strings.ReplaceAll(id, "-", "_")
	quoted := pgx.Identifier{schema}.Sanitize()
	p.schemas = append(p.schemas, schema)
	if w.key == "limit" {
		p.bare = append(p.bare, quoted)
		sql := "begin;create schema " + quoted + ";"
		if w.grants {
			sql += fmt.Sprintf("grant usage on schema %s to %s;"+
				"alter default privileges in schema %[1]s grant select, insert, update, delete on tables to %[2]s;"+
				"alter default privileges in schema %[1]s grant usage, select on sequences to %[2]s;", quoted, p.role)
		}
		sql += "set local search_path to " + quoted + ", public;" + p.up + "commit"
		start := time.Now()
		_, err := p.conn.PgConn().Exec(ctx, sql).ReadAll()
		return time.Since(start), err
	}

	p.tenants = append(p.tenants, id)
	spares := 0
	if w.key == "spare" {
		spares = 1
		if err := p.refill(ctx, w.grants); err != nil {
			return 0, err
		}
	}
	if err := p.wantSpares(ctx, spares); err != nil {
		return 0, err
	}
	start := time.Now()
	_, err := p.fleets[w.grants].Provision(ctx, id, nil)
	took := time.Since(start)
	return took, errors.Join(err, p.wantSpares(ctx, 0))
}

// refill fills the empty stock up to one, as another process would.
func (p *provisioner) refill(ctx context.Context, grants bool) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan error, 1)
	go func() { done <- p.keeper[grants].KeepSpares(ctx, 1) }()
	for {
		n, err := p.spares(ctx)
		if err != nil || n > 0 {
			stop()
			return errors.Join(err, <-done)
		}
		select {
		case err := <-done:
			return cmp.Or(err, context.Cause(ctx))
		case <-time.After(time.Millisecond):
		}
	}
}

func (p *provisioner) spares(ctx context.Context) (n int, err error) {
	err = p.watch.QueryRow(ctx, "select count(*) from pgtenancy.spares").Scan(&n)
	return n, err
}

func (p *provisioner) wantSpares(ctx context.Context, want int) error {
	if n, err := p.spares(ctx); err != nil || n != want {
		return errors.Join(err, fmt.Errorf("there are %d spares, want %d", n, want))
	}
	return nil
}

// clean checks what was made, and removes it.
func (p *provisioner) clean(ctx context.Context) error {
	var tables int
	if err := p.watch.QueryRow(ctx, `select count(*) from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
		where n.nspname = any($1) and c.relkind = 'r' and c.relname like 'items\_%'`, p.schemas).Scan(&tables); err != nil {
		return err
	}
	if want := migrateTables * len(p.schemas); tables != want {
		return fmt.Errorf("there are %d tables, want %d", tables, want)
	}
	for _, schema := range p.bare {
		if _, err := p.watch.Exec(ctx, "set client_min_messages to warning; drop schema "+schema+" cascade"); err != nil {
			return err
		}
	}
	if err := remove(ctx, p.keeper[false], p.tenants...); err != nil {
		return err
	}
	p.schemas, p.tenants, p.bare = nil, nil, nil
	return nil
}

// measureProvision compares the ways one by one, beside tenants that are there.
func measureProvision(ctx context.Context, o *options, out io.Writer, server *pgtenancytest.Server, setup migrateSetup) error {
	db, err := createMigrateDB(ctx, server, "provision", o.life.catalog, o.workers, true)
	if err != nil {
		return err
	}
	files := migrationFiles(migrateTables)
	if err := db.migrate(ctx, files); err != nil {
		return err
	}
	if err := db.exec(ctx, func(conn *pgx.Conn) error { return settle(ctx, conn) }); err != nil {
		return err
	}
	p, err := newProvisioner(ctx, db, files)
	if err != nil {
		return err
	}
	defer p.close(ctx)
	r := rand.New(rand.NewPCG(o.seed, 0))
	order := slices.Clone(provisionWays)
	var rounds []map[provisionWay]time.Duration
	for round := -1; round < o.life.provisionRounds; round++ { // one to warm up
		of := map[provisionWay]time.Duration{}
		r.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		for _, w := range order {
			if of[w], err = p.make(ctx, w); err != nil {
				return fmt.Errorf("%s: %w", w.what, err)
			}
		}
		if round >= 0 {
			rounds = append(rounds, of)
		}
		if err := p.clean(ctx); err != nil {
			return err
		}
		if round%10 == 9 { // what was removed is in the catalogs until then
			if err := vacuumCatalogs(ctx, p.watch); err != nil {
				return err
			}
		}
	}

	var b strings.Builder
	fmt.Fprintf(&b, "\n### A new tenant of %d tables in %[1]d files beside %d tenants, one at a time, fsync %s: milliseconds, "+
		"median of %d (min to max)\n\n", migrateTables, o.life.catalog, setup.fsync, o.life.provisionRounds)
	b.WriteString("| grants | way | ms | times bare pgx | times a built one |\n|---|---|--:|--:|--:|\n")
	for _, w := range provisionWays {
		ms := collect(rounds, func(of map[provisionWay]time.Duration) float64 { return of[w].Seconds() * 1000 })
		times := func(key string) float64 {
			i := slices.IndexFunc(provisionWays, func(v provisionWay) bool { return v.key == key && v.grants == w.grants })
			return median(collect(rounds, func(of map[provisionWay]time.Duration) float64 {
				return of[w].Seconds() / of[provisionWays[i]].Seconds()
			}))
		}
		grants := "none"
		if w.grants {
			grants = "to a role"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %.2f | %.2f |\n", grants, w.what, spread(ms), times("limit"), times("build"))
	}
	return write(out, &b)
}

func vacuumCatalogs(ctx context.Context, conn *pgx.Conn) error {
	rows, _ := conn.Query(ctx, `select 'vacuum ' || c.oid::regclass from pg_catalog.pg_class c
		where c.relnamespace = 'pg_catalog'::regnamespace and c.relkind = 'r' and not c.relisshared`) // the error is in rows
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, sql := range all {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return err
		}
	}
	return nil
}
