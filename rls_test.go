package pgtenancy_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy"
)

// rlsDB is a database with a table guarded by a Policy that the owner's role has applied.
type rlsDB struct {
	*fleetDB
	policy pgtenancy.Policy
	table  string // quoted
}

// newRLSDB makes the table and applies the policy. columns go into create table.
func newRLSDB(t *testing.T, policy pgtenancy.Policy, columns string) *rlsDB {
	t.Helper()
	db := &rlsDB{fleetDB: newFleetDB(t), policy: policy}
	db.policy.Role = db.app
	db.table = db.policy.Table.Sanitize()
	db.execAs(t, db.owner, fmt.Sprintf("create table %s (%s); grant all on %[1]s to %[3]s; grant all on %[1]s to public",
		db.table, columns, db.app))
	db.execAs(t, db.owner, db.policy.SQL())
	return db
}

// session is a connection whose statements are those of one tenant.
type session struct {
	t *testing.T
	*pgx.Conn
}

// session returns one of a role's, of no tenant.
func (db *rlsDB) session(t *testing.T, role string) session {
	t.Helper()
	return session{t, db.as(t, role)}
}

// tenant makes what follows a tenant's, or nobody's with "".
func (s session) tenant(value string) session {
	s.t.Helper()
	setting := pgtenancy.SettingDefault
	if _, err := s.Exec(s.t.Context(), "select set_config($1, $2, false)", setting, value); err != nil {
		s.t.Fatal(err)
	}
	return s
}

func (s session) exec(sql string) error {
	_, err := s.Exec(s.t.Context(), sql, pgx.QueryExecModeExec)
	return err
}

// changed returns the number of rows that a statement changed.
func (s session) changed(sql string) int64 {
	s.t.Helper()
	tag, err := s.Exec(s.t.Context(), sql, pgx.QueryExecModeExec)
	if err != nil {
		s.t.Errorf("%s: %v", sql, err)
	}
	return tag.RowsAffected()
}

// texts returns one column.
func (s session) texts(sql string, args ...any) []string {
	s.t.Helper()
	rows, _ := s.Query(s.t.Context(), sql, append([]any{pgx.QueryExecModeExec}, args...)...)
	got, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		s.t.Errorf("%s: %v", sql, err)
	}
	return got
}

const (
	insufficientPrivilege = "42501"
	notSupported          = "0A000"
)

