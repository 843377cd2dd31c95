package pgtenancy_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/pgtenancy/pgtenancy"
)

// hostRequest returns a request as a server sees it.
func hostRequest(host string) *http.Request {
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.Host = host
	return r
}

// checkResolved checks what a Resolver returned: a key, ErrUnresolved, or an *InvalidError for a field.
func checkResolved(t *testing.T, k pgtenancy.Key, err error, want pgtenancy.Key, wantField, reason string) {
	t.Helper()
	var invalid *pgtenancy.InvalidError
	switch {
	case wantField != "":
		if !errors.As(err, &invalid) || invalid.Field != wantField {
			t.Errorf("got %v, %v, want an *InvalidError for %s: %s", k, err, wantField, reason)
		}
	case want == (pgtenancy.Key{}):
		if !errors.Is(err, pgtenancy.ErrUnresolved) {
			t.Errorf("got %v, %v, want ErrUnresolved: %s", k, err, reason)
		}
	case err != nil || k != want:
		t.Errorf("got %v, %v, want %v: %s", k, err, want, reason)
	}
	if err != nil && k != (pgtenancy.Key{}) {
		t.Errorf("got %v along with the error %v", k, err)
	}
}

func TestKey(t *testing.T) {
	t.Parallel()
	id, ok := pgtenancy.ByID("acme").ID()
	if id != "acme" || !ok {
		t.Errorf("ID() = %q, %v", id, ok)
	}
	if _, ok := pgtenancy.ByID("acme").Domain(); ok {
		t.Error("the key of an ID has a domain")
	}
	domain, ok := pgtenancy.ByDomain("Shop.Acme.example.:443").Domain()
	if domain != "shop.acme.example" || !ok {
		t.Errorf("Domain() = %q, %v", domain, ok)
	}
	if _, ok := pgtenancy.ByDomain("shop.acme.example").ID(); ok {
		t.Error("the key of a domain has an ID")
	}
	if pgtenancy.ByDomain("acme") == pgtenancy.ByID("acme") {
		t.Error("an ID and a domain are the same key")
	}
	got := []string{
		pgtenancy.ByID("acme").String(), pgtenancy.ByDomain("acme").String(),
		pgtenancy.ByID("a\nb").String(), pgtenancy.ByDomain("a b\x1b").String(), pgtenancy.Key{}.String(),
	}
	want := []string{`tenant "acme"`, `domain "acme"`, `tenant "a\nb"`, `domain "a b\x1b"`, `tenant ""`}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestDomain(t *testing.T) {
	t.Parallel()
	long := strings.Repeat(strings.Repeat("a", 49)+".", 5)
	tests := []struct {
		host, want string // "" for ErrUnresolved
		invalid    bool
		reason     string
	}{
		{host: "shop.acme.example", want: "shop.acme.example", reason: "canonical already"},
		{host: "Shop.ACME.Example", want: "shop.acme.example", reason: "case does not count in DNS"},
		{host: "shop.acme.example:8080", want: "shop.acme.example", reason: "the port is not the tenant's"},
		{host: "shop.acme.example:", want: "shop.acme.example", reason: "a port may be empty (RFC 3986)"},
		{host: "shop.acme.example.", want: "shop.acme.example", reason: "the root's dot"},
		{host: "shop.acme.example.:443", want: "shop.acme.example", reason: "the root's dot before a port"},
		{host: "localhost", want: "localhost", reason: "one label is enough"},
		{host: "web_app:8080", want: "web_app", reason: "containers have such names"},
		{host: "r3---sn-apo3.example", want: "r3---sn-apo3.example", reason: "in use, whatever IDNA thinks of it"},
		{host: "bücher.example", want: "xn--bcher-kva.example", reason: "punycode"},
		{host: "BÜCHER.example", want: "xn--bcher-kva.example", reason: "case does not count beyond ASCII"},
		{host: "XN--BCHER-KVA.example", want: "xn--bcher-kva.example", reason: "what a browser sends"},
		{host: "xn--qei.example", want: "xn--qei.example", reason: "what a browser sends for a heart, which IDNA does not like"},
		{host: "straße.example", want: "xn--strae-oqa.example", reason: "not strasse.example, which may be somebody else's"},
		{host: "ｓｈｏｐ．acme。example。", want: "shop.acme.example", reason: "wide letters and dots"},
		{host: long + "abc", want: long + "abc", reason: "253 bytes"},
		{host: strings.Repeat("a", 63) + ".example", want: strings.Repeat("a", 63) + ".example", reason: "63 bytes"},

		{host: "", reason: "HTTP/1.0 has no Host"},
		{host: "127.0.0.1", reason: "IPv4"},
		{host: "127.0.0.1:8080", reason: "IPv4 with port"},
		{host: "127.1", reason: "IPv4, short"},
		{host: "2130706433", reason: "IPv4, one number"},
		{host: "0x7f.1", reason: "IPv4, hexadecimal"},
		{host: "shop.0X7F", reason: "ends in a hexadecimal number"},
		{host: "１２７.0.0.1", reason: "IPv4, wide digits"},
		{host: "[::1]", reason: "IPv6"},
		{host: "[::1]:8080", reason: "IPv6 with port"},
		{host: "::1", reason: "IPv6, without its brackets"},
		{host: "[fe80::1%25eth0]:80", reason: "IPv6 with zone"},

		{host: ":8080", invalid: true, reason: "a port of nothing"},
		{host: ".", invalid: true, reason: "the root"},
		{host: ".example", invalid: true, reason: "an empty label"},
		{host: "a..example", invalid: true, reason: "an empty label inside"},
		{host: "example..", invalid: true, reason: "more than the root's dot"},
		{host: "example:http", invalid: true, reason: "the port is no number"},
		{host: "example:80:80", invalid: true, reason: "two ports"},
		{host: "[::1", invalid: true, reason: "half a bracket"},
		{host: "::1]", invalid: true, reason: "the other half"},
		{host: "[::1]example", invalid: true, reason: "an address and more"},
		{host: "[127.0.0.1]", invalid: true, reason: "brackets are for IPv6"},
		{host: "[]", invalid: true, reason: "brackets of nothing"},
		{host: "[", invalid: true, reason: "a bracket"},
		{host: "]", invalid: true, reason: "a bracket"},
		{host: "-a.example", invalid: true, reason: "a hyphen first"},
		{host: "a-.example", invalid: true, reason: "a hyphen last"},
		{host: "a b.example", invalid: true, reason: "a space"},
		{host: "a/b.example", invalid: true, reason: "a path"},
		{host: "user@acme.example", invalid: true, reason: "a user"},
		{host: "acme%2eexample", invalid: true, reason: "an escape"},
		{host: "acme.example\x00.evil.example", invalid: true, reason: "a NUL"},
		{host: "acme.example\r\nX: y", invalid: true, reason: "a line break"},
		{host: "a\xff.example", invalid: true, reason: "not UTF-8"},
		{host: "a\ufffd.example", invalid: true, reason: "what stands for a character that was lost"},
		{host: "acme：80", invalid: true, reason: "a wide colon"},
		{host: "acme．example／", invalid: true, reason: "a wide slash"},
		{host: "xn--a-ü.example", invalid: true, reason: "an encoded name that is not encoded"},
		{host: strings.Repeat("a", 64) + ".example", invalid: true, reason: "64 bytes in a label"},
		{host: long + "abcd", invalid: true, reason: "254 bytes"},
		{host: strings.Repeat("ü.", 200_000), invalid: true, reason: "far too long to be looked at"},
	}
	resolve := pgtenancy.Domain()
	for _, tt := range tests {
		var want pgtenancy.Key
		if tt.want != "" {
			want = pgtenancy.ByDomain(tt.want)
			if d, _ := want.Domain(); d != tt.want {
				t.Errorf("ByDomain(%q) has the domain %q", tt.want, d)
			}
		}
		field := ""
		if tt.invalid {
			field = "Host"
		}
		k, err := resolve(hostRequest(tt.host))
		checkResolved(t, k, err, want, field, tt.reason)
		if err != nil && len(err.Error()) > 1000 {
			t.Errorf("the error for %.20q has %d bytes", tt.host, len(err.Error()))
		}
	}
}

func TestSubdomain(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		bases  []string
		host   string
		want   string // an ID
		field  string // of an *InvalidError
		reason string
	}{
		{name: "tenant", host: "acme.app.example", want: "acme"},
		{name: "not canonical", host: "ACME.App.Example.:8443", want: "acme", reason: "hosts are compared in their canonical form"},
		{name: "wide letters", host: "ａｃｍｅ．app.example", want: "acme", reason: "browsers map them as well"},
		{name: "digit", host: "3m.app.example", want: "3m"},
		{name: "hyphen", host: "acme-eu.app.example", want: "acme-eu"},
		{name: "base", host: "app.example", reason: "the service's own page"},
		{name: "base with dot", host: "app.example.", reason: "the service's own page"},
		{name: "reserved", host: "www.app.example", reason: "the service's own host"},
		{name: "reserved, upper case", host: "API.app.example", reason: "the service's own host"},
		{name: "reserved, wide", host: "ｗｗｗ.app.example", reason: "the service's own host"},
		{name: "begins like reserved", host: "wwww.app.example", want: "wwww"},
		{name: "other domain", host: "shop.acme.example", reason: "for another resolver"},
		{name: "ends alike", host: "acme-app.example", reason: "not below app.example: anybody could register it"},
		{name: "ends alike, longer", host: "x.myapp.example", reason: "not below app.example: anybody could register it"},
		{name: "base inside", host: "app.example.evil.test", reason: "not below app.example"},
		{name: "parent", host: "example", reason: "above the base"},
		{name: "none", host: "", reason: "no host"},
		{name: "IPv4", host: "192.0.2.1:80", reason: "health checks come by address"},
		{name: "IPv6", host: "[2001:db8::1]:80", reason: "health checks come by address"},
		{name: "nested", host: "www.acme.app.example", field: "Host", reason: "it must not be taken for acme or for www"},
		{name: "nested reserved", host: "acme.www.app.example", field: "Host", reason: "it must not be taken for acme or for www"},
		{name: "underscore", host: "a_b.app.example", field: "Subdomain", reason: "no ID"},
		{name: "punycode", host: "xn--bcher-kva.app.example", field: "Subdomain", reason: "no ID"},
		{name: "umlaut", host: "bücher.app.example", field: "Subdomain", reason: "no ID"},
		{name: "empty label", host: ".app.example", field: "Host", reason: "malformed"},
		{name: "two dots", host: "acme..app.example", field: "Host", reason: "malformed"},
		{name: "injection", host: `acme";drop schema x;--.app.example`, field: "Host", reason: "malformed"},
		{name: "long", host: strings.Repeat("a", 64) + ".app.example", field: "Host", reason: "no label"},

		{name: "localhost", bases: []string{"localhost"}, host: "acme.localhost:8080", want: "acme", reason: "how one develops"},
		{name: "bare localhost", bases: []string{"localhost"}, host: "localhost:8080", reason: "the base"},
		{name: "second base", bases: []string{"app.example", "localhost"}, host: "acme.localhost:8080", want: "acme"},
		{name: "base below base", bases: []string{"app.example", "eu.app.example"}, host: "acme.eu.app.example", want: "acme", reason: "the longest counts"},
		{name: "base below base, other order", bases: []string{"eu.app.example", "app.example"}, host: "acme.eu.app.example", want: "acme"},
		{name: "base is no tenant of a base", bases: []string{"app.example", "eu.app.example"}, host: "eu.app.example", reason: "it is a base"},
		{name: "base not canonical", bases: []string{"App.Bücher.example."}, host: "acme.app.xn--bcher-kva.example", want: "acme"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if tt.bases == nil {
				tt.bases = []string{"app.example"}
			}
			k, err := pgtenancy.Subdomain(tt.bases...)(hostRequest(tt.host))
			checkResolved(t, k, err, pgtenancy.ByID(tt.want), tt.field, tt.reason)
		})
	}
}

