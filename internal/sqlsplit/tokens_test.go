package sqlsplit_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/pgtenancy/pgtenancy/internal/sqlsplit"
)

var tokensTests = []struct {
	name   string
	reason string
	sql    string
	want   []string
}{
	{"empty", "there is no token", "", nil},
	{"space and comments", "they are no tokens", " -- a\n/* b /* c */ */\t", nil},
	{"words", "their spelling stays", "Select café_1$ FROM t", []string{"Select", "café_1$", "FROM", "t"}},
	{"comment between", "it ends a word", "a/* b */c--d\ne", []string{"a", "c", "e"}},
	{"dots", "a name in a schema is three tokens", `s."T"`, []string{"s", ".", `"T"`}},
	{"operators", "they come byte by byte", "a<>b::int", []string{"a", "<", ">", "b", ":", ":", "int"}},
	{"numbers", "a dot and a sign are bytes too", "1.5e-3 0xFF $1", []string{"1", ".", "5e", "-", "3", "0xFF", "$1"}},
	{"string", "a doubled quote is of the string", `'it''s' ''''`, []string{`'it''s'`, `''''`}},
	{"quoted identifier", "a doubled quote is of the name", `"a""b";"c"`, []string{`"a""b"`, ";", `"c"`}},
	{"prefixes", "they are of the token", `E'\'' b'1' X'f' n'a''b' u&'\0061' U&"d""e"`, []string{`E'\''`, "b'1'", "X'f'", "n'a''b'", `u&'\0061'`, `U&"d""e"`}},
	{"not a prefix", "the quote must touch, and only U has an &", `b 'a' U & 'b' x&'c' b"d" nb'e'`, []string{"b", "'a'", "U", "&", "'b'", "x", "&", "'c'", "b", `"d"`, "nb", "'e'"}},
	{"continued", "each line is one, but for E", "'a'\n'b' E'c'\n'd'", []string{"'a'", "'b'", "E'c'\n'd'"}},
	{"dollar quotes", "the body is of the token", "$$a;b$$ $x$ $$ $x$", []string{"$$a;b$$", "$x$ $$ $x$"}},
	{"byte order mark", "some editors put one first", "\uFEFFselect 1", []string{"select", "1"}},
	{"open string", "there is no such token", "select 'a", []string{"select"}},
	{"open doubled quote", "it opens again", "select 'a''", []string{"select"}},
	{"open comment", "nothing follows", "select /* a", []string{"select"}},
	{"backslash", "SQL has none", `select \gexec`, []string{"select"}},
}

func TestTokens(t *testing.T) {
	t.Parallel()
	for _, tt := range tokensTests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var got []string
			for tok := range sqlsplit.Tokens(tt.sql) {
				got = append(got, tok.Text)
				if at := tt.sql[tok.Offset:]; !strings.HasPrefix(at, tok.Text) {
					t.Errorf("%q is not at its offset %d", tok.Text, tok.Offset)
				}
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("Tokens(%q)\n got %q\nwant %q\nbecause %s", tt.sql, got, tt.want, tt.reason)
			}
		})
	}
}

func TestTokens_Stop(t *testing.T) {
	t.Parallel()
	for tok := range sqlsplit.Tokens("a b") {
		if tok.Text != "a" {
			t.Errorf("got %q after the loop was left", tok.Text)
		}
		break
	}
}

func TestToken_Is(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]bool{"index": true, "INDEX": true, `"index"`: false, "indexes": false, "\u0131ndex": false} {
		if got := (sqlsplit.Token{Text: text}).Is("INDEX"); got != want {
			t.Errorf("Token %q is INDEX: %v, want %v", text, got, want)
		}
	}
}

func FuzzTokens(f *testing.F) {
	for _, tt := range tokensTests {
		f.Add(tt.sql)
	}
	for _, tt := range splitTests {
		f.Add(tt.src)
	}
	f.Fuzz(func(t *testing.T, sql string) {
		stmts, err := sqlsplit.Split(sql)
		if err != nil {
			for range sqlsplit.Tokens(sql) { // must end
			}
			return
		}
		// The statements' tokens and the semicolons between them are the file's.
		var whole, parts []sqlsplit.Token
		for tok := range sqlsplit.Tokens(sql) {
			whole = append(whole, tok)
		}
		for _, st := range stmts {
			for tok := range sqlsplit.Tokens(st.SQL) {
				parts = append(parts, sqlsplit.Token{Text: tok.Text, Offset: tok.Offset + st.Offset})
			}
		}
		for _, tok := range whole {
			if len(parts) > 0 && parts[0] == tok {
				parts = parts[1:]
			} else if tok.Text != ";" {
				t.Fatalf("token %+v of the file is of no statement; next is %+v", tok, parts)
			}
		}
		if len(parts) > 0 {
			t.Fatalf("tokens %+v are not of the file", parts)
		}
	})
}
