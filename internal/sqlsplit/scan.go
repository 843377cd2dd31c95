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
		return scanNumber(src, end), ""
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

// scanNumber returns the end of the number at pos. Letters belong to it (0xFF,
// 1e5, or a mistake for the server to name) but a dollar sign does not.
func scanNumber(src string, pos int) int {
	for pos < len(src) && isIdentCont(src[pos]) {
		pos++
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
