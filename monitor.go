package pgtenancy

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// Usage is what relations take: those of one tenant, of one catalog of PostgreSQL's, or of several, see Add.
//
// Bytes are what the last VACUUM or ANALYZE has found, by autovacuum as a rule, or CREATE INDEX: LastVacuum and LastAnalyze tell how
// old they may be. Autovacuum comes when a fifth of a table has changed, or a tenth for ANALYZE, so that they are that much wrong;
// ANALYZE does not look at TOAST tables, and VACUUM at their indexes only where it removes something. A table which nobody has
// looked at yet counts as one page where it has rows, and not with its TOAST table: see Unmeasured. The free space map and the
// visibility map are left out: 32 kB for a table of more than a few pages. UsageOpts.Exact asks for the files' sizes instead.
type Usage struct {
	At time.Time // when it was read, by the database's clock

	Relations  int // tables, indexes, sequences, views, TOAST tables and theirs: rows of pg_class
	Unmeasured int // tables that none of VACUUM, ANALYZE and CREATE INDEX has looked at since they were made or truncated

	HeapBytes  int64 // of tables, materialized views and sequences
	IndexBytes int64 // but for those of TOAST tables
	ToastBytes int64 // of TOAST tables and their indexes

	// Rows are those that PostgreSQL has counted since the last VACUUM or ANALYZE, whose own estimate it began with. DeadRows are
	// versions of rows which nobody needs and VACUUM has not removed yet. Both lag by some seconds. A crash of the server loses
	// the counts: Rows is then what the last VACUUM or ANALYZE found, DeadRows begins at 0.
	Rows, DeadRows int64

	// BloatBytes is an estimate of what tables and their TOAST tables have, and would not need if they were written anew. Indexes
	// are left out. For a table of 128 pages and more, which is 1 MB, it is its size less what the rows need by the average
	// widths that ANALYZE has found; that may be wrong by a fifth of the table's size, so that less than that tells nothing. For
	// smaller ones, where ANALYZE has not been yet, and where row level security binds the owner too, it is the share that
	// DeadRows have in all rows: space that VACUUM has freed is not seen. Of a TOAST table it is what is empty if all chunks had
	// their full size, which is too little. Both are as old as Bytes are.
	BloatBytes int64

	LastVacuum  time.Time // of any of the tables, by autovacuum or not; zero for never
	LastAnalyze time.Time // as LastVacuum

	Growth UsageGrowth
}

// Bytes is all of them.
func (u Usage) Bytes() int64 { return u.HeapBytes + u.IndexBytes + u.ToastBytes }

// UsageGrowth is what was added since a sample that SampleUsage took, negative for what went. It compares figures that were
// taken in the same way, never exact ones with others. All is zero where there is no sample.
type UsageGrowth struct {
	Since      time.Time // when the sample was taken
	Relations  int
	Bytes      int64
	Rows       int64
	BloatBytes int64
}

