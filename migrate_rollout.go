package pgtenancy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgtenancy/pgtenancy/internal/wire"
)

// rollout is one call of Migrate or MigrateDown.
type rollout struct {
	fleet      *Fleet
	opts       MigrateOpts
	planner    planner
	report     *MigrateReport
	survey     *survey
	noRegistry bool // there is none yet, and DryRun makes none
	needed     bool // tenants need migrations

	mu      sync.Mutex
	failed  map[string]*MigrationError
	later   map[string]*retry
	busy    map[string]struct{} // tenants that are being migrated by this call
	settled map[string]struct{} // tenants for which it can do nothing
	pace    time.Duration       // of a tenant, lately
	stopped error
	started time.Time
	wave    Wave
	told    Progress
	done    chan struct{} // holds one where a tenant was finished since it was last looked at
}

// retry is when a tenant that could not be migrated is tried again.
type retry struct {
	first, next time.Time
	tries       int
}

// How many tenants are read at a time, and how long it takes to look again at those that others are at work on; how many are
// a group, and how long that may take.
const (
	rolloutPage  = 256
	rolloutPause = 200 * time.Millisecond
	groupMost    = 8
	groupTime    = 50 * time.Millisecond
)

// rollout runs Migrate, or with down MigrateDown.
func (f *Fleet) rollout(ctx context.Context, opts *MigrateOpts, down *int64) (report *MigrateReport, err error) {
	started := time.Now()
	report = &MigrateReport{}
	defer func() { report.Duration = time.Since(started) }()
	r := &rollout{
		fleet: f, report: report, failed: map[string]*MigrationError{}, later: map[string]*retry{}, busy: map[string]struct{}{}, settled: map[string]struct{}{},
		done: make(chan struct{}, 1),
	}
	if opts != nil {
		r.opts = *opts
	}
	if err := r.check(down); err != nil {
		return report, err
	}
	shared, err := r.prepare(ctx)
	if err != nil {
		return report, err
	}
	if r.opts.DryRun {
		return report, r.plan(ctx, shared)
	}
	if len(shared) > 0 {
		if err := r.shared(ctx, shared); err != nil {
			return report, err
		}
	}
	if len(r.planner.ms.all) == 0 {
		return report, nil
	}
	err = r.waves(ctx)
	return report, errors.Join(err, r.failures())
}

// check looks at the options and fills in the defaults.
func (r *rollout) check(down *int64) error {
	o, f := &r.opts, r.fleet
	r.planner = planner{fleet: f, ms: &f.tenant, target: f.tenant.newest(), outOfOrder: o.AllowOutOfOrder}
	field, target := "MigrateOpts.Target", o.Target
	if down != nil {
		field, target = "MigrateDown's version", *down
		r.planner.down, r.planner.target = true, target
	} else if target != 0 {
		r.planner.target = target
	}
	if _, ok := f.tenant.upTo(target); !ok {
		return invalid(field, strconv.FormatInt(target, 10), "must be the version of a tenant migration")
	}
	switch {
	case o.MaxFailures < 0:
		return invalid("MigrateOpts.MaxFailures", strconv.Itoa(o.MaxFailures), "must not be negative")
	case o.MaxFailureShare < 0 || o.MaxFailureShare > 1:
		return invalid("MigrateOpts.MaxFailureShare", fmt.Sprint(o.MaxFailureShare), "must be between 0 and 1")
	case o.CanaryCount < 0:
		return invalid("MigrateOpts.CanaryCount", strconv.Itoa(o.CanaryCount), "must not be negative")
	case o.WaveSize < 0:
		return invalid("MigrateOpts.WaveSize", strconv.Itoa(o.WaveSize), "must not be negative")
	}
	if o.Tenants != nil {
		o.Tenants = unique(o.Tenants)
		for _, id := range o.Canary {
			if !slices.Contains(o.Tenants, id) {
				return invalid("MigrateOpts.Canary", id, "must be among MigrateOpts.Tenants")
			}
		}
	}
	o.Canary = unique(o.Canary)
	if o.Parallel <= 0 {
		o.Parallel = ParallelDefault
	}
	o.Parallel = min(o.Parallel, int(f.owner.cfg.Conns.MaxConns))
	if o.LockRetry <= 0 {
		o.LockRetry = LockRetryDefault
	}
	return nil
}

func unique(ids []string) []string {
	ids = slices.Clone(ids)
	slices.Sort(ids)
	return slices.Compact(ids)
}

