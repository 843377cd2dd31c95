package pgtenancy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy/internal/ident"
)

// checkBypass returns ErrRLSBypassed where the role of the data plane is not bound by the row level security of a table in the
// shared schemas. It is one query, which goes by what depends on these schemas: pg_class has no index for it, and has the relations
// of all tenants too. Tables of Policy.ReadOnly have nothing to hide.
func (f *Fleet) checkBypass(ctx context.Context) error {
	if f.bypass {
		return nil
	}
	const most = 3
	role := f.pool.cfg.Conns.ConnConfig.User
	var super, bypasses bool
	var tables []string
	err := f.owner.conns.QueryRow(ctx, `
		select r.rolsuper, r.rolbypassrls, array(
			select n.nspname || '.' || c.relname
			from pg_catalog.pg_namespace n
				join pg_catalog.pg_depend d on d.refclassid = 'pg_catalog.pg_namespace'::pg_catalog.regclass and d.refobjid = n.oid
					and d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
				join pg_catalog.pg_class c on c.oid = d.objid
			where n.nspname = any($2::text[]) and c.relrowsecurity
				and (r.rolsuper or r.rolbypassrls or not c.relforcerowsecurity and pg_catalog.pg_has_role(r.oid, c.relowner, 'usage'))
				and not (exists (select from pg_catalog.pg_policy p where p.polrelid = c.oid and p.polname = $3)
					and not exists (select from pg_catalog.pg_policy p where p.polrelid = c.oid and p.polname <> $3))
			order by 1 limit $4
		)
		from pg_catalog.pg_roles r where r.rolname = $1`, role, f.pool.cfg.SharedSchemas, referencePolicy, most+1).Scan(&super, &bypasses, &tables)
	switch {
	case errors.Is(err, pgx.ErrNoRows): // a pooler may call the role by another name
		return nil
	case err != nil:
		return fmt.Errorf("pgtenancy: read whether row level security binds %q: %w", role, err)
	case len(tables) == 0:
		return nil
	}
	reason := "owns tables that do not force it"
	switch {
	case super:
		reason = "is a superuser"
	case bypasses:
		reason = "has BYPASSRLS"
	}
	if len(tables) > most {
		tables[most] = "others"
	}
	return fmt.Errorf("%w: %q %s: %s", ErrRLSBypassed, role, reason, strings.Join(tables, ", "))
}

// rlsRules are the rules of CheckRLS, in the order of what they let happen.
var rlsRules = []string{
	"role-bypasses", "owner-bypasses", "row-security-off", "child-unguarded", "policy-ignores-tenant", "policy-writes-any", "view-bypasses",
	"materialized-view", "role-can-become", "definer-search-path", "privilege-not-covered", "create-in-shared-schema",
	"not-forced", "no-policy", "setting-required", "setting-empty", "column-cast", "column-index", "column-nullable", "column-default",
	"unique-without-tenant", "foreign-key-without-tenant",
}

// CheckRLS looks for what gets around the row level security of the shared tables, weakens it or makes it slow. It looks at the
// tables in PoolConfig.SharedSchemas and at what depends on them, with the eyes of the role that the data plane's connections have,
// and changes nothing. It takes a dozen catalog queries, whatever the number of tables and tenants. It takes a connection of the
// data plane's for a moment, and one of the owner's.
//
// What lets a statement of one tenant reach rows of another comes first:
//   - role-bypasses: the role, or one that a tenant's statements run as, is a superuser or has BYPASSRLS.
//   - owner-bypasses: it owns a table that has row level security and does not force it.
//   - row-security-off: a table that has a column for the tenant, or policies, and row level security is not enabled. A column for the
//     tenant is one that a policy of another table compares, or "tenant_id".
//   - child-unguarded: a partition or a table that inherits, which the role may use by itself: the parent's policies do not hold there.
//   - policy-ignores-tenant: a permissive policy that shows rows without asking for the tenant. Permissive policies are joined by OR, so
//     that one of them is enough.
//   - policy-writes-any: a policy that lets rows be written for other tenants, or for all of them.
//   - view-bypasses: a view that shows rows as its owner sees them, whom no policy binds.
//   - materialized-view: one that has stored such rows, which no policy guards any more.
//   - role-can-become: the role is a member of one that row level security does not bind, or of a table's owner.
//   - definer-search-path: a function with the rights of such a role, which the caller's objects can stand in for parts of.
//   - privilege-not-covered: TRUNCATE, REFERENCES or TRIGGER on a table, which no policy covers.
//   - create-in-shared-schema: the role can make objects there that statements of all tenants find.
//
// What is weak, wrong or slow comes after:
//   - not-forced: row level security is not forced, so that what the owner runs is not bound.
//   - no-policy: row level security without a policy for the role, which sees nothing.
//   - setting-required: a policy that fails where the setting was never set.
//   - setting-empty: a policy that takes an empty setting for a tenant, which is what one reads that was set before.
//   - column-cast: a policy that casts the column, which no index of the column serves.
//   - column-index: no index begins with the column.
//   - column-nullable: rows without a tenant can be there, which nobody sees. See Policy.Global.
//   - column-default: the column does not default to the statement's tenant.
//   - unique-without-tenant: a unique index tells a tenant which values others have. Keys made of a uuid or a sequence are left out.
//   - foreign-key-without-tenant: a foreign key from a shared table lets a row belong to another tenant's, and tells which there are.
//
// A Finding has no File; its Object is the role, "public.users", "public.users.tenant_id", or the like, and its Remedy begins with the
// statement that mends it where there is one. The findings are ordered by rule, as above, then by object. That there is
// none is no proof: CheckRLS reads what policies are made of as text, and a policy that asks for the tenant and for something else
// with OR is not seen, nor are functions that call functions that read the setting. Policies that Policy.SQL and FinderSQL make are no findings.
func (f *Fleet) CheckRLS(ctx context.Context) ([]Finding, error) {
	if err := f.registryReady(ctx); err != nil {
		return nil, err
	}
	c := &rlsCheck{schemas: f.pool.cfg.SharedSchemas, setting: f.pool.cfg.Setting, isolate: f.roles, tables: map[uint32]*rlsTable{}}
	var role string
	if err := f.pool.conns.QueryRow(ctx, `select current_user::text`).Scan(&role); err != nil {
		return nil, fmt.Errorf("pgtenancy: check row level security: read the data plane's role: %w", err)
	}
	c.roles = []string{role}
	if f.roles != "" {
		c.roles = append(c.roles, f.roles)
	}
	err := pgx.BeginTxFunc(ctx, f.owner.conns, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		c.tx = tx
		return c.run(ctx)
	})
	if err != nil {
		return nil, fmt.Errorf("pgtenancy: check row level security: %w", err)
	}
	slices.SortStableFunc(c.findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(slices.Index(rlsRules, a.Rule), slices.Index(rlsRules, b.Rule)), cmp.Compare(a.Object, b.Object), cmp.Compare(a.Reason, b.Reason))
	})
	return c.findings, nil
}

