package pgtenancy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/singleflight"

	"github.com/pgtenancy/pgtenancy/internal/lru"
)

// Directory finds tenants. Fleet and what NewDirectory returns are Directories; a service that keeps its tenants in a
// table of its own writes one, with NewTenant, and does well to keep what it finds in memory.
type Directory interface {
	// Lookup returns the tenant of k. The error is ErrTenantNotFound where there is none, or none yet or any more, and
	// ErrTenantSuspended for one that is suspended. Any other error says that the directory could not tell: it does not mean that
	// there is no such tenant. Lookup is called for every request and must be safe for concurrent use.
	Lookup(ctx context.Context, k Key) (Tenant, error)
}

// How long and how many tenants a CachedDirectory remembers. Its documentation tells them.
const (
	directoryTTL      = time.Minute
	directoryMissTTL  = 5 * time.Second
	directoryCapacity = 10_000
	lookupTimeout     = 5 * time.Second
)

// CachedDirectory is a Directory that reads the registry of a Fleet and remembers what it read. NewDirectory makes one. It is
// safe for concurrent use.
//
// It remembers a tenant for up to a minute, and for up to 5 seconds that there is none: for that long it may return what
// another process has changed meanwhile. It remembers up to 10,000 tenants, 10,000 domains and, apart from these, 10,000
// keys without a tenant, so that no scan of unknown names can push out a tenant. Beyond these it forgets what was not asked
// for the longest.
//
// What is asked for by many callers at once is read once. That takes at most 5 seconds and does not end with the context of
// one of the callers; each caller waits as long as its own context lasts. A failure is told to those who wait for it and
// not remembered.
type CachedDirectory struct {
	// query reads from the registry, past the cache. Where it has no such tenant, the error is ErrTenantNotFound. It returns
	// tenants of all states without an error.
	query   func(context.Context, Key) (Tenant, error)
	flights singleflight.Group

	mu      sync.Mutex
	tenants *lru.Cache[string, *knownTenant] // by ID, whatever their state
	domains *lru.Cache[string, knownDomain]
	missing *lru.Cache[Key, miss]
	flying  map[*flight]struct{}
	forgets uint64 // counts calls of forget
}

var _ Directory = (*CachedDirectory)(nil)

// knownTenant is what is remembered of a tenant.
type knownTenant struct {
	tenant  Tenant
	expires time.Time
	gone    bool // no longer in tenants, and so no longer in domains that refer to it
}

// knownDomain is a domain and the tenant that it was found to belong to.
type knownDomain struct {
	of      *knownTenant
	expires time.Time
}

// miss says that there was no tenant.
type miss struct {
	expires time.Time
	forgets uint64 // when the reading began
}

// flight is one reading from the registry.
type flight struct{ forgotten []string } // IDs that were forgotten while it was under way

// NewDirectory returns a Directory for processes that only look tenants up, in the registry that a Fleet keeps in the same
// database. The pool's role needs USAGE on the schema pgtenancy and SELECT on its tables tenants and domains. Lookup
// returns ErrRegistryOutdated where these are missing.
//
// From then on the pool refuses tenants of which the directory knows that they were suspended or deleted since their
// handle was made. NewDirectory must therefore be called before other goroutines use the pool. It panics where p is nil.
func NewDirectory(p *Pool) *CachedDirectory {
	if p == nil {
		panic("pgtenancy.NewDirectory: the pool is nil")
	}
	shared := p.Shared()
	d := newDirectory(directoryCapacity, func(ctx context.Context, k Key) (Tenant, error) { return queryTenant(ctx, shared, k) })
	p.check = d.check
	return d
}

func newDirectory(capacity int, query func(context.Context, Key) (Tenant, error)) *CachedDirectory {
	return &CachedDirectory{
		query:   query,
		tenants: lru.New[string, *knownTenant](capacity),
		domains: lru.New[string, knownDomain](capacity),
		missing: lru.New[Key, miss](capacity),
		flying:  make(map[*flight]struct{}),
	}
}

