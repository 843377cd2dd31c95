package pgtenancy_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pgtenancy/pgtenancy"
)

// replace is a rewriter of a user's own.
type replace struct{ sql string }

func (r replace) RewriteQuery(_ context.Context, _ *pgx.Conn, sql string, args []any) (string, []any, error) {
	if sql == "fail" {
		return "", nil, errRewrite
	}
	return r.sql, append(args, 1), nil
}

var errRewrite = errors.New("cannot rewrite")

func TestArguments(t *testing.T) {
	t.Parallel()
	forModes(t, func(t *testing.T, opts ...option) {
		db := newDB(t)
		p := db.pool(t, opts...)
		ctx := as(t, db.acme)
		tests := []struct {
			name string
			sql  string
			args []any
			want string // "" for an error
		}{
			{"NamedArgs", "select body from notes where n = @n and tenant = @who", []any{pgx.NamedArgs{"n": 2, "who": "acme"}}, "two"},
			{"NamedArgs that are missing are null", "select coalesce(@x::text, 'null')", []any{pgx.NamedArgs{}}, "null"},
			{"StrictNamedArgs", "select body from notes where n = @n", []any{pgx.StrictNamedArgs{"n": 2}}, "two"},
			{"StrictNamedArgs that are missing", "select body from notes where n = @n", []any{pgx.StrictNamedArgs{}}, ""},
			{"a rewriter", "ignored", []any{replace{"select body from notes where n = $1"}}, "one"},
			{"a rewriter that fails", "fail", []any{replace{""}}, ""},
			{"QueryResultFormats", "select body from notes where n = $1", []any{pgx.QueryResultFormats{1}, 3}, "three"},
			{"QueryResultFormatsByOID", "select n::text from notes where n = $1", []any{pgx.QueryResultFormatsByOID{pgtype.TextOID: 1}, 3}, "3"},
			{"mode exec", "select body from notes where n = $1", []any{pgx.QueryExecModeExec, 3}, "three"},
			{"mode cache_describe", "select body from notes where n = $1", []any{pgx.QueryExecModeCacheDescribe, 3}, "three"},
			{"mode simple_protocol", "select body from notes where n = $1", []any{pgx.QueryExecModeSimpleProtocol, 3}, ""},
			{"mode describe_exec", "select body from notes where n = $1", []any{pgx.QueryExecModeDescribeExec, 3}, ""},
			{"an unknown mode", "select body from notes where n = $1", []any{pgx.QueryExecMode(99), 3}, ""},
			{"several options", "select body from notes where n = @n", []any{pgx.QueryExecModeExec, pgx.QueryResultFormats{0}, pgx.NamedArgs{"n": 1}}, "one"},
			{"too few arguments", "select body from notes where n = $1 and id = $2", []any{1}, ""},
			{"too many arguments", "select body from notes where n = $1", []any{1, 2}, ""},
			{"an argument of another type", "select body from notes where n = $1", []any{"not a number"}, ""},
		}
		for range 3 {
			for _, tt := range tests {
				var got string
				err := p.QueryRow(ctx, tt.sql, tt.args...).Scan(&got)
				if (err == nil) != (tt.want != "") || got != tt.want {
					t.Errorf("%s: got %q, %v; want %q", tt.name, got, err, tt.want)
				}
				_, err = p.Exec(ctx, tt.sql, tt.args...)
				if (err == nil) != (tt.want != "") {
					t.Errorf("%s: Exec: %v", tt.name, err)
				}
			}
			var got string
			b := &pgx.Batch{}
			b.Queue("select body from notes where n = @n", pgx.NamedArgs{"n": 2}).QueryRow(func(row pgx.Row) error { return row.Scan(&got) })
			check(t, "NamedArgs in a batch", want(p.SendBatch(ctx, b).Close(), got == "two", "got %q", got))
			b = &pgx.Batch{}
			b.Queue("fail", replace{})
			checkIs(t, "a rewriter that fails in a batch", p.SendBatch(ctx, b).Close(), errRewrite)
			_, err := p.Exec(ctx, "fail", replace{})
			checkIs(t, "a rewriter that fails", err, errRewrite)
		}
		db.checkWorks(t, p)
	})
}