func TestSubdomainError(t *testing.T) {
	t.Parallel()
	_, err := pgtenancy.Subdomain("app.example")(hostRequest("www.acme.app.example"))
	want := &pgtenancy.InvalidError{Field: "Host", Value: "www.acme.app.example", Rule: `must have one label before "app.example", has 2`}
	if diff := cmp.Diff(error(want), err); diff != "" {
		t.Error(diff)
	}
}

func TestHeader(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		values  []string
		want    string
		invalid bool
		reason  string
	}{
		{name: "ID", values: []string{"acme"}, want: "acme"},
		{name: "none", reason: "the header is not there"},
		{name: "twice the same", values: []string{"acme", "acme"}, want: "acme", reason: "they agree"},
		{name: "twice", values: []string{"acme", "globex"}, invalid: true, reason: "whichever is taken may be the client's"},
		{name: "third differs", values: []string{"acme", "acme", "globex"}, invalid: true, reason: "whichever is taken may be the client's"},
		{name: "second empty", values: []string{"acme", ""}, invalid: true, reason: "they differ"},
		{name: "list", values: []string{"acme, acme"}, invalid: true, reason: "no ID; it may have been two lines once"},
		{name: "empty", values: []string{""}, invalid: true, reason: "whoever sets it failed to"},
		{name: "upper case", values: []string{"Acme"}, invalid: true, reason: "no ID"},
		{name: "space", values: []string{" acme"}, invalid: true, reason: "no ID"},
		{name: "underscore", values: []string{"a_b"}, invalid: true, reason: "no ID: it would be the schema of a-b"},
		{name: "injection", values: []string{`acme", public; --`}, invalid: true, reason: "no ID"},
		{name: "NUL", values: []string{"acme\x00"}, invalid: true, reason: "no ID"},
		{name: "huge", values: []string{strings.Repeat("a", 1<<20)}, invalid: true, reason: "no ID"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := hostRequest("globex.app.example")
			for _, v := range tt.values {
				r.Header.Add("X-Tenant", v)
			}
			field := ""
			if tt.invalid {
				field = "Header X-Tenant"
			}
			k, err := pgtenancy.Header("x-tenant")(r)
			checkResolved(t, k, err, pgtenancy.ByID(tt.want), field, tt.reason)
			if err != nil && len(err.Error()) > 1000 {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
		})
	}
}

