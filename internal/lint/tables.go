package lint

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// table is what the migrations say of a table.
type table struct {
	columns     map[string]typ             // by name, as far as they are known
	notNull     map[string]map[string]bool // constraints that say of a column that it is not null, and whether they are validated
	partitioned bool
	made        bool // by a migration of the directory
}

// table returns what is known of a table.
func (l *linter) table(key string) *table {
	t := l.tables[key]
	if t == nil {
		t = &table{columns: map[string]typ{}, notNull: map[string]map[string]bool{}}
		l.tables[key] = t
	}
	return t
}

// key is the name by which a table is known here: without its schema, where that is the one that unqualified names are
// looked for in.
func (l *linter) key(n name) string {
	if len(n) > 1 && (l.tenant || len(l.SharedSchemas) == 0 || n.schema() != l.SharedSchemas[0]) {
		return n.schema() + "." + n.last()
	}
	return n.last()
}

// created returns the key of the table, view or index that a statement makes, "" where it makes none that is known.
func (l *linter) created(ts []token) (key, kind string) {
	c := cursor(ts)
	if !c.accept("create") {
		return "", ""
	}
	c.accept("or", "replace")
	for c.any("global", "local", "temp", "temporary", "unlogged", "materialized", "recursive", "unique", "foreign") != "" {
	}
	if kind = c.any("table", "view", "index"); kind == "" {
		return "", ""
	}
	c.accept("concurrently")
	c.ifExists()
	n := c.name()
	if n == nil || kind == "index" && n[0] == "on" && !c.peek().is("on") {
		return "", kind
	}
	return l.key(n), kind
}

// willMake takes note of what a statement of the file makes.
func (l *linter) willMake(ts []token) {
	if key, _ := l.created(ts); key != "" {
		l.making[key] = true
	}
}

// existing reports whether others may be using a table: whether it is older than the file.
func (l *linter) existing(key string) bool { return !l.made[key] }

// checkObjects checks a statement that makes, changes or drops something.
func (l *linter) checkObjects(ts []token) {
	c := cursor(ts)
	switch t := c.next(); t.word {
	case "create":
		l.create(t, c, ts)
	case "alter":
		l.alter(t, c)
	case "drop":
		l.drop(t, c)
	case "truncate":
		c.accept("table")
		l.checkShared(t, "truncates", l.names(&c)...)
	case "update", "delete", "merge":
		_ = c.any("from", "into")
		c.accept("only")
		n := c.name()
		if line, ok := l.locked[l.key(n)]; ok {
			l.add(lockBlocksReads, t.line, n.String(),
				fmt.Sprintf("ALTER TABLE on line %d has locked %s until the end of the file, so that nobody can read it while this goes through its rows", line, n),
				"change the rows in a migration of its own, after this one")
		}
	case "vacuum":
		if options := c.group(); has(c, "full") || has(options, "full") {
			l.addLock(t, "", "VACUUM FULL writes the table anew, and nobody can read it meanwhile", "use plain VACUUM, or pg_repack")
		}
	case "cluster":
		c.accept("verbose")
		c.group()
		if n := c.name(); l.existing(l.key(n)) {
			l.addLock(t, n.String(), "CLUSTER writes the table anew, and nobody can read it meanwhile", "leave it out, or use pg_repack")
		}
	case "lock":
		c.accept("table")
		for _, n := range l.names(&c) {
			if (!has(c, "in") || has(c, "access", "exclusive")) && l.existing(l.key(n)) {
				l.addLock(t, n.String(), fmt.Sprintf("LOCK TABLE keeps everybody from reading %s until the end of the file", n),
					"leave it out, since each statement takes the lock that it needs; or lock IN SHARE ROW EXCLUSIVE MODE, which lets others read")
			}
		}
	case "refresh":
		c.accept("materialized", "view")
		if concurrently := c.accept("concurrently"); !concurrently {
			if n := c.name(); l.existing(l.key(n)) {
				l.addLock(t, n.String(), fmt.Sprintf("REFRESH MATERIALIZED VIEW keeps everybody from reading %s until it is done", n),
					"write REFRESH MATERIALIZED VIEW CONCURRENTLY, which needs a unique index on the view")
			}
		}
	case "reindex":
		options := c.group()
		kind := c.any("index", "table", "schema", "database", "system")
		if kind == "" || c.accept("concurrently") || has(options, "concurrently") {
			return
		}
		if n := c.name(); l.existing(l.key(n)) {
			l.addLock(t, n.String(), "REINDEX blocks writes to the table until it is done, and every query that could use the index",
				"write REINDEX "+strings.ToUpper(kind)+" CONCURRENTLY, in a file of its own")
		}
	}
}

