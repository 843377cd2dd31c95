package pgtenancy_test

import (
	"context"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy"
)

func TestTxMismatch(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	var w wireCounter
	p := db.pool(t, w.option)
	tx, err := p.Begin(as(t, db.acme))
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(bare(t))
	sub, err := tx.Begin(bare(t))
	if err != nil {
		t.Fatal(err)
	}
	w.reset()
	for name, tx := range map[string]pgx.Tx{"a transaction": tx, "a nested one": sub} {
		for _, use := range uses {
			checkIs(t, use.name+" on "+name, use.run(as(t, db.globex), tx, db.globex), pgtenancy.ErrTenantMismatch)
		}
		checkIs(t, "Commit of "+name, tx.Commit(as(t, db.globex)), pgtenancy.ErrTenantMismatch)
	}
	if w.sent() {
		t.Error("something was sent")
	}
	for _, ctx := range []context.Context{bare(t), as(t, db.acme), as(t, pgtenancy.Tenant{})} {
		checkWhose(t, sub, ctx, db.acme)
		checkWhose(t, tx, ctx, db.acme)
	}
	check(t, "Commit of the nested one", sub.Commit(bare(t)))
	check(t, "Rollback in whatever context", tx.Rollback(as(t, db.globex)))
	db.checkWorks(t, p)
}

func TestTxEnds(t *testing.T) {
	t.Parallel()
	needsDirect(t)
	tests := []struct {
		name string
		run  func(t *testing.T, db *testDB, tx pgx.Tx) error
		want int // rows that were written and stay
	}{
		{"commit", func(t *testing.T, db *testDB, tx pgx.Tx) error {
			if err := tx.Commit(bare(t)); err != nil {
				return err
			}
			checkIs(t, "second commit", tx.Commit(bare(t)), pgx.ErrTxClosed)
			checkIs(t, "rollback after commit", tx.Rollback(bare(t)), pgx.ErrTxClosed)
			for _, use := range uses {
				checkIs(t, use.name+" after commit", use.run(bare(t), tx, db.acme), pgx.ErrTxClosed)
			}
			_, err := tx.Exec(as(t, db.globex), "select 1")
			checkIs(t, "after commit with another tenant", err, pgx.ErrTxClosed)
			return nil
		}, 1},
		{"rollback", func(t *testing.T, db *testDB, tx pgx.Tx) error {
			if err := tx.Rollback(bare(t)); err != nil {
				return err
			}
			checkIs(t, "commit after rollback", tx.Commit(bare(t)), pgx.ErrTxClosed)
			return nil
		}, 0},
		{"rollback on a cancelled context", func(t *testing.T, db *testDB, tx pgx.Tx) error {
			ctx, cancel := context.WithCancel(bare(t))
			cancel()
			return tx.Rollback(ctx)
		}, 0},
		{"commit on a cancelled context", func(t *testing.T, db *testDB, tx pgx.Tx) error {
			ctx, cancel := context.WithCancel(bare(t))
			cancel()
			checkIs(t, "commit", tx.Commit(ctx), context.Canceled)
			return nil
		}, 0},
		{"commit of a failed one", func(t *testing.T, db *testDB, tx pgx.Tx) error {
			_, err := tx.Exec(bare(t), "select 1/0")
			checkCode(t, "1/0", err, "22012")
			_, err = tx.Exec(bare(t), "select 1")
			checkCode(t, "in a failed transaction", err, "25P02")
			checkIs(t, "commit", tx.Commit(bare(t)), pgx.ErrTxCommitRollback)
			return nil
		}, 0},
		{"deferred constraint", func(t *testing.T, db *testDB, tx pgx.Tx) error {
			if _, err := tx.Exec(bare(t), "update notes set parent = 77"); err != nil {
				return err
			}
			checkCode(t, "commit", tx.Commit(bare(t)), "23503")
			checkIs(t, "rollback after it", tx.Rollback(bare(t)), pgx.ErrTxClosed)
			return nil
		}, 0},
		{"open rows", func(t *testing.T, db *testDB, tx pgx.Tx) error {
			rows, err := tx.Query(bare(t), "select n, repeat('x', 10000) from generate_series(1, 1000) n")
			if err != nil || !rows.Next() {
				return errors.Join(err, errors.New("no row"))
			}
			_, err = tx.Exec(bare(t), "select 1")
			if err == nil {
				t.Error("no error from a statement while rows are open")
			}
			if err := tx.Commit(bare(t)); err == nil {
				t.Error("no error from Commit while rows are open")
			}
			for rows.Next() {
			}
			if rows.Err() == nil {
				t.Error("the rows of a destroyed connection ended without an error")
			}
			return nil
		}, 0},
		{"rollback with open rows", func(t *testing.T, db *testDB, tx pgx.Tx) error {
			rows, err := tx.Query(bare(t), "select n from generate_series(1, 10000) n")
			if err != nil {
				return err
			}
			rows.Next()
			_ = tx.Rollback(bare(t))
			rows.Close()
			return nil
		}, 0},
		{"open batch", func(t *testing.T, db *testDB, tx pgx.Tx) error {
			b := &pgx.Batch{}
			b.Queue("select n from generate_series(1, 10000) n")
			br := tx.SendBatch(bare(t), b)
			if err := tx.Commit(bare(t)); err == nil {
				t.Error("no error from Commit while a batch is open")
			}
			if err := br.Close(); err == nil {
				t.Error("no error from the batch of a destroyed connection")
			}
			return nil
		}, 0},
		{"nested: inner rollback, outer commit", func(t *testing.T, db *testDB, tx pgx.Tx) error {
			sub, err := tx.Begin(bare(t))
			if err != nil {
				return err
			}
			_, err = sub.Exec(bare(t), "insert into log (note) values ('inner')")
			check(t, "insert", err)
			subsub, err := sub.Begin(bare(t))
			check(t, "Begin in the third level", err)
			check(t, "Commit in the third level", subsub.Commit(bare(t)))
			checkIs(t, "second commit in the third level", subsub.Commit(bare(t)), pgx.ErrTxClosed)
			check(t, "inner rollback", sub.Rollback(bare(t)))
			_, err = sub.Exec(bare(t), "select 1")
			checkIs(t, "after the inner rollback", err, pgx.ErrTxClosed)
			return tx.Commit(bare(t))
		}, 1},
		{"nested: outer ends first", func(t *testing.T, db *testDB, tx pgx.Tx) error {
			sub, err := tx.Begin(bare(t))
			if err != nil {
				return err
			}
			check(t, "outer commit", tx.Commit(bare(t)))
			_, err = sub.Exec(bare(t), "select 1")
			checkIs(t, "inner after the outer's end", err, pgx.ErrTxClosed)
			checkIs(t, "inner commit after the outer's end", sub.Commit(bare(t)), pgx.ErrTxClosed)
			checkIs(t, "inner rollback after the outer's end", sub.Rollback(bare(t)), pgx.ErrTxClosed)
			return nil
		}, 1},
		{"ended behind our back", func(t *testing.T, db *testDB, tx pgx.Tx) error {
			_, err := tx.Conn().Exec(bare(t), "rollback")
			check(t, "rollback", err)
			for _, use := range uses {
				checkIs(t, use.name+" without a transaction", use.run(bare(t), tx, db.acme), pgx.ErrTxClosed)
			}
			checkIs(t, "commit without a transaction", tx.Commit(bare(t)), pgx.ErrTxClosed)
			return nil
		}, 0},
		{"connection closed", func(t *testing.T, db *testDB, tx pgx.Tx) error {
			tx.Conn().Close(bare(t))
			if _, err := tx.Exec(bare(t), "select 1"); err == nil {
				t.Error("no error on a closed connection")
			}
			check(t, "rollback on a closed connection", tx.Rollback(bare(t)))
			return nil
		}, 0},
		{"connection closed, commit", func(t *testing.T, db *testDB, tx pgx.Tx) error {
			tx.Conn().Close(bare(t))
			if err := tx.Commit(bare(t)); err == nil {
				t.Error("no error from Commit on a closed connection")
			}
			return nil
		}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			db := newDB(t)
			var be backend
			p := db.pool(t, be.option)
			tx, err := p.Begin(as(t, db.acme))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Exec(bare(t), "insert into log (note) values ('x')"); err != nil {
				t.Fatal(err)
			}
			check(t, "run", tt.run(t, db, tx))
			checkIdle(t, p)
			be.check(t, tt.name)
			db.checkWorks(t, p)
			if n := db.count(t, "select count(*) from tenant_acme.log"); n != tt.want {
				t.Errorf("%d rows stay, want %d", n, tt.want)
			}
		})
	}
}

