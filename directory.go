package pgtenancy

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

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

// DirectoryConfig says how long and how much a CachedDirectory remembers. In each field 0 is the default.
type DirectoryConfig struct {
	// TTL is how long a tenant is remembered. Defaults to a minute.
	TTL time.Duration

	// NegativeTTL is how long it is remembered that there is no tenant, or only one that is being provisioned or was deleted.
	// Defaults to 5 seconds.
	NegativeTTL time.Duration

	// Capacity is how many tenants are remembered, as many domains and, apart from these, as many keys without a tenant, so
	// that no scan of unknown names can push out a tenant. Beyond it, what was not asked for the longest is forgotten. Defaults
	// to 10,000.
	Capacity int

	// StaleFor is for how long after TTL a tenant is still returned while the registry cannot be read: no connection can be had,
	// none answers within a second, or the server is shutting down, starting or out of resources. The database is asked again
	// once a second then, and nobody waits for that. Any other failure, such as a missing right, is returned as ever, and so is
	// that of a key of which nothing is known.
	//
	// It trades being right for being there: a tenant that was suspended, deleted or given another schema meanwhile is returned
	// as it was, for TTL and StaleFor together at most. One that was known to be suspended or deleted stays refused.
	//
	// Defaults to 0: no tenant is returned after its TTL.
	StaleFor time.Duration
}

// withDefaults checks cfg, which is the value of the field, and fills in its defaults.
func (cfg DirectoryConfig) withDefaults(field string) (DirectoryConfig, error) {
	for _, d := range []struct {
		name      string
		value     *time.Duration
		otherwise time.Duration
	}{{"TTL", &cfg.TTL, time.Minute}, {"NegativeTTL", &cfg.NegativeTTL, 5 * time.Second}, {"StaleFor", &cfg.StaleFor, 0}} {
		if *d.value < 0 {
			return cfg, invalid(field+"."+d.name, d.value.String(), "must not be negative")
		}
		if *d.value == 0 {
			*d.value = d.otherwise
		}
	}
	if cfg.Capacity < 0 {
		return cfg, invalid(field+".Capacity", strconv.Itoa(cfg.Capacity), "must not be negative")
	}
	if cfg.Capacity == 0 {
		cfg.Capacity = 10_000
	}
	return cfg, nil
}

// CachedDirectory is a Directory that reads the registry of a Fleet and remembers what it read. A Fleet has one, NewDirectory
// and NewDirectoryWithConfig make others. It is safe for concurrent use.
//
// It hears of changes: the control plane sends a notification on the channel pgtenancy with each, the ID of a tenant or ""
// for all, and what is remembered is forgotten at once. For that it keeps one connection of its own, past the pool, made as
// PoolConfig.Direct says, or Conns where that is nil, with their BeforeConnect but none of the hooks of pooled connections. The
// first Lookup of something unknown starts it, the pool's Close ends it, and pg_stat_activity shows it by its query, "listen
// pgtenancy". It is asked every 30 seconds whether it is still there. Where it is lost, another one is made, after 100
// milliseconds at first and up to 30 seconds when that fails again and again; then everything is forgotten, since what was
// sent meanwhile is lost. LISTEN and NOTIFY need no right in PostgreSQL: whoever may connect can make a directory forget, and
// so read again, but nothing else.
//
// Where it does not listen, what it returns may be what somebody else has changed up to DirectoryConfig.TTL ago. So it is
// until the connection is made, and for good behind a transaction pooler with no Direct: LISTEN would stay on a connection
// that belongs to others. That there is a pooler is seen by EntryFunction, by a DefaultQueryExecMode that is for poolers, and
// by a server process that is not the one that the connection was told of. To listen there, set Direct, to the same as
// Conns where the pooler keeps sessions. DirectoryStat.ListenErr says why a directory does not listen.
//
// What is asked for by many callers at once is read once, and many keys are read by one query. That takes at most 5 seconds
// and does not end with the context of one of the callers; each caller waits as long as its own context lasts. A failure is
// told to those who wait for it and not remembered.
//
// No scan of unknown names can flood the database: a directory has 4 queries under way at most, each for up to 1,000 keys, and
// after 100 of them that were asked for a key without a tenant it sends 100 a second. Callers that ask for something that was
// never seen wait for their turn then. Those whose tenant is remembered do not, nor those who ask for it again after its TTL.
type CachedDirectory struct {
	cfg   DirectoryConfig
	query registryQuery

	mu       sync.Mutex
	listener *listener                        // that was not started yet; nil where it was, or there is none
	tenants  *lru.Cache[string, *knownTenant] // by ID, whatever their state
	domains  *lru.Cache[string, knownDomain]
	missing  *lru.Cache[Key, miss]
	forgets  uint64 // counts calls of forget and forgetAll
	dropped  uint64 // forgets as it was after the last forgetAll
	reads    reads
	flying   map[*flight]struct{}
	failing  bool          // the registry could not be read the last time
	retry    time.Time     // after a failure, when it is tried again where nobody waits for that
	stat     DirectoryStat // without what Stat fills in
}