// rlsCheck is one call of CheckRLS.
type rlsCheck struct {
	tx       pgx.Tx
	schemas  []string
	setting  string
	isolate  string   // FleetConfig.IsolateRoles
	roles    []string // that statements run as: the data plane's, and with isolation the one that tenants' roles are members of
	super    bool     // the first is a superuser, who has every privilege: only that is said then
	tables   map[uint32]*rlsTable
	findings []Finding
}

// rlsTable is a table in the shared schemas, or below one of these.
type rlsTable struct {
	OID                            uint32
	Schema, Name, Kind             string
	Enabled, Forced                bool
	Owner                          string
	Owns                           bool // the role has the owner's rights
	Usable                         bool // the role may do anything with it
	Truncate, References, Triggers bool
	Parent                         string // the guarded table that it is a part of, or ""

	policies []*rlsPolicy
	columns  map[string]rlsColumn
	indexes  []rlsIndex
	column   string // which holds the tenant, or ""
	casts    bool   // and is cast by a policy to read
}

// rlsPolicy is a row of pg_policy.
type rlsPolicy struct {
	OID           uint32
	Table         uint32
	Name          string
	Permissive    bool
	Command       string   // "*", "r", "a", "w" or "d"
	Using, Check  string   // as PostgreSQL writes them, "" for none
	Applies       bool     // to the role
	Columns       []string // that it names
	Functions     []string // that it calls, quoted, but for PostgreSQL's own
	FunctionsText []string
}

type rlsColumn struct {
	Table   uint32
	Name    string
	Quoted  string // as PostgreSQL writes it
	NotNull bool
	Text    bool // a cast to text changes nothing
	Default bool
}

type rlsIndex struct {
	Table      uint32
	Name       string
	Constraint string
	Unique     bool
	Usable     bool     // for all rows
	Made       bool     // a key is a uuid or comes from a sequence
	Keys       []string // as PostgreSQL writes them
	Columns    []string // that they name
}

func (t *rlsTable) object() string { return t.Schema + "." + t.Name }
func (t *rlsTable) quoted() string { return ident.QuoteAll(t.Schema, t.Name) }

// reference reports whether it is one of Policy.ReadOnly.
func (t *rlsTable) reference() bool {
	return t.column == "" && slices.ContainsFunc(t.policies, (*rlsPolicy).reference)
}

func (p *rlsPolicy) reference() bool {
	return p.Name == referencePolicy && p.Command == "r" && p.Using == "true"
}

// list returns the roles for a statement.
func (c *rlsCheck) list() string {
	quoted := make([]string, len(c.roles))
	for i, r := range c.roles {
		quoted[i] = ident.Quote(r)
	}
	return strings.Join(quoted, ", ")
}

func (c *rlsCheck) add(rule, object, reason, remedy string) {
	c.findings = append(c.findings, Finding{Rule: rule, Object: object, Reason: reason, Remedy: remedy})
}

