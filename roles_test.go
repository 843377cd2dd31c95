package pgtenancy_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy"
)

// rolesDB is a database that is prepared for roles of tenants.
type rolesDB struct {
	*fleetDB
	group string
}

func newRolesDB(t *testing.T) *rolesDB {
	t.Helper()
	db := &rolesDB{}
	// Roles belong to the server. These go when the database has, and before its owner, who has granted them.
	t.Cleanup(func() { db.dropRoles(t) })
	db.fleetDB = newFleetDB(t)
	db.group = "iso" + strings.TrimPrefix(db.app, "app")
	db.exec(t, pgtenancy.IsolateRolesSQL(db.group, db.app, db.owner))
	return db
}

func (db *rolesDB) dropRoles(t *testing.T) {
	if db.fleetDB == nil {
		return
	}
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, db.urlOf(t, "", "postgres"))
	if err != nil {
		return
	}
	defer conn.Close(ctx)
	rows, _ := conn.Query(ctx, `select r.rolname::text from pg_roles r where starts_with(r.rolname::text, $1)`, db.group+":")
	roles, err := pgx.CollectRows(rows, pgx.RowTo[string])
	check(t, "roles of the test", err)
	for _, role := range append(roles, db.group, db.owner, db.app) {
		if _, err := conn.Exec(ctx, "drop role if exists "+pgx.Identifier{role}.Sanitize()); err != nil && !t.Failed() {
			t.Errorf("drop role %s: %v", role, err)
		}
	}
}

// isolate is an option of open.
func (db *rolesDB) isolate(c *pgtenancy.FleetConfig) { c.IsolateRoles = db.group }

// files have a tenant's tables, and a shared one with rows of all tenants.
func (db *rolesDB) files() fstest.MapFS {
	return with(notesFiles, "shared/001_users.sql", db.usersSQL())
}

func (db *rolesDB) usersSQL() string {
	policy := pgtenancy.Policy{Table: pgx.Identifier{"public", "users"}, Role: db.app, IsolateRoles: db.group}
	return fmt.Sprintf("create table users (id int generated always as identity primary key, tenant_id text not null, name text not null unique);\n"+
		"grant select, insert, update, delete on users to %s;\n", db.group) + policy.SQL()
}

// newFleet returns a fleet with the tenants acme and globex, who have a note and a user each.
func (db *rolesDB) newFleet(t *testing.T, opts ...fleetOption) *pgtenancy.Fleet {
	t.Helper()
	fleet := db.migrated(t, db.files(), append([]fleetOption{db.isolate}, opts...)...)
	for _, id := range []string{"acme", "globex"} {
		db.provision(t, fleet, id)
	}
	return fleet
}

// seedRows puts a note and a user of the tenant's there.
func seedRows(ctx context.Context, tx pgx.Tx) error {
	tenant, _ := pgtenancy.TenantFromContext(ctx)
	if _, err := tx.Exec(ctx, "insert into notes (body) values ($1)", "of "+tenant.ID()); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, "insert into users (name) values ($1)", "user of "+tenant.ID())
	return err
}

func (db *rolesDB) provision(t *testing.T, fleet *pgtenancy.Fleet, id string) pgtenancy.Tenant {
	t.Helper()
	tenant, err := fleet.Provision(bare(t), id, &pgtenancy.ProvisionOpts{Seed: seedRows})
	if err != nil {
		t.Fatalf("Provision(%q): %v", id, err)
	}
	return tenant
}