// Values go there and back, whoever picks the types.
func TestValues(t *testing.T) {
	t.Parallel()
	forModes(t, func(t *testing.T, opts ...option) {
		db := newDB(t)
		p := db.pool(t, opts...)
		ctx := as(t, db.acme)
		day := time.Date(2024, 2, 29, 13, 14, 15, 123456000, time.UTC)
		tests := []struct {
			typ   string
			value any
		}{
			{"int4", int32(-7)},
			{"int8", int64(1) << 40},
			{"int2", int16(3)},
			{"float8", 2.5},
			{"float4", float32(0.25)},
			{"bool", true},
			{"text", "it's \\ \"quoted\"\n😀"},
			{"varchar(3)", "abc"},
			{"bytea", []byte{0, 1, 255}},
			{"timestamptz", day},
			{"numeric", pgtype.Numeric{}},
			{"text[]", []string{"a", "b,c"}},
			{"int4[]", []int32{1, 2}},
			{"int8[]", []int64{}},
			{"uuid", pgtype.UUID{Bytes: [16]byte{1, 2, 3}, Valid: true}},
			{"text", (*string)(nil)},
			{"int4", pgtype.Int4{}},
			{"date", pgtype.Date{Time: day.Truncate(24 * time.Hour), Valid: true}},
		}
		for range 3 {
			for _, tt := range tests {
				got := reflect.New(reflect.TypeOf(tt.value))
				err := p.QueryRow(ctx, "select $1::"+tt.typ, tt.value).Scan(got.Interface())
				if err != nil {
					t.Errorf("%s %v: %v", tt.typ, tt.value, err)
					continue
				}
				g := got.Elem().Interface()
				if a, ok := g.(time.Time); ok {
					g = a.UTC()
				}
				if !reflect.DeepEqual(g, tt.value) {
					t.Errorf("%s: got %#v, want %#v", tt.typ, g, tt.value)
				}
			}
			var doc map[string]int
			check(t, "jsonb", p.QueryRow(ctx, "select $1::jsonb", `{"a": 1}`).Scan(&doc))
			if doc["a"] != 1 {
				t.Errorf("jsonb: got %v", doc)
			}
			var isNull bool
			check(t, "nil", p.QueryRow(ctx, "select $1::text is null", nil).Scan(&isNull))
			if !isNull {
				t.Error("nil is not null")
			}
			var n pgtype.Numeric
			check(t, "numeric", p.QueryRow(ctx, "select $1::numeric", "12345678901234567890.5").Scan(&n))
		}
	})
}

type note struct {
	ID     int64
	Tenant string
	Body   *string
}

