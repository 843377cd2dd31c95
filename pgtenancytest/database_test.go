package pgtenancytest_test

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy/pgtenancytest"
)

func TestDatabase(t *testing.T) {
	t.Parallel()
	outer := pgtenancytest.Database(t)
	type seen struct{ url, name, server string }
	all := make(chan seen, 4)
	t.Run("group", func(t *testing.T) {
		for _, name := range []string{"a", "b", "ÄÖÜ and a name that is far too long for PostgreSQL, which takes no more than 63 bytes", "b"} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				url := pgtenancytest.Database(t)
				conn, err := pgx.Connect(t.Context(), url)
				if err != nil {
					t.Fatal(err)
				}
				// It stays open past the end of the test: it must not keep the database from being dropped.
				t.Cleanup(func() { _ = conn })
				s := seen{url: url}
				if err := conn.QueryRow(t.Context(), `SELECT current_database(), system_identifier::text
					FROM pg_control_system()`).Scan(&s.name, &s.server); err != nil {
					t.Fatal(err)
				}
				if _, err := conn.Exec(t.Context(), "CREATE TABLE orders (id int)"); err != nil {
					t.Error(err)
				}
				all <- s
			})
		}
	})
	close(all)
	names := map[string]bool{}
	for s := range all {
		if names[s.name] {
			t.Errorf("two tests got the database %s", s.name)
		}
		names[s.name] = true
		if server := mustQuery[string](t, outer, "SELECT system_identifier::text FROM pg_control_system()"); server != s.server {
			t.Errorf("the test of %s got another server", s.name)
		}
		if hasDatabase(t, outer, s.name) {
			t.Errorf("database %s was not dropped", s.name)
		}
	}
}

func TestDatabaseOnServerThatStays(t *testing.T) {
	t.Parallel()
	server := pgtenancytest.Database(t) // as good as any server
	for _, tt := range []struct {
		name, child string
		kept        bool
	}{
		{"passed", "database", false},
		{"failed", "database of a failed test", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, err := child(t, tt.child, "DATABASE_URL="+server).Output()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			_, name, ok := strings.Cut(string(out), "/testfake_")
			name, _, _ = strings.Cut("testfake_"+name, "?")
			if !ok {
				t.Fatalf("no database in:\n%s", out)
			}
			if kept := hasDatabase(t, server, name); kept != tt.kept {
				t.Errorf("database %s kept: %v, want %v", name, kept, tt.kept)
			}
			if said := strings.Contains(string(out), "its database stays: postgres://"); said != tt.kept {
				t.Errorf("said that it stays: %v\n%s", said, out)
			}
			if tt.kept {
				conn, err := pgx.Connect(t.Context(), server)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close(context.Background())
				if _, err := conn.Exec(t.Context(), "DROP DATABASE "+name); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestDatabaseWithoutServer(t *testing.T) {
	t.Parallel()
	out, err := child(t, "database without a server", "DATABASE_URL=", "PGTENANCY_POSTGRES_BIN=", "PATH=/nowhere").Output()
	if err != nil || !strings.Contains(string(out), "no PostgreSQL server. Tried:") {
		t.Errorf("%v\n%s", err, out)
	}
}