func TestPathValue(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, pattern, path string
		want                string
		invalid             bool
		reason              string
	}{
		{name: "ID", pattern: "/t/{tenant}/orders", path: "/t/acme/orders", want: "acme"},
		{name: "escaped", pattern: "/t/{tenant}/orders", path: "/t/%61cme/orders", want: "acme", reason: "the same path to the mux"},
		{name: "escaped slash", pattern: "/t/{tenant}/orders", path: "/t/acme%2Fx/orders", invalid: true, reason: "no ID"},
		{name: "rest of the path", pattern: "/t/{tenant...}", path: "/t/acme/orders", invalid: true, reason: "no ID"},
		{name: "upper case", pattern: "/t/{tenant}/orders", path: "/t/Acme/orders", invalid: true, reason: "no ID"},
		{name: "NUL", pattern: "/t/{tenant}/orders", path: "/t/acme%00/orders", invalid: true, reason: "no ID"},
		{name: "other wildcard", pattern: "/t/{id}/orders", path: "/t/acme/orders", reason: "not in the pattern"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			field := ""
			if tt.invalid {
				field = "PathValue tenant"
			}
			called := false
			mux := http.NewServeMux()
			mux.HandleFunc(tt.pattern, func(_ http.ResponseWriter, r *http.Request) {
				called = true
				k, err := pgtenancy.PathValue("tenant")(r)
				checkResolved(t, k, err, pgtenancy.ByID(tt.want), field, tt.reason)
			})
			mux.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, tt.path, nil))
			if !called {
				t.Error("the request was not routed")
			}
		})
	}
	k, err := pgtenancy.PathValue("tenant")(httptest.NewRequest(http.MethodGet, "/t/acme/orders", nil))
	checkResolved(t, k, err, pgtenancy.Key{}, "", "nothing has routed the request")
}