// Add adds v to u, as for the total of several tenants: figures are added up, At and the last times are the later one's, and
// Growth.Since is the earlier one's. A tenant that came after the sample adds to the total and not to its growth.
func (u *Usage) Add(v Usage) {
	u.At = later(u.At, v.At)
	u.Relations += v.Relations
	u.Unmeasured += v.Unmeasured
	u.HeapBytes += v.HeapBytes
	u.IndexBytes += v.IndexBytes
	u.ToastBytes += v.ToastBytes
	u.Rows += v.Rows
	u.DeadRows += v.DeadRows
	u.BloatBytes += v.BloatBytes
	u.LastVacuum = later(u.LastVacuum, v.LastVacuum)
	u.LastAnalyze = later(u.LastAnalyze, v.LastAnalyze)
	g := &u.Growth
	if g.Since.IsZero() || !v.Growth.Since.IsZero() && v.Growth.Since.Before(g.Since) {
		g.Since = v.Growth.Since
	}
	g.Relations += v.Growth.Relations
	g.Bytes += v.Growth.Bytes
	g.Rows += v.Growth.Rows
	g.BloatBytes += v.Growth.BloatBytes
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// UsageLimits are what somebody wants to be told of. What is zero is no limit.
type UsageLimits struct {
	Bytes     int64
	Relations int

	DeadShare  float64 // of DeadRows in all rows, from 0 to 1
	BloatShare float64 // of BloatBytes in HeapBytes and ToastBytes, from 0 to 1

	// GrowthPerDay is in bytes. A growth over less than a day counts as that of a day, so that one busy hour is not taken for 24 of
	// them.
	GrowthPerDay int64

	// MinBytes is what the shares are looked at from: those of small tables say nothing, and cost nothing. Defaults to
	// UsageMinBytesDefault.
	MinBytes int64
}

// UsageMinBytesDefault is the default of UsageLimits.MinBytes.
const UsageMinBytesDefault = 16 << 20

// Exceeds returns one line for each limit that u is beyond, which begins with the name of the field in UsageLimits. It returns none
// where all is well.
func (u Usage) Exceeds(l UsageLimits) (lines []string) {
	if l.Bytes > 0 && u.Bytes() > l.Bytes {
		lines = append(lines, fmt.Sprintf("Bytes: %d, limit %d", u.Bytes(), l.Bytes))
	}
	if l.Relations > 0 && u.Relations > l.Relations {
		lines = append(lines, fmt.Sprintf("Relations: %d, limit %d", u.Relations, l.Relations))
	}
	if l.MinBytes <= 0 {
		l.MinBytes = UsageMinBytesDefault
	}
	share := func(name string, part, whole int64, limit float64) {
		if limit > 0 && whole > 0 && float64(part) > limit*float64(whole) && u.Bytes() >= l.MinBytes {
			lines = append(lines, fmt.Sprintf("%s: %.2f, limit %.2f", name, float64(part)/float64(whole), limit))
		}
	}
	share("DeadShare", u.DeadRows, u.Rows+u.DeadRows, l.DeadShare)
	share("BloatShare", u.BloatBytes, u.HeapBytes+u.ToastBytes, l.BloatShare)
	if g := u.Growth; l.GrowthPerDay > 0 && g.Bytes > 0 {
		const day = 24 * time.Hour
		if perDay := float64(g.Bytes) * float64(day) / float64(max(u.At.Sub(g.Since), day)); perDay > float64(l.GrowthPerDay) {
			lines = append(lines, fmt.Sprintf("GrowthPerDay: %.0f, limit %d", perDay, l.GrowthPerDay))
		}
	}
	return lines
}

// TenantUsage is what one tenant's schema takes.
type TenantUsage struct {
	Tenant  Tenant
	Missing bool // there is no such schema, and all figures are 0
	Usage
}

// UsageOpts says what Fleet.Usage reads.
type UsageOpts struct {
	// Tenants are the IDs of those to read. Defaults to all in the registry, whatever their state: a deleted tenant takes its space
	// until it is purged.
	Tenants []string

	// Exact asks for the sizes of the relations' files. It takes a query more for every 10,000 relations, and some ten times as
	// long; it waits for relations that others have locked exclusively, as a migration has. What is not bytes is estimated all the
	// same, and so is BloatBytes.
	Exact bool

	// Over is how old the sample must be that Growth begins with: it is the newest one that is at least this old, or the
	// oldest one where none is. Defaults to 0: the last one. 24 hours make a smooth UsageLimits.GrowthPerDay.
	Over time.Duration
}

func (o *UsageOpts) check() error {
	if o.Over < 0 {
		return invalid("UsageOpts.Over", o.Over.String(), "must not be negative")
	}
	return nil
}

// Usage iterates over what tenants take, ordered by ID. It is one catalog query for each 10,000 tenants, linear in the number of
// relations in the database, and memory is for so many tenants at most, of which it takes some hundred bytes each. No connection is
// held while the loop runs. A tenant that comes or goes meanwhile may be seen or not.
//
// It reads with the owner's rights. The role of the data plane cannot read the samples.
//
// It changes nothing. An error ends it. For an ID that is no tenant's that is ErrTenantNotFound, after those that are. opts may be nil.
func (f *Fleet) Usage(ctx context.Context, opts *UsageOpts) iter.Seq2[TenantUsage, error] {
	var o UsageOpts
	if opts != nil {
		o = *opts
	}
	return func(yield func(TenantUsage, error) bool) {
		if err := cmp.Or(o.check(), f.registryReady(ctx)); err != nil {
			yield(TenantUsage{}, err)
			return
		}
		var ids []string // nil for all
		if len(o.Tenants) > 0 {
			ids = slices.Compact(slices.Sorted(slices.Values(o.Tenants)))
		}
		found := map[string]bool{}
		for after := ""; ; {
			page, err := f.readUsage(ctx, ids, after, &o)
			if err != nil {
				yield(TenantUsage{}, fmt.Errorf("pgtenancy: usage: %w", err))
				return
			}
			for i := range page {
				if ids != nil {
					found[page[i].Tenant.id] = true
				}
				if !yield(page[i], nil) {
					return
				}
			}
			if len(page) < usagePage {
				break
			}
			after = page[len(page)-1].Tenant.id
		}
		for _, id := range ids {
			if !found[id] {
				yield(TenantUsage{}, fmt.Errorf("%w: %s", ErrTenantNotFound, id))
				return
			}
		}
	}
}

// CatalogUsage is what PostgreSQL's own catalogs take, which have rows for all relations of all tenants. Every session keeps in its
// memory what it has used of them.
type CatalogUsage struct {
	Usage                   // of all of them
	Tables map[string]Usage // of each, by its name: "pg_class", "pg_attribute", "pg_depend", ...; without Growth
}

// CatalogUsage reads what the catalogs take: those of the database, and those which all databases of the server have in common. The
// bytes are exact. It changes nothing. Of opts only Over counts; it may be nil.
func (f *Fleet) CatalogUsage(ctx context.Context, opts *UsageOpts) (CatalogUsage, error) {
	var o UsageOpts
	if opts != nil {
		o = *opts
	}
	if err := cmp.Or(o.check(), f.registryReady(ctx)); err != nil {
		return CatalogUsage{}, err
	}
	c := CatalogUsage{Tables: map[string]Usage{}}
	err := f.usageTx(ctx, func(tx pgx.Tx) error {
		rows, _ := tx.Query(ctx, `with `+catalogUsage+` select u.name, `+usageColumns+` from u`) // the error is in rows
		var name string
		var r usageRow
		if _, err := pgx.ForEachRow(rows, append([]any{&name}, r.columns()[:usageOnly]...), func() error {
			u := r.usage()
			c.Tables[name] = u
			c.Add(u)
			return nil
		}); err != nil {
			return err
		}
		rows, _ = tx.Query(ctx, `select `+sampleColumns+` from pgtenancy.usage_samples g where g.tenant_id = '' and g.taken_at = `+sampleTime("$1"), o.Over)
		r = usageRow{Usage: c.Usage}
		_, err := pgx.ForEachRow(rows, r.columns()[usageOnly:], func() error {
			c.Growth = r.usage().Growth
			return nil
		})
		return err
	})
	if err != nil {
		return CatalogUsage{}, fmt.Errorf("pgtenancy: usage of the catalogs: %w", err)
	}
	return c, nil
}

// SampleUsage stores what all tenants and the catalogs take now, for UsageGrowth, and thins older samples: all of the last hour are
// kept, then the first of each hour for two days, of each day for two months, and of each week for two years, in UTC. Call it
// hourly, from one process; where another is at it in this moment, it does nothing. 10,000 tenants have some 250 MB of samples in the end.
//
// It is one transaction, and stores nothing where it fails or is interrupted.
func (f *Fleet) SampleUsage(ctx context.Context) error {
	if err := f.registryReady(ctx); err != nil {
		return err
	}
	err := f.usageTx(ctx, func(tx pgx.Tx) error {
		var locked bool
		if err := tx.QueryRow(ctx, `select pg_try_advisory_xact_lock($1)`, usageLock).Scan(&locked); err != nil || !locked {
			return err
		}
		const into = `insert into pgtenancy.usage_samples (taken_at, tenant_id, relations, bytes, rows, dead_rows, bloat_bytes) `
		if _, err := tx.Exec(ctx, `with `+tenantUsage+into+`select now(), u.id, u.relations, u.heap + u.index + u.toast, u.rows, u.dead, u.bloat from u`,
			"", []string(nil), nil); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `with `+catalogUsage+into+`select now(), '', sum(u.relations), sum(u.heap + u.index + u.toast), sum(u.rows), sum(u.dead),
			sum(u.bloat) from u`); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, thinSamples)
		return err
	})
	if err != nil {
		return fmt.Errorf("pgtenancy: sample usage: %w", err)
	}
	return nil
}

