package pgtenancy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgtenancy/pgtenancy/internal/ident"
	"github.com/pgtenancy/pgtenancy/internal/wire"
)

// registryVersion is the version of the registry that this version of the library installs. It works with a newer one
// whose column oldest is at most this.
const registryVersion = 2

// registryLock is the key of the transaction-level advisory lock that upgrades of the registry and shared migrations hold:
// the first eight bytes of the SHA-256 of "pgtenancy/registry".
const registryLock = -8183244772174092182

// registrySteps has for each version the statements that make it of the one before.
var registrySteps = [][]string{
	1: {
		`create schema pgtenancy`,
		`create table pgtenancy.registry (
			version int not null, -- of these tables
			oldest int not null, -- the oldest version of the library's that can work with them
			shared_version bigint not null default 0, -- the last migration of the shared schemas
			shared_digest bigint not null default 0 -- of all of theirs, as tenants.digest
		)`,
		`create unique index registry_one_row on pgtenancy.registry ((true))`,
		`insert into pgtenancy.registry (version, oldest) values (0, 0)`,
		`create table pgtenancy.tenants (
			id text primary key,
			schema_name text not null unique,
			role_name text not null default '',
			state text not null check (state in ('provisioning', 'active', 'suspended', 'deleted')),
			version bigint not null default 0, -- the last migration applied to the schema
			digest bigint not null default 0, -- of all that were: the exclusive or of what migrationDigest makes of each
			attributes jsonb not null default '{}' check (jsonb_typeof(attributes) = 'object'),
			created_at timestamptz not null default now(),
			updated_at timestamptz not null default now(),
			deleted_at timestamptz, -- null unless it is deleted, as the next two
			deleted_from text, -- the state that it was in
			deleted_schema text unique, -- what its schema is called meanwhile, null where that still has its name
			purging jsonb -- the report of a purge that has begun
		)`,
		checkStateFunction,
		`create trigger check_state before update of state on pgtenancy.tenants for each row execute function pgtenancy.check_state()`,
		`create table pgtenancy.changes ( -- the history of tenants, which outlives them
			id bigint generated always as identity primary key,
			tenant_id text not null,
			kind text not null,
			was text not null,
			became text not null,
			reason text not null,
			changed_by text not null default session_user,
			changed_at timestamptz not null default now()
		)`,
		`create index changes_tenant_id on pgtenancy.changes (tenant_id, id)`,
		`create table pgtenancy.domains (
			domain text primary key,
			tenant_id text not null references pgtenancy.tenants (id) on delete cascade
		)`,
		`create index domains_tenant_id on pgtenancy.domains (tenant_id)`,
		`create table pgtenancy.migrations (
			tenant_id text not null, -- '' for those of the shared schemas
			version bigint not null,
			name text not null,
			checksum text not null, -- of the file, in hexadecimal; '' for one in Go
			duration interval, -- null where it was recorded without being run
			applied_at timestamptz not null default now(),
			applied_by text not null default session_user,
			primary key (tenant_id, version)
		)`,
		`create table pgtenancy.unfinished ( -- migrations that are no transaction, from before their first statement
			tenant_id text primary key, -- '' for one of the shared schemas
			version bigint not null,
			down boolean not null,
			statement int not null, -- the index of the next one: those before it are done
			begun boolean not null, -- the next one may be, too
			done text not null, -- SHA-256 of those before it, in hexadecimal
			began_at timestamptz not null default now()
		)`,
		`create table pgtenancy.spares ( -- schemas that belong to no tenant yet
			schema_name text primary key,
			version bigint not null, -- and digest, as those of tenants
			digest bigint not null,
			kind text not null, -- of the configuration that it was built with, in hexadecimal
			made_at timestamptz not null default now(),
			kept_at timestamptz not null default now() -- somebody kept this version, digest and kind; the newest counts
		)`,
		`create table pgtenancy.usage_samples ( -- see Fleet.SampleUsage
			taken_at timestamptz not null,
			tenant_id text not null, -- '' for PostgreSQL's catalogs
			relations int not null, -- this and the others as in Usage
			bytes bigint not null,
			rows bigint not null,
			dead_rows bigint not null,
			bloat_bytes bigint not null,
			primary key (taken_at, tenant_id)
		)`,
		wire.EnterFunction,
		`revoke all on function ` + enterSignature + ` from public`,
	},
	2: auditSteps,
}

