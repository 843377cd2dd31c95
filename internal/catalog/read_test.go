package catalog

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgtenancy/pgtenancy/pgtenancytest"
)

// watched is a connection that calls functions around what it sends.
type watched struct {
	*pgx.Conn
	before func(sql string)
	begun  int
}

func (w *watched) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	if strings.HasPrefix(sql, "begin") {
		w.begun++
	}
	if w.before != nil {
		w.before(sql)
	}
	return w.Conn.Exec(ctx, sql, args...)
}

func (w *watched) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	if w.before != nil {
		w.before(sql)
	}
	return w.Conn.Query(ctx, sql, args...)
}

// shop makes a schema that has what takes locks, and what fails when it is dropped while it is looked at.
const shop = `
	create schema %[1]s;
	create table %[1]s.orders (id int primary key, total int check (total > 0), note text);
	create index orders_total on %[1]s.orders (total) where total > 1;
	create view %[1]s.paid as select id from %[1]s.orders;
	create view %[1]s.few as select id from %[1]s.paid;
	create policy own on %[1]s.orders using (exists (select from %[1]s.few));
	create procedure %[1]s.clean() language sql begin atomic delete from %[1]s.orders; end;`

type shops struct {
	watched
	other   *pgx.Conn
	schemas []Schema
}

func newShops(t *testing.T) *shops {
	t.Helper()
	url := pgtenancytest.Database(t)
	s := &shops{}
	for _, c := range []**pgx.Conn{&s.Conn, &s.other} {
		conn, err := pgx.Connect(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close(context.Background()) })
		*c = conn
	}
	for i := range 5 {
		name := fmt.Sprintf("tenant_%d", i)
		s.exec(t, fmt.Sprintf(shop, name))
		s.schemas = append(s.schemas, Schema{Name: name})
	}
	return s
}

// exec runs statements on the other connection.
func (s *shops) exec(t *testing.T, sql string) {
	t.Helper()
	if _, err := s.other.Exec(context.Background(), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// A page of definitions holds few locks, and what is read does not depend on the pages.
func TestPages(t *testing.T) {
	t.Parallel()
	s := newShops(t)
	whole, small := New(), New()
	if _, err := s.Conn.Exec(t.Context(), "begin"); err != nil {
		t.Fatal(err)
	}
	pages, most := 0, 0
	s.before = func(sql string) {
		if sql != "rollback to savepoint catalog_page" {
			return
		}
		pages++
		var n int
		if err := s.Conn.QueryRow(t.Context(), `select count(*) from pg_locks l join pg_class c on c.oid = l.relation
			where l.pid = pg_backend_pid() and c.relnamespace::regnamespace::text like 'tenant%'`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		most = max(most, n)
	}
	want, _, err := whole.read(t.Context(), &s.watched, s.schemas, 0)
	if err != nil {
		t.Fatal(err)
	}
	if pages != 1 || most < len(s.schemas)*2 {
		t.Errorf("one page: %d pages, %d locks", pages, most)
	}
	pages, most = 0, 0
	got, done, err := small.read(t.Context(), &s.watched, s.schemas, maxFailures)
	if err != nil {
		t.Fatal(err)
	}
	if pages != len(s.schemas)*4 || most > 3 {
		t.Errorf("small pages: %d pages, up to %d locks", pages, most)
	}
	for i := range got {
		if !done[i] || got[i] != want[i] || got[i] != got[0] || got[i].late == (sum{}) {
			t.Errorf("%s: another shape in small pages", s.schemas[i].Name)
		}
	}
	if len(whole.lines) != 2 || len(small.lines) != 2 {
		t.Errorf("lines of %d and %d parts are kept, want 2", len(whole.lines), len(small.lines))
	}
}

// What is dropped or locked while it is read is read again.
func TestReadWhileChanged(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		at   string // before which statement
		sql  string // that another session runs
		undo string // that it runs after the attempt
	}{
		{"a column is dropped", query, "alter table tenant_2.orders drop column total", ""},
		{"an index is dropped", query, "drop index tenant_2.orders_total", ""},
		{"a table is dropped", query, "drop table tenant_2.orders cascade", ""},
		{"a schema is dropped", query, "drop schema tenant_2 cascade", ""},
		{"the last schema is dropped", query, "drop schema tenant_4 cascade", ""},
		{"a view is dropped", definitions, "drop view tenant_2.paid cascade", ""},
		{"a policy's table is dropped", definitions, "drop table tenant_2.orders cascade", ""},
		{"a procedure is dropped", definitions, "drop procedure tenant_2.clean", ""},
		{"a table is locked", query, "begin; lock table tenant_2.orders; alter table tenant_2.orders add x int", "commit"},
		{"a view's table is locked", definitions, "begin; lock table tenant_2.orders; alter table tenant_2.orders add x int", "commit"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newShops(t)
			sql, undo := tt.sql, tt.undo
			s.before = func(at string) {
				switch {
				case at == tt.at && sql != "":
					s.exec(t, sql)
					sql = ""
				case at == "rollback" && undo != "":
					s.exec(t, undo)
					undo = ""
				}
			}
			c := New()
			got, err := c.Read(t.Context(), &s.watched, s.schemas)
			if err != nil {
				t.Fatal(err)
			}
			if s.begun < 2 {
				t.Error("nothing was read again")
			}
			s.before = nil
			want, err := New().Read(t.Context(), &s.watched, s.schemas)
			if err != nil {
				t.Fatal(err)
			}
			distinct := map[Shape]bool{}
			for i := range want {
				distinct[got[i]] = true
				if got[i] != want[i] {
					t.Errorf("%s: %v", s.schemas[i].Name, c.Diff(got[0], got[i]))
				}
			}
			if len(distinct) != 2 {
				t.Errorf("%d shapes, want 2", len(distinct))
			}
		})
	}
}

// A schema that does not come to rest is an error that names it, and leaves the connection as it was.
func TestReadNeverEnds(t *testing.T) {
	t.Parallel()
	s := newShops(t)
	s.before = func(at string) {
		if at == query {
			s.exec(t, "drop index tenant_2.orders_total")
		}
		if at == "rollback" {
			s.exec(t, "create index orders_total on tenant_2.orders (total)")
		}
	}
	_, err := New().Read(t.Context(), &s.watched, s.schemas)
	if err == nil || !strings.Contains(err.Error(), `"tenant_2"`) {
		t.Errorf("error %v, want one that names the schema", err)
	}
	if status := s.PgConn().TxStatus(); status != 'I' {
		t.Errorf("transaction status %c", status)
	}
}

// Only the lines of one schema of a kind are kept, however many there are.
func TestMemory(t *testing.T) {
	t.Parallel()
	s := newShops(t)
	s.exec(t, "alter table tenant_3.orders add x int")
	c := New()
	shapes, err := c.Read(t.Context(), s.Conn, append(s.schemas, Schema{Name: "nowhere"}))
	if err != nil {
		t.Fatal(err)
	}
	if n := len(c.lines); n != 3 { // two main parts, one late
		t.Errorf("the lines of %d parts are kept: %v", n, maps.Keys(c.lines))
	}
	if shapes[5] != (Shape{}) || shapes[4] == (Shape{}) {
		t.Error("a schema that does not exist has a shape, or one that does has none")
	}
}
