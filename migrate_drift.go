package pgtenancy

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy/internal/catalog"
	"github.com/pgtenancy/pgtenancy/internal/wire"
)

// DriftOpts says what Drift compares.
type DriftOpts struct {
	// Tenants are the IDs of those to compare. Defaults to all that are active or suspended.
	Tenants []string

	// Reference is the ID of the tenant that the others at its version are compared with; it need not be among Tenants. At
	// other versions, and by default, the reference is what most tenants at the version are like.
	Reference string

	// Fresh makes the reference a schema that is built from the migrations, as Provision would build it, in a transaction that is
	// rolled back; it is looked at after each version that a tenant is at. It holds the locks that the migrations take on shared
	// tables until then, and calls the migrations in Go. Tenants at a version for which there is no migration at hand are compared
	// with each other. Not with Reference.
	Fresh bool
}

// DriftReport says which tenants' schemas are alike, and what the others have otherwise.
type DriftReport struct {
	// Groups are tenants at one version that are alike. Those of the version of DriftOpts.Reference come first, then those of newer
	// versions before those of older ones; within a version those that are like the reference come first, where there are any,
	// then larger groups before smaller ones.
	Groups []DriftGroup

	Tenants  int // that were compared
	Drifted  int // of these, how many differ from their reference
	Duration time.Duration
}

// DriftGroup is tenants at one version whose schemas are alike.
type DriftGroup struct {
	Version   int64
	Tenants   []string // their IDs, in order
	Reference string   // the ID of a tenant that is as the reference is; "" where that is built from the migrations

	// Differences from the reference, ordered by object. None for tenants that are like it.
	Differences []Difference
}

// Difference is one thing that a schema has otherwise than its reference. Where a whole object is missing or extra, its parts are
// not listed: the columns of a table, say.
type Difference struct {
	// Kind of the object: schema, table, partition, column, column order, constraint, index, sequence, view, materialized view, rule,
	// function, procedure, aggregate, trigger, policy, type, domain, statistics, collation, operator, owner, grant or
	// default privileges.
	Kind string

	// Object is its name, as "orders", "orders.total", "total(integer)" or "orders to app"; "" for the schema itself.
	Object string

	// Want is its definition in the reference, "" where it has none: the object is extra. Have is that in the schema, "" where
	// the object is missing. The schema's own name is left out of both, or is $schema where something has to stand there; the
	// tenant's own role is $role.
	Want, Have string
}

