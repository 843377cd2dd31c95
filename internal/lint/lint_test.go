package lint_test

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"github.com/pgtenancy/pgtenancy/internal/lint"
	"github.com/pgtenancy/pgtenancy/internal/migration"
)

// earlier is what the first migrations have made, in all tests.
var earlier = map[string]string{
	"shared/001_shared.sql": `
		create table users (id bigint primary key, tenant_id text, email varchar(100));
		create schema reporting;
		create table reporting.days (d date);`,
	"tenant/001_tables.sql": `
		create type status as enum ('open');
		create table customers (id bigint primary key, name text);
		create table orders (
			id serial primary key, customer_id bigint references customers, status status, total numeric(8,2), note varchar(10),
			at timestamp(3) without time zone, code char(3), n int, tags text[]
		);
		create table parts (id int, at date) partition by range (at);
		create view totals as select sum(total) from orders;
		create materialized view stats as select count(*) from orders;`,
}

// ignored are findings of the files above.
var ignored = []string{"type-in-tenant tenant/001_tables.sql:2 status"}

func check(t *testing.T, files map[string]string) []lint.Finding {
	t.Helper()
	fsys := fstest.MapFS{}
	for name, content := range files {
		fsys[name] = &fstest.MapFile{Data: []byte(content)}
	}
	var dirs [2][]migration.Migration
	for i, dir := range []string{"shared", "tenant"} {
		var err error
		if dirs[i], err = migration.Load(fsys, dir, nil); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	findings, err := lint.Lint(fsys, dirs[0], dirs[1], lint.Config{SharedSchemas: []string{"public"}, SchemaPrefix: "tenant_"})
	if err != nil {
		t.Fatal(err)
	}
	return findings
}

// brief returns a finding as "rule file:line object".
func brief(fs []lint.Finding) []string {
	s := []string{}
	for _, f := range fs {
		s = append(s, strings.TrimSpace(fmt.Sprintf("%s %s:%d %s", f.Rule, f.File, f.Line, f.Object)))
	}
	return slices.DeleteFunc(s, func(s string) bool { return slices.Contains(ignored, s) })
}

// tests has one file each: that of the tenants' second migration. What is wanted is "rule line object".
var tests = []struct {
	name, reason string
	sql          string
	want         []string
}{
	// schema-qualified
	{"tenant's table", "it is one tenant's", "select * from tenant_acme.orders", []string{"schema-qualified 1 tenant_acme.orders"}},
	{"quoted", "quotes do not hide it", `insert into "tenant_acme" . "orders" (n) values (1)`, []string{"schema-qualified 1 tenant_acme.orders"}},
	{"folded", "PostgreSQL folds it", "update Tenant_Acme.Orders set n = 1", []string{"schema-qualified 1 tenant_acme.orders"}},
	{"in capitals and quotes", "no tenant's schema is named so, and it is not shared", `update "Tenant_acme".orders set n = 1`, []string{"schema-qualified 1 Tenant_acme.orders"}},
	{"other schema", "it is not shared", "select * from other.orders", []string{"schema-qualified 1 other.orders"}},
	{"join", "a table", "select 1 from orders o\njoin other.x on x.id = o.id", []string{"schema-qualified 2 other.x"}},
	{"second in the list", "a comma follows a table", "select 1 from orders o, other.x", []string{"schema-qualified 1 other.x"}},
	{"delete using", "USING is before tables here", "delete from orders o using other.x where x.id = o.id", []string{"schema-qualified 1 other.x"}},
	{"merge", "USING is before a table here", "merge into orders o using other.x on x.id = o.id when matched then do nothing", []string{"schema-qualified 1 other.x"}},
	{"references", "a table", "create table a (id int references other.x)", []string{"schema-qualified 1 other.x"}},
	{"function call", "only a schema is before a function", "select other.f(1)", []string{"schema-qualified 1 other.f"}},
	{"trigger", "table and function", "create trigger t after insert on other.x for each row execute function tenant_acme.f()", []string{"schema-qualified 1 other.x", "schema-qualified 1 tenant_acme.f"}},
	{"index", "a table", "create index concurrently i on other.x (a)", []string{"schema-qualified 1 other.x"}},
	{"cast", "a type", "select n::other.status, cast(n as other.status) from orders", []string{"schema-qualified 1 other.status"}},
	{"column's type", "a type", "create table a (id int, s other.status)", []string{"schema-qualified 1 other.status"}},
	{"added column's type", "a type", "alter table orders add column if not exists s other.status, add x other.t2", []string{"schema-qualified 1 other.status", "schema-qualified 1 other.t2"}},
	{"parameter's type", "a type", "create function f(a int, s other.status) returns setof other.t language sql as 'select 1'", []string{"schema-qualified 1 other.status", "schema-qualified 1 other.t"}},
	{"grant", "a list of tables", "grant select on other.x, tenant_acme.y to app", []string{"schema-qualified 1 other.x", "schema-qualified 1 tenant_acme.y"}},
	{"grant on a schema", "a tenant's schema", "grant usage on schema tenant_acme to app", []string{"schema-qualified 1 tenant_acme"}},
	{"drop list", "a list of views", "drop view other.a, tenant_acme.b", []string{"schema-qualified 1 other.a", "schema-qualified 1 tenant_acme.b"}},
	{"nextval", "a name in a string", "alter table orders alter n set default nextval('tenant_acme.orders_id_seq')", []string{"schema-qualified 1 tenant_acme.orders_id_seq"}},
	{"regclass", "a name in a string", `select '"other".x'::regclass, regclass 'tenant_acme.y', 'other.z'::pg_catalog.regclass`, []string{"schema-qualified 1 other.x", "schema-qualified 1 tenant_acme.y", "schema-qualified 1 other.z"}},
	{"owned by", "schema, table and column", "alter sequence s owned by other.t.c", []string{"schema-qualified 1 other.t"}},
	{"comment", "schema, table and column", "comment on column other.t.c is 'x'", []string{"schema-qualified 1 other.t"}},
	{"PL/pgSQL", "the body is read", "create function f() returns void language plpgsql as $$\ndeclare o tenant_acme.orders%rowtype;\nbegin\n\tselect * into o from other.x;\nend $$", []string{"schema-qualified 2 tenant_acme.orders", "schema-qualified 4 other.x"}},
	{"SQL body", "the body is read", "create function f() returns bigint language sql as 'select count(*)\nfrom other.x'", []string{"schema-qualified 2 other.x"}},
	{"atomic body", "the body is read", "create function f() returns bigint begin atomic\nselect count(*) from other.x; end", []string{"schema-qualified 2 other.x"}},
	{"DO", "the body is read", "do $$ begin\nperform other.f(); end $$", []string{"schema-qualified 2 other.f"}},
	{"dynamic", "so are the strings that it executes", "do $$ begin\nexecute 'update tenant_acme.orders set n = 1'; execute format('delete from other.%I', 'x');\nexecute format('table other.x'); end $$", []string{"schema-qualified 2 tenant_acme.orders", "schema-qualified 3 other.x"}},
	{"whole name in an expression", "nothing else is called so", "select tenant_acme.orders.n from orders", []string{"schema-qualified 1 tenant_acme.orders.n"}},

	{"alias", "what an alias qualifies is a column", "select o.n, extract(epoch from o.at), o.total is distinct from o.n, substring(o.note from o.n) from orders o join customers other on o.customer_id is not distinct from other.id where o.n in (other.id) group by o.n, o.at order by o.n, o.total", nil},
	{"table named like a tenant's schema", "it is a table", "select tenant_settings.a, t.b from tenant_settings join tenant_x t on t.id = tenant_settings.id", nil},
	{"variable named like a tenant's schema", "it is a variable", "create function f() returns trigger language plpgsql as $$ declare tenant_row orders; begin select * into tenant_row from orders; new.n := tenant_row.n; return new; end $$", nil},
	{"PL/pgSQL targets", "fields and not tables", "create function f() returns trigger language plpgsql as $$ begin select o.n, o.at from orders o into new.n, new.at; for r in select x.a from orders x loop raise notice '%', r.a, r.b; end loop; fetch c into r.a, r.b; execute 'x' using r.a, r.b; return new; end $$", nil},
	{"upsert", "excluded is no schema", "insert into orders as o (n, at) select c.id, now() from customers c, orders on conflict (id) do update set n = excluded.n, at = excluded.at where o.n > excluded.n returning o.n, o.at", nil},
	{"known schemas", "they are the same for everybody", "select pg_catalog.now() from public.users u, pg_catalog.pg_class c, information_schema.tables, pg_temp.x, pgtenancy.tenants, reporting.days", nil},
	{"array", "its comma is not the list's", "select 1 from orders o join customers c on array[o.n, c.id] = array[o.id, c.id], users u", nil},
	{"setting", "the dot is of a setting's name", "set local tenant_app.x = '1'", nil},
	{"string", "a string is no name", "insert into customers (name) values ('tenant_acme.orders')", nil},
	{"other language", "it is not SQL", "create function f() returns void language plpython3u as $$ from other.x import (y) $$", nil},
	{"number", "its dot is no name's", "select 1.5, .5, n*.5 from orders", nil},
	{"default in an atomic body", "a column", "create function f(a int) returns int begin atomic select (select o.n from orders o); end", nil},

	// shared-object-in-tenant
	{"create shared table", "it exists for the second tenant", "create table public.x (id int)", []string{"shared-object-in-tenant 1 public.x"}},
	{"if not exists", "it belongs elsewhere all the same", "create table if not exists reporting.x (id int)", []string{"shared-object-in-tenant 1 reporting.x"}},
	{"shared function", "it is replaced once a tenant", "create or replace function public.f() returns int language sql as 'select 1'", []string{"shared-object-in-tenant 1 public.f"}},
	{"index on a shared table", "one a tenant", "create index concurrently i on public.users (email)", []string{"shared-object-in-tenant 1 public.users"}},
	{"unqualified shared table", "no tenant has one", "alter table users add column x int", []string{"shared-object-in-tenant 1 users"}},
	{"drop of a shared table", "it is gone for the second tenant", "drop table public.users", []string{"shared-object-in-tenant 1 public.users", "breaks-old-code 1 public.users"}},
	{"truncate", "all tenants' rows", "truncate orders, public.users", []string{"shared-object-in-tenant 1 public.users"}},
	{"set schema", "it exists for the second tenant", "alter table orders set schema public", []string{"shared-object-in-tenant 1 public.orders"}},
	{"schema", "it exists for the second tenant", "create schema audit", []string{"shared-object-in-tenant 1 audit"}},
	{"role", "it exists for the second tenant", "create role app", []string{"shared-object-in-tenant 1 app"}},
	{"policy on a shared table", "it exists for the second tenant", "create policy p on users using (true)", []string{"shared-object-in-tenant 1 users"}},
	{"use of a shared table", "it is there for that", "insert into public.users (id) values (1); create table a (id bigint references users); grant select on users to app", nil},
	{"own table of the same name", "the tenant's comes first in search_path", "create table users (id int); alter table users add column x int default random()", nil},

	// search-path
	{"function's path", "it is the same for all tenants", "create function f() returns int language sql\nset search_path = public as 'select 1'", []string{"search-path 2"}},
	{"function's tenant path", "it is one tenant's", "alter function f() set search_path to tenant_acme, public", []string{"search-path 1"}},
	{"from current", "it is written down by name", "create function f() returns int language sql set search_path from current as 'select 1'", []string{"search-path 1"}},
	{"set_config in a body", "it is the caller's too", "create function f() returns void language plpgsql as $$ begin\nperform set_config('search_path', 'public', true); end $$", []string{"search-path 2"}},
	{"set local in a body", "it is the caller's too", "create function f() returns void language plpgsql as $$ begin\nset local search_path = pg_catalog; end $$", []string{"search-path 2"}},
	{"set local in a file", "the rest of the file runs elsewhere", "set local search_path = public", []string{"search-path 1"}},
	{"harmless path", "nothing is found by accident there", "create function f() returns int language sql set search_path = pg_catalog, pg_temp as 'select 1'; create function g() returns int language sql set search_path = '' as 'select 1'; alter function f() set search_path = \"\"", nil},
	{"other setting", "it is the function's alone", "create function f() returns int language sql set work_mem = '1MB' as 'select 1'", nil},
	{"column of that name", "it is a column", "update orders set search_path = 'x'", nil},

	// extension-in-tenant, type-in-tenant
	{"extension", "once per database", "create extension if not exists pg_trgm", []string{"extension-in-tenant 1 pg_trgm"}},
	{"drop extension", "once per database", "drop extension pg_trgm", []string{"extension-in-tenant 1 pg_trgm"}},
	{"types", "an OID for each tenant", "create type a as (x int); create domain b as text", []string{"type-in-tenant 1 a", "type-in-tenant 1 b"}},

	// volatile-default
	{"volatile", "another value in every row", "alter table orders add a uuid default gen_random_uuid(), add column b float default (1 + pg_catalog.random()) not null", []string{"volatile-default 1 orders.a", "volatile-default 1 orders.b"}},
	{"serial", "another value in every row", "alter table orders add a bigserial, add b int generated by default as identity", []string{"volatile-default 1 orders.a", "volatile-default 1 orders.b"}},
	{"stored", "computed for every row", "alter table orders add a int generated always as (n * 2) stored", []string{"volatile-default 1 orders.a"}},
	{"stable", "one value for all rows", "alter table orders add a timestamptz not null default now(), add b timestamptz default current_timestamp, add c int default 1, add d text default 'random()'", nil},
	{"new table", "it has no rows", "create table a (id int); alter table a add column x uuid default gen_random_uuid()", nil},
	{"default of an old column", "for new rows only", "alter table orders alter column n set default random()", nil},
	{"virtual", "computed when read", "alter table orders add a int generated always as (n * 2)", nil},

	// index-blocks-writes
	{"index on an old table", "it blocks writes", "create index on orders (n);\ncreate unique index if not exists i on only customers (name);\ncreate unique index j on customers (name)", []string{"index-blocks-writes 1 orders", "index-blocks-writes 3 customers"}},
	{"index in DO", "it is run here", "do $$ begin if not exists (select 1) then\ncreate index on orders (n); end if; end $$", []string{"index-blocks-writes 2 orders"}},
	{"index in a function", "it is not run here", "create function f() returns void language plpgsql as $$ begin create index on orders (n); end $$", nil},
	{"index on a new table", "nobody writes to it", "create table a (id int); create index on a (id); create unique index on a (id)", nil},
	{"unique", "it builds an index", "alter table orders add unique (n) using index tablespace x, add constraint c primary key (id); alter table customers add column x int unique", []string{"index-blocks-writes 1 orders", "index-blocks-writes 1 customers.x"}},
	{"exclude", "it builds an index", "alter table orders add exclude using gist (n with =)", []string{"index-blocks-writes 1 orders"}},
	{"using index", "it is built", "alter table orders add constraint c unique using index i, add constraint p primary key using index j", nil},

	// constraint-not-valid
	{"check", "reads all rows", "alter table orders add check (n > 0)", []string{"constraint-not-valid 1 orders"}},
	{"foreign key", "reads all rows", "alter table orders add constraint f foreign key (n) references parts", []string{"constraint-not-valid 1 orders"}},
	{"with the column", "reads all rows", "alter table orders add column a int check (a > 0), add b int default 1 references parts", []string{"constraint-not-valid 1 orders.a", "constraint-not-valid 1 orders.b"}},
	{"new column", "a foreign key of NULLs needs no look", "alter table orders add column a int references parts", nil},
	{"not valid", "reads nothing", "alter table orders add check (n > 0) not valid, add foreign key (n) references parts not valid", nil},
	{"validated at once", "the lock is still held", "alter table orders add constraint c check (n > 0) not valid;\nalter table orders validate constraint c", []string{"constraint-not-valid 2 orders"}},
	{"validated without a transaction", "the lock is gone", "-- pgtenancy: no transaction\nalter table orders add constraint c check (n > 0) not valid;\nalter table orders validate constraint c", nil},
	{"validated later", "the lock is gone", "alter table orders validate constraint c", nil},

	// lock-blocks-reads
	{"type", "another representation", "alter table orders alter n type bigint, alter column total set data type numeric(8,4), alter code type text, alter note type varchar(5), alter at type timestamp", []string{"lock-blocks-reads 1 orders.n", "lock-blocks-reads 1 orders.total", "lock-blocks-reads 1 orders.code", "lock-blocks-reads 1 orders.note"}},
	{"type using", "values are computed", "alter table orders alter note type text using lower(note), alter n type int using n::int", []string{"lock-blocks-reads 1 orders.note"}},
	{"type of the same kind", "the rows stay", "alter table orders alter note type text, alter total type numeric(10,2), alter at type timestamptz, alter n type integer, alter id type int4", nil},
	{"type of unknown column", "nobody knows", "alter table orders alter unknown type text, alter unknown2 type varchar(10), alter unknown3 type other_type", nil},
	{"type of unknown column, sure", "only json is like jsonb", "alter table orders alter unknown type jsonb", []string{"lock-blocks-reads 1 orders.unknown"}},
	{"set not null", "reads all rows", "alter table orders alter n set not null", []string{"lock-blocks-reads 1 orders.n"}},
	{"set not null, checked", "reads nothing", "alter table customers add constraint c check (name is not null)", []string{"constraint-not-valid 1 customers"}},
	{"not null constraint", "reads all rows", "alter table orders add constraint c not null n", []string{"lock-blocks-reads 1 orders.n"}},
	{"vacuum full", "a new table", "vacuum full orders", []string{"lock-blocks-reads 1"}},
	{"vacuum (full)", "a new table", "vacuum (analyze, full) orders", []string{"lock-blocks-reads 1"}},
	{"vacuum", "nobody waits", "vacuum (analyze) orders", nil},
	{"cluster", "a new table", "cluster orders using i", []string{"lock-blocks-reads 1 orders"}},
	{"reindex", "needs CONCURRENTLY", "reindex (verbose) table orders; reindex index i", []string{"lock-blocks-reads 1 orders", "lock-blocks-reads 1 i"}},
	{"reindex concurrently", "has it", "reindex (verbose, concurrently) table orders", nil},
	{"refresh", "needs CONCURRENTLY", "refresh materialized view stats", []string{"lock-blocks-reads 1 stats"}},
	{"refresh concurrently", "has it", "refresh materialized view concurrently stats", nil},
	{"set", "a new file", "alter table orders set unlogged; alter table customers set tablespace x; alter index i set tablespace x", []string{"lock-blocks-reads 1 orders", "lock-blocks-reads 1 customers", "lock-blocks-reads 1 i"}},
	{"set parameters", "nothing moves", "alter table orders set (fillfactor = 90)", nil},
	{"lock", "until the end of the file", "lock table orders, customers; lock parts in access exclusive mode nowait", []string{"lock-blocks-reads 1 orders", "lock-blocks-reads 1 customers", "lock-blocks-reads 1 parts"}},
	{"weak lock", "others read", "lock table orders in share row exclusive mode", nil},
	{"backfill", "the lock of ALTER TABLE is held", "alter table orders add column a int;\nupdate only orders set a = n;\nupdate customers set name = ''", []string{"lock-blocks-reads 2 orders"}},
	{"backfill before", "the lock comes after", "update orders set n = 0; alter table orders alter n set default 0", nil},
	{"backfill without a transaction", "the lock is gone", "-- pgtenancy: no transaction\nalter table orders add column a int;\nupdate orders set a = n", nil},
	{"all of it in a new file's table", "nobody uses it", "create table a (n int); alter table a alter n type bigint, add check (n > 0), alter n set not null, set unlogged, add unique (n), drop column n; lock table a; update a set n = 1; create materialized view m as select 1; refresh materialized view m; alter table a rename to b; create index on b (n); drop table b", nil},

	// breaks-old-code
	{"drop column", "old code selects it", "alter table orders drop column if exists n, drop constraint c", []string{"breaks-old-code 1 orders.n"}},
	{"rename column", "old code selects it", "alter table orders rename n to m; alter table orders rename column total to sum; alter table orders rename constraint a to b", []string{"breaks-old-code 1 orders.n", "breaks-old-code 1 orders.total"}},
	{"rename", "old code selects from it", "alter table orders rename to purchases; alter view totals rename to sums", []string{"breaks-old-code 1 orders", "breaks-old-code 1 totals"}},
	{"rename with a view", "old code selects from the view", "alter table orders rename to purchases; create view orders as select * from purchases", nil},
	{"drop table", "old code selects from it", "drop table if exists orders, customers cascade", []string{"breaks-old-code 1 orders", "breaks-old-code 1 customers"}},
	{"drop and create", "it is there again", "drop table if exists orders; create table orders (id int)", nil},
	{"not null", "old code does not insert it", "alter table orders add column a int not null", []string{"breaks-old-code 1 orders.a"}},

	// concurrently-mixed
	{"mixed", "two transactions", "alter table orders alter n set default 1;\ncreate index concurrently i on orders (n)", []string{"concurrently-mixed 2"}},
	{"alone", "one statement", "create index concurrently i on orders (n)", nil},
	{"several alone", "none of them could be in a transaction", "create index concurrently i on orders (n); drop index concurrently j", nil},

	// session-state
	{"set", "it stays", "set work_mem = '1GB'; set session x.y = 1", []string{"session-state 1 work_mem", "session-state 1 x.y"}},
	{"set_config", "it stays", "select set_config('app.x', '1', false)", []string{"session-state 1 app.x"}},
	{"in a body", "it stays", "create function f() returns void language plpgsql as $$ begin\nset role x;\nperform set_config('app.x', '1', false), pg_advisory_lock(1);\ncreate temp table if not exists orders as select 1;\nend $$", []string{"session-state 2 role", "session-state 3 app.x", "session-state 3 pg_advisory_lock", "session-state 4 orders"}},
	{"local", "it ends", "set local work_mem = '1GB'; select set_config('app.x', '1', true); create function f() returns void language plpgsql as $$ begin set local role x; perform pg_advisory_xact_lock(1); create temp table a (id int) on commit drop; update orders set n = 1; end $$", nil},

	// enum-value-used
	{"enum value", "not in its transaction", "alter type status add value if not exists 'paid' after 'open';\nalter table orders alter status set default 'paid'", []string{"enum-value-used 2 status"}},
	{"enum value in a body", "SQL is looked into, PL/pgSQL is not", "alter type status add value 'paid';\ncreate function f() returns status language sql as $$ select 'paid'::status $$;\ncreate function g() returns status language plpgsql as $$ begin return 'paid'; end $$", []string{"enum-value-used 2 status"}},
	{"enum value as text", "it is not one then", "alter type status add value 'paid'; create view v as select 1 from orders where status::text = 'paid'", nil},

	// Comments.
	{"allow above", "it is directly above", "-- pgtenancy:allow index-blocks-writes small\ncreate index on orders (n)", nil},
	{"allow among others", "comments may be around it", "-- An index.\n  --  pgtenancy:allow volatile-default,index-blocks-writes , breaks-old-code small, and so on\n-- Yes.\ncreate index on orders (n)", nil},
	{"allow inside", "it is inside", "create index -- pgtenancy:allow index-blocks-writes\n on orders (n)", nil},
	{"allow in a body", "it is inside", "do $$ begin\n-- pgtenancy:allow schema-qualified the first customer\nperform other.f(); end $$", nil},
	{"allow in CRLF", "the end of the line is none of it", "-- pgtenancy:allow index-blocks-writes\r\ncreate index on orders (n)", nil},
	{"allow for one", "the next one is another statement", "-- pgtenancy:allow index-blocks-writes small\ncreate index on orders (n);\ncreate index on customers (name)", []string{"index-blocks-writes 3 customers"}},
	{"allow apart", "it is not directly above", "-- pgtenancy:allow index-blocks-writes\n\ncreate index on orders (n)", []string{"index-blocks-writes 3 orders"}},
	{"allow of another rule", "it is another rule", "-- pgtenancy:allow volatile-default\ncreate index on orders (n)", []string{"index-blocks-writes 2 orders"}},
	{"allow unknown", "no such rule", "-- pgtenancy:allow index-block-writes, nonsense\ncreate index on orders (n)", []string{"unknown-rule 1 index-block-writes", "unknown-rule 1 nonsense", "index-blocks-writes 2 orders"}},
	{"allow nothing", "no rule", "-- pgtenancy:allow\ncreate index on orders (n)", []string{"unknown-rule 1", "index-blocks-writes 2 orders"}},
	{"allow in a string", "it is no comment", "insert into customers (name) values ('\n-- pgtenancy:allow nonsense\n'); create index on orders (n)", []string{"index-blocks-writes 3 orders"}},
	{"no allow", "another word", "-- pgtenancy:allowed nonsense\nselect 1", nil},
}

func TestLint(t *testing.T) {
	t.Parallel()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			files := map[string]string{"tenant/002_test.sql": tt.sql}
			for name, content := range earlier {
				files[name] = content
			}
			findings := check(t, files)
			want := []string{}
			for _, w := range tt.want {
				rule, at, _ := strings.Cut(w, " ")
				want = append(want, rule+" tenant/002_test.sql:"+at)
			}
			if diff := cmp.Diff(want, brief(findings)); diff != "" {
				t.Errorf("%s (%s) (-want +got):\n%s", tt.sql, tt.reason, diff)
			}
			for _, f := range findings {
				if f.Reason == "" || f.Remedy == "" {
					t.Errorf("%+v lacks a reason or a remedy", f)
				}
			}
		})
	}
}

