package pgtenancy_test

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy"
)

// throughBouncer is an option of open: all that a pool does but Acquire goes through a PgBouncer in transaction mode, which has one
// connection to the database for all tenants.
func (db *fleetDB) throughBouncer(t *testing.T, b bouncer) fleetOption {
	t.Helper()
	u, err := url.Parse(db.url)
	if err != nil {
		t.Fatal(err)
	}
	address := b.start(t, u.Host+" pool_size=1", db.app) // what follows the port goes on in PgBouncer's line for the database
	return func(c *pgtenancy.FleetConfig) {
		c.PoolConfig.Direct = c.PoolConfig.Conns.Copy()
		new(torture).via(t, c.PoolConfig.Conns, address)
	}
}

// bouncerMode is a way to work through a PgBouncer.
type bouncerMode struct {
	mode  pgx.QueryExecMode
	entry pgtenancy.Entry
}

func (m bouncerMode) option(c *pgtenancy.FleetConfig) {
	c.PoolConfig.Conns.ConnConfig.DefaultQueryExecMode = m.mode
	c.PoolConfig.Entry = m.entry
}

// forBouncerModes calls f for each way to work through the PgBouncer, one after the other.
func forBouncerModes(t *testing.T, b bouncer, f func(t *testing.T, m bouncerMode)) {
	t.Helper()
	modes := []pgx.QueryExecMode{pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeExec}
	if b.prepares {
		modes = []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe}
	}
	for _, m := range modes {
		t.Run(m.String(), func(t *testing.T) { f(t, bouncerMode{mode: m}) })
	}
	t.Run("EntryFunction", func(t *testing.T) { f(t, bouncerMode{modes[0], pgtenancy.EntryFunction}) })
}

// rolesPooler is a fleet with tenants' roles behind a PgBouncer, which works for both on one connection.
type rolesPooler struct {
	*rolesDB
	pool         *pgtenancy.Pool
	acme, globex pgtenancy.Tenant
}

// checkOwn checks that a statement of the tenant's runs as its role and reads its rows. It returns the backend's number.
func (r *rolesPooler) checkOwn(t *testing.T, when string, q querier, ctx context.Context, tenant pgtenancy.Tenant) (pid int) {
	t.Helper()
	var got string
	err := q.QueryRow(ctx, `select pg_backend_pid(), concat_ws(', ', current_user, current_schema(), current_setting('app.current_tenant'),
		(select string_agg(body, ', ') from notes), (select string_agg(tenant_id || ': ' || name, ', ') from users))`).Scan(&pid, &got)
	if err != nil {
		t.Errorf("%s, as %s: %v", when, tenant, err)
		return 0
	}
	id := tenant.ID()
	checkEqual(t, when, got, fmt.Sprintf("%s:%s, tenant_%[2]s, %[2]s, of %[2]s, %[2]s: user of %[2]s", r.group, id))
	return pid
}

// checkTx checks a transaction of the tenant's, one in it, and what they write.
func (r *rolesPooler) checkTx(t *testing.T, when string, tenant pgtenancy.Tenant) (pid int) {
	t.Helper()
	ctx := as(t, tenant)
	check(t, when, pgx.BeginFunc(ctx, r.pool, func(tx pgx.Tx) error {
		pid = r.checkOwn(t, when+", in a transaction", tx, ctx, tenant)
		err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
			var made string
			if err := tx.QueryRow(ctx, "insert into users (name) values (current_user || $1) returning tenant_id", "'s").Scan(&made); err != nil {
				return err
			}
			checkEqual(t, when+": a row that it makes is of", made, tenant.ID())
			tag, err := tx.Exec(ctx, "delete from users where name <> $1", "user of "+tenant.ID())
			checkEqual(t, when+": rows that it deletes", tag.RowsAffected(), 1)
			return err
		})
		checkEqual(t, when+": backend", r.checkOwn(t, when+", after a transaction in it", tx, ctx, tenant), pid)
		return err
	}))
	return pid
}

