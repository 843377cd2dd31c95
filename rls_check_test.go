package pgtenancy_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy"
)

// quickstartShared is the quickstart's shared migration for the application's role of db.
func quickstartShared(t *testing.T, db *fleetDB) string {
	t.Helper()
	migration, err := os.ReadFile("examples/quickstart/migrations/shared/001_users.sql")
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(migration), "quickstart_app", db.app)
}

// checkRLS returns the findings, which must be in their order and be complete.
func checkRLS(t *testing.T, fleet *pgtenancy.Fleet) []pgtenancy.Finding {
	t.Helper()
	findings, err := fleet.CheckRLS(bare(t))
	if err != nil {
		t.Fatalf("CheckRLS: %v", err)
	}
	for _, f := range findings {
		if f.Rule == "" || f.Object == "" || f.Reason == "" || f.Remedy == "" || f.File != "" || f.Line != 0 {
			t.Errorf("incomplete: %+v", f)
		}
	}
	return findings
}

// rules returns what findings are about.
func rules(findings []pgtenancy.Finding) []string {
	var all []string
	for _, f := range findings {
		all = append(all, f.Rule+" "+f.Object)
	}
	return all
}

// revokeCreate does what PostgreSQL does by itself from version 15 on.
func (db *fleetDB) revokeCreate(t *testing.T) {
	t.Helper()
	db.exec(t, "revoke create on schema public from public")
}

// tenantSQL is what a policy has to compare with.
const tenantSQL = "nullif(current_setting('app.current_tenant', true), '')"