func TestPolicy(t *testing.T) {
	t.Parallel()
	const a, b = "6c6e51b4-6ba5-4a0f-8a3b-0c6a5b1b7a01", "6c6e51b4-6ba5-4a0f-8a3b-0c6a5b1b7a02"
	tests := []struct {
		name    string
		policy  pgtenancy.Policy
		columns string
		a, b    string // two tenants
	}{
		{"text", pgtenancy.Policy{Table: pgx.Identifier{"public", "users"}}, "tenant_id text not null, name text", "acme", "globex"},
		{"uuid", pgtenancy.Policy{Table: pgx.Identifier{"public", "users"}, Type: "uuid"}, "tenant_id uuid not null, name text", a, b},
		{"bigint", pgtenancy.Policy{Table: pgx.Identifier{"public", "users"}, Type: "bigint", Column: "Kunde Nr."}, `name text, "Kunde Nr." bigint not null`, "17", "-18"},
		{"type with a length", pgtenancy.Policy{Table: pgx.Identifier{"public", "users"}, Type: "character varying(20)"}, "tenant_id varchar(20) not null, name text", "acme", "globex"},
		{"quotes in names", pgtenancy.Policy{Table: pgx.Identifier{"public", `It's "the" users`}, Column: `o'"k`}, `"o'""k" text not null, name text`, "acme", "globex"},
		{"dollars in names", pgtenancy.Policy{Table: pgx.Identifier{"public", `a$$b$q1$`}, Column: "$$"}, `"$$" text not null, name text`, "acme", "globex"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			db := newRLSDB(t, tt.policy, tt.columns)
			column := "tenant_id"
			if tt.policy.Column != "" {
				column = pgx.Identifier{tt.policy.Column}.Sanitize()
			}
			app := db.session(t, db.app)
			insert := fmt.Sprintf("insert into %s (name) values ('%%s')", db.table)
			insertFor := fmt.Sprintf("insert into %s (%s, name) values ('%%s', 'smuggled')", db.table, column)
			names := fmt.Sprintf("select name from %s order by name", db.table)

			check(t, "insert as a", app.tenant(tt.a).exec(fmt.Sprintf(insert, "ann")))
			check(t, "insert as a", app.exec(fmt.Sprintf(insert, "art")))
			check(t, "insert as b", app.tenant(tt.b).exec(fmt.Sprintf(insert, "bob")))
			checkList(t, "default", db.texts(t, fmt.Sprintf("select %s::text from %s order by name", column, db.table)), tt.a, tt.a, tt.b)

			// The owner is bound as the application is.
			for _, role := range []string{db.app, db.owner} {
				s := db.session(t, role)
				checkList(t, role+" without a tenant reads", s.texts(names))
				if err := s.exec(fmt.Sprintf(insert, "nobody's")); err == nil {
					t.Errorf("%s without a tenant inserts", role)
				}
				checkCode(t, role+" without a tenant inserts for a", s.exec(fmt.Sprintf(insertFor, tt.a)), insufficientPrivilege)
				checkList(t, role+" after the setting was empty reads", s.tenant("").texts(names))
				checkEqual(t, role+" without a tenant deletes", s.changed("delete from "+db.table), 0)

				checkList(t, role+" as a reads", s.tenant(tt.a).texts(names), "ann", "art")
				checkCode(t, role+" as a inserts for b", s.exec(fmt.Sprintf(insertFor, tt.b)), insufficientPrivilege)
				checkCode(t, role+" as a moves a row to b", s.exec(fmt.Sprintf("update %s set %s = '%s'", db.table, column, tt.b)), insufficientPrivilege)
				checkEqual(t, role+" as a updates b's", s.changed(fmt.Sprintf("update %s set name = 'x' where name = 'bob'", db.table)), 0)
				checkEqual(t, role+" as a updates all", s.changed(fmt.Sprintf("update %s set name = name", db.table)), 2)
				checkEqual(t, role+" as a deletes b's", s.changed(fmt.Sprintf("delete from %s where name = 'bob'", db.table)), 0)
				checkList(t, role+" as b reads", s.tenant(tt.b).texts(names), "bob")
			}
			checkCode(t, "truncate", app.exec("truncate "+db.table), insufficientPrivilege)
			checkEqual(t, "rows", db.count(t, "select count(*) from "+db.table), 3)

			// It may be run again.
			db.execAs(t, db.owner, db.policy.SQL())
			checkList(t, "as a, after it was run again", app.tenant(tt.a).texts(names), "ann", "art")
			regclass := "'" + strings.ReplaceAll(db.table, "'", "''") + "'::regclass"
			checkEqual(t, "indexes", db.count(t, "select count(*) from pg_index where indrelid = "+regclass), 1)
			checkEqual(t, "policies", db.count(t, "select count(*) from pg_policy where polrelid = "+regclass), 1)
		})
	}
}

func TestPolicyIndex(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, columns, more string
		want                int
	}{
		{"none", "tenant_id text, name text", "", 1},
		{"a unique one that begins with the column", "tenant_id text, name text, unique (tenant_id, name)", "", 1},
		{"one of the column", "tenant_id text, name text", "create index on users (tenant_id)", 1},
		{"one that has the column second", "tenant_id text, name text, unique (name, tenant_id)", "", 2},
		{"one for some of the rows", "tenant_id text, name text", "create index on users (tenant_id) where name > ''", 2},
		{"one of an expression", "tenant_id text, name text", "create index on users (lower(tenant_id))", 2},
		{"one that includes the column", "tenant_id text, name text", "create index on users (name) include (tenant_id)", 2},
	}
	db := newFleetDB(t)
	for i, tt := range tests {
		name := fmt.Sprintf("users%d", i)
		db.execAs(t, db.owner, "create table "+name+" ("+tt.columns+");"+strings.ReplaceAll(tt.more, "users", name))
		sql := pgtenancy.Policy{Table: pgx.Identifier{"public", name}}.SQL()
		db.execAs(t, db.owner, sql)
		db.execAs(t, db.owner, sql)
		checkEqual(t, tt.name+": indexes", db.count(t, "select count(*) from pg_index where indrelid = '"+name+"'::regclass"), tt.want)
	}
}

