package pgtenancy_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

// After whatever goes wrong the pool works, for the right tenant, and has no connection in use.
func TestFailures(t *testing.T) {
	t.Parallel()
	forModes(t, func(t *testing.T, opts ...option) {
		db := newDB(t)
		var be backend
		p := db.pool(t, append(opts, be.option)...)
		tests := []struct {
			name string
			code string // "" for a cancelled context
			run  func(ctx context.Context, cancel func()) error
		}{
			{"syntax in Exec", "42601", func(ctx context.Context, _ func()) error {
				_, err := p.Exec(ctx, "selectt")
				return err
			}},
			{"syntax in Exec with arguments", "42601", func(ctx context.Context, _ func()) error {
				_, err := p.Exec(ctx, "selectt $1", 1)
				return err
			}},
			{"syntax in Query", "42601", func(ctx context.Context, _ func()) error {
				rows, err := p.Query(ctx, "select from where")
				rows.Close()
				return errors.Join(err, rows.Err())
			}},
			{"constraint in Exec", "23514", func(ctx context.Context, _ func()) error {
				_, err := p.Exec(ctx, "insert into notes (body) values ($1)", "bad")
				return err
			}},
			{"constraint in QueryRow", "23514", func(ctx context.Context, _ func()) error {
				var id int
				return p.QueryRow(ctx, "insert into notes (body) values ('bad') returning id").Scan(&id)
			}},
			{"deferred constraint in Exec", "23503", func(ctx context.Context, _ func()) error {
				_, err := p.Exec(ctx, "insert into notes (parent) values ($1)", -1)
				return err
			}},
			{"deferred constraint in Exec without arguments", "23503", func(ctx context.Context, _ func()) error {
				_, err := p.Exec(ctx, "insert into notes (parent) values (-1)")
				return err
			}},
			{"deferred constraint in QueryRow", "23503", func(ctx context.Context, _ func()) error {
				var id int
				return p.QueryRow(ctx, "insert into notes (parent) values ($1) returning id", -1).Scan(&id)
			}},
			{"deferred constraint in Query closed early", "23503", func(ctx context.Context, _ func()) error {
				rows, err := p.Query(ctx, "insert into notes (parent) values ($1) returning id", -1)
				if err != nil {
					return err
				}
				rows.Close()
				return rows.Err()
			}},
			{"deferred constraint in DO", "23503", func(ctx context.Context, _ func()) error {
				_, err := p.Exec(ctx, "do $$ begin insert into notes (parent) values (-1); end $$")
				return err
			}},
			{"deferred constraint in SendBatch", "23503", func(ctx context.Context, _ func()) error {
				b := &pgx.Batch{}
				b.Queue("insert into notes (parent) values ($1)", -1)
				return p.SendBatch(ctx, b).Close()
			}},
			{"cancelled before Exec", "", func(ctx context.Context, cancel func()) error {
				cancel()
				_, err := p.Exec(ctx, "insert into notes (body) values ('x')")
				return err
			}},
			{"cancelled before Begin", "", func(ctx context.Context, cancel func()) error {
				cancel()
				_, err := p.Begin(ctx)
				return err
			}},
			{"cancelled before a statement of a transaction", "", func(ctx context.Context, cancel func()) error {
				return pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error {
					cancel()
					_, err := tx.Exec(ctx, "insert into notes (body) values ($1)", "x")
					return err
				})
			}},
			{"cancelled before the start of a batch", "", func(ctx context.Context, cancel func()) error {
				cancel()
				b := &pgx.Batch{}
				b.Queue("insert into notes (body) values ('x')")
				return p.SendBatch(ctx, b).Close()
			}},
			{"cancelled during Exec", "", func(ctx context.Context, cancel func()) error {
				defer db.onceAsleep(t, cancel)()
				_, err := p.Exec(ctx, "insert into notes (body) select pg_sleep(100)::text")
				return err
			}},
			{"cancelled during a transaction", "", func(ctx context.Context, cancel func()) error {
				defer db.onceAsleep(t, cancel)()
				return pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error {
					_, err := tx.Exec(ctx, "select pg_sleep($1)", 100)
					return err
				})
			}},
			{"cancelled during a batch", "", func(ctx context.Context, cancel func()) error {
				defer db.onceAsleep(t, cancel)()
				b := &pgx.Batch{}
				b.Queue("insert into notes (body) values ('x')")
				b.Queue("select pg_sleep(100)")
				return p.SendBatch(ctx, b).Close()
			}},
			{"cancelled while rows are read", "", func(ctx context.Context, cancel func()) error {
				rows, err := p.Query(ctx, "select n, repeat('x', 1000) from generate_series(1, 1000000) n")
				if err != nil {
					return err
				}
				defer rows.Close()
				rows.Next()
				cancel()
				for rows.Next() {
				}
				return rows.Err()
			}},
			{"backend killed by its own statement", "57P01", func(ctx context.Context, _ func()) error {
				_, err := p.Exec(ctx, "do $$ begin perform pg_terminate_backend(pg_backend_pid()); perform pg_sleep(1); end $$")
				return err
			}},
			{"statement_timeout", "57014", func(ctx context.Context, _ func()) error {
				return pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error {
					if _, err := tx.Exec(ctx, "set local statement_timeout = 10"); err != nil {
						return err
					}
					_, err := tx.Exec(ctx, "select pg_sleep(10)")
					return err
				})
			}},
		}
		db.checkWorks(t, p)
		for range 3 {
			for _, tt := range tests {
				ctx, cancel := context.WithCancel(as(t, db.acme))
				err := tt.run(ctx, cancel)
				cancel()
				switch tt.code {
				case "":
					checkIs(t, tt.name, err, context.Canceled)
				case "57P01":
					if err == nil {
						t.Errorf("%s: no error", tt.name)
					}
				default:
					checkCode(t, tt.name, err, tt.code)
				}
				checkIdle(t, p)
				if !behindPooler() {
					be.check(t, tt.name)
				}
				db.checkWorks(t, p)
			}
		}
		if n := db.count(t, "select count(*) from tenant_acme.notes"); n != 3 {
			t.Errorf("%d notes, want 3", n)
		}
	})
}

