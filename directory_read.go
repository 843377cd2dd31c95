package pgtenancy

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// How a CachedDirectory reads the registry. Its documentation tells these.
const (
	lookupTimeout = 5 * time.Second
	mostReads     = 4                     // at a time
	mostKeys      = 1000                  // of one query
	missInterval  = 10 * time.Millisecond // between queries for what was never seen, once missBurst is used up
	missBurst     = 100
	mostForgotten = 100 // IDs that a query keeps in mind, before it takes all for forgotten
)

// registryQuery reads keys from the registry, past the cache. A key without a tenant has no reading, one whose tenant is of
// whatever state has it.
type registryQuery func(context.Context, []Key) (map[Key]reading, error)

// reading is a tenant, or why its row makes none.
type reading struct {
	tenant Tenant
	err    error
}

// reads are the readings of keys that callers wait for. The directory's mu guards them.
type reads struct {
	again, first map[Key]*call // that have not begun, of what was seen before and what was not
	begun        map[Key]*call // of each key the last that is under way
	paid         time.Time     // until when the misses that there were are paid for, at one each missInterval
	waking       bool          // a timer will launch
}

func newReads() reads {
	return reads{again: map[Key]*call{}, first: map[Key]*call{}, begun: map[Key]*call{}}
}

// call is the reading of one key, for all callers who wait for it.
type call struct {
	ctx     context.Context // of the first of them
	callers int
	forgets uint64        // of the directory, when it began
	done    chan struct{} // closed when the rest is set
	tenant  Tenant        // the zero Tenant where there is none
	err     error
}

// flight is one query that is under way.
type flight struct {
	calls     map[Key]*call
	began     time.Time
	forgets   uint64   // of the directory, then
	forgotten []string // IDs that were forgotten since, "" for all
}

// forget notes that a tenant was forgotten, or with "" all were.
func (f *flight) forget(id string) {
	if len(f.forgotten) > mostForgotten {
		f.forgotten = f.forgotten[:0]
		id = ""
	}
	f.forgotten = append(f.forgotten, id)
}

// forgot reports whether what was read of a tenant may be of before a change. It reaches those who asked before that, and
// nobody else. id is "" for a domain that was nobody's: any tenant may have been given it.
func (f *flight) forgot(id string) bool {
	if id == "" {
		return len(f.forgotten) > 0
	}
	return slices.Contains(f.forgotten, id) || slices.Contains(f.forgotten, "")
}

// join returns the reading of k that the caller may wait for. That began after the last forget, or has not begun. The caller
// holds mu.
func (d *CachedDirectory) join(ctx context.Context, k Key, how freshness) *call {
	if l := d.listener; l != nil {
		d.listener = nil
		l.pool.background.run(l.run)
	}
	r := &d.reads
	c := r.again[k]
	if c == nil {
		c = r.first[k]
	}
	if begun := r.begun[k]; c == nil && begun != nil && begun.forgets == d.forgets {
		c = begun
	}
	if c != nil {
		c.callers++
		return c
	}
	c = &call{ctx: ctx, callers: 1, done: make(chan struct{})}
	if how == unknown {
		r.first[k] = c
	} else {
		r.again[k] = c
	}
	d.launch()
	return c
}

// leave says that a caller waits no more. A reading that has not begun is not wanted then, where it was the last.
func (d *CachedDirectory) leave(k Key, c *call) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c.callers--
	if c.callers > 0 {
		return
	}
	for _, waiting := range []map[Key]*call{d.reads.again, d.reads.first} {
		if waiting[k] == c {
			delete(waiting, k)
		}
	}
}

// launch sends queries for what waits, as far as there may be any now. The caller holds mu.
func (d *CachedDirectory) launch() {
	r := &d.reads
	for len(d.flying) < mostReads {
		f := &flight{calls: make(map[Key]*call), began: time.Now(), forgets: d.forgets}
		f.take(r.again)
		if wait := r.paid.Add(-missBurst * missInterval).Sub(f.began); wait <= 0 {
			f.take(r.first)
		} else if len(r.first) > 0 && !r.waking {
			r.waking = true
			time.AfterFunc(wait, func() {
				d.mu.Lock()
				defer d.mu.Unlock()
				r.waking = false
				d.launch()
			})
		}
		if len(f.calls) == 0 {
			return
		}
		for k, c := range f.calls {
			c.forgets = d.forgets
			r.begun[k] = c
		}
		d.flying[f] = struct{}{}
		d.stat.Queries++
		go d.read(f)
	}
}

// take moves calls that wait into the flight, any of them where there are too many.
func (f *flight) take(waiting map[Key]*call) {
	for k, c := range waiting {
		if len(f.calls) == mostKeys {
			return
		}
		f.calls[k] = c
		delete(waiting, k)
	}
}