var _ Directory = (*CachedDirectory)(nil)

// How a directory that may return what is stale does it.
const (
	staleWait  = time.Second // for the registry, before what is stale is returned instead
	staleRetry = time.Second // from a failure to the next attempt
)

// knownTenant is what is remembered of a tenant.
type knownTenant struct {
	tenant Tenant
	since
	gone    bool // no longer in tenants, and so no longer in domains that refer to it
	refused bool // it was suspended or deleted, and is read anew since that may have changed
}

// knownDomain is a domain and the tenant that it was found to belong to.
type knownDomain struct {
	of *knownTenant
	since
}

// miss says that there was no tenant.
type miss struct{ since }

// since says until when something that was read counts.
type since struct {
	expires time.Time
	forgets uint64 // of the directory, when the reading began
}

// freshness is what is remembered of a key.
type freshness int

const (
	unknown freshness = iota // nothing
	expired                  // something that is too old
	stale                    // something that will do while the registry cannot be read
	fresh                    // a tenant of whatever state, or that there is none
)

// DirectoryStat is a snapshot of a CachedDirectory's statistics. The counts are since it was made.
type DirectoryStat struct {
	Hits          int64 // lookups that found a tenant in memory, suspended or not
	NegativeHits  int64 // lookups that found in memory that there is none, or that nobody can have such a key
	Misses        int64 // lookups that had to wait for the registry
	Stale         int64 // lookups that got what DirectoryConfig.StaleFor allows; those that waited before are Misses too
	Queries       int64 // that read the registry, each for one key or many
	Failures      int64 // queries that failed
	Evictions     int64 // tenants and domains that were forgotten for want of capacity
	Listens       int64 // times that it began to listen, and forgot everything
	Notifications int64 // that were heard

	Tenants  int // that are remembered now, with those that have expired but were not asked for since
	Domains  int // the same of domains
	Negative int // the same of keys without a tenant

	Listening bool  // changes are heard of
	ListenErr error // why not, where an attempt has failed
}

// Stat returns a snapshot of the directory's statistics.
func (d *CachedDirectory) Stat() DirectoryStat {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.stat
	s.Tenants, s.Domains, s.Negative = d.tenants.Len(), d.domains.Len(), d.missing.Len()
	return s
}

// NewDirectory is NewDirectoryWithConfig with the defaults.
func NewDirectory(p *Pool) *CachedDirectory {
	d, _ := NewDirectoryWithConfig(p, DirectoryConfig{}) // the defaults break no rule
	return d
}

// NewDirectoryWithConfig returns a Directory for processes that only look tenants up, in the registry that a Fleet keeps in
// the same database. The pool's role needs USAGE on the schema pgtenancy and SELECT on its tables tenants and domains.
// Lookup returns ErrRegistryOutdated where these are missing. The error for a field that breaks a rule is an
// *InvalidError.
//
// From then on the pool refuses tenants of which the directory knows that they were suspended or deleted since their
// handle was made. What is known of a tenant whose handles are in use is read again, in the background, when a notification
// comes and after its TTL. One that was known to be suspended or deleted when the notification came stays refused until it was read.
// NewDirectoryWithConfig must therefore be called before other goroutines use the pool. The directory
// ends with the pool. It panics where p is nil.
func NewDirectoryWithConfig(p *Pool, cfg DirectoryConfig) (*CachedDirectory, error) {
	if p == nil {
		panic("pgtenancy.NewDirectory: the pool is nil")
	}
	cfg, err := cfg.withDefaults("DirectoryConfig")
	if err != nil {
		return nil, err
	}
	shared := p.Shared()
	d := newDirectory(cfg, func(ctx context.Context, keys []Key) (map[Key]reading, error) { return queryTenants(ctx, shared, keys) })
	d.listener, d.stat.ListenErr = newListener(d, p)
	p.check = d.check
	return d, nil
}