// A setting of the service's own, and a key that is not the tenant's ID, through the Pool.
func TestPolicySettingValue(t *testing.T) {
	t.Parallel()
	policy := pgtenancy.Policy{Table: pgx.Identifier{"public", "users"}, Type: "bigint", Setting: "shop.customer_no"}
	db := newFleetDB(t)
	policy.Role = db.app
	fleet := db.migrated(t, with(notesFiles, "shared/001_users.sql",
		fmt.Sprintf("create table users (tenant_id bigint not null, name text);\ngrant select, insert on users to %s;\n%s", db.app, policy.SQL())),
		func(c *pgtenancy.FleetConfig) {
			c.PoolConfig.Setting = policy.Setting
			c.PoolConfig.SettingValue = func(t pgtenancy.Tenant) string {
				no, _ := t.Attribute("no")
				return no
			}
		})
	for i, id := range []string{"acme", "globex"} {
		_, err := fleet.Provision(bare(t), id, &pgtenancy.ProvisionOpts{
			Attributes: map[string]string{"no": fmt.Sprint(i + 1)},
			Seed: func(ctx context.Context, tx pgx.Tx) error {
				_, err := tx.Exec(ctx, "insert into users (name) values ($1)", id)
				return err
			},
		})
		check(t, "Provision", err)
	}
	checkList(t, "users", db.texts(t, "select tenant_id || ' ' || name from users order by 1"), "1 acme", "2 globex")
	acme, err := fleet.Lookup(bare(t), pgtenancy.ByID("acme"))
	check(t, "Lookup", err)
	var names string
	check(t, "select", fleet.Pool().QueryRow(as(t, acme), "select string_agg(name, ' ') from users").Scan(&names))
	checkEqual(t, "users of acme", names, "acme")
	check(t, "select", fleet.Pool().Shared().QueryRow(bare(t), "select coalesce(string_agg(name, ' '), '') from users").Scan(&names))
	checkEqual(t, "users of nobody", names, "")
}

// copyFrom copies one row into a table by COPY.
func (s session) copyFrom(table pgx.Identifier, columns []string, row ...any) error {
	_, err := s.CopyFrom(s.t.Context(), table, columns, pgx.CopyFromRows([][]any{row}))
	return err
}

// refused checks that statements fail with an error of PostgreSQL's.
func (s session) refused(code string, statements ...string) {
	s.t.Helper()
	for _, sql := range statements {
		checkCode(s.t, sql, s.exec(sql), code)
	}
}