// String returns it on one line, of a long definition only the part that differs.
func (d Difference) String() string {
	name := d.Kind
	if d.Object != "" {
		name += " " + d.Object
	}
	switch want, have := oneLine(d.Want), oneLine(d.Have); {
	case want == "":
		return name + ": extra: " + cutText(have, 0)
	case have == "":
		return name + ": missing: " + cutText(want, 0)
	default:
		n := commonPrefix(want, have)
		return name + ": want " + cutText(want, n) + ", have " + cutText(have, n)
	}
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

func commonPrefix(a, b string) (n int) {
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}

// cutText shortens a long text to what is around at.
func cutText(s string, at int) string {
	const before, most = 30, 150
	if len(s) <= most {
		return s
	}
	start := max(0, min(at-before, len(s)-most))
	for start > 0 && !utf8.RuneStart(s[start]) {
		start--
	}
	end := min(start+most, len(s))
	for end < len(s) && !utf8.RuneStart(s[end]) {
		end++
	}
	text := s[start:end]
	if start > 0 {
		text = "..." + text
	}
	if end < len(s) {
		text += "..."
	}
	return text
}

// String says how many tenants are alike, and of each group that differs who is in it and what it has otherwise.
func (r *DriftReport) String() string {
	var b strings.Builder
	if r.Drifted == 0 {
		fmt.Fprintf(&b, "%d tenants, all alike", r.Tenants)
		return b.String()
	}
	fmt.Fprintf(&b, "%d tenants: %d alike, %d differ", r.Tenants, r.Tenants-r.Drifted, r.Drifted)
	const most = 20
	for _, g := range r.Groups {
		if len(g.Differences) == 0 {
			continue
		}
		from := "what the migrations build"
		if g.Reference != "" {
			from = g.Reference
		}
		fmt.Fprintf(&b, "\n%d at version %d differ from %s: %s", len(g.Tenants), g.Version, from, strings.Join(g.Tenants[:min(len(g.Tenants), most)], ", "))
		if n := len(g.Tenants) - most; n > 0 {
			fmt.Fprintf(&b, " and %d more", n)
		}
		for i, d := range g.Differences {
			if i == most {
				fmt.Fprintf(&b, "\n    and %d more", len(g.Differences)-most)
				break
			}
			b.WriteString("\n    " + d.String())
		}
	}
	return b.String()
}

// Drift compares the schemas of tenants that are at one version, and reports how they differ: somebody has changed one of them by
// hand, or a migration did not do the same everywhere. It changes nothing, and asks a few queries for all tenants together.
//
// It compares all that a migration can make in a schema: tables, columns and their order, constraints, indexes, sequences, views,
// functions, triggers, rules, policies, types, statistics objects, collations, operators, their owners and grants. It does
// not compare rows, values of sequences, comments, statistics targets, operator classes and text search configurations. A schema that is
// missing is a difference of kind "schema".
//
// A tenant that is migrated meanwhile is read again. A schema that another session keeps locked, or keeps changing, for seconds is
// an error. The other errors: *InvalidError for opts that contradict each other; ErrTenantNotFound for an ID that is no tenant's;
// with Fresh *MigrationError for a migration that fails. opts may be nil.
func (f *Fleet) Drift(ctx context.Context, opts *DriftOpts) (*DriftReport, error) {
	var o DriftOpts
	if opts != nil {
		o = *opts
	}
	if o.Fresh && o.Reference != "" {
		return nil, invalid("DriftOpts.Reference", o.Reference, "must be empty where Fresh is set")
	}
	if err := f.registryReady(ctx); err != nil {
		return nil, err
	}
	started := time.Now()
	d := drift{fleet: f, opts: o, catalog: catalog.New(), shapes: map[string]catalog.Shape{}}
	if err := d.run(ctx); err != nil {
		return nil, err
	}
	report := d.report()
	report.Duration = time.Since(started)
	return report, nil
}

// drift is one run of Drift.
type drift struct {
	fleet   *Fleet
	opts    DriftOpts
	catalog *catalog.Catalog
	tenants []Tenant
	shapes  map[string]catalog.Shape // by ID
	fresh   map[int64]catalog.Shape  // by version
}

// driftRounds is how often tenants that were migrated meanwhile are read again.
const driftRounds = 5

// driftKeep is after how many schemas a connection is not used any more: its server process never gives back what it has
// learned of their tables.
const driftKeep = 100

func (d *drift) run(ctx context.Context) (err error) {
	if d.tenants, err = d.list(ctx, d.fleet.owner.conns); err != nil {
		return err
	}
	for _, id := range append(slices.Clone(d.opts.Tenants), d.opts.Reference) {
		if id != "" && !slices.ContainsFunc(d.tenants, func(t Tenant) bool { return t.id == id }) {
			return fmt.Errorf("%w: %s", ErrTenantNotFound, id)
		}
	}
	return d.fleet.withOwner(ctx, func(wc *conn) error {
		if d.opts.Fresh {
			if err := d.build(ctx, wc); err != nil {
				return err
			}
		}
		if len(d.tenants) > driftKeep {
			defer func() { _ = wc.Pgx().Close(context.WithoutCancel(ctx)) }()
		}
		todo := d.tenants
		for range driftRounds {
			if err := d.read(ctx, wc, todo); err != nil {
				return err
			}
			if todo, err = d.changed(ctx, wc); err != nil {
				return err
			}
			if len(todo) == 0 {
				if id := d.opts.Reference; id != "" && d.shapes[id] == (catalog.Shape{}) {
					return invalid("DriftOpts.Reference", id, "must be a tenant whose schema exists")
				}
				return nil
			}
		}
		return fmt.Errorf("pgtenancy: drift: tenant %s is being migrated all the time", todo[0])
	})
}

// list returns the tenants to compare, ordered by ID.
func (d *drift) list(ctx context.Context, conn interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
},
) ([]Tenant, error) {
	var ids []string
	if len(d.opts.Tenants) > 0 {
		ids = append(slices.Clone(d.opts.Tenants), d.opts.Reference)
	}
	rows, _ := conn.Query(ctx, `select `+tenantColumns+` from pgtenancy.tenants t
		where case when $1::text[] is null then t.state in ('active', 'suspended') else t.id = any($1) end order by t.id`, ids) // the error is in rows
	ts, err := pgx.CollectRows(rows, scanTenant)
	if err != nil {
		return nil, fmt.Errorf("pgtenancy: drift: list tenants: %w", err)
	}
	return ts, nil
}

// read describes the schemas of tenants.
func (d *drift) read(ctx context.Context, wc *conn, tenants []Tenant) error {
	schemas := make([]catalog.Schema, len(tenants))
	for i, t := range tenants {
		schemas[i] = catalog.Schema{Name: t.schema, Role: t.role}
	}
	shapes, err := d.catalog.Read(ctx, wc.Pgx(), schemas)
	if err != nil {
		return fmt.Errorf("pgtenancy: drift: %w", err)
	}
	for i, t := range tenants {
		d.shapes[t.id] = shapes[i]
	}
	return nil
}

// changed returns the tenants that were migrated since they were listed, and forgets those that are gone.
func (d *drift) changed(ctx context.Context, wc *conn) (todo []Tenant, err error) {
	now, err := d.list(ctx, wc.Pgx())
	if err != nil {
		return nil, err
	}
	before := make(map[string]Tenant, len(d.tenants))
	for _, t := range d.tenants {
		before[t.id] = t
	}
	d.tenants = slices.DeleteFunc(now, func(t Tenant) bool { return before[t.id] == Tenant{} })
	for _, t := range d.tenants {
		if b := before[t.id]; b.version != t.version || b.schema != t.schema || b.role != t.role {
			todo = append(todo, t)
		}
	}
	return todo, nil
}

