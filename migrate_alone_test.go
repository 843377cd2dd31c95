package pgtenancy_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy"
)

// indexFiles build an index concurrently, between statements and files that are ordinary.
var indexFiles = sqlFiles(
	"shared/001_runs.sql", "create table runs (what text, schema text default current_schema());",
	"tenant/001_notes.sql", "create table notes (id int primary key, body text); insert into runs values ('1');",
	"tenant/002_index.sql", "insert into runs values ('2 before');\ncreate unique index concurrently notes_body on notes (body);\ninsert into runs values ('2 after');",
	"tenant/003_more.sql", "alter table notes add more text; insert into runs values ('3');",
	"tenant/004_vacuum.sql", "vacuum notes;",
	"tenant/005_last.sql", "create table last (); insert into runs values ('5');",
)

// checkRuns checks that each statement that counts itself ran once for each tenant, with none that is under way.
func (db *fleetDB) checkRuns(t *testing.T, tenants int, what ...string) {
	t.Helper()
	checkEqual(t, "runs", db.count(t, "select count(*) from runs"), tenants*len(what))
	checkList(t, "what ran", db.texts(t, "select distinct what from runs order by 1"), what...)
	checkEqual(t, "tenants and runs", db.count(t, "select count(*) from (select distinct what, schema from runs) x"), tenants*len(what))
	checkEqual(t, "unfinished", db.count(t, "select count(*) from pgtenancy.unfinished"), 0)
}

// checkIndexes checks that all tenants have a valid index, and no other that is invalid.
func (db *fleetDB) checkIndexes(t *testing.T, tenants int, name string) {
	t.Helper()
	checkEqual(t, "indexes", db.count(t, "select count(*) from pg_index i join pg_class c on c.oid = indexrelid where indisvalid and indisready and relname = '"+name+"'"), tenants)
	db.checkNoneInvalid(t)
}

// checkNoneInvalid looks at schemas that anybody but a superuser may drop an index in.
func (db *fleetDB) checkNoneInvalid(t *testing.T) {
	t.Helper()
	checkList(t, "invalid indexes", db.texts(t, "select indexrelid::regclass::text from pg_index join pg_class c on c.oid = indexrelid where not indisvalid and relnamespace <> 'pg_toast'::regnamespace"))
}

func TestMigrateAlone(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	fleet := db.migrated(t, indexFiles)
	provision(t, fleet, "acme")
	db.makeTenants(t, 3)
	report := migrate(t, fleet)
	checkEqual(t, "tenants", report.Tenants, 3)
	checkEqual(t, "applied", report.Applied, 15)
	db.checkRuns(t, 4, "1", "2 after", "2 before", "3", "5")
	db.checkIndexes(t, 4, "notes_body")
	checkList(t, "versions", db.texts(t, "select distinct version || ' ' || digest from pgtenancy.tenants"), db.texts(t, "select version || ' ' || digest from pgtenancy.tenants where id = 'acme'")...)
	checkEqual(t, "history", db.count(t, "select count(*) from pgtenancy.migrations where tenant_id <> ''"), 20)
	checkEqual(t, "applied again", migrate(t, fleet).Applied, 0)

	// The session was the tenant's; nobody has it now, nor its lock.
	checkEqual(t, "advisory locks", db.count(t, "select count(*) from pg_locks l join pg_database d on d.oid = l.database where locktype = 'advisory' and datname = current_database()"), 0)
}