// Rows without a tenant belong to all, and are written by the owner alone.
func TestPolicyGlobal(t *testing.T) {
	t.Parallel()
	table := pgx.Identifier{"public", "units"}
	db := newRLSDB(t, pgtenancy.Policy{Table: table, Global: true}, "tenant_id text, code text, n int default 0, unique (tenant_id, code)")
	db.execAs(t, db.owner, "create unique index on units (code) where tenant_id is null")
	const codes = "select concat_ws(' ', tenant_id, code, n) from units order by 1"
	merge := db.count(t, "select current_setting('server_version_num')::int") >= 150000

	owner := db.session(t, db.owner)
	check(t, "the owner inserts", owner.exec("insert into units (code) values ('kg'), ('m')"))
	check(t, "a superuser inserts", db.session(t, "postgres").exec("insert into units values (null, 'l')"))
	checkEqual(t, "the owner updates", owner.changed("update units set n = 1 where code = 'kg'"), 1)
	checkEqual(t, "the owner deletes", owner.changed("delete from units where code = 'l'"), 1)
	checkEqual(t, "the owner upserts", owner.changed("insert into units (code) values ('m') on conflict (code) where tenant_id is null do update set n = 2"), 1)
	owner.refused(insufficientPrivilege, "insert into units values ('acme', 'x')", "update units set tenant_id = 'acme'")

	app := db.session(t, db.app)
	check(t, "a tenant inserts", app.tenant("acme").exec("insert into units (code) values ('box'), ('kg')"))
	check(t, "another one inserts", app.tenant("globex").exec("insert into units (code) values ('bag')"))
	for _, role := range []string{db.app, db.owner} { // with a tenant, the owner is as the others are
		s := db.session(t, role).tenant("acme")
		checkList(t, role+" reads", s.texts(codes), "acme box 0", "acme kg 0", "kg 1", "m 2")
		s.refused(insufficientPrivilege,
			"insert into units values (null, 'mine')",
			"insert into units values ('globex', 'mine')",
			"update units set tenant_id = null where code = 'box'",
			"update units set tenant_id = 'globex' where code = 'box'",
			"insert into units values (null, 'm') on conflict (code) where tenant_id is null do update set n = 7",
			"insert into units (code) values ('box') on conflict (tenant_id, code) do update set tenant_id = null",
			"insert into units (code) values ('box') on conflict (tenant_id, code) do update set tenant_id = 'globex'",
		)
		if merge {
			s.refused(insufficientPrivilege,
				"merge into units u using (select 'm') x (code) on u.code = x.code when matched then update set n = 7",
				"merge into units u using (select 'm') x (code) on u.code = x.code when matched then delete",
				"merge into units u using (select 'x') x (code) on u.code = x.code when not matched then insert (tenant_id, code) values (null, x.code)",
			)
			checkEqual(t, role+" merges", s.changed("merge into units u using (select 'box') x (code) on u.code = x.code when matched then update set n = 0"), 1)
		}
		checkEqual(t, role+" updates what belongs to all", s.changed("update units set n = 7 where tenant_id is null"), 0)
		checkEqual(t, role+" updates all", s.changed("update units set n = 0"), 2)
		checkEqual(t, role+" locks", s.changed("select from units where tenant_id is null for update"), 0)
		checkEqual(t, role+" deletes", s.changed("delete from units where tenant_id is null or tenant_id = 'globex'"), 0)
		checkEqual(t, role+" upserts its own", s.changed("insert into units (code) values ('box') on conflict (tenant_id, code) do update set n = 0"), 1)
		checkCode(t, role+" copies", s.copyFrom(table, []string{"code"}, "x"), notSupported)
	}
	app.tenant("")
	checkList(t, "without a tenant reads", app.texts(codes), "kg 1", "m 2")
	app.refused(insufficientPrivilege, "insert into units (code) values ('x')", "insert into units values ('acme', 'x')", "truncate units")
	checkEqual(t, "without a tenant updates", app.changed("update units set n = 7"), 0)
	checkEqual(t, "without a tenant deletes", app.changed("delete from units"), 0)
	checkList(t, "rows", db.texts(t, codes), "acme box 0", "acme kg 0", "globex bag 0", "kg 1", "m 2")
}

// In a migration, too.
func TestPolicyGlobalMigration(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	policy := pgtenancy.Policy{Table: pgx.Identifier{"public", "units"}, Role: db.app, Global: true}
	units := "create table units (tenant_id text, code text);\ngrant select on units to " + db.app + ";\n" + policy.SQL()
	fleet := db.migrated(t, sqlFiles("shared/001_units.sql", units, "shared/002_kg.sql", "set local row_security = on;\ninsert into units (code) values ('kg');"))
	var code string
	check(t, "select", fleet.Pool().Shared().QueryRow(bare(t), "select code from units").Scan(&code))
	checkEqual(t, "what belongs to all", code, "kg")
	fleet = db.open(t, sqlFiles("shared/001_units.sql", units, "shared/002_kg.sql", "set local row_security = on;\ninsert into units (code) values ('kg');",
		"shared/003_m.sql", "insert into units (code) values ('m');"))
	_, err := fleet.Migrate(bare(t), nil)
	checkCode(t, "without row_security", err, insufficientPrivilege)
}

// Reference data is read by all and written by the owner.
func TestPolicyReadOnly(t *testing.T) {
	t.Parallel()
	table := pgx.Identifier{"public", "countries"}
	db := newRLSDB(t, pgtenancy.Policy{Table: table, ReadOnly: true}, "code text primary key, name text")
	owner := db.session(t, db.owner)
	check(t, "off, as in a migration", owner.exec("set row_security = off"))
	check(t, "the owner inserts", owner.exec("insert into countries values ('de', 'x')"))
	check(t, "the owner copies", owner.copyFrom(table, []string{"code"}, "fr"))
	checkEqual(t, "the owner updates", owner.changed("update countries set name = 'Germany' where code = 'de'"), 1)

	// Also where somebody grants what SQL revoked.
	for _, granted := range []bool{false, true} {
		if granted {
			db.exec(t, "grant insert, update, delete on countries to "+db.app)
		}
		for _, tenant := range []string{"", "acme"} {
			app := db.session(t, db.app).tenant(tenant)
			checkList(t, "reads", app.texts("select code from countries order by 1"), "de", "fr")
			app.refused(insufficientPrivilege, "insert into countries values ('x')", "insert into countries values ('de') on conflict (code) do update set name = 'x'", "truncate countries")
			if granted {
				checkEqual(t, "updates", app.changed("update countries set name = 'x'"), 0)
				checkEqual(t, "deletes", app.changed("delete from countries"), 0)
				checkCode(t, "copies", app.copyFrom(table, []string{"code"}, "x"), notSupported)
			} else {
				app.refused(insufficientPrivilege, "update countries set name = 'x'", "delete from countries", "select from countries for update")
				checkCode(t, "copies", app.copyFrom(table, []string{"code"}, "x"), insufficientPrivilege)
			}
		}
	}
	checkList(t, "rows", db.texts(t, "select concat_ws(' ', code, name) from countries order by 1"), "de Germany", "fr")
}

