package lint

import (
	"fmt"
	"slices"
	"strings"
)

// bareNames adds the names that nothing follows with a dot: those of tables, aliases and variables among them.
func bareNames(bare map[string]bool, ts []token) {
	for i, t := range ts {
		if t.name != "" && at(ts, i+1).text != "." {
			bare[t.name] = true
		}
	}
}

// Words after which a name with a dot in it is one of a table, type, function, sequence, index or view, and never a column.
// The first part of it is a schema then.
var beforeObject = []string{
	"join", "update", "table", "references", "view", "function", "procedure", "routine", "aggregate", "sequence", "type", "domain",
	"index", "collate", "as", "only", "exists", "concurrently", "setof", "returns", "copy", "truncate", "lock", "collation",
}

// Words that end the list of tables after FROM.
var endOfList = []string{
	"where", "group", "having", "order", "limit", "offset", "fetch", "for", "window", "union", "intersect", "except", "returning", "set",
	"loop", "into", "then", "to", "cascade", "restrict", "in", "do", "values",
}

// Functions that take the name of an object as a string, and types that read it.
var (
	nameFunctions = []string{
		"nextval", "currval", "setval", "to_regclass", "to_regtype", "to_regproc", "to_regprocedure", "pg_get_serial_sequence",
		"pg_relation_size", "pg_total_relation_size", "pg_table_size", "pg_indexes_size",
	}
	nameTypes = []string{"regclass", "regtype", "regproc", "regprocedure", "regoper", "regoperator"}
)

// level is what is known inside a pair of parentheses.
type level struct {
	query bool // SELECT, UPDATE, DELETE or the like was here, so that FROM comes before tables
	head  string
	list  bool // a comma is before another table
}

// checkNames finds names that are qualified with a schema that is not shared. bare has the names of the whole statement that
// are not before a dot: a table or alias of that name makes a column of what may look like a schema.
func (l *linter) checkNames(ts []token, inBody bool, bare map[string]bool) {
	on := -1 // where ON is before a table
	kind := ""
	if c := cursor(ts); !inBody {
		kind = c.any("create", "alter", "drop", "grant", "revoke", "truncate", "lock")
		c.accept("or", "replace")
		c.accept("unique")
		c.accept("constraint")
		if object := c.any("index", "trigger", "policy"); object != "" || kind == "grant" || kind == "revoke" {
			on = find(ts, "on")
		}
	}
	from, to := definitions(ts)

	levels := []level{{}}
	for i := 0; i < len(ts); i++ {
		t, prev := ts[i], at(ts, i-1)
		top := &levels[len(levels)-1]
		switch {
		case t.text == "(" || t.text == "[":
			levels = append(levels, level{})
			continue
		case t.text == ")" || t.text == "]":
			if len(levels) > 1 {
				levels = levels[:len(levels)-1]
			}
			continue
		case t.text == ";":
			*top = level{}
			continue
		case t.quoted:
			l.checkNameString(ts, i)
			continue
		}
		switch {
		case t.is("select", "perform", "delete", "update", "merge"):
			top.query, top.head = true, t.word
		case t.is("from") && top.query && !prev.is("distinct"), t.is("using") && (top.head == "delete" || top.head == "merge"),
			t.is("on") && i == on, t.is("table", "view", "sequence", "index", "truncate", "lock") && (kind == "drop" || kind == "truncate" || kind == "lock"):
			top.list = true
		case t.is(endOfList...):
			top.list = false
		}
		if prev.is("schema") && t.name != "" && l.ofTenant(t.name) {
			l.addQualified(t.name, t)
			continue
		}

		n, tokens := nameAt(ts, i)
		if len(n) < 2 || prev.text == "." {
			continue
		}
		end, prev2 := at(ts, i+tokens), at(ts, i-2)
		inDefinition := from < i && i < to && t.depth == 1 // in the definition of a column or parameter
		object := false
		switch {
		case prev.is("set", "local", "session", "reset", "show"): // the name of a setting
			i += tokens - 1
			continue
		case end.text == "(", prev.text == ":" && prev2.text == ":", prev.is(beforeObject...):
			object = true
		case prev.is("from", "using"):
			object = top.list && !prev2.is("distinct")
		case prev.is("into"):
			object = prev2.is("insert", "merge")
		case prev.is("on"):
			object = i-1 == on
		case prev.text == ",":
			object = top.list
		case prev.is("of"):
			object = prev2.is("partition")
		case prev.is("partition"):
			object = prev2.is("attach", "detach")
		case prev.is("like"):
			object = inDefinition && (prev2.text == "(" || prev2.text == ",")
		case prev.text == "(":
			object = prev2.is("inherits")
		}
		switch {
		case object:
		case end.text == "%" && at(ts, i+tokens+1).is("rowtype"):
			object = true
		case len(n) == 3 && (prev.is("column") && !inBody || prev.is("by") && prev2.is("owned") || end.text == "%" && at(ts, i+tokens+1).is("type")):
			object, n = true, n[:2] // of a column
		case prev.name == "":
		case inDefinition && (prev2.text == "(" || prev2.text == ","):
			object = true // its type
		case prev2.is("add", "column") || prev2.is("exists") && at(ts, i-5).is("column"):
			object = !prev.is("column", "constraint", "check", "unique", "primary", "foreign", "exclude")
		}
		if object && (l.ofTenant(n.schema()) || !l.shared(n.schema())) {
			l.addQualified(n.String(), t)
		} else if !object && l.ofTenant(n[0]) && !bare[n[0]] {
			l.addQualified(n.String(), t)
		}
		i += tokens - 1
	}
}

