package pgtenancy_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgtenancy/pgtenancy"
	"github.com/pgtenancy/pgtenancy/pgtenancytest"
)

func findings(t *testing.T, files fs.FS, opts *pgtenancy.CheckOpts) (list []string) {
	t.Helper()
	found, err := pgtenancy.Check(files, opts)
	if err != nil {
		t.Fatalf("Check: %v", err)
	}
	for _, f := range found {
		list = append(list, strings.TrimSpace(fmt.Sprintf("%s %s:%d %s", f.Rule, f.File, f.Line, f.Object)))
	}
	return list
}

func TestCheck(t *testing.T) {
	t.Parallel()
	files := sqlFiles("shared/001_users.sql", "create table users (id int)",
		"tenant/001_a.sql", "select * from tenant_acme.a;\nselect * from t_acme.a, common.b")
	checkList(t, "defaults", findings(t, files, nil),
		"schema-qualified tenant/001_a.sql:1 tenant_acme.a", "schema-qualified tenant/001_a.sql:2 t_acme.a", "schema-qualified tenant/001_a.sql:2 common.b")
	checkList(t, "options", findings(t, files, &pgtenancy.CheckOpts{SharedSchemas: []string{"common", "tenant_acme"}, SchemaPrefix: "t_"}),
		"schema-qualified tenant/001_a.sql:2 t_acme.a")
	checkList(t, "no shared schemas", findings(t, sqlFiles("tenant/001_a.sql", "select 1 from public.a"), &pgtenancy.CheckOpts{SharedSchemas: []string{}}),
		"schema-qualified tenant/001_a.sql:1 public.a")

	for name, err := range map[string]error{
		"nil":       checkError(nil, nil),
		"empty":     checkError(fstest.MapFS{}, nil),
		"gap":       checkError(sqlFiles("tenant/003_a.sql", "select 1"), nil),
		"prefix":    checkError(files, &pgtenancy.CheckOpts{SchemaPrefix: "Tenant-"}),
		"schema":    checkError(files, &pgtenancy.CheckOpts{SharedSchemas: []string{"pg_catalog"}}),
		"no schema": checkError(files, &pgtenancy.CheckOpts{SharedSchemas: []string{""}}),
	} {
		var invalid *pgtenancy.InvalidError
		if !errors.As(err, &invalid) {
			t.Errorf("%s: %v, want an *InvalidError", name, err)
		}
	}
	var migrationErr *pgtenancy.MigrationError
	if err := checkError(sqlFiles("tenant/001_a.sql", "select 1;\nselect 'x"), nil); !errors.As(err, &migrationErr) || migrationErr.Line != 2 {
		t.Errorf("unterminated string: %v, want a *MigrationError of line 2", err)
	}
}

func checkError(files fs.FS, opts *pgtenancy.CheckOpts) error {
	_, err := pgtenancy.Check(files, opts)
	return err
}

func TestFinding_String(t *testing.T) {
	t.Parallel()
	f := pgtenancy.Finding{Rule: "rule", File: "tenant/003_x.sql", Line: 12, Object: "x", Reason: "reason", Remedy: "remedy"}
	checkEqual(t, "in a file", f.String(), "tenant/003_x.sql:12: reason: remedy (rule)")
	f.Line = 0
	checkEqual(t, "without a line", f.String(), "tenant/003_x.sql: reason: remedy (rule)")
	f.File, f.Object = "", "public.users"
	checkEqual(t, "in a database", f.String(), "public.users: reason: remedy (rule)")
}

// What the quickstart has to say for itself: its type is there to show that tenants may have types of their own.
func TestCheck_Quickstart(t *testing.T) {
	t.Parallel()
	checkList(t, "findings", findings(t, os.DirFS("examples/quickstart/migrations"), nil))
}

