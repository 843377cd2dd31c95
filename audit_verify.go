package pgtenancy

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// AuditVerifyOpts says what VerifyAudit compares with.
type AuditVerifyOpts struct {
	// Heads are those of reports from before, as they were kept outside of the database. Defaults to none.
	Heads []AuditHead
}

// AuditReport is what VerifyAudit saw.
type AuditReport struct {
	// Rows is the number of events that are sealed, and Unsealed of those that are not yet: of these nothing is known.
	Rows, Unsealed int64

	// UnsealedSince is when the oldest of the latter was written, zero where there is none. Where that is long ago, nobody seals, or
	// a transaction has been open since.
	UnsealedSince time.Time

	// TrimmedBefore is the time before which TrimAudit has removed all, zero where it has not yet, and Trimmed how many events that were,
	// as the anchors say. It is for the caller to know that nothing was to be kept for longer.
	TrimmedBefore time.Time
	Trimmed       int64

	// Heads are the ends of all chains, ordered by tenant, to be kept outside of the database.
	Heads []AuditHead

	// Unchecked are those of AuditVerifyOpts.Heads that are older than what was trimmed: nothing can be said of them.
	Unchecked []AuditHead
}

// AuditRule names what VerifyAudit found. It does not change from version to version.
type AuditRule string

// The rules.
const (
	AuditRowRemoved  AuditRule = "row-removed"  // a seal has it, the log has not
	AuditRowChanged  AuditRule = "row-changed"  // it is not what was sealed
	AuditRowAdded    AuditRule = "row-added"    // it is where all is sealed, and no seal has it
	AuditSealChanged AuditRule = "seal-changed" // the chain is not whole: a seal or anchor was changed, added or removed
	AuditHeadMissing AuditRule = "head-missing" // the chain does not lead to the head that was given: it was cut, or sealed anew
)

// AuditFinding is one thing that is wrong with the log.
type AuditFinding struct {
	Rule   AuditRule
	Tenant string
	Seq    int64 // of the seal, 0 where there is none
	ID     int64 // of the event, 0 where it is about a seal
}

// String returns it as `row-changed: tenant "acme", event 17, seal 3`.
func (f AuditFinding) String() string {
	s := fmt.Sprintf("%s: tenant %q", f.Rule, f.Tenant)
	if f.ID != 0 {
		s += fmt.Sprintf(", event %d", f.ID)
	}
	if f.Seq != 0 {
		s += fmt.Sprintf(", seal %d", f.Seq)
	}
	return s
}

// AuditError is the error of VerifyAudit for a log that was changed. It wraps ErrAuditChanged.
type AuditError struct {
	Findings []AuditFinding // the first thousand, ordered by tenant, seal and event
	More     int            // how many others there are
}

// Error lists the first few of the findings.
func (e *AuditError) Error() string {
	return ErrAuditChanged.Error() + ": " + summarize(len(e.Findings)+e.More, func(i int) string { return e.Findings[i].String() })
}

// Unwrap returns ErrAuditChanged.
func (e *AuditError) Unwrap() error { return ErrAuditChanged }

// auditFindings is how many findings an AuditError has at most.
const auditFindings = 1000

func (e *AuditError) add(f AuditFinding) {
	if len(e.Findings) == auditFindings {
		e.More++
		return
	}
	e.Findings = append(e.Findings, f)
}

// VerifyAudit reads the whole log and compares it with its seals. It returns an *AuditError where events were removed, changed or added
// after they were sealed, or seals were. The report is there with that error too. Events that are not sealed yet may have been
// changed unseen: SealAudit makes their number small.
//
// The seals are in the same database. Whoever owns it, or has its superuser's rights, can change an event and seal anew all that came after
// it. What shows that is a head from before, kept where they cannot reach it: VerifyAudit checks that each of AuditVerifyOpts.Heads is
// part of the tenant's chain. Without one, the log proves nothing against them.
//
// It is one query for the seals and one for each month, none of which keeps anything from working. opts may be nil.
func (f *Fleet) VerifyAudit(ctx context.Context, opts *AuditVerifyOpts) (*AuditReport, error) {
	if err := f.registryReady(ctx); err != nil {
		return nil, err
	}
	v := auditVerifier{conns: f.owner.conns}
	if opts != nil {
		v.heads = opts.Heads
	}
	if err := v.chains(ctx); err != nil {
		return nil, fmt.Errorf("pgtenancy: verify the audit log: %w", err)
	}
	if err := v.months(ctx); err != nil {
		return nil, fmt.Errorf("pgtenancy: verify the audit log: %w", err)
	}
	if len(v.found.Findings) == 0 {
		return &v.report, nil
	}
	slices.SortFunc(v.found.Findings, func(a, b AuditFinding) int {
		return cmp.Or(cmp.Compare(a.Tenant, b.Tenant), cmp.Compare(a.Seq, b.Seq), cmp.Compare(a.ID, b.ID))
	})
	return &v.report, &v.found
}