func TestMigrateAloneShared(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	files := sqlFiles(
		"shared/001_users.sql", "create table users (name text);",
		"shared/002_index.sql", "create unique index concurrently users_name on users (name);",
		"shared/003_more.sql", "alter table users add more text;",
	)
	db.migrated(t, sqlFiles("shared/001_users.sql", "create table users (name text);"))
	db.exec(t, "insert into users values ('x'), ('x')")
	fleet := db.open(t, files)
	_, err := fleet.Migrate(bare(t), nil)
	checkCode(t, "Migrate", err, "23505")
	checkEqual(t, "indexes", db.count(t, "select count(*) from pg_index i join pg_class c on c.oid = indexrelid where relname = 'users_name'"), 0)
	status, err := fleet.Status(bare(t))
	if err != nil || len(status.Unfinished) != 1 || status.Unfinished[0].Tenant != "" || status.Unfinished[0].Version != 2 {
		t.Errorf("status %+v, %v", status, err)
	}
	db.exec(t, "delete from users")
	var wg sync.WaitGroup
	for range 3 { // one does it, the others wait
		fleet := db.open(t, files)
		wg.Go(func() {
			_, err := fleet.Migrate(bare(t), nil)
			check(t, "Migrate", err)
		})
	}
	wg.Wait()
	db.checkIndexes(t, 1, "users_name")
	checkList(t, "history", db.texts(t, "select name from pgtenancy.migrations order by version"), "001_users", "002_index", "003_more")
	checkEqual(t, "unfinished", db.count(t, "select count(*) from pgtenancy.unfinished"), 0)
}

// An index that cannot be built leaves nothing behind, and is built when the rows are mended.
func TestMigrateAloneFails(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	fleet := db.migrated(t, indexFiles)
	db.makeTenants(t, 3)
	_, err := fleet.Migrate(bare(t), &pgtenancy.MigrateOpts{Target: 1})
	check(t, "Migrate", err)
	db.exec(t, "insert into tenant_t00002.notes values (1, 'x'), (2, 'x')")
	for range 2 {
		_, err = fleet.Migrate(bare(t), nil)
		checkCode(t, "Migrate", err, "23505")
		var failed *pgtenancy.MigrationError
		if !errors.As(err, &failed) || failed.Tenant != "t00002" || failed.File != "tenant/002_index.sql" || failed.Line != 2 {
			t.Errorf("error %v, want one at tenant/002_index.sql:2", err)
		}
		db.checkIndexes(t, 2, "notes_body")
		checkEqual(t, "statements of its that ran", db.count(t, "select count(*) from runs where schema = 'tenant_t00002'"), 2)
	}
	status, err := fleet.Status(bare(t))
	if err != nil || len(status.Unfinished) != 1 || status.Unfinished[0].Tenant != "t00002" || status.Unfinished[0].Version != 2 || status.Unfinished[0].Began.IsZero() {
		t.Errorf("status %+v, %v", status, err)
	}
	db.exec(t, "delete from tenant_t00002.notes where id = 2")
	checkEqual(t, "applied", migrate(t, fleet).Applied, 4)
	db.checkRuns(t, 3, "1", "2 after", "2 before", "3", "5")
	db.checkIndexes(t, 3, "notes_body")
}

// aloneTests are statements that cannot run in a transaction, what keeps them from getting on, and the state after them.
var aloneTests = []struct {
	name    string
	before  string // the migration before
	sql     string
	blocker string // with the schema
	check   string // selects true when all is done
}{
	{
		"CREATE INDEX", "create table notes (body text);", "create index concurrently i on notes (body)",
		"insert into %s.notes values ('x')",
		"select count(*) = 1 from pg_index x join pg_class c on c.oid = indexrelid where relname = 'i' and relnamespace = '%s'::regnamespace and indisvalid",
	},
	{
		"CREATE INDEX with all that belongs to it", `create table "Notes; 1" (body text);`, `create unique index concurrently if not exists "I ""x" on only "Notes; 1" using btree (body)`,
		`insert into %s."Notes; 1" values ('x')`,
		`select count(*) = 1 from pg_index x join pg_class c on c.oid = indexrelid where relname = 'I "x' and relnamespace = '%s'::regnamespace and indisvalid`,
	},
	{
		"DROP INDEX", "create table notes (body text); create index i on notes (body);", "drop index concurrently i",
		"insert into %s.notes values ('x')",
		"select count(*) = 0 from pg_class where relname = 'i' and relnamespace = '%s'::regnamespace",
	},
	{
		"REINDEX INDEX", "create table notes (body text); create index i on notes (body);", "reindex index concurrently i",
		"insert into %s.notes values ('x')",
		"select count(*) = 1 from pg_index x join pg_class c on c.oid = indexrelid where relname ~ '^i' and relnamespace = '%s'::regnamespace and indisvalid",
	},
	{
		"REINDEX TABLE", "create table notes (body text); create index i on notes (body); create index j on notes (body, body);", "reindex table concurrently notes",
		"insert into %s.notes values ('x')",
		"select count(*) = 2 from pg_index x join pg_class c on c.oid = indexrelid where relnamespace = '%s'::regnamespace and indisvalid",
	},
	{
		"DETACH PARTITION", "create table notes (n int) partition by range (n); create table one partition of notes for values from (0) to (9);",
		"alter table notes detach partition one concurrently",
		"select * from %s.notes",
		"select count(*) = 0 from pg_inherits i join pg_class c on c.oid = inhparent where relnamespace = '%s'::regnamespace",
	},
	{
		"VACUUM", "create table notes (body text);", "vacuum (analyze) notes",
		"lock table %s.notes in share update exclusive mode",
		"select '%s' <> ''",
	},
}