func (l *linter) addLock(t token, object, reason, remedy string) {
	l.add(lockBlocksReads, t.line, object, reason, remedy)
}

// names passes over a list of tables.
func (l *linter) names(c *cursor) (ns []name) {
	for {
		c.accept("only")
		n := c.name()
		if n == nil {
			return ns
		}
		ns = append(ns, n)
		if c.peek().text == "*" {
			c.next()
		}
		if c.peek().text != "," {
			return ns
		}
		c.next()
	}
}

// checkShared finds what a tenant's migration does to objects that all tenants share.
func (l *linter) checkShared(t token, does string, ns ...name) {
	if !l.tenant {
		return
	}
	for _, n := range ns {
		if !l.sharedSchemas[n.schema()] && n.schema() != "pgtenancy" {
			continue
		}
		reason := fmt.Sprintf("%s is shared, and this %s it once for every tenant: it fails for the second one, or does again what is done", n, does)
		l.add(sharedObjectInTenant, t.line, n.String(), reason, "move it to a migration in shared/, which runs once")
	}
}

// checkSharedTable is checkShared for a table that may be named without a schema.
func (l *linter) checkSharedTable(t token, does string, n name) {
	if l.tenant && len(n) == 1 && !l.table(n[0]).made && l.others[n[0]] != nil && l.others[n[0]].made {
		l.add(sharedObjectInTenant, t.line, n.String(),
			fmt.Sprintf("%s is made by a shared migration and no tenant has one, so this %s the shared one once for every tenant", n, does),
			"move it to a migration in shared/, which runs once")
		return
	}
	l.checkShared(t, does, n)
}

// create checks CREATE. c is after that word.
func (l *linter) create(t token, c cursor, ts []token) {
	c.accept("or", "replace")
	if key, _ := l.created(ts); key != "" {
		defer func() { l.made[key] = true }()
	}
	for c.any("global", "local", "temp", "temporary", "unlogged", "materialized", "recursive", "constraint", "trusted", "procedural") != "" {
	}
	unique := c.accept("unique")
	if c.peek().is("user") && at(c, 1).is("mapping") {
		return
	}
	kind := c.next()
	switch kind.word {
	case "table":
		c.ifExists()
		n := c.name()
		l.checkShared(t, "makes", n)
		l.createTable(l.key(n), c)
	case "index":
		l.createIndex(t, c, unique)
	case "extension":
		c.ifExists()
		if n := c.name(); l.tenant {
			l.add(extensionInTenant, t.line, n.String(),
				fmt.Sprintf("a database has the extension %s once: it would go into the schema of the first tenant, where no other one finds it", n),
				"make it in a shared migration")
		} else if i := find(c, "schema"); i >= 0 {
			l.sharedSchemas[at(c, i+1).name] = true
		}
	case "schema":
		c.ifExists()
		n := c.name()
		switch {
		case len(n) != 1 || n[0] == "authorization":
		case l.tenant:
			l.addOnce(t, "schema", n)
		default:
			l.sharedSchemas[n[0]] = true
		}
	case "role", "user", "group", "publication", "subscription", "server", "language":
		c.ifExists()
		if n := c.name(); l.tenant {
			l.addOnce(t, kind.word, n)
		}
	case "event", "access", "foreign":
		if what := c.any("trigger", "method", "data", "table"); what == "table" {
			c.ifExists()
			n := c.name()
			l.checkShared(t, "makes", n)
			l.createTable(l.key(n), c)
		} else if what != "" && l.tenant {
			c.accept("wrapper")
			l.addOnce(t, strings.TrimSuffix(kind.word+" "+what, " data"), c.name())
		}
	case "type", "domain":
		n := c.name()
		if c.accept("as", "enum") {
			l.enums[n.last()] = true
		}
		l.checkShared(t, "makes", n)
		if l.tenant && n.schema() == "" {
			l.add(typeInTenant, t.line, n.String(),
				fmt.Sprintf("the type %s gets another number (OID) in every tenant's schema: the server and every client keep as many descriptions of it as there are tenants", n),
				"make it in a shared migration, or use text with a CHECK; allow it where tenants' types are to differ")
		}
	case "trigger", "policy":
		if i := find(c, "on"); i >= 0 {
			rest := c[i+1:]
			n := rest.name()
			l.checkSharedTable(t, "makes a "+kind.word+" on", n)
		}
	case "view", "function", "procedure", "sequence", "aggregate", "collation", "statistics":
		c.ifExists()
		n := c.name()
		l.checkShared(t, "makes", n)
		if kind.word == "view" {
			l.table(l.key(n)).made = true
		}
	}
}

