package pgtenancy

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	mathrand "math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pgtenancy/pgtenancy/internal/ident"
)

// How the log is sealed.
const (
	auditBatch      = 10000            // rows of one transaction
	auditPause      = 10 * time.Second // between two passes of KeepAudit
	auditWaitMost   = 5 * time.Minute  // the same where PostgreSQL cannot be reached
	auditTrimPause  = time.Hour        // between two looks of KeepAudit for what to trim
	auditGeneration = 1 << 48          // what tells apart the transactions of one cluster from those of the next
)

// auditLock is the key of the transaction-level advisory lock of whoever seals, trims or makes partitions: the first eight bytes of
// the SHA-256 of "pgtenancy/audit".
const auditLock = 2571057839213184787

// digest returns what a seal has of the row: the SHA-256 of its columns, each with its length or of a fixed one.
func (r *auditRow) digest() [sha256.Size]byte {
	var d auditDigest
	d.hash = sha256.New()
	d.text("pgtenancy/audit/row/1")
	d.number(r.xact)
	d.number(r.id)
	d.time(r.recorded)
	d.text(r.tenant)
	d.time(r.at)
	for _, s := range []string{r.actor, r.action, r.method, r.route, r.request, r.client, r.fields} {
		d.text(s)
	}
	d.number(int64(r.status))
	d.number(r.duration)
	return d.sum()
}

type auditDigest struct {
	hash hash.Hash
	buf  [8]byte
}

func (d *auditDigest) number(n int64) {
	binary.BigEndian.PutUint64(d.buf[:], uint64(n))
	d.hash.Write(d.buf[:])
}

func (d *auditDigest) text(s string) {
	d.number(int64(len(s)))
	d.hash.Write([]byte(s))
}

func (d *auditDigest) time(t pgtype.Timestamptz) {
	d.number(int64(t.InfinityModifier))
	d.number(t.Time.UnixMicro())
}

func (d *auditDigest) sum() (sum [sha256.Size]byte) {
	d.hash.Sum(sum[:0])
	return sum
}

// auditSeal is a link of a tenant's chain: rows that one transaction sealed, of one month.
type auditSeal struct {
	tenant  string
	seq     int64
	month   time.Time
	rows    int64
	total   int64
	ids     []int64
	digests [][]byte
	content []byte // the SHA-256 of digests
	hash    []byte // of all but ids, and of the seal before
}

// contentOf returns what content must be.
func (s *auditSeal) contentOf() []byte {
	h := sha256.New()
	for _, d := range s.digests {
		h.Write(d)
	}
	return h.Sum(nil)
}

// hashOf returns what hash must be after the seal with the hash before, which has no bytes for the first.
func (s *auditSeal) hashOf(before []byte) []byte {
	d := auditDigest{hash: sha256.New()}
	d.text("pgtenancy/audit/seal/1")
	d.text(string(before))
	d.text(s.tenant)
	d.number(s.seq)
	d.number(s.month.Unix())
	d.number(s.rows)
	d.number(s.total)
	d.text(string(s.content))
	sum := d.sum()
	return sum[:]
}

// AuditHead is the end of a tenant's chain of seals at some time. It is what to keep outside of the database, since with it VerifyAudit
// finds also what somebody has changed who could seal the log anew.
type AuditHead struct {
	Tenant string `json:"tenant"`
	Seq    int64  `json:"seq"`   // of the last seal, from 1
	Rows   int64  `json:"rows"`  // from the beginning
	Month  string `json:"month"` // of its last events, in UTC, as "2026-01": TrimAudit removes it with them
	Hash   string `json:"hash"`  // in hexadecimal
}

