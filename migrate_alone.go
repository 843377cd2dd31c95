package pgtenancy

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy/internal/ident"
	"github.com/pgtenancy/pgtenancy/internal/migration"
	"github.com/pgtenancy/pgtenancy/internal/wire"
)

// A migration that is no transaction leaves its trace in pgtenancy.unfinished before each statement: that those before it
// are done. A statement that could be in a transaction shares one with the trace of the next. One that cannot is looked
// for in the catalog when the migration goes on after a crash.

// runAlone runs a task statement by statement. A session-level lock keeps others away, since it lasts as long as the
// backend works: PostgreSQL goes on building an index for a client that was killed.
func (f *Fleet) runAlone(ctx context.Context, wc *conn, j job, lockTimeout time.Duration) (done int, err error) {
	s, t := j.schema, j.task
	a := &alone{wc, j, time.Now()}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), wire.CleanupTimeout)
		defer cancel()
		if !wc.Pgx().IsClosed() {
			// At once, which the end of the session is not. The session has the tenant's scope now, so it ends as well.
			_, _ = wc.Pgx().Exec(ctx, `select pg_catalog.pg_advisory_unlock_all()`)
			_ = wc.Pgx().Close(ctx)
		}
	}()
	if s.tenant.id == "" {
		_, err = wc.Pgx().Exec(ctx, `select pg_catalog.pg_advisory_lock($1)`, s.lock)
	} else {
		var got bool
		err = wc.Pgx().QueryRow(ctx, `select pg_catalog.pg_try_advisory_lock($1)`, s.lock).Scan(&got)
		if err == nil && !got {
			return 0, errClaimed
		}
	}
	if err != nil {
		return 0, failedAt(s.tenant.id, t.script, around, err)
	}
	first, begun, err := a.resume(ctx)
	if err != nil {
		return 0, err
	}
	for i := first; i < len(t.script.Statements); i++ {
		if t.script.Statements[i].Alone == nil {
			err = a.transaction(ctx, i, lockTimeout)
		} else {
			err = a.statement(ctx, i, begun && i == first)
		}
		if err != nil {
			return 0, err
		}
	}
	if err := a.finish(ctx); err != nil {
		return 0, err
	}
	return 1, nil
}

// alone is a job that is no transaction.
type alone struct {
	conn *conn
	job
	started time.Time
}

// resume returns the statement at which the migration begins, and whether that one may have run before.
func (a *alone) resume(ctx context.Context) (first int, begun bool, err error) {
	sql := `select t.version, t.digest, u.version, u.down, u.statement, u.begun, u.done
		from pgtenancy.tenants t left join pgtenancy.unfinished u on u.tenant_id = t.id where t.id = $1 and ` + migrated
	if a.tenant.id == "" {
		sql = `select r.shared_version, r.shared_digest, u.version, u.down, u.statement, u.begun, u.done
			from pgtenancy.registry r left join pgtenancy.unfinished u on u.tenant_id = $1`
	}
	var at standing
	var version *int64
	var down, began *bool
	var statement *int
	var done *string
	err = a.conn.Pgx().QueryRow(ctx, sql, a.tenant.id).Scan(&at.version, &at.digest, &version, &down, &statement, &began, &done)
	switch {
	case errors.Is(err, pgx.ErrNoRows) || err == nil && at != a.from:
		return 0, false, errClaimed
	case err != nil:
		return 0, false, a.failed(around, err)
	case version == nil:
		return 0, false, nil
	case *version != a.m.Version || *down != a.down:
		return 0, false, a.failed(around, fmt.Errorf("%w: version %d is unfinished, and has to be finished first", ErrMigrationChanged, *version))
	case *statement > len(a.script.Statements) || *done != a.digest(*statement):
		return 0, false, a.failed(around, fmt.Errorf("%w: %d of its statements ran, and were others than now", ErrMigrationChanged, *statement))
	}
	return *statement, *began, nil
}

func (a *alone) failed(statement int, err error) error {
	return failedAt(a.tenant.id, a.script, statement, err)
}