// What a file has done is known in those after it.
func TestLint_Files(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, reason string
		files        map[string]string
		want         []string
	}{
		{"checked not null", "the constraint says it already", map[string]string{
			"tenant/002_check.sql":    "alter table orders add constraint c check (n is not null) not valid",
			"tenant/003_early.sql":    "alter table orders alter n set not null",
			"tenant/004_validate.sql": "alter table orders validate constraint c",
			"tenant/005_late.sql":     "alter table orders alter n set not null; alter table orders alter total set not null",
		}, []string{"lock-blocks-reads tenant/003_early.sql:1 orders.n", "lock-blocks-reads tenant/005_late.sql:1 orders.total"}},
		{"check without a name", "PostgreSQL names it so", map[string]string{
			"tenant/002_check.sql":    "alter table orders add check (n is not null) not valid",
			"tenant/003_validate.sql": "alter table orders validate constraint orders_n_check",
			"tenant/004_late.sql":     "alter table orders alter n set not null",
		}, nil},
		{"types", "they are followed from file to file", map[string]string{
			"tenant/002_add.sql":    "alter table orders add a varchar(10), add b int; alter table orders rename to purchases; create view orders as select 1",
			"tenant/003_change.sql": "alter table purchases alter a type text, alter note type text, alter total type text",
			"tenant/004_change.sql": "alter table purchases alter a type varchar(20), alter note type varchar",
		}, []string{"lock-blocks-reads tenant/003_change.sql:1 purchases.total", "lock-blocks-reads tenant/004_change.sql:1 purchases.a"}},
		{"enum", "Provision runs both files in one transaction", map[string]string{
			"tenant/002_add.sql": "alter type status add value 'paid'",
			"tenant/003_use.sql": "alter type status add value 'sent' after 'paid'; create type other as enum ('paid');\nupdate orders set n = 1 where status = 'paid'",
		}, []string{"type-in-tenant tenant/003_use.sql:1 other", "enum-value-used tenant/003_use.sql:2 status"}},
		{"shared enum", "each shared file is committed", map[string]string{
			"shared/002_add.sql": "create type kind as enum ('a'); alter type kind add value 'b'",
			"shared/003_use.sql": "select 'b'::kind",
			"shared/004_add.sql": "alter type kind add value 'c';\nselect 'c'::kind",
		}, []string{"enum-value-used shared/004_add.sql:2 kind"}},
		{"shared", "what is dangerous for all is found there too", map[string]string{
			"shared/002_more.sql": `create index on public.users (email);
				alter table users add column a uuid default gen_random_uuid();
				alter table users drop column email, alter a set not null, add check (a <> 'x');
				create function f() returns void language plpgsql as $$ begin set work_mem = '1MB'; end $$;
				create extension pg_trgm schema extensions;
				create type kind as enum ('a');
				create function g() returns int language sql security definer set search_path = pg_catalog, pg_temp as 'select 1';
				create table reporting.x (id int);
				select * from tenant_acme.orders;`,
			"tenant/002_more.sql": "select extensions.similarity('a', 'b')",
		}, []string{
			"index-blocks-writes shared/002_more.sql:1 public.users", "volatile-default shared/002_more.sql:2 users.a",
			"breaks-old-code shared/002_more.sql:3 users.email", "lock-blocks-reads shared/002_more.sql:3 users.a",
			"constraint-not-valid shared/002_more.sql:3 users", "session-state shared/002_more.sql:4 work_mem",
		}},
		{"goose", "of a file with both ways, the way up is checked, at its own lines", map[string]string{
			"tenant/001_tables.sql": "-- +goose Up\ncreate table orders (n int);\n-- +goose Down\ndrop table orders;",
			"tenant/002_goose.sql":  "-- +goose Up\n\ncreate index on orders (n);\n-- pgtenancy:allow index-blocks-writes\n-- +goose StatementBegin\ncreate index on orders (n);\n-- +goose StatementEnd\n-- +goose Down\ndrop table orders;",
		}, []string{"index-blocks-writes tenant/002_goose.sql:3 orders"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			files := maps.Clone(earlier)
			maps.Copy(files, tt.files)
			if diff := cmp.Diff(append([]string{}, tt.want...), brief(check(t, files))); diff != "" {
				t.Errorf("%s (-want +got):\n%s", tt.reason, diff)
			}
		})
	}
}

