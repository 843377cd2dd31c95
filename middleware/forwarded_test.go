package middleware_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/pgtenancy/pgtenancy"
	"github.com/pgtenancy/pgtenancy/middleware"
)

// proxies are where the proxies of the tests are.
var proxies = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("fe80::/10")}

// headers makes a header of lines.
func headers(lines ...string) http.Header {
	h := http.Header{}
	for _, line := range lines {
		name, value, _ := strings.Cut(line, ": ")
		h.Add(name, value)
	}
	return h
}

func TestForwardedHost(t *testing.T) {
	t.Parallel()
	manyParameters := ""
	for i := range 40 {
		manyParameters += fmt.Sprintf("p%d=x;", i)
	}
	tests := []struct {
		name    string
		headers []string
		want    string // the Host that the next handler sees, "" for status 400
		reason  string
	}{
		{"none", nil, "origin.internal", "the proxy passed on what it was sent"},
		{"others", []string{"X-Host: evil.example", "X-Original-Host: evil.example", "X-Forwarded-Server: evil.example", "X-Forwarded-For: 192.0.2.1"}, "origin.internal", "these are nobody's standard"},

		{"X-Forwarded-Host", []string{"X-Forwarded-Host: acme.app.example"}, "acme.app.example", ""},
		{"port", []string{"X-Forwarded-Host: acme.app.example:8443"}, "acme.app.example:8443", "it is kept as a client's Host is"},
		{"IPv6", []string{"X-Forwarded-Host: [2001:db8::1]:80"}, "[2001:db8::1]:80", "an address is a host"},
		{"list", []string{"X-Forwarded-Host: evil.example, acme.app.example"}, "acme.app.example", "the last is the nearest proxy's, the first may be the client's"},
		{"longer list", []string{"X-Forwarded-Host: evil.example, globex.app.example, acme.app.example"}, "acme.app.example", "the last is the nearest proxy's"},
		{"list without spaces", []string{"X-Forwarded-Host: evil.example,acme.app.example"}, "acme.app.example", ""},
		{"malformed in the list", []string{"X-Forwarded-Host: evil..example, acme.app.example"}, "acme.app.example", "what comes before the last is the client's"},
		{"same twice", []string{"X-Forwarded-Host: acme.app.example", "X-Forwarded-Host: acme.app.example"}, "acme.app.example", "they agree"},
		{"two lines", []string{"X-Forwarded-Host: acme.app.example", "X-Forwarded-Host: globex.app.example"}, "", "which is the proxy's?"},
		{"line and list", []string{"X-Forwarded-Host: evil.example, acme.app.example", "X-Forwarded-Host: acme.app.example"}, "", "which is the proxy's?"},
		{"empty", []string{"X-Forwarded-Host: "}, "", "whoever set it failed to"},
		{"empty last", []string{"X-Forwarded-Host: acme.app.example,"}, "", "the nearest proxy failed to set it"},
		{"user", []string{"X-Forwarded-Host: evil@acme.app.example"}, "", "no host"},
		{"URL", []string{"X-Forwarded-Host: https://acme.app.example"}, "", "no host"},
		{"path", []string{"X-Forwarded-Host: acme.app.example/x"}, "", "no host"},
		{"space", []string{"X-Forwarded-Host: evil.example acme.app.example"}, "", "no host"},
		{"quoted", []string{`X-Forwarded-Host: "acme.app.example"`}, "", "no host: this header knows no quotes"},
		{"two ports", []string{"X-Forwarded-Host: acme.app.example:80:80"}, "", "no host"},
		{"not UTF-8", []string{"X-Forwarded-Host: acme\xff.app.example"}, "", "no host"},

		{"Forwarded", []string{"Forwarded: host=acme.app.example"}, "acme.app.example", ""},
		{"among others", []string{`Forwarded: for=192.0.2.60;proto=https;by="[2001:db8::1]:80";host=acme.app.example`}, "acme.app.example", ""},
		{"case", []string{"Forwarded: For=192.0.2.60;HOST=acme.app.example"}, "acme.app.example", "names of parameters have none"},
		{"obfuscated", []string{"Forwarded: for=_hidden;by=unknown;host=acme.app.example"}, "acme.app.example", "RFC 7239, section 6.3"},
		{"spaces", []string{"Forwarded: for=192.0.2.60; host=acme.app.example ; proto=https"}, "acme.app.example", "not legal, but common"},
		{"nothing between", []string{"Forwarded: ;for=192.0.2.60;;host=acme.app.example;"}, "acme.app.example", "legal by the grammar"},
		{"port, quoted", []string{`Forwarded: host="acme.app.example:8443"`}, "acme.app.example:8443", ""},
		{"IPv6, quoted", []string{`Forwarded: host="[2001:db8::1]:80"`}, "[2001:db8::1]:80", ""},
		{"quoted pair", []string{`Forwarded: host="\a\c\m\e.app.example"`}, "acme.app.example", "a quoted pair is the character"},
		{"unknown parameter", []string{`Forwarded: secret="a;b,host=evil.example\"";host=acme.app.example`}, "acme.app.example", "what is quoted separates nothing"},
		{"elements", []string{"Forwarded: host=evil.example, host=acme.app.example;for=192.0.2.60"}, "acme.app.example", "the last is the nearest proxy's"},
		{"more elements", []string{"Forwarded: host=evil.example, for=192.0.2.1, host=acme.app.example"}, "acme.app.example", "the last is the nearest proxy's"},
		{"lines", []string{"Forwarded: host=evil.example", "Forwarded: for=192.0.2.60;host=acme.app.example"}, "acme.app.example", "RFC 7239, section 4: a proxy may add a line"},
		{"last element without host", []string{"Forwarded: host=evil.example, for=192.0.2.60"}, "origin.internal", "the nearest proxy says nothing of the host, so Host is right"},
		{"last line without host", []string{"Forwarded: host=evil.example", "Forwarded: for=192.0.2.60"}, "origin.internal", "the nearest proxy says nothing of the host, so Host is right"},
		{"port, not quoted", []string{"Forwarded: host=acme.app.example:8443"}, "", "no token"},
		{"empty value", []string{"Forwarded: host="}, "", "no token"},
		{"empty quotes", []string{`Forwarded: host=""`}, "", "no host"},
		{"empty line", []string{"Forwarded: "}, "", "no element"},
		{"empty element", []string{"Forwarded: host=evil.example, "}, "", "the nearest proxy failed to set it"},
		{"empty first element", []string{"Forwarded: , host=evil.example"}, "", "malformed anywhere is malformed"},
		{"host twice", []string{"Forwarded: host=acme.app.example;host=globex.app.example"}, "", "a parameter occurs once (RFC 7239, section 4)"},
		{"host twice, the same", []string{"Forwarded: host=acme.app.example;Host=acme.app.example"}, "", "a parameter occurs once (RFC 7239, section 4)"},
		{"for twice", []string{"Forwarded: for=192.0.2.60;for=192.0.2.61;host=acme.app.example"}, "", "a parameter occurs once (RFC 7239, section 4)"},
		{"no value", []string{"Forwarded: host;for=192.0.2.60"}, "", "no '='"},
		{"no name", []string{"Forwarded: =acme.app.example"}, "", "no name"},
		{"space before =", []string{"Forwarded: host =acme.app.example"}, "", "not legal"},
		{"two values", []string{"Forwarded: host=acme.app.example globex.app.example"}, "", "not legal"},
		{"open quote", []string{`Forwarded: host="acme.app.example`}, "", "malformed"},
		{"open quote after a backslash", []string{`Forwarded: host="acme.app.example\"`}, "", "malformed"},
		{"backslash", []string{`Forwarded: host="acme.app.example\`}, "", "malformed"},
		{"open quote of the client", []string{`Forwarded: host=evil.example;by=", for="[2001:db8::1]";host=acme.app.example`}, "", "the client's quote must not swallow the proxy's element"},
		{"open quote of the client, own line", []string{`Forwarded: host=evil.example;by="`, `Forwarded: host=acme.app.example;by=""`}, "", "the client's quote must not swallow the proxy's element"},
		{"after the quotes", []string{`Forwarded: host="acme.app.example".evil.example`}, "", "malformed"},
		{"malformed first", []string{"Forwarded: host=a b, host=acme.app.example"}, "", "malformed anywhere is malformed: where does the last begin?"},
		{"control character", []string{"Forwarded: host=\"acme\x01.app.example\""}, "", "malformed"},
		{"malformed host", []string{`Forwarded: host="acme.app.example/x"`}, "", "no host"},
		{"unicode in a token", []string{"Forwarded: host=äcme.app.example"}, "", "no token"},

		{"many parameters", []string{"Forwarded: " + manyParameters + "host=acme.app.example"}, "", "nobody has so many, and each is compared with those before"},

		{"both", []string{"X-Forwarded-Host: ACME.app.example", "Forwarded: host=acme.app.example"}, "acme.app.example", "they agree"},
		{"both, another host", []string{"X-Forwarded-Host: acme.app.example", "Forwarded: host=globex.app.example"}, "", "one of them is the client's"},
		{"both, another port", []string{"X-Forwarded-Host: acme.app.example", `Forwarded: host="acme.app.example:8443"`}, "", "one proxy would say the same twice"},
		{"both, one without host", []string{"X-Forwarded-Host: acme.app.example", "Forwarded: for=192.0.2.60"}, "acme.app.example", "only one says anything"},
		{"both, Forwarded malformed", []string{"X-Forwarded-Host: acme.app.example", "Forwarded: host"}, "", "malformed"},
		{"both, X-Forwarded-Host malformed", []string{"X-Forwarded-Host: ", "Forwarded: host=acme.app.example"}, "", "malformed"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := ""
			h := middleware.ForwardedHost(proxies...)(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r.Host }))
			r := request("origin.internal")
			r.RemoteAddr, r.Header = "10.1.2.3:4711", headers(tt.headers...)
			w := serve(h, r)
			wantCode := http.StatusOK
			if tt.want == "" {
				wantCode = http.StatusBadRequest
			}
			if got != tt.want || w.Code != wantCode {
				t.Errorf("Host %q, status %d, want %q and %d: %s", got, w.Code, tt.want, wantCode, tt.reason)
			}
			if r.Host != "origin.internal" {
				t.Error("the request was changed, not a copy")
			}
			if wantCode == http.StatusBadRequest && w.Header().Get("Content-Type") != "application/problem+json" {
				t.Errorf("no problem details: %v", w.Header())
			}
		})
	}
}