type auditVerifier struct {
	conns  *conns
	heads  []AuditHead
	report AuditReport
	found  AuditError
}

// chains checks the seals of all tenants and the heads. Each query is a snapshot, and what the second sees more is another pass's.
func (v *auditVerifier) chains(ctx context.Context) error {
	type headKey struct {
		tenant string
		seq    int64
	}
	missing := map[headKey][]AuditHead{}
	for _, h := range v.heads {
		k := headKey{h.Tenant, h.Seq}
		missing[k] = append(missing[k], h)
	}
	var last *auditSeal // of the tenant of whom the seals are being read
	anchored := false   // last is an anchor
	reached := func(s *auditSeal) {
		k := headKey{s.tenant, s.seq}
		missing[k] = slices.DeleteFunc(missing[k], func(h AuditHead) bool { return h == s.head() })
		last = s
	}
	anchors := map[string]*auditSeal{}
	done := func() {
		if anchored { // nothing shows that it was trimmed
			v.found.add(AuditFinding{Rule: AuditSealChanged, Tenant: last.tenant, Seq: last.seq})
		}
		if last != nil && last.seq > 0 {
			v.report.Heads = append(v.report.Heads, last.head())
		}
	}
	// One statement, so that trimming does not come in between: an anchor comes before its tenant's seals.
	rows, _ := v.conns.Query(ctx, `select true, tenant_id, seq, null::timestamptz, 0::bigint, total, null::bigint[], null::bytea[], hash, hash, (select trimmed_before from pgtenancy.audit_state)
			from pgtenancy.audit_anchors
		union all
		select false, tenant_id, seq, month, row_count, total, ids, digests, content, hash, (select trimmed_before from pgtenancy.audit_state)
			from pgtenancy.audit_seals
		order by 2, 3, 1 desc`) // the error is in rows
	var anchor bool
	var s auditSeal
	var month, trimmed pgtype.Timestamptz
	_, err := pgx.ForEachRow(rows, []any{&anchor, &s.tenant, &s.seq, &month, &s.rows, &s.total, &s.ids, &s.digests, &s.content, &s.hash, &trimmed}, func() error {
		s := s
		s.month = month.Time
		if last == nil || last.tenant != s.tenant {
			done()
			last, anchored = &auditSeal{tenant: s.tenant}, anchor
			if anchor {
				anchors[s.tenant] = &s
				v.report.Trimmed += s.total
				last = &s
				return nil
			}
		}
		gone := s.ids == nil && s.digests == nil
		ok := !anchor && s.seq == last.seq+1 && s.total == last.total+s.rows && bytes.Equal(s.hash, s.hashOf(last.hash))
		// What is gone is all of the months that were trimmed, and nothing of others.
		ok = ok && gone == (trimmed.InfinityModifier == pgtype.Finite && month.Time.Before(trimmed.Time)) && (gone || !anchored)
		anchored = false
		if gone {
			v.report.Trimmed += s.rows
		} else {
			ok = ok && int64(len(s.ids)) == s.rows && len(s.digests) == len(s.ids) && bytes.Equal(s.content, s.contentOf())
		}
		if !ok {
			v.found.add(AuditFinding{Rule: AuditSealChanged, Tenant: s.tenant, Seq: s.seq})
		}
		reached(&s)
		return nil
	})
	if err != nil {
		return err
	}
	done()
	if trimmed.InfinityModifier == pgtype.Finite {
		v.report.TrimmedBefore = trimmed.Time
	}
	for _, heads := range missing {
		for _, h := range heads {
			// One of a month that is not trimmed must be there, whatever an anchor says.
			if a := anchors[h.Tenant]; a != nil && h.Seq <= a.seq && h.Month != "" && h.Month < v.report.TrimmedBefore.UTC().Format("2006-01") {
				v.report.Unchecked = append(v.report.Unchecked, h)
			} else {
				v.found.add(AuditFinding{Rule: AuditHeadMissing, Tenant: h.Tenant, Seq: h.Seq})
			}
		}
	}
	slices.SortFunc(v.report.Unchecked, func(a, b AuditHead) int { return cmp.Or(cmp.Compare(a.Tenant, b.Tenant), cmp.Compare(a.Seq, b.Seq)) })
	return nil
}

