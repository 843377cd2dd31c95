package pgtenancy_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"testing"

	"github.com/pgtenancy/pgtenancy"
)

func TestNewTenantInvalid(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", 64)
	tests := []struct {
		info         pgtenancy.TenantInfo
		field, value string
		reason       string
	}{
		{pgtenancy.TenantInfo{}, "Tenant.ID", "", "empty"},
		{pgtenancy.TenantInfo{ID: long[:57]}, "Tenant.ID", long[:57], "its schema would be cut off at 63 bytes"},
		{pgtenancy.TenantInfo{ID: long, Schema: "x"}, "Tenant.ID", long, "no DNS label"},
		{pgtenancy.TenantInfo{ID: "Acme"}, "Tenant.ID", "Acme", "upper case"},
		{pgtenancy.TenantInfo{ID: "a_b"}, "Tenant.ID", "a_b", "underscore: its schema would be a-b's"},
		{pgtenancy.TenantInfo{ID: "-a"}, "Tenant.ID", "-a", "no DNS label"},
		{pgtenancy.TenantInfo{ID: "a-"}, "Tenant.ID", "a-", "no DNS label"},
		{pgtenancy.TenantInfo{ID: "xn--a"}, "Tenant.ID", "xn--a", "an encoded name"},
		{pgtenancy.TenantInfo{ID: "ab--"}, "Tenant.ID", "ab--", "an encoded name"},
		{pgtenancy.TenantInfo{ID: "a.b"}, "Tenant.ID", "a.b", "two DNS labels"},
		{pgtenancy.TenantInfo{ID: "a b"}, "Tenant.ID", "a b", "a space"},
		{pgtenancy.TenantInfo{ID: "é"}, "Tenant.ID", "é", "not ASCII"},
		{pgtenancy.TenantInfo{ID: "a\x00"}, "Tenant.ID", "a\x00", "NUL"},
		{pgtenancy.TenantInfo{ID: `a"`}, "Tenant.ID", `a"`, "a quote"},
		{pgtenancy.TenantInfo{ID: "a", Schema: "pg_toast"}, "Tenant.Schema", "pg_toast", "PostgreSQL's"},
		{pgtenancy.TenantInfo{ID: "a", Schema: "pg_"}, "Tenant.Schema", "pg_", "PostgreSQL's"},
		{pgtenancy.TenantInfo{ID: "a", Schema: "public"}, "Tenant.Schema", "public", "everybody's"},
		{pgtenancy.TenantInfo{ID: "a", Schema: "pgtenancy"}, "Tenant.Schema", "pgtenancy", "the registry's"},
		{pgtenancy.TenantInfo{ID: "a", Schema: "$user"}, "Tenant.Schema", "$user", "search_path replaces it"},
		{pgtenancy.TenantInfo{ID: "a", Schema: "information_schema"}, "Tenant.Schema", "information_schema", "PostgreSQL's"},
		{pgtenancy.TenantInfo{ID: "a", Schema: long}, "Tenant.Schema", long, "64 bytes"},
		{pgtenancy.TenantInfo{ID: "a", Schema: "a\x00b"}, "Tenant.Schema", "a\x00b", "NUL"},
		{pgtenancy.TenantInfo{ID: "a", Schema: "a\xff"}, "Tenant.Schema", "a\xff", "no UTF-8"},
		{pgtenancy.TenantInfo{ID: "a", Role: "none"}, "Tenant.Role", "none", "PostgreSQL reads it as no role"},
		{pgtenancy.TenantInfo{ID: "a", Role: long}, "Tenant.Role", long, "64 bytes"},
		{pgtenancy.TenantInfo{ID: "a", Role: "a\x00"}, "Tenant.Role", "a\x00", "NUL"},
		{pgtenancy.TenantInfo{ID: "a", State: 5}, "Tenant.State", "State(5)", "no such state"},
		{pgtenancy.TenantInfo{ID: "a", Attributes: map[string]string{"": "x"}}, "Tenant.Attributes", "", "no name"},
		{pgtenancy.TenantInfo{ID: "a", Attributes: map[string]string{"a\x00": "x"}}, "Tenant.Attributes", "a\x00", "NUL"},
		{pgtenancy.TenantInfo{ID: "a", Attributes: map[string]string{"a": "\x00"}}, "Tenant.Attributes", "a", "NUL"},
	}
	for _, tt := range tests {
		got, err := pgtenancy.NewTenant(tt.info)
		var invalid *pgtenancy.InvalidError
		if !errors.As(err, &invalid) || invalid.Field != tt.field || invalid.Value != tt.value || invalid.Rule == "" {
			t.Errorf("%+v: error %#v, want field %q, value %q: %s", tt.info, err, tt.field, tt.value, tt.reason)
		}
		if got != (pgtenancy.Tenant{}) {
			t.Errorf("%+v: got %#v with the error", tt.info, got)
		}
	}
}