// checkRole checks that the tenant's statements run as its role, read the note and the users that they should, and can write.
func (db *rolesDB) checkRole(t *testing.T, when string, fleet *pgtenancy.Fleet, tenant pgtenancy.Tenant, note string, users ...string) {
	t.Helper()
	checkEqual(t, when+": the role of the handle", tenant.Role(), db.group+":"+tenant.ID())
	ctx := as(t, tenant)
	var role, got string
	err := fleet.Pool().QueryRow(ctx, "select current_user::text, (select string_agg(body, ', ') from notes)").Scan(&role, &got)
	check(t, when, err)
	checkEqual(t, when+": current_user", role, tenant.Role())
	checkEqual(t, when+": the note", got, note)
	var names []string
	check(t, when, fleet.Pool().QueryRow(ctx, "select array(select name from users order by name)").Scan(&names))
	checkList(t, when+": users", names, users...)
	for _, sql := range []string{
		"insert into notes (body) values ('x')", "update notes set body = 'y' where body = 'x'", "delete from notes where body = 'y'",
		"insert into users (name) values (current_user)", "delete from users where name = current_user",
	} {
		tag, err := fleet.Pool().Exec(ctx, sql)
		check(t, when+": "+sql, err)
		checkEqual(t, when+": rows of "+sql, tag.RowsAffected(), 1)
	}
	db.checkApp(t, when, tenant)
}

// checkApp checks that the application's role itself has no use of the tenant's schema.
func (db *rolesDB) checkApp(t *testing.T, when string, tenant pgtenancy.Tenant) {
	t.Helper()
	_, err := db.as(t, db.app).Exec(bare(t), "select from "+pgx.Identifier{tenant.Schema(), "notes"}.Sanitize())
	checkCode(t, when+": the application's role itself", err, "42501")
}

// roles returns the tenants' roles without the group's name.
func (db *rolesDB) roles(t *testing.T) []string {
	t.Helper()
	return db.texts(t, fmt.Sprintf(`select substr(rolname, %d)::text from pg_roles where starts_with(rolname::text, '%s:') order by 1`, len(db.group)+2, db.group))
}

