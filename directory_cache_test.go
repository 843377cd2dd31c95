package pgtenancy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// fakeRegistry is a registry in memory that counts and, where asked to, holds the queries.
type fakeRegistry struct {
	mu      sync.Mutex
	tenants map[string]Tenant
	domains map[string]string // tenants' IDs
	err     error
	broken  map[string]error // what is wrong with a tenant's row
	queries int
	most    int           // keys in one of them
	hold    chan struct{} // queries that have read wait for it
	ctx     context.Context
}

func newFakeRegistry(ids ...string) *fakeRegistry {
	f := &fakeRegistry{tenants: map[string]Tenant{}, domains: map[string]string{}}
	for _, id := range ids {
		f.set(id, Active, 0)
	}
	return f
}

func (f *fakeRegistry) set(id string, state State, version int64) {
	t, err := NewTenant(TenantInfo{ID: id, State: state, Version: version})
	if err != nil {
		panic(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tenants[id] = t
}

func (f *fakeRegistry) remove(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.tenants, id)
}

// fail makes all queries fail from now on, or none.
func (f *fakeRegistry) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

// give makes a domain a tenant's, or nobody's.
func (f *fakeRegistry) give(domain, id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.domains[domain] = id
}

// holdQueries holds what is read from now on until release is called.
func (f *fakeRegistry) holdQueries() (release func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	hold := make(chan struct{})
	f.hold = hold
	return func() {
		f.mu.Lock()
		f.hold = nil
		f.mu.Unlock()
		close(hold)
	}
}

func (f *fakeRegistry) query(ctx context.Context, keys []Key) (map[Key]reading, error) {
	f.mu.Lock()
	f.queries++
	f.most = max(f.most, len(keys))
	f.ctx = ctx
	readings := map[Key]reading{}
	for _, k := range keys {
		id := k.id
		if k.domain != "" {
			id = f.domains[k.domain]
		}
		if t, ok := f.tenants[id]; ok {
			readings[k] = reading{t, f.broken[id]}
		}
	}
	err, hold := f.err, f.hold
	f.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if err != nil {
		return nil, err
	}
	return readings, nil
}

// directory returns a directory of the registry, with the defaults but for what is configured.
func (f *fakeRegistry) directory(t testing.TB, cfg DirectoryConfig) *CachedDirectory {
	t.Helper()
	cfg, err := cfg.withDefaults("DirectoryConfig")
	if err != nil {
		t.Fatal(err)
	}
	return newDirectory(cfg, f.query)
}

// count returns how many queries there were since the last call.
func (f *fakeRegistry) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.queries
	f.queries = 0
	return n
}

// expectQueries checks how many queries there were since the last call.
func (f *fakeRegistry) expectQueries(t *testing.T, want int, reason string) {
	t.Helper()
	if n := f.count(); n != want {
		t.Errorf("%d queries, want %d: %s", n, want, reason)
	}
}

// expect checks what Lookup says: want is an error or nil.
func expectLookup(t *testing.T, d *CachedDirectory, k Key, want error) Tenant {
	t.Helper()
	found, err := d.Lookup(t.Context(), k)
	if !errors.Is(err, want) || want == nil && found.state != Active || want != nil && found != (Tenant{}) {
		t.Errorf("Lookup(%v) = %v, %v, want %v", k, found, err, want)
	}
	return found
}

func TestCachedDirectoryExpires(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		k    Key
		want error
		ttl  time.Duration
	}{
		{"active", ByID("acme"), nil, time.Minute},
		{"active, by domain", ByDomain("acme.example"), nil, time.Minute},
		{"suspended", ByID("late"), ErrTenantSuspended, time.Minute},
		{"suspended, by domain", ByDomain("late.example"), ErrTenantSuspended, time.Minute},
		{"provisioning", ByID("young"), ErrTenantNotFound, 5 * time.Second},
		{"provisioning, by domain", ByDomain("young.example"), ErrTenantNotFound, 5 * time.Second},
		{"deleted", ByID("dead"), ErrTenantNotFound, 5 * time.Second},
		{"missing", ByID("nobody"), ErrTenantNotFound, 5 * time.Second},
		{"missing, by domain", ByDomain("nobody.example"), ErrTenantNotFound, 5 * time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				f := newFakeRegistry("acme")
				f.set("late", Suspended, 0)
				f.set("young", Provisioning, 0)
				f.set("dead", Deleted, 0)
				for _, id := range []string{"acme", "late", "young"} {
					f.give(id+".example", id)
				}
				d := f.directory(t, DirectoryConfig{Capacity: 10})
				expectLookup(t, d, tt.k, tt.want)
				time.Sleep(tt.ttl - time.Nanosecond)
				expectLookup(t, d, tt.k, tt.want)
				f.expectQueries(t, 1, "it is remembered")
				time.Sleep(time.Nanosecond)
				expectLookup(t, d, tt.k, tt.want)
				f.expectQueries(t, 1, "it has expired")
			})
		})
	}
}

func TestCachedDirectoryKeysShareTenant(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFakeRegistry("acme")
		f.give("a.example", "acme")
		f.give("b.example", "acme")
		d := f.directory(t, DirectoryConfig{Capacity: 10})
		expectLookup(t, d, ByDomain("a.example"), nil)
		expectLookup(t, d, ByID("acme"), nil)
		f.expectQueries(t, 1, "the row that the domain led to has all of the tenant")

		f.set("acme", Suspended, 1)
		time.Sleep(30 * time.Second)
		expectLookup(t, d, ByDomain("b.example"), ErrTenantSuspended)
		expectLookup(t, d, ByDomain("a.example"), ErrTenantSuspended)
		expectLookup(t, d, ByID("acme"), ErrTenantSuspended)
		f.expectQueries(t, 1, "what is newest of the tenant counts for all of its keys")

		f.give("a.example", "")
		time.Sleep(30 * time.Second)
		expectLookup(t, d, ByDomain("a.example"), ErrTenantNotFound)
		f.expectQueries(t, 1, "that a domain is the tenant's was read a minute ago, whenever the tenant was")
	})
}