// SealAudit seals the events that were committed, and returns how many it sealed. A seal is a link of the tenant's chain: it has the
// SHA-256 of each event and of the seal before. The events themselves are written without one, so that writers do not wait for
// each other; whoever seals does so later, in one place at a time, and in transactions of 10,000 events.
//
// Events that are younger than the oldest transaction under way in the database that has written something wait for it to end, whatever
// tenant it is of: what commits later is sealed later, and the order of a chain is never changed. So a transaction that stays open
// keeps the log from being sealed, as it keeps VACUUM from its work.
//
// What ends it on the way, and be it a crash, loses nothing: the next call goes on.
func (f *Fleet) SealAudit(ctx context.Context) (sealed int64, err error) {
	if err := f.registryReady(ctx); err != nil {
		return 0, err
	}
	if err := f.aheadAudit(ctx); err != nil {
		return 0, fmt.Errorf("pgtenancy: seal the audit log: %w", err)
	}
	for {
		n, more := 0, false
		err := pgx.BeginTxFunc(ctx, f.owner.conns, pgx.TxOptions{BeginQuery: beginSQL}, func(tx pgx.Tx) (err error) {
			n, more, err = sealAudit(ctx, tx)
			return err
		})
		if err != nil {
			return sealed, fmt.Errorf("pgtenancy: seal the audit log: %w", err)
		}
		if sealed += int64(n); !more {
			return sealed, nil
		}
	}
}

// aheadAudit makes the partitions of the months to come, unless they are there.
func (f *Fleet) aheadAudit(ctx context.Context) error {
	var made bool
	err := f.owner.conns.QueryRow(ctx, `select to_regclass('pgtenancy.audit_' || to_char((clock_timestamp() at time zone 'UTC') + $1 * interval '1 month', 'YYYY_MM')) is not null`,
		auditAhead).Scan(&made)
	if err != nil || made {
		return err
	}
	return pgx.BeginTxFunc(ctx, f.owner.conns, pgx.TxOptions{BeginQuery: beginSQL}, func(tx pgx.Tx) error { return f.makeAuditPartitions(ctx, tx) })
}

// auditState is the row of pgtenancy.audit_state.
type auditState struct {
	base, nextXact, nextID int64
	horizon                int64 // rows of transactions below it are there or never will be
}

// auditHorizonSQL selects from audit_state s, and the numbers of transactions as xact has them: below the first all are over; the second
// is the next. Transactions of other databases do not count, where they are seen to be that: not one that ends while this looks.
// The rows have to be read by another statement, later.
const auditHorizonSQL = `with snap as materialized (select pg_current_snapshot() as now)
	select s.base, s.next_xact, s.next_id, s.base + coalesce(x.xid, pg_snapshot_xmax(snap.now)::text::bigint), s.base + pg_snapshot_xmax(snap.now)::text::bigint
	from pgtenancy.audit_state s, snap left join lateral (
		select min(x.xid::text::bigint) as xid from pg_snapshot_xip(snap.now) x (xid)
		where not exists (
			select from pg_locks l join pg_stat_activity a on a.pid = l.pid
			where l.locktype = 'transactionid' and l.mode = 'ExclusiveLock' and l.granted and l.transactionid = x.xid::xid
				and a.datid <> (select d.oid from pg_catalog.pg_database d where d.datname = current_database())
		)
	) x on true`

// lockAuditState takes the lock and reads the row. Where the numbers of transactions are below those that were sealed, the database
// has come to another cluster: the next generation begins, and horizon is above all rows of the one before.
func lockAuditState(ctx context.Context, tx pgx.Tx) (s auditState, moved bool, err error) {
	if _, err := tx.Exec(ctx, `select pg_advisory_xact_lock($1)`, auditLock); err != nil {
		return s, false, err
	}
	var next int64
	if err := tx.QueryRow(ctx, auditHorizonSQL).Scan(&s.base, &s.nextXact, &s.nextID, &s.horizon, &next); err != nil {
		return s, false, err
	}
	if next < s.nextXact {
		s.base += auditGeneration
		s.horizon = s.base
		return s, true, nil
	}
	s.horizon = max(s.horizon, s.nextXact) // one of another database may have ended in between, and looked like ours
	return s, false, nil
}

