package pgtenancy_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgtenancy/pgtenancy"
)

// decoyFiles have a shared table of the name of a tenant's, which nobody may read for it.
var decoyFiles = with(notesFiles, "shared/001_notes.sql", "create table notes (id bigint, body text); insert into notes values (1, 'decoy'); grant select on notes to public;")

func deleted(t *testing.T, fleet *pgtenancy.Fleet, id string) {
	t.Helper()
	if err := fleet.Delete(bare(t), id, nil); err != nil {
		t.Fatal(err)
	}
}

func TestDelete(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	fleet := db.migrated(t, decoyFiles)
	id := "a" + strings.Repeat("b", 54) + "c" // its schema's name is as long as may be
	acme := provision(t, fleet, id)
	db.exec(t, `insert into "`+acme.Schema()+`".notes (body) values ('mine')`)
	deaf, err := pgtenancy.NewPoolWithConfig(bare(t), &pgtenancy.PoolConfig{Conns: db.poolConfig(t, db.app)}) // has no directory
	if err != nil {
		t.Fatal(err)
	}
	defer deaf.Close()
	read := func() (body string, err error) {
		err = deaf.QueryRow(as(t, acme), "select body from notes").Scan(&body)
		return body, err
	}
	body, err := read()
	checkEqual(t, "body", body, "mine")
	check(t, "read", err)
	names := map[string]bool{}
	for range 2 {
		deleted(t, fleet, id)
		_, err = read()
		checkIs(t, "read", err, pgtenancy.ErrTenantNotFound)
		_, err = fleet.Lookup(bare(t), pgtenancy.ByID(id))
		checkIs(t, "Lookup", err, pgtenancy.ErrTenantNotFound)
		name := db.texts(t, "select deleted_schema from pgtenancy.tenants")[0]
		if names[name] || !strings.HasPrefix(name, "deleted:") || len(name) > 63 {
			t.Errorf("the schema is called %q", name)
		}
		names[name] = true
		checkEqual(t, "rows", db.count(t, `select count(*) from "`+name+`".notes`), 1)
		_, err = fleet.Adopt(bare(t), "other", name, nil)
		checkInvalid(t, "Adopt of it", err, "Tenant.Schema")
		_, err = fleet.Adopt(bare(t), "other", acme.Schema(), nil)
		checkInvalid(t, "Adopt of what was there", err, "Tenant.Schema")
		_, err = fleet.Provision(bare(t), id, nil)
		checkIs(t, "Provision", err, pgtenancy.ErrTenantExists)

		db.execAs(t, db.owner, `create schema "`+acme.Schema()+`"`)
		checkIs(t, "Undelete where there is another schema", fleet.Undelete(bare(t), id, nil), pgtenancy.ErrTenantExists)
		db.execAs(t, db.owner, `drop schema "`+acme.Schema()+`"`)
		check(t, "Undelete", fleet.Undelete(bare(t), id, nil))
		checkEqual(t, "Lookup", lookup(t, fleet, id), acme)
		body, err = read()
		checkEqual(t, "body", body, "mine")
		check(t, "read", err)
	}
}

