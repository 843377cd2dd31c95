package pgtenancy_test

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy"
)

// A wall is what is between a tenant and SQL that another one wrote, each with those before it.
type wall int

const (
	scoping  wall = iota // and row level security, keyed on the setting
	roles                // a role for each tenant, and policies keyed on it, and what is refused by its text
	isolated             // a database that IsolateRolesSQL has prepared
	none                 // nothing that the library has
)

func (w wall) String() string {
	return [...]string{"scoping", "roles without the script", "isolated roles", "nothing"}[w]
}

// What SECURITY.md says, with which attacks show it.
const (
	saysAccidents = "Hostile SQL that names another schema reads it."
	saysSetting   = "Hostile SQL can change the setting inside its own statement."
	saysRows      = "Row level security filters before any function or operator of the statement sees a row."
	saysOne       = "A call runs one statement."
	saysRole      = "A tenant's role has the use of its own schema and of the shared ones, and of nothing of another tenant's."
	saysLeave     = "Nothing that a tenant's role can call or make leaves the role, in a database that IsolateRolesSQL has prepared."
	saysText      = "SET and RESET of the role are refused by their text, since PostgreSQL would allow them."
	saysMake      = "It can make nothing that another tenant's statement, or the owner's function, would find."
	saysDefiner   = "A function with SECURITY DEFINER does what it does for whoever calls it."
	saysGranted   = "What connects to the database anew, as dblink_connect_u where it is granted, is behind all walls."
	saysSeen      = "Names in the catalogs, and that a value is taken in a unique index of a shared table, are there for all to see."
)

// What SECURITY.md says is what is tested, and the tests that it names are there.
func TestSecuritySays(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("SECURITY.md")
	check(t, "ReadFile", err)
	text := strings.ReplaceAll(strings.Join(strings.Fields(string(b)), " "), "`", "")
	for _, a := range attacks {
		if !strings.Contains(text, strings.TrimSuffix(a.says, ".")) {
			t.Errorf("SECURITY.md does not say %q, which %q is about", a.says, a.name)
		}
	}

	var tests strings.Builder
	for _, pattern := range []string{"*_test.go", "middleware/*_test.go"} {
		files, err := filepath.Glob(pattern)
		check(t, "Glob", err)
		for _, file := range files {
			b, err := os.ReadFile(file)
			check(t, "ReadFile", err)
			tests.Write(b)
		}
	}
	for _, name := range regexp.MustCompile(`\b(Test|Fuzz)[A-Z]\w*\*?`).FindAllString(text, -1) {
		prefix, some := strings.CutSuffix(name, "*")
		if !some {
			prefix += "("
		}
		if !strings.Contains(tests.String(), "\nfunc "+prefix) {
			t.Errorf("SECURITY.md names %s, which is not there", name)
		}
	}
}

// An attack is SQL that acme runs to reach a row of globex's.
type attack struct {
	name  string
	sql   []string // statements, one after the other; "globex: " before one that globex runs in between
	holds wall     // the first wall that stops it
	says  string   // what SECURITY.md says about it
	sees  string   // what shows that it got there; "" is secret
	needs string   // an extension
}

// secret is in all rows of globex's, and pwned in none.
const secret, pwned = "the secret of globex", "pwned"

