package pgtenancy

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy/internal/ident"
)

// AuditEvent is one entry of the audit log: who did what, when, and for which tenant. What is unknown is left zero.
//
// Texts may have any bytes; those that PostgreSQL cannot store (NUL, invalid UTF-8) become U+FFFD.
type AuditEvent struct {
	ID        int64          // given by the database, when it is written; ascending, with gaps
	Recorded  time.Time      // when it was written, by the database's clock; set by the database
	Tenant    string         // the tenant's ID, "" for what belongs to none
	At        time.Time      // when it happened or began, to the microsecond. Defaults to the time when it is written
	Actor     string         // who did it: a user, a service, a person of the support; as the service calls them
	Action    string         // what was done, as "invoice.approve"; "insert", "update", "delete", "truncate" for the rows of an AuditTable
	Method    string         // of the HTTP request
	Route     string         // the pattern of the route, as "GET /orders/{id}"
	Status    int            // of the answer
	Duration  time.Duration  // to the microsecond
	RequestID string         // ties it to logs and traces
	Client    netip.Addr     // where the request came from
	Fields    map[string]any // the service's own, as JSON; read back as encoding/json reads into any
}

// An AuditSink takes events. Fleet.Audit and NewAuditLog return the one that is PostgreSQL's, NewAuditLogger one that logs.
// WriteAudit either keeps all of the events or returns an error, after which the same events may be written again. It must return
// when ctx is done, be safe for concurrent use, and neither keep nor change events.
type AuditSink interface {
	WriteAudit(ctx context.Context, events []AuditEvent) error
}

// AuditLog is the audit log in the database, as the application's role uses it: it appends, and reads what belongs to the tenant of
// the context. It is safe for concurrent use. The log belongs to the registry, which Fleet.Migrate installs.
//
// Row level security shows a tenant's scope that tenant's events only, since the tenant was made: a customer who has the ID of one
// that was purged sees nothing of the one before. Nobody but the owner of the registry can change or remove events. Within a
// tenant's scope, events can be appended for that tenant only; Pool.Shared may append for all, and shows none.
//
// Events outlive their tenants: Purge leaves them, and Fleet.TrimAudit removes them by age. What a law wants erased before that
// should not be in them.
type AuditLog struct{ pool *Pool }

var _ AuditSink = (*AuditLog)(nil)

// NewAuditLog returns the audit log for a process that has a Pool and no Fleet.
func NewAuditLog(pool *Pool) *AuditLog { return &AuditLog{pool} }

// Audit returns the audit log, for middleware.Audit and for reading in a tenant's scope.
func (f *Fleet) Audit() *AuditLog { return &AuditLog{f.pool} }

const appendAuditSQL = `select pgtenancy.append_audit($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)`

// WriteAudit appends events of any tenants in one statement and one transaction of its own, outside of any tenant's scope: also
// where ctx carries a tenant, each event is of AuditEvent.Tenant. When it returns nil, they are committed; where the connection is
// lost or ctx ends on the way they may be, so that events that are written again, as middleware.Audit does, may be there twice, with two
// IDs. Fields that encoding/json cannot write are replaced by {"error": "..."}.
func (l *AuditLog) WriteAudit(ctx context.Context, events []AuditEvent) error {
	if len(events) == 0 {
		return nil
	}
	args, err := auditArgs(events, time.Now(), false)
	if err != nil {
		return err
	}
	if _, err := l.pool.Shared().Exec(ctx, appendAuditSQL, args...); err != nil {
		return auditError("write the audit log", err)
	}
	return nil
}

