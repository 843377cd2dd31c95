package hammer

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy"
)

// batchAlone sends a batch that is a transaction of its own.
func (c *call) batchAlone() error {
	q := c.target()
	b := &pgx.Batch{}
	note, fails := kept, false
	if c.with(Fail) && c.rnd.IntN(6) == 0 {
		note, fails = never, true
	}
	c.fill(b, note)
	if fails {
		c.made(Fail, 1)
		b.Queue("select 1/0")
		return expect(q.SendBatch(c.step(), b).Close(), func(err error) bool { return code(err) == "22012" })
	}
	if c.with(Settings) && c.rnd.IntN(4) == 0 {
		c.made(Settings, 1)
		b.Queue("select set_config('search_path', $1, $2)", quote(c.other().Schema()), c.rnd.IntN(2) == 0)
	}
	return c.send(q, b, note)
}

// fill queues statements with callbacks.
func (c *call) fill(b *pgx.Batch, note string) {
	for range 1 + c.rnd.IntN(4) {
		switch c.rnd.IntN(4) {
		case 0:
			b.Queue("insert into hammer_rows (tenant, note) values ($1, $2) returning "+columns, c.tenant.ID(), note).QueryRow(c.scan)
		case 1:
			b.Queue("select " + columns + " from hammer_rows order by id desc limit 10").Query(c.scanAll)
		case 2:
			b.Queue("insert into hammer_rows (tenant, note, kind, amount) values ($1, $2, $3, $4) returning "+columns,
				c.tenant.ID(), note, c.tenant.ID(), int64(amount)).QueryRow(c.scan)
		case 3:
			b.Queue("select tenant, home from hammer_view limit 5").Query(func(rows pgx.Rows) error { return c.pairs(rows, c.tenant.ID(), c.tenant.ID()) })
		}
	}
}

// send sends the batch and reads its results in one of the ways that there are.
func (c *call) send(q DB, b *pgx.Batch, note string) error {
	if c.rnd.IntN(3) > 0 {
		return q.SendBatch(c.step(), b).Close()
	}
	b = &pgx.Batch{}
	b.Queue("select " + columns + " from hammer_rows order by id desc limit 10")
	b.Queue("insert into hammer_rows (tenant, note) values ($1, $2)", c.tenant.ID(), note)
	b.Queue("select " + columns + " from hammer_rows order by id limit 1")
	br := q.SendBatch(c.step(), b)
	defer br.Close()
	read := c.rnd.IntN(4) // of three
	if read > 0 {
		rows, err := br.Query()
		if err != nil {
			return err
		}
		if err := c.scanAll(rows); err != nil {
			return err
		}
	}
	if read > 1 {
		if _, err := br.Exec(); err != nil {
			return err
		}
	}
	if read > 2 {
		if err := c.scan(br.QueryRow()); err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
	}
	return br.Close()
}

// outcomes of a transaction.
const (
	commits = iota
	rollsBack
	callbackFails
	statementFails
	timesOut
	callbackPanics
	outcomes
)

func (c *call) outcome() int {
	switch o := c.rnd.IntN(2 * outcomes); {
	case o == callbackPanics && !c.with(Panic), o == timesOut && !c.with(Timeout), (o == statementFails || o == callbackFails) && !c.with(Fail), o >= outcomes:
		return commits
	default:
		return o
	}
}

// transaction runs a transaction with nested ones.
func (c *call) transaction(q DB) error {
	if c.rnd.IntN(8) == 0 {
		return c.byHand(q)
	}
	return c.inTx(q, kept, 0)
}

// inTx begins a transaction on q, a nested one where q is one, and ends it in one of the ways that there are.
func (c *call) inTx(q DB, note string, depth int) error {
	outcome := c.outcome()
	if outcome != commits {
		note = never
	}
	var ended error
	err := protect(func() error {
		return pgx.BeginFunc(c.step(), q, func(tx pgx.Tx) error {
			ended = c.steps(tx, note, depth)
			if ended == nil {
				ended = c.bringAbout(outcome, tx)
			}
			if ended == nil && outcome != commits {
				return errOwn
			}
			return ended
		})
	})
	switch {
	case ended != nil:
		return ended // why it was rolled back; the rollback may have failed for the same reason
	case errors.Is(err, errOwn):
		return nil
	}
	return err
}

// bringAbout does in a transaction what its outcome needs.
func (c *call) bringAbout(outcome int, tx pgx.Tx) error {
	switch outcome {
	case statementFails:
		c.made(Fail, 1)
		_, err := tx.Exec(c.ctx, "select 1/0")
		if err := expect(err, func(err error) bool { return code(err) == "22012" }); err != nil {
			return err
		}
		_, err = tx.Exec(c.ctx, "select 1")
		return expect(err, func(err error) bool { return code(err) == "25P02" })
	case timesOut:
		c.made(Timeout, 1)
		if _, err := tx.Exec(c.ctx, "set local statement_timeout = '3ms'"); err != nil {
			return err
		}
		_, err := tx.Exec(c.ctx, "select pg_sleep(0.05)")
		return expect(err, func(err error) bool { return code(err) == "57014" })
	case callbackFails:
		c.made(Fail, 1)
	case callbackPanics:
		c.made(Panic, 1)
		panic(ouch{})
	}
	return nil
}

