package pgtenancy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgtenancy/pgtenancy/internal/ident"
	"github.com/pgtenancy/pgtenancy/internal/wire"
)

// roleSeparator stands between the name of the group and what PoolConfig.SettingValue makes of a tenant, in the name of the
// tenant's role. No group's name has one, so that a role's name says whose it is.
const roleSeparator = ":"

// checkRoles checks the name of a group; "" is none.
func checkRoles(field, group string) error {
	switch group {
	case "public", "none":
		return invalid(field, group, "must not be 'public' or 'none', which PostgreSQL reserves")
	}
	return invalid(field, group, ident.CheckPrefix(group))
}

// IsolateRolesSQL returns the statements that prepare a database for FleetConfig.IsolateRoles. A superuser runs them in it once,
// before Open; they may be run again. group is IsolateRoles, app the role that the application logs in as, and owner that of
// FleetConfig.Owner. These two must be there.
//
// The statements make the group, and let the owner make tenants' roles. They also take from PUBLIC what SQL could leave its role
// with, or leave something behind with, and give it to the owner, and where needed to app: EXECUTE on set_config, and on
// pg_prepared_statement, which shows the statements of others who had the connection before; USAGE on the trusted languages, which
// DO and CREATE FUNCTION ask for; TEMPORARY and CREATE on the database; CREATE on its schemas. Other roles that need one of these
// in the database have to be granted it: pg_dump, for one, calls set_config. Functions that are there are called as before.
//
// Before PostgreSQL 16, app becomes NOINHERIT, which holds in all databases of the server and for all roles that it is a member of,
// and with CREATEROLE the owner can grant itself any role that is no superuser.
//
// It panics with an *InvalidError where a name breaks a rule.
func IsolateRolesSQL(group, app, owner string) string {
	check := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	if group == "" {
		check(invalid("IsolateRolesSQL's group", group, "must not be empty"))
	}
	check(checkRoles("IsolateRolesSQL's group", group))
	check(invalid("IsolateRolesSQL's app", app, ident.CheckName(app)))
	check(invalid("IsolateRolesSQL's owner", owner, ident.CheckName(owner)))
	body := strings.NewReplacer(
		"{group}", ident.Quote(group), "{app}", ident.Quote(app), "{owner}", ident.Quote(owner),
		"{'group'}", ident.Literal(group), "{'app'}", ident.Literal(app), "{'owner'}", ident.Literal(owner),
	).Replace(`
declare
    name text;
begin
    if not exists (select from pg_catalog.pg_roles where rolname = {'group'}) then
        create role {group} nologin;
    end if;
    alter role {owner} createrole;
    if pg_catalog.current_setting('server_version_num')::int >= 160000 then
        execute pg_catalog.format('grant %I to %I with admin true, inherit false, set false', {'group'}, {'owner'});
    else
        grant {group} to {owner} with admin option;
        alter role {app} noinherit;
    end if;
    for name in select p.oid::pg_catalog.regprocedure::text from pg_catalog.pg_proc p where p.prosrc in ('set_config_by_name', 'pg_prepared_statement') loop
        execute pg_catalog.format('revoke execute on function %s from public', name);
        execute pg_catalog.format('grant execute on function %s to %I, %I', name, {'app'}, {'owner'});
    end loop;
    for name in select l.lanname from pg_catalog.pg_language l where l.lanpltrusted loop
        execute pg_catalog.format('revoke usage on language %I from public', name);
        execute pg_catalog.format('grant usage on language %I to %I', name, {'owner'});
    end loop;
    for name in select n.nspname from pg_catalog.pg_namespace n where pg_catalog.has_schema_privilege('public', n.oid, 'create') loop
        execute pg_catalog.format('revoke create on schema %I from public', name);
        execute pg_catalog.format('grant create on schema %I to %I', name, {'owner'});
    end loop;
    name := pg_catalog.current_database();
    execute pg_catalog.format('revoke temporary, create on database %I from public', name);
    execute pg_catalog.format('grant temporary on database %I to %I, %I', name, {'app'}, {'owner'});
end
`)
	return "do " + dollarQuote(body) + ";\n"
}