func TestCachedDirectoryDoesNotRememberFailure(t *testing.T) {
	t.Parallel()
	f := newFakeRegistry("acme")
	f.err = errors.New("connection refused")
	d := f.directory(t, DirectoryConfig{Capacity: 10})
	for range 2 {
		expectLookup(t, d, ByID("acme"), f.err)
	}
	f.expectQueries(t, 2, "a failure is not remembered")
	f.err = nil
	expectLookup(t, d, ByID("acme"), nil)
}

func TestCachedDirectoryMalformedKeys(t *testing.T) {
	t.Parallel()
	f := newFakeRegistry("acme")
	d := f.directory(t, DirectoryConfig{Capacity: 10})
	for _, k := range []Key{{}, ByID("ACME"), ByID("a\x00"), ByDomain("a..b"), ByDomain("127.0.0.1"), ByDomain("a\x00.example")} {
		expectLookup(t, d, k, ErrTenantNotFound)
	}
	f.expectQueries(t, 0, "no tenant can have such a key")
}

func TestCachedDirectorySingleFlight(t *testing.T) {
	t.Parallel()
	for _, k := range []Key{ByID("acme"), ByDomain("acme.example"), ByID("nobody")} {
		synctest.Test(t, func(t *testing.T) {
			f := newFakeRegistry("acme")
			f.give("acme.example", "acme")
			d := f.directory(t, DirectoryConfig{Capacity: 10})
			release := f.holdQueries()
			var want error
			if k == ByID("nobody") {
				want = ErrTenantNotFound
			}

			// The first caller, whose query it is, goes away, and so does another one.
			ctx, cancel := context.WithCancel(t.Context())
			gone := make(chan error, 2)
			for range 2 {
				go func() {
					_, err := d.Lookup(ctx, k)
					gone <- err
				}()
				synctest.Wait()
			}
			var wg sync.WaitGroup
			for range 100 {
				wg.Go(func() { expectLookup(t, d, k, want) })
			}
			synctest.Wait()
			cancel()
			for range 2 {
				if err := <-gone; !errors.Is(err, context.Canceled) {
					t.Errorf("a caller whose context was cancelled got %v", err)
				}
			}
			release()
			wg.Wait()
			f.expectQueries(t, 1, "102 callers of "+k.String())
		})
	}
}

func TestCachedDirectoryBoundsQuery(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFakeRegistry("acme")
		d := f.directory(t, DirectoryConfig{Capacity: 10})
		defer f.holdQueries()()
		type key struct{}
		began := time.Now()
		_, err := d.Lookup(context.WithValue(t.Context(), key{}, "trace"), ByID("acme"))
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != 5*time.Second {
			t.Errorf("got %v after %v", err, time.Since(began))
		}
		if f.ctx.Value(key{}) != "trace" {
			t.Error("the query's context does not have the caller's values")
		}
	})
}

func TestCachedDirectoryForget(t *testing.T) {
	t.Parallel()
	f := newFakeRegistry("acme", "globex")
	f.give("a.example", "acme")
	f.give("b.example", "acme")
	f.give("g.example", "globex")
	d := f.directory(t, DirectoryConfig{Capacity: 10})
	all := map[Key]error{
		ByID("acme"): nil, ByDomain("a.example"): nil, ByDomain("b.example"): nil,
		ByID("globex"): nil, ByDomain("g.example"): nil,
		ByID("nobody"): ErrTenantNotFound, ByID("new"): ErrTenantNotFound, ByDomain("new.example"): ErrTenantNotFound,
	}
	for k, want := range all {
		expectLookup(t, d, k, want)
	}

	f.set("acme", Suspended, 0)
	f.give("b.example", "globex")
	f.queries = 0
	d.forget("acme")
	expectLookup(t, d, ByID("acme"), ErrTenantSuspended)
	expectLookup(t, d, ByDomain("a.example"), ErrTenantSuspended)
	if got := expectLookup(t, d, ByDomain("b.example"), nil); got.id != "globex" {
		t.Errorf("the domain that was given away leads to %q", got.id)
	}
	f.expectQueries(t, 3, "the tenant and its domains were forgotten")
	expectLookup(t, d, ByID("globex"), nil)
	expectLookup(t, d, ByDomain("g.example"), nil)
	expectLookup(t, d, ByID("nobody"), ErrTenantNotFound)
	f.expectQueries(t, 0, "other tenants are remembered")

	f.set("new", Active, 0)
	f.give("new.example", "new")
	d.forget("new")
	expectLookup(t, d, ByID("new"), nil)
	expectLookup(t, d, ByDomain("new.example"), nil)
	f.expectQueries(t, 2, "that there was no such tenant was forgotten")
}

