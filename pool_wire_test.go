package pgtenancy_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgtenancy/pgtenancy"
)

// What the process has seen takes one round trip, on a connection that has not seen it too.
func TestRoundTrips(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		want int
		run  func(ctx context.Context, p *pgtenancy.Pool) error
	}{
		{"Exec", 1, func(ctx context.Context, p *pgtenancy.Pool) error {
			_, err := p.Exec(ctx, "update notes set n = $1 where id = $2", 7, 1)
			return err
		}},
		{"Exec without arguments", 1, func(ctx context.Context, p *pgtenancy.Pool) error {
			_, err := p.Exec(ctx, "update notes set n = n")
			return err
		}},
		{"Query", 1, func(ctx context.Context, p *pgtenancy.Pool) error {
			rows, _ := p.Query(ctx, "select body, tenant from notes where id >= $1", 1)
			_, err := pgx.CollectRows(rows, pgx.RowToMap)
			return err
		}},
		{"QueryRow", 1, func(ctx context.Context, p *pgtenancy.Pool) error {
			var s string
			return p.QueryRow(ctx, "select body from notes where id = $1", 1).Scan(&s)
		}},
		{"DO", 1, func(ctx context.Context, p *pgtenancy.Pool) error {
			_, err := p.Exec(ctx, "do $$ begin end $$")
			return err
		}},
		{"SendBatch", 1, func(ctx context.Context, p *pgtenancy.Pool) error {
			b := &pgx.Batch{}
			for i := range 20 {
				b.Queue("update notes set n = $1", i)
				b.Queue("select id, body from notes where id = $1", i)
			}
			return p.SendBatch(ctx, b).Close()
		}},
		{"a transaction of two statements", 4, func(ctx context.Context, p *pgtenancy.Pool) error {
			return pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error {
				for range 2 {
					if _, err := tx.Exec(ctx, "update notes set n = $1", 1); err != nil {
						return err
					}
				}
				return nil
			})
		}},
	}
	forModes(t, func(t *testing.T, opts ...option) {
		db := newDB(t)
		var w wireCounter
		p := db.pool(t, append(opts, w.option)...)
		for _, tt := range tests {
			check(t, tt.name, tt.run(as(t, db.acme), p)) // the process gets to know it
			for i := range 4 {
				for _, tenant := range []pgtenancy.Tenant{db.acme, db.globex} {
					ctx := as(t, tenant)
					if i == 2 { // a new connection
						tx, err := p.Begin(ctx)
						check(t, "Begin", err)
						check(t, "Close", tx.Conn().Close(ctx))
						check(t, "Rollback", tx.Rollback(ctx))
						checkIdle(t, p)
						check(t, "Ping", p.Ping(ctx))
					}
					w.reset()
					check(t, tt.name, tt.run(ctx, p))
					if got := w.roundTrips(); got != tt.want {
						t.Errorf("%s as %s, use %d: %d round trips, want %d", tt.name, tenant, i, got, tt.want)
					}
				}
			}
		}
	})
}

// logTracer writes down what it is told of.
type logTracer struct {
	mu   sync.Mutex
	log  []string
	open int
}

func (l *logTracer) add(open int, format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open += open
	l.log = append(l.log, fmt.Sprintf(format, args...))
}

type traced struct{}

func (l *logTracer) start(ctx context.Context, format string, args ...any) context.Context {
	l.add(1, format, args...)
	return context.WithValue(ctx, traced{}, true)
}

func (l *logTracer) end(ctx context.Context, what string, err error) {
	if ctx.Value(traced{}) == nil {
		what += " in another context"
	}
	if err != nil {
		what += " failed"
	}
	l.add(-1, "%s", what)
}

func (l *logTracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	return l.start(ctx, "%s %v", data.SQL, data.Args)
}

func (l *logTracer) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryEndData) {
	l.end(ctx, data.CommandTag.String(), data.Err)
}

func (l *logTracer) TraceBatchStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceBatchStartData) context.Context {
	return l.start(ctx, "batch of %d", data.Batch.Len())
}

func (l *logTracer) TraceBatchQuery(_ context.Context, _ *pgx.Conn, data pgx.TraceBatchQueryData) {
	what := ""
	if data.Err != nil {
		what = " failed"
	}
	l.add(0, "%s %v %s%s", data.SQL, data.Args, data.CommandTag, what)
}

func (l *logTracer) TraceBatchEnd(ctx context.Context, _ *pgx.Conn, data pgx.TraceBatchEndData) {
	l.end(ctx, "batch end", data.Err)
}

func (l *logTracer) TraceCopyFromStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceCopyFromStartData) context.Context {
	return l.start(ctx, "copy %s", data.TableName.Sanitize())
}

func (l *logTracer) TraceCopyFromEnd(ctx context.Context, _ *pgx.Conn, data pgx.TraceCopyFromEndData) {
	l.end(ctx, data.CommandTag.String(), data.Err)
}