// Readers read the rows of all tenants, and write none but as others do.
func TestPolicyReaders(t *testing.T) {
	t.Parallel()
	db := newRLSDB(t, pgtenancy.Policy{Table: pgx.Identifier{"public", "users"}}, "tenant_id text, name text")
	support := db.app + "_support"
	db.exec(t, "create role "+support+" login; grant all on users to "+support)
	t.Cleanup(func() { db.exec(t, "drop owned by "+support+"; drop role "+support) })
	db.policy.Readers = []string{support, db.owner}
	db.execAs(t, db.owner, db.policy.SQL())
	db.exec(t, "revoke all on users from public; insert into users values ('acme', 'ann'), ('globex', 'gus')")
	const names = "select name from users order by 1"
	for _, tenant := range []string{"", "acme"} {
		checkList(t, "a reader reads", db.session(t, support).tenant(tenant).texts(names), "ann", "gus")
		checkList(t, "another one reads", db.session(t, db.owner).tenant(tenant).texts(names), "ann", "gus")
	}
	checkList(t, "the application reads", db.session(t, db.app).tenant("acme").texts(names), "ann")
	checkList(t, "the application reads without a tenant", db.session(t, db.app).texts(names))
	db.session(t, support).tenant("acme").refused(insufficientPrivilege, "insert into users (name) values ('x')", "update users set name = 'x'", "delete from users", "truncate users")

	// Where they are granted more, it is the rows of one tenant.
	db.exec(t, "grant insert, update, delete on users to "+support)
	s := db.session(t, support)
	s.refused(insufficientPrivilege, "insert into users (name) values ('x')", "insert into users values ('acme', 'x')")
	checkEqual(t, "updates without a tenant", s.changed("update users set name = 'x'"), 0)
	checkEqual(t, "updates as a tenant", s.tenant("acme").changed("update users set name = name"), 1)
	s.refused(insufficientPrivilege, "update users set tenant_id = 'globex'")
	checkEqual(t, "deletes another's", s.changed("delete from users where name = 'gus'"), 0)
}

// A policy that has changed takes the place of what it was.
func TestPolicyChanges(t *testing.T) {
	t.Parallel()
	table := pgx.Identifier{"public", "users"}
	db := newRLSDB(t, pgtenancy.Policy{Table: table}, "tenant_id text, name text")
	policies := []struct {
		name   string
		policy pgtenancy.Policy
		want   []string
		forced bool
	}{
		{"usual", pgtenancy.Policy{Table: table}, []string{"tenant_isolation"}, true},
		{"global", pgtenancy.Policy{Table: table, Global: true}, []string{"tenant_global", "tenant_global_owner", "tenant_isolation"}, true},
		{"readers", pgtenancy.Policy{Table: table, Readers: []string{db.owner}}, []string{"tenant_isolation", "tenant_readers"}, true},
		{"read only", pgtenancy.Policy{Table: table, ReadOnly: true}, []string{"reference_data"}, false},
	}
	db.execAs(t, db.owner, "create policy tenants_own on users using (false)")
	for _, from := range policies {
		for _, to := range policies {
			db.execAs(t, db.owner, from.policy.SQL())
			db.execAs(t, db.owner, to.policy.SQL())
			checkList(t, from.name+", then "+to.name, db.texts(t, "select polname::text from pg_policy where polrelid = 'users'::regclass and polname <> 'tenants_own' order by 1"), to.want...)
			checkEqual(t, from.name+", then "+to.name+": forced", db.count(t, "select count(*) from pg_class where oid = 'users'::regclass and relrowsecurity and relforcerowsecurity") == 1, to.forced)
		}
	}
	checkEqual(t, "policies of others", db.count(t, "select count(*) from pg_policy where polname = 'tenants_own'"), 1)
}

