package pgtenancy

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/pgtenancy/pgtenancy/internal/sqlsplit"
)

// checkStatement refuses what would step out of the scope of a tenant's transaction or stay on a shared connection after
// it, and reports whether the statement needs BEGIN and COMMIT around it.
//
// It looks at the first words only, against accidents. It is no wall against hostile SQL: a function can do the same.
func checkStatement(at place, sql string) (needsTx bool, err error) {
	word := sqlsplit.Keyword(sql)
	switch word {
	case "SELECT", "INSERT", "UPDATE", "DELETE", "WITH":
		return false, nil
	case "CALL", "DO":
		// A COMMIT in a procedure would end the implicit transaction and the scope with it, and run the rest without one.
		// Inside an explicit transaction PostgreSQL refuses it (2D000).
		return true, nil
	}
	if at == session || at == batch && word != "BEGIN" && word != "START" { // Batch.BeginTx has no way to give its Tx
		return false, nil
	}
	_, second := sqlsplit.Keywords(sql)
	advice := ""
	switch word {
	case "BEGIN", "START":
		advice = "use Begin"
	case "COMMIT", "END", "ABORT":
		advice = "use the Commit and Rollback of a transaction from Begin"
	case "ROLLBACK":
		if at == single || second != "TO" {
			advice = "use the Rollback of a transaction from Begin"
		}
	case "SAVEPOINT", "RELEASE":
		if at == single {
			advice = "use Begin on a transaction from Begin"
		}
	case "SET":
		switch {
		case at == single:
			advice = "it would end with this statement, or stay on a shared connection: use Begin with SET LOCAL, or Acquire"
		case second != "LOCAL" && second != "TRANSACTION" && second != "CONSTRAINTS":
			advice = "it would stay on a shared connection: use SET LOCAL, or Acquire"
		}
	case "CREATE":
		temp := second == "TEMP" || second == "TEMPORARY" || second == "LOCAL" || second == "GLOBAL"
		if temp && (at == single || !hasWords(sql, "on", "commit", "drop")) {
			advice = "what is temporary would stay on a shared connection: use Begin with ON COMMIT DROP, or Acquire"
		}
	case "DECLARE":
		if at == single || hasWords(sql, "with", "hold") {
			advice = "the cursor would stay on a shared connection: use Begin, without WITH HOLD, or Acquire"
		}
	case "RESET", "DISCARD", "LISTEN", "UNLISTEN", "LOAD":
		advice = "it changes the session of a shared connection: use Acquire"
	case "PREPARE", "DEALLOCATE":
		advice = "pass the statement itself to Exec or Query, which prepare it per tenant, or use Acquire"
	}
	if advice != "" {
		return false, fmt.Errorf("%w: %s: %s", ErrStatementRefused, word, advice)
	}
	return false, nil
}

// hasWords reports whether sql has the words, in any case, next to each other but for comments and white space.
func hasWords(sql string, words ...string) bool {
	n := 0
	for t := range sqlsplit.Tokens(sql) {
		if !t.Is(words[n]) {
			n = 0
		}
		if t.Is(words[n]) {
			n++
		}
		if n == len(words) {
			return true
		}
	}
	return false
}

// checkRole refuses what would leave a tenant's role, where its statements have one: SET and its like as a statement, which PostgreSQL
// allows whoever has logged in, whatever the role. All else that could do it, functions and DO, PostgreSQL refuses the role: so this is
// a part of the wall, and lets through only what it understands. setting is PoolConfig.Setting, which policies go by for functions
// that run as the owner.
//
// EXECUTE is refused too. It runs, or with EXPLAIN shows, what anybody else has prepared on the connection, such as a SET ROLE or a
// COMMIT of the service's. Its name is a digest of its text, and with PgBouncer a number.
func checkRole(setting, sql string) error {
	word := sqlsplit.Keyword(sql)
	switch word {
	case "SET", "RESET", "DISCARD":
	case "EXECUTE", "EXPLAIN", "CREATE": // CREATE TABLE AS EXECUTE
		// By the bare text, which no setting makes mean something else.
		if word == "CREATE" {
			sql = executeFunction.ReplaceAllString(sql, "")
		}
		if executeWord.MatchString(sql) {
			return fmt.Errorf("%w: %s: EXECUTE may run what others have prepared: pass the statement itself to Exec or Query", ErrStatementRefused, word)
		}
		return nil
	default:
		return nil
	}
	var rest []string // what comes after it
	for t := range sqlsplit.Tokens(sql) {
		if len(rest) > 0 || t.Text != "(" && t.Text != ";" {
			rest = append(rest, t.Text)
		}
	}
	rest = rest[min(1, len(rest)):]
	if word == "SET" && len(rest) > 0 && (strings.EqualFold(rest[0], "local") || strings.EqualFold(rest[0], "session")) {
		rest = rest[1:]
	}
	// The name that it sets, in lower case, and "" for one that is quoted. Beyond ASCII, PostgreSQL takes letters for others in some encodings.
	name := ""
	for i := 0; i < len(rest); i += 2 {
		if !plainName.MatchString(rest[i]) {
			name = ""
			break
		}
		if name += strings.ToLower(rest[i]); i+1 == len(rest) || rest[i+1] != "." {
			break
		}
		name += "."
	}
	switch {
	case name == "", name == "all", name == "role", name == "session", name == "authorization", name == "session_authorization",
		strings.HasSuffix(name, "."), strings.EqualFold(name, setting), strings.HasPrefix(name, "pgtenancy."):
		return fmt.Errorf("%w: %s: it may leave the role of the tenant", ErrStatementRefused, word)
	}
	return nil
}

var (
	plainName       = regexp.MustCompile("^[A-Za-z_][A-Za-z0-9_$]*$")
	executeWord     = regexp.MustCompile(`(?i)\bexecute\b`)
	executeFunction = regexp.MustCompile(`(?i)\bexecute\s+(function|procedure)\b`) // of a trigger
)