// A reading that began before the registry was changed and that ends after forget must not be remembered, and must not
// reach callers that come after it.
func TestCachedDirectoryForgetsFlights(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name          string
		before, after func(*fakeRegistry)
		k             Key
		old, want     error
	}{
		{
			name:   "suspended",
			before: func(f *fakeRegistry) { f.set("acme", Active, 0) },
			after:  func(f *fakeRegistry) { f.set("acme", Suspended, 0) },
			k:      ByID("acme"), want: ErrTenantSuspended,
		},
		{
			name: "suspended, by domain",
			before: func(f *fakeRegistry) {
				f.set("acme", Active, 0)
				f.give("a.example", "acme")
			},
			after: func(f *fakeRegistry) { f.set("acme", Suspended, 0) },
			k:     ByDomain("a.example"), want: ErrTenantSuspended,
		},
		{
			name:   "provisioned",
			before: func(*fakeRegistry) {},
			after:  func(f *fakeRegistry) { f.set("acme", Active, 0) },
			k:      ByID("acme"), old: ErrTenantNotFound,
		},
		{
			name:   "provisioned, by domain",
			before: func(*fakeRegistry) {},
			after: func(f *fakeRegistry) {
				f.set("acme", Active, 0)
				f.give("a.example", "acme")
			},
			k: ByDomain("a.example"), old: ErrTenantNotFound,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				f := newFakeRegistry()
				tt.before(f)
				d := f.directory(t, DirectoryConfig{Capacity: 10})
				release := f.holdQueries()
				var wg sync.WaitGroup
				wg.Go(func() { expectLookup(t, d, tt.k, tt.old) })
				synctest.Wait() // it has read the old state

				tt.after(f)
				d.forget("acme")
				wg.Go(func() { expectLookup(t, d, tt.k, tt.want) })
				synctest.Wait()
				f.expectQueries(t, 2, "a caller after forget does not wait for what was read before")
				release()
				wg.Wait()
				expectLookup(t, d, tt.k, tt.want)
				f.expectQueries(t, 0, "the newer reading is remembered")
			})
		})
		t.Run(tt.name+", nobody after it", func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				f := newFakeRegistry()
				tt.before(f)
				d := f.directory(t, DirectoryConfig{Capacity: 10})
				release := f.holdQueries()
				var wg sync.WaitGroup
				wg.Go(func() { expectLookup(t, d, tt.k, tt.old) })
				synctest.Wait()
				tt.after(f)
				d.forget("acme")
				d.forget("globex")
				release()
				wg.Wait()
				expectLookup(t, d, tt.k, tt.want)
			})
		})
	}
	t.Run("another tenant", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			f := newFakeRegistry("acme")
			f.give("a.example", "acme")
			d := f.directory(t, DirectoryConfig{Capacity: 10})
			release := f.holdQueries()
			var wg sync.WaitGroup
			wg.Go(func() { expectLookup(t, d, ByDomain("a.example"), nil) })
			synctest.Wait()
			d.forget("globex")
			release()
			wg.Wait()
			expectLookup(t, d, ByDomain("a.example"), nil)
			f.expectQueries(t, 1, "forgetting one tenant does not keep others from being remembered")
		})
	})
}

// Whoever asks after a change was made and forgotten sees it, whatever goes on at the same time.
func TestCachedDirectoryConcurrently(t *testing.T) {
	t.Parallel()
	const tenants, changes = 4, 500
	f := newFakeRegistry()
	d := f.directory(t, DirectoryConfig{Capacity: 3}) // too few, so that some are evicted
	var published [tenants]atomic.Int64
	for i := range tenants {
		f.set(fmt.Sprint("t", i), Active, 0)
		f.give(fmt.Sprintf("t%d.example", i), fmt.Sprint("t", i))
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var readers, writers sync.WaitGroup
	for i := range tenants {
		writers.Go(func() {
			for v := int64(1); v <= changes; v++ {
				f.set(fmt.Sprint("t", i), Active, v)
				d.forget(fmt.Sprint("t", i))
				published[i].Store(v)
				time.Sleep(time.Duration(rand.IntN(100)) * time.Microsecond)
			}
		})
	}
	for range 8 {
		readers.Go(func() {
			for ctx.Err() == nil {
				i := rand.IntN(tenants)
				k := ByID(fmt.Sprint("t", i))
				if rand.IntN(2) == 0 {
					k = ByDomain(fmt.Sprintf("t%d.example", i))
				}
				least := published[i].Load()
				got, err := d.Lookup(context.Background(), k)
				if err != nil || got.version < least {
					t.Errorf("Lookup(%v) = version %d, %v, want %d or later", k, got.version, err, least)
					return
				}
				d.check(got)
			}
		})
	}
	writers.Wait()
	cancel()
	readers.Wait()
}

func TestCachedDirectoryCapacity(t *testing.T) {
	t.Parallel()
	synctest.Test(t, testCachedDirectoryCapacity) // which has to wait for its turn
}

func testCachedDirectoryCapacity(t *testing.T) {
	f := newFakeRegistry("a", "b", "c")
	for _, id := range []string{"a", "b", "c"} {
		f.give(id+".example", id)
	}
	d := f.directory(t, DirectoryConfig{Capacity: 2})
	expectLookup(t, d, ByDomain("a.example"), nil)
	expectLookup(t, d, ByID("b"), nil)
	for i := range 1000 {
		expectLookup(t, d, ByID(fmt.Sprint("scan", i)), ErrTenantNotFound)
		expectLookup(t, d, ByDomain(fmt.Sprintf("scan%d.example", i)), ErrTenantNotFound)
	}
	f.expectQueries(t, 2002, "a scan")
	expectLookup(t, d, ByDomain("a.example"), nil)
	expectLookup(t, d, ByID("b"), nil)
	expectLookup(t, d, ByDomain("scan999.example"), ErrTenantNotFound)
	f.expectQueries(t, 0, "a scan pushes out no tenant")
	if n := d.missing.Len(); n > 2 {
		t.Errorf("%d keys without a tenant are remembered, want 2 at most", n)
	}

	expectLookup(t, d, ByID("c"), nil) // for a, which was asked for the longest ago
	f.expectQueries(t, 1, "another tenant")
	f.give("a.example", "")
	d.forget("a")
	expectLookup(t, d, ByID("a"), nil)
	expectLookup(t, d, ByDomain("a.example"), ErrTenantNotFound)
	f.expectQueries(t, 2, "forget reaches the domains of a tenant that was evicted")
}

func TestCachedDirectoryCheck(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFakeRegistry("acme")
		f.give("a.example", "acme")
		d := f.directory(t, DirectoryConfig{Capacity: 10})
		check := func(handle Tenant, want error, reason string) {
			t.Helper()
			if err := d.check(handle); !errors.Is(err, want) {
				t.Errorf("check: %v, want %v: %s", err, want, reason)
			}
		}
		handle := expectLookup(t, d, ByID("acme"), nil)
		check(handle, nil, "it is active")
		f.set("acme", Suspended, 0)
		check(handle, nil, "nobody knows yet")
		d.forget("acme")
		check(handle, nil, "nothing is known")
		expectLookup(t, d, ByDomain("a.example"), ErrTenantSuspended)
		check(handle, ErrTenantSuspended, "it was seen to be suspended")
		f.set("acme", Deleted, 0)
		d.forget("acme")
		expectLookup(t, d, ByID("acme"), ErrTenantNotFound)
		check(handle, ErrTenantNotFound, "it was seen to be deleted")
		f.expectQueries(t, 3, "check asks nobody")
		time.Sleep(5 * time.Second)
		check(handle, nil, "what was known has expired")
		f.set("acme", Provisioning, 0)
		expectLookup(t, d, ByID("acme"), ErrTenantNotFound)
		check(handle, nil, "what provisions a tenant works with it before it is active")

		own, err := NewTenant(TenantInfo{ID: "own"})
		if err != nil {
			t.Fatal(err)
		}
		expectLookup(t, d, ByID("own"), ErrTenantNotFound)
		check(own, nil, "a tenant of the service's own may be in no registry")
	})
}

