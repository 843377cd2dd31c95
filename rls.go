package pgtenancy

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy/internal/ident"
)

// Policy is the row level security of a table that tenants share. Its SQL goes into a shared migration, after the table:
// each tenant then sees and writes its own rows only, and a statement without a tenant sees none.
//
// It holds for roles that neither are superusers nor have BYPASSRLS; the table's owner is bound by it too. Fleet.CheckRLS finds what
// gets around it.
type Policy struct {
	// Table is the shared table, as {"public", "users"}. Required, with its schema.
	Table pgx.Identifier

	// Column holds the tenant. Defaults to "tenant_id".
	Column string

	// Type is the column's type. Defaults to "text", which fits Tenant.ID; PoolConfig.SettingValue must return what fits
	// others, as "uuid" or "bigint".
	Type string

	// Role is the application's role, from which TRUNCATE, REFERENCES and TRIGGER are revoked, as policies do not cover them. It
	// should not be the table's owner. Defaults to "", which revokes them from PUBLIC only.
	Role string

	// Global lets the rows that have NULL for a tenant be everybody's: all tenants read them, and so does a statement without a
	// tenant. No tenant writes them: the role that runs SQL does, without a tenant, and in a shared migration after SET LOCAL
	// row_security = on. They are all different for a unique index that begins with the column: it takes another one, of the rows
	// where the column is null, to keep them from being there twice.
	Global bool

	// ReadOnly is for reference data, which belongs to no tenant: all rows are read by all, and written by the table's owner
	// alone, who is not bound. INSERT, UPDATE and DELETE are revoked from Role and from PUBLIC too. The table has no column for a
	// tenant, so that Column, Type, Global and Readers must not be set.
	ReadOnly bool

	// Readers are roles that read the rows of all tenants, for support and reports. What else policies do not cover is revoked
	// from them, and INSERT, UPDATE and DELETE too: where these are granted to them again, they write the rows of the
	// statement's tenant, as all roles do. SELECT is granted by the migration. The application's role must be none of them, nor a
	// member of one. Defaults to none.
	Readers []string

	// Setting is PoolConfig.Setting. Defaults to SettingDefault.
	Setting string

	// IsolateRoles is FleetConfig.IsolateRoles. A statement that runs as a tenant's role then is that tenant's, whatever Setting says;
	// only for other roles, as the owner's in Provision, Backup and Restore, Setting counts. Migrations grant the table to the role
	// IsolateRoles. Defaults to "", for Setting alone.
	IsolateRoles string
}

// tenantColumnDefault is the default of Policy.Column.
const tenantColumnDefault = "tenant_id"

// The policies that SQL makes. Their names are a part of what it does: when it is run again, these are replaced.
const (
	isolationPolicy = "tenant_isolation"
	globalPolicy    = "tenant_global"       // of rows without a tenant: to read them
	ownerPolicy     = "tenant_global_owner" // and to write them
	readersPolicy   = "tenant_readers"
	referencePolicy = "reference_data"
)

var typeName = regexp.MustCompile(`^[a-z][a-z0-9_ ]*(\([0-9]+(, ?[0-9]+)?\))?$`)

func (p Policy) withDefaults() (Policy, error) {
	if len(p.Table) != 2 {
		return p, invalid("Policy.Table", strings.Join(p.Table, "."), "must have a schema and a name")
	}
	for _, part := range p.Table {
		if err := invalid("Policy.Table", part, ident.CheckName(part)); err != nil {
			return p, err
		}
	}
	if p.ReadOnly {
		for _, f := range []struct {
			name string
			set  bool
		}{{"Column", p.Column != ""}, {"Type", p.Type != ""}, {"Global", p.Global}, {"Readers", len(p.Readers) > 0}} {
			if f.set {
				return p, invalid("Policy."+f.name, "", "must not be set with Policy.ReadOnly")
			}
		}
	}
	if p.Column == "" {
		p.Column = tenantColumnDefault
	}
	if err := invalid("Policy.Column", p.Column, ident.CheckName(p.Column)); err != nil {
		return p, err
	}
	if p.Type == "" {
		p.Type = "text"
	}
	if !typeName.MatchString(p.Type) {
		return p, invalid("Policy.Type", p.Type, "must be the name of one of PostgreSQL's types")
	}
	if p.Role != "" {
		if err := invalid("Policy.Role", p.Role, ident.CheckName(p.Role)); err != nil {
			return p, err
		}
	}
	for _, r := range p.Readers {
		rule := ident.CheckName(r)
		switch {
		case rule != "":
		case r == p.Role:
			rule = "must not be Policy.Role"
		case r == p.IsolateRoles:
			rule = "must not be Policy.IsolateRoles"
		}
		if err := invalid("Policy.Readers", r, rule); err != nil {
			return p, err
		}
	}
	if p.Setting == "" {
		p.Setting = SettingDefault
	}
	if err := checkRoles("Policy.IsolateRoles", p.IsolateRoles); err != nil {
		return p, err
	}
	return p, invalid("Policy.Setting", p.Setting, ident.CheckSetting(p.Setting))
}