// addOnce reports an object that no two tenants can have.
func (l *linter) addOnce(t token, kind string, n name) {
	l.add(sharedObjectInTenant, t.line, n.String(),
		fmt.Sprintf("the %s %s is in no tenant's schema, and this makes it once for every tenant: it fails for the second one, or does again what is done", kind, n),
		"move it to a migration in shared/, which runs once")
}

// createTable takes note of the columns. c is after the name.
func (l *linter) createTable(key string, c cursor) {
	tab := &table{columns: map[string]typ{}, notNull: map[string]map[string]bool{}, made: true}
	l.tables[key] = tab
	for _, def := range split(c.group(), ",") {
		d := cursor(def)
		if len(d) < 2 || d.peek().is("constraint", "check", "unique", "primary", "foreign", "exclude", "like") {
			continue
		}
		column := d.next().name
		tab.columns[column] = readType(&d)
	}
	tab.partitioned = has(c, "partition", "by")
}

// createIndex checks CREATE INDEX. c is after these words.
func (l *linter) createIndex(t token, c cursor, unique bool) {
	concurrently := c.accept("concurrently")
	i := find(c, "on")
	if i < 0 {
		return
	}
	c = c[i+1:]
	only := c.accept("only")
	n := c.name()
	key := l.key(n)
	l.checkSharedTable(t, "makes an index on", n)
	if concurrently || only || !l.existing(key) {
		return
	}
	what := "CREATE INDEX"
	if unique {
		what = "CREATE UNIQUE INDEX"
	}
	remedy := "write " + what + " CONCURRENTLY with a name for the index, in a file of its own"
	if tab := l.tables[key]; tab != nil && tab.partitioned {
		remedy = what + " ON ONLY " + n.String() + ", then CONCURRENTLY one on each partition, and ALTER INDEX ... ATTACH PARTITION"
	}
	l.add(indexBlocksWrites, t.line, n.String(), fmt.Sprintf("%s keeps everybody from writing to %s until the index is built", what, n), remedy)
}