// rlsRows reads rows into T, by the order of its fields.
func rlsRows[T any](ctx context.Context, tx pgx.Tx, sql string, args ...any) ([]T, error) {
	rows, _ := tx.Query(ctx, sql, args...) // the error is in rows
	return pgx.CollectRows(rows, pgx.RowToStructByPos[T])
}

func (c *rlsCheck) run(ctx context.Context) error {
	// So that expressions are written the same whatever the session's settings are.
	if _, err := c.tx.Exec(ctx, `select pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true), pg_catalog.set_config('quote_all_identifiers', 'off', true)`); err != nil {
		return err
	}
	if err := c.checkRoles(ctx); err != nil {
		return err
	}
	if err := c.read(ctx); err != nil {
		return err
	}
	names := []string{tenantColumnDefault}
	for _, t := range c.tables {
		if t.Enabled {
			c.findColumn(t)
			names = append(names, t.column)
		}
	}
	names = slices.Compact(slices.Sorted(slices.Values(names)))
	for _, t := range c.tables {
		if !t.Enabled {
			c.checkUnguarded(t, names)
			continue
		}
		c.checkTable(t, names)
		c.checkPolicies(t)
		c.checkColumn(t)
	}
	for _, check := range []func(context.Context) error{c.checkForeignKeys, c.checkViews, c.checkFunctions, c.checkSchemas} {
		if err := check(ctx); err != nil {
			return err
		}
	}
	return nil
}

// checkRoles looks at the role, and at those that tenants have of their own.
func (c *rlsCheck) checkRoles(ctx context.Context) error {
	type role struct {
		Name             string
		Super, Bypasses  bool
		Members, Reasons []string
	}
	roles, err := rlsRows[role](ctx, c.tx, `
		with owner as materialized (
			select c.relowner as oid, min(n.nspname || '.' || c.relname) as tab
			from pg_class c join pg_namespace n on n.oid = c.relnamespace
			where n.nspname = any($2::text[]) and c.relrowsecurity group by 1
		),
		dangerous as materialized (
			select r.oid, r.rolname::text, case when r.rolsuper then 'is a superuser' when r.rolbypassrls then 'has BYPASSRLS' else 'owns ' || o.tab end as reason
			from pg_roles r left join owner o on o.oid = r.oid
			where r.rolsuper or r.rolbypassrls or o.oid is not null
		)
		select r.rolname::text, r.rolsuper, r.rolbypassrls, coalesce(array_agg(d.rolname order by d.rolname) filter (where d.oid is not null), '{}'),
			coalesce(array_agg(d.reason order by d.rolname) filter (where d.oid is not null), '{}')
		from pg_roles r left join dangerous d on d.oid <> r.oid and not r.rolsuper and (pg_has_role(r.oid, d.oid, 'usage')
			or pg_has_role(r.oid, d.oid, case when current_setting('server_version_num')::int < 160000 then 'member' else 'set' end))
		where r.rolname = any($1::name[]) or r.rolname in (select role_name from pgtenancy.tenants where role_name <> '')
		group by 1, 2, 3`, c.roles, c.schemas)
	if err != nil {
		return err
	}
	for _, r := range roles {
		c.super = c.super || r.Name == c.roles[0] && r.Super
		if r.Super {
			c.add("role-bypasses", r.Name, "statements of all tenants run as a superuser, whom no policy binds",
				"alter role "+ident.Quote(r.Name)+" nosuperuser; or let the data plane connect as another role")
		}
		if r.Bypasses && !r.Super {
			c.add("role-bypasses", r.Name, "statements of all tenants run as a role with BYPASSRLS, which no policy binds", "alter role "+ident.Quote(r.Name)+" nobypassrls")
		}
		for i, member := range r.Members {
			c.add("role-can-become", r.Name, fmt.Sprintf("it is a member of %q, which %s: one SET ROLE, and no policy need hold", member, r.Reasons[i]),
				fmt.Sprintf("revoke %s from %s, or what is between them", ident.Quote(member), ident.Quote(r.Name)))
		}
	}
	return nil
}