// lockFacts are migrations of the table orders, and what they do to it: the strongest lock, and whether all rows are read or
// written under it. They are one transaction each.
var lockFacts = []struct {
	name   string
	rule   string
	danger []string // files; the last one has the finding
	does   string   // by the last one
	remedy []string // files
	last   string   // what the last one of them does
}{
	{
		"volatile default", "volatile-default",
		[]string{"alter table orders add a uuid default gen_random_uuid()"},
		"AccessExclusiveLock writes all",
		[]string{"alter table orders add a uuid; alter table orders alter a set default gen_random_uuid()"},
		"AccessExclusiveLock",
	},
	{
		"clock", "volatile-default",
		[]string{"alter table orders add a timestamptz default clock_timestamp()"},
		"AccessExclusiveLock writes all",
		[]string{"alter table orders add a timestamptz default now()"},
		"AccessExclusiveLock",
	},
	{
		"serial", "volatile-default",
		[]string{"alter table orders add a serial"},
		"AccessExclusiveLock writes all",
		[]string{"alter table orders add a bigint; create sequence s owned by orders.a; alter table orders alter a set default nextval('s')"},
		"AccessExclusiveLock",
	},
	{"identity", "volatile-default", []string{"alter table orders add a int generated always as identity"}, "AccessExclusiveLock writes all", nil, ""},
	{"stored", "volatile-default", []string{"alter table orders add a int generated always as (n * 2) stored"}, "AccessExclusiveLock writes all", nil, ""},
	{
		"index", "index-blocks-writes",
		[]string{"create index on orders (n)"},
		"ShareLock reads all",
		[]string{"create index concurrently i on orders (n)"},
		"alone",
	},
	{
		"unique", "index-blocks-writes",
		[]string{"alter table orders add unique (n)"},
		"AccessExclusiveLock reads all",
		[]string{"create unique index concurrently i on orders (n)", "alter table orders add constraint u unique using index i"},
		"AccessExclusiveLock",
	},
	{
		"check", "constraint-not-valid",
		[]string{"alter table orders add constraint c check (n > 0)"},
		"AccessExclusiveLock reads all",
		[]string{"alter table orders add constraint c check (n > 0) not valid", "alter table orders validate constraint c"},
		"ShareUpdateExclusiveLock reads all",
	},
	{
		"check validated at once", "constraint-not-valid",
		[]string{"alter table orders add constraint c check (n > 0) not valid; alter table orders validate constraint c"},
		"AccessExclusiveLock reads all", nil, "",
	},
	{
		"foreign key", "constraint-not-valid",
		[]string{"alter table orders add constraint c foreign key (n) references customers"},
		"ShareRowExclusiveLock reads all",
		[]string{"alter table orders add constraint c foreign key (n) references customers not valid", "alter table orders validate constraint c"},
		"ShareUpdateExclusiveLock reads all",
	},
	{
		"column with a check", "constraint-not-valid",
		[]string{"alter table orders add a int check (a > 0)"},
		"AccessExclusiveLock reads all",
		[]string{"alter table orders add a int references customers"},
		"AccessExclusiveLock",
	},
	{
		"not null", "lock-blocks-reads",
		[]string{"alter table orders alter n set not null"},
		"AccessExclusiveLock reads all",
		[]string{
			"alter table orders add constraint c check (n is not null) not valid", "alter table orders validate constraint c",
			"alter table orders alter n set not null",
		},
		"AccessExclusiveLock",
	},
	{
		"type", "lock-blocks-reads",
		[]string{"alter table orders alter n type bigint"},
		"AccessExclusiveLock writes all",
		[]string{"alter table orders alter note type varchar(20), alter total type numeric(10,2), alter at type timestamp, alter n type int"},
		"AccessExclusiveLock",
	},
	{
		"text", "lock-blocks-reads",
		[]string{"alter table orders alter n type text"},
		"AccessExclusiveLock writes all",
		[]string{"alter table orders alter note type text"},
		"AccessExclusiveLock",
	},
	{"char", "lock-blocks-reads", []string{"alter table orders alter code type text"}, "AccessExclusiveLock writes all", nil, ""},
	{"longer char", "lock-blocks-reads", []string{"alter table orders alter code type char(5)"}, "AccessExclusiveLock writes all", nil, ""},
	{"shorter", "lock-blocks-reads", []string{"alter table orders alter note type varchar(5)"}, "AccessExclusiveLock writes all", nil, ""},
	{
		"scale", "lock-blocks-reads",
		[]string{"alter table orders alter total type numeric(10,4)"},
		"AccessExclusiveLock writes all",
		[]string{"alter table orders alter total type numeric"},
		"AccessExclusiveLock",
	},
	{"date", "lock-blocks-reads", []string{"alter table orders alter at type date"}, "AccessExclusiveLock writes all", nil, ""},
	{"json", "lock-blocks-reads", []string{"alter table orders alter doc type jsonb using doc::jsonb"}, "AccessExclusiveLock writes all", nil, ""},
	{
		"using", "lock-blocks-reads",
		[]string{"alter table orders alter n type int using n + 0"},
		"AccessExclusiveLock writes all",
		[]string{"alter table orders alter n type int using n::int"},
		"AccessExclusiveLock",
	},
	{"cluster", "lock-blocks-reads", []string{"cluster orders using orders_pkey"}, "AccessExclusiveLock writes all", nil, ""},
	{
		"unlogged", "lock-blocks-reads",
		[]string{"alter table orders set unlogged"},
		"AccessExclusiveLock writes all",
		[]string{"alter table orders set (fillfactor = 90)"},
		"ShareUpdateExclusiveLock",
	},
	{
		"lock", "lock-blocks-reads",
		[]string{"lock table orders"},
		"AccessExclusiveLock",
		[]string{"lock table orders in share row exclusive mode"},
		"ShareRowExclusiveLock",
	},
	{"reindex", "lock-blocks-reads", []string{"reindex table orders"}, "ShareLock reads all", []string{"reindex table concurrently orders"}, "alone"},
	{
		"update after alter", "lock-blocks-reads",
		[]string{"alter table orders add a int; update orders set a = n"},
		"AccessExclusiveLock reads all",
		[]string{"alter table orders add a int", "update orders set a = n"},
		"RowExclusiveLock reads all",
	},
	{
		"not null without a default", "breaks-old-code",
		[]string{"alter table orders add a int not null"},
		"23502",
		[]string{"alter table orders add a int not null default 0"},
		"AccessExclusiveLock",
	},
	{"new enum value", "enum-value-used", []string{"alter type status add value 'paid'; update orders set status = 'paid'"}, "55P04", nil, ""},
	{"concurrently", "concurrently-mixed", []string{"alter table orders add a int; create index concurrently i on orders (n)"}, "25001", nil, ""},
}