// The plan searches the index of the column, with the tenant that is known when it starts.
func TestPolicyPlan(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, columns, value string
		policy               pgtenancy.Policy
	}{
		{"text", "tenant_id text, id bigint primary key", "'7'", pgtenancy.Policy{}},
		{"uuid", "tenant_id uuid, id bigint primary key", "'6c6e51b4-6ba5-4a0f-8a3b-0c6a5b1b7a07'", pgtenancy.Policy{Type: "uuid"}},
		{"varchar", "tenant_id varchar(20), id bigint primary key", "'7'", pgtenancy.Policy{Type: "character varying(20)"}},
		{"global", "tenant_id text, id bigint primary key", "'7'", pgtenancy.Policy{Global: true}},
	}
	db := &rlsDB{fleetDB: newFleetDB(t)}
	for i, tt := range tests {
		tt.policy.Table, tt.policy.Role = pgx.Identifier{"public", fmt.Sprintf("t%d", i)}, db.app
		table := tt.policy.Table.Sanitize()
		value := "n % 100"
		if tt.policy.Type == "uuid" {
			value = "('6c6e51b4-6ba5-4a0f-8a3b-0c6a5b1b7a' || lpad((n % 100)::text, 2, '0'))::uuid"
		}
		db.execAs(t, db.owner, fmt.Sprintf("create table %s (%s); insert into %[1]s select %[3]s, n from generate_series(1, 10000) n; grant select on %[1]s to %[4]s; %[5]s",
			table, tt.columns, value, db.app, tt.policy.SQL()))
		db.exec(t, "vacuum analyze "+table)
		app := db.session(t, db.app).tenant(strings.Trim(tt.value, "'"))
		plan := strings.Join(app.texts("explain (costs off) select * from "+table), "\n")
		if !strings.Contains(plan, "Index Cond: (") || !strings.Contains(plan, "tenant_id") || strings.Contains(plan, "Seq Scan") {
			t.Errorf("%s: it does not search the index of the column:\n%s", tt.name, plan)
		}
		if by := strings.Join(app.texts("explain (costs off) select * from "+table+" where id = 7"), "\n"); !strings.Contains(by, "Index Cond: (id = ") {
			t.Errorf("%s: it does not search the primary key:\n%s", tt.name, by)
		}
		checkEqual(t, tt.name+": rows", len(app.texts("select id::text from "+table)), 100)
	}
}

func TestPolicyInvalid(t *testing.T) {
	t.Parallel()
	users := pgx.Identifier{"public", "users"}
	long := strings.Repeat("x", 64)
	finder := func(p pgtenancy.Policy, function pgx.Identifier, key string, columns ...string) func() string {
		return func() string { return p.FinderSQL(function, key, columns...) }
	}
	tests := []struct {
		name, field string
		sql         func() string
	}{
		{"no table", "Policy.Table", pgtenancy.Policy{}.SQL},
		{"table without its schema", "Policy.Table", pgtenancy.Policy{Table: pgx.Identifier{"users"}}.SQL},
		{"table with an empty name", "Policy.Table", pgtenancy.Policy{Table: pgx.Identifier{"public", ""}}.SQL},
		{"table with a NUL", "Policy.Table", pgtenancy.Policy{Table: pgx.Identifier{"public", "a\x00"}}.SQL},
		{"column too long", "Policy.Column", pgtenancy.Policy{Table: users, Column: long}.SQL},
		{"type that is more than a type", "Policy.Type", pgtenancy.Policy{Table: users, Type: "text); drop table users; --"}.SQL},
		{"type with a quote", "Policy.Type", pgtenancy.Policy{Table: users, Type: `"Key"`}.SQL},
		{"role too long", "Policy.Role", pgtenancy.Policy{Table: users, Role: long}.SQL},
		{"setting of PostgreSQL's own", "Policy.Setting", pgtenancy.Policy{Table: users, Setting: "search_path"}.SQL},
		{"read only with a column", "Policy.Column", pgtenancy.Policy{Table: users, ReadOnly: true, Column: "tenant_id"}.SQL},
		{"read only with a type", "Policy.Type", pgtenancy.Policy{Table: users, ReadOnly: true, Type: "uuid"}.SQL},
		{"read only, and rows for all", "Policy.Global", pgtenancy.Policy{Table: users, ReadOnly: true, Global: true}.SQL},
		{"read only with readers", "Policy.Readers", pgtenancy.Policy{Table: users, ReadOnly: true, Readers: []string{"bi"}}.SQL},
		{"reader without a name", "Policy.Readers", pgtenancy.Policy{Table: users, Readers: []string{"bi", ""}}.SQL},
		{"the application as a reader", "Policy.Readers", pgtenancy.Policy{Table: users, Role: "app", Readers: []string{"app"}}.SQL},
		{"all tenants as readers", "Policy.Readers", pgtenancy.Policy{Table: users, IsolateRoles: "shop", Readers: []string{"shop"}}.SQL},
		{"finder of what belongs to no tenant", "Policy.ReadOnly", finder(pgtenancy.Policy{Table: users, Role: "app", ReadOnly: true}, pgx.Identifier{"public", "f"}, "email")},
		{"finder without a role", "Policy.Role", finder(pgtenancy.Policy{Table: users}, pgx.Identifier{"public", "f"}, "email")},
		{"finder without its schema", "FinderSQL function", finder(pgtenancy.Policy{Table: users, Role: "app"}, pgx.Identifier{"f"}, "email")},
		{"finder without a key", "FinderSQL name", finder(pgtenancy.Policy{Table: users, Role: "app"}, pgx.Identifier{"public", "f"}, "")},
		{"finder with an empty column", "FinderSQL name", finder(pgtenancy.Policy{Table: users, Role: "app"}, pgx.Identifier{"public", "f"}, "email", "id", "")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			defer func() {
				err, _ := recover().(error)
				checkInvalid(t, "panic", err, tt.field)
			}()
			t.Errorf("no panic: %s", tt.sql())
		})
	}
}

