package sqlsplit_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/pgtenancy/pgtenancy/internal/sqlsplit"
)

// splitTests are the files that split. They are the seeds of FuzzSplit too.
var splitTests = []struct {
	name   string
	reason string
	src    string
	want   []string
}{
	{"empty", "nothing is no statement", "", nil},
	{"only separators", "empty statements are dropped", " ;\n-- c\n;/* c */; \t\r\n;", nil},
	{"only a line comment", "a comment may end with the file", "-- done", nil},
	{"two", "semicolons separate", "SELECT 1; SELECT 2;", []string{"SELECT 1", "SELECT 2"}},
	{"no last semicolon", "the end of the file ends a statement", "SELECT 1; SELECT 2", []string{"SELECT 1", "SELECT 2"}},
	{"trimmed", "white space around a statement is not of it", "\n\t SELECT 1 \f\v\r\n; ", []string{"SELECT 1"}},
	{"comments around", "comments outside the tokens are not of it", "-- a\n/* b */ SELECT 1 -- c\n/* d */; -- e", []string{"SELECT 1"}},
	{"comments inside", "comments between tokens are kept", "SELECT /* ; */ 1 -- ;\n, 2;", []string{"SELECT /* ; */ 1 -- ;\n, 2"}},
	{"byte order mark", "the mark is not a token", "\uFEFFSELECT 1;", []string{"SELECT 1"}},
	{"CRLF", "\\r is white space", "SELECT\r\n1;\r\nSELECT 2;\r\n", []string{"SELECT\r\n1", "SELECT 2"}},

	{"string", "a quoted semicolon is text", "SELECT ';'; SELECT 2", []string{"SELECT ';'", "SELECT 2"}},
	{"doubled quote", "'' is a quote in the string", "SELECT 'it''s;'; SELECT 2", []string{"SELECT 'it''s;'", "SELECT 2"}},
	{"only quotes", "'''' is a string of one quote", "SELECT '''';SELECT '';SELECT ''''''", []string{"SELECT ''''", "SELECT ''", "SELECT ''''''"}},
	{"standard backslash", "a standard string has no escapes", `SELECT '\'; SELECT '\\'`, []string{`SELECT '\'`, `SELECT '\\'`}},
	{"comment starts in a string", "nothing starts in a string", "SELECT '--'; SELECT '/*'; SELECT '$$'", []string{"SELECT '--'", "SELECT '/*'", "SELECT '$$'"}},
	{"string over lines", "a newline does not end a string", "SELECT 'a;\nb;'; SELECT 2", []string{"SELECT 'a;\nb;'", "SELECT 2"}},
	{"standard continuation", "each part is a standard string", "SELECT 'a'\n'b\\'; SELECT 2", []string{"SELECT 'a'\n'b\\'", "SELECT 2"}},

	{"escape string", `\' does not end an E string`, `SELECT E'\';'; SELECT e'\'' ; SELECT 3`, []string{`SELECT E'\';'`, `SELECT e'\''`, `SELECT 3`}},
	{"escaped backslash", `\\ is a backslash, so the quote ends it`, `SELECT E'\\'; SELECT ';'`, []string{`SELECT E'\\'`, `SELECT ';'`}},
	{"escape string doubled quote", "'' keeps to the escape rules", `SELECT E'a''\';'; SELECT 2`, []string{`SELECT E'a''\';'`, "SELECT 2"}},
	{"escaped newline", "any character can follow the backslash", "SELECT E'\\\n;'; SELECT 2", []string{"SELECT E'\\\n;'", "SELECT 2"}},
	{"numeric escapes", "their digits are text like any other", `SELECT E'\047;\x27;\u0027;'; SELECT 2`, []string{`SELECT E'\047;\x27;\u0027;'`, "SELECT 2"}},
	{"E continuation", "the part on the next line has escapes too", "SELECT E'a'\n  'b\\';'; SELECT 2", []string{"SELECT E'a'\n  'b\\';'", "SELECT 2"}},
	{"E continuation after CR", "\\r alone is a newline to the scanner", "SELECT E'a'\r'b\\';'; SELECT 2", []string{"SELECT E'a'\r'b\\';'", "SELECT 2"}},
	{"E continuation after comments", "line comments may stand between the parts", "SELECT E'a' -- x\n-- y'\n'b\\';'; SELECT 2", []string{"SELECT E'a' -- x\n-- y'\n'b\\';'", "SELECT 2"}},
	{"E continuation twice", "a continued part can be continued", "SELECT E'a'\n'b'\n'\\';'; SELECT 2", []string{"SELECT E'a'\n'b'\n'\\';'", "SELECT 2"}},
	{"E then string on one line", "without a newline it is a standard string", `SELECT E'a' '\'; SELECT 2`, []string{`SELECT E'a' '\'`, "SELECT 2"}},
	{"E, block comment, string", "a block comment breaks the continuation", "SELECT E'a' /*\n*/\n'\\'; SELECT 2", []string{"SELECT E'a' /*\n*/\n'\\'", "SELECT 2"}},
	{"E then minus", "one dash is no comment", "SELECT E'a'\n-'\\'; SELECT 2", []string{"SELECT E'a'\n-'\\'", "SELECT 2"}},
	{"name that ends in e", "the e is of the identifier, the string is standard", `SELECT date'\'; SELECT namee'\'; SELECT _e'\'`, []string{`SELECT date'\'`, `SELECT namee'\'`, `SELECT _e'\'`}},
	{"e after high byte", "bytes above ASCII are of the identifier", `SELECT ée'\'; SELECT 2`, []string{`SELECT ée'\'`, "SELECT 2"}},
	{"e after dollar", "a dollar sign is of the identifier", `SELECT a$e'\'; SELECT 2`, []string{`SELECT a$e'\'`, "SELECT 2"}},
	{"e after digit", "without digits the e is not of the number", `SELECT 1e'\';'; SELECT 2`, []string{`SELECT 1e'\';'`, "SELECT 2"}},
	{"e after dot", "a dot ends a token", `SELECT t.e'\';'; SELECT 2`, []string{`SELECT t.e'\';'`, "SELECT 2"}},
	{"e apart from its quote", "the prefix must touch the quote", `SELECT e '\'; SELECT 2`, []string{`SELECT e '\'`, "SELECT 2"}},
	{
		"other prefixes", "B, X, N and U& strings have no escapes of quotes", `SELECT B'\'; SELECT x'\'; SELECT N'\'; SELECT U&'\'; SELECT U&'d!0061;' UESCAPE '!'`,
		[]string{`SELECT B'\'`, `SELECT x'\'`, `SELECT N'\'`, `SELECT U&'\'`, `SELECT U&'d!0061;' UESCAPE '!'`},
	},

	{"quoted identifier", "a semicolon can be of a name", `SELECT ";"; SELECT "a"";b"; SELECT "'"`, []string{`SELECT ";"`, `SELECT "a"";b"`, `SELECT "'"`}},
	{"identifier backslash", "a name has no escapes", `SELECT "\"; SELECT U&"\"; SELECT U&"d\0061;"`, []string{`SELECT "\"`, `SELECT U&"\"`, `SELECT U&"d\0061;"`}},

	{"dollar quote", "everything up to the same tag is text", "SELECT $$a;'\"--/*$$; SELECT 2", []string{"SELECT $$a;'\"--/*$$", "SELECT 2"}},
	{"dollar tags", "other tags are text", "SELECT $a$ ; $b$ ; $$ ; $A$ ; $a$; SELECT 2", []string{"SELECT $a$ ; $b$ ; $$ ; $A$ ; $a$", "SELECT 2"}},
	{"shared dollar", "the $ that ends one candidate can start the next", "SELECT $a$;$b$a$; SELECT $$;$a$$; SELECT 3", []string{"SELECT $a$;$b$a$", "SELECT $$;$a$$", "SELECT 3"}},
	{"tag characters", "letters, underscores, high bytes, then digits", "SELECT $_1$;$_1$; SELECT $é9$;$é9$; SELECT 3", []string{"SELECT $_1$;$_1$", "SELECT $é9$;$é9$", "SELECT 3"}},
	{"tag with a digit first", "$1 is a parameter", "SELECT $1; SELECT $1$$;$$; SELECT 3", []string{"SELECT $1", "SELECT $1$$;$$", "SELECT 3"}},
	{"tag with a space", "such a thing is not a tag", "SELECT $a b$; SELECT $ $; SELECT 3", []string{"SELECT $a b$", "SELECT $ $", "SELECT 3"}},
	{"dollar in a name", "an identifier takes the $ that follows it", "SELECT a$$; SELECT foo$1$; SELECT b1$x$; SELECT 4", []string{"SELECT a$$", "SELECT foo$1$", "SELECT b1$x$", "SELECT 4"}},
	{"dollar after a number", "a number takes no $", "SELECT 1$$;$$; SELECT 2", []string{"SELECT 1$$;$$", "SELECT 2"}},
	{"dollar after a literal", "1e5 and the like are numbers", "SELECT 1e5$$;$$; SELECT 1.e5$$;$$; SELECT 1e-5$$;$$; SELECT 4", []string{"SELECT 1e5$$;$$", "SELECT 1.e5$$;$$", "SELECT 1e-5$$;$$", "SELECT 4"}},
	{"name after a number", "before PostgreSQL 15 it may touch the number, and takes its $", "SELECT 1a$$; SELECT 0x1F$$; SELECT 1_000$$; SELECT 1e5e$$; SELECT $1_0$$; SELECT 6", []string{"SELECT 1a$$", "SELECT 0x1F$$", "SELECT 1_000$$", "SELECT 1e5e$$", "SELECT $1_0$$", "SELECT 6"}},
	{"dollar after a quoted name", "a quoted name takes no $", `SELECT "a"$$;$$; SELECT 2`, []string{`SELECT "a"$$;$$`, "SELECT 2"}},
	{"dollar without an end", "$a alone is an operator-like byte and a name", "SELECT $a; SELECT $; SELECT 3", []string{"SELECT $a", "SELECT $", "SELECT 3"}},
	{
		"function", "the usual PL/pgSQL body", "CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $fn$\nBEGIN\n  EXECUTE $q$SELECT 1;$q$;\nEND;\n$fn$;\nSELECT 2;",
		[]string{"CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $fn$\nBEGIN\n  EXECUTE $q$SELECT 1;$q$;\nEND;\n$fn$", "SELECT 2"},
	},
	{"do block", "the other usual body", "DO $$ BEGIN PERFORM 1; END $$; SELECT 2", []string{"DO $$ BEGIN PERFORM 1; END $$", "SELECT 2"}},

	{"nested comment", "block comments nest", "SELECT 1 /* ; /* ; */ ; */; SELECT 2", []string{"SELECT 1", "SELECT 2"}},
	{
		"comment look-alikes", "/*/ is open, /**/ and **/ are closed", "SELECT /*/ ; */ 1; SELECT /**/ 2; SELECT /***/ 3; SELECT /*/**/;*/ 4",
		[]string{"SELECT /*/ ; */ 1", "SELECT /**/ 2", "SELECT /***/ 3", "SELECT /*/**/;*/ 4"},
	},
	{"quotes in comments", "nothing starts in a comment", "SELECT 1 /* ' \" $$ */; SELECT 2 -- ' \" $$ /*\n; SELECT 3", []string{"SELECT 1", "SELECT 2", "SELECT 3"}},
	{"line comment in a block", "-- means nothing in a block comment", "/* -- */ SELECT 1; SELECT 2", []string{"SELECT 1", "SELECT 2"}},
	{"comment ends at CR", "\\r alone is a newline to the scanner", "SELECT 1 -- ;\r; SELECT 2", []string{"SELECT 1", "SELECT 2"}},
	{"comment in an operator", "-- and /* win over operators", "SELECT 1+--;\n2; SELECT 1*/*;*/2; SELECT @-/*;*/2", []string{"SELECT 1+--;\n2", "SELECT 1*/*;*/2", "SELECT @-/*;*/2"}},
	{"dashes", "three dashes are a comment, two apart are not", "SELECT 1 ---;\n; SELECT 1 - -1; SELECT 3", []string{"SELECT 1", "SELECT 1 - -1", "SELECT 3"}},
	{"end of comment outside", "*/ alone is an operator", "SELECT */ 1; SELECT 2", []string{"SELECT */ 1", "SELECT 2"}},

	{
		"rule", "a semicolon in parentheses is of the statement", "CREATE RULE r AS ON INSERT TO a DO ALSO (INSERT INTO b VALUES (1); DELETE FROM c); SELECT 2",
		[]string{"CREATE RULE r AS ON INSERT TO a DO ALSO (INSERT INTO b VALUES (1); DELETE FROM c)", "SELECT 2"},
	},
	{"extra closing parenthesis", "the server may complain, the count stays at zero", "SELECT 1); SELECT (2); SELECT ) (3; 4); SELECT 5", []string{"SELECT 1)", "SELECT (2)", "SELECT ) (3; 4)", "SELECT 5"}},
	{"parenthesis in quotes", "only tokens count", "SELECT '('; SELECT \"(\"; SELECT $$($$; SELECT /*(*/ 4", []string{"SELECT '('", "SELECT \"(\"", "SELECT $$($$", "SELECT /*(*/ 4"}},

	{
		"atomic body", "its semicolons are of the statement", "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT 2; END; SELECT 3",
		[]string{"CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT 2; END", "SELECT 3"},
	},
	{
		"atomic procedure", "OR REPLACE, any case and comments between", "create /* ; */ or -- ;\nreplace procedure p() begin /* ; */ atomic insert into t values (1); end; SELECT 3",
		[]string{"create /* ; */ or -- ;\nreplace procedure p() begin /* ; */ atomic insert into t values (1); end", "SELECT 3"},
	},
	{
		"atomic case", "END of CASE is not END of the body", "CREATE FUNCTION f(a int) RETURNS int BEGIN ATOMIC SELECT CASE WHEN a > 0 THEN CASE a WHEN 1 THEN 2 END ELSE (CASE WHEN true THEN 3 END) END; SELECT 4; END; SELECT 3",
		[]string{"CREATE FUNCTION f(a int) RETURNS int BEGIN ATOMIC SELECT CASE WHEN a > 0 THEN CASE a WHEN 1 THEN 2 END ELSE (CASE WHEN true THEN 3 END) END; SELECT 4; END", "SELECT 3"},
	},
	{
		"atomic names", "begin and end are names there too", "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT t.begin, t.end FROM t; SELECT begin FROM t; SELECT 1 AS end; END; SELECT 3",
		[]string{"CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT t.begin, t.end FROM t; SELECT begin FROM t; SELECT 1 AS end; END", "SELECT 3"},
	},
	{
		"atomic as a name", "only BEGIN ATOMIC together opens a body", "CREATE FUNCTION begin() RETURNS int LANGUAGE sql AS 'SELECT 1'; SELECT begin atomic FROM t; SELECT 3",
		[]string{"CREATE FUNCTION begin() RETURNS int LANGUAGE sql AS 'SELECT 1'", "SELECT begin atomic FROM t", "SELECT 3"},
	},
	{
		"atomic after a number", "before PostgreSQL 15 a keyword may touch it", "CREATE FUNCTION f() RETURNS int COST 1.e5BEGIN ATOMIC SELECT 1; SELECT 2; END; SELECT 3",
		[]string{"CREATE FUNCTION f() RETURNS int COST 1.e5BEGIN ATOMIC SELECT 1; SELECT 2; END", "SELECT 3"},
	},
	{"atomic empty", "a body may have no statement", "CREATE PROCEDURE p() BEGIN ATOMIC END; SELECT 2", []string{"CREATE PROCEDURE p() BEGIN ATOMIC END", "SELECT 2"}},
	{
		"atomic inner", "a function in a body has a body of its own", "CREATE FUNCTION f() BEGIN ATOMIC CREATE FUNCTION g() BEGIN ATOMIC SELECT 1; END; SELECT begin atomic; END; SELECT 2",
		[]string{"CREATE FUNCTION f() BEGIN ATOMIC CREATE FUNCTION g() BEGIN ATOMIC SELECT 1; END; SELECT begin atomic; END", "SELECT 2"},
	},
	{
		"atomic inner later", "each statement of a body has its own first words", "CREATE FUNCTION f() BEGIN ATOMIC SELECT 1 + 2; CREATE FUNCTION g() BEGIN ATOMIC SELECT 1; END; SELECT 3; END; SELECT 2",
		[]string{"CREATE FUNCTION f() BEGIN ATOMIC SELECT 1 + 2; CREATE FUNCTION g() BEGIN ATOMIC SELECT 1; END; SELECT 3; END", "SELECT 2"},
	},
	{
		"return body", "END of CASE outside a body closes nothing", "CREATE FUNCTION f(a int) RETURNS int RETURN CASE WHEN a > 0 THEN 1 END; SELECT 2",
		[]string{"CREATE FUNCTION f(a int) RETURNS int RETURN CASE WHEN a > 0 THEN 1 END", "SELECT 2"},
	},
	{"transaction", "BEGIN and END by themselves are statements", "BEGIN; SELECT 1; END; BEGIN ATOMIC; SELECT 2", []string{"BEGIN", "SELECT 1", "END", "BEGIN ATOMIC", "SELECT 2"}},
	{
		"other create", "only functions and procedures have such bodies", "CREATE TABLE function (begin int); CREATE VIEW v AS SELECT begin atomic FROM function; SELECT 3",
		[]string{"CREATE TABLE function (begin int)", "CREATE VIEW v AS SELECT begin atomic FROM function", "SELECT 3"},
	},

	{
		"copy to and from files", "only FROM STDIN has data in the file", "COPY t FROM '/f'; COPY t TO STDOUT; COPY t FROM PROGRAM 'x'; COPY (SELECT 1 FROM stdin) TO '/f'",
		[]string{"COPY t FROM '/f'", "COPY t TO STDOUT", "COPY t FROM PROGRAM 'x'", "COPY (SELECT 1 FROM stdin) TO '/f'"},
	},
	{"copy with a condition", "after WHERE, STDIN is a column", "COPY t FROM '/f' WHERE a IS DISTINCT FROM stdin; SELECT 2", []string{"COPY t FROM '/f' WHERE a IS DISTINCT FROM stdin", "SELECT 2"}},
	{"stdin elsewhere", "STDIN is a name outside COPY", "SELECT 1 FROM stdin; SELECT copy FROM stdin", []string{"SELECT 1 FROM stdin", "SELECT copy FROM stdin"}},
	{"quoted stdin", "a quoted name is not the keyword", `COPY t FROM 'stdin'; COPY "from" TO 'stdin'`, []string{"COPY t FROM 'stdin'", `COPY "from" TO 'stdin'`}},
	{"colons", "psql variables are left alone", "SELECT a[1:2], b::int, :'c;', :d; SELECT 2", []string{"SELECT a[1:2], b::int, :'c;', :d", "SELECT 2"}},
	{"invalid UTF-8", "bytes are passed on as they are", "SELECT '\xff;', \xc3; SELECT 2", []string{"SELECT '\xff;', \xc3", "SELECT 2"}},
	{"mark inside", "after the first token the mark is of a name", "SELECT a\uFEFF; SELECT 2", []string{"SELECT a\uFEFF", "SELECT 2"}},
}