// Lookup returns the tenant of k. See Directory.
func (d *CachedDirectory) Lookup(ctx context.Context, k Key) (Tenant, error) {
	d.mu.Lock()
	t, found, ok := d.recall(k)
	flight := d.flightName(k)
	d.mu.Unlock()
	if ok {
		return answer(k, t, found)
	}
	if !k.valid() {
		return answer(k, Tenant{}, false) // not worth a query, nor a place in the cache
	}
	select {
	case r := <-d.flights.DoChan(flight, func() (any, error) { return d.read(ctx, k) }):
		if r.Err != nil {
			return Tenant{}, r.Err
		}
		t, _ := r.Val.(Tenant)
		return answer(k, t, t.id != "")
	case <-ctx.Done():
		return Tenant{}, fmt.Errorf("pgtenancy: look up %s: %w", k, ctx.Err())
	}
}

// flightName returns the name under which callers share the reading of k. It is another one after each forget, so that nobody
// joins a flight that began before it. The caller holds mu.
func (d *CachedDirectory) flightName(k Key) string {
	return strconv.FormatUint(d.forgets, 36) + " " + k.String()
}

// answer is what Lookup returns for a tenant that was or was not found.
func answer(k Key, t Tenant, found bool) (Tenant, error) {
	switch {
	case found && t.state == Active:
		return t, nil
	case found && t.state == Suspended:
		return Tenant{}, fmt.Errorf("%w: %s", ErrTenantSuspended, t.id)
	}
	return Tenant{}, fmt.Errorf("%w: %s", ErrTenantNotFound, k)
}

// recall returns what is remembered of k: a tenant of whatever state, or that there is none. ok reports whether anything
// is. The caller holds mu.
func (d *CachedDirectory) recall(k Key) (t Tenant, found, ok bool) {
	now := time.Now()
	if m, ok := d.missing.Get(k); ok {
		// A tenant that was forgotten since then may have been given the domain: nobody says which domains it has now.
		if now.Before(m.expires) && (k.domain == "" || m.forgets == d.forgets) {
			return Tenant{}, false, true
		}
		d.missing.Delete(k)
	}
	id := k.id
	if k.domain != "" {
		domain, ok := d.domains.Get(k.domain)
		if !ok {
			return Tenant{}, false, false
		}
		if domain.of.gone || !now.Before(domain.expires) {
			d.domains.Delete(k.domain)
			return Tenant{}, false, false
		}
		id = domain.of.tenant.id
	}
	if known, ok := d.tenants.Get(id); ok && now.Before(known.expires) {
		return known.tenant, true, true
	}
	return Tenant{}, false, false
}

// read reads k from the registry and remembers the result, unless what it read was forgotten meanwhile. It returns the
// zero Tenant where there is none.
func (d *CachedDirectory) read(ctx context.Context, k Key) (Tenant, error) {
	f := &flight{}
	d.mu.Lock()
	if t, _, ok := d.recall(k); ok { // by a flight that landed just now
		d.mu.Unlock()
		return t, nil
	}
	d.flying[f] = struct{}{}
	began, forgets := time.Now(), d.forgets
	d.mu.Unlock()

	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lookupTimeout)
	defer cancel()
	t, err := d.query(ctx, k)

	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.flying, f)
	switch {
	case err == nil:
		if !f.forgot(t.id) {
			d.remember(k, t, began)
		}
		return t, nil
	case errors.Is(err, ErrTenantNotFound):
		if !f.forgot(k.id) {
			d.missing.Put(k, miss{began.Add(directoryMissTTL), forgets})
		}
		return Tenant{}, nil
	}
	return Tenant{}, fmt.Errorf("pgtenancy: look up %s: %w", k, err)
}

func (f *flight) forgot(id string) bool { return slices.Contains(f.forgotten, id) }

