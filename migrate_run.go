package pgtenancy

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pgtenancy/pgtenancy/internal/ident"
	"github.com/pgtenancy/pgtenancy/internal/migration"
	"github.com/pgtenancy/pgtenancy/internal/wire"
)

// schema is one that is migrated: a tenant's, or with the zero Tenant the first shared one.
type schema struct {
	tenant Tenant
	scope  *wire.Scope
	lock   int64 // the key of the advisory lock that whoever migrates it holds
}

// tenantLock returns the key of the advisory lock that whoever changes a tenant's schema holds.
func tenantLock(id string) int64 {
	sum := sha256.Sum256([]byte("pgtenancy/tenant/" + id))
	return int64(binary.BigEndian.Uint64(sum[:8]))
}

func (f *Fleet) tenantSchema(t Tenant) *schema { return &schema{t, f.ownerScope(t), tenantLock(t.id)} }

func (f *Fleet) sharedSchema() *schema { return &schema{Tenant{}, &f.owner.shared, registryLock} }

// errClaimed says that another process is at work on the schema, or has been.
var errClaimed = errors.New("pgtenancy: claimed by another process")

// job is a task for a schema.
type job struct {
	*schema
	task
}

// transactionsMost is how many jobs travel in one pipeline.
const transactionsMost = 50

// runJobs runs jobs in their order. It returns how many are done. The error, which is that of the next one, is errClaimed or a
// *MigrationError.
func (f *Fleet) runJobs(ctx context.Context, jobs []job, lockTimeout time.Duration) (done int, err error) {
	for done < len(jobs) {
		n := 0
		err := f.withOwner(ctx, func(wc *conn) (err error) { // each anew: runAlone closes it
			switch j := jobs[done]; {
			case j.script.Func != nil:
				n, err = f.runFunc(ctx, wc, j, lockTimeout)
			case j.script.NoTx:
				n, err = f.runAlone(ctx, wc, j, lockTimeout)
			default:
				n, err = f.runTransactions(ctx, wc, jobs[done:], lockTimeout)
			}
			return err
		})
		if done += n; err != nil && done > 0 {
			err = errors.Join(err, f.flush(ctx, jobs[done-1]))
		}
		var failed *MigrationError
		switch {
		case err == nil:
		case errors.Is(err, errClaimed), errors.As(err, &failed):
			return done, err
		case done < len(jobs):
			return done, &MigrationError{Tenant: jobs[done].tenant.id, Err: err}
		default:
			return done, &MigrationError{Err: err}
		}
	}
	return done, nil
}

// claimSteps begin the transaction of a task. They fail where the schema does not stand where the task begins any more, or
// where somebody else is at work on it; else they put it where the task ends. Nobody waits for a tenant: there are others.
// The shared schemas are waited for, and so the claim is a statement after the lock, with a snapshot of its own.
//
// With flush the commit waits for the disk. Without, a later one does for both.
func claimSteps(j job, lockTimeout time.Duration, flush bool) []wire.Step {
	s, t := j.schema, j.task
	timeout := timeoutSetting(lockTimeout)
	steps := []wire.Step{{SQL: beginSQL, Keep: true}}
	if s.tenant.id == "" {
		return append(steps,
			wire.Step{SQL: `select pg_catalog.pg_advisory_xact_lock($1)`, Args: []any{s.lock}},
			wire.Step{
				SQL: `with claimed as (
					update pgtenancy.registry set shared_version = $3, shared_digest = $4
					where shared_version = $1 and shared_digest = $2 and not exists (select from pgtenancy.unfinished where tenant_id = '')
					returning 1
				) ` + settle(`exists (select from pgtenancy.registry where shared_version = $1 and shared_digest = $2)`, "$5", "$6"),
				Args: []any{t.from.version, t.from.digest, t.to.version, t.to.digest, timeout, flush},
			})
	}
	return append(steps, wire.Step{
		SQL: `with claimed as (
				update pgtenancy.tenants t set version = $4, digest = $5, updated_at = now()
				where t.id = $1 and t.version = $2 and t.digest = $3 and ` + migrated + `
					and pg_catalog.pg_try_advisory_xact_lock($6)
					and not exists (select from pgtenancy.unfinished where tenant_id = $1)
				returning 1
			) ` + settle(`exists (select from pgtenancy.tenants t join pgtenancy.unfinished u on u.tenant_id = t.id
				where t.id = $1 and t.version = $2 and t.digest = $3) and pg_catalog.pg_try_advisory_xact_lock($6)`, "$7", "$8"),
		Args: []any{s.tenant.id, t.from.version, t.from.digest, t.to.version, t.to.digest, s.lock, timeout, flush},
		Keep: true,
	})
}

// timeoutSetting returns the value for lock_timeout, "" for what the connection has.
func timeoutSetting(d time.Duration) string {
	if d <= 0 {
		return ""
	}
	return strconv.FormatInt(max(d.Milliseconds(), 1), 10)
}