func TestCachedDirectoryForgetAll(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFakeRegistry("acme", "globex")
		f.give("a.example", "acme")
		d := f.directory(t, DirectoryConfig{})
		keys := []Key{ByID("acme"), ByDomain("a.example"), ByID("globex"), ByID("new"), ByDomain("new.example")}
		for _, k := range keys {
			_, _ = d.Lookup(t.Context(), k)
		}
		f.expectQueries(t, 5, "nothing was known")
		release := f.holdQueries()
		var wg sync.WaitGroup
		wg.Go(func() { expectLookup(t, d, ByID("late"), ErrTenantNotFound) })
		synctest.Wait() // it was read before

		f.set("acme", Suspended, 0)
		f.set("new", Active, 0)
		f.set("late", Active, 0)
		f.give("new.example", "new")
		handle := expectRemembered(t, d, "acme")
		d.forgetAll()
		if _, ok := d.peek("acme"); ok || d.check(handle) != nil {
			t.Error("the pool still counts on what was forgotten")
		}
		release()
		wg.Wait()
		synctest.Wait() // the tenant whose handle was checked is read anew
		f.count()
		expectLookup(t, d, ByID("acme"), ErrTenantSuspended)
		expectLookup(t, d, ByDomain("a.example"), ErrTenantSuspended)
		expectLookup(t, d, ByID("globex"), nil)
		expectLookup(t, d, ByID("new"), nil)
		expectLookup(t, d, ByDomain("new.example"), nil)
		expectLookup(t, d, ByID("late"), nil)
		f.expectQueries(t, 5, "all was forgotten, and what was being read is not remembered")
		for _, k := range keys {
			_, _ = d.Lookup(t.Context(), k)
		}
		f.expectQueries(t, 0, "what was read since is remembered")
	})
}

// What is read before a forgetAll and arrives after it does not replace what was read since.
func TestCachedDirectoryForgetAllOutlastsFlight(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFakeRegistry("acme")
		d := f.directory(t, DirectoryConfig{StaleFor: time.Hour})
		release := f.holdQueries()
		var wg sync.WaitGroup
		wg.Go(func() { expectLookup(t, d, ByID("acme"), nil) })
		synctest.Wait()
		f.set("acme", Suspended, 0)
		d.forgetAll()
		f.mu.Lock()
		f.hold = nil // for those that come now
		f.mu.Unlock()
		expectLookup(t, d, ByID("acme"), ErrTenantSuspended)
		release()
		wg.Wait()
		f.fail(errRegistry)
		f.count()
		expectLookup(t, d, ByID("acme"), ErrTenantSuspended)
		f.expectQueries(t, 0, "what was read since is remembered")
		time.Sleep(time.Minute)
		expectLookup(t, d, ByID("acme"), ErrTenantSuspended)
	})
}

// The same of a domain that was nobody's when it was read, and of the tenant that it was given to.
func TestCachedDirectoryForgetOutlastsFlight(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFakeRegistry("acme")
		d := f.directory(t, DirectoryConfig{})
		release := f.holdQueries()
		var wg sync.WaitGroup
		wg.Go(func() { expectLookup(t, d, ByDomain("a.example"), ErrTenantNotFound) })
		synctest.Wait()
		f.give("a.example", "acme")
		d.forget("acme")
		f.mu.Lock()
		f.hold = nil
		f.mu.Unlock()
		expectLookup(t, d, ByDomain("a.example"), nil)
		release()
		wg.Wait()
		f.count()
		expectLookup(t, d, ByDomain("a.example"), nil)
		f.expectQueries(t, 0, "what was read since is remembered")
	})
}

func expectRemembered(t *testing.T, d *CachedDirectory, id string) Tenant {
	t.Helper()
	known, ok := d.peek(id)
	if !ok {
		t.Errorf("%s is not remembered", id)
	}
	return known
}