// build describes a schema as the migrations make it, at each version that a tenant is at and at the newest.
func (d *drift) build(ctx context.Context, wc *conn) (err error) {
	f := d.fleet
	d.fresh = map[int64]catalog.Shape{}
	wanted := map[int64]bool{f.tenant.newest(): true}
	for _, t := range d.tenants {
		wanted[t.version] = true
	}
	t, _, err := f.newTenant("drift-"+strings.ToLower(rand.Text()[:12]), "", nil, nil) // a name that nobody has
	if err != nil {
		return err
	}
	t.version = f.tenant.newest()
	defer func() {
		if wc.TxStatus() != 'I' {
			if endErr := wc.Rollback(ctx); err == nil && endErr != nil {
				err = fmt.Errorf("pgtenancy: drift: %w", endErr)
			}
		}
	}()
	ctx = WithTenant(ctx, t)
	run := append([]wire.Step{{SQL: beginSQL}}, f.registerSteps(t, nil)...)
	if f.roles != "" { // and that SettingValue has none for
		t.role = f.roles + roleSeparator + t.id
	}
	run = append(append(run, wire.Step{SQL: "create schema " + t.path}), f.roleSteps(t)...)
	run = append(run, f.grantSteps(t, false)...)
	if _, err := wc.Run(ctx, run); err != nil {
		return fmt.Errorf("pgtenancy: drift: build a schema: %w", err)
	}
	after := func(version int64) error {
		if !wanted[version] {
			return nil
		}
		shapes, err := d.catalog.ReadTx(ctx, wc.Pgx(), []catalog.Schema{{Name: t.schema, Role: t.role}})
		if err != nil {
			return fmt.Errorf("pgtenancy: drift: %w", err)
		}
		d.fresh[version] = shapes[0]
		return nil
	}
	if err := after(0); err != nil {
		return err
	}
	if len(f.tenant.all) == 0 {
		return nil
	}
	outer := &tx{binding: binding{tenant: t}, pool: f.owner, conn: wc, scope: f.ownerScope(t)}
	return f.build(ctx, outer, t, &pipeline{}, after)
}

// report compares within each version.
func (d *drift) report() *DriftReport {
	r := &DriftReport{Tenants: len(d.tenants)}
	first := int64(-1) // the version of DriftOpts.Reference
	byVersion := map[int64]map[catalog.Shape][]string{}
	for _, t := range d.tenants { // ordered by ID, and so are the IDs in a group
		shapes := byVersion[t.version]
		if shapes == nil {
			shapes = map[catalog.Shape][]string{}
			byVersion[t.version] = shapes
		}
		shapes[d.shapes[t.id]] = append(shapes[d.shapes[t.id]], t.id)
		if t.id == d.opts.Reference {
			first = t.version
		}
	}
	versions := slices.SortedFunc(maps.Keys(byVersion), func(a, b int64) int {
		switch {
		case a == b:
			return 0
		case a == first:
			return -1
		case b == first:
			return 1
		}
		return cmp.Compare(b, a)
	})
	for _, v := range versions {
		for _, g := range d.groups(v, byVersion[v]) {
			r.Groups = append(r.Groups, g)
			if len(g.Differences) > 0 {
				r.Drifted += len(g.Tenants)
			}
		}
	}
	return r
}

// groups compares the tenants at one version.
func (d *drift) groups(version int64, shapes map[catalog.Shape][]string) []DriftGroup {
	bySize := slices.SortedFunc(maps.Keys(shapes), func(a, b catalog.Shape) int {
		return cmp.Or(cmp.Compare(len(shapes[b]), len(shapes[a])), strings.Compare(shapes[a][0], shapes[b][0]))
	})
	want, built := d.fresh[version]
	if !built {
		want = bySize[0]
		if want == (catalog.Shape{}) && len(bySize) > 1 {
			want = bySize[1] // schemas that are missing are no example
		}
		if s := d.shapes[d.opts.Reference]; slices.Contains(shapes[s], d.opts.Reference) {
			want = s
		}
	}
	alike := DriftGroup{Version: version}
	var groups []DriftGroup
	for _, s := range bySize {
		var diffs []Difference
		for _, diff := range d.catalog.Diff(want, s) {
			diffs = append(diffs, Difference(diff))
		}
		switch {
		case len(diffs) > 0:
			groups = append(groups, DriftGroup{Version: version, Tenants: shapes[s], Differences: diffs})
		case s == catalog.Shape{}: // as all others at the version
			groups = append(groups, DriftGroup{Version: version, Tenants: shapes[s], Differences: []Difference{{Kind: "schema", Want: "any"}}})
		default:
			alike.Tenants = append(alike.Tenants, shapes[s]...)
		}
	}
	if len(alike.Tenants) > 0 {
		slices.Sort(alike.Tenants)
		groups = slices.Insert(groups, 0, alike)
	}
	if !built && len(alike.Tenants) > 0 {
		reference := alike.Tenants[0]
		if slices.Contains(alike.Tenants, d.opts.Reference) {
			reference = d.opts.Reference
		}
		for i := range groups {
			groups[i].Reference = reference
		}
	}
	return groups
}