// prepare finds out what there is to do, and installs or upgrades the registry. It returns what the shared schemas need.
func (r *rollout) prepare(ctx context.Context) (shared []task, err error) {
	f := r.fleet
	r.survey, err = f.survey(ctx, r.opts.Tenants)
	if errors.Is(err, ErrRegistryOutdated) && !errors.Is(err, errRegistryTooNew) {
		if r.planner.down {
			return nil, err
		}
		r.report.Registry = true
		if r.opts.DryRun {
			r.survey, r.noRegistry = &survey{}, true
			err = nil
		}
	} else if err != nil {
		return nil, err
	}
	if !r.opts.DryRun && (err != nil || r.survey.prepare) {
		from, err := f.installRegistry(ctx)
		if err != nil {
			return nil, err
		}
		r.report.Registry = from < registryVersion
		if r.survey, err = f.survey(ctx, r.opts.Tenants); err != nil {
			return nil, err
		}
	}
	if len(r.opts.Canary) > 0 && !r.noRegistry {
		if err := f.unknownTenants(ctx, "MigrateOpts.Canary", r.opts.Canary); err != nil {
			return nil, err
		}
	}

	// All that is wrong with the migrations at hand, before anything is changed.
	problems := &MigrateError{}
	collect := func(tasks []task, err error) ([]task, error) {
		var some *MigrateError
		if errors.As(err, &some) {
			problems.Failed = append(problems.Failed, some.Failed...)
			return nil, nil
		}
		return tasks, err
	}
	if !r.planner.down {
		p := planner{fleet: f, ms: &f.shared, target: f.shared.newest(), outOfOrder: r.opts.AllowOutOfOrder}
		shared, err = collect(p.tasks(ctx, "", r.survey.shared))
		for errors.Is(err, errClaimed) { // just now
			if r.survey, err = f.survey(ctx, r.opts.Tenants); err == nil {
				shared, err = collect(p.tasks(ctx, "", r.survey.shared))
			}
		}
		if err != nil {
			return nil, err
		}
	}
	for _, g := range r.survey.groups {
		tasks, err := collect(r.planner.tasks(ctx, g.example, g.at))
		if err != nil && !errors.Is(err, errClaimed) {
			return nil, err
		}
		r.needed = r.needed || err != nil || len(tasks) > 0
	}
	if len(problems.Failed) > 0 {
		return nil, problems
	}
	return shared, nil
}

// shared runs shared migrations.
func (r *rollout) shared(ctx context.Context, tasks []task) error {
	f := r.fleet
	p := planner{fleet: f, ms: &f.shared, target: f.shared.newest(), outOfOrder: r.opts.AllowOutOfOrder}
	var wait *retry
	for len(tasks) > 0 {
		done, err := f.runJobs(ctx, jobsOf(f.sharedSchema(), tasks), r.opts.LockTimeout)
		for _, t := range tasks[:done] {
			r.report.Shared = append(r.report.Shared, t.m.Name)
		}
		switch {
		case err == nil:
			return nil
		case errors.Is(err, errClaimed): // by a process that was faster
		case r.patient(err, &wait):
			select {
			case <-time.After(time.Until(wait.next)):
			case <-ctx.Done():
				return errors.Join(fmt.Errorf("pgtenancy: migrate: %w", ctx.Err()), err)
			}
		default:
			return err
		}
		s, err := f.survey(ctx, nil)
		if err != nil {
			return err
		}
		switch next, err := p.tasks(ctx, "", s.shared); {
		case err == nil:
			tasks = next
		case !errors.Is(err, errClaimed):
			return err
		}
	}
	return nil
}

func jobsOf(s *schema, tasks []task) []job {
	jobs := make([]job, len(tasks))
	for i, t := range tasks {
		jobs[i] = job{s, t}
	}
	return jobs
}

// patient reports whether a task that failed with err is worth another try, and sets when.
func (r *rollout) patient(err error, l **retry) bool {
	if !isCode(err, "55P03", "40P01", "40001") { // lock_not_available, deadlock_detected, serialization_failure
		return false
	}
	now := time.Now()
	if *l == nil || (*l).first.IsZero() {
		*l = &retry{first: now}
	}
	if now.Sub((*l).first) >= r.opts.LockRetry {
		return false
	}
	pause := min(rolloutPause<<min((*l).tries, 10), 30*time.Second)
	pause = pause/2 + rand.N(pause)
	(*l).tries++
	(*l).next = now.Add(min(pause, r.opts.LockRetry-now.Sub((*l).first)+time.Millisecond))
	return true
}

