package pgtenancy_test

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy"
)

// With a role for each tenant it is the role that says whose events they are, whatever else a statement sets.
func TestAuditIsolateRoles(t *testing.T) {
	t.Parallel()
	db := newRolesDB(t)
	files := with(db.files(), "tenant/002_audit.sql", pgtenancy.AuditTable{Table: "notes"}.SQL())
	db.migrated(t, files) // without roles at first
	fleet := db.migrated(t, files, db.isolate)
	acme, globex := db.provision(t, fleet, "acme"), db.provision(t, fleet, "globex")
	ctx := pgtenancy.WithActor(as(t, acme), "ann")
	check(t, "in acme's role", pgx.BeginFunc(ctx, fleet.Pool(), func(tx pgx.Tx) error {
		if err := pgtenancy.SetActor(ctx, tx); err != nil {
			return err
		}
		if err := pgtenancy.RecordAudit(ctx, tx, pgtenancy.AuditEvent{Action: "made"}); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "insert into notes (body) values ('x')")
		return err
	}))
	check(t, "WriteAudit", fleet.Audit().WriteAudit(bare(t), []pgtenancy.AuditEvent{{Tenant: "acme", Action: "request"}, {Tenant: "globex", Action: "other"}}))
	got := events(t, fleet.Audit().Events(ctx, oldestFirst))
	if len(got) != 3 || got[0].Action != "made" || got[1].Action != "insert" || got[1].Actor != "ann" || got[2].Action != "request" {
		t.Errorf("events: %+v", got)
	}

	check(t, "stepping out of the scope", pgx.BeginFunc(ctx, fleet.Pool(), func(tx pgx.Tx) error {
		for _, path := range []string{globex.Schema(), "public"} {
			if _, err := tx.Conn().Exec(ctx, "set local search_path = "+path); err != nil {
				return err
			}
			var seen int
			if err := tx.QueryRow(ctx, "select count(*) from pgtenancy.audit where tenant_id = 'globex'").Scan(&seen); err != nil {
				return err
			}
			checkEqual(t, path+": events of the other tenant", seen, 0)
			nested, err := tx.Begin(ctx)
			if err != nil {
				return err
			}
			_, err = nested.Exec(ctx, `select pgtenancy.append_audit('{globex}', '{now}', '{""}', '{forged}', '{""}', '{""}', '{0}', '{0}', '{""}', '{""}', '{""}')`)
			checkCode(t, path+": append for the other tenant", err, "42501")
			check(t, "rollback", nested.Rollback(ctx))
		}
		return nil
	}))
}
