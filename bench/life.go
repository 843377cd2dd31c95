package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy"
	"github.com/pgtenancy/pgtenancy/pgtenancytest"
)

// lifeOptions are the flags of life.
type lifeOptions struct {
	list            string
	parts           []string
	rounds          int
	catalog         int
	provisionRounds int
	backupTenants   int
	backupRows      int
	dumpTenants     int
	restoreRows     int
	usageTenants    int
	usageTables     int
}

var lifeParts = map[string]func(ctx context.Context, o *options, out io.Writer, server *pgtenancytest.Server, setup migrateSetup) error{
	"provision": measureProvision,
	"backup":    measureBackup,
	"restore":   measureRestore,
	"usage":     measureUsage,
}

func (l *lifeOptions) flags(f *flag.FlagSet) {
	f.StringVar(&l.list, "life", "provision,backup,restore,usage", "life: `parts` of it")
	f.IntVar(&l.rounds, "life-rounds", 5, "life: rounds of backup, restore and usage, each of all ways in random order")
	f.IntVar(&l.catalog, "provision-tenants", 300, "life, provision: number of tenants that are there already")
	f.IntVar(&l.provisionRounds, "provision-rounds", 60, "life, provision: rounds, each of one tenant of each way in random order")
	f.IntVar(&l.backupTenants, "backup-tenants", 1000, "life, backup: number of tenants, after a tenth and three tenths of them")
	f.IntVar(&l.backupRows, "backup-rows", 30, "life, backup: rows of each of a tenant's 10 tables")
	f.IntVar(&l.dumpTenants, "dump-tenants", 16, "life, backup: number of tenants that pg_dump gets")
	f.IntVar(&l.restoreRows, "restore-rows", 1000000, "life, restore: rows of the tenant")
	f.IntVar(&l.usageTenants, "usage-tenants", 10000, "life, usage: number of tenants")
	f.IntVar(&l.usageTables, "usage-tables", 2, "life, usage: tables of a tenant")
}

func (l *lifeOptions) check(bound func(name string, v, least, most int)) error {
	bound("life-rounds", l.rounds, 1, 100)
	bound("provision-tenants", l.catalog, 1, 5000)
	bound("provision-rounds", l.provisionRounds, 1, 1000)
	bound("backup-tenants", l.backupTenants, 1, 5000)
	bound("backup-rows", l.backupRows, 1, 100000)
	bound("dump-tenants", l.dumpTenants, 1, 1000)
	bound("restore-rows", l.restoreRows, 10, 100000000)
	bound("usage-tenants", l.usageTenants, 1, 100000)
	bound("usage-tables", l.usageTables, 1, migrateTables)
	l.parts = strings.Split(l.list, ",")
	for _, part := range l.parts {
		if lifeParts[part] == nil {
			return fmt.Errorf("-life: nothing is called %q", part)
		}
	}
	return nil
}

// compareLife measures the parts in databases of their own, on a server with fsync and one without. What reads needs only the latter.
func compareLife(ctx context.Context, o *options, out io.Writer) error {
	bins := o.bins
	if len(bins) == 0 {
		bin, err := installedBin(ctx)
		if err != nil {
			return err
		}
		bins = []string{bin}
	}
	for _, bin := range bins {
		for _, fsync := range []string{"on", "off"} {
			parts := slices.DeleteFunc(slices.Clone(o.life.parts), func(part string) bool {
				if part == "backup" || part == "usage" {
					return fsync == "on"
				}
				return !slices.Contains(o.fsync, fsync)
			})
			setup := migrateSetup{bin: bin, fsync: fsync}
			if fsync == "on" {
				setup.dir = o.disk
			}
			if err := measureLife(ctx, o, out, setup, parts); err != nil {
				return fmt.Errorf("%s, fsync %s: %w", bin, fsync, err)
			}
		}
	}
	return nil
}

// measureLife measures parts on one server.
func measureLife(ctx context.Context, o *options, out io.Writer, setup migrateSetup, parts []string) error {
	if len(parts) == 0 {
		return nil
	}
	server, err := setup.start(ctx)
	if err != nil {
		return err
	}
	defer server.Close()
	if err := describeServer(ctx, out, server); err != nil {
		return err
	}
	for _, part := range parts {
		if err := lifeParts[part](ctx, o, out, server, setup); err != nil {
			return fmt.Errorf("%s: %w", part, err)
		}
	}
	return nil
}

// settle leaves nothing to be done later of what was prepared.
func settle(ctx context.Context, conn *pgx.Conn) error {
	for _, sql := range []string{"vacuum analyze", "checkpoint"} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return err
		}
	}
	return nil
}

// remove deletes and purges tenants.
func remove(ctx context.Context, fleet *pgtenancy.Fleet, ids ...string) error {
	for _, id := range ids {
		if err := fleet.Delete(ctx, id, nil); err != nil {
			return err
		}
		if _, err := fleet.Purge(ctx, id, &pgtenancy.PurgeOpts{Force: true}); err != nil {
			return err
		}
	}
	return nil
}

// spread returns the median of ms in its table's form.
func spread(ms []float64) string {
	return fmt.Sprintf("%.2f (%.2f to %.2f)", median(ms), ms[0], ms[len(ms)-1])
}

// client returns the path of one of PostgreSQL's clients, of the same version as the server where that has one.
func client(bin, name string) (string, error) {
	path := filepath.Join(bin, name)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%w: there is no %s in %s, nor in the PATH", errSkipped, name, bin)
	}
	return path, nil
}

// runClient runs one of them. Its messages are in the error.
func runClient(ctx context.Context, stdin, path string, args ...string) error {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdin = strings.NewReader(stdin)
	if message, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(path), err, strings.TrimSpace(string(message)))
	}
	return nil
}