// drop checks DROP. c is after that word.
func (l *linter) drop(t token, c cursor) {
	c.accept("materialized")
	kind := c.next()
	if kind.is("foreign") && c.accept("table") {
		kind.word = "table"
	}
	if !kind.is("table", "view", "index", "function", "procedure", "sequence", "type", "domain", "aggregate", "extension", "trigger", "policy") {
		return
	}
	c.accept("concurrently")
	c.ifExists()
	switch kind.word {
	case "extension":
		if n := c.name(); l.tenant {
			l.add(extensionInTenant, t.line, n.String(), fmt.Sprintf("a database has the extension %s once: dropping it for one tenant drops it for all", n),
				"drop it in a shared migration")
		}
		return
	case "trigger", "policy":
		c.name()
		if c.accept("on") {
			l.checkSharedTable(t, "drops a "+kind.word+" of", c.name())
		}
		return
	}
	for _, n := range l.names(&c) {
		key := l.key(n)
		if kind.word != "table" {
			l.checkShared(t, "drops", n)
			continue
		}
		l.checkSharedTable(t, "drops", n)
		if l.existing(key) && !l.making[key] {
			l.addOld(t, n.String(), fmt.Sprintf("code that still uses %s fails from here on: the processes of the version before, and those that work for a tenant that is already migrated", n),
				"first release code that does not use it, and drop it in the release after")
		}
		delete(l.tables, key)
	}
}

func (l *linter) addOld(t token, object, reason, remedy string) {
	l.add(breaksOldCode, t.line, object, reason, remedy)
}

// alter checks ALTER. c is after that word.
func (l *linter) alter(t token, c cursor) {
	c.accept("materialized")
	kind := c.next()
	if kind.is("foreign") && c.accept("table") {
		kind.word = "table"
	}
	if kind.is("extension") {
		if n := c.name(); l.tenant {
			l.add(extensionInTenant, t.line, n.String(), fmt.Sprintf("a database has the extension %s once: this changes it for all tenants, once for each of them", n),
				"change it in a shared migration")
		}
		return
	}
	if !kind.is("table", "view", "index", "function", "procedure", "sequence", "type", "domain", "aggregate") || c.accept("all", "in", "tablespace") {
		return
	}
	c.ifExists()
	c.accept("only")
	n := c.name()
	if c.peek().text == "*" {
		c.next()
	}
	if kind.is("table") {
		l.checkSharedTable(t, "changes", n)
	} else {
		l.checkShared(t, "changes", n)
	}
	if i := find(c, "set", "schema"); i >= 0 && l.tenant {
		l.checkShared(c[i], "makes", name{at(c, i+2).name, n.last()})
	}
	key := l.key(n)
	if !l.existing(key) {
		if kind.is("table") {
			l.note(key, n, c)
		}
		return
	}
	switch {
	case kind.is("table"):
		for _, action := range split(c, ",") {
			l.alterTable(n, key, action)
		}
	case has(c, "set", "tablespace"):
		l.addLock(t, n.String(), fmt.Sprintf("SET TABLESPACE copies %s, and nobody can read it meanwhile", n), "leave it out, or do it by hand in a quiet hour")
	case kind.is("view") && has(c, "rename", "to"):
		l.rename(t, n, key, at(c, 2).name)
	}
}

// note takes note of what an ALTER TABLE does to a table that is new, and harms nobody by it.
func (l *linter) note(key string, n name, c cursor) {
	reported := len(l.found)
	for _, action := range split(c, ",") {
		l.alterTable(n, key, action)
	}
	l.found = l.found[:reported]
	delete(l.locked, key)
	if c.accept("rename", "to") {
		l.made[c.peek().name] = true
	}
}

