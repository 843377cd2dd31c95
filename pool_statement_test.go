package pgtenancy_test

import (
	"context"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy"
)

func TestStatementRefused(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	var w wireCounter
	p := db.pool(t, w.option)
	tests := []struct {
		sql    string
		single bool // refused alone
		inTx   bool // refused in a transaction
		reason string
	}{
		{"begin", true, true, "Begin"},
		{"start transaction read only", true, true, "Begin"},
		{"commit", true, true, "Commit"},
		{"Commit And Chain", true, true, "case"},
		{"end", true, true, "COMMIT"},
		{"abort", true, true, "ROLLBACK"},
		{"rollback", true, true, "Rollback"},
		{"rollback and chain", true, true, "Rollback"},
		{"rollback prepared 'x'", true, true, "Rollback"},
		{"rollback to s", true, false, "a savepoint of the transaction"},
		{"rollback to savepoint s", true, false, "a savepoint of the transaction"},
		{"savepoint s", true, false, "a savepoint of the transaction"},
		{"release s", true, false, "a savepoint of the transaction"},
		{"set search_path = public", true, true, "stays"},
		{"set session search_path = public", true, true, "stays"},
		{"set role postgres", true, true, "stays"},
		{"set session authorization postgres", true, true, "stays"},
		{"set time zone 'utc'", true, true, "stays"},
		{"set local statement_timeout = '1s'", true, false, "ends with the transaction"},
		{"SET /* x */ LOCAL statement_timeout = '1s'", true, false, "ends with the transaction"},
		{"set constraints all deferred", true, false, "ends with the transaction"},
		{"reset all", true, true, "Acquire"},
		{"discard all", true, true, "Acquire"},
		{"listen x", true, true, "Acquire"},
		{"unlisten *", true, true, "Acquire"},
		{"load 'auto_explain'", true, true, "Acquire"},
		{"prepare p as select 1", true, true, "stays"},
		{"prepare transaction 'x'", true, true, "stays"},
		{"deallocate all", true, true, "would lose the pool's own"},
		{"create temp table x (a int)", true, true, "stays"},
		{"create local temporary table x (a int)", true, true, "stays"},
		{"create temp table x (a int) ON COMMIT DROP", true, false, "goes with the transaction"},
		{"create temp table x (a text default ' on commit drop')", true, true, "stays, whatever is in a string"},
		{"create temp table x (a int) on\ncommit /* x */ drop", true, false, "goes with the transaction"},
		{"declare c cursor with hold for select 1", true, true, "stays"},
		{"declare c cursor with  /* x */\nHold for select 1", true, true, "stays, however it is spaced"},
		{"declare c cursor for select 1", true, false, "goes with the transaction"},
		{"-- a comment\n/* and /* nested */ */ ; ( \tcommit", true, true, "comments, space and brackets"},
		{";;commit", true, true, "empty statements first"},
	}
	w.reset()
	for _, tt := range tests {
		if !tt.single {
			continue
		}
		for i, err := range sendAll(t, p, as(t, db.acme), tt.sql) {
			if i < 3 || tt.inTx { // a batch is a transaction
				checkIs(t, tt.sql+" ("+tt.reason+")", err, pgtenancy.ErrStatementRefused)
			}
		}
	}
	for _, tt := range tests {
		tx, err := p.Begin(as(t, db.acme))
		if err != nil {
			t.Fatal(err)
		}
		_, err = tx.Conn().Exec(bare(t), "savepoint s")
		check(t, "savepoint", err)
		w.reset()
		if tt.inTx {
			for _, err := range sendAll(t, tx, bare(t), tt.sql) {
				checkIs(t, tt.sql+" in a transaction ("+tt.reason+")", err, pgtenancy.ErrStatementRefused)
			}
			if w.sent() {
				t.Errorf("%s: something was sent", tt.sql)
			}
		} else {
			_, err := tx.Exec(bare(t), tt.sql)
			check(t, tt.sql+" in a transaction ("+tt.reason+")", err)
		}
		checkWhose(t, tx, bare(t), db.acme)
		check(t, "Rollback", tx.Rollback(bare(t)))
	}
	db.checkWorks(t, p)
}

// sendAll sends a statement in all ways and returns their errors.
func sendAll(t *testing.T, q querier, ctx context.Context, sql string) []error {
	t.Helper()
	_, execErr := q.Exec(ctx, sql)
	rows, queryErr := q.Query(ctx, sql)
	if !errors.Is(rows.Err(), queryErr) {
		t.Errorf("%s: Query returns %v, its rows have %v", sql, queryErr, rows.Err())
	}
	var n int
	b := &pgx.Batch{}
	b.Queue("select 1")
	b.Queue(sql)
	return []error{execErr, queryErr, q.QueryRow(ctx, sql).Scan(&n), q.SendBatch(ctx, b).Close()}
}