// Each case has a table of its own, "{t}", with a flaw, in one database. What CheckRLS says about that table and what begins with its
// name is all that is wrong with it.
func TestCheckRLS(t *testing.T) {
	t.Parallel()
	guarded := func(columns string, change func(*pgtenancy.Policy)) func(db *fleetDB, name string) string {
		return func(db *fleetDB, name string) string {
			p := pgtenancy.Policy{Table: pgx.Identifier{"public", name}, Role: db.app}
			if change != nil {
				change(&p)
			}
			return fmt.Sprintf("create table %s (%s); grant select, insert, update, delete on %[1]s to %[3]s;\n", name, columns, db.app) + p.SQL()
		}
	}
	const columns = "id bigint generated always as identity primary key, tenant_id text not null, name text"
	usual := guarded(columns, nil)
	nothing := func(*fleetDB, string) string { return "" }
	type tc struct {
		name string
		base func(db *fleetDB, name string) string
		sql  string // by the owner: {t} is the table, {app}, {owner} and {support} are roles
		by   string // "postgres" for the superuser
		want []string
		mend bool // the remedies are statements that a superuser may run as they are, and which mend it
		from int  // the version of PostgreSQL
	}
	tests := []tc{
		{name: "clean", base: usual},
		{name: "clean_uuid", base: guarded(strings.Replace(columns, "tenant_id text", "tenant_id uuid", 1), func(p *pgtenancy.Policy) { p.Type = "uuid" })},
		{name: "clean_varchar", base: guarded(strings.Replace(columns, "tenant_id text", "tenant_id varchar(20)", 1), func(p *pgtenancy.Policy) { p.Type = "character varying(20)" })},
		{name: "clean_global", base: guarded(strings.Replace(columns, "tenant_id text not null", "tenant_id text", 1), func(p *pgtenancy.Policy) { p.Global = true })},
		{name: "clean_reference", base: guarded("code text primary key, name text unique", func(p *pgtenancy.Policy) { p.ReadOnly = true })},
		{name: "clean_readers", base: usual, sql: "create policy tenant_readers on {t} for select to {support} using (true)"},
		{name: "clean_column", base: guarded(`"Kunde Nr." bigint not null, name text`, func(p *pgtenancy.Policy) { p.Column, p.Type = "Kunde Nr.", "bigint" })},
		{name: "clean_reversed", base: usual, sql: "alter policy tenant_isolation on {t} using (" + tenantSQL + " = tenant_id) with check (" + tenantSQL + " = tenant_id)"},
		{name: "clean_subquery", base: usual, sql: "alter policy tenant_isolation on {t} using (tenant_id = (select " + tenantSQL + ")) with check (tenant_id = (select " + tenantSQL + "))"},
		{
			name: "clean_more_conditions", base: usual,
			sql: "alter policy tenant_isolation on {t} using (name = 'x' and " + tenantSQL + " = tenant_id and name > id::text) with check (tenant_id = " + tenantSQL + ")",
		},
		{
			name: "clean_function", base: usual,
			sql: `create function {t}_tenant() returns text language sql stable as $$ select nullif(current_setting('app.current_tenant', true), '') $$;
				alter policy tenant_isolation on {t} using (tenant_id = {t}_tenant()) with check (tenant_id = {t}_tenant())`,
		},
		{
			name: "clean_commands", base: usual,
			sql: `drop policy tenant_isolation on {t}; create policy r on {t} for select using (tenant_id = ` + tenantSQL + `);
				create policy a on {t} for insert with check (tenant_id = ` + tenantSQL + `); create policy w on {t} for update using (tenant_id = ` + tenantSQL + `)`,
		},
		{
			name: "clean_restrictive", base: usual,
			sql: "drop policy tenant_isolation on {t}; create policy p on {t} using (true); create policy r on {t} as restrictive using (tenant_id = " + tenantSQL + ")",
		},
		{name: "clean_secret", base: nothing, sql: "create table {t} (tenant_id text)"}, // which the role cannot use

		{name: "off", base: usual, sql: "alter table {t} disable row level security", want: []string{"row-security-off {t}"}, mend: true},
		{name: "off_by_name", base: nothing, sql: "create table {t} (tenant_id text); grant select on {t} to {app}", want: []string{"row-security-off {t}"}},
		{name: "off_by_learned_name", base: nothing, sql: `create table {t} ("Kunde Nr." text); grant update (" Kunde Nr.") on {t} to {app}`, want: []string{"row-security-off {t}"}},
		{
			name: "off_foreign", base: nothing, by: "postgres", want: []string{"row-security-off {t}"}, mend: true,
			sql: "create foreign data wrapper {t}; create server {t} foreign data wrapper {t}; create foreign table {t} (tenant_id text) server {t}; grant select on {t} to {app}",
		},

		{name: "child", base: usual, sql: "create table {t}_c () inherits ({t}); create table {t}_d () inherits ({t}_c); grant select on {t}_d to {app}", want: []string{"child-unguarded {t}_d"}, mend: true},
		{
			name: "part", base: nothing, want: []string{"child-unguarded {t}_1"}, mend: true,
			sql: `create table {t} (tenant_id text not null default ` + tenantSQL + `, name text) partition by list (name); create table {t}_1 partition of {t} default;
				create index on {t} (tenant_id); alter table {t} enable row level security; alter table {t} force row level security;
				create policy p on {t} using (tenant_id = ` + tenantSQL + `); grant select, insert on {t}, {t}_1 to {app}`,
		},

		{name: "ignores", base: usual, sql: "create policy x on {t} using (true)", want: []string{"policy-ignores-tenant {t}"}},
		{name: "ignores_to_read", base: usual, sql: "create policy x on {t} for select to {app} using (name = 'x')", want: []string{"policy-ignores-tenant {t}"}},
		{name: "ignores_to_delete", base: usual, sql: "create policy x on {t} for delete using (name = 'x')", want: []string{"policy-ignores-tenant {t}"}},
		{name: "ignores_to_others", base: usual, sql: "create policy x on {t} to {owner} using (name = 'x')"},
		{name: "ignores_the_setting", base: usual, sql: "create policy x on {t} for select using (tenant_id = current_setting('app.current_tenants', true))", want: []string{"policy-ignores-tenant {t}"}},
		{
			name: "ignores_restricted_in_part", base: usual, want: []string{"policy-ignores-tenant {t}"},
			sql: "create policy x on {t} using (true); create policy r on {t} as restrictive for select using (tenant_id = " + tenantSQL + ")",
		},
		{name: "ignores_reference", base: usual, sql: "create policy reference_data on {t} for select using (true)", want: []string{"policy-ignores-tenant {t}"}},
		{name: "ignores_reference_only", base: guarded("tenant_id text", func(p *pgtenancy.Policy) { p.ReadOnly = true }), want: []string{"policy-ignores-tenant {t}"}},
		{
			name: "ignores_in_function", base: usual, want: []string{"policy-ignores-tenant {t}"},
			sql: "create function {t}_x() returns text language sql stable as $$ select 'app.current_tenant' $$; create policy x on {t} for select using (tenant_id = {t}_x())",
		},

		{name: "writes", base: usual, sql: "create policy x on {t} for insert with check (true)", want: []string{"policy-writes-any {t}"}},
		{name: "writes_check", base: usual, sql: "alter policy tenant_isolation on {t} with check (name > '')", want: []string{"policy-writes-any {t}"}},
		{
			name: "writes_global", base: usual, want: []string{"policy-writes-any {t}"},
			sql: "drop policy tenant_isolation on {t}; create policy x on {t} using (tenant_id is null or tenant_id = " + tenantSQL + ")",
		},
		{name: "writes_restricted", base: usual, sql: "create policy x on {t} for insert with check (true); create policy r on {t} as restrictive for insert with check (tenant_id = " + tenantSQL + ")"},

		{name: "view", base: usual, by: "postgres", sql: "create view {t}_v as select * from {t}; grant select on {t}_v to {app}", want: []string{"view-bypasses {t}_v"}, mend: true, from: 15},
		{name: "view_invoker", base: usual, by: "postgres", sql: "create view {t}_v with (security_invoker = on) as select * from {t}; grant select on {t}_v to {app}", from: 15},
		{name: "view_of_owner", base: usual, sql: "create view {t}_v as select * from {t}; grant select on {t}_v to {app}"},
		{
			name: "view_of_owner_unforced", base: usual, want: []string{"view-bypasses {t}_v", "not-forced {t}"},
			sql: "alter table {t} no force row level security; create view {t}_v as select * from {t}; grant delete on {t}_v to {app}",
		},
		{name: "view_not_granted", base: usual, by: "postgres", sql: "create view {t}_v as select * from {t}"},
		{
			name: "view_below_view", base: usual, by: "postgres", want: []string{"view-bypasses {t}_v"},
			sql: "create view {t}_v as select * from {t}; create view {t}_w as select * from {t}_v; grant select on {t}_w to {app}",
		},
		{
			name: "view_of_reader", base: usual, by: "postgres", want: []string{"view-bypasses {t}_v"},
			sql: "create policy tenant_readers on {t} for select to {support} using (true); create view {t}_v as select * from {t}; alter view {t}_v owner to {support}; grant select on {t}_v to {app}",
		},
		{name: "view_of_reference", base: guarded("code text", func(p *pgtenancy.Policy) { p.ReadOnly = true }), by: "postgres", sql: "create view {t}_v as select * from {t}; grant select on {t}_v to {app}"},
		{name: "matview", base: usual, sql: "create materialized view {t}_v as select * from {t} with no data; grant select on {t}_v to {app}", want: []string{"materialized-view {t}_v"}, mend: true},

		{
			name: "definer", base: nothing, want: []string{"definer-search-path {t}", "definer-search-path {t}_2"}, mend: true,
			sql: "create function {t}(int) returns int language sql security definer as 'select 1'; create procedure {t}_2() language sql security definer as 'select 1'",
		},
		{name: "definer_path", base: nothing, sql: "create function {t}() returns int language sql security definer set search_path = pg_catalog as 'select 1'"},
		{name: "definer_not_granted", base: nothing, sql: "create function {t}() returns int language sql security definer as 'select 1'; revoke all on function {t} from public"},
		{name: "definer_harmless", base: nothing, by: "{support}", sql: "create function {t}() returns int language sql security definer as 'select 1'"},

		{name: "truncate", base: usual, sql: "grant truncate on {t} to {app}", want: []string{"privilege-not-covered {t}"}, mend: true},
		{name: "refer", base: usual, sql: "grant references (name) on {t} to public", want: []string{"privilege-not-covered {t}"}, mend: true},
		{name: "trig", base: usual, sql: "grant trigger on {t} to public", want: []string{"privilege-not-covered {t}"}, mend: true},

		{name: "unforced", base: usual, sql: "alter table {t} no force row level security", want: []string{"not-forced {t}"}, mend: true},
		{name: "no_policy", base: usual, sql: "drop policy tenant_isolation on {t}", want: []string{"no-policy {t}"}},
		{name: "no_policy_for_it", base: usual, sql: "alter policy tenant_isolation on {t} to {owner}", want: []string{"no-policy {t}"}},
		{
			name: "required", base: usual, want: []string{"setting-required {t}"},
			sql: "alter policy tenant_isolation on {t} using (tenant_id = nullif(current_setting('app.current_tenant'), ''))",
		},
		{
			name: "empty", base: usual, want: []string{"setting-empty {t}"},
			sql: "alter policy tenant_isolation on {t} with check (tenant_id = current_setting('App.Current_Tenant', true))",
		},

		{
			name: "casts", base: guarded(strings.Replace(columns, "tenant_id text", "tenant_id uuid", 1), func(p *pgtenancy.Policy) { p.Type = "uuid" }),
			sql: "alter policy tenant_isolation on {t} using (tenant_id::text = " + tenantSQL + ")", want: []string{"column-cast {t}.tenant_id"},
		},
		{
			name: "casts_indexed", base: guarded(strings.Replace(columns, "tenant_id text", "tenant_id uuid", 1), func(p *pgtenancy.Policy) { p.Type = "uuid" }),
			sql: "alter policy tenant_isolation on {t} using (tenant_id::text = " + tenantSQL + "); drop index {t}_tenant_id_idx; create index on {t} ((tenant_id::text))",
		},
		{name: "no_index", base: usual, sql: "drop index {t}_tenant_id_idx; create index on {t} (tenant_id) where id > 1; create index on {t} (name, tenant_id)", want: []string{"column-index {t}.tenant_id"}, mend: true},
		{name: "nullable", base: usual, sql: "alter table {t} alter tenant_id drop not null", want: []string{"column-nullable {t}.tenant_id"}},
		{name: "no_default", base: usual, sql: "alter table {t} alter tenant_id drop default", want: []string{"column-default {t}.tenant_id"}},

		{name: "uniq", base: usual, sql: "create unique index on {t} (lower(name)); create unique index on {t} (lower(tenant_id || name)); create unique index on {t} (name, tenant_id)", want: []string{"unique-without-tenant {t}"}, mend: true},
		{name: "uniq_constraint", base: usual, sql: "alter table {t} add unique (name) include (tenant_id)", want: []string{"unique-without-tenant {t}"}, mend: true},
		{name: "uniq_made", base: usual, sql: "alter table {t} add a uuid unique, add b serial unique"},
		{
			name: "foreign_key", base: usual, want: []string{"foreign-key-without-tenant {t}"}, mend: true,
			sql: "alter table {t} add unique (tenant_id, id); alter table {t} add parent bigint references {t} (id), add friend bigint, add foreign key (tenant_id, friend) references {t} (tenant_id, id)",
		},
		{name: "foreign_key_to_reference", base: usual, sql: "alter table {t} add code text references clean_reference"},
	}

	db := newFleetDB(t)
	db.revokeCreate(t)
	support := db.app + "_support"
	db.exec(t, fmt.Sprintf("create role %s; grant create on schema public to %[1]s", support))
	t.Cleanup(func() { db.exec(t, "drop owned by "+support+"; drop role "+support) })
	fleet := db.migrated(t, sqlFiles("shared/001_users.sql", quickstartShared(t, db)))
	if got := checkRLS(t, fleet); len(got) > 0 {
		t.Fatalf("the quickstart's: %v", got)
	}
	version := db.count(t, "select current_setting('server_version_num')::int / 10000")
	tests = slices.DeleteFunc(tests, func(tt tc) bool { return tt.from > version })
	conn := db.admin(t)
	for _, tt := range tests {
		replace := strings.NewReplacer("{t}", tt.name, "{app}", db.app, "{owner}", db.owner, "{support}", support, `" Kunde`, `"Kunde`)
		by := db.owner
		if tt.by != "" {
			by = tt.by
		}
		for _, sql := range []string{"set role " + db.owner, tt.base(db, tt.name), replace.Replace("set role " + by), replace.Replace(tt.sql)} {
			if _, err := conn.Exec(t.Context(), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
				t.Fatalf("%s: %s: %v", tt.name, sql, err)
			}
		}
	}

	// of returns the case that a finding is about: the longest name of one that its object begins with.
	of := func(f pgtenancy.Finding) string {
		var best string
		object := strings.TrimPrefix(f.Object, "public.")
		for _, tt := range tests {
			if rest, ok := strings.CutPrefix(object, tt.name); ok && (rest == "" || rest[0] == '.' || rest[0] == '_') && len(tt.name) > len(best) {
				best = tt.name
			}
		}
		return best
	}
	byCase := func() map[string][]pgtenancy.Finding {
		all := map[string][]pgtenancy.Finding{}
		for _, f := range checkRLS(t, fleet) {
			all[of(f)] = append(all[of(f)], f)
		}
		return all
	}
	found := byCase()
	var mend strings.Builder
	seen := map[string]bool{}
	for _, tt := range tests {
		var want []string
		for _, w := range tt.want {
			rule, object, _ := strings.Cut(w, " ")
			want = append(want, rule+" public."+strings.ReplaceAll(object, "{t}", tt.name))
			seen[rule] = true
		}
		checkList(t, tt.name, rules(found[tt.name]), want...)
		if tt.mend {
			for _, f := range found[tt.name] {
				statement, _, _ := strings.Cut(f.Remedy, "; before")
				statement, _, _ = strings.Cut(statement, "; rights")
				statement, _, _ = strings.Cut(statement, "; give")
				mend.WriteString(statement + ";\n")
			}
		}
	}
	checkList(t, "others", rules(found[""]))
	for _, rule := range pgtenancy.RLSRules {
		if !seen[rule] && !slices.Contains([]string{"role-bypasses", "owner-bypasses", "role-can-become", "create-in-shared-schema"}, rule) {
			t.Errorf("no case for %s", rule)
		}
	}

	db.exec(t, mend.String())
	found = byCase()
	for _, tt := range tests {
		if tt.mend {
			checkList(t, tt.name+" when it is mended", rules(found[tt.name]))
		}
	}
}