// A backend that ends while nobody looks costs at most one error, and never the tenant.
func TestKilledIdle(t *testing.T) {
	t.Parallel()
	needsDirect(t)
	db := newDB(t)
	var be backend
	p := db.pool(t, be.option)
	for _, use := range uses {
		db.checkWorks(t, p)
		db.kill(t, be.pid())
		_ = use.run(as(t, db.acme), p, db.acme)
		checkIdle(t, p)
		db.checkWorks(t, p)
	}
	c := acquire(t, p, as(t, db.acme))
	db.kill(t, c.Conn().PgConn().PID())
	if _, err := c.Exec(bare(t), "select 1"); err == nil {
		t.Error("no error from a killed backend")
	}
	c.Release()
	db.checkWorks(t, p)
}

// What the server no longer has is prepared again.
func TestStatementsLost(t *testing.T) {
	t.Parallel()
	forModes(t, func(t *testing.T, opts ...option) {
		db := newDB(t)
		p := db.pool(t, opts...)
		lose := map[string]func(){
			"DEALLOCATE ALL on the connection": func() {
				check(t, "Begin", pgx.BeginFunc(as(t, db.acme), p, func(tx pgx.Tx) error {
					_, err := tx.Conn().Exec(bare(t), "deallocate all")
					return err
				}))
			},
			"DEALLOCATE ALL in DO": func() {
				_, err := p.Exec(as(t, db.acme), "do $$ begin deallocate all; end $$")
				check(t, "DO", err)
			},
			"one of them": func() {
				_, err := p.Exec(as(t, db.acme), `do $$ declare s text; begin
					select name into s from pg_prepared_statements where statement like '%max(tenant)%' limit 1;
					if s is not null then execute format('deallocate %I', s); end if; end $$`)
				check(t, "DO", err)
			},
			"none, but an error that looks like it": func() {
				_, err := p.Exec(as(t, db.acme), "execute nothing")
				checkCode(t, "execute", err, "26000")
				_, err = p.Exec(as(t, db.acme), "do $$ begin raise sqlstate '26000'; end $$")
				checkCode(t, "raise", err, "26000")
			},
			"Acquire and Release": func() { acquire(t, p, as(t, db.acme)).Release() },
		}
		for range 3 {
			for name, f := range lose {
				for _, use := range uses {
					if name == "DEALLOCATE ALL on the connection" && behindPooler() {
						continue // PgBouncer takes that for the client's wish, and ends a connection that then uses a statement
					}
					if name == "one of them" && (strings.HasSuffix(use.name, "Begin") || use.name == "SendBatch") {
						continue // a statement inside a transaction cannot be sent again
					}
					check(t, use.name+" before", use.run(as(t, db.acme), p, db.acme))
					check(t, use.name+" before", use.run(as(t, db.acme), p, db.acme))
					f()
					for _, tenant := range []int{0, 1, 0, 0} {
						tenant := db.tenants()[tenant]
						check(t, use.name+" after "+name, use.run(as(t, tenant), p, tenant))
					}
				}
			}
		}
		db.checkWorks(t, p)
	})
}