func TestCachedDirectoryStale(t *testing.T) {
	t.Parallel()
	// What it says while it cannot read, of a tenant that is remembered in this state.
	states := []struct {
		state State
		want  error // nil where a tenant is returned, errRegistry where the failure is
	}{{Active, nil}, {Suspended, ErrTenantSuspended}, {Deleted, ErrTenantNotFound}, {Provisioning, errRegistry}}
	for _, s := range states {
		for _, k := range []Key{ByID("acme"), ByDomain("a.example")} {
			t.Run(fmt.Sprint(s.state, " ", k), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					f := newFakeRegistry()
					f.set("acme", s.state, 0)
					f.give("a.example", "acme")
					d := f.directory(t, DirectoryConfig{TTL: time.Minute, NegativeTTL: time.Minute, StaleFor: time.Hour})
					first := s.want
					if s.state == Provisioning {
						first = ErrTenantNotFound
					}
					expectLookup(t, d, k, first)
					f.fail(errRegistry)
					time.Sleep(time.Minute - time.Nanosecond)
					expectLookup(t, d, k, first)
					f.expectQueries(t, 1, "it is fresh")
					time.Sleep(time.Nanosecond)
					expectLookup(t, d, k, s.want)
					f.expectQueries(t, 1, "it has expired, and the registry is asked")
					expectLookup(t, d, ByID("nobody"), errRegistry)
					d.forgetAll() // as when it begins to listen
					expectLookup(t, d, k, s.want)
					time.Sleep(time.Hour - time.Nanosecond)
					expectLookup(t, d, k, s.want)
					time.Sleep(time.Nanosecond)
					expectLookup(t, d, k, errRegistry)
					f.fail(nil)
					expectLookup(t, d, k, first)
				})
			})
		}
	}

	t.Run("forgotten", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			f := newFakeRegistry("acme", "globex")
			d := f.directory(t, DirectoryConfig{StaleFor: time.Hour})
			expectLookup(t, d, ByID("acme"), nil)
			expectLookup(t, d, ByID("globex"), nil)
			f.fail(errRegistry)
			time.Sleep(time.Minute)
			d.forget("acme")
			expectLookup(t, d, ByID("acme"), errRegistry) // it was changed, nobody knows how
			expectLookup(t, d, ByID("globex"), nil)
			f.fail(nil)
			f.remove("globex")
			time.Sleep(time.Second)
			expectLookup(t, d, ByID("globex"), nil) // in the background it is read that it is gone
			synctest.Wait()
			expectLookup(t, d, ByID("globex"), ErrTenantNotFound)
			f.fail(errRegistry)
			time.Sleep(6 * time.Second)
			expectLookup(t, d, ByID("globex"), errRegistry)
		})
	})

	// Which errors say that the registry cannot be read is TestUnreadable's.
	t.Run("other failures", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			f := newFakeRegistry("acme")
			d := f.directory(t, DirectoryConfig{StaleFor: time.Hour})
			expectLookup(t, d, ByID("acme"), nil)
			time.Sleep(time.Minute)
			f.fail(ErrRegistryOutdated)
			expectLookup(t, d, ByID("acme"), ErrRegistryOutdated)
			f.fail(nil)
			f.broken = map[string]error{"acme": errors.New("a row that makes no tenant")}
			expectLookup(t, d, ByID("acme"), f.broken["acme"])
		})
	})

	t.Run("off", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			f := newFakeRegistry("acme")
			d := f.directory(t, DirectoryConfig{})
			expectLookup(t, d, ByID("acme"), nil)
			time.Sleep(time.Minute)
			f.fail(errRegistry)
			expectLookup(t, d, ByID("acme"), errRegistry)
			expectLookup(t, d, ByID("acme"), errRegistry)
			f.expectQueries(t, 3, "a failure is not remembered")
		})
	})
}

// While the database does not answer, a request waits for it a second at most, one query at a time asks for it, and what it
// answers at last counts.
func TestCachedDirectoryStaleDoesNotWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFakeRegistry("acme", "globex")
		f.set("late", Suspended, 0)
		d := f.directory(t, DirectoryConfig{StaleFor: time.Hour})
		ids := []string{"acme", "globex"}
		for _, id := range ids {
			expectLookup(t, d, ByID(id), nil)
		}
		expectLookup(t, d, ByID("late"), ErrTenantSuspended)
		late := expectRemembered(t, d, "late")
		time.Sleep(time.Minute)
		release := f.holdQueries()
		f.count()
		began := time.Now()
		var wg sync.WaitGroup
		for range 20 {
			for _, id := range ids {
				wg.Go(func() { expectLookup(t, d, ByID(id), nil) })
			}
		}
		wg.Wait()
		if took := time.Since(began); took != time.Second {
			t.Errorf("waited %v for a database that does not answer", took)
		}
		f.expectQueries(t, 2, "one for each tenant")
		if err := d.check(late); !errors.Is(err, ErrTenantSuspended) {
			t.Errorf("the pool takes a tenant that is known to be suspended: %v", err)
		}

		f.set("acme", Suspended, 0)
		began = time.Now()
		for range 600 {
			time.Sleep(100 * time.Millisecond)
			before := time.Now()
			for _, id := range ids {
				expectLookup(t, d, ByID(id), nil)
			}
			if took := time.Since(before); took != 0 {
				t.Fatalf("waited %v though it was known that the database does not answer", took)
			}
		}
		if n := f.count(); n < 9 || n > 11 { // each for 5 seconds, and a pause of one
			t.Errorf("%d queries in %v", n, time.Since(began))
		}

		release()
		time.Sleep(7 * time.Second)
		expectLookup(t, d, ByID("globex"), nil) // asks in the background, where that was not done just now
		synctest.Wait()
		expectLookup(t, d, ByID("acme"), ErrTenantSuspended)
		if s := d.Stat(); s.Stale < 1200 {
			t.Errorf("stat is %+v", s)
		}
	})
}