func TestForwardedHostPeers(t *testing.T) {
	t.Parallel()
	tests := []struct {
		peer     string
		believed bool
		reason   string
	}{
		{"10.1.2.3:4711", true, "in the first network"},
		{"[2001:db8::7]:4711", true, "in the second network"},
		{"[fe80::1]:4711", true, "in the third network"},
		{"[::ffff:10.1.2.3]:4711", true, "IPv4 on a socket for both"},
		{"[::ffff:a01:203]:4711", true, "the same"},
		{"192.0.2.1:4711", false, "from outside"},
		{"11.0.0.1:4711", false, "beside the network"},
		{"[2001:db9::7]:4711", false, "beside the network"},
		{"[::ffff:192.0.2.1]:4711", false, "from outside"},
		{"[::10.1.2.3]:4711", false, "not mapped: an IPv6 address that only looks like it"},
		{"[fe80::1%eth0]:4711", false, "on which link?"},
		{"@", false, "a unix socket"},
		{"", false, "a unix socket"},
		{"/run/app.sock", false, "a unix socket"},
		{"pipe", false, "a listener of the service's own"},
		{"10.1.2.3", false, "what a middleware wrote there, from a header perhaps"},
		{"10.1.2.3:", false, "no port"},
		{"10.1.2.3:4711:4711", false, "malformed"},
		{"010.1.2.3:4711", false, "octal, or not"},
		{"proxy.internal:4711", false, "a name"},
	}
	for _, tt := range tests {
		host := ""
		var header http.Header
		h := middleware.ForwardedHost(proxies...)(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { host, header = r.Host, r.Header }))
		for _, line := range []string{"X-Forwarded-Host: acme.app.example", "Forwarded: for=192.0.2.60;host=acme.app.example"} {
			r := request("origin.internal")
			r.RemoteAddr, r.Header = tt.peer, headers(line, "X-Forwarded-For: 192.0.2.60")
			serve(h, r)
			want := "origin.internal"
			if tt.believed {
				want = "acme.app.example"
			}
			if host != want {
				t.Errorf("%q, %s: Host %q, want %q: %s", tt.peer, line, host, want, tt.reason)
			}
			name, _, _ := strings.Cut(line, ":")
			if kept := header.Get(name) != ""; kept != tt.believed {
				t.Errorf("%q: the next handler sees %v: nobody below may believe what is not believed here", tt.peer, header)
			}
			if header.Get("X-Forwarded-For") == "" || r.Header.Get(name) == "" {
				t.Errorf("%q: too much was removed: %v, and %v of the caller's", tt.peer, header, r.Header)
			}
		}
	}
}

