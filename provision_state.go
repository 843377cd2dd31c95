package pgtenancy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy/internal/wire"
)

// ChangeKind says what a Change does.
type ChangeKind string

// The kinds of changes, with what Change.From and Change.To have.
const (
	ChangeProvision    ChangeKind = "provision"     // "" and the state
	ChangeAdopt        ChangeKind = "adopt"         // "" and the state
	ChangeClone        ChangeKind = "clone"         // the ID of the tenant that was cloned, and the state
	ChangeRestore      ChangeKind = "restore"       // the backup and the state; of the tenant that it replaces: its ID until then and "deleted"
	ChangeSuspend      ChangeKind = "suspend"       // the states
	ChangeResume       ChangeKind = "resume"        // the states
	ChangeDelete       ChangeKind = "delete"        // the states
	ChangeUndelete     ChangeKind = "undelete"      // the states
	ChangePurge        ChangeKind = "purge"         // "deleted" and "purging" when it begins, "purging" and "purged" at its end
	ChangeAddDomain    ChangeKind = "add domain"    // "" and the domain
	ChangeRemoveDomain ChangeKind = "remove domain" // the domain and ""
	ChangeRenameDomain ChangeKind = "rename domain" // the domains
	ChangeAttributes   ChangeKind = "attributes"    // all attributes, as JSON
)

// Change is a change of a tenant, as the history keeps it, FleetConfig.BeforeChange may refuse it and AfterChange hears of it.
// Provision, Adopt, Clone and Restore are a change for the tenant and one for each of its domains. What finds a tenant as it is to be is no
// change.
type Change struct {
	Tenant   string // its ID
	Kind     ChangeKind
	From, To string // what it was and what it became: see ChangeKind
	Reason   string // the caller's
	By       string // the role that connected to the database
	At       time.Time
}

// ChangeOpts says why a tenant is changed, and how patiently.
type ChangeOpts struct {
	// Reason goes into the history.
	Reason string

	// Wait is how long to wait for others who are at work on the tenant, before the error is ErrTenantInUse. Requests do not
	// queue up behind that. Defaults to ChangeWaitDefault.
	Wait time.Duration
}

// ChangeWaitDefault is the default of ChangeOpts.Wait and PurgeOpts.Wait.
const ChangeWaitDefault = 10 * time.Second

// Suspend puts a tenant out of service: its data is kept, and Pool, middleware and Lookup refuse it with ErrTenantSuspended.
// Processes that listen for changes do so at once, others when they have forgotten what they knew of it: see CachedDirectory.
// What has begun goes on to its end. Domains, attributes and migrations go on as for an active tenant.
//
// It is one transaction, and so are the others here: where it fails or is interrupted, nothing was changed, but for what
// Provision says of a commit; and it may be called again. A tenant that is suspended already is left as it is. The errors:
// ErrTenantNotFound; ErrTenantState where it is neither active nor suspended; ErrTenantInUse, behind a migration; that of
// FleetConfig.BeforeChange. opts may be nil.
func (f *Fleet) Suspend(ctx context.Context, id string, opts *ChangeOpts) error {
	return f.changeState(ctx, id, opts, ChangeSuspend, Active, Suspended)
}

// Resume puts a suspended tenant back into service. It is the reverse of Suspend, and its errors are the same.
func (f *Fleet) Resume(ctx context.Context, id string, opts *ChangeOpts) error {
	return f.changeState(ctx, id, opts, ChangeResume, Suspended, Active)
}

func (f *Fleet) changeState(ctx context.Context, id string, opts *ChangeOpts, kind ChangeKind, from, to State) error {
	return f.change(ctx, id, kind, opts, false, func(_ *conn, r *tenantRow) ([]Change, []wire.Step, error) {
		switch r.state {
		case to:
			return nil, nil, nil
		case from:
			return r.become(kind, to)
		}
		return nil, nil, r.refuse()
	})
}

