package pgtenancy_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgtenancy/pgtenancy"
)

const nowhere = "postgres://app@127.0.0.1:1/nowhere?sslmode=disable"

func TestPoolConfigInvalid(t *testing.T) {
	t.Parallel()
	parse := func(suffix string) *pgxpool.Config {
		c, err := pgxpool.ParseConfig(nowhere + suffix)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	conns := parse("")
	tests := []struct {
		name  string
		cfg   *pgtenancy.PoolConfig
		field string
		value string
	}{
		{"nil", nil, "PoolConfig", ""},
		{"nothing", &pgtenancy.PoolConfig{}, "PoolConfig.Conns", ""},
		{"not from ParseConfig", &pgtenancy.PoolConfig{Conns: &pgxpool.Config{}}, "PoolConfig.Conns", ""},
		{"Direct not from ParseConfig", &pgtenancy.PoolConfig{Conns: conns, Direct: &pgxpool.Config{}}, "PoolConfig.Direct", ""},
		{"search_path", &pgtenancy.PoolConfig{Conns: parse("&search_path=a,b")}, "PoolConfig.Conns", "a,b"},
		{"search_path in options", &pgtenancy.PoolConfig{Conns: parse("&options=-c%20search_path%3Da")}, "PoolConfig.Conns", "-c search_path=a"},
		{"search-path in options", &pgtenancy.PoolConfig{Conns: parse("&options=--search-path%3Da")}, "PoolConfig.Conns", "--search-path=a"},
		{"search_path in options, in capitals", &pgtenancy.PoolConfig{Conns: parse("&options=--SEARCH_PATH%3Da")}, "PoolConfig.Conns", "--SEARCH_PATH=a"},
		{"search_path in Direct", &pgtenancy.PoolConfig{Conns: conns, Direct: parse("&search_path=a")}, "PoolConfig.Direct", "a"},
		{"simple_protocol", &pgtenancy.PoolConfig{Conns: parse("&default_query_exec_mode=simple_protocol")}, "PoolConfig.Conns.ConnConfig.DefaultQueryExecMode", "simple protocol"},
		{"describe_exec", &pgtenancy.PoolConfig{Conns: parse("&default_query_exec_mode=describe_exec")}, "PoolConfig.Conns.ConnConfig.DefaultQueryExecMode", "describe exec"},
		{"Setting without a dot", &pgtenancy.PoolConfig{Conns: conns, Setting: "tenant"}, "PoolConfig.Setting", "tenant"},
		{"Setting with a quote", &pgtenancy.PoolConfig{Conns: conns, Setting: "app.te'nant"}, "PoolConfig.Setting", "app.te'nant"},
		{"Setting with an empty part", &pgtenancy.PoolConfig{Conns: conns, Setting: "app."}, "PoolConfig.Setting", "app."},
		{"Setting with a digit", &pgtenancy.PoolConfig{Conns: conns, Setting: "app.1"}, "PoolConfig.Setting", "app.1"},
		{"empty shared schema", &pgtenancy.PoolConfig{Conns: conns, SharedSchemas: []string{"public", ""}}, "PoolConfig.SharedSchemas", ""},
		{"shared schema of PostgreSQL's", &pgtenancy.PoolConfig{Conns: conns, SharedSchemas: []string{"pg_temp"}}, "PoolConfig.SharedSchemas", "pg_temp"},
		{"shared schema $user", &pgtenancy.PoolConfig{Conns: conns, SharedSchemas: []string{"$user"}}, "PoolConfig.SharedSchemas", "$user"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p, err := pgtenancy.NewPoolWithConfig(t.Context(), tt.cfg)
			var invalid *pgtenancy.InvalidError
			if !errors.As(err, &invalid) || invalid.Field != tt.field || invalid.Value != tt.value || invalid.Rule == "" || p != nil {
				t.Errorf("error %v, want field %q, value %q", err, tt.field, tt.value)
			}
		})
	}
}

func TestNewPoolInvalid(t *testing.T) {
	t.Parallel()
	for _, s := range []string{
		"postgres://app:hunter2@localhost:port/db", "host=localhost password=hunter2 port=x", "postgres://app:hunter2@localhost/db?sslmode=x", "user=app password=hunter2 nonsense",
	} {
		p, err := pgtenancy.NewPool(t.Context(), s)
		if !errors.As(err, new(*pgconn.ParseConfigError)) || p != nil {
			t.Errorf("%s: error %v", s, err)
			continue
		}
		if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the error shows the password: %v", err)
		}
	}
	_, err := pgtenancy.NewPool(t.Context(), nowhere+"&search_path=a")
	if !errors.As(err, new(*pgtenancy.InvalidError)) {
		t.Errorf("search_path: error %v", err)
	}
}

func TestPoolConfigCopies(t *testing.T) {
	t.Parallel()
	p, err := pgtenancy.NewPool(t.Context(), nowhere)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	c := p.Config()
	if c.Setting != pgtenancy.SettingDefault || len(c.SharedSchemas) != 1 || c.SharedSchemas[0] != "public" || c.SettingValue(newTenant(t, "acme")) != "acme" || c.Direct != nil {
		t.Errorf("the defaults are %+v", c)
	}
	if m := c.Conns.ConnConfig.DefaultQueryExecMode; m != pgx.QueryExecModeCacheStatement {
		t.Errorf("the mode is %s", m)
	}
	c.SharedSchemas[0] = "changed"
	c.Conns.MaxConns = 99
	if c := p.Config(); c.SharedSchemas[0] != "public" || c.Conns.MaxConns == 99 {
		t.Error("what Config returns is the pool's own")
	}
	again, err := pgtenancy.NewPoolWithConfig(t.Context(), p.Config())
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

func TestPoolUnreachable(t *testing.T) {
	t.Parallel()
	p, err := pgtenancy.NewPool(t.Context(), nowhere)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	tenant := newTenant(t, "acme")
	for _, use := range uses {
		if err := use.run(as(t, tenant), p, tenant); !errors.As(err, new(*pgconn.ConnectError)) {
			t.Errorf("%s: error %v", use.name, err)
		}
	}
	if err := p.Ping(bare(t)); err == nil {
		t.Error("Ping: no error")
	}
}

func TestPoolClose(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	p := db.pool(t)
	check(t, "Ping without a tenant", p.Ping(bare(t)))
	db.checkWorks(t, p)
	p.Close()
	p.Close()
	for _, use := range uses {
		if err := use.run(as(t, db.acme), p, db.acme); err == nil {
			t.Errorf("%s after Close: no error", use.name)
		}
	}
}
