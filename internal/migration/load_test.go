package migration_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy/internal/migration"
)

// dir makes a directory "tenant" of names and texts in turns.
func dir(namesAndTexts ...string) fstest.MapFS {
	fsys := fstest.MapFS{}
	for i := 0; i < len(namesAndTexts); i += 2 {
		fsys["tenant/"+namesAndTexts[i]] = &fstest.MapFile{Data: []byte(namesAndTexts[i+1])}
	}
	return fsys
}

// shape is what a test compares of a Migration.
type shape struct {
	Version  int64
	Name     string
	File     string
	Up, Down *script
}

type script struct {
	File  string
	NoTx  bool
	Lines []int
	SQL   []string
}

func shapes(ms []migration.Migration) []shape {
	var all []shape
	for _, m := range ms {
		s := shape{m.Version, m.Name, m.File, scriptOf(&m.Up), scriptOf(m.Down)}
		if s.Up.File == s.File {
			s.Up.File = ""
		}
		if s.Down != nil && s.Down.File == s.File {
			s.Down.File = ""
		}
		all = append(all, s)
	}
	return all
}

func scriptOf(s *migration.Script) *script {
	if s == nil {
		return nil
	}
	got := &script{File: s.File, NoTx: s.NoTx}
	for _, st := range s.Statements {
		got.Lines = append(got.Lines, st.Line)
		got.SQL = append(got.SQL, st.SQL)
	}
	return got
}

const gooseFunction = `-- Orders have a number each.
-- +goose NO TRANSACTION
-- +goose Up
create table orders (id bigint primary key, total numeric);
-- +goose StatementBegin
create function next_order() returns bigint language plpgsql as $$
begin
	perform 1; -- +goose is not at the start here
	return 2;
end;
$$;
create view v as select 1;
-- +goose StatementEnd
insert into orders values (1, 2); -- a first one

-- +goose down
drop view v; drop function next_order;

-- +goose StatementBegin
drop table orders
-- +goose StatementEnd
`