// What is wrong with roles and schemas, one after the other.
func TestCheckRLSRoles(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	db.revokeCreate(t)
	fleet := db.migrated(t, sqlFiles("shared/001_users.sql", quickstartShared(t, db), "tenant/001_x.sql", "create table x ()"))
	provision(t, fleet, "acme")
	support := db.app + "_support"
	db.exec(t, fmt.Sprintf("create role %s; create role %[1]s_2 bypassrls; grant %[1]s_2 to %[1]s", support))
	t.Cleanup(func() { db.exec(t, fmt.Sprintf("drop role %s; drop role %[1]s_2", support)) })
	tests := []struct {
		name, sql, undo string // with no undo, the remedies are statements that mend it
		want            []string
	}{
		{"superuser", "alter role {app} superuser", "alter role {app} nosuperuser", []string{"role-bypasses {app}"}},
		{"BYPASSRLS", "alter role {app} bypassrls", "", []string{"role-bypasses {app}"}},
		{"a member of the owner", "grant {owner} to {app}", "revoke {owner} from {app}", []string{"role-can-become {app}"}},
		{
			"a member of the owner without FORCE", "grant {owner} to {app}; alter table users no force row level security",
			"revoke {owner} from {app}; alter table users force row level security",
			[]string{"owner-bypasses public.users", "role-can-become {app}"},
		},
		{"a member of a member, who does not inherit", "alter role {app} noinherit; grant {support} to {app}", "revoke {support} from {app}", []string{"role-can-become {app}"}},
		{"a tenant's role", "update pgtenancy.tenants set role_name = '{support}_2'", "update pgtenancy.tenants set role_name = ''", []string{"role-bypasses {support}_2"}},
		{"a tenant's role that owns", "update pgtenancy.tenants set role_name = '{owner}'", "update pgtenancy.tenants set role_name = ''", nil},
		{"CREATE", "grant create on schema public to {app}", "", []string{"create-in-shared-schema public"}},
		{"CREATE for all", "grant create on schema public to public", "", []string{"create-in-shared-schema public"}},
	}
	for _, tt := range tests {
		replace := strings.NewReplacer("{app}", db.app, "{owner}", db.owner, "{support}", support).Replace
		db.exec(t, replace(tt.sql))
		var want []string
		for _, w := range tt.want {
			want = append(want, replace(w))
		}
		findings := checkRLS(t, fleet)
		checkList(t, tt.name, rules(findings), want...)
		if tt.undo == "" {
			for _, f := range findings {
				tt.undo += f.Remedy + ";"
			}
		}
		db.exec(t, replace(tt.undo))
		checkList(t, "after "+tt.name, rules(checkRLS(t, fleet)))
	}

	// One role for all is bound by FORCE.
	one := db.open(t, nil, func(c *pgtenancy.FleetConfig) { c.PoolConfig.Conns, c.Owner = c.Owner, nil })
	checkList(t, "one role", rules(checkRLS(t, one)))
	db.exec(t, "alter table users no force row level security")
	checkList(t, "one role without FORCE", rules(checkRLS(t, one)), "owner-bypasses public.users")
}

