package pgtenancy_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy"
)

// verified is VerifyAudit of a log that is whole.
func (db *auditDB) verified(t *testing.T, heads ...pgtenancy.AuditHead) *pgtenancy.AuditReport {
	t.Helper()
	report, err := db.fleet.VerifyAudit(bare(t), &pgtenancy.AuditVerifyOpts{Heads: heads})
	if err != nil {
		t.Fatalf("VerifyAudit: %v", err)
	}
	return report
}

// checkReport checks numbers of a report.
func checkReport(t *testing.T, what string, r *pgtenancy.AuditReport, rows, unsealed, trimmed int64) {
	t.Helper()
	if r.Rows != rows || r.Unsealed != unsealed || r.Trimmed != trimmed {
		t.Errorf("%s: %d sealed, %d not, %d trimmed; want %d, %d, %d", what, r.Rows, r.Unsealed, r.Trimmed, rows, unsealed, trimmed)
	}
}

// sealAll seals until nothing is left. A transaction of another database that ends while it looks is waited for, too, and so is
// autovacuum.
func (db *auditDB) sealAll(t *testing.T) {
	t.Helper()
	await(t, "all events to be sealed", func() bool {
		db.seal(t)
		return db.verified(t).Unsealed == 0
	})
}

func TestAuditSeal(t *testing.T) {
	t.Parallel()
	db := newAuditDB(t, nil)
	checkReport(t, "empty", db.verified(t), 0, 0, 0)
	db.write(t, db.acme, "a", "b")
	db.write(t, db.globex, "c")
	unsealed := db.verified(t)
	checkReport(t, "unsealed", unsealed, 0, 3, 0)
	checkEqual(t, "unsealed since", unsealed.UnsealedSince.Equal(events(t, db.fleet.AuditEvents(bare(t), "acme", oldestFirst))[0].Recorded), true)
	db.sealAll(t)
	first := db.verified(t)
	checkReport(t, "sealed", first, 3, 0, 0)
	checkEqual(t, "unsealed since", first.UnsealedSince.IsZero(), true)
	if len(first.Heads) != 2 || first.Heads[0].Tenant != "acme" || first.Heads[0].Rows != 2 || first.Heads[1].Rows != 1 || len(first.Heads[0].Hash) != 64 {
		t.Fatalf("heads: %+v", first.Heads)
	}
	checkEqual(t, "sealed twice", db.seal(t), 0)
	if diff := cmp.Diff(first.Heads, db.verified(t).Heads); diff != "" {
		t.Errorf("heads changed: %s", diff)
	}
	db.write(t, db.acme, "d")
	db.sealAll(t)
	report := db.verified(t, first.Heads...)
	checkReport(t, "sealed again", report, 4, 0, 0)
	checkEqual(t, "globex's head", report.Heads[1], first.Heads[1])
	checkEqual(t, "acme's seals", report.Heads[0].Seq > first.Heads[0].Seq, true)
}

// Transactions that are open elsewhere on the server do not matter.
func TestAuditSealOtherDatabase(t *testing.T) {
	t.Parallel()
	db, other := newAuditDB(t, nil), newFleetDB(t)
	tx, err := other.admin(t).Begin(bare(t))
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	if _, err := tx.Exec(bare(t), "select pg_current_xact_id()"); err != nil {
		t.Fatal(err)
	}
	db.write(t, db.acme, "a")
	db.sealAll(t)
}

// Many events are sealed in several transactions, none of which ends between two tenants or two transactions on purpose.
func TestAuditSealMany(t *testing.T) {
	t.Parallel()
	db := newAuditDB(t, nil)
	db.exec(t, `insert into pgtenancy.audit (xact, tenant_id, at, actor, action, method, route, status, duration_us, request_id)
		select pgtenancy.audit_xact(), case when i % 3 = 0 then 'globex' else 'acme' end, now(), '', '', '', '', 0, 0, '' from generate_series(1, 25000) i`)
	var wg sync.WaitGroup
	for range 3 { // at once: one seals, and the others find nothing
		wg.Go(func() {
			_, err := db.fleet.SealAudit(bare(t))
			check(t, "SealAudit", err)
		})
	}
	wg.Wait()
	db.sealAll(t)
	report := db.verified(t)
	checkReport(t, "many", report, 25000, 0, 0)
	checkEqual(t, "rows of acme", report.Heads[0].Rows, 16667)
}

