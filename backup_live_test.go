package pgtenancy_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgtenancy/pgtenancy"
)

// A writer is at work on several tables. What is restored keeps what it keeps between them.
func TestBackupWhileWriting(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	fleet := db.migrated(t, sqlFiles("tenant/001_ledger.sql", `create table a (id int generated always as identity primary key, total int not null);
		create table filler (t text); create table z (a int references a, n int not null); insert into a (total) values (0)`))
	ids := []string{"t0", "t1", "t2"}
	for _, id := range ids {
		db.execTenant(t, provision(t, fleet, id), "insert into filler select md5(i::text) from generate_series(1, 20000) i")
	}
	ctx, stop := context.WithCancel(bare(t))
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	wrote := make(chan struct{})
	for i, id := range ids {
		conn := db.as(t, db.owner)
		wg.Go(func() {
			for n := 1; ctx.Err() == nil; n++ {
				_, err := conn.Exec(context.Background(), fmt.Sprintf(`begin; update tenant_%[1]s.a set total = total + %[2]d where id = 1; insert into tenant_%[1]s.z values (1, %[2]d);
					with new as (insert into tenant_%[1]s.a (total) values (1) returning id) insert into tenant_%[1]s.z select id, 1 from new; commit`, id, n), pgx.QueryExecModeSimpleProtocol)
				if err != nil {
					t.Error(err)
					return
				}
				if n == 20 && i == 0 {
					close(wrote)
				}
			}
		})
	}
	<-wrote
	store := pgtenancy.DirStore(t.TempDir())
	for range 2 {
		for id, o := range backup(t, fleet, store, &pgtenancy.BackupOpts{Tenants: ids}) {
			twin := restore(t, fleet, store, o.Name, &pgtenancy.RestoreOpts{As: "twin", Replace: true})
			checkEqual(t, "totals that differ", db.count(t, "select count(*) from (select a from tenant_twin.z group by a having sum(n) <> (select total from tenant_twin.a where id = z.a)) x"), 0)
			checkEqual(t, "rows without", db.count(t, "select count(*) from tenant_twin.a where total > 0 and not exists (select from tenant_twin.z where a = id)"), 0)
			if db.count(t, "select count(*) from tenant_twin.z") < 40 && id == "t0" {
				t.Error("the writer had not written yet")
			}
			db.execTenant(t, twin, "insert into a (total) values (1)") // no collision
		}
	}
}

// A tenant whose tables are truncated or migrated while it is read is read again.
func TestBackupWhileAltered(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, sql, want string }{
		{"truncated", "begin; truncate a, b; insert into a values (2); insert into b values (2); commit", "2"},
		{"renamed", "begin; alter table b rename n to x; alter table b add n int default 3; update a set n = 3; alter table b drop x; commit", "3"},
		{"swapped", "begin; alter table b rename to c; create table b (n int); insert into b values (4); update a set n = 4; drop table c; commit", "4"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			db := newFleetDB(t)
			fleet := db.migrated(t, sqlFiles("tenant/001_ab.sql", `create table a (n int); create table b (n int)`))
			acme := provision(t, fleet, "acme")
			db.execTenant(t, acme, "insert into a values (1); insert into b values (1)")
			store := newMemStore()
			var once sync.Once
			store.fail = func(name string, r io.Reader) error {
				// The snapshot is there, and nothing has been read of the tables: the pipe holds nothing.
				once.Do(func() { db.execTenant(t, acme, tt.sql) })
				return nil
			}
			report, err := fleet.Backup(bare(t), store, nil)
			if err != nil {
				t.Fatal(err)
			}
			checkEqual(t, "waves", report.Waves, 2)
			checkEqual(t, "objects", len(store.objects), 1)
			restore(t, fleet, store, report.Objects[0].Name, &pgtenancy.RestoreOpts{As: "twin", AcceptDrift: true})
			checkList(t, "a and b", db.texts(t, "select a.n || ' ' || b.n from tenant_twin.a, tenant_twin.b"), tt.want+" "+tt.want)
		})
	}
}

// All tenants of a wave are of one moment.
func TestBackupSnapshot(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	fleet := db.migrated(t, sqlFiles("tenant/001_a.sql", `create table a (n int)`))
	provision(t, fleet, "acme")
	globex := provision(t, fleet, "globex")
	store := newMemStore()
	store.fail = func(name string, r io.Reader) error {
		if strings.HasPrefix(name, "acme/") {
			db.execTenant(t, globex, "insert into a values (1)")
		}
		return nil
	}
	m, err := pgtenancy.Verify(bare(t), store, backup(t, fleet, store, &pgtenancy.BackupOpts{Parallel: 1})["globex"].Name)
	check(t, "Verify", err)
	checkEqual(t, "rows that came after the snapshot", m.Tables[0].Rows, 0)
}