// RecordAudit writes an event in the transaction tx: it is there when what else the transaction did is, and not otherwise. The tenant
// is that of tx, and where tx is not one of a Pool's for a tenant, that of ctx. An e.Tenant that is another is ErrTenantMismatch;
// without any tenant it is ErrNoTenant. Where e.Actor is "", the actor is that of ctx.
//
// It is one statement. Writers do not wait for each other, of one tenant neither. An error that PostgreSQL has sent leaves tx to
// be rolled back, as usual.
func RecordAudit(ctx context.Context, tx pgx.Tx, e AuditEvent) error {
	t, ok := TenantFromContext(ctx)
	if own, isOwn := tx.(interface{ bound() binding }); isOwn {
		b := own.bound()
		if err := b.match(ctx); err != nil {
			return err
		}
		if !b.shared {
			t, ok = b.tenant, true
		}
	}
	if !ok {
		return ErrNoTenant
	}
	if e.Tenant != "" && e.Tenant != t.id {
		return fmt.Errorf("%w: the event is of %q, the transaction of %q", ErrTenantMismatch, e.Tenant, t.id)
	}
	e.Tenant = t.id
	if e.Actor == "" {
		e.Actor, _ = ActorFromContext(ctx)
	}
	args, err := auditArgs([]AuditEvent{e}, time.Now(), true)
	if err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, appendAuditSQL, args...); err != nil {
		return auditError("record an audit event", err)
	}
	return nil
}

func (b binding) bound() binding { return b }

func auditError(what string, err error) error {
	if isCode(err, "42883", "3F000") { // undefined_function, invalid_schema_name
		return fmt.Errorf("%w: it has no audit log: run Fleet.Migrate: %w", ErrRegistryOutdated, err)
	}
	return fmt.Errorf("pgtenancy: %s: %w", what, err)
}

// auditArgs returns the arguments of appendAuditSQL. Fields that cannot be written are an error where strict.
func auditArgs(events []AuditEvent, now time.Time, strict bool) ([]any, error) {
	n := len(events)
	texts := make([]string, 8*n)
	column := func(i int) []string { return texts[i*n : (i+1)*n : (i+1)*n] }
	tenants, actors, actions, methods := column(0), column(1), column(2), column(3)
	routes, requests, clients, fields := column(4), column(5), column(6), column(7)
	ats, statuses, durations := make([]time.Time, n), make([]int32, n), make([]int64, n)
	for i := range events {
		e := &events[i]
		tenants[i], actors[i], actions[i], methods[i] = storable(e.Tenant), storable(e.Actor), storable(e.Action), storable(e.Method)
		routes[i], requests[i] = storable(e.Route), storable(e.RequestID)
		if ats[i] = e.At; e.At.IsZero() {
			ats[i] = now
		}
		statuses[i], durations[i] = int32(e.Status), e.Duration.Microseconds()
		if e.Client.IsValid() {
			clients[i] = e.Client.Unmap().WithZone("").String()
		}
		if len(e.Fields) > 0 {
			b, err := json.Marshal(e.Fields)
			if err != nil {
				if strict {
					return nil, fmt.Errorf("pgtenancy: AuditEvent.Fields: %w", err)
				}
				b, _ = json.Marshal(map[string]string{"error": err.Error()}) // a map of strings always can be
			}
			fields[i] = storable(string(b))
		}
	}
	return []any{tenants, ats, actors, actions, methods, routes, statuses, durations, requests, clients, fields}, nil
}

// storable returns s with what PostgreSQL does not take as text replaced.
func storable(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}

type actorKey struct{}

// WithActor returns a context that says who acts, for RecordAudit, SetActor and middleware.Audit.
func WithActor(ctx context.Context, actor string) context.Context {
	return context.WithValue(ctx, actorKey{}, actor)
}

// ActorFromContext returns what WithActor put into the context.
func ActorFromContext(ctx context.Context) (actor string, ok bool) {
	actor, ok = ctx.Value(actorKey{}).(string)
	return actor, ok
}

// SetActor tells the triggers of AuditTable who acts in tx, until it ends: the actor of ctx, "" where it has none. It is one
// statement, as all that is not in a transaction, such as Pool.Exec, has no actor. It is a note and no proof: SQL in the same
// transaction may change it.
func SetActor(ctx context.Context, tx pgx.Tx) error {
	actor, _ := ActorFromContext(ctx)
	if _, err := tx.Exec(ctx, `select pgtenancy.audit_actor($1)`, storable(actor)); err != nil {
		return auditError("set the actor", err)
	}
	return nil
}

