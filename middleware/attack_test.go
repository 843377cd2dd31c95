package middleware_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/pgtenancy/pgtenancy"
	"github.com/pgtenancy/pgtenancy/middleware"
)

// registry is a directory of acme and globex, both active. shop.acme.example is acme's. So is what should never be asked for:
// the reserved ID admin, and every domain that looks like an IP address.
type registry struct{}

func (registry) Lookup(_ context.Context, k pgtenancy.Key) (pgtenancy.Tenant, error) {
	switch k {
	case pgtenancy.ByID("acme"), pgtenancy.ByID("admin"), pgtenancy.ByDomain("shop.acme.example"):
		return pgtenancy.NewTenant(pgtenancy.TenantInfo{ID: "acme"})
	case pgtenancy.ByID("globex"):
		return pgtenancy.NewTenant(pgtenancy.TenantInfo{ID: "globex"})
	}
	if domain, ok := k.Domain(); ok && strings.Trim(domain, "0123456789abcdefx.:[]") == "" {
		return pgtenancy.NewTenant(pgtenancy.TenantInfo{ID: "acme"})
	}
	return pgtenancy.Tenant{}, pgtenancy.ErrTenantNotFound
}

// target is a server on the network that answers with the tenant its handler saw, and notes it.
type target struct {
	addr net.Addr
	mu   sync.Mutex
	seen []string
}

// serveTarget starts a server whose handler is wrapped. It speaks HTTP/1 and HTTP/2 without TLS.
func serveTarget(t *testing.T, network, address string, wrap func(http.Handler) http.Handler) *target {
	t.Helper()
	listener, err := new(net.ListenConfig).Listen(t.Context(), network, address)
	if err != nil {
		t.Fatal(err)
	}
	s := &target{addr: listener.Addr()}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{
		Protocols: protocols,
		ErrorLog:  log.New(io.Discard, "", 0),
		Handler: wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body) // to its trailers
			tenant, _ := pgtenancy.TenantFromContext(r.Context())
			s.mu.Lock()
			defer s.mu.Unlock()
			s.seen = append(s.seen, tenant.ID())
			w.Header().Set("X-Path", "path "+r.URL.EscapedPath())
			fmt.Fprint(w, tenant)
		})),
	}
	done := make(chan error)
	go func() { done <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return s
}

func (s *target) dial(t *testing.T) net.Conn {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), s.addr.Network(), s.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// send sends bytes as they are and returns the answers: for each its status, and the tenant where the handler was reached.
// The server must close the connection after the last.
func (s *target) send(t *testing.T, raw string) string {
	t.Helper()
	conn := s.dial(t)
	if _, err := io.WriteString(conn, raw); err != nil {
		t.Fatal(err)
	}
	var answers []string
	for in := bufio.NewReader(conn); ; {
		if _, err := in.Peek(1); err != nil {
			break // closed
		}
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		answers = append(answers, s.answer(t, resp.StatusCode, resp.Header.Get("X-Path"), string(body)))
	}
	conn.Close()
	s.checkAllSeen(t)
	return strings.Join(answers, "; ")
}

// answer describes an answer. What the handler saw has to be what it said.
func (s *target) answer(t *testing.T, status int, path, body string) string {
	t.Helper()
	path, reached := strings.CutPrefix(path+" ", "path ")
	if !reached {
		return fmt.Sprint(status)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.seen) == 0 || s.seen[0] != body {
		t.Fatalf("answered with tenant %q, the handler saw %q", body, s.seen)
	}
	s.seen = s.seen[1:]
	if path = strings.TrimSpace(path); path != "/" && path != "" {
		return fmt.Sprintf("%d %s %s", status, body, path)
	}
	return fmt.Sprintf("%d %s", status, body)
}

// checkAllSeen checks that the handler saw no request that got no answer.
func (s *target) checkAllSeen(t *testing.T) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.seen) > 0 {
		t.Errorf("the handler was reached as well for %q", s.seen)
		s.seen = nil
	}
}

// lines is a request of HTTP/1 after which the connection is closed.
func lines(l ...string) string {
	return strings.Join(append(l, "Connection: close", "", ""), "\r\n")
}

// get is a request for / with a Host, and more headers.
func get(host string, more ...string) string {
	return lines(append([]string{"GET / HTTP/1.1", "Host: " + host}, more...)...)
}

// attack is a request and what may come of it: the status, and the tenant where the handler is reached.
type attack struct{ name, raw, want, reason string }

func (s *target) run(t *testing.T, attacks []attack) {
	t.Helper()
	for _, a := range attacks {
		if got := s.send(t, a.raw); got != a.want {
			t.Errorf("%s: got %q, want %q: %s\n%.300q", a.name, got, a.want, a.reason, a.raw)
		}
	}
}