// alterTable checks one action of ALTER TABLE.
func (l *linter) alterTable(n name, key string, action []token) {
	c := cursor(action)
	t := c.next()
	exclusive := true // the lock keeps readers out
	switch t.word {
	case "add":
		exclusive = l.alterAdd(t, n, key, c)
	case "drop":
		if c.accept("constraint") {
			break
		}
		c.accept("column")
		c.ifExists()
		column := c.name().last()
		delete(l.table(key).columns, column)
		l.addOld(t, n.String()+"."+column,
			fmt.Sprintf("code that still uses %s.%s fails from here on: the processes of the version before, and those that work for a tenant that is already migrated", n, column),
			"first release code that does not use it, and drop it in the release after")
	case "rename":
		if c.accept("constraint") {
			break
		}
		if c.accept("to") {
			l.rename(t, n, key, c.peek().name)
			break
		}
		c.accept("column")
		column := c.name().last()
		if c.accept("to") {
			tab := l.table(key)
			if old, ok := tab.columns[column]; ok {
				tab.columns[c.peek().name] = old
			}
			delete(tab.columns, column)
			l.addOld(t, n.String()+"."+column,
				fmt.Sprintf("code that still says %s.%s fails from here on, and the new code fails for tenants that are not migrated yet", n, column),
				"add a column, write both, copy the values, and drop the old one in a later release")
		}
	case "alter":
		c.accept("column")
		exclusive = !has(c, "set", "statistics")
		l.alterColumn(t, n, key, c)
	case "validate":
		exclusive = false
		c.accept("constraint")
		constraint := c.name().last()
		for _, validated := range l.table(key).notNull {
			if _, ok := validated[constraint]; ok {
				validated[constraint] = true
			}
		}
		if line, ok := l.open[key+"."+constraint]; ok && !l.script.NoTx && l.existing(key) {
			l.add(constraintNotValid, t.line, n.String(),
				fmt.Sprintf("the constraint is validated in the transaction that added it on line %d, and the lock of that blocks others while all rows are read", line),
				"put VALIDATE CONSTRAINT in a later file")
		}
	case "set":
		switch {
		case c.accept("tablespace"):
			l.addLock(t, n.String(), fmt.Sprintf("SET TABLESPACE copies %s, and nobody can read it meanwhile", n), "leave it out, or do it by hand in a quiet hour")
		case c.any("logged", "unlogged") != "", c.accept("access", "method"):
			l.addLock(t, n.String(), fmt.Sprintf("this writes %s anew, and nobody can read it meanwhile", n), "choose it when the table is made, or copy the rows to a new table")
		case c.peek().text == "(":
			exclusive = false
		}
	case "attach", "cluster", "enable", "disable":
		exclusive = false
	}
	if exclusive && !l.script.NoTx {
		if _, ok := l.locked[key]; !ok {
			l.locked[key] = t.line
		}
	}
}

func (l *linter) rename(t token, n name, key, to string) {
	if tab := l.tables[key]; tab != nil {
		l.tables[to] = tab
		delete(l.tables, key)
	}
	if l.making[key] {
		return // a view that old code goes on with
	}
	l.addOld(t, n.String(),
		fmt.Sprintf("code that still says %s fails from here on, and the new code fails for tenants that are not migrated yet", n),
		fmt.Sprintf("make a view %s of the table in the same file, for code that still uses the name", n))
}

// What may begin a constraint of a table.
var constraintWords = []string{"constraint", "check", "unique", "primary", "foreign", "exclude"}