// killAt waits until a statement is blocked and ends it by a function of PostgreSQL's, with the session or without.
func (db *fleetDB) killAt(t *testing.T, text, function string) {
	t.Helper()
	db.awaitBlocked(t, text, true)
	checkEqual(t, function, db.count(t, fmt.Sprintf(`select count(*) from (select %s(pid) from pg_stat_activity
		where datname = current_database() and pid <> pg_backend_pid() and wait_event_type = 'Lock' and query ilike '%%%s%%') x`, function, text)), 1)
}

// A statement's session is killed, or the statement is cancelled, when it has got half way. It is finished by the next run.
func TestMigrateAloneKilled(t *testing.T) {
	t.Parallel()
	for _, tt := range aloneTests {
		for _, function := range []string{"pg_terminate_backend", "pg_cancel_backend"} {
			t.Run(tt.name+" "+function, func(t *testing.T) {
				t.Parallel()
				db := newFleetDB(t)
				fleet := db.migrated(t, sqlFiles(
					"shared/001_runs.sql", "create table runs (what text, schema text default current_schema());",
					"tenant/001_before.sql", tt.before,
					"tenant/002_alone.sql", "insert into runs values ('before');\n"+tt.sql+";\ninsert into runs values ('after');",
					"tenant/003_after.sql", "insert into runs values ('last');",
				))
				provision(t, fleet, "acme") // in the plain form
				checkList(t, tt.name+" in Provision", db.texts(t, fmt.Sprintf("select ("+tt.check+")::text", "tenant_acme")), "true")
				db.makeTenants(t, 1)
				_, err := fleet.Migrate(bare(t), &pgtenancy.MigrateOpts{Target: 1})
				check(t, "Migrate", err)
				blocker := db.admin(t)
				if _, err := blocker.Exec(bare(t), "begin; "+fmt.Sprintf(tt.blocker, "tenant_t00001")); err != nil {
					t.Fatal(err)
				}
				var wg sync.WaitGroup
				wg.Go(func() {
					_, err := fleet.Migrate(bare(t), nil)
					var failed *pgtenancy.MigrationError
					if !errors.As(err, &failed) || failed.Tenant != "t00001" || failed.File != "tenant/002_alone.sql" || failed.Line != 2 {
						t.Errorf("error %v, want one at tenant/002_alone.sql:2", err)
					}
				})
				verb, _, _ := strings.Cut(tt.sql, " ")
				db.killAt(t, verb, function)
				if function == "pg_cancel_backend" {
					// What it left may be cleaned up at once, or wait for the blocker too.
					blocker.Exec(bare(t), "commit")
				}
				wg.Wait()
				status, err := fleet.Status(bare(t))
				if err != nil || len(status.Unfinished) != 1 || status.Unfinished[0].Version != 2 {
					t.Errorf("status %+v, %v", status, err)
				}
				blocker.Exec(bare(t), "commit")
				migrate(t, fleet)
				checkList(t, tt.name, db.texts(t, fmt.Sprintf("select ("+tt.check+")::text", "tenant_t00001")), "true")
				db.checkNoneInvalid(t)
				db.checkRuns(t, 2, "after", "before", "last")
			})
		}
	}
}