const (
	killedEnv = "PGTENANCY_TEST_BACKUP" // backup or restore
	pauseText = "ready to be killed"
)

// pausingStore stops in the middle of an object, and says so, for its process to be killed there.
type pausingStore struct{ pgtenancy.Store }

func (s pausingStore) Put(ctx context.Context, name string, r io.Reader) error {
	return s.Store.Put(ctx, name, io.MultiReader(io.LimitReader(r, 100_000), pauseReader{}))
}

func (s pausingStore) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	r, err := s.Store.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(io.MultiReader(io.LimitReader(r, 500_000), pauseReader{})), nil
}

type pauseReader struct{}

func (pauseReader) Read([]byte) (int, error) {
	fmt.Println(pauseText)
	select {} // until we are killed
}

// TestBackupKilled is also what the process does that is killed.
func TestBackupKilled(t *testing.T) {
	if what := os.Getenv(killedEnv); what != "" {
		killedProcess(t, what)
		return
	}
	t.Parallel()
	db := newFleetDB(t)
	fleet := db.migrated(t, shopFiles(db))
	acme := provision(t, fleet, "acme")
	db.execTenant(t, acme, "insert into notes (body) select md5(i::text) || md5((-i)::text) from generate_series(1, 40000) i")
	was := db.contents(t, acme)
	dir := t.TempDir()
	store := pgtenancy.DirStore(dir)
	kill := func(what, object string) {
		t.Helper()
		cmd := exec.Command(os.Args[0], "-test.run=^TestBackupKilled$", "-test.v")
		cmd.Env = append(os.Environ(), killedEnv+"="+what, "KILLED_APP="+db.urlOf(t, db.app, ""), "KILLED_OWNER="+db.urlOf(t, db.owner, ""),
			"KILLED_DIR="+dir, "KILLED_OBJECT="+object, "KILLED_ROLE="+db.app)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ready := false
		var text strings.Builder
		for lines := bufio.NewScanner(out); !ready && lines.Scan(); {
			ready = strings.Contains(lines.Text(), pauseText)
			text.WriteString(lines.Text() + "\n")
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if !ready {
			t.Fatalf("%s ended before it was killed:\n%s%s", what, text.String(), stderr.String())
		}
	}
	names := func() (names []string) {
		for o, err := range store.List(bare(t), "") {
			check(t, "List", err)
			names = append(names, o.Name)
		}
		return names
	}
	kill("backup", "")
	checkList(t, "objects", names())
	name := backup(t, fleet, store, nil)["acme"].Name
	checkList(t, "objects", names(), name)

	kill("restore", name)
	kill("restore", name)
	checkList(t, "tenants", list(t, fleet, pgtenancy.Provisioning, pgtenancy.Active, pgtenancy.Suspended, pgtenancy.Deleted), "acme")
	checkSame(t, db, pgtenancy.Tenant{}, was, acme)
	// The killed one's transaction may last until the server notices.
	checkSame(t, db, pgtenancy.Tenant{}, was, restore(t, fleet, store, name, &pgtenancy.RestoreOpts{Replace: true}))
	checkSame(t, db, pgtenancy.Tenant{}, was, restore(t, fleet, store, name, &pgtenancy.RestoreOpts{As: "twin"}))
}

func killedProcess(t *testing.T, what string) {
	conns := func(url string) *pgxpool.Config {
		c, err := pgxpool.ParseConfig(url)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	db := &fleetDB{app: os.Getenv("KILLED_ROLE")}
	fleet, err := pgtenancy.Open(t.Context(), pgtenancy.FleetConfig{
		PoolConfig: pgtenancy.PoolConfig{Conns: conns(os.Getenv("KILLED_APP"))}, Owner: conns(os.Getenv("KILLED_OWNER")), Migrations: shopFiles(db),
	})
	if err != nil {
		t.Fatal(err)
	}
	store := pausingStore{pgtenancy.DirStore(os.Getenv("KILLED_DIR"))}
	if what == "backup" {
		_, err = fleet.Backup(t.Context(), store, nil)
	} else {
		_, err = fleet.Restore(t.Context(), store, os.Getenv("KILLED_OBJECT"), &pgtenancy.RestoreOpts{Replace: true})
	}
	t.Fatalf("%s was not killed: %v", what, err)
}

// The rows of shared tables that are the tenant's.
func TestBackupShared(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	files := sqlFiles("shared/001_users.sql", `create table users (tenant_id text not null, id int generated always as identity primary key, name text);
		create table logins (tenant_id text not null, "user" int references users, n int);
		create table open (n int);
		grant select, insert, update, delete on users, logins to `+db.app+";\n"+
		pgtenancy.Policy{Table: pgx.Identifier{"public", "users"}, Role: db.app}.SQL()+pgtenancy.Policy{Table: pgx.Identifier{"public", "logins"}, Role: db.app}.SQL(),
		"tenant/001_orders.sql", "create table orders (owner int references public.users)")
	fleet := db.migrated(t, files)
	acme, globex := provision(t, fleet, "acme"), provision(t, fleet, "globex")
	for _, tenant := range []pgtenancy.Tenant{acme, globex} {
		for _, sql := range []string{"insert into users (name) values ('ann'), ('art'), ('amy')", "insert into logins (\"user\", n) select id, 1 from users", "insert into orders select id from users where name = 'ann'"} {
			_, err := fleet.Pool().Exec(as(t, tenant), sql)
			check(t, sql, err)
		}
	}
	all := func() []string {
		return db.texts(t, "select concat_ws(' ', u.tenant_id, u.id, name, n) from users u full join logins l on l.\"user\" = u.id order by 1")
	}
	was := all()
	store := pgtenancy.DirStore(t.TempDir())
	opts := &pgtenancy.BackupOpts{Tenants: []string{"acme"}, Shared: []pgx.Identifier{{"public", "users"}, {"public", "logins"}}}
	name := backup(t, fleet, store, opts)["acme"].Name
	m, err := pgtenancy.Verify(bare(t), store, name)
	check(t, "Verify", err)
	for _, table := range m.Shared {
		checkEqual(t, "rows of "+table.Name, table.Rows, 3)
	}
	for _, sql := range []string{"update users set name = 'x' where name = 'ann'", "delete from logins", "delete from users where name = 'art'", "insert into users (name) values ('new')"} {
		_, err := fleet.Pool().Exec(as(t, acme), sql)
		check(t, sql, err)
	}
	now := all()
	restore(t, fleet, store, name, &pgtenancy.RestoreOpts{As: "twin"})
	checkList(t, "shared rows, of no concern to another tenant", all(), now...)
	restore(t, fleet, store, name, &pgtenancy.RestoreOpts{Replace: true})
	checkList(t, "shared rows", all(), was...)

	elsewhere := newFleetDB(t)
	there := elsewhere.migrated(t, with(files, "shared/001_users.sql", strings.ReplaceAll(string(files["shared/001_users.sql"].Data), db.app, elsewhere.app)))
	got := restore(t, there, store, name, nil)
	_, err = there.Pool().Exec(as(t, got), "insert into users (name) values ('the first one here')")
	check(t, "an insert after the sequence's state", err)
	checkEqual(t, "users elsewhere", elsewhere.count(t, "select count(*) from users"), 4)

	for _, table := range []pgx.Identifier{{"users"}, {"pgtenancy", "tenants"}, {"public", "none"}, {"public", "open"}} {
		_, err := fleet.Backup(bare(t), store, &pgtenancy.BackupOpts{Shared: []pgx.Identifier{table}})
		checkInvalid(t, table.Sanitize(), err, "BackupOpts.Shared")
	}
}

// Rows of shared tables that are everybody's are no tenant's to restore.
func TestBackupSharedGlobal(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	fleet := db.migrated(t, sqlFiles("shared/001_units.sql", `create table units (id int generated always as identity primary key, tenant_id text, name text);
		grant select, insert, update, delete on units to `+db.app+";\n"+
		pgtenancy.Policy{Table: pgx.Identifier{"public", "units"}, Role: db.app, Global: true}.SQL(),
		"tenant/001_orders.sql", "create table orders (unit int)"))
	acme := provision(t, fleet, "acme")
	db.exec(t, "insert into units (name) values ('kilogram')")
	_, err := fleet.Pool().Exec(as(t, acme), "insert into units (name) values ('dozen')")
	check(t, "insert", err)
	store := pgtenancy.DirStore(t.TempDir())
	name := backup(t, fleet, store, &pgtenancy.BackupOpts{Shared: []pgx.Identifier{{"public", "units"}}})["acme"].Name
	_, err = fleet.Pool().Exec(as(t, acme), "update units set name = 'gross' where tenant_id is not null")
	check(t, "update", err)
	restore(t, fleet, store, name, &pgtenancy.RestoreOpts{Replace: true})
	checkList(t, "units", db.texts(t, "select concat_ws(' ', tenant_id, name) from units order by id"), "kilogram", "acme dozen")
}

// Random schemas and rows come back under another name.
func TestBackupRandom(t *testing.T) {
	t.Parallel()
	for seed := range uint64(2) {
		r := rand.New(rand.NewPCG(seed, 1))
		sql, rows := randomSchema(r)
		files := sqlFiles("tenant/001_random.sql", sql)
		id := fmt.Sprintf("t%d", seed)
		db := newFleetDB(t)
		fleet := db.migrated(t, files)
		tenant := provision(t, fleet, id)
		db.execTenant(t, tenant, rows)
		was := db.contents(t, tenant)
		store := pgtenancy.DirStore(t.TempDir())
		twin := restore(t, fleet, store, backup(t, fleet, store, nil)[id].Name, &pgtenancy.RestoreOpts{As: id + "-twin"})
		checkSame(t, db, tenant, was, twin)
		if t.Failed() {
			t.Fatalf("seed %d:\n%s\n%s", seed, sql, rows)
		}
	}
}

// randomSchema returns a schema and rows for it. Tables reference each other in any direction.
func randomSchema(r *rand.Rand) (sql, rows string) {
	types := []struct{ name, value string }{
		{"int", "i"},
		{"numeric", "i / 7.0"},
		{"text", "repeat('a,\"''\\' || chr(9) || chr(10), i)"},
		{"timestamptz", "'2020-01-01'::timestamptz + i * interval '1 hour'"},
		{"bytea", "decode(md5(i::text), 'hex')"},
		{"jsonb", "jsonb_build_object('n', i, 'x', null)"},
		{"kind", "(array['a', 'B c', '\\'])[1 + i % 3]::kind"},
		{"kind[]", "array['a', null]::kind[]"},
		{"float8", "case i % 4 when 0 then 'NaN' else 1 / (i + 1.0) end"},
		{"int4range", "int4range(i, i + 3)"},
		{"few", "i % 10"},
		{"text[]", "array[null, i::text, 'NULL']"},
		{"boolean", "i % 2 = 0"},
	}
	var b, in strings.Builder
	b.WriteString("create type kind as enum ('a', 'B c', '\\'); create domain few as int check (value < 10);\n")
	names := make([]string, 12+r.IntN(6))
	for i := range names {
		names[i] = pgx.Identifier{[]string{"t", "Table ", "where\"as", "é"}[r.IntN(4)] + fmt.Sprint(i)}.Sanitize()
	}
	in.WriteString("begin; set constraints all deferred;\n")
	var keys strings.Builder
	for i, name := range names {
		identity := []string{"", " generated always as identity", " generated by default as identity"}[r.IntN(3)]
		partition := r.IntN(4) == 0
		fmt.Fprintf(&b, "create table %s (id int%s primary key", name, identity)
		columns, values := "id", "i"
		for c := range r.IntN(6) {
			ty := types[r.IntN(len(types))]
			if partition && ty.name == "few" {
				continue
			}
			column := pgx.Identifier{fmt.Sprintf("c %d", c)}.Sanitize()
			fmt.Fprintf(&b, ", %s %s", column, ty.name)
			columns, values = columns+", "+column, values+", case when i % 5 > 0 then "+ty.value+" end"
		}
		if r.IntN(3) == 0 {
			b.WriteString(", gen int generated always as (id + 1) stored")
		}
		for k := range r.IntN(3) {
			to := r.IntN(len(names))
			fmt.Fprintf(&b, ", r%d int", k)
			columns, values = columns+fmt.Sprintf(", r%d", k), values+", 1 + (i * 7) % 30"
			fmt.Fprintf(&keys, "alter table %s add foreign key (r%d) references %s deferrable%s;\n", name, k, names[to], []string{"", " initially deferred"}[r.IntN(2)])
		}
		b.WriteString(")")
		if partition {
			part := func(s string) string { return pgx.Identifier{fmt.Sprintf("p%d %s", i, s)}.Sanitize() }
			fmt.Fprintf(&b, " partition by hash (id);\ncreate table %s partition of %s for values with (modulus 2, remainder 0);\ncreate table %s partition of %s for values with (modulus 2, remainder 1)",
				part("a"), name, part("b"), name)
		}
		b.WriteString(";\n")
		fmt.Fprintf(&in, "insert into %s (%s) overriding system value select %s from generate_series(1, 30) i;\n", name, columns, values)
		if identity != "" {
			fmt.Fprintf(&in, "select setval(pg_get_serial_sequence('%s', 'id'), %d);\n", strings.ReplaceAll(name, "'", "''"), 30+r.IntN(100))
		}
	}
	in.WriteString("commit;")
	return b.String() + keys.String(), in.String()
}