var loadTests = []struct {
	name   string
	reason string
	fsys   fstest.MapFS
	want   []shape
}{
	{"empty", "a directory may wait for its first file", fstest.MapFS{"tenant": {Mode: fs.ModeDir}}, nil},
	{
		"plain", "the order is the number's, not the name's",
		dir("10_j.sql", "j", "1_a.sql", "select 1;\n\nselect\n2", "2_b.sql", "b", "3_c.sql", "c", "4_d.sql", "d", "5_e.sql", "e",
			"6_f.sql", "f", "7_g.sql", "g", "8_h.sql", "h", "009_i.sql", "i"),
		[]shape{
			{1, "1_a", "tenant/1_a.sql", &script{Lines: []int{1, 3}, SQL: []string{"select 1", "select\n2"}}, nil},
			{2, "2_b", "tenant/2_b.sql", &script{Lines: []int{1}, SQL: []string{"b"}}, nil},
			{3, "3_c", "tenant/3_c.sql", &script{Lines: []int{1}, SQL: []string{"c"}}, nil},
			{4, "4_d", "tenant/4_d.sql", &script{Lines: []int{1}, SQL: []string{"d"}}, nil},
			{5, "5_e", "tenant/5_e.sql", &script{Lines: []int{1}, SQL: []string{"e"}}, nil},
			{6, "6_f", "tenant/6_f.sql", &script{Lines: []int{1}, SQL: []string{"f"}}, nil},
			{7, "7_g", "tenant/7_g.sql", &script{Lines: []int{1}, SQL: []string{"g"}}, nil},
			{8, "8_h", "tenant/8_h.sql", &script{Lines: []int{1}, SQL: []string{"h"}}, nil},
			{9, "009_i", "tenant/009_i.sql", &script{Lines: []int{1}, SQL: []string{"i"}}, nil},
			{10, "10_j", "tenant/10_j.sql", &script{Lines: []int{1}, SQL: []string{"j"}}, nil},
		},
	},
	{
		"other files", "they are no migrations",
		dir("001_a.sql", "select 1", "README.md", "002", ".keep", "", ".#002_b.sql", "(", "002_b.go", "package x", "old/002_b.sql", "(", "002_b.sql.bak", "("),
		[]shape{{1, "001_a", "tenant/001_a.sql", &script{Lines: []int{1}, SQL: []string{"select 1"}}, nil}},
	},
	{
		"names", "every tool's own names pass",
		dir("1_.sql", "a", "002_Add users (v1.2) & é.sql", "b", "00000003_padded.sql", "c", "004_up.sql", "d", "005_upside.down-under.sql", "e"),
		[]shape{
			{1, "1_", "tenant/1_.sql", &script{Lines: []int{1}, SQL: []string{"a"}}, nil},
			{2, "002_Add users (v1.2) & é", "tenant/002_Add users (v1.2) & é.sql", &script{Lines: []int{1}, SQL: []string{"b"}}, nil},
			{3, "00000003_padded", "tenant/00000003_padded.sql", &script{Lines: []int{1}, SQL: []string{"c"}}, nil},
			{4, "004_up", "tenant/004_up.sql", &script{Lines: []int{1}, SQL: []string{"d"}}, nil},
			{5, "005_upside.down-under", "tenant/005_upside.down-under.sql", &script{Lines: []int{1}, SQL: []string{"e"}}, nil},
		},
	},
	{
		"timestamps", "they have no gaps, and come after the numbers",
		dir("20240101120000_e.sql", "e", "20240101_c.sql", "c", "1085649617_d.sql", "d", "001_a.sql", "a", "002_b.sql", "b"),
		[]shape{
			{1, "001_a", "tenant/001_a.sql", &script{Lines: []int{1}, SQL: []string{"a"}}, nil},
			{2, "002_b", "tenant/002_b.sql", &script{Lines: []int{1}, SQL: []string{"b"}}, nil},
			{20240101, "20240101_c", "tenant/20240101_c.sql", &script{Lines: []int{1}, SQL: []string{"c"}}, nil},
			{1085649617, "1085649617_d", "tenant/1085649617_d.sql", &script{Lines: []int{1}, SQL: []string{"d"}}, nil},
			{20240101120000, "20240101120000_e", "tenant/20240101120000_e.sql", &script{Lines: []int{1}, SQL: []string{"e"}}, nil},
		},
	},
	{
		"golang-migrate", "the version alone makes a pair; an empty way down is one",
		dir(
			"000001_users.up.sql", "BEGIN;\n\nCREATE TABLE users (id int);\nCOMMIT;\n",
			"000001_drop_users.down.sql", "-- back\nBEGIN; DROP TABLE users; END",
			"000002_v1.2.up.sql", "select 1",
			"000003_c.up.x.up.sql", "select 2", "000003_c.up.x.down.sql", "-- nothing",
		),
		[]shape{
			{
				1, "000001_users", "tenant/000001_users.up.sql", &script{Lines: []int{3}, SQL: []string{"CREATE TABLE users (id int)"}},
				&script{File: "tenant/000001_drop_users.down.sql", Lines: []int{2}, SQL: []string{"DROP TABLE users"}},
			},
			{2, "000002_v1.2", "tenant/000002_v1.2.up.sql", &script{Lines: []int{1}, SQL: []string{"select 1"}}, nil},
			{
				3, "000003_c.up.x", "tenant/000003_c.up.x.up.sql", &script{Lines: []int{1}, SQL: []string{"select 2"}},
				&script{File: "tenant/000003_c.up.x.down.sql"},
			},
		},
	},
	{
		"goose", "annotations are lines, in any case, and both ways have the file's lines",
		dir("00001_orders.sql", gooseFunction,
			"00002_b.sql", "--+goose UP --\nselect 1\n--  +goose Down\n-- nothing to do\n",
			"00003_c.sql", "-- +goose Up\nselect 1;\n-- +goose ENVSUB OFF\n",
			"20240101120000_d.sql", "\uFEFF-- +goose Up\r\nselect 'a\r\nb';\r\n-- +goose Down\r\nselect 2;\r\n-- +goose NO TRANSACTION"),
		[]shape{
			{
				1, "00001_orders", "tenant/00001_orders.sql",
				&script{NoTx: true, Lines: []int{4, 6, 12, 14}, SQL: []string{
					"create table orders (id bigint primary key, total numeric)",
					"create function next_order() returns bigint language plpgsql as $$\nbegin\n\tperform 1; -- +goose is not at the start here\n\treturn 2;\nend;\n$$",
					"create view v as select 1",
					"insert into orders values (1, 2)",
				}},
				&script{NoTx: true, Lines: []int{17, 17, 20}, SQL: []string{"drop view v", "drop function next_order", "drop table orders"}},
			},
			{2, "00002_b", "tenant/00002_b.sql", &script{Lines: []int{2}, SQL: []string{"select 1"}}, &script{}},
			{3, "00003_c", "tenant/00003_c.sql", &script{Lines: []int{2}, SQL: []string{"select 1"}}, nil},
			{
				20240101120000, "20240101120000_d", "tenant/20240101120000_d.sql",
				&script{NoTx: true, Lines: []int{2}, SQL: []string{"select 'a\r\nb'"}}, &script{NoTx: true, Lines: []int{5}, SQL: []string{"select 2"}},
			},
		},
	},
	{
		"tern", "each half says whether it is a transaction, and a half of white space is none",
		dir(
			"001_a.sql", "create table t (a int[]);\n\n---- create above / drop below ----\n\ndrop table t;\n",
			"002_irreversible.sql", "insert into t values ('{{1,2},{3,4}}'), ('{{a,b},{c,d}}'), ('{{{1,2}},{{3,4}}}'), ('}}{{');",
			"003_b.sql", "select 1;\n---- create above / drop below ----\n\n",
			"004_c.sql", "---- tern: disable-tx ----\r\nselect 1;\r\nselect 2;\r\n---- create above / drop below ----\r\n-- nothing\r\n",
			"005_d.sql", "select 1 ---- create above / drop below ----\n---- tern: disable-tx ----\nselect 2;\n---- create above / drop below ----",
			"006_e.sql", "---- tern: disable-tx ----\nselect 1;\n",
		),
		[]shape{
			{
				1, "001_a", "tenant/001_a.sql", &script{Lines: []int{1}, SQL: []string{"create table t (a int[])"}},
				&script{Lines: []int{5}, SQL: []string{"drop table t"}},
			},
			{2, "002_irreversible", "tenant/002_irreversible.sql", &script{Lines: []int{1}, SQL: []string{"insert into t values ('{{1,2},{3,4}}'), ('{{a,b},{c,d}}'), ('{{{1,2}},{{3,4}}}'), ('}}{{')"}}, nil},
			{3, "003_b", "tenant/003_b.sql", &script{Lines: []int{1}, SQL: []string{"select 1"}}, nil},
			{4, "004_c", "tenant/004_c.sql", &script{NoTx: true, Lines: []int{2, 3}, SQL: []string{"select 1", "select 2"}}, &script{}},
			{5, "005_d", "tenant/005_d.sql", &script{Lines: []int{1}, SQL: []string{"select 1"}}, &script{NoTx: true, Lines: []int{3}, SQL: []string{"select 2"}}},
			{6, "006_e", "tenant/006_e.sql", &script{NoTx: true, Lines: []int{2}, SQL: []string{"select 1"}}, nil},
		},
	},
	{
		"braces in plain SQL", "without a mark of tern's the text of a string is nobody's template",
		dir("001_a.sql", "insert into mails values ('Hello {{.Name}}'); -- {{ template \"a\" . }}"),
		[]shape{{1, "001_a", "tenant/001_a.sql", &script{Lines: []int{1}, SQL: []string{"insert into mails values ('Hello {{.Name}}')"}}, nil}},
	},
	{
		"no transaction", "any format has the comment, which is one only outside of others and of strings",
		dir(
			"001_a.up.sql", "/* why */\n\t--pgtenancy:  no transaction \r\nbegin; select 1; commit",
			"001_a.down.sql", "select '\n-- pgtenancy: no transaction\n', 1\n-- pgtenancy: no transaction\n, 2",
			"002_b.up.sql", "/*\n-- pgtenancy: no transaction\n*/ select 1; /*\n-- pgtenancy: no transaction\n*/",
		),
		[]shape{
			{
				1, "001_a", "tenant/001_a.up.sql", &script{NoTx: true, Lines: []int{3, 3, 3}, SQL: []string{"begin", "select 1", "commit"}},
				&script{File: "tenant/001_a.down.sql", Lines: []int{1}, SQL: []string{"select '\n-- pgtenancy: no transaction\n', 1\n-- pgtenancy: no transaction\n, 2"}},
			},
			{2, "002_b", "tenant/002_b.up.sql", &script{Lines: []int{3}, SQL: []string{"select 1"}}, nil},
		},
	},
	{
		"no transaction in one half", "each half is a script",
		dir("001_a.sql", "-- +goose Up\nselect 1;\n-- +goose Down\n-- pgtenancy: no transaction\nselect 2;"),
		[]shape{{1, "001_a", "tenant/001_a.sql", &script{Lines: []int{2}, SQL: []string{"select 1"}}, &script{NoTx: true, Lines: []int{5}, SQL: []string{"select 2"}}}},
	},
}

