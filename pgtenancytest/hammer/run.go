package hammer

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/pgtenancy/pgtenancy"
)

// How long things may take at most that take milliseconds when all is well. They are variables for the tests.
var (
	callTimeout  = 30 * time.Second // an operation in whose context no fault was put
	hangTimeout  = 60 * time.Second // the workers after the end
	quietTimeout = 60 * time.Second // connections that are closed in the background, which pgx gives 15 s each
)

type hammer struct {
	counts
	cfg     Config
	db      DB
	tenants []pgtenancy.Tenant
	own     bool             // the schemas are the hammer's
	missing pgtenancy.Tenant // one without a schema

	setting string
	value   func(pgtenancy.Tenant) string
	shared  string // the schema that unqualified names of shared tables resolve to; "" where there is none
	role    string // of statements of a tenant without a role
	pooled  bool   // a pooler is in between

	// What the DB has beyond its interface; nil where it has not.
	acquire interface {
		Acquire(context.Context) (*pgtenancy.Conn, error)
		AcquireFunc(context.Context, func(*pgtenancy.Conn) error) error
	}
	bind interface {
		For(pgtenancy.Tenant) *pgtenancy.Scope
		Shared() *pgtenancy.Scope
	}
	stat  interface{ Stat() *pgtenancy.Stat }
	sqlDB *sql.DB

	operations []operation
	weight     int

	start   time.Time
	took    time.Duration
	stop    context.CancelFunc
	audited int64
}

// operation is a built-in operation or one of Config.Ops.
type operation struct {
	name    string
	weight  int
	do      func(*call) error
	callers bool
	fault   Fault                // it makes this fault only
	needs   func(h *hammer) bool // nil: nothing
}

// call is one call of an operation.
type call struct {
	*hammer
	ctx     context.Context
	rnd     *rand.Rand
	tenant  pgtenancy.Tenant
	calm    bool // no faults
	hurried bool // its context, or one of a statement's, may end early
	cancels []context.CancelFunc
}

func newHammer(ctx context.Context, db DB, cfg Config) (*hammer, error) {
	h := &hammer{
		cfg: cfg, db: db, tenants: cfg.Tenants, own: cfg.Tenants == nil,
		setting: pgtenancy.SettingDefault, value: pgtenancy.Tenant.ID, shared: "public", stop: func() {},
		counts: counts{
			calls: make(map[string]int), ok: make(map[string]int), last: make(map[string]error),
			made: make(map[Fault]int), errors: make(map[string]int), room: failuresMax,
		},
	}
	if h.own {
		for i := range 200 {
			t, err := pgtenancy.NewTenant(pgtenancy.TenantInfo{ID: fmt.Sprintf("hammer-%03d", i)})
			if err != nil {
				return nil, err
			}
			h.tenants = append(h.tenants, t)
		}
	}
	var err error
	if h.missing, err = pgtenancy.NewTenant(pgtenancy.TenantInfo{ID: "hammer-missing"}); err != nil {
		return nil, err
	}
	if len(h.tenants) < 2 {
		return nil, errors.New("Config.Tenants must have two tenants at least")
	}
	if p, ok := db.(interface{ Config() *pgtenancy.PoolConfig }); ok {
		c := p.Config()
		h.setting, h.value, h.shared, h.pooled = c.Setting, c.SettingValue, "", c.Direct != nil
		if len(c.SharedSchemas) > 0 {
			h.shared = c.SharedSchemas[0]
		}
	}
	h.acquire, _ = db.(interface {
		Acquire(context.Context) (*pgtenancy.Conn, error)
		AcquireFunc(context.Context, func(*pgtenancy.Conn) error) error
	})
	h.bind, _ = db.(interface {
		For(pgtenancy.Tenant) *pgtenancy.Scope
		Shared() *pgtenancy.Scope
	})
	h.stat, _ = db.(interface{ Stat() *pgtenancy.Stat })
	if p, ok := db.(interface{ DB() *sql.DB }); ok {
		h.sqlDB = p.DB()
	}
	for _, op := range builtins {
		if (op.fault == "" || h.with(op.fault)) && (op.needs == nil || op.needs(h)) {
			h.operations = append(h.operations, op)
		}
	}
	for _, op := range cfg.Ops {
		weight := op.Weight
		if weight == 0 {
			weight = 10
		}
		h.operations = append(h.operations, operation{
			name: op.Name, weight: weight, callers: true,
			do: func(c *call) error { return op.Do(c.ctx, c.tenant, c.rnd) },
		})
	}
	for _, op := range h.operations {
		h.weight += op.weight
	}
	return h, nil
}