// The reasons of the findings about locks are true, and their remedies remedy.
func TestCheck_Locks(t *testing.T) {
	t.Parallel()
	conn := connectTo(t, pgtenancytest.Database(t))
	const tables = `-- pgtenancy:allow type-in-tenant
		create type status as enum ('open');
		create table customers (id int primary key);
		create table orders (id int primary key, n int, note varchar(10), code char(3), total numeric(8,2), at timestamp(3), doc text, status status)`
	files := func(sqls []string) fstest.MapFS {
		fsys := sqlFiles("tenant/001_tables.sql", tables)
		for i, sql := range sqls {
			fsys[fmt.Sprintf("tenant/%03d_x.sql", i+2)] = &fstest.MapFile{Data: []byte(sql)}
		}
		return fsys
	}
	run := func(t *testing.T, sqls []string) (does string) {
		mustExec(t, conn, "drop schema if exists tenant_test cascade; create schema tenant_test; set search_path = tenant_test; "+tables+`;
			insert into customers select generate_series(1, 10);
			insert into orders select i, i, 'x', 'x', 1, '2020-01-01', '1' from generate_series(1, 10) i`)
		for _, sql := range sqls {
			if strings.Contains(sql, "concurrently") && !strings.Contains(sql, ";") {
				mustExec(t, conn, sql)
				does = "alone"
				continue
			}
			does = effect(t, conn, sql)
		}
		return does
	}
	for _, tt := range lockFacts {
		t.Run(tt.name, func(t *testing.T) {
			found := findings(t, files(tt.danger), nil)
			if len(found) != 1 || !strings.HasPrefix(found[0], tt.rule+" ") {
				t.Errorf("%q: findings %q, want %s", tt.danger, found, tt.rule)
			}
			checkEqual(t, fmt.Sprintf("%q", tt.danger), run(t, tt.danger), tt.does)
			if tt.remedy != nil {
				checkList(t, fmt.Sprintf("%q", tt.remedy), findings(t, files(tt.remedy), nil))
				checkEqual(t, fmt.Sprintf("%q", tt.remedy), run(t, tt.remedy), tt.last)
			}
		})
	}
}