// slice says which tenants make a wave: some by name, or all in a range.
type slice struct {
	ids      []string // nil for all
	from, to string   // IDs after from and up to to; "" is open
}

// waves migrates the tenants, a wave after the other.
func (r *rollout) waves(ctx context.Context) error {
	if !r.needed {
		return nil
	}
	r.started = time.Now()
	o := &r.opts
	if canaries := o.Canary; len(canaries)+o.CanaryCount > 0 {
		more, err := r.ids(ctx, slice{}, o.CanaryCount, canaries)
		if err != nil {
			return err
		}
		if err := r.one(ctx, slice{ids: append(append([]string{}, canaries...), more...)}, true); err != nil {
			return err
		}
	}
	for from := ""; o.WaveSize > 0; {
		ids, err := r.ids(ctx, slice{from: from}, o.WaveSize, nil)
		if err != nil {
			return err
		}
		if len(ids) < o.WaveSize {
			break // the last one has no end, for those that are provisioned meanwhile
		}
		to := ids[len(ids)-1]
		if err := r.one(ctx, slice{from: from, to: to}, false); err != nil {
			return err
		}
		from = to
	}
	return r.one(ctx, slice{}, false)
}

// one migrates a wave.
func (r *rollout) one(ctx context.Context, s slice, canary bool) error {
	next, err := r.ids(ctx, s, 1, nil)
	if err != nil || len(next) == 0 {
		return err
	}
	if r.wave.Number > 0 && r.opts.AfterWave != nil {
		if err := r.opts.AfterWave(ctx, r.wave); err != nil {
			r.stop(fmt.Errorf("pgtenancy: after wave %d: %w", r.wave.Number, err))
			return nil
		}
	}
	r.wave = Wave{Number: r.wave.Number + 1, Canary: canary}
	err = parallel(ctx, r.opts.Parallel, r.feed(ctx, s), func(g []candidate) { r.migrate(ctx, g) })
	if told := r.fleet.tellAll(ctx); err == nil {
		err = told
	}
	switch {
	case err != nil:
		return fmt.Errorf("pgtenancy: migrate: %w", err)
	case r.stopped != nil:
		return nil
	case canary && r.wave.Failed > 0:
		r.stop(fmt.Errorf("%w: %d of %d canaries failed", ErrMigrateStopped, r.wave.Failed, r.wave.Done))
	}
	return nil
}

// candidate is a tenant that was seen to need migrations.
type candidate struct {
	Tenant
	digest int64
}

// needy returns the condition for the tenants t that need anything, with its arguments from number $1 on.
func (r *rollout) needy(s slice) (condition string, args []any) {
	p := &r.planner
	condition = migrated + ` and ($1::text[] is null or t.id = any($1)) and ($2::text[] is null or t.id = any($2))
		and t.id > $3 and ($4 = '' or t.id <= $4) and t.id <> all($5::text[])`
	out := slices.AppendSeq([]string{}, maps.Keys(r.failed))
	out = slices.AppendSeq(slices.AppendSeq(out, maps.Keys(r.busy)), maps.Keys(r.settled))
	args = []any{r.opts.Tenants, s.ids, s.from, s.to, out, p.target}
	switch {
	case p.down:
		return condition + ` and t.version > $6`, args
	case p.outOfOrder:
		n, _ := p.ms.upTo(p.target)
		return condition + ` and (t.version < $6 or t.version <= $7 and t.digest <> all($8::bigint[]))`,
			append(args, p.ms.newest(), p.ms.digests[min(n, len(p.ms.digests)):])
	}
	return condition + ` and t.version < $6`, args
}

// ids returns the first tenants of a slice that need anything, but for some.
func (r *rollout) ids(ctx context.Context, s slice, most int, but []string) ([]string, error) {
	if most == 0 || r.stopped != nil {
		return nil, nil
	}
	condition, args := r.needy(s)
	args = append(args, but, most)
	rows, _ := r.fleet.owner.conns.Query(ctx, `select t.id from pgtenancy.tenants t where `+condition+
		fmt.Sprintf(` and ($%d::text[] is null or t.id <> all($%[1]d)) order by t.id limit $%d`, len(args)-1, len(args)), args...) // the error is in rows
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("pgtenancy: migrate: list tenants: %w", err)
	}
	return ids, nil
}