// Tracers see what the user wrote, and every start has an end.
func TestTracers(t *testing.T) {
	t.Parallel()
	forModes(t, func(t *testing.T, opts ...option) {
		db := newDB(t)
		var tr logTracer
		p := db.pool(t, append(opts, tracer(&tr))...)
		ctx := as(t, db.acme)
		tests := []struct {
			name string
			run  func()
			want []string
		}{
			{"Exec", func() { p.Exec(ctx, "update notes set n = $1", 1) }, []string{"update notes set n = $1 [1]", "UPDATE 3"}},
			{"Exec that fails", func() { p.Exec(ctx, "nonsense") }, []string{"nonsense []", " failed"}},
			{"Exec that is refused", func() { p.Exec(ctx, "commit") }, []string{"commit []", " failed"}},
			{"Exec with wrong arguments", func() { p.Exec(ctx, "select 1", 1, 2) }, []string{"select 1 [1 2]", " failed"}},
			{"CALL", func() { p.Exec(ctx, "do $$ begin end $$") }, []string{"do $$ begin end $$ []", "DO"}},
			{"Query", func() { rows, _ := p.Query(ctx, "select 1"); rows.Close() }, []string{"select 1 []", "SELECT 1"}},
			{"Query that fails", func() { rows, _ := p.Query(ctx, "select 1 from nowhere"); rows.Close() }, []string{"select 1 from nowhere []", " failed"}},
			{"QueryRow", func() { _ = p.QueryRow(ctx, "select @n::int", pgx.NamedArgs{"n": 1}).Scan(nil) }, []string{"select @n::int [map[n:1]]", "SELECT 1"}},
			{"QueryRow that fails to scan", func() { var i int; _ = p.QueryRow(ctx, "select 'x'::text").Scan(&i) }, []string{"select 'x'::text []", "SELECT 1 failed"}},
			{"deferred constraint", func() { p.Exec(ctx, "insert into notes (parent) values (-1)") }, []string{"insert into notes (parent) values (-1) []", " failed"}},
			{"SendBatch", func() {
				b := &pgx.Batch{}
				b.Queue("select $1::int", 1)
				b.Queue("select 2")
				p.SendBatch(ctx, b).Close()
			}, []string{"batch of 2", "select $1::int [1] SELECT 1", "select 2 [] SELECT 1", "batch end"}},
			{"SendBatch that fails", func() {
				b := &pgx.Batch{}
				b.Queue("select 1")
				b.Queue("select 1/0")
				b.Queue("select 3")
				p.SendBatch(ctx, b).Close()
			}, []string{"batch of 3", "select 1 [] SELECT 1", "select 1/0 []  failed", "batch end failed"}},
			{"SendBatch that is refused", func() {
				b := &pgx.Batch{}
				b.Queue("commit")
				p.SendBatch(ctx, b).Close()
			}, []string{"batch of 1", "batch end failed"}},
			{"CopyFrom", func() {
				p.CopyFrom(ctx, pgx.Identifier{"log"}, []string{"note"}, pgx.CopyFromRows([][]any{{"x"}}))
			}, []string{"begin []", "BEGIN", `copy "log"`, "COPY 1", "commit []", "COMMIT"}},
			{"Begin", func() {
				_ = pgx.BeginTxFunc(ctx, p, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
					tx.Exec(ctx, "select 1")
					return errors.New("ouch")
				})
			}, []string{"begin read only []", "BEGIN", "select 1 []", "SELECT 1", "rollback []", "ROLLBACK"}},
			{"Begin that fails", func() { p.BeginTx(ctx, pgx.TxOptions{BeginQuery: "nonsense"}) }, []string{"nonsense []", "BEGIN failed"}},
			{"Acquire", func() {
				_ = p.AcquireFunc(ctx, func(c *pgtenancy.Conn) error { c.Exec(ctx, "listen x"); return nil })
			}, []string{"listen x []", "LISTEN"}},
		}
		for range 3 {
			for _, tt := range tests {
				tr.log = nil
				tt.run()
				got := slices.DeleteFunc(tr.log, func(s string) bool { return strings.HasPrefix(s, "deallocate") || strings.HasPrefix(s, "DEALLOCATE") })
				if !slices.Equal(got, tt.want) || tr.open != 0 {
					t.Errorf("%s: the tracer saw\n\t%q\nwant\n\t%q\n%d are open", tt.name, got, tt.want, tr.open)
				}
			}
		}
	})
}

// otherPID makes a connection say that its backend is another process, as poolers do.
type otherPID struct{ net.Conn }

func (c otherPID) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if at := bytes.Index(b[:n], []byte{'K', 0, 0, 0, 12}); at >= 0 && at+9 <= n {
		b[at+8] ^= 0xff
	}
	return n, err
}

// Rows of a prepared statement are described again where a pooler may have prepared it on another server meanwhile, and only
// there.
func TestDescribe(t *testing.T) {
	t.Parallel()
	needsDirect(t)
	tests := []struct {
		name string
		opt  option
		want int // messages that ask for a description, in 5 queries
	}{
		{"direct", func(*pgtenancy.PoolConfig) {}, 0},
		{"with a way past a pooler", func(c *pgtenancy.PoolConfig) { c.Direct = c.Conns.Copy() }, 5},
		{"a pooler that nobody told of", func(c *pgtenancy.PoolConfig) {
			dial := c.Conns.ConnConfig.DialFunc
			c.Conns.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
				conn, err := dial(ctx, network, addr)
				return otherPID{conn}, err
			}
		}, 5},
		{"a proxy", func(c *pgtenancy.PoolConfig) { c.Entry = pgtenancy.EntryFunction }, 10}, // enter is described too
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			db := newDB(t)
			db.installEnter(t)
			var sent sentSQL
			p := db.pool(t, maxConns(1), tt.opt, sent.option)
			query := func() {
				checkWhose(t, p, as(t, db.acme), db.acme)
			}
			for range 3 {
				query()
			}
			before := sent.describes(t)
			for range 5 {
				query()
			}
			checkEqual(t, "descriptions asked for", sent.describes(t)-before, tt.want)
		})
	}
}

// describes counts the messages that asked for the description of a result.
func (r *sentSQL) describes(t *testing.T) (n int) {
	t.Helper()
	r.each(t, func(msg pgproto3.FrontendMessage) {
		if d, ok := msg.(*pgproto3.Describe); ok && d.ObjectType == 'P' {
			n++
		}
	})
	return n
}
