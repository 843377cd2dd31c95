package pgtenancy

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy/internal/ident"
)

// auditSteps are the statements that make the audit log, in version 2 of the registry.
//
// A row has the transaction that wrote it in xact: its number, plus 2^48 for each time that the database was found in another cluster,
// as after pg_dump, where the numbers begin anew. All rows of numbers below a snapshot's xmin are there or never will be.
//
// The owner reads the log outside of any tenant's scope and writes to it with INSERT only, although row level security is forced.
var auditSteps = []string{
	`create index tenants_role_name on pgtenancy.tenants (role_name) where role_name <> ''`,
	`create sequence pgtenancy.audit_id`,
	`create table pgtenancy.audit (
		xact bigint not null, -- see pgtenancy.audit_xact
		id bigint not null default nextval('pgtenancy.audit_id'),
		recorded_at timestamptz not null default clock_timestamp(),
		tenant_id text not null, -- '' for what belongs to none
		at timestamptz not null, -- this and the others as in AuditEvent
		actor text not null,
		action text not null,
		method text not null,
		route text not null,
		status int not null,
		duration_us bigint not null,
		request_id text not null,
		client inet,
		fields json, -- as it came, also what jsonb would refuse
		primary key (xact, id, recorded_at)
	) partition by range (recorded_at)`,
	`create index audit_tenant_id on pgtenancy.audit (tenant_id, recorded_at, id)`,
	`create table pgtenancy.audit_default partition of pgtenancy.audit default`,
	`alter table pgtenancy.audit_default enable row level security`, // without a policy, as all partitions
	`create table pgtenancy.audit_state (
		base bigint not null, -- what xact adds to the numbers of this cluster's transactions
		next_xact bigint not null, -- rows from here on are not sealed
		next_id bigint not null,
		trimmed_before timestamptz not null -- older months are gone
	)`,
	`create unique index audit_state_one_row on pgtenancy.audit_state ((true))`,
	`insert into pgtenancy.audit_state values (0, 0, 0, '-infinity')`,
	`create table pgtenancy.audit_seals ( -- the chains; see auditSeal
		tenant_id text not null,
		seq bigint not null, -- from 1, without a gap
		month timestamptz not null, -- of its rows
		row_count bigint not null,
		total bigint not null, -- rows from the beginning, with these
		ids bigint[], -- in order; null where the rows were trimmed, as digests
		digests bytea[],
		content bytea not null,
		hash bytea not null,
		sealed_at timestamptz not null default now(),
		primary key (tenant_id, seq)
	)`,
	`create index audit_seals_month on pgtenancy.audit_seals (month, tenant_id)`,
	`create table pgtenancy.audit_anchors ( -- the seal before the first that is there
		tenant_id text primary key,
		seq bigint not null,
		total bigint not null,
		hash bytea not null
	)`,
	`create function pgtenancy.audit_xact() returns bigint language sql set search_path = pg_catalog, pg_temp as $$
		select s.base + c.xid + case when s.base + c.xid < s.next_xact then 1::bigint << 48 else 0 end
		from pgtenancy.audit_state s, (select pg_current_xact_id()::text::bigint as xid) c
	$$`,
	// The tenant of a scope: the one whose role it is, where that is one tenant's only, otherwise the one whose schema it is.
	`create function pgtenancy.audit_scope(in_schema text, in_role text, out tenant_id text, out created_at timestamptz)
	language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
	begin
		if in_role not in ('', 'none') and (select count(*) from pgtenancy.tenants t where t.role_name = in_role and t.role_name <> '') = 1 then
			select t.id, t.created_at into tenant_id, created_at from pgtenancy.tenants t where t.role_name = in_role and t.role_name <> '';
			return;
		end if;
		select t.id, t.created_at into tenant_id, created_at from pgtenancy.tenants t where t.schema_name = in_schema;
	end $$`,
	`alter table pgtenancy.audit enable row level security`,
	`alter table pgtenancy.audit force row level security`,
	// Not what a customer before wrote, who had the same ID and was purged.
	`create policy audit_read on pgtenancy.audit for select using (
		tenant_id = (select s.tenant_id from pgtenancy.audit_scope(current_schema()::text, current_setting('role')) s)
		and recorded_at >= (select s.created_at from pgtenancy.audit_scope(current_schema()::text, current_setting('role')) s))`,
	`create policy audit_owner on pgtenancy.audit for select to current_user using (
		(select s.tenant_id from pgtenancy.audit_scope(current_schema()::text, current_setting('role')) s) is null)`,
	`create policy audit_append on pgtenancy.audit for insert to current_user with check (true)`,
	`create function pgtenancy.append_audit_in(in_schema text, in_role text, tenants text[], ats timestamptz[], actors text[], actions text[],
		methods text[], routes text[], statuses int[], durations bigint[], request_ids text[], clients text[], field_sets text[]) returns bigint
	language plpgsql set search_path = pg_catalog, pg_temp set row_security = on as $$
	declare
		mine text;
		appended bigint;
		x bigint := pgtenancy.audit_xact();
	begin
		select s.tenant_id into mine from pgtenancy.audit_scope(in_schema, in_role) s;
		if mine is not null and exists (select from unnest(tenants) t where t is distinct from mine) then
			raise 'only tenant % may be audited in its scope', mine using errcode = 'insufficient_privilege';
		end if;
		insert into pgtenancy.audit (xact, tenant_id, at, actor, action, method, route, status, duration_us, request_id, client, fields)
		select x, e.tenant_id, e.at, e.actor, e.action, e.method, e.route, e.status, e.duration_us, e.request_id,
			nullif(e.client, '')::inet, nullif(e.fields, '')::json
		from unnest(tenants, ats, actors, actions, methods, routes, statuses, durations, request_ids, clients, field_sets)
			with ordinality e (tenant_id, at, actor, action, method, route, status, duration_us, request_id, client, fields, n)
		order by e.n;
		get diagnostics appended = row_count;
		return appended;
	end $$`,
	// It hands on the caller's path and role: a fixed path of its own would hide the first. Its body was parsed here, so that it needs
	// none.
	`create function pgtenancy.append_audit(tenants text[], ats timestamptz[], actors text[], actions text[], methods text[], routes text[],
		statuses int[], durations bigint[], request_ids text[], clients text[], field_sets text[]) returns bigint
	language sql volatile security definer
	return pgtenancy.append_audit_in(pg_catalog.current_schema()::pg_catalog.text, pg_catalog.current_setting('role'), tenants, ats, actors,
		actions, methods, routes, statuses, durations, request_ids, clients, field_sets)`,
	// SET LOCAL, since a tenant's role may not be allowed to call set_config.
	`create function pgtenancy.audit_actor(actor text) returns void language plpgsql as $$
	begin
		execute pg_catalog.format('set local pgtenancy.actor = %L', coalesce(actor, ''));
	end $$`,
	// The tenant is the one whose schema the table is in, whatever the statement's scope. Migrations run without row_security.
	`create function pgtenancy.audit_row() returns trigger language plpgsql security definer
	set search_path = pg_catalog, pg_temp set row_security = on as $$
	declare
		tenant text;
		was jsonb;
		became jsonb;
	begin
		select t.id into tenant from pgtenancy.tenants t
		where t.schema_name = tg_table_schema and t.state <> 'provisioning' and t.created_at <> now(); -- not in the transaction that makes it
		if not found then
			return null;
		end if;
		if tg_op in ('UPDATE', 'DELETE') then
			was := to_jsonb(old) - coalesce(tg_argv, '{}');
		end if;
		if tg_op in ('INSERT', 'UPDATE') then
			became := to_jsonb(new) - coalesce(tg_argv, '{}');
		end if;
		if tg_op = 'UPDATE' then
			select jsonb_object_agg(n.key, n.value) into became from jsonb_each(became) n where n.value is distinct from was -> n.key;
			if became is null then
				return null;
			end if;
		end if;
		insert into pgtenancy.audit (xact, tenant_id, at, actor, action, method, route, status, duration_us, request_id, fields)
		values (pgtenancy.audit_xact(), tenant, clock_timestamp(), coalesce(current_setting('pgtenancy.actor', true), ''), lower(tg_op), '', '', 0, 0, '',
			jsonb_build_object('table', tg_table_name, 'role', session_user)
				|| case when was is null then '{}' else jsonb_build_object('old', was) end
				|| case when became is null then '{}' else jsonb_build_object('new', became) end);
		return null;
	end $$`,
	`revoke all on pgtenancy.audit, pgtenancy.audit_default, pgtenancy.audit_state, pgtenancy.audit_seals, pgtenancy.audit_anchors from public`,
	`revoke all on function pgtenancy.audit_xact(), ` + appendAuditInSignature + `, ` + appendAuditSignature + `, ` + auditActorSignature + `, ` +
		auditScopeSignature + `, pgtenancy.audit_row() from public`,
}