// usageLock is the key of the transaction-level advisory lock that SampleUsage holds: the first eight bytes of the SHA-256 of
// "pgtenancy/usage".
const usageLock = 2977826075684019550

// usagePage is how many tenants one query reads: so many that it is one for nearly everybody, since each of them reads
// all of pg_class.
const usagePage = 10_000

// usageBatch is how many relations one connection is asked the exact size of. Its server process never gives back what it has
// learned of them, some kB each.
const usageBatch = 10_000

// usageKeep is after how many of them the connection is not used any more.
const usageKeep = 1000

// usageTx calls fn in a transaction with the settings that the queries want. The statistics of each table are asked for once, so
// that a copy of them in the server's memory is of no use.
func (f *Fleet) usageTx(ctx context.Context, fn func(pgx.Tx) error) error {
	return pgx.BeginTxFunc(ctx, f.owner.conns, pgx.TxOptions{BeginQuery: beginSQL}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `select set_config(s.name, v.value, true)
			from (values ('search_path', 'pg_catalog, pg_temp'), ('jit', 'off'), ('max_parallel_workers_per_gather', '0'),
				('stats_fetch_consistency', 'none')) v (name, value)
			join pg_catalog.pg_settings s on s.name = v.name -- the last one came with PostgreSQL 15
			`); err != nil {
			return err
		}
		return fn(tx)
	})
}