// with reports whether the fault is wanted.
func (h *hammer) with(f Fault) bool { return !slices.Contains(h.cfg.Without, f) }

// anyTenant returns a tenant: mostly one of a few, so that the same statements of the same tenants come back to a connection
// that has served others meanwhile.
func (h *hammer) anyTenant(rnd *rand.Rand) pgtenancy.Tenant {
	if few := min(10, len(h.tenants)); rnd.IntN(10) < 7 {
		return h.tenants[rnd.IntN(few)]
	}
	return h.tenants[rnd.IntN(len(h.tenants))]
}

// first checks that each tenant is served before anything goes wrong, and notes the role.
func (h *hammer) first(ctx context.Context) error {
	for _, t := range h.tenants {
		if err := h.serve(ctx, t); err != nil {
			return fmt.Errorf("as %s: %w", t.ID(), err)
		}
	}
	return nil
}

// serve checks that a tenant is served. It tries again where the backend of an idle connection was ended, or the network cuts
// connections by itself, which behind a pooler may garble a row: see verdict.
func (h *hammer) serve(ctx context.Context, t pgtenancy.Tenant) (err error) {
	ctx, cancel := context.WithTimeout(pgtenancy.WithTenant(ctx, t), callTimeout)
	defer cancel()
	c := &call{hammer: h, ctx: ctx, tenant: t, calm: true, rnd: rand.New(rand.NewPCG(h.cfg.Seed, 0))}
	for range 100 {
		err = c.whose(h.db)
		if err == nil || !isLost(err) && !isGarbled(err) && !(h.pooled && class(err) == "scan") {
			break
		}
	}
	return err
}

// work lets the workers and the trouble loose, and waits for them.
func (h *hammer) work(ctx context.Context) {
	h.start = time.Now()
	ctx, h.stop = context.WithTimeout(ctx, h.cfg.Duration)
	defer h.stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		var wg sync.WaitGroup
		for n := range h.cfg.Workers {
			wg.Go(func() { h.worker(ctx, rand.New(rand.NewPCG(h.cfg.Seed, uint64(n)+1))) })
		}
		if h.with(Terminate) {
			wg.Go(func() { h.trouble(ctx, Terminate, 1<<32, 40*time.Millisecond, h.terminate) })
		}
		if h.with(Migrate) {
			wg.Go(func() { h.trouble(ctx, Migrate, 1<<32+1, 20*time.Millisecond, h.migrate) })
		}
		wg.Wait()
	}()
	select {
	case <-done:
	case <-time.After(h.cfg.Duration + hangTimeout):
		stacks := make([]byte, 1<<20)
		h.fail("operations hang:\n%s", stacks[:runtime.Stack(stacks, true)])
	}
	h.took = time.Since(h.start)
}

// worker runs operations until ctx ends, at least one. The operations themselves are not cut off by it.
func (h *hammer) worker(ctx context.Context, rnd *rand.Rand) {
	base := context.WithoutCancel(ctx)
	for more := true; more; more = ctx.Err() == nil {
		n := rnd.IntN(h.weight)
		for _, op := range h.operations {
			if n -= op.weight; n < 0 {
				h.run(base, rnd, op)
				break
			}
		}
	}
}

