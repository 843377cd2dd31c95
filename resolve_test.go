package pgtenancy_test

import (
	"context"
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
		{name: "tenant beside a base", bases: []string{"app.example", "eu.app.example"}, host: "acme.app.example", want: "acme"},
		{name: "nested under the longer base", bases: []string{"app.example", "eu.app.example"}, host: "a.b.eu.app.example", field: "Host", reason: "no base takes it"},
		{name: "nested under the shorter base", bases: []string{"app.example", "eu.app.example"}, host: "acme.us.app.example", field: "Host", reason: "us is no base"},
		{name: "ends like the longer base", bases: []string{"app.example", "eu.app.example"}, host: "x-eu.app.example", want: "x-eu", reason: "of the shorter"},
		{name: "reserved under a base below", bases: []string{"app.example", "eu.app.example"}, host: "www.eu.app.example", reason: "the service's own host"},
		{name: "reserved label as a base", bases: []string{"example", "app.example"}, host: "acme.app.example", want: "acme", reason: "the longest counts"},
		{name: "three bases", bases: []string{"example", "a.b.example", "b.example"}, host: "x.a.b.example", want: "x", reason: "the longest counts"},
		{name: "hole between bases", bases: []string{"example", "a.b.example"}, host: "x.b.example", field: "Host", reason: "b is no base"},
		{name: "the same base twice", bases: []string{"app.example", "APP.example."}, host: "acme.app.example", want: "acme"},
		{name: "empty punycode", host: "xn--acme-.app.example", field: "Host", reason: "it decodes to acme, which is not what it is"},
		{name: "homoglyph", host: "аcme.app.example", field: "Subdomain", reason: "its first letter is Cyrillic"},
		{name: "dotless i", host: "globexı.app.example", field: "Subdomain", reason: "it is not mapped to i"},
		{name: "Kelvin sign", host: "\u212a1.app.example", want: "k1", reason: "IDNA and browsers map it to k"},
		{name: "soft hyphen", host: "ac\u00adme.app.example", want: "acme", reason: "IDNA and browsers drop it"},
		{name: "zero width joiner", host: "ac\u200dme.app.example", field: "Host", reason: "allowed in few scripts only"},
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

// Over HTTP/2 net/http leaves the header Host beside Request.Host, which is :authority.
func TestTwoHosts(t *testing.T) {
	t.Parallel()
	tests := []struct {
		headers []string
		invalid bool
		reason  string
	}{
		{[]string{"acme.app.example"}, false, "they agree"},
		{[]string{"ACME.app.example"}, false, "they agree"},
		{[]string{"globex.app.example"}, true, "they differ"},
		{[]string{"acme.app.example", "globex.app.example"}, true, "one differs"},
		{[]string{""}, true, "one is empty"},
	}
	for _, tt := range tests {
		r := hostRequest("acme.app.example")
		r.Header["Host"] = tt.headers
		field := ""
		if tt.invalid {
			field = "Host"
		}
		k, err := pgtenancy.Subdomain("app.example")(r)
		checkResolved(t, k, err, pgtenancy.ByID("acme"), field, tt.reason)
		k, err = pgtenancy.Domain()(r)
		checkResolved(t, k, err, pgtenancy.ByDomain("acme.app.example"), field, tt.reason)
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

func TestPathPrefix(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, prefix, path string
		want               string
		invalid            bool
		reason             string
	}{
		{name: "ID", path: "/t/acme/orders", want: "acme"},
		{name: "slash at the end of the prefix", prefix: "/t/", path: "/t/acme/orders", want: "acme", reason: "it makes no difference"},
		{name: "no more", path: "/t/acme", want: "acme"},
		{name: "slash", path: "/t/acme/", want: "acme"},
		{name: "query", path: "/t/acme?x=/t/globex", want: "acme"},
		{name: "absolute form", path: "http://app.example/t/acme/orders", want: "acme", reason: "what a client sends to a proxy"},
		{name: "escaped below", path: "/t/acme/a%2Fb%20c", want: "acme", reason: "it is the service's to read"},
		{name: "empty segment below", path: "/t/acme/orders//1", want: "acme", reason: "no other tenant's, however it is cleaned"},
		{name: "dots in names", path: "/t/acme/.well-known/..a/...", want: "acme"},
		{name: "prefix again", path: "/t/t/t/acme", want: "t", reason: "once is enough"},
		{name: "root", prefix: "/", path: "/acme/orders", want: "acme"},
		{name: "root alone", prefix: "/", path: "/", reason: "no segment"},
		{name: "long prefix", prefix: "/api/v1.0/t", path: "/api/v1.0/t/acme", want: "acme"},

		{name: "other path", path: "/healthz", reason: "not below the prefix"},
		{name: "ends alike", path: "/x/t/acme", reason: "the prefix is the beginning"},
		{name: "begins alike", path: "/tt/acme", reason: "a prefix ends at a slash"},
		{name: "prefix alone", path: "/t", reason: "no segment after it"},
		{name: "prefix and slash", path: "/t/", reason: "no segment after it"},
		{name: "upper case prefix", path: "/T/acme", reason: "case counts in paths"},
		{name: "two slashes first", path: "//t/acme", reason: "it does not begin with the prefix"},
		{name: "dot segment first", path: "/x/../t/acme", reason: "it does not begin with the prefix"},
		{name: "all of the server", path: "*", reason: "OPTIONS * has no path"},

		{name: "empty segment", path: "/t//acme", invalid: true, reason: "it would name acme if it were cleaned"},
		{name: "escaped ID", path: "/t/%61cme/orders", invalid: true, reason: "the segment is not acme for who does not unescape it"},
		{name: "escaped ID, something else not escaped", path: "/t/%61cme/|", invalid: true, reason: "net/url escapes such a path anew, and the segment with it"},
		{name: "escaped slash, something else not escaped", path: "/t/acme%2Fx/|", invalid: true, reason: "net/url escapes such a path anew, and the segment with it"},
		{name: "something not escaped", path: "/t/acme/|", want: "acme", reason: "browsers do not escape it"},
		{name: "escaped slash in the ID", path: "/t/acme%2Forders", invalid: true, reason: "one segment for a mux, two for others"},
		{name: "escaped slash before", path: "/t%2Facme/orders", invalid: true, reason: "its decoded form names acme"},
		{name: "escaped prefix", path: "/%74/acme/orders", invalid: true, reason: "its decoded form names acme"},
		{name: "up", path: "/t/acme/../globex/orders", invalid: true, reason: "globex if it is cleaned"},
		{name: "up at the end", path: "/t/acme/..", invalid: true, reason: "no tenant if it is cleaned"},
		{name: "up, escaped", path: "/t/acme/%2e%2E/globex", invalid: true, reason: "browsers read it as dots"},
		{name: "up, slashes escaped", path: "/t/acme/x%2F..%2F..%2Fglobex", invalid: true, reason: "globex where slashes are unescaped before"},
		{name: "up before the ID", path: "/t/../acme", invalid: true, reason: "no ID"},
		{name: "dot", path: "/t/./acme", invalid: true, reason: "acme if it is cleaned"},
		{name: "dot below", path: "/t/acme/./orders", invalid: true, reason: "a clean path has none"},
		{name: "empty after the ID", path: "/t/acme//evil.example", invalid: true, reason: "a redirect to what is left would be to another host"},
		{name: "empty after the ID, escaped", path: "/t/acme/%2Fevil.example", invalid: true, reason: "a redirect to what is left would be to another host"},
		{name: "upper case", path: "/t/Acme/orders", invalid: true, reason: "no ID"},
		{name: "underscore", path: "/t/a_b/orders", invalid: true, reason: "no ID"},
		{name: "parameter", path: "/t/acme;x=globex/orders", invalid: true, reason: "no ID"},
		{name: "NUL", path: "/t/acme%00/orders", invalid: true, reason: "no ID"},
		{name: "unicode", path: "/t/аcme/orders", invalid: true, reason: "no ID: its first letter is Cyrillic"},
		{name: "backslash", path: `/t/acme\orders`, invalid: true, reason: "no ID"},
		{name: "huge", path: "/t/" + strings.Repeat("a", 1<<20), invalid: true, reason: "no ID"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if tt.prefix == "" {
				tt.prefix = "/t"
			}
			field := ""
			if tt.invalid {
				field = "PathPrefix /t/"
			}
			k, err := pgtenancy.PathPrefix(tt.prefix)(httptest.NewRequest(http.MethodGet, tt.path, nil))
			checkResolved(t, k, err, pgtenancy.ByID(tt.want), field, tt.reason)
			if err != nil && len(err.Error()) > 1000 {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
		})
	}
}

// A middleware before may have changed the path, and left RawPath as it was.
func TestPathPrefixRewritten(t *testing.T) {
	t.Parallel()
	r := httptest.NewRequest(http.MethodGet, "/t/globex/a%2Fb", nil)
	r.URL.Path = "/t/acme/orders"
	k, err := pgtenancy.PathPrefix("/t")(r)
	checkResolved(t, k, err, pgtenancy.ByID("acme"), "", "a RawPath that does not fit Path does not count")
}

func TestCookie(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		lines   []string
		want    string
		invalid bool
		reason  string
	}{
		{name: "ID", lines: []string{"tenant=acme"}, want: "acme"},
		{name: "among others", lines: []string{"a=b; tenant=acme; c=d"}, want: "acme"},
		{name: "no spaces", lines: []string{"a=b;tenant=acme;c=d"}, want: "acme"},
		{name: "many spaces", lines: []string{" a=b ;\t tenant =acme \t; "}, want: "acme", reason: "servers trim them"},
		{name: "second line", lines: []string{"a=b", "tenant=acme"}, want: "acme", reason: "HTTP/2 may send a line each"},
		{name: "twice the same", lines: []string{"tenant=acme; tenant=acme", "tenant=acme"}, want: "acme", reason: "they agree"},
		{name: "case", lines: []string{"Tenant=globex; tenant=acme"}, want: "acme", reason: "case counts in cookies' names"},
		{name: "ends alike", lines: []string{"xtenant=globex; tenant=acme; tenants=globex"}, want: "acme"},
		{name: "none", reason: "no cookie"},
		{name: "others", lines: []string{"a=tenant; b=c=tenant=acme"}, reason: "not its name"},

		{name: "two", lines: []string{"tenant=acme; tenant=globex"}, invalid: true, reason: "one of them may be planted"},
		{name: "two lines", lines: []string{"tenant=acme", "tenant=globex"}, invalid: true, reason: "one of them may be planted"},
		{name: "third differs", lines: []string{"tenant=acme; tenant=acme; tenant=globex"}, invalid: true, reason: "one of them may be planted"},
		{name: "second empty", lines: []string{"tenant=acme; tenant="}, invalid: true, reason: "they differ"},
		{name: "first empty", lines: []string{"tenant=; tenant=acme"}, invalid: true, reason: "they differ"},
		{name: "one that net/http drops", lines: []string{`tenant=ac\me; tenant=globex`}, invalid: true, reason: "another server may read the first"},
		{name: "quoted and not", lines: []string{`tenant="acme"; tenant=acme`}, invalid: true, reason: "they differ"},
		{name: "empty", lines: []string{"tenant="}, invalid: true, reason: "whoever set it failed to"},
		{name: "no value", lines: []string{"tenant"}, invalid: true, reason: "net/http reads an empty value"},
		{name: "quoted", lines: []string{`tenant="acme"`}, invalid: true, reason: "no ID needs quotes"},
		{name: "upper case", lines: []string{"tenant=Acme"}, invalid: true, reason: "no ID"},
		{name: "space", lines: []string{"tenant= acme"}, invalid: true, reason: "no ID"},
		{name: "escaped", lines: []string{"tenant=%61cme"}, invalid: true, reason: "no ID"},
		{name: "comma", lines: []string{"tenant=acme, tenant=globex"}, invalid: true, reason: "no ID"},
		{name: "signed", lines: []string{"tenant=acme.c2lnbmF0dXJl"}, invalid: true, reason: "no ID: what has to be verified is a Claim"},
		{name: "huge", lines: []string{"tenant=" + strings.Repeat("a", 1<<20)}, invalid: true, reason: "no ID"},
		{name: "very many", lines: []string{strings.Repeat("a=b;", 100_000) + "tenant=a_b"}, invalid: true, reason: "net/http reads none of so many"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := hostRequest("globex.app.example")
			for _, line := range tt.lines {
				r.Header.Add("Cookie", line)
			}
			field := ""
			if tt.invalid {
				field = "Cookie tenant"
			}
			k, err := pgtenancy.Cookie("tenant")(r)
			checkResolved(t, k, err, pgtenancy.ByID(tt.want), field, tt.reason)
			if err != nil && len(err.Error()) > 1000 {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
		})
	}
}

func TestClaim(t *testing.T) {
	t.Parallel()
	type claimKey struct{}
	resolve := pgtenancy.Claim(func(ctx context.Context) (string, bool) {
		id, ok := ctx.Value(claimKey{}).(string)
		return id, ok
	})
	tests := []struct {
		name   string
		claim  any
		want   string
		field  string
		reason string
	}{
		{name: "ID", claim: "acme", want: "acme"},
		{name: "none", reason: "nobody put a claim there"},
		{name: "empty", claim: "", field: "Claim", reason: "a token without a tenant is not a request without a token"},
		{name: "no ID", claim: "Acme", field: "Claim", reason: "no ID"},
	}
	for _, tt := range tests {
		r := hostRequest("globex.app.example")
		k, err := resolve(r.WithContext(context.WithValue(t.Context(), claimKey{}, tt.claim)))
		checkResolved(t, k, err, pgtenancy.ByID(tt.want), tt.field, tt.reason)
	}
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
		{"no prefix", func() { pgtenancy.PathPrefix("") }, "must begin with '/'"},
		{"prefix without slash", func() { pgtenancy.PathPrefix("t") }, "must begin with '/'"},
		{"prefix with empty segment", func() { pgtenancy.PathPrefix("/t//x") }, "segment that is empty"},
		{"prefix of two slashes", func() { pgtenancy.PathPrefix("//") }, "segment that is empty"},
		{"prefix with dots", func() { pgtenancy.PathPrefix("/t/../x") }, "segment that is empty, . or .."},
		{"prefix with wildcard", func() { pgtenancy.PathPrefix("/t/{tenant}") }, "must have only letters"},
		{"escaped prefix", func() { pgtenancy.PathPrefix("/a%20b") }, "must have only letters"},
		{"no cookie", func() { pgtenancy.Cookie("") }, "not the name of a cookie"},
		{"cookie with space", func() { pgtenancy.Cookie("a b") }, "not the name of a cookie"},
		{"cookie with =", func() { pgtenancy.Cookie("a=b") }, "not the name of a cookie"},
		{"nil claim", func() { pgtenancy.Claim(nil) }, "nil"},
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