// effect runs SQL in a transaction, and says what it does to the table orders: its strongest lock, and whether all rows are
// read or written, or the error's code.
func effect(t *testing.T, conn *pgx.Conn, sql string) string {
	t.Helper()
	const look = `select pg_relation_filenode('orders'), coalesce((select seq_scan from pg_stat_xact_user_tables where relid = 'orders'::regclass), 0),
		array(select mode from pg_locks where pid = pg_backend_pid() and relation = 'orders'::regclass)`
	var fileBefore, fileAfter uint32
	var scansBefore, scansAfter int64
	var modes []string
	mustExec(t, conn, "begin")
	defer mustExec(t, conn, "commit")
	check(t, "look", conn.QueryRow(t.Context(), look).Scan(&fileBefore, &scansBefore, &modes))
	for st := range strings.SplitSeq(sql, ";") {
		if _, err := conn.Exec(t.Context(), st); err != nil {
			var pgErr *pgconn.PgError
			if !errors.As(err, &pgErr) {
				t.Fatal(err)
			}
			return pgErr.Code
		}
	}
	check(t, "look", conn.QueryRow(t.Context(), look).Scan(&fileAfter, &scansAfter, &modes))
	order := []string{
		"AccessShareLock", "RowShareLock", "RowExclusiveLock", "ShareUpdateExclusiveLock", "ShareLock", "ShareRowExclusiveLock", "ExclusiveLock", "AccessExclusiveLock",
	}
	does := slices.MaxFunc(modes, func(a, b string) int { return cmp.Compare(slices.Index(order, a), slices.Index(order, b)) })
	switch {
	case fileAfter != fileBefore:
		does += " writes all"
	case scansAfter > scansBefore:
		does += " reads all"
	}
	return does
}