// {role} is what takes the place of acme's role, and {name} the same as an identifier: globex's where there are roles.
var attacks = []attack{
	{name: "another schema by its name", holds: roles, says: saysAccidents, sql: []string{`select body from tenant_globex.notes`}},
	{name: "to write there", holds: roles, says: saysAccidents, sql: []string{`update tenant_globex.notes set body = 'pwned'`}},
	{name: "to insert from there", holds: roles, says: saysAccidents, sql: []string{`insert into notes (body) select body from tenant_globex.notes`, `select body from notes`}},
	{name: "search_path in a transaction", holds: roles, says: saysAccidents, sql: []string{`set local search_path = tenant_globex`, `select body from notes`}},
	{
		name: "search_path inside a statement", holds: roles, says: saysSetting,
		sql: []string{`select set_config('search_path', 'tenant_globex', true), query_to_xml('select body from notes', true, true, '')::text`},
	},
	{name: "the registry", holds: roles, says: saysRole, sees: "globex", sql: []string{`select id from pgtenancy.tenants`}},
	{name: "statistics of a schema", holds: roles, says: saysRole, sql: []string{`select most_common_vals::text from pg_stats where schemaname = 'tenant_globex'`}},
	{name: "statements of others", holds: roles, says: saysRole, sql: []string{`select query from pg_stat_activity where pid <> pg_backend_pid()`}},
	{name: "statements that are prepared", holds: isolated, says: saysLeave, sql: []string{
		`globex: select '` + secret + `'`, `globex: select '` + secret + `'`, `select statement from pg_prepared_statements`,
	}},
	{name: "large objects", holds: roles, says: saysRole, sql: []string{`select convert_from(lo_get(oid), 'utf8') from pg_largeobject_metadata`}},

	{name: "rows of a shared table", holds: scoping, says: saysRows, sql: []string{`select name from users`, `update users set name = 'pwned'`, `delete from users`}},
	{name: "a function that tells what it sees", holds: scoping, says: saysRows, sql: []string{
		`create function pg_temp.leak(text) returns bool language plpgsql cost 0.0000001 as $$ begin if $1 like '%globex' then raise '%', $1; end if; return true; end $$`,
		`select count(*) from users where pg_temp.leak(name)`,
	}},
	{name: "a cast that tells what it sees", holds: scoping, says: saysRows, sql: []string{`select count(*) from users where name::int = 1 or name like '%globex'`}},
	{name: "statistics of a shared table", holds: scoping, says: saysRows, sql: []string{`select histogram_bounds::text, most_common_vals::text from pg_stats where tablename = 'users'`}},
	{name: "truncate", holds: scoping, says: saysRows, sql: []string{`truncate users`, `truncate users cascade`}},
	{name: "row_security", holds: scoping, says: saysRows, sql: []string{`set local row_security = off`, `select name from users`}},
	{name: "several statements in one", holds: scoping, says: saysOne, sql: []string{`select 1; select body from tenant_globex.notes`, `select 1; update tenant_globex.notes set body = 'pwned'`}},
	{name: "the setting in a transaction", holds: roles, says: saysSetting, sql: []string{`set local app.current_tenant = 'globex'`, `select name from users`}},
	{
		name: "the setting inside a statement", holds: roles, says: saysSetting,
		sql: []string{`select set_config('app.current_tenant', 'globex', true), query_to_xml('select name from public.users', true, true, '')::text`},
	},

	{
		name: "the role inside a statement", holds: isolated, says: saysLeave,
		sql: []string{`select set_config('role', '{role}', true), query_to_xml('select body from tenant_globex.notes', true, true, '')::text`},
	},
	{name: "the role and the setting", holds: isolated, says: saysLeave, sql: []string{
		`select set_config('role', '{role}', true), set_config('app.current_tenant', 'globex', true), query_to_xml('select name from public.users', true, true, '')::text`,
	}},
	{name: "the role in a transaction", holds: isolated, says: saysLeave, sql: []string{`select set_config('role', '{role}', true)`, `select body from tenant_globex.notes`}},
	{
		name: "the role in a condition", holds: isolated, says: saysLeave,
		sql: []string{`select from notes where set_config('role', '{role}', true) = ''`, `select body from tenant_globex.notes`},
	},
	{name: "the role in EXPLAIN ANALYZE", holds: isolated, says: saysLeave, sql: []string{`explain analyze select set_config('role', '{role}', true)`, `select body from tenant_globex.notes`}},
	{name: "the role in a cursor", holds: isolated, says: saysLeave, sql: []string{
		`declare c cursor for select set_config('role', '{role}', true)`, `fetch c`, `select body from tenant_globex.notes`,
	}},
	{name: "the role by a prepared statement", holds: roles, says: saysLeave, sql: []string{
		`prepare p (text) as select set_config('role', $1, false)`, `execute p ('{role}')`, `select body from tenant_globex.notes`,
	}},
	{name: "search_path by pg_settings", holds: roles, says: saysSetting, sql: []string{
		`update pg_settings set setting = 'tenant_globex' where name = 'search_path'`, `select body from notes`,
	}},
	{name: "the role as a default", holds: isolated, says: saysLeave, sql: []string{
		`create temporary table x (a text default set_config('role', '{role}', true)) on commit drop`, `insert into x default values`, `select body from tenant_globex.notes`,
	}},
	{name: "DO", holds: isolated, says: saysLeave, sql: []string{`do $$ begin set local role {name}; update tenant_globex.notes set body = 'pwned'; end $$`}},
	{
		name: "DO and a shared table", holds: isolated, says: saysLeave,
		sql: []string{`do $$ begin set local role {name}; set local app.current_tenant = 'globex'; update public.users set name = 'pwned'; end $$`},
	},
	{name: "a temporary function", holds: isolated, says: saysLeave, sql: []string{
		`create function pg_temp.f() returns text language plpgsql as $$ begin set local role {name}; return (select body from tenant_globex.notes limit 1); end $$`,
		`select pg_temp.f()`,
	}},
	{name: "a temporary function in SQL", holds: isolated, says: saysLeave, sql: []string{
		`create function pg_temp.g() returns void language sql as $$ set local role {name} $$`, `select pg_temp.g()`, `select body from tenant_globex.notes`,
	}},
	{name: "enter", holds: roles, says: saysLeave, sql: []string{`select pgtenancy.enter('{role}', array['{role}'], 'public')`, `select body from tenant_globex.notes`}},
	{name: "SET ROLE", holds: roles, says: saysText, sql: []string{`set local role {name}`, `set role {name}`, `/**/ ; set local "role" = '{role}'`, `select body from tenant_globex.notes`}},
	{
		name: "SET ROLE where SQL is run read-only", holds: roles, says: saysText,
		sql: []string{`select query_to_xml('set local role {name}', true, true, '')::text`, `select ts_stat('set local role {name}')`, `select body from tenant_globex.notes`},
	},
	{name: "RESET ROLE", holds: roles, says: saysText, sql: []string{`reset role`, `reset all`, `select body from tenant_globex.notes`}},
	{name: "DISCARD ALL", holds: roles, says: saysText, sql: []string{`discard all`, `select body from tenant_globex.notes`}},
	{name: "SET SESSION AUTHORIZATION", holds: roles, says: saysText, sql: []string{
		`set session authorization default`, `set local session authorization default`, `reset session authorization`, `select body from tenant_globex.notes`,
	}},
	{name: "a savepoint of before", holds: roles, says: saysText, sql: []string{`rollback to savepoint before`, `commit and chain`, `select body from tenant_globex.notes`}},

	{name: "a temporary table that the owner's function finds", holds: isolated, says: saysMake, sql: []string{
		`create temporary table managers (id int) on commit drop`, `grant select on pg_temp.managers to public`, `insert into pg_temp.managers values (1)`,
		`set local search_path = pg_temp, public`, `select public.report()`,
	}},
	{name: "a function that globex calls", holds: isolated, says: saysMake, sql: []string{
		`create table public.loot (what text)`, `grant all on public.loot to public`,
		`create function public.shown(t text) returns text language plpgsql as $$ begin insert into public.loot values (t); return t; end $$`,
		`globex: select shown(body) from notes`, `select what from public.loot`,
	}},

	{name: "a function that runs as the owner", holds: none, says: saysDefiner, sql: []string{`select public.trap('globex')`}},
	{name: "SET LOCAL for a function that runs as the owner", holds: roles, says: saysText, sql: []string{`set local app.current_tenant = 'globex'`, `select public.mine()`}},
	{name: "files of the server", holds: scoping, says: saysRole, sees: "file:", sql: []string{
		`select 'file:' || pg_read_file('PG_VERSION')`, `copy notes (body) from program 'echo file:'`, `select 'file:' from pg_ls_dir('.')`, `select body from notes`,
	}},
	{name: "dblink without a password", holds: scoping, says: saysGranted, needs: "dblink", sql: []string{`select body from dblink('{owner}', 'select body from tenant_globex.notes') as x (body text)`}},
	{name: "dblink_connect_u where it is granted", holds: none, says: saysGranted, needs: "dblink", sql: []string{
		`select dblink_connect_u('mine', '{owner}')`, `select body from dblink('mine', 'select body from tenant_globex.notes') as x (body text)`,
	}},
	{name: "names in the catalogs", holds: none, says: saysSeen, sees: "tenant_globex", sql: []string{`select nspname from pg_namespace`}},
	{name: "what is taken", holds: none, says: saysSeen, sees: "duplicate key", sql: []string{`insert into users (name) values ('` + secret + `')`}},
}

