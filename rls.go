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
// It holds for roles that neither are superusers nor have BYPASSRLS; the table's owner is bound by it too.
type Policy struct {
	// Table is the shared table, as {"public", "users"}. Required, with its schema.
	Table pgx.Identifier

	// Column holds the tenant. Defaults to "tenant_id".
	Column string

	// Type is the column's type. Defaults to "text", which fits Tenant.ID; PoolConfig.SettingValue must return what fits
	// others, as "uuid" or "bigint".
	Type string

	// Role is the application's role, from which TRUNCATE and REFERENCES are revoked, as policies do not cover them. Defaults
	// to "", which revokes them from PUBLIC only.
	Role string

	// Setting is PoolConfig.Setting. Defaults to SettingDefault.
	Setting string
}

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
	if p.Column == "" {
		p.Column = "tenant_id"
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
	if p.Setting == "" {
		p.Setting = SettingDefault
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
	return fmt.Sprintf("nullif(current_setting(%s, true), '')::%s", ident.Literal(p.Setting), p.Type)
}

// SQL returns the statements that guard the table. It may be run again. It enables and forces row level security, so that
// the owner is bound too; adds one policy for reading and writing; lets the column default to the tenant of the
// statement; makes an index on the column where none begins with it; and revokes what policies do not cover.
//
// It panics with an *InvalidError where a field breaks a rule.
func (p Policy) SQL() string {
	p = p.must()
	table, column := ident.QuoteAll(p.Table...), ident.Quote(p.Column)
	from := "public"
	if p.Role != "" {
		from += ", " + ident.Quote(p.Role)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "alter table %s enable row level security;\n", table)
	fmt.Fprintf(&b, "alter table %s force row level security;\n", table)
	fmt.Fprintf(&b, "drop policy if exists tenant_isolation on %s;\n", table)
	fmt.Fprintf(&b, "create policy tenant_isolation on %s\n    using (%s = %s)\n    with check (%[2]s = %[3]s);\n", table, column, p.tenant())
	fmt.Fprintf(&b, "alter table %s alter column %s set default %s;\n", table, column, p.tenant())
	fmt.Fprintf(&b, "revoke truncate, references on %s from %s;\n", table, from)
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
	setting := ident.Literal("pgtenancy.find")
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