// alterAdd checks ADD, and reports whether its lock keeps readers out.
func (l *linter) alterAdd(t token, n name, key string, c cursor) (exclusive bool) {
	if c.peek().is(constraintWords...) || c.peek().is("not") {
		return l.addConstraint(t, n, key, c)
	}
	c.accept("column")
	c.ifExists()
	column := c.name().last()
	if column == "" {
		return true
	}
	object := n.String() + "." + column
	colType := readType(&c)
	l.table(key).columns[column] = colType

	value, hasDefault := columnDefault(c)
	isNull := hasDefault && equal(value, "null")
	_, serial := serials[colType.base]
	const bySequence = "add a bigint column and a sequence, set the default to nextval in an ALTER TABLE after it, for new rows, and fill in the old rows in portions"
	switch {
	case serial:
		l.addVolatile(t, n, object, "a "+colType.base+" column gets another value in every row", bySequence)
	case has(c, "as", "identity"):
		l.addVolatile(t, n, object, "an identity column gets another value in every row", bySequence)
	case has(c, "generated", "always", "as") && has(c, "stored"):
		l.add(volatileDefault, t.line, object, fmt.Sprintf("a stored generated column is computed for every row: %s is written anew, and nobody can read it meanwhile", n),
			"add a plain column, fill it with a trigger and in portions, or compute it in a view; PostgreSQL 18 has VIRTUAL columns, which cost nothing here")
	case hasDefault:
		if f := volatile(value); f != "" {
			l.addVolatile(t, n, object, f+"() gives another value for every row",
				"add the column without a default, set the default in an ALTER TABLE after it, for new rows, and fill in the old rows in portions")
		}
	}
	if !hasDefault && has(c, "not", "null") && !has(c, "generated") && !serial || isNull && has(c, "not", "null") {
		l.addOld(t, object, fmt.Sprintf("%s is NOT NULL without a DEFAULT: this fails for tenants with rows in the table, and old code's INSERTs fail for the others", object),
			"give it a DEFAULT; drop that in a later release")
	}
	if has(c, "unique") || has(c, "primary", "key") {
		l.addIndexed(t, n, object)
	}
	if has(c, "check") || hasDefault && !isNull && has(c, "references") {
		l.add(constraintNotValid, t.line, object, fmt.Sprintf("all rows of %s are read to see whether they satisfy the constraint, and nobody can use the table meanwhile", n),
			"add the column without it, then ADD CONSTRAINT ... NOT VALID, and VALIDATE CONSTRAINT in a later file")
	}
	return true
}

func (l *linter) addVolatile(t token, n name, object, why, remedy string) {
	l.add(volatileDefault, t.line, object, fmt.Sprintf("%s, so that %s is written anew, and nobody can read it meanwhile", why, n), remedy)
}

func (l *linter) addIndexed(t token, n name, object string) {
	l.add(indexBlocksWrites, t.line, object, fmt.Sprintf("the constraint builds an index, and nobody can read or write %s until it is built", n),
		"CREATE UNIQUE INDEX CONCURRENTLY in a file of its own, then ADD CONSTRAINT ... USING INDEX in the next")
}

// addConstraint checks ADD of a constraint, and reports whether its lock keeps readers out.
func (l *linter) addConstraint(t token, n name, key string, c cursor) (exclusive bool) {
	constraint := ""
	if c.accept("constraint") {
		constraint = c.name().last()
	}
	notValid := has(c, "not", "valid")
	tab := l.table(key)
	isNotNull := func(column string) {
		if tab.notNull[column] == nil {
			tab.notNull[column] = map[string]bool{}
		}
		if constraint == "" {
			constraint = n.last() + "_" + column + "_check"
		}
		tab.notNull[column][constraint] = !notValid
	}
	if notValid {
		defer func() { l.open[key+"."+constraint] = t.line }()
	}
	switch c.next().word {
	case "unique", "primary":
		if !has(c, "using", "index") || has(c, "using", "index", "tablespace") {
			l.addIndexed(t, n, n.String())
		}
	case "exclude":
		l.add(indexBlocksWrites, t.line, n.String(), fmt.Sprintf("the constraint builds an index, and nobody can read or write %s until it is built", n),
			"PostgreSQL has no other way to build it: add it while the table is small, and allow it then")
	case "foreign":
		if !notValid {
			l.add(constraintNotValid, t.line, n.String(),
				fmt.Sprintf("all rows of %s are read to see whether they satisfy the foreign key, and nobody can write to either table meanwhile", n),
				"add it NOT VALID, and VALIDATE CONSTRAINT in a later file")
		}
		return false
	case "check":
		if expr := c.group(); len(expr) == 4 && expr[0].name != "" && equal(expr[1:], "is", "not", "null") {
			isNotNull(expr[0].name)
		}
		if !notValid {
			l.add(constraintNotValid, t.line, n.String(),
				fmt.Sprintf("all rows of %s are read to see whether they satisfy the constraint, and nobody can use the table meanwhile", n),
				"add it NOT VALID, and VALIDATE CONSTRAINT in a later file")
		}
	case "not": // NOT NULL column
		c.accept("null")
		if !notValid {
			l.addNotNull(t, n, c.peek().name)
		}
		isNotNull(c.peek().name)
	}
	return true
}