func TestBeginTxOptions(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	p := db.pool(t)
	ctx := as(t, db.acme)
	check(t, "serializable, deferrable", pgx.BeginTxFunc(ctx, p, pgx.TxOptions{IsoLevel: pgx.Serializable, AccessMode: pgx.ReadOnly, DeferrableMode: pgx.Deferrable}, func(tx pgx.Tx) error {
		var iso, ro, deferrable string
		err := tx.QueryRow(ctx, "select current_setting('transaction_isolation'), current_setting('transaction_read_only'), current_setting('transaction_deferrable')").Scan(&iso, &ro, &deferrable)
		return want(err, iso == "serializable" && ro == "on" && deferrable == "on", "%s %s %s", iso, ro, deferrable)
	}))
	err := pgx.BeginTxFunc(ctx, p, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		checkWhose(t, tx, ctx, db.acme)
		_, err := tx.Exec(ctx, "insert into log (note) values ('x')")
		return err
	})
	checkCode(t, "a write in a read only transaction", err, "25006")
	check(t, "BeginQuery and CommitQuery", pgx.BeginTxFunc(ctx, p, pgx.TxOptions{BeginQuery: "begin read only", CommitQuery: "commit and no chain"}, func(tx pgx.Tx) error {
		var ro string
		err := tx.QueryRow(ctx, "show transaction_read_only").Scan(&ro)
		return want(err, ro == "on", "read only is %s", ro)
	}))
	_, err = p.BeginTx(ctx, pgx.TxOptions{BeginQuery: "nonsense"})
	checkCode(t, "a BeginQuery that does not parse", err, "42601")
	db.checkWorks(t, p)
}

func TestTxPanic(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	p := db.pool(t)
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic is gone")
			}
		}()
		_ = pgx.BeginFunc(as(t, db.acme), p, func(tx pgx.Tx) error {
			_, err := tx.Exec(bare(t), "insert into log (note) values ('x')")
			check(t, "insert", err)
			panic("ouch")
		})
	}()
	db.checkWorks(t, p)
	if n := db.count(t, "select count(*) from tenant_acme.log"); n != 0 {
		t.Errorf("%d rows stay", n)
	}
}

func TestTxRefuses(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	p := db.pool(t)
	check(t, "Begin", pgx.BeginFunc(as(t, db.acme), p, func(tx pgx.Tx) error {
		_, err := tx.Prepare(bare(t), "name", "select 1")
		checkIs(t, "Prepare", err, pgtenancy.ErrStatementRefused)
		func() {
			defer func() {
				if recover() == nil {
					t.Error("LargeObjects does not panic")
				}
			}()
			tx.LargeObjects()
		}()
		checkWhose(t, tx, bare(t), db.acme)
		return nil
	}))
}