// read reads the tables and what belongs to them.
func (c *rlsCheck) read(ctx context.Context) error {
	tables, err := rlsRows[rlsTable](ctx, c.tx, `
		with recursive child as (
			select i.inhrelid as oid, i.inhparent as root
			from pg_inherits i join pg_class p on p.oid = i.inhparent join pg_namespace n on n.oid = p.relnamespace
			where n.nspname = any($1::text[]) and p.relrowsecurity
			union
			select i.inhrelid, c.root from child c join pg_inherits i on i.inhparent = c.oid
		)
		select c.oid, n.nspname::text, c.relname::text, c.relkind::text, c.relrowsecurity, c.relforcerowsecurity, pg_get_userbyid(c.relowner)::text,
			p.owns, p.usable, p.truncate, p.refer, p.trigger,
			coalesce((select min(pn.nspname || '.' || p.relname) from child h join pg_class p on p.oid = h.root
				join pg_namespace pn on pn.oid = p.relnamespace where h.oid = c.oid), '')
		from pg_class c join pg_namespace n on n.oid = c.relnamespace
			cross join lateral (
				select not $3 and bool_or(pg_has_role(r.name, c.relowner, 'usage')) as owns, -- coalesce is for tables dropped meanwhile
					coalesce(bool_or(has_schema_privilege(r.name, n.oid, 'usage') and (has_any_column_privilege(r.name, c.oid, 'select, insert, update')
						or has_table_privilege(r.name, c.oid, 'delete, truncate'))), false) as usable,
					not $3 and coalesce(bool_or(has_table_privilege(r.name, c.oid, 'truncate')), false) as truncate,
					not $3 and coalesce(bool_or(has_any_column_privilege(r.name, c.oid, 'references')), false) as refer,
					not $3 and coalesce(bool_or(has_table_privilege(r.name, c.oid, 'trigger')), false) as trigger
				from unnest($2::name[]) r (name)
			) p
		where c.relkind in ('r', 'p', 'f') and (n.nspname = any($1::text[]) or c.oid in (select oid from child))`, c.schemas, c.roles, c.super)
	if err != nil {
		return err
	}
	oids := make([]uint32, 0, len(tables))
	for i := range tables {
		t := &tables[i]
		t.columns = map[string]rlsColumn{}
		c.tables[t.OID] = t
		oids = append(oids, t.OID)
	}
	policies, err := rlsRows[rlsPolicy](ctx, c.tx, `
		select p.oid, p.polrelid, p.polname::text, p.polpermissive, p.polcmd::text, coalesce(pg_get_expr(p.polqual, p.polrelid), ''),
			coalesce(pg_get_expr(p.polwithcheck, p.polrelid), ''),
			exists (select from unnest(p.polroles) r where case when r = 0 then true
				else not $3 and exists (select from unnest($2::name[]) u (name) where pg_has_role(u.name, r, 'usage')) end),
			array(select a.attname::text from pg_depend d join pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
				where d.classid = 'pg_policy'::regclass and d.objid = p.oid and d.refclassid = 'pg_class'::regclass and d.refobjid = p.polrelid
					and d.refobjsubid > 0),
			coalesce(f.names, '{}'), coalesce(f.texts, '{}')
		from pg_policy p left join lateral (
			select array_agg(quote_ident(f.proname) order by f.oid) as names,
				array_agg(coalesce(pg_get_function_sqlbody(f.oid), f.prosrc) order by f.oid) as texts
			from pg_depend d join pg_proc f on f.oid = d.refobjid
			where d.classid = 'pg_policy'::regclass and d.objid = p.oid and d.refclassid = 'pg_proc'::regclass
		) f on true
		where p.polrelid = any($1) order by p.polname`, oids, c.roles, c.super)
	if err != nil {
		return err
	}
	for i := range policies {
		t := c.tables[policies[i].Table]
		t.policies = append(t.policies, &policies[i])
	}
	columns, err := rlsRows[rlsColumn](ctx, c.tx, `
		select a.attrelid, a.attname::text, quote_ident(a.attname), a.attnotnull or t.typnotnull,
			case t.typtype when 'd' then t.typbasetype else t.oid end in ('text'::regtype, 'varchar'::regtype),
			a.atthasdef or a.attidentity <> '' or t.typdefault is not null
		from pg_attribute a join pg_type t on t.oid = a.atttypid
		where a.attrelid = any($1) and a.attnum > 0 and not a.attisdropped`, oids)
	if err != nil {
		return err
	}
	for _, col := range columns {
		c.tables[col.Table].columns[col.Name] = col
	}
	indexes, err := rlsRows[rlsIndex](ctx, c.tx, `
		select i.indrelid, x.relname::text, coalesce((select k.conname::text from pg_constraint k where k.conindid = x.oid and k.contype in ('p', 'u')), ''),
			i.indisunique, i.indisvalid and i.indpred is null,
			exists (select from pg_attribute a left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
				where a.attrelid = i.indrelid and a.attnum = any(k.keys) and (a.attidentity <> '' or a.atttypid = 'uuid'::regtype
					or pg_get_expr(d.adbin, d.adrelid) like 'nextval(%')),
			array(select coalesce(pg_get_indexdef(x.oid, n, false), '') from generate_series(1, i.indnkeyatts) n order by n),
			array(select a.attname::text from pg_attribute a where a.attrelid = i.indrelid and (a.attnum = any(k.keys)
				or i.indexprs is not null and exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = x.oid
					and d.refclassid = 'pg_class'::regclass and d.refobjid = i.indrelid and d.refobjsubid = a.attnum)))
		from pg_index i join pg_class x on x.oid = i.indexrelid
			cross join lateral (select (i.indkey::int2[])[0:i.indnkeyatts - 1] as keys) k
		where i.indrelid = any($1) order by x.relname`, oids)
	if err != nil {
		return err
	}
	for _, x := range indexes {
		t := c.tables[x.Table]
		t.indexes = append(t.indexes, x)
	}
	return nil
}

