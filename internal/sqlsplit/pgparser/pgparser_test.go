//go:build !race

// Nothing here runs at the same time as anything else, and the race detector
// would take the compilation of the parser from 2 s to 10.

package pgparser_test

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	pgquery "github.com/wasilibs/go-pgquery/parser"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/pgtenancy/pgtenancy/internal/sqlsplit"
)

// FuzzSplit compares sqlsplit with PostgreSQL on SQL that is made of ASCII
// characters and of [fragments].
//
// What PostgreSQL's parser accepts, [sqlsplit.Split] has to split into the same
// statements at the same places, or refuse because a COPY FROM STDIN is among
// them. What only the scanner accepts has no statements to compare with: there
// the semicolons outside parentheses, found in the scanner's tokens, are the
// limits, as they are to psql. (psql knows function bodies too. It begins one
// at any BEGIN of a CREATE FUNCTION and counts CASE and END, where sqlsplit
// wants BEGIN ATOMIC and END after a semicolon, as the parser does. So in that
// text a statement may go over several limits.) Strings, quoted names and
// comments that do not end have to be unterminated to both.
//
// Where the scanner accepts the text, [sqlsplit.Tokens] has to cut it as the
// scanner does but for what its documentation says.
//
// One version of the parser speaks for those whose scanners differ in nothing
// but numbers: what 14 accepts and it rejects is in sqlsplit's own tests.
func FuzzSplit(f *testing.F) {
	var pairs []string
	for i, fragment := range fragments {
		if fragment[0] >= 0x80 {
			pairs = append(pairs, fragment, string([]byte{0x80 + byte(i)}))
		}
	}
	contract := strings.NewReplacer(pairs...)
	for _, sql := range slices.Concat(seeds, literals(f)) {
		f.Add(contract.Replace(sql))
	}
	for i := range fragments {
		f.Add("SELECT " + string([]byte{0x80 + byte(i)}) + "; SELECT 2")
	}

	// The compilation of the parser is not to count for the first input, which has 10 s like each of them.
	if _, err := pgquery.ParseToJSON(""); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, src string) {
		sql := expand(src)
		if strings.ContainsRune(sql, 0) || len(sql) > 1<<12 {
			return // to C the text ends at a NUL; what is long only takes time
		}
		check(t, sql)
	})
}

// literals returns the strings in the tests of sqlsplit: the SQL in its tables,
// and what else there is does no harm.
func literals(tb testing.TB) (sqls []string) {
	files, err := filepath.Glob("../*_test.go")
	if err != nil || len(files) == 0 {
		tb.Fatalf("no tests of sqlsplit: %v, %v", files, err)
	}
	for _, name := range files {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			tb.Fatal(err)
		}
		ast.Inspect(file, func(node ast.Node) bool {
			if lit, ok := node.(*ast.BasicLit); ok && lit.Kind == token.STRING {
				sql, err := strconv.Unquote(lit.Value)
				if err != nil {
					tb.Fatal(err)
				}
				sqls = append(sqls, sql)
			}
			return true
		})
	}
	return sqls
}

// continued is for the end of a string with comments before the next line's
// string. They are tokens to libpg_query and space to PostgreSQL, so that the
// one ends an E'…' there and the other does not.
var continued = regexp.MustCompile(`'\s*--(?:[^\r\n]*[\r\n]\s*--)*[^\r\n]*[\r\n]`)

// span is a part of the SQL, in bytes.
type span struct{ Start, End int }