// What commits late is sealed late, and what was written by many at once is sealed whole.
func TestAuditSealLateCommit(t *testing.T) {
	t.Parallel()
	db := newAuditDB(t, nil, func(c *pgtenancy.FleetConfig) { c.PoolConfig.Conns.MaxConns = 10 })
	ctx := as(t, db.acme)
	tx, err := db.fleet.Pool().Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(ctx)
	check(t, "late", pgtenancy.RecordAudit(ctx, tx, pgtenancy.AuditEvent{Action: "late"}))

	const writers, each = 4, 20
	var wg sync.WaitGroup
	for w := range writers {
		tenant := []pgtenancy.Tenant{db.acme, db.globex}[w%2]
		wg.Go(func() {
			for range each {
				check(t, "write", pgx.BeginFunc(as(t, tenant), db.fleet.Pool(), func(tx pgx.Tx) error {
					return pgtenancy.RecordAudit(as(t, tenant), tx, pgtenancy.AuditEvent{Action: "x"})
				}))
			}
		})
	}
	wg.Go(func() {
		for range each {
			_, err := db.fleet.SealAudit(bare(t))
			check(t, "SealAudit", err)
		}
	})
	wg.Wait() // none of them waited for the transaction that is open
	checkEqual(t, "sealed past a transaction that is open", db.seal(t), 0)
	checkReport(t, "before", db.verified(t), 0, writers*each, 0)
	check(t, "commit", tx.Commit(ctx))
	db.sealAll(t)
	checkReport(t, "after", db.verified(t), writers*each+1, 0, 0)
}

// tampered is a way to change the log behind its back, with a log of acme's a to f in three seals, and globex's g.
type tampered struct {
	name string
	sql  string
	want []pgtenancy.AuditRule // distinct, of what is found
	head bool                  // only with the head from before
}