// checkAll checks everybody's statements and transactions, in turn, and that all are on one connection, whose backend it returns.
func (r *rolesPooler) checkAll(t *testing.T, when string) (pid int) {
	t.Helper()
	for _, tenant := range []pgtenancy.Tenant{r.globex, r.acme} {
		own := r.checkOwn(t, when, r.pool, as(t, tenant), tenant)
		if pid == 0 {
			pid = own
		}
		var shared int
		var state string
		check(t, when, r.pool.Shared().QueryRow(bare(t), `select pg_backend_pid(), concat_ws(', ', current_user, current_setting('search_path'),
			current_setting('app.current_tenant', true))`).Scan(&shared, &state))
		checkEqual(t, when+", without a tenant", state, r.app+`, "public", pg_temp, `)
		for _, other := range []int{own, shared, r.checkTx(t, when, tenant)} {
			checkEqual(t, when+": backend", other, pid)
		}
	}
	return pid
}

// On one connection to the server, statements and transactions of tenants run as each one's own role, whatever went before.
func TestIsolateRolesPgBouncer(t *testing.T) {
	t.Parallel()
	for _, b := range findBouncers(t) {
		t.Run(b.version, func(t *testing.T) {
			t.Parallel()
			db := newRolesDB(t)
			db.newFleet(t)
			through := db.throughBouncer(t, b)
			forBouncerModes(t, b, func(t *testing.T, m bouncerMode) {
				fleet := db.open(t, db.files(), db.isolate, through, m.option)
				r := &rolesPooler{db, fleet.Pool(), lookup(t, fleet, "acme"), lookup(t, fleet, "globex")}
				r.testInterleaved(t)
				r.testFailures(t)
				r.testPrepared(t, m)
			})
		})
	}
}

func (r *rolesPooler) testInterleaved(t *testing.T) {
	t.Helper()
	pid := r.checkAll(t, "in turn")
	var wg sync.WaitGroup
	for _, tenant := range []pgtenancy.Tenant{r.acme, r.globex} {
		wg.Go(func() {
			for range 5 {
				checkEqual(t, "at once: backend", r.checkOwn(t, "at once", r.pool, as(t, tenant), tenant), pid)
				checkEqual(t, "at once: backend", r.checkTx(t, "at once", tenant), pid)
			}
		})
	}
	wg.Wait()
}

// testFailures lets a tenant's statements and transactions fail in all ways, after which everybody is served as before.
func (r *rolesPooler) testFailures(t *testing.T) {
	t.Helper()
	ctx := as(t, r.acme)
	inTx := func(ctx context.Context, f func(tx pgx.Tx) error) error { return pgx.BeginFunc(ctx, r.pool, f) }
	pid := r.checkAll(t, "before failures")
	same := func(when string) {
		t.Helper()
		checkEqual(t, when+": backend of the next", r.checkAll(t, when), pid)
	}

	other := "insert into tenant_globex.notes (body) values ($1)"
	checkCode(t, "another's schema", second(r.pool.Exec(ctx, other, "x")), "42501")
	same("after a statement that failed")
	checkCode(t, "another's row", inTx(ctx, func(tx pgx.Tx) error {
		return second(tx.Exec(ctx, "insert into users (name, tenant_id) values ('x', 'globex')"))
	}), "42501")
	same("after a transaction that failed")
	checkCode(t, "a batch", r.pool.SendBatch(ctx, batchOf("select 1", "select 1 / 0", "select 2")).Close(), "22012")
	same("after a batch that failed")

	const sleep = "select pg_sleep(1000)"
	stop := func(how string) func() {
		return r.onceAsleep(t, func() {
			r.exec(t, "select "+how+"(pid) from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'")
		})
	}
	wait := stop("pg_cancel_backend")
	checkCode(t, "a statement that is cancelled in the database", second(r.pool.Exec(ctx, sleep)), "57014")
	wait()
	same("after a statement that was cancelled in the database")
	wait = stop("pg_cancel_backend")
	checkCode(t, "a transaction that is cancelled in the database", inTx(ctx, func(tx pgx.Tx) error { return second(tx.Exec(ctx, sleep)) }), "57014")
	wait()
	same("after a transaction that was cancelled in the database")

	checkEqual(t, "panic", recovered(func() {
		_ = inTx(ctx, func(tx pgx.Tx) error {
			check(t, "insert", second(tx.Exec(ctx, "insert into notes (body) values ('never')")))
			panic("ouch")
		})
	}), any("ouch"))
	same("after a panic")

	// These end connections, of the client's or the server's.
	cancelled, cancel := context.WithCancel(ctx)
	wait = r.onceAsleep(t, cancel)
	checkIs(t, "a statement whose context ends", second(r.pool.Exec(cancelled, sleep)), context.Canceled)
	wait()
	r.checkAll(t, "after a statement whose context ended")
	cancelled, cancel = context.WithCancel(ctx)
	wait = r.onceAsleep(t, cancel)
	checkIs(t, "a transaction whose context ends", inTx(cancelled, func(tx pgx.Tx) error { return second(tx.Exec(cancelled, sleep)) }), context.Canceled)
	wait()
	r.checkAll(t, "after a transaction whose context ended")
	wait = stop("pg_terminate_backend")
	if err := second(r.pool.Exec(ctx, sleep)); err == nil {
		t.Error("no error of a statement whose backend is ended")
	}
	wait()
	r.checkAll(t, "after a backend was ended")
}