func TestNewTenant(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", 63)
	tests := []struct {
		info       pgtenancy.TenantInfo
		wantSchema string
	}{
		{pgtenancy.TenantInfo{ID: "a"}, "tenant_a"},
		{pgtenancy.TenantInfo{ID: "0"}, "tenant_0"},
		{pgtenancy.TenantInfo{ID: "a-b--c"}, "tenant_a_b__c"},
		{pgtenancy.TenantInfo{ID: long[:56]}, "tenant_" + long[:56]},
		{pgtenancy.TenantInfo{ID: long, Schema: long}, long},
		{pgtenancy.TenantInfo{ID: "a", Schema: "Any \"legal\" name; --"}, "Any \"legal\" name; --"},
		{pgtenancy.TenantInfo{ID: "a", Schema: "PG_x"}, "PG_x"},
		{pgtenancy.TenantInfo{ID: "a", Schema: "Public"}, "Public"},
	}
	for _, tt := range tests {
		got := newTenantOf(t, tt.info)
		if got.ID() != tt.info.ID || got.Schema() != tt.wantSchema || got.State() != pgtenancy.Active || got.Role() != "" || got.Version() != 0 {
			t.Errorf("%+v: got %q, schema %q, state %s", tt.info, got.ID(), got.Schema(), got.State())
		}
	}
}

func TestTenantHandle(t *testing.T) {
	t.Parallel()
	info := func() pgtenancy.TenantInfo {
		return pgtenancy.TenantInfo{
			ID: "acme", Schema: "s", Role: "r", State: pgtenancy.Suspended, Version: 7,
			Attributes: map[string]string{"plan": "pro", "empty": "", "region": "eu"},
		}
	}
	tenant := newTenantOf(t, info())
	if tenant.Role() != "r" || tenant.State() != pgtenancy.Suspended || tenant.Version() != 7 {
		t.Errorf("role %q, state %s, version %d", tenant.Role(), tenant.State(), tenant.Version())
	}
	if tenant != newTenantOf(t, info()) {
		t.Error("two handles of the same are different")
	}
	for name, change := range map[string]func(*pgtenancy.TenantInfo){
		"ID":        func(i *pgtenancy.TenantInfo) { i.ID = "globex" },
		"Schema":    func(i *pgtenancy.TenantInfo) { i.Schema = "t" },
		"Role":      func(i *pgtenancy.TenantInfo) { i.Role = "" },
		"State":     func(i *pgtenancy.TenantInfo) { i.State = 0 },
		"Version":   func(i *pgtenancy.TenantInfo) { i.Version++ },
		"attribute": func(i *pgtenancy.TenantInfo) { i.Attributes["plan"] = "free" },
		"name":      func(i *pgtenancy.TenantInfo) { i.Attributes = map[string]string{"plan": "", "pro": ""} },
	} {
		other := info()
		change(&other)
		if tenant == newTenantOf(t, other) {
			t.Errorf("handles with another %s are equal", name)
		}
	}
	if got, ok := tenant.Attribute("plan"); got != "pro" || !ok {
		t.Errorf("plan is %q, %t", got, ok)
	}
	if got, ok := tenant.Attribute("empty"); got != "" || !ok {
		t.Errorf("empty is %q, %t", got, ok)
	}
	if got, ok := tenant.Attribute("pro"); got != "" || ok {
		t.Errorf("pro is %q, %t", got, ok)
	}
	if got := maps.Collect(tenant.Attributes()); !maps.Equal(got, info().Attributes) {
		t.Errorf("attributes are %v", got)
	}
	var names []string
	for name := range tenant.Attributes() {
		if names = append(names, name); len(names) == 2 {
			break
		}
	}
	if got := fmt.Sprint(names); got != "[empty plan]" {
		t.Errorf("the first attributes are %s", got)
	}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "tenant", tenant)
	if !strings.Contains(log.String(), "tenant=acme") {
		t.Errorf("slog wrote %s", log.String())
	}
	if got := fmt.Sprint(tenant); got != "acme" {
		t.Errorf("String is %q", got)
	}
}

func TestTenantContext(t *testing.T) {
	t.Parallel()
	acme, globex := newTenant(t, "acme"), newTenant(t, "globex")
	if got, ok := pgtenancy.TenantFromContext(t.Context()); ok || got != (pgtenancy.Tenant{}) {
		t.Errorf("no tenant: %v, %t", got, ok)
	}
	ctx := pgtenancy.WithTenant(t.Context(), acme)
	if got, ok := pgtenancy.TenantFromContext(ctx); !ok || got != acme {
		t.Errorf("acme: %v, %t", got, ok)
	}
	if got, ok := pgtenancy.TenantFromContext(pgtenancy.WithTenant(ctx, globex)); !ok || got != globex {
		t.Errorf("globex over acme: %v, %t", got, ok)
	}
	if got, ok := pgtenancy.TenantFromContext(pgtenancy.WithTenant(ctx, pgtenancy.Tenant{})); ok {
		t.Errorf("the zero tenant over acme: %v, %t", got, ok)
	}
}

func TestStateString(t *testing.T) {
	t.Parallel()
	for s, want := range map[pgtenancy.State]string{
		pgtenancy.Provisioning: "provisioning", pgtenancy.Active: "active", pgtenancy.Suspended: "suspended", pgtenancy.Deleted: "deleted",
		0: "State(0)", 5: "State(5)",
	} {
		if got := s.String(); got != want {
			t.Errorf("State %d: %q, want %q", s, got, want)
		}
	}
}
