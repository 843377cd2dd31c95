package pgtenancy

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy/internal/migration"
)

// migrations are those of one directory.
type migrations struct {
	all     []migration.Migration // by version
	digests []int64               // digests[n] is of the first n
}

func newMigrations(all []migration.Migration) (migrations, error) {
	ms := migrations{all, make([]int64, len(all)+1)}
	for i := range all {
		ms.digests[i+1] = ms.digests[i] ^ digest(all[i].Version, all[i].Checksum)
		for _, s := range []*migration.Script{&all[i].Up, all[i].Down} {
			if s == nil {
				continue
			}
			for _, st := range s.Statements {
				if _, err := checkStatement(inTx, st.SQL); err != nil {
					return migrations{}, &MigrationError{File: s.File, Line: st.Line, Err: err}
				}
			}
		}
	}
	return ms, nil
}

// digest is what a migration contributes to that of a schema, which is the exclusive or of all that the schema has had: one
// number tells whether these are the ones that it should have had, in whatever order they ran.
func digest(version int64, checksum string) int64 {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %s", version, checksum))
	return int64(binary.BigEndian.Uint64(sum[:8]))
}

// newest returns the version of the last one, 0 where there is none.
func (ms *migrations) newest() int64 {
	if len(ms.all) == 0 {
		return 0
	}
	return ms.all[len(ms.all)-1].Version
}

// upTo returns how many migrations have a version of at most v. ok says that v is the version of one, or 0.
func (ms *migrations) upTo(v int64) (n int, ok bool) {
	n, ok = slices.BinarySearchFunc(ms.all, v, func(m migration.Migration, v int64) int { return cmp.Compare(m.Version, v) })
	if ok {
		n++
	}
	return n, ok || v == 0
}

// digest returns that of the first n.
func (ms *migrations) digest(n int) int64 {
	if n == 0 {
		return 0 // also of the zero value
	}
	return ms.digests[n]
}

// standing is where a schema stands, as the registry has it.
type standing struct {
	version int64 // the last migration
	digest  int64 // of all that it has had
}

// task is a migration to run for a schema, and where the schema stands before and after.
type task struct {
	m        *migration.Migration
	script   *migration.Script
	down     bool
	from, to standing
}

// planner tells what schemas need.
type planner struct {
	fleet      *Fleet
	ms         *migrations
	target     int64
	down       bool
	outOfOrder bool
}

// tasks returns what has to run for a schema at a standing. of is the ID of one that stands there, "" for the shared
// schemas. Where the migrations at hand do not lead there, its history says why: that is a query.
func (p *planner) tasks(ctx context.Context, of string, at standing) ([]task, error) {
	n, ok := p.ms.upTo(at.version)
	if ok && p.ms.digest(n) == at.digest {
		had := p.ms.all[:n]
		if p.down {
			return p.downTasks(at, had)
		}
		return p.upTasks(at, func(m *migration.Migration) bool { return m.Version > at.version }), nil
	}
	if p.down && at.version <= p.target || !p.down && at.version > p.ms.newest() { // a newer version of the service was here
		return nil, nil
	}
	return p.investigate(ctx, of, at)
}

func (p *planner) upTasks(at standing, needed func(*migration.Migration) bool) (tasks []task) {
	for i := range p.ms.all {
		m := &p.ms.all[i]
		if m.Version > p.target || !needed(m) {
			continue
		}
		to := standing{max(at.version, m.Version), at.digest ^ digest(m.Version, m.Checksum)}
		tasks = append(tasks, task{m, &m.Up, false, at, to})
		at = to
	}
	return tasks
}

func (p *planner) downTasks(at standing, had []migration.Migration) (tasks []task, err error) {
	for i := len(had) - 1; i >= 0 && had[i].Version > p.target; i-- {
		m := &had[i]
		if m.Down == nil {
			return nil, invalid("MigrateDown's version", strconv.FormatInt(p.target, 10), "must not be below that of "+m.File+", which has no way down")
		}
		to := standing{0, at.digest ^ digest(m.Version, m.Checksum)}
		if i > 0 {
			to.version = had[i-1].Version
		}
		tasks = append(tasks, task{m, m.Down, true, at, to})
		at = to
	}
	return tasks, nil
}

// record is a row of a history.
type record struct {
	version        int64
	name, checksum string
}

