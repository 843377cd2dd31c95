package lint

import (
	"slices"
	"strings"

	"github.com/pgtenancy/pgtenancy/internal/sqlsplit"
)

// token is one token of a statement or of a body in it.
type token struct {
	text   string
	word   string // in lower case, of what is not quoted
	name   string // as PostgreSQL keeps it, of words and quoted identifiers
	str    string // the text in a string
	quoted bool   // it is a string
	line   int
	depth  int // parentheses and brackets open before it
}

// is reports whether the token is one of the words.
func (t token) is(words ...string) bool { return t.word != "" && slices.Contains(words, t.word) }

// scan returns the tokens of sql, whose first line has the number line, and the allow comments between them.
func scan(sql string, line int) (ts []token, allows []allow) {
	depth, end := 0, 0
	between := func(to int) {
		gap := sql[end:to]
		allows = append(allows, parseAllows(gap, line)...)
		line += strings.Count(gap, "\n")
	}
	for tok := range sqlsplit.Tokens(sql) {
		between(tok.Offset)
		end = tok.Offset + len(tok.Text)
		if tok.Text == ")" || tok.Text == "]" {
			depth = max(depth-1, 0)
		}
		ts = append(ts, newToken(tok.Text, line, depth))
		if tok.Text == "(" || tok.Text == "[" {
			depth++
		}
		line += strings.Count(tok.Text, "\n")
	}
	between(len(sql))
	return ts, allows
}

func newToken(text string, line, depth int) token {
	t := token{text: text, line: line, depth: depth}
	open := strings.IndexAny(text, `'"`)
	switch c := text[0]; {
	case c == '$' && len(text) > 1 && strings.HasSuffix(text, "$"):
		n := strings.IndexByte(text[1:], '$') + 2
		t.quoted, t.str = true, text[n:len(text)-n]
	case open >= 0 && len(text) > open+1:
		quote := text[open : open+1]
		inner := strings.ReplaceAll(text[open+1:len(text)-1], quote+quote, quote)
		if quote == `"` {
			t.name = inner
		} else {
			t.quoted, t.str = true, inner
		}
	case c == '_' || 'a' <= c|0x20 && c|0x20 <= 'z' || c >= 0x80:
		t.word = strings.ToLower(text)
		t.name = t.word
	}
	return t
}

// at returns token i, an empty one where there is none.
func at(ts []token, i int) token {
	if i < 0 || i >= len(ts) {
		return token{}
	}
	return ts[i]
}

// cursor reads the tokens of a statement in their order.
type cursor []token

func (c *cursor) peek() token { return at(*c, 0) }

func (c *cursor) next() token {
	t := c.peek()
	if len(*c) > 0 {
		*c = (*c)[1:]
	}
	return t
}

// accept passes over the words where they are next.
func (c *cursor) accept(words ...string) bool {
	for i, w := range words {
		if at(*c, i).word != w {
			return false
		}
	}
	*c = (*c)[len(words):]
	return true
}

// any passes over the next token where it is one of the words, and returns it.
func (c *cursor) any(words ...string) string {
	if t := c.peek(); t.is(words...) {
		c.next()
		return t.word
	}
	return ""
}

func (c *cursor) ifExists() {
	_ = c.accept("if", "not", "exists") || c.accept("if", "exists")
}

// group passes over what is in the parentheses that are next, and returns it.
func (c *cursor) group() []token {
	open := c.peek()
	if open.text != "(" {
		return nil
	}
	for i, t := range *c {
		if i > 0 && t.text == ")" && t.depth == open.depth {
			inner := (*c)[1:i]
			*c = (*c)[i+1:]
			return inner
		}
	}
	inner := (*c)[1:]
	*c = nil
	return inner
}

// name is a name with what qualifies it.
type name []string

func (n name) String() string { return strings.Join(n, ".") }

// schema is what qualifies the name, "" where nothing does.
func (n name) schema() string {
	if len(n) < 2 {
		return ""
	}
	return n[len(n)-2]
}

func (n name) last() string {
	if len(n) == 0 {
		return ""
	}
	return n[len(n)-1]
}

