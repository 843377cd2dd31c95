package pgtenancy

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"net/netip"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// AuditOrder is the order in which events are read: by Recorded, then ID.
type AuditOrder int

// The orders.
const (
	NewestFirst AuditOrder = iota
	OldestFirst
)

// AuditReadOpts says which events to read.
type AuditReadOpts struct {
	// Since is the earliest, and Until the one after the latest AuditEvent.Recorded. They default to no bounds.
	Since, Until time.Time

	// Order defaults to NewestFirst.
	Order AuditOrder
}

// auditPage is how many events one query reads.
const auditPage = 500

// Events iterates over the events of the tenant in ctx, in the tenant's scope: see AuditLog for what it sees. It reads a page at a time
// and holds no connection in between, so that it is no snapshot: what is committed meanwhile may be seen or not. opts may be nil.
// An error ends it.
func (l *AuditLog) Events(ctx context.Context, opts *AuditReadOpts) iter.Seq2[AuditEvent, error] {
	return func(yield func(AuditEvent, error) bool) {
		t, ok := TenantFromContext(ctx)
		if !ok {
			yield(AuditEvent{}, ErrNoTenant)
			return
		}
		readAudit(ctx, t.id, opts, l.pool.Query, yield)
	}
}

// AuditEvents iterates over the events of the tenant with the ID, also of one that was purged, and of all that have had the ID;
// with "", over those of no tenant. It is otherwise as AuditLog.Events, with the role that owns the registry.
func (f *Fleet) AuditEvents(ctx context.Context, id string, opts *AuditReadOpts) iter.Seq2[AuditEvent, error] {
	return func(yield func(AuditEvent, error) bool) {
		if err := f.registryReady(ctx); err != nil {
			yield(AuditEvent{}, err)
			return
		}
		readAudit(ctx, id, opts, f.owner.conns.Query, yield)
	}
}

// auditColumns are those of a row a of pgtenancy.audit that auditRow.columns takes.
const auditColumns = `a.xact, a.id, a.recorded_at, a.tenant_id, a.at, a.actor, a.action, a.method, a.route, a.status, a.duration_us, a.request_id,
	coalesce(a.client::text, ''), coalesce(a.fields::text, '')`

// auditRow is a row as it is stored.
type auditRow struct {
	xact, id, duration                                            int64
	status                                                        int32
	recorded, at                                                  pgtype.Timestamptz // which have infinity, too
	tenant, actor, action, method, route, request, client, fields string
}

func (r *auditRow) columns() []any {
	return []any{&r.xact, &r.id, &r.recorded, &r.tenant, &r.at, &r.actor, &r.action, &r.method, &r.route, &r.status, &r.duration, &r.request, &r.client, &r.fields}
}

func (r *auditRow) event() (AuditEvent, error) {
	e := AuditEvent{
		ID: r.id, Recorded: r.recorded.Time, Tenant: r.tenant, At: r.at.Time, Actor: r.actor, Action: r.action, Method: r.method, Route: r.route,
		Status: int(r.status), Duration: time.Duration(r.duration) * time.Microsecond, RequestID: r.request,
	}
	if r.client != "" {
		prefix, err := netip.ParsePrefix(r.client) // PostgreSQL casts a plain address to text with its bits
		if err != nil {
			return e, fmt.Errorf("pgtenancy: client of the audit event %d: %w", r.id, err)
		}
		e.Client = prefix.Addr()
	}
	if r.fields != "" {
		if err := json.Unmarshal([]byte(r.fields), &e.Fields); err != nil {
			return e, fmt.Errorf("pgtenancy: fields of the audit event %d: %w", r.id, err)
		}
	}
	return e, nil
}

func readAudit(ctx context.Context, id string, opts *AuditReadOpts, query func(context.Context, string, ...any) (pgx.Rows, error), yield func(AuditEvent, error) bool) {
	var o AuditReadOpts
	if opts != nil {
		o = *opts
	}
	bound := func(t time.Time, none pgtype.InfinityModifier) pgtype.Timestamptz {
		if t.IsZero() {
			return pgtype.Timestamptz{InfinityModifier: none, Valid: true}
		}
		return pgtype.Timestamptz{Time: t, Valid: true}
	}
	since, until := bound(o.Since, pgtype.NegativeInfinity), bound(o.Until, pgtype.Infinity)
	// The bounds of the next page are the last row of the one before, and at first those that were asked for.
	const from = `select ` + auditColumns + ` from pgtenancy.audit a where a.tenant_id = $1::text and a.recorded_at >= $2::timestamptz and a.recorded_at <= $3::timestamptz and `
	sql := from + `(a.recorded_at, a.id) < ($3::timestamptz, $4::bigint) order by a.recorded_at desc, a.id desc limit $5::int`
	last, next := int64(-1<<63), &until
	if o.Order == OldestFirst {
		sql = from + `a.recorded_at < $6::timestamptz and (a.recorded_at, a.id) > ($2::timestamptz, $4::bigint) order by a.recorded_at, a.id limit $5::int`
		next = &since
	}
	for {
		args := []any{id, since, until, last, auditPage}
		if o.Order == OldestFirst {
			args = append(args, until)
		}
		rows, _ := query(ctx, sql, args...) // the error is in rows
		page, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (r auditRow, err error) {
			err = row.Scan(r.columns()...)
			return r, err
		})
		if err != nil {
			if isCode(err, "42P01", "3F000") { // undefined_table, invalid_schema_name
				err = fmt.Errorf("%w: it has no audit log: run Fleet.Migrate: %w", ErrRegistryOutdated, err)
			}
			yield(AuditEvent{}, fmt.Errorf("pgtenancy: read the audit log: %w", err))
			return
		}
		for i := range page {
			e, err := page[i].event()
			if !yield(e, err) || err != nil {
				return
			}
		}
		if len(page) < auditPage {
			return
		}
		*next, last = page[len(page)-1].recorded, page[len(page)-1].id
	}
}