// run calls an operation once.
func (h *hammer) run(ctx context.Context, rnd *rand.Rand, op operation) {
	c := &call{hammer: h, rnd: rnd, tenant: h.anyTenant(rnd)}
	ctx, cancel := context.WithTimeout(pgtenancy.WithTenant(ctx, c.tenant), callTimeout)
	defer cancel()
	c.ctx = ctx
	if h.with(Cancel) && rnd.IntN(8) == 0 {
		c.ctx = c.hurry(ctx)
	}
	defer func() {
		for _, cancel := range c.cancels {
			cancel()
		}
	}()
	err := protect(func() error { return op.do(c) })
	if errors.As(err, new(*panicError)) {
		h.fail("%s: %v", op.name, err)
	}
	h.called(c, op, err)
}

// hurry returns a context that ends soon, or has ended.
func (c *call) hurry(ctx context.Context) context.Context {
	limits := []time.Duration{0, 200 * time.Microsecond, 2 * time.Millisecond, 10 * time.Millisecond, 50 * time.Millisecond}
	limit := limits[c.rnd.IntN(len(limits))]
	if limit > 0 {
		limit = time.Duration(c.rnd.Int64N(int64(limit)))
	}
	c.hurried = true
	c.made(Cancel, 1)
	ctx, cancel := context.WithTimeout(ctx, limit)
	c.cancels = append(c.cancels, cancel)
	return ctx
}

// panicError is a panic that nobody asked for.
type panicError struct {
	value any
	stack []byte
}

func (e *panicError) Error() string { return fmt.Sprintf("panic: %v\n%s", e.value, e.stack) }

// ouch is what the hammer panics with.
type ouch struct{}

// protect calls f and returns its panic as an error, unless it is the hammer's own.
func protect(f func() error) (err error) {
	defer func() {
		switch v := recover(); v {
		case nil, ouch{}:
		default:
			err = &panicError{v, debug.Stack()}
		}
	}()
	return f()
}

// afterwards checks what is left, once there is no trouble any more.
func (h *hammer) afterwards(ctx context.Context) {
	h.mu.Lock()
	h.room = len(h.failures) + failuresMax
	broken := len(h.failures) > 0
	h.mu.Unlock()
	h.checkGivenBack()
	for _, t := range h.tenants {
		if broken {
			break // there would be no room for what the audit finds
		}
		if err := h.serve(ctx, t); err != nil {
			h.fail("afterwards, as %s: %v", t.ID(), err)
		}
	}
	h.checkGivenBack()
	if err := h.checkBackends(ctx); err != nil {
		h.fail("afterwards: %v", err)
	}
	if err := h.audit(ctx); err != nil {
		h.fail("%v", err)
	}
}

// checkGivenBack checks that all connections were given back.
func (h *hammer) checkGivenBack() {
	if h.stat == nil {
		return
	}
	busy := func() int32 {
		s := h.stat.Stat()
		n := s.AcquiredConns()
		if s.Direct != nil {
			n += s.Direct.AcquiredConns()
		}
		return max(n, int32(s.Total().InUse)) // of the queue's places, which also must be given back
	}
	if n, ok := await(busy); !ok {
		h.fail("%d connections were not given back", n)
	}
}

// checkBackends checks that no transaction and no lock stays on the server.
func (h *hammer) checkBackends(ctx context.Context) error {
	conn, err := h.connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	count := func(sql string, args ...any) func() int {
		return func() (n int) {
			if err = conn.QueryRow(ctx, sql, args...).Scan(&n); err != nil {
				return 0
			}
			return n
		}
	}
	n, ok := await(count(`select count(*) from pg_stat_activity
		where datname = current_database() and state like 'idle in transaction%' and application_name <> $1`, application))
	if err == nil && !ok {
		h.fail("%d backends stay in a transaction", n)
	}
	n, ok = await(count(`select count(*) from pg_locks where locktype = 'advisory'
		and database = (select oid from pg_database where datname = current_database()) and objid = $1`, advisoryLock))
	if err == nil && !ok {
		h.fail("%d advisory locks of sessions stay", n)
	}
	return err
}

// await waits for f to return 0.
func await[N int | int32](f func() N) (n N, ok bool) {
	for deadline := time.Now().Add(quietTimeout); ; time.Sleep(5 * time.Millisecond) {
		if n = f(); n == 0 {
			return 0, true
		}
		if time.Now().After(deadline) {
			return n, false
		}
	}
}