// tableUsage has for the tables of a subquery r, which has the columns of pg_class, what does not depend on how they are
// grouped: their rows, those that are dead, and the pages that are bloat. Columns that it wants besides: schema, and what
// tableStats selects.
const tableUsage = `
	case when r.relkind in ('r', 'm') then ` + tableRows + ` end as rows,
	case when r.relkind in ('r', 'm') and r.reltuples >= 0 and r.relpages > 0 then greatest(0, r.relpages - coalesce(
		case when r.relpages >= 128 then (
			select ceil(r.reltuples * (4 + 8 * ceil((23 + case when max(s.null_frac) > 0 then (r.relnatts + 7) / 8 else 0 end) / 8.0)
					+ 8 * ceil(sum((1 - s.null_frac) * s.avg_width) / 8.0))
				/ ((current_setting('block_size')::int - 24)
					* coalesce(substring(array_to_string(r.reloptions, ' ') from 'fillfactor=([0-9]+)')::int / 100.0, 1)))
			from pg_stats s where s.schemaname = r.schema and s.tablename = any(array[` + relname8 + `]) and not s.inherited) end,
		ceil(r.relpages * (1 - r.dead / nullif(` + tableRows + ` + r.dead, 0))), r.relpages)) else 0 end as bloat`

// tableRows is the rows of the table r. The server's statistics know them since it was made, but for what a crash has taken.
const tableRows = `case when r.vacuumed is null and r.analyzed is null then greatest(r.live, r.reltuples, 0) else r.live end`

// relname8 is the name of the table r, many times. All tenants have a table of this name: the planner must look for its schema first, and
// not for all tables of the name, of which old statistics may tell it that there is one.
const relname8 = `r.relname, r.relname, r.relname, r.relname, r.relname, r.relname, r.relname, r.relname`