func TestFinder(t *testing.T) {
	t.Parallel()
	db := newRLSDB(t, pgtenancy.Policy{Table: pgx.Identifier{"public", "users"}},
		"tenant_id text, id bigint generated always as identity, email text, pass text")
	finder := db.policy.FinderSQL(pgx.Identifier{"public", "find_user"}, "email", "id", "pass")
	for range 2 { // it may be run again
		db.execAs(t, db.owner, finder)
	}
	db.exec(t, `insert into users (tenant_id, email, pass) values ('acme', 'ann@x', '1'), ('globex', 'ann@x', '2'),
		('acme', 'art@x', '3'), ('globex', '', '4'), ('globex', null, '5'), ('globex', 'ANN@x', '6'), ('globex', '%', '7')`)
	const find = `select tenant_id || ' ' || id || ' ' || pass from public.find_user($1) order by 1`

	app := db.session(t, db.app)
	tests := []struct {
		name string
		key  any
		want []string
	}{
		{"all rows of the key", "ann@x", []string{"acme 1 1", "globex 2 2"}},
		{"one row", "art@x", []string{"acme 3 3"}},
		{"no row", "nobody@x", nil},
		{"other letters", "Ann@x", nil},
		{"a pattern is a key", "%", []string{"globex 7 7"}},
		{"an empty key", "", nil},
		{"no key", nil, nil},
		{"more than a key", "x' or true --", nil},
	}
	for _, tt := range tests {
		for _, tenant := range []string{"", "initech"} { // whatever the tenant is
			checkList(t, tt.name, app.tenant(tenant).texts(find, tt.key), tt.want...)
		}
	}

	t.Run("leaves nothing behind in the transaction", func(t *testing.T) {
		for _, role := range []string{db.app, db.owner} {
			if role == db.owner {
				db.exec(t, "grant execute on function find_user to "+db.owner)
			}
			s := db.session(t, role).tenant("acme")
			check(t, "begin", s.exec("begin"))
			before := s.texts("select concat_ws(' ', current_user, current_setting('search_path'), current_setting('row_security'), current_setting('app.current_tenant'))")
			checkList(t, "found", s.texts("select tenant_id from find_user('ann@x') order by 1"), "acme", "globex")
			checkList(t, "settings", s.texts("select concat_ws(' ', current_user, current_setting('search_path'), current_setting('row_security'), current_setting('app.current_tenant'))"), before...)
			checkList(t, "the key", s.texts("select coalesce(current_setting('pgtenancy.find', true), '')"), "")
			checkList(t, "rows", s.texts("select pass from users order by 1"), "1", "3")
			checkList(t, "rows beside a call", s.texts("select u.pass from find_user('ann@x') f, users u where u.tenant_id = f.tenant_id order by 1"), "1", "3")
			check(t, "savepoint", s.exec("savepoint x"))
			if err := s.exec("select 1 / 0 from find_user('ann@x')"); err == nil {
				t.Error("no error")
			}
			check(t, "rollback to", s.exec("rollback to savepoint x"))
			checkList(t, "the key after an error", s.texts("select coalesce(current_setting('pgtenancy.find', true), '')"), "")
			check(t, "rollback", s.exec("rollback"))
		}
	})
	t.Run("the application cannot do it itself", func(t *testing.T) {
		app := db.session(t, db.app)
		check(t, "set", app.exec("select set_config('pgtenancy.find', 'ann@x', false)"))
		checkList(t, "rows without a tenant", app.texts("select pass from users"))
		checkList(t, "rows of a tenant", app.tenant("acme").texts("select pass from users order by 1"), "1", "3")
	})
	t.Run("others may not call it", func(t *testing.T) {
		other := db.app + "_other"
		db.exec(t, "create role "+other+" login; grant all on users to "+other)
		t.Cleanup(func() { db.exec(t, "drop owned by "+other+"; drop role "+other) })
		checkCode(t, "find_user", db.session(t, other).exec("select find_user('ann@x')"), insufficientPrivilege)
	})
	t.Run("the owner's own statements stay bound", func(t *testing.T) {
		s := db.session(t, db.owner)
		checkList(t, "rows without a tenant", s.texts("select pass from users"))
		checkList(t, "rows of a tenant", s.tenant("acme").texts("select pass from users order by 1"), "1", "3")
	})
	t.Run("only reads", func(t *testing.T) {
		s := db.session(t, db.owner)
		check(t, "set", s.exec("select set_config('pgtenancy.find', 'ann@x', false)"))
		checkEqual(t, "updated", s.changed("update users set pass = 'x'"), 0)
		checkEqual(t, "deleted", s.changed("delete from users"), 0)
	})
	t.Run("objects of the caller's do not stand in for its own", func(t *testing.T) {
		app := db.session(t, db.app)
		check(t, "temporary table", app.exec("create temporary table users (tenant_id text, id bigint, email text, pass text)"))
		check(t, "insert", app.exec("insert into pg_temp.users values ('evil', 1, 'ann@x', 'x')"))
		checkList(t, "found", app.texts("select tenant_id from public.find_user('ann@x') order by 1"), "acme", "globex")
	})
}

