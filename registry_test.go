package pgtenancy_test

import (
	"testing"

	"github.com/pgtenancy/pgtenancy"
)

// firstTables are what version 1 has, as those see it that know nothing else.
const firstTables = `select concat_ws(' ', c.relname, a.attname, a.atttypid::regtype, a.attnotnull, pg_get_expr(d.adbin, d.adrelid), c.relacl::text)
	from pg_class c join pg_attribute a on a.attrelid = c.oid left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
	where c.relnamespace = 'pgtenancy'::regnamespace and a.attnum > 0 and c.relkind = 'r' and c.relname !~ '^audit'
	union all select concat_ws(' ', p.oid::regprocedure, p.proacl::text, md5(p.prosrc)) from pg_proc p
	where p.pronamespace = 'pgtenancy'::regnamespace and p.proname in ('enter', 'check_state') order by 1`

func TestUpgradeRegistry(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	conn := db.as(t, db.owner)
	for _, sql := range pgtenancy.RegistryStep(1) {
		mustExec(t, conn, sql)
	}
	mustExec(t, conn, "update pgtenancy.registry set version = 1, oldest = 1")
	mustExec(t, conn, "create schema tenant_acme")
	mustExec(t, conn, "insert into pgtenancy.tenants (id, schema_name, state) values ('acme', 'tenant_acme', 'active')")
	mustExec(t, conn, "insert into pgtenancy.changes (tenant_id, kind, was, became, reason) values ('acme', 'adopt', '', 'active', '')")
	for _, sql := range []string{ // what it grants besides
		"grant usage on schema pgtenancy to " + db.app, "grant execute on function pgtenancy.enter (text[], text[], text) to " + db.app,
		"grant select on pgtenancy.registry, pgtenancy.tenants, pgtenancy.domains to " + db.app, "grant usage on schema tenant_acme to " + db.app,
	} {
		mustExec(t, conn, sql)
	}
	before := db.texts(t, firstTables)

	fleet := db.open(t, nil)
	for _, err := range fleet.Tenants(bare(t), nil) {
		checkIs(t, "before the upgrade", err, pgtenancy.ErrRegistryOutdated)
	}
	checkEqual(t, "upgraded", migrate(t, fleet).Registry, true)
	checkEqual(t, "upgraded again", migrate(t, fleet).Registry, false)
	checkList(t, "tenants", list(t, fleet), "acme")
	checkList(t, "history", db.texts(t, "select tenant_id from pgtenancy.changes"), "acme")
	checkEqual(t, "version", db.count(t, "select version from pgtenancy.registry"), 2)

	// A process that knows version 1 goes on: it accepts what says that 1 is enough, and finds all as it was.
	checkEqual(t, "oldest", db.count(t, "select oldest from pgtenancy.registry"), 1)
	checkList(t, "what version 1 has", db.texts(t, firstTables), before...)

	acme, err := fleet.Lookup(bare(t), pgtenancy.ByID("acme"))
	if err != nil {
		t.Fatal(err)
	}
	check(t, "WriteAudit", fleet.Audit().WriteAudit(bare(t), []pgtenancy.AuditEvent{{Tenant: "acme", Action: "x"}}))
	checkEqual(t, "events", len(events(t, fleet.Audit().Events(as(t, acme), nil))), 1)
}
