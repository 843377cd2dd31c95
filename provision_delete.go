package pgtenancy

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy/internal/ident"
	"github.com/pgtenancy/pgtenancy/internal/wire"
)

// asidePrefix begins the names of the schemas of deleted tenants. No FleetConfig.SchemaPrefix can have a colon, and Adopt refuses
// such names.
const asidePrefix = "deleted:"

// asideName returns a new name for the schema of a deleted tenant, of 63 bytes at most.
func asideName(id string) string {
	return fmt.Sprintf("%s%.36s:%s", asidePrefix, id, strings.ToLower(rand.Text()[:16]))
}

// Delete makes a tenant a tombstone: nothing of it is lost, and nobody reaches it any more. Undelete brings it back until Purge
// removes it. Its ID, its schema's name and its domains stay taken until then.
//
// It is two transactions. The first one makes the tenant Deleted, which Lookup, Pool and middleware then take for
// ErrTenantNotFound: at once where they listen for changes, others when they have forgotten what they knew of it, see
// CachedDirectory. The second one gives its schema another name, so that nothing at all finds it. A transaction that has the
// tenant's scope then finds tables of the same name in the shared schemas, where there are such. So Delete waits in between until
// all transactions are over that began before, but for those that have used another tenant's tables, and until none uses the
// tenant's. What remains are statements of processes that do not listen for changes, or that waited in a pool since before: one
// that is at work in the very moment may fail, and a transaction of theirs that has not used a table yet may find one that is
// shared. Where shared tables have the names of tenants' tables, and not all processes listen, call Suspend first, and Delete
// after DirectoryConfig.TTL.
//
// Where the wait is longer than ChangeOpts.Wait the error is ErrTenantInUse, and where Delete is interrupted it is whatever it is:
// the tenant is deleted then, or is not. Called again Delete does what is left; so does Purge, and Undelete undoes what is done. A
// tenant that is deleted is left as it is. The other errors: ErrTenantNotFound; that of FleetConfig.BeforeChange. opts may be nil.
func (f *Fleet) Delete(ctx context.Context, id string, opts *ChangeOpts) error {
	var wait time.Duration
	if opts != nil {
		wait = opts.Wait
	}
	err := f.change(ctx, id, ChangeDelete, opts, true, func(_ *conn, r *tenantRow) ([]Change, []wire.Step, error) {
		if r.state == Deleted {
			return nil, nil, nil
		}
		return r.become(ChangeDelete, Deleted)
	})
	if err != nil {
		return err
	}
	if err := f.setAside(ctx, id, wait); err != nil {
		return changeError("delete", id, fmt.Errorf("it is deleted, and its schema is still to be set aside: %w", err))
	}
	return nil
}

// Undelete brings a deleted tenant back as it was, active or suspended, with its data and its domains but for those that
// RemoveDomain took since then. It may be called as long as Purge has not begun. Migrations that others had meanwhile are run
// by the next Migrate.
//
// It is one transaction. A tenant that is active or suspended is left as it is. The errors: ErrTenantNotFound where there is no
// such tenant any more; ErrTenantState where Purge has begun or the tenant was deleted before it was complete; ErrTenantExists
// where there is another schema of its name by now; ErrTenantInUse; that of FleetConfig.BeforeChange. opts may be nil.
func (f *Fleet) Undelete(ctx context.Context, id string, opts *ChangeOpts) error {
	return f.change(ctx, id, ChangeUndelete, opts, true, func(wc *conn, r *tenantRow) ([]Change, []wire.Step, error) {
		switch {
		case r.state == Active || r.state == Suspended:
			return nil, nil, nil
		case r.state != Deleted || r.purging != nil:
			return nil, nil, r.refuse()
		case r.deletedFrom == Provisioning.String():
			return nil, nil, fmt.Errorf("%w: it was deleted before it was complete", ErrTenantState)
		}
		var steps []wire.Step
		if r.deletedSchema != "" {
			var taken bool
			if err := wc.Pgx().QueryRow(ctx, `select exists (select from pg_catalog.pg_namespace where nspname = $1)`, r.schema).Scan(&taken); err != nil {
				return nil, nil, err
			}
			if taken {
				return nil, nil, fmt.Errorf("%w: there is another schema %s", ErrTenantExists, r.path)
			}
			steps = []wire.Step{
				{SQL: "alter schema " + ident.Quote(r.deletedSchema) + " rename to " + r.path},
				{SQL: `update pgtenancy.tenants set deleted_schema = null where id = $1`, Args: []any{id}},
			}
		}
		to := Active
		if r.deletedFrom == Suspended.String() {
			to = Suspended
		}
		changes, more, err := r.become(ChangeUndelete, to)
		return changes, append(steps, more...), err
	})
}

