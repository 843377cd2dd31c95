package sqlsplit

import "strings"

// commands has the first words of PostgreSQL's statements by the low bits of
// their first letter, in either case, so that [Keyword] finds them without
// allocating.
var commands = func() (byLetter [32][]string) {
	for word := range strings.FieldsSeq(`
		ABORT ALTER ANALYSE ANALYZE BEGIN CALL CHECKPOINT CLOSE CLUSTER COMMENT
		COMMIT COPY CREATE DEALLOCATE DECLARE DELETE DISCARD DO DROP END EXECUTE
		EXPLAIN FETCH GRANT IMPORT INSERT LISTEN LOAD LOCK MERGE MOVE NOTIFY
		PREPARE REASSIGN REFRESH REINDEX RELEASE RESET REVOKE ROLLBACK SAVEPOINT
		SECURITY SELECT SET SHOW START TABLE TRUNCATE UNLISTEN UPDATE VACUUM
		VALUES WITH`) {
		byLetter[word[0]%32] = append(byLetter[word[0]%32], word)
	}
	return byLetter
}()

// Keyword returns the first word of sql in upper case, and "" if sql starts
// with anything but a word of ASCII letters and underscores. Comments, white
// space, opening parentheses and empty statements before it are passed over.
// It does not allocate for the statements that PostgreSQL has, and is safe for
// concurrent use.
func Keyword(sql string) string {
	start, ok := firstToken(sql)
	if !ok {
		return ""
	}
	word, _ := keywordAt(sql, start)
	return word
}

// Keywords returns the first two words of sql as Keyword does, "" for each that
// is not there. Nothing but comments and white space may stand between them.
func Keywords(sql string) (first, second string) {
	start, ok := firstToken(sql)
	if !ok {
		return "", ""
	}
	first, end := keywordAt(sql, start)
	if start, ok = skipSpace(sql, end); first != "" && ok {
		second, _ = keywordAt(sql, start)
	}
	return first, second
}

// firstToken returns where the first statement begins that is not empty, past
// its parentheses. ok is false where a comment does not end.
func firstToken(sql string) (start int, ok bool) {
	start, ok = skipSpace(sql, 0)
	for ok && start < len(sql) && (sql[start] == '(' || sql[start] == ';') {
		start, ok = skipSpace(sql, start+1)
	}
	return start, ok
}

// keywordAt returns the word that begins at start, and where it ends.
func keywordAt(sql string, start int) (word string, end int) {
	end = start
	for end < len(sql) && (isLetter(sql[end]) || sql[end] == '_') {
		end++
	}
	if end < len(sql) && (isIdentCont(sql[end]) || sql[end] == '$') {
		return "", end // no keyword has a digit, a dollar sign or a byte above ASCII
	}
	word = sql[start:end]
	if len(word) < 2 {
		return "", end // nothing, or the prefix of a string such as E''
	}
	for _, command := range commands[word[0]%32] {
		if isWord(word, command) {
			return command, end
		}
	}
	return strings.ToUpper(word), end
}