// errRegistry says that there is no connection.
var errRegistry = fmt.Errorf("dial: %w", &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")})

func TestUnreadable(t *testing.T) {
	t.Parallel()
	code := func(c string) error { return fmt.Errorf("x: %w", &pgconn.PgError{Code: c}) }
	_, notConnected := pgconn.Connect(t.Context(), "postgres://nobody@127.0.0.1:1/nothing?connect_timeout=5")
	tests := []struct {
		name string
		err  error
		want bool
	}{
		{"no connection", notConnected, true},
		{"network", errRegistry, true},
		{"deadline", fmt.Errorf("x: %w", context.DeadlineExceeded), true},
		{"end of file", fmt.Errorf("x: %w", io.ErrUnexpectedEOF), true},
		{"connection_failure", code("08006"), true},
		{"pooler", code("08P01"), true},
		{"too_many_connections", code("53300"), true},
		{"admin_shutdown", code("57P01"), true},
		{"crash_shutdown", code("57P02"), true},
		{"cannot_connect_now", code("57P03"), true},
		{"statement_timeout", code("57014"), true},
		{"lock_not_available", code("55P03"), true},
		{"io_error", code("58030"), true},
		{"insufficient_privilege", code("42501"), false},
		{"invalid_password", code("28P01"), false},
		{"no database", code("3D000"), false},
		{"outdated", fmt.Errorf("%w: %w", ErrRegistryOutdated, code("42P01")), false},
		{"not found", ErrTenantNotFound, false},
		{"pool closed", errors.New("closed pool"), false},
		{"no code", code(""), false},
	}
	for _, tt := range tests {
		if got := unreadable(tt.err); got != tt.want {
			t.Errorf("%s: unreadable(%v) = %t", tt.name, tt.err, got)
		}
	}
}

// What waits is read with few queries, each of a bounded size, of which few are under way.
func TestCachedDirectoryReadsManyAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const tenants = 5000
		f := newFakeRegistry()
		for i := range tenants {
			f.set(fmt.Sprint("t", i), Active, 0)
		}
		f.broken = map[string]error{"t7": errors.New("broken")}
		d := f.directory(t, DirectoryConfig{})
		release := f.holdQueries()
		var wg sync.WaitGroup
		for i := range tenants {
			id := fmt.Sprint("t", i)
			wg.Go(func() { expectLookup(t, d, ByID(id), f.broken[id]) })
		}
		synctest.Wait()
		f.expectQueries(t, 4, "the others wait for these")
		release()
		wg.Wait()
		if f.queries < 5 || f.queries > 9 || f.most != 1000 {
			t.Errorf("%d queries of up to %d keys", f.queries, f.most)
		}
	})
}

// What nobody waits for any more is not read, nor kept.
func TestCachedDirectoryCallersLeave(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFakeRegistry("acme")
		d := f.directory(t, DirectoryConfig{TTL: time.Second})
		expectLookup(t, d, ByID("acme"), nil)
		time.Sleep(time.Second)
		release := f.holdQueries()
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		lookup := func(ctx context.Context, id string, want error) {
			wg.Go(func() {
				if _, err := d.Lookup(ctx, ByID(id)); !errors.Is(err, want) {
					t.Errorf("Lookup(%s): %v, want %v", id, err, want)
				}
			})
		}
		for i := range 4 {
			lookup(t.Context(), fmt.Sprint("blocks", i), ErrTenantNotFound)
			synctest.Wait()
		}
		for i := range 1000 {
			lookup(ctx, fmt.Sprint("gone", i), context.Canceled)
		}
		lookup(ctx, "acme", context.Canceled)
		lookup(ctx, "stays", context.Canceled)
		lookup(t.Context(), "stays", ErrTenantNotFound)
		synctest.Wait()
		f.count()
		cancel()
		synctest.Wait()
		d.mu.Lock()
		if n := len(d.reads.first) + len(d.reads.again); n != 1 {
			t.Errorf("%d keys are kept for one caller", n)
		}
		d.mu.Unlock()
		f.most = 0
		release()
		wg.Wait()
		if n := f.count(); n != 1 || f.most != 1 {
			t.Errorf("%d queries of up to %d keys", n, f.most)
		}
	})
}

// Names that nobody has, from many callers at once, of whom some give up. A million of them make no difference but in time.
func TestCachedDirectoryScan(t *testing.T) { // not parallel: it looks at the memory
	synctest.Test(t, func(t *testing.T) {
		names, callers := 200_000, 500
		if testing.Short() {
			names, callers = 50_000, 100
		}
		f := newFakeRegistry("acme", "globex")
		for i := range 100 {
			f.set(fmt.Sprint("t", i), Active, 0)
		}
		d := f.directory(t, DirectoryConfig{TTL: time.Second}) // tenants are read again all the while
		before := heap()
		began := time.Now()
		var next atomic.Int64
		var scanners sync.WaitGroup
		for c := range callers {
			scanners.Go(func() {
				ctx := t.Context()
				for i := next.Add(1); i <= int64(names); i = next.Add(1) {
					k := ByID(fmt.Sprint("scan", i))
					if i%2 == 0 {
						k = ByDomain(fmt.Sprintf("scan%d.example", i))
					}
					if c%5 == 0 {
						short, cancel := context.WithTimeout(ctx, 3*time.Millisecond)
						if _, err := d.Lookup(short, k); !errors.Is(err, ErrTenantNotFound) && !errors.Is(err, context.DeadlineExceeded) {
							t.Errorf("Lookup(%v): %v", k, err)
						}
						cancel()
					} else if _, err := d.Lookup(ctx, k); !errors.Is(err, ErrTenantNotFound) {
						t.Errorf("Lookup(%v): %v", k, err)
					}
				}
			})
		}
		scanned := make(chan struct{})
		go func() { scanners.Wait(); close(scanned) }()
		known, longest := 0, time.Duration(0)
		for done := false; !done; {
			select {
			case <-scanned:
				done = true
			case <-time.After(7 * time.Millisecond):
			}
			asked := time.Now()
			expectLookup(t, d, ByID(fmt.Sprint("t", known%100)), nil) // the first hundred of them were never seen
			if known >= 100 && time.Since(asked) > 0 {
				t.Fatal("a tenant that was seen waits for the scan")
			}
			longest = max(longest, time.Since(asked))
			known++
			d.mu.Lock()
			if n := len(d.reads.first) + len(d.reads.begun); n > 2*callers {
				t.Errorf("%d keys are waited for by %d callers", n, callers)
			}
			d.mu.Unlock()
		}
		took := time.Since(began)
		if most := 100 + int(took/(10*time.Millisecond)) + 4 + int(took/time.Second+1)*100; f.queries > most {
			t.Errorf("%d queries in %v, want %d at most", f.queries, took, most)
		}
		if longest > 100*time.Millisecond {
			t.Errorf("a tenant that was not seen before waited %v", longest)
		}
		if s := d.Stat(); s.Negative > 10_000 || s.Evictions != 0 || int(s.Queries) != f.queries {
			t.Errorf("stat is %+v", s)
		}
		grown := heap() - before
		if grown > 10<<20 {
			t.Errorf("%d bytes are remembered of names that nobody has", grown)
		}
		t.Logf("%d names and %d lookups of tenants in %v: %d queries of up to %d keys; %d kB are kept",
			names, known, took, f.queries, f.most, grown>>10)
		runtime.KeepAlive(d)
	})
}