func TestVerifyAuditTampering(t *testing.T) {
	t.Parallel()
	db := newAuditDB(t, nil)
	for _, two := range []string{"a b", "c d", "e f"} {
		db.write(t, db.acme, strings.Fields(two)...)
		db.sealAll(t)
	}
	db.write(t, db.globex, "g")
	db.sealAll(t)
	checkEqual(t, "seals", db.count(t, "select count(*) from pgtenancy.audit_seals"), 4)
	before := db.verified(t).Heads
	const insert = `insert into pgtenancy.audit (xact, tenant_id, at, actor, action, method, route, status, duration_us, request_id)
		select xact, 'acme', at, '', 'forged', '', '', 0, 0, '' from pgtenancy.audit where action = 'c';`
	removed, changed, added, sealed, missing := pgtenancy.AuditRowRemoved, pgtenancy.AuditRowChanged, pgtenancy.AuditRowAdded, pgtenancy.AuditSealChanged, pgtenancy.AuditHeadMissing
	tests := []tampered{
		{name: "nothing"},
		{"changed", "update pgtenancy.audit set actor = 'nobody' where action = 'c'", broken(changed), false},
		{"changed fields", "update pgtenancy.audit set fields = '{}' where action = 'c'", broken(changed), false},
		{"changed null to empty client", "update pgtenancy.audit set client = '10.0.0.1' where action = 'c'", broken(changed), false},
		{"changed status", "update pgtenancy.audit set status = 200 where action = 'c'", broken(changed), false},
		{"changed duration", "update pgtenancy.audit set duration_us = 1 where action = 'c'", broken(changed), false},
		{"changed time", "update pgtenancy.audit set at = at - interval '1 us' where action = 'c'", broken(changed), false},
		{"endless time", "update pgtenancy.audit set at = 'infinity' where action = 'c'", broken(changed), false},
		{"shifted between columns", "update pgtenancy.audit set actor = action, action = '' where action = 'c'", broken(changed), false},
		{"changed transaction", "update pgtenancy.audit set xact = xact + 1 where action = 'c'", broken(changed), false},
		{"moved within the month", "update pgtenancy.audit set recorded_at = recorded_at + interval '1 us' where action = 'c'", broken(changed), false},
		{"moved to another month", "update pgtenancy.audit set recorded_at = recorded_at - interval '2 months' where action = 'c'", broken(removed, added), false},
		{"moved to the end of time", "update pgtenancy.audit set recorded_at = 'infinity' where action = 'c'", broken(removed, added), false},
		{"given to another tenant", "update pgtenancy.audit set tenant_id = 'globex' where action = 'c'", broken(changed), false},
		{"swapped", "update pgtenancy.audit set action = case action when 'c' then 'd' else 'c' end where action in ('c', 'd')", broken(changed), false},
		{"deleted", "delete from pgtenancy.audit where action = 'c'", broken(removed), false},
		{"deleted with another's transaction", "delete from pgtenancy.audit where tenant_id = 'globex'", broken(removed), false},
		{"truncated", "truncate pgtenancy.audit", broken(removed), false},
		{"inserted", insert, broken(added), false},
		{"inserted for later", insert + "update pgtenancy.audit set xact = 1::bigint << 60 where action = 'forged'", broken(added), false},
		{"seal deleted", "delete from pgtenancy.audit_seals where tenant_id = 'acme' and seq = 2", broken(added, sealed), false},
		{"seal deleted with its rows", "delete from pgtenancy.audit_seals where tenant_id = 'acme' and seq = 2; delete from pgtenancy.audit where action in ('c', 'd')", broken(sealed), false},
		{"seal's digest changed", "update pgtenancy.audit_seals set digests[1] = digests[2] where tenant_id = 'acme' and seq = 2", broken(changed, sealed), false},
		{"seal's content changed", "update pgtenancy.audit_seals set content = hash where tenant_id = 'acme' and seq = 2", broken(sealed), false},
		{"seal's hash changed", "update pgtenancy.audit_seals set hash = content where tenant_id = 'acme' and seq = 2", broken(sealed), false},
		{"seal's ids swapped", "update pgtenancy.audit_seals set ids = array[ids[2], ids[1]] where tenant_id = 'acme' and seq = 2", broken(changed), false},
		{"seal's row taken out", "update pgtenancy.audit_seals set ids = ids[1:1], digests = digests[1:1], row_count = 1 where tenant_id = 'acme' and seq = 2", broken(added, sealed), false},
		{"seals swapped", "update pgtenancy.audit_seals set seq = seq + 10 where tenant_id = 'acme' and seq = 2; update pgtenancy.audit_seals set seq = 2 where seq = 3; update pgtenancy.audit_seals set seq = 3 where seq = 12", broken(sealed), false},
		{"seal taken for trimmed", "update pgtenancy.audit_seals set ids = null, digests = null where tenant_id = 'acme' and seq = 2; delete from pgtenancy.audit where action in ('c', 'd')", broken(sealed), false},
		{"seals taken for trimmed by an anchor", `insert into pgtenancy.audit_anchors select tenant_id, seq, total, content from pgtenancy.audit_seals where tenant_id = 'acme' and seq = 1;
			delete from pgtenancy.audit_seals where tenant_id = 'acme' and seq = 1; delete from pgtenancy.audit where action in ('a', 'b')`, broken(sealed), false},
		{"seals taken for trimmed by their anchor", `insert into pgtenancy.audit_anchors select tenant_id, seq, total, hash from pgtenancy.audit_seals where tenant_id = 'acme' and seq = 2;
			delete from pgtenancy.audit_seals where tenant_id = 'acme' and seq <= 2; delete from pgtenancy.audit where action in ('a', 'b', 'c', 'd')`, broken(sealed), false},
		{"seal taken for trimmed with its month", `update pgtenancy.audit_state set trimmed_before = now() + interval '2 months';
			update pgtenancy.audit_seals set ids = null, digests = null where tenant_id = 'acme' and seq = 2; delete from pgtenancy.audit where action in ('c', 'd')`, broken(sealed), false},
		{"tenant taken for trimmed", `delete from pgtenancy.audit where tenant_id = 'acme'; delete from pgtenancy.audit_seals where tenant_id = 'acme';
			insert into pgtenancy.audit_anchors values ('acme', 1000, 1000, sha256(''))`, broken(sealed), false},
		{"no state and a seal's hash changed", "delete from pgtenancy.audit_state; update pgtenancy.audit_seals set hash = content where tenant_id = 'acme' and seq = 2", broken(sealed), false},
		{"cut off", "delete from pgtenancy.audit_seals where tenant_id = 'acme' and seq = 3; delete from pgtenancy.audit where action in ('e', 'f')", broken(missing), true},
		{"tenant gone", "delete from pgtenancy.audit_seals where tenant_id = 'globex'; delete from pgtenancy.audit where tenant_id = 'globex'", broken(missing), true},
		{"all gone", "truncate pgtenancy.audit, pgtenancy.audit_seals; update pgtenancy.audit_state set next_xact = 0", broken(missing), true},
		{"partition detached", "do $$ begin execute 'alter table pgtenancy.audit detach partition pgtenancy.audit_' || to_char(now() at time zone 'UTC', 'YYYY_MM'); end $$", broken(removed), false},
	}
	// Each begins with the log as it was. VerifyAudit has connections of its own, so that a transaction will not do.
	db.exec(t, `create table kept as select * from pgtenancy.audit; create table kept_seals as select * from pgtenancy.audit_seals;
		create table kept_state as select * from pgtenancy.audit_state`)
	const asItWas = `delete from pgtenancy.audit; delete from pgtenancy.audit_seals; delete from pgtenancy.audit_anchors; delete from pgtenancy.audit_state;
		insert into pgtenancy.audit select * from kept; insert into pgtenancy.audit_seals select * from kept_seals;
		insert into pgtenancy.audit_state select * from kept_state`
	conn := db.admin(t)
	for _, tt := range tests {
		if tt.sql != "" {
			if _, err := conn.Exec(bare(t), tt.sql, pgx.QueryExecModeSimpleProtocol); err != nil {
				t.Fatalf("%s: %v", tt.name, err)
			}
		}
		_, err := db.fleet.VerifyAudit(bare(t), nil)
		if tt.head {
			check(t, tt.name+", without a head", err)
			_, err = db.fleet.VerifyAudit(bare(t), &pgtenancy.AuditVerifyOpts{Heads: before})
		}
		checkFindings(t, tt.name, err, tt.want...)
		if _, err := conn.Exec(bare(t), asItWas, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatal(err)
		}
	}

	// Sealed anew by one who can: nothing shows it but the heads.
	mustExec(t, conn, "update pgtenancy.audit set actor = 'nobody' where action = 'c'")
	mustExec(t, conn, "truncate pgtenancy.audit_seals")
	mustExec(t, conn, "update pgtenancy.audit_state set next_xact = 0, next_id = 0")
	db.sealAll(t)
	db.verified(t)
	_, err := db.fleet.VerifyAudit(bare(t), &pgtenancy.AuditVerifyOpts{Heads: before})
	checkFindings(t, "sealed anew", err, missing)
	var changedHead *pgtenancy.AuditError
	if !errors.As(err, &changedHead) || changedHead.Findings[0].Tenant != "acme" {
		t.Errorf("sealed anew: %v", err)
	}
}