// settle returns the end of the claiming statement. It fails with 22P02 where nothing was claimed, and says whether that is since
// something is unfinished: concat is STABLE, which keeps the planner from folding the failing cast into a constant. It also sets
// what holds for the migration.
func settle(unfinished, lockTimeout, flush string) string {
	return `select case when exists (select from claimed) then 0
			when ` + unfinished + ` then pg_catalog.concat('unfinished')::int
			else pg_catalog.concat('claimed by another process')::int end,
		pg_catalog.set_config('row_security', 'off', true),
		case when ` + lockTimeout + ` <> '' then pg_catalog.set_config('lock_timeout', ` + lockTimeout + `, true)
			when pg_catalog.current_setting('lock_timeout') = '0' then pg_catalog.set_config('lock_timeout', '` + strconv.FormatInt(LockTimeoutDefault.Milliseconds(), 10) + `', true) end,
		case when not ` + flush + `::bool then pg_catalog.set_config('synchronous_commit', 'off', true) end`
}

// recordStep writes the job into the history, or takes it out.
func recordStep(j job) wire.Step {
	s, t := j.schema, j.task
	if t.down {
		return wire.Step{SQL: `delete from pgtenancy.migrations where tenant_id = $1 and version = $2`, Args: []any{s.tenant.id, t.m.Version}, Keep: true}
	}
	return wire.Step{
		SQL: `insert into pgtenancy.migrations (tenant_id, version, name, checksum, duration)
			values ($1, $2, $3, $4, pg_catalog.clock_timestamp() - pg_catalog.transaction_timestamp())`,
		Args: []any{s.tenant.id, t.m.Version, t.m.Name, t.m.Checksum}, Keep: true,
	}
}

var commitStep = wire.Step{SQL: "commit", Keep: true}

// leaveStep leaves the schema's scope. PostgreSQL would plan the statement that records the migration anew in each.
var leaveStep = wire.Step{SQL: "set local search_path to ''", Keep: true}

// origin says what a step of a pipeline is about.
type origin struct {
	script    *migration.Script
	statement int // of the script; one of those below where it is none of its own
}

const (
	around   = -1
	claiming = -2
)

// pipeline is steps that travel together.
type pipeline struct {
	steps   []wire.Step
	origins []origin
}

func (p *pipeline) add(at origin, steps ...wire.Step) {
	for _, step := range steps {
		p.steps, p.origins = append(p.steps, step), append(p.origins, at)
	}
}

// script adds a script and what goes around it.
func (p *pipeline) script(s *migration.Script, scope *wire.Scope) {
	before, steps, after := scriptSteps(s)
	p.add(origin{s, around}, wire.Step{Scope: scope})
	p.add(origin{s, around}, before...)
	for i, step := range steps {
		p.add(origin{s, i}, step)
	}
	p.add(origin{s, around}, after...)
}

// run sends the pipeline, of which the steps are about s. It returns how many of them succeeded. The error is errClaimed or a
// *MigrationError, or where no migration is to blame another one.
func (p *pipeline) run(ctx context.Context, wc *conn, of func(step int) *schema) (done int, err error) {
	tags, err := wc.Run(ctx, p.steps)
	if err == nil {
		return len(tags), nil
	}
	done = len(tags)
	if done == len(p.origins) { // at the end of the pipeline, which is after a commit
		return done, err
	}
	tenant := of(done).tenant.id
	if tenant != "" {
		err = notFound(err)
	}
	switch at := p.origins[done]; {
	case at.statement == claiming && isCode(err, "22P02") && strings.Contains(err.Error(), "unfinished"):
		// It saw that before it had the lock.
		unfinished := true
		if qErr := wc.Pgx().QueryRow(ctx, `select exists (select from pgtenancy.unfinished where tenant_id = $1)`, tenant).Scan(&unfinished); qErr == nil && !unfinished {
			return done, errClaimed
		}
		err = fmt.Errorf("%w: a migration that is no transaction is unfinished, and has to be finished first, or forgotten by Fleet.Baseline", ErrMigrationChanged)
		return done, failedAt(tenant, at.script, around, err)
	case at.statement == claiming && isCode(err, "22P02"):
		return done, errClaimed
	case at.script != nil:
		return done, failedAt(tenant, at.script, max(at.statement, around), err)
	}
	return done, err
}

// always says that all steps of a pipeline are about one schema.
func always(s *schema) func(int) *schema { return func(int) *schema { return s } }