func TestLoad(t *testing.T) {
	t.Parallel()
	for _, tt := range loadTests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ms, err := migration.Load(tt.fsys, "tenant", nil)
			if err != nil {
				t.Fatalf("Load: %v; want no error because %s", err, tt.reason)
			}
			if diff := cmp.Diff(tt.want, shapes(ms)); diff != "" {
				t.Errorf("Load (-want +got); want it because %s:\n%s", tt.reason, diff)
			}
			checkPlaces(t, tt.fsys, ms)
		})
	}
}

// checkPlaces checks that each statement is where it says it is in its file.
func checkPlaces(t *testing.T, fsys fstest.MapFS, ms []migration.Migration) {
	t.Helper()
	for _, m := range ms {
		for _, s := range []*migration.Script{&m.Up, m.Down} {
			if s == nil || s.Func != nil {
				continue
			}
			text, end := string(fsys[s.File].Data), 0
			for _, st := range s.Statements {
				if st.Offset < end || !strings.HasPrefix(text[st.Offset:], st.SQL) {
					t.Errorf("%s: %q is not at its offset %d", s.File, st.SQL, st.Offset)
				} else if line := 1 + strings.Count(text[:st.Offset], "\n"); st.Line != line {
					t.Errorf("%s: %q says line %d, and is on line %d", s.File, st.SQL, st.Line, line)
				}
				end = st.Offset + len(st.SQL)
			}
		}
	}
}

