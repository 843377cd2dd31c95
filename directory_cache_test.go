package pgtenancy

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// fakeRegistry is a registry in memory that counts and, where asked to, holds the queries.
type fakeRegistry struct {
	mu      sync.Mutex
	tenants map[string]Tenant
	domains map[string]string // tenants' IDs
	err     error
	queries int
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

func (f *fakeRegistry) query(ctx context.Context, k Key) (Tenant, error) {
	f.mu.Lock()
	f.queries++
	f.ctx = ctx
	id := k.id
	if k.domain != "" {
		id = f.domains[k.domain]
	}
	t, ok := f.tenants[id]
	err, hold := f.err, f.hold
	f.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return Tenant{}, ctx.Err()
		}
	}
	if err != nil {
		return Tenant{}, err
	}
	if !ok {
		return Tenant{}, ErrTenantNotFound
	}
	return t, nil
}

// expectQueries checks how many queries there were since the last call.
func (f *fakeRegistry) expectQueries(t *testing.T, want int, reason string) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.queries != want {
		t.Errorf("%d queries, want %d: %s", f.queries, want, reason)
	}
	f.queries = 0
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
				d := newDirectory(10, f.query)
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
		d := newDirectory(10, f.query)
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
	d := newDirectory(10, f.query)
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
	d := newDirectory(10, f.query)
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
			d := newDirectory(10, f.query)
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
		d := newDirectory(10, f.query)
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
	d := newDirectory(10, f.query)
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
				d := newDirectory(10, f.query)
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
				d := newDirectory(10, f.query)
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
			d := newDirectory(10, f.query)
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
	d := newDirectory(3, f.query) // too few, so that some are evicted
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
	f := newFakeRegistry("a", "b", "c")
	for _, id := range []string{"a", "b", "c"} {
		f.give(id+".example", id)
	}
	d := newDirectory(2, f.query)
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
		d := newDirectory(10, f.query)
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
