package pgtenancy_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy"
)

// auditDB is a fleet with two tenants.
type auditDB struct {
	*fleetDB
	fleet        *pgtenancy.Fleet
	acme, globex pgtenancy.Tenant
}

func newAuditDB(t *testing.T, migrations fs.FS, opts ...fleetOption) *auditDB {
	t.Helper()
	db := &auditDB{fleetDB: newFleetDB(t)}
	db.fleet = db.migrated(t, migrations, opts...)
	db.acme, db.globex = provision(t, db.fleet, "acme"), provision(t, db.fleet, "globex")
	return db
}

// write writes events of a tenant with these actions.
func (db *auditDB) write(t *testing.T, tenant pgtenancy.Tenant, actions ...string) {
	t.Helper()
	var events []pgtenancy.AuditEvent
	for _, a := range actions {
		events = append(events, pgtenancy.AuditEvent{Tenant: tenant.ID(), Action: a})
	}
	if err := db.fleet.Audit().WriteAudit(bare(t), events); err != nil {
		t.Fatalf("WriteAudit: %v", err)
	}
}

func (db *auditDB) seal(t *testing.T) int64 {
	t.Helper()
	n, err := db.fleet.SealAudit(bare(t))
	if err != nil {
		t.Fatalf("SealAudit: %v", err)
	}
	return n
}

// events returns all that it yields.
func events(t *testing.T, seq iter.Seq2[pgtenancy.AuditEvent, error]) (all []pgtenancy.AuditEvent) {
	t.Helper()
	for e, err := range seq {
		if err != nil {
			t.Fatalf("read the audit log: %v", err)
		}
		all = append(all, e)
	}
	return all
}

func actions(t *testing.T, seq iter.Seq2[pgtenancy.AuditEvent, error]) (all []string) {
	t.Helper()
	for _, e := range events(t, seq) {
		all = append(all, e.Action)
	}
	return all
}

var oldestFirst = &pgtenancy.AuditReadOpts{Order: pgtenancy.OldestFirst}

// ofDatabase are the fields that the database gives.
var ofDatabase = cmp.Options{cmpopts.IgnoreFields(pgtenancy.AuditEvent{}, "ID", "Recorded"), cmpopts.EquateComparable(netip.Addr{})}

func TestAuditWriteAndRead(t *testing.T) {
	t.Parallel()
	db := newAuditDB(t, nil)
	want := pgtenancy.AuditEvent{
		Tenant: "acme", At: time.Date(2024, 2, 29, 12, 0, 0, 123456000, time.UTC), Actor: "ann", Action: "order.pay", Method: "POST", Route: "POST /orders/{id}",
		Status: 201, Duration: 1234567 * time.Microsecond, RequestID: "r-1", Client: netip.MustParseAddr("2001:db8::1"),
		Fields: map[string]any{"n": 1.5, "s": "ü", "deep": map[string]any{"a": []any{"x", nil, true}}},
	}
	odd := pgtenancy.AuditEvent{Tenant: "acme", Action: "nul \x00, bytes \xff", Fields: map[string]any{"nul": "\x00", "raw": json.RawMessage(`"\ud800"`)}}
	bad := pgtenancy.AuditEvent{Tenant: "acme", Fields: map[string]any{"f": func() {}}, Client: netip.MustParseAddr("::ffff:10.0.0.1")}
	log := pgtenancy.NewAuditLog(db.fleet.Pool())
	if err := log.WriteAudit(as(t, db.globex), []pgtenancy.AuditEvent{want, odd, {Tenant: "globex", Action: "other"}, bad, {Action: "nobody's"}}); err != nil {
		t.Fatal(err)
	}
	check(t, "no events", log.WriteAudit(bare(t), nil))

	got := events(t, log.Events(as(t, db.acme), oldestFirst))
	if len(got) != 3 {
		t.Fatalf("%d events: %v", len(got), got)
	}
	got[0].At = got[0].At.UTC()
	if diff := cmp.Diff(want, got[0], ofDatabase); diff != "" {
		t.Errorf("event (-want +got):\n%s", diff)
	}
	if time.Since(got[1].At).Abs() > testTimeout || got[1].Recorded.IsZero() || got[1].ID == 0 {
		t.Errorf("event without a time: %+v", got[1])
	}
	checkEqual(t, "action", got[1].Action, "nul \uFFFD, bytes \uFFFD")
	if diff := cmp.Diff(map[string]any{"nul": "\x00", "raw": "\uFFFD"}, got[1].Fields); diff != "" {
		t.Errorf("odd fields: %s", diff)
	}
	if s, _ := got[2].Fields["error"].(string); !strings.Contains(s, "func()") || got[2].Client != netip.MustParseAddr("10.0.0.1") {
		t.Errorf("event with a function: %+v", got[2])
	}

	checkList(t, "another tenant's", actions(t, log.Events(as(t, db.globex), nil)), "other")
	checkList(t, "without a tenant", actions(t, db.fleet.AuditEvents(bare(t), "", nil)), "nobody's")
	for _, err := range log.Events(bare(t), nil) {
		checkIs(t, "Events without a tenant", err, pgtenancy.ErrNoTenant)
	}
	checkEqual(t, "ordered IDs", got[0].ID < got[1].ID && got[1].ID < got[2].ID, true)
}

