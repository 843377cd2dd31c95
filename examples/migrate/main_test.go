package main

import (
	"io/fs"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/pgtenancy/pgtenancy"
	"github.com/pgtenancy/pgtenancy/pgtenancytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestRun(t *testing.T) {
	for _, tt := range []struct {
		name    string
		trouble bool
		want    []string
	}{
		{"all is well", false, []string{
			"60 tenants at version 1 need:", "wave 1: 6 tenants, 0 failed", "wave 2: 50 tenants, 0 failed",
			"60 tenants are migrated, by 180 migrations", "60 tenants at version 4, 0 migrations pending",
		}},
		{"trouble", true, []string{
			"59 tenants are migrated, by 177 migrations", "shop-0042 failed at tenant/002_order_status.sql:2",
			"1 tenants at version 1, 3 migrations pending", "59 tenants at version 4, 0 migrations pending", "orders.status",
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("DATABASE_URL", pgtenancytest.Database(t))
			var out strings.Builder
			if err := run(t.Context(), 60, tt.trouble, &out); err != nil {
				t.Fatalf("run: %v\n%s", err, &out)
			}
			for _, want := range tt.want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("it does not print %q:\n%s", want, &out)
				}
			}
		})
	}
}

// What a team has in its own tests, too.
func TestMigrations(t *testing.T) {
	migrations, err := fs.Sub(releases, "releases/2")
	if err != nil {
		t.Fatal(err)
	}
	findings, err := pgtenancy.Check(migrations, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range findings {
		t.Error(f)
	}
}
