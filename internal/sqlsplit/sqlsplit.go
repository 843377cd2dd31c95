// Package sqlsplit cuts a migration file into the statements PostgreSQL would
// see, so that each one can be sent, timed and blamed on its own.
//
// It follows the lexer that the server and psql share, with
// standard_conforming_strings on. A semicolon ends a statement unless it is
// inside
//
//   - a string: '…', E'…' (and its continuation on a later line), U&'…',
//     B'…', X'…', N'…', $$…$$ or $tag$…$tag$
//   - a quoted identifier: "…" or U&"…"
//   - a comment: -- to the end of the line, or a nested /* … */
//   - parentheses, as in CREATE RULE … DO (…; …)
//   - the BEGIN ATOMIC … END body of CREATE [OR REPLACE] FUNCTION or PROCEDURE
//
// A byte order mark at the start, Windows line ends and empty statements are
// passed over.
//
// What comes out depends on no version of PostgreSQL, of those that have BEGIN
// ATOMIC (14 and later): where two would split the same text in two ways, one
// of them rejects it. So it is with a name that touches a number (1a$$; 14 also
// finds one in 0x1F and 1_000, which are numbers since 16), and with the vertical
// tab, which is white space since 16. The module in pgparser compares this
// package with PostgreSQL's own parser.
//
// It is a scanner and not a parser: a statement that comes out of it can still
// be one that the server rejects. What it does refuse, with an [*Error] that
// carries the line, is text that has no end (a string, comment, parenthesis or
// function body left open), NUL bytes, and what only psql understands: meta-
// commands such as \connect, and the data after COPY … FROM STDIN. It does not
// replace psql variables (:name), and it takes no notice of a file that turns
// standard_conforming_strings off.
package sqlsplit

import (
	"fmt"
	"strings"
)

// byteOrderMark is the UTF-8 form of U+FEFF, which some editors put first.
const byteOrderMark = "\uFEFF"

// Statement is one statement of a file.
type Statement struct {
	// SQL is the text from the first token to the last one, without the
	// semicolon. Comments before the first and after the last token are left
	// out; comments between them are kept.
	SQL string
	// Line is the line of the first token, counted from 1.
	Line int
	// Offset is where SQL starts in the file, in bytes:
	// file[Offset:Offset+len(SQL)] == SQL.
	Offset int
}

// Error says why a file cannot be split.
type Error struct {
	// Line is the line, counted from 1, where the offending token starts. For
	// something left open it is the line of the opening, not of the end of the
	// file.
	Line int
	// Msg is the reason, in lower case and without the line.
	Msg string
}

// Error returns the line and the reason.
func (e *Error) Error() string { return fmt.Sprintf("line %d: %s", e.Line, e.Msg) }

// Split returns the statements of src in their order, none of them empty. A
// non-nil error is always an [*Error], and then there are no statements.
func Split(src string) ([]Statement, error) {
	if at := strings.IndexByte(src, 0); at >= 0 {
		return nil, errorAt(src, at, "NUL byte")
	}
	var (
		stmts []Statement
		st    = state{start: -1}
		line  = 1
		lined = 0 // line is the line number of src[lined]
		pos   = 0
	)
	flush := func() {
		if st.start >= 0 {
			line += strings.Count(src[lined:st.start], "\n")
			lined = st.start
			stmts = append(stmts, Statement{SQL: src[st.start:st.end], Line: line, Offset: st.start})
		}
		st = state{start: -1}
	}
	if strings.HasPrefix(src, byteOrderMark) {
		pos = len(byteOrderMark)
	}
	for {
		at, ok := skipSpace(src, pos)
		if !ok {
			return nil, errorAt(src, at, "unterminated /* comment")
		}
		if at == len(src) {
			break
		}
		end, msg := scanToken(src, at)
		if msg != "" {
			return nil, errorAt(src, at, msg)
		}
		if src[at] == ';' && !st.nested() {
			flush()
		} else if msg := st.add(src, at, end); msg != "" {
			return nil, errorAt(src, st.start, msg)
		}
		pos = end
	}
	switch {
	case st.parens > 0:
		return nil, errorAt(src, st.parenAt, "unclosed parenthesis")
	case st.bodies > 0:
		return nil, errorAt(src, st.bodyAt, "unterminated BEGIN ATOMIC body (END must follow a semicolon)")
	}
	flush()
	return stmts, nil
}

// errorAt returns an *Error for the token at byte at of src.
func errorAt(src string, at int, msg string) *Error {
	return &Error{Line: 1 + strings.Count(src[:at], "\n"), Msg: msg}
}

// state is what is known of the statement being read.
type state struct {
	start, end int       // of its tokens so far; start is -1 before the first
	prev       string    // the token before this one
	head       [4]string // its first words, or those of the inner statement in a body
	words      int       // how many of head are set
	parens     int       // parentheses open, the outermost at parenAt
	parenAt    int
	bodies     int // BEGIN ATOMIC bodies open, the outermost at bodyAt
	bodyAt     int
}

// nested reports whether a semicolon here belongs to the statement.
func (st *state) nested() bool { return st.parens > 0 || st.bodies > 0 }

// add takes src[at:end], the next token, into the statement. It returns a
// message if no statement may contain that token here.
func (st *state) add(src string, at, end int) string {
	tok := src[at:end]
	if st.start < 0 {
		if strings.HasPrefix(tok, byteOrderMark) {
			st.start = at
			return "byte order mark inside the file"
		}
		st.start = at
	}
	prev := st.prev
	st.prev, st.end = tok, end

	switch {
	case tok == "(":
		if st.parens == 0 {
			st.parenAt = at
		}
		st.parens++
	case tok == ")":
		st.parens = max(st.parens-1, 0)
	case st.parens > 0:
	case tok == ";":
		st.words = 0
	case isIdentStart(tok[0]) && tok[len(tok)-1] != '\'':
		if st.words < len(st.head) {
			st.head[st.words] = tok
			st.words++
		}
		switch {
		case isWord(tok, "ATOMIC") && isWord(prev, "BEGIN") && st.inRoutine():
			if st.bodies == 0 {
				st.bodyAt = at
			}
			st.bodies++
			st.words = 0
			st.prev = ";" // the body may be empty: END can come at once
		case isWord(tok, "END") && prev == ";":
			// In a body every statement has its semicolon, so any other END
			// closes a CASE or is a name.
			st.bodies--
		case isWord(tok, "WHERE") && prev != "." && isWord(st.head[0], "COPY"):
			st.head[0] = "" // any FROM in the condition is IS DISTINCT FROM
		case (isWord(tok, "STDIN") || isWord(tok, "STDOUT")) && isWord(prev, "FROM") && isWord(st.head[0], "COPY"):
			// The server reads FROM STDOUT as FROM STDIN.
			return "COPY FROM STDIN has no data to read here: use INSERT or a Go function"
		}
	}
	return ""
}

// inRoutine reports whether the words so far are those of CREATE [OR REPLACE]
// FUNCTION or PROCEDURE.
func (st *state) inRoutine() bool {
	kind := st.head[1]
	if st.words == 4 && isWord(kind, "OR") && isWord(st.head[2], "REPLACE") {
		kind = st.head[3]
	}
	return st.words > 1 && isWord(st.head[0], "CREATE") && (isWord(kind, "FUNCTION") || isWord(kind, "PROCEDURE"))
}
