package pgtenancy

import (
	"errors"
	"fmt"
)

// Each sentinel says who returns it and when. All of them are reached with errors.Is through whatever wraps them, and
// so are the errors of pgx (pgx.ErrNoRows, *pgconn.PgError, ...) and of context.
var (
	// ErrNoTenant is returned by the methods of Pool when the context carries no tenant. Nothing was sent.
	ErrNoTenant = errors.New("pgtenancy: no tenant in the context")

	// ErrTenantMismatch is returned by a Scope, Conn or transaction of one tenant that is used with a context of another.
	// Nothing was sent.
	ErrTenantMismatch = errors.New("pgtenancy: the context carries another tenant")

	// ErrTenantNotFound is returned by a Directory that knows no such tenant, and by Pool where the tenant's schema does
	// not exist or the connection's role has no USAGE on it.
	ErrTenantNotFound = errors.New("pgtenancy: tenant not found")

	// ErrTenantSuspended is returned by a Directory and by Pool for a tenant that is suspended.
	ErrTenantSuspended = errors.New("pgtenancy: tenant is suspended")

	// ErrTenantExists is returned by Fleet.Provision, Fleet.Adopt and those that change domains when the ID, the schema or a
	// domain belongs to a tenant already. These stay taken after the tenant was deleted, until it is purged.
	ErrTenantExists = errors.New("pgtenancy: tenant exists")

	// ErrTenantState is returned by the methods of Fleet that change a tenant whose state does not allow it: see State. The
	// text says which it is.
	ErrTenantState = errors.New("pgtenancy: the tenant's state does not allow that")

	// ErrTenantInUse is returned by the methods of Fleet that change a tenant when others are at work on it for longer than
	// ChangeOpts.Wait or PurgeOpts.Wait: another change, a migration, or for Delete and Purge transactions that use its schema.
	// It may be tried again later.
	ErrTenantInUse = errors.New("pgtenancy: the tenant is in use")

	// ErrTenantRetained is returned by Fleet.Purge for a tenant that was deleted less than FleetConfig.Retention ago.
	ErrTenantRetained = errors.New("pgtenancy: the tenant's data is still to be retained")

	// ErrTenantBusy is returned by Pool when Limits.Waiters callers wait for a connection for the tenant already. Nothing was
	// sent; it may be tried again later.
	ErrTenantBusy = errors.New("pgtenancy: too many callers wait for the tenant's connections")

	// ErrUnresolved is returned by a Resolver when the request names no tenant in the way that it looks for.
	ErrUnresolved = errors.New("pgtenancy: the request names no tenant")

	// ErrStatementRefused is returned for a statement that would step out of the tenant's scope or leave something behind
	// on a shared connection: transaction control, SET, LISTEN and their like. Its text says what to use instead. Nothing
	// was sent.
	ErrStatementRefused = errors.New("pgtenancy: statement refused")

	// ErrMigrationChanged is returned by Fleet.Migrate and Fleet.MigrateDown, in a *MigrateError, for a migration that is not
	// what ran any more: its text was changed, or it is gone. Where that is right, Fleet.Baseline accepts it.
	ErrMigrationChanged = errors.New("pgtenancy: migration was changed after it ran")

	// ErrOutOfOrder is returned by Fleet.Migrate, in a *MigrateError, for a migration that has not run and comes before one that
	// has.
	ErrOutOfOrder = errors.New("pgtenancy: migration is out of order")

	// ErrMigrateStopped is returned by Fleet.Migrate, in a *MigrateError, when it went no further after failures: see the
	// fields of MigrateOpts.
	ErrMigrateStopped = errors.New("pgtenancy: migrate was stopped")

	// ErrBackupDamaged is returned by Verify and Fleet.Restore for an object that is not as Fleet.Backup wrote it: it was cut
	// off or changed, or is something else. Nothing was changed.
	ErrBackupDamaged = errors.New("pgtenancy: backup is damaged")

	// ErrRLSBypassed is returned by Open, and by Fleet.Migrate when it is done with shared migrations, where the role that
	// PoolConfig.Conns connects as is not bound by the row level security of shared tables. The text names the role, the reason and
	// the first few tables. FleetConfig.AllowBypassRLS turns it off.
	ErrRLSBypassed = errors.New("pgtenancy: row level security does not bind the application's role")

	// ErrAuditChanged is returned by Fleet.VerifyAudit, in an *AuditError, for an audit log that is not what was sealed.
	ErrAuditChanged = errors.New("pgtenancy: the audit log was changed")

	// ErrNotIsolated is returned by Open with FleetConfig.IsolateRoles where the database is not prepared for that: the text says what
	// is missing. It is returned by the Pool of such a Fleet for a tenant without a role, which Fleet.IsolateTenants gives one.
	ErrNotIsolated = errors.New("pgtenancy: roles do not isolate tenants")

	// ErrRegistryOutdated is returned by the methods of Fleet and CachedDirectory when the registry in the database is missing
	// or is of a version that this version of the library cannot work with, and by Open when it is too new for it.
	// Fleet.Migrate installs and upgrades it.
	ErrRegistryOutdated = errors.New("pgtenancy: registry is missing or outdated")
)

// InvalidError is the error for input that breaks a rule. It is returned before anything was sent or changed.
type InvalidError struct {
	Field string // where the value was given, as "Tenant.ID" or "PoolConfig.Conns"
	Value string // the value, "" where it must not be shown
	Rule  string // what is wrong with it, as "must be lower case"
}

// Error names the field, the value and the rule.
func (e *InvalidError) Error() string {
	if e.Value == "" {
		return fmt.Sprintf("pgtenancy: %s %s", e.Field, e.Rule)
	}
	return fmt.Sprintf("pgtenancy: %s %q %s", e.Field, e.Value, e.Rule)
}

// invalid returns an *InvalidError, or nil where rule is "".
func invalid(field, value, rule string) error {
	if rule == "" {
		return nil
	}
	return &InvalidError{Field: field, Value: value, Rule: rule}
}