// AddDomain gives a tenant that is active or suspended one more domain, as "shop.acme.com". It is one transaction, and does
// nothing where the tenant has the domain already.
//
// The errors: *InvalidError for what is no domain; ErrTenantExists where it belongs to another tenant, also to one that is
// deleted, until that is purged or RemoveDomain takes it away: nobody comes back from Undelete without what is his; and those
// of Suspend. opts may be nil.
func (f *Fleet) AddDomain(ctx context.Context, id, domain string, opts *ChangeOpts) error {
	d, err := canonicalDomain(domain)
	if err != nil {
		return err
	}
	return f.change(ctx, id, ChangeAddDomain, opts, false, func(wc *conn, r *tenantRow) ([]Change, []wire.Step, error) {
		if r.state != Active && r.state != Suspended {
			return nil, nil, r.refuse()
		}
		owners, err := domainOwners(ctx, wc, d)
		if err != nil || owners[d] == id {
			return nil, nil, err
		}
		return []Change{{Kind: ChangeAddDomain, To: d}},
			[]wire.Step{{SQL: `insert into pgtenancy.domains (domain, tenant_id) values ($1, $2)`, Args: []any{d, id}}}, nil
	})
}

// RemoveDomain takes a domain from a tenant of any state. It is one transaction, and does nothing where the tenant does not
// have the domain. The errors: *InvalidError for what is no domain; and those of Suspend but ErrTenantState. opts may be nil.
func (f *Fleet) RemoveDomain(ctx context.Context, id, domain string, opts *ChangeOpts) error {
	d, err := canonicalDomain(domain)
	if err != nil {
		return err
	}
	return f.change(ctx, id, ChangeRemoveDomain, opts, false, func(wc *conn, _ *tenantRow) ([]Change, []wire.Step, error) {
		owners, err := domainOwners(ctx, wc, d)
		if err != nil || owners[d] != id {
			return nil, nil, err
		}
		return []Change{{Kind: ChangeRemoveDomain, From: d}}, []wire.Step{{SQL: `delete from pgtenancy.domains where domain = $1`, Args: []any{d}}}, nil
	})
}

// RenameDomain puts another domain in the place of one of a tenant's. It is one transaction: at any time one of the two leads
// to the tenant. It does nothing where that was done before: the tenant has the second, and nobody the first. The errors are
// those of AddDomain; an *InvalidError also where the first is not the tenant's. opts may be nil.
func (f *Fleet) RenameDomain(ctx context.Context, id, from, to string, opts *ChangeOpts) error {
	from, err := canonicalDomain(from)
	if err != nil {
		return err
	}
	to, err = canonicalDomain(to)
	if err != nil {
		return err
	}
	return f.change(ctx, id, ChangeRenameDomain, opts, false, func(wc *conn, r *tenantRow) ([]Change, []wire.Step, error) {
		if r.state != Active && r.state != Suspended {
			return nil, nil, r.refuse()
		}
		owners, err := domainOwners(ctx, wc, from, to)
		switch {
		case err != nil || owners[to] == id && (owners[from] == "" || from == to):
			return nil, nil, err
		case owners[from] != id:
			return nil, nil, invalid("Domain", from, "must be one of the tenant's")
		case owners[to] == id:
			return nil, nil, invalid("Domain", to, "must not be one of the tenant's already, or RemoveDomain is what is meant")
		}
		return []Change{{Kind: ChangeRenameDomain, From: from, To: to}},
			[]wire.Step{{SQL: `update pgtenancy.domains set domain = $2 where domain = $1`, Args: []any{from, to}}}, nil
	})
}

// domainOwners locks domains in one order, so that no two who want those of each other wait for each other, and says whose they
// are.
func domainOwners(ctx context.Context, wc *conn, domains ...string) (map[string]string, error) {
	rows, _ := wc.Pgx().Query(ctx, `select domain, tenant_id from pgtenancy.domains where domain = any($1::text[]) order by domain for update`, domains)
	owners := map[string]string{}
	var domain, owner string
	_, err := pgx.ForEachRow(rows, []any{&domain, &owner}, func() error { owners[domain] = owner; return nil })
	return owners, err
}