// isolated checks that the database is one in which the roles of tenants are a wall. Its error is ErrNotIsolated.
func (f *Fleet) isolated(ctx context.Context) error {
	if f.roles == "" {
		return nil
	}
	owner, app, login := f.owner.cfg.Conns.ConnConfig.User, f.appRole, f.pool.cfg.Conns.ConnConfig.User
	logins := []string{app, login}
	if f.pool.cfg.Direct != nil {
		logins = append(logins, f.pool.cfg.Direct.ConnConfig.User)
	}
	if app == "" || slices.Contains(logins, owner) {
		return fmt.Errorf("%w: PoolConfig's connections and FleetConfig.Owner must be of two roles, and are of %q", ErrNotIsolated, owner)
	}
	var wrong []string
	var what *string
	rows, _ := f.owner.conns.Query(ctx, isolatedSQL, f.roles, logins, owner, f.roles+roleSeparator) // the error is in rows
	_, err := pgx.ForEachRow(rows, []any{&f.options, &what}, func() error {
		if what != nil {
			wrong = append(wrong, *what)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("pgtenancy: read whether roles isolate tenants: %w", err)
	}
	if len(wrong) > 0 {
		return fmt.Errorf("%w: %s: see IsolateRolesSQL(%q, %q, %q)", ErrNotIsolated, strings.Join(wrong, "; "), f.roles, app, owner)
	}
	return nil
}

// isolatedSQL selects what is wrong with a database for roles of tenants, and in each row, of which there is at least one, whether
// memberships have options, as from PostgreSQL 16 on. $1 is the group, $2 the application's roles of which the first one is granted
// all tenants', $3 the owner, and $4 how the names of tenants' roles begin. A tenant's role may do what the group may, and PUBLIC.
const isolatedSQL = `
	with v as (select pg_catalog.current_setting('server_version_num')::int >= 160000 as options,
		(select g.oid from pg_catalog.pg_roles g where g.rolname = $1) as grp, (select o.oid from pg_catalog.pg_roles o where o.rolname = $3) as own),
	tenant as materialized (select r.* from pg_catalog.pg_roles r, v where r.oid = v.grp or pg_catalog.starts_with(r.rolname::text, $4)),
	app as materialized (select r.*, r.rolname = ($2::text[])[1] as granted from pg_catalog.pg_roles r where r.rolname = any($2)),
	member as materialized (
		select m.roleid, m.member, r.rolname as role_name, u.rolname as member_name, (pg_catalog.to_jsonb(m) ->> 'inherit_option')::bool as inherits
		from pg_catalog.pg_auth_members m join pg_catalog.pg_roles r on r.oid = m.roleid join pg_catalog.pg_roles u on u.oid = m.member
		where m.roleid in (select t.oid from tenant t) or m.member in (select t.oid from tenant t)
	)
	select v.options, x.what from v left join lateral (
		select 1 as rank, pg_catalog.format('there is no role %I', $1) as what where v.grp is null
		union all select 2, pg_catalog.format('there is no role %I', a) from unnest($2::text[]) a where not exists (select from app where app.rolname = a)
		union all (select 3, pg_catalog.format('%I must be NOLOGIN, and have no attribute as SUPERUSER, BYPASSRLS or CREATEROLE', t.rolname) from tenant t
			where t.rolcanlogin or t.rolsuper or t.rolbypassrls or t.rolcreaterole or t.rolcreatedb or t.rolreplication order by 2 limit 3)
		union all select distinct 4, pg_catalog.format('%I must not be SUPERUSER or BYPASSRLS, nor a member of %I', a.rolname, $3) from app a
			where a.rolsuper or a.rolbypassrls or pg_catalog.pg_has_role(a.oid, v.own, 'member')
		union all select 5, pg_catalog.format('%I must be NOINHERIT', a.rolname) from app a where a.granted and a.rolinherit and not v.options
		union all (select 6, pg_catalog.format('%I must not inherit from %I', m.member_name, m.role_name) from member m
			where v.options and m.inherits and m.roleid <> v.grp and m.member in (select a.oid from app a) order by 2 limit 3)
		union all (select 7, pg_catalog.format('%I must not be a member of %I', m.member_name, m.role_name) from member m
			where case when m.member in (select t.oid from tenant t) then m.roleid <> v.grp or m.member = v.grp
				else m.member <> v.own and (m.roleid = v.grp or m.member not in (select a.oid from app a where a.granted)) end order by 2 limit 3)
		union all select 8, pg_catalog.format('%I must not be allowed to call %s', $1, p.oid::pg_catalog.regprocedure) from pg_catalog.pg_proc p
			where p.prosrc in ('set_config_by_name', 'pg_prepared_statement') and pg_catalog.has_function_privilege(v.grp, p.oid, 'execute')
		union all select 9, pg_catalog.format('%I must be allowed to call %s', r.rolname, p.oid::pg_catalog.regprocedure) from pg_catalog.pg_proc p, pg_catalog.pg_roles r
			where p.oid = 'pg_catalog.set_config(text,text,boolean)'::pg_catalog.regprocedure and r.rolname = any($2 || $3::text)
				and not pg_catalog.has_function_privilege(r.oid, p.oid, 'execute')
		union all select 10, pg_catalog.format('%I must have no USAGE on the language %I', $1, l.lanname) from pg_catalog.pg_language l
			where l.lanpltrusted and pg_catalog.has_language_privilege(v.grp, l.oid, 'usage')
		union all select 11, pg_catalog.format('%I must not have %s on the database', $1, p) from unnest(array['TEMPORARY', 'CREATE']) p
			where pg_catalog.has_database_privilege(v.grp, pg_catalog.current_database(), p)
		union all (select 12, pg_catalog.format('%I must not have CREATE on the schema %I', $1, n.nspname) from pg_catalog.pg_namespace n
			where pg_catalog.has_schema_privilege(v.grp, n.oid, 'create') order by 2 limit 3)
		union all (select 13, pg_catalog.format('%I must have no privilege on %s', $1, c.oid::pg_catalog.regclass)
			from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
			where n.nspname = 'pgtenancy' and c.relkind in ('r', 'p') and pg_catalog.has_table_privilege(v.grp, c.oid,
				'insert, update, delete, truncate' || case when c.relname = 'audit' then '' else ', select' end) order by 2 limit 3)
		union all select 13, pg_catalog.format('%I must not be allowed to call %s', $1, p.oid::pg_catalog.regprocedure)
			from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
			where n.nspname = 'pgtenancy' and p.proname = 'enter' and pg_catalog.has_function_privilege(v.grp, p.oid, 'execute')
		union all select 14, pg_catalog.format('%I must have CREATEROLE, and ADMIN OPTION on %I', $3, $1) from pg_catalog.pg_roles o
			where o.oid = v.own and not o.rolsuper and not (o.rolcreaterole and pg_catalog.pg_has_role(o.oid, v.grp, 'member with admin option'))
		union all select 15, pg_catalog.format('%I must not be allowed to call functions of the extension xml2, which run SQL that they are given', $1)
			where exists (select from pg_catalog.pg_extension e join pg_catalog.pg_depend d on d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass and d.refobjid = e.oid
				where e.extname = 'xml2' and d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass and pg_catalog.has_function_privilege(v.grp, d.objid, 'execute'))
		union all select 16, 'lo_compat_privileges must be off' where pg_catalog.current_setting('lo_compat_privileges')::bool
	) x on true order by x.rank, x.what`

// withRole returns t with the role that it is to have: none without FleetConfig.IsolateRoles.
func (f *Fleet) withRole(t Tenant) (Tenant, error) {
	if t.role = ""; f.roles == "" {
		return t, nil
	}
	value := f.pool.cfg.SettingValue(t)
	if value == "" {
		return Tenant{}, invalid("PoolConfig.SettingValue", value, "must not be empty for tenant "+t.id+", whose role is named by it")
	}
	t.role = f.roles + roleSeparator + value
	return t, invalid("Tenant.Role", t.role, ident.CheckName(t.role))
}

// roleSteps make the role of a new tenant. One that is there already is never taken: nobody knows what it may do.
func (f *Fleet) roleSteps(t Tenant) []wire.Step {
	if t.role == "" {
		return nil
	}
	return []wire.Step{{SQL: "create role " + ident.Quote(t.role) + " nologin"}}
}

// joinSteps make the tenant's role a member of the group, and let the application take it on. They lock the group until the end of
// the transaction, for all who provision, and so come last.
func (f *Fleet) joinSteps(t Tenant) []wire.Step {
	if t.role == "" {
		return nil
	}
	role, assume, inherit := ident.Quote(t.role), "", ""
	if f.options {
		assume, inherit = " with inherit false, set true", " with inherit true, set false"
	}
	return []wire.Step{
		{SQL: "grant " + role + " to " + ident.Quote(f.appRole) + assume},
		{SQL: "grant " + ident.Quote(f.roles) + " to " + role + inherit},
	}
}

// revokeSteps take from the application's role what grantSteps give it where tenants have no roles.
func (f *Fleet) revokeSteps(schema string) []wire.Step {
	path, role := ident.Quote(schema), ident.Quote(f.appRole)
	return []wire.Step{
		{SQL: "revoke usage on schema " + path + " from " + role},
		{SQL: "alter default privileges in schema " + path + " revoke all on tables from " + role},
		{SQL: "alter default privileges in schema " + path + " revoke all on sequences from " + role},
		{SQL: "revoke all on all tables in schema " + path + " from " + role},
		{SQL: "revoke all on all sequences in schema " + path + " from " + role},
	}
}

// IsolateTenants gives a role to each tenant that has none, for a fleet that was there before FleetConfig.IsolateRoles: until
// then, Pool refuses such a tenant with ErrNotIsolated. It returns the number of tenants that it changed.
//
// Migrate has to run before, with IsolateRoles: it gives the group what tenants need besides their schemas.
//
// What the application's role itself may do in a tenant's schema is left to it at first, for processes that do not know of the
// tenant's role yet. Where a tenant has a role already, that is taken away. So call it twice: once before any process with
// IsolateRoles serves, and again when no process without it does.
//
// Each tenant is a transaction of its own, deleted ones included. It goes on past a tenant that fails, and returns an *EachError
// that lists those: with ErrTenantInUse where others were at work on one for longer than ChangeWaitDefault, with ErrTenantExists
// where its role is there already, with an *InvalidError where that would have no legal name. Called again, it does what is left.
func (f *Fleet) IsolateTenants(ctx context.Context) (int, error) {
	if f.roles == "" {
		return 0, invalid("FleetConfig.IsolateRoles", "", "must not be empty for IsolateTenants")
	}
	if err := f.registryReady(ctx); err != nil {
		return 0, err
	}
	rows, _ := f.owner.conns.Query(ctx, `select t.id from pgtenancy.tenants t where t.role_name = '' or exists (
			select from pg_catalog.pg_namespace n where n.nspname = coalesce(t.deleted_schema, t.schema_name)
				and pg_catalog.has_schema_privilege($1, n.oid, 'usage')) order by t.id`, f.appRole) // the error is in rows
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return 0, fmt.Errorf("pgtenancy: isolate tenants: %w", err)
	}
	done := 0
	var failed []TenantError
	for _, id := range ids {
		t, err := f.isolate(ctx, id)
		switch {
		case err == nil:
			done++
		case ctx.Err() != nil:
			return done, fmt.Errorf("pgtenancy: isolate tenants: %w", err)
		case !errors.Is(err, ErrTenantNotFound): // it was purged meanwhile
			failed = append(failed, TenantError{t, changeError("isolation", id, err)})
		}
	}
	if len(failed) > 0 {
		return done, &EachError{failed}
	}
	return done, nil
}

// isolate gives one tenant a role, or where it has one takes its schema from the application's role.
func (f *Fleet) isolate(ctx context.Context, id string) (Tenant, error) {
	t := Tenant{id: id}
	err := f.withOwner(ctx, func(wc *conn) error {
		return f.locked(ctx, wc, id, 0, true, func(r *tenantRow) error {
			t = r.Tenant
			var exists bool
			err := wc.Pgx().QueryRow(ctx, `select exists (select from pg_catalog.pg_namespace n where n.nspname = $1)`, r.schemaNow()).Scan(&exists)
			if err != nil {
				return err
			}
			if r.role != "" {
				if exists {
					_, err = wc.Run(ctx, f.revokeSteps(r.schemaNow()))
				}
				return err
			}
			if t, err = f.withRole(r.Tenant); err != nil {
				return err
			}
			steps := append(f.roleSteps(t), wire.Step{SQL: `update pgtenancy.tenants set role_name = $2, updated_at = now() where id = $1`, Args: []any{id, t.role}})
			if exists {
				now := t
				now.schema, now.path = r.schemaNow(), ident.Quote(r.schemaNow())
				steps = append(steps, f.grantSteps(now, true)...)
			}
			_, err = wc.Run(ctx, append(append(steps, notifyStep(id)), f.joinSteps(t)...))
			if roleTaken(t, err) {
				err = fmt.Errorf("%w: %w", errRoleExists(t), err)
			}
			return err
		})
	})
	if err == nil {
		f.directory.renew(id, 0)
	}
	return t, err
}

// join runs joinSteps.
func (f *Fleet) join(ctx context.Context, wc *conn, t Tenant) error {
	if t.role == "" {
		return nil
	}
	_, err := wc.Run(ctx, f.joinSteps(t))
	return err
}

// roleTaken reports whether err is that t's role is there already.
func roleTaken(t Tenant, err error) bool {
	var pgErr *pgconn.PgError
	if t.role == "" || !errors.As(err, &pgErr) {
		return false
	}
	return pgErr.Code == "42710" && strings.Contains(pgErr.Message, `"`+t.role+`"`) || // duplicate_object
		pgErr.Code == "23505" && pgErr.TableName == "pg_authid" // of two who make it at once
}

func errRoleExists(t Tenant) error {
	return fmt.Errorf("%w: there is a role %s already, which is another database's, or of a tenant that was purged; "+
		"each database of a server needs a FleetConfig.IsolateRoles of its own", ErrTenantExists, ident.Quote(t.role))
}

// dropRole drops the role of a tenant that is being purged, after its schema. What it owns, and what somebody has granted to it, here
// or in another database of the server, is in the way of that: it stays then, and kept says why.
func dropRole(ctx context.Context, wc *conn, role string) (kept string, err error) {
	if _, err := wc.Run(ctx, []wire.Step{{SQL: "savepoint drop_role"}}); err != nil {
		return "", err
	}
	_, err = wc.Run(ctx, []wire.Step{{SQL: "drop role if exists " + ident.Quote(role)}})
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && slices.Contains([]string{"2BP01", "42501", "55006"}, pgErr.Code) { // dependent objects, insufficient privilege, object in use
		kept = pgErr.Message
		if pgErr.Detail != "" {
			kept += ": " + strings.ReplaceAll(pgErr.Detail, "\n", "; ")
		}
		_, err = wc.Run(ctx, []wire.Step{{SQL: "rollback to savepoint drop_role"}})
	}
	return kept, err
}
