// Package migration reads directories of migrations, in the formats that other tools write them in. [Load] says which.
package migration

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy/internal/sqlsplit"
)

// Migration is a step from one version to the next one.
type Migration struct {
	Version int64  // its number, or a timestamp
	Name    string // "002_orders": the file's, without what says its format and direction
	File    string // "tenant/002_orders.sql", with slashes; of two files that of the way up

	// Checksum is the SHA-256 of the way up with line ends of \n, in hexadecimal: a way down that is mended, or added, changes
	// nothing that has run. Of a file that has both ways it is about what comes before the mark of the way down, with the
	// white space at its end read as one line end. It is "" for Go functions.
	Checksum string

	Up   Script
	Down *Script // nil where there is none
}

// Script is one direction of a Migration: statements, or a Go function.
type Script struct {
	File string // where the lines of Statements are; differs from the migration's for the way down of two files

	// Statements has one or more on the way up. On the way down it may have none: such a Down does nothing.
	Statements []Statement
	Func       func(context.Context, pgx.Tx) error

	// NoTx says that the statements must not be one transaction, since the file asks for it or one of them cannot run in one.
	NoTx bool
}

// Statement is one statement of a Script. Line and Offset are those of its first token in the Script's File.
type Statement struct {
	sqlsplit.Statement

	// Alone is not nil for a statement that PostgreSQL does not run in a transaction.
	Alone *Alone
}

// Alone says of a statement that cannot run in a transaction how to tell whether it was finished, and how to finish it.
type Alone struct {
	Kind AloneKind

	// Index is the name of the index that CREATE INDEX makes and DROP INDEX and REINDEX INDEX are about, as PostgreSQL keeps
	// it: unquoted, folded and cut to 63 bytes.
	// Table is that of CREATE INDEX, REINDEX TABLE and ALTER TABLE, and Partition the one that ALTER TABLE detaches, likewise.
	Index, Table, Partition string

	// Schema is the one that the statement names before Index or Table, and before Partition too; "" where it names none. For
	// CREATE INDEX it is the table's, which is the index's as well.
	Schema string

	// InTx is the same statement in the form that can run in a transaction, as CREATE INDEX without CONCURRENTLY; "" where
	// there is nothing to do for an empty schema that nobody else sees yet, as for VACUUM.
	InTx string
}

// AloneKind is what a statement that cannot run in a transaction does.
type AloneKind int

// The kinds of statements that cannot run in a transaction.
const (
	CreateIndex     AloneKind = iota + 1 // CREATE INDEX CONCURRENTLY
	DropIndex                            // DROP INDEX CONCURRENTLY
	ReindexIndex                         // REINDEX INDEX CONCURRENTLY, or with the option in parentheses
	ReindexTable                         // REINDEX TABLE CONCURRENTLY, likewise
	Vacuum                               // VACUUM of some tables
	DetachPartition                      // ALTER TABLE ... DETACH PARTITION ... CONCURRENTLY
)

// Error says what is wrong with a file or a function.
type Error struct {
	File string // "tenant/002_orders.sql", or the function's Migration.File
	Line int    // in File, 1 for the first; 0 where it is not about a line
	Msg  string // the rule that it breaks
}

// Error names the file, the line and the rule.
func (e *Error) Error() string {
	if e.Line == 0 {
		return e.File + ": " + e.Msg
	}
	return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Msg)
}
