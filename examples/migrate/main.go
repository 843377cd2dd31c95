// Command migrate rolls a release's migrations out over many tenants: the plan, a canary, waves, progress, and what came of it.
//
//	go run ./examples/migrate
//
// It starts a throwaway PostgreSQL unless DATABASE_URL names one.
package main

import (
	"context"
	"embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgtenancy/pgtenancy"
	"github.com/pgtenancy/pgtenancy/pgtenancytest"
	_ "github.com/pgtenancy/pgtenancy/pgtenancytest/container" // where no PostgreSQL is installed: Docker,
	_ "github.com/pgtenancy/pgtenancy/pgtenancytest/download"  // or a download
)

// releases has the migrations of two versions of a service. A real one has the newest of them only.
//
//go:embed releases
var releases embed.FS

func main() {
	tenants := flag.Int("tenants", 200, "number of tenants")
	trouble := flag.Bool("trouble", false, "let one tenant have a row that a migration does not like")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *tenants, *trouble, os.Stdout); err != nil {
		stop()
		log.Fatal(err)
	}
}

func run(ctx context.Context, tenants int, trouble bool, out io.Writer) error {
	server, err := pgtenancytest.Start(ctx) // DATABASE_URL, where it is set
	if err != nil {
		return err
	}
	defer server.Close()
	fmt.Fprintf(out, "PostgreSQL: %s\n", server.Source())
	if err := before(ctx, server.URL(), tenants, out); err != nil {
		return err
	}

	// The new release starts here.
	fleet, err := open(ctx, server.URL(), "releases/2")
	if err != nil {
		return err
	}
	defer fleet.Close()
	if trouble {
		if err := makeTrouble(ctx, fleet); err != nil {
			return err
		}
	}
	if err := plan(ctx, fleet, out); err != nil {
		return err
	}
	if err := rollOut(ctx, fleet, out); err != nil {
		return err
	}
	return look(ctx, fleet, out)
}

// open opens the fleet with the migrations of one release.
func open(ctx context.Context, url, release string) (*pgtenancy.Fleet, error) {
	conns, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, err
	}
	migrations, err := fs.Sub(releases, release)
	if err != nil {
		return nil, err
	}
	return pgtenancy.Open(ctx, pgtenancy.FleetConfig{PoolConfig: pgtenancy.PoolConfig{Conns: conns}, Migrations: migrations})
}

// before makes the fleet as the release before left it.
func before(ctx context.Context, url string, tenants int, out io.Writer) error {
	fleet, err := open(ctx, url, "releases/1")
	if err != nil {
		return err
	}
	defer fleet.Close()
	if _, err := fleet.Migrate(ctx, nil); err != nil {
		return err
	}
	started := time.Now()
	for i := 1; i <= tenants && ctx.Err() == nil; i++ {
		if _, err := fleet.Provision(ctx, fmt.Sprintf("shop-%04d", i), nil); err != nil && !errors.Is(err, pgtenancy.ErrTenantExists) {
			return err
		}
	}
	fmt.Fprintf(out, "%d tenants of the release before, in %s\n", tenants, time.Since(started).Round(time.Millisecond))
	return ctx.Err()
}

// makeTrouble lets one tenant use up a name that the release wants.
func makeTrouble(ctx context.Context, fleet *pgtenancy.Fleet) error {
	for tenant, err := range fleet.Tenants(ctx, nil) {
		if err != nil {
			return err
		}
		if tenant.ID() != "shop-0042" {
			continue
		}
		_, err := fleet.Pool().For(tenant).Exec(ctx, "alter table orders add column if not exists status int")
		return err
	}
	return nil
}

// plan says what will be done, and what a reviewer should have seen in the migrations.
func plan(ctx context.Context, fleet *pgtenancy.Fleet, out io.Writer) error {
	report, err := fleet.Migrate(ctx, &pgtenancy.MigrateOpts{DryRun: true})
	if err != nil {
		return err
	}
	for _, group := range report.Plan.Tenants {
		fmt.Fprintf(out, "%d tenants at version %d need:\n", len(group.Tenants), group.Version)
		for _, m := range group.Migrations {
			fmt.Fprintf(out, "  %s\n", m.File)
		}
	}
	return nil
}

// rollOut migrates a canary and 5 more, then waves of 50.
func rollOut(ctx context.Context, fleet *pgtenancy.Fleet, out io.Writer) error {
	report, err := fleet.Migrate(ctx, &pgtenancy.MigrateOpts{
		Canary:          []string{"shop-0001"}, // our own account, say
		CanaryCount:     5,
		WaveSize:        50,
		MaxFailureShare: 0.05,
		AfterWave: func(ctx context.Context, w pgtenancy.Wave) error {
			fmt.Fprintf(out, "\nwave %d: %d tenants, %d failed\n", w.Number, w.Done, w.Failed)
			return healthy(ctx)
		},
		OnProgress: func(p pgtenancy.Progress) {
			fmt.Fprintf(out, "\r%d of %d, %d failed, %.0f a second, %s left   ", p.Done, p.Total, p.Failed, p.Rate, p.Remaining.Round(time.Second))
		},
	})
	fmt.Fprintf(out, "\n%d tenants are migrated, by %d migrations in %s\n", report.Tenants, report.Applied, report.Duration.Round(time.Millisecond))
	var failed *pgtenancy.MigrateError
	if !errors.As(err, &failed) {
		return err
	}
	// The others are done. Mend these, and call Migrate again: it does what is missing, and nothing else.
	for _, f := range failed.Failed {
		fmt.Fprintf(out, "  %s failed at %s:%d: %v\n", f.Tenant, f.File, f.Line, f.Err)
	}
	return failed.Stopped
}

// healthy is where a service looks at its error rates. An error stops the rollout.
func healthy(ctx context.Context) error { return ctx.Err() }

// look says where the fleet stands now, and who is not like the others.
func look(ctx context.Context, fleet *pgtenancy.Fleet, out io.Writer) error {
	status, err := fleet.Status(ctx)
	if err != nil {
		return err
	}
	for _, s := range status.Tenants {
		fmt.Fprintf(out, "%d tenants at version %d, %d migrations pending\n", s.Count, s.Version, len(s.Pending))
	}
	drift, err := fleet.Drift(ctx, &pgtenancy.DriftOpts{Fresh: true}) // from what the migrations would make
	if err != nil {
		return err
	}
	fmt.Fprintln(out, drift)
	return nil
}
