package migration

import (
	"fmt"
	"strings"

	"github.com/pgtenancy/pgtenancy/internal/sqlsplit"
)

// newAlone returns nil for a statement that can run in a transaction, as far as is known here: the others that cannot are
// PostgreSQL's to refuse. rule is not "" for one that cannot and is not known how to finish.
func newAlone(sql string) (alone *Alone, rule string) {
	switch sqlsplit.Keyword(sql) {
	case "CREATE", "DROP", "REINDEX", "VACUUM", "ALTER":
	default:
		return nil, "" // without a look at every token of a long INSERT
	}
	p := newParser(sql)
	switch {
	case p.accept("CREATE"):
		return p.createIndex()
	case p.accept("DROP", "INDEX", "CONCURRENTLY"):
		return p.dropIndex()
	case p.accept("REINDEX"):
		return p.reindex()
	case p.accept("VACUUM"):
		return p.vacuum()
	case p.accept("ALTER", "TABLE"):
		return p.detachPartition()
	}
	return nil, ""
}

const createIndexRule = "must be CREATE [UNIQUE] INDEX CONCURRENTLY [IF NOT EXISTS] name ON [ONLY] table ..., " +
	`with names that are not U&"..."`

// createIndex reads what comes after CREATE.
func (p *parser) createIndex() (*Alone, string) {
	p.accept("UNIQUE")
	if !p.accept("INDEX", "CONCURRENTLY") {
		return nil, ""
	}
	a := &Alone{Kind: CreateIndex, InTx: p.without(p.pos-1, p.pos)}
	p.accept("IF", "NOT", "EXISTS")
	if p.is("ON") {
		return nil, "must name the index, so that it can be found again after a crash"
	}
	var ok bool
	if a.Index, ok = p.name(); !ok || !p.accept("ON") {
		return nil, createIndexRule
	}
	if p.accept("ONLY") {
		p.accept("(")
	}
	if a.Schema, a.Table, ok = p.qualified(); !ok {
		return nil, createIndexRule
	}
	return a, ""
}

// dropIndex reads what comes after DROP INDEX CONCURRENTLY.
func (p *parser) dropIndex() (*Alone, string) {
	a := &Alone{Kind: DropIndex, InTx: p.without(p.pos-1, p.pos)}
	p.accept("IF", "EXISTS")
	var ok bool
	if a.Schema, a.Index, ok = p.qualified(); !ok {
		return nil, `must be DROP INDEX CONCURRENTLY [IF EXISTS] name, with a name that is not U&"..."`
	}
	if p.accept(",") {
		return nil, "must drop one index: PostgreSQL drops no more in a statement with CONCURRENTLY"
	}
	return a, ""
}

// reindex reads what comes after REINDEX.
func (p *parser) reindex() (*Alone, string) {
	inTx, concurrently := p.sql, false
	if p.accept("(") {
		if inTx, concurrently = p.reindexOptions(); inTx == "" {
			return nil, "must have options that are CONCURRENTLY, VERBOSE or TABLESPACE, CONCURRENTLY once at most"
		}
	}
	a := &Alone{}
	switch {
	case p.accept("INDEX"):
		a.Kind = ReindexIndex
	case p.accept("TABLE"):
		a.Kind = ReindexTable
	default:
		// SCHEMA, DATABASE, SYSTEM.
		return nil, "must be REINDEX INDEX or REINDEX TABLE: the others are many transactions over a whole schema or database, " +
			"and after a crash nobody can tell which of them were done"
	}
	if p.accept("CONCURRENTLY") {
		if concurrently {
			return nil, "must have CONCURRENTLY once"
		}
		inTx, concurrently = p.without(p.pos-1, p.pos), true
	}
	if !concurrently {
		return nil, ""
	}
	a.InTx = inTx
	schema, name, ok := p.qualified()
	if !ok || !p.end() {
		return nil, `must be REINDEX INDEX or TABLE CONCURRENTLY name, with a name that is not U&"..."`
	}
	if a.Schema = schema; a.Kind == ReindexIndex {
		a.Index = name
	} else {
		a.Table = name
	}
	return a, ""
}

// reindexOptions reads the options up to the closing parenthesis, and returns the statement without CONCURRENTLY, "" where
// they cannot be read.
func (p *parser) reindexOptions() (inTx string, concurrently bool) {
	open, seen := p.pos-1, false
	inTx = p.sql
	for {
		start := p.pos
		isConcurrently := p.accept("CONCURRENTLY")
		if isConcurrently && seen {
			return "", false
		}
		if !isConcurrently {
			p.pos++ // another option's name
		}
		value := "true"
		if !p.is(",") && !p.is(")") && !p.end() {
			value = strings.ToLower(strings.Trim(p.toks[p.pos].Text, "'"))
			p.pos++
		}
		last := p.is(")")
		if !last && !p.is(",") {
			return "", false
		}
		p.pos++
		if isConcurrently {
			seen = true
			switch value {
			case "true", "on", "1":
				concurrently = true
			case "false", "off", "0":
			default:
				return "", false
			}
			switch {
			case !last:
				inTx = p.without(start, p.pos) // with the comma behind it
			case start-1 == open:
				inTx = p.without(open, p.pos) // with the parentheses, which must not be empty
			default:
				inTx = p.without(start-1, p.pos-1) // with the comma before it
			}
		}
		if last {
			return inTx, concurrently
		}
	}
}

// vacuum reads what comes after VACUUM.
func (p *parser) vacuum() (*Alone, string) {
	if p.accept("(") {
		for !p.end() && !p.accept(")") {
			p.pos++
		}
	}
	for p.accept("FULL") || p.accept("FREEZE") || p.accept("VERBOSE") || p.accept("ANALYZE") || p.accept("ANALYSE") {
	}
	if p.end() {
		return nil, "must name its tables: without a name it is about the whole database, and not about one schema"
	}
	return &Alone{Kind: Vacuum}, ""
}

// detachPartition reads what comes after ALTER TABLE.
func (p *parser) detachPartition() (*Alone, string) {
	if !p.has("DETACH") || !p.has("CONCURRENTLY") {
		return nil, ""
	}
	a := &Alone{Kind: DetachPartition}
	p.accept("IF", "EXISTS")
	p.accept("ONLY")
	var partitionSchema string
	var ok bool
	if a.Schema, a.Table, ok = p.qualified(); ok {
		p.accept("*")
		ok = p.accept("DETACH", "PARTITION")
	}
	if ok {
		partitionSchema, a.Partition, ok = p.qualified()
	}
	switch {
	case !ok || !p.accept("CONCURRENTLY") || !p.end():
		return nil, `must be ALTER TABLE [IF EXISTS] [ONLY] name DETACH PARTITION name CONCURRENTLY, with names that are not U&"..."`
	case a.Schema != partitionSchema:
		return nil, fmt.Sprintf("must have the same schema before the names of the table and the partition, not %q and %q",
			a.Schema, partitionSchema)
	}
	a.InTx = p.without(p.pos-1, p.pos)
	return a, ""
}