// investigate compares a schema's history with the migrations at hand.
func (p *planner) investigate(ctx context.Context, of string, at standing) ([]task, error) {
	// Where it stands and its history are of one moment.
	now := `select version, digest from pgtenancy.tenants where id = $1`
	if of == "" {
		now = `select shared_version, shared_digest from pgtenancy.registry where $1 = ''`
	}
	rows, _ := p.fleet.owner.conns.Query(ctx, `select s.version, s.digest, m.version, m.name, m.checksum
		from (`+now+`) s (version, digest) left join pgtenancy.migrations m on m.tenant_id = $1 order by m.version`, of) // the error is in rows
	var stands standing
	var version *int64
	var name, checksum *string
	var history []record
	_, err := pgx.ForEachRow(rows, []any{&stands.version, &stands.digest, &version, &name, &checksum}, func() error {
		if version != nil {
			history = append(history, record{*version, *name, *checksum})
		}
		return nil
	})
	switch {
	case err != nil:
		return nil, fmt.Errorf("pgtenancy: migrate: read the history: %w", err)
	case stands != at:
		return nil, errClaimed
	}
	problem := &MigrateError{}
	fail := func(file string, sentinel error, format string, args ...any) {
		problem.Failed = append(problem.Failed, &MigrationError{Tenant: of, File: file, Err: fmt.Errorf("%w: %s", sentinel, fmt.Sprintf(format, args...))})
	}
	ran := make(map[int64]record, len(history))
	recorded := standing{}
	for _, r := range history {
		ran[r.version] = r
		recorded.version = r.version
		recorded.digest ^= digest(r.version, r.checksum)
		n, ok := p.ms.upTo(r.version)
		switch {
		case (!ok || n == 0) && (r.version <= p.ms.newest() || p.down):
			fail("", ErrMigrationChanged, "%s ran, and is not among the migrations at hand any more: see Fleet.Baseline", r.name)
		case ok && n > 0 && p.ms.all[n-1].Checksum != r.checksum:
			fail(p.ms.all[n-1].File, ErrMigrationChanged, "it ran with another content: put that back and write a new migration; or see Fleet.Baseline")
		}
	}
	if recorded != at {
		fail("", ErrMigrationChanged, "the registry says version %d, and its history ends at %d and another sum: see Fleet.Baseline", at.version, recorded.version)
	}
	var had []migration.Migration
	for i := range p.ms.all {
		m := &p.ms.all[i]
		if _, ok := ran[m.Version]; ok {
			had = append(had, *m)
		} else if m.Version < at.version && !p.outOfOrder && !p.down {
			fail(m.File, ErrOutOfOrder, "version %d is there already: give it a later number, or set MigrateOpts.AllowOutOfOrder", at.version)
		}
	}
	if len(problem.Failed) > 0 {
		return nil, problem
	}
	if p.down {
		return p.downTasks(at, had)
	}
	return p.upTasks(at, func(m *migration.Migration) bool { _, ok := ran[m.Version]; return !ok }), nil
}

// migrated is the condition for the tenants t that Migrate is about.
const migrated = `t.state in ('active', 'suspended')`

// survey is what one query says of the whole fleet.
type survey struct {
	prepare    bool // a shared schema or a grant is missing
	shared     standing
	groups     []group // of tenants, by version
	unfinished []UnfinishedMigration
}

// group is tenants that stand at one place.
type group struct {
	at      standing
	count   int
	example string
}