func TestLoad_Transaction(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		reason string
		source string
		left   int // statements
	}{
		{"begin", "the file is a transaction anyway", "begin; a; b; commit;", 2},
		{"words", "they mean the same", "BEGIN WORK; a; COMMIT TRANSACTION", 1},
		{"start", "it means the same", "start transaction; a; end work", 1},
		{"comments", "a comment is white space", "-- x\nbegin /* y */ transaction; a; /* z */ end -- e", 1},
		{"savepoints", "they need the transaction, and do not end it", "begin; savepoint s; rollback to s; release s; commit", 3},
		{"prepared statement", "that has nothing to do with transactions", "begin; prepare p as select 1; commit", 1},
		{"modes", "the caller has to know", "begin isolation level serializable; a; commit", 3},
		{"chain", "it starts another one", "begin; a; commit and chain", 3},
		{"prepared", "it is another transaction's", "begin; a; commit prepared 'x'", 3},
		{"two", "between them there is no transaction", "begin; a; commit; begin; b; commit", 6},
		{"start between", "it is an error for PostgreSQL to tell", "begin; start transaction; commit", 3},
		{"rollback", "it undoes what came before", "begin; a; rollback; b; commit", 5},
		{"abort", "it is another word for it", "begin; a; abort; b; commit", 5},
		{"end between", "it ends it", "begin; a; end; b; commit", 5},
		{"prepare", "it ends it", "begin; a; prepare transaction 'x'; commit", 4},
		{"no commit", "there must be both", "begin; a", 2},
		{"no begin", "there must be both", "a; commit", 2},
		{"commit only", "there must be both", "commit", 1},
		{"not alone", "what is before it would not be in it", "a; begin; b; commit", 4},
		{"function", "BEGIN ATOMIC is no transaction", "create function f() returns int begin atomic select 1; end; commit", 2},
		{"no transaction", "without one it means something", "-- pgtenancy: no transaction\nbegin; a; commit", 3},
		{"vacuum", "PostgreSQL would refuse it there", "begin; vacuum t; commit", 3},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ms, err := migration.Load(dir("001_a.sql", tt.source), "tenant", nil)
			if err != nil {
				t.Fatal(err)
			}
			if got := len(ms[0].Up.Statements); got != tt.left {
				t.Errorf("Load(%q) has %d statements, want %d because %s", tt.source, got, tt.left, tt.reason)
			}
		})
	}
}