// feed yields the tenants of a slice that need anything, until there is none that did not fail: those that stand at one place in
// groups, to be migrated one after the other. It reads a page at a time, and takes each page in random order, so that many
// processes do not all go for the same tenants.
func (r *rollout) feed(ctx context.Context, s slice) iter.Seq2[[]candidate, error] {
	return func(yield func([]candidate, error) bool) {
		for {
			at := s
			seen, yielded, working := 0, 0, false
			for {
				page, busy, err := r.page(ctx, at)
				if err != nil {
					yield(nil, err)
					return
				}
				seen += len(page)
				working = working || busy
				if len(page) > 0 {
					at.from = page[len(page)-1].id
				}
				last := len(page) < rolloutPage
				rand.Shuffle(len(page), func(i, j int) { page[i], page[j] = page[j], page[i] })
				slices.SortStableFunc(page, func(a, b candidate) int {
					return cmp.Or(cmp.Compare(a.version, b.version), cmp.Compare(a.digest, b.digest))
				})
				for len(page) > 0 {
					if r.isStopped() {
						return
					}
					group := r.take(&page)
					if len(group) == 0 {
						continue
					}
					yielded++
					if !yield(group, nil) {
						return
					}
				}
				if last {
					break
				}
			}
			if yielded > 0 {
				continue
			}
			if seen == 0 && !working {
				clear(r.later) // others did these
				return
			}
			select {
			case <-time.After(r.pause()):
			case <-r.done:
			case <-ctx.Done():
				yield(nil, ctx.Err())
				return
			}
		}
	}
}

// page reads the tenants of a slice that need anything and are not being migrated by this call, and counts those of the whole
// fleet. busy says that there were some that are being migrated.
func (r *rollout) page(ctx context.Context, s slice) (page []candidate, busy bool, err error) {
	r.mu.Lock()
	condition, args := r.needy(s)
	all, _ := r.needy(slice{})
	known := r.told.Done + len(r.busy) // of the others none can be finished before it was yielded
	busy = len(r.busy) > 0
	r.mu.Unlock()
	// Both conditions are of the same arguments, but that the count takes no notice of the slice.
	all = strings.NewReplacer("$2", "null", "$3", "''", "$4", "''").Replace(all)
	rows, _ := r.fleet.owner.conns.Query(ctx, `select `+tenantColumns+`, t.digest, (select count(*) from pgtenancy.tenants t where `+all+`)
		from pgtenancy.tenants t where `+condition+` order by t.id limit `+strconv.Itoa(rolloutPage), args...) // the error is in rows
	count := 0
	page, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (c candidate, err error) {
		c.Tenant, err = scanTenantAnd(row, &c.digest, &count)
		return c, err
	})
	if err != nil {
		return nil, busy, fmt.Errorf("list tenants: %w", err)
	}
	if len(page) > 0 {
		r.mu.Lock()
		r.told.Total = known + count
		r.mu.Unlock()
	}
	return page, busy, nil
}

// take takes tenants off the page that stand at one place, and marks them as being migrated. Those that are to be tried later
// it drops. It takes several where tenants go fast, which saves most of what each of them costs beside its statements; a
// migration that takes its time would keep the others of its group waiting, with connections to spare.
func (r *rollout) take(page *[]candidate) (group []candidate) {
	r.mu.Lock()
	defer r.mu.Unlock()
	most := 1
	if r.pace > 0 {
		most = max(1, min(groupMost, int(groupTime/r.pace)))
	}
	for len(group) < most && len(*page) > 0 {
		c := (*page)[0]
		if len(group) > 0 && (c.version != group[0].version || c.digest != group[0].digest) {
			break
		}
		*page = (*page)[1:]
		l := r.later[c.id]
		if l != nil && time.Now().Before(l.next) || r.failed[c.id] != nil { // since the page was read
			continue
		}
		r.busy[c.id] = struct{}{}
		group = append(group, c)
		if l != nil {
			break // it will keep nobody waiting
		}
	}
	return group
}

// pause returns for how long there is nothing to begin.
func (r *rollout) pause() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	pause := time.Second // others may provision
	for _, l := range r.later {
		pause = min(pause, max(time.Until(l.next), time.Millisecond))
	}
	return pause
}