// A transaction that is in the schema, whether it has used a table or not, goes on to see the tenant's tables and no others. That
// of another tenant is in nobody's way.
func TestDeleteWaits(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	fleet := db.migrated(t, decoyFiles)
	for _, used := range []bool{false, true} {
		t.Run(fmt.Sprint("used a table ", used), func(t *testing.T) {
			acme, globex := provision(t, fleet, fmt.Sprint("acme-", used)), provision(t, fleet, fmt.Sprint("globex-", used))
			begin := func(tenant pgtenancy.Tenant, use bool) pgx.Tx {
				tx, err := fleet.Pool().Begin(as(t, tenant))
				if err != nil {
					t.Fatal(err)
				}
				if use {
					_, err = tx.Exec(as(t, tenant), "insert into notes (body) values ('mine')")
					check(t, "insert", err)
				}
				return tx
			}
			other := begin(globex, true)
			defer other.Rollback(bare(t))
			tx := begin(acme, used)
			defer tx.Rollback(bare(t))
			checkIs(t, "Delete", fleet.Delete(bare(t), acme.ID(), brief), pgtenancy.ErrTenantInUse)
			checkEqual(t, "it is deleted", db.count(t, "select count(*) from pgtenancy.tenants where state = 'deleted' and deleted_schema is null and id = '"+acme.ID()+"'"), 1)
			_, err := fleet.Lookup(bare(t), pgtenancy.ByID(acme.ID()))
			checkIs(t, "Lookup", err, pgtenancy.ErrTenantNotFound)
			_, err = fleet.Purge(bare(t), acme.ID(), &pgtenancy.PurgeOpts{Force: true, Wait: 1, Reason: "waits too"})
			if used { // which it does not in the transaction that begins it
				checkIs(t, "Purge", err, pgtenancy.ErrTenantInUse)
			}

			var n int
			check(t, "select", tx.QueryRow(as(t, acme), "select count(*) from notes where body = 'decoy'").Scan(&n))
			checkEqual(t, "decoys", n, 0)
			check(t, "Commit", tx.Commit(as(t, acme)))
			check(t, "Delete again", fleet.Delete(bare(t), acme.ID(), nil))
			checkEqual(t, "set aside", db.count(t, "select count(*) from pg_namespace where nspname like 'deleted:"+acme.ID()+":%'"), 1)
			check(t, "Commit", other.Commit(as(t, globex)))
			_, err = fleet.Purge(bare(t), acme.ID(), &pgtenancy.PurgeOpts{Force: true})
			check(t, "Purge", err)
		})
	}

	// Undone before it was done.
	acme := provision(t, fleet, "acme")
	tx, err := fleet.Pool().Begin(as(t, acme))
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(bare(t))
	checkIs(t, "Delete", fleet.Delete(bare(t), "acme", brief), pgtenancy.ErrTenantInUse)
	check(t, "Undelete", fleet.Undelete(bare(t), "acme", nil))
	_, err = tx.Exec(as(t, acme), "insert into notes (body) values ('mine')")
	check(t, "insert", err)
	check(t, "Commit", tx.Commit(as(t, acme)))
	checkEqual(t, "rows", db.count(t, "select count(*) from tenant_acme.notes"), 1)
}

// A transaction that is only prepared is in the schema as any other, for as long as nobody ends it.
func TestDeletePrepared(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	if db.count(t, "select current_setting('max_prepared_transactions')::int") == 0 {
		t.Skip("the server has no prepared transactions: max_prepared_transactions is 0")
	}
	fleet := db.migrated(t, decoyFiles)
	provision(t, fleet, "acme")
	name := "'" + db.name(t) + "'"
	prepare := func() {
		db.exec(t, "begin; insert into tenant_acme.notes (body) values ('mine'); prepare transaction "+name)
	}
	t.Cleanup(func() { // or the database could not be dropped
		conn := db.admin(t)
		defer conn.Close(context.Background())
		_, _ = conn.Exec(context.Background(), "rollback prepared "+name) // an error is that of a test that passed
	})
	prepare()
	checkIs(t, "Delete", fleet.Delete(bare(t), "acme", brief), pgtenancy.ErrTenantInUse)
	checkIs(t, "Delete again", fleet.Delete(bare(t), "acme", brief), pgtenancy.ErrTenantInUse)
	checkEqual(t, "set aside", db.count(t, "select count(*) from pgtenancy.tenants where deleted_schema is not null"), 0)
	check(t, "Undelete", fleet.Undelete(bare(t), "acme", nil))
	db.exec(t, "commit prepared "+name)
	checkEqual(t, "rows", db.count(t, "select count(*) from tenant_acme.notes where body = 'mine'"), 1)

	prepare()
	checkIs(t, "Delete", fleet.Delete(bare(t), "acme", brief), pgtenancy.ErrTenantInUse)
	for range 2 {
		_, err := fleet.Purge(bare(t), "acme", &pgtenancy.PurgeOpts{Force: true, Wait: time.Second})
		checkIs(t, "Purge", err, pgtenancy.ErrTenantInUse)
		checkEqual(t, "tables", db.count(t, "select count(*) from pg_tables where schemaname = 'tenant_acme'"), 1)
	}
	db.exec(t, "rollback prepared "+name)
	_, err := fleet.Purge(bare(t), "acme", nil)
	check(t, "Purge", err)
	checkEqual(t, "what stayed", db.count(t, "select (select count(*) from pgtenancy.tenants) + (select count(*) from pg_namespace where nspname like 'tenant%' or nspname like 'deleted%')"), 0)
}