// The service of these attacks has a tenant for each subdomain of app.example, and for domains of the tenants' own. It is not
// behind a proxy, or the proxy is in 10.0.0.0/8 and the attacker is not.
func TestAttackHost(t *testing.T) {
	t.Parallel()
	resolve := pgtenancy.First(pgtenancy.Subdomain("app.example"), pgtenancy.Domain())
	tenant := middleware.Tenant(registry{}, resolve, nil)
	behindProxy := middleware.ForwardedHost(netip.MustParsePrefix("10.0.0.0/8"))
	label63 := strings.Repeat("a", 63)
	attacks := []attack{
		{"its own", get("globex.app.example"), "200 globex", "what all others are measured by"},
		{"port", get("globex.app.example:8080"), "200 globex", "the port is not the tenant's"},
		{"domain", get("SHOP.acme.example."), "200 acme", "a host is canonical before it is compared"},
		{"bare LF", "GET / HTTP/1.1\nHost: globex.app.example\nConnection: close\n\n", "200 globex", "net/http takes such lines"},
		{
			"two requests on a connection", "GET / HTTP/1.1\r\nHost: globex.app.example\r\n\r\n" + get("acme.app.example"), "200 globex; 200 acme",
			"nothing of a request stays on its connection",
		},
		{
			"second request without Host", "GET / HTTP/1.1\r\nHost: acme.app.example\r\n\r\n" + lines("GET / HTTP/1.1"), "200 acme; 400",
			"nothing of a request stays on its connection",
		},

		{"absolute form", lines("GET http://globex.app.example/ HTTP/1.1", "Host: acme.app.example"), "200 globex", "the target counts, Host does not (RFC 9112, section 3.2.2)"},
		{"absolute form, same", lines("GET http://globex.app.example/ HTTP/1.1", "Host: globex.app.example"), "200 globex", "they agree"},
		{"absolute form, no Host", lines("GET http://globex.app.example/ HTTP/1.1"), "400", "HTTP/1.1 needs a Host in any form"},
		{"absolute form, two Hosts", lines("GET http://globex.app.example/ HTTP/1.1", "Host: globex.app.example", "Host: acme.app.example"), "400", "two are never right"},
		{"absolute form, user", lines("GET http://acme.app.example@globex.app.example/ HTTP/1.1", "Host: acme.app.example"), "200 globex", "what is before the @ is no host"},
		{"absolute form, user and port", lines("GET http://acme.app.example:80@globex.app.example:80/ HTTP/1.1", "Host: acme.app.example"), "200 globex", "what is before the @ is no host"},
		{"absolute form, backslash", lines(`GET http://globex.app.example\@acme.app.example/ HTTP/1.1`, "Host: globex.app.example"), "400", "browsers and servers disagree on where the host ends"},
		{"absolute form, fragment", lines("GET http://globex.app.example#@acme.app.example/ HTTP/1.1", "Host: globex.app.example"), "400", "a request has none, and it is not cut off silently"},
		{"absolute form, query", lines("GET http://globex.app.example?@acme.app.example/ HTTP/1.1", "Host: globex.app.example"), "200 globex", "the host ends at the ?"},
		{"absolute form, no host", lines("GET http:///x HTTP/1.1", "Host: globex.app.example"), "200 globex /x", "it names none, so Host does"},
		{"absolute form, escaped letter", lines("GET http://%61cme.app.example/ HTTP/1.1", "Host: globex.app.example"), "400", "hosts have no such escapes"},
		{"absolute form, escaped dot", lines("GET http://acme%2eapp.example/ HTTP/1.1", "Host: globex.app.example"), "400", "hosts have no such escapes"},
		{"absolute form, escaped NUL", lines("GET http://acme.app.example%00.evil.example/ HTTP/1.1", "Host: globex.app.example"), "400", "hosts have no such escapes"},
		{"absolute form, wide letters", lines("GET http://ａｃｍｅ.app.example/ HTTP/1.1", "Host: globex.app.example"), "200 acme", "IDNA and browsers say that this is acme"},
		{"absolute form, homoglyph", lines("GET http://аcme.app.example/ HTTP/1.1", "Host: acme.app.example"), "400", "a Cyrillic letter is none of acme's"},
		{"absolute form, homoglyph escaped", lines("GET http://%D0%B0cme.app.example/ HTTP/1.1", "Host: acme.app.example"), "400", "a Cyrillic letter is none of acme's"},
		{"absolute form, IPv6", lines("GET http://[::1]/ HTTP/1.1", "Host: acme.app.example"), "404", "an address is no tenant's, and Host does not count"},
		{"absolute form, other scheme", lines("GET gopher://globex.app.example/ HTTP/1.1", "Host: acme.app.example"), "200 globex", "the target's host counts, whatever its scheme"},
		{"opaque target", lines("GET mailto:x@acme.app.example HTTP/1.1", "Host: globex.app.example"), "200 globex", "it names no host, so Host does"},
		{"authority as target", lines("GET acme.app.example:80 HTTP/1.1", "Host: globex.app.example"), "200 globex", "a scheme and nothing, to net/http: it names no host, so Host does"},
		{"two slashes", lines("GET //acme.app.example/ HTTP/1.1", "Host: globex.app.example"), "200 globex //acme.app.example/", "it is a path, not a host"},
		{"all of the server", lines("OPTIONS * HTTP/1.1", "Host: globex.app.example"), "200", "net/http answers it itself: no handler is reached"},

		{"two Hosts", lines("GET / HTTP/1.1", "Host: globex.app.example", "Host: acme.app.example"), "400", "a proxy may have looked at the other"},
		{"the same Host twice", lines("GET / HTTP/1.1", "Host: globex.app.example", "Host: globex.app.example"), "400", "net/http refuses any two"},
		{"Host in another case", lines("GET / HTTP/1.1", "Host: globex.app.example", "hOST: acme.app.example"), "400", "names of headers have no case"},
		{"space before the colon", lines("GET / HTTP/1.1", "Host: globex.app.example", "Host : acme.app.example"), "400", "some servers would take it"},
		{"indented Host", lines("GET / HTTP/1.1", "Host: globex.app.example", " Host: acme.app.example"), "400", "it continues the line before: a host with a space"},
		{"indented Host first", lines("GET / HTTP/1.1", " Host: acme.app.example", "Host: globex.app.example"), "400", "some servers would take it"},
		{"folded", lines("GET / HTTP/1.1", "Host: acme", " .app.example"), "400", "it continues the line before: a host with a space"},
		{"no name", lines("GET / HTTP/1.1", "Host: globex.app.example", ": acme.app.example"), "400", "no header"},
		{"no Host", lines("GET / HTTP/1.1"), "400", "HTTP/1.1 needs one"},
		{"empty Host", get(""), "404", "legal, and nobody's"},
		{"blank Host", get(" \t "), "404", "the same"},
		{"list of Hosts", get("globex.app.example, acme.app.example"), "400", "no host"},
		{"two in one", get("globex.app.example acme.app.example"), "400", "no host"},
		{"HTTP/1.0 without Host", "GET / HTTP/1.0\r\n\r\n", "404", "legal, and nobody's"},
		{"HTTP/1.0", "GET / HTTP/1.0\r\nHost: globex.app.example\r\n\r\n", "200 globex", "Host counts there too"},
		{"HTTP/1.0, absolute form", "GET http://globex.app.example/ HTTP/1.0\r\n\r\n", "200 globex", "the target names it"},
		{"HTTP/0.9", "GET /?host=acme.app.example\r\n\r\n", "400", "not spoken"},
		{"trailer", lines("POST / HTTP/1.1", "Host: globex.app.example", "Transfer-Encoding: chunked", "Trailer: X-Forwarded-Host") + "0\r\nHost: acme.app.example\r\nX-Forwarded-Host: acme.app.example\r\n\r\n", "200 globex", "what comes after the body is no header"},

		{"CONNECT", lines("CONNECT globex.app.example:443 HTTP/1.1", "Host: acme.app.example"), "200 globex", "the target counts, Host does not"},
		{"CONNECT, user", lines("CONNECT acme.app.example@globex.app.example:443 HTTP/1.1", "Host: acme.app.example"), "200 globex", "what is before the @ is no host"},
		{"CONNECT, path", lines("CONNECT /acme.app.example HTTP/1.1", "Host: globex.app.example"), "200 globex /acme.app.example", "the form of RPC over HTTP: a path"},
		{"CONNECT, IPv6", lines("CONNECT [::1]:443 HTTP/1.1", "Host: acme.app.example"), "404", "an address is no tenant's"},

		{"user", get("acme.app.example@globex.app.example"), "400", "a Host has no user"},
		{"user first", get("globex@acme.app.example"), "400", "a Host has no user"},
		{"path", get("acme.app.example/.globex.app.example"), "400", "a Host has no path"},
		{"backslash", get(`acme.app.example\.globex.app.example`), "400", "no host"},
		{"query", get("acme.app.example?.globex.app.example"), "400", "a Host has no query"},
		{"fragment", get("acme.app.example#.globex.app.example"), "400", "a Host has no fragment"},
		{"URL", get("http://acme.app.example"), "400", "a Host has no scheme"},
		{"NUL", get("acme.app.example\x00.globex.app.example"), "400", "where does a string end?"},
		{"NUL at the end", get("acme.app.example\x00"), "400", "where does a string end?"},
		{"tab", get("acme.app.example\t.globex.app.example"), "400", "no host"},
		{"vertical tab", get("acme\v.app.example"), "400", "no host"},
		{"bare CR", get("acme.app.example\r.globex.app.example"), "400", "some servers end the line there"},
		{"CRLF", get("globex.app.example\r\nX-Forwarded-Host: acme.app.example"), "200 globex", "a header of the client's own, which nobody believes"},
		{"DEL", get("acme\x7f.app.example"), "400", "no host"},
		{"escaped", get("%61cme.app.example"), "400", "hosts have no escapes"},
		{"escaped dot", get("acme%2eapp.example"), "400", "hosts have no escapes"},
		{"escaped NUL", get("acme.app.example%00"), "400", "hosts have no escapes"},
		{"quotes", get(`"acme.app.example"`), "400", "no host"},
		{"wildcard", get("*.app.example"), "400", "nobody's name"},
		{"SQL", get(`acme';drop schema tenant_acme;--.app.example`), "400", "no host"},
		{"parentheses", get("acme(x).app.example"), "400", "net/http lets them through, and no host has them"},

		{"nested", get("acme.globex.app.example"), "400", "neither acme nor globex"},
		{"nested reserved", get("www.acme.app.example"), "400", "not acme"},
		{"suffix", get("acme.app.example.evil.example"), "404", "not below the base"},
		{"prefix", get("evilapp.example"), "404", "not below the base"},
		{"hyphen for the dot", get("acme-app.example"), "404", "not below the base"},
		{"base", get("app.example"), "404", "the service's own"},
		{"reserved", get("admin.app.example"), "404", "the service's own"},
		{"reserved, upper case", get("ADMIN.APP.EXAMPLE"), "404", "the service's own"},
		{"upper case", get("GLOBEX.APP.EXAMPLE"), "200 globex", "hosts have no case"},
		{"dot at the end", get("globex.app.example."), "200 globex", "the root's"},
		{"two dots at the end", get("globex.app.example.."), "400", "an empty label"},
		{"two dots", get("acme..app.example"), "400", "an empty label"},
		{"dot at the beginning", get(".acme.app.example"), "400", "an empty label"},
		{"dot alone", get("."), "400", "the root is no host"},
		{"underscore", get("a_cme.app.example"), "400", "its schema could be another's"},
		{"hyphen first", get("-acme.app.example"), "400", "no label"},
		{"hyphen last", get("acme-.app.example"), "400", "no label"},
		{"port that is none", get("globex.app.example:acme"), "400", "no port"},
		{"port of a user", get("globex.app.example:80@acme.app.example"), "400", "no port"},
		{"two ports", get("globex.app.example:80:80"), "400", "no port"},
		{"negative port", get("globex.app.example:-80"), "400", "no port"},
		{"huge port", get("globex.app.example:99999999999999999999"), "200 globex", "digits: no port to connect to, and not the tenant's"},
		{"port alone", get(":80"), "400", "no host"},

		{"IPv4", get("127.0.0.1"), "404", "an address is no tenant's"},
		{"IPv4, decimal", get("2130706433"), "404", "127.0.0.1 to a browser"},
		{"IPv4, octal", get("0177.0.0.1"), "404", "127.0.0.1 to a browser"},
		{"IPv4, one octal", get("017700000001"), "404", "127.0.0.1 to a browser"},
		{"IPv4, hexadecimal", get("0x7f.0x0.0x0.0x1"), "404", "127.0.0.1 to a browser"},
		{"IPv4, one hexadecimal", get("0X7F000001"), "404", "127.0.0.1 to a browser"},
		{"IPv4, short", get("127.1"), "404", "127.0.0.1 to a browser"},
		{"IPv4 below the base", get("127.0.0.1.app.example"), "400", "four labels, and no address"},
		{"number below the base", get("0x7f.app.example"), "404", "an ID like any other, which nobody has"},
		{"IPv6", get("[::1]:80"), "404", "an address is no tenant's"},
		{"IPv6 without brackets", get("::1"), "404", "an address is no tenant's"},
		{"IPv6, mapped", get("[::ffff:127.0.0.1]"), "404", "an address is no tenant's"},
		{"IPv6, zone", get("[fe80::1%25acme.app.example]"), "404", "an address, whatever its zone is called"},
		{"IPv6, more", get("[::1].acme.app.example"), "400", "an address and a host"},
		{"IPv6, port of a host", get("[::1]:80.acme.app.example"), "400", "no port"},
		{"name in brackets", get("[acme.app.example]"), "400", "no IPv6 address"},
		{"open bracket", get("[acme.app.example"), "400", "no IPv6 address"},

		{"unicode", get("аcme.app.example"), "400", "net/http wants ASCII in Host"},
		{"wide letters", get("ａｃｍｅ.app.example"), "400", "net/http wants ASCII in Host"},
		{"wide dot", get("acme。app.example"), "400", "net/http wants ASCII in Host"},
		{"soft hyphen", get("ac\u00adme.app.example"), "400", "net/http wants ASCII in Host"},
		{"overlong UTF-8", get("acme\xc0\xaeapp.example"), "400", "net/http wants ASCII in Host"},
		{"homoglyph, punycode", get("xn--cme-7cd.app.example"), "400", "аcme with a Cyrillic letter: no ID is encoded"},
		{"punycode of ASCII", get("xn--acme-.app.example"), "400", "it decodes to acme, and is not how acme is written"},
		{"long label", get(label63 + "a.app.example"), "400", "64 bytes"},
		{"longest label", get(label63 + ".app.example"), "404", "63 bytes: an ID that nobody has"},
		{"cut off", get("acme" + strings.Repeat("\u0000", 60) + ".app.example"), "400", "where does a string end?"},
		{"long host", get(strings.Repeat("a.", 130) + "acme.app.example"), "400", "more than 253 bytes"},
		{"very long host", get(strings.Repeat("acme.", 10_000) + "app.example"), "400", "50 kB"},
		{"X-Forwarded-Host", get("globex.app.example", "X-Forwarded-Host: acme.app.example"), "200 globex", "anybody can send it"},
		{"X-Forwarded-Host, malformed", get("globex.app.example", "X-Forwarded-Host: \"", "X-Forwarded-Host: b"), "200 globex", "nobody reads it"},
		{"Forwarded", get("globex.app.example", "Forwarded: for=10.0.0.1;host=acme.app.example"), "200 globex", "anybody can send it, whatever address it names"},
		{"from a proxy, it says", get("globex.app.example", "X-Forwarded-For: 10.0.0.1", "X-Real-IP: 10.0.0.1", "X-Forwarded-Host: acme.app.example"), "200 globex", "the peer counts, not what it says"},
		{
			"headers of other products", get("globex.app.example", "X-Host: acme.app.example", "X-Original-Host: acme.app.example", "X-HTTP-Host-Override: acme.app.example",
				"X-Forwarded-Server: acme.app.example", "X_Forwarded_Host: acme.app.example", "X-Original-URL: http://acme.app.example/", "X-Rewrite-URL: /t/acme",
				"X-Tenant: acme", "Origin: http://acme.app.example", "Referer: http://acme.app.example/", "Cookie: tenant=acme"), "200 globex", "nobody reads them",
		},
		{"no Host but X-Forwarded-Host", lines("GET / HTTP/1.1", "X-Forwarded-Host: acme.app.example"), "400", "it does not stand in for Host"},
		{"HTTP/1.0, X-Forwarded-Host", "GET / HTTP/1.0\r\nX-Forwarded-Host: acme.app.example\r\n\r\n", "404", "it does not stand in for Host"},
	}
	t.Run("no proxy", func(t *testing.T) {
		t.Parallel()
		serveTarget(t, "tcp", "127.0.0.1:0", tenant).run(t, attacks)
	})
	t.Run("past the proxy", func(t *testing.T) {
		t.Parallel()
		serveTarget(t, "tcp", "127.0.0.1:0", func(h http.Handler) http.Handler { return behindProxy(tenant(h)) }).run(t, attacks)
	})
	t.Run("unix socket", func(t *testing.T) {
		t.Parallel()
		everybody := middleware.ForwardedHost(netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0"))
		socket := filepath.Join(t.TempDir(), "s")
		serveTarget(t, "unix", socket, func(h http.Handler) http.Handler { return everybody(tenant(h)) }).run(t, attacks)
	})
}

// The attacker's requests come through a proxy that is believed.
func TestAttackForwardedHost(t *testing.T) {
	t.Parallel()
	behindProxy := middleware.ForwardedHost(netip.MustParsePrefix("127.0.0.0/8"))
	tenant := middleware.Tenant(registry{}, pgtenancy.Subdomain("app.example"), nil)
	const origin = "origin.internal"
	serveTarget(t, "tcp", "127.0.0.1:0", func(h http.Handler) http.Handler { return behindProxy(tenant(h)) }).run(t, []attack{
		{"set", get(origin, "X-Forwarded-Host: globex.app.example"), "200 globex", "what the client sent as Host"},
		{"appended", get(origin, "X-Forwarded-Host: acme.app.example, globex.app.example"), "200 globex", "the proxy's is the last"},
		{"a line more", get(origin, "X-Forwarded-Host: acme.app.example", "X-Forwarded-Host: globex.app.example"), "400", "nothing tells which is the proxy's"},
		{"lower case", get(origin, "x-forwarded-host: globex.app.example"), "200 globex", "names of headers have no case"},
		{"underscores", get(origin, "X_Forwarded_Host: acme.app.example"), "404", "another header"},
		{"empty", get("acme.app.example", "X-Forwarded-Host:"), "400", "no fall back to Host"},
		{"malformed", get("acme.app.example", "X-Forwarded-Host: globex.app.example/"), "400", "no fall back to Host"},
		{"folded", get(origin, "X-Forwarded-Host: acme.app.example,", " globex.app.example"), "200 globex", "one line, to HTTP"},
		{"Forwarded", get(origin, "Forwarded: for=192.0.2.1;host=globex.app.example"), "200 globex", "what the client sent as Host"},
		{"Forwarded, appended", get(origin, "Forwarded: host=acme.app.example, for=192.0.2.1;host=globex.app.example"), "200 globex", "the proxy's is the last"},
		{"Forwarded, a line more", get(origin, "Forwarded: host=acme.app.example", "Forwarded: for=192.0.2.1;host=globex.app.example"), "200 globex", "the proxy's is the last"},
		{"Forwarded, open quote", get(origin, `Forwarded: host=acme.app.example;x=", for="[2001:db8::1]";host=globex.app.example`), "400", "the client's quote ends where the proxy's begins"},
		{"Forwarded, without host", get("globex.app.example", "Forwarded: host=acme.app.example, for=192.0.2.1"), "200 globex", "the proxy passed on Host"},
		{"both disagree", get(origin, "X-Forwarded-Host: globex.app.example", "Forwarded: host=acme.app.example"), "400", "the proxy sets one and passes on the other"},
		{"both agree", get(origin, "X-Forwarded-Host: globex.app.example", "Forwarded: host=globex.app.example"), "200 globex", "the proxy sets both"},
		{"absolute form", lines("GET http://acme.app.example/ HTTP/1.1", "Host: "+origin, "X-Forwarded-Host: globex.app.example"), "200 globex", "what the proxy says counts"},
		{"homoglyph", get(origin, "X-Forwarded-Host: аcme.app.example"), "400", "a Cyrillic letter is none of acme's"},
		{"address", get("acme.app.example", "X-Forwarded-Host: 127.0.0.1"), "404", "the client asked for an address, which is nobody's"},
	})
}

// All tenants have one host, and the path says which.
func TestAttackPath(t *testing.T) {
	t.Parallel()
	tenant := middleware.Tenant(registry{}, pgtenancy.PathPrefix("/t"), &middleware.TenantOpts{StripPrefix: "/t"})
	path := func(target string) string { return lines("GET "+target+" HTTP/1.1", "Host: app.example") }
	serveTarget(t, "tcp", "127.0.0.1:0", tenant).run(t, []attack{
		{"its own", path("/t/globex/orders"), "200 globex /orders", "what all others are measured by"},
		{"absolute form", path("http://app.example/t/globex/orders"), "200 globex /orders", "the target's path"},
		{"up", path("/t/globex/../acme/orders"), "400", "acme's for a proxy that cleans paths"},
		{"up, escaped", path("/t/globex/%2e%2e/acme/orders"), "400", "acme's for a proxy that unescapes and cleans paths"},
		{"up, half escaped", path("/t/globex/.%2E/acme/orders"), "400", "acme's for a proxy that unescapes and cleans paths"},
		{"up, slashes escaped", path("/t/globex/..%2facme/orders"), "400", "acme's for a proxy that unescapes and cleans paths"},
		{"up, escaped twice", path("/t/globex/%252e%252e/acme"), "200 globex /%252e%252e/acme", "unescaped once, it is a name"},
		{"up, backslash", path(`/t/globex/..\..\acme`), `200 globex /..%5C..%5Cacme`, "a backslash is no slash"},
		{"escaped slash", path("/t/globex%2facme/orders"), "400", "no ID"},
		{"escaped slash, something not escaped", path("/t/globex%2facme/|"), "400", "net/url unescapes all of such a path"},
		{"escaped letter", path("/t/%61cme/orders"), "400", "acme's to some, nobody's to others"},
		{"escaped prefix", path("/%74/acme/orders"), "400", "acme's to some, nobody's to others"},
		{"parameter", path("/t/acme;/orders"), "400", "some servers cut it off"},
		{"NUL", path("/t/acme%00/orders"), "400", "where does a string end?"},
		{"raw NUL", path("/t/acme\x00/orders"), "400", "no target"},
		{"space", path("/t/acme /orders"), "400", "no target"},
		{"tab", path("/t/acme\t/orders"), "400", "no target"},
		{"two slashes", path("//t/acme/orders"), "404", "not below the prefix"},
		{"two slashes before the ID", path("/t//acme/orders"), "400", "no ID"},
		{"two slashes after the ID", path("/t/globex//evil.example"), "400", "what is left would be a host in a redirect"},
		{"upper case prefix", path("/T/acme/orders"), "404", "not below the prefix"},
		{"upper case", path("/t/ACME/orders"), "400", "no ID"},
		{"fragment", path("/t/globex#/t/acme"), "400", "no ID: net/http leaves it in the path"},
		{"query", path("/t/globex?/../acme"), "200 globex", "no path"},
		{"subdomain", lines("GET /t/globex/x HTTP/1.1", "Host: acme.app.example"), "200 globex /x", "the host does not count here"},
		{"CONNECT", lines("CONNECT app.example:80 HTTP/1.1", "Host: app.example"), "404", "it has no path"},
		{"headers of other products", lines("GET /t/globex/x HTTP/1.1", "Host: app.example", "X-Original-URL: /t/acme/x", "X-Rewrite-URL: /t/acme/x", "X-Forwarded-Prefix: /t/acme"), "200 globex /x", "nobody reads them"},
	})
}

// The attacker is a user of globex, whose session is in the cookie s, and wants acme's data.
func TestAttackSession(t *testing.T) {
	t.Parallel()
	match := middleware.MatchTenant(func(r *http.Request) (string, bool) {
		c, err := r.Cookie("s")
		if err != nil {
			return "", false
		}
		id, ok := map[string]string{"of-acme": "acme", "of-globex": "globex"}[c.Value]
		return id, ok
	}, nil)
	bySubdomain := middleware.Tenant(registry{}, pgtenancy.Subdomain("app.example"), nil)
	byCookie := middleware.Tenant(registry{}, pgtenancy.Cookie("tenant"), nil)
	t.Run("subdomain", func(t *testing.T) {
		t.Parallel()
		serveTarget(t, "tcp", "127.0.0.1:0", func(h http.Handler) http.Handler { return bySubdomain(match(h)) }).run(t, []attack{
			{"its own", get("globex.app.example", "Cookie: s=of-globex"), "200 globex", "what all others are measured by"},
			{"replayed", get("acme.app.example", "Cookie: s=of-globex"), "403", "the session is globex's"},
			{"replayed, absolute form", lines("GET http://acme.app.example/ HTTP/1.1", "Host: globex.app.example", "Cookie: s=of-globex"), "403", "the target counts, for both"},
			{"without", get("acme.app.example"), "403", "nobody is logged in"},
			{"forged", get("acme.app.example", "Cookie: s=of-nobody"), "403", "nobody is logged in"},
			{"no tenant", get("app.example", "Cookie: s=of-globex"), "404", "the session does not say which tenant the request is for"},
		})
	})
	t.Run("cookie", func(t *testing.T) {
		t.Parallel()
		serveTarget(t, "tcp", "127.0.0.1:0", func(h http.Handler) http.Handler { return byCookie(match(h)) }).run(t, []attack{
			{"its own", get("app.example", "Cookie: tenant=globex; s=of-globex"), "200 globex", "what all others are measured by"},
			{"changed", get("app.example", "Cookie: tenant=acme; s=of-globex"), "403", "the session is globex's"},
			{"planted beside", get("app.example", "Cookie: tenant=globex; s=of-globex; tenant=acme"), "400", "one of them was planted"},
			{"planted in a line more", get("app.example", "Cookie: tenant=acme", "Cookie: tenant=globex; s=of-globex"), "400", "one of them was planted"},
			{"planted alone", get("app.example", "Cookie: tenant=globex; s=of-acme"), "403", "the victim does not work in the attacker's tenant"},
			{"malformed beside", get("app.example", `Cookie: tenant="\"; tenant=globex; s=of-globex`), "400", "net/http would not see the first"},
			{"none", get("app.example", "Cookie: s=of-globex"), "404", "the session does not say which tenant the request is for"},
			{"nameless", get("app.example", "Cookie: s=of-globex; =tenant=globex"), "404", "its name is empty, not tenant"},
		})
	})
	t.Run("not matched", func(t *testing.T) {
		t.Parallel()
		serveTarget(t, "tcp", "127.0.0.1:0", func(h http.Handler) http.Handler { return match(bySubdomain(h)) }).run(t, []attack{
			{"outside of Tenant", get("globex.app.example", "Cookie: s=of-globex"), "500", "nothing to compare with, whoever asks"},
		})
	})
}

// HTTP/2 has :authority for the host, and net/http takes what a client of its own would never send.
func TestAttackHTTP2(t *testing.T) {
	t.Parallel()
	behindProxy := middleware.ForwardedHost(netip.MustParsePrefix("10.0.0.0/8"))
	tenant := middleware.Tenant(registry{}, pgtenancy.Subdomain("app.example"), nil)
	s := serveTarget(t, "tcp", "127.0.0.1:0", func(h http.Handler) http.Handler { return behindProxy(tenant(h)) })
	const refused = "refused" // net/http resets the stream
	tests := []struct {
		name   string
		fields []string // after :method and :scheme, which are always the same
		want   string
		reason string
	}{
		{"authority", []string{":path: /", ":authority: globex.app.example"}, "200 globex", "what all others are measured by"},
		{"host", []string{":path: /", "host: globex.app.example"}, "200 globex", "for what was HTTP/1 before a proxy (RFC 9113, section 8.3.1)"},
		{"both agree", []string{":path: /", ":authority: globex.app.example", "host: globex.app.example"}, "200 globex", "they agree"},
		{"both disagree", []string{":path: /", ":authority: globex.app.example", "host: acme.app.example"}, "400", "a proxy may have looked at the other (RFC 9113, section 8.3.1)"},
		{"both, in another case", []string{":path: /", ":authority: globex.app.example", "host: GLOBEX.app.example"}, "200 globex", "they agree"},
		{"both disagree, on an address", []string{":path: /", ":authority: [::1]", "host: acme.app.example"}, "400", "a proxy may have looked at the other"},
		{"neither", []string{":path: /"}, "404", "nobody's"},
		{"empty authority", []string{":path: /", ":authority: ", "host: globex.app.example"}, "200 globex", "as good as none"},
		{"two authorities", []string{":path: /", ":authority: globex.app.example", ":authority: acme.app.example"}, refused, "a proxy may have looked at the other"},
		{"two hosts", []string{":path: /", "host: globex.app.example", "host: acme.app.example"}, "400", "a proxy may have looked at the other"},
		{"user", []string{":path: /", ":authority: acme.app.example@globex.app.example"}, refused, "an authority of HTTP has no user"},
		{"path", []string{":path: /", ":authority: acme.app.example/x"}, "400", "no host"},
		{"list", []string{":path: /", ":authority: globex.app.example,acme.app.example"}, "400", "no host"},
		{"space", []string{":path: /", ":authority: acme.app.example globex.app.example"}, "400", "no host"},
		{"NUL", []string{":path: /", ":authority: acme.app.example\x00"}, refused, "no value of a header"},
		{"CRLF", []string{":path: /", ":authority: globex.app.example\r\nhost: acme.app.example"}, refused, "no value of a header"},
		{"unicode", []string{":path: /", ":authority: аcme.app.example"}, "400", "a Cyrillic letter is none of acme's"},
		{"wide letters", []string{":path: /", ":authority: ａｃｍｅ.app.example"}, "200 acme", "IDNA and browsers say that this is acme"},
		{"IPv6", []string{":path: /", ":authority: [::1]:80"}, "404", "an address is no tenant's"},
		{"absolute form", []string{":path: http://acme.app.example/", ":authority: globex.app.example"}, "200 globex", ":authority counts, :path does not"},
		{"two slashes", []string{":path: //acme.app.example/", ":authority: globex.app.example"}, "200 globex //acme.app.example/", "it is a path, not a host"},
		{"upper case Host", []string{":path: /", ":authority: globex.app.example", "Host: acme.app.example"}, refused, "names are lower case"},
		{"authority after headers", []string{":path: /", "x: y", ":authority: acme.app.example"}, refused, "pseudo-headers come first"},
		{"x-forwarded-host", []string{":path: /", ":authority: globex.app.example", "x-forwarded-host: acme.app.example"}, "200 globex", "anybody can send it"},
		{"forwarded", []string{":path: /", ":authority: globex.app.example", "forwarded: host=acme.app.example"}, "200 globex", "anybody can send it"},
	}
	for _, tt := range tests {
		if got := s.sendHTTP2(t, tt.fields); got != tt.want {
			t.Errorf("%s: got %q, want %q: %s", tt.name, got, tt.want, tt.reason)
		}
	}
}

// sendHTTP2 sends the fields as they are and returns the answer as send does, or that the stream or connection was ended without.
func (s *target) sendHTTP2(t *testing.T, fields []string) string {
	t.Helper()
	conn := s.dial(t)
	defer conn.Close()
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	framer := http2.NewFramer(conn, conn)
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for _, f := range append([]string{":method: GET", ":scheme: http"}, fields...) {
		name, value, _ := strings.Cut(f[1:], ": ") // the first character may be a colon
		if err := encoder.WriteField(hpack.HeaderField{Name: f[:1] + name, Value: value}); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(framer.WriteSettings(), framer.WriteHeaders(http2.HeadersFrameParam{
		StreamID: 1, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true,
	})); err != nil {
		t.Fatal(err)
	}
	status, path, body, answered := 0, "", "", false
	for !answered {
		frame, err := framer.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		switch f := frame.(type) {
		case *http2.MetaHeadersFrame:
			if _, err := fmt.Sscan(f.PseudoValue("status"), &status); err != nil {
				t.Fatal(err)
			}
			for _, h := range f.RegularFields() {
				if h.Name == "x-path" {
					path = h.Value
				}
			}
			answered = f.StreamEnded()
		case *http2.DataFrame:
			body += string(f.Data())
			answered = f.StreamEnded()
		case *http2.RSTStreamFrame, *http2.GoAwayFrame:
			s.checkAllSeen(t)
			return "refused"
		}
	}
	got := s.answer(t, status, path, body)
	s.checkAllSeen(t)
	return got
}
