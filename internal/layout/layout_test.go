package layout_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy/internal/layout"
	"github.com/pgtenancy/pgtenancy/pgtenancytest"
)

func TestRead(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	conn, err := pgx.Connect(ctx, pgtenancytest.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(ctx) })
	exec := func(sql string) {
		t.Helper()
		if _, err := conn.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	exec(`create schema one; create schema "Two"; create schema three; set search_path = one;
		create table z (id int primary key);
		create table a (id int generated always as identity primary key, z int references z, "Odd ""c" varchar(3)[], twice int generated always as (id * 2) stored, gone int);
		alter table a drop column gone;
		create table chicken (id int primary key, egg int); create table egg (id int primary key, chicken int references chicken);
		alter table chicken add foreign key (egg) references egg on delete cascade;
		create table omelette (egg int references egg); create table self (id int primary key, up int references self);
		create unlogged table u (); create sequence s; create view v as select 1;
		create table p (id int, z int references z) partition by list (id); create table p1 partition of p for values in (1) partition by list (id);
		create table p11 (z int, id int); alter table p1 attach partition p11 for values in (1);
		create materialized view full_one as select 1; create materialized view empty_one as select 1 with no data;
		create table outside (two int); set search_path = "Two"; create table "T" (id int primary key);
		alter table one.outside add foreign key (two) references "Two"."T"`)
	got, err := layout.Read(ctx, conn, []string{"one", "none", "three", "Two"})
	if err != nil {
		t.Fatal(err)
	}
	integer := func(names ...string) (columns []layout.Column) {
		for _, n := range names {
			columns = append(columns, layout.Column{Name: n, Type: "integer"})
		}
		return columns
	}
	for i := range got {
		if len(got[i].OIDs) > 0 && got[i].Stamp == "" {
			t.Errorf("schema %s has no stamp", got[i].Schema)
		}
		got[i].OIDs, got[i].Stamp = got[i].OIDs[:0:0], ""
	}
	want := []layout.Layout{
		{Schema: "one", Exists: true, Tables: []layout.Table{
			{Name: "z", Columns: integer("id")},
			{Name: "a", Columns: append(integer("id", "z"), layout.Column{Name: `Odd "c`, Type: "character varying(3)[]"}), IdentityAlways: true},
			{Name: "chicken", Columns: integer("id", "egg"), Cyclic: true},
			{Name: "egg", Columns: integer("id", "chicken"), Cyclic: true},
			{Name: "omelette", Columns: integer("egg")},
			{Name: "outside", Columns: integer("two")},
			{Name: "p", Columns: integer("id", "z"), Partitioned: true},
			{Name: "self", Columns: integer("id", "up")},
			{Name: "u", Unlogged: true},
		}, Sequences: []string{"a_id_seq", "s"}, Views: []string{"full_one"}},
		{Schema: "none"},
		{Schema: "three", Exists: true},
		{Schema: "Two", Exists: true, Tables: []layout.Table{{Name: "T", Columns: integer("id")}}},
	}
	for i := range got { // which of a cycle comes first does not matter
		for j := range got[i].Tables {
			if tables := got[i].Tables; tables[j].Name == "egg" && tables[j+1].Name == "chicken" {
				tables[j], tables[j+1] = tables[j+1], tables[j]
			}
		}
		if len(got[i].OIDs) == 0 {
			got[i].OIDs = nil
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if got, want := got[0].Tables[1].CopyTo("one"), `copy "one"."a" ("id", "z", "Odd ""c") to stdout`; got != want {
		t.Errorf("CopyTo = %s, want %s", got, want)
	}

	// The stamp is that of the tables at the time.
	read := func() (l layout.Layout) {
		t.Helper()
		all, err := layout.Read(ctx, conn, []string{"one"})
		if err != nil {
			t.Fatal(err)
		}
		return all[0]
	}
	var ran []string
	for _, tt := range []struct {
		sql     string
		changes bool
	}{
		{"insert into one.z values (1)", false},
		{"analyze one.z", false},
		{"create table one.new ()", false},
		{"truncate one.u", true},
		{"truncate one.p11", true},
		{"alter table one.u add x int", true},
		{"alter table one.u rename x to y", true},
		{"alter table one.u alter y type bigint", true},
		{"alter table one.self rename to oneself", true},
		{"drop table one.u", true},
	} {
		before := read()
		for _, want := range []bool{false, tt.changes} {
			now, err := layout.Stamp(ctx, conn, before.OIDs)
			if err != nil {
				t.Fatal(err)
			}
			if changed := now != before.Stamp; changed != want {
				t.Errorf("%s: the stamp changed: %t, want %t", tt.sql, changed, want)
			}
			if len(ran) == 0 || ran[len(ran)-1] != tt.sql {
				exec(tt.sql)
				ran = append(ran, tt.sql)
			}
		}
	}
}

func TestReadRules(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	conn, err := pgx.Connect(ctx, pgtenancytest.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(ctx) })
	_, err = conn.Exec(ctx, `create schema "S"; set search_path = "S"; create table outside (id int primary key); create schema other;
		create table a (id int primary key); create table "B" (a int);
		alter table "B" add constraint "f k" foreign key (a) references a on delete set null deferrable not valid;
		comment on constraint "f k" on "B" is 'it''s';
		create table other.c (a int references "S".a); create table d (o int); alter table outside set schema other; alter table d add foreign key (o) references other.outside;
		create function f() returns trigger language plpgsql as 'begin return new; end';
		create trigger "t r" before insert on a for each row execute function f();
		create trigger always after insert on a for each row execute function f(); alter table a enable always trigger always;
		create trigger off after insert on a for each row execute function f(); alter table a disable trigger off;
		create table p (id int primary key, a int references a) partition by list (id); create table p1 partition of p for values in (1);
		create trigger p after insert on p for each row execute function f()`, pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		t.Fatal(err)
	}
	got, err := layout.ReadRules(ctx, conn, "S")
	if err != nil {
		t.Fatal(err)
	}
	want := layout.Rules{
		Off: []string{
			`alter table "S"."B" drop constraint "f k"`,
			`alter table "S"."p" drop constraint "p_a_fkey"`,
			`alter table only "S"."a" disable trigger "always"`,
			`alter table only "S"."a" disable trigger "t r"`,
			`alter table only "S"."p" disable trigger "p"`,
			`alter table only "S"."p1" disable trigger "p"`,
		},
		On: []string{
			`alter table "S"."B" add constraint "f k" FOREIGN KEY (a) REFERENCES a(id) ON DELETE SET NULL DEFERRABLE NOT VALID`,
			`comment on constraint "f k" on "S"."B" is 'it''s'`,
			`alter table "S"."p" add constraint "p_a_fkey" FOREIGN KEY (a) REFERENCES a(id)`,
			`alter table only "S"."a" enable always trigger "always"`,
			`alter table only "S"."a" enable trigger "t r"`,
			`alter table only "S"."p" enable trigger "p"`,
			`alter table only "S"."p1" enable trigger "p"`,
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for _, sql := range append(got.Off, got.On...) {
		if _, err := conn.Exec(ctx, sql); err != nil {
			t.Errorf("%s: %v", sql, err)
		}
	}
	again, err := layout.ReadRules(ctx, conn, "S")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, again); diff != "" {
		t.Errorf("after off and on, -want +got:\n%s", diff)
	}
}