// setAside gives the schema of a deleted tenant another name, when nobody can be in it any more.
func (f *Fleet) setAside(ctx context.Context, id string, wait time.Duration) error {
	if wait <= 0 {
		wait = ChangeWaitDefault
	}
	deadline := time.Now().Add(wait)
	return f.withOwner(ctx, func(wc *conn) error {
		for {
			var schema string
			err := wc.Pgx().QueryRow(ctx, `select t.schema_name from pgtenancy.tenants t join pg_catalog.pg_namespace n on n.nspname = t.schema_name
				where t.id = $1 and t.state = 'deleted' and t.deleted_schema is null`, id).Scan(&schema)
			if errors.Is(err, pgx.ErrNoRows) { // it was set aside, is gone, or Undelete was faster
				return nil
			} else if err != nil {
				return err
			}
			if err := awaitOthers(ctx, wc, schema, deadline); err != nil {
				return err
			}
			busy := false
			err = f.locked(ctx, wc, id, max(time.Until(deadline), time.Millisecond), true, func(r *tenantRow) error {
				if r.state != Deleted || r.deletedSchema != "" {
					return nil
				}
				// Somebody who did not hear of it yet may have come in since then.
				if err := wc.Pgx().QueryRow(ctx, `select exists (`+usersOf("$1")+`)`, schema).Scan(&busy); err != nil || busy {
					return err
				}
				aside := asideName(id)
				_, err := wc.Run(ctx, []wire.Step{
					{SQL: "alter schema " + r.path + " rename to " + ident.Quote(aside)},
					{SQL: `update pgtenancy.tenants set deleted_schema = $2, updated_at = now() where id = $1`, Args: []any{id, aside}},
				})
				return err
			})
			if err != nil || !busy {
				return err
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("%w: its tables are", ErrTenantInUse)
			}
			select {
			case <-time.After(10 * time.Millisecond):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	})
}

// usersOf returns a query for the locks that transactions have on the tables of a schema, whose name is the parameter, those
// which are only prepared included.
func usersOf(schema string) string {
	return `select from pg_catalog.pg_locks l join pg_catalog.pg_class c on c.oid = l.relation join pg_catalog.pg_namespace n on n.oid = c.relnamespace
		where l.locktype = 'relation' and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database())
			and n.nspname = ` + schema + ` and l.pid is distinct from pg_catalog.pg_backend_pid()`
}

// awaitOthers waits until those transactions in the database are over that are open now and may be in a tenant's schema. One that
// has a lock on another tenant's table, and none on this one's, belongs to that one: it has to do with one tenant only.
func awaitOthers(ctx context.Context, wc *conn, schema string, deadline time.Time) error {
	var open []string
	err := wc.Pgx().QueryRow(ctx, `select coalesce(pg_catalog.array_agg(l.virtualxid), '{}')
		from pg_catalog.pg_locks l join pg_catalog.pg_stat_activity a on a.pid = l.pid
		where l.locktype = 'virtualxid' and l.granted and l.mode = 'ExclusiveLock' and l.pid <> pg_catalog.pg_backend_pid()
			and a.datname = pg_catalog.current_database() and a.usesysid is not null`).Scan(&open) // others are the server's own
	if err != nil {
		return err
	}
	for pause := time.Millisecond; len(open) > 0; pause = min(2*pause, 100*time.Millisecond) {
		err := wc.Pgx().QueryRow(ctx, `with locks as materialized (select * from pg_catalog.pg_locks l where l.granted),
				used as materialized (
					select l.virtualtransaction, n.nspname from locks l
					join pg_catalog.pg_class c on c.oid = l.relation join pg_catalog.pg_namespace n on n.oid = c.relnamespace
					where l.locktype = 'relation' and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database()))
			select coalesce(pg_catalog.array_agg(l.virtualxid), '{}') from locks l
			where l.locktype = 'virtualxid' and l.mode = 'ExclusiveLock' and l.virtualxid = any($1::text[])
				and (exists (select from used u where u.virtualtransaction = l.virtualtransaction and u.nspname = $2)
					or not exists (select from used u join pgtenancy.tenants t on t.schema_name = u.nspname where u.virtualtransaction = l.virtualtransaction))`,
			open, schema).Scan(&open)
		if err != nil || len(open) == 0 {
			return err
		}
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("%w: %d transactions may be in its schema", ErrTenantInUse, len(open))
		}
		select {
		case <-time.After(min(pause, left)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// PurgeOpts says why a tenant is purged, and how.
type PurgeOpts struct {
	// Reason goes into the history.
	Reason string

	// Wait is as in ChangeOpts, for each transaction of the purge.
	Wait time.Duration

	// Force purges a tenant whose data is still to be retained.
	Force bool
}

// PurgeReport is what Purge has removed.
type PurgeReport struct {
	Tenant     string            `json:"tenant"`     // its ID
	Schema     string            `json:"schema"`     // the name that it had
	Attributes map[string]string `json:"attributes"` // may be empty
	Domains    []string          `json:"domains"`    // sorted
	Migrations int               `json:"migrations"` // rows of the history of its migrations
	Tables     []PurgedTable     `json:"tables"`     // with materialized views, sorted by name
	Views      []string          `json:"views"`
	Sequences  []string          `json:"sequences"`
	Functions  []string          `json:"functions"` // with the types of their arguments

	// Role is the tenant's role, "" where it had none, and RoleKept says why it is still there, "" where it is not: it owns
	// something, as a large object, or was granted something, here or in another database. It has to be dropped by hand before the
	// ID can be had by another tenant.
	Role     string `json:"role,omitempty"`
	RoleKept string `json:"role_kept,omitempty"`
}

// PurgedTable is a table that Purge has removed.
type PurgedTable struct {
	Name  string `json:"name"`
	Rows  int64  `json:"rows"`  // as PostgreSQL estimated them, -1 where it did not
	Bytes int64  `json:"bytes"` // with indexes and all
}

// ReferencedError is returned by Purge where objects that are not the tenant's refer to its schema: foreign keys, views, functions,
// defaults. They would be lost or broken. Nothing was removed.
type ReferencedError struct {
	Tenant  string
	Objects []string // as PostgreSQL describes them, at most 100, sorted
}

// Error lists the first few of the objects.
func (e *ReferencedError) Error() string {
	return fmt.Sprintf("pgtenancy: the schema of tenant %q is referred to from outside: %s", e.Tenant, strings.Join(e.Objects[:min(len(e.Objects), 5)], "; "))
}

// referencedMost is how many objects a ReferencedError lists.
const referencedMost = 100

// Purge removes a deleted tenant for good: its schema with all that is in it, its domains, its row of the registry, the history
// of its migrations and the samples of its usage. Its ID may then be had by another tenant. The history of its changes stays, and
// so do the rows that it has in shared tables: FleetConfig.BeforeChange is the place to remove those.
//
// It is several transactions, each of which takes no more locks than a lock table of the default size affords, whatever number of
// tables there is. The first one begins the purge, which is a Change, and from then on the tenant cannot be undeleted. The last one
// ends it, which is another. Where Purge is interrupted or fails in between, it goes on when it is called again, and its report is
// of all that there was.
//
// The errors: ErrTenantNotFound where there is no such tenant; ErrTenantState where it is not deleted; ErrTenantRetained unless
// PurgeOpts.Force is set; *ReferencedError; ErrTenantInUse, where transactions use its tables, as a backup of the database does, or
// use shared tables that its foreign keys refer to; that of FleetConfig.BeforeChange. What refers to the schema in the text of a
// function is not seen. opts may be nil.
func (f *Fleet) Purge(ctx context.Context, id string, opts *PurgeOpts) (*PurgeReport, error) {
	var o PurgeOpts
	if opts != nil {
		o = *opts
	}
	var report PurgeReport
	changeOpts := &ChangeOpts{Reason: o.Reason, Wait: o.Wait}
	err := f.change(ctx, id, ChangePurge, changeOpts, true, func(wc *conn, r *tenantRow) ([]Change, []wire.Step, error) {
		switch {
		case r.state != Deleted:
			return nil, nil, r.refuse()
		case r.purging != nil:
			return nil, nil, json.Unmarshal(r.purging, &report)
		case r.retained && !o.Force:
			return nil, nil, fmt.Errorf("%w: it was deleted less than %v ago", ErrTenantRetained, f.retention)
		}
		if err := checkReferences(ctx, wc, id, r.schemaNow()); err != nil {
			return nil, nil, err
		}
		if err := report.read(ctx, wc, r); err != nil {
			return nil, nil, err
		}
		return []Change{{Kind: ChangePurge, From: Deleted.String(), To: "purging"}}, []wire.Step{{
			SQL: `update pgtenancy.tenants set purging = $2::text::jsonb, updated_at = now() where id = $1`, Args: []any{id, jsonOf(report)},
		}}, nil
	})
	if err != nil {
		return nil, err
	}
	if err := f.setAside(ctx, id, o.Wait); err != nil {
		return nil, changeError("purge", id, err)
	}
	if err := f.dropParts(ctx, id, o.Wait); err != nil {
		return nil, changeError("purge", id, err)
	}
	err = f.change(ctx, id, ChangePurge, changeOpts, true, func(wc *conn, r *tenantRow) ([]Change, []wire.Step, error) {
		if r.purging == nil { // somebody else purged it, and it was provisioned again
			return nil, nil, ErrTenantNotFound
		}
		if err := checkReferences(ctx, wc, id, r.schemaNow()); err != nil {
			return nil, nil, err
		}
		_, err := wc.Run(ctx, []wire.Step{{SQL: "drop schema if exists " + ident.Quote(r.schemaNow()) + " cascade"}})
		if err == nil && r.role != "" {
			report.RoleKept, err = dropRole(ctx, wc, r.role)
		}
		if err != nil {
			return nil, nil, err
		}
		return []Change{{Kind: ChangePurge, From: "purging", To: "purged"}}, []wire.Step{
			{SQL: `delete from pgtenancy.migrations where tenant_id = $1`, Args: []any{id}},
			{SQL: `delete from pgtenancy.unfinished where tenant_id = $1`, Args: []any{id}},
			{SQL: deleteSamples, Args: []any{id}},
			{SQL: `delete from pgtenancy.tenants where id = $1`, Args: []any{id}}, // and its domains
		}, nil
	})
	if err != nil {
		return nil, err
	}
	return &report, nil
}

// schemaNow returns what the tenant's schema is called now.
func (r *tenantRow) schemaNow() string {
	if r.deletedSchema != "" {
		return r.deletedSchema
	}
	return r.schema
}

// read fills in the report on a tenant that is still complete.
func (p *PurgeReport) read(ctx context.Context, wc *conn, r *tenantRow) error {
	*p = PurgeReport{Tenant: r.id, Schema: r.schema, Attributes: maps.Collect(r.Attributes()), Role: r.role}
	err := wc.Pgx().QueryRow(ctx, `select (select count(*) from pgtenancy.migrations where tenant_id = $1),
		array(select domain from pgtenancy.domains where tenant_id = $1 order by 1),
		array(select c.relname::text from pg_catalog.pg_class c where c.relnamespace = n.oid and c.relkind = 'v' order by 1),
		array(select c.relname::text from pg_catalog.pg_class c where c.relnamespace = n.oid and c.relkind = 'S' order by 1),
		array(select pg_catalog.format('%s(%s)', p.proname, pg_catalog.pg_get_function_identity_arguments(p.oid)) from pg_catalog.pg_proc p where p.pronamespace = n.oid order by 1)
		from (select) x left join pg_catalog.pg_namespace n on n.nspname = $2`, r.id, r.schemaNow()).Scan(&p.Migrations, &p.Domains, &p.Views, &p.Sequences, &p.Functions)
	if err != nil {
		return err
	}
	rows, _ := wc.Pgx().Query(ctx, `select c.relname::text, c.reltuples::bigint, pg_catalog.pg_total_relation_size(c.oid)
		from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
		where n.nspname = $1 and c.relkind in ('r', 'p', 'm', 'f') order by 1`, r.schemaNow()) // the error is in rows
	p.Tables, err = pgx.CollectRows(rows, pgx.RowToStructByPos[PurgedTable])
	return err
}

// checkReferences returns a *ReferencedError where there is one for a schema.
func checkReferences(ctx context.Context, wc *conn, id, schema string) error {
	rows, _ := wc.Pgx().Query(ctx, referencesSQL, schema, referencedMost) // the error is in rows
	objects, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err == nil && len(objects) > 0 {
		err = &ReferencedError{Tenant: id, Objects: objects}
	}
	return err
}

// referencesSQL finds what is outside of a schema and depends on something in it. Parts of a table or view (rules, defaults,
// triggers, policies) are where that is. What goes with an object by itself depends on it in another way than 'n', and is no reference,
// unless it is a partition or a sequence that has a place of its own.
const referencesSQL = `
	with inside as materialized (
		select 'pg_catalog.pg_class'::pg_catalog.regclass::oid as classid, c.oid as objid from pg_catalog.pg_class c
			where c.relnamespace = (select n.oid from pg_catalog.pg_namespace n where n.nspname = $1)
		union select 'pg_catalog.pg_type'::pg_catalog.regclass::oid, t.oid from pg_catalog.pg_type t
			where t.typnamespace = (select n.oid from pg_catalog.pg_namespace n where n.nspname = $1)
		union select d.classid, d.objid from pg_catalog.pg_depend d -- all else
			where d.refclassid = 'pg_catalog.pg_namespace'::pg_catalog.regclass and d.refobjid = (select n.oid from pg_catalog.pg_namespace n where n.nspname = $1)
		union select m.classid, m.objid from pg_catalog.pg_depend e join pg_catalog.pg_depend m -- the members of extensions
			on m.refclassid = e.classid and m.refobjid = e.objid and m.deptype = 'e'
			where e.classid = 'pg_catalog.pg_extension'::pg_catalog.regclass and e.refclassid = 'pg_catalog.pg_namespace'::pg_catalog.regclass
				and e.refobjid = (select n.oid from pg_catalog.pg_namespace n where n.nspname = $1)
	)
	select x.what from (
		select distinct case when d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass then pg_catalog.pg_describe_object('pg_catalog.pg_class'::pg_catalog.regclass, c.oid, 0)
			else pg_catalog.pg_describe_object(d.classid, d.objid, d.objsubid) end as what
		from inside i
		join pg_catalog.pg_depend d on d.refclassid = i.classid and d.refobjid = i.objid
		left join pg_catalog.pg_rewrite w on d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass and w.oid = d.objid
		left join pg_catalog.pg_attrdef a on d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass and a.oid = d.objid
		left join pg_catalog.pg_trigger t on d.classid = 'pg_catalog.pg_trigger'::pg_catalog.regclass and t.oid = d.objid
		left join pg_catalog.pg_policy p on d.classid = 'pg_catalog.pg_policy'::pg_catalog.regclass and p.oid = d.objid
		left join pg_catalog.pg_constraint o on d.classid = 'pg_catalog.pg_constraint'::pg_catalog.regclass and o.oid = d.objid
		left join pg_catalog.pg_class c on c.oid = coalesce(w.ev_class, a.adrelid, t.tgrelid, p.polrelid, case when d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass then d.objid end)
		left join pg_catalog.pg_namespace n on n.oid = coalesce(c.relnamespace, o.connamespace)
		where (d.deptype = 'n' or d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass and c.relkind in ('r', 'p', 'f', 'S'))
			and not exists (select from inside s where s.classid = d.classid and s.objid = d.objid)
			and d.classid not in ('pg_catalog.pg_cast'::pg_catalog.regclass, 'pg_catalog.pg_amop'::pg_catalog.regclass, 'pg_catalog.pg_amproc'::pg_catalog.regclass)
			and coalesce(n.nspname, (pg_catalog.pg_identify_object(d.classid, d.objid, 0)).schema) is distinct from $1
	) x order by x.what limit $2`

// dropParts drops what is in the schema of a tenant that is being purged, a part at a time, until one transaction can drop the rest.
func (f *Fleet) dropParts(ctx context.Context, id string, wait time.Duration) error {
	return f.withOwner(ctx, func(wc *conn) error {
		for left, more := math.MaxInt, true; more; {
			err := f.locked(ctx, wc, id, wait, true, func(r *tenantRow) error {
				if r.purging == nil {
					return ErrTenantNotFound // as above
				}
				if err := checkReferences(ctx, wc, id, r.schemaNow()); err != nil {
					return err
				}
				var steps []wire.Step
				locks, total := 0, 0
				rows, _ := wc.Pgx().Query(ctx, partsSQL, r.schemaNow()) // the error is in rows
				var sql string
				var weight int
				_, err := pgx.ForEachRow(rows, []any{&sql, &weight}, func() error {
					if total += weight; len(steps) == 0 || locks+weight <= purgeLocks {
						steps, locks = append(steps, wire.Step{SQL: sql}), locks+weight
					}
					return nil
				})
				// What does not get less that way is left to the last transaction.
				if more = total > purgeLocks && total < left; err != nil || !more {
					return err
				}
				left = total
				_, err = wc.Run(ctx, steps)
				return err
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// purgeLocks is about how many locks one transaction of a purge takes. A lock table of PostgreSQL's default size has room for 6,400.
const purgeLocks = 200

// partsSQL selects the statements that drop what is in a schema, in an order in which none drops much more than it says, and about
// how many locks each takes: foreign keys, or a table would have the locks of all that refer to it; views; tables, partitions before what
// they are of; sequences, functions and types. What belongs to one of these, or to an extension, goes with it.
const partsSQL = `
	with recursive schema as materialized (select n.oid, n.nspname from pg_catalog.pg_namespace n where n.nspname = $1),
	ancestors (oid, parent, depth) as (
		select i.inhrelid, i.inhparent, 1 from pg_catalog.pg_inherits i join pg_catalog.pg_class c on c.oid = i.inhrelid
			where c.relnamespace = (select s.oid from schema s) and c.relkind in ('r', 'p', 'f')
		union all select a.oid, i.inhparent, a.depth + 1 from ancestors a join pg_catalog.pg_inherits i on i.inhrelid = a.parent
	),
	depths as materialized (select a.oid, max(a.depth) as depth from ancestors a group by a.oid)
	select x.sql, x.weight::int from (
		select 0 as rank, 0 as depth, o.oid, 4 + 4 * (select count(*) from pg_catalog.pg_constraint p where p.conparentid = o.oid) as weight,
			pg_catalog.format('alter table if exists %I.%I drop constraint if exists %I', s.nspname, c.relname, o.conname) as sql
		from schema s join pg_catalog.pg_class c on c.relnamespace = s.oid join pg_catalog.pg_constraint o on o.conrelid = c.oid
		where o.contype = 'f' and o.conparentid = 0
		union all
		select case when c.relkind in ('v', 'm') then 1 when c.relkind = 'S' then 3 when c.relkind = 'c' then 5 else 2 end, coalesce(-d.depth, 0), c.oid,
			4 + (select count(*) from pg_catalog.pg_depend p where p.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass and p.refobjid = c.oid)
				+ (select count(*) from pg_catalog.pg_index i where i.indrelid = c.oid),
			pg_catalog.format('drop %s if exists %I.%I cascade', case c.relkind when 'v' then 'view' when 'm' then 'materialized view' when 'S' then 'sequence'
				when 'f' then 'foreign table' when 'c' then 'type' else 'table' end, s.nspname, c.relname)
		from schema s join pg_catalog.pg_class c on c.relnamespace = s.oid left join depths d on d.oid = c.oid
		where c.relkind in ('r', 'p', 'v', 'm', 'f', 'S', 'c')
			and not exists (select from pg_catalog.pg_depend p where p.classid = 'pg_catalog.pg_class'::pg_catalog.regclass and p.objid = c.oid and p.objsubid = 0
				and (p.deptype = 'e' or c.relkind = 'S' and p.deptype in ('a', 'i') and p.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass))
		union all
		select 4, 0, p.oid, 1, pg_catalog.format('drop routine if exists %s cascade', (pg_catalog.pg_identify_object('pg_catalog.pg_proc'::pg_catalog.regclass, p.oid, 0)).identity)
		from schema s join pg_catalog.pg_proc p on p.pronamespace = s.oid
		where not exists (select from pg_catalog.pg_depend d where d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass and d.objid = p.oid and d.deptype in ('e', 'i'))
		union all
		select 5, 0, t.oid, 3, pg_catalog.format('drop type if exists %I.%I cascade', s.nspname, t.typname)
		from schema s join pg_catalog.pg_type t on t.typnamespace = s.oid
		where t.typtype in ('e', 'd', 'r')
			and not exists (select from pg_catalog.pg_depend d where d.classid = 'pg_catalog.pg_type'::pg_catalog.regclass and d.objid = t.oid and d.deptype in ('e', 'i'))
	) x order by x.rank, x.depth, x.oid`