func TestRows(t *testing.T) {
	t.Parallel()
	forModes(t, func(t *testing.T, opts ...option) {
		db := newDB(t)
		p := db.pool(t, opts...)
		ctx := as(t, db.acme)
		for range 3 {
			rows, _ := p.Query(ctx, "select id, tenant, body from notes order by id")
			notes, err := pgx.CollectRows(rows, pgx.RowToStructByName[note])
			if err != nil || len(notes) != 3 || notes[2].Tenant != "acme" || *notes[2].Body != "three" {
				t.Errorf("RowToStructByName: %v, %v", notes, err)
			}
			rows, _ = p.Query(ctx, "select id, tenant, body from notes where n = $1", 2)
			one, err := pgx.CollectExactlyOneRow(rows, pgx.RowToAddrOfStructByPos[note])
			if err != nil || *one.Body != "two" {
				t.Errorf("CollectExactlyOneRow: %v, %v", one, err)
			}
			rows, _ = p.Query(ctx, "select id from notes where n = 77")
			_, err = pgx.CollectOneRow(rows, pgx.RowTo[int64])
			checkIs(t, "CollectOneRow", err, pgx.ErrNoRows)
			rows, _ = p.Query(ctx, "select id from nowhere")
			_, err = pgx.CollectRows(rows, pgx.RowTo[int64])
			checkCode(t, "CollectRows of an error", err, "42P01")
			var n int
			rows, _ = p.Query(ctx, "select n from notes order by n")
			tag, err := pgx.ForEachRow(rows, []any{&n}, func() error { return nil })
			check(t, "ForEachRow", want(err, n == 3 && tag.RowsAffected() == 3, "n %d, %s", n, tag))

			rows, err = p.Query(ctx, "select id, tenant, null::text as nothing from notes order by id")
			check(t, "Query", err)
			if rows.Conn() == nil || rows.TypeMap() == nil {
				t.Error("rows have no connection or type map")
			}
			if !rows.Next() {
				t.Fatal("no row")
			}
			fds := rows.FieldDescriptions()
			if len(fds) != 3 || fds[1].Name != "tenant" {
				t.Errorf("FieldDescriptions: %v", fds)
			}
			values, err := rows.Values()
			if err != nil || !reflect.DeepEqual(values, []any{int64(1), "acme", nil}) {
				t.Errorf("Values: %v, %v", values, err)
			}
			if raw := rows.RawValues(); len(raw) != 3 || string(raw[1]) != "acme" || raw[2] != nil {
				t.Errorf("RawValues: %q", raw)
			}
			var driver pgtype.DriverBytes
			if err := rows.Scan(nil, &driver, nil); err != nil || string(driver) != "acme" {
				t.Errorf("DriverBytes: %q, %v", driver, err)
			}
			rows.Close()
			rows.Close()
			if rows.Next() || rows.Err() != nil || rows.CommandTag().String() != "SELECT 3" {
				t.Errorf("after Close: %v, tag %s", rows.Err(), rows.CommandTag())
			}
			if err := rows.Scan(nil, nil, nil); err == nil {
				t.Error("Scan after Close: no error")
			}
			if rows.FieldDescriptions() != nil || rows.RawValues() != nil {
				t.Error("closed rows show a row")
			}
			if _, err := rows.Values(); err == nil {
				t.Error("Values after Close: no error")
			}

			var s string
			err = p.QueryRow(ctx, "select n from notes").Scan(&n, &s)
			if err == nil {
				t.Error("two destinations for one column: no error")
			}
			var argErr pgx.ScanArgError
			var i int
			if err := p.QueryRow(ctx, "select 'text'::text").Scan(&i); !errors.As(err, &argErr) {
				t.Errorf("text into an int: %v", err)
			}
			if err := p.QueryRow(ctx, "select 'text'::text").Scan(&driver); err == nil {
				t.Error("DriverBytes from QueryRow: no error")
			}
			rows, err = p.Query(ctx, "select n from notes")
			check(t, "Query", err)
			rows.Next()
			if err := rows.Scan(&argErr); err == nil || rows.Err() == nil || rows.Next() {
				t.Errorf("Scan into nonsense: %v, %v", err, rows.Err())
			}
			checkIdle(t, p)

			// A write whose result cannot be decoded has happened.
			before := db.count(t, "select count(*) from tenant_acme.log")
			if err := p.QueryRow(ctx, "insert into log (note) values ('x') returning note").Scan(&i); !errors.As(err, &argErr) {
				t.Errorf("returning text into an int: %v", err)
			}
			if n := db.count(t, "select count(*) from tenant_acme.log"); n != before+1 {
				t.Errorf("%d rows, want %d", n, before+1)
			}

			rows, err = p.Query(ctx, "")
			check(t, "empty SQL", err)
			if rows.Next() || rows.Err() != nil {
				t.Errorf("empty SQL: %v", rows.Err())
			}
			rows, err = p.Query(ctx, "select 1/(n-3) from generate_series(1, 5) n")
			check(t, "Query", err)
			for rows.Next() {
			}
			checkCode(t, "an error after some rows", rows.Err(), "22012")
		}
		db.checkWorks(t, p)
	})
}

// panics panics when it is scanned into, or encoded.
type panics struct{}

func (panics) Scan(any) error                  { panic("ouch") }
func (panics) TextValue() (pgtype.Text, error) { panic("ouch") }
func (panics) RewriteQuery(context.Context, *pgx.Conn, string, []any) (string, []any, error) {
	panic("ouch")
}