func TestAuditPages(t *testing.T) {
	t.Parallel()
	db := newAuditDB(t, nil)
	const n = 1203
	db.exec(t, fmt.Sprintf(`insert into pgtenancy.audit (xact, recorded_at, tenant_id, at, actor, action, method, route, status, duration_us, request_id)
		select 1, '2024-01-01 00:00+00'::timestamptz + i / 400 * interval '1 h', 'acme', now(), '', i::text, '', '', 0, 0, '' from generate_series(0, %d) i`, n-1))
	var want []string
	for i := range n {
		want = append(want, fmt.Sprint(i))
	}
	hour := func(h int) time.Time { return time.Date(2024, 1, 1, h, 0, 0, 0, time.UTC) }
	backwards := slices.Clone(want)
	slices.Reverse(backwards)
	for _, tt := range []struct {
		name string
		opts *pgtenancy.AuditReadOpts
		want []string
	}{
		{"newest first", nil, backwards},
		{"oldest first", oldestFirst, want},
		{"since", &pgtenancy.AuditReadOpts{Since: hour(1), Order: pgtenancy.OldestFirst}, want[400:]},
		{"until", &pgtenancy.AuditReadOpts{Until: hour(2), Order: pgtenancy.OldestFirst}, want[:800]},
		{"newest first, in between", &pgtenancy.AuditReadOpts{Since: hour(1), Until: hour(2)}, backwards[n-800 : n-400]},
		{"nothing", &pgtenancy.AuditReadOpts{Since: hour(4)}, nil},
	} {
		checkList(t, tt.name, actions(t, db.fleet.AuditEvents(bare(t), "acme", tt.opts)), tt.want...)
	}
	for range db.fleet.AuditEvents(bare(t), "acme", nil) {
		break // nothing is held then, as the end of the test sees
	}
}

