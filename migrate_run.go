package pgtenancy

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"regexp"
	"strconv"
	"time"

	"github.com/pgtenancy/pgtenancy/internal/ident"
	"github.com/pgtenancy/pgtenancy/internal/migration"
	"github.com/pgtenancy/pgtenancy/internal/wire"
)

// schema is one that is migrated: a tenant's, or with the zero Tenant the first shared one.
type schema struct {
	tenant Tenant
	at     standing
	scope  *wire.Scope
	lock   int64 // the key of the advisory lock that whoever migrates it holds
}

func (f *Fleet) tenantSchema(t Tenant, digest int64) *schema {
	sum := sha256.Sum256([]byte("pgtenancy/tenant/" + t.id))
	return &schema{t, standing{t.version, digest}, f.ownerScope(t), int64(binary.BigEndian.Uint64(sum[:8]))}
}

func (f *Fleet) sharedSchema(at standing) *schema {
	return &schema{Tenant{}, at, &f.owner.shared, registryLock}
}

// errClaimed says that another process is at work on the schema, or has been.
var errClaimed = errors.New("pgtenancy: claimed by another process")

// transactionsMost is how many migrations travel in one pipeline.
const transactionsMost = 50

// runTasks runs the tasks of a schema in their order. It returns how many are done. The error is errClaimed or a
// *MigrationError.
func (f *Fleet) runTasks(ctx context.Context, s *schema, tasks []task, lockTimeout time.Duration) (done int, err error) {
	err = f.withOwner(ctx, func(wc *conn) error {
		for len(tasks) > 0 {
			n, err := 0, error(nil)
			switch script := tasks[0].script; {
			case script.Func != nil:
				n, err = f.runFunc(ctx, wc, s, tasks[0], lockTimeout)
			case script.NoTx:
				n, err = f.runAlone(ctx, wc, s, tasks[0], lockTimeout)
			default:
				n, err = f.runTransactions(ctx, wc, s, tasks, lockTimeout)
			}
			done, tasks = done+n, tasks[n:]
			if err != nil {
				return err
			}
		}
		return nil
	})
	var failed *MigrationError
	if err != nil && !errors.Is(err, errClaimed) && !errors.As(err, &failed) {
		err = &MigrationError{Tenant: s.tenant.id, Err: err}
	}
	return done, err
}