// A panic of the caller's own code, which a server recovers from, does not leak the connection.
func TestPanics(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	p := db.pool(t)
	ctx := as(t, db.acme)
	type encodes struct{ pgtype.TextValuer }
	tests := map[string]func(){
		"Scanner in QueryRow":  func() { _ = p.QueryRow(ctx, "select body from notes").Scan(panics{}) },
		"argument in Exec":     func() { _, _ = p.Exec(ctx, "select $1::text", encodes{panics{}}) },
		"argument in Query":    func() { _, _ = p.Query(ctx, "select $1::text", encodes{panics{}}) },
		"argument in QueryRow": func() { _ = p.QueryRow(ctx, "select $1::text", encodes{panics{}}).Scan(nil) },
		"argument in SendBatch": func() {
			b := &pgx.Batch{}
			b.Queue("select 1")
			b.Queue("select $1::text", encodes{panics{}})
			p.SendBatch(ctx, b)
		},
		"rewriter in Exec":  func() { _, _ = p.Exec(ctx, "", panics{}) },
		"rewriter in Query": func() { _, _ = p.Query(ctx, "", panics{}) },
		"rewriter in SendBatch": func() {
			b := &pgx.Batch{}
			b.Queue("select 1", panics{})
			p.SendBatch(ctx, b)
		},
	}
	for range 3 {
		for name, f := range tests {
			func() {
				defer func() {
					if recover() == nil {
						t.Errorf("%s: the panic is gone", name)
					}
				}()
				f()
			}()
			db.checkWorks(t, p)
		}
	}
}

func TestBatch(t *testing.T) {
	t.Parallel()
	forModes(t, func(t *testing.T, opts ...option) {
		db := newDB(t)
		p := db.pool(t, opts...)
		ctx := as(t, db.acme)
		rows := func() int { return db.count(t, "select count(*) from tenant_acme.log") }
		ouch := errors.New("ouch")
		for round := range 3 {
			b := &pgx.Batch{}
			for i := range 1000 {
				b.Queue("insert into log (note) values ($1)", fmt.Sprint(i))
			}
			before := rows()
			check(t, "1000 times", p.SendBatch(ctx, b).Close())
			if n := rows() - before; n != 1000 {
				t.Errorf("%d rows, want 1000", n)
			}

			check(t, "an empty batch", p.SendBatch(ctx, &pgx.Batch{}).Close())

			before = rows()
			b = &pgx.Batch{}
			b.Queue("insert into log (note) values ('x')")
			b.Queue("select 1/$1", 0)
			b.Queue("insert into log (note) values ('y')")
			called := false
			b.QueuedQueries[2].Exec(func(pgconn.CommandTag) error { called = true; return nil })
			br := p.SendBatch(ctx, b)
			checkCode(t, "an error in the middle", br.Close(), "22012")
			checkCode(t, "a second Close", br.Close(), "22012")
			b = &pgx.Batch{}
			b.Queue("insert into log (note) values ('x')")
			b.Queue("insert into notes (body) values ($1)", "bad")
			br = p.SendBatch(ctx, b)
			_, err := br.Exec()
			check(t, "the first", err)
			_, err = br.Exec()
			checkCode(t, "the second", err, "23514")
			_, err = br.Exec()
			checkCode(t, "after an error", err, "23514")
			_, err = br.Query()
			checkCode(t, "after an error", err, "23514")
			checkCode(t, "Close", br.Close(), "23514")
			b = &pgx.Batch{}
			b.Queue("insert into log (note) values ('x')")
			b.Queue("insert into notes (parent) values (77)")
			checkCode(t, "a deferred constraint", p.SendBatch(ctx, b).Close(), "23503")
			if n := rows() - before; n != 0 || called {
				t.Errorf("%d rows stay, called is %t", n, called)
			}

			b = &pgx.Batch{}
			b.Queue("insert into log (note) values ('x') returning note").QueryRow(func(pgx.Row) error { return ouch })
			b.Queue("select 1").Exec(func(pgconn.CommandTag) error { called = true; return nil })
			checkIs(t, "a callback's error", p.SendBatch(ctx, b).Close(), ouch)
			if called {
				t.Error("called after a callback's error")
			}

			// Results that nobody reads, or reads only in part.
			b = &pgx.Batch{}
			for range 3 {
				b.Queue("select n, repeat('x', 1000) from generate_series(1, 100) n")
			}
			b.Queue("insert into log (note) values ('x')")
			before = rows()
			check(t, "nothing read", p.SendBatch(ctx, b).Close())
			br = p.SendBatch(ctx, b)
			open, err := br.Query()
			check(t, "Query", err)
			open.Next()
			open2, err := br.Query() // while the first is open
			check(t, "Query", err)
			if open.Next() {
				t.Error("the rows before go on")
			}
			n := 0
			for open2.Next() {
				n++
			}
			if n != 100 || open2.Err() != nil {
				t.Errorf("%d rows, %v", n, open2.Err())
			}
			open3, err := br.Query()
			check(t, "Query", err)
			open3.Next()
			check(t, "Close with open rows", br.Close())
			checkWhose(t, p, as(t, db.globex), db.globex)
			if open3.Next() || open3.Scan(nil, nil) == nil || open3.FieldDescriptions() != nil {
				t.Error("rows go on after their batch was closed")
			}
			open3.Close()
			if n := rows() - before; n != 2 {
				t.Errorf("%d rows, want 2", n)
			}

			br = p.SendBatch(ctx, b)
			for range 4 {
				_, err := br.Exec()
				check(t, "Exec", err)
			}
			if _, err = br.Exec(); err == nil {
				t.Error("Exec after the last: no error")
			}
			check(t, "Close", br.Close())
			if _, err = br.Exec(); err == nil {
				t.Error("Exec after Close: no error")
			}
			if br.Tx() != nil {
				t.Error("a batch has a Tx")
			}

			b = &pgx.Batch{}
			b.BeginTx(pgx.TxOptions{})
			b.Queue("select 1")
			checkIs(t, "Batch.BeginTx", p.SendBatch(ctx, b).Close(), pgtenancy.ErrStatementRefused)

			b = &pgx.Batch{}
			b.Queue("select $1::int", 1, 2)
			if err := p.SendBatch(ctx, b).Close(); err == nil {
				t.Error("too many arguments: no error")
			}
			b = &pgx.Batch{}
			b.Queue("select $1::int", 1)
			var i int
			b.Queue("select $1::text", fmt.Sprint(round)).QueryRow(func(row pgx.Row) error { return row.Scan(&i) })
			if err := p.SendBatch(ctx, b).Close(); i != 0 || round > 0 && err == nil {
				t.Errorf("text into an int: %d, %v", i, err)
			}

			check(t, "a batch in a transaction", pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error {
				b := &pgx.Batch{}
				b.Queue("select max(tenant) from notes")
				br := tx.SendBatch(ctx, b)
				var got string
				err := br.QueryRow().Scan(&got)
				return errors.Join(want(err, got == "acme", "got %q", got), br.Close())
			}))
			db.checkWorks(t, p)
		}
	})
}

