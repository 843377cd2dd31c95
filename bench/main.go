// Command bench measures pgtenancy beside other ways to reach a tenant's tables, on a server of its own on this machine, and
// prints tables in Markdown. README.md says what it measures.
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy/pgtenancytest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	switch err := run(ctx, os.Args[1:], os.Stdout); {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		stop()
		log.Fatal(err)
	}
}

// options are the flags.
type options struct {
	what       []string
	strategies []strategy
	tenants    []int
	choices    []string
	delays     []time.Duration
	conns      int
	goroutines int
	rounds     int
	round      time.Duration
	warm       time.Duration
	memory     int
	flood      int
	service    time.Duration
	svg        string
	raw        string
	seed       uint64
	limit      time.Duration

	bins           []string
	fsync          []string
	disk           string
	migrateTenants int
	fsyncTenants   int
	gooseTenants   int
	migrateRounds  int
	workers        int
	rlsRows        int
	rlsTenants     int
	rolesTenants   int

	life lifeOptions
}

func parse(args []string, out io.Writer) (*options, error) {
	var o options
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(out)
	what := f.String("what", "read,memory,fairness", "what to measure; migrate, life, rls, audit and roles are there too")
	keys := f.String("strategies", "", "the `strategies` of read, all unless told; the others are compared with the first")
	tenants := f.String("tenants", "100,2000", "read: numbers of tenants")
	choices := f.String("choices", "uniform,zipf", "read: how requests choose their tenant")
	delays := f.String("delays", "0s,1ms", "read: round-trip times to add")
	f.IntVar(&o.conns, "conns", 8, "read, fairness and audit: connections of a pool")
	f.IntVar(&o.goroutines, "goroutines", 16, "read and audit: requests at a time")
	f.IntVar(&o.rounds, "rounds", 7, "read and fairness: rounds, each of all strategies in random order")
	f.DurationVar(&o.round, "round", 2*time.Second, "read and fairness: time of one strategy in a round")
	f.DurationVar(&o.warm, "warm", time.Second, "read: time of each strategy before it is measured, in each round")
	f.IntVar(&o.memory, "memory-tenants", 1000, "memory: number of tenants, of 10 tables each")
	f.IntVar(&o.flood, "flood", 500, "fairness: requests at a time of the tenant that floods")
	f.DurationVar(&o.service, "service", 2*time.Millisecond, "fairness: time that a request takes on the server")
	f.StringVar(&o.svg, "svg", "", "fairness: `file` for the plot")
	f.StringVar(&o.raw, "raw", "", "read: `file` for the rounds in Go's benchmark format, which benchstat reads")
	bins := f.String("bins", "", "migrate and life: `directories` of servers' programs, separated by commas; the one that is found unless told")
	fsync := f.String("fsync", "on,off", "migrate and life: the servers' fsync")
	f.StringVar(&o.disk, "disk", "", "migrate and life: `directory` for the files of servers with fsync, which should not be in memory; TMPDIR unless told")
	f.IntVar(&o.migrateTenants, "migrate-tenants", 1000, "migrate: number of tenants")
	f.IntVar(&o.fsyncTenants, "fsync-tenants", 250, "migrate: number of tenants with fsync: a disk may take longer to remove their files than to migrate them")
	f.IntVar(&o.gooseTenants, "goose-tenants", 100, "migrate: number of those that goose gets")
	f.IntVar(&o.migrateRounds, "migrate-rounds", 5, "migrate: rounds, each of all ways in random order")
	f.IntVar(&o.workers, "workers", 4, "migrate and life: tenants at a time")
	o.life.flags(f)
	f.IntVar(&o.rlsRows, "rls-rows", 1000000, "rls: rows of the shared table")
	f.IntVar(&o.rolesTenants, "roles-tenants", 5000, "roles: number of tenants")
	f.IntVar(&o.rlsTenants, "rls-tenants", 1000, "rls: tenants among whom they are shared")
	f.Uint64Var(&o.seed, "seed", 1, "seed of all random choices")
	f.DurationVar(&o.limit, "limit", time.Hour, "time after which it gives up")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	var errs []error
	bound := func(name string, v, least, most int) {
		if v < least || v > most {
			errs = append(errs, fmt.Errorf("-%s must be from %d to %d", name, least, most))
		}
	}
	limited := func(name string, d, most time.Duration) {
		if d < 0 || d > most {
			errs = append(errs, fmt.Errorf("-%s must be from 0 to %v", name, most))
		}
	}
	if f.NArg() > 0 {
		errs = append(errs, fmt.Errorf("unexpected argument %q", f.Arg(0)))
	}
	o.what = strings.Split(*what, ",")
	for _, w := range o.what {
		if !slices.Contains([]string{"read", "memory", "fairness", "migrate", "life", "rls", "audit", "roles"}, w) {
			errs = append(errs, fmt.Errorf("-what: nothing is called %q", w))
		}
	}
	var err error
	if o.strategies, err = selected(*keys); err != nil {
		errs = append(errs, err)
	}
	for s := range strings.SplitSeq(*tenants, ",") {
		n, err := strconv.Atoi(s)
		errs = append(errs, err)
		bound("tenants", n, 1, 20000)
		o.tenants = append(o.tenants, n)
	}
	o.choices = strings.Split(*choices, ",")
	for _, c := range o.choices {
		if choosers[c] == nil {
			errs = append(errs, fmt.Errorf("-choices: nothing is called %q", c))
		}
	}
	for s := range strings.SplitSeq(*delays, ",") {
		d, err := time.ParseDuration(s)
		errs = append(errs, err)
		limited("delays", d, time.Second)
		o.delays = append(o.delays, d)
	}
	if *bins != "" {
		o.bins = strings.Split(*bins, ",")
	}
	o.fsync = strings.Split(*fsync, ",")
	for _, v := range o.fsync {
		if v != "on" && v != "off" {
			errs = append(errs, fmt.Errorf("-fsync must be on or off, not %q", v))
		}
	}
	bound("migrate-tenants", o.migrateTenants, 1, 5000)
	bound("fsync-tenants", o.fsyncTenants, 1, 5000)
	bound("goose-tenants", o.gooseTenants, 1, 5000)
	bound("migrate-rounds", o.migrateRounds, 1, 100)
	bound("workers", o.workers, 1, 50)
	errs = append(errs, o.life.check(bound))
	bound("rls-rows", o.rlsRows, 1, 100000000)
	bound("roles-tenants", o.rolesTenants, 10, 20000)
	bound("rls-tenants", o.rlsTenants, 1, min(5000, max(1, o.rlsRows)))
	bound("conns", o.conns, 1, 100)
	bound("goroutines", o.goroutines, 1, 1000)
	bound("rounds", o.rounds, 1, 100)
	bound("memory-tenants", o.memory, 1, 5000)
	bound("flood", o.flood, 1, 5000)
	limited("round", o.round, time.Minute)
	limited("warm", o.warm, 5*time.Minute)
	limited("service", o.service, time.Second)
	limited("limit", o.limit, 12*time.Hour)
	return &o, errors.Join(errs...)
}

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	o, err := parse(args, out)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, o.limit, fmt.Errorf("not done within -limit %v", o.limit))
	defer cancel()
	raw := io.Discard
	if o.raw != "" {
		f, createErr := os.Create(o.raw)
		if createErr != nil {
			return createErr
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		raw = f
	}
	if err := checkServer(); err != nil {
		return err
	}
	if err := describe(ctx, out, args); err != nil {
		return err
	}
	var server *pgtenancytest.Server
	if slices.ContainsFunc(o.what, func(w string) bool { return w != "migrate" && w != "life" }) { // which start their own
		if server, err = pgtenancytest.Start(ctx); err != nil {
			return err
		}
		defer server.Close()
		if err := describeServer(ctx, out, server); err != nil {
			return err
		}
	}
	for _, what := range o.what {
		switch what {
		case "read":
			for _, n := range o.tenants {
				if err := withDatabase(ctx, server, n, 1, func(db *database) error { return reads(ctx, o, out, raw, db) }); err != nil {
					return err
				}
			}
		case "memory":
			err = withDatabase(ctx, server, o.memory, memoryTables, func(db *database) error { return compareMemory(ctx, out, db) })
		case "fairness":
			err = withDatabase(ctx, server, 2, 1, func(db *database) error { return compareFairness(ctx, o, out, db) })
		case "audit":
			err = withDatabase(ctx, server, auditTenants, 1, func(db *database) error { return compareAudit(ctx, o, out, db) })
		case "rls":
			err = withDatabase(ctx, server, o.rlsTenants, 1, func(db *database) error { return compareRLS(ctx, o, out, db) })
		case "roles":
			err = compareRoles(ctx, o, out, server)
		case "migrate":
			err = compareMigrations(ctx, o, out)
		case "life":
			err = compareLife(ctx, o, out)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// withDatabase calls f with a new database, which it drops afterwards.
func withDatabase(ctx context.Context, server *pgtenancytest.Server, tenants, tables int, f func(*database) error) (err error) {
	name := "bench_" + strings.ToLower(rand.Text()[:10])
	url, err := server.CreateDatabase(ctx, name)
	if err != nil {
		return err
	}
	var db *database
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		err = errors.Join(err, server.DropDatabase(ctx, name))
		if db != nil {
			err = errors.Join(err, db.dropRole(ctx))
		}
	}()
	if db, err = newDatabase(ctx, url, tenants, tables); err != nil {
		return err
	}
	return f(db)
}

// reads compares the strategies at each distance and with each choice of tenants.
func reads(ctx context.Context, o *options, out, raw io.Writer, db *database) error {
	for _, delay := range o.delays {
		err := func() error {
			db, where := db, "loopback"
			if delay > 0 {
				network, address := db.address()
				p, err := startProxy(network, address, delay/2)
				if err != nil {
					return err
				}
				defer p.Close()
				db, where = db.through(p), "loopback+"+delay.String()
			}
			rtt, err := roundTrip(ctx, db)
			if err != nil {
				return err
			}
			if _, err := fmt.Fprintf(out, "\nAn empty query on an idle connection takes %v (%s, median).\n", rtt.Round(time.Microsecond), where); err != nil {
				return err
			}
			for _, choice := range o.choices {
				if err := compareReads(ctx, o, out, raw, db, where, choice); err != nil {
					return err
				}
			}
			return nil
		}()
		if err != nil {
			return err
		}
	}
	return nil
}

// describe prints what has to stand with every number.
func describe(ctx context.Context, out io.Writer, args []string) error {
	versions := runtime.Version()
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, dep := range info.Deps {
			if slices.Contains([]string{"github.com/jackc/pgx/v5", "gorm.io/gorm", "github.com/pressly/goose/v3"}, dep.Path) {
				versions += ", " + dep.Path + " " + dep.Version
			}
		}
	}
	commit, err := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty").Output()
	if err != nil {
		commit = []byte("unknown")
	}
	var b strings.Builder
	fmt.Fprintf(&b, "- %s, commit %s\n", time.Now().UTC().Format(time.DateOnly), strings.TrimSpace(string(commit)))
	fmt.Fprintf(&b, "- `%s`\n", strings.TrimSpace("go run ./bench "+strings.Join(args, " ")))
	fmt.Fprintf(&b, "- %s, %d cores, %s/%s, shared by the program and the server\n", processor(), runtime.NumCPU(), runtime.GOOS, runtime.GOARCH)
	fmt.Fprintf(&b, "- %s\n", versions)
	return write(out, &b)
}

// describeServer prints what is measured on.
func describeServer(ctx context.Context, out io.Writer, server *pgtenancytest.Server) error {
	conn, err := pgx.Connect(ctx, server.URL())
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var b strings.Builder
	var postgres, settings string
	if err := conn.QueryRow(ctx, `select split_part(version(), ' on ', 1), (
		select string_agg(name || '=' || current_setting(name), ', ' order by name) from pg_settings
		where name in ('autovacuum', 'fsync', 'jit', 'max_connections', 'max_locks_per_transaction', 'plan_cache_mode', 'shared_buffers'))`,
	).Scan(&postgres, &settings); err != nil {
		return err
	}
	fmt.Fprintf(&b, "- %s (%s)\n", postgres, settings)
	return write(out, &b)
}

// processor returns its name and the memory, where Linux tells them.
func processor() string {
	field := func(file, name string) string {
		data, _ := os.ReadFile(file)
		for line := range strings.Lines(string(data)) {
			if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
				return strings.TrimSpace(value)
			}
		}
		return "unknown"
	}
	return field("/proc/cpuinfo", "model name") + ", memory " + field("/proc/meminfo", "MemTotal")
}