// migrate runs what tenants need that stand at one place, a tenant after the other.
func (r *rollout) migrate(ctx context.Context, group []candidate) {
	defer func() {
		r.mu.Lock()
		for _, c := range group { // that were not begun
			delete(r.busy, c.id)
		}
		r.mu.Unlock()
		select {
		case r.done <- struct{}{}:
		default:
		}
	}()
	for len(group) > 0 && ctx.Err() == nil && !r.isStopped() {
		began := time.Now()
		tasks, err := r.planner.tasks(ctx, group[0].id, standing{group[0].version, group[0].digest})
		if err != nil || len(tasks) == 0 {
			r.finish(ctx, group[0], 0, len(tasks), err)
			group = group[1:]
			continue
		}
		var jobs []job
		for _, c := range group {
			jobs = append(jobs, jobsOf(r.fleet.tenantSchema(c.Tenant), tasks)...)
		}
		done, err := r.fleet.runJobs(ctx, jobs, r.opts.LockTimeout)
		r.mu.Lock()
		r.pace = time.Since(began) / time.Duration(min(done/len(tasks)+1, len(group)))
		r.mu.Unlock()
		for len(group) > 0 && done >= len(tasks) {
			r.finish(ctx, group[0], len(tasks), len(tasks), nil)
			group, done = group[1:], done-len(tasks)
		}
		if err != nil && len(group) > 0 {
			r.finish(ctx, group[0], done, len(tasks), err)
			group = group[1:]
		}
	}
}

// finish notes what became of a tenant of whose tasks some are done.
func (r *rollout) finish(ctx context.Context, c candidate, done, tasks int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.busy, c.id)
	r.report.Applied += done
	l := r.later[c.id]
	switch {
	case errors.Is(err, errClaimed):
		if l == nil {
			l = &retry{}
		}
		l.next = time.Now().Add(rolloutPause/2 + rand.N(rolloutPause))
		r.later[c.id] = l
		return
	case err != nil && ctx.Err() == nil && r.patient(err, &l):
		r.later[c.id] = l
		return
	case err == nil && tasks == 0: // MigrateOpts.Target is below what it needs
		r.settled[c.id] = struct{}{}
		return
	}
	delete(r.later, c.id)
	p := &r.told
	p.Tenant, p.Err, p.Wave = c.id, nil, r.wave.Number
	p.Done++
	r.wave.Done++
	if err != nil {
		var failed *MigrationError
		if !errors.As(err, &failed) {
			failed = &MigrationError{Tenant: c.id, Err: err}
		}
		p.Err = failed
		p.Failed++
		r.wave.Failed++
		r.failed[c.id] = failed
		r.enough(failed)
	} else {
		r.report.Tenants++
	}
	p.Total = max(p.Total, p.Done)
	p.Elapsed = time.Since(r.started)
	p.Rate = float64(p.Done) / max(p.Elapsed.Seconds(), 1e-9)
	p.Remaining = time.Duration(float64(p.Total-p.Done) / p.Rate * float64(time.Second))
	if r.opts.OnProgress != nil {
		r.opts.OnProgress(*p)
	}
}

// enough stops the run after too many failures, and where the connection is to blame: it would fail for all of them. The
// caller holds mu.
func (r *rollout) enough(failed *MigrationError) {
	o, n := &r.opts, len(r.failed)
	switch {
	case r.stopped != nil:
	case o.MaxFailures > 0 && n >= o.MaxFailures, o.MaxFailureShare > 0 && float64(n) >= o.MaxFailureShare*float64(r.told.Total):
		r.stopped = fmt.Errorf("%w: %d of %d tenants failed", ErrMigrateStopped, n, r.told.Total)
	case errors.As(failed, new(*pgconn.ConnectError)):
		r.stopped = fmt.Errorf("%w: PostgreSQL cannot be reached", ErrMigrateStopped)
	}
}

func (r *rollout) stop(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped == nil {
		r.stopped = err
	}
}

func (r *rollout) isStopped() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stopped != nil
}

// tellAll tells all caches that tenants have other versions now.
func (f *Fleet) tellAll(ctx context.Context) error {
	f.directory.forgetAll()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), wire.CleanupTimeout)
	defer cancel()
	return f.withOwner(ctx, func(wc *conn) error {
		_, err := wc.Run(ctx, []wire.Step{notifyStep("")})
		return err
	})
}

// failures returns the error for what failed, nil where nothing did.
func (r *rollout) failures() error {
	if len(r.failed) == 0 && r.stopped == nil {
		return nil
	}
	e := &MigrateError{Stopped: r.stopped}
	for _, err := range r.failed {
		e.Failed = append(e.Failed, err)
	}
	slices.SortFunc(e.Failed, func(a, b *MigrationError) int { return strings.Compare(a.Tenant, b.Tenant) })
	return e
}