// asks returns the pattern of what asks for the tenant in an expression of p.
func (c *rlsCheck) asks(p *rlsPolicy) string {
	patterns := []string{settingPattern(c.setting), settingPattern(findSetting)}
	own := regexp.MustCompile(`(?i)current_setting\s*\(\s*'` + regexp.QuoteMeta(c.setting) + `'`)
	if c.isolate != "" {
		patterns[0] = `CURRENT_USER`
		own = regexp.MustCompile(`(?i)current_user`)
	}
	for i, name := range p.Functions {
		if own.MatchString(p.FunctionsText[i]) {
			patterns = append(patterns, `(?:^|[^\w"])`+regexp.QuoteMeta(name)+`\(`)
		}
	}
	return "(?:" + strings.Join(patterns, "|") + ")"
}

func settingPattern(name string) string {
	return `current_setting\('(?i:` + regexp.QuoteMeta(name) + `)'::text`
}

// asked is what a policy must ask for.
func (c *rlsCheck) asked() string {
	if c.isolate != "" {
		return "the role of the tenant, as with Policy.IsolateRoles"
	}
	return c.setting
}

// keyed reports whether an expression of p asks for the tenant.
func (c *rlsCheck) keyed(p *rlsPolicy, expr string) bool {
	return regexp.MustCompile(c.asks(p)).MatchString(expr)
}

// findColumn finds the column that the table's policies compare with the tenant.
func (c *rlsCheck) findColumn(t *rlsTable) {
	const (
		column = `("(?:[^"]|"")+"|[a-z_][a-z0-9_]*)`
		cast   = `(\)::[\w ."]+(?:\([\d,]+\))?)?`
	)
	find := regexp.MustCompile(settingPattern(findSetting))
	for _, p := range t.policies {
		if find.MatchString(p.Using) {
			continue // it compares another column
		}
		asks := c.asks(p)
		for _, expr := range []string{p.Using, p.Check} {
			for _, pattern := range []string{column + cast + `\)* = [^=]*?` + asks, asks + `[^=]* = \(*` + column + cast} {
				for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(expr, -1) {
					if strings.Contains(m[0], " AND ") || strings.Contains(m[0], " OR ") {
						continue
					}
					for _, name := range p.Columns {
						if t.columns[name].Quoted == m[1] && (t.column == "" || t.column == name) {
							t.column, t.casts = name, t.casts || expr == p.Using && m[2] != "" && !t.columns[name].Text
						}
					}
				}
			}
			if t.column == "" && len(p.Columns) == 1 && c.keyed(p, expr) {
				t.column = p.Columns[0]
			}
		}
	}
}

// checkUnguarded looks at a table without row level security. names are those of columns for the tenant.
func (c *rlsCheck) checkUnguarded(t *rlsTable, names []string) {
	if !t.Usable {
		return
	}
	if t.Parent != "" {
		c.add("child-unguarded", t.object(), "it is a part of "+t.Parent+", whose policies do not hold for those who name it",
			fmt.Sprintf("revoke all on %s from public, %s; rights on the parent are enough", t.quoted(), c.list()))
		return
	}
	if len(t.policies) > 0 || t.Forced {
		c.add("row-security-off", t.object(), "it has policies that do not hold, as row level security is not enabled: all tenants use all rows",
			fmt.Sprintf("alter table %s enable row level security, force row level security", t.quoted()))
		return
	}
	for _, name := range names {
		if _, ok := t.columns[name]; ok && t.Kind == "f" {
			c.add("row-security-off", t.object(), "all tenants use all rows: a foreign table cannot have policies",
				fmt.Sprintf("revoke all on %s from public, %s; give the application a view with security_barrier that asks for the tenant", t.quoted(), c.list()))
			return
		} else if ok {
			c.add("row-security-off", t.object(), fmt.Sprintf("it has the column %s and no policy: all tenants use all rows", name),
				fmt.Sprintf("alter table %s enable row level security, force row level security; and the rest of Policy.SQL, in a shared migration", t.quoted()))
			return
		}
	}
}

// checkTable looks at what policies do not cover.
func (c *rlsCheck) checkTable(t *rlsTable, names []string) {
	if !t.Forced && !t.reference() {
		remedy := fmt.Sprintf("alter table %s force row level security", t.quoted())
		if t.Owns {
			c.add("owner-bypasses", t.object(), fmt.Sprintf("%s has the rights of the owner, %q, whom policies do not bind: all tenants use all rows", c.list(), t.Owner), remedy)
		} else {
			c.add("not-forced", t.object(), fmt.Sprintf("what %q runs is not bound: its jobs, functions and views use the rows of all tenants", t.Owner), remedy)
		}
	}
	if !t.Owns {
		var has []string
		for _, p := range []struct {
			name string
			has  bool
		}{{"TRUNCATE", t.Truncate}, {"REFERENCES", t.References}, {"TRIGGER", t.Triggers}} {
			if p.has {
				has = append(has, p.name)
			}
		}
		if len(has) > 0 {
			c.add("privilege-not-covered", t.object(), fmt.Sprintf("%s has %s, which no policy covers", c.list(), strings.Join(has, ", ")),
				fmt.Sprintf("revoke %s on %s from public, %s", strings.ToLower(strings.Join(has, ", ")), t.quoted(), c.list()))
		}
	}
	if t.reference() { // which must not have what tenants have
		for _, name := range names {
			if _, ok := t.columns[name]; ok {
				c.add("policy-ignores-tenant", t.object(), fmt.Sprintf("it has the column %s, and policy %s lets all tenants read all rows", name, referencePolicy),
					fmt.Sprintf("drop policy %s on %s; and put SQL of a Policy without ReadOnly into a shared migration", referencePolicy, t.quoted()))
				return
			}
		}
	}
}