// runTransactions runs the first of the jobs that are one transaction of SQL each, in one pipeline. Only the commit of the last
// job of all waits for the disk.
func (f *Fleet) runTransactions(ctx context.Context, wc *conn, jobs []job, lockTimeout time.Duration) (done int, err error) {
	all := len(jobs)
	for i, j := range jobs {
		if j.script.Func != nil || j.script.NoTx || i == transactionsMost {
			jobs = jobs[:i]
			break
		}
	}
	var p pipeline
	ends := make([]int, len(jobs)) // of each, in p
	for i, j := range jobs {
		p.add(origin{j.script, claiming}, claimSteps(j, lockTimeout, i == all-1)...)
		p.script(j.script, j.scope)
		p.add(origin{j.script, around}, leaveStep, recordStep(j), commitStep)
		ends[i] = len(p.steps)
	}
	n, err := p.run(ctx, wc, func(step int) *schema {
		at, _ := slices.BinarySearch(ends, step+1)
		return jobs[at].schema
	})
	for done < len(ends) && n >= ends[done] {
		done++
	}
	return done, err
}

// flush has what was committed before wait for the disk after all, by a commit that changes nothing.
func (f *Fleet) flush(ctx context.Context, j job) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), wire.CleanupTimeout)
	defer cancel()
	sql, args := `update pgtenancy.tenants set updated_at = updated_at where id = $1`, []any{j.tenant.id}
	if j.tenant.id == "" {
		sql, args = `update pgtenancy.registry set version = version`, nil
	}
	return f.withOwner(ctx, func(wc *conn) error {
		_, err := wc.Run(ctx, []wire.Step{{SQL: sql, Args: args}})
		return err
	})
}

// runFunc runs a job in Go.
func (f *Fleet) runFunc(ctx context.Context, wc *conn, j job, lockTimeout time.Duration) (done int, err error) {
	committed := false
	defer func() { // also when the function panics
		if !committed && wc.TxStatus() != 'I' {
			_ = wc.Rollback(ctx) // a connection on which that fails is closed
		}
	}()
	var p pipeline
	p.add(origin{j.script, claiming}, claimSteps(j, lockTimeout, true)...)
	p.add(origin{j.script, around}, wire.Step{Scope: j.scope}, wire.Step{SQL: saveSettings})
	if _, err := p.run(ctx, wc, always(j.schema)); err != nil {
		return 0, err
	}
	outer := &tx{binding: binding{tenant: j.tenant, shared: j.tenant.id == ""}, pool: f.owner, conn: wc, scope: j.scope}
	if j.tenant.id != "" {
		ctx = WithTenant(ctx, j.tenant)
	}
	if err := runSeed(ctx, outer, j.script.Func); err != nil {
		return 0, failedAt(j.tenant.id, j.script, around, err)
	}
	if _, err := wc.Run(ctx, []wire.Step{{SQL: restoreRole}, recordStep(j)}); err != nil {
		return 0, failedAt(j.tenant.id, j.script, around, err)
	}
	if err := outer.Commit(ctx); err != nil {
		return 0, failedAt(j.tenant.id, j.script, around, err)
	}
	committed = true
	return 1, nil
}

// rowSecurity returns the statement that sets row_security for the rest of a transaction.
func rowSecurity(value string) string {
	return "select pg_catalog.set_config('row_security', " + ident.Literal(value) + ", true)"
}

// mayChangeSettings finds SET LOCAL and set_config, and much else, which does no harm.
var mayChangeSettings = regexp.MustCompile(`(?i)\bset(_config)?\b`)

// scriptSteps returns a script's statements, and what goes before and after them to undo their changes of settings: what
// comes next in the transaction is ours, or another file. Statements that cannot run in a transaction are in the form that
// can.
func scriptSteps(s *migration.Script) (before, steps, after []wire.Step) {
	changes := false
	for _, st := range s.Statements {
		sql := st.SQL
		if st.Alone != nil {
			if sql = st.Alone.InTx; sql == "" {
				sql = "select" // so that there is a step for each statement
			}
		}
		steps = append(steps, wire.Step{SQL: sql})
		changes = changes || mayChangeSettings.MatchString(sql)
	}
	if changes {
		before = []wire.Step{{SQL: saveSettings}}
		after = []wire.Step{{SQL: restoreRole}, {SQL: restoreSettings}}
	}
	return before, steps, after
}

// PostgreSQL cannot undo SET LOCAL before the transaction ends. So the values are kept in a setting of our own, which ends
// with the transaction too. role is none of pg_settings, and the right to the others may depend on it.
const (
	saveSettings = `select pg_catalog.set_config('pgtenancy.saved', (pg_catalog.jsonb_object_agg(s.name, s.setting)
			|| pg_catalog.jsonb_build_object('role', pg_catalog.current_setting('role')))::text, true)
		from pg_catalog.pg_settings s where s.source = 'session'`
	restoreRole     = `select pg_catalog.set_config('role', pg_catalog.current_setting('pgtenancy.saved')::pg_catalog.jsonb ->> 'role', true)`
	restoreSettings = `select pg_catalog.set_config(s.name, v.value, true)
		from pg_catalog.pg_settings s,
			lateral (select coalesce(pg_catalog.current_setting('pgtenancy.saved')::pg_catalog.jsonb ->> s.name, s.reset_val) as value) v
		where s.source = 'session' and s.name not like 'transaction%' and s.setting <> v.value`
)
