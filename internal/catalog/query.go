package catalog

// settings makes definitions the same whatever the session's settings are, with every name outside pg_catalog in full. The plans
// must do without statistics, which a catalog that grew quickly has not got: without them the planner takes nested loops for
// cheap. Hash joins read each catalog once. The wait for a lock ends before anybody's deadlock_timeout makes a victim of
// the migration that we are in the way of.
//
// It selects how many locks one page of definitions may take: a quarter of the lock table, which all sessions share.
const settings = `select pg_catalog.current_setting('max_locks_per_transaction')::int * (pg_catalog.current_setting('max_connections')::int
		+ pg_catalog.current_setting('max_prepared_transactions')::int) / 4,
		pg_catalog.count(pg_catalog.set_config(s.name, s.value, true))
	from (values ('search_path', 'pg_catalog, pg_temp'), ('quote_all_identifiers', 'off'), ('standard_conforming_strings', 'on'),
		('enable_nestloop', 'off'), ('enable_mergejoin', 'off'), ('enable_hashjoin', 'on'), ('enable_hashagg', 'on'), ('jit', 'off'),
		('max_parallel_workers_per_gather', '0'), ('lock_timeout', '500ms')) s (name, value)`

// query selects the lines of the schemas in $1, ordered by their place there. What a function must tell of an object is
// asked as the rows are sent, and not before they are sorted: then an object that was dropped meanwhile fails at its schema
// and leaves those before it done. The functions in the case at the top keep no lock on a relation. Those that do (the rewriter's, for
// a query) are left to definitions: locks is how many of them one takes, or null. The text is null for an object that is gone.
//
// Subqueries that name an outer row are one index scan each, and have no joins: see settings.
const query = `
with s as materialized (
	select i.ord::int, n.oid, n.nspowner, n.nspacl
	from unnest($1::text[]) with ordinality i (name, ord) join pg_namespace n on n.nspname = i.name
),
rel as materialized (
	select s.ord, s.nspowner, c.oid, c.relname::text, c.relkind, c.relpersistence, c.relowner, c.relam, c.reltablespace, c.reloftype,
		c.relrowsecurity, c.relforcerowsecurity, c.relreplident, c.relispartition, c.relacl, c.reloptions, c.relpartbound
	from pg_class c join s on s.oid = c.relnamespace
	where c.relkind <> 't'
),
proc as materialized (
	select s.ord, s.nspowner, p.oid, p.proname::text, '(' || oidvectortypes(p.proargtypes) || ')' as args, p.prokind, p.proowner, p.proacl,
		p.prosqlbody is not null as atomic
	from pg_proc p join s on s.oid = p.pronamespace
	where p.prolang <> 12 or not exists ( -- not the constructors of a range type
		select from pg_depend d where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'i')
),
typ as materialized (
	select s.ord, s.nspowner, t.oid, t.typname::text, t.typtype, t.typowner, t.typacl, t.typbasetype, t.typtypmod, t.typnotnull,
		t.typcollation, t.typdefaultbin, t.typinput, t.typoutput, t.typlen, t.typalign, t.typstorage
	from pg_type t join s on s.oid = t.typnamespace
	where t.typtype in ('e', 'd', 'r') or t.typtype = 'b' and t.typcategory <> 'A'
		or t.typtype = 'c' and exists (select from pg_class c where c.oid = t.typrelid and c.relkind = 'c')
),
-- The sequences of columns.
owned as materialized (
	select q.oid, d.deptype, t.relname as tab, a.attname as col
	from rel q
		join pg_depend d on d.objid = q.oid
		join rel t on t.oid = d.refobjid
		join pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
	where q.relkind = 'S' and d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass and d.deptype in ('a', 'i')
),
acl as materialized (
	select ord, 'the schema' as name, '' as args, '' as sub, 'n'::"char" as typ, nspowner as owner, nspacl as acl from s where nspacl is not null
	union all
	select ord, relname, '', '', case relkind when 'S' then 's' else 'r' end::"char", relowner, relacl from rel where relacl is not null
	union all
	select r.ord, r.relname, '', a.attname, 'c', r.relowner, a.attacl
	from pg_attribute a join rel r on r.oid = a.attrelid
	where a.attacl is not null and not a.attisdropped
	union all
	select ord, proname, args, '', 'f', proowner, proacl from proc where proacl is not null
	union all
	select ord, 'type ' || typname, '', '', 'T', typowner, typacl from typ where typacl is not null
	union all
	select s.ord, case d.defaclobjtype when 'r' then 'tables' when 'S' then 'sequences' when 'f' then 'functions' when 'T' then 'types'
		else d.defaclobjtype::text end || ' of ' || pg_get_userbyid(d.defaclrole), '', '', null, d.defaclrole, d.defaclacl
	from pg_default_acl d join s on s.oid = d.defaclnamespace
),
-- Most objects have one of a few lists.
list as materialized (
	select row_number() over () as n, typ, owner, acl from (select distinct typ, owner, acl from acl) d
),
entry as (
	select n, true as given, aclexplode(acl) as e from list
	union all
	select n, false, aclexplode(acldefault(typ, owner)) from list where typ is not null
),
-- Where a list says what none would say too, it says nothing.
given as materialized (
	select n, case (e).grantee when 0 then 'PUBLIC' else pg_get_userbyid((e).grantee)::text end as role,
		string_agg((e).privilege_type || case when (e).is_grantable then ' with grant option' else '' end, ', ' order by (e).privilege_type)
			filter (where given) as privileges
	from entry
	group by n, (e).grantee
	having array_agg((e).privilege_type || (e).is_grantable order by (e).privilege_type) filter (where given)
		is distinct from array_agg((e).privilege_type || (e).is_grantable order by (e).privilege_type) filter (where not given)
),
line (ord, kind, name, args, sub, role, parent, num, def, fn, oid, rel, expr, expr2, locks) as (
	select ord, 'schema', '', '', '', '', '', 0, 'owner ' || pg_get_userbyid(nspowner), '', null::oid, null::oid, null::pg_node_tree,
		null::pg_node_tree, null::bigint
	from s

	union all
	select r.ord, 'table', r.relname, '', '', '', '', 0, concat_ws(', ',
			case r.relpersistence when 'u' then 'unlogged ' else '' end || case r.relkind when 'f' then 'foreign table' else 'table' end,
			'of ' || nullif(r.reloftype, 0)::regtype,
			(select 'access method ' || am.amname from pg_am am where am.oid = r.relam and am.amname <> 'heap'),
			(select 'tablespace ' || t.spcname from pg_tablespace t where t.oid = r.reltablespace),
			(select 'with (' || string_agg(o, ', ' order by o) || ')' from unnest(r.reloptions) o),
			case when r.relrowsecurity then 'row security enabled' end,
			case when r.relforcerowsecurity then 'row security forced' end,
			case r.relreplident when 'n' then 'replica identity nothing' when 'f' then 'replica identity full' end,
			case when not r.relispartition then (select 'inherits (' || string_agg(i.inhparent::regclass::text, ', ' order by i.inhseqno) || ')'
				from pg_inherits i where i.inhrelid = r.oid) end,
			'server ' || fs.srvname,
			(select 'options (' || string_agg(o, ', ' order by o) || ')' from unnest(ft.ftoptions) o),
			case r.relkind when 'p' then 'partition by ' end),
		case r.relkind when 'p' then 'k' else '' end, r.oid, null, null, null, null
	from rel r left join pg_foreign_table ft on ft.ftrelid = r.oid left join pg_foreign_server fs on fs.oid = ft.ftserver
	where r.relkind in ('r', 'p', 'f')

	union all
	select r.ord, 'partition', r.relname, '', '', '', '', 0,
		'of ' || (select string_agg(i.inhparent::regclass::text, ', ') from pg_inherits i where i.inhrelid = r.oid) || ' ',
		'e', null, 0, r.relpartbound, null, null
	from rel r
	where r.relispartition and r.relkind in ('r', 'p', 'f')

	union all
	-- The role is here the table that the column is inherited from.
	select r.ord, 'column', r.relname, '', a.attname, coalesce(case when a.attinhcount > 0 then (
			select (select p.relname from pg_class p where p.oid = i.inhparent) from pg_inherits i where i.inhrelid = a.attrelid order by i.inhseqno limit 1
		) end, ''), '', case r.relkind when 'v' then 0 else a.attnum end, concat(
			format_type(a.atttypid, a.atttypmod),
			' collate ' || nullif(nullif(a.attcollation, t.typcollation), 0)::regcollation,
			case when a.attnotnull then ' not null' end,
			case a.attidentity when 'a' then ' generated always as identity' when 'd' then ' generated by default as identity' end,
			case when a.attstorage <> t.typstorage then
				' storage ' || case a.attstorage when 'p' then 'plain' when 'e' then 'external' when 'm' then 'main' else 'extended' end end,
			case a.attcompression when 'p' then ' compression pglz' when 'l' then ' compression lz4' end,
			(select ' options (' || string_agg(o, ', ' order by o) || ')' from unnest(a.attfdwoptions) o),
			case when d.adbin is not null then
				case a.attgenerated when '' then ' default ' when 's' then ' generated always as stored ' else ' generated always as virtual ' end end),
		case when d.adbin is not null then 'e' else '' end, null, case a.attgenerated when '' then 0::oid else a.attrelid end, d.adbin, null, null
	from pg_attribute a
		join rel r on r.oid = a.attrelid
		join pg_type t on t.oid = a.atttypid
		left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
	where a.attnum > 0 and not a.attisdropped and (r.relkind in ('r', 'p', 'f', 'c') or r.relkind = 'v' and d.adbin is not null)

	union all
	-- Not those that a partition or a child has from its parent. NOT NULL is the column's.
	select r.ord, 'constraint', r.relname, '', k.conname, '', '', 0, '', 'c', k.oid, null, null, null, null
	from pg_constraint k join rel r on r.oid = k.conrelid
	where k.conparentid = 0 and k.conislocal
		and (k.contype in ('c', 'f', 'p', 'u', 'x') or k.contype = 'n' and (k.connoinherit or not k.convalidated))
	union all
	select t.ord, 'constraint', t.typname, '', k.conname, '', '', 0, '', 'c', k.oid, null, null, null, null
	from pg_constraint k join typ t on t.oid = k.contypid
	where k.contype = 'c'

	union all
	-- That of a constraint, or of an index of the partitioned table, says something only where there is something about it.
	select r.ord, 'index', r.relname, '', '', '', o.relname, 0, concat(f.flags, case when k.oid is not null then 'index of a constraint' end),
		case when k.oid is null then 'i' else '' end, r.oid, null, null, null, null
	from pg_index i
		join rel r on r.oid = i.indexrelid
		join pg_class o on o.oid = i.indrelid
		left join pg_constraint k on k.conindid = i.indexrelid and k.conrelid = i.indrelid and k.contype in ('p', 'u', 'x'),
		lateral (select concat(case when not i.indisvalid then 'invalid ' end, case when i.indisclustered then 'clustered ' end,
			case when i.indisreplident then 'replica identity ' end,
			(select 'tablespace ' || t.spcname || ' ' from pg_tablespace t where t.oid = r.reltablespace)) as flags) f
	where f.flags <> '' or k.oid is null and not r.relispartition

	union all
	select r.ord, 'sequence', r.relname, '', '', '', coalesce(o.tab, ''), 0, concat(
			case r.relpersistence when 'u' then 'unlogged ' end,
			format_type(q.seqtypid, null), ' start ', q.seqstart, ' increment ', q.seqincrement, ' min ', q.seqmin, ' max ', q.seqmax,
			' cache ', q.seqcache, case when q.seqcycle then ' cycle' end,
			case o.deptype when 'i' then ' identity of ' when 'a' then ' owned by ' end || o.tab || '.' || o.col),
		'', null, null, null, null, null
	from pg_sequence q join rel r on r.oid = q.seqrelid left join owned o on o.oid = r.oid

	union all
	select r.ord, k.kind, r.relname, '', k.sub, '', '', 0, concat(
			case when k.sub = '' then (select 'with (' || string_agg(o, ', ' order by o) || ') ' from unnest(r.reloptions) o) end,
			case when k.sub = '' then (select 'tablespace ' || t.spcname || ' ' from pg_tablespace t where t.oid = r.reltablespace) end,
			case w.ev_enabled when 'D' then 'disabled ' when 'R' then 'enabled for replica ' when 'A' then 'enabled always ' end),
		case k.kind when 'rule' then 'r' else 'v' end, case k.kind when 'rule' then w.oid else r.oid end, null, null, null,
		(select count(distinct d.refobjid) from pg_depend d
		where d.classid = 'pg_rewrite'::regclass and d.objid = w.oid and d.refclassid = 'pg_class'::regclass)
	from pg_rewrite w join rel r on r.oid = w.ev_class,
		lateral (select case when w.rulename <> '_RETURN' then 'rule' when r.relkind = 'm' then 'materialized view' else 'view' end as kind,
			case when w.rulename <> '_RETURN' then w.rulename::text else '' end as sub) k

	union all
	select p.ord, case p.prokind when 'p' then 'procedure' else 'function' end, p.proname, p.args, '', '', '', 0, '', 'f', p.oid, null, null, null,
		case when p.atomic then (select count(distinct d.refobjid) from pg_depend d
			where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.refclassid = 'pg_class'::regclass) end
	from proc p
	where p.prokind <> 'a'
	union all
	select p.ord, 'aggregate', p.proname, p.args, '', '', '', 0, concat_ws(', ', case a.aggkind when 'n' then null else 'kind ' || a.aggkind::text end,
			'sfunc ' || a.aggtransfn::regproc, 'stype ' || format_type(a.aggtranstype, null), 'finalfunc ' || nullif(a.aggfinalfn, 0)::regproc,
			case when a.aggfinalextra then 'finalfunc_extra' end, 'finalfunc_modify ' || a.aggfinalmodify::text,
			'combinefunc ' || nullif(a.aggcombinefn, 0)::regproc, 'serialfunc ' || nullif(a.aggserialfn, 0)::regproc,
			'deserialfunc ' || nullif(a.aggdeserialfn, 0)::regproc, 'initcond ' || quote_literal(a.agginitval),
			'msfunc ' || nullif(a.aggmtransfn, 0)::regproc, 'minvfunc ' || nullif(a.aggminvtransfn, 0)::regproc,
			'mstype ' || format_type(nullif(a.aggmtranstype, 0), null), 'mfinalfunc ' || nullif(a.aggmfinalfn, 0)::regproc,
			'minitcond ' || quote_literal(a.aggminitval), 'sortop ' || nullif(a.aggsortop, 0)::regoperator, 'parallel ' || b.proparallel::text),
		'', null, null, null, null, null
	from proc p join pg_aggregate a on a.aggfnoid = p.oid join pg_proc b on b.oid = p.oid

	union all
	-- Of the triggers that check foreign keys, only that somebody has disabled them.
	select r.ord, 'trigger', r.relname, '', case when g.tgisinternal then coalesce((select k.conname from pg_constraint k where k.oid = g.tgconstraint), '')
			else g.tgname end, '', '', 0,
		concat(case g.tgenabled when 'D' then 'disabled ' when 'R' then 'enabled for replica ' when 'A' then 'enabled always ' end,
			case when g.tgisinternal then 'checks of the constraint' end),
		case when g.tgisinternal then '' else 't' end, g.oid, null, null, null, null
	from pg_trigger g join rel r on r.oid = g.tgrelid
	where case when g.tgisinternal then g.tgenabled <> 'O' and g.tgconstraint <> 0 else g.tgparentid = 0 end

	union all
	select r.ord, 'policy', r.relname, '', p.polname, '', '', 0, concat(case when p.polpermissive then 'permissive' else 'restrictive' end, ' for ',
			case p.polcmd when 'r' then 'select' when 'a' then 'insert' when 'w' then 'update' when 'd' then 'delete' else 'all' end, ' to ',
			(select string_agg(n.role, ', ' order by n.role)
			from (select case o when 0 then 'PUBLIC' else quote_ident(pg_get_userbyid(o)) end as role from unnest(p.polroles) o) n)),
		'p', p.oid, p.polrelid, p.polqual, p.polwithcheck,
		case when p.polqual::text ~ '{SUBLINK' or p.polwithcheck::text ~ '{SUBLINK' then (select count(distinct d.refobjid) from pg_depend d
			where d.classid = 'pg_policy'::regclass and d.objid = p.oid and d.refclassid = 'pg_class'::regclass) end
	from pg_policy p join rel r on r.oid = p.polrelid

	union all
	select t.ord, case t.typtype when 'd' then 'domain' else 'type' end, t.typname, '', '', '', '', 0, case t.typtype
			when 'e' then 'enum (' || coalesce((select string_agg(quote_literal(e.enumlabel), ', ' order by e.enumsortorder)
				from pg_enum e where e.enumtypid = t.oid), '') || ')'
			when 'd' then concat(format_type(t.typbasetype, t.typtypmod),
				(select ' collate ' || t.typcollation::regcollation from pg_type b where b.oid = t.typbasetype and b.typcollation <> t.typcollation),
				case when t.typnotnull then ' not null' end, case when t.typdefaultbin is not null then ' default ' end)
			when 'r' then concat_ws(', ', 'range of ' || format_type(g.rngsubtype, null), 'multirange ' || format_type(g.rngmultitypid, null),
				(select 'operator class ' || o.opcname from pg_opclass o where o.oid = g.rngsubopc and not o.opcdefault),
				(select 'collate ' || g.rngcollation::regcollation from pg_type b where b.oid = g.rngsubtype and b.typcollation <> g.rngcollation),
				'canonical ' || nullif(g.rngcanonical, 0)::regproc, 'subtype_diff ' || nullif(g.rngsubdiff, 0)::regproc)
			when 'c' then 'composite'
			else concat_ws(', ', 'base type', 'input ' || t.typinput::oid::regprocedure, 'output ' || t.typoutput::oid::regprocedure,
				'length ' || t.typlen, 'alignment ' || t.typalign::text, 'storage ' || t.typstorage::text)
			end,
		case when t.typdefaultbin is null then '' else 'e' end, null, 0, t.typdefaultbin, null, null
	from typ t left join pg_range g on g.rngtypid = t.oid

	union all
	select s.ord, 'statistics', x.stxname, '', '', '', o.relname, 0, '', 's', x.oid, null, null, null, null
	from pg_statistic_ext x join s on s.oid = x.stxnamespace join pg_class o on o.oid = x.stxrelid

	union all
	-- The columns differ from one version of PostgreSQL to the next.
	select s.ord, 'collation', c.collname, '', '', '', '', 0,
		(jsonb_strip_nulls(to_jsonb(c)) - '{oid,collname,collnamespace,collowner,collversion}'::text[])::text, '', null, null, null, null, null
	from pg_collation c join s on s.oid = c.collnamespace

	union all
	select s.ord, 'operator', o.oprname, '(' || concat_ws(', ', format_type(nullif(o.oprleft, 0), null), format_type(o.oprright, null)) || ')',
		'', '', '', 0, concat_ws(', ', 'function ' || o.oprcode::regproc, 'commutator ' || nullif(o.oprcom, 0)::regoperator,
			'negator ' || nullif(o.oprnegate, 0)::regoperator, 'restrict ' || nullif(o.oprrest::oid, 0)::regproc,
			'join ' || nullif(o.oprjoin::oid, 0)::regproc, case when o.oprcanhash then 'hashes' end, case when o.oprcanmerge then 'merges' end),
		'', null, null, null, null, null
	from pg_operator o join s on s.oid = o.oprnamespace
	where o.oprcode <> 0 -- one that somebody else's commutator has announced is none yet

	union all
	-- The owner of the schema goes without saying, and a column's sequence has its table's.
	select r.ord, 'owner', r.relname, '', '', '', '', 0, pg_get_userbyid(r.relowner), '', null, null, null, null, null
	from rel r
	where r.relowner <> r.nspowner and r.relkind in ('r', 'p', 'f', 'v', 'm', 'S') and not exists (select from owned o where o.oid = r.oid)
	union all
	select ord, 'owner', proname, args, '', '', '', 0, pg_get_userbyid(proowner), '', null, null, null, null, null from proc where proowner <> nspowner
	union all
	select ord, 'owner', 'type ' || typname, '', '', '', '', 0, pg_get_userbyid(typowner), '', null, null, null, null, null from typ where typowner <> nspowner

	union all
	select a.ord, case when a.typ is null then 'default privileges' else 'grant' end, a.name, a.args, a.sub, g.role, '', 0,
		coalesce(g.privileges, 'nothing'), '', null, null, null, null, null
	from acl a
		join list l on l.acl = a.acl and l.owner = a.owner and coalesce(l.typ, '-') = coalesce(a.typ, '-')
		join given g on g.n = l.n
)
select l.ord, l.kind, l.name, l.args, l.sub, l.role, l.parent, l.num, l.fn, coalesce(l.oid, 0)::int8, coalesce(l.locks, -1)::int4,
	l.def || case when l.locks is not null then '' else case l.fn
		when '' then ''
		when 'c' then pg_get_constraintdef(l.oid)
		when 'e' then pg_get_expr(l.expr, l.rel)
		when 'f' then pg_get_functiondef(l.oid)
		when 'i' then pg_get_indexdef(l.oid)
		when 'k' then pg_get_partkeydef(l.oid)
		when 'p' then case when l.expr is null then '' else ' using (' || pg_get_expr(l.expr, l.rel) || ')' end
			|| case when l.expr2 is null then '' else ' with check (' || pg_get_expr(l.expr2, l.rel) || ')' end
		when 's' then pg_get_statisticsobjdef(l.oid)
		when 't' then pg_get_triggerdef(l.oid)
	end end
from (select * from line order by ord offset 0) l`

// definitions selects what is told by functions that keep the locks on all relations that they look at until the end of
// the transaction, or of a savepoint that is rolled back. It is null for an object that is gone.
const definitions = `
select case d.fn
	when 'f' then pg_get_functiondef(d.oid)
	when 'p' then (select case when p.polqual is null then '' else ' using (' || pg_get_expr(p.polqual, p.polrelid) || ')' end
			|| case when p.polwithcheck is null then '' else ' with check (' || pg_get_expr(p.polwithcheck, p.polrelid) || ')' end
		from pg_policy p where p.oid = d.oid)
	when 'r' then pg_get_ruledef(d.oid)
	when 'v' then pg_get_viewdef(d.oid)
	end
from (select u.fn, u.oid::oid from unnest($1::text[], $2::int8[]) with ordinality u (fn, oid, n) order by u.n offset 0) d`