// AuditTable is a table in tenants' schemas whose changes go to the audit log, row by row. Its SQL goes into a tenant migration,
// after the table.
//
// Each row that is inserted, updated or deleted is an event in the same transaction, and so is TRUNCATE. Its Tenant is the one whose
// schema the table is in; its Action is "insert", "update", "delete" or "truncate", its Actor what SetActor has set, and its Fields
// are "table", "role" (the user of the connection), "old" (the row as it was) and "new" (the row as it became, of an update only
// the columns that changed). An update that changes nothing is no event, nor is what happens before a tenant is active: what
// migrations and ProvisionOpts.Seed insert. Restore and Clone fire no triggers.
type AuditTable struct {
	// Table is its name, without a schema. Required.
	Table string

	// Except are columns that are not recorded: secrets, and what is large. An update of these alone is no event. Defaults to none.
	Except []string
}

// SQL returns the statements that record the changes. They may be run again, also with other columns. It panics with an
// *InvalidError where a field breaks a rule.
func (a AuditTable) SQL() string {
	if err := invalid("AuditTable.Table", a.Table, ident.CheckName(a.Table)); err != nil {
		panic(err)
	}
	except := make([]string, len(a.Except))
	for i, c := range a.Except {
		if err := invalid("AuditTable.Except", c, ident.CheckName(c)); err != nil {
			panic(err)
		}
		except[i] = ident.Literal(c)
	}
	table := ident.Quote(a.Table)
	const call = "execute function pgtenancy.audit_row"
	return fmt.Sprintf("drop trigger if exists pgtenancy_audit on %[1]s;\n"+
		"-- pgtenancy:allow schema-qualified the audit log is one\n"+
		"create trigger pgtenancy_audit after insert or update or delete on %[1]s for each row %[2]s (%[3]s);\n"+
		"drop trigger if exists pgtenancy_audit_truncate on %[1]s;\n"+
		"-- pgtenancy:allow schema-qualified the audit log is one\n"+
		"create trigger pgtenancy_audit_truncate after truncate on %[1]s for each statement %[2]s ();\n",
		table, call, strings.Join(except, ", "))
}

// NewAuditLogger returns a sink that logs each event with its time of writing, at level Info and with the message "audit". It
// defaults to slog.Default where logger is nil.
func NewAuditLogger(logger *slog.Logger) AuditSink {
	if logger == nil {
		logger = slog.Default()
	}
	return auditLogger{logger}
}

type auditLogger struct{ logger *slog.Logger }

func (l auditLogger) WriteAudit(ctx context.Context, events []AuditEvent) error {
	for i := range events {
		l.logger.LogAttrs(ctx, slog.LevelInfo, "audit", events[i].attrs()...)
	}
	return nil
}

// attrs returns the fields that are not zero.
func (e *AuditEvent) attrs() []slog.Attr {
	attrs := make([]slog.Attr, 0, 11)
	text := func(key, value string) {
		if value != "" {
			attrs = append(attrs, slog.String(key, value))
		}
	}
	text("tenant", e.Tenant)
	if !e.At.IsZero() {
		attrs = append(attrs, slog.Time("at", e.At))
	}
	text("actor", e.Actor)
	text("action", e.Action)
	text("method", e.Method)
	text("route", e.Route)
	if e.Status != 0 {
		attrs = append(attrs, slog.Int("status", e.Status))
	}
	if e.Duration != 0 {
		attrs = append(attrs, slog.Duration("duration", e.Duration))
	}
	text("request_id", e.RequestID)
	if e.Client.IsValid() {
		attrs = append(attrs, slog.String("client", e.Client.String()))
	}
	if len(e.Fields) > 0 {
		attrs = append(attrs, slog.Any("fields", e.Fields))
	}
	return attrs
}

// LogValue is for slog.
func (e AuditEvent) LogValue() slog.Value { return slog.GroupValue(e.attrs()...) }