// tableStats selects the statistics of the table c, and null for what is none.
const tableStats = `
	case when c.relkind in ('r', 'm') then pg_stat_get_live_tuples(c.oid) end as live,
	case when c.relkind in ('r', 'm') then pg_stat_get_dead_tuples(c.oid) end as dead,
	case when c.relkind in ('r', 'm') then greatest(pg_stat_get_last_vacuum_time(c.oid), pg_stat_get_last_autovacuum_time(c.oid)) end as vacuumed,
	case when c.relkind in ('r', 'm') then greatest(pg_stat_get_last_analyze_time(c.oid), pg_stat_get_last_autoanalyze_time(c.oid)) end as analyzed`

// tenantUsage is u, which has a row for each tenant of the first $3 that come after $1 and are among $2. Every join is by a unique key
// or reads a catalog once, whether there are statistics of the catalogs or not. "offset 0" keeps the functions from being called for
// each use of their result. Who does not select the OIDs does not pay for them. A TOAST table may have a second index while it is rebuilt.
const tenantUsage = `
t as materialized (
	select t.id, coalesce(t.deleted_schema, t.schema_name) as schema from pgtenancy.tenants t
	where t.id > $1 and ($2::text[] is null or t.id = any($2)) order by t.id limit $3::int8
),
r as (
	select r.*, ` + tableUsage + `
	from (
		select t.id, n.oid as nsp, n.nspname as schema, c.oid, c.relname, c.relkind, c.relpages, c.reltuples, c.relnatts, c.reloptions,
			l.oid as toast_oid, l.relpages as toast_pages, l.reltuples as toast_tuples, x.oid as toast_index_oid, x.relpages as toast_index_pages,
			` + tableStats + `
		from t
			left join pg_namespace n on n.nspname = t.schema
			left join pg_class c on c.relnamespace = n.oid
			left join pg_class l on l.oid = c.reltoastrelid
			left join pg_index i on i.indrelid = c.reltoastrelid and i.indisprimary
			left join pg_class x on x.oid = i.indexrelid
		offset 0
	) r
	offset 0
),
u as (
	select r.id, bool_or(r.nsp is null) as missing, (count(r.oid) + count(r.toast_oid) + count(r.toast_index_oid))::int4 as relations,
		count(*) filter (where r.relkind in ('r', 'm') and r.reltuples < 0)::int4 as unmeasured,
		b.size * coalesce(sum(case when r.reltuples < 0 and r.live > 0 then 1 else r.relpages end) filter (where r.relkind in ('r', 'm', 'S')), 0) as heap,
		b.size * coalesce(sum(r.relpages) filter (where r.relkind = 'i'), 0) as index,
		b.size * coalesce(sum(r.toast_pages + r.toast_index_pages), 0) as toast,
		coalesce(sum(r.rows), 0)::int8 as rows, coalesce(sum(r.dead), 0)::int8 as dead,
		b.size * coalesce(sum(r.bloat + ` + toastBloat + `), 0)::int8 as bloat,
		max(r.vacuumed) as vacuumed, max(r.analyzed) as analyzed,
		array_agg(r.oid) filter (where r.relkind in ('r', 'm', 'S')) as heap_oids,
		array_agg(r.oid) filter (where r.relkind = 'i') as index_oids,
		array_agg(r.toast_oid) filter (where r.toast_oid is not null) || array_agg(r.toast_index_oid) filter (where r.toast_index_oid is not null) as toast_oids
	from r, (select current_setting('block_size')::int8 as size) b
	group by r.id, b.size
)`

