package sqlsplit

import (
	"iter"
	"strings"
)

// Token is one token of a statement, as it is written there:
// sql[Offset:Offset+len(Text)] == Text.
type Token struct {
	Text   string
	Offset int
}

// Is reports whether the token is the keyword or unquoted name, in any case.
func (t Token) Is(word string) bool { return isWord(t.Text, word) }

// Tokens returns the tokens of sql in their order, without comments and white
// space. A word is one token in its original spelling, and so is a string and a
// quoted identifier with its prefix (E, B, X, N or U&), quotes and doubled
// quotes. Everything else comes out byte by byte: the dots of names, operators,
// and the dot and the sign in a number. Of a string that goes on on a later
// line, each line is a token, except for E'…'.
//
// It ends where sql has no further token: at text that has no end, which no
// statement from [Split] has, or at a backslash. A byte order mark at the start
// is passed over.
func Tokens(sql string) iter.Seq[Token] {
	return func(yield func(Token) bool) {
		pos := 0
		if strings.HasPrefix(sql, byteOrderMark) {
			pos = len(byteOrderMark)
		}
		for {
			at, ok := skipSpace(sql, pos)
			if !ok || at == len(sql) {
				return
			}
			end, msg := scanWhole(sql, at)
			if msg != "" || !yield(Token{Text: sql[at:end], Offset: at}) {
				return
			}
			pos = end
		}
	}
}

// scanWhole is scanToken with the prefix and the doubled quotes of strings and
// quoted identifiers in one.
func scanWhole(sql string, pos int) (end int, msg string) {
	quote := pos
	if n := quotePrefix(sql[pos:]); n > 0 {
		quote += n
	}
	end, msg = scanToken(sql, quote)
	if c := sql[quote]; c == '\'' || c == '"' {
		for msg == "" && end < len(sql) && sql[end] == c {
			end, msg = scanToken(sql, end)
		}
	}
	return end, msg
}

// quotePrefix returns the length of the B, X, N or U& that a quote follows. E
// is scanToken's.
func quotePrefix(s string) int {
	switch {
	case len(s) > 1 && strings.IndexByte("bBxXnN", s[0]) >= 0 && s[1] == '\'':
		return 1
	case len(s) > 2 && s[0]|0x20 == 'u' && s[1] == '&' && (s[2] == '\'' || s[2] == '"'):
		return 2
	}
	return 0
}
