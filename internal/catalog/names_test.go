package catalog

import "testing"

func TestNormalize(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, role  string
		text        string
		short, long string
	}{
		{"tenant_acme", "", "nextval('tenant_acme.orders_id_seq'::regclass)", "nextval('orders_id_seq'::regclass)", "nextval('$schema.orders_id_seq'::regclass)"},
		{"tenant-x", "", `FROM "tenant-x".orders`, "FROM orders", "FROM $schema.orders"},
		{"tenant-x", "", `'"tenant-x".seq'::regclass`, `'seq'::regclass`, `'$schema.seq'::regclass`},
		{"a", "", "data.x, a.x, aa.a, b.a.c", "data.x, x, aa.$schema, b.c", "data.x, $schema.x, aa.$schema, b.$schema.c"},
		{"a", "", `"a b".x, "b a".x, "a".x, """a""".x`, `"a b".x, "b a".x, x, """a""".x`, `"a b".x, "b a".x, $schema.x, """a""".x`},
		{"a", "", "$a.x a$.x éa.x aé.x a_1.x 1a.x", "$a.x a$.x éa.x aé.x a_1.x 1a.x", "$a.x a$.x éa.x aé.x a_1.x 1a.x"},
		{"tenant_a", "", "tenant_ab.x xtenant_a.x", "tenant_ab.x xtenant_a.x", "tenant_ab.x xtenant_a.x"},
		{"tenant_a", "", "SET search_path TO 'tenant_a', 'public'", "SET search_path TO '$schema', 'public'", "SET search_path TO '$schema', 'public'"},
		{`o'"brien`, "", `"o'""brien".x '"o''""brien".x'::regclass`, `x 'x'::regclass`, `$schema.x '$schema.x'::regclass`},
		{`a\b`, "", `"a\b".x E'"a\\b".x'`, `x E'x'`, `$schema.x E'$schema.x'`},
		{"tenant_a", "role_a", "tenant_a.x TO role_a", "x TO $role", "$schema.x TO $role"},
		{"tenant_a", "tenant_a", "tenant_a.x TO tenant_a", "x TO $schema", "$schema.x TO $schema"},
		{"tenant_a", "", "", "", ""},
	}
	for _, tt := range tests {
		n := newNames(Schema{tt.name, tt.role})
		if got := string(n.normalize(nil, tt.text, true)); got != tt.short {
			t.Errorf("%s in %s: %s, want %s", tt.name, tt.text, got, tt.short)
		}
		if got := string(n.normalize(nil, tt.text, false)); got != tt.long {
			t.Errorf("%s in %s: long %s, want %s", tt.name, tt.text, got, tt.long)
		}
	}
}

func TestSame(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name       string
		schemaA, a string
		schemaB, b string
		mayBe      bool // the names may be other things' too
		want       bool
	}{
		{"own names", "ta", "ta.x", "tb", "tb.x", false, true},
		{"another text", "ta", "ta.x", "tb", "tb.y", true, false},
		{"a longer one", "ta", "ta.x", "tb", "tb.xx", true, false},
		{"no name", "ta", "ta.x", "tb", "x", true, false},
		{"an alias of the schema's name", "o", "o.id from o.orders o", "tb", "o.id from tb.orders o", true, true},
		{"and the other way round", "tb", "o.id from tb.orders o", "o", "o.id from o.orders o", true, true},
		{"both", "o", "o.id, p from o.p o", "p", "o.id, p from p.p o", true, true},
		{"another's schema", "ta", "ta.x", "tb", "ta.x", false, false},
		{"a part of the name", "t", "t.x tt", "tt", "tt.x tt", true, true},
		{"quoted", "t-a", `"t-a".x`, "tb", "tb.x", false, true},
		{"empty", "ta", "", "tb", "", false, true},
	}
	for _, tt := range tests {
		na, nb := newNames(Schema{Name: tt.schemaA}), newNames(Schema{Name: tt.schemaB})
		if got := same(tt.a, na, tt.mayBe, tt.b, nb, tt.mayBe); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
		if got := same(tt.b, nb, tt.mayBe, tt.a, na, tt.mayBe); got != tt.want {
			t.Errorf("%s, the other way round: %v, want %v", tt.name, got, tt.want)
		}
	}
}
