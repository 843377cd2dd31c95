package pgtenancy_test

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/idna"

	"github.com/pgtenancy/pgtenancy"
)

// checkRefused checks that an error of a Resolver is one of the two that blame the request, and comes without a key.
func checkRefused(t *testing.T, input string, k pgtenancy.Key, err error) {
	t.Helper()
	var invalid *pgtenancy.InvalidError
	if !errors.Is(err, pgtenancy.ErrUnresolved) && !errors.As(err, &invalid) || k != (pgtenancy.Key{}) {
		t.Errorf("%q: %v, %v", input, k, err)
	}
}

// modelHost says what a host is canonically as a URL's reader and IDNA see it, without looking at how the package does it.
func modelHost(host string) (string, error) {
	u, err := url.Parse("http://" + host + "/")
	if err != nil {
		return "", err
	}
	if u.User != nil || u.Path != "/" || u.RawQuery != "" || u.Fragment != "" {
		return "", errors.New("more than a host")
	}
	name := u.Hostname()
	ascii := strings.IndexFunc(name, func(r rune) bool { return r >= 0x80 }) < 0
	canonical, err := idna.Lookup.ToASCII(name)
	if err != nil && ascii { // DNS and browsers have names that IDNA refuses, and these are what they are
		canonical, err = strings.ToLower(name), nil
	}
	return strings.TrimSuffix(canonical, "."), err
}

// No host resolves to a tenant or a domain whose canonical host is another.
func FuzzResolveHost(f *testing.F) {
	for _, host := range []string{
		"acme.app.example", "ACME.EU.APP.EXAMPLE.:80", "www.app.example", "a.b.app.example", "acme-app.example", "[::1]:80", "127.1",
		"ａｃｍｅ。app.example", "bücher.example", "xn--bcher-kva.app.example", "a_b.app.example", "acme.app.example:80:80", "]", "-.app.example",
		"evil@acme.app.example", "acme.app.example/globex.app.example", "acme.app.example?x", "acme.app.example#x", "acme%2eapp.example",
		"acme.app.example\x00.evil.example", "acme.app.example.", "acme.app.example..", "xn--acme-.app.example", "0x7f.1", "ac\u00adme.app.example",
		"\u212a.app.example", "acme.app.example:\u0661", "аcme.app.example", "xn--qei.example", "acme.eu.app.example:", "\xff.app.example",
	} {
		f.Add(host)
	}
	bases := []string{"app.example", "eu.app.example"}
	subdomain, domain := pgtenancy.Subdomain(bases...), pgtenancy.Domain()
	f.Fuzz(func(t *testing.T, host string) {
		want, modelErr := modelHost(host)
		k, err := domain(hostRequest(host))
		if err != nil {
			checkRefused(t, host, k, err)
		} else if got, _ := k.Domain(); modelErr != nil || got != want {
			t.Errorf("%q resolved to %v; it is canonically %q, %v", host, k, want, modelErr)
		}
		k, err = subdomain(hostRequest(host))
		if err != nil {
			checkRefused(t, host, k, err)
			return
		}
		id, _ := k.ID()
		parts := strings.SplitN(want, ".", 2)
		if modelErr != nil || len(parts) < 2 || parts[0] != id || parts[1] != bases[0] && parts[1] != bases[1] {
			t.Errorf("%q resolved to %v; it is canonically %q, %v", host, k, want, modelErr)
		}
		if want == bases[1] || id == "www" || id == "api" {
			t.Errorf("%q resolved to %v, which is the service's own", host, k)
		}
	})
}

// What a path resolves to is literally a segment of what the client sent, with the prefix before it, and stays the same
// when the path is cleaned.
func FuzzResolvePath(f *testing.F) {
	for _, path := range []string{
		"/t/acme/orders", "/t/acme", "/t/", "/t", "//t/acme", "/t//acme", "/t/%61cme/x", "/t%2Facme", "/%74/acme", "/t/acme/../globex",
		"/t/acme/%2e%2e/globex", "/t/acme/..%2fglobex", "/t/acme//x", "/t/acme/%2F", "/t/%61/ ", "/t/acme;x/", "/t/acme?/t/globex", "/t/acme#/", "/t/a\\b",
	} {
		f.Add(path)
	}
	resolve := pgtenancy.PathPrefix("/t")
	f.Fuzz(func(t *testing.T, path string) {
		u, err := url.ParseRequestURI(path)
		if err != nil || u.Path == "" {
			return
		}
		k, err := resolve(&http.Request{URL: u})
		if err != nil {
			checkRefused(t, path, k, err)
			return
		}
		id, _ := k.ID()
		sent := path
		if u.Host != "" || u.Scheme != "" {
			sent = u.EscapedPath()
		}
		sent, _, _ = strings.Cut(sent, "?")
		if segments := strings.Split(sent, "/"); len(segments) < 3 || segments[0] != "" || segments[1] != "t" || segments[2] != id {
			t.Errorf("%q resolved to %v", path, k)
		}
		clean := (&url.URL{Path: u.Path}).JoinPath() // as a proxy would that unescapes the path and then cleans it
		if segments := strings.Split(clean.Path, "/"); len(segments) < 3 || segments[1] != "t" || segments[2] != id {
			t.Errorf("%q resolved to %v, and it is %q when it is cleaned", path, k, clean.Path)
		}
	})
}

// What cookies resolve to is what net/http reads of each of them.
func FuzzResolveCookie(f *testing.F) {
	for _, header := range []string{
		"tenant=acme", "a=b; tenant=acme", "tenant=acme; tenant=globex", "tenant=acme;tenant=acme", `tenant="acme"`, "tenant", "tenant=", "=tenant=acme",
		" tenant =acme\t;", "Tenant=acme", `x="; tenant=acme; "`, "tenant=acme, tenant=globex", "tenant= acme", "tenant=a_b",
	} {
		f.Add(header, "tenant=acme")
		f.Add(header, "")
	}
	resolve := pgtenancy.Cookie("tenant")
	f.Fuzz(func(t *testing.T, first, second string) {
		if !httpguts.ValidHeaderFieldValue(first) || !httpguts.ValidHeaderFieldValue(second) {
			return // as net/http does, which lets no line ends come in
		}
		r := &http.Request{Header: http.Header{"Cookie": {first, second}}}
		k, err := resolve(r)
		cookies := r.CookiesNamed("tenant")
		if err != nil {
			checkRefused(t, first, k, err)
			if errors.Is(err, pgtenancy.ErrUnresolved) && len(cookies) > 0 {
				t.Errorf("%q, %q: %v, though net/http reads %v", first, second, err, cookies)
			}
			return
		}
		id, _ := k.ID()
		if len(cookies) == 0 && strings.Count(first+second, ";") < 100 {
			t.Errorf("%q, %q resolved to %v, and net/http reads nothing", first, second, k)
		}
		for _, c := range cookies {
			if c.Value != id {
				t.Errorf("%q, %q resolved to %v, and net/http reads %v", first, second, k, c)
			}
		}
	})
}