// SetAttributes sets attributes of a tenant and leaves its others as they are. It is one transaction, and does nothing where
// they have these values. The errors: *InvalidError for an attribute that breaks a rule; and those of Suspend. opts may be nil.
func (f *Fleet) SetAttributes(ctx context.Context, id string, attributes map[string]string, opts *ChangeOpts) error {
	if err := checkAttributes(attributes); err != nil {
		return err
	}
	if _, err := joinAttributes(attributes); err != nil {
		return err
	}
	return f.changeAttributes(ctx, id, opts, func(all map[string]string) { maps.Copy(all, attributes) })
}

// RemoveAttributes removes attributes of a tenant, those that it has. It is one transaction, and its errors are those of
// Suspend. opts may be nil.
func (f *Fleet) RemoveAttributes(ctx context.Context, id string, names []string, opts *ChangeOpts) error {
	return f.changeAttributes(ctx, id, opts, func(all map[string]string) {
		maps.DeleteFunc(all, func(name, _ string) bool { return slices.Contains(names, name) })
	})
}

func (f *Fleet) changeAttributes(ctx context.Context, id string, opts *ChangeOpts, fn func(map[string]string)) error {
	return f.change(ctx, id, ChangeAttributes, opts, false, func(_ *conn, r *tenantRow) ([]Change, []wire.Step, error) {
		if r.state != Active && r.state != Suspended {
			return nil, nil, r.refuse()
		}
		all := maps.Collect(r.Attributes())
		fn(all)
		attrs, err := joinAttributes(all)
		if err != nil || attrs == r.attrs {
			return nil, nil, err
		}
		t := r.Tenant
		t.attrs = attrs
		return []Change{{Kind: ChangeAttributes, From: attributesJSON(r.Tenant), To: attributesJSON(t)}}, []wire.Step{{
			SQL:  `update pgtenancy.tenants set attributes = $2::text::jsonb, updated_at = now() where id = $1`,
			Args: []any{id, attributesJSON(t)},
		}}, nil
	})
}

// checkAttributes checks what PostgreSQL would not store.
func checkAttributes(attributes map[string]string) error {
	for name, value := range attributes {
		if !utf8.ValidString(name) || !utf8.ValidString(value) {
			return invalid("Tenant.Attributes", name, "must be valid UTF-8 in name and value")
		}
	}
	return nil
}

// Changes iterates over the history of a tenant, the oldest change first, and with "" over that of all. The history stays when
// a tenant is purged, so that an ID may have had several tenants one after the other, and none is an error. It is read by pages,
// and no connection is held in between. An error ends it.
func (f *Fleet) Changes(ctx context.Context, id string) iter.Seq2[Change, error] {
	return func(yield func(Change, error) bool) {
		if err := f.registryReady(ctx); err != nil {
			yield(Change{}, err)
			return
		}
		for after := int64(0); ; {
			rows, _ := f.owner.conns.Query(ctx, `select id, tenant_id, kind, was, became, reason, changed_by, changed_at from pgtenancy.changes
				where ($1 = '' or tenant_id = $1) and id > $2 order by id limit $3`, id, after, tenantsPage) // the error is in rows
			page, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (c Change, err error) {
				err = row.Scan(&after, &c.Tenant, &c.Kind, &c.From, &c.To, &c.Reason, &c.By, &c.At)
				return c, err
			})
			if err != nil {
				yield(Change{}, fmt.Errorf("pgtenancy: read changes: %w", err))
				return
			}
			for _, c := range page {
				if !yield(c, nil) {
					return
				}
			}
			if len(page) < tenantsPage {
				return
			}
		}
	}
}

// tenantRow is a tenant's row of the registry, which is locked.
type tenantRow struct {
	Tenant
	deletedFrom   string // the state, "" where nobody knows
	deletedSchema string // what the schema is called meanwhile, "" where it has its own name
	purging       []byte // the report of a purge that has begun
	retained      bool   // it was deleted less than FleetConfig.Retention ago
}