// cutConns are connections of a client that vanishes: PostgreSQL is not told, and goes on with what it is at.
type cutConns struct {
	mu    sync.Mutex
	conns []net.Conn
	gone  bool // no new ones either, which pgx would ask PostgreSQL with to cancel the statement
}

func (c *cutConns) option(cfg *pgtenancy.FleetConfig) {
	cfg.Owner.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.gone {
			return nil, net.ErrClosed
		}
		conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
		if err == nil {
			c.conns = append(c.conns, conn)
		}
		return conn, err
	}
}

func (c *cutConns) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gone = true
	for _, conn := range c.conns {
		conn.Close()
	}
}

// countingTracer counts the statements that have a text.
type countingTracer struct {
	text string
	mu   sync.Mutex
	n    int
}

func (c *countingTracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	if strings.Contains(data.SQL, c.text) {
		c.n++
	}
	return ctx
}

func (c *countingTracer) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func (c *countingTracer) option(cfg *pgtenancy.FleetConfig) { cfg.Owner.ConnConfig.Tracer = c }

func (c *countingTracer) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

// The client of an index build is gone, and its backend goes on. The next process waits for it.
func TestMigrateAloneOrphan(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	var client cutConns
	fleet := db.migrated(t, indexFiles, client.option, func(c *pgtenancy.FleetConfig) {
		c.Owner.ConnConfig.RuntimeParams["lock_timeout"] = "50ms" // which is not for a statement that waits in nobody's way
	})
	db.makeTenants(t, 2)
	_, err := fleet.Migrate(bare(t), &pgtenancy.MigrateOpts{Target: 1})
	check(t, "Migrate", err)
	blocker := db.admin(t)
	if _, err := blocker.Exec(bare(t), "begin; insert into tenant_t00001.notes values (1, 'x')"); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := fleet.Migrate(bare(t), &pgtenancy.MigrateOpts{Tenants: []string{"t00001"}}); err == nil {
			t.Error("no error without a connection")
		}
	})
	db.awaitBlocked(t, "create unique index", true)
	client.cut()
	wg.Wait()
	db.awaitBlocked(t, "create unique index", true)
	index := "select oid::text from pg_class where relname = 'notes_body' and relnamespace = 'tenant_t00001'::regnamespace"
	building := db.texts(t, index)
	checkEqual(t, "indexes that are being built", len(building), 1)

	tries := countingTracer{text: "pg_try_advisory_lock"}
	next := db.open(t, indexFiles, tries.option)
	wg.Go(func() {
		report, err := next.Migrate(bare(t), nil)
		check(t, "Migrate", err)
		checkEqual(t, "tenants", report.Tenants, 2)
	})
	await(t, "tries while the orphan works", func() bool { return tries.count() >= 4 })
	checkEqual(t, "the version of the orphan's tenant", db.count(t, "select version from pgtenancy.tenants where id = 't00001'"), 1)
	blocker.Exec(bare(t), "commit")
	wg.Wait()
	checkList(t, "the index that the orphan built", db.texts(t, index), building...)
	db.checkIndexes(t, 2, "notes_body")
	db.checkRuns(t, 2, "1", "2 after", "2 before", "3", "5")
}

// halfDone returns a database with one tenant that has had the first statement of the second file, which failed at the second.
func halfDone(t *testing.T, dir string, files fstest.MapFS) *fleetDB {
	t.Helper()
	db := newFleetDB(t)
	db.migrated(t, sqlFiles("tenant/001_a.sql", "create table notes (body text);", "shared/001_a.sql", "create table users (body text); create table runs (what text, schema text default current_schema());"))
	db.makeTenants(t, 1)
	_, err := db.open(t, files).Migrate(bare(t), &pgtenancy.MigrateOpts{Target: 1})
	if dir == "tenant" {
		check(t, "Migrate", err)
		_, err = db.open(t, files).Migrate(bare(t), nil)
	}
	checkCode(t, "the file that fails", err, "22012")
	checkEqual(t, "unfinished", db.count(t, "select count(*) from pgtenancy.unfinished"), 1)
	return db
}