// must makes a wrong policy a panic: it is part of the program, and its SQL is made once, when a migration is written.
func (p Policy) must() Policy {
	p, err := p.withDefaults()
	if err != nil {
		panic(err)
	}
	return p
}

// tenant returns the expression for the tenant of the statement. A setting that was set locally once reads ” afterwards
// and not NULL, hence nullif; NULL equals nothing.
func (p Policy) tenant() string {
	setting := fmt.Sprintf("nullif(current_setting(%s, true), '')", ident.Literal(p.Setting))
	if p.IsolateRoles == "" {
		return setting + "::" + p.Type
	}
	// current_user is of the type name, which is compared and cut as bytes would be. Nothing in it is read from a table, and it is
	// STABLE, so that an index is searched with it and it is evaluated once then.
	prefix := p.IsolateRoles + roleSeparator
	return fmt.Sprintf("(case when starts_with(current_user::text, %s) then substr(current_user::text, %d) else %s end)::%s",
		ident.Literal(prefix), len(prefix)+1, setting, p.Type)
}

// SQL returns the statements that guard the table. It may be run again, also when the policy has changed: it replaces what it made
// before, and gives back no privilege that it revoked. It enables and forces row level security, so that the owner is bound too;
// adds one policy for reading and writing, and those that Global and Readers ask for; lets the column default to the tenant of
// the statement; makes an index on the column where none begins with it; and revokes what policies do not cover. For ReadOnly see
// there.
//
// It panics with an *InvalidError where a field breaks a rule.
func (p Policy) SQL() string {
	p = p.must()
	table, column := ident.QuoteAll(p.Table...), ident.Quote(p.Column)
	from := "public"
	for _, role := range []string{p.Role, p.IsolateRoles} {
		if role != "" {
			from += ", " + ident.Quote(role)
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "alter table %s enable row level security;\n", table)
	if p.ReadOnly {
		fmt.Fprintf(&b, "alter table %s no force row level security;\n", table)
	} else {
		fmt.Fprintf(&b, "alter table %s force row level security;\n", table)
	}
	for _, name := range []string{isolationPolicy, globalPolicy, ownerPolicy, readersPolicy, referencePolicy} {
		fmt.Fprintf(&b, "drop policy if exists %s on %s;\n", name, table)
	}
	if p.ReadOnly {
		fmt.Fprintf(&b, "create policy %s on %s for select using (true);\n", referencePolicy, table)
		fmt.Fprintf(&b, "revoke %s on %s from %s;\n", writePrivileges, table, from)
		return b.String()
	}
	tenant := p.tenant()
	fmt.Fprintf(&b, "create policy %s on %s\n    using (%s = %s)\n    with check (%[3]s = %[4]s);\n", isolationPolicy, table, column, tenant)
	if p.Global {
		fmt.Fprintf(&b, "create policy %s on %s for select using (%s is null);\n", globalPolicy, table, column)
		fmt.Fprintf(&b, "create policy %s on %s to current_user\n    using (%s is null and %s is null)\n    with check (%[3]s is null and %[4]s is null);\n",
			ownerPolicy, table, column, tenant)
	}
	fmt.Fprintf(&b, "alter table %s alter column %s set default %s;\n", table, column, tenant)
	fmt.Fprintf(&b, "revoke truncate, references, trigger on %s from %s;\n", table, from)
	if len(p.Readers) > 0 {
		readers := make([]string, len(p.Readers))
		for i, r := range p.Readers {
			readers[i] = ident.Quote(r)
		}
		fmt.Fprintf(&b, "create policy %s on %s for select to %s using (true);\n", readersPolicy, table, strings.Join(readers, ", "))
		fmt.Fprintf(&b, "revoke %s on %s from %s;\n", writePrivileges, table, strings.Join(readers, ", "))
	}
	body := fmt.Sprintf(`
begin
    if not exists (
        select from pg_catalog.pg_index i
        join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
        where i.indrelid = %s::regclass and i.indpred is null and a.attname = %s
    ) then
        create index on %s (%s);
    end if;
end
`, ident.Literal(table), ident.Literal(p.Column), table, column)
	fmt.Fprintf(&b, "do %s;\n", dollarQuote(body))
	return b.String()
}

// findSetting holds the key that a function of FinderSQL looks for, while it runs.
const findSetting = "pgtenancy.find"

// writePrivileges are all but to read.
const writePrivileges = "insert, update, delete, truncate, references, trigger"

// FinderSQL returns the statements that make a function to find rows of the table by an exact key before the tenant is
// known: the login of a user by e-mail address. The application calls it on Pool.Shared:
//
//	select tenant_id, id, password_hash from public.find_user($1)
//
// It returns the tenant's column and the columns listed, of the rows whose key is the one asked for and of no others: it
// cannot list the table, and does not make Policy's own condition any weaker or slower. It runs as the role that makes it,
// which must be the table's owner, with a fixed search_path, and may be called by Policy.Role only, which is required here.
// The key should have a unique index.
//
// It panics with an *InvalidError where a field or a name breaks a rule.
func (p Policy) FinderSQL(function pgx.Identifier, key string, columns ...string) string {
	p = p.must()
	check := func(field, value, rule string) {
		if err := invalid(field, value, rule); err != nil {
			panic(err)
		}
	}
	if p.ReadOnly {
		check("Policy.ReadOnly", "", "must not be set for a finder")
	}
	if p.Role == "" {
		check("Policy.Role", "", "must not be empty for a finder")
	}
	if len(function) != 2 {
		check("FinderSQL function", strings.Join(function, "."), "must have a schema and a name")
	}
	for _, name := range append(append(append([]string{}, function...), key), columns...) {
		check("FinderSQL name", name, ident.CheckName(name))
	}
	table := ident.QuoteAll(p.Table...)
	name := ident.QuoteAll(function...)
	setting := ident.Literal(findSetting)
	argument := table + "." + ident.Quote(key) + "%TYPE"
	var returns, selects []string
	for _, c := range append([]string{p.Column}, columns...) {
		returns = append(returns, fmt.Sprintf("%s %s.%[1]s%%TYPE", ident.Quote(c), table))
		selects = append(selects, "f."+ident.Quote(c))
	}
	policy := ident.Quote(cut("find_by_"+key, ident.MaxBytes))
	var b strings.Builder
	fmt.Fprintf(&b, "drop policy if exists %s on %s;\n", policy, table)
	fmt.Fprintf(&b, "create policy %s on %s for select to current_user\n    using (%s::text = nullif(current_setting(%s, true), ''));\n", policy, table, ident.Quote(key), setting)
	body := fmt.Sprintf(`
begin
    -- Not by a SET of the function, which only a superuser could give it. An error undoes it too.
    perform set_config(%[1]s, $1::text, true);
    return query select %[2]s from %[3]s f where f.%[4]s = $1;
    perform set_config(%[1]s, '', true);
end
`, setting, strings.Join(selects, ", "), table, ident.Quote(key))
	fmt.Fprintf(&b, "create or replace function %s (%s) returns table (%s)\n"+
		"language plpgsql security definer set search_path = pg_catalog, pg_temp set row_security = on as %s;\n",
		name, argument, strings.Join(returns, ", "), dollarQuote(body))
	fmt.Fprintf(&b, "revoke all on function %s (%s) from public;\n", name, argument)
	fmt.Fprintf(&b, "grant execute on function %s (%s) to %s;\n", name, argument, ident.Quote(p.Role))
	return b.String()
}

// dollarQuote returns s between dollar signs, with a tag where s has two of them, in a name.
func dollarQuote(s string) string {
	quote := "$$"
	for i := 1; strings.Contains(s, quote); i++ {
		quote = fmt.Sprintf("$q%d$", i)
	}
	return quote + s + quote
}

func cut(s string, n int) string {
	if len(s) > n {
		return strings.ToValidUTF8(s[:n], "")
	}
	return s
}
