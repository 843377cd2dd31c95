package catalog

import (
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/pgtenancy/pgtenancy/internal/ident"
)

// What stands for a tenant's own names in a text that is compared.
const (
	ownSchema = "$schema"
	ownRole   = "$role"
)

// names finds a tenant's own names in the text of definitions.
type names struct {
	Schema
	forms []form
}

// form is one way to write a name.
type form struct {
	text   string
	quoted bool
	mark   string
}

func newNames(s Schema) *names {
	n := &names{Schema: s}
	n.add(s.Name, ownSchema)
	if s.Role != "" && s.Role != s.Name {
		n.add(s.Role, ownRole)
	}
	return n
}

func (n *names) add(name, mark string) {
	for i, f := range []string{ident.Quote(name), name} {
		for _, escape := range []func(string) string{
			func(s string) string { return s },
			func(s string) string { return strings.ReplaceAll(s, `'`, `''`) }, // in a string literal
			func(s string) string { return strings.ReplaceAll(strings.ReplaceAll(s, `'`, `''`), `\`, `\\`) },
		} {
			if f := (form{escape(f), i == 0, mark}); !slices.Contains(n.forms, f) {
				n.forms = append(n.forms, f)
			}
		}
	}
}

// at returns the length of the name of ours that text has at i, as a token of its own, and what stands for it. It is 0
// where there is none.
func (n *names) at(text string, i int) (length int, mark string) {
	for _, f := range n.forms {
		if len(f.text) > length && strings.HasPrefix(text[i:], f.text) && isToken(text, i, i+len(f.text), f.quoted) {
			length, mark = len(f.text), f.mark
		}
	}
	return length, mark
}

// next returns where the first name of ours is from i on. end is 0 where there is none.
func (n *names) next(text string, i int) (start, end int, mark string) {
	start = len(text)
	for _, f := range n.forms {
		for from := i; from < start; {
			at := strings.Index(text[from:], f.text)
			if at < 0 || from+at > start {
				break
			}
			at += from
			if isToken(text, at, at+len(f.text), f.quoted) && (at < start || at+len(f.text) > end) {
				start, end, mark = at, at+len(f.text), f.mark
				break
			}
			from = at + 1
		}
	}
	return start, end, mark
}

// isToken tells whether the name at text[start:end] is not part of a longer one.
func isToken(text string, start, end int, quoted bool) bool {
	if quoted {
		return (start == 0 || text[start-1] != '"') && (end == len(text) || text[end] != '"')
	}
	return (start == 0 || !isName(text[start-1])) && (end == len(text) || !isName(text[end]))
}

// isName reports whether a name may have c in it, or a quote that it has around it.
func isName(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '$' || c == '"' || c >= utf8.RuneSelf
}

// normalize appends text to dst with $schema and $role in the place of our own names. Where short is set, "$schema." is left
// out, as a person would.
func (n *names) normalize(dst []byte, text string, short bool) []byte {
	for i := 0; ; {
		start, end, mark := n.next(text, i)
		if end == 0 {
			return append(dst, text[i:]...)
		}
		dst = append(dst, text[i:start]...)
		if i = end; short && mark == ownSchema && end < len(text) && text[end] == '.' {
			i++
			continue
		}
		dst = append(dst, mark...)
	}
}

// same reports whether two texts are the same but for each having its own names.
//
// A schema may be called as a column, an alias or a word of SQL is. Then its text has the name also where it does not mean the
// schema, and where the other text has it, too. mayBeA says whether to believe that of a's name, and mayBeB of b's: otherwise
// the other text speaks of this schema, which is not its own.
func same(a string, na *names, mayBeA bool, b string, nb *names, mayBeB bool) bool {
	i, j := 0, 0
	for i < len(a) && j < len(b) {
		la, ma := na.at(a, i)
		lb, mb := nb.at(b, j)
		switch {
		case la > 0 && lb > 0 && ma == mb:
			i, j = i+la, j+lb
		case la > 0 && strings.HasPrefix(b[j:], a[i:i+la]):
			if !mayBeA {
				return false
			}
			i, j = i+la, j+la
		case lb > 0 && strings.HasPrefix(a[i:], b[j:j+lb]):
			if !mayBeB {
				return false
			}
			i, j = i+lb, j+lb
		case a[i] == b[j]:
			i, j = i+1, j+1
		default:
			return false
		}
	}
	return i == len(a) && j == len(b)
}

// standsAlone reports whether text has one of the names where it is neither a schema's, before a dot, nor a literal.
func (n *names) standsAlone(text string) bool {
	for i := 0; ; {
		start, end, _ := n.next(text, i)
		if end == 0 {
			return false
		}
		dot := end < len(text) && text[end] == '.'
		literal := start > 0 && text[start-1] == '\'' && end < len(text) && text[end] == '\''
		if !dot && !literal {
			return true
		}
		i = end
	}
}
