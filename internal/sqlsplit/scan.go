package sqlsplit

import (
	"fmt"
	"strings"
)

// skipSpace returns where the first token at or after pos starts, which is
// len(src) if there is none. It is false, with the place of the comment, if a
// block comment does not end.
func skipSpace(src string, pos int) (at int, ok bool) {
	for pos < len(src) {
		switch c := src[pos]; {
		case isSpace(c):
			pos++
		case c == '-' && strings.HasPrefix(src[pos:], "--"):
			pos = skipLine(src, pos)
		case c == '/' && strings.HasPrefix(src[pos:], "/*"):
			end := skipComment(src, pos)
			if end < 0 {
				return pos, false
			}
			pos = end
		default:
			return pos, true
		}
	}
	return pos, true
}

// skipLine returns the end of the line comment that includes pos.
func skipLine(src string, pos int) int {
	for pos < len(src) && src[pos] != '\n' && src[pos] != '\r' {
		pos++
	}
	return pos
}

// skipComment returns the end of the block comment, with those nested in it,
// that starts at pos, or -1.
func skipComment(src string, pos int) int {
	depth := 1
	for pos += 2; pos+1 < len(src); pos++ {
		switch src[pos : pos+2] {
		case "/*":
			depth++
			pos++
		case "*/":
			depth--
			pos++
		}
		if depth == 0 {
			return pos + 1
		}
	}
	return -1
}

// scanToken returns the end of the token that starts at pos, or a message if
// there is no such token. Operators come out byte by byte, and a doubled quote
// as two tokens: neither can hide or show a semicolon.
func scanToken(src string, pos int) (end int, msg string) {
	switch c := src[pos]; {
	case c == '\'':
		// B'', X'', N'' and U&'' end as '' does, so their prefix can be a
		// token of its own.
		return skipTo(src, pos+1, "'", "unterminated string")
	case c == '"':
		return skipTo(src, pos+1, `"`, "unterminated quoted identifier")
	case (c == 'e' || c == 'E') && strings.HasPrefix(src[pos+1:], "'"):
		return scanEscapeString(src, pos+2)
	case c == '$':
		return scanDollar(src, pos)
	case isIdentStart(c):
		for pos++; pos < len(src) && (isIdentCont(src[pos]) || src[pos] == '$'); pos++ {
		}
		return pos, ""
	case isDigit(c):
		return scanNumber(src, pos), ""
	case c == '\\':
		return 0, fmt.Sprintf("psql meta-command %s: only SQL can run here", metaCommand(src[pos:]))
	default:
		return pos + 1, ""
	}
}

// skipTo returns the end of the first quote at or after pos, or msg.
func skipTo(src string, pos int, quote, msg string) (int, string) {
	n := strings.Index(src[pos:], quote)
	if n < 0 {
		return 0, msg
	}
	return pos + n + len(quote), ""
}

// scanEscapeString returns the end of the E'…' string whose text starts at
// pos. A string that follows on a later line is a part of it, and so has
// backslash escapes too.
func scanEscapeString(src string, pos int) (int, string) {
	for pos < len(src) {
		c := src[pos]
		pos++
		switch {
		case c == '\\':
			pos++
		case c == '\'' && strings.HasPrefix(src[pos:], "'"):
			pos++
		case c == '\'':
			next := pos
			for next < len(src) {
				if strings.HasPrefix(src[next:], "--") {
					next = skipLine(src, next)
				} else if isSpace(src[next]) {
					next++
				} else {
					break
				}
			}
			if !strings.HasPrefix(src[next:], "'") || !strings.ContainsAny(src[pos:next], "\r\n") {
				return pos, ""
			}
			pos = next + 1
		}
	}
	return 0, "unterminated string"
}

// scanDollar returns the end of what the dollar sign at pos starts: $tag$…$tag$,
// a parameter like $1, or nothing but itself.
func scanDollar(src string, pos int) (int, string) {
	end := pos + 1
	if end < len(src) && isDigit(src[end]) {
		return skipDigits(src, end, decimal, false), ""
	}
	for end < len(src) && isIdentCont(src[end]) {
		end++
	}
	if end == len(src) || src[end] != '$' {
		return pos + 1, ""
	}
	end++
	return skipTo(src, end, src[pos:end], "unterminated dollar-quoted string")
}

// scanNumber returns the end of the number at pos, or of its part before a dot
// or a sign. To PostgreSQL 16 and later 0x1F and 1_000 are numbers, and from 15
// on no name may follow a number at once. Before, one began right there: 1_000$$
// is the number 1 and the name _000$$, and 1FROM has a keyword.
func scanNumber(src string, pos int) int {
	if end := skipNumber(src, pos, true); end == len(src) || !isIdentCont(src[end]) && src[end] != '$' {
		return end
	}
	return skipNumber(src, pos, false)
}

// skipNumber is scanNumber by the rules of PostgreSQL 16, or those before.
func skipNumber(src string, pos int, v16 bool) int {
	if v16 && src[pos] == '0' && pos+1 < len(src) {
		if end := skipDigits(src, pos+2, radixDigits(src[pos+1]), true); end > pos+2 {
			return end
		}
	}
	end := skipDigits(src, pos, decimal, v16)
	// The e of 1e5, 1.e5 or 1e-5 is no name if digits follow.
	exp := end
	if exp < len(src) && src[exp] == '.' {
		exp++
	}
	if exp == len(src) || src[exp]|0x20 != 'e' {
		return end
	}
	exp++
	switch {
	case exp < len(src) && isDigit(src[exp]):
		return skipDigits(src, exp, decimal, v16)
	case exp+1 < len(src) && (src[exp] == '-' || src[exp] == '+') && isDigit(src[exp+1]):
		return exp
	}
	return end
}

const decimal = "0123456789"

// radixDigits returns the digits of numbers that start with 0 and prefix, if
// there are any.
func radixDigits(prefix byte) string {
	switch prefix | 0x20 {
	case 'x':
		return decimal + "abcdefABCDEF"
	case 'o':
		return "01234567"
	case 'b':
		return "01"
	}
	return ""
}

// skipDigits returns the end of the digits at pos, between which, and before
// which, there may be single underscores.
func skipDigits(src string, pos int, digits string, underscores bool) int {
	for at := pos; at < len(src); at++ {
		if strings.IndexByte(digits, src[at]) >= 0 {
			pos = at + 1
		} else if !underscores || src[at] != '_' || at > pos {
			break
		}
	}
	return pos
}

// metaCommand returns the backslash and the name that src starts with.
func metaCommand(src string) string {
	n := 1
	for n < len(src) && isIdentCont(src[n]) {
		n++
	}
	if n == 1 && len(src) > 1 && !isSpace(src[1]) {
		n = 2 // \! or \;
	}
	return src[:n]
}

func isSpace(c byte) bool { return c == ' ' || '\t' <= c && c <= '\r' }

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

func isLetter(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }

// isIdentStart is for unquoted identifiers; a byte above ASCII is as good as a
// letter, whatever it encodes.
func isIdentStart(c byte) bool { return isLetter(c) || c == '_' || c >= 0x80 }

// isIdentCont leaves out the dollar sign, which an identifier may contain but
// the tag of a dollar quote may not.
func isIdentCont(c byte) bool { return isIdentStart(c) || isDigit(c) }

// isWord reports whether tok is the ASCII word, in any case. The lengths keep
// Unicode folding (ſ to s) out.
func isWord(tok, word string) bool { return len(tok) == len(word) && strings.EqualFold(tok, word) }