func TestIsolateRoles(t *testing.T) {
	t.Parallel()
	db := newRolesDB(t)
	fleet := db.newFleet(t)
	acme, globex := lookup(t, fleet, "acme"), lookup(t, fleet, "globex")
	db.checkRole(t, "provisioned", fleet, acme, "of acme", "user of acme")
	db.checkRole(t, "provisioned", fleet, globex, "of globex", "user of globex")
	checkList(t, "roles", db.roles(t), "acme", "globex")

	_, err := fleet.Pool().Exec(as(t, acme), "select from tenant_globex.notes")
	checkCode(t, "another schema", err, "42501")
	_, err = fleet.Pool().Exec(as(t, acme), "select from pgtenancy.tenants")
	checkCode(t, "the registry", err, "42501")
	_, err = fleet.Pool().Exec(as(t, acme), "select pgtenancy.enter('{role}', '{none}', 'public')")
	checkCode(t, "enter", err, "42501")

	// What later migrations make is the tenants' too.
	fleet = db.migrated(t, with(db.files(), "tenant/002_more.sql", "create table more (id serial)"), db.isolate)
	_, err = fleet.Pool().Exec(as(t, lookup(t, fleet, "acme")), "insert into more default values")
	check(t, "a table of a later migration", err)
	report, err := fleet.Drift(bare(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	if report.Drifted > 0 {
		t.Errorf("drift: %+v", report.Groups)
	}

	// A handle without the role, of somebody who made it by hand, is not taken.
	_, err = fleet.Pool().Exec(as(t, newTenant(t, "acme")), "select from notes")
	checkIs(t, "a tenant without a role", err, pgtenancy.ErrNotIsolated)
	// What knows nothing of isolation takes the roles of the registry.
	pool, err := pgtenancy.NewPoolWithConfig(bare(t), &pgtenancy.PoolConfig{Conns: db.poolConfig(t, db.app), Entry: pgtenancy.EntryFunction})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	found, err := pgtenancy.NewDirectory(pool).Lookup(bare(t), pgtenancy.ByID("acme"))
	check(t, "Lookup of a directory", err)
	var role string
	check(t, "with EntryFunction", pool.QueryRow(as(t, found), "select current_user::text").Scan(&role))
	checkEqual(t, "current_user with EntryFunction", role, acme.Role())
	_, err = pool.Exec(as(t, found), "select pgtenancy.enter('{role}', '{none}', 'public')")
	checkCode(t, "enter with EntryFunction", err, "42501")
}

func TestIsolateRolesLife(t *testing.T) {
	t.Parallel()
	db := newRolesDB(t)
	fleet := db.newFleet(t)
	acme := lookup(t, fleet, "acme")

	db.stock(t, fleet, 1)
	spare := db.provision(t, fleet, "of-spare")
	checkEqual(t, "spares", db.count(t, spareCountSQL), 0)
	db.checkRole(t, "of a spare", fleet, spare, "of of-spare", "user of of-spare")
	report, err := fleet.Drift(bare(t), nil)
	check(t, "Drift", err)
	if err == nil && report.Drifted > 0 {
		t.Errorf("drift of the spare: %+v", report.Groups)
	}

	clone, err := fleet.Clone(bare(t), "acme", "clone", nil)
	check(t, "Clone", err)
	db.checkRole(t, "cloned", fleet, clone, "of acme")

	store := pgtenancy.DirStore(t.TempDir())
	object := backup(t, fleet, store, &pgtenancy.BackupOpts{Tenants: []string{"acme"}})["acme"].Name
	twin := restore(t, fleet, store, object, &pgtenancy.RestoreOpts{As: "twin"})
	db.checkRole(t, "restored", fleet, twin, "of acme")
	db.execTenant(t, acme, "update notes set body = 'later'; update public.users set name = 'later user of acme' where name = 'user of acme';")
	again := restore(t, fleet, store, object, &pgtenancy.RestoreOpts{Replace: true})
	db.checkRole(t, "restored in place", fleet, again, "of acme", "user of acme")
	var old string
	for _, id := range list(t, fleet, pgtenancy.Deleted) {
		old = id
	}
	check(t, "Undelete", fleet.Undelete(bare(t), old, nil))
	db.checkRole(t, "set aside and undeleted", fleet, lookup(t, fleet, old), "later")
	db.checkRole(t, "restored in place, later", fleet, again, "of acme", "user of acme")
	_, err = fleet.Pool().Exec(as(t, again), "select from "+lookup(t, fleet, old).Schema()+".notes")
	checkCode(t, "the schema that was set aside", err, "42501")

	db.execAs(t, db.owner, fmt.Sprintf(`create schema adopted; create table adopted.notes (id bigint generated by default as identity primary key, body text not null);
		insert into adopted.notes (body) values ('adopted'); grant usage on schema adopted to %[1]s; grant all on all tables in schema adopted to %[1]s`, db.app))
	adopted, err := fleet.Adopt(bare(t), "adopted", "adopted", &pgtenancy.AdoptOpts{Version: 1})
	check(t, "Adopt", err)
	db.checkRole(t, "adopted", fleet, adopted, "adopted")

	check(t, "Delete", fleet.Delete(bare(t), "clone", nil))
	check(t, "Undelete", fleet.Undelete(bare(t), "clone", nil))
	db.checkRole(t, "undeleted", fleet, lookup(t, fleet, "clone"), "of acme")
	check(t, "Delete", fleet.Delete(bare(t), "clone", nil))
	purged, err := fleet.Purge(bare(t), "clone", &pgtenancy.PurgeOpts{Force: true})
	check(t, "Purge", err)
	checkEqual(t, "the role of the report", purged.Role, db.group+":clone")
	checkEqual(t, "why the role is kept", purged.RoleKept, "")
	checkList(t, "roles", db.roles(t), "acme", old, "adopted", "globex", "of-spare", "twin")

	// A role that owns something stays, and is not given to the next tenant.
	_, err = fleet.Pool().Exec(as(t, twin), "select lo_create(0)")
	check(t, "lo_create", err)
	check(t, "Delete", fleet.Delete(bare(t), "twin", nil))
	purged, err = fleet.Purge(bare(t), "twin", &pgtenancy.PurgeOpts{Force: true})
	check(t, "Purge", err)
	if !strings.Contains(purged.RoleKept, "large object") {
		t.Errorf("Purge keeps the role because of %q, want a large object", purged.RoleKept)
	}
	_, err = fleet.Provision(bare(t), "twin", nil)
	checkIs(t, "the ID of a role that was kept", err, pgtenancy.ErrTenantExists)
	if err == nil || !strings.Contains(err.Error(), db.group+":twin") {
		t.Errorf("the error does not name the role: %v", err)
	}
	checkEqual(t, "what is left", db.count(t, "select count(*) from pgtenancy.tenants where id = 'twin'")+db.count(t, "select count(*) from pg_namespace where nspname = 'tenant_twin'"), 0)
}

func TestIsolateRolesNames(t *testing.T) {
	t.Parallel()
	db := newRolesDB(t)
	db.exec(t, fmt.Sprintf(`create role "%s:taken"`, db.group))
	fleet := db.migrated(t, notesFiles, db.isolate, func(c *pgtenancy.FleetConfig) {
		c.SchemaPrefix = "t_"
		c.PoolConfig.SettingValue = func(t pgtenancy.Tenant) string {
			if key, ok := t.Attribute("key"); ok {
				return key
			}
			return t.ID()
		}
	})
	before := db.roles(t)
	for name, opts := range map[string]*pgtenancy.ProvisionOpts{
		"too long": {Attributes: map[string]string{"key": strings.Repeat("é", 31)}},
		"NUL":      {Attributes: map[string]string{"key": strings.Repeat("x", 64)}},
	} {
		_, err := fleet.Provision(bare(t), "acme", opts)
		checkInvalid(t, name, err, "Tenant.Role")
	}
	_, err := fleet.Provision(bare(t), "acme", &pgtenancy.ProvisionOpts{Attributes: map[string]string{"key": ""}})
	checkInvalid(t, "an empty value", err, "PoolConfig.SettingValue")
	_, err = fleet.Provision(bare(t), "taken", nil)
	checkIs(t, "a role that is there", err, pgtenancy.ErrTenantExists)
	checkList(t, "roles", db.roles(t), before...)

	// Any value is a name, and the source's of a clone has that role already.
	odd := `a"b' \ :; none`
	acme, err := fleet.Provision(bare(t), "acme", &pgtenancy.ProvisionOpts{Attributes: map[string]string{"key": odd}})
	if err != nil {
		t.Fatal(err)
	}
	var role string
	check(t, "an odd name", fleet.Pool().QueryRow(as(t, acme), "select current_user::text").Scan(&role))
	checkEqual(t, "current_user", role, db.group+":"+odd)
	_, err = fleet.Clone(bare(t), "acme", "clone", nil)
	checkIs(t, "a clone of the same value", err, pgtenancy.ErrTenantExists)

	for _, group := range []string{"public", "none", "pg_x", "a:b", "A", strings.Repeat("a", 44)} {
		cfg := db.config(t, notesFiles)
		cfg.IsolateRoles = group
		_, err := pgtenancy.Open(bare(t), cfg)
		checkInvalid(t, group, err, "FleetConfig.IsolateRoles")
	}
}

// Open refuses what is not prepared, and says what is missing; the script mends it.
func TestIsolateRolesOpen(t *testing.T) {
	t.Parallel()
	db := newRolesDB(t)
	db.newFleet(t)
	open := func(change ...fleetOption) error {
		cfg := db.config(t, db.files())
		db.isolate(&cfg)
		for _, c := range change {
			c(&cfg)
		}
		fleet, err := pgtenancy.Open(bare(t), cfg)
		if err == nil {
			closeFleet(t, fleet)
		}
		return err
	}
	refused := func(what, want string, err error) {
		t.Helper()
		checkIs(t, what, err, pgtenancy.ErrNotIsolated)
		if err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: the error does not have %q: %v", what, want, err)
		}
	}
	check(t, "prepared", open())
	refused("another group", "there is no role other", open(func(c *pgtenancy.FleetConfig) { c.IsolateRoles = "other" }))
	refused("one role for both", "two roles", open(func(c *pgtenancy.FleetConfig) { c.PoolConfig.Conns = c.Owner }))

	name := pgx.Identifier{db.name(t)}.Sanitize()
	sql := strings.NewReplacer("{group}", db.group, "{app}", db.app, "{owner}", db.owner, "{db}", name, "{acme}", `"`+db.group+`:acme"`)
	options := db.count(t, "select current_setting('server_version_num')::int") >= 160000
	tests := []struct{ undo, want, mend string }{ // mend is "" for what the script mends
		{"grant execute on function set_config(text, text, boolean) to public", "{group} must not be allowed to call set_config(text,text,boolean)", ""},
		{"grant execute on function set_config(text, text, boolean) to {group}", "{group} must not be allowed to call set_config", "revoke execute on function set_config(text, text, boolean) from {group}"},
		{"revoke execute on function set_config(text, text, boolean) from {app}", "{app} must be allowed to call set_config", ""},
		{"grant execute on function pg_prepared_statement() to public", "{group} must not be allowed to call pg_prepared_statement()", ""},
		{"create function public.alias(text, text, boolean) returns text language internal as 'set_config_by_name'", "{group} must not be allowed to call public.alias", ""},
		{"grant usage on language plpgsql to public", "{group} must have no USAGE on the language plpgsql", ""},
		{"grant usage on language sql to {group}", "{group} must have no USAGE on the language sql", "revoke usage on language sql from {group}"},
		{"grant temporary on database {db} to public", "{group} must not have TEMPORARY on the database", ""},
		{"grant create on database {db} to public", "{group} must not have CREATE on the database", ""},
		{"grant create on schema public to public", "{group} must not have CREATE on the schema public", ""},
		{"grant select on pgtenancy.tenants to public", "{group} must have no privilege on pgtenancy.tenants", "revoke select on pgtenancy.tenants from public"},
		{"grant execute on function pgtenancy.enter to {group}", "{group} must not be allowed to call pgtenancy.enter", "revoke execute on function pgtenancy.enter from {group}"},
		{"alter role {group} login", "{group} must be NOLOGIN", "alter role {group} nologin"},
		{"alter role {acme} bypassrls", "{acme} must be NOLOGIN, and have no attribute", "alter role {acme} nobypassrls"},
		{"alter role {app} bypassrls", "{app} must not be SUPERUSER or BYPASSRLS", "alter role {app} nobypassrls"},
		{"grant {owner} to {app}", "{app} must not be SUPERUSER or BYPASSRLS, nor a member of {owner}", "revoke {owner} from {app}"},
		{"grant {group} to {app}", "{app} must not be a member of {group}", "revoke {group} from {app}"},
		{"grant pg_read_all_data to {group}", "{group} must not be a member of pg_read_all_data", "revoke pg_read_all_data from {group}"},
		{"grant pg_monitor to {acme}", "{acme} must not be a member of pg_monitor", "revoke pg_monitor from {acme}"},
		{"revoke admin option for {group} from {owner} cascade", "{owner} must have CREATEROLE, and ADMIN OPTION on {group}", ""},
		{"alter role {owner} nocreaterole", "{owner} must have CREATEROLE", ""},
		{"do $$ begin execute format('alter database %I set lo_compat_privileges = on', current_database()); end $$", "lo_compat_privileges must be off", "alter database {db} reset all"},
	}
	if options {
		tests = append(tests, struct{ undo, want, mend string }{"grant {acme} to {app} with inherit true", "{app} must not inherit from {acme}", "grant {acme} to {app} with inherit false"})
	} else {
		tests = append(tests, struct{ undo, want, mend string }{"alter role {app} inherit", "{app} must be NOINHERIT", ""})
	}
	if db.count(t, "select count(*) from pg_available_extensions where name = 'xml2'") > 0 {
		tests = append(tests, struct{ undo, want, mend string }{"create extension xml2", "extension xml2", "drop extension xml2"})
	}
	for _, tt := range tests {
		if options && strings.HasPrefix(tt.undo, "revoke admin") {
			tt.mend = `grant {group} to {acme} with inherit true, set false` // which it granted
		}
		undo := sql.Replace(tt.undo)
		db.exec(t, undo)
		err := open()
		refused(undo, sql.Replace(tt.want), err)
		if err != nil && strings.Contains(err.Error(), "; ") && !strings.Contains(undo, "pg_read_all_data") { // which is a privilege on all tables
			t.Errorf("%s: more is refused than that, or was not mended: %v", undo, err)
		}
		if tt.mend != "" {
			db.exec(t, sql.Replace(tt.mend))
		}
		db.exec(t, pgtenancy.IsolateRolesSQL(db.group, db.app, db.owner))
	}
	// Nothing was lost on the way.
	fleet := db.open(t, db.files(), db.isolate)
	if !options {
		db.checkRole(t, "in the end", fleet, lookup(t, fleet, "globex"), "of globex", "user of globex")
	}
	db.checkRole(t, "a new one", fleet, db.provision(t, fleet, "initech"), "of initech", "user of initech")
}

func TestIsolateTenants(t *testing.T) {
	t.Parallel()
	db := newRolesDB(t)
	before := db.migrated(t, db.files())
	for _, id := range []string{"acme", "gone", "globex", "initech"} {
		db.provision(t, before, id)
	}
	check(t, "Delete", before.Delete(bare(t), "gone", nil))
	_, err := before.IsolateTenants(bare(t))
	checkInvalid(t, "without IsolateRoles", err, "FleetConfig.IsolateRoles")

	fleet := db.migrated(t, db.files(), db.isolate)
	_, err = fleet.Pool().Exec(as(t, lookup(t, fleet, "acme")), "select from notes")
	checkIs(t, "before", err, pgtenancy.ErrNotIsolated)

	// One that fails does not stop the others, and is done when it can be.
	db.exec(t, fmt.Sprintf(`create role "%s:globex"`, db.group))
	n, err := fleet.IsolateTenants(bare(t))
	checkEqual(t, "isolated", n, 3)
	checkIs(t, "a role that is there", err, pgtenancy.ErrTenantExists)
	var each *pgtenancy.EachError
	if !errors.As(err, &each) || len(each.Failed) != 1 || each.Failed[0].Tenant.ID() != "globex" {
		t.Errorf("IsolateTenants: %v, want an *EachError for globex", err)
	}
	db.exec(t, fmt.Sprintf(`drop role "%s:globex"`, db.group))

	// Who does not know of it yet goes on as before.
	var role string
	check(t, "an old handle", before.Pool().QueryRow(as(t, newTenant(t, "acme")), "select current_user::text from notes").Scan(&role))
	checkEqual(t, "its role", role, db.app)

	n, err = fleet.IsolateTenants(bare(t))
	check(t, "again", err)
	checkEqual(t, "isolated, and taken from the application's role", n, 4)
	n, err = fleet.IsolateTenants(bare(t))
	check(t, "and again", err)
	checkEqual(t, "globex taken from the application's role", n, 1)
	n, err = fleet.IsolateTenants(bare(t))
	check(t, "in the end", err)
	checkEqual(t, "nothing left", n, 0)

	check(t, "Undelete", fleet.Undelete(bare(t), "gone", nil))
	for _, id := range []string{"acme", "gone", "globex", "initech"} {
		db.checkRole(t, "isolated", fleet, lookup(t, fleet, id), "of "+id, "user of "+id)
	}
	report, err := fleet.Drift(bare(t), nil)
	check(t, "Drift", err)
	if err == nil && report.Drifted > 0 {
		t.Errorf("drift: %+v", report.Groups)
	}
}

// What the service has prepared without a role is on the connection for whoever has it next, and its name can be computed.
func TestRolePreparedByOthers(t *testing.T) {
	t.Parallel()
	needsDirect(t)
	db := newRolesDB(t)
	fleet := db.newFleet(t, func(c *pgtenancy.FleetConfig) { c.PoolConfig.Conns.MaxConns = 1 })
	acme, globex, pool := lookup(t, fleet, "acme"), lookup(t, fleet, "globex"), fleet.Pool()
	for range 3 { // what comes again is prepared
		err := pgx.BeginFunc(bare(t), pool.Shared(), func(tx pgx.Tx) error {
			_, err := tx.Exec(bare(t), "set local role "+pgx.Identifier{globex.Role()}.Sanitize())
			return err
		})
		check(t, "SET LOCAL ROLE of the service's", err)
	}

	tx, err := pool.Begin(as(t, acme))
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	var name, role string
	conn := tx.Conn()
	_, err = conn.Exec(bare(t), "savepoint s")
	check(t, "savepoint", err)
	_, err = conn.Exec(bare(t), "reset role")
	check(t, "reset role", err)
	err = conn.QueryRow(bare(t), "select name from pg_prepared_statements where statement like 'set local role%'").Scan(&name)
	check(t, "its name", err)
	_, err = conn.Exec(bare(t), "rollback to savepoint s")
	check(t, "rollback to savepoint", err)
	_, err = tx.Exec(bare(t), "execute "+pgx.Identifier{name}.Sanitize())
	checkIs(t, "EXECUTE", err, pgtenancy.ErrStatementRefused)
	err = tx.QueryRow(bare(t), "select current_user::text").Scan(&role)
	check(t, "current_user", want(err, role == acme.Role(), "it became %s", role))
}

// What is refused by its text where the tenant has a role.
func TestRoleStatements(t *testing.T) {
	t.Parallel()
	db := newRolesDB(t)
	fleet := db.newFleet(t)
	acme := lookup(t, fleet, "acme")
	pool := fleet.Pool()
	for _, sql := range []string{
		"set role none", "set local role none", "Set /* x */ Local -- x\n rOLe none", ";;set session role none", `set local "role" = 'none'`,
		`set local U&"\0072ole" = 'none'`, "reset role", `reset "role"`, "reset all", "set session authorization default", "set local session authorization default",
		"reset session authorization", "set session_authorization = default", "discard all", "set app.current_tenant = 'globex'",
		"set local App . /* x */ Current_Tenant = 'globex'", `set local app."current_tenant" = 'globex'`, "reset app.current_tenant", "set local pgtenancy.find = 'x'",
		"set", "set local", "reset", "discard",
		"execute p", `/* x */ Execute"p"('x')`, "explain execute p", "explain (costs off)execute p", "explain analyze /* x */ EXECUTE p",
		"create table x as execute p", "explain create table x with (a = 'x\\'') as execute p --'", "create table x as--\nexecute p",
	} {
		_, err := pool.Exec(as(t, acme), sql)
		checkIs(t, "alone: "+sql, err, pgtenancy.ErrStatementRefused)
		tx, err := pool.Begin(as(t, acme))
		if err != nil {
			t.Fatal(err)
		}
		for _, err := range sendAll(t, tx, bare(t), sql) {
			checkIs(t, "in a transaction: "+sql, err, pgtenancy.ErrStatementRefused)
		}
		check(t, "Rollback", tx.Rollback(bare(t)))
		check(t, "AcquireFunc", pool.AcquireFunc(as(t, acme), func(c *pgtenancy.Conn) error {
			for _, err := range sendAll(t, c, bare(t), sql) {
				checkIs(t, "on a connection: "+sql, err, pgtenancy.ErrStatementRefused)
			}
			return nil
		}))
	}
	tx, err := pool.Begin(as(t, acme))
	if err != nil {
		t.Fatal(err)
	}
	for _, sql := range []string{
		"set local statement_timeout = '1min'", "set local my.role = 'x'", "set local search_path = tenant_globex, public", "set constraints all deferred",
		"set transaction isolation level read committed", "explain select 1 as executes",
	} {
		_, err := tx.Exec(bare(t), sql)
		if sqlState(err) == "25001" { // too late for it
			continue
		}
		check(t, sql, err)
	}
	check(t, "Rollback", tx.Rollback(bare(t)))
	check(t, "AcquireFunc", pool.AcquireFunc(as(t, acme), func(c *pgtenancy.Conn) error {
		for _, sql := range []string{"set work_mem = '1MB'", "reset work_mem", "discard plans", "listen x", "set session characteristics as transaction read write"} {
			_, err := c.Exec(bare(t), sql)
			check(t, sql, err)
		}
		return nil
	}))
}

// A policy goes by the role for tenants' roles, whatever the setting says, and by the setting for others.
func TestPolicyIsolateRoles(t *testing.T) {
	t.Parallel()
	db := newRolesDB(t)
	policy := pgtenancy.Policy{Table: pgx.Identifier{"public", "events"}, Type: "int", Role: db.app, IsolateRoles: db.group}
	finder := policy.FinderSQL(pgx.Identifier{"public", "find_event"}, "id", "what")
	db.execAs(t, db.owner, fmt.Sprintf(`create table events (id int generated always as identity primary key, tenant_id int not null, what text);
		grant select, insert on events to %s, %s;`, db.group, db.app)+policy.SQL()+finder)
	for _, n := range []int{7, 8} {
		db.exec(t, fmt.Sprintf(`create role "%s:%d" in role %[1]s; grant "%[1]s:%[2]d" to %s; insert into events (tenant_id, what) select %[2]d, 'of %[2]d' from generate_series(1, 2000)`, db.group, n, db.app))
	}
	db.exec(t, "analyze events")
	for name, role := range map[string]string{"a tenant's role": fmt.Sprintf(`"%s:7"`, db.group), "the owner": db.owner, "the application's": db.app, "the group": db.group} {
		conn := db.admin(t)
		_, err := conn.Exec(bare(t), fmt.Sprintf("set app.current_tenant = '8'; set role %s", role), pgx.QueryExecModeSimpleProtocol)
		check(t, name, err)
		var got int
		check(t, name, conn.QueryRow(bare(t), "select tenant_id from events group by 1").Scan(&got))
		var made int
		check(t, name, conn.QueryRow(bare(t), "insert into events (what) values ('x') returning tenant_id").Scan(&made))
		want := 8
		if name == "a tenant's role" {
			want = 7
			plan, err := conn.Query(bare(t), "explain select * from events")
			check(t, "explain", err)
			lines, err := pgx.CollectRows(plan, pgx.RowTo[string])
			check(t, "explain", err)
			if !strings.Contains(strings.Join(lines, "\n"), "Index Cond") {
				t.Errorf("no index is searched: %q", lines)
			}
			_, err = conn.Exec(bare(t), "insert into events (tenant_id) values (8)")
			checkCode(t, "a row of another tenant", err, "42501")
		}
		checkEqual(t, name+" reads the rows of", got, want)
		checkEqual(t, name+" makes one of", made, want)
		conn.Close(bare(t))
	}
	var tenant int
	check(t, "the finder", db.as(t, db.app).QueryRow(bare(t), "select tenant_id from find_event(1)").Scan(&tenant))
	checkEqual(t, "the finder's tenant", tenant, 7)
	for _, group := range []string{"none", "x:y", "X"} {
		func() {
			defer func() {
				err, _ := recover().(error)
				checkInvalid(t, group, err, "Policy.IsolateRoles")
			}()
			_ = pgtenancy.Policy{Table: pgx.Identifier{"public", "events"}, IsolateRoles: group}.SQL()
		}()
	}
}