// Over HTTP/2 net/http has what was sent as host among the headers as well. It must not be there for another Host than the one
// that is believed, or resolvers would refuse the request.
func TestForwardedHostHTTP2(t *testing.T) {
	t.Parallel()
	tenant := middleware.Tenant(&fakeDirectory{}, subdomain, nil)
	r := request("origin.internal")
	r.RemoteAddr, r.Header = "10.1.2.3:4711", headers("Host: origin.internal", "X-Forwarded-Host: acme.app.example")
	if w := serve(middleware.ForwardedHost(proxies...)(tenant(echo)), r); w.Body.String() != "acme true" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if r.Header.Get("Host") == "" {
		t.Error("the caller's header was changed")
	}
}

// What a client sends that is malformed cannot make its own request fail, as it would if a proxy had sent it.
func TestForwardedHostIgnores(t *testing.T) {
	t.Parallel()
	h := middleware.ForwardedHost(proxies...)(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }))
	r := request("acme.app.example")
	r.Header = headers("X-Forwarded-Host: a", "X-Forwarded-Host: b", `Forwarded: "`)
	if w := serve(h, r); w.Code != http.StatusNoContent {
		t.Errorf("status %d", w.Code)
	}
}

// The networks are the caller's again once ForwardedHost has returned.
func TestForwardedHostCopiesNetworks(t *testing.T) {
	t.Parallel()
	networks := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	host := ""
	h := middleware.ForwardedHost(networks...)(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { host = r.Host }))
	networks[0] = netip.MustParsePrefix("0.0.0.0/0")
	r := request("origin.internal")
	r.RemoteAddr, r.Header = "192.0.2.1:4711", headers("X-Forwarded-Host: acme.app.example")
	if serve(h, r); host != "origin.internal" {
		t.Errorf("Host %q", host)
	}
}