func TestAuditAppendOnly(t *testing.T) {
	t.Parallel()
	db := newAuditDB(t, nil)
	db.write(t, db.acme, "one")
	db.write(t, db.globex, "two")
	partition := db.texts(t, `select tableoid::regclass::text from pgtenancy.audit limit 1`)[0]
	if partition == "pgtenancy.audit_default" {
		t.Error("this month has no partition")
	}
	const values = ` (xact, tenant_id, at, actor, action, method, route, status, duration_us, request_id) values (1, 'acme', now(), '', 'forged', '', '', 0, 0, '')`
	for _, table := range []string{"pgtenancy.audit", partition, "pgtenancy.audit_default", "pgtenancy.audit_seals", "pgtenancy.audit_anchors", "pgtenancy.audit_state"} {
		for _, sql := range []string{"delete from " + table, "truncate " + table, "drop table " + table} {
			_, err := db.fleet.Pool().Exec(as(t, db.acme), sql)
			checkCode(t, sql, err, "42501")
		}
	}
	for _, sql := range []string{
		"insert into pgtenancy.audit" + values, "insert into " + partition + values, "update pgtenancy.audit set action = 'forged'", "update pgtenancy.audit_state set base = 1",
		"select * from " + partition, "select pgtenancy.audit_xact()", "select nextval('pgtenancy.audit_id')",
		"select pgtenancy.append_audit_in('public', 'none', '{acme}', '{now}', '{\"\"}', '{forged}', '{\"\"}', '{\"\"}', '{0}', '{0}', '{\"\"}', '{\"\"}', '{\"\"}')",
	} {
		_, err := db.fleet.Pool().Exec(as(t, db.globex), sql)
		checkCode(t, sql, err, "42501")
	}
	_, err := db.fleet.Pool().CopyFrom(as(t, db.acme), pgx.Identifier{"pgtenancy", "audit"}, []string{"action"}, pgx.CopyFromRows([][]any{{"forged"}}))
	checkCode(t, "COPY", err, "42501")

	const append = "select pgtenancy.append_audit('{%s}', '{now}', '{\"\"}', '{forged}', '{\"\"}', '{\"\"}', '{0}', '{0}', '{\"\"}', '{\"\"}', '{\"\"}')"
	for _, other := range []string{"globex", `""`, "acme,globex", "null"} {
		_, err := db.fleet.Pool().Exec(as(t, db.acme), fmt.Sprintf(append, other))
		checkCode(t, "append for "+other, err, "42501")
	}
	for _, tt := range []struct {
		tenant pgtenancy.Tenant
		want   string
	}{{db.acme, "one"}, {db.globex, "two"}} {
		var seen string
		err := db.fleet.Pool().QueryRow(as(t, tt.tenant), "select string_agg(action, ' ') from pgtenancy.audit").Scan(&seen)
		check(t, "select", err)
		checkEqual(t, "seen by "+tt.tenant.ID(), seen, tt.want)
	}
	var n int
	check(t, "select", db.fleet.Pool().Shared().QueryRow(bare(t), "select count(*) from pgtenancy.audit").Scan(&n))
	checkEqual(t, "seen outside of a tenant's scope", n, 0)

	// The owner has to go out of its way, too.
	_, err = db.as(t, db.owner).Exec(bare(t), "update pgtenancy.audit set action = 'forged'")
	check(t, "update by the owner", err)
	checkEqual(t, "forged", db.count(t, "select count(*) from pgtenancy.audit where action = 'forged'"), 0)
}

// Default privileges are often set for all that a role will make.
func TestAuditDefaultPrivileges(t *testing.T) {
	t.Parallel()
	db := &auditDB{fleetDB: newFleetDB(t)}
	db.execAs(t, db.owner, fmt.Sprintf(`alter default privileges grant all on tables to %[1]s, public; alter default privileges grant all on sequences to %[1]s`, db.app))
	db.fleet = db.migrated(t, nil)
	db.acme = provision(t, db.fleet, "acme")
	db.write(t, db.acme, "one")
	for _, sql := range []string{"delete from pgtenancy.audit", "truncate pgtenancy.audit", "truncate pgtenancy.audit_default", "delete from pgtenancy.audit_seals", "select nextval('pgtenancy.audit_id')"} {
		_, err := db.fleet.Pool().Exec(as(t, db.acme), sql)
		checkCode(t, sql, err, "42501")
	}
}