// The signatures of functions of the audit log.
const (
	auditScopeSignature    = `pgtenancy.audit_scope (text, text)`
	auditActorSignature    = `pgtenancy.audit_actor (text)`
	appendAuditArguments   = `text[], timestamptz[], text[], text[], text[], text[], int[], bigint[], text[], text[], text[])`
	appendAuditSignature   = `pgtenancy.append_audit (` + appendAuditArguments
	appendAuditInSignature = `pgtenancy.append_audit_in (text, text, ` + appendAuditArguments
)

// auditTables are the tables that only the owner may change, and of which others may read the first.
var auditTables = []string{"audit", "audit_default", "audit_state", "audit_seals", "audit_anchors"}

// auditGrants returns the statements that let a role append to the audit log and read what row level security shows it, and
// that take from it what default privileges may have given.
func auditGrants(role string) []string {
	role = ident.Quote(role)
	tables := make([]string, len(auditTables))
	for i, t := range auditTables {
		tables[i] = ident.QuoteAll("pgtenancy", t)
	}
	return []string{
		`revoke all on ` + strings.Join(tables, ", ") + ` from ` + role,
		`revoke all on sequence pgtenancy.audit_id from ` + role,
		`grant usage on schema pgtenancy to ` + role,
		`grant select on pgtenancy.audit to ` + role,
		`grant execute on function ` + auditScopeSignature + `, ` + auditActorSignature + `, ` + appendAuditSignature + ` to ` + role,
	}
}