// sealAudit seals some rows. more says that there may be others.
func sealAudit(ctx context.Context, tx pgx.Tx) (n int, more bool, err error) {
	state, moved, err := lockAuditState(ctx, tx)
	if err != nil {
		return 0, false, err
	}
	rows, _ := tx.Query(ctx, `select `+auditColumns+` from pgtenancy.audit a
		where (a.xact, a.id) >= ($1::bigint, $2::bigint) and a.xact < $3::bigint order by a.xact, a.id limit $4::int`,
		state.nextXact, state.nextID, state.horizon, auditBatch) // the error is in rows
	type key struct {
		tenant string
		month  time.Time
	}
	open := map[key]*auditSeal{}
	var seals []*auditSeal
	var r auditRow
	_, err = pgx.ForEachRow(rows, r.columns(), func() error {
		k := key{r.tenant, auditMonth(r.recorded.Time)}
		s := open[k]
		if s == nil {
			s = &auditSeal{tenant: k.tenant, month: k.month}
			open[k] = s
			seals = append(seals, s)
		}
		d := r.digest()
		s.ids, s.digests = append(s.ids, r.id), append(s.digests, d[:])
		state.nextXact, state.nextID = r.xact, r.id+1
		n++
		return nil
	})
	if err != nil {
		return 0, false, err
	}
	if more = n == auditBatch; !more {
		if n == 0 && !moved {
			return 0, false, nil
		}
		state.nextXact, state.nextID = state.horizon, 0
	}
	if moved && more {
		state.base -= auditGeneration // not before all of the old generation is sealed
	}
	if err := chainSeals(ctx, tx, seals); err != nil {
		return 0, false, err
	}
	_, err = tx.Exec(ctx, `update pgtenancy.audit_state set base = $1, next_xact = $2, next_id = $3`, state.base, state.nextXact, state.nextID)
	return n, more || moved, err
}

// chainSeals adds seals to the chains of their tenants, in order.
func chainSeals(ctx context.Context, tx pgx.Tx, seals []*auditSeal) error {
	if len(seals) == 0 {
		return nil
	}
	heads := map[string]*auditSeal{}
	tenants := make([]string, 0, len(seals))
	for _, s := range seals {
		if heads[s.tenant] == nil {
			heads[s.tenant] = &auditSeal{}
			tenants = append(tenants, s.tenant)
		}
	}
	rows, _ := tx.Query(ctx, `select t.id, h.seq, h.total, h.hash from unnest($1::text[]) t (id), lateral (
			select s.seq, s.total, s.hash from pgtenancy.audit_seals s where s.tenant_id = t.id order by s.seq desc limit 1
		) h`, tenants) // the error is in rows
	var head auditSeal
	_, err := pgx.ForEachRow(rows, []any{&head.tenant, &head.seq, &head.total, &head.hash}, func() error {
		h := head
		heads[h.tenant] = &h
		return nil
	})
	if err != nil {
		return err
	}
	for _, s := range seals {
		before := heads[s.tenant]
		s.seq, s.rows = before.seq+1, int64(len(s.ids))
		s.total = before.total + s.rows
		s.content = s.contentOf()
		s.hash = s.hashOf(before.hash)
		heads[s.tenant] = s
	}
	_, err = tx.CopyFrom(ctx, pgx.Identifier{"pgtenancy", "audit_seals"},
		[]string{"tenant_id", "seq", "month", "row_count", "total", "ids", "digests", "content", "hash"},
		pgx.CopyFromSlice(len(seals), func(i int) ([]any, error) {
			s := seals[i]
			return []any{s.tenant, s.seq, s.month, s.rows, s.total, s.ids, s.digests, s.content, s.hash}, nil
		}))
	return err
}