func broken(rules ...pgtenancy.AuditRule) []pgtenancy.AuditRule { return rules }

// checkFindings checks which rules were broken.
func checkFindings(t *testing.T, what string, err error, want ...pgtenancy.AuditRule) {
	t.Helper()
	var found *pgtenancy.AuditError
	if !errors.As(err, &found) {
		if len(want) > 0 || err != nil {
			t.Errorf("%s: error %v, want %v", what, err, want)
		}
		return
	}
	checkIs(t, what, err, pgtenancy.ErrAuditChanged)
	got, wanted := map[pgtenancy.AuditRule]bool{}, map[pgtenancy.AuditRule]bool{}
	for _, f := range found.Findings {
		got[f.Rule] = true
	}
	for _, r := range want {
		wanted[r] = true
	}
	if diff := cmp.Diff(wanted, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s%v", what, diff, found.Findings)
	}
}

func TestAuditFindingNamesTheRow(t *testing.T) {
	t.Parallel()
	db := newAuditDB(t, nil)
	db.write(t, db.acme, "a", "b")
	db.sealAll(t)
	id := events(t, db.fleet.AuditEvents(bare(t), "acme", nil))[0].ID
	db.exec(t, fmt.Sprintf("update pgtenancy.audit set action = '' where id = %d", id))
	_, err := db.fleet.VerifyAudit(bare(t), nil)
	var found *pgtenancy.AuditError
	if !errors.As(err, &found) {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]pgtenancy.AuditFinding{{Rule: pgtenancy.AuditRowChanged, Tenant: "acme", Seq: 1, ID: id}}, found.Findings); diff != "" {
		t.Error(diff)
	}
	checkEqual(t, "text", err.Error(), fmt.Sprintf(`pgtenancy: the audit log was changed: 1 failed: row-changed: tenant "acme", event %d, seal 1`, id))
}