// The reasons of the other findings are true too: each migration runs for the tenants one and two, as Migrate would run it.
func TestCheck_Reasons(t *testing.T) {
	t.Parallel()
	conn := connectTo(t, pgtenancytest.Database(t))
	var version int
	check(t, "version", conn.QueryRow(t.Context(), "select current_setting('server_version_num')::int").Scan(&version))
	var extension string // one that is not installed
	err := conn.QueryRow(t.Context(), `select name from pg_available_extensions where installed_version is null and name in ('citext', 'pg_trgm', 'hstore')
		order by name limit 1`).Scan(&extension)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		t.Fatal(err)
	}

	enum := "one" // what a new tenant gets, which has all files in one transaction
	if version < 170000 {
		enum = "55P04"
	}
	const definer = `create function name() returns text language sql security definer set search_path = pg_catalog, pg_temp begin atomic select name from me; end`
	for _, tt := range []struct {
		name, rule, sql string
		then            string // what is asked in the scope of the tenant two, and before that of one
		want            string // the answers or errors
	}{
		{"qualified", "schema-qualified", "create view v as select name from tenant_one.me", "select name from v", "one one"},
		{"unqualified", "", "create view v as select name from me", "select name from v", "one two"},
		{"shared object", "shared-object-in-tenant", "create table public.x (id int)", "select 'made'", "made 42P07"},
		{"shared table", "shared-object-in-tenant", "alter table users add column x int", "select 'changed'", "changed 42701"},
		{"schema", "shared-object-in-tenant", "create schema audit", "select 'made'", "made 42P06"},
		{"path of a function", "search-path", "create function name() returns text language sql set search_path = public as 'select name from me'", "select name()", "42P01 42P01"},
		{
			"current path", "search-path", "create function name() returns text language sql set search_path from current as 'select name from me'",
			"alter schema tenant_one rename to tenant_three; set local search_path = tenant_three; select name()", "42P01 42P01",
		},
		{"caller's path", "", "create function name() returns text language sql as 'select name from me'", "select name()", "one two"},
		{"definer", "", definer, "create temp table me on commit drop as select 'nobody' as name; set local search_path = pg_temp; select tenant_one.name()", "one one"},
		{"path in a body", "search-path", "create function f() returns void language plpgsql as $$ begin perform set_config('search_path', 'public', true); end $$", "select f(); select name from me", "42P01 42P01"},
		{"extension", "extension-in-tenant", "create extension if not exists " + extension, "select (select nspname from pg_namespace where oid = extnamespace) from pg_extension where extname = '" + extension + "'", "tenant_one tenant_one"},
		{"type", "type-in-tenant", "create type kind as enum ('a')", "select count(*)::text from pg_type where typname = 'kind'", "1 2"},
		{"setting", "session-state", "create function f() returns text language plpgsql as $$ begin return concat(current_setting('app.x', true), set_config('app.x', '!', false)); end $$", "select f()", "! !!"},
		{"temporary table", "session-state", "create function f() returns void language plpgsql as $$ begin create temp table if not exists temporary as select name from me; end $$", "select f(); select name from pg_temp.temporary", "one one"},
		{"local setting", "", "create function f() returns text language plpgsql as $$ begin return concat(current_setting('app.x', true), set_config('app.x', '!', true)); end $$", "select f()", "! !"},
		{"enum", "enum-value-used", "create type kind as enum ('a'); alter type kind add value 'b'; create table t as select 'b'::kind", "select name from me", enum + " " + strings.Replace(enum, "one", "two", 1)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.rule == "extension-in-tenant" && extension == "" {
				t.Skip("the server has no extension to install")
			}
			found := findings(t, sqlFiles("shared/001_users.sql", "create table users (id int)", "tenant/001_me.sql", "create table me (name text)", "tenant/002_x.sql", tt.sql), nil)
			found = slices.DeleteFunc(found, func(f string) bool { return tt.rule == "enum-value-used" && strings.HasPrefix(f, "type-in-tenant ") })
			if tt.rule == "" {
				checkList(t, tt.sql, found)
			} else if len(found) != 1 || !strings.HasPrefix(found[0], tt.rule+" ") {
				t.Errorf("%s: findings %q, want %s", tt.sql, found, tt.rule)
			}

			mustExec(t, conn, "discard all")
			mustExec(t, conn, "drop schema if exists tenant_one, tenant_two, tenant_three, audit cascade; drop table if exists public.x, public.users; create table public.users (id int)")
			mustExec(t, conn, "create schema tenant_one; create table tenant_one.me as select 'one'::text as name; create schema tenant_two; create table tenant_two.me as select 'two'::text as name")
			var got []string
			for _, tenant := range []string{"one", "two"} {
				answer, err := ask(t, conn, tenant, tt.sql, tt.then)
				var pgErr *pgconn.PgError
				if errors.As(err, &pgErr) {
					answer = pgErr.Code
				} else if err != nil {
					t.Fatal(err)
				}
				got = append(got, answer)
			}
			checkEqual(t, tt.sql, strings.Join(got, " "), tt.want)
		})
	}
}

// ask runs a migration in one transaction of a tenant and questions in the next, and returns the answer to the last one.
func ask(t *testing.T, conn *pgx.Conn, tenant, migration, questions string) (answer string, err error) {
	scope := "set local search_path = tenant_" + tenant + ", public, pg_temp"
	err = pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), scope+"; "+migration)
		return err
	})
	if err != nil {
		return "", err
	}
	err = pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
		if i := strings.LastIndex(questions, ";"); i >= 0 {
			scope, questions = scope+"; "+questions[:i], questions[i+1:]
		}
		if _, err := tx.Exec(t.Context(), scope); err != nil {
			return err
		}
		return tx.QueryRow(t.Context(), questions, pgx.QueryExecModeSimpleProtocol).Scan(&answer)
	})
	return answer, err
}

func connectTo(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	check(t, "connect", err)
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func mustExec(t *testing.T, conn *pgx.Conn, sql string) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}
