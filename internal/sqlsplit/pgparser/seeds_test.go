//go:build !race

package pgparser_test

import "strings"

// seeds are SQL that a splitter can get wrong. What sqlsplit's own tests have
// is not repeated here.
var seeds = []string{
	// A body in a string.
	"CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $fn$ BEGIN EXECUTE $q$ DO $d$ BEGIN PERFORM 1; END; $d$; $q$; END $fn$; SELECT 2",
	"CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS 'BEGIN RAISE NOTICE ''a;''; END' STABLE; SELECT 2",
	"CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF TG_OP = 'DELETE' THEN RETURN OLD; END IF; RETURN NEW; END; $$;\nSELECT 2",
	"DO LANGUAGE plpgsql $body$ DECLARE i int := 1; BEGIN WHILE i < 3 LOOP i := i + 1; END LOOP; END $body$; SELECT 2",
	"CREATE FUNCTION f() RETURNS int LANGUAGE c AS 'lib;', E'sym\\'bol;'; SELECT 2",

	// A body that is parsed.
	"CREATE FUNCTION f(a int) RETURNS int LANGUAGE sql IMMUTABLE RETURN a + 1; SELECT 2",
	"CREATE FUNCTION f() RETURNS int BEGIN ATOMIC; ; SELECT 1;; END; SELECT 2",
	"CREATE FUNCTION f() RETURNS int BEGIN ATOMIC RETURN CASE WHEN true THEN 1 END; END; SELECT 2",
	"CREATE FUNCTION f() RETURNS SETOF t BEGIN ATOMIC WITH a AS (SELECT 1; SELECT 2) SELECT 3; END",
	"CREATE PROCEDURE p(INOUT a int) BEGIN ATOMIC UPDATE t SET a = CASE a WHEN 1 THEN 2 ELSE 3 END; DELETE FROM t WHERE a IN (SELECT 1); END; CALL p(1)",
	"CREATE FUNCTION f() RETURNS int SET search_path TO begin, atomic BEGIN ATOMIC SELECT 1; END; SELECT 2",
	"CREATE FUNCTION begin.atomic(begin atomic) RETURNS TABLE (begin atomic) BEGIN ATOMIC SELECT begin AS atomic; END; SELECT 2",
	"CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT begin atomic FROM t; SELECT a AS begin, b AS atomic; END; SELECT 2",
	"CREATE FUNCTION f() RETURNS int BEGIN ATOMIC CREATE RULE r AS ON DELETE TO t DO (NOTIFY n; NOTIFY m); SELECT 1; END; SELECT 2",
	"CREATE FUNCTION f() RETURNS int BEGIN ATOMIC CREATE FUNCTION g() RETURNS int LANGUAGE sql AS 'END;'; CREATE PROCEDURE begin(begin atomic) BEGIN ATOMIC END; SELECT 1; END; SELECT 2",
	"CREATE FUNCTION f() RETURNS int BEGIN ATOMIC COPY t FROM STDIN; END",
	"CREATE FUNCTION f() RETURNS int AS $$SELECT 1$$ LANGUAGE sql; BEGIN; END; CREATE TABLE begin (atomic int); SELECT begin atomic FROM begin; END",
	"ALTER FUNCTION f() RENAME TO begin; CREATE OR REPLACE VIEW begin AS SELECT 1 atomic; CREATE AGGREGATE a(int) (sfunc = begin, stype = atomic); SELECT 4",

	// Semicolons in parentheses, and statements in statements.
	"CREATE RULE r AS ON UPDATE TO v WHERE OLD.a <> NEW.a DO INSTEAD (UPDATE t SET a = (NEW.a); (SELECT 1);; DELETE FROM u;); SELECT 2",
	"CREATE RULE r AS ON SELECT TO t DO INSTEAD NOTHING; CREATE RULE s AS ON INSERT TO t DO (); SELECT 3",
	"CREATE SCHEMA s CREATE TABLE t (a int) CREATE VIEW v AS SELECT 1; SELECT 2",
	"PREPARE p (int) AS SELECT $1; EXPLAIN (ANALYZE, FORMAT json) EXECUTE p(1); DECLARE c CURSOR FOR VALUES (1); FETCH NEXT FROM c; MOVE c",
	"(SELECT 1) UNION (SELECT 2); ((TABLE t)); VALUES (';'), (\";\"), ($$;$$)",
	"BEGIN ISOLATION LEVEL SERIALIZABLE; SAVEPOINT begin; ROLLBACK TO begin; RELEASE begin; COMMIT AND CHAIN; END WORK; ABORT",
	"CREATE TABLE t (a int GENERATED ALWAYS AS (b * 2) STORED, CHECK (a > 0), EXCLUDE USING gist (c WITH &&)) PARTITION BY RANGE (a); ALTER TABLE t ENABLE ROW LEVEL SECURITY",
	"CREATE TRIGGER g BEFORE INSERT OR UPDATE OF a ON t FOR EACH ROW WHEN (NEW.a = ';') EXECUTE FUNCTION f('begin', 'atomic'); SELECT 2",
	"MERGE INTO t USING s ON t.a = s.a WHEN MATCHED AND s.b = ';' THEN DELETE WHEN NOT MATCHED THEN INSERT VALUES (s.a); SELECT 2",
	"GRANT SELECT ON ALL TABLES IN SCHEMA s TO r; COMMENT ON TABLE t IS 'a;b'; SET LOCAL search_path = 'a;b'; RESET ALL",

	// COPY.
	"COPY t.from FROM 'f' WHERE a IS NOT DISTINCT FROM stdin AND b IS DISTINCT FROM stdout; SELECT 2",
	"COPY s.copy (a, b) FROM STDIN WITH (FORMAT csv, DELIMITER ';')",
	"COPY s.where FROM STDIN; COPY BINARY t FROM stdin; COPY t FROM PROGRAM 'x;' WHERE a = 1",
	"COPY (DELETE FROM stdin RETURNING *) TO STDOUT (FORMAT binary); COPY t TO STDIN; COPY t TO PROGRAM 'x;'",

	// Strings and names.
	"SELECT U&'d\\0061t;' UESCAPE '!', U&\"d!0061;\" UESCAPE '!', u&'it''s;'\n'\\\\;'; SELECT 2",
	"SELECT 'a'\n\t'b;', 'c'; SELECT b'01'\n'10', X'1F', n'n;'; SELECT 3",
	"SELECT E'a\\\\'';', E'\\\\\\';', e'\\x3b\\'', E'a'\f\n\v'\\';' ; SELECT 2",
	"SELECT \"a\"\"b;\".\"c;\" AS \";\", t.\"$$\", \"--\", \"/*\"; SELECT 2",
	"SELECT \u00e9t\u00e9, \u00a0, $\u00e9$;$\u00e9$, \u00e9$1, \"\u00e9;\"; SELECT '\u00e9;'",
	"SELECT a$b$c, $b$;$b$, x$1, _$_$; SELECT $1::text, ARRAY[$1,$2][1:2]; SELECT 3",
	"SELECT $1$2; SELECT 1$1; SELECT a.$b$;$b$; SELECT 4",

	// Operators and comments.
	"SELECT a<--b;\n-c; SELECT a @-/* ; */ b, a <-> b, a |/ b, a->>'b', a #>> '{b,;}', a !~~* 'b', a?b, a?|b, ~-1; SELECT 3",
	"SELECT 1 /* a /* b */ ; -- c */; SELECT 2 -- /* \n; SELECT 3 /**//*/*/**/*/*/; SELECT 4 /* ' */ + ' /* '; SELECT 5",
	"SELECT 1+-- ;\n-1, 2*-/**/3, a::int[], b[1:2], (c).d, f(a => 1, b := 2), e AT TIME ZONE 'UTC'; SELECT 2",
	"SELECT a OPERATOR(pg_catalog.+) b, a <=b, a>= b, a<>b, a != b; SELECT 2",
	"SELECT 1..2; SELECT 1...5; SELECT .; SELECT 4",

	// Numbers.
	"SELECT 1_000, 0x1F, 0o17, 0b101, 1e5, 1E-5, 1.5e+3, 1., .5, .5e5, 1.e5, 0x_F, 1_0.0_1e1_0; SELECT 2",
	"SELECT a[1:2], a[1_0:0xF], 1::int, 1-1, 1--1\n, 1/*;*/, 0, 00, 1.0; SELECT 2",
	"SELECT 1a, 0x, 1__0, 1e, 1_, 0b2; SELECT 2",
	"SELECT 1AS a$$; SELECT 2AS b$$; SELECT 1x'1F', 1e'\\';', 1u&';'; SELECT 4",
	"SELECT * FROM t LIMIT 1OFFSET 2; SELECT CASE 1WHEN 1THEN 2END; SELECT 3",
}

