package middleware

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/pgtenancy/pgtenancy"
)

const (
	headerForwarded     = "Forwarded"
	headerForwardedHost = "X-Forwarded-Host"
)

// ForwardedHost returns middleware for services behind a proxy that does not pass on the Host which the client sent, but says in
// X-Forwarded-Host or Forwarded (RFC 7239) what it was. For requests from a peer in one of the networks it sets the
// request's Host to that, on a copy, so that pgtenancy.Subdomain, pgtenancy.Domain and the patterns of a mux see it. It goes
// around all of these. Nothing else in this library believes these headers.
//
// From any other peer both headers are removed, so that nothing below believes them either, and Host stays as it is. The peer
// is the request's RemoteAddr, as net/http sets it: what changes that to the client's address, as some middleware does, must
// not come before. An IPv4 address that was mapped into IPv6 counts as what it is. A peer without an IP address, as on a unix
// socket, and one whose address has a zone, is in no network.
//
// Where proxies form a chain, each adds its value after those that it was sent, so only the last is the nearest proxy's;
// those before may be the client's. The last one counts. It is the Host that the nearest proxy was sent, so those before it
// have to pass on Host unchanged. An element of Forwarded without host says nothing of it, and then none before it counts.
//
// A listed proxy must set both headers itself, or remove what it does not set: what it passes on as the client sent it is
// believed. These are answered with WriteError and status 400, and never with a guess: a header that is malformed or empty, or
// names a malformed host; X-Forwarded-Host in several lines that differ, of which there is no saying which is the last; a
// parameter that is given twice in an element of Forwarded; and both headers with hosts that differ.
//
// It leaves all other headers alone, and RemoteAddr: the client's address, as in X-Forwarded-For, is not its business.
//
// ForwardedHost panics without a network, and with one that is invalid or is IPv4 mapped into IPv6, which no peer is in.
func ForwardedHost(networks ...netip.Prefix) func(http.Handler) http.Handler {
	if len(networks) == 0 {
		panic("middleware.ForwardedHost: no network")
	}
	for _, n := range networks {
		if !n.IsValid() || n.Addr().Is4In6() {
			panic(fmt.Sprintf("middleware.ForwardedHost: network %v must be valid, and not IPv4 mapped into IPv6", n))
		}
	}
	networks = slices.Clone(networks)
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			xHost, forwarded := r.Header[headerForwardedHost], r.Header[headerForwarded]
			if len(xHost) == 0 && len(forwarded) == 0 {
				next.ServeHTTP(w, r)
				return
			}
			if !from(networks, r.RemoteAddr) {
				r = r.WithContext(r.Context())
				r.Header = maps.Clone(r.Header)
				delete(r.Header, headerForwardedHost)
				delete(r.Header, headerForwarded)
				next.ServeHTTP(w, r)
				return
			}
			host, err := forwardedHost(xHost, forwarded)
			if err != nil {
				WriteError(w, err)
				return
			}
			if host != "" {
				r = r.WithContext(r.Context())
				r.Host = host
				if r.Header["Host"] != nil { // over HTTP/2, where it says what Host was
					r.Header = maps.Clone(r.Header)
					delete(r.Header, "Host")
				}
			}
			next.ServeHTTP(w, r)
		})
	}
}

// from reports whether a peer is in one of the networks.
func from(networks []netip.Prefix, remoteAddr string) bool {
	peer, err := netip.ParseAddrPort(remoteAddr)
	if err != nil {
		return false
	}
	addr := peer.Addr().Unmap()
	return slices.ContainsFunc(networks, func(n netip.Prefix) bool { return n.Contains(addr) })
}