// Requests that go on meanwhile see the tenant's rows or are refused.
func TestDeleteUnderLoad(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	fleet := db.migrated(t, decoyFiles)
	acme := provision(t, fleet, "acme")
	db.exec(t, "insert into tenant_acme.notes (body) values ('mine')")
	ctx, cancel := context.WithCancel(bare(t))
	defer cancel()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var served, refused int
	count := func() (int, int) { mu.Lock(); defer mu.Unlock(); return served, refused }
	read := func(i int) (body string, err error) {
		tenant, err := fleet.Lookup(ctx, pgtenancy.ByID("acme"))
		if err != nil {
			return "", err
		}
		ctx := pgtenancy.WithTenant(ctx, tenant)
		if i%2 == 0 {
			return body, fleet.Pool().QueryRow(ctx, "select body from notes").Scan(&body)
		}
		err = pgx.BeginFunc(ctx, fleet.Pool(), func(tx pgx.Tx) error {
			if err := tx.QueryRow(ctx, "select body from notes").Scan(&body); err != nil {
				return err
			}
			return tx.QueryRow(ctx, "select max(body) from notes").Scan(&body)
		})
		return body, err
	}
	for i := range 3 { // fewer than connections, so that nobody waits for one between being let in and beginning
		wg.Go(func() {
			for ctx.Err() == nil {
				body, err := read(i)
				mu.Lock()
				switch {
				case ctx.Err() != nil:
				case err == nil && (body == "mine" || body == ""):
					served++
				case errors.Is(err, pgtenancy.ErrTenantNotFound):
					refused++
				default:
					t.Errorf("read %q: %v", body, err)
				}
				mu.Unlock()
			}
		})
	}
	for range 5 {
		before, _ := count()
		await(t, "requests", func() bool { n, _ := count(); return n > before+10 })
		deleted(t, fleet, "acme")
		_, before = count()
		await(t, "refusals", func() bool { _, n := count(); return n > before+10 })
		check(t, "Undelete", fleet.Undelete(bare(t), "acme", nil))
	}
	cancel()
	wg.Wait()
	checkEqual(t, "tenant", lookup(t, fleet, "acme"), acme)
}

// purgeFiles have a little of everything.
var purgeFiles = sqlFiles("shared/001_plans.sql", "create table plans (id int primary key); insert into plans values (1);",
	"tenant/001_all.sql", `create type status as enum ('new', 'paid');
		create domain positive as int check (value > 0);
		create sequence numbers;
		create function twice(n int) returns int language sql immutable as 'select 2 * n';
		create table customers (id bigint generated always as identity primary key, plan int references public.plans, n positive default twice(2));
		create table orders (id bigserial, customer bigint references customers, status status, day date, primary key (id, day)) partition by range (day);
		create table orders_1 partition of orders for values from ('2020-01-01') to ('2021-01-01');
		create table orders_2 partition of orders for values from ('2021-01-01') to ('2022-01-01');
		create table items (order_id bigint, day date, foreign key (order_id, day) references orders);
		create table "Odd "" name" (body text);
		create view paid as select * from orders where status = 'paid';
		create view more as select * from paid;
		create materialized view totals as select count(*) from orders;
		create function note() returns trigger language plpgsql as 'begin return new; end';
		create trigger note before insert on items for each row execute function note();
		create procedure work() language sql as 'select 1';
		insert into customers (plan) values (1);`,
	"tenant/002_x.sql", "create table x ();")