// covers reports whether a policy is about a command.
func (p *rlsPolicy) covers(command string) bool { return p.Command == "*" || p.Command == command }

// check returns the expression that new rows must pass.
func (p *rlsPolicy) check() string {
	if p.Check == "" && p.Command != "a" {
		return p.Using
	}
	return p.Check
}

// restricted reports whether the table has a restrictive policy that asks for the tenant for all commands of p, to read or to write.
func (c *rlsCheck) restricted(t *rlsTable, p *rlsPolicy, commands string, expr func(*rlsPolicy) string) bool {
	for _, command := range strings.Split(commands, "") {
		if p.covers(command) && !slices.ContainsFunc(t.policies, func(r *rlsPolicy) bool {
			return !r.Permissive && r.Applies && r.covers(command) && c.keyed(r, expr(r))
		}) {
			return false
		}
	}
	return true
}

// shows reports whether p shows rows of tenants without asking for the tenant.
func (c *rlsCheck) shows(t *rlsTable, p *rlsPolicy) bool {
	switch {
	case p.Command == "a" || !p.Permissive || c.keyed(p, p.Using), t.reference() && p.reference():
		return false
	case p.Command == "r" && t.column != "" && p.Using == "("+t.columns[t.column].Quoted+" IS NULL)": // Policy.Global
		return false
	}
	return !c.restricted(t, p, "rwd", func(r *rlsPolicy) string { return r.Using })
}

func (c *rlsCheck) checkPolicies(t *rlsTable) {
	setting := regexp.MustCompile(settingPattern(c.setting))
	permissive := false
	for _, p := range t.policies {
		if !p.Applies {
			continue
		}
		permissive = permissive || p.Permissive
		drop := fmt.Sprintf("drop policy %s on %s", ident.Quote(p.Name), t.quoted())
		switch check := p.check(); {
		case c.shows(t, p):
			reason := fmt.Sprintf("policy %s does not ask for %s: it lets all tenants use rows", p.Name, c.asked())
			if len(t.policies) > 1 {
				reason += ", whatever other permissive policies say"
			}
			c.add("policy-ignores-tenant", t.object(), reason, drop+", or restrict it to other roles")
		case !p.Permissive || !p.covers("a") && !p.covers("w") || c.restricted(t, p, "aw", (*rlsPolicy).check):
		case !c.keyed(p, check):
			c.add("policy-writes-any", t.object(), fmt.Sprintf("policy %s lets a tenant write rows that are not its own: its WITH CHECK does not ask for %s", p.Name, c.asked()),
				drop+", or give it a WITH CHECK that asks for the tenant")
		case t.column != "" && p.Name != ownerPolicy && strings.Contains(check, t.columns[t.column].Quoted+" IS NULL"):
			c.add("policy-writes-any", t.object(), fmt.Sprintf("policy %s lets every tenant write the rows that belong to all", p.Name),
				drop+", and have Policy.Global make policies instead: one for reading these rows, another for writing")
		}
		for _, expr := range []string{p.Using, p.Check} {
			var required, empty bool
			for _, at := range setting.FindAllStringIndex(expr, -1) {
				required = required || !strings.HasPrefix(expr[at[1]:], ", true)")
				empty = empty || !strings.HasSuffix(expr[:at[0]], "NULLIF(")
			}
			remedy := fmt.Sprintf("alter policy %s on %s, with nullif(current_setting(%s, true), '')", ident.Quote(p.Name), t.quoted(), ident.Literal(c.setting))
			if required {
				c.add("setting-required", t.object(), fmt.Sprintf("policy %s fails with an error where %s was never set", p.Name, c.setting), remedy)
			}
			if empty {
				c.add("setting-empty", t.object(), fmt.Sprintf("policy %s takes '' for a tenant, which %s is where it was set once and is not any more", p.Name, c.setting), remedy)
			}
			if required || empty {
				break
			}
		}
	}
	if !permissive && t.Usable && t.Parent == "" {
		c.add("no-policy", t.object(), fmt.Sprintf("no policy lets %s use any row", c.list()), "put SQL of a Policy into a shared migration, or revoke all on "+t.quoted()+" from public, "+c.list())
	}
}

