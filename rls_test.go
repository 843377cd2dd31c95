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

const insufficientPrivilege = "42501"

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
