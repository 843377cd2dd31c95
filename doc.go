// Package pgtenancy serves thousands of customers (tenants) from one PostgreSQL: each tenant has a schema of its own,
// a few tables are shared and guarded by row level security, and every statement reaches exactly the tenant in its
// context.Context.
//
// Two nouns carry it. A [Pool] is the data plane: request handlers hold it, and it runs SQL as the tenant in the context.
// A [Fleet] is the control plane: it provisions, migrates and lists tenants, with the role that owns their schemas, and
// hands out the data plane with [Fleet.Pool].
//
// # Opening
//
// A service that leaves its tenants to this package opens a Fleet:
//
//	fleet, err := pgtenancy.Open(ctx, pgtenancy.FleetConfig{
//		PoolConfig: pgtenancy.PoolConfig{Conns: app}, // a *pgxpool.Config: the role that serves requests
//		Owner:      owner,                            // another one: the role that owns the schemas
//		Migrations: migrations,                       // an fs.FS with shared/*.sql and tenant/*.sql
//	})
//	defer fleet.Close()
//	report, err := fleet.Migrate(ctx, nil)
//
// Migrate installs the registry of tenants (in the schema pgtenancy), runs the shared migrations, then those of every
// tenant. It may run in any number of processes at once. A web process that must not have the owner's password opens a
// Pool with [NewPool] and looks tenants up with [NewDirectory]. A service with a table of tenants and a migration tool of
// its own uses a Pool and [NewTenant] alone.
//
// # Tenants
//
// [Fleet.Provision] makes a tenant: schema, migrations, first rows, all in one transaction.
//
//	acme, err := fleet.Provision(ctx, "acme", &pgtenancy.ProvisionOpts{
//		Seed: func(ctx context.Context, tx pgx.Tx) error {
//			_, err := tx.Exec(ctx, "insert into products (name) values ($1)", "Anvil")
//			return err
//		},
//	})
//
// [Fleet.Adopt] makes a tenant of a schema that exists. [Fleet.Tenants] iterates over all tenants, and [Fleet.Each] calls a
// function for each.
//
// [Fleet.Suspend] has every process refuse a tenant, [Fleet.Delete] puts it aside, from where [Fleet.Undelete] brings it back, and
// [Fleet.Purge] removes it for good. [Fleet.Changes] says who did that, when and why. [Fleet.Clone] copies one, [Fleet.KeepSpares]
// keeps schemas ready so that the next sign-up need not wait for its tables, and [Fleet.Usage] says how large each tenant is.
//
// [Fleet.Backup] writes each tenant into one object that needs nothing else: "give me Tuesday's data of acme beside the live one" is
//
//	tuesday, err := fleet.Restore(ctx, store, object, &pgtenancy.RestoreOpts{As: "acme-tuesday"})
//
// # Migrations
//
// [Fleet.Migrate] brings all schemas to the newest version, several at a time, one transaction for each migration and tenant.
// The files may be those of golang-migrate, goose or tern. Where there is nothing to do it is one query. A tenant that fails keeps
// nobody else from going on, and calling it again does what is missing, also after a crash. [MigrateOpts] has canaries, waves, a
// limit on failures, a plan without running it, and progress:
//
//	report, err := fleet.Migrate(ctx, &pgtenancy.MigrateOpts{Canary: []string{"our-own"}, WaveSize: 200, MaxFailureShare: 0.01})
//
// A statement waits for a lock for half a second at most, and is tried again later: new queries of the table queue up behind it
// meanwhile. CREATE INDEX CONCURRENTLY and its like run outside transactions, and are found and finished after a crash.
// [Fleet.Status] says who is at which version, [Fleet.Drift] whose schema is not like the others, and [Check] warns in a unit
// test of migrations that are dangerous with many schemas. [Fleet.MigrateDown] goes back, and [Fleet.Baseline] takes existing
// schemas as they are.
//
// # Requests
//
// A [Resolver] says which tenant a request names, by subdomain, domain, header, path, cookie or the claim of a token; a [Directory]
// looks it up, and middleware.Tenant puts it into the request's context:
//
//	handler = middleware.Tenant(fleet, pgtenancy.Subdomain("app.example"), nil)(handler)
//
// Behind a proxy that changes Host, middleware.ForwardedHost goes around it. Below it, middleware.MatchTenant refuses a session of one
// tenant at another's address, and middleware.RateLimit gives each tenant the rate of its plan.
//
// Below it, handlers use the Pool as they would use a pgxpool.Pool. Unqualified names resolve in the tenant's schema, then
// in the shared ones:
//
//	rows, err := pool.Query(r.Context(), "select id, total from orders where customer = $1", customer)
//
// Without a tenant in the context the answer is [ErrNoTenant], and nothing is sent. Jobs and scripts bind the pool to a
// tenant with [Pool.For]. [Pool.Shared] runs statements without a tenant, on shared tables.
//
// # Shared tables
//
// A [Policy] writes the SQL that guards a shared table by row level security: a tenant sees its own rows, and no tenant sees
// none. It goes into a shared migration. [Policy.FinderSQL] writes a function that finds a row by an exact key before the
// tenant is known, for a login by e-mail address. [Open] refuses a role that row level security does not bind, and [Fleet.CheckRLS]
// lists the other ways around it: run it in CI, after Migrate.
//
// A table may begin shared and be split later: [Extract], called in the migration in Go that makes each tenant's own table,
// moves its rows in the same transaction, and [Absorb] brings them back.
//
// # A role for each tenant
//
// With [FleetConfig.IsolateRoles], statements run as a role that can use one tenant's schema only, so that SQL which somebody else
// wrote reaches no other tenant's rows either. A superuser runs [IsolateRolesSQL] first, and Open checks that. Each tenant that
// comes or goes makes every connection look up its memberships again: BENCHMARKS.md says what that costs.
//
// # Audit
//
// middleware.Audit records every request, in batches; [RecordAudit] records what a transaction does, in that transaction, and
// [AuditTable] the changes of a table's rows:
//
//	audit, auditor := middleware.Audit(fleet.Audit(), nil)
//	defer auditor.Close(ctx)
//
// The application's role can append to the log, and change nothing in it. [Fleet.KeepAudit] seals what was written, in any number of
// processes, and [Fleet.VerifyAudit] finds what was changed since. A tenant reads its own part with [AuditLog.Events].
//
// # How a statement carries its tenant
//
// search_path and the setting app.current_tenant are set in the pipeline that carries the statement, local to its
// transaction. It is one round trip, nothing is left on the connection, and the same code is right behind a transaction
// pooler. PostgreSQL skips a schema in search_path that does not exist, or that the role may not use, without a word; the
// pipeline therefore checks what the path became, and fails with [ErrTenantNotFound] before the statement runs. Outside a scope
// a direct connection has an empty search_path, so that what a hook of the pool's sends finds no table by accident.
//
// Callers that wait for a connection are served round-robin over tenants, and PoolConfig.Limits bounds what one tenant may
// take: connections, waiters, time. Bounds hold in one process: a tenant's share of the database is that times the number
// of processes.
//
// Statements are prepared per tenant, so that tables of different tenants may have types of their own and be at different
// versions. A statement that does not fit a table any more, after a migration, is prepared anew and sent again; inside a
// transaction that is an error, since the transaction has failed with it. Enums, domains, composites, ranges and arrays of
// them are loaded when they are first met, once in the process for each tenant's.
//
// [Pool.DB] is the same pool as a *sql.DB, for ORMs.
//
// # Poolers
//
//	between you and PostgreSQL             how
//	nothing, PgBouncer in session mode     as it is
//	PgBouncer in transaction mode, 1.21    PoolConfig.Direct for Acquire; a direct FleetConfig.Owner
//	or later, max_prepared_statements > 0
//	(the default since 1.24)
//	older PgBouncer, other transaction     the same, and default_query_exec_mode=cache_describe, or exec, in the
//	poolers                                connection string
//	AWS RDS Proxy                          as the row above, and PoolConfig.Entry = EntryFunction
//	Citus with row level security          PoolConfig.Entry = EntrySetLocal
//	statement mode                         does not work
//
// PgBouncer is tested in versions 1.18, 1.24.1 and 1.26.1, with roles for tenants and the audit log too; nothing has been run on
// RDS Proxy and Citus.
//
// # Limits
//
//   - Scoping prevents accidents: an unqualified name, a forgotten WHERE, a reused connection. It does not stop hostile SQL, which
//     may name another schema or set another tenant itself; roles for tenants do. SECURITY.md says what stands behind each sentence.
//   - Qualified names mean what they say: public.users is the shared table for every tenant.
//   - The simple protocol cannot carry a scope: default_query_exec_mode=simple_protocol is refused, and describe_exec too.
//   - Large objects belong to no schema and are refused.
//   - What SQL does to the session inside a function or a DO block stays on the connection: settings other than the three that
//     are set with every statement (search_path, the tenant's, role), temporary tables of SELECT INTO, advisory locks,
//     lastval. Statements that say so openly (SET, LISTEN, CREATE TEMP TABLE, ...) are refused.
//   - The schema is checked when a transaction begins. One that is renamed or dropped while the transaction runs makes names that
//     are used for the first time resolve in the shared schemas.
//   - Rows count when Rows.Err has returned nil, as with pgx: PgBouncer writes its error into the middle of a row where a server
//     connection dies. QueryRow and pgx.CollectRows look at it by themselves.
package pgtenancy