// checkColumn looks at the column that holds the tenant.
func (c *rlsCheck) checkColumn(t *rlsTable) {
	if t.column == "" {
		return
	}
	col := t.columns[t.column]
	object := t.object() + "." + t.column
	alter := fmt.Sprintf("alter table %s alter column %s ", t.quoted(), ident.Quote(t.column))
	leads := func(x rlsIndex) bool {
		if t.casts {
			return x.Usable && strings.HasPrefix(x.Keys[0], "(("+col.Quoted+")::")
		}
		return x.Usable && x.Keys[0] == col.Quoted
	}
	switch indexed := slices.ContainsFunc(t.indexes, leads); {
	case !indexed && t.casts:
		c.add("column-cast", object, "a policy casts the column, so that no index of it is used, and each statement reads all rows",
			"compare the column itself with the setting, cast to the column's type")
	case !indexed && t.Kind != "f":
		c.add("column-index", object, "no index begins with it: each statement reads the rows of all tenants", fmt.Sprintf("create index on %s (%s)", t.quoted(), ident.Quote(t.column)))
	}
	global := slices.ContainsFunc(t.policies, func(p *rlsPolicy) bool { return strings.Contains(p.Using, col.Quoted+" IS NULL") })
	if !col.NotNull && !global {
		c.add("column-nullable", object, "rows without a tenant can be there, which no tenant sees", alter+"set not null, or have them belong to all with Policy.Global")
	}
	if !col.Default {
		c.add("column-default", object, "an INSERT that does not give it fails", alter+"set default, as Policy.SQL does")
	}
	for _, x := range t.indexes {
		if !x.Unique || x.Made || slices.Contains(x.Columns, t.column) {
			continue
		}
		keys := ident.Quote(t.column) + ", " + strings.Join(x.Keys, ", ")
		remedy := fmt.Sprintf("create unique index on %s (%s); drop index %s", t.quoted(), keys, ident.QuoteAll(t.Schema, x.Name))
		if x.Constraint != "" {
			remedy = fmt.Sprintf("alter table %s drop constraint %s, add unique (%s)", t.quoted(), ident.Quote(x.Constraint), keys)
		}
		c.add("unique-without-tenant", t.object(), fmt.Sprintf("unique index %s is over all tenants: a tenant cannot use what another one has, and learns that it is there", x.Name), remedy)
	}
}

// guarded returns the tables whose rows are to be hidden.
func (c *rlsCheck) guarded() []uint32 {
	oids := []uint32{}
	for oid, t := range c.tables {
		if t.Enabled && !t.reference() {
			oids = append(oids, oid)
		}
	}
	return oids
}

func (c *rlsCheck) checkForeignKeys(ctx context.Context) error {
	type key struct {
		Table, To         uint32
		Name              string
		Columns, ToColumn []string
	}
	keys, err := rlsRows[key](ctx, c.tx, `
		select k.conrelid, k.confrelid, k.conname::text,
			array(select a.attname::text from unnest(k.conkey) with ordinality u (n, i) join pg_attribute a on a.attrelid = k.conrelid and a.attnum = u.n order by u.i),
			array(select a.attname::text from unnest(k.confkey) with ordinality u (n, i) join pg_attribute a on a.attrelid = k.confrelid and a.attnum = u.n order by u.i)
		from pg_constraint k join pg_class c on c.oid = k.conrelid join pg_namespace n on n.oid = c.relnamespace
		where k.contype = 'f' and k.conparentid = 0 and k.confrelid = any($2) and n.nspname = any($1::text[])`, c.schemas, c.guarded())
	if err != nil {
		return err
	}
	list := func(column string, names []string) string {
		quoted := []string{ident.Quote(column)}
		for _, n := range names {
			quoted = append(quoted, ident.Quote(n))
		}
		return strings.Join(quoted, ", ")
	}
	for _, k := range keys {
		from, to := c.tables[k.Table], c.tables[k.To]
		if to.column == "" || slices.Contains(k.ToColumn, to.column) {
			continue
		}
		column := from.column
		if column == "" {
			column = to.column
		}
		c.add("foreign-key-without-tenant", from.object(), fmt.Sprintf("foreign key %s takes rows of %s of any tenant, and tells which there are", k.Name, to.object()),
			fmt.Sprintf("alter table %s drop constraint %s, add foreign key (%s) references %s (%s)", from.quoted(), ident.Quote(k.Name), list(column, k.Columns), to.quoted(), list(to.column, k.ToColumn)))
	}
	return nil
}