// heap returns how many bytes are in use.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func TestCachedDirectoryStat(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFakeRegistry("a", "b", "c")
		f.give("a.example", "a")
		f.set("late", Suspended, 0)
		d := f.directory(t, DirectoryConfig{Capacity: 2, TTL: time.Minute, StaleFor: time.Minute})
		for range 2 {
			expectLookup(t, d, ByID("a"), nil)
			expectLookup(t, d, ByDomain("a.example"), nil)
			expectLookup(t, d, ByID("late"), ErrTenantSuspended)
			expectLookup(t, d, ByID("nobody"), ErrTenantNotFound)
			expectLookup(t, d, ByID("No One"), ErrTenantNotFound)
		}
		expectLookup(t, d, ByID("b"), nil)
		f.fail(errRegistry)
		time.Sleep(time.Minute)
		expectLookup(t, d, ByID("b"), nil)
		expectLookup(t, d, ByID("b"), nil)
		d.notified("")
		d.notified("b") // which is read anew
		synctest.Wait()
		want := DirectoryStat{
			Hits: 3, NegativeHits: 3, Misses: 6, Stale: 2, Queries: 7, Failures: 2, Evictions: 1, Notifications: 2,
			Tenants: 1, Domains: 1, Negative: 1,
		}
		if got := d.Stat(); got != want {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
	})
}

// Whatever happens in whatever order, what is returned is no older than it may be.
func TestCachedDirectoryRandomly(t *testing.T) {
	t.Parallel()
	runs := 100
	if testing.Short() {
		runs = 20
	}
	for range runs {
		seed := rand.Uint64()
		synctest.Test(t, func(t *testing.T) { testCachedDirectoryRandomly(t, seed) })
		if t.Failed() {
			return
		}
	}
}

func testCachedDirectoryRandomly(t *testing.T, seed uint64) {
	const tenants = 4
	const ttl, negativeTTL, staleFor = 10 * time.Second, 2 * time.Second, 20 * time.Second
	r := rand.New(rand.NewPCG(seed, 0))
	f := newFakeRegistry()
	d := f.directory(t, DirectoryConfig{TTL: ttl, NegativeTTL: negativeTTL, StaleFor: staleFor, Capacity: 1 + r.IntN(6)})

	// What was true of each tenant since when, the zero Tenant where there was none; and when it was last forgotten.
	type truth struct {
		tenant Tenant
		from   time.Time
	}
	history := make([][]truth, tenants)
	forgotten := make([]time.Time, tenants)
	var dropped time.Time // when all were, as far as they are not returned as stale
	for i := range history {
		history[i] = []truth{{}}
	}
	failing, version := false, int64(0)
	for step := range 300 {
		i := r.IntN(tenants)
		id := fmt.Sprint("t", i)
		switch r.IntN(12) {
		case 0: // a change that nobody is told of
			version++
			f.set(id, []State{Active, Active, Suspended, Provisioning, Deleted}[r.IntN(5)], version)
			f.give(id+".example", id)
			history[i] = append(history[i], truth{f.tenants[id], time.Now()})
		case 1:
			f.remove(id)
			history[i] = append(history[i], truth{Tenant{}, time.Now()})
		case 2:
			d.forget(id)
			forgotten[i] = time.Now()
		case 3:
			if r.IntN(4) == 0 {
				d.forgetAll()
				dropped = time.Now()
			}
		case 4:
			if failing = r.IntN(2) == 0; failing {
				f.fail(errRegistry)
			} else {
				synctest.Wait() // or a reading in the background that has failed may be the last that the directory hears of
				f.fail(nil)
				expectLookup(t, d, ByID(fmt.Sprint("nobody", step)), ErrTenantNotFound) // the directory knows that it can
			}
		case 5, 6:
			time.Sleep(time.Duration(r.Int64N(int64(ttl / 2))))
		default:
			k := ByID(id)
			if r.IntN(2) == 0 {
				k = ByDomain(id + ".example")
			}
			got, err := d.Lookup(t.Context(), k)
			if errors.Is(err, errRegistry) {
				if !failing {
					t.Fatalf("seed %d, step %d: Lookup(%v): %v, though the registry can be read", seed, step, k, err)
				}
				continue
			}
			oldest := time.Now().Add(-ttl)
			if failing {
				oldest = oldest.Add(-staleFor)
			} else if dropped.After(oldest) {
				oldest = dropped
			}
			if forgotten[i].After(oldest) {
				oldest = forgotten[i]
			}
			possible := false
			for n, h := range history[i] {
				if n+1 < len(history[i]) && history[i][n+1].from.Before(oldest) {
					continue // it had ended by then
				}
				want, wantErr := answer(k, h.tenant)
				possible = possible || got == want && (err == nil) == (wantErr == nil) && (err == nil || err.Error() == wantErr.Error())
			}
			if !possible {
				t.Fatalf("seed %d, step %d: Lookup(%v) = %v version %d, %v, which was not so since %v; failing %t; history %v",
					seed, step, k, got, got.version, err, oldest, failing, history[i])
			}
		}
	}
}

