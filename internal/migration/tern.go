package migration

import (
	"fmt"
	"regexp"
	"strings"
	"text/template/parse"

	"github.com/pgtenancy/pgtenancy/internal/sqlsplit"
)

// ternSeparator is between the halves of a file of tern's, at its first place wherever that is.
const ternSeparator = "---- create above / drop below ----"

var (
	ternNoTx = regexp.MustCompile(`(?m)^---- tern: disable-tx ----\r?$`)

	// What was meant as the separator and is none would make the way down a part of the way up.
	ternAlmost = regexp.MustCompile(`(?mi)^[ \t]*--.*create\s+above\s*/\s*drop\s+below`)
)

// ternMark returns what of tern's there is in a file, "" for nothing.
func ternMark(path, source string) (string, error) {
	if strings.Contains(source, ternSeparator) {
		return ternSeparator, nil
	}
	if at := ternAlmost.FindStringIndex(source); at != nil {
		return "", &Error{File: path, Line: lineAt(source, at[0]), Msg: fmt.Sprintf("must be exactly %q for tern to read it", ternSeparator)}
	}
	return strings.TrimSpace(ternNoTx.FindString(source)), nil
}

// checkTemplate refuses templates. In a directory that has a mark of tern's they are all that tern would replace; in others {{ in
// a string or a comment can be anybody's, as in the text of a mail.
func (f *file) checkTemplate(isTern bool) error {
	at := -1
	if isTern {
		at = findTemplate(f.source)
	}
	if at < 0 {
		for tok := range sqlsplit.Tokens(f.source) {
			if strings.HasPrefix(f.source[tok.Offset:], "{{") {
				at = tok.Offset
				break
			}
		}
	}
	if at < 0 {
		return nil
	}
	return f.errorAt(at, "must not have a template, as tern's {{ ... }}: a migration must be the same everywhere. "+
		"Write what it stands for into the file, or use a Go function")
}

// findTemplate returns where the first action of a template is that tern would run, -1 where there is none. An array such as
// '{{1,2},{3,4}}' is none to the parser of templates either. What needs another action before it, as end and else do, is
// found by that one.
func findTemplate(source string) int {
	for at := 0; ; at += 2 {
		n := strings.Index(source[at:], "{{")
		if n < 0 {
			return -1
		}
		at += n
		end := strings.Index(source[at:], "}}")
		if end < 0 {
			return -1
		}
		action := source[at : at+end+2]
		for _, text := range []string{action, action + "{{end}}"} {
			tree := parse.New("")
			tree.Mode = parse.SkipFuncCheck
			if _, err := tree.Parse(text, "", "", map[string]*parse.Tree{}); err == nil {
				return at
			}
		}
	}
}