func TestFirst(t *testing.T) {
	t.Parallel()
	down := errors.New("down")
	failing := func(*http.Request) (pgtenancy.Key, error) { return pgtenancy.Key{}, down }
	header, subdomain, domain := pgtenancy.Header("X-Tenant"), pgtenancy.Subdomain("app.example"), pgtenancy.Domain()
	tests := []struct {
		name         string
		resolvers    []pgtenancy.Resolver
		host, header string
		want         pgtenancy.Key
		field        string
		err          error
	}{
		{name: "first", resolvers: []pgtenancy.Resolver{header, subdomain}, host: "globex.app.example", header: "acme", want: pgtenancy.ByID("acme")},
		{name: "second", resolvers: []pgtenancy.Resolver{header, subdomain}, host: "globex.app.example", want: pgtenancy.ByID("globex")},
		{name: "last", resolvers: []pgtenancy.Resolver{header, subdomain, domain}, host: "shop.acme.example", want: pgtenancy.ByDomain("shop.acme.example")},
		{name: "none", resolvers: []pgtenancy.Resolver{header, subdomain}, host: "shop.acme.example"},
		{name: "malformed stops", resolvers: []pgtenancy.Resolver{header, subdomain}, host: "globex.app.example", header: "a_b", field: "Header X-Tenant"},
		{name: "failure stops", resolvers: []pgtenancy.Resolver{failing, subdomain}, host: "globex.app.example", err: down},
		{name: "nested", resolvers: []pgtenancy.Resolver{pgtenancy.First(header), subdomain}, host: "globex.app.example", want: pgtenancy.ByID("globex")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := hostRequest(tt.host)
			if tt.header != "" {
				r.Header.Set("X-Tenant", tt.header)
			}
			k, err := pgtenancy.First(tt.resolvers...)(r)
			if tt.err != nil {
				if !cmp.Equal(err, tt.err, cmpopts.EquateErrors()) {
					t.Errorf("got %v, %v, want %v", k, err, tt.err)
				}
				return
			}
			checkResolved(t, k, err, tt.want, tt.field, "")
		})
	}
}