// months compares the rows of each month with what the seals have of them, and those before and after all months.
func (v *auditVerifier) months(ctx context.Context) error {
	rows, _ := v.conns.Query(ctx, `select month from pgtenancy.audit_seals group by month
		union select to_timestamp(substr(c.relname, 7) || '_01 +00', 'YYYY_MM_DD TZH') from pg_catalog.pg_inherits i join pg_catalog.pg_class c on c.oid = i.inhrelid
			where i.inhparent = 'pgtenancy.audit'::regclass and c.relname ~ '^audit_\d{4}_\d\d$'
		order by 1`) // the error is in rows
	months, err := pgx.CollectRows(rows, pgx.RowTo[time.Time])
	if err != nil {
		return err
	}
	from := pgtype.Timestamptz{InfinityModifier: pgtype.NegativeInfinity, Valid: true}
	for _, m := range months {
		until := pgtype.Timestamptz{Time: m, Valid: true}
		if err := v.month(ctx, from, until); err != nil {
			return err
		}
		from = until
	}
	return v.month(ctx, from, pgtype.Timestamptz{InfinityModifier: pgtype.Infinity, Valid: true})
}

// month compares from one time until another.
func (v *auditVerifier) month(ctx context.Context, from, until pgtype.Timestamptz) error {
	// A row that is not sealed yet is of a transaction that is known, or of a cluster that no pass has seen yet.
	rows, _ := v.conns.Query(ctx, `with state as materialized (
			select s.next_xact, s.next_id, s.base + pg_snapshot_xmax(pg_current_snapshot())::text::bigint >= s.next_xact as same,
				s.base + pg_snapshot_xmax(pg_current_snapshot())::text::bigint as most
			from pgtenancy.audit_state s
		)
		select s.id is not null, coalesce(s.tenant_id, ''), coalesce(s.seq, 0), coalesce(s.id, 0), s.digest, a.id is not null,
			coalesce((a.xact, a.id) >= ((select next_xact from state), (select next_id from state))
				and not ((select same from state) and a.xact >= (select most from state)), false),
			coalesce(a.xact, 0), coalesce(a.id, 0), coalesce(a.recorded_at, '-infinity'), coalesce(a.tenant_id, ''), coalesce(a.at, '-infinity'),
			coalesce(a.actor, ''), coalesce(a.action, ''), coalesce(a.method, ''), coalesce(a.route, ''), coalesce(a.status, 0),
			coalesce(a.duration_us, 0), coalesce(a.request_id, ''), coalesce(a.client::text, ''), coalesce(a.fields::text, '')
		from (
			select s.tenant_id, s.seq, u.id, u.digest from pgtenancy.audit_seals s, unnest(s.ids, s.digests) u (id, digest)
			where s.month >= $1::timestamptz and s.month < $2::timestamptz and u.id is not null
		) s
		full join (select * from pgtenancy.audit where recorded_at >= $1::timestamptz and (recorded_at < $2::timestamptz or $2::timestamptz = 'infinity')) a
		on a.id = s.id`, from, until) // the error is in rows
	var isSealed, isThere, unsealed bool
	var sealed AuditFinding
	var digest []byte
	var r auditRow
	_, err := pgx.ForEachRow(rows, append([]any{&isSealed, &sealed.Tenant, &sealed.Seq, &sealed.ID, &digest, &isThere, &unsealed}, r.columns()...), func() error {
		switch {
		case !isThere:
			sealed.Rule = AuditRowRemoved
			v.found.add(sealed)
		case isSealed:
			v.report.Rows++
			if d := r.digest(); !bytes.Equal(d[:], digest) {
				sealed.Rule = AuditRowChanged
				v.found.add(sealed)
			}
		case unsealed:
			v.report.Unsealed++
			if at := r.recorded.Time; v.report.UnsealedSince.IsZero() || at.Before(v.report.UnsealedSince) {
				v.report.UnsealedSince = at
			}
		default:
			v.found.add(AuditFinding{Rule: AuditRowAdded, Tenant: r.tenant, ID: r.id})
		}
		return nil
	})
	return err
}