// catalogUsage is u, which has a row for each of PostgreSQL's catalogs, with the exact sizes of their files. Their OIDs are below those of
// others' tables, which an index knows.
const catalogUsage = `
r as (
	select r.*, ` + tableUsage + `, pg_table_size(r.oid) as size, ` + heapSize + ` as heap
	from (
		select c.*, 'pg_catalog'::name as schema, l.reltuples as toast_tuples, coalesce(l.relpages, 0) as toast_pages,
			` + tableStats + `
		from pg_class c left join pg_class l on l.oid = c.reltoastrelid
		where c.oid < 16384 and c.relnamespace = 'pg_catalog'::regnamespace and c.relkind = 'r'
		offset 0
	) r
	offset 0
),
u as (
	select r.relname::text as name, 1 + (case when r.reltoastrelid <> 0 then 1 else 0 end
			+ (select count(*) from pg_index i where i.indrelid in (r.oid, nullif(r.reltoastrelid, 0))))::int4 as relations,
		case when r.reltuples < 0 then 1 else 0 end as unmeasured,
		r.heap, pg_indexes_size(r.oid) as index, r.size - r.heap as toast, r.rows::int8, r.dead,
		current_setting('block_size')::int8 * (r.bloat + ` + toastBloat + `)::int8 as bloat, r.vacuumed, r.analyzed
	from r
)`

// toastBloat is the pages of r's TOAST table that are bloat. Four chunks fill a page.
const toastBloat = `case when r.toast_tuples >= 0 then greatest(0, r.toast_pages - ceil(r.toast_tuples / 4)) else 0 end`

// heapSize is the exact size of r without its TOAST table, null where it is gone.
const heapSize = `pg_relation_size(r.oid, 'main') + pg_relation_size(r.oid, 'fsm') + pg_relation_size(r.oid, 'vm') + pg_relation_size(r.oid, 'init')`

// exactSizes selects the sizes of relations, by a number in $1 and by a kind in $2, which is 0 for heaps.
const exactSizes = `select r.n, r.kind, coalesce(sum(case r.kind when 0 then ` + heapSize + ` else pg_table_size(r.oid) end), 0)::int8
	from (select u.n, u.kind, u.oid::regclass from unnest($1::int4[], $2::int4[], $3::oid[]) u (n, kind, oid)) r group by r.n, r.kind`

// sampleTimes is times, which has the times of samples, found in one look at the index each.
const sampleTimes = `
with recursive times as (
	(select taken_at from pgtenancy.usage_samples order by taken_at limit 1)
	union all
	select (select s.taken_at from pgtenancy.usage_samples s where s.taken_at > t.taken_at order by s.taken_at limit 1) from times t where t.taken_at is not null
)`

// deleteSamples deletes the samples of a tenant, by the whole key of each.
const deleteSamples = sampleTimes + `
delete from pgtenancy.usage_samples where tenant_id = $1 and taken_at = any(array(select t.taken_at from times t where t.taken_at is not null))`

// thinSamples deletes samples as SampleUsage says.
const thinSamples = sampleTimes + `
delete from pgtenancy.usage_samples where taken_at = any(array(
	select a.taken_at from (
		select t.taken_at, k.unit, row_number() over (partition by k.unit, date_trunc(k.unit, t.taken_at at time zone 'UTC') order by t.taken_at) as n
		from times t, lateral (select case
			when t.taken_at > now() - interval '1 hour' then 'microseconds'
			when t.taken_at > now() - interval '2 days' then 'hour'
			when t.taken_at > now() - interval '60 days' then 'day'
			when t.taken_at > now() - interval '730 days' then 'week' end as unit) k
		where t.taken_at is not null
	) a
	where a.n > 1 or a.unit is null))`

// sampleTime selects when the sample was taken that UsageOpts.Over asks for, which is the parameter.
func sampleTime(over string) string {
	return `(select coalesce((select max(taken_at) from pgtenancy.usage_samples where taken_at <= now() - ` + over + `::interval),
		(select min(taken_at) from pgtenancy.usage_samples)))`
}

// usageColumns are those of u, and sampleColumns those of a row g of pgtenancy.usage_samples, that usageRow.columns takes.
const (
	usageColumns  = `now(), u.relations, u.unmeasured, u.heap, u.index, u.toast, u.rows, u.dead, u.bloat, u.vacuumed, u.analyzed`
	sampleColumns = `g.taken_at, g.relations, g.bytes, g.rows, g.bloat_bytes`
)

// usageRow is a row of usageColumns and sampleColumns, where what may be null is a pointer.
type usageRow struct {
	Usage
	vacuumed, analyzed, since *time.Time
	relations                 *int
	bytes, rows, bloat        *int64
}