// testPrepared has the service prepare a SET LOCAL ROLE, which PgBouncer numbers on the connection that a tenant has next.
func (r *rolesPooler) testPrepared(t *testing.T, m bouncerMode) {
	t.Helper()
	ctx := as(t, r.acme)
	name := "PGBOUNCER_1"
	if m.mode == pgx.QueryExecModeCacheStatement {
		for range 3 { // what comes again is prepared
			check(t, "SET LOCAL ROLE of the service's", pgx.BeginFunc(bare(t), r.pool.Shared(), func(tx pgx.Tx) error {
				return second(tx.Exec(bare(t), "set local role "+pgx.Identifier{r.globex.Role()}.Sanitize()))
			}))
		}
		// The connection itself shows the name, and that EXECUTE of it would leave the role.
		err := pgx.BeginFunc(ctx, r.pool, func(tx pgx.Tx) error {
			for _, sql := range []string{"savepoint s", "reset role"} {
				if _, err := tx.Conn().Exec(ctx, sql); err != nil {
					return err
				}
			}
			err := tx.Conn().QueryRow(ctx, "select name from pg_prepared_statements where statement like 'set local role%'", pgx.QueryExecModeExec).Scan(&name)
			if err != nil {
				return err
			}
			for _, sql := range []string{"rollback to savepoint s", "execute " + pgx.Identifier{name}.Sanitize()} {
				if _, err := tx.Conn().Exec(ctx, sql, pgx.QueryExecModeExec); err != nil {
					return err
				}
			}
			var role string
			err = tx.QueryRow(ctx, "select current_user::text").Scan(&role)
			checkEqual(t, name+" makes the role", role, r.globex.Role())
			return err
		})
		check(t, "what PgBouncer has prepared", err)
		if !strings.HasPrefix(name, "PGBOUNCER_") {
			t.Errorf("PgBouncer's name is %q", name)
		}
	}
	execute := "execute " + pgx.Identifier{name}.Sanitize()
	for _, sql := range []string{execute, "explain analyze " + execute, "create table x as " + execute} {
		checkIs(t, sql, second(r.pool.Exec(ctx, sql)), pgtenancy.ErrStatementRefused)
		check(t, "a transaction", pgx.BeginFunc(ctx, r.pool, func(tx pgx.Tx) error {
			checkIs(t, "in a transaction: "+sql, second(tx.Exec(ctx, sql)), pgtenancy.ErrStatementRefused)
			r.checkOwn(t, "after EXECUTE", tx, ctx, r.acme)
			return nil
		}))
	}
	r.checkAll(t, "after EXECUTE")
}