func TestPurge(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	fleet := db.migrated(t, purgeFiles)
	other := provision(t, fleet, "other")
	if _, err := fleet.Provision(bare(t), "acme", &pgtenancy.ProvisionOpts{Domains: []string{"b.example", "a.example"}, Attributes: map[string]string{"plan": "pro"}}); err != nil {
		t.Fatal(err)
	}
	db.exec(t, "analyze tenant_acme.customers")
	sampleUsage(t, fleet)
	db.exec(t, "update pgtenancy.usage_samples set taken_at = taken_at - interval '1 day'")
	sampleUsage(t, fleet)
	_, err := fleet.Purge(bare(t), "acme", nil)
	checkIs(t, "Purge of an active one", err, pgtenancy.ErrTenantState)
	deleted(t, fleet, "acme")
	_, err = fleet.Purge(bare(t), "acme", nil)
	checkIs(t, "Purge inside the retention", err, pgtenancy.ErrTenantRetained)
	db.exec(t, "update pgtenancy.tenants set deleted_at = now() - interval '30 days 1 second' where id = 'acme'")
	short := db.open(t, purgeFiles, func(c *pgtenancy.FleetConfig) { c.Retention = 31 * 24 * time.Hour })
	_, err = short.Purge(bare(t), "acme", nil)
	checkIs(t, "Purge inside a longer retention", err, pgtenancy.ErrTenantRetained)
	report, err := fleet.Purge(bare(t), "acme", nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range report.Tables {
		if report.Tables[i].Name == "customers" && (report.Tables[i].Rows != 1 || report.Tables[i].Bytes == 0) {
			t.Errorf("table %+v", report.Tables[i])
		}
		report.Tables[i].Rows, report.Tables[i].Bytes = 0, 0
	}
	tables := []pgtenancy.PurgedTable{{Name: `Odd " name`}, {Name: "customers"}, {Name: "items"}, {Name: "orders"}, {Name: "orders_1"}, {Name: "orders_2"}, {Name: "totals"}, {Name: "x"}}
	want := &pgtenancy.PurgeReport{
		Tenant: "acme", Schema: "tenant_acme", Attributes: map[string]string{"plan": "pro"}, Domains: []string{"a.example", "b.example"}, Migrations: 2,
		Tables: tables, Views: []string{"more", "paid"}, Sequences: []string{"customers_id_seq", "numbers", "orders_id_seq"}, Functions: []string{"note()", "twice(n integer)", "work()"},
	}
	if diff := cmp.Diff(report, want); diff != "" {
		t.Errorf("report (-got +want):\n%s", diff)
	}
	checkEqual(t, "what stayed", db.count(t, `select (select count(*) from pg_namespace where nspname like 'deleted:%' or nspname = 'tenant_acme')
		+ (select count(*) from pgtenancy.tenants where id <> 'other') + (select count(*) from pgtenancy.domains) + (select count(*) from pgtenancy.migrations where tenant_id = 'acme')
		+ (select count(*) from pgtenancy.unfinished) + (select count(*) from pgtenancy.usage_samples where tenant_id = 'acme')`), 0)
	checkEqual(t, "samples of others", db.count(t, "select count(*) from pgtenancy.usage_samples where tenant_id in ('', 'other')"), 4)
	checkEqual(t, "another tenant", lookup(t, fleet, "other"), other)
	checkEqual(t, "shared rows", db.count(t, "select count(*) from plans"), 1)
	_, err = fleet.Provision(bare(t), "acme", &pgtenancy.ProvisionOpts{Domains: []string{"b.example"}})
	check(t, "Provision again", err)

	// Where somebody has dropped the schema.
	db.exec(t, "update pgtenancy.tenants set state = 'deleted' where id = 'acme'; drop schema tenant_acme cascade")
	report, err = fleet.Purge(bare(t), "acme", &pgtenancy.PurgeOpts{Force: true})
	check(t, "Purge without a schema", err)
	checkEqual(t, "tables", len(report.Tables), 0)

	if _, err := pgtenancy.Open(bare(t), pgtenancy.FleetConfig{PoolConfig: pgtenancy.PoolConfig{Conns: db.poolConfig(t, db.app)}, Retention: -1}); err == nil {
		t.Error("a negative retention is no error")
	} else {
		checkInvalid(t, "a negative retention", err, "FleetConfig.Retention")
	}
}

// What others would lose keeps a tenant from being purged.
func TestPurgeReferenced(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	fleet := db.migrated(t, purgeFiles)
	provision(t, fleet, "other")
	tests := []struct{ name, make, drop, want string }{
		{"a foreign key", "create table r (c bigint references tenant_acme.customers)", "drop table r", "constraint r_c_fkey on table r"},
		{"another tenant's foreign key", "create table tenant_other.r (c bigint references tenant_acme.customers)", "drop table tenant_other.r", "constraint r_c_fkey on table tenant_other.r"},
		{"a view", "create view r as select * from tenant_acme.paid", "drop view r", "view r"},
		{"a materialized view", "create materialized view r as select * from tenant_acme.customers", "drop materialized view r", "materialized view r"},
		{"a function", "create function r(tenant_acme.status) returns int language sql as 'select 1'", "drop function r", "function r(tenant_acme.status)"},
		{"a default", "create table r (n int default tenant_acme.twice(1))", "drop table r", "default value for column n of table r"},
		{"a sequence", "create table r (n bigint default nextval('tenant_acme.numbers'))", "drop table r", "default value for column n of table r"},
		{"a type", "create table r (s tenant_acme.status)", "drop table r", "column s of table r"},
		{"a row type", "create table r (s tenant_acme.x[])", "drop table r", "column s of table r"},
		{"a trigger", "create table r (); create trigger t before insert on r for each row execute function tenant_acme.note()", "drop table r", "trigger t on table r"},
		{"a policy", "create table r (n int); create policy p on r using (n in (select id from tenant_acme.customers))", "drop table r", "policy p on table r"},
		{"a partition", "create table r partition of tenant_acme.orders for values from ('2022-01-01') to ('2023-01-01')", "drop table r cascade", "table r"},
		{"a child", "create table r () inherits (tenant_acme.x)", "drop table r", "table r"},
		{"an index", "create table r (n int); create index i on r (tenant_acme.twice(n))", "drop table r", "index i"},
		{"a check", "create table r (n int check (tenant_acme.twice(n) > 1))", "drop table r", "constraint r_n_check on table r"},
	}
	provision(t, fleet, "acme")
	db.execAs(t, db.owner, `alter table tenant_acme.x add n int;
		create function tenant_acme.as_int(tenant_acme.status) returns int language sql as 'select 1'; create cast (tenant_acme.status as int) with function tenant_acme.as_int (tenant_acme.status)`)
	deleted(t, fleet, "acme")
	aside := db.texts(t, "select deleted_schema from pgtenancy.tenants where id = 'acme'")[0]
	for _, tt := range tests {
		// As the owner had it before the tenant was deleted.
		db.execAs(t, db.owner, `set search_path = public; `+strings.ReplaceAll(tt.make, "tenant_acme", `"`+aside+`"`))
		_, err := fleet.Purge(bare(t), "acme", &pgtenancy.PurgeOpts{Force: true})
		var referenced *pgtenancy.ReferencedError
		if !errors.As(err, &referenced) {
			t.Fatalf("%s: %v", tt.name, err)
		}
		found := slices.ContainsFunc(referenced.Objects, func(o string) bool {
			o = strings.ReplaceAll(strings.ReplaceAll(o, "public.", ""), `"`+aside+`"`, "tenant_acme")
			return o == tt.want
		})
		if !found || referenced.Tenant != "acme" {
			t.Errorf("%s: %q, want %q", tt.name, referenced.Objects, tt.want)
		}
		db.execAs(t, db.owner, `set search_path = public; `+tt.drop)
	}
	_, err := fleet.Purge(bare(t), "acme", &pgtenancy.PurgeOpts{Force: true})
	check(t, "Purge", err)
}

// No transaction takes many locks, whatever number of tables there is.
func TestPurgeLocks(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	var sql strings.Builder
	sql.WriteString("create table customers (id int primary key);")
	for i := range 300 {
		fmt.Fprintf(&sql, "create table t%[1]d (id bigserial primary key, a int references customers, b int); create index on t%[1]d (a); create index on t%[1]d (b); create view v%[1]d as select * from t%[1]d;", i)
	}
	fleet := db.migrated(t, nil)
	db.execAs(t, db.owner, "create schema old")
	conn := db.as(t, db.owner)
	_, err := conn.Exec(bare(t), "set search_path = old")
	check(t, "set", err)
	for parts := range slices.Chunk(strings.SplitAfter(sql.String(), ";"), 100) { // in one transaction it would be too much itself
		_, err := conn.Exec(bare(t), strings.Join(parts, ""), pgx.QueryExecModeSimpleProtocol)
		check(t, "create", err)
	}
	_, err = fleet.Adopt(bare(t), "acme", "old", nil)
	check(t, "Adopt", err)
	deleted(t, fleet, "acme")
	db.exec(t, `create table most (n int);
		create function count_locks() returns event_trigger language plpgsql security definer as $$
			begin insert into public.most select count(*) from pg_locks where pid = pg_backend_pid() and locktype <> 'virtualxid'; end $$;
		create event trigger count_locks on sql_drop execute function count_locks()`)
	report, err := fleet.Purge(bare(t), "acme", &pgtenancy.PurgeOpts{Force: true})
	check(t, "Purge", err)
	checkEqual(t, "tables", len(report.Tables), 301)
	if most := db.count(t, "select max(n) from most"); most > 2*200 {
		t.Errorf("a transaction took %d locks", most)
	}
	checkEqual(t, "schemas", db.count(t, "select count(*) from pg_namespace where nspname like 'deleted:%'"), 0)
}

// lifeURLEnv has "what to do, URL of the application, URL of the owner" in a process that is to be killed.
const lifeURLEnv = "PGTENANCY_TEST_LIFE"

// A process is killed in the middle. What it began is gone, or is finished by the next call.
func TestLifeKilled(t *testing.T) {
	t.Parallel()
	var sql strings.Builder
	for i := range 120 { // more than one transaction of a purge drops
		fmt.Fprintf(&sql, "create table t%d (id int primary key);\n", i)
	}
	files := sqlFiles("tenant/001_big.sql", sql.String())
	if args := strings.Fields(os.Getenv(lifeURLEnv)); len(args) > 0 {
		lifeToBeKilled(t, files, args[0], args[1], args[2])
		return
	}
	db := newFleetDB(t)
	fleet := db.migrated(t, files)
	provision(t, fleet, "old")
	deleted(t, fleet, "old")
	const tables = "select count(*) from pg_tables where schemaname like 'deleted:%'"
	kill := func(what, until string, release func()) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestLifeKilled$")
		cmd.Env = append(os.Environ(), lifeURLEnv+"="+what+" "+db.urlOf(t, db.app, "")+" "+db.urlOf(t, db.owner, ""))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		await(t, what, func() bool { return db.count(t, until) > 0 })
		cmd.Process.Kill()
		cmd.Wait()
		release()
		db.awaitQuiet(t)
	}
	const waits = "select count(*) from pg_stat_activity where datname = current_database() and application_name = '" + killedName + "' and wait_event_type = "

	// A purge gets as far as a table that somebody reads.
	reader := db.admin(t)
	aside := db.texts(t, "select deleted_schema from pgtenancy.tenants")[0]
	if _, err := reader.Exec(bare(t), `begin; lock table "`+aside+`".t100 in access share mode`); err != nil {
		t.Fatal(err)
	}
	kill("purge", waits+"'Lock'", func() { _, err := reader.Exec(bare(t), "rollback"); check(t, "rollback", err) })
	if left := db.count(t, tables); left == 0 || left >= 120 {
		t.Errorf("%d of 120 tables are left", left)
	}
	checkIs(t, "Undelete", fleet.Undelete(bare(t), "old", nil), pgtenancy.ErrTenantState)
	_, err := fleet.Lookup(bare(t), pgtenancy.ByID("old"))
	checkIs(t, "Lookup", err, pgtenancy.ErrTenantNotFound)
	_, err = fleet.Provision(bare(t), "old", nil)
	checkIs(t, "Provision", err, pgtenancy.ErrTenantExists)
	report, err := fleet.Purge(bare(t), "old", nil) // what began needs no force any more
	if err != nil {
		t.Fatal(err)
	}
	checkEqual(t, "tables in the report", len(report.Tables), 120)
	checkEqual(t, "what stayed", db.count(t, "select ("+tables+") + (select count(*) from pgtenancy.tenants)"), 0)

	kill("provision", waits+"'Timeout'", func() {
		db.exec(t, "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'") // which does not see that its client is gone
	})
	checkEqual(t, "what stayed", db.count(t, `select (select count(*) from pgtenancy.tenants) + (select count(*) from pgtenancy.changes where tenant_id = 'new')
		+ (select count(*) from pg_namespace where nspname like 'tenant%')`), 0)
	provision(t, fleet, "new")
}

// lifeToBeKilled comes to a point from which it does not go on.
func lifeToBeKilled(t *testing.T, files fs.FS, what, app, owner string) {
	cfg := pgtenancy.FleetConfig{Migrations: files}
	var err error
	if cfg.PoolConfig.Conns, err = pgxpool.ParseConfig(app); err != nil {
		t.Fatal(err)
	}
	if cfg.Owner, err = pgxpool.ParseConfig(owner); err != nil {
		t.Fatal(err)
	}
	cfg.Owner.ConnConfig.RuntimeParams["application_name"] = killedName
	fleet, err := pgtenancy.Open(bare(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer fleet.Close()
	if what == "purge" {
		_, err = fleet.Purge(bare(t), "old", &pgtenancy.PurgeOpts{Force: true, Wait: patience})
	} else {
		_, err = fleet.Provision(bare(t), "new", &pgtenancy.ProvisionOpts{Seed: func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "select pg_sleep(1000)")
			return err
		}})
	}
	t.Errorf("%s came to its end: %v", what, err)
}