func TestRecordAudit(t *testing.T) {
	t.Parallel()
	db := newAuditDB(t, notesFiles)
	pool := db.fleet.Pool()
	ctx := pgtenancy.WithActor(as(t, db.acme), "ann")
	record := func(ctx context.Context, tx pgx.Tx, e pgtenancy.AuditEvent) error {
		return pgtenancy.RecordAudit(ctx, tx, e)
	}
	check(t, "committed", pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "insert into notes (body) values ('x')"); err != nil {
			return err
		}
		nested, err := tx.Begin(ctx)
		if err != nil {
			return err
		}
		check(t, "in a savepoint", record(ctx, nested, pgtenancy.AuditEvent{Action: "undone"}))
		check(t, "rollback", nested.Rollback(ctx))
		checkIs(t, "another tenant's event", record(ctx, tx, pgtenancy.AuditEvent{Tenant: "globex"}), pgtenancy.ErrTenantMismatch)
		checkIs(t, "another tenant's context", record(as(t, db.globex), tx, pgtenancy.AuditEvent{}), pgtenancy.ErrTenantMismatch)
		if err := record(ctx, tx, pgtenancy.AuditEvent{Fields: map[string]any{"f": func() {}}}); err == nil {
			t.Error("no error for a field that cannot be written")
		}
		check(t, "without a tenant in the context", record(bare(t), tx, pgtenancy.AuditEvent{Tenant: "acme", Action: "paid", Actor: "art"}))
		return record(ctx, tx, pgtenancy.AuditEvent{Action: "made"})
	}))
	errUndo := errors.New("undo")
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		check(t, "rolled back", record(ctx, tx, pgtenancy.AuditEvent{Action: "rolled back"}))
		return errUndo
	})
	checkIs(t, "rollback", err, errUndo)
	got := events(t, db.fleet.Audit().Events(ctx, oldestFirst))
	want := []pgtenancy.AuditEvent{{Tenant: "acme", Action: "paid", Actor: "art"}, {Tenant: "acme", Action: "made", Actor: "ann"}}
	if diff := cmp.Diff(want, got, ofDatabase, cmpopts.IgnoreFields(pgtenancy.AuditEvent{}, "At")); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}

	check(t, "shared", pgx.BeginFunc(bare(t), pool.Shared(), func(tx pgx.Tx) error {
		checkIs(t, "without any tenant", record(bare(t), tx, pgtenancy.AuditEvent{Tenant: "acme"}), pgtenancy.ErrNoTenant)
		return record(as(t, db.globex), tx, pgtenancy.AuditEvent{Action: "from outside"})
	}))
	checkList(t, "globex", actions(t, db.fleet.Audit().Events(as(t, db.globex), nil)), "from outside")
}

// The hooks of Fleet have a transaction that is none of a Pool's.
func TestRecordAuditBeforeChange(t *testing.T) {
	t.Parallel()
	db := newAuditDB(t, nil, func(c *pgtenancy.FleetConfig) {
		c.BeforeChange = func(ctx context.Context, tx pgx.Tx, change pgtenancy.Change) error {
			return pgtenancy.RecordAudit(ctx, tx, pgtenancy.AuditEvent{Action: string(change.Kind)})
		}
	})
	if err := db.fleet.Suspend(pgtenancy.WithActor(bare(t), "support"), "acme", nil); err != nil {
		t.Fatal(err)
	}
	got := events(t, db.fleet.AuditEvents(bare(t), "acme", nil))
	if len(got) == 0 || got[0].Action != "suspend" || got[0].Actor != "support" {
		t.Errorf("events: %+v", got)
	}
}

// A service's shared tables may have another key than the ID, and its functions be called through another entry.
func TestAuditOtherSettings(t *testing.T) {
	t.Parallel()
	for _, entry := range []pgtenancy.Entry{pgtenancy.EntrySettings, pgtenancy.EntryFunction, pgtenancy.EntrySetLocal} {
		t.Run(fmt.Sprint(int(entry)), func(t *testing.T) {
			t.Parallel()
			db := newAuditDB(t, sqlFiles("tenant/001_notes.sql", "create table notes (body text);\n"+pgtenancy.AuditTable{Table: "notes"}.SQL()), func(c *pgtenancy.FleetConfig) {
				c.PoolConfig.Entry = entry
				c.PoolConfig.Setting = "my.tenant"
				c.PoolConfig.SettingValue = func(t pgtenancy.Tenant) string { return fmt.Sprintf("%x", t.ID()) }
				c.PoolConfig.Conns.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
			})
			db.write(t, db.globex, "other")
			db.write(t, db.acme, "one")
			ctx := as(t, db.acme)
			check(t, "tx", pgx.BeginFunc(ctx, db.fleet.Pool(), func(tx pgx.Tx) error {
				if err := pgtenancy.RecordAudit(ctx, tx, pgtenancy.AuditEvent{Action: "two"}); err != nil {
					return err
				}
				_, err := tx.Exec(ctx, "insert into notes values ('x')")
				return err
			}))
			checkList(t, "events", actions(t, db.fleet.Audit().Events(ctx, oldestFirst)), "one", "two", "insert")
		})
	}
}