// A definer's function gets other advice, and so does a partitioned table.
func TestLint_Remedy(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ sql, want string }{
		{"create function f() returns int language sql set search_path = public as 'select 1'", "caller"},
		{"create function f() returns int language sql security definer set search_path = public as 'select 1'", "BEGIN ATOMIC"},
		{"create index on orders (n)", "CONCURRENTLY with a name"},
		{"create index on parts (id)", "ON ONLY parts"},
	} {
		files := maps.Clone(earlier)
		files["tenant/002_test.sql"] = tt.sql
		findings := check(t, files)
		if last := findings[len(findings)-1]; last.File != "tenant/002_test.sql" || !strings.Contains(last.Remedy, tt.want) {
			t.Errorf("%s: %+v, want a remedy with %s", tt.sql, last, tt.want)
		}
	}
}

// Whatever a file has, nothing panics, and findings are in it.
func FuzzLint(f *testing.F) {
	for _, tt := range tests {
		f.Add(tt.sql)
	}
	f.Fuzz(func(t *testing.T, sql string) {
		fsys := fstest.MapFS{"tenant/001_test.sql": {Data: []byte("create table orders (n int)")}, "tenant/002_test.sql": {Data: []byte(sql)}}
		ms, err := migration.Load(fsys, "tenant", nil)
		if err != nil {
			t.Skip()
		}
		findings, err := lint.Lint(fsys, ms, ms, lint.Config{SharedSchemas: []string{"public"}, SchemaPrefix: "tenant_"})
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range findings {
			if f.File != "tenant/002_test.sql" || f.Line < 1 || f.Line > 1+strings.Count(sql, "\n") {
				t.Errorf("%+v is not in the file", f)
			}
		}
	})
}
