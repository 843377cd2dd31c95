package pgtenancy

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"strings"

	"github.com/pgtenancy/pgtenancy/internal/ident"
)

// SchemaPrefixDefault is what comes before a tenant's ID in the name of its schema, unless FleetConfig.SchemaPrefix or
// TenantInfo.Schema says otherwise.
const SchemaPrefixDefault = "tenant_"

// State is where a tenant is in its life.
type State uint8

// The states of a tenant. The zero State is not one of them; NewTenant takes it for Active.
//
// A tenant that is being provisioned becomes Active or Deleted, one that is Active Suspended or Deleted, one that is Suspended
// Active or Deleted, and one that is Deleted what it was before, until it is purged. The registry refuses any other change,
// whoever asks for it.
const (
	Provisioning State = iota + 1 // its schema is being built; nobody can see it yet
	Active                        // in service
	Suspended                     // its data is kept; Pool and middleware refuse it
	Deleted                       // a tombstone; its ID stays taken until it is purged
)

var stateNames = [...]string{Provisioning: "provisioning", Active: "active", Suspended: "suspended", Deleted: "deleted"}

// String returns the name of the state in lower case, as the registry stores it.
func (s State) String() string {
	if s == 0 || int(s) >= len(stateNames) {
		return fmt.Sprintf("State(%d)", uint8(s))
	}
	return stateNames[s]
}

func parseState(name string) (State, error) {
	if i := slices.Index(stateNames[1:], name); i >= 0 {
		return State(i + 1), nil
	}
	return 0, fmt.Errorf("pgtenancy: unknown tenant state %q in the registry", name)
}

// Tenant is a handle on one tenant: what was known of it when it was looked up. It is immutable, comparable and safe to
// share. The zero Tenant is no tenant; every use of it fails with ErrNoTenant.
//
// Handles come from a Directory (Fleet is one), from Fleet.Provision, or from NewTenant.
type Tenant struct {
	id, schema, role string
	path             string // the schema, quoted, as search_path wants it
	state            State
	version          int64
	attrs            string // name, NUL, value, NUL, ..., sorted by name: a string, so that handles compare by value
}

// TenantInfo is what NewTenant makes a Tenant of.
type TenantInfo struct {
	// ID names the tenant. Required: a DNS label in lower case without underscore.
	ID string

	// Schema is the schema that holds the tenant's tables: any legal name that PostgreSQL does not reserve. Defaults to
	// SchemaPrefixDefault and the ID, with '-' as '_'.
	Schema string

	// Role is the role that the tenant's statements run as. The connection's role must be a member of it. Defaults to "",
	// which keeps the connection's role.
	Role string

	// State defaults to Active.
	State State

	// Version is the last migration that was applied to the schema. It tells descriptions of statements apart that were
	// made before and after a migration. Defaults to 0, which is right where all schemas change at once or never.
	Version int64

	// Attributes are the service's own: plan, region, ... Neither names nor values may have a NUL character.
	Attributes map[string]string
}

// NewTenant returns a handle made of info, for services that keep their tenants in a table of their own. It does not ask
// the database. The error is an *InvalidError.
func NewTenant(info TenantInfo) (Tenant, error) {
	if info.Schema == "" {
		if err := checkID(SchemaPrefixDefault, info.ID); err != nil {
			return Tenant{}, err
		}
		info.Schema = ident.SchemaOf(SchemaPrefixDefault, info.ID)
	} else if err := checkID("", info.ID); err != nil {
		return Tenant{}, err
	}
	if err := invalid("Tenant.Schema", info.Schema, ident.CheckTenantSchema(info.Schema)); err != nil {
		return Tenant{}, err
	}
	if info.Role != "" {
		if err := invalid("Tenant.Role", info.Role, ident.CheckName(info.Role)); err != nil {
			return Tenant{}, err
		}
		if info.Role == "none" {
			return Tenant{}, invalid("Tenant.Role", info.Role, "must not be 'none', which PostgreSQL reads as no role at all")
		}
	}
	if info.State == 0 {
		info.State = Active
	}
	if int(info.State) >= len(stateNames) {
		return Tenant{}, invalid("Tenant.State", info.State.String(), "must be one of the package's states")
	}
	attrs, err := joinAttributes(info.Attributes)
	if err != nil {
		return Tenant{}, err
	}
	return Tenant{
		id: info.ID, schema: info.Schema, role: info.Role, path: ident.Quote(info.Schema),
		state: info.State, version: info.Version, attrs: attrs,
	}, nil
}

// checkID checks an ID whose schema name begins with prefix.
func checkID(prefix, id string) error {
	return invalid("Tenant.ID", id, ident.CheckID(id, ident.MaxBytes-len(prefix)))
}

func joinAttributes(attributes map[string]string) (string, error) {
	names := make([]string, 0, len(attributes))
	for name, value := range attributes {
		if name == "" {
			return "", invalid("Tenant.Attributes", "", "must not have an empty name")
		}
		if strings.IndexByte(name, 0) >= 0 || strings.IndexByte(value, 0) >= 0 {
			return "", invalid("Tenant.Attributes", name, "must not have a NUL character in name or value")
		}
		names = append(names, name)
	}
	slices.Sort(names)
	var b strings.Builder
	for _, name := range names {
		b.WriteString(name)
		b.WriteByte(0)
		b.WriteString(attributes[name])
		b.WriteByte(0)
	}
	return b.String(), nil
}

// ID returns the name of the tenant, as "acme", and "" for the zero Tenant.
func (t Tenant) ID() string { return t.id }

// Schema returns the name of the tenant's schema, unquoted, as "tenant_acme".
func (t Tenant) Schema() string { return t.schema }

// Role returns the role that the tenant's statements run as; "" keeps the connection's.
func (t Tenant) Role() string { return t.role }

// State returns the tenant's state when the handle was made.
func (t Tenant) State() State { return t.state }

// Version returns the last migration that was applied to the tenant's schema when the handle was made.
func (t Tenant) Version() int64 { return t.version }

// Attribute returns one of the service's own attributes.
func (t Tenant) Attribute(name string) (value string, ok bool) {
	for n, v := range t.Attributes() {
		if n == name {
			return v, true
		}
	}
	return "", false
}

// Attributes iterates over the service's own attributes, sorted by name.
func (t Tenant) Attributes() iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for rest := t.attrs; rest != ""; {
			var name, value string
			name, rest, _ = strings.Cut(rest, "\x00")
			value, rest, _ = strings.Cut(rest, "\x00")
			if !yield(name, value) {
				return
			}
		}
	}
}

// String returns the ID.
func (t Tenant) String() string { return t.id }

// LogValue makes slog write the ID.
func (t Tenant) LogValue() slog.Value { return slog.StringValue(t.id) }

// tenantKey is the key of the tenant in a context.
type tenantKey struct{}

// WithTenant returns a context that carries t. Pool and everything made from it run as the tenant in the context that
// they are given.
func WithTenant(ctx context.Context, t Tenant) context.Context {
	return context.WithValue(ctx, tenantKey{}, t)
}

// TenantFromContext returns the tenant that ctx carries. It reports false where there is none, or only the zero Tenant.
func TenantFromContext(ctx context.Context) (Tenant, bool) {
	t, _ := ctx.Value(tenantKey{}).(Tenant)
	return t, t.id != ""
}