func TestLoad_Error(t *testing.T) {
	t.Parallel()
	const ok = "select 1;"
	const up, down, begin, end = "-- +goose Up\n", "-- +goose Down\n", "-- +goose StatementBegin\n", "-- +goose StatementEnd\n"
	const separator = "\n---- create above / drop below ----\n"
	tests := []struct {
		name  string
		fsys  fstest.MapFS
		file  string
		line  int
		parts []string // of the message
	}{
		{"no number", dir("orders.sql", ok), "orders.sql", 0, []string{"NNN_name.sql"}},
		{"no name", dir("001.sql", ok), "001.sql", 0, []string{"NNN_name.sql"}},
		{"hyphen", dir("001-orders.sql", ok), "001-orders.sql", 0, []string{"NNN_name.sql"}},
		{"upper case", dir("001_a.SQL", ok), "001_a.SQL", 0, []string{"lower case"}},
		{"direction in upper case", dir("001_a.DOWN.sql", ok), "001_a.DOWN.sql", 0, []string{".down"}},
		{"direction within", dir("001_a.down.pg.sql", ok), "001_a.down.pg.sql", 0, []string{".down"}},
		{"control character", dir("001_a\n.sql", ok), "001_a\n.sql", 0, []string{"printable"}},
		{"zero", dir("000_a.sql", ok), "000_a.sql", 0, []string{"from 1 on"}},
		{"too large", dir("9223372036854775808_a.sql", ok), "9223372036854775808_a.sql", 0, []string{"64 bits"}},
		{"gap", dir("001_a.sql", ok, "003_c.sql", ok), "003_c.sql", 0, []string{"number 2 is missing"}},
		{"gap at the start", dir("2_b.sql", ok), "2_b.sql", 0, []string{"number 1 is missing"}},
		{"gap before timestamps", dir("2_b.sql", ok, "20240101_c.sql", ok), "2_b.sql", 0, []string{"number 1 is missing"}},
		{"largest number", dir("9999999_b.sql", ok), "9999999_b.sql", 0, []string{"number 1 is missing"}},
		{"one number", dir("001_a.sql", ok, "01_b.sql", ok), "01_b.sql", 0, []string{"tenant/001_a.sql"}},
		{"one timestamp", dir("20240101_a.sql", ok, "20240101_b.sql", ok), "20240101_b.sql", 0, []string{"tenant/20240101_a.sql"}},
		{"one number up", dir("1_a.up.sql", ok, "1_b.up.sql", ok), "1_b.up.sql", 0, []string{"tenant/1_a.up.sql"}},
		{"one number down", dir("1_a.up.sql", ok, "1_a.down.sql", ok, "1_b.down.sql", ok), "1_b.down.sql", 0, []string{"tenant/1_a.down.sql"}},
		{"down without up", dir("1_a.up.sql", ok, "2_b.down.sql", ok), "2_b.down.sql", 0, []string{"2_b.up.sql"}},

		{"open string", dir("001_a.sql", "select 1;\nselect 'a"), "001_a.sql", 2, []string{"unterminated string"}},
		{"open string in a half", dir("001_a.sql", up+ok+"\n"+down+"\nselect 'a"), "001_a.sql", 5, []string{"unterminated string"}},
		{"open string in a file down", dir("001_a.up.sql", ok, "001_a.down.sql", "\nselect 'a"), "001_a.down.sql", 2, []string{"unterminated string"}},
		{"separator in a string", dir("001_a.sql", "select '"+separator+"'"), "001_a.sql", 1, []string{"unterminated string"}},
		{"NUL", dir("001_a.sql", "select 1;\n\x00"), "001_a.sql", 2, []string{"NUL"}},
		{"no statement", dir("001_a.sql", "-- later\n"), "001_a.sql", 0, []string{"must have a statement"}},
		{"no statement but a transaction", dir("001_a.sql", "begin; commit"), "001_a.sql", 0, []string{"must have a statement"}},
		{"no statement up", dir("001_a.up.sql", "", "001_a.down.sql", ok), "001_a.up.sql", 0, []string{"must have a statement"}},
		{"no statement in goose's up", dir("001_a.sql", up+down+ok), "001_a.sql", 0, []string{"must have a statement"}},
		{"no statement in tern's up", dir("001_a.sql", separator+ok), "001_a.sql", 0, []string{"must have a statement"}},
		{"late comment", dir("001_a.sql", ok+"\n-- pgtenancy: no transaction\n"), "001_a.sql", 2, []string{"before the first statement"}},

		{"plain and golang-migrate", dir("001_a.sql", ok, "002_b.up.sql", ok), "002_b.up.sql", 0, []string{"tenant/001_a.sql", "plain SQL", "golang-migrate", ".up.sql"}},
		{"plain and goose", dir("001_a.sql", up+ok, "002_b.sql", ok), "002_b.sql", 0, []string{"tenant/001_a.sql", "goose", "-- +goose Up", "plain SQL"}},
		{"golang-migrate and tern", dir("001_a.up.sql", ok, "001_a.down.sql", ok, "002_b.sql", ok+separator), "002_b.sql", 0, []string{"tenant/001_a.down.sql", "golang-migrate", ".down.sql", "tern's", "create above"}},
		{"goose and tern", dir("001_a.sql", ok+separator, "002_b.sql", ok, "003_c.sql", up+ok), "003_c.sql", 0, []string{"tenant/001_a.sql", "goose's", "tern's"}},
		{"golang-migrate and goose", dir("001_a.up.sql", ok, "002_b.sql", up+ok), "002_b.sql", 0, []string{"tenant/001_a.up.sql", "golang-migrate's", "goose's"}},
		{"two formats in a file", dir("001_a.up.sql", up+ok+"\n"+down), "001_a.up.sql", 0, []string{".up.sql", "-- +goose Up"}},
		{"dbmate", dir("001_a.sql", "-- migrate:up\nselect 1;\n-- migrate:down\n"), "001_a.sql", 1, []string{"dbmate", "NNN_name.down.sql"}},
		{"sql-migrate", dir("001_a.sql", "-- x\n-- +migrate Up\n"), "001_a.sql", 2, []string{"sql-migrate"}},

		{"goose without Up", dir("001_a.sql", "-- +goose NO TRANSACTION\nselect 1;"), "001_a.sql", 0, []string{"-- +goose Up"}},
		{"goose with text before Up", dir("001_a.sql", "set x = 1;\n"+up+ok), "001_a.sql", 2, []string{"before the first statement"}},
		{"goose with two Ups", dir("001_a.sql", up+ok+"\n"+up), "001_a.sql", 3, []string{"once"}},
		{"goose with Up after Down", dir("001_a.sql", up+ok+"\n"+down+up), "001_a.sql", 4, []string{"once"}},
		{"goose with Down first", dir("001_a.sql", down+ok+"\n"+up), "001_a.sql", 1, []string{"after"}},
		{"goose with two Downs", dir("001_a.sql", up+ok+"\n"+down+down), "001_a.sql", 4, []string{"once"}},
		{"goose with Down in a statement", dir("001_a.sql", up+begin+down+end), "001_a.sql", 3, []string{"StatementEnd"}},
		{"goose with a statement in a statement", dir("001_a.sql", up+begin+begin), "001_a.sql", 3, []string{"begun"}},
		{"goose with a statement before Up", dir("001_a.sql", begin+up), "001_a.sql", 1, []string{"-- +goose Up"}},
		{"goose with no begin", dir("001_a.sql", up+end), "001_a.sql", 2, []string{"StatementBegin"}},
		{"goose with no end", dir("001_a.sql", up+begin+ok), "001_a.sql", 0, []string{"StatementEnd"}},
		{"goose with a leading space", dir("001_a.sql", up+ok+"\n  "+down), "001_a.sql", 3, []string{"start of its line"}},
		{"goose with an unknown word", dir("001_a.sql", up+ok+"\n-- +goose Downn\n"), "001_a.sql", 3, []string{"Downn"}},
		{"goose in a comment", dir("001_a.sql", "-- was for +goose once\n"+ok), "001_a.sql", 1, []string{"without the +"}},
		{"goose with variables", dir("001_a.sql", up+"-- +goose envsub on\n"+ok), "001_a.sql", 2, []string{"${NAME}"}},

		{"tern's separator misspelt", dir("001_a.sql", ok+"\n--- create above / drop below ---\ndrop table t;"), "001_a.sql", 2, []string{"exactly"}},
		{"template", dir("001_a.sql", ok+"\n{{ template \"shared/a.sql\" . }}"), "001_a.sql", 2, []string{"template", "Go function"}},
		{"template in a name", dir("001_a.sql", "create table {{.prefix}}_t ();"+separator), "001_a.sql", 1, []string{"template"}},
		{"template in a string", dir("001_a.sql", ok+separator, "002_b.sql", "select 1,\n'{{ .name }}'"), "002_b.sql", 2, []string{"template"}},
		{"template of somebody's", dir("001_a.up.sql", ok+"\nselect {{x}}"), "001_a.up.sql", 2, []string{"template"}},
		{"template in the way down", dir("001_a.sql", ok+separator+"select '{{if .x}}';"), "001_a.sql", 3, []string{"template"}},
		{"template beside an array", dir("001_a.sql", "select '{{1,2},{3,4}}', \n'{{ now }}'"+separator), "001_a.sql", 2, []string{"template"}},

		{"statement", dir("001_a.sql", ok+"\nreindex schema s"), "001_a.sql", 2, []string{"REINDEX"}},
		{"statement of the way down", dir("001_a.sql", ok+separator+"reindex schema s"), "001_a.sql", 3, []string{"REINDEX"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ms, err := migration.Load(tt.fsys, "tenant", nil)
			var e *migration.Error
			if !errors.As(err, &e) || ms != nil {
				t.Fatalf("Load = %v, %v; want an *Error alone", shapes(ms), err)
			}
			place := "tenant/" + tt.file
			if tt.line > 0 {
				place += ":" + strconv.Itoa(tt.line)
			}
			if e.File != "tenant/"+tt.file || e.Line != tt.line || err.Error() != place+": "+e.Msg {
				t.Errorf("Load: %v; want it to be about tenant/%s:%d", err, tt.file, tt.line)
			}
			for _, part := range tt.parts {
				if !strings.Contains(e.Msg, part) {
					t.Errorf("Load: %v; want it to have %q", err, part)
				}
			}
		})
	}
}