func (c *rlsCheck) checkViews(ctx context.Context) error {
	type view struct {
		Schema, Name, Kind, Owner string
		Table                     uint32
		Invoker, Bypasses         bool
		Policies                  []uint32 // that hold for the owner
	}
	// A view that has not got security_invoker reads the tables that it names itself as its owner, also where another view is above
	// it. The role need not be able to read it, if it can read one above it.
	views, err := rlsRows[view](ctx, c.tx, `
		with recursive names as materialized (
			select distinct r.ev_class as view, d.refobjid as tab
			from pg_depend d join pg_rewrite r on r.oid = d.objid
			where d.classid = 'pg_rewrite'::regclass and d.refclassid = 'pg_class'::regclass and d.refobjid = any($1) and r.ev_class <> d.refobjid
		),
		above as (
			select view as base, view as top from names
			union
			select a.base, r.ev_class
			from above a join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.refclassid = 'pg_class'::regclass and d.refobjid = a.top
				join pg_rewrite r on r.oid = d.objid
			where r.ev_class <> a.top
		)
		select n.nspname::text, v.relname::text, v.relkind::text, o.rolname::text, t.oid,
			coalesce((select split_part(x, '=', 2)::bool from unnest(v.reloptions) x where x like 'security_invoker=%'), false),
			o.rolsuper or o.rolbypassrls or not t.relforcerowsecurity and pg_has_role(o.oid, t.relowner, 'usage'),
			array(select p.oid from pg_policy p where p.polrelid = t.oid
				and exists (select from unnest(p.polroles) r where case when r = 0 then true else pg_has_role(o.oid, r, 'usage') end))
		from names d join pg_class v on v.oid = d.view join pg_namespace n on n.oid = v.relnamespace join pg_roles o on o.oid = v.relowner
			join pg_class t on t.oid = d.tab
		where v.relkind in ('v', 'm') and exists (
			select from above a join pg_class x on x.oid = a.top join pg_namespace xn on xn.oid = x.relnamespace
				cross join unnest($2::name[]) u (name)
			where a.base = v.oid and has_schema_privilege(u.name, xn.oid, 'usage')
				and (has_any_column_privilege(u.name, x.oid, 'select, insert, update') or has_table_privilege(u.name, x.oid, 'delete')))
		order by 1, 2, t.oid`, c.guarded(), c.roles)
	if err != nil {
		return err
	}
	for _, v := range views {
		t, quoted, object := c.tables[v.Table], ident.QuoteAll(v.Schema, v.Name), v.Schema+"."+v.Name
		bypasses := v.Bypasses || slices.ContainsFunc(t.policies, func(p *rlsPolicy) bool {
			return !p.Applies && slices.Contains(v.Policies, p.OID) && c.shows(t, p)
		})
		switch {
		case v.Kind == "m":
			c.add("materialized-view", object, "it has rows of "+t.object()+" stored for all to read who may read it: policies do not hold there",
				fmt.Sprintf("revoke all on %s from public, %s", quoted, c.list()))
		case bypasses && !v.Invoker:
			c.add("view-bypasses", object, fmt.Sprintf("it shows the rows of %s as %q sees them, whom policies do not bind: those of all tenants", t.object(), v.Owner),
				fmt.Sprintf("alter view %s set (security_invoker = true); before PostgreSQL 15, make an owner of it whom policies bind", quoted))
		}
	}
	return nil
}

func (c *rlsCheck) checkFunctions(ctx context.Context) error {
	if c.super {
		return nil
	}
	type function struct{ Schema, Name, Arguments, Owner string }
	functions, err := rlsRows[function](ctx, c.tx, `
		select n.nspname::text, p.proname::text, coalesce(pg_get_function_identity_arguments(p.oid), ''), o.rolname::text
		from pg_proc p join pg_namespace n on n.oid = p.pronamespace join pg_roles o on o.oid = p.proowner
		where n.nspname = any($1::text[]) and p.prosecdef and o.rolname <> all($2::name[])
			and not exists (select from unnest(p.proconfig) s where s like 'search_path=%')
			and exists (select from unnest($2::name[]) u (name)
				where has_schema_privilege(u.name, n.oid, 'usage') and has_function_privilege(u.name, p.oid, 'execute'))
			and (o.rolsuper or o.rolbypassrls or exists (select from pg_class t where t.oid = any($3) and pg_has_role(o.oid, t.relowner, 'usage')))
			and not exists (select from pg_depend d where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e')`,
		c.schemas, c.roles, c.guarded())
	if err != nil {
		return err
	}
	for _, p := range functions {
		c.add("definer-search-path", p.Schema+"."+p.Name, fmt.Sprintf("it has the rights of %q and the search_path of the caller, whose objects can stand in for those that it names", p.Owner),
			fmt.Sprintf("alter routine %s (%s) set search_path = pg_catalog, pg_temp", ident.QuoteAll(p.Schema, p.Name), p.Arguments))
	}
	return nil
}

func (c *rlsCheck) checkSchemas(ctx context.Context) error {
	if c.super {
		return nil
	}
	type schema struct {
		Name   string
		Public bool
	}
	schemas, err := rlsRows[schema](ctx, c.tx, `
		select n.nspname::text, exists (select from aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a where a.grantee = 0 and a.privilege_type = 'CREATE')
		from pg_namespace n
		where n.nspname = any($1::text[]) and exists (select from unnest($2::name[]) u (name)
			where has_schema_privilege(u.name, n.oid, 'create') and not pg_has_role(u.name, n.nspowner, 'usage'))`, c.schemas, c.roles)
	if err != nil {
		return err
	}
	for _, s := range schemas {
		from := "public"
		if !s.Public {
			from = c.list()
		}
		c.add("create-in-shared-schema", s.Name, fmt.Sprintf("%s can make functions, operators and tables there that statements of all tenants take for others", c.list()),
			fmt.Sprintf("revoke create on schema %s from %s", ident.Quote(s.Name), from))
	}
	return nil
}
