package wire

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// Two statements never have one text, and no name of a schema or role ends the comment.
func TestTagged(t *testing.T) {
	t.Parallel()
	names := []string{"a", "b", "a b", "b c", "*/", "/*", "*/ select 1 /*", "%2A", "%", "a\nb", "a\r", " ", "a*b", "a%2Ab", "a%20b"}
	texts := map[string]stmtKey{}
	for _, schema := range names {
		for _, role := range append(names, "") {
			key := stmtKey{schema, role, "select 1 -- x"}
			text := tagged(key)
			if other, ok := texts[text]; ok {
				t.Errorf("%q and %q have one text, %q", key, other, text)
			}
			texts[text] = key
			sql, comment, _ := strings.Cut(text, "\n/* ")
			if inner, ok := strings.CutSuffix(comment, " */"); sql != key.sql || !ok || strings.ContainsAny(inner, "*/\n\r") {
				t.Errorf("the text of %q is %q", key, text)
			}
		}
	}
	if got := tagged(stmtKey{sql: "select 1"}); got != "select 1" {
		t.Errorf("without a schema it is %q", got)
	}
}

func TestStatementName(t *testing.T) {
	t.Parallel()
	names := map[string]bool{}
	for _, text := range []string{"a", "b"} {
		for _, oids := range [][]uint32{nil, {1}, {1, 2}, {12}} {
			name := statementName(text, oids)
			if names[name] || len(name) > 63 {
				t.Errorf("name %q of %q, %v", name, text, oids)
			}
			names[name] = true
		}
	}
}

// One tenant's description serves another at the same version only where both have the same types.
func TestDescriptions(t *testing.T) {
	t.Parallel()
	const own = firstUserOID
	sd := func(param, field uint32) *pgconn.StatementDescription {
		return &pgconn.StatementDescription{ParamOIDs: []uint32{param}, Fields: []pgconn.FieldDescription{{DataTypeOID: field}}}
	}
	a, b := &Scope{Schema: "a"}, &Scope{Schema: "b"}
	later, none := &Scope{Schema: "a", Version: 1}, &Scope{Schema: "public", Version: SharedVersion}
	tests := []struct {
		name    string
		sd      *pgconn.StatementDescription
		differs bool
		shared  bool // with b
	}{
		{"built-in types", sd(pgtype.TextOID, pgtype.Int4OID), false, true},
		{"a parameter of a type of its own", sd(own, pgtype.Int4OID), false, false},
		{"a result of a type of its own", sd(pgtype.TextOID, own), false, false},
		{"tables that differ", sd(pgtype.TextOID, pgtype.Int4OID), true, false},
	}
	for _, tt := range tests {
		sh := NewShared(Options{Mode: pgx.QueryExecModeCacheStatement, Statements: 10, Setting: "app.current_tenant"})
		sh.store(a, "q", tt.sd, tt.differs)
		if got := sh.lookup(a, "q"); got != tt.sd {
			t.Errorf("%s: a has %v", tt.name, got)
		}
		if got := sh.lookup(b, "q"); (got != nil) != tt.shared {
			t.Errorf("%s: b has %v", tt.name, got)
		}
		for _, other := range []*Scope{later, none} {
			if got := sh.lookup(other, "q"); got != nil {
				t.Errorf("%s: version %d has %v", tt.name, other.Version, got)
			}
		}
		if got := sh.lookup(a, "r"); got != nil {
			t.Errorf("%s: other SQL has %v", tt.name, got)
		}
		sh.distrust(b, "q")
		if !tt.shared {
			if got := sh.lookup(a, "q"); got != tt.sd {
				t.Errorf("%s: after b was distrusted a has %v", tt.name, got)
			}
		}
		sh.forget(a, "q")
		if got := sh.lookup(a, "q"); got != nil {
			t.Errorf("%s: forgotten, a has %v", tt.name, got)
		}
	}
}

func TestBeginSQL(t *testing.T) {
	t.Parallel()
	for want, o := range map[string]pgx.TxOptions{
		"begin": {},
		"begin isolation level serializable read only deferrable": {IsoLevel: pgx.Serializable, AccessMode: pgx.ReadOnly, DeferrableMode: pgx.Deferrable},
		"begin read write": {AccessMode: pgx.ReadWrite},
		"begin;--":         {BeginQuery: "begin;--", IsoLevel: pgx.Serializable},
	} {
		if got := BeginSQL(o); got != want {
			t.Errorf("%+v: %q, want %q", o, got, want)
		}
	}
}