func TestForwardedHostPanics(t *testing.T) {
	t.Parallel()
	for name, networks := range map[string][]netip.Prefix{
		"none":       nil,
		"zero":       {netip.MustParsePrefix("10.0.0.0/8"), {}},
		"bad length": {netip.PrefixFrom(netip.MustParseAddr("10.0.0.0"), 33)},
		"mapped":     {netip.MustParsePrefix("::ffff:10.0.0.0/104")},
	} {
		func() {
			defer func() {
				if got, _ := recover().(string); !strings.HasPrefix(got, "middleware.ForwardedHost: ") {
					t.Errorf("%s: panic %q", name, got)
				}
			}()
			middleware.ForwardedHost(networks...)
		}()
	}
}

// What a proxy appends to what a client sent counts, or the request is refused: the client's host never does.
func FuzzForwardedHost(f *testing.F) {
	for _, s := range []string{
		"", "host=evil.example", "host=evil.example, ", `host=evil.example;by="`, `for=";host=evil.example`, `by="\`, "host=evil.example;", "for=_x;", ", ",
		`host="evil.example";x="`, "for=192.0.2.60;proto=http", "\t", `host=evil.example;by=",for="`, `"`, `x="a\"b";host=evil.example,`,
	} {
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, client, clientX string) {
		var sent http.Header
		host, passed := "", false
		h := middleware.ForwardedHost(proxies...)(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { host, passed = r.Host, true }))
		check := func(what, want string) {
			host, passed = "", false
			r := &http.Request{Host: "origin.internal", RemoteAddr: "10.1.2.3:4711", Header: sent}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if passed == (w.Code == http.StatusBadRequest) || passed && !strings.EqualFold(host, want) {
				t.Errorf("%s: %q became the host %q, status %d, want %q", what, sent, host, w.Code, want)
			}
		}
		for _, element := range []string{
			`for=192.0.2.60;host=acme.app.example`, `for="[2001:db8::1]:80";host="acme.app.example"`, `host="acme.app.example";for="_x"`, `by="";host=acme.app.example`,
		} {
			sent = http.Header{"Forwarded": {client + ", " + element}}
			check("appended", "acme.app.example")
			sent = http.Header{"Forwarded": {client, element}}
			check("a line more", "acme.app.example")
		}
		sent = http.Header{"Forwarded": {client + ", for=192.0.2.60"}}
		check("appended without host", "origin.internal")
		sent = http.Header{"X-Forwarded-Host": {clientX + ", acme.app.example"}}
		check("X-Forwarded-Host appended", "acme.app.example")
		sent = http.Header{"X-Forwarded-Host": {clientX, "acme.app.example"}}
		check("X-Forwarded-Host, a line more", "acme.app.example")
		sent = http.Header{"X-Forwarded-Host": {"acme.app.example"}, "Forwarded": {client}}
		check("X-Forwarded-Host set, Forwarded passed on", "acme.app.example")

		// Where a proxy passes on what the client sent, a host that is set is one that resolves, or an address.
		sent = http.Header{"X-Forwarded-Host": {clientX}}
		host = ""
		h.ServeHTTP(httptest.NewRecorder(), &http.Request{Host: "origin.internal", RemoteAddr: "10.1.2.3:4711", Header: sent})
		if host != "" {
			if _, err := pgtenancy.Domain()(&http.Request{Host: host}); err != nil && !errors.Is(err, pgtenancy.ErrUnresolved) {
				t.Errorf("%q became the host %q: %v", clientX, host, err)
			}
		}
	})
}
