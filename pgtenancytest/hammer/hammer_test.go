package hammer_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy"
	"github.com/pgtenancy/pgtenancy/pgtenancytest"
	"github.com/pgtenancy/pgtenancy/pgtenancytest/hammer"
)

// newPool returns the pool of a role that owns nothing, and the superuser's connection URL.
func newPool(t *testing.T) (*pgtenancy.Pool, string) {
	t.Helper()
	admin := pgtenancytest.Database(t)
	conn, err := pgx.Connect(t.Context(), admin)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), `do $$ begin
			create role app login;
		exception when duplicate_object or unique_violation then null;
		end $$`); err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(admin)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.User("app")
	q := u.Query()
	q.Set("pool_max_conns", "4")
	u.RawQuery = q.Encode()
	pool, err := pgtenancy.NewPool(t.Context(), u.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool, admin
}

// recorder takes note of what a run says.
type recorder struct {
	testing.TB
	logs, failures strings.Builder
}

func (r *recorder) Logf(format string, args ...any)   { fmt.Fprintf(&r.logs, format+"\n", args...) }
func (r *recorder) Errorf(format string, args ...any) { fmt.Fprintf(&r.failures, format+"\n", args...) }

func (r *recorder) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	panic(r)
}

// run calls hammer.Run and returns what it says.
func run(t *testing.T, db hammer.DB, cfg hammer.Config) (logs, failures string) {
	t.Helper()
	r := &recorder{TB: t}
	func() {
		defer func() {
			if v := recover(); v != nil && v != any(r) {
				panic(v)
			}
		}()
		hammer.Run(r, db, cfg)
	}()
	return r.logs.String(), r.failures.String()
}

func TestRun(t *testing.T) {
	pool, admin := newPool(t)
	whose := func(ctx context.Context, tenant pgtenancy.Tenant, _ *rand.Rand) error {
		var got string
		if err := pool.QueryRow(ctx, "select tenant from hammer_rows limit 1").Scan(&got); err != nil {
			return err
		}
		return hammer.Check(tenant, got)
	}
	t.Setenv("PGTENANCY_HAMMER_DURATION", "500ms")
	t.Setenv("PGTENANCY_HAMMER_SEED", "7")
	logs, failures := run(t, pool, hammer.Config{Admin: admin, Duration: time.Hour, Ops: []hammer.Op{{Name: "mine", Weight: 50, Do: whose}}})
	if failures != "" {
		t.Error(failures)
	}
	for _, want := range []string{"as 200 tenants", "PGTENANCY_HAMMER_SEED=7", " mine ", " cancel "} {
		if !strings.Contains(logs, want) {
			t.Errorf("the report does not have %q:\n%s", want, logs)
		}
	}
	conn, err := pgx.Connect(t.Context(), admin)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var n int
	if err := conn.QueryRow(t.Context(), "select count(*) from pg_class where relname like 'hammer%'").Scan(&n); err != nil || n != 0 {
		t.Errorf("%d of the hammer's tables stay, %v", n, err)
	}
}

func TestRunFails(t *testing.T) {
	pool, admin := newPool(t)
	var tenants []pgtenancy.Tenant
	conn, err := pgx.Connect(t.Context(), admin)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	for _, id := range []string{"acme", "globex"} {
		tenant, err := pgtenancy.NewTenant(pgtenancy.TenantInfo{ID: id})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Exec(t.Context(), "create schema "+tenant.Schema()+" authorization app"); err != nil {
			t.Fatal(err)
		}
		tenants = append(tenants, tenant)
	}
	op := func(do func() error) []hammer.Op { // so likely that it is what every worker begins with
		return []hammer.Op{{Name: "mine", Weight: 1 << 20, Do: func(context.Context, pgtenancy.Tenant, *rand.Rand) error { return do() }}}
	}
	var rows pgx.Rows
	stuck := make(chan struct{})
	defer close(stuck)
	defer hammer.SetTimeouts(2 * time.Second)()
	tests := []struct {
		name string
		cfg  hammer.Config
		want string
	}{
		{"a leak", hammer.Config{Ops: op(func() error { return fmt.Errorf("mine: %w", hammer.Check(tenants[0], "globex")) })}, `as "acme", row of "globex"`},
		{"no success", hammer.Config{Ops: op(func() error { return errors.New("sorry") })}, "mine never succeeded"},
		{"a panic", hammer.Config{Ops: op(func() error { panic("mine") })}, "panic: mine"},
		{"a connection that is kept", hammer.Config{Ops: op(func() error {
			if rows == nil {
				rows, _ = pool.For(tenants[0]).Query(context.Background(), "select 1")
			}
			return nil
		}), Workers: 1, Without: []hammer.Fault{hammer.Terminate, hammer.Cancel}}, "1 connections were not given back"},
		{"an operation that hangs", hammer.Config{Ops: op(func() error { <-stuck; return nil }), Workers: 1}, "operations hang"},
		{"no Admin", hammer.Config{Admin: "-"}, "Config.Admin"},
		{"no name", hammer.Config{Ops: []hammer.Op{{}}}, "Config.Ops"},
		{"no such fault", hammer.Config{Without: []hammer.Fault{"war"}}, `no fault "war"`},
		{"one tenant", hammer.Config{Tenants: tenants[:1]}, "Config.Tenants"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			switch tt.cfg.Admin {
			case "":
				tt.cfg.Admin = admin
			case "-":
				tt.cfg.Admin = ""
			}
			if tt.cfg.Tenants == nil {
				tt.cfg.Tenants = tenants
			}
			if tt.cfg.Duration == 0 {
				tt.cfg.Duration = 300 * time.Millisecond
			}
			if _, failures := run(t, pool, tt.cfg); !strings.Contains(failures, tt.want) {
				t.Errorf("failures:\n%s\nwant %q", failures, tt.want)
			}
			if rows != nil {
				rows.Close()
				rows = nil
			}
		})
	}
}

func TestCheck(t *testing.T) {
	acme, err := pgtenancy.NewTenant(pgtenancy.TenantInfo{ID: "acme"})
	if err != nil {
		t.Fatal(err)
	}
	if err := hammer.Check(acme, "acme"); err != nil {
		t.Error(err)
	}
	if err := hammer.Check(acme, "globex"); !errors.Is(err, hammer.ErrLeak) {
		t.Errorf("error %v, want ErrLeak", err)
	}
}