func TestTrimAudit(t *testing.T) {
	t.Parallel()
	db := newAuditDB(t, nil)
	month := func(m int) time.Time { return time.Date(2024, time.Month(m), 1, 0, 0, 0, 0, time.UTC) }
	// Two old months have partitions, as if they had been made then; a third has none.
	for m := 1; m <= 2; m++ {
		db.execAs(t, db.owner, fmt.Sprintf("create table pgtenancy.audit_2024_%02d partition of pgtenancy.audit for values from ('%s') to ('%s')", m, month(m).Format(time.RFC3339), month(m+1).Format(time.RFC3339)))
	}
	old := func(tenant string, m int, action string) string {
		return fmt.Sprintf(`insert into pgtenancy.audit (xact, recorded_at, tenant_id, at, actor, action, method, route, status, duration_us, request_id)
			values (pgtenancy.audit_xact(), '%s', '%s', now(), '', '%s', '', '', 0, 0, '')`, month(m).Add(time.Hour).Format(time.RFC3339), tenant, action)
	}
	for _, sql := range []string{
		old("acme", 1, "jan"), old("acme", 2, "feb"), old("acme", 1, "jan, committed late"), old("globex", 1, "globex jan"), old("acme", 3, "mar"),
	} {
		db.exec(t, sql)
		db.sealAll(t)
	}
	db.write(t, db.acme, "now")
	db.sealAll(t)
	heads := db.verified(t).Heads
	first := pgtenancy.AuditHead{Tenant: "acme", Seq: 1, Rows: 1, Month: "2024-01", Hash: db.texts(t, "select encode(hash, 'hex') from pgtenancy.audit_seals where tenant_id = 'acme' and seq = 1")[0]}

	trim := func(before time.Time) time.Time {
		t.Helper()
		var trimmed time.Time
		await(t, "trimming", func() bool { // others of the server may have old transactions, which keep from sealing
			var err error
			trimmed, err = db.fleet.TrimAudit(bare(t), before)
			return err == nil
		})
		return trimmed
	}
	trim(month(2).Add(-time.Second))
	checkReport(t, "nothing to trim", db.verified(t, heads...), 6, 0, 0)
	checkEqual(t, "January", trim(month(2).Add(time.Second)).Equal(month(2)), true)
	report := db.verified(t, append(heads, first)...)
	checkReport(t, "January", report, 3, 0, 3)
	checkEqual(t, "trimmed before", report.TrimmedBefore.Equal(month(2)), true)
	checkList(t, "acme", actions(t, db.fleet.AuditEvents(bare(t), "acme", oldestFirst)), "feb", "mar", "now")
	checkList(t, "partitions", db.texts(t, "select relname from pg_class where relname ~ '^audit_2024_..$'"), "audit_2024_02")
	if diff := cmp.Diff(heads, report.Heads); diff != "" {
		t.Errorf("heads (-before +after):\n%s", diff)
	}

	trim(month(4))
	report = db.verified(t, append(heads, first)...)
	checkReport(t, "March", report, 1, 0, 5)
	if diff := cmp.Diff([]pgtenancy.AuditHead{first}, report.Unchecked); diff != "" {
		t.Errorf("unchecked: %s", diff)
	}
	checkEqual(t, "seals, with the last that were trimmed", db.count(t, "select count(*) from pgtenancy.audit_seals"), 3)
	later := first
	later.Month = "2024-04"
	_, err := db.fleet.VerifyAudit(bare(t), &pgtenancy.AuditVerifyOpts{Heads: []pgtenancy.AuditHead{later}})
	checkFindings(t, "head of a month that is there, before the anchor", err, pgtenancy.AuditHeadMissing)
	trim(time.Now().AddDate(1, 0, 0))
	checkEqual(t, "the present month", db.verified(t, heads...).Rows, 1)
	db.write(t, db.globex, "again")
	db.sealAll(t)
	report = db.verified(t, heads...)
	checkReport(t, "goes on", report, 2, 0, 5)
	checkEqual(t, "globex goes on from what was trimmed", report.Heads[1].Seq, 2)

	db.exec(t, "delete from pgtenancy.audit_anchors where tenant_id = 'acme'")
	_, err = db.fleet.VerifyAudit(bare(t), nil)
	checkFindings(t, "anchor gone", err, pgtenancy.AuditSealChanged)
}

