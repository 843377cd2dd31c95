package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/pgtenancy/pgtenancy/pgtenancytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// varies is what is another each time: the server, the moment of a backup, the ID of a tenant that was set aside.
var varies = regexp.MustCompile(`PostgreSQL: .*|\d{8}T\d{6}\.\d{6}Z|-old-[a-z0-9]{8}\b`)

// It prints what README.md says.
func TestReadme(t *testing.T) {
	url := pgtenancytest.Database(t)
	t.Setenv("DATABASE_URL", url)
	dir := t.TempDir()
	var out strings.Builder
	if err := run(t.Context(), dir, &out); err != nil {
		t.Fatalf("run: %v\n%s", err, &out)
	}
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, block, _ := strings.Cut(string(readme), "    PostgreSQL: ")
	block, _, _ = strings.Cut("    PostgreSQL: "+block, "\n\nThe newest")
	var want strings.Builder
	for line := range strings.Lines(block + "\n") {
		want.WriteString(strings.TrimPrefix(line, "    "))
	}
	if diff := cmp.Diff(varies.ReplaceAllString(want.String(), "..."), varies.ReplaceAllString(out.String(), "...")); diff != "" {
		t.Errorf("it does not print what README.md says (-want +got):\n%s", diff)
	}

	// What it says is so.
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	for _, q := range []struct{ what, sql, want string }{
		{
			"customers of acme", "select string_agg(email, ' ' order by id) from tenant_acme.customers",
			"road@acme.example wile@acme.example sam@sheepdog.example new@road.example",
		},
		{"orders of acme, today's too", "select count(*)::text from tenant_acme.orders", "9"},
		{"orders of globex, without today's", "select count(*)::text from tenant_globex.orders", "4"},
		{
			"tenants", "select string_agg(regexp_replace(id, '-old-.*', '-old') || ' ' || state, ', ' order by id) from pgtenancy.tenants",
			"acme active, globex active, globex-old deleted, initech active",
		},
	} {
		var got string
		if err := conn.QueryRow(t.Context(), q.sql).Scan(&got); err != nil || got != q.want {
			t.Errorf("%s: %s, %v, want %s", q.what, got, err, q.want)
		}
	}
	for _, tenant := range []string{"acme", "globex", "initech"} {
		if files, err := filepath.Glob(filepath.Join(dir, tenant, "*.tar.gz")); err != nil || len(files) != keep {
			t.Errorf("there are backups %q of %s, want %d", files, tenant, keep)
		}
	}
}

// It runs again on a database of before, with backups in a directory of its own.
func TestAgain(t *testing.T) {
	t.Setenv("DATABASE_URL", pgtenancytest.Database(t))
	t.Setenv("TMPDIR", t.TempDir())
	for range 2 {
		var out strings.Builder
		if err := run(t.Context(), "", &out); err != nil {
			t.Fatalf("run: %v\n%s", err, &out)
		}
	}
	if left, err := os.ReadDir(os.Getenv("TMPDIR")); err != nil || len(left) > 0 {
		t.Errorf("it leaves %v, %v", left, err)
	}
}