// digest is of the first n statements.
func (a *alone) digest(n int) string {
	h := sha256.New()
	for _, st := range a.script.Statements[:n] {
		fmt.Fprintf(h, "%d %s", len(st.SQL), st.SQL)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// trace returns the step that says that the first n statements are done. begun says that the next one may be, too.
func (a *alone) trace(n int, begun bool) wire.Step {
	return wire.Step{
		SQL: `insert into pgtenancy.unfinished (tenant_id, version, down, statement, begun, done) values ($1, $2, $3, $4, $5, $6)
			on conflict (tenant_id) do update
			set statement = excluded.statement, begun = excluded.begun, done = excluded.done, began_at = excluded.began_at`,
		Args: []any{a.tenant.id, a.m.Version, a.down, n, begun, a.digest(n)},
	}
}

// transaction runs statement i, which could be in a transaction, in one.
func (a *alone) transaction(ctx context.Context, i int, lockTimeout time.Duration) error {
	one := &migration.Script{File: a.script.File, Statements: a.script.Statements[i : i+1]}
	var p pipeline
	p.add(origin{one, around}, wire.Step{SQL: beginSQL})
	p.add(origin{one, around}, wire.Step{SQL: `with claimed as (select) ` + settle("false", "$1", "$2"), Args: []any{timeoutSetting(lockTimeout), true}})
	p.script(one, a.scope)
	p.add(origin{one, around}, a.trace(i+1, false), commitStep)
	_, err := p.run(ctx, a.conn, always(a.schema))
	return err
}

// statement runs statement i, which cannot be in a transaction. begun says that it may have run before.
func (a *alone) statement(ctx context.Context, i int, begun bool) (err error) {
	st := &a.script.Statements[i]
	if err := a.conn.EnterSession(ctx, a.scope); err != nil {
		if a.tenant.id != "" {
			err = notFound(err)
		}
		return a.failed(i, err)
	}
	// It waits without being in anybody's way: the connection's timeouts are not meant for it.
	var lockTimeout, statementTimeout string
	if err := a.conn.Pgx().QueryRow(ctx, `select pg_catalog.current_setting('lock_timeout'), pg_catalog.current_setting('statement_timeout')`).
		Scan(&lockTimeout, &statementTimeout); err != nil {
		return a.failed(i, err)
	}
	const set = `select pg_catalog.set_config('row_security', 'off', false),
		pg_catalog.set_config('lock_timeout', $1, false), pg_catalog.set_config('statement_timeout', $2, false)`
	if _, err := a.conn.Pgx().Exec(ctx, set, "0", "0"); err != nil {
		return a.failed(i, err)
	}
	defer func() {
		if err == nil { // the next statement may be one in a transaction
			_, err = a.conn.Pgx().Exec(ctx, set, lockTimeout, statementTimeout)
		}
	}()
	if begun {
		done, err := a.recover(ctx, st.Alone)
		if err != nil {
			return a.failed(i, fmt.Errorf("after what was left unfinished: %w", err))
		}
		if done {
			return nil
		}
	}
	if _, err := a.conn.Run(ctx, []wire.Step{a.trace(i, true)}); err != nil {
		return a.failed(i, err)
	}
	if _, err := a.conn.Run(ctx, []wire.Step{{SQL: st.SQL}}); err != nil {
		if !a.conn.Pgx().IsClosed() { // it failed, and nothing else happened to it
			next := a.trace(i, false)
			if !isCode(err, "42P07") { // duplicate_table: what there is, is not of this statement
				switch done, recoverErr := a.recover(ctx, st.Alone); {
				case recoverErr != nil:
					next = a.trace(i, true)
				case done && isCode(err, "57014"): // query_canceled, when it was too late; any other error says that it is not done
					next = a.trace(i+1, false)
				}
			}
			_, _ = a.conn.Run(ctx, []wire.Step{next})
		}
		return a.failed(i, err)
	}
	if st.Alone.Kind == migration.CreateIndex { // IF NOT EXISTS is content with one that is invalid
		if found, valid, err := a.index(ctx, st.Alone); err != nil {
			return a.failed(i, err)
		} else if found && !valid {
			return a.failed(i, fmt.Errorf("index %s is there, and is invalid: drop it, and call Migrate again", ident.Quote(st.Alone.Index)))
		}
	}
	return nil
}

// index says whether the index that a CREATE INDEX makes is there, and valid.
func (a *alone) index(ctx context.Context, of *migration.Alone) (found, valid bool, err error) {
	err = a.conn.Pgx().QueryRow(ctx, `select count(*) > 0, coalesce(bool_and(i.indisvalid), false)
		from pg_catalog.pg_index i join pg_catalog.pg_class c on c.oid = i.indexrelid
		where c.relname = $1 and i.indrelid = pg_catalog.to_regclass($2)`, of.Index, named(of, of.Table)).Scan(&found, &valid)
	return found, valid, err
}

// recover finds out whether a statement that may have run was finished. If it was not, what it left is removed, so that it
// can run again.
func (a *alone) recover(ctx context.Context, of *migration.Alone) (done bool, err error) {
	switch of.Kind {
	case migration.CreateIndex:
		found, valid, err := a.index(ctx, of)
		if err != nil || !found || valid {
			return valid, err
		}
		return false, a.dropInvalid(ctx, of, `c.relname = $2 and i.indrelid = pg_catalog.to_regclass($3)`, of.Index, named(of, of.Table))
	case migration.DropIndex:
		// In the schema itself: where it is gone, another one of that name in a shared schema must stay.
		schema := cmp.Or(of.Schema, a.scope.Schema)
		err := a.conn.Pgx().QueryRow(ctx, `select pg_catalog.to_regclass($1) is null`, ident.QuoteAll(schema, of.Index)).Scan(&done)
		return done, err
	case migration.ReindexIndex, migration.ReindexTable:
		// REINDEX CONCURRENTLY leaves the indexes that it was building, or those that it replaced.
		return false, a.dropInvalid(ctx, of, `c.relname ~ '_cc(new|old)[0-9]*$' and i.indrelid = (
			select coalesce(x.indrelid, o.oid) from pg_catalog.pg_class o left join pg_catalog.pg_index x on x.indexrelid = o.oid
			where o.oid = pg_catalog.to_regclass($2))`, named(of, cmp.Or(of.Index, of.Table)))
	case migration.DetachPartition:
		var pending *bool
		err := a.conn.Pgx().QueryRow(ctx, `select (select i.inhdetachpending from pg_catalog.pg_inherits i
			where i.inhrelid = pg_catalog.to_regclass($1) and i.inhparent = pg_catalog.to_regclass($2))`,
			named(of, of.Partition), named(of, of.Table)).Scan(&pending)
		if err != nil || pending == nil || !*pending {
			return pending == nil && err == nil, err
		}
		_, err = a.conn.Run(ctx, []wire.Step{{SQL: "alter table " + named(of, of.Table) + " detach partition " + named(of, of.Partition) + " finalize"}})
		return err == nil, err
	}
	return false, nil // VACUUM does no harm twice
}

// named returns a name that a statement has, as SQL.
func named(of *migration.Alone, name string) string {
	if of.Schema != "" {
		return ident.QuoteAll(of.Schema, name)
	}
	return ident.Quote(name)
}

// dropInvalid drops the invalid indexes that a condition on pg_index i and pg_class c is true of, in the schema of a statement.
func (a *alone) dropInvalid(ctx context.Context, of *migration.Alone, condition string, args ...any) error {
	schema := cmp.Or(of.Schema, a.scope.Schema)
	rows, _ := a.conn.Pgx().Query(ctx, `select c.relname::text from pg_catalog.pg_index i join pg_catalog.pg_class c on c.oid = i.indexrelid
		where c.relnamespace = (select n.oid from pg_catalog.pg_namespace n where n.nspname = $1) and not i.indisvalid and `+condition,
		append([]any{schema}, args...)...) // the error is in rows
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	for _, name := range names {
		if _, err := a.conn.Run(ctx, []wire.Step{{SQL: "drop index concurrently if exists " + ident.QuoteAll(schema, name)}}); err != nil {
			return err
		}
	}
	return err
}

// finish records the migration and removes its trace.
func (a *alone) finish(ctx context.Context) error {
	put := wire.Step{
		SQL:  `update pgtenancy.tenants set version = $2, digest = $3, updated_at = now() where id = $1`,
		Args: []any{a.tenant.id, a.to.version, a.to.digest},
	}
	if a.tenant.id == "" {
		put = wire.Step{SQL: `update pgtenancy.registry set shared_version = $1, shared_digest = $2`, Args: []any{a.to.version, a.to.digest}}
	}
	var p pipeline
	record := recordStep(a.job)
	if !a.down {
		record = wire.Step{
			SQL:  `insert into pgtenancy.migrations (tenant_id, version, name, checksum, duration) values ($1, $2, $3, $4, make_interval(secs => $5))`,
			Args: []any{a.tenant.id, a.m.Version, a.m.Name, a.m.Checksum, time.Since(a.started).Seconds()},
		}
	}
	p.add(origin{a.script, around}, wire.Step{SQL: beginSQL}, put, record,
		wire.Step{SQL: `delete from pgtenancy.unfinished where tenant_id = $1`, Args: []any{a.tenant.id}}, commitStep)
	_, err := p.run(ctx, a.conn, always(a.schema))
	return err
}