// It tries again ever later, not all processes at once, and ends at once when it is told to.
func TestListenerBacksOff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		conns, err := pgxpool.ParseConfig("postgres://nobody@192.0.2.1/nothing?sslmode=disable")
		if err != nil {
			t.Fatal(err)
		}
		var dials []time.Time
		conns.ConnConfig.LookupFunc = func(_ context.Context, host string) ([]string, error) { return []string{host}, nil }
		conns.ConnConfig.DialFunc = func(context.Context, string, string) (net.Conn, error) {
			dials = append(dials, time.Now())
			return nil, errRegistry
		}
		f := newFakeRegistry()
		l := &listener{directory: f.directory(t, DirectoryConfig{}), conns: conns}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { l.run(ctx) })
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if err := l.directory.Stat().ListenErr; !errors.Is(err, errRegistry) {
			t.Errorf("stat says %v", err)
		}
		asked := time.Now()
		cancel()
		running.Wait()
		if took := time.Since(asked); took != 0 {
			t.Errorf("it ends after %v", took)
		}
		want, halves := 100*time.Millisecond, 0
		for i := 1; i < len(dials); i++ {
			gap := dials[i].Sub(dials[i-1])
			if gap < want/2 || gap > want {
				t.Errorf("attempt %d after %v, want %v to %v", i, gap, want/2, want)
			}
			if gap == want/2 || gap == want {
				halves++
			}
			want = min(2*want, 30*time.Second)
		}
		if n := len(dials); n < 20 || n > 60 || halves > n/2 {
			t.Errorf("%d attempts, %d of them without jitter", n, halves)
		}
	})
}

// Handles of a tenant that nobody looks up are refused all the same, and what that costs is bounded when it fails.
func TestCachedDirectoryRenews(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFakeRegistry("acme")
		d := f.directory(t, DirectoryConfig{})
		handle := expectLookup(t, d, ByID("acme"), nil)
		check := func(want error, reason string) {
			t.Helper()
			err := d.check(handle)
			synctest.Wait() // what it asks for in the background
			if !errors.Is(err, want) {
				t.Errorf("check: %v, want %v: %s", err, want, reason)
			}
		}
		f.set("acme", Suspended, 0)
		d.notified("acme")
		synctest.Wait()
		check(ErrTenantSuspended, "it was notified")
		release := f.holdQueries()
		d.notified("acme")
		check(ErrTenantSuspended, "it is being read anew")
		release()
		synctest.Wait()
		check(ErrTenantSuspended, "it was read anew")
		f.fail(errRegistry)
		d.notified("acme")
		synctest.Wait()
		check(ErrTenantSuspended, "it could not be read anew")
		f.fail(nil)
		f.set("acme", Active, 0)
		d.notified("acme")
		synctest.Wait()
		check(nil, "it is active again")
		f.set("acme", Suspended, 0)
		d.notified("acme")
		synctest.Wait()
		check(ErrTenantSuspended, "it was suspended again")
		f.set("acme", Active, 0)
		release = f.holdQueries()
		d.renew("acme", Active)
		check(nil, "this process has resumed it")
		d.renew("acme", Suspended)
		check(ErrTenantSuspended, "this process has suspended it")
		release()
		synctest.Wait()
		check(nil, "it was resumed elsewhere")
		f.set("acme", Suspended, 0)
		d.notified("acme")
		synctest.Wait()
		f.set("acme", Active, 0)
		time.Sleep(time.Minute)
		check(nil, "what was known has expired")
		check(nil, "it is active again")
		f.set("acme", Suspended, 0)
		time.Sleep(time.Minute)
		check(nil, "nobody knows yet")
		check(ErrTenantSuspended, "it was read after its TTL")
		f.expectQueries(t, 11, "the lookup, the notifications, what this process has changed, and after each TTL")

		time.Sleep(time.Minute)
		for _, err := range []error{errRegistry, errors.New("permission denied")} {
			f.fail(err)
			for range 100 {
				check(nil, "nothing is known")
				time.Sleep(100 * time.Millisecond)
			}
			if n := f.count(); n < 9 || n > 11 {
				t.Errorf("%d queries that fail in 10 seconds", n)
			}
		}
	})
}

func TestBackground(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var b background
		var ended atomic.Int64
		for range 2 {
			b.run(func(ctx context.Context) {
				<-ctx.Done()
				time.Sleep(time.Second)
				ended.Add(1)
			})
			synctest.Wait()
		}
		b.close()
		if n := ended.Load(); n != 2 {
			t.Errorf("close waited for %d of 2", n)
		}
		b.run(func(context.Context) { ended.Add(1) })
		b.close()
		b.running.Wait()
		synctest.Wait()
		if n := ended.Load(); n != 2 {
			t.Errorf("%d ran, one of them after close", n)
		}
	})
}

func BenchmarkDirectoryHit(b *testing.B) {
	f := newFakeRegistry("acme")
	f.give("acme.example", "acme")
	d := f.directory(b, DirectoryConfig{})
	for _, k := range []Key{ByID("acme"), ByDomain("acme.example"), ByID("nobody")} {
		b.Run(k.String(), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, _ = d.Lookup(b.Context(), k)
			}
		})
	}
}