// steps does some things in a transaction.
func (c *call) steps(tx pgx.Tx, note string, depth int) error {
	for range c.rnd.IntN(5) {
		var err error
		switch c.rnd.IntN(14) {
		case 11:
			err = c.shadow(tx)
		case 0, 1:
			err = c.insert(tx, note)
		case 2:
			err = c.update(tx, note)
		case 3:
			err = c.delete(tx)
		case 4, 5:
			err = c.query(tx)
		case 6:
			err = c.whose(tx)
		case 7:
			b := &pgx.Batch{}
			c.fill(b, note)
			err = c.send(tx, b, note)
		case 8:
			err = c.cursor(tx)
		case 9:
			if hasShared(c.hammer) {
				err = c.sharedTable(tx, note)
			}
		case 10:
			if note == kept {
				err = c.strayNested(tx)
			}
		default:
			if depth < 3 {
				err = c.inTx(tx, note, depth+1)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// shadow makes a temporary table of the name of the tenant's, which must not be found in the place of that.
func (c *call) shadow(tx pgx.Tx) error {
	_, err := tx.Exec(c.step(), "create temporary table if not exists hammer_rows (tenant, home, kind, amount, note) on commit drop as "+
		"select text 'nobody', text 'nobody', text 'nobody', text 'nothing', text 'never'")
	return err
}

func (c *call) cursor(tx pgx.Tx) error {
	if _, err := tx.Exec(c.step(), "declare hammer_cursor cursor for select "+columns+" from hammer_rows order by id desc limit 20"); err != nil {
		return err
	}
	for range 2 {
		rows, err := tx.Query(c.step(), "fetch 5 from hammer_cursor", pgx.QueryExecModeExec)
		if err != nil {
			return err
		}
		if err := c.scanAll(rows); err != nil {
			return err
		}
	}
	_, err := tx.Exec(c.step(), "close hammer_cursor")
	return err
}

// strayNested steps out of the scope in a nested transaction. Its rollback must bring the scope back.
func (c *call) strayNested(tx pgx.Tx) error {
	if !c.with(Settings) {
		return nil
	}
	err := pgx.BeginFunc(c.ctx, tx, func(sub pgx.Tx) error {
		if err := c.stray(sub, false); err != nil {
			return err
		}
		return errOwn
	})
	if err != nil && !errors.Is(err, errOwn) {
		return err
	}
	return c.whose(tx)
}

// byHand leaves the helpers of pgx aside: open rows and forgotten errors at the end of a transaction.
func (c *call) byHand(q DB) error {
	tx, err := q.Begin(c.step())
	if err != nil {
		return err
	}
	defer tx.Rollback(c.ctx)
	if err := c.insert(tx, never); err != nil {
		return err
	}
	switch c.rnd.IntN(3) {
	case 0:
		rows, err := tx.Query(c.step(), "select "+columns+" from hammer_rows, generate_series(1, 500) limit 500")
		if err != nil {
			return err
		}
		if rows.Next() {
			if err := c.scan(rows); err != nil {
				return err
			}
		}
		return nil // Rollback finds the rows open
	case 1:
		_, forgotten := tx.Exec(c.ctx, "select 1/0")
		err := tx.Commit(c.ctx)
		if code(forgotten) != "22012" {
			return forgotten // why the connection is closed, which is all that Commit says
		}
		return expect(err, func(err error) bool { return errors.Is(err, pgx.ErrTxCommitRollback) })
	default:
		sub, err := tx.Begin(c.step())
		if err != nil {
			return err
		}
		if err := c.insert(sub, never); err != nil {
			return err
		}
		return tx.Rollback(c.ctx) // the nested one is still open
	}
}

// stray runs SQL that sets what the scope is made of. alone says that q is no transaction. What it sets for the rest of its transaction is
// its own affair; what it sets for the session must not reach the next one.
func (c *call) stray(q DB, alone bool) error {
	other := c.other()
	path, value := quote(other.Schema()), c.value(other)
	local := c.rnd.IntN(2) == 0
	set := "set "
	if local {
		set = "set local "
	}
	do := func(sql string) string { return fmt.Sprintf("do $do$ begin execute %s; end $do$", literal(sql)) }
	c.made(Settings, 1)
	var sql string
	var args []any
	switch c.rnd.IntN(9) {
	case 0:
		sql, args = "select set_config('search_path', $1, $2)", []any{path, local}
	case 1:
		sql, args = "select set_config("+literal(c.setting)+", $1, $2)", []any{value, local}
	case 2:
		sql, args = "select hammer_stray($1)", []any{path}
	case 3:
		sql = do(set + "search_path to " + path)
	case 4:
		sql = do(set + c.setting + " = " + literal(value))
	case 5:
		sql = do("reset all")
	case 6:
		if c.pooled {
			return nil // PgBouncer would go on believing that its statements are there, and so make that connection useless
		}
		sql = do("deallocate all")
	case 7:
		sql = do("discard plans")
	case 8:
		if alone {
			return pgx.BeginFunc(c.ctx, q, func(tx pgx.Tx) error {
				_, err := tx.Exec(c.step(), "set local search_path to "+path)
				return err
			})
		}
		sql = "set local search_path to " + path
	}
	_, err := q.Exec(c.step(), sql, args...)
	return err
}

// advisoryLock is the key of a lock that sessions take and leave.
const advisoryLock = 4200

// session uses a connection of its own and leaves it in disorder.
func (c *call) session() error {
	ctx := c.ctx
	if c.rnd.IntN(2) == 0 {
		return c.acquire.AcquireFunc(ctx, c.onConn)
	}
	conn, err := c.acquire.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	return c.onConn(conn)
}

func (c *call) onConn(conn *pgtenancy.Conn) error {
	for range c.rnd.IntN(4) {
		var err error
		switch c.rnd.IntN(5) {
		case 0:
			err = c.insert(conn, kept)
		case 1:
			err = c.query(conn)
		case 2:
			err = c.whose(conn)
		case 3:
			err = c.inTx(conn, kept, 1)
		case 4:
			b := &pgx.Batch{}
			c.fill(b, kept)
			err = c.send(conn, b, kept)
		}
		if err != nil {
			return err
		}
	}
	if !c.with(Settings) {
		return nil
	}
	c.made(Settings, 1)
	other := c.other()
	disorder := []string{
		"set search_path to " + quote(other.Schema()),
		"set " + c.setting + " = " + literal(c.value(other)),
		"reset all",
		"discard all",
		"deallocate all",
		"create temp table hammer_rows as select tenant, home, kind, amount, note from hammer_rows",
		"create temp table hammer_temp as select * from hammer_rows",
		"listen hammer",
		fmt.Sprintf("select pg_advisory_lock_shared(%d)", advisoryLock),
		"begin",
		"set default_transaction_read_only = on",
		"set session characteristics as transaction isolation level serializable",
		"set row_security = off",
		"declare hammer_hold cursor with hold for select * from hammer_rows",
	}
	for range 1 + c.rnd.IntN(3) {
		_, err := conn.Exec(c.step(), disorder[c.rnd.IntN(len(disorder))])
		if code(err) != "" || c.tenant.Role() != "" && errors.Is(err, pgtenancy.ErrStatementRefused) {
			err = nil // one may forbid the next, and some might leave a tenant's role
		}
		if err != nil {
			return err
		}
	}
	if c.rnd.IntN(4) == 0 { // rows that nobody closes
		if _, err := conn.Query(c.ctx, "select generate_series(1, 10000)"); err != nil && code(err) == "" {
			return err
		}
	}
	return nil
}

// panics panics in the places where code of the caller's runs.
func (c *call) panics() error {
	q := c.target()
	c.made(Panic, 1)
	switch c.rnd.IntN(5) {
	case 0:
		return q.QueryRow(c.step(), "select tenant from hammer_rows limit 1").Scan(panicScanner{})
	case 1:
		rows, err := q.Query(c.step(), "select tenant from hammer_rows")
		if err != nil {
			return err
		}
		defer rows.Close()
		rows.Next()
		panic(ouch{})
	case 2:
		_, err := q.Exec(c.step(), "select 1", panicRewriter{})
		return err
	case 3:
		b := &pgx.Batch{}
		b.Queue("select " + columns + " from hammer_rows").Query(func(pgx.Rows) error { panic(ouch{}) })
		c.fill(b, kept)
		br := q.SendBatch(c.step(), b)
		defer br.Close()
		return br.Close()
	default:
		if c.acquire == nil {
			panic(ouch{})
		}
		return c.acquire.AcquireFunc(c.ctx, func(conn *pgtenancy.Conn) error {
			if _, err := conn.Exec(c.step(), "begin"); err != nil {
				return err
			}
			if err := c.insert(conn, never); err != nil {
				return err
			}
			panic(ouch{})
		})
	}
}

type panicScanner struct{}

func (panicScanner) Scan(any) error { panic(ouch{}) }

type panicRewriter struct{}

func (panicRewriter) RewriteQuery(context.Context, *pgx.Conn, string, []any) (string, []any, error) {
	panic(ouch{})
}