// checkStateFunction makes what State says of the order of the states hold for whoever changes a row.
const checkStateFunction = `create function pgtenancy.check_state() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as $$
	begin
		if new.state = old.state then
			return new;
		end if;
		if (old.state, new.state) not in (
			('provisioning', 'active'), ('provisioning', 'deleted'), ('active', 'suspended'), ('active', 'deleted'),
			('suspended', 'active'), ('suspended', 'deleted'), ('deleted', 'active'), ('deleted', 'suspended')
		) then
			raise 'tenant % cannot become %: it is %', old.id, new.state, old.state using errcode = 'object_not_in_prerequisite_state';
		end if;
		if old.state = 'deleted' and (old.purging is not null or new.deleted_schema is not null) then
			raise 'tenant % cannot become %: its schema is %', old.id, new.state, case when old.purging is not null then 'being purged' else 'set aside' end
				using errcode = 'object_not_in_prerequisite_state';
		end if;
		new.deleted_at := case when new.state = 'deleted' then now() end;
		new.deleted_from := case when new.state = 'deleted' then old.state end;
		return new;
	end $$`

var errRegistryTooNew = errors.New("registry is too new")

// registryReady checks that the registry is one that this version works with.
func (f *Fleet) registryReady(ctx context.Context) error {
	if f.ready.Load() {
		return nil
	}
	var version, oldest int
	err := f.owner.conns.QueryRow(ctx, `select version, oldest from pgtenancy.registry`).Scan(&version, &oldest)
	if err := checkRegistry(version, oldest, err); err != nil {
		return err
	}
	f.ready.Store(true)
	return nil
}

func checkRegistry(version, oldest int, err error) error {
	switch {
	case isCode(err, "3F000", "42P01", "42703"): // invalid_schema_name, undefined_table, undefined_column
		return fmt.Errorf("%w: there is none: run Fleet.Migrate: %w", ErrRegistryOutdated, err)
	case err != nil:
		return fmt.Errorf("pgtenancy: read the registry's version: %w", err)
	case oldest > registryVersion:
		return fmt.Errorf("%w: %w: it is of version %d, this library knows %d: update the library", ErrRegistryOutdated, errRegistryTooNew, version, registryVersion)
	case version < registryVersion:
		return fmt.Errorf("%w: it is of version %d, this library needs %d: run Fleet.Migrate", ErrRegistryOutdated, version, registryVersion)
	}
	return nil
}

// installRegistry installs or upgrades the registry and makes shared schemas that are missing, in one transaction. It
// returns the version that it found, 0 where there was none.
func (f *Fleet) installRegistry(ctx context.Context) (from int, err error) {
	err = pgx.BeginTxFunc(ctx, f.owner.conns, pgx.TxOptions{BeginQuery: beginSQL}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `select pg_advisory_xact_lock($1)`, registryLock); err != nil {
			return err
		}
		var exists bool
		if err := tx.QueryRow(ctx, `select to_regclass('pgtenancy.registry') is not null`).Scan(&exists); err != nil {
			return err
		}
		if exists {
			var oldest int
			if err := tx.QueryRow(ctx, `select version, oldest from pgtenancy.registry`).Scan(&from, &oldest); err != nil {
				return err
			}
			if err := checkRegistry(from, oldest, nil); errors.Is(err, errRegistryTooNew) {
				return err
			}
		}
		for v := from + 1; v <= registryVersion; v++ {
			for _, sql := range registrySteps[v] {
				if _, err := tx.Exec(ctx, sql); err != nil {
					return err
				}
			}
			if _, err := tx.Exec(ctx, `update pgtenancy.registry set version = $1, oldest = $2`, v, 1); err != nil {
				return err
			}
		}
		return f.prepareShared(ctx, tx)
	})
	if err != nil {
		return 0, fmt.Errorf("pgtenancy: install the registry: %w", err)
	}
	return from, nil
}