// check fails the test unless sqlsplit and PostgreSQL read sql alike.
func check(t *testing.T, sql string) {
	t.Helper()
	if strings.Contains(strings.ToUpper(sql), "E'") {
		sql = continued.ReplaceAllStringFunc(sql, func(s string) string { return "'" + strings.Repeat("\n", len(s)-1) })
	}
	text := strings.TrimPrefix(sql, "\uFEFF") // a letter to the server, which no migration file is to send it
	base := len(sql) - len(text)

	stmts, err := sqlsplit.Split(sql)
	var splitErr *sqlsplit.Error
	if err != nil && !errors.As(err, &splitErr) {
		t.Fatalf("Split(%q): %v; want a *Error", sql, err)
	}
	var got, gotTokens []span
	for _, st := range stmts {
		got = append(got, span{st.Offset - base, st.Offset - base + len(st.SQL)})
	}
	for tok := range sqlsplit.Tokens(sql) {
		gotTokens = append(gotTokens, span{tok.Offset - base, tok.Offset - base + len(tok.Text)})
	}
	open := splitErr != nil && strings.HasPrefix(splitErr.Msg, "unterminated ") && !strings.Contains(splitErr.Msg, "BEGIN ATOMIC")

	tokens, err := scan(text)
	if err != nil {
		if strings.HasPrefix(err.Error(), "unterminated ") && splitErr == nil {
			t.Fatalf("Split(%q) = %q; PostgreSQL's scanner: %v", text, cut(text, got), err)
		}
		return
	}
	if open {
		t.Fatalf("Split(%q): %v; PostgreSQL's scanner accepts it", text, splitErr)
	}
	if want := pieces(text, tokens); splitErr == nil && !dots.MatchString(text) && !slices.Equal(gotTokens, want) {
		t.Fatalf("Tokens(%q)\n got %q\nwant %q", text, cut(text, gotTokens), cut(text, want))
	}

	want, stdin, err := parse(text, tokens)
	switch {
	case err != nil:
		checkLimits(t, text, tokens, got, splitErr)
	case stdin != (splitErr != nil):
		t.Fatalf("Split(%q): %v; it has a COPY FROM STDIN: %v", text, splitErr, stdin)
	case splitErr == nil && !slices.Equal(got, want):
		t.Fatalf("Split(%q)\n got %q\nwant %q", text, cut(text, got), cut(text, want))
	}
}

// dots is for numbers with two dots, which no SQL has: the scanner's second
// number begins with the second one.
var dots = regexp.MustCompile(`\.[0-9_eE+-]*\.[eE]`)

