package migration

import (
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/pgtenancy/pgtenancy/internal/ident"
	"github.com/pgtenancy/pgtenancy/internal/sqlsplit"
)

// parser reads a statement token by token.
type parser struct {
	sql  string
	toks []sqlsplit.Token
	pos  int // of the next token
}

func newParser(sql string) *parser {
	return &parser{sql: sql, toks: slices.Collect(sqlsplit.Tokens(sql))}
}

func (p *parser) end() bool { return p.pos >= len(p.toks) }

// is tells whether the next token is a keyword or an operator.
func (p *parser) is(word string) bool { return !p.end() && p.toks[p.pos].Is(word) }

// has tells whether a keyword is still to come.
func (p *parser) has(word string) bool {
	return !p.end() && slices.ContainsFunc(p.toks[p.pos:], func(t sqlsplit.Token) bool { return t.Is(word) })
}

// accept passes over words where they all come next.
func (p *parser) accept(words ...string) bool {
	start := p.pos
	for _, w := range words {
		if !p.is(w) {
			p.pos = start
			return false
		}
		p.pos++
	}
	return true
}

// name passes over an identifier and returns it as PostgreSQL keeps it. ok is false where there is none, and for U&"...".
func (p *parser) name() (name string, ok bool) {
	if p.end() {
		return "", false
	}
	name = p.toks[p.pos].Text
	switch c := name[0]; {
	case c == '"':
		name = strings.ReplaceAll(name[1:len(name)-1], `""`, `"`)
	case 'a' <= c|0x20 && c|0x20 <= 'z', c == '_', c >= utf8.RuneSelf:
		if strings.ContainsAny(name, `'"`) { // a string or a name with a prefix
			return "", false
		}
		name = fold(name)
	default:
		return "", false
	}
	p.pos++
	if len(name) > ident.MaxBytes {
		n := ident.MaxBytes
		for n > 0 && !utf8.RuneStart(name[n]) {
			n--
		}
		name = name[:n]
	}
	return name, name != ""
}

// fold returns a name in lower case as PostgreSQL does it, which leaves alone what is not ASCII in UTF-8.
func fold(name string) string {
	b := []byte(name)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c | 0x20
		}
	}
	return string(b)
}

// qualified passes over a name and the schema, and database, before it.
func (p *parser) qualified() (schema, name string, ok bool) {
	for name, ok = p.name(); ok && p.accept("."); {
		schema = name
		name, ok = p.name()
	}
	return schema, name, ok
}

// without returns the statement without the text of the tokens from start up to end.
func (p *parser) without(start, end int) string {
	last := p.toks[end-1]
	return p.sql[:p.toks[start].Offset] + p.sql[last.Offset+len(last.Text):]
}