func TestStatementAllowed(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	db.exec(t, "grant create on schema tenant_acme to app")
	p := db.pool(t)
	for _, sql := range []string{
		"", " ", ";", "-- nothing", "select 1;", "(select 1)", "values (1)", "table notes", "with x as (select 1) select * from x",
		"explain select * from notes", "show search_path", "create table t (id int primary key)", "alter table t add column x int",
		"create index on t (x)", "comment on table t is 'x'", "truncate log", "analyze t", "drop table t",
		"merge into notes n using (select 1 as id) s on n.id = s.id when matched then do nothing",
		"notify news", "grant select on notes to app",
	} {
		var err error
		for range 3 {
			_, err = p.Exec(as(t, db.acme), sql)
			if err != nil {
				break
			}
			if sql == "create table t (id int primary key)" || sql == "drop table t" || sql == "alter table t add column x int" {
				break
			}
		}
		if code := sqlState(err); code == "42501" || code == "42601" && len(sql) > 5 && sql[:5] == "merge" {
			continue // not the owner; before PostgreSQL 15
		}
		check(t, sql, err)
	}
	_, err := p.Exec(as(t, db.acme), "select 1; select 2")
	checkCode(t, "two statements", err, "42601")
	_, err = p.Exec(as(t, db.acme), "vacuum notes")
	checkCode(t, "VACUUM", err, "25001")
	_, err = p.Exec(as(t, db.acme), "create index concurrently on notes (n)")
	checkCode(t, "CREATE INDEX CONCURRENTLY", err, "25001")
	db.checkWorks(t, p)
}

// CALL and DO run in a transaction, so that a COMMIT inside cannot end the scope.
func TestProcedures(t *testing.T) {
	t.Parallel()
	needsDirect(t)
	forModes(t, func(t *testing.T, opts ...option) {
		db := newDB(t)
		for _, tenant := range db.tenants() {
			db.exec(t, "set search_path = "+tenant.Schema()+`;
				create procedure note(what text) language sql as $$ insert into log (note) values (what) $$;
				create procedure double(inout n int) language plpgsql as $$ begin n := n * 2; end $$;
				create procedure commits() language plpgsql as $$ begin
					insert into log (note) values ('before');
					commit;
					insert into log (note) values ('after');
				end $$;
				create procedure rolls_back() language plpgsql as $$ begin rollback; insert into log (note) values ('after'); end $$`)
		}
		var be backend
		p := db.pool(t, append(opts, be.option)...)
		const rounds = 3
		for range rounds {
			for _, tenant := range db.tenants() {
				ctx := as(t, tenant)
				for _, sql := range []string{
					"call commits()", "call rolls_back()", "/* x */ Call commits()",
					"do $$ begin insert into log (note) values ('do'); commit; end $$",
					"do language plpgsql $$ begin call commits(); end $$",
				} {
					for _, err := range sendAll(t, p, ctx, sql) {
						checkCode(t, sql, err, "2D000")
						be.check(t, sql)
					}
				}
				_, err := p.Exec(ctx, "call note($1)", "args")
				check(t, "CALL with an argument", err)
				_, err = p.Exec(ctx, "do $$ begin insert into log (note) values ('do'); end $$")
				check(t, "DO", err)
				var n int
				err = p.QueryRow(ctx, "call double($1)", 21).Scan(&n)
				check(t, "CALL with a result", want(err, n == 42, "got %d", n))
				err = p.QueryRow(ctx, "call double($1)", "21").Scan(&n)
				check(t, "CALL with text", want(err, n == 42, "got %d", n))
				check(t, "CALL in a transaction", pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error {
					_, err := tx.Exec(ctx, "call note($1)", "tx")
					return err
				}))
				b := &pgx.Batch{}
				b.Queue("call note($1)", "batch")
				check(t, "CALL in a batch", p.SendBatch(ctx, b).Close())
				_, err = p.Exec(ctx, "call note($1 || 1/0)", "x")
				checkCode(t, "CALL that fails", err, "22012")
				be.check(t, "CALL")
			}
		}
		for _, tenant := range db.tenants() {
			if n := db.count(t, "select count(*) from "+tenant.Schema()+".log"); n != 4*rounds {
				t.Errorf("%s has %d rows, want %d", tenant, n, 4*rounds)
			}
		}
		if n := db.count(t, "select count(*) from public.log"); n != 0 {
			t.Errorf("%d rows in public", n)
		}
		if n := p.Stat().NewConnsCount(); n != 1 {
			t.Errorf("%d connections were made, want 1", n)
		}
	})
}