// claimSteps begin the transaction of a task. They fail where the schema does not stand where the task begins any more, or
// where somebody else is at work on it; else they put it where the task ends. Nobody waits for a tenant: there are others.
// The shared schemas are waited for, and so the claim is a statement after the lock, with a snapshot of its own.
//
// What comes after is not for the disk to wait for where a later commit of this schema will: flush says whether it is.
func claimSteps(s *schema, t task, lockTimeout time.Duration, flush bool) []wire.Step {
	timeout := timeoutSetting(lockTimeout)
	steps := []wire.Step{{SQL: beginSQL, Keep: true}}
	if s.tenant.id == "" {
		return append(steps,
			wire.Step{SQL: `select pg_catalog.pg_advisory_xact_lock($1)`, Args: []any{s.lock}},
			wire.Step{SQL: `with claimed as (
					update pgtenancy.registry set shared_version = $3, shared_digest = $4
					where shared_version = $1 and shared_digest = $2 and not exists (select from pgtenancy.unfinished where tenant_id = '')
					returning 1
				) ` + settle("$5", "$6"),
				Args: []any{t.from.version, t.from.digest, t.to.version, t.to.digest, timeout, flush}})
	}
	return append(steps, wire.Step{
		SQL: `with claimed as (
				update pgtenancy.tenants t set version = $4, digest = $5, updated_at = now()
				where t.id = $1 and t.version = $2 and t.digest = $3 and ` + migrated + `
					and pg_catalog.pg_try_advisory_xact_lock($6)
					and not exists (select from pgtenancy.unfinished where tenant_id = $1)
				returning 1
			) ` + settle("$7", "$8"),
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

// settle returns the end of the claiming statement. It fails with 22P02 where nothing was claimed: concat is STABLE, which
// keeps the planner from folding the failing cast into a constant. It also sets what holds for the migration.
func settle(lockTimeout, flush string) string {
	return `select case when exists (select from claimed) then 0 else pg_catalog.concat('claimed by another process')::int end,
		pg_catalog.set_config('row_security', 'off', true),
		case when ` + lockTimeout + ` <> '' then pg_catalog.set_config('lock_timeout', ` + lockTimeout + `, true)
			when pg_catalog.current_setting('lock_timeout') = '0' then pg_catalog.set_config('lock_timeout', '` + strconv.FormatInt(LockTimeoutDefault.Milliseconds(), 10) + `', true) end,
		case when not ` + flush + `::bool then pg_catalog.set_config('synchronous_commit', 'off', true) end`
}

// recordStep writes the task into the history, or takes it out.
func recordStep(s *schema, t task) wire.Step {
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

// run sends the pipeline. The error is errClaimed or a *MigrationError, or where no migration is to blame another one.
func (p *pipeline) run(ctx context.Context, wc *conn, s *schema) (done int, err error) {
	tags, err := wc.Run(ctx, p.steps)
	if err == nil {
		return len(tags), nil
	}
	if s.tenant.id != "" {
		err = notFound(err)
	}
	if len(tags) == len(p.origins) { // at the end of the pipeline, which is after a commit
		return len(tags), err
	}
	switch at := p.origins[len(tags)]; {
	case at.statement == claiming && isCode(err, "22P02"):
		return len(tags), errClaimed
	case at.script != nil:
		return len(tags), failedAt(s.tenant.id, at.script, max(at.statement, around), err)
	}
	return len(tags), err
}

// runTransactions runs the first of the tasks that are one transaction of SQL each, in one pipeline.
func (f *Fleet) runTransactions(ctx context.Context, wc *conn, s *schema, tasks []task, lockTimeout time.Duration) (done int, err error) {
	var p pipeline
	var ends []int // of each task, in p
	for i, t := range tasks {
		if t.script.Func != nil || t.script.NoTx || i == transactionsMost {
			break
		}
		p.add(origin{t.script, claiming}, claimSteps(s, t, lockTimeout, i == len(tasks)-1)...)
		p.script(t.script, s.scope)
		p.add(origin{t.script, around}, recordStep(s, t), commitStep)
		ends = append(ends, len(p.steps))
	}
	n, err := p.run(ctx, wc, s)
	for done < len(ends) && n >= ends[done] {
		done++
	}
	return done, err
}

// runFunc runs a task in Go.
func (f *Fleet) runFunc(ctx context.Context, wc *conn, s *schema, t task, lockTimeout time.Duration) (done int, err error) {
	committed := false
	defer func() { // also when the function panics
		if !committed && wc.TxStatus() != 'I' {
			_ = wc.Rollback(ctx) // a connection on which that fails is closed
		}
	}()
	var p pipeline
	p.add(origin{t.script, claiming}, claimSteps(s, t, lockTimeout, true)...)
	p.add(origin{t.script, around}, wire.Step{Scope: s.scope})
	if _, err := p.run(ctx, wc, s); err != nil {
		return 0, err
	}
	outer := &tx{binding: binding{tenant: s.tenant, shared: s.tenant.id == ""}, pool: f.owner, conn: wc, scope: s.scope}
	if s.tenant.id != "" {
		ctx = WithTenant(ctx, s.tenant)
	}
	if err := runSeed(ctx, outer, t.script.Func); err != nil {
		return 0, failedAt(s.tenant.id, t.script, around, err)
	}
	if _, err := wc.Run(ctx, []wire.Step{recordStep(s, t)}); err != nil {
		return 0, failedAt(s.tenant.id, t.script, around, err)
	}
	if err := outer.Commit(ctx); err != nil {
		return 0, failedAt(s.tenant.id, t.script, around, err)
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