// forwardedHost returns the host that the lines of X-Forwarded-Host and Forwarded agree on, and "" where they name none.
func forwardedHost(xHost, forwarded []string) (string, error) {
	var host string
	for i, line := range xHost {
		if line != xHost[0] {
			return "", malformed(headerForwardedHost, xHost[0]+"; "+line, "must not be given twice with different values")
		}
		if i == 0 {
			host = strings.Trim(line[strings.LastIndexByte(line, ',')+1:], " \t")
			if err := checkHost(headerForwardedHost, host); err != nil {
				return "", err
			}
		}
	}
	var last string
	for _, line := range forwarded {
		var rule string
		if last, rule = lastForwardedHost(line); rule != "" {
			return "", malformed(headerForwarded, line, rule)
		}
	}
	switch {
	case last == "":
		return host, nil
	case host != "" && !strings.EqualFold(host, last):
		return "", malformed(headerForwarded, last, fmt.Sprintf("must not differ from %s, %.64q", headerForwardedHost, host))
	}
	return last, checkHost(headerForwarded, last)
}

// mostParameters is how many parameters an element of Forwarded may have. RFC 7239 has four of them.
const mostParameters = 32

var domain = pgtenancy.Domain()

// checkHost checks a host that a proxy names. An IP address is one.
func checkHost(field, host string) error {
	if host == "" {
		return malformed(field, host, "must not be empty")
	}
	var invalid *pgtenancy.InvalidError
	if _, err := domain(&http.Request{Host: host}); errors.As(err, &invalid) {
		return malformed(field, host, invalid.Rule)
	}
	return nil
}

// lastForwardedHost returns the host of the last element of a line of Forwarded, "" where that has none, or the rule that the
// line breaks. An element cannot begin in one line and end in another, so a quote that a client left open opens nothing
// in the line of a proxy.
//
//	Forwarded: for=192.0.2.60;host=acme.app.example, for="[2001:db8::1]:4711";host="acme.app.example:8443"
func lastForwardedHost(line string) (host, rule string) {
	var seen []string // the parameters of the element
	for rest := strings.TrimLeft(line, " \t"); ; {
		var name, value string
		var ok bool
		if name, rest = cutToken(rest); name != "" {
			if rest, ok = strings.CutPrefix(rest, "="); !ok {
				return "", "must have '=' after the name of a parameter"
			}
			if value, rest, ok = cutValue(rest); !ok {
				return "", "must have a token or a quoted string after '='"
			}
			name = strings.ToLower(name)
			if slices.Contains(seen, name) {
				return "", "must not have a parameter twice in an element"
			}
			if len(seen) == mostParameters {
				return "", fmt.Sprintf("must not have more than %d parameters in an element", mostParameters)
			}
			seen = append(seen, name)
			if name == "host" {
				if value == "" {
					return "", "must not have an empty host"
				}
				host = value
			}
		}
		rest = strings.TrimLeft(rest, " \t")
		if (rest == "" || rest[0] == ',') && len(seen) == 0 {
			return "", "must not have an empty element"
		}
		switch {
		case rest == "":
			return host, ""
		case rest[0] == ',':
			seen, host = seen[:0], ""
		case rest[0] != ';':
			return "", "must have ';' or ',' between its parameters"
		}
		rest = strings.TrimLeft(rest[1:], " \t")
	}
}

// cutToken cuts a token off, which is "" where s begins with something else.
func cutToken(s string) (token, rest string) {
	end := strings.IndexFunc(s, func(c rune) bool { return !httpguts.IsTokenRune(c) })
	if end < 0 {
		end = len(s)
	}
	return s[:end], s[end:]
}

// cutValue cuts a token or a quoted string off, of which it returns what was quoted.
func cutValue(s string) (value, rest string, ok bool) {
	if !strings.HasPrefix(s, `"`) {
		value, rest = cutToken(s)
		return value, rest, value != ""
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '"':
			return b.String(), s[i+1:], true
		case c == '\\' && i+1 < len(s):
			i++
			c = s[i]
		}
		if c < ' ' && c != '\t' || c == 0x7f {
			break // net/http lets none through
		}
		b.WriteByte(c)
	}
	return "", "", false
}
