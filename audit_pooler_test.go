package pgtenancy_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy"
)

// auditPooler is a fleet behind a PgBouncer with two tenants that write to the audit log on one connection.
type auditPooler struct {
	*rolesDB
	fleet   *pgtenancy.Fleet
	tenants []pgtenancy.Tenant
}

// The audit log knows whose event it is, and who acts, on a connection to the server that all tenants share.
func TestAuditPgBouncer(t *testing.T) {
	t.Parallel()
	for _, b := range findBouncers(t) {
		t.Run(b.version, func(t *testing.T) {
			t.Parallel()
			db := newRolesDB(t)
			files := with(db.files(), "tenant/002_audit.sql", pgtenancy.AuditTable{Table: "notes"}.SQL())
			through := db.throughBouncer(t, b)
			for _, roles := range []bool{false, true} {
				t.Run(fmt.Sprintf("roles=%v", roles), func(t *testing.T) {
					opts := []fleetOption{through}
					ids := []string{"acme", "globex"}
					if roles {
						opts = append(opts, db.isolate)
						ids = []string{"initech", "umbrella"}
					}
					first := db.migrated(t, files, opts...)
					for _, id := range ids {
						db.provision(t, first, id)
					}
					forBouncerModes(t, b, func(t *testing.T, m bouncerMode) {
						a := &auditPooler{rolesDB: db, fleet: db.open(t, files, append(opts, m.option)...)}
						for _, id := range ids {
							a.tenants = append(a.tenants, lookup(t, a.fleet, id))
						}
						a.test(t)
					})
				})
			}
		})
	}
}

// test has both tenants write in all ways at once, and reads what came of it.
func (a *auditPooler) test(t *testing.T) {
	t.Helper()
	const rounds, batch = 2, 90 // with these, two ways to work make more events than one query reads
	before := map[string]int{}
	for _, tenant := range a.tenants {
		before[tenant.ID()] = len(a.read(t, tenant, oldestFirst))
	}
	nobodys := a.count(t, "select count(*) from pgtenancy.audit where tenant_id = ''")

	var wg sync.WaitGroup
	for i, tenant := range a.tenants {
		other := a.tenants[1-i]
		wg.Go(func() {
			for range rounds {
				a.write(t, tenant, other)
			}
		})
		wg.Go(func() {
			var events []pgtenancy.AuditEvent
			for range batch {
				for _, id := range []string{tenant.ID(), other.ID(), ""} {
					events = append(events, pgtenancy.AuditEvent{Tenant: id, Actor: "web", Action: "request for " + id})
				}
			}
			for range rounds { // in a tenant's context, which says nothing of whose the events are
				check(t, "WriteAudit", a.fleet.Audit().WriteAudit(as(t, tenant), events))
			}
		})
	}
	wg.Wait()

	for _, tenant := range a.tenants {
		id := tenant.ID()
		want := map[string]int{
			"made by ann of " + id + ": " + id:     rounds,
			"insert by ann of " + id + ": in":      rounds,
			"insert by : out":                      rounds,
			"request for " + id + " by web: <nil>": 2 * rounds * batch,
		}
		for _, opts := range []*pgtenancy.AuditReadOpts{oldestFirst, nil} {
			got := map[string]int{}
			all := a.read(t, tenant, opts)
			if opts == nil {
				all = all[:len(all)-before[id]]
			} else {
				all = all[before[id]:]
			}
			for _, e := range all {
				checkEqual(t, "the tenant of an event that "+id+" reads", e.Tenant, id)
				what := e.Fields["of"]
				if row, ok := e.Fields["new"].(map[string]any); ok {
					what = row["body"]
					checkEqual(t, "the connection's user", e.Fields["role"], any(a.app))
				}
				got[fmt.Sprintf("%s by %s: %v", e.Action, e.Actor, what)]++
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("events that %s reads, %+v (-want +got):\n%s", id, opts, diff)
			}
		}
	}
	checkEqual(t, "events of no tenant", a.count(t, "select count(*) from pgtenancy.audit where tenant_id = ''")-nobodys, 2*rounds*batch)
}

func (a *auditPooler) read(t *testing.T, tenant pgtenancy.Tenant, opts *pgtenancy.AuditReadOpts) []pgtenancy.AuditEvent {
	t.Helper()
	return events(t, a.fleet.Audit().Events(as(t, tenant), opts))
}

// write makes three events of the tenant's: two in a transaction, and one outside, whose actor nobody has said. What else it tries
// is no event.
func (a *auditPooler) write(t *testing.T, tenant, other pgtenancy.Tenant) {
	t.Helper()
	ctx := pgtenancy.WithActor(as(t, tenant), "ann of "+tenant.ID())
	event := pgtenancy.AuditEvent{Action: "made", Fields: map[string]any{"of": tenant.ID()}}
	record := func(tx pgx.Tx, body string) error {
		if err := pgtenancy.SetActor(ctx, tx); err != nil {
			return err
		}
		if err := pgtenancy.RecordAudit(ctx, tx, event); err != nil {
			return err
		}
		return second(tx.Exec(ctx, "insert into notes (body) values ($1)", body))
	}
	check(t, "RecordAudit", pgx.BeginFunc(ctx, a.fleet.Pool(), func(tx pgx.Tx) error { return record(tx, "in") }))
	check(t, "a change outside of a transaction", second(a.fleet.Pool().Exec(ctx, "insert into notes (body) values ($1)", "out")))

	undone := errors.New("undone")
	checkIs(t, "a transaction that is rolled back", pgx.BeginFunc(ctx, a.fleet.Pool(), func(tx pgx.Tx) error {
		return errors.Join(record(tx, "never"), undone)
	}), undone)
	checkIs(t, "an event of another's", pgx.BeginFunc(ctx, a.fleet.Pool(), func(tx pgx.Tx) error {
		return pgtenancy.RecordAudit(ctx, tx, pgtenancy.AuditEvent{Tenant: other.ID(), Action: "forged"})
	}), pgtenancy.ErrTenantMismatch)
	const forge = `select pgtenancy.append_audit(array[$1], '{now}', '{""}', '{forged}', '{""}', '{""}', '{0}', '{0}', '{""}', '{""}', '{""}')`
	checkCode(t, "an event of another's by SQL", second(a.fleet.Pool().Exec(ctx, forge, other.ID())), "42501")
}
