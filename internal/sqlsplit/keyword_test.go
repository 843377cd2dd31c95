package sqlsplit_test

import (
	"strings"
	"testing"

	"github.com/pgtenancy/pgtenancy/internal/sqlsplit"
)

func TestKeyword(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		reason string
		sql    string
		want   string
	}{
		{"empty", "there is no word", "", ""},
		{"lower case", "the result is upper case", "select 1", "SELECT"},
		{"mixed case", "keywords have no case", "SeLeCt", "SELECT"},
		{"comments", "they nest and come before", " -- x\n/* /* y */ */\tSET a = 1", "SET"},
		{"comment after", "a comment ends a word", "set--x", "SET"},
		{"parentheses", "a query may start with some", "( (/* x */select 1))", "SELECT"},
		{"empty statement", "the server skips it too", "; ;set a = 1", "SET"},
		{"string after", "a quote ends a word", "execute'x'", "EXECUTE"},
		{"unknown word", "it is for the caller to know", "frobnicate x", "FROBNICATE"},
		{"underscore", "keywords have them", "current_user", "CURRENT_USER"},
		{"long word", "longer than any command", "current_timestamp_of_now", "CURRENT_TIMESTAMP_OF_NOW"},
		{"digit", "no keyword has one", "select1", ""},
		{"dollar", "the $ is of the identifier", "select$", ""},
		{"high byte", "the byte is of the identifier", "selecté", ""},
		{"Kelvin sign", "only ASCII is folded", "loc\u212A", ""},
		{"byte order mark", "to the server it is an identifier", "\uFEFFselect", ""},
		{"string prefix", "E'' is one token", "E'x'", ""},
		{"quoted", "a quoted name is no keyword", `"select"`, ""},
		{"number", "a number is no keyword", "1", ""},
		{"unterminated comment", "there is no statement", "/* select", ""},
		{"only parentheses", "there is no word", "((", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := sqlsplit.Keyword(tt.sql); got != tt.want {
				t.Errorf("Keyword(%q) = %q, want %q because %s", tt.sql, got, tt.want, tt.reason)
			}
		})
	}
}

func TestKeywords(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name          string
		reason        string
		sql           string
		first, second string
	}{
		{"two", "that is what it is for", "rollback to sp_1", "ROLLBACK", "TO"},
		{"comment between", "a comment is white space", "set/* x */--y\n local a = 1", "SET", "LOCAL"},
		{"one", "there is no second", "rollback", "ROLLBACK", ""},
		{"next statement", "it is another statement's word", "set; role", "SET", ""},
		{"name", "a quoted name is no keyword", `set "local" = 1`, "SET", ""},
		{"no first", "then there is no second", "é local", "", ""},
		{"unterminated comment", "there is no second", "set /* local", "SET", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if first, second := sqlsplit.Keywords(tt.sql); first != tt.first || second != tt.second {
				t.Errorf("Keywords(%q) = %q, %q, want %q, %q because %s", tt.sql, first, second, tt.first, tt.second, tt.reason)
			}
		})
	}
}

func TestKeyword_Allocs(t *testing.T) {
	for _, sql := range []string{"select 1", "  /* hint */ Insert into t", "(values (1))", "SELECT 1"} {
		if n := testing.AllocsPerRun(100, func() { sqlsplit.Keyword(sql) }); n != 0 {
			t.Errorf("Keyword(%q) allocates %v times, want none", sql, n)
		}
	}
}

func BenchmarkKeyword(b *testing.B) {
	for _, bm := range []struct{ name, sql string }{
		{"Lower", "select id, name from projects where id = $1"},
		{"Upper", "SELECT id, name FROM projects WHERE id = $1"},
		{"Comment", "-- name: GetProject :one\nSELECT id FROM projects WHERE id = $1"},
		{"Unknown", "frobnicate 1"},
	} {
		b.Run(bm.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				sqlsplit.Keyword(bm.sql)
			}
		})
	}
}

func BenchmarkSplit(b *testing.B) {
	src := strings.Repeat("INSERT INTO t VALUES (1, 'it''s', E'a\\'b', $$x;y$$); -- c\n", 1000)
	b.SetBytes(int64(len(src)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := sqlsplit.Split(src); err != nil {
			b.Fatal(err)
		}
	}
}