// A file is edited when it was half done.
func TestMigrateAloneEdited(t *testing.T) {
	t.Parallel()
	const half = "-- pgtenancy: no transaction\ninsert into runs values ('a');\nselect 1 / 0;\n"
	tests := []struct {
		name, sql string
		ok        bool
		ran       []string
	}{
		{"what did not run", "-- pgtenancy: no transaction\ninsert into runs values ('a');\nselect 1;\ninsert into runs values ('b')", true, []string{"a", "b"}},
		{"comments", "-- pgtenancy: no transaction\n\n-- mended\ninsert into runs values ('a');", true, []string{"a"}},
		{"what ran", "-- pgtenancy: no transaction\ninsert into runs values ('A');\nselect 1;", false, nil},
		{"what ran is gone", "-- pgtenancy: no transaction\nselect 1;", false, nil},
		{"it is a transaction now", "insert into runs values ('a');\nselect 1;", false, nil},
	}
	for _, dir := range []string{"tenant", "shared"} {
		files := with(sqlFiles("tenant/001_a.sql", "create table notes (body text);", "shared/001_a.sql", "create table users (body text); create table runs (what text, schema text default current_schema());"))
		for _, tt := range tests {
			t.Run(dir+": "+tt.name, func(t *testing.T) {
				t.Parallel()
				db := halfDone(t, dir, with(files, dir+"/002_b.sql", half))
				_, err := db.open(t, with(files, dir+"/002_b.sql", tt.sql)).Migrate(bare(t), nil)
				if tt.ok {
					check(t, "Migrate", err)
					checkList(t, "what ran", db.texts(t, "select what from runs order by 1"), tt.ran...)
					return
				}
				checkIs(t, "Migrate", err, pgtenancy.ErrMigrationChanged)
				if !strings.Contains(fmt.Sprint(err), dir+"/002_b.sql") {
					t.Errorf("error does not name the file: %v", err)
				}
				checkList(t, "what ran", db.texts(t, "select what from runs"), "a")
				// With the file as it was, it goes on.
				_, err = db.open(t, with(files, dir+"/002_b.sql", strings.Replace(half, "/ 0", "/ 1", 1))).Migrate(bare(t), nil)
				check(t, "Migrate", err)
				checkList(t, "what ran", db.texts(t, "select what from runs"), "a")
			})
		}
	}
}

// What is unfinished has to be finished before anything else, or Baseline forgets it.
func TestMigrateAloneInTheWay(t *testing.T) {
	t.Parallel()
	half := sqlFiles(
		"shared/001_runs.sql", "create table runs (what text, schema text default current_schema());",
		"tenant/001_a.up.sql", "create table notes (body text);", "tenant/001_a.down.sql", "drop table notes;",
		"tenant/002_b.up.sql", "-- pgtenancy: no transaction\ninsert into runs values ('a');\nselect 1 / 0;\n", "tenant/002_b.down.sql", "select 1")
	db := newFleetDB(t)
	fleet := db.migrated(t, half)
	db.makeTenants(t, 1)
	_, err := fleet.Migrate(bare(t), nil)
	checkCode(t, "Migrate", err, "22012")
	_, err = fleet.MigrateDown(bare(t), 0, nil)
	checkIs(t, "MigrateDown", err, pgtenancy.ErrMigrationChanged)
	checkEqual(t, "version", db.done(t, 1), 1)

	n, err := fleet.Baseline(bare(t), 1, nil)
	check(t, "Baseline", err)
	status, err := fleet.Status(bare(t))
	if err != nil || len(status.Unfinished) != 0 {
		t.Errorf("Baseline recorded %d tenants; status %+v, %v", n, status, err)
	}
	report, err := fleet.MigrateDown(bare(t), 0, nil)
	check(t, "MigrateDown", err)
	checkEqual(t, "tenants", report.Tenants, 1)
}