// refuse returns the error for a tenant that is in a wrong state.
func (r *tenantRow) refuse() error {
	if r.purging != nil {
		return fmt.Errorf("%w: it is being purged", ErrTenantState)
	}
	return fmt.Errorf("%w: it is %s", ErrTenantState, r.state)
}

// become returns what makes a tenant another state.
func (r *tenantRow) become(kind ChangeKind, to State) ([]Change, []wire.Step, error) {
	return []Change{{Kind: kind, From: r.state.String(), To: to.String()}},
		[]wire.Step{{SQL: `update pgtenancy.tenants set state = $2, updated_at = now() where id = $1`, Args: []any{r.id, to.String()}}}, nil
}

// change locks a tenant and runs the steps that plan returns for it, in one transaction with the history and BeforeChange. Where
// plan returns none, nothing is changed. whole is for what concerns the schema too: nobody migrates it meanwhile.
func (f *Fleet) change(ctx context.Context, id string, kind ChangeKind, opts *ChangeOpts, whole bool,
	plan func(*conn, *tenantRow) ([]Change, []wire.Step, error),
) error {
	var o ChangeOpts
	if opts != nil {
		o = *opts
	}
	if err := checkReason("ChangeOpts.Reason", o.Reason); err != nil {
		return err
	}
	if err := f.registryReady(ctx); err != nil {
		return err
	}
	var changes []Change
	err := f.withOwner(ctx, func(wc *conn) error {
		return f.locked(ctx, wc, id, o.Wait, whole, func(r *tenantRow) error {
			var steps []wire.Step
			var err error
			if changes, steps, err = plan(wc, r); err != nil || len(changes) == 0 {
				return err
			}
			for i := range changes {
				changes[i].Tenant, changes[i].Reason = id, o.Reason
			}
			if _, err := wc.Run(ctx, append(steps, changeSteps(changes)...)); err != nil {
				return err
			}
			return f.beforeChanges(ctx, wc, r.Tenant, changes)
		})
	})
	if err != nil {
		return changeError(string(kind), id, err)
	}
	f.afterChanges(ctx, changes)
	return nil
}

// checkReason checks a text that goes into the history.
func checkReason(field, reason string) error {
	if !utf8.ValidString(reason) || slices.Contains([]byte(reason), 0) {
		return invalid(field, "", "must be valid UTF-8 without a NUL character")
	}
	return nil
}

// changeError tells what went wrong with a tenant.
func changeError(what, id string, err error) error {
	var invalid *InvalidError
	switch {
	case errors.As(err, &invalid):
		return err
	case isCode(err, "55P03", "40P01"): // lock_not_available, deadlock_detected
		err = fmt.Errorf("%w: %w", ErrTenantInUse, err)
	case isCode(err, "23505"): // unique_violation, of two who want one domain
		err = fmt.Errorf("%w: %w", ErrTenantExists, err)
	}
	return fmt.Errorf("pgtenancy: %s of tenant %q: %w", what, id, err)
}

// locked calls fn in a transaction that has locked a tenant, which commits unless fn fails. whole keeps migrations away too: they
// take that lock first, and so must everybody.
func (f *Fleet) locked(ctx context.Context, wc *conn, id string, wait time.Duration, whole bool, fn func(*tenantRow) error) (err error) {
	committed := false
	defer func() { // also when fn panics
		if !committed && wc.TxStatus() != 'I' {
			_ = wc.Rollback(ctx) // a connection on which that fails is closed
		}
	}()
	if wait <= 0 {
		wait = ChangeWaitDefault
	}
	steps := []wire.Step{{SQL: beginSQL}, {SQL: `select pg_catalog.set_config('lock_timeout', $1, true)`, Args: []any{timeoutSetting(wait)}}}
	if whole {
		steps = append(steps, wire.Step{SQL: `select pg_catalog.pg_advisory_xact_lock($1)`, Args: []any{tenantLock(id)}})
	}
	if _, err := wc.Run(ctx, steps); err != nil {
		return err
	}
	rows, _ := wc.Pgx().Query(ctx, `select `+tenantColumns+`, coalesce(t.deleted_from, ''), coalesce(t.deleted_schema, ''), t.purging,
			coalesce(coalesce(t.deleted_at, t.updated_at) + pg_catalog.make_interval(secs => $2) > pg_catalog.now(), false)
		from pgtenancy.tenants t where t.id = $1 for update`, id, f.retention.Seconds()) // the error is in rows
	r, err := pgx.CollectExactlyOneRow(rows, func(row pgx.CollectableRow) (r tenantRow, err error) {
		r.Tenant, err = scanTenantAnd(row, &r.deletedFrom, &r.deletedSchema, &r.purging, &r.retained)
		return r, err
	})
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return ErrTenantNotFound
	case err != nil:
		return err
	}
	if err := fn(&r); err != nil {
		return err
	}
	if _, err := wc.Run(ctx, []wire.Step{{SQL: "commit"}}); err != nil {
		return err
	}
	committed = true
	return nil
}

