package pgtenancy

import (
	"fmt"
	"io/fs"
	"strings"

	"github.com/pgtenancy/pgtenancy/internal/ident"
	"github.com/pgtenancy/pgtenancy/internal/lint"
)

// CheckOpts says of what the migrations of Check are.
type CheckOpts struct {
	// SharedSchemas is PoolConfig.SharedSchemas: those that all tenants share. Defaults to {"public"}; an empty, non-nil slice
	// is none.
	SharedSchemas []string

	// SchemaPrefix is FleetConfig.SchemaPrefix. Defaults to SchemaPrefixDefault.
	SchemaPrefix string
}

// Finding is something that works, perhaps for a long time, and is dangerous.
type Finding struct {
	Rule   string // its name, as "index-blocks-writes"; it does not change from version to version
	File   string // "tenant/003_orders.sql"; "" for what was found in a database
	Line   int    // in File, 1 for the first; 0 without a File
	Object string // what it is about, as "orders.total" or "public.users"; "" where it has no name
	Reason string // what goes wrong
	Remedy string // what to do instead
}

// String returns it as "tenant/003_orders.sql:12: reason: remedy (rule)", with the object in the place of a file where there
// is none.
func (f Finding) String() string {
	var b strings.Builder
	switch {
	case f.File != "" && f.Line > 0:
		fmt.Fprintf(&b, "%s:%d: ", f.File, f.Line)
	case f.File != "":
		b.WriteString(f.File + ": ")
	case f.Object != "":
		b.WriteString(f.Object + ": ")
	}
	fmt.Fprintf(&b, "%s: %s (%s)", f.Reason, f.Remedy, f.Rule)
	return b.String()
}

// Check warns about migrations that are dangerous in a fleet of schemas: that reach beyond the tenant's schema, that keep
// others from a table while they run, or that break the code of the version before. It takes what FleetConfig.Migrations
// takes and needs no database, so that a unit test can call it. It does not look at migrations in Go.
//
// These are the rules. Each is about the way up; what is new in the same file may be locked and filled freely.
//
// In the directory tenant only:
//   - schema-qualified: a name with the schema of a tenant, or with one that is neither shared nor PostgreSQL's. Schemas that
//     shared migrations make are shared.
//   - shared-object-in-tenant: to make, change or drop what is shared by all tenants, or belongs to no schema.
//   - search-path: SET search_path in a function, or of the transaction. In a function, pg_catalog, pg_temp and the empty path
//     are no finding: all that is not PostgreSQL's own must be qualified there.
//   - extension-in-tenant: CREATE, ALTER and DROP EXTENSION, since an extension exists once per database.
//   - type-in-tenant: CREATE TYPE and CREATE DOMAIN, which work, and cost memory for every tenant in servers and clients.
//
// In both directories:
//   - volatile-default: ADD COLUMN with a default that is another one in every row, serial, identity and GENERATED ... STORED,
//     which write the table anew.
//   - index-blocks-writes: CREATE INDEX without CONCURRENTLY, and unique and primary keys without USING INDEX.
//   - constraint-not-valid: CHECK and FOREIGN KEY without NOT VALID, or validated in the transaction that adds them.
//   - lock-blocks-reads: what reads or writes all of a table that nobody else can read meanwhile: another type of a column, SET
//     NOT NULL without a validated CHECK, VACUUM FULL, CLUSTER, REINDEX and REFRESH without CONCURRENTLY, SET LOGGED, UNLOGGED
//     and TABLESPACE, LOCK TABLE, and UPDATE, DELETE or MERGE after ALTER TABLE of the same table in the same file.
//   - breaks-old-code: DROP TABLE, DROP COLUMN, RENAME, and ADD COLUMN with NOT NULL and no DEFAULT. While a fleet is migrated,
//     its tenants are at different versions, and so are the processes.
//   - concurrently-mixed: a statement that cannot run in a transaction, in a file with others that could have been one.
//   - session-state: SET without LOCAL, set_config(..., false), and in functions temporary tables and session-level advisory
//     locks, which stay on a connection that tenants share.
//   - enum-value-used: a value used in the transaction that adds it to its enum type. Provision runs all of tenant in one.
//   - unknown-rule: a comment that allows a rule that is none of these.
//
// A comment on the lines directly above a statement, or inside it, says that the statement may break rules, and why:
//
//	-- pgtenancy:allow index-blocks-writes, breaks-old-code the table is empty everywhere
//
// Check knows the common forms of statements, and looks into functions in SQL and PL/pgSQL, into DO, and into the strings that
// EXECUTE and casts to regclass are given. It has no parser of SQL: of a form that it does not know for sure, or whose danger
// depends on what only a database knows, it says nothing. That it finds nothing is no proof.
//
// The findings are ordered by directory, version and line. The error is that of Open for the same migrations. opts may be nil.
func Check(migrations fs.FS, opts *CheckOpts) ([]Finding, error) {
	var o CheckOpts
	if opts != nil {
		o = *opts
	}
	if o.SchemaPrefix == "" {
		o.SchemaPrefix = SchemaPrefixDefault
	}
	if o.SharedSchemas == nil {
		o.SharedSchemas = []string{"public"}
	}
	if migrations == nil {
		return nil, invalid("FleetConfig.Migrations", "", "must not be nil for Check")
	}
	if err := invalid("CheckOpts.SchemaPrefix", o.SchemaPrefix, ident.CheckPrefix(o.SchemaPrefix)); err != nil {
		return nil, err
	}
	for _, s := range o.SharedSchemas {
		if err := invalid("CheckOpts.SharedSchemas", s, ident.CheckSchema(s)); err != nil {
			return nil, err
		}
	}
	shared, tenant, err := loadMigrations(migrations, nil)
	if err != nil {
		return nil, err
	}
	found, err := lint.Lint(migrations, shared.all, tenant.all, lint.Config{SharedSchemas: o.SharedSchemas, SchemaPrefix: o.SchemaPrefix})
	if err != nil {
		return nil, fmt.Errorf("pgtenancy: %w", err)
	}
	var findings []Finding
	for _, f := range found {
		findings = append(findings, Finding(f))
	}
	return findings, nil
}