// Keys of other types, names that need quotes, and a superuser as the owner.
func TestFinderKeys(t *testing.T) {
	t.Parallel()
	for _, superuser := range []bool{false, true} {
		t.Run(fmt.Sprintf("superuser %v", superuser), func(t *testing.T) {
			t.Parallel()
			db := newRLSDB(t, pgtenancy.Policy{Table: pgx.Identifier{"public", `The "users" $$`}, Column: "Tenant's"},
				`"Tenant's" text, "No. $$" bigint, "A ""b""" text`)
			role := db.owner
			if superuser {
				role = "postgres"
				db.exec(t, "alter table "+db.table+" owner to postgres")
			}
			db.execAs(t, role, db.policy.FinderSQL(pgx.Identifier{"public", `find "it"`}, "No. $$", `A "b"`))
			db.exec(t, "insert into "+db.table+" values ('acme', 7, 'seven'), ('globex', 8, 'eight'), ('globex', null, 'null')")
			app := db.session(t, db.app)
			const find = `select "Tenant's" || ' ' || "A ""b""" from public."find ""it"""($1)`
			checkList(t, "7", app.texts(find, 7), "acme seven")
			checkList(t, "9", app.texts(find, 9))
			checkList(t, "null", app.texts(find, nil))
		})
	}
}

// The quickstart's migration has the SQL as it is written now.
func TestQuickstartSQL(t *testing.T) {
	t.Parallel()
	const file = "examples/quickstart/migrations/shared/001_users.sql"
	migration, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	policy := pgtenancy.Policy{Table: pgx.Identifier{"public", "users"}, Role: "quickstart_app"}
	for _, sql := range []string{policy.SQL(), policy.FinderSQL(pgx.Identifier{"public", "find_user"}, "email")} {
		if !strings.Contains(string(migration), "\n\n"+sql) {
			t.Errorf("%s does not contain:\n%s", file, sql)
		}
	}
}