func TestResolverPanics(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		make func()
		want string
	}{
		{"no base", func() { pgtenancy.Subdomain() }, "no base"},
		{"empty base", func() { pgtenancy.Subdomain("") }, `base "" must be a domain name`},
		{"base with port", func() { pgtenancy.Subdomain("localhost:8080") }, `base "localhost:8080" must be a domain name, without port`},
		{"wildcard", func() { pgtenancy.Subdomain("app.example", "*.app.example") }, `base "*.app.example" must have only`},
		{"leading dot", func() { pgtenancy.Subdomain(".app.example") }, "empty label"},
		{"URL", func() { pgtenancy.Subdomain("https://app.example") }, "without port"},
		{"IPv4", func() { pgtenancy.Subdomain("127.0.0.1") }, "must be a domain name"},
		{"IPv6", func() { pgtenancy.Subdomain("[::1]") }, "must be a domain name"},
		{"no header", func() { pgtenancy.Header("") }, "not the name of a header"},
		{"header with space", func() { pgtenancy.Header("X Tenant") }, "not the name of a header"},
		{"Host", func() { pgtenancy.Header("host") }, "Subdomain or Domain"},
		{"no path value", func() { pgtenancy.PathValue("") }, "no name"},
		{"First of none", func() { pgtenancy.First() }, "no resolver"},
		{"First of nil", func() { pgtenancy.First(pgtenancy.Domain(), nil) }, "nil"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			defer func() {
				got, _ := recover().(string)
				if !strings.HasPrefix(got, "pgtenancy.") || !strings.Contains(got, tt.want) {
					t.Errorf("panic %q, want one with %q", got, tt.want)
				}
			}()
			tt.make()
		})
	}
}

func FuzzSubdomain(f *testing.F) {
	for _, host := range []string{
		"acme.app.example", "ACME.APP.EXAMPLE.:80", "www.app.example", "a.b.app.example", "acme-app.example", "[::1]:80", "127.1",
		"ａｃｍｅ。app.example", "bücher.app.example", "xn--bcher-kva.app.example", "a_b.app.example", "acme.app.example:80:80", "]", "-.app.example",
	} {
		f.Add(host)
	}
	const base = "app.example"
	subdomain, domain := pgtenancy.Subdomain(base), pgtenancy.Domain()
	f.Fuzz(func(t *testing.T, host string) {
		whole, domainErr := domain(hostRequest(host))
		canonical, _ := whole.Domain()
		if domainErr == nil {
			again, err := domain(hostRequest(canonical + ".:8080"))
			if err != nil || again != whole {
				t.Errorf("%q became %v, which becomes %v, %v", host, whole, again, err)
			}
			if len(canonical) > 253 || strings.Trim(canonical, "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "" {
				t.Errorf("%q became %q", host, canonical)
			}
		}
		k, err := subdomain(hostRequest(host))
		if err != nil {
			var invalid *pgtenancy.InvalidError
			if !errors.Is(err, pgtenancy.ErrUnresolved) && !errors.As(err, &invalid) {
				t.Errorf("%q: %v", host, err)
			}
			return
		}
		id, ok := k.ID()
		if !ok || canonical != id+"."+base {
			t.Errorf("%q, canonically %q, resolved to %v", host, canonical, k)
		}
		if _, err := pgtenancy.NewTenant(pgtenancy.TenantInfo{ID: id, Schema: "any"}); err != nil {
			t.Errorf("%q resolved to the ID %q: %v", host, id, err)
		}
	})
}