// attackedDB is a database behind a wall.
type attackedDB struct {
	*rolesDB
	wall         wall
	pool         *pgtenancy.Pool
	conn         *pgx.Conn // a superuser's
	acme, globex pgtenancy.Tenant
	replace      *strings.Replacer
	extensions   []string
}

func newAttackedDB(t *testing.T, w wall) *attackedDB {
	t.Helper()
	db := &attackedDB{wall: w}
	var opts []fleetOption
	group := ""
	if w == scoping {
		db.rolesDB = &rolesDB{fleetDB: newFleetDB(t)}
		db.rolesDB.group = db.app
	} else {
		db.rolesDB = newRolesDB(t)
		opts, group = append(opts, db.isolate), db.group
	}
	policy := pgtenancy.Policy{Table: pgx.Identifier{"public", "users"}, Role: db.app, IsolateRoles: group}
	fleet := db.migrated(t, with(notesFiles, "shared/001_users.sql", fmt.Sprintf(`
		create table users (id int generated always as identity primary key, tenant_id text not null, name text not null unique);
		grant select, insert, update, delete on users to %s;
		%s
		create table managers (id int); -- who may see the report: nobody
		grant select on managers to public;
		create function report() returns text language plpgsql security definer as $$
			begin return (select string_agg(n.body, '') from tenant_globex.notes n where exists (select from managers)); end $$;
		create function trap(tenant text) returns text language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
			declare body text; begin execute format('select n.body from %%I.notes n limit 1', 'tenant_' || tenant) into body; return body; end $$;
		create function mine() returns text language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
			begin return (select string_agg(name, '') from public.users); end $$;
		create function shown(t varchar) returns varchar language sql as 'select t';`, db.group, policy.SQL())), opts...)
	for _, id := range []string{"acme", "globex"} {
		provision(t, fleet, id)
	}
	db.acme, db.globex, db.pool = lookup(t, fleet, "acme"), lookup(t, fleet, "globex"), fleet.Pool()
	if w == roles { // Open would refuse it
		db.exec(t, `grant execute on function set_config(text, text, boolean), pg_prepared_statement() to public; grant usage on language sql, plpgsql to public;
			do $$ begin execute format('grant temporary on database %I to public', current_database()); end $$;`)
		pool, err := pgtenancy.NewPoolWithConfig(bare(t), &pgtenancy.PoolConfig{Conns: db.poolConfig(t, db.app)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pool.Close)
		db.pool = pool
	}
	if w != isolated {
		db.exec(t, "grant create on schema public to public") // as before PostgreSQL 15
	}
	db.extensions = db.texts(t, "select name::text from pg_available_extensions where name = 'dblink'")
	for _, e := range db.extensions {
		db.exec(t, "create extension "+e+"; grant execute on function dblink_connect_u(text, text) to public")
	}

	role, name := "none", "none"
	if w != scoping {
		role, name = db.globex.Role(), pgx.Identifier{db.globex.Role()}.Sanitize()
	}
	u, err := url.Parse(db.urlOf(t, db.owner, ""))
	if err != nil {
		t.Fatal(err)
	}
	db.conn = db.admin(t)
	db.replace = strings.NewReplacer("{role}", role, "{name}", name, "{owner}", u.String())
	db.restore(t)
	db.exec(t, "insert into public.users (tenant_id, name) values ('acme', 'user of acme'); insert into tenant_acme.notes (body) values ('of acme')")
	db.exec(t, "analyze")
	_, err = db.pool.Exec(as(t, db.globex), "select lo_from_bytea(0, convert_to('"+secret+"', 'utf8'))")
	check(t, "a large object", err)
	return db
}

// globexSQL selects what globex has.
const globexSQL = `select string_agg(x, ';' order by x) from (select body from tenant_globex.notes union all select tenant_id || name from public.users where tenant_id <> 'acme') g (x)`

// restore gives globex its rows again.
func (db *attackedDB) restore(t *testing.T) {
	t.Helper()
	_, err := db.conn.Exec(t.Context(), `drop table if exists public.loot; drop function if exists public.shown(text);
		delete from tenant_globex.notes; insert into tenant_globex.notes (body) select '`+secret+`' from generate_series(1, 3);
		delete from public.users where tenant_id <> 'acme'; insert into public.users (tenant_id, name) values ('globex', '`+secret+`');`, pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		t.Fatal(err)
	}
}

// run runs a statement as it would be run by a service that lets its tenants write SQL, and returns all that they see of it.
func (db *attackedDB) run(ctx context.Context, q querier, sql string) string {
	rows, err := q.Query(ctx, sql, pgx.QueryExecModeExec)
	if err != nil {
		return err.Error()
	}
	defer rows.Close()
	var saw strings.Builder
	for rows.Next() {
		values, err := rows.Values()
		fmt.Fprintln(&saw, values, err)
	}
	fmt.Fprintln(&saw, rows.Err())
	return saw.String()
}

// attack returns what acme saw, statement by statement, in all ways to run them.
func (db *attackedDB) attack(t *testing.T, a attack) (saw []string) {
	t.Helper()
	step := func(q querier, sql string) {
		sql = db.replace.Replace(sql)
		if globexs, ok := strings.CutPrefix(sql, "globex: "); ok {
			_, _ = db.pool.Exec(as(t, db.globex), globexs)
			return
		}
		saw = append(saw, db.run(as(t, db.acme), q, sql))
	}
	for _, sql := range a.sql {
		step(db.pool, sql)
	}
	if db.changed(t) {
		return append(saw, "changed globex's rows")
	}
	tx, err := db.pool.Begin(as(t, db.acme))
	if err != nil {
		t.Fatal(err)
	}
	for _, sql := range a.sql {
		inner, err := tx.Begin(as(t, db.acme))
		if err != nil {
			t.Fatal(err)
		}
		step(inner, sql)
		if tx.Conn().PgConn().TxStatus() == 'E' {
			check(t, "Rollback", inner.Rollback(as(t, db.acme)))
		} else if err := inner.Commit(as(t, db.acme)); err != nil {
			t.Errorf("%s: %v", a.name, err)
		}
	}
	_ = tx.Commit(as(t, db.acme))
	if db.changed(t) {
		return append(saw, "changed globex's rows")
	}
	err = db.pool.AcquireFunc(as(t, db.acme), func(c *pgtenancy.Conn) error {
		for _, sql := range a.sql {
			step(c, sql)
		}
		return nil
	})
	check(t, "AcquireFunc", err)
	if db.changed(t) {
		saw = append(saw, "changed globex's rows")
	}
	return saw
}

func (db *attackedDB) changed(t *testing.T) bool {
	t.Helper()
	var has *string
	if err := db.conn.QueryRow(t.Context(), globexSQL).Scan(&has); err != nil {
		t.Fatal(err)
	}
	return has == nil || *has != "globex"+secret+strings.Repeat(";"+secret, 3)
}

// TestAttacks is the source of what SECURITY.md says: which SQL of a tenant's reaches another one's rows, and which wall stops it. An
// attack that is not stopped by the walls before is part of it: these are needed, and the suite finds who gets through.
func TestAttacks(t *testing.T) {
	t.Parallel()
	for w := scoping; w < none; w++ {
		t.Run(w.String(), func(t *testing.T) {
			t.Parallel()
			db := newAttackedDB(t, w)
			// A statement of globex's to look at.
			tx, err := db.pool.Begin(as(t, db.globex))
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback(context.Background())
			_, err = tx.Exec(as(t, db.globex), "select '"+secret+"'")
			check(t, "globex", err)
			for _, a := range attacks {
				if a.needs != "" && !slices.Contains(db.extensions, a.needs) {
					continue
				}
				if a.sees == "" {
					a.sees = secret
				}
				saw := db.attack(t, a)
				reached := slices.ContainsFunc(saw, func(s string) bool { return strings.Contains(s, a.sees) || strings.HasPrefix(s, "changed") })
				if want := w < a.holds; reached != want {
					t.Errorf("%s: reached globex: %v, want %v (%s)\n%s", a.name, reached, want, a.says, strings.Join(saw, "\n"))
				}
				if reached {
					db.restore(t)
				}
			}
			// Backends are those of the application's role, and a tenant's role cannot end them.
			_, err = db.pool.Exec(as(t, db.acme), "select pg_cancel_backend($1)", int32(tx.Conn().PgConn().PID()))
			if w == scoping {
				check(t, "pg_cancel_backend", err)
			} else {
				checkCode(t, "pg_cancel_backend", err, "42501")
			}
		})
	}
}

// An ID is refused before anything is sent, whatever is in it.
func TestAttackIDs(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	var w wireCounter
	fleet := db.migrated(t, notesFiles, func(c *pgtenancy.FleetConfig) {
		c.Owner = nil
		c.PoolConfig.Conns = db.poolConfig(t, db.owner)
		c.AllowBypassRLS = true
		w.option(&c.PoolConfig)
	})
	provision(t, fleet, "acme")
	tail := strings.Repeat("a", 64-len("tenant_"))
	w.reset()
	ids := map[string]string{
		"a quote":           `acme'; drop schema tenant_acme cascade; --`,
		"a double quote":    `acme"; drop schema tenant_acme cascade; --`,
		"dollar quotes":     `acme$$; drop schema tenant_acme cascade; $$`,
		"a comment":         `acme--`,
		"a comment's end":   `acme*/ drop schema tenant_acme cascade; /*`,
		"a backslash":       `acme\'; select 1; --`,
		"a NUL":             "acme\x00globex",
		"a line":            "acme\nglobex",
		"a path":            "acme, public",
		"a dot":             "acme.notes",
		"64 bytes":          tail,
		"a cut one":         tail + "b",
		"a homoglyph":       "\u0430cme", // a Cyrillic a
		"full width":        "ａcme",
		"an invisible one":  "ac\u200bme",
		"not UTF-8":         "ac\xffme",
		"another case":      "ACME",
		"an underscore":     "ac_me",
		"encoded":           "xn--acme",
		"no role":           "none;",
		"empty":             "",
		"a variable":        "$user",
		"a composed letter": "acme\u0301",
	}
	for name, id := range ids {
		_, err := pgtenancy.NewTenant(pgtenancy.TenantInfo{ID: id})
		checkInvalid(t, "NewTenant of "+name, err, "Tenant.ID")
		_, err = fleet.Provision(bare(t), id, nil)
		checkInvalid(t, "Provision of "+name, err, "Tenant.ID")
		_, err = fleet.Clone(bare(t), "acme", id, nil)
		checkInvalid(t, "Clone to "+name, err, "Tenant.ID")
	}
	if w.sent() {
		t.Error("something was sent")
	}
	for name, id := range ids {
		_, err := fleet.Lookup(bare(t), pgtenancy.ByID(id))
		checkIs(t, "Lookup of "+name, err, pgtenancy.ErrTenantNotFound)
	}
}