// newDirectory returns a directory that does not listen. cfg has its defaults.
func newDirectory(cfg DirectoryConfig, query registryQuery) *CachedDirectory {
	return &CachedDirectory{
		cfg:     cfg,
		query:   query,
		tenants: lru.New[string, *knownTenant](cfg.Capacity),
		domains: lru.New[string, knownDomain](cfg.Capacity),
		missing: lru.New[Key, miss](cfg.Capacity),
		reads:   newReads(),
		flying:  make(map[*flight]struct{}),
	}
}

// Lookup returns the tenant of k. See Directory.
func (d *CachedDirectory) Lookup(ctx context.Context, k Key) (Tenant, error) {
	now := time.Now()
	d.mu.Lock()
	t, how := d.recall(k, now)
	switch {
	case how == fresh && t.id != "":
		d.stat.Hits++
		d.mu.Unlock()
		return answer(k, t)
	case how == fresh || !k.valid(): // what nobody can have is not worth a query, nor a place in the cache
		d.stat.NegativeHits++
		d.mu.Unlock()
		return answer(k, Tenant{})
	case how == stale && d.failing:
		if !now.Before(d.retry) {
			d.join(ctx, k, how) // nobody waits for it
			d.retry = now.Add(lookupTimeout + staleRetry)
		}
		d.stat.Stale++
		d.mu.Unlock()
		return answer(k, t)
	}
	d.stat.Misses++
	c := d.join(ctx, k, how)
	d.mu.Unlock()

	var late <-chan time.Time
	if how == stale {
		timer := time.NewTimer(staleWait)
		defer timer.Stop()
		late = timer.C
	}
	for {
		select {
		case <-c.done:
			if c.err == nil {
				return answer(k, c.tenant)
			}
			if unreadable(c.err) {
				if t, ok := d.recallStale(k); ok {
					return answer(k, t)
				}
			}
			return Tenant{}, c.err
		case <-late:
			d.mu.Lock()
			d.failed()
			d.mu.Unlock()
			if t, ok := d.recallStale(k); ok {
				d.leave(k, c)
				return answer(k, t)
			}
		case <-ctx.Done():
			d.leave(k, c)
			return Tenant{}, fmt.Errorf("pgtenancy: look up %s: %w", k, ctx.Err())
		}
	}
}

// answer is what Lookup returns for the tenant of k, the zero Tenant where there is none.
func answer(k Key, t Tenant) (Tenant, error) {
	switch {
	case t.id != "" && t.state == Active:
		return t, nil
	case t.id != "" && t.state == Suspended:
		return Tenant{}, fmt.Errorf("%w: %s", ErrTenantSuspended, t.id)
	}
	return Tenant{}, fmt.Errorf("%w: %s", ErrTenantNotFound, k)
}

// recall returns what is remembered of k: a tenant of whatever state, or the zero Tenant for none. The caller holds mu.
func (d *CachedDirectory) recall(k Key, now time.Time) (Tenant, freshness) {
	if m, ok := d.missing.Get(k); ok {
		// A tenant that was forgotten since then may have been given the domain: nobody says which domains it has now.
		if d.freshness(m.since, now) == fresh && (k.domain == "" || m.forgets == d.forgets) {
			return Tenant{}, fresh
		}
		d.missing.Delete(k)
	}
	id, how := k.id, fresh
	if k.domain != "" {
		domain, ok := d.domains.Get(k.domain)
		if !ok {
			return Tenant{}, unknown
		}
		if domain.of.gone {
			d.domains.Delete(k.domain)
			return Tenant{}, unknown
		}
		id, how = domain.of.tenant.id, d.freshness(domain.since, now)
	}
	known, ok := d.tenants.Get(id)
	if !ok {
		return Tenant{}, unknown
	}
	how = min(how, d.freshness(known.since, now))
	if how == stale && known.tenant.state == Provisioning {
		how = expired // it may well be active by now
	}
	return known.tenant, how
}

// freshness tells for how much that counts which was read then. The caller holds mu.
func (d *CachedDirectory) freshness(s since, now time.Time) freshness {
	switch {
	case now.Before(s.expires) && s.forgets >= d.dropped:
		return fresh
	case now.Before(s.expires.Add(d.cfg.StaleFor)) && d.cfg.StaleFor > 0:
		return stale
	}
	return expired
}