// fragments are the pieces of SQL that stand for the bytes above ASCII in what
// the fuzzer makes: the one at i is for byte 0x80+i. Most can follow each other
// in SQL that PostgreSQL accepts, so that a change of a byte leads to other SQL
// more often than to an error.
var fragments = [...]string{
	// Bytes above ASCII, which have to stand for themselves here.
	"é", "\uFEFF", "\xff", "\xc3", "\u00a0", "ſ",

	// Statements.
	"SELECT ", "SELECT 1", ";", "; ", ";SELECT 1;", "BEGIN;", "END;", "COMMIT", "VALUES (1)", "TABLE t",
	"INSERT INTO t VALUES (1)", "DELETE FROM t", "NOTIFY n",
	"COPY t ", "COPY BINARY t ", "COPY (SELECT 1) TO STDOUT", "FROM STDIN", "FROM stdout", "FROM 'f' ", "TO '/f'", " WHERE ",
	" IS DISTINCT FROM ", " FROM ", "stdin", "PROGRAM ",
	"CREATE FUNCTION f() ", "CREATE OR REPLACE FUNCTION f() ", "CREATE PROCEDURE p() ", "create or replace procedure p() ",
	"CREATE FUNCTION begin(a atomic) ", "CREATE FUNCTION f(a int DEFAULT (1)) ",
	"RETURNS int ", "RETURNS begin ", "RETURNS TABLE (begin atomic) ", "LANGUAGE sql ", "COST 1", "SET x TO begin ", "SET x = end, begin ", "AS ",
	"BEGIN ATOMIC ", "begin atomic", " BEGIN", " ATOMIC", " END", "; END", "; END; ", "RETURN 1", "RETURN ",
	"CREATE FUNCTION f() BEGIN ATOMIC SELECT 1; END; ",
	"CREATE RULE r AS ON INSERT TO t DO ", "CREATE RULE r AS ON INSERT TO t DO (NOTIFY n; NOTIFY m)", "CREATE VIEW v AS ", "CREATE TABLE t (a int)",
	"CREATE SCHEMA s ", "EXPLAIN ", "PREPARE p AS ", "DECLARE c CURSOR FOR ", "DO ", "CALL p(",
	"CREATE TRIGGER g BEFORE INSERT ON t EXECUTE FUNCTION f()",

	// Expressions and names.
	"CASE WHEN true THEN 1 END", "CASE a WHEN 1 THEN ", " ELSE ", " END ", "a", "a.", "t.end", "a b", " AS end", " AS atomic", "u&", "U", "e", "E", "N", "x", "b",
	"(", ")", "((", "))", ", ", "[1]", "::int", " + ", "-", "--", "/*", "*/", "<", " a<--b\n", "@-/**/", "*", ".", "..", ":=",

	// Numbers, parameters and dollar quotes.
	"1", "1_000", "0x1F", "0b1", "1e5", "1.e5", "1.5e-3", "$1", "$", "$$", "$$a;b$$", "$tag$", "$a$ ; $$ ; $a$", "a$$", "_",

	// Strings, comments and spaces.
	"'", "''", "'a;'", `E'\';'`, `e'\\'`, "'a' -- ';\n 'b'", `";"`, `"atomic"`, `U&"d\0061t;"`, " UESCAPE '!'", "/* ; /* */ */",
}

// expand returns the SQL of what the fuzzer made.
func expand(s string) string {
	var sql strings.Builder
	for i := range len(s) {
		if s[i] < 0x80 {
			sql.WriteByte(s[i])
		} else {
			sql.WriteString(fragments[s[i]-0x80])
		}
	}
	return sql.String()
}