func TestCheckRLSErrors(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	fleet := db.open(t, nil)
	_, err := fleet.CheckRLS(bare(t))
	checkIs(t, "without a registry", err, pgtenancy.ErrRegistryOutdated)
	migrate(t, fleet)
	ctx, cancel := context.WithCancel(bare(t))
	cancel()
	_, err = fleet.CheckRLS(ctx)
	checkIs(t, "cancelled", err, context.Canceled)
}

func TestOpenRLSBypassed(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	as := func(role string) fleetOption {
		return func(c *pgtenancy.FleetConfig) { c.PoolConfig.Conns = db.poolConfig(t, role) }
	}
	try := func(opts ...fleetOption) error {
		t.Helper()
		cfg := db.config(t, nil)
		for _, o := range opts {
			o(&cfg)
		}
		fleet, err := pgtenancy.Open(bare(t), cfg)
		if err == nil {
			closeFleet(t, fleet)
		}
		return err
	}
	db.exec(t, "create table plans (name text)")
	db.execAs(t, db.owner, "create table countries (name text);"+pgtenancy.Policy{Table: pgx.Identifier{"public", "countries"}, ReadOnly: true}.SQL())
	db.execAs(t, db.owner, "create schema private; create table private.users (tenant_id text); alter table private.users enable row level security")
	check(t, "a superuser, and nothing to guard", try(as("postgres")))

	db.execAs(t, db.owner, "create table users (tenant_id text);"+pgtenancy.Policy{Table: pgx.Identifier{"public", "users"}}.SQL())
	bypassing := db.app + "_bypassing"
	db.exec(t, "create role "+bypassing+" login bypassrls")
	t.Cleanup(func() { db.exec(t, "drop role "+bypassing) })
	for role, reason := range map[string]string{"postgres": `"postgres" is a superuser`, bypassing: `"` + bypassing + `" has BYPASSRLS`} {
		err := try(as(role))
		checkIs(t, role, err, pgtenancy.ErrRLSBypassed)
		if want := reason + ": public.users"; err != nil && !strings.HasSuffix(err.Error(), want) {
			t.Errorf("error %q, want it to end in %q", err, want)
		}
		check(t, role+", allowed", try(as(role), func(c *pgtenancy.FleetConfig) { c.AllowBypassRLS = true }))
	}
	check(t, "the application's role", try())
	check(t, "the owner, forced", try(as(db.owner)))
	check(t, "a role that is not there", try(as("nobody_"+db.app)))
	checkIs(t, "another shared schema", try(as(db.owner), func(c *pgtenancy.FleetConfig) { c.PoolConfig.SharedSchemas = []string{"private"} }), pgtenancy.ErrRLSBypassed)

	db.execAs(t, db.owner, `alter table users no force row level security; create table "A b" (); create table c (); create table z (); create table y ();
		alter table "A b" enable row level security; alter table c enable row level security; alter table y enable row level security; alter table z enable row level security;
		alter table z force row level security`)
	check(t, "the application's role, without FORCE", try())
	err := try(as(db.owner))
	checkIs(t, "the owner, not forced", err, pgtenancy.ErrRLSBypassed)
	if want := "owns tables that do not force it: public.A b, public.c, public.users, others"; err != nil && !strings.HasSuffix(err.Error(), want) {
		t.Errorf("error %q, want it to end in %q", err, want)
	}
	db.exec(t, fmt.Sprintf("grant %s to %s", db.owner, db.app))
	checkIs(t, "a member of the owner", try(), pgtenancy.ErrRLSBypassed)
}