// A month in which something is not sealed, or about to be written, stays.
func TestTrimAuditUnsealed(t *testing.T) {
	t.Parallel()
	db := newAuditDB(t, nil)
	conn := db.admin(t)
	tx, err := conn.Begin(bare(t))
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	const insert = `insert into pgtenancy.audit (xact, recorded_at, tenant_id, at, actor, action, method, route, status, duration_us, request_id)
		values (pgtenancy.audit_xact(), '2024-01-01 00:00+00', 'acme', now(), '', 'old', '', '', 0, 0, '')`
	if _, err := tx.Exec(bare(t), insert); err != nil {
		t.Fatal(err)
	}
	db.exec(t, insert)
	_, err = db.fleet.TrimAudit(bare(t), time.Now())
	checkCode(t, "while somebody writes", err, "55P03")
	check(t, "rollback", tx.Rollback(bare(t)))

	if tx, err = conn.Begin(bare(t)); err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	if _, err := tx.Exec(bare(t), "select pg_current_xact_id()"); err != nil { // writes nothing, and might
		t.Fatal(err)
	}
	db.exec(t, insert)
	if _, err := db.fleet.TrimAudit(bare(t), time.Now()); err == nil || !strings.Contains(err.Error(), "not sealed yet") || !strings.Contains(err.Error(), "2024-01") {
		t.Errorf("while something is not sealed: %v", err)
	}
	checkEqual(t, "rows", db.count(t, "select count(*) from pgtenancy.audit"), 2)
}

// After pg_dump and restore, transactions have small numbers again.
func TestAuditAnotherCluster(t *testing.T) {
	t.Parallel()
	db := newAuditDB(t, nil)
	db.write(t, db.acme, "sealed")
	db.sealAll(t)
	db.write(t, db.acme, "not sealed")
	// As if all this had been far ahead.
	db.exec(t, `update pgtenancy.audit_state set next_xact = next_xact + 1000000000;
		update pgtenancy.audit set xact = xact + 1000000000 where action = 'not sealed'`)
	db.write(t, db.globex, "new")
	checkReport(t, "before", db.verified(t), 1, 2, 0)
	db.sealAll(t)
	db.write(t, db.acme, "newer")
	db.sealAll(t)
	report := db.verified(t)
	checkReport(t, "after", report, 4, 0, 0)
	checkEqual(t, "acme's rows", report.Heads[0].Rows, 3)
	checkEqual(t, "generation", db.count(t, "select base >> 48 from pgtenancy.audit_state"), 1)
}