// nameAt returns the name that begins at token i, and how many tokens it has.
func nameAt(ts []token, i int) (n name, tokens int) {
	if at(ts, i).name == "" {
		return nil, 0
	}
	n, tokens = name{ts[i].name}, 1
	for at(ts, i+tokens).text == "." && at(ts, i+tokens+1).name != "" {
		n = append(n, ts[i+tokens+1].name)
		tokens += 2
	}
	return n, tokens
}

// name passes over the name that is next, and returns it.
func (c *cursor) name() name {
	n, tokens := nameAt(*c, 0)
	*c = (*c)[tokens:]
	return n
}

// split cuts tokens at what separates them outside of parentheses.
func split(ts []token, separator string) [][]token {
	var parts [][]token
	start := 0
	for i, t := range ts {
		if t.text == separator && t.depth == ts[0].depth {
			parts = append(parts, ts[start:i])
			start = i + 1
		}
	}
	return append(parts, ts[start:])
}

// find returns where the words are next to each other outside of parentheses, or -1.
func find(ts []token, words ...string) int {
	for i, t := range ts {
		if t.depth != ts[0].depth || t.word != words[0] {
			continue
		}
		rest := cursor(ts[i:])
		if rest.accept(words...) {
			return i
		}
	}
	return -1
}

func has(ts []token, words ...string) bool { return find(ts, words...) >= 0 }

// equal reports whether the tokens are these words and signs.
func equal(ts []token, texts ...string) bool {
	return slices.EqualFunc(ts, texts, func(t token, s string) bool {
		if t.name != "" {
			return t.name == s
		}
		return t.text == s
	})
}

// body is SQL or PL/pgSQL text in a string of a statement.
type body struct {
	tokens  []token
	plpgsql bool
	run     bool // by the statement itself: DO, and not the making of a function
}

// bodies returns the function's body in a statement, and what it builds statements of: the strings after EXECUTE.
func bodies(ts []token) (bs []body, allows []allow) {
	c := cursor(ts)
	b := body{plpgsql: true}
	text := -1
	switch {
	case c.accept("do"):
		b.run = true
		text = slices.IndexFunc(ts, func(t token) bool { return t.quoted })
	case routine(&c, "create"):
		b.plpgsql = false
		for i, t := range ts {
			if t.depth == 0 && t.is("as") && at(ts, i+1).quoted {
				text = i + 1
			}
		}
	}
	if text < 0 {
		return nil, nil
	}
	if i := find(ts, "language"); i >= 0 && i+1 < len(ts) {
		language := strings.ToLower(ts[i+1].name + ts[i+1].str)
		if language != "sql" && language != "plpgsql" {
			return nil, nil
		}
		b.plpgsql = language == "plpgsql"
	}
	b.tokens, allows = scan(ts[text].str, ts[text].line)
	bs = append(bs, b)
	for i, t := range b.tokens {
		if !b.plpgsql || !t.is("execute") {
			continue
		}
		rest := cursor(b.tokens[i+1:])
		if rest.accept("format") {
			rest.next()
		}
		if s := rest.peek(); s.quoted {
			dynamic, more := scan(s.str, s.line)
			bs, allows = append(bs, body{tokens: dynamic, run: b.run}), append(allows, more...)
		}
	}
	return bs, allows
}

// routine passes over the beginning of CREATE or ALTER of a function or procedure.
func routine(c *cursor, verb string) bool {
	if !c.accept(verb) {
		return false
	}
	c.accept("or", "replace")
	return c.any("function", "procedure", "routine") != ""
}

// statements cuts a body at its semicolons, and the words of PL/pgSQL off that are before a statement of SQL.
func (b *body) statements() [][]token {
	var sts [][]token
	for _, st := range split(b.tokens, ";") {
		if b.plpgsql {
			for i, t := range slices.Backward(st) {
				if t.depth == 0 && t.is("begin", "then", "else", "loop") {
					st = st[i+1:]
					break
				}
			}
		}
		if len(st) > 0 {
			sts = append(sts, st)
		}
	}
	return sts
}
