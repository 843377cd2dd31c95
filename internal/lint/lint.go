// Package lint finds in migrations what is dangerous in a fleet of schemas. It reads tokens, not a syntax tree: it knows the
// common forms of statements, and says nothing about a form that it does not know for sure.
package lint

import (
	"cmp"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/pgtenancy/pgtenancy/internal/migration"
)

// Finding is one thing that is dangerous.
type Finding struct {
	Rule   string
	File   string
	Line   int
	Object string
	Reason string
	Remedy string
}

// Config says which schemas are whose.
type Config struct {
	SharedSchemas []string
	SchemaPrefix  string
}

// The rules.
const (
	schemaQualified      = "schema-qualified"
	sharedObjectInTenant = "shared-object-in-tenant"
	searchPath           = "search-path"
	extensionInTenant    = "extension-in-tenant"
	typeInTenant         = "type-in-tenant"
	volatileDefault      = "volatile-default"
	indexBlocksWrites    = "index-blocks-writes"
	lockBlocksReads      = "lock-blocks-reads"
	constraintNotValid   = "constraint-not-valid"
	breaksOldCode        = "breaks-old-code"
	concurrentlyMixed    = "concurrently-mixed"
	sessionState         = "session-state"
	enumValueUsed        = "enum-value-used"
	unknownRule          = "unknown-rule"
)

// Rules has the names of all rules that a comment can allow to break.
var Rules = []string{
	schemaQualified, sharedObjectInTenant, searchPath, extensionInTenant, typeInTenant, volatileDefault, indexBlocksWrites,
	lockBlocksReads, constraintNotValid, breaksOldCode, concurrentlyMixed, sessionState, enumValueUsed,
}

// Lint returns what it finds in the way up of the migrations, by directory, file and line. fsys has the files, of which
// the comments are read that are before a statement.
func Lint(fsys fs.FS, shared, tenant []migration.Migration, cfg Config) ([]Finding, error) {
	l := &linter{Config: cfg, sharedSchemas: map[string]bool{}}
	for _, s := range cfg.SharedSchemas {
		l.sharedSchemas[s] = true
	}
	for _, d := range []struct {
		tenant bool
		ms     []migration.Migration
	}{{false, shared}, {true, tenant}} {
		l.tenant, l.others, l.tables, l.enums, l.added = d.tenant, l.tables, map[string]*table{}, map[string]bool{}, map[string]addedValue{}
		for _, m := range d.ms {
			if len(m.Up.Statements) == 0 {
				continue // a Go function
			}
			source, err := fs.ReadFile(fsys, m.Up.File)
			if err != nil {
				return nil, fmt.Errorf("read migrations: %w", err)
			}
			l.file(m.Up, strings.Split(string(source), "\n"))
		}
	}
	return l.findings, nil
}

// linter is what is known after the statements so far.
type linter struct {
	Config
	sharedSchemas map[string]bool // with those that shared migrations make
	findings      []Finding

	// Of the directory.
	tenant bool                  // it is that of the tenants' migrations
	tables map[string]*table     // those that its migrations have made or changed, by key
	others map[string]*table     // those of the directory before it
	enums  map[string]bool       // the enum types that its migrations have made
	added  map[string]addedValue // what was added to enum types, by label

	// Of the file.
	script *migration.Script
	made   map[string]bool // tables, views and indexes that the file has made so far
	making map[string]bool // those that it makes anywhere
	locked map[string]int  // the line that has locked a table against readers until the end of the file, by key
	open   map[string]int  // the line that has added a constraint without validating it, by table and constraint

	// Of the statement.
	found []Finding
}

type addedValue struct {
	file, typ string
	line      int
}

// allow is a comment that allows a statement to break rules.
type allow struct {
	line  int
	rules []string
}

const allowMark = "pgtenancy:allow"

