package pgtenancy

import (
	"fmt"
	"strings"

	"github.com/pgtenancy/pgtenancy/internal/ident"
)

const guardName = "pgtenancy_guard"

// GuardSQL returns the statements that let Extract move the rows of one tenant without keeping the others from writing to the table.
// They go into a shared migration, before the tenants' one that calls Extract, and may be run again. It is a trigger that costs
// each writing statement some microseconds. While Extract moves a tenant's rows, the tenant's statements that write to the table
// wait, and fail with 40001 (serialization_failure) when it is done, so that the service tries them again and writes to the
// tenant's own table. So does ever after a statement of the tenant's that names the shared table with its schema.
//
// It knows the tenant by Policy.Setting. What a role that policies do not bind writes for another tenant than that one, it does
// not hold back: let no such job run meanwhile.
//
// It panics with an *InvalidError where a field breaks a rule.
func (p Policy) GuardSQL() string {
	p = p.must()
	table, function := ident.QuoteAll(p.Table...), ident.QuoteAll(p.Table[0], guardName)
	// Read committed, the query sees what was committed while it waited. Otherwise its snapshot is older; but looking up a name does
	// not depend on it, once the query has taken a lock, which is when a session hears of changes of the catalog.
	body := `
begin
    if coalesce(pg_catalog.current_setting('pgtenancy.moving', true), '') <> '' then
        return null;
    end if;
    perform pg_catalog.pg_advisory_xact_lock_shared(tg_relid::int4, pg_catalog.hashtext(coalesce(pg_catalog.current_setting(tg_argv[0], true), '')));
    if exists (
        select from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
        where n.nspname = pg_catalog.current_schema() and c.relname = tg_table_name and c.relkind in ('r', 'p') and c.oid <> tg_relid
    ) or pg_catalog.to_regclass(pg_catalog.quote_ident(tg_table_name))::oid <> tg_relid then
        raise exception using errcode = 'serialization_failure',
            message = pg_catalog.format('%I has a table %I of its own now', pg_catalog.current_schema(), tg_table_name),
            hint = 'Try again; and do not name the schema of the shared table.';
    end if;
    return null;
end
`
	var b strings.Builder
	fmt.Fprintf(&b, "create or replace function %s () returns trigger language plpgsql as %s;\n", function, dollarQuote(body))
	fmt.Fprintf(&b, "create or replace trigger %s before insert or update or delete on %s\n    for each statement execute function %s (%s);\n",
		guardName, table, function, ident.Literal(p.Setting))
	return b.String()
}