// What interrupts sealing loses nothing.
func TestAuditSealInterrupted(t *testing.T) {
	t.Parallel()
	db := newAuditDB(t, nil, func(c *pgtenancy.FleetConfig) { c.Owner.MaxConns = 2 })
	db.write(t, db.acme, "a", "b")
	// It sleeps where its transaction is about to end.
	db.exec(t, `create function public.slow() returns trigger language plpgsql as $$ begin perform pg_sleep(1000); return null; end $$;
		create trigger slow after update on pgtenancy.audit_state for each row execute function public.slow()`)
	for _, how := range []string{"cancelled", "killed"} {
		ctx, cancel := context.WithCancel(bare(t))
		wait := db.onceAsleep(t, func() {
			if how == "cancelled" {
				cancel()
				return
			}
			db.exec(t, "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'")
		})
		await(t, "something to seal", func() bool {
			n, err := db.fleet.SealAudit(ctx)
			if err == nil && n == 0 {
				return false
			}
			if err == nil {
				t.Errorf("%s: no error", how)
			}
			return true
		})
		wait()
		cancel()
		checkReport(t, how, db.verified(t), 0, 2, 0)
	}
	db.exec(t, "drop trigger slow on pgtenancy.audit_state")
	db.sealAll(t)
	checkReport(t, "resumed", db.verified(t), 2, 0, 0)
}

func TestKeepAudit(t *testing.T) {
	t.Parallel()
	db := newAuditDB(t, nil)
	db.execAs(t, db.owner, `create table pgtenancy.audit_2024_01 partition of pgtenancy.audit for values from ('2024-01-01 00:00+00') to ('2024-02-01 00:00+00')`)
	// A month to come has lost its partition.
	ahead := db.texts(t, "select max(relname) from pg_class where relname ~ '^audit_...._..$' and relkind = 'r'")[0]
	db.execAs(t, db.owner, "drop table pgtenancy."+ahead)
	db.write(t, db.acme, "a")
	ctx, cancel := context.WithCancel(bare(t))
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() { check(t, "KeepAudit", db.fleet.KeepAudit(ctx, 24*time.Hour)) })
	}
	await(t, "the month to be trimmed, and the other one made", func() bool {
		return db.count(t, fmt.Sprintf("select count(*) filter (where relname = 'audit_2024_01') * 10 + count(*) filter (where relname = '%s') from pg_class", ahead)) == 1
	})
	cancel()
	wg.Wait()
	db.verified(t)
}

// Whoever reads the log for long keeps nobody from sealing.
func TestAuditPartitionsWhileRead(t *testing.T) {
	t.Parallel()
	db := newAuditDB(t, nil)
	months := "select count(*) from pg_class where relname ~ '^audit_...._..$' and relkind = 'r'"
	db.execAs(t, db.owner, "drop table pgtenancy."+db.texts(t, "select max(relname) from pg_class where relname ~ '^audit_...._..$' and relkind = 'r'")[0])
	tx, err := db.admin(t).Begin(bare(t))
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	if _, err := tx.Exec(bare(t), "select from pgtenancy.audit_default"); err != nil {
		t.Fatal(err)
	}
	db.seal(t)
	checkEqual(t, "partitions while it is read", db.count(t, months), 2)
	check(t, "rollback", tx.Rollback(bare(t)))
	db.seal(t)
	checkEqual(t, "partitions afterwards", db.count(t, months), 3)
}

// Where rows of a month have come before its partition, they stay where they are.
func TestAuditDefaultPartition(t *testing.T) {
	t.Parallel()
	db := newAuditDB(t, nil)
	names := db.texts(t, "select relname from pg_class where relname ~ '^audit_...._..$' and relkind = 'r' order by 1")
	checkEqual(t, "partitions", len(names), 3)
	for _, name := range names {
		db.execAs(t, db.owner, "drop table pgtenancy."+name)
	}
	db.write(t, db.acme, "a")
	db.seal(t)
	db.write(t, db.acme, "b")
	db.sealAll(t)
	checkReport(t, "in the default partition", db.verified(t), 2, 0, 0)
	checkEqual(t, "rows there", db.count(t, "select count(*) from pgtenancy.audit_default"), 2)
	checkList(t, "partitions", db.texts(t, "select relname from pg_class where relname ~ '^audit_...._..$' and relkind = 'r' order by 1"), names[1:]...)
}