// changeSteps write changes of one tenant into the history, and make all directories forget it.
func changeSteps(changes []Change) []wire.Step {
	var kinds, was, became []string
	for _, c := range changes {
		kinds, was, became = append(kinds, string(c.Kind)), append(was, c.From), append(became, c.To)
	}
	return []wire.Step{{
		SQL: `insert into pgtenancy.changes (tenant_id, kind, was, became, reason) select $1, c.kind, c.was, c.became, $2
			from unnest($3::text[], $4::text[], $5::text[]) with ordinality c (kind, was, became, n) order by c.n`,
		Args: []any{changes[0].Tenant, changes[0].Reason, kinds, was, became},
	}, notifyStep(changes[0].Tenant)}
}

// madeChanges returns the changes that Provision and Adopt are.
func madeChanges(kind ChangeKind, t Tenant, domains []string, reason string) []Change {
	changes := []Change{{Tenant: t.id, Kind: kind, To: t.state.String(), Reason: reason}}
	for _, d := range domains {
		changes = append(changes, Change{Tenant: t.id, Kind: ChangeAddDomain, To: d, Reason: reason})
	}
	return changes
}

// beforeChanges calls BeforeChange in the open transaction, after changeSteps, and leaves its scope there. It sets By and At, which
// is for AfterChange too.
func (f *Fleet) beforeChanges(ctx context.Context, wc *conn, t Tenant, changes []Change) error {
	if f.before == nil && f.after == nil {
		return nil
	}
	var by string
	var at time.Time
	if err := wc.Pgx().QueryRow(ctx, `select session_user::text, pg_catalog.now()`).Scan(&by, &at); err != nil { // the defaults of the columns
		return err
	}
	for i := range changes {
		changes[i].By, changes[i].At = by, at
	}
	if f.before == nil {
		return nil
	}
	scope := &f.owner.shared
	if _, err := wc.Run(ctx, []wire.Step{{Scope: scope}}); err != nil {
		return err
	}
	outer := &tx{binding: binding{shared: true}, pool: f.owner, conn: wc, scope: scope}
	for _, c := range changes {
		err := runSeed(WithTenant(ctx, t), outer, func(ctx context.Context, tx pgx.Tx) error { return f.before(ctx, tx, c) })
		if err != nil {
			return fmt.Errorf("FleetConfig.BeforeChange: %w", err)
		}
	}
	return nil
}

// afterChanges is called when changes of one tenant were committed.
func (f *Fleet) afterChanges(ctx context.Context, changes []Change) {
	if len(changes) == 0 {
		return
	}
	c := changes[0]
	became, err := parseState(c.To)
	if err != nil || c.Kind == ChangeAddDomain || c.Kind == ChangeRenameDomain { // it says something else
		became = 0
	}
	f.directory.renew(c.Tenant, became)
	if f.after != nil {
		for _, c := range changes {
			f.after(ctx, c)
		}
	}
}

// jsonOf returns v as JSON, which it always can be.
func jsonOf(v any) string {
	b, _ := json.Marshal(v)
	return string(b)
}