// remember stores a tenant that was found. The caller holds mu.
func (d *CachedDirectory) remember(k Key, t Tenant, read time.Time) {
	ttl := directoryTTL
	if t.state != Active && t.state != Suspended {
		ttl = directoryMissTTL // being provisioned it will soon be active
	}
	known, ok := d.tenants.Get(t.id)
	if !ok {
		known = &knownTenant{}
		if evicted, full := d.tenants.Put(t.id, known); full {
			evicted.gone = true
		}
	}
	known.tenant, known.expires = t, read.Add(ttl)
	d.missing.Delete(ByID(t.id))
	d.missing.Delete(k)
	if k.domain != "" {
		d.domains.Put(k.domain, knownDomain{known, known.expires})
	}
}

// forget drops what is remembered of a tenant: itself, its domains, and that there was none. A Lookup that begins after
// forget returned reads the registry anew. It must be called after the registry was changed.
func (d *CachedDirectory) forget(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.forgets++
	if known, ok := d.tenants.Get(id); ok {
		known.gone = true
		d.tenants.Delete(id)
	}
	d.missing.Delete(ByID(id))
	// What is being read may be of before the change. It reaches those who asked before it, and nobody else.
	for f := range d.flying {
		f.forgotten = append(f.forgotten, id)
	}
}

// peek returns what is remembered of a tenant, whatever its state, without asking the registry.
func (d *CachedDirectory) peek(id string) (Tenant, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	known, ok := d.tenants.Get(id)
	if !ok || !time.Now().Before(known.expires) {
		return Tenant{}, false
	}
	return known.tenant, true
}

// check refuses a handle of which it is remembered that its tenant was suspended or deleted since it was made. It is
// Pool.check.
func (d *CachedDirectory) check(t Tenant) error {
	known, ok := d.peek(t.id)
	if !ok || known.state != Suspended && known.state != Deleted {
		return nil
	}
	_, err := answer(ByID(t.id), known, true)
	return err
}

// tenantColumns are what scanTenant wants of pgtenancy.tenants t.
const tenantColumns = `t.id, t.schema_name, t.role_name, t.state, t.version, t.attributes`

// scanTenant makes a Tenant of a row of tenantColumns.
func scanTenant(row pgx.CollectableRow) (Tenant, error) {
	var info TenantInfo
	var state string
	err := row.Scan(&info.ID, &info.Schema, &info.Role, &state, &info.Version, &info.Attributes)
	if err != nil {
		return Tenant{}, err
	}
	if info.State, err = parseState(state); err != nil {
		return Tenant{}, err
	}
	t, err := NewTenant(info)
	if err != nil {
		// Not wrapped: an *InvalidError would blame the caller's input.
		return Tenant{}, fmt.Errorf("pgtenancy: the registry's row of tenant %q: %s", info.ID, err.Error())
	}
	return t, nil
}

// queryTenant reads one tenant from the registry. The error is ErrTenantNotFound where there is no row.
func queryTenant(ctx context.Context, s *Scope, k Key) (Tenant, error) {
	sql, arg := `select `+tenantColumns+` from pgtenancy.tenants t where t.id = $1`, k.id
	if k.domain != "" {
		sql, arg = `select `+tenantColumns+` from pgtenancy.domains d join pgtenancy.tenants t on t.id = d.tenant_id
			where d.domain = $1`, k.domain
	}
	rows, _ := s.Query(ctx, sql, arg) // the error is in rows
	t, err := pgx.CollectExactlyOneRow(rows, scanTenant)
	var pgErr *pgconn.PgError
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return Tenant{}, ErrTenantNotFound
	case errors.Is(err, ErrTenantNotFound) && errors.As(err, &pgErr):
		// What the pool says where a shared schema is missing. Of it only PostgreSQL's part is passed on, or every tenant would
		// seem not to exist.
		return Tenant{}, fmt.Errorf("no usable shared schema: %w", pgErr)
	case isCode(err, "42P01", "3F000", "42703"): // undefined_table, invalid_schema_name, undefined_column
		return Tenant{}, fmt.Errorf("%w: %w", ErrRegistryOutdated, err)
	}
	return t, err
}