// enterSignature and registryTables are what the application's role may use of the registry.
const enterSignature = `pgtenancy.enter (text[], text[], text)`

var registryTables = []string{"registry", "tenants", "domains"}

// prepareShared makes the shared schemas that are missing, and grants the application's role what it needs of them and of
// the registry, where it has not got that yet.
func (f *Fleet) prepareShared(ctx context.Context, tx pgx.Tx) error {
	for _, schema := range f.pool.cfg.SharedSchemas {
		var exists bool
		if err := tx.QueryRow(ctx, `select exists (select from pg_catalog.pg_namespace where nspname = $1)`, schema).Scan(&exists); err != nil {
			return err
		}
		if !exists {
			if _, err := tx.Exec(ctx, `create schema `+ident.Quote(schema)); err != nil {
				return err
			}
		}
	}
	if err := f.prepareAudit(ctx, tx); err != nil {
		return err
	}
	if f.appRole == "" {
		return nil
	}
	for _, schema := range append([]string{"pgtenancy"}, f.pool.cfg.SharedSchemas...) {
		var granted bool
		if err := tx.QueryRow(ctx, `select has_schema_privilege($1, $2, 'usage')`, f.appRole, schema).Scan(&granted); err != nil {
			return err
		}
		if !granted {
			if _, err := tx.Exec(ctx, `grant usage on schema `+ident.Quote(schema)+` to `+ident.Quote(f.appRole)); err != nil {
				return err
			}
		}
	}
	if f.roles != "" { // tenants' roles use the shared schemas too
		for _, schema := range f.pool.cfg.SharedSchemas {
			var granted bool
			if err := tx.QueryRow(ctx, `select has_schema_privilege($1, $2, 'usage')`, f.roles, schema).Scan(&granted); err != nil {
				return err
			}
			if !granted {
				if _, err := tx.Exec(ctx, `grant usage on schema `+ident.Quote(schema)+` to `+ident.Quote(f.roles)); err != nil {
					return err
				}
			}
		}
	}
	var granted bool
	if err := tx.QueryRow(ctx, `select has_function_privilege($1, $2, 'execute')`, f.appRole, enterSignature).Scan(&granted); err != nil {
		return err
	}
	if !granted {
		if _, err := tx.Exec(ctx, `grant execute on function `+enterSignature+` to `+ident.Quote(f.appRole)); err != nil {
			return err
		}
	}
	for _, table := range registryTables {
		var granted bool
		if err := tx.QueryRow(ctx, `select has_table_privilege($1, $2, 'select')`, f.appRole, "pgtenancy."+table).Scan(&granted); err != nil {
			return err
		}
		if !granted {
			if _, err := tx.Exec(ctx, `grant select on `+ident.QuoteAll("pgtenancy", table)+` to `+ident.Quote(f.appRole)); err != nil {
				return err
			}
		}
	}
	return nil
}

// beginSQL begins a transaction of the control plane's, whose statements must see what was committed while they waited for
// a lock, whatever default_transaction_isolation is.
const beginSQL = "begin isolation level read committed"

func isCode(err error, codes ...string) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && slices.Contains(codes, pgErr.Code)
}

func attributesJSON(t Tenant) string {
	m := map[string]string{}
	for name, value := range t.Attributes() {
		m[name] = value
	}
	b, _ := json.Marshal(m) // a map of strings always can be
	return string(b)
}