// KeepAudit seals the log every ten seconds and, where retain is positive, removes each month that has been over for longer than that;
// it blocks until ctx is cancelled, which is no error. Any number of processes may call it at once: one works at a time.
//
// It makes the partitions of the months to come, too. A lost connection and a lock that others hold are waited out. Errors of other kinds, as
// ErrRegistryOutdated, end it.
func (f *Fleet) KeepAudit(ctx context.Context, retain time.Duration) error {
	if retain < 0 {
		return invalid("KeepAudit's retain", retain.String(), "must not be negative")
	}
	pause, trimmed := auditPause, time.Time{}
	for {
		_, err := f.SealAudit(ctx)
		if err == nil && retain > 0 && time.Since(trimmed) > auditTrimPause {
			switch _, err = f.TrimAudit(ctx, time.Now().Add(-retain)); {
			case err == nil || errors.Is(err, errAuditUnsealed):
				err, trimmed = nil, time.Now()
			case isCode(err, "55P03"): // lock_not_available: sealing goes on meanwhile
				err, trimmed = nil, time.Now().Add(auditWaitMost-auditTrimPause)
			}
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			pause = auditPause
		case errors.As(err, new(*pgconn.PgError)) && !passing(err) || errors.Is(err, ErrRegistryOutdated):
			return err
		default: // what PostgreSQL has not said is a lost connection
			pause = min(2*pause, auditWaitMost)
		}
		select {
		case <-time.After(pause/2 + mathrand.N(pause)): // not all processes at once
		case <-ctx.Done():
			return nil
		}
	}
}

var errAuditUnsealed = errors.New("not sealed yet: a transaction that is older is still open")

// TrimAudit removes the events of all months, in UTC, that were over before the time, oldest first, and returns the time before which there is
// nothing any more. A month that is not over yet stays. Of a tenant's chain, the last seal of what was removed is kept, without the events,
// and the one before as an anchor, so that VerifyAudit goes on from there; export a head before, to prove what is left.
//
// It seals first, and is an error for a month in which something could not be sealed yet. A month is one transaction, which removes a
// partition: appending waits for that, for a moment, and where somebody reads or writes the log for longer than
// LockTimeoutDefault it is that month that has to wait, for another call.
func (f *Fleet) TrimAudit(ctx context.Context, before time.Time) (trimmed time.Time, err error) {
	if _, err := f.SealAudit(ctx); err != nil {
		return trimmed, err
	}
	rows, _ := f.owner.conns.Query(ctx, `select distinct m.month from (
			select to_timestamp(substr(c.relname, 7) || '_01 +00', 'YYYY_MM_DD TZH') from pg_catalog.pg_inherits i join pg_catalog.pg_class c on c.oid = i.inhrelid
			where i.inhparent = 'pgtenancy.audit'::regclass and c.relname ~ '^audit_\d{4}_\d\d$'
			union all
			select date_trunc('month', d.recorded_at at time zone 'UTC') at time zone 'UTC' from pgtenancy.audit_default d where d.recorded_at < $1
		) m (month) where m.month < least($1, date_trunc('month', clock_timestamp() at time zone 'UTC') at time zone 'UTC') order by 1`, auditMonth(before)) // the error is in rows
	months, err := pgx.CollectRows(rows, pgx.RowTo[time.Time])
	if err != nil {
		return trimmed, fmt.Errorf("pgtenancy: trim the audit log: %w", err)
	}
	for _, month := range months {
		err := pgx.BeginTxFunc(ctx, f.owner.conns, pgx.TxOptions{BeginQuery: beginSQL}, func(tx pgx.Tx) error { return trimAudit(ctx, tx, month) })
		if err != nil {
			return trimmed, fmt.Errorf("pgtenancy: trim the audit log of %s: %w", month.UTC().Format("2006-01"), err)
		}
	}
	var t pgtype.Timestamptz
	if err := f.owner.conns.QueryRow(ctx, `select trimmed_before from pgtenancy.audit_state`).Scan(&t); err != nil {
		return trimmed, fmt.Errorf("pgtenancy: trim the audit log: %w", err)
	}
	return t.Time, nil
}