func (l *linter) addNotNull(t token, n name, column string) {
	l.add(lockBlocksReads, t.line, n.String()+"."+column,
		fmt.Sprintf("all rows of %s are read to see whether %s is not null, and nobody can use the table meanwhile", n, column),
		fmt.Sprintf("ADD CONSTRAINT ... CHECK (%s IS NOT NULL) NOT VALID, VALIDATE CONSTRAINT in a later file, then SET NOT NULL, which reads nothing", column))
}

// alterColumn checks ALTER COLUMN. c is at the column.
func (l *linter) alterColumn(t token, n name, key string, c cursor) {
	column := c.name().last()
	object := n.String() + "." + column
	tab := l.table(key)
	switch {
	case c.accept("set", "not", "null"):
		for _, validated := range tab.notNull[column] {
			if validated {
				return
			}
		}
		l.addNotNull(t, n, column)
	case c.accept("set", "expression"):
		l.addLock(t, object, fmt.Sprintf("SET EXPRESSION computes the column for every row: %s is written anew, and nobody can read it meanwhile", n),
			"add another column, and drop this one in a later release")
	case c.accept("type"), c.accept("set", "data", "type"):
		to := readType(&c)
		using := false
		if i := find(c, "using"); i >= 0 {
			using = !isCast(c[i+1:], column)
		}
		from, known := tab.columns[column]
		if l.rewrites(from, known, to, using) {
			l.addLock(t, object, fmt.Sprintf("another type writes %s anew, and nobody can read it meanwhile", n),
				"add a column of the new type, write both, copy the values in portions, and drop the old one in a later release")
		}
		tab.columns[column] = to
	}
}

// isCast reports whether an expression is the column, or a cast of it.
func isCast(ts []token, column string) bool {
	ts = slices.DeleteFunc(slices.Clone(ts), func(t token) bool { return t.text == "(" || t.text == ")" })
	return len(ts) > 0 && ts[0].name == column && (len(ts) == 1 || ts[1].text == ":") &&
		!slices.ContainsFunc(ts[1:], func(t token) bool { return t.name == "" && strings.ContainsAny(t.text, "+-*/|&#%<>=~!^'") })
}

// typ is a data type.
type typ struct {
	base string // by its short name, with [] for an array
	mods []int
}

// What may follow the type of a column.
var afterType = []string{
	"default", "not", "null", "check", "references", "unique", "primary", "constraint", "generated", "collate", "storage", "compression",
	"using", "deferrable", "initially", "options",
}

var typeNames = map[string]string{
	"int": "integer", "int4": "integer", "int8": "bigint", "int2": "smallint", "bool": "boolean", "character varying": "varchar",
	"decimal": "numeric", "dec": "numeric", "float": "double precision", "float8": "double precision", "float4": "real",
	"timestamp with time zone": "timestamptz", "timestamp without time zone": "timestamp", "time without time zone": "time",
	"time with time zone": "timetz", "character": "char", "bpchar": "char", "serial4": "serial", "serial8": "bigserial", "serial2": "smallserial",
}

// Types whose values PostgreSQL keeps in a form that no other type has, so that a column that becomes one is written anew.
var scalars = []string{
	"smallint", "integer", "bigint", "real", "double precision", "boolean", "uuid", "json", "jsonb", "date", "bytea",
}

var serials = map[string]string{"serial": "integer", "bigserial": "bigint", "smallserial": "smallint"}

// Types of PostgreSQL's own that a column can have been of before.
var builtin = slices.Concat(scalars, []string{
	"text", "varchar", "char", "numeric", "timestamp", "timestamptz", "time", "timetz", "interval", "money",
})