// survey asks for the registry's version, and where the shared schemas and the tenants stand, or with ids some of them. The
// error is ErrRegistryOutdated where the registry has to be installed or upgraded first.
func (f *Fleet) survey(ctx context.Context, ids []string) (*survey, error) {
	var s survey
	var version, oldest int
	var found int
	rows, _ := f.owner.conns.Query(ctx, `select r.version, r.oldest, r.shared_version, r.shared_digest,
			exists (select from unnest($1::text[]) s where not exists (select from pg_catalog.pg_namespace n where n.nspname = s))
			or case when $2 = '' then false else not (
				(select bool_and(has_schema_privilege($2, n.oid, 'usage')) from pg_catalog.pg_namespace n where n.nspname = any($1 || 'pgtenancy'::text))
				and has_function_privilege($2, '`+enterSignature+`', 'execute')
				and (select bool_and(has_table_privilege($2, 'pgtenancy.' || t, 'select')) from unnest($3::text[]) t)
				and ($5 = '' or (select bool_and(has_schema_privilege(nullif($5, ''), n.oid, 'usage')) from pg_catalog.pg_namespace n where n.nspname = any($1)))
				and coalesce(has_function_privilege(coalesce(nullif($5, ''), $2), to_regprocedure('`+appendAuditSignature+`'), 'execute'), false)) end,
			g.version, g.digest, g.count, g.example,
			(select array_agg(u.tenant_id order by u.tenant_id) from pgtenancy.unfinished u)
		from pgtenancy.registry r left join (
			select t.version, t.digest, count(*) as count, min(t.id) as example
			from pgtenancy.tenants t where `+migrated+` and ($4::text[] is null or t.id = any($4))
			group by t.version, t.digest
		) g on true order by g.version, g.count desc`, f.pool.cfg.SharedSchemas, f.appRole, registryTables, ids, f.roles) // the error is in rows
	var unfinished []string
	var at, dg *int64
	var count *int
	var example *string
	_, err := pgx.ForEachRow(rows, []any{&version, &oldest, &s.shared.version, &s.shared.digest, &s.prepare, &at, &dg, &count, &example, &unfinished}, func() error {
		if at != nil {
			s.groups = append(s.groups, group{standing{*at, *dg}, *count, *example})
			found += *count
		}
		return nil
	})
	if err := checkRegistry(version, oldest, err); err != nil {
		return nil, err
	}
	f.ready.Store(true)
	if len(unfinished) > 0 {
		rows, _ := f.owner.conns.Query(ctx, `select tenant_id, version, began_at from pgtenancy.unfinished order by tenant_id, version`)
		if s.unfinished, err = pgx.CollectRows(rows, pgx.RowToStructByPos[UnfinishedMigration]); err != nil {
			return nil, fmt.Errorf("pgtenancy: migrate: %w", err)
		}
	}
	if ids != nil && found < len(ids) {
		return &s, f.unknownTenants(ctx, "MigrateOpts.Tenants", ids)
	}
	return &s, nil
}

// unknownTenants returns the error for IDs of which one is not that of a tenant to migrate.
func (f *Fleet) unknownTenants(ctx context.Context, field string, ids []string) error {
	var unknown []string
	err := f.owner.conns.QueryRow(ctx, `select coalesce(array_agg(i), '{}') from unnest($1::text[]) i
		where not exists (select from pgtenancy.tenants t where t.id = i and `+migrated+`)`, ids).Scan(&unknown)
	if err != nil {
		return fmt.Errorf("pgtenancy: migrate: %w", err)
	}
	if len(unknown) == 0 {
		return nil
	}
	return invalid(field, unknown[0], "must be the ID of a tenant that is active or suspended")
}

// plan returns what a run would do, for MigrateOpts.DryRun.
func (r *rollout) plan(ctx context.Context, shared []task) error {
	plan := &MigratePlan{Registry: r.report.Registry, Shared: planned(shared)}
	r.report.Plan = plan
	if r.noRegistry {
		return nil
	}
	for _, g := range r.survey.groups {
		tasks, err := r.planner.tasks(ctx, g.example, g.at)
		if err != nil {
			return err
		}
		if len(tasks) == 0 {
			continue
		}
		rows, _ := r.fleet.owner.conns.Query(ctx, `select t.id from pgtenancy.tenants t where `+migrated+` and t.version = $1 and t.digest = $2
			and ($3::text[] is null or t.id = any($3)) order by t.id`, g.at.version, g.at.digest, r.opts.Tenants) // the error is in rows
		ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return fmt.Errorf("pgtenancy: migrate: %w", err)
		}
		plan.Tenants = append(plan.Tenants, PlannedTenants{g.at.version, ids, planned(tasks)})
	}
	slices.SortStableFunc(plan.Tenants, func(a, b PlannedTenants) int { return cmp.Compare(len(b.Tenants), len(a.Tenants)) })
	return nil
}

func planned(tasks []task) (all []PlannedMigration) {
	for _, t := range tasks {
		var sql []string
		for _, st := range t.script.Statements {
			sql = append(sql, st.SQL+";\n")
		}
		all = append(all, PlannedMigration{t.m.Version, t.m.Name, t.script.File, strings.Join(sql, ""), t.script.NoTx})
	}
	return all
}