// checkLimits fails the test unless got, or splitErr, follows from the
// semicolons and parentheses of a text that PostgreSQL's parser rejects.
func checkLimits(t *testing.T, text string, tokens, got []span, splitErr *sqlsplit.Error) {
	t.Helper()
	var limits []span
	depth, start, backslash := 0, 0, false
	for i, tok := range tokens {
		switch text[tok.Start:tok.End] {
		case "(":
			depth++
		case ")":
			depth = max(depth-1, 0)
		case `\`:
			backslash = true
		case ";":
			if depth == 0 {
				if start < i {
					limits = append(limits, span{tokens[start].Start, tokens[i-1].End})
				}
				start = i + 1
			}
		}
	}
	if start < len(tokens) {
		limits = append(limits, span{tokens[start].Start, tokens[len(tokens)-1].End})
	}

	upper := strings.ToUpper(text)
	if splitErr != nil {
		for msg, holds := range map[string]bool{
			"psql meta-command":         backslash,
			"byte order mark":           strings.Contains(text, "\uFEFF"),
			"COPY FROM STDIN":           strings.Contains(upper, "COPY"),
			"unterminated BEGIN ATOMIC": atomic.MatchString(text),
			"unclosed parenthesis":      depth > 0,
		} {
			if holds && strings.HasPrefix(splitErr.Msg, msg) {
				return
			}
		}
		t.Fatalf("Split(%q): %v; it has no such thing", text, splitErr)
	}
	if depth > 0 || backslash {
		t.Fatalf("Split(%q) = %q; parentheses open: %d, a backslash: %v", text, cut(text, got), depth, backslash)
	}
	rest := limits
	for _, st := range got {
		n := slices.IndexFunc(rest, func(limit span) bool { return limit.End == st.End })
		if n < 0 || rest[0].Start != st.Start || n > 0 && !atomic.MatchString(text[st.Start:st.End]) {
			t.Fatalf("Split(%q)\n got %q\nwant %q, or some of them in one", text, cut(text, got), cut(text, limits))
		}
		rest = rest[n+1:]
	}
	if len(rest) > 0 {
		t.Fatalf("Split(%q)\n got %q\nwant %q, or some of them in one", text, cut(text, got), cut(text, limits))
	}
}

// atomic is for text that may have a BEGIN ATOMIC.
var atomic = regexp.MustCompile(`(?is)begin.*atomic`)

var (
	prefixed = regexp.MustCompile(`^(?:[uU]&|[bBxXnN])?'`)
	lines    = regexp.MustCompile(`--[^\r\n]*|(?:[uU]&|[bBxXnN])?'(?:[^']|'')*'`)
	number   = regexp.MustCompile(`[0-9][0-9A-Za-z_]*(?:\.[eE][0-9A-Za-z_]*)?|[.+-]`)
)

// pieces returns the scanner's tokens in the parts that Tokens documents.
func pieces(text string, tokens []span) (parts []span) {
	cutAt := func(tok span, re *regexp.Regexp) {
		for _, at := range re.FindAllStringIndex(text[tok.Start:tok.End], -1) {
			if part := (span{tok.Start + at[0], tok.Start + at[1]}); !strings.HasPrefix(text[part.Start:part.End], "--") {
				parts = append(parts, part)
			}
		}
	}
	for i := 0; i < len(tokens); i++ {
		tok := tokens[i]
		// N'…' is a keyword and a string to the scanner; b'1''0' is two strings, and no SQL.
		for i+1 < len(tokens) && tokens[i+1].Start == tok.End && text[tok.End] == '\'' &&
			(prefixed.MatchString(text[tok.Start:]) && text[tok.Start] != '\'' && text[tok.Start]|0x20 != 'u') {
			i++
			tok.End = tokens[i].End
		}
		switch c := text[tok.Start]; {
		case prefixed.MatchString(text[tok.Start:tok.End]):
			cutAt(tok, lines)
		case '0' <= c && c <= '9', c == '.' && tok.End > tok.Start+1 && text[tok.Start+1] != '.':
			cutAt(tok, number)
		case strings.IndexByte(`"$_`, c) >= 0, 'a' <= c|0x20 && c|0x20 <= 'z', c >= 0x80:
			parts = append(parts, tok)
		default:
			for at := tok.Start; at < tok.End; at++ {
				parts = append(parts, span{at, at + 1})
			}
		}
	}
	return parts
}

func cut(text string, spans []span) (parts []string) {
	for _, s := range spans {
		parts = append(parts, text[s.Start:s.End])
	}
	return parts
}

// parse returns where the statements are that PostgreSQL's parser finds, from
// their first token to their last, and whether one is a COPY FROM STDIN.
func parse(text string, tokens []span) (stmts []span, stdin bool, err error) {
	tree, err := pgquery.ParseToJSON(text)
	if err != nil {
		return nil, false, err
	}
	var result struct {
		Stmts []struct {
			Stmt     any
			Location int `json:"stmt_location"`
			Len      int `json:"stmt_len"` // 0 is up to the end of the text
		}
	}
	if err := json.Unmarshal([]byte(tree), &result); err != nil {
		panic(err)
	}
	for _, raw := range result.Stmts {
		end := len(text)
		if raw.Len > 0 {
			end = raw.Location + raw.Len
		}
		first := slices.IndexFunc(tokens, func(tok span) bool { return tok.Start >= raw.Location })
		last := first
		for last+1 < len(tokens) && tokens[last+1].Start < end {
			last++
		}
		stmts = append(stmts, span{tokens[first].Start, tokens[last].End})
		stdin = stdin || copiesFromStdin(raw.Stmt)
	}
	return stmts, stdin, nil
}

// copiesFromStdin looks for a COPY FROM STDIN in a part of the parser's tree.
func copiesFromStdin(node any) bool {
	switch node := node.(type) {
	case []any:
		return slices.ContainsFunc(node, copiesFromStdin)
	case map[string]any:
		for name, child := range node {
			if stmt, ok := child.(map[string]any); ok && name == "CopyStmt" && stmt["is_from"] == true && stmt["filename"] == nil {
				return true
			}
			if copiesFromStdin(child) {
				return true
			}
		}
	}
	return false
}

// scan returns the tokens that PostgreSQL's scanner finds, without comments.
func scan(text string) (tokens []span, err error) {
	result, err := pgquery.ScanToProtobuf(text)
	if err != nil {
		return nil, err
	}
	eachField(result, func(field protowire.Number, _ uint64, msg []byte) {
		if field != 2 { // ScanResult.tokens
			return
		}
		var tok span
		eachField(msg, func(field protowire.Number, n uint64, _ []byte) {
			switch field {
			case 1: // ScanToken.start
				tok.Start = int(n)
			case 2: // ScanToken.end
				tok.End = int(n)
			}
		})
		if s := text[tok.Start:]; !strings.HasPrefix(s, "--") && !strings.HasPrefix(s, "/*") {
			tokens = append(tokens, tok)
		}
	})
	return tokens, nil
}

// eachField calls fn with the fields of a protocol buffer: numbers and messages.
func eachField(msg []byte, fn func(field protowire.Number, n uint64, msg []byte)) {
	for len(msg) > 0 {
		field, kind, size := protowire.ConsumeTag(msg)
		var n uint64
		var child []byte
		if msg = msg[max(size, 0):]; kind == protowire.BytesType {
			child, size = protowire.ConsumeBytes(msg)
		} else {
			n, size = protowire.ConsumeVarint(msg)
		}
		if size < 0 {
			panic(protowire.ParseError(size))
		}
		fn(field, n, child)
		msg = msg[size:]
	}
}
