package ident_test

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy/internal/ident"
	"github.com/pgtenancy/pgtenancy/pgtenancytest"
)

var seeds = []string{
	"acme", "a", "0", "a-b", "a--b", "ab--c", "-a", "a-", "A", "a_b", "é", "a.b", "", "\x00", "\xff", `"`, `a"b`, "'", `\`, "$user", "a b",
	"public", "pg_", "pg_a", "information_schema", "none", "*/", "--", "\n", "😀", "user", "pg_temp", strings.Repeat("a", 63), strings.Repeat("a", 64),
	strings.Repeat("é", 32), "a,b", `"a"`, "%s", "U&\"a\"", "app.current_tenant",
}

func TestChecks(t *testing.T) {
	t.Parallel()
	max63 := func(s string) string { return ident.CheckID(s, 63) }
	tests := []struct {
		name  string
		check func(string) string
		good  []string
		bad   []string
	}{
		{
			"CheckID", max63,
			[]string{"a", "0", "a-b", "a-b---c", "acme", strings.Repeat("a", 63)},
			[]string{"", "-", "-a", "a-", "ab--", "xn--a", "A", "a_b", "é", "a.b", " a", strings.Repeat("a", 64)},
		},
		{
			"CheckPrefix", ident.CheckPrefix,
			[]string{"", "tenant_", "t", "_", "t1_", strings.Repeat("a", 43)},
			[]string{"1t", "T_", "t-", "t ", "pg_", "pg_t", `"`, strings.Repeat("a", 44)},
		},
		{
			"CheckName", ident.CheckName,
			[]string{"a", `"`, "a b", "é", "$user", "pg_a", strings.Repeat("a", 63)},
			[]string{"", "\x00", "a\x00", "\xff", strings.Repeat("é", 32)},
		},
		{
			"CheckSchema", ident.CheckSchema,
			[]string{"a", "public", "Pg_a", "pgtenancy", "$User", "none"},
			[]string{"", "pg_a", "pg_temp", "$user", "information_schema", "\x00"},
		},
		{
			"CheckTenantSchema", ident.CheckTenantSchema,
			[]string{"a", "Public", "tenant_a"},
			[]string{"public", "pgtenancy", "pg_a", "$user"},
		},
		{
			"CheckSetting", ident.CheckSetting,
			[]string{"app.current_tenant", "a.b.c", "_a.B1"},
			[]string{"", "a", ".a", "a.", "a..b", "a.1", "a.b'", "a.b c", "a.é", "a." + strings.Repeat("b", 62)},
		},
	}
	for _, tt := range tests {
		for _, s := range tt.good {
			if rule := tt.check(s); rule != "" {
				t.Errorf("%s(%q) = %q, want no rule", tt.name, s, rule)
			}
		}
		for _, s := range tt.bad {
			if tt.check(s) == "" {
				t.Errorf("%s(%q) breaks no rule", tt.name, s)
			}
		}
	}
	if ident.CheckID("abc", 2) == "" || ident.CheckID("ab", 2) != "" {
		t.Error("CheckID does not keep to its max")
	}
}

func TestQuote(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]string{"a": `"a"`, `a"b`: `"a""b"`, "A b": `"A b"`} {
		if got := ident.Quote(s); got != want {
			t.Errorf("Quote(%q) = %s, want %s", s, got, want)
		}
	}
	if got := ident.QuoteAll("a", `b"`); got != `"a"."b"""` {
		t.Errorf("QuoteAll = %s", got)
	}
}

// connect returns a connection to a database of the test's own.
func connect(t testing.TB) *pgx.Conn {
	conn, err := pgx.Connect(context.Background(), pgtenancytest.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// onServer checks what passes the checks against a real server.
func onServer(t *testing.T, conn *pgx.Conn, name string) {
	t.Helper()
	ctx := t.Context()
	if ident.CheckName(name) == "" {
		var server, literal string
		if err := conn.QueryRow(ctx, "select quote_ident($1), "+ident.Literal(name), name).Scan(&server, &literal); err != nil {
			t.Fatalf("%q: %v", name, err)
		}
		if got := ident.Quote(name); server != got && server != name {
			t.Errorf("quote_ident(%q) = %s, Quote = %s", name, server, got)
		}
		if literal != name {
			t.Errorf("Literal(%q) reads as %q", name, literal)
		}
	}
	if ident.CheckSchema(name) != "" {
		return
	}
	tx, err := conn.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	if _, err := tx.Exec(ctx, "create schema if not exists "+ident.Quote(name)); err != nil {
		t.Fatalf("create schema %q: %v", name, err)
	}
	var current, cast string
	err = tx.QueryRow(ctx, "select set_config('search_path', $1, true), current_schema()", ident.Quote(name)+`, "pg_temp"`).Scan(nil, &current)
	if err != nil || current != name {
		t.Errorf("schema %q: current_schema() is %q, %v", name, current, err)
	}
	err = tx.QueryRow(ctx, "select nspname from pg_namespace where oid = $1::text::regnamespace", ident.Quote(name)).Scan(&cast)
	if err != nil || cast != name {
		t.Errorf("schema %q: as regnamespace it is %q, %v", name, cast, err)
	}
}

func TestOnServer(t *testing.T) {
	t.Parallel()
	conn := connect(t)
	for _, s := range seeds {
		onServer(t, conn, s)
	}
	if _, err := conn.Exec(t.Context(), "set standard_conforming_strings = off"); err != nil {
		t.Fatal(err)
	}
	for _, s := range seeds {
		onServer(t, conn, s)
	}
}

// FuzzName runs against a server: go test -fuzz FuzzName.
func FuzzName(f *testing.F) {
	for _, s := range seeds {
		f.Add(s)
	}
	conn := connect(f)
	f.Fuzz(func(t *testing.T, name string) { onServer(t, conn, name) })
}

// What passes CheckID gives every ID a schema of its own, which passes as a tenant's.
func FuzzID(f *testing.F) {
	for _, a := range seeds {
		for _, b := range []string{"a-b", "a--b", "acme"} {
			f.Add("tenant_", a, b)
		}
		f.Add(a, "acme", "a-b")
	}
	f.Fuzz(func(t *testing.T, prefix, a, b string) {
		if ident.CheckPrefix(prefix) != "" || ident.CheckID(a, ident.MaxBytes-len(prefix)) != "" {
			return
		}
		schema := ident.SchemaOf(prefix, a)
		if rule := ident.CheckSchema(schema); rule != "" {
			t.Errorf("SchemaOf(%q, %q) = %q, which %s", prefix, a, schema, rule)
		}
		if a != b && ident.CheckID(b, ident.MaxBytes-len(prefix)) == "" && schema == ident.SchemaOf(prefix, b) {
			t.Errorf("%q and %q have one schema, %q", a, b, schema)
		}
	})
}