// A customer must not see what another did who had the ID before.
func TestAuditReusedID(t *testing.T) {
	t.Parallel()
	db := newAuditDB(t, nil)
	db.write(t, db.acme, "before")
	if err := db.fleet.Delete(bare(t), "acme", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := db.fleet.Purge(bare(t), "acme", &pgtenancy.PurgeOpts{Force: true}); err != nil {
		t.Fatal(err)
	}
	db.acme = provision(t, db.fleet, "acme")
	db.write(t, db.acme, "after")
	checkList(t, "seen by the new tenant", actions(t, db.fleet.Audit().Events(as(t, db.acme), oldestFirst)), "after")
	checkList(t, "all", actions(t, db.fleet.AuditEvents(bare(t), "acme", oldestFirst)), "before", "after")
}

func TestAuditTable(t *testing.T) {
	t.Parallel()
	files := sqlFiles("tenant/001_notes.sql", "create table notes (id bigint primary key, body text, secret text);\n"+
		pgtenancy.AuditTable{Table: "notes", Except: []string{"secret"}}.SQL()+"insert into notes values (0, 'migrated', '');\n")
	if found, err := pgtenancy.Check(files, nil); err != nil || len(found) > 0 {
		t.Errorf("Check: %v, %v", found, err)
	}
	db := newAuditDB(t, files)
	ctx := pgtenancy.WithActor(as(t, db.acme), "ann")
	check(t, "changes", pgx.BeginFunc(ctx, db.fleet.Pool(), func(tx pgx.Tx) error {
		if err := pgtenancy.SetActor(ctx, tx); err != nil {
			return err
		}
		for _, sql := range []string{
			"insert into notes values (1, 'one', 'psst')",
			"update notes set body = 'eins', secret = 'pst' where id = 1",
			"update notes set secret = 'sh' where id = 1",
			"update notes set body = body",
			"delete from notes where id = 1",
		} {
			if _, err := tx.Exec(ctx, sql); err != nil {
				return fmt.Errorf("%s: %w", sql, err)
			}
		}
		return nil
	}))
	// By hand, without a scope.
	db.execAs(t, db.owner, `insert into tenant_acme.notes values (2, null, null); truncate tenant_acme.notes`)

	got := events(t, db.fleet.Audit().Events(ctx, oldestFirst))
	row := func(action, actor, role string, more ...any) pgtenancy.AuditEvent {
		fields := map[string]any{"table": "notes", "role": role}
		for i := 0; i < len(more); i += 2 {
			fields[more[i].(string)] = more[i+1]
		}
		return pgtenancy.AuditEvent{Tenant: "acme", Action: action, Actor: actor, Fields: fields}
	}
	type m = map[string]any
	want := []pgtenancy.AuditEvent{
		row("insert", "ann", db.app, "new", m{"id": 1., "body": "one"}),
		row("update", "ann", db.app, "old", m{"id": 1., "body": "one"}, "new", m{"body": "eins"}),
		row("delete", "ann", db.app, "old", m{"id": 1., "body": "eins"}),
		row("insert", "", db.owner, "new", m{"id": 2., "body": nil}),
		row("truncate", "", db.owner),
	}
	if diff := cmp.Diff(want, got, ofDatabase, cmpopts.IgnoreFields(pgtenancy.AuditEvent{}, "At")); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	checkEqual(t, "events of the other tenant", len(events(t, db.fleet.AuditEvents(bare(t), "globex", nil))), 0)

	// A migration that changes rows is one, too: it runs without row_security.
	migrated := db.open(t, with(files, "tenant/002_body.sql", "update notes set body = 'moved' where id = 0;"))
	migrate(t, migrated)
	checkList(t, "of a migration", actions(t, migrated.AuditEvents(bare(t), "globex", nil)), "update")
	db.fleet = migrated

	// What is loaded is no change.
	db.execAs(t, db.owner, `insert into tenant_acme.notes values (3, 'x', null)`)
	before := db.count(t, "select count(*) from pgtenancy.audit")
	if _, err := db.fleet.Clone(bare(t), "acme", "copy", nil); err != nil {
		t.Fatal(err)
	}
	store := newMemStore()
	restore(t, db.fleet, store, backup(t, db.fleet, store, nil)["acme"].Name, &pgtenancy.RestoreOpts{As: "restored"})
	checkEqual(t, "events of loading", db.count(t, "select count(*) from pgtenancy.audit")-before, 0)
	for _, id := range []string{"copy", "restored"} {
		tenant, err := db.fleet.Lookup(bare(t), pgtenancy.ByID(id))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := db.fleet.Pool().Exec(as(t, tenant), "update notes set body = 'y' where body = 'x'"); err != nil {
			t.Fatal(err)
		}
		checkList(t, id, actions(t, db.fleet.AuditEvents(bare(t), id, nil)), "update")
	}
}

func TestAuditTableInvalid(t *testing.T) {
	t.Parallel()
	for field, a := range map[string]pgtenancy.AuditTable{
		"AuditTable.Table":  {},
		"AuditTable.Except": {Table: "notes", Except: []string{""}},
	} {
		func() {
			defer func() {
				err, _ := recover().(error)
				checkInvalid(t, field, err, field)
			}()
			a.SQL()
		}()
	}
}

func TestAuditWithoutRegistry(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	fleet := db.open(t, nil)
	ctx := as(t, newTenant(t, "acme"))
	checkIs(t, "WriteAudit", fleet.Audit().WriteAudit(ctx, []pgtenancy.AuditEvent{{}}), pgtenancy.ErrRegistryOutdated)
	for _, err := range fleet.AuditEvents(ctx, "acme", nil) {
		checkIs(t, "AuditEvents", err, pgtenancy.ErrRegistryOutdated)
	}
	_, err := fleet.SealAudit(ctx)
	checkIs(t, "SealAudit", err, pgtenancy.ErrRegistryOutdated)
	_, err = fleet.VerifyAudit(ctx, nil)
	checkIs(t, "VerifyAudit", err, pgtenancy.ErrRegistryOutdated)
	_, err = fleet.TrimAudit(ctx, time.Now())
	checkIs(t, "TrimAudit", err, pgtenancy.ErrRegistryOutdated)
	checkIs(t, "KeepAudit", fleet.KeepAudit(ctx, 0), pgtenancy.ErrRegistryOutdated)
	checkInvalid(t, "KeepAudit", fleet.KeepAudit(ctx, -1), "KeepAudit's retain")
}

func TestAuditLogger(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	sink := pgtenancy.NewAuditLogger(slog.New(slog.NewJSONHandler(&b, nil)))
	check(t, "WriteAudit", sink.WriteAudit(bare(t), []pgtenancy.AuditEvent{
		{Tenant: "acme", Method: "GET", Status: 200, Client: netip.MustParseAddr("10.0.0.1"), Fields: map[string]any{"k": "v"}},
		{Action: "login"},
	}))
	var first map[string]any
	check(t, "JSON", json.Unmarshal(bytes.SplitN(b.Bytes(), []byte("\n"), 2)[0], &first))
	delete(first, "time")
	want := map[string]any{"level": "INFO", "msg": "audit", "tenant": "acme", "method": "GET", "status": 200., "client": "10.0.0.1", "fields": map[string]any{"k": "v"}}
	if diff := cmp.Diff(want, first); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
	checkEqual(t, "lines", bytes.Count(b.Bytes(), []byte("\n")), 2)
}