// read reads the keys of a flight and remembers the results, unless what it read was forgotten meanwhile.
func (d *CachedDirectory) read(f *flight) {
	keys := make([]Key, 0, len(f.calls))
	ctx := context.Background()
	for k, c := range f.calls {
		keys, ctx = append(keys, k), c.ctx // any caller's values will do
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lookupTimeout)
	defer cancel()
	readings, err := d.query(ctx, keys)

	d.mu.Lock()
	defer d.mu.Unlock()
	r := &d.reads
	delete(d.flying, f)
	missed := false
	for k, c := range f.calls {
		if r.begun[k] == c {
			delete(r.begun, k)
		}
		got, ok := readings[k]
		switch {
		case err != nil:
			c.err = fmt.Errorf("pgtenancy: look up %s: %w", k, err)
		case got.err != nil:
			c.err = fmt.Errorf("pgtenancy: look up %s: %w", k, got.err)
		default:
			missed = missed || !ok
			c.tenant = got.tenant
			if id := cmp.Or(got.tenant.id, k.id); !f.forgot(id) {
				d.remember(k, got.tenant, f.began, f.forgets)
			}
		}
		close(c.done)
	}
	d.failing, d.retry = false, time.Time{}
	if err != nil {
		d.stat.Failures++
		d.failed()
		d.failing = unreadable(err)
	}
	if missed {
		if now := time.Now(); r.paid.Before(now) {
			r.paid = now
		}
		r.paid = r.paid.Add(missInterval)
	}
	d.launch()
}

// unreadable reports whether an error says that the database cannot be asked now, rather than what it has answered.
func unreadable(err error) bool {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		// Connections, resources and the system's errors are classes. Of the others it is admin_shutdown, crash_shutdown,
		// cannot_connect_now (starting, or in recovery), statement_timeout and lock_timeout.
		for _, code := range []string{"08", "53", "58", "57P01", "57P02", "57P03", "57014", "55P03"} {
			if strings.HasPrefix(pgErr.Code, code) {
				return true
			}
		}
		return false
	}
	var connectErr *pgconn.ConnectError
	var netErr net.Error
	return errors.As(err, &connectErr) || errors.As(err, &netErr) || errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || pgconn.SafeToRetry(err)
}

// tenantColumns are what scanTenant wants of pgtenancy.tenants t.
const tenantColumns = `t.id, t.schema_name, t.role_name, t.state, t.version, t.attributes`

// scanTenant makes a Tenant of a row of tenantColumns.
func scanTenant(row pgx.CollectableRow) (Tenant, error) { return scanTenantAnd(row) }

// scanTenantAnd is scanTenant for a row that has more columns behind those. Where they make no Tenant, the rows that come
// after this one can still be read.
func scanTenantAnd(row pgx.CollectableRow, more ...any) (Tenant, error) {
	var info TenantInfo
	var state string
	var attributes []byte // pgx would end the rows where these are not what they must be
	err := row.Scan(append([]any{&info.ID, &info.Schema, &info.Role, &state, &info.Version, &attributes}, more...)...)
	if err != nil {
		return Tenant{}, err
	}
	if info.State, err = parseState(state); err != nil {
		return Tenant{}, err
	}
	if err = json.Unmarshal(attributes, &info.Attributes); err == nil {
		var t Tenant
		if t, err = NewTenant(info); err == nil {
			return t, nil
		}
	}
	// Not wrapped: an *InvalidError would blame the caller's input.
	return Tenant{}, fmt.Errorf("pgtenancy: the registry's row of tenant %q: %s", info.ID, err.Error())
}

// queryTenants reads tenants from the registry. It is a registryQuery.
func queryTenants(ctx context.Context, s *Scope, keys []Key) (map[Key]reading, error) {
	var ids, domains []string
	for _, k := range keys {
		if k.domain != "" {
			domains = append(domains, k.domain)
		} else {
			ids = append(ids, k.id)
		}
	}
	var parts []string
	var args []any
	if len(ids) > 0 {
		parts, args = append(parts, `select `+tenantColumns+`, t.id, '' from pgtenancy.tenants t where t.id = any($1::text[])`), append(args, ids)
	}
	if len(domains) > 0 {
		args = append(args, domains)
		parts = append(parts, fmt.Sprintf(`select `+tenantColumns+`, '', d.domain
			from pgtenancy.domains d join pgtenancy.tenants t on t.id = d.tenant_id where d.domain = any($%d::text[])`, len(args)))
	}
	rows, _ := s.Query(ctx, strings.Join(parts, " union all "), args...) // the error is in rows
	defer rows.Close()
	found := make(map[Key]reading, len(keys))
	for rows.Next() {
		var k Key
		t, err := scanTenantAnd(rows, &k.id, &k.domain)
		found[k] = reading{t, err}
	}
	err := rows.Err()
	var pgErr *pgconn.PgError
	switch {
	case errors.Is(err, ErrTenantNotFound) && errors.As(err, &pgErr):
		// What the pool says where a shared schema is missing. Of it only PostgreSQL's part is passed on, or every tenant would
		// seem not to exist.
		return nil, fmt.Errorf("no usable shared schema: %w", pgErr)
	case isCode(err, "42P01", "3F000", "42703"): // undefined_table, invalid_schema_name, undefined_column
		return nil, fmt.Errorf("%w: %w", ErrRegistryOutdated, err)
	}
	return found, err
}