// readType passes over a type, and returns it.
func readType(c *cursor) (t typ) {
	var words []string
	array := ""
	for first := true; len(*c) > 0; first = false {
		switch p := c.peek(); {
		case p.text == "(":
			for _, part := range split(c.group(), ",") {
				if len(part) == 1 {
					if n, err := strconv.Atoi(part[0].text); err == nil {
						t.mods = append(t.mods, n)
					}
				}
			}
		case p.text == "[" || p.text == "]":
			array = "[]"
			c.next()
		case p.name == "" && p.text != "." || !first && p.is(afterType...):
			if p.text == ":" || p.quoted || array == "[]" && p.text != "" && p.name == "" && p.text[0] >= '0' && p.text[0] <= '9' {
				c.next() // the length of an array
				continue
			}
			t.base = typeName(words) + array
			return t
		default:
			words = append(words, c.next().name)
		}
	}
	t.base = typeName(words) + array
	return t
}

func typeName(words []string) string {
	s := strings.ReplaceAll(strings.Join(words, " "), " . ", ".")
	s = strings.TrimPrefix(s, "pg_catalog.")
	if short, ok := typeNames[s]; ok {
		return short
	}
	return s
}

// rewrites reports whether a change of a column's type is sure to write the table anew. using says that its values are
// computed, and not just cast.
func (l *linter) rewrites(from typ, known bool, to typ, using bool) bool {
	if base, ok := serials[from.base]; ok {
		from.base = base
	}
	known = known && slices.Contains(builtin, from.base)
	switch {
	case using:
		return true
	case known && from.base == to.base:
		return narrower(from, to)
	case slices.Contains(scalars, to.base):
		return true
	case !known:
		return false
	}
	switch to.base {
	case "text":
		return from.base != "varchar"
	case "varchar":
		return from.base != "text" || len(to.mods) > 0
	case "char", "numeric", "time", "timetz", "interval", "money":
		return true
	case "timestamp", "timestamptz": // from one to the other it depends on the time zone
		return from.base != "timestamp" && from.base != "timestamptz"
	}
	return l.enums[to.base]
}

// narrower reports whether of two forms of a type the second one has no room for each value of the first.
func narrower(from, to typ) bool {
	switch {
	case slices.Equal(from.mods, to.mods) || len(to.mods) == 0:
		return from.base == "char" && len(from.mods) != len(to.mods)
	case from.base == "char":
		return true
	case len(from.mods) == 0:
		switch from.base {
		case "timestamp", "timestamptz", "time", "timetz", "interval":
			return to.mods[0] < 6
		}
		return true
	case from.base == "numeric":
		return to.mods[0] < from.mods[0] || scale(from.mods) != scale(to.mods)
	}
	return to.mods[0] < from.mods[0]
}

// scale returns the scale of a numeric type.
func scale(mods []int) int {
	if len(mods) < 2 {
		return 0
	}
	return mods[1]
}

// columnDefault returns the expression after DEFAULT in the definition of a column.
func columnDefault(c cursor) (expr []token, ok bool) {
	i := find(c, "default")
	if i < 0 {
		return nil, false
	}
	expr = c[i+1:]
	for j, t := range expr {
		if j > 0 && t.depth == expr[0].depth && t.is(afterType...) {
			return expr[:j], true
		}
	}
	return expr, true
}

// Functions whose value differs from row to row.
var volatileFunctions = []string{
	"random", "random_normal", "gen_random_uuid", "uuidv4", "uuidv7", "uuid_generate_v1", "uuid_generate_v1mc", "uuid_generate_v4",
	"gen_random_bytes", "gen_salt", "clock_timestamp", "timeofday", "nextval",
}

// volatile returns the volatile function that an expression calls, "" where it calls none that is known.
func volatile(expr []token) string {
	for i, t := range expr {
		if t.is(volatileFunctions...) && at(expr, i+1).text == "(" {
			return t.word
		}
	}
	return ""
}
