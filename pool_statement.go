package pgtenancy

import (
	"fmt"
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
		if temp && (at == single || !strings.Contains(strings.ToLower(sql), "on commit drop")) {
			advice = "what is temporary would stay on a shared connection: use Begin with ON COMMIT DROP, or Acquire"
		}
	case "DECLARE":
		if at == single || strings.Contains(strings.ToLower(sql), "with hold") {
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
