// Package catalog describes schemas from PostgreSQL's catalogs, many with one query, and tells which of them are alike.
package catalog

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgtenancy/pgtenancy/internal/wire"
)

// Schema is what to describe. Its own names mean the same in every schema.
type Schema struct {
	Name string
	Role string // the role of the schema's own, "" where there is none
}

// Shape is what a schema is like. Two schemas whose shapes of one Catalog are equal are alike. The zero Shape is that of a schema
// that does not exist.
type Shape struct{ main, late sum }

type sum [sha256.Size]byte

// Catalog keeps the descriptions of schemas, of those that are alike only one. It is not safe for concurrent use.
type Catalog struct {
	lines map[sum][]line
	count map[sum]int // of the schemas with these lines
	buf   []byte
}

// New returns an empty Catalog.
func New() *Catalog { return &Catalog{lines: map[sum][]line{}, count: map[sum]int{}} }

// line is one property of an object.
type line struct {
	kind, object string
	parent       string // the object that it goes with, "" where there is none
	part         bool   // it cannot be without the parent: a column and a grant, not an index
	inherits     string // the table that a column is inherited from
	text         string // as PostgreSQL has it
	names        *names // those of the schema that it was read from
	alone        bool   // no other schema has its lines
}

// same reports whether two lines say the same. Where several schemas have the lines of one of them, each with its own name, that
// is a schema's name for certain. Where none has, nor those of the other, it is taken for one unless it looks otherwise.
func (l *line) same(m *line) bool {
	mayBe := func(l, m *line) bool { return l.alone && (!m.alone || l.names.standsAlone(m.text)) }
	return same(l.text, l.names, mayBe(l, m), m.text, m.names, mayBe(m, l))
}

type key struct{ kind, object string }

func (l *line) key() key { return key{l.kind, l.object} }

// short returns the text as a person would write it, long with a mark for each name of the schema's.
func (l *line) short() string { return string(l.names.normalize(nil, l.text, true)) }
func (l *line) long() string  { return string(l.names.normalize(nil, l.text, false)) }

func (l *line) compare(m *line) int {
	return cmp.Or(strings.Compare(l.kind, m.kind), strings.Compare(l.object, m.object))
}

// Difference is what one schema has otherwise than another.
type Difference struct {
	Kind, Object string
	Want, Have   string // "" where there is no such object
}

// conn is a connection, or a transaction on it.
type conn interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// maxFailures is how often in a row Read may fail without having got further.
const maxFailures = 10