func TestLoad_Funcs(t *testing.T) {
	t.Parallel()
	f := func(context.Context, pgx.Tx) error { return nil }
	function := func(name string) migration.Migration {
		return migration.Migration{Name: name, Up: migration.Script{Func: f}}
	}
	fsys := dir("001_a.sql", "select 1", "003_c.sql", "select 3", "20240101_d.sql", "select 4")
	named := function("20230101_e")
	named.File, named.Down = "GoMigrations[1]", &migration.Script{Func: f}

	ms, err := migration.Load(fsys, "tenant", []migration.Migration{function("002_b"), named})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range ms {
		got = append(got, m.File)
		if isFunc := m.Up.Func != nil; isFunc != (m.Checksum == "") {
			t.Errorf("%s is a function: %v, and has the checksum %q", m.File, isFunc, m.Checksum)
		}
	}
	want := []string{"tenant/001_a.sql", "tenant/002_b", "tenant/003_c.sql", "GoMigrations[1]", "tenant/20240101_d.sql"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	if ms[1].Version != 2 || ms[3].Version != 20230101 || ms[3].Down == nil {
		t.Errorf("functions are %+v and %+v", ms[1], ms[3])
	}

	for _, fsys := range []fs.FS{nil, fstest.MapFS{}} {
		ms, err := migration.Load(fsys, "tenant", []migration.Migration{function("002_b"), function("001_a")})
		if err != nil || len(ms) != 2 || ms[0].Name != "001_a" {
			t.Errorf("Load without a directory = %+v, %v; want the functions by version", ms, err)
		}
		if ms, err := migration.Load(fsys, "tenant", nil); !errors.Is(err, fs.ErrNotExist) || ms != nil {
			t.Errorf("Load without a directory or a function = %v, %v; want fs.ErrNotExist", ms, err)
		}
	}

	for _, tt := range []struct {
		name  string
		funcs []migration.Migration
		file  string
		part  string
	}{
		{"gap", []migration.Migration{function("004_b")}, "tenant/003_c.sql", "number 2 is missing"},
		{"file's number", []migration.Migration{function("002_b"), function("3_x")}, "tenant/3_x", "tenant/003_c.sql"},
		{"function's number", []migration.Migration{function("002_b"), function("2_x")}, "tenant/2_x", "tenant/002_b"},
		{"no number", []migration.Migration{function("backfill")}, "tenant/backfill", "NNN_name"},
		{"slash", []migration.Migration{function("002_a/b")}, "tenant/002_a/b", "slash"},
		{"no UTF-8", []migration.Migration{function("002_\xff")}, "tenant/002_\xff", "printable"},
		{"name of a file", []migration.Migration{function("002_b.sql")}, "tenant/002_b.sql", "without .sql"},
		{"no function", []migration.Migration{{Name: "002_b"}}, "tenant/002_b", "function"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ms, err := migration.Load(fsys, "tenant", tt.funcs)
			var e *migration.Error
			if !errors.As(err, &e) || e.File != tt.file || !strings.Contains(e.Msg, tt.part) || ms != nil {
				t.Errorf("Load = %v, %v; want an *Error about %s with %q", shapes(ms), err, tt.file, tt.part)
			}
		})
	}
}