// auditGranted reports whether a role has what auditGrants gives, and no more.
func auditGranted(ctx context.Context, tx pgx.Tx, role string) (ok bool, err error) {
	err = tx.QueryRow(ctx, `select has_table_privilege($1, 'pgtenancy.audit', 'select')
			and not has_table_privilege($1, 'pgtenancy.audit', 'insert, update, delete, truncate, references, trigger')
			and not has_table_privilege($1, 'pgtenancy.audit_default', 'select, insert, update, delete, truncate, references, trigger')
			and not has_table_privilege($1, 'pgtenancy.audit_state', 'select, insert, update, delete, truncate, references, trigger')
			and not has_table_privilege($1, 'pgtenancy.audit_seals', 'select, insert, update, delete, truncate, references, trigger')
			and not has_table_privilege($1, 'pgtenancy.audit_anchors', 'select, insert, update, delete, truncate, references, trigger')
			and has_schema_privilege($1, 'pgtenancy', 'usage')
			and has_function_privilege($1, $2, 'execute') and has_function_privilege($1, $3, 'execute') and has_function_privilege($1, $4, 'execute')`,
		role, auditScopeSignature, auditActorSignature, appendAuditSignature).Scan(&ok)
	return ok, err
}

// prepareAudit makes the partitions that are missing, and grants the application's role and the group of tenants' roles what
// auditGrants says, where they have not got that yet.
func (f *Fleet) prepareAudit(ctx context.Context, tx pgx.Tx) error {
	if err := f.makeAuditPartitions(ctx, tx); err != nil {
		return err
	}
	for _, role := range []string{f.appRole, f.roles} {
		if role == "" {
			continue
		}
		granted, err := auditGranted(ctx, tx, role)
		if err != nil {
			return err
		}
		if granted {
			continue
		}
		for _, sql := range auditGrants(role) {
			if _, err := tx.Exec(ctx, sql); err != nil {
				return err
			}
		}
	}
	return nil
}

// auditAhead is the number of months after the present one for which there are partitions.
const auditAhead = 2

// auditMonth returns the beginning of the month of t, in UTC as all partitions.
func auditMonth(t time.Time) time.Time {
	t = t.UTC()
	return time.Date(t.Year(), t.Month(), 1, 0, 0, 0, 0, time.UTC)
}

func auditPartition(month time.Time) string { return month.Format("audit_2006_01") }

// makeAuditPartitions makes the partitions of this month and the next, where they are missing. It takes no lock that keeps others
// from appending, and waits no longer than LockTimeoutDefault for those who read the default partition: the next call makes them
// then. Rows of a month that has none go to the default partition, and then so do all of that month.
func (f *Fleet) makeAuditPartitions(ctx context.Context, tx pgx.Tx) error {
	var now time.Time
	var timeout string
	err := tx.QueryRow(ctx, `select clock_timestamp(), current_setting('lock_timeout') from pg_advisory_xact_lock($1)`, auditLock).Scan(&now, &timeout)
	if err != nil {
		return err
	}
	for i := range auditAhead + 1 {
		from := auditMonth(now).AddDate(0, i, 0)
		until := from.AddDate(0, 1, 0)
		var made bool
		err := tx.QueryRow(ctx, `select to_regclass($1) is not null or exists (select from pgtenancy.audit_default where recorded_at >= $2 and recorded_at < $3)`,
			"pgtenancy."+auditPartition(from), from, until).Scan(&made)
		if err != nil {
			return err
		}
		if made {
			continue
		}
		table := ident.QuoteAll("pgtenancy", auditPartition(from))
		revoked := "public"
		if f.appRole != "" {
			revoked += ", " + ident.Quote(f.appRole)
		}
		err = pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
			for _, sql := range []string{
				`select set_config('lock_timeout', ` + ident.Literal(timeoutSetting(LockTimeoutDefault)) + `, true)`,
				`create table ` + table + ` (like pgtenancy.audit including defaults)`,
				`alter table ` + table + ` enable row level security`,
				`revoke all on ` + table + ` from ` + revoked,
				fmt.Sprintf(`alter table pgtenancy.audit attach partition %s for values from ('%s') to ('%s')`, table, from.Format(time.RFC3339), until.Format(time.RFC3339)),
				`select set_config('lock_timeout', ` + ident.Literal(timeout) + `, true)`,
			} {
				if _, err := tx.Exec(ctx, sql); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil && !isCode(err, "55P03", "23514") { // lock_not_available; check_violation: a row has come to the default partition
			return err
		}
	}
	return nil
}
