package lint

import (
	"fmt"
	"strings"
)

// checkSettings finds what changes search_path, and what stays on a connection that tenants share.
func (l *linter) checkSettings(ts []token, bs []body) {
	definer := has(ts, "security", "definer")
	c := cursor(ts)
	if create := cursor(ts); l.tenant && (routine(&create, "create") || routine(&c, "alter")) {
		for i, t := range ts {
			if t.depth == 0 && t.is("set") && at(ts, i+1).name == "search_path" && !harmlessPath(ts[i+2:]) {
				reason := "the function looks for tables in the schemas that are named here, for every tenant, and not in the schema of the tenant that calls it"
				if at(ts, i+2).is("from") {
					reason = "FROM CURRENT writes the name of the tenant's schema into the function: after a rename, and in a clone, it names another one"
				}
				l.add(searchPath, t.line, "", reason, pathRemedy(definer))
			}
		}
	}
	l.checkSetting(ts, false, definer)
	for _, b := range bs {
		l.checkSetting(b.tokens, true, definer)
	}
}

func pathRemedy(definer bool) string {
	if definer {
		return "bind the names when the function is made: LANGUAGE sql with a body in BEGIN ATOMIC ... END; SET search_path = pg_catalog, pg_temp is right with it"
	}
	return "leave it out: the function then has the search_path of its caller, and so of the caller's tenant"
}

// harmlessPath reports whether the value of search_path has no schema in which there are tables to mistake.
func harmlessPath(ts []token) bool {
	if !(at(ts, 0).text == "=" || at(ts, 0).is("to")) {
		return false
	}
	for i := 1; ; i += 2 {
		t := at(ts, i)
		for part := range strings.SplitSeq(t.name+t.str, ",") {
			if part = strings.TrimSpace(part); part != "pg_catalog" && part != "pg_temp" && (part != "" || !t.quoted && t.text != `""`) {
				return false
			}
		}
		if at(ts, i+1).text != "," {
			return true
		}
	}
}

// checkSetting checks SET and set_config, and in bodies what else stays on a connection.
func (l *linter) checkSetting(ts []token, inBody, definer bool) {
	for i, t := range ts {
		first := i == 0 || inBody && (ts[i-1].text == ";" || ts[i-1].is("begin", "then", "else", "loop"))
		c := cursor(ts[i+1:])
		switch {
		case t.is("set") && first:
			scope := c.any("local", "session")
			setting, _ := nameAt(c, 0)
			switch {
			case scope == "" && c.peek().is("transaction", "constraints"), scope == "session" && c.peek().is("characteristics"):
			case len(setting) == 1 && (setting[0] == "search_path" || setting[0] == "schema") && l.tenant:
				l.addPath(t, inBody, definer)
			case scope != "local":
				l.addState(t, setting.String(), "SET stays on the connection, which other tenants use next", "write SET LOCAL, which ends with the transaction")
			}
		case t.is("set_config") && c.peek().text == "(":
			group := c.group()
			if len(group) == 0 {
				continue
			}
			switch args := split(group, ","); {
			case len(args[0]) == 0:
			case len(args[0]) == 1 && strings.EqualFold(args[0][0].str, "search_path") && l.tenant:
				l.addPath(t, inBody, definer)
			case len(args) == 3 && equal(args[2], "false"):
				l.addState(t, args[0][0].str, "set_config(..., false) stays on the connection, which other tenants use next",
					"pass true as its third argument: the setting ends with the transaction then")
			}
		case inBody && t.is("pg_advisory_lock", "pg_advisory_lock_shared") && c.peek().text == "(":
			l.addState(t, t.word, t.word+" holds its lock until the connection ends, which other tenants use next",
				"call "+strings.Replace(t.word, "advisory_lock", "advisory_xact_lock", 1)+", whose lock ends with the transaction")
		case inBody && t.is("create") && first && c.any("temp", "temporary") != "" && c.accept("table"):
			c.ifExists()
			n := c.name()
			if !has(split(c, ";")[0], "on", "commit", "drop") {
				l.addState(t, n.String(), fmt.Sprintf("the temporary table %s stays on the connection, and another tenant's statement finds it before its own table", n),
					"add ON COMMIT DROP")
			}
		}
	}
}

func (l *linter) addPath(t token, inBody, definer bool) {
	reason := "what comes after it in the file runs in other schemas than the tenant's"
	if inBody {
		reason = "it changes the search_path of the caller as well: what the caller does next in its transaction may reach another schema than its tenant's"
	}
	l.add(searchPath, t.line, "", reason, pathRemedy(definer))
}

func (l *linter) addState(t token, object, reason, remedy string) {
	l.add(sessionState, t.line, object, reason, remedy)
}

// checkValues finds the use of a value that was just added to an enum type.
func (l *linter) checkValues(ts []token, bs []body) {
	c := cursor(ts)
	switch {
	case c.accept("alter", "type"):
		typ := c.name()
		if c.accept("add", "value") {
			c.ifExists()
			if label := c.peek(); label.quoted {
				l.added[label.str] = addedValue{file: l.script.File, typ: typ.String(), line: label.line}
			}
		}
		return
	case c.accept("create", "type"), c.accept("comment"):
		return
	}
	l.checkValuesIn(ts)
	for _, b := range bs {
		if b.run || !b.plpgsql { // PL/pgSQL is not looked into before it runs
			l.checkValuesIn(b.tokens)
		}
	}
}

func (l *linter) checkValuesIn(ts []token) {
	for i, t := range ts {
		if t.text == ":" && at(ts, i+1).is("text") {
			return // it compares text
		}
	}
	for _, t := range ts {
		v, ok := l.added[t.str]
		if !t.quoted || !ok {
			continue
		}
		remedy := fmt.Sprintf("compare the text (status::text = '%s'), or keep the values in a text column with a CHECK", t.str)
		switch {
		case l.tenant && (v.file != l.script.File || l.script.NoTx):
			l.add(enumValueUsed, t.line, v.typ,
				fmt.Sprintf("%s adds '%s' to %s, and Provision runs all files in one transaction: before PostgreSQL 17 it fails for every new tenant (55P04)", v.file, t.str, v.typ),
				remedy+"; allow it where all servers have PostgreSQL 17 or newer")
		case l.tenant:
			l.add(enumValueUsed, t.line, v.typ,
				fmt.Sprintf("line %d adds '%s' to %s, and PostgreSQL lets nobody use it before that is committed (55P04)", v.line, t.str, v.typ),
				remedy+"; or move the use to a later file where all servers have PostgreSQL 17 or newer")
		case v.file == l.script.File && !l.script.NoTx:
			l.add(enumValueUsed, t.line, v.typ,
				fmt.Sprintf("line %d adds '%s' to %s, and PostgreSQL lets nobody use it before that is committed (55P04)", v.line, t.str, v.typ),
				"move the use to a later file")
		}
	}
}