// parseAllows returns the allow comments in text, which has comments and spaces only. line is that of its first character.
func parseAllows(text string, line int) (allows []allow) {
	if !strings.Contains(text, allowMark) {
		return nil
	}
	for i, s := range strings.Split(text, "\n") {
		_, comment, ok := strings.Cut(s, "--")
		if !ok {
			continue
		}
		comment, ok = strings.CutPrefix(strings.TrimSpace(comment), allowMark)
		if !ok || comment != "" && comment[0] != ' ' && comment[0] != '\t' {
			continue
		}
		a := allow{line: line + i}
		for more := true; more; {
			var rule string
			comment = strings.TrimLeft(comment, " \t")
			end := strings.IndexAny(comment, ", \t")
			if end < 0 {
				end = len(comment)
			}
			rule, comment = comment[:end], strings.TrimLeft(comment[end:], " \t")
			a.rules = append(a.rules, rule)
			comment, more = strings.CutPrefix(comment, ",")
		}
		allows = append(allows, a)
	}
	return allows
}

// file checks one file.
func (l *linter) file(script migration.Script, lines []string) {
	l.script = &script
	l.made, l.making, l.locked, l.open = map[string]bool{}, map[string]bool{}, map[string]int{}, map[string]int{}
	type statement struct {
		tokens []token
		bodies []body
		allows []allow
	}
	var sts []statement
	last := 0 // the line that the statement before ends on
	for _, s := range script.Statements {
		var st statement
		for n := s.Line - 1; n > last && n <= len(lines) && strings.HasPrefix(strings.TrimSpace(lines[n-1]), "--"); n-- {
			st.allows = append(st.allows, parseAllows(lines[n-1], n)...)
		}
		ts, inside := scan(s.SQL, s.Line)
		bs, inBodies := bodies(ts)
		st.tokens, st.bodies, st.allows = ts, bs, slices.Concat(st.allows, inside, inBodies)
		sts = append(sts, st)
		last = s.Line + strings.Count(s.SQL, "\n")
		l.willMake(ts)
	}

	mixed := false // it was reported
	start := len(l.findings)
	for i, st := range sts {
		l.found = nil
		if script.Statements[i].Alone != nil && !mixed && slices.ContainsFunc(script.Statements, func(s migration.Statement) bool { return s.Alone == nil }) {
			l.add(concurrentlyMixed, script.Statements[i].Line, "",
				"PostgreSQL runs this statement in no transaction, and so the file cannot be one: where it fails half-way, a part of it stays done",
				"move the statement to a file of its own")
			mixed = true
		}
		l.statement(st.tokens, st.bodies)

		allowed := map[string]bool{}
		for _, a := range st.allows {
			for _, rule := range a.rules {
				allowed[rule] = true
				if !slices.Contains(Rules, rule) {
					l.findings = append(l.findings, Finding{
						Rule: unknownRule, File: script.File, Line: a.line, Object: rule,
						Reason: fmt.Sprintf("the comment allows %q, which is no rule", rule),
						Remedy: "write -- " + allowMark + " with one of " + strings.Join(Rules, ", "),
					})
				}
			}
		}
		for _, f := range l.found {
			if !allowed[f.Rule] {
				l.findings = append(l.findings, f)
			}
		}
	}
	slices.SortStableFunc(l.findings[start:], func(a, b Finding) int { return cmp.Compare(a.Line, b.Line) })
}

// add reports a finding, once for a line and an object.
func (l *linter) add(rule string, line int, object, reason, remedy string) {
	f := Finding{Rule: rule, File: l.script.File, Line: line, Object: object, Reason: reason, Remedy: remedy}
	for _, other := range l.found {
		if other.Rule == rule && other.Line == line && other.Object == object {
			return
		}
	}
	l.found = append(l.found, f)
}

// statement checks one statement of a file.
func (l *linter) statement(ts []token, bs []body) {
	if l.tenant {
		bare := map[string]bool{}
		bareNames(bare, ts)
		for _, b := range bs {
			bareNames(bare, b.tokens)
		}
		l.checkNames(ts, false, bare)
		for _, b := range bs {
			l.checkNames(b.tokens, true, bare)
		}
	}
	l.checkSettings(ts, bs)
	l.checkValues(ts, bs)
	l.checkObjects(ts)
	for _, b := range bs {
		if b.run {
			for _, st := range b.statements() {
				l.checkObjects(st)
			}
		}
	}
}