// Migrate makes what Open has not seen.
func TestMigrateRLSBypassed(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	files := sqlFiles("tenant/001_x.sql", "create table x ()")
	provision(t, db.migrated(t, files), "acme")
	superuser := func(c *pgtenancy.FleetConfig) { c.PoolConfig.Conns, c.AppRole = db.poolConfig(t, "postgres"), db.app }
	allowed := func(c *pgtenancy.FleetConfig) { c.AllowBypassRLS = true }

	// Also where a tenant's migration fails after it.
	files = with(files, "shared/001_users.sql", "create table users (tenant_id text);"+pgtenancy.Policy{Table: pgx.Identifier{"public", "users"}}.SQL(),
		"tenant/002_y.sql", "select 1 / 0")
	fleet := db.open(t, files, superuser)
	report, err := fleet.Migrate(bare(t), nil)
	checkIs(t, "Migrate", err, pgtenancy.ErrRLSBypassed)
	var failed *pgtenancy.MigrateError
	if !errors.As(err, &failed) || len(failed.Failed) != 1 {
		t.Errorf("Migrate: error %v, want that it failed for one tenant", err)
	}
	checkList(t, "shared migrations", report.Shared, "001_users")

	files = with(files, "tenant/002_y.sql", "create table y ()", "shared/002_z.sql", "create table z ()")
	migrate(t, db.open(t, files, superuser, allowed))
	files = with(files, "shared/003_z.sql", "drop table z")
	migrate(t, db.open(t, files))
}

// Where tenants have roles, a policy must ask for these: SQL of a tenant's can change a setting.
func TestCheckRLSIsolated(t *testing.T) {
	t.Parallel()
	db := newRolesDB(t)
	fleet := db.newFleet(t)
	db.exec(t, "alter table users drop constraint users_name_key")
	checkList(t, "by roles", rules(checkRLS(t, fleet)))
	db.exec(t, "grant truncate on users to "+db.group)
	checkList(t, "what the group may", rules(checkRLS(t, fleet)), "privilege-not-covered public.users")
	db.exec(t, "revoke truncate on users from "+db.group)
	db.exec(t, "alter policy tenant_isolation on users with check (tenant_id = "+tenantSQL+")")
	checkList(t, "to write, by the setting", rules(checkRLS(t, fleet)), "policy-writes-any public.users")
	db.exec(t, "alter policy tenant_isolation on users using (tenant_id = "+tenantSQL+")")
	checkList(t, "by the setting", rules(checkRLS(t, fleet)), "policy-ignores-tenant public.users")
}