func TestSplit(t *testing.T) {
	t.Parallel()
	for _, tt := range splitTests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			stmts, err := sqlsplit.Split(tt.src)
			if err != nil {
				t.Fatalf("Split(%q): %v; want no error because %s", tt.src, err, tt.reason)
			}
			if got := texts(stmts); !slices.Equal(got, tt.want) {
				t.Errorf("Split(%q)\n got %q\nwant %q\nbecause %s", tt.src, got, tt.want, tt.reason)
			}
		})
	}
}

// errorTests are the files that do not split, seeds of FuzzSplit too.
var errorTests = []struct {
	name   string
	reason string
	src    string
	line   int
	msg    string // a part of the message
}{
	{"string", "the line is that of the opening quote", "SELECT 1;\nSELECT 'a;\nb;\n", 2, "unterminated string"},
	{"odd quotes", "''' is open", "SELECT '''", 1, "unterminated string"},
	{"escape string", `\' does not end it`, `SELECT E'\'`, 1, "unterminated string"},
	{"escape at the end", "nothing follows the backslash", `SELECT E'\`, 1, "unterminated string"},
	{"E continuation", "the line is that of the first part", "SELECT E'a'\n'b", 1, "unterminated string"},
	{"prefixed string", "the prefix changes nothing", "\n\nSELECT U&'a", 3, "unterminated string"},
	{"identifier", "the line is that of the opening quote", "SELECT\n\"a;\n", 2, "unterminated quoted identifier"},
	{"dollar quote", "the tag must be the same", "SELECT 1;\r\nSELECT $a$ $A$ $$", 2, "unterminated dollar-quoted string"},
	{"block comment", "the line is that of the outer one", "SELECT 1;\n/* /* */\n", 2, "unterminated /* comment"},
	{"comment half open", "/*/ is not closed", "/*/", 1, "unterminated /* comment"},
	{"atomic body", "END is missing", "SELECT 1;\nCREATE FUNCTION f()\nBEGIN ATOMIC\nSELECT 1;\n", 3, "unterminated BEGIN ATOMIC body"},
	{"atomic body without its last semicolon", "that END is a label to the server", "CREATE FUNCTION f() BEGIN ATOMIC SELECT 1 END; SELECT 2;", 1, "END must follow a semicolon"},
	{"parenthesis", "the rest of the file would be one statement", "SELECT 1;\nSELECT\n((1);\nSELECT 3;", 3, "unclosed parenthesis"},
	{"NUL", "the server takes no NUL, not even in a string", "SELECT 1;\n\nSELECT '\x00'", 3, "NUL"},
	{"byte order mark", "a second mark comes from joined files", "SELECT 1;\n\uFEFFSELECT 2;", 2, "byte order mark"},
	{"connect", "psql runs it, the server cannot", "SELECT 1;\n\\connect other\n", 2, `\connect:`},
	{"restrict", "pg_dump writes it", "\\restrict abc\nSELECT 1;", 1, `\restrict:`},
	{"copy", "it reads files of the client", "  \\copy t from 'f'", 1, `\copy:`},
	{"gexec", "it need not start the line", "SELECT 1 \\gexec", 1, `\gexec:`},
	{"escaped semicolon", "that is psql's too", `SELECT 1\; SELECT 2;`, 1, `\;:`},
	{"lone backslash", "it has no name", "SELECT 1;\n\\", 2, `\:`},
	{"copy from stdin", "the line is that of COPY", "SELECT 1;\nCOPY t (a, b)\nFROM STDIN;\n1\tit's\n\\.\n", 2, "COPY FROM STDIN"},
	{"copy options", "comments, case and options change nothing", "copy t from /* ; */ stdin with (format csv);", 1, "COPY FROM STDIN"},
	{"copy of where", "after a dot it is a name", "COPY s.where FROM STDIN;", 1, "COPY FROM STDIN"},
	{"copy from stdout", "the server reads it as STDIN", "COPY t FROM STDOUT;", 1, "COPY FROM STDIN"},
}

func TestSplit_Error(t *testing.T) {
	t.Parallel()
	for _, tt := range errorTests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			stmts, err := sqlsplit.Split(tt.src)
			var splitErr *sqlsplit.Error
			if !errors.As(err, &splitErr) || stmts != nil {
				t.Fatalf("Split(%q) = %+v, %v; want a *Error because %s", tt.src, stmts, err, tt.reason)
			}
			if splitErr.Line != tt.line || !strings.Contains(splitErr.Msg, tt.msg) {
				t.Errorf("Split(%q): %v; want line %d with %q because %s", tt.src, err, tt.line, tt.msg, tt.reason)
			}
		})
	}
}

func TestSplit_Position(t *testing.T) {
	t.Parallel()
	const src = "\uFEFF-- first\r\nSELECT 1; SELECT\n2;\n\n/* a\nb */ SELECT 'x\ny'; -- c\nSELECT 4"
	want := []sqlsplit.Statement{
		{SQL: "SELECT 1", Line: 2, Offset: 13},
		{SQL: "SELECT\n2", Line: 2, Offset: 23},
		{SQL: "SELECT 'x\ny'", Line: 6, Offset: 44},
		{SQL: "SELECT 4", Line: 8, Offset: 63},
	}
	got, err := sqlsplit.Split(src)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	for _, st := range got {
		if text := src[st.Offset : st.Offset+len(st.SQL)]; text != st.SQL {
			t.Errorf("file has %q at offset %d, want %q", text, st.Offset, st.SQL)
		}
	}
}

func FuzzSplit(f *testing.F) {
	for _, tt := range splitTests {
		f.Add(tt.src)
	}
	for _, tt := range errorTests {
		f.Add(tt.src)
	}
	f.Fuzz(func(t *testing.T, src string) {
		stmts, err := sqlsplit.Split(src)
		if err != nil {
			var splitErr *sqlsplit.Error
			if !errors.As(err, &splitErr) || stmts != nil {
				t.Fatalf("got %+v, %v; want a *Error alone", stmts, err)
			}
			if n := 1 + strings.Count(src, "\n"); splitErr.Line < 1 || splitErr.Line > n {
				t.Fatalf("%v; the file has %d lines", err, n)
			}
			return
		}

		end := 0 // of the statement before
		for _, st := range stmts {
			if st.Offset < end || st.Offset+len(st.SQL) > len(src) || src[st.Offset:st.Offset+len(st.SQL)] != st.SQL {
				t.Fatalf("%+v is not at its offset", st)
			}
			if n := 1 + strings.Count(src[:st.Offset], "\n"); st.Line != n {
				t.Fatalf("%+v starts on line %d", st, n)
			}
			checkSplit(t, src[end:st.Offset], nil) // nothing is lost
			checkSplit(t, st.SQL, []string{st.SQL})
			end = st.Offset + len(st.SQL)
		}
		checkSplit(t, src[end:], nil)
		checkSplit(t, strings.Join(texts(stmts), ";\n"), texts(stmts))

		if len(stmts) > 0 && !strings.HasPrefix(src, "\uFEFF") {
			if got, want := sqlsplit.Keyword(src), sqlsplit.Keyword(stmts[0].SQL); got != want {
				t.Fatalf("Keyword of the file is %q, of its first statement %q", got, want)
			}
		}
	})
}

// checkSplit fails the test unless src splits into exactly want.
func checkSplit(t *testing.T, src string, want []string) {
	t.Helper()
	stmts, err := sqlsplit.Split(src)
	if got := texts(stmts); err != nil || !slices.Equal(got, want) {
		t.Fatalf("Split(%q)\n got %q, %v\nwant %q", src, got, err, want)
	}
}

func texts(stmts []sqlsplit.Statement) []string {
	var sqls []string
	for _, st := range stmts {
		sqls = append(sqls, st.SQL)
	}
	return sqls
}