// trimAudit removes a month, all before it being gone.
func trimAudit(ctx context.Context, tx pgx.Tx, month time.Time) error {
	if _, err := tx.Exec(ctx, `select set_config('lock_timeout', $1, true)`, timeoutSetting(LockTimeoutDefault)); err != nil {
		return err
	}
	state, moved, err := lockAuditState(ctx, tx)
	if err != nil {
		return err
	}
	if moved {
		return errAuditUnsealed
	}
	month, until := month.UTC(), month.UTC().AddDate(0, 1, 0)
	var partition bool
	err = tx.QueryRow(ctx, `select exists (select from pg_catalog.pg_inherits where inhrelid = to_regclass($1) and inhparent = 'pgtenancy.audit'::regclass)`,
		"pgtenancy."+auditPartition(month)).Scan(&partition)
	if err != nil {
		return err
	}
	// A month that has a partition has no rows in the default one. That is not locked then, since who waits for it to append has
	// locked what the removal of a partition waits for.
	table := ident.QuoteAll("pgtenancy", "audit_default")
	if partition {
		table = ident.QuoteAll("pgtenancy", auditPartition(month))
	}
	// Nobody is about to commit a row in it then, and reading goes on.
	if _, err := tx.Exec(ctx, `lock table `+table+` in share mode`); err != nil {
		return err
	}
	var unsealed bool
	err = tx.QueryRow(ctx, `select exists (select from pgtenancy.audit a where a.recorded_at >= $1 and a.recorded_at < $2 and (a.xact, a.id) >= ($3::bigint, $4::bigint))`,
		month, until, state.nextXact, state.nextID).Scan(&unsealed)
	if err != nil {
		return err
	}
	if unsealed {
		return errAuditUnsealed
	}
	for _, sql := range []string{
		// The chain of each tenant loses its first seals, up to one of a later month, but the last of them: its month is in its hash,
		// and shows that it is one that may be gone. A row that was written early and committed late is
		// in a seal between those: of this, the hashes stay.
		`with gone as (
			delete from pgtenancy.audit_seals s using (
				select t.tenant_id, coalesce(
					(select k.seq from pgtenancy.audit_seals k where k.tenant_id = t.tenant_id and k.month > $1 order by k.seq limit 1) - 1,
					(select max(k.seq) from pgtenancy.audit_seals k where k.tenant_id = t.tenant_id)
				) as last
				from (select distinct tenant_id from pgtenancy.audit_seals where month = $1) t
			) kept
			where s.tenant_id = kept.tenant_id and s.seq < kept.last returning s.tenant_id, s.seq, s.total, s.hash
		)
		insert into pgtenancy.audit_anchors as a (tenant_id, seq, total, hash)
		select distinct on (g.tenant_id) g.tenant_id, g.seq, g.total, g.hash from gone g order by g.tenant_id, g.seq desc
		on conflict (tenant_id) do update set seq = excluded.seq, total = excluded.total, hash = excluded.hash`,
		`update pgtenancy.audit_seals set ids = null, digests = null where month = $1`,
	} {
		if _, err := tx.Exec(ctx, sql, month); err != nil {
			return err
		}
	}
	if partition {
		_, err = tx.Exec(ctx, `drop table `+table)
	} else {
		_, err = tx.Exec(ctx, `delete from pgtenancy.audit_default where recorded_at >= $1 and recorded_at < $2`, month, until)
	}
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `update pgtenancy.audit_state set trimmed_before = greatest(trimmed_before, $1)`, until)
	return err
}

// head returns the end of the chain with the seal.
func (s *auditSeal) head() AuditHead {
	return AuditHead{Tenant: s.tenant, Seq: s.seq, Rows: s.total, Month: s.month.UTC().Format("2006-01"), Hash: hex.EncodeToString(s.hash)}
}