func TestCopyFrom(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	p := db.pool(t)
	ctx := as(t, db.acme)
	log := pgx.Identifier{"log"}
	ouch := errors.New("ouch")
	src := func(values []any, err error) pgx.CopyFromSource {
		n := 0
		return pgx.CopyFromFunc(func() ([]any, error) {
			if n++; n > 1000 {
				return nil, err
			}
			return values, nil
		})
	}
	n, err := p.CopyFrom(ctx, log, []string{"note"}, src([]any{"x"}, nil))
	check(t, "1000 rows", want(err, n == 1000, "%d rows", n))
	_, err = p.CopyFrom(ctx, log, []string{"note"}, src([]any{"x"}, ouch))
	if err == nil {
		t.Error("a source that fails: no error")
	}
	_, err = p.CopyFrom(ctx, log, []string{"nothing"}, src([]any{"x"}, nil))
	checkCode(t, "a column that is not there", err, "42703")
	_, err = p.CopyFrom(ctx, pgx.Identifier{"nowhere"}, []string{"note"}, src([]any{"x"}, nil))
	checkCode(t, "a table that is not there", err, "42P01")
	_, err = p.CopyFrom(ctx, pgx.Identifier{"notes"}, []string{"body"}, src([]any{"bad"}, nil))
	checkCode(t, "a row that breaks a constraint", err, "23514")
	_, err = p.CopyFrom(ctx, pgx.Identifier{"notes"}, []string{"parent"}, src([]any{-1}, nil))
	checkCode(t, "rows that break a deferred constraint", err, "23503")
	_, err = p.CopyFrom(ctx, log, []string{"note"}, src([]any{1, 2}, nil))
	if err == nil {
		t.Error("too many values: no error")
	}
	cctx, cancel := context.WithCancel(ctx)
	_, err = p.CopyFrom(cctx, log, []string{"note"}, pgx.CopyFromFunc(func() ([]any, error) {
		cancel()
		return []any{strings.Repeat("x", 1000)}, nil
	}))
	if err == nil { // pgx does not always tell that it was the context
		t.Error("cancelled in the middle: no error")
	}
	db.checkWorks(t, p)
	if n := db.count(t, "select count(*) from tenant_acme.log"); n != 1000 {
		t.Errorf("%d rows, want 1000", n)
	}
}