// definitions returns where the parentheses are that have the columns of a table or type, or the parameters of a function.
func definitions(ts []token) (from, to int) {
	c := cursor(ts)
	if !routine(&c, "create") {
		if c = ts; !c.accept("create") {
			return 0, 0
		}
		for c.any("global", "local", "temp", "temporary", "unlogged") != "" {
		}
		if c.any("table", "type") == "" {
			return 0, 0
		}
	}
	c.ifExists()
	c.name()
	c.accept("as")
	from = len(ts) - len(c)
	if c.group() == nil {
		return 0, 0
	}
	return from, len(ts) - len(c)
}

// checkNameString looks into a string that is read as the name of an object.
func (l *linter) checkNameString(ts []token, i int) {
	t, prev := ts[i], at(ts, i-1)
	if !(at(ts, i+1).text == ":" && at(ts, i+2).text == ":" && (at(ts, i+3).is(nameTypes...) || at(ts, i+5).is(nameTypes...)) ||
		prev.is(nameTypes...) || prev.text == "(" && at(ts, i-2).is(nameFunctions...)) {
		return
	}
	inner, _ := scan(t.str, t.line)
	n, _ := nameAt(inner, 0)
	if len(n) > 1 && (l.ofTenant(n[len(n)-2]) || !l.shared(n[len(n)-2])) {
		l.addQualified(n.String(), t)
	}
}

// ofTenant reports whether a schema has the name of a tenant's.
func (l *linter) ofTenant(schema string) bool {
	return strings.HasPrefix(schema, l.SchemaPrefix) && len(schema) > len(l.SchemaPrefix) && !l.sharedSchemas[schema]
}

// shared reports whether a migration may name a schema.
func (l *linter) shared(schema string) bool {
	return l.sharedSchemas[schema] ||
		slices.Contains([]string{"pg_catalog", "information_schema", "pg_temp", "pg_toast", "pgtenancy"}, schema)
}

func (l *linter) addQualified(object string, t token) {
	schema, _, _ := strings.Cut(object, ".")
	if l.ofTenant(schema) {
		l.add(schemaQualified, t.line, object,
			fmt.Sprintf("%s is in the schema of one tenant, and this runs for every tenant: all of them would read or change that one's", object),
			"leave the schema out: each tenant's search_path finds its own")
		return
	}
	l.add(schemaQualified, t.line, object,
		fmt.Sprintf("%s is in a schema that is neither the tenant's nor a shared one: every tenant would use the same", object),
		"leave the schema out for what each tenant has of its own; list a schema that all share in SharedSchemas, or make it in a shared migration")
}