// Read describes schemas in transactions of its own. It reads again what somebody else is changing meanwhile, and fails where
// that does not end.
func (c *Catalog) Read(ctx context.Context, conn conn, schemas []Schema) ([]Shape, error) {
	shapes := make([]Shape, len(schemas))
	todo := make([]int, len(schemas))
	for i := range todo {
		todo[i] = i
	}
	for failures := 0; len(todo) > 0; {
		left, err := c.try(ctx, conn, schemas, todo, shapes, failures)
		switch {
		case err == nil:
		case !transient(err):
			return nil, fmt.Errorf("read the catalogs: %w", err)
		case len(left) < len(todo):
			failures = 1
		default:
			failures++
		}
		if failures > maxFailures {
			return nil, fmt.Errorf("read the catalogs: schema %q is being changed all the time: %w", schemas[left[len(left)-1]].Name, err)
		}
		todo = left
		if len(todo) == 0 {
			break
		}
		select {
		case <-time.After(time.Duration(failures) * 50 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return shapes, nil
}

// transient reports whether err is that of an object that was dropped between the look at the catalogs and the look at the
// object, or that is locked.
func transient(err error) bool {
	var pgErr *pgconn.PgError
	return errors.Is(err, errGone) || errors.As(err, &pgErr) && slices.Contains([]string{
		"XX000",                                     // internal_error: cache lookup failed, could not open relation with OID
		"42P01", "42703", "42704", "42883", "3F000", // undefined_table, _column, _object, _function, invalid_schema_name
		"55P03", "40P01", // lock_not_available, deadlock_detected
		"53200", // out_of_memory: also the lock table's
	}, pgErr.Code)
}

var errGone = errors.New("an object was dropped meanwhile")

// try is one attempt of Read's. It returns what is left to do.
func (c *Catalog) try(ctx context.Context, conn conn, schemas []Schema, todo []int, shapes []Shape, failures int) (left []int, err error) {
	if _, err := conn.Exec(ctx, "begin isolation level repeatable read read only"); err != nil {
		return todo, err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), wire.CleanupTimeout)
		defer cancel()
		if _, endErr := conn.Exec(ctx, "rollback"); err == nil && endErr != nil {
			err = endErr
		}
	}()
	batch := make([]Schema, len(todo))
	for i, t := range todo {
		batch[i] = schemas[t]
	}
	got, done, err := c.read(ctx, conn, batch, failures)
	for i, t := range todo {
		if done[i] {
			shapes[t] = got[i]
		} else {
			left = append(left, t)
		}
	}
	if len(left) > 1 && err != nil {
		left = append(left[1:], left[0]) // the one that failed may fail for a while
	}
	return left, err
}

// ReadTx describes schemas in a transaction that is open, and leaves it as it was, unless it fails.
func (c *Catalog) ReadTx(ctx context.Context, tx conn, schemas []Schema) ([]Shape, error) {
	if _, err := tx.Exec(ctx, "savepoint catalog"); err != nil {
		return nil, err
	}
	shapes, _, err := c.read(ctx, tx, schemas, 0)
	if err != nil {
		return nil, fmt.Errorf("read the catalogs: %w", err)
	}
	if _, err := tx.Exec(ctx, "rollback to savepoint catalog"); err != nil {
		return nil, err
	}
	_, err = tx.Exec(ctx, "release savepoint catalog")
	return shapes, err
}

// late is a line whose text is asked for later.
type late struct {
	line
	schema int // its place in what is read
	fn     string
	oid    int64
	locks  int // that asking takes
}

// read describes schemas in a transaction, whose settings it changes. done says of which schemas the shape is right, all where
// there is no error.
func (c *Catalog) read(ctx context.Context, tx conn, schemas []Schema, failures int) (shapes []Shape, done []bool, err error) {
	shapes, done = make([]Shape, len(schemas)), make([]bool, len(schemas))
	var room int                       // for locks
	rows, _ := tx.Query(ctx, settings) // the error is in rows
	if _, err := pgx.ForEachRow(rows, []any{&room, nil}, func() error { return nil }); err != nil {
		return shapes, done, err
	}
	if _, err := tx.Exec(ctx, "savepoint catalog_page"); err != nil {
		return shapes, done, err
	}
	lates, err := c.readMain(ctx, tx, schemas, shapes, done)
	if err != nil {
		if _, err := tx.Exec(ctx, "rollback to savepoint catalog_page"); err != nil {
			clear(done)
			return shapes, done, err
		}
		lates = slices.DeleteFunc(lates, func(l late) bool { return !done[l.schema] })
	}
	return shapes, done, cmp.Or(c.readLate(ctx, tx, lates, room>>(2*failures), shapes, done), err)
}

// readMain reads all lines but the late ones. It holds those of one schema at a time.
func (c *Catalog) readMain(ctx context.Context, tx conn, schemas []Schema, shapes []Shape, done []bool) (lates []late, err error) {
	list := make([]string, len(schemas))
	for i, s := range schemas {
		list[i] = s.Name
	}
	var own []line
	var columns []column
	var n *names
	at, gone, someGone := -1, false, false
	flush := func(next int) {
		for i := max(at, 0); i < next; i++ {
			done[i] = i > at || !gone // also those between, which do not exist
		}
		if at >= 0 && !gone {
			shapes[at].main = c.keep(append(own, columnOrder(columns, n)...))
		}
		own, columns, at, gone = own[:0], columns[:0], next, false
	}
	rows, _ := tx.Query(ctx, query, list) // the error is in rows
	var ord, num, locks int
	var kind, name, args, sub, role, parent, fn string
	var text *string
	var oid int64
	_, err = pgx.ForEachRow(rows, []any{&ord, &kind, &name, &args, &sub, &role, &parent, &num, &fn, &oid, &locks, &text}, func() error {
		if ord--; ord != at {
			flush(ord)
			n = newNames(schemas[ord])
		}
		if text == nil {
			gone, someGone = true, true
			return nil
		}
		l := line{kind: kind, parent: parent, text: *text, names: n}
		if kind == columnKind && role != "" {
			role, l.inherits = "", role
		}
		l.object = n.object(name, args, sub, role)
		if parent == "" && (sub != "" || kind == ownerKind || kind == grantKind || kind == partitionKind) {
			l.parent, l.part = strings.TrimPrefix(name, "type ")+n.types(args), true
		}
		if num > 0 {
			columns = append(columns, column{name, l.inherits, sub, num})
		}
		if locks >= 0 {
			lates = append(lates, late{l, ord, fn, oid, locks + 1})
		} else {
			own = append(own, l)
		}
		return nil
	})
	if err == nil {
		flush(len(schemas))
		if someGone {
			err = errGone
		}
	}
	return lates, err
}

// object returns the name of an object.
func (n *names) object(name, args, sub, role string) string {
	var b strings.Builder
	b.WriteString(name)
	if args != "" {
		b.WriteString(n.types(args))
	}
	if sub != "" {
		b.WriteString("." + sub)
	}
	switch role {
	case "":
	case n.Role:
		b.WriteString(" to " + ownRole)
	case n.Name:
		b.WriteString(" to " + ownSchema)
	default:
		b.WriteString(" to " + role)
	}
	return b.String()
}

// types returns a list of types without our schema's name before them.
func (n *names) types(args string) string {
	var b strings.Builder
	for i := 0; ; {
		start, end, mark := n.next(args, i)
		if end == 0 {
			b.WriteString(args[i:])
			return b.String()
		}
		if mark == ownSchema && end < len(args) && args[end] == '.' {
			b.WriteString(args[i:start])
			i = end + 1
		} else {
			b.WriteString(args[i:end])
			i = end
		}
	}
}

// column is one of a table's. num grows with its place, and has gaps where columns were dropped.
type column struct {
	table, inherits, name string
	num                   int
}

// columnOrder returns for each table a line with the order of its columns.
func columnOrder(columns []column, n *names) (lines []line) {
	slices.SortFunc(columns, func(a, b column) int { return cmp.Or(strings.Compare(a.table, b.table), cmp.Compare(a.num, b.num)) })
	for len(columns) > 0 {
		table, inherits := columns[0].table, ""
		var list []string
		for len(columns) > 0 && columns[0].table == table {
			list = append(list, columns[0].name)
			inherits = cmp.Or(inherits, columns[0].inherits)
			columns = columns[1:]
		}
		lines = append(lines, line{
			kind: columnOrderKind, object: table, parent: table, part: true, inherits: inherits, text: strings.Join(list, ", "), names: n,
		})
	}
	return lines
}

// The kinds that are treated specially.
const (
	schemaKind      = "schema"
	columnKind      = "column"
	ownerKind       = "owner"
	grantKind       = "grant"
	partitionKind   = "partition"
	columnOrderKind = "column order"
)

// keep returns the sum of lines, and keeps them where they are the first with it.
func (c *Catalog) keep(lines []line) (s sum) {
	slices.SortFunc(lines, func(a, b line) int { return a.compare(&b) })
	h := sha256.New()
	for i := range lines {
		l := &lines[i]
		if i > 0 && l.compare(&lines[i-1]) == 0 && l.text == lines[i-1].text {
			continue
		}
		c.buf = append(append(append(append(c.buf[:0], l.kind...), 0), l.object...), 0)
		c.buf = append(l.names.normalize(c.buf, l.text, false), 0)
		h.Write(c.buf)
	}
	h.Sum(s[:0])
	c.count[s]++
	if _, ok := c.lines[s]; !ok {
		c.lines[s] = slices.Clone(lines)
	}
	return s
}

// readLate asks for the late lines, page by page, with no more locks in each than there is room for.
func (c *Catalog) readLate(ctx context.Context, tx conn, lates []late, room int, shapes []Shape, done []bool) (err error) {
	var own []line
	flush := func(schema int) {
		if len(own) > 0 && done[schema] {
			shapes[schema].late = c.keep(own)
		}
		own = own[:0]
	}
	for start := 0; start < len(lates); {
		end, locks := start, 0
		var fns []string
		var oids []int64
		for end < len(lates) && (end == start || locks+lates[end].locks <= room) {
			fns, oids = append(fns, lates[end].fn), append(oids, lates[end].oid)
			locks += lates[end].locks
			end++
		}
		rows, _ := tx.Query(ctx, definitions, fns, oids) // the error is in rows
		texts, pageErr := pgx.CollectRows(rows, pgx.RowTo[*string])
		if _, err := tx.Exec(ctx, "rollback to savepoint catalog_page"); err != nil {
			clear(done)
			return err
		}
		for i := start; i < end; i++ {
			l := &lates[i]
			if i > 0 && lates[i-1].schema != l.schema {
				flush(lates[i-1].schema)
			}
			switch {
			case pageErr != nil:
				done[l.schema], err = false, pageErr
			case texts[i-start] == nil:
				done[l.schema], err = false, errGone
			default:
				l.text += *texts[i-start]
				own = append(own, l.line)
			}
			l.text = ""
		}
		if pageErr != nil && !transient(pageErr) {
			return pageErr
		}
		start = end
	}
	if len(lates) > 0 {
		flush(lates[len(lates)-1].schema)
	}
	return err
}

// lines are those of one schema.
type lines []line

func (c *Catalog) all(s Shape) (all lines) {
	for _, part := range []sum{s.main, s.late} {
		for _, l := range c.lines[part] {
			l.alone = c.count[part] == 1
			all = append(all, l)
		}
	}
	return all
}

func (ls lines) index() map[key]*line {
	m := make(map[key]*line, len(ls))
	for i := range ls {
		m[ls[i].key()] = &ls[i]
	}
	return m
}

// owner returns the owner of the schema.
func (ls lines) owner() string {
	for i := range ls {
		if ls[i].kind == schemaKind {
			return strings.TrimPrefix(ls[i].short(), "owner ")
		}
	}
	return ""
}

// both iterates over the keys of two maps.
func both(a, b map[key]*line) iter.Seq[key] {
	return func(yield func(key) bool) {
		for k := range a {
			if !yield(k) {
				return
			}
		}
		for k := range b {
			if a[k] == nil && !yield(k) {
				return
			}
		}
	}
}

// sameOrder reports whether the columns that two tables have in common are in the same order.
func sameOrder(a, b string) bool {
	as, bs := strings.Split(a, ", "), strings.Split(b, ", ")
	common := func(of, other []string) []string {
		return slices.DeleteFunc(slices.Clone(of), func(s string) bool { return !slices.Contains(other, s) })
	}
	return slices.Equal(common(as, bs), common(bs, as))
}

// Diff returns what a schema of shape have has otherwise than one of shape want, ordered by object. There is none also where
// the shapes are not equal only because a schema is called as something in it is.
func (c *Catalog) Diff(want, have Shape) (diffs []Difference) {
	w, h := c.all(want), c.all(have)
	switch {
	case want == have:
		return nil
	case have == Shape{}:
		return []Difference{{Kind: schemaKind, Want: "owner " + w.owner()}}
	case want == Shape{}:
		return []Difference{{Kind: schemaKind, Have: "owner " + h.owner()}}
	}
	wants, haves := w.index(), h.index()
	// What goes with an object that is not there goes without saying.
	gone := map[string]bool{}
	for _, side := range []struct {
		lines  lines
		others map[key]*line
	}{{w, haves}, {h, wants}} {
		for i := range side.lines {
			if l := &side.lines[i]; !l.part && side.others[l.key()] == nil {
				gone[l.object] = true
			}
		}
	}
	inherited := map[key]string{} // of columns that differ, and column orders, the same of the parent table
	for k := range both(wants, haves) {
		l, m := wants[k], haves[k]
		d := Difference{Kind: k.kind, Object: k.object}
		if l != nil {
			d.Want = l.short()
		}
		if m != nil {
			d.Have = m.short()
		}
		switch {
		case k.kind == ownerKind: // it is the schema's where there is no line
			d.Want, d.Have = cmp.Or(d.Want, w.owner()), cmp.Or(d.Have, h.owner())
			if d.Want == d.Have || gone[cmp.Or(l, m).parent] {
				continue
			}
		case l == nil || m == nil:
			if gone[cmp.Or(l, m).parent] {
				continue
			}
		case l.same(m) || k.kind == columnOrderKind && sameOrder(l.text, m.text):
			continue
		case d.Want == d.Have: // one of them says the schema's name, the other does not
			d.Want, d.Have = l.long(), m.long()
		}
		if o := cmp.Or(l, m); o.inherits != "" {
			inherited[k] = o.inherits + strings.TrimPrefix(k.object, o.parent)
		}
		diffs = append(diffs, d)
	}
	// What a table has from its parent goes without saying, too.
	differ := make(map[key]Difference, len(diffs))
	for _, d := range diffs {
		differ[key{d.Kind, d.Object}] = d
	}
	diffs = slices.DeleteFunc(diffs, func(d Difference) bool {
		object, ok := inherited[key{d.Kind, d.Object}]
		of, differs := differ[key{d.Kind, object}]
		return ok && differs && (d.Kind == columnOrderKind || of.Want == d.Want && of.Have == d.Have)
	})
	slices.SortFunc(diffs, func(a, b Difference) int {
		return cmp.Or(strings.Compare(a.Object, b.Object), strings.Compare(a.Kind, b.Kind))
	})
	return diffs
}
