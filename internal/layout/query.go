package layout

// relationsSQL selects what the schemas in $1 have: a row for each schema with its stamp, and for each table, sequence and
// populated materialized view. What a snapshot says may be gone by now, and so nothing is asked here that fails then, which
// format_type does not.
const relationsSQL = `
with s as materialized (
	select i.ord::int, n.oid
	from unnest($1::text[]) with ordinality i (name, ord) join pg_catalog.pg_namespace n on n.nspname = i.name
),
rel as materialized (
	select s.ord, c.oid, c.relname::text, c.relkind, c.relpersistence, c.relispartition, c.relfilenode
	from pg_catalog.pg_class c join s on s.oid = c.relnamespace
	where c.relkind in ('r', 'p', 'S') or c.relkind = 'm' and c.relispopulated
),
col as materialized (
	select r.oid, bool_or(a.attidentity = 'a') as always,
		array_agg(a.attname::text order by a.attnum) filter (where a.attgenerated = '') as names,
		array_agg(pg_catalog.format_type(a.atttypid, a.atttypmod) order by a.attnum) filter (where a.attgenerated = '') as types,
		` + columnStamp + ` as stamp
	from rel r
		left join pg_catalog.pg_attribute a on a.attrelid = r.oid and a.attnum > 0 and not a.attisdropped
	where r.relkind in ('r', 'p')
	group by r.oid
)
select l.ord, l.kind, l.name, l.unlogged, l.always, l.names, l.types, l.oids, l.stamp
from (
	select s.ord, 'n' as kind, '' as name, false as unlogged, false as always, '{}'::text[] as names, '{}'::text[] as types,
		array(select r.oid from rel r where r.ord = s.ord and r.relkind in ('r', 'p') order by r.oid) as oids,
		coalesce((
			select ` + tableStamp + `
			from rel r join col c on c.oid = r.oid
			where r.ord = s.ord
		), '') as stamp, 0::oid as oid
	from s
	union all
	select r.ord, r.relkind::text, r.relname, r.relpersistence = 'u', coalesce(c.always, false),
		coalesce(c.names, '{}'), coalesce(c.types, '{}'), '{}'::oid[], '', case r.relkind when 'm' then r.oid else 0 end
	from rel r left join col c on c.oid = r.oid
	where not r.relispartition
) l
order by l.ord, l.oid, l.name`

// columnStamp and tableStamp are what changes with a table.
const (
	columnStamp = `string_agg(pg_catalog.concat_ws(' ', a.attnum, a.attname, a.atttypid, a.atttypmod, a.attgenerated), ',' order by a.attnum)
		filter (where a.attnum is not null)`
	tableStamp = `pg_catalog.md5(string_agg(pg_catalog.concat_ws(' ', r.oid, r.relname, r.relfilenode, c.stamp), ';' order by r.oid))`
)

// stampSQL selects the stamp of the tables in $1. It finds them by index.
const stampSQL = `
select coalesce(` + tableStamp + `, '')
from pg_catalog.pg_class r, lateral (
		select ` + columnStamp + ` as stamp from pg_catalog.pg_attribute a where a.attrelid = r.oid and a.attnum > 0 and not a.attisdropped
	) c
where r.oid = any($1::oid[])`

// referencesSQL selects which tables reference which others of their schema. A partition stands for its root.
const referencesSQL = `
with recursive s as materialized (
	select i.ord::int, n.oid
	from unnest($1::text[]) with ordinality i (name, ord) join pg_catalog.pg_namespace n on n.nspname = i.name
),
rel as materialized (
	select s.ord, c.oid, c.relname::text, c.relispartition
	from pg_catalog.pg_class c join s on s.oid = c.relnamespace
	where c.relkind in ('r', 'p')
),
root as (
	select r.oid, r.oid as root from rel r where not r.relispartition
	union all
	select i.inhrelid, root.root
	from root join pg_catalog.pg_inherits i on i.inhparent = root.oid join rel r on r.oid = i.inhrelid and r.relispartition
)
select t.ord, t.relname, f.relname
from (
	select distinct a.root as from_oid, b.root as to_oid
	from pg_catalog.pg_constraint k join root a on a.oid = k.conrelid join root b on b.oid = k.confrelid
	where k.contype = 'f' and k.conparentid = 0 and a.root <> b.root
) k
	join rel t on t.oid = k.from_oid
	join rel f on f.oid = k.to_oid
where t.ord = f.ord
order by t.ord, t.relname, f.relname`

// foreignKeysSQL selects the foreign keys between tables of a schema. A partition's that it has from its parent come and go with the
// parent's.
const foreignKeysSQL = `
select c.relname, k.conname, pg_catalog.pg_get_constraintdef(k.oid), coalesce(pg_catalog.obj_description(k.oid, 'pg_constraint'), '')
from pg_catalog.pg_constraint k
	join pg_catalog.pg_class c on c.oid = k.conrelid
	join pg_catalog.pg_namespace n on n.oid = c.relnamespace
	join pg_catalog.pg_class f on f.oid = k.confrelid and f.relnamespace = n.oid
where n.nspname = $1 and k.contype = 'f' and k.conparentid = 0
order by c.relname, k.conname`

// triggersSQL selects the triggers that fire on rows. Those that are disabled or for replicas only do not. Before PostgreSQL 15 a
// partition's copy of its parent's is marked as internal, as are those that check keys.
const triggersSQL = `
select c.relname, t.tgname, t.tgenabled::text
from pg_catalog.pg_trigger t
	join pg_catalog.pg_class c on c.oid = t.tgrelid
	join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where n.nspname = $1 and (not t.tgisinternal or t.tgparentid <> 0 and (
		select p.pronamespace <> 'pg_catalog'::pg_catalog.regnamespace or p.proname !~ '^(RI_FKey_|unique_key_recheck)'
		from pg_catalog.pg_proc p where p.oid = t.tgfoid
	)) and t.tgenabled in ('O', 'A') and c.relkind in ('r', 'p')
order by c.relname, t.tgname`
