package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/pgtenancy/pgtenancy"
	"github.com/pgtenancy/pgtenancy/pgtenancytest"
)

// TestMigrate runs all cases with 4 tenants. It is not parallel: the servers are told where their programs and files are by
// the environment.
func TestMigrate(t *testing.T) {
	t.Setenv("DATABASE_URL", "")
	var out bytes.Buffer
	err := run(t.Context(), []string{"-what=migrate", "-migrate-tenants=4", "-goose-tenants=3", "-migrate-rounds=1", "-workers=2"}, &out)
	t.Logf("%s", &out)
	if errors.Is(err, errSkipped) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, fsync := range []string{"on", "off"} {
		if !strings.Contains(out.String(), "fsync="+fsync+",") || !strings.Contains(out.String(), "2 at a time, fsync "+fsync) {
			t.Errorf("no server has fsync %s", fsync)
		}
	}
	for _, m := range migrators {
		if n := strings.Count(out.String(), "\n| "+m.what+" |"); n != 2 {
			t.Errorf("%d tables have a row for %s, want 2", n, m.key)
		}
	}
	for _, row := range []string{
		"\n| 4 | ", "\n| 40 | ", // nothing to migrate
		"\n| 1 | 1 | ", "\n| 4 | 4 | ", "\n| 1 | 4 | ", "\n| 8 | 8 | ", // drift
		"\n| 2 | ", "\n| 20 | ", // memory
	} {
		if !strings.Contains(out.String(), row) {
			t.Errorf("no row begins with %q", row)
		}
	}
}

// testMigrateDB makes a database that goes with the test.
func testMigrateDB(tb testing.TB, n int, registered bool) *migrateDB {
	tb.Helper()
	if err := checkServer(); err != nil {
		tb.Fatal(err)
	}
	db, err := newMigrateDB(tb.Context(), pgtenancytest.Database(tb), n, 2, registered)
	if err != nil {
		tb.Fatal(err)
	}
	return db
}

// TestMigrateCheck looks at what the check after each case finds.
func TestMigrateCheck(t *testing.T) {
	t.Parallel()
	db := testMigrateDB(t, 2, true)
	if err := db.check(t.Context(), 1); err == nil {
		t.Error("empty schemas pass for migrated ones")
	}
	if err := db.migrate(t.Context(), migrationFiles(migrateTables+1)); err != nil {
		t.Fatal(err)
	}
	for n, want := range map[int]bool{migrateTables - 1: false, migrateTables: false, migrateTables + 1: true, migrateTables + 2: false} {
		if err := db.check(t.Context(), n); (err == nil) != want {
			t.Errorf("after %d files the check for %d says %v", migrateTables+1, n, err)
		}
	}
}

// BenchmarkMigrate adds a column to a table of each of 20 tenants, two at a time.
func BenchmarkMigrate(b *testing.B) {
	for _, m := range migrators {
		b.Run(m.key, func(b *testing.B) {
			db := testMigrateDB(b, 20, m.key == "pgtenancy")
			n := migrateTables
			if err := m.run(b.Context(), db, migrationFiles(n), 0); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if err := m.run(b.Context(), db, migrationFiles(n+1), n); err != nil {
					b.Fatal(err)
				}
				n++
			}
			if err := db.check(b.Context(), n); err != nil {
				b.Error(err)
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*len(db.schemas)), "µs/tenant")
		})
	}
}

// BenchmarkDrift compares 20 tenants that are alike.
func BenchmarkDrift(b *testing.B) {
	db := testMigrateDB(b, 20, true)
	files := migrationFiles(migrateTables)
	err := db.withFleet(b.Context(), files, nil, func(fleet *pgtenancy.Fleet) error {
		if _, err := fleet.Migrate(b.Context(), nil); err != nil {
			return err
		}
		b.ReportAllocs()
		for b.Loop() {
			if _, err := fleet.Drift(b.Context(), nil); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
}
