package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy"
)

// TestLife runs all parts with a few tenants. It is not parallel, as TestMigrate.
func TestLife(t *testing.T) {
	t.Setenv("DATABASE_URL", "")
	bin, err := installedBin(t.Context())
	if errors.Is(err, errSkipped) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	err = run(t.Context(), []string{
		"-what=life", "-bins=" + bin, "-fsync=on", "-workers=2", "-life-rounds=1", "-provision-tenants=2", "-provision-rounds=2",
		"-backup-tenants=10", "-backup-rows=3", "-dump-tenants=2", "-restore-rows=200", "-usage-tenants=10",
	}, &out)
	t.Logf("%s", &out)
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]int{
		"\n| 1 | ": 1, "\n| 3 | ": 1, "\n| 10 | ": 1, // backup
		"\n| 20 | ": 1, "\n| 200 | ": 1, // memory of restore
		"\n| `Fleet.Usage` | 1 | ": 1, "\n| `Fleet.Usage` | 10 | ": 1, " without a schema | 30 | ": 1,
	}
	for _, w := range provisionWays {
		rows["| "+w.what+" | "] = 2
	}
	for _, w := range restoreWays {
		if _, err := client(bin, "psql"); err == nil || w.key == "restore" {
			rows["\n| "+w.what+" | "] = 1
		}
	}
	for row, want := range rows {
		if n := strings.Count(out.String(), row); n != want {
			t.Errorf("%d rows begin with %q, want %d", n, row, want)
		}
	}
	on, off, _ := strings.Cut(out.String(), "fsync=off,")
	for head, want := range map[string]string{"### A new tenant": on, "### Restore": on, "### Backup": off, "### What tenants take": off} {
		if !strings.Contains(on, "fsync=on,") || !strings.Contains(want, "\n"+head) || strings.Count(out.String(), "\n"+head) != 1 {
			t.Errorf("%q is not there once and on the right server", head)
		}
	}
}

func TestLifeOptions(t *testing.T) {
	t.Parallel()
	for _, args := range []string{
		"-life=x", "-life-rounds=0", "-provision-tenants=0", "-provision-rounds=0", "-backup-tenants=0", "-backup-rows=0", "-dump-tenants=0",
		"-restore-rows=0", "-usage-tenants=0", "-usage-tables=11",
	} {
		if _, err := parse([]string{"-what=life", args}, io.Discard); err == nil {
			t.Errorf("%s is accepted", args)
		}
	}
	if o, err := parse([]string{"-what=life", "-life=usage"}, io.Discard); err != nil || len(o.life.parts) != 1 {
		t.Errorf("one part: %v", err)
	}
}

// TestClient has a directory's own clients come first.
func TestClient(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	t.Setenv("PATH", other)
	if _, err := client(dir, "psql"); !errors.Is(err, errSkipped) {
		t.Errorf("without any: %v", err)
	}
	for _, d := range []string{other, dir} {
		want := filepath.Join(d, "psql")
		if err := os.WriteFile(want, nil, 0o755); err != nil {
			t.Fatal(err)
		}
		if got, err := client(dir, "psql"); err != nil || got != want {
			t.Errorf("it finds %s, %v, want %s", got, err, want)
		}
	}
}

// BenchmarkProvision makes a tenant of 10 tables, and removes it.
func BenchmarkProvision(b *testing.B) {
	db := testMigrateDB(b, 5, true)
	files := migrationFiles(migrateTables)
	if err := db.migrate(b.Context(), files); err != nil {
		b.Fatal(err)
	}
	p, err := newProvisioner(b.Context(), db, files)
	if err != nil {
		b.Fatal(err)
	}
	defer p.close(context.Background())
	for _, w := range provisionWays {
		b.Run(fmt.Sprintf("%s/grants=%t", w.key, w.grants), func(b *testing.B) {
			var ms float64
			for b.Loop() {
				took, err := p.make(b.Context(), w)
				if err != nil {
					b.Fatal(err)
				}
				ms += took.Seconds() * 1000
				if err := p.clean(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(ms/float64(b.N), "ms/tenant") // without what prepares and cleans up
		})
	}
}

// BenchmarkBackup backs up 20 tenants of 10 tables, two at a time.
func BenchmarkBackup(b *testing.B) {
	db := testMigrateDB(b, 20, true)
	files := migrationFiles(migrateTables)
	if err := db.migrate(b.Context(), files); err != nil {
		b.Fatal(err)
	}
	if err := db.fill(b.Context(), migrateTables, rows); err != nil {
		b.Fatal(err)
	}
	store := pgtenancy.DirStore(b.TempDir())
	err := db.withFleet(b.Context(), files, nil, func(fleet *pgtenancy.Fleet) error {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := fleet.Backup(b.Context(), store, &pgtenancy.BackupOpts{Parallel: 2}); err != nil {
				return err
			}
		}
		b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*len(db.schemas)), "µs/tenant")
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
}

// BenchmarkRestore restores a tenant with 10,000 rows in one table, and removes it.
func BenchmarkRestore(b *testing.B) {
	const rows = 10000
	db := testMigrateDB(b, 0, true)
	files := fstest.MapFS{"tenant/001_events.sql": {Data: []byte(eventsTable + eventsKeys)}}
	err := db.withFleet(b.Context(), files, nil, func(fleet *pgtenancy.Fleet) error {
		return db.exec(b.Context(), func(conn *pgx.Conn) error {
			r := &restorer{db, fleet, conn, pgtenancy.DirStore(b.TempDir()), b.TempDir()}
			o, _, _, err := r.tenant(b.Context(), "source", rows)
			if err != nil {
				return err
			}
			for b.Loop() {
				if _, err := fleet.Restore(b.Context(), r.store, o.Name, &pgtenancy.RestoreOpts{As: "copy"}); err != nil {
					return err
				}
				b.StopTimer()
				if err := remove(b.Context(), fleet, "copy"); err != nil {
					return err
				}
				b.StartTimer()
			}
			b.ReportMetric(float64(b.N*rows)/b.Elapsed().Seconds(), "rows/s")
			return nil
		})
	})
	if err != nil {
		b.Fatal(err)
	}
}

// BenchmarkUsage asks what 100 tenants of 2 tables take.
func BenchmarkUsage(b *testing.B) {
	db := testMigrateDB(b, 100, true)
	if err := runLimit(b.Context(), db, migrationFiles(2), 0); err != nil {
		b.Fatal(err)
	}
	err := db.withFleet(b.Context(), nil, nil, func(fleet *pgtenancy.Fleet) error {
		for _, exact := range []bool{false, true} {
			b.Run(fmt.Sprintf("exact=%t", exact), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					for _, err := range fleet.Usage(b.Context(), &pgtenancy.UsageOpts{Exact: exact}) {
						if err != nil {
							b.Fatal(err)
						}
					}
				}
			})
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
}