// Indexes of others are theirs.
func TestMigrateAloneForeignIndex(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	files := sqlFiles("tenant/001_a.sql", "create table notes (body text); create table other (body text);", "tenant/002_b.sql", "create index concurrently i on notes (body);")
	fleet := db.migrated(t, files)
	db.makeTenants(t, 1)
	_, err := fleet.Migrate(bare(t), &pgtenancy.MigrateOpts{Target: 1})
	check(t, "Migrate", err)
	db.exec(t, "create index i on tenant_t00001.notes (body)")
	for range 2 {
		_, err = fleet.Migrate(bare(t), nil)
		checkCode(t, "Migrate", err, "42P07")
		checkEqual(t, "indexes", db.count(t, "select count(*) from pg_class where relname = 'i'"), 1)
	}

	// IF NOT EXISTS would be content with one that is invalid.
	db.exec(t, "update pg_index set indisvalid = false where indexrelid = 'tenant_t00001.i'::regclass")
	ifNot := db.open(t, with(files, "tenant/002_b.sql", "create index concurrently if not exists i on notes (body);"))
	_, err = ifNot.Migrate(bare(t), nil)
	if err == nil || !strings.Contains(err.Error(), "invalid") {
		t.Errorf("error %v, want one about an invalid index", err)
	}
	checkEqual(t, "version", db.done(t, 2), 0)
	db.exec(t, "drop index tenant_t00001.i")
	migrate(t, ifNot)
	db.checkIndexes(t, 1, "i")
}

func TestMigrateAloneDown(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	fleet := db.migrated(t, sqlFiles(
		"tenant/001_a.up.sql", "create table notes (body text);", "tenant/001_a.down.sql", "drop table notes;",
		"tenant/002_b.up.sql", "create index concurrently i on notes (body);", "tenant/002_b.down.sql", "drop index concurrently i;\nselect 1;",
		"tenant/003_c.up.sql", "create table c ();", "tenant/003_c.down.sql", "drop table c;"))
	db.makeTenants(t, 2)
	provision(t, fleet, "acme")
	for range 2 {
		migrate(t, fleet)
		db.checkIndexes(t, 3, "i")
		report, err := fleet.MigrateDown(bare(t), 0, nil)
		check(t, "MigrateDown", err)
		checkEqual(t, "tenants", report.Tenants, 3)
		checkEqual(t, "applied", report.Applied, 9)
		checkEqual(t, "tables", db.count(t, "select count(*) from pg_tables where schemaname like 'tenant_%'"), 0)
		checkEqual(t, "history", db.count(t, "select count(*) from pgtenancy.migrations"), 0)
		checkList(t, "standings", db.texts(t, "select distinct version || ' ' || digest from pgtenancy.tenants"), "0 0")
	}
}

// What is not there to be dropped or detached is an error each time, and not taken for done by the next run.
func TestMigrateAloneMissing(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, sql, code, mend string }{
		{"an index", "drop index concurrently i", "42704", "create index i on %[1]s.two (n)"},
		{"a table", "alter table notes detach partition one concurrently", "42P01", "create table %[1]s.one partition of %[1]s.notes for values from (0) to (9)"},
		{"a partition", "alter table notes detach partition two concurrently", "42P01", "alter table %[1]s.notes attach partition %[1]s.two for values from (0) to (9)"},
		{"an index to build anew", "reindex index concurrently i", "42P01", "create index i on %[1]s.two (n)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			db := newFleetDB(t)
			fleet := db.migrated(t, sqlFiles("tenant/001_a.sql", "create table notes (n int) partition by range (n); create table two (n int);", "tenant/002_b.sql", tt.sql))
			db.makeTenants(t, 1)
			for range 2 {
				_, err := fleet.Migrate(bare(t), nil)
				checkCode(t, tt.sql, err, tt.code)
			}
			db.execAs(t, db.owner, fmt.Sprintf(tt.mend, "tenant_t00001"))
			checkEqual(t, "applied", migrate(t, fleet).Applied, 1)
		})
	}
}