// recallStale returns what may be returned of k because the registry cannot be read.
func (d *CachedDirectory) recallStale(k Key) (Tenant, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	t, how := d.recall(k, time.Now())
	if how < stale || t.id == "" {
		return Tenant{}, false
	}
	d.stat.Stale++
	return t, true
}

// failed notes that the registry cannot be read. The caller holds mu.
func (d *CachedDirectory) failed() {
	d.failing, d.retry = true, time.Now().Add(staleRetry)
}

// remember stores the tenant of k that was found, or with the zero Tenant that there is none. The caller holds mu.
func (d *CachedDirectory) remember(k Key, t Tenant, began time.Time, forgets uint64) {
	read := since{began.Add(d.cfg.NegativeTTL), forgets} // being provisioned it will soon be active
	if t.state == Active && t.id != "" || t.state == Suspended {
		read.expires = began.Add(d.cfg.TTL)
	}
	if t.id == "" {
		d.missing.Put(k, miss{read})
		d.domains.Delete(k.domain)
		if known, ok := d.tenants.Get(k.id); ok {
			known.gone = true
			d.tenants.Delete(k.id)
		}
		return
	}
	known, ok := d.tenants.Get(t.id)
	if !ok {
		known = &knownTenant{}
		if evicted, full := d.tenants.Put(t.id, known); full {
			evicted.gone = true
			d.stat.Evictions++
		}
	}
	known.tenant, known.since, known.refused = t, read, false
	d.missing.Delete(ByID(t.id))
	d.missing.Delete(k)
	if k.domain != "" {
		if _, full := d.domains.Put(k.domain, knownDomain{known, read}); full {
			d.stat.Evictions++
		}
	}
}

// forget drops what is remembered of a tenant: itself, its domains, and that there was none. A Lookup that begins after
// forget returned reads the registry anew. It must be called after the registry was changed.
func (d *CachedDirectory) forget(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.drop(id)
}

// drop is forget for a caller that holds mu.
func (d *CachedDirectory) drop(id string) {
	d.forgets++
	if known, ok := d.tenants.Get(id); ok {
		known.gone = true
		d.tenants.Delete(id)
	}
	d.missing.Delete(ByID(id))
	for f := range d.flying {
		f.forget(id)
	}
}

// renew is forget, and reads anew what was remembered of the tenant, or was being read: handles of it that nobody looks up any more
// are to be refused when it was suspended or deleted. Nobody waits for that, and until it was read, the state that it has become
// counts, or where that is 0, since nobody has said, the one that it was known to have.
func (d *CachedDirectory) renew(id string, became State) {
	d.mu.Lock()
	defer d.mu.Unlock()
	was, known := d.tenants.Get(id)
	begun := d.reads.begun[ByID(id)] != nil // as it was before, and so it will not be remembered
	d.drop(id)
	now := Tenant{id: id, state: became}
	if became == 0 && known {
		now = was.tenant
	}
	if refuses(now) {
		if evicted, full := d.tenants.Put(id, &knownTenant{tenant: now, refused: true}); full {
			evicted.gone = true
			d.stat.Evictions++
		}
	}
	if known || begun || refuses(now) {
		d.join(context.Background(), ByID(id), expired)
	}
}

// refuses reports whether check refuses handles of a tenant that is remembered as t.
func refuses(t Tenant) bool { return t.state == Suspended || t.state == Deleted }

// forgetAll is forget for all tenants, but that what may be returned as stale still may.
func (d *CachedDirectory) forgetAll() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.forgets++
	d.dropped = d.forgets
	for f := range d.flying {
		f.forget("")
	}
}

// peek returns what is remembered of a tenant, whatever its state, without waiting for the registry.
func (d *CachedDirectory) peek(id string) (Tenant, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	known, ok := d.tenants.Get(id)
	if !ok {
		return Tenant{}, false
	}
	now := time.Now()
	how := d.freshness(known.since, now)
	if how < fresh && !now.Before(d.retry) {
		d.join(context.Background(), ByID(id), how) // nobody waits for it: handles of it are in use, and perhaps nobody looks it up
	}
	return known.tenant, how == fresh || how == stale && d.failing || known.refused
}

// check refuses a handle of which it is remembered that its tenant was suspended or deleted since it was made. It is
// Pool.check.
func (d *CachedDirectory) check(t Tenant) error {
	known, ok := d.peek(t.id)
	if !ok || !refuses(known) {
		return nil
	}
	_, err := answer(ByID(t.id), known)
	return err
}