// usageOnly is how many columns usageColumns has.
const usageOnly = 11

func (r *usageRow) columns() []any {
	return []any{
		&r.At, &r.Relations, &r.Unmeasured, &r.HeapBytes, &r.IndexBytes, &r.ToastBytes, &r.Rows, &r.DeadRows, &r.BloatBytes, &r.vacuumed, &r.analyzed,
		&r.since, &r.relations, &r.bytes, &r.rows, &r.bloat,
	}
}

// usage returns what the row says.
func (r *usageRow) usage() Usage {
	u := r.Usage
	if r.vacuumed != nil {
		u.LastVacuum = *r.vacuumed
	}
	if r.analyzed != nil {
		u.LastAnalyze = *r.analyzed
	}
	if r.since != nil {
		u.Growth = UsageGrowth{*r.since, u.Relations - *r.relations, u.Bytes() - *r.bytes, u.Rows - *r.rows, u.BloatBytes - *r.bloat}
	}
	return u
}

// readUsage returns a page of tenants that come after an ID.
func (f *Fleet) readUsage(ctx context.Context, ids []string, after string, o *UsageOpts) (page []TenantUsage, err error) {
	sql := `with ` + tenantUsage + ` select ` + tenantColumns + `, u.missing, ` + usageColumns + `, ` + sampleColumns
	var oids [][3][]uint32 // of each tenant, by kind
	if o.Exact {
		sql += `, u.heap_oids, u.index_oids, u.toast_oids`
	}
	sql += ` from u join pgtenancy.tenants t on t.id = u.id
		left join pgtenancy.usage_samples g on g.tenant_id = t.id and g.taken_at >= t.created_at and g.taken_at = ` + sampleTime("$4") + ` order by t.id`
	err = f.usageTx(ctx, func(tx pgx.Tx) error {
		rows, _ := tx.Query(ctx, sql, after, ids, usagePage, o.Over) // the error is in rows
		defer rows.Close()
		for rows.Next() {
			var missing bool
			var r usageRow
			var own [3][]uint32
			columns := append([]any{&missing}, r.columns()...)
			if o.Exact {
				columns = append(columns, &own[0], &own[1], &own[2])
			}
			t, err := scanTenantAnd(rows, columns...)
			if err != nil {
				return err
			}
			page, oids = append(page, TenantUsage{Tenant: t, Missing: missing, Usage: r.usage()}), append(oids, own)
		}
		return rows.Err()
	})
	if err == nil && o.Exact {
		err = f.readSizes(ctx, page, oids)
	}
	return page, err
}

// readSizes puts the exact sizes of relations into a page. Each query is a transaction, and keeps no lock on a relation that it has
// looked at.
func (f *Fleet) readSizes(ctx context.Context, page []TenantUsage, oids [][3][]uint32) error {
	for first := 0; first < len(page); {
		var ns, kinds []int32
		var batch []uint32
		next := first
		for ; next < len(page) && len(batch) < usageBatch; next++ {
			for kind, own := range oids[next] {
				batch = append(batch, own...)
				for range own {
					ns, kinds = append(ns, int32(next)), append(kinds, int32(kind))
				}
			}
			u := &page[next]
			u.HeapBytes, u.IndexBytes, u.ToastBytes = 0, 0, 0
		}
		err := f.withOwner(ctx, func(wc *conn) error {
			rows, _ := wc.Pgx().Query(ctx, exactSizes, ns, kinds, batch) // the error is in rows
			var n, kind int
			var size int64
			_, err := pgx.ForEachRow(rows, []any{&n, &kind, &size}, func() error {
				*[]*int64{&page[n].HeapBytes, &page[n].IndexBytes, &page[n].ToastBytes}[kind] = size
				return nil
			})
			if len(batch) > usageKeep {
				_ = wc.Pgx().Close(context.WithoutCancel(ctx))
			}
			return err
		})
		if err != nil {
			return err
		}
		first = next
	}
	return nil
}