// broken is a file system in which a file cannot be read.
type broken struct{ fstest.MapFS }

func (b broken) ReadFile(name string) ([]byte, error) {
	return nil, &fs.PathError{Op: "read", Path: name, Err: fs.ErrPermission}
}

func TestLoad_ReadError(t *testing.T) {
	t.Parallel()
	ms, err := migration.Load(broken{dir("001_a.sql", "select 1")}, "tenant", nil)
	if !errors.Is(err, fs.ErrPermission) || ms != nil {
		t.Errorf("Load = %v, %v; want the file system's error", ms, err)
	}
}

func TestLoad_Checksum(t *testing.T) {
	t.Parallel()
	checksum := func(namesAndTexts ...string) string {
		t.Helper()
		ms, err := migration.Load(dir(namesAndTexts...), "tenant", nil)
		if err != nil {
			t.Fatal(err)
		}
		return ms[0].Checksum
	}
	const plain = "create table t (a int);\n"
	sum := sha256.Sum256([]byte(plain))
	if got, want := checksum("001_a.sql", plain), hex.EncodeToString(sum[:]); got != want {
		t.Errorf("checksum %s, want the file's SHA-256 %s", got, want)
	}

	const gooseUp = "-- +goose Up\n" + plain
	for _, tt := range []struct {
		name string
		a, b []string
		same bool
	}{
		{"CRLF", []string{"1_a.sql", plain}, []string{"1_a.sql", "create table t (a int);\r\n"}, true},
		{"another name", []string{"1_a.sql", plain}, []string{"001_b.sql", plain}, true},
		{"text", []string{"1_a.sql", plain}, []string{"1_a.sql", "create table t (b int);\n"}, false},
		{"comment", []string{"1_a.sql", plain}, []string{"1_a.sql", plain + "-- x\n"}, false},
		{"golang-migrate's down", []string{"1_a.up.sql", plain}, []string{"1_a.up.sql", plain, "1_a.down.sql", "drop table t"}, true},
		{"golang-migrate's up", []string{"1_a.up.sql", plain}, []string{"1_a.up.sql", "create table u ();"}, false},
		{"goose's new down", []string{"1_a.sql", gooseUp}, []string{"1_a.sql", gooseUp + "\n-- +goose Down\ndrop table t;"}, true},
		{"goose's other down", []string{"1_a.sql", gooseUp + "-- +goose Down\n"}, []string{"1_a.sql", gooseUp + "\r\n-- +goose Down\r\ndrop table t;"}, true},
		{"goose's up", []string{"1_a.sql", gooseUp + "-- +goose Down\n"}, []string{"1_a.sql", gooseUp + "select 1;\n-- +goose Down\n"}, false},
		{"tern's new down", []string{"1_a.sql", plain}, []string{"1_a.sql", plain + "\n---- create above / drop below ----\n\ndrop table t;"}, true},
		{"tern's up", []string{"1_a.sql", plain}, []string{"1_a.sql", plain + "select 1;---- create above / drop below ----\n"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if same := checksum(tt.a...) == checksum(tt.b...); same != tt.same {
				t.Errorf("checksums of %q and %q are the same: %v, want %v", tt.a, tt.b, same, tt.same)
			}
		})
	}
}
