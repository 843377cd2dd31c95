package pgtenancy

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/idna"

	"github.com/pgtenancy/pgtenancy/internal/ident"
)

// Key is what a request says about its tenant, and what a Directory finds the tenant by: an ID or a domain. Keys are
// comparable. The zero Key names nothing.
type Key struct{ id, domain string }

// ByID returns the Key of the tenant with this ID.
func ByID(id string) Key { return Key{id: id} }

// ByDomain returns the Key of the tenant that a host belongs to. The host is made canonical: lower case, without port and
// trailing dot, in punycode. No tenant is found by one that is malformed.
func ByDomain(host string) Key {
	if canonical, rule := canonicalHost(host); rule == "" && canonical != "" {
		host = canonical
	}
	return Key{domain: host}
}

// ID returns the ID of a Key that ByID made.
func (k Key) ID() (id string, ok bool) { return k.id, k.id != "" }

// Domain returns the canonical host of a Key that ByDomain made.
func (k Key) Domain() (host string, ok bool) { return k.domain, k.domain != "" }

// String returns the Key for logs and errors, with what it names quoted.
func (k Key) String() string {
	if k.domain != "" {
		return fmt.Sprintf("domain %q", k.domain)
	}
	return fmt.Sprintf("tenant %q", k.id)
}

// valid reports whether a tenant can have this Key.
func (k Key) valid() bool {
	if k.domain != "" {
		canonical, rule := canonicalHost(k.domain)
		return rule == "" && canonical == k.domain
	}
	return ident.CheckID(k.id, ident.MaxBytes) == ""
}

// Resolver reads from a request which tenant it is for. The error is ErrUnresolved where the request names none in the way
// that this Resolver looks for, and an *InvalidError where it names one in a malformed way.
//
// A Resolver only says what the request asks for, and that is the client's to choose. Whether this user may work for that
// tenant is the service's to check, after the tenant was found: a session or token that was issued for one tenant must
// not be accepted for another.
//
// There is no default: take the one Resolver that fits how tenants reach the service, and First where there are several.
type Resolver func(*http.Request) (Key, error)

// Subdomain resolves by the one label that a host has before a base domain: with the base app.example, acme.app.example is
// ByID("acme"). Bases may lie below each other; the longest counts.
//
//   - A base itself and hosts below none of the bases are ErrUnresolved.
//   - So are the labels that a service wants for itself: admin, api, app, assets, auth, cdn, login, mail, static, status
//     and www. A tenant with such an ID cannot be reached by subdomain.
//   - More labels than one, as in www.acme.app.example, are an *InvalidError: a certificate for *.app.example would not cover
//     them, and they most likely are a mistake in DNS or in a link, which ought to be seen.
//   - So is a label that no tenant's ID can be, such as an internationalized one (xn--...).
//
// The host is the request's Host, which a client can set to what it likes; it is as good as any other name that the client
// asks for. Behind a proxy, the proxy must pass it on.
//
// Subdomain panics without a base, and with one that is not a domain name without port: "localhost" is, "localhost:8080" and
// "*.app.example" are not.
func Subdomain(base ...string) Resolver {
	if len(base) == 0 {
		panic("pgtenancy.Subdomain: no base domain")
	}
	bases := make([]string, len(base))
	for i, b := range base {
		canonical, rule := checkDomain(b)
		if rule != "" {
			panic(fmt.Sprintf("pgtenancy.Subdomain: base %q %s", b, rule))
		}
		bases[i] = canonical
	}
	slices.SortFunc(bases, func(a, b string) int { return len(b) - len(a) })
	return func(r *http.Request) (Key, error) {
		host, rule := canonicalHost(r.Host)
		if rule != "" {
			return Key{}, malformed("Host", r.Host, rule)
		}
		for _, b := range bases {
			rest, ok := strings.CutSuffix(host, b)
			if !ok {
				continue
			}
			if rest == "" {
				return Key{}, ErrUnresolved
			}
			label, ok := strings.CutSuffix(rest, ".")
			if !ok {
				continue // another domain that ends alike: my-app.example is not below app.example
			}
			if n := strings.Count(label, ".") + 1; n > 1 {
				return Key{}, malformed("Host", r.Host, fmt.Sprintf("must have one label before %q, has %d", b, n))
			}
			if reservedLabel(label) {
				return Key{}, ErrUnresolved
			}
			return idKey("Subdomain", label)
		}
		return Key{}, ErrUnresolved
	}
}

// reservedLabel reports whether a label is the service's own and never a tenant's. Subdomain's documentation lists them.
func reservedLabel(label string) bool {
	switch label {
	case "admin", "api", "app", "assets", "auth", "cdn", "login", "mail", "static", "status", "www":
		return true
	}
	return false
}

// Domain resolves by the whole host, for tenants with domains of their own: shop.acme.example is
// ByDomain("shop.acme.example"). Requests without a host, or for an IP address, are ErrUnresolved.
//
// Every host resolves, the service's own too: in First, Domain comes last. As to trust, it is like Subdomain. That a domain
// is a tenant's has to be verified before it is registered, or one customer could register another's.
func Domain() Resolver {
	return func(r *http.Request) (Key, error) {
		host, rule := canonicalHost(r.Host)
		switch {
		case rule != "":
			return Key{}, malformed("Host", r.Host, rule)
		case host == "":
			return Key{}, ErrUnresolved
		}
		return Key{domain: host}, nil
	}
}

// Header resolves by a header that holds the tenant's ID. A request without the header is ErrUnresolved. An empty value
// is an *InvalidError, and so are several that differ: whoever sets the header failed to.
//
// It can be trusted only where a proxy of yours sets the header on every request and removes what the client sent, or
// where the clients are your own services. Where a cache stands in front, answers must have the header's name in Vary, or
// one tenant gets another's.
//
// Header panics where name is not the name of a header, or is Host, which net/http keeps elsewhere.
func Header(name string) Resolver {
	if !httpguts.ValidHeaderFieldName(name) {
		panic(fmt.Sprintf("pgtenancy.Header: %q is not the name of a header", name))
	}
	name = http.CanonicalHeaderKey(name)
	if name == "Host" {
		panic("pgtenancy.Header: net/http keeps Host out of the headers; use Subdomain or Domain")
	}
	field := "Header " + name
	return func(r *http.Request) (Key, error) {
		values := r.Header[name]
		if len(values) == 0 {
			return Key{}, ErrUnresolved
		}
		for _, v := range values[1:] {
			if v != values[0] {
				return Key{}, malformed(field, values[0]+", "+v, "must not be given twice with different values")
			}
		}
		return idKey(field, values[0])
	}
}

// PathValue resolves by a wildcard of the route's pattern that matches the tenant's ID, such as {tenant} in
// /t/{tenant}/orders. A request without it is ErrUnresolved.
//
// The mux sets it while it routes (http.ServeMux does, and routers that call Request.SetPathValue). So it is there only in
// middleware that wraps the handler of a route, not in what wraps the mux, where every request would be ErrUnresolved.
//
// The path is the client's to choose, which is as good as any other name that it asks for. PathValue panics where name is
// empty.
func PathValue(name string) Resolver {
	if name == "" {
		panic("pgtenancy.PathValue: no name")
	}
	field := "PathValue " + name
	return func(r *http.Request) (Key, error) {
		id := r.PathValue(name)
		if id == "" {
			return Key{}, ErrUnresolved
		}
		return idKey(field, id)
	}
}

// First resolves by the first of several Resolvers that does not say ErrUnresolved. Any other error ends the search: a
// request that names a tenant in a malformed way does not fall back to another.
//
// A client that can choose which of them applies must not gain by it. So a source that is trusted more than the others,
// such as a header that only a proxy can set, comes first.
//
// First panics without a Resolver, and with a nil one.
func First(resolvers ...Resolver) Resolver {
	if len(resolvers) == 0 {
		panic("pgtenancy.First: no resolver")
	}
	if slices.ContainsFunc(resolvers, func(r Resolver) bool { return r == nil }) {
		panic("pgtenancy.First: a resolver is nil")
	}
	resolvers = slices.Clone(resolvers)
	return func(r *http.Request) (Key, error) {
		for _, resolve := range resolvers {
			if k, err := resolve(r); !errors.Is(err, ErrUnresolved) {
				return k, err
			}
		}
		return Key{}, ErrUnresolved
	}
}

// idKey checks an ID that a request names and returns its Key.
func idKey(field, id string) (Key, error) {
	if rule := ident.CheckID(id, ident.MaxBytes); rule != "" {
		return Key{}, malformed(field, id, rule)
	}
	return Key{id: id}, nil
}

// malformed returns the *InvalidError for what a client sent, of which it keeps no more than a log can bear.
func malformed(field, value, rule string) error {
	const most = 128
	if len(value) > most {
		value = value[:most] + "..."
	}
	return &InvalidError{Field: field, Value: value, Rule: rule}
}

const (
	maxHost    = 253  // bytes of a domain name (RFC 1035, without the root's dot)
	maxLabel   = 63   // bytes of a label
	maxRawHost = 1024 // bytes of what is worth a look: a name in UTF-8 is longer than its punycode
)

// canonicalHost is the one place that makes hosts comparable: lower case, without port and trailing dot, punycode. It
// returns the rule that a malformed host breaks, and "" and "" for a host that is no domain name: none at all, or an IP
// address.
//
// A canonical name has labels of a to z, 0 to 9, '-' and '_'. The underscore is not legal in a host's name, but names of
// containers have it; a tenant's ID cannot.
func canonicalHost(host string) (canonical, rule string) {
	if host == "" {
		return "", ""
	}
	if len(host) > maxRawHost {
		return "", fmt.Sprintf("must have at most %d bytes", maxHost)
	}
	name, ok := cutPort(host)
	if !ok {
		return "", "must be a host with or without a port"
	}
	if strings.Contains(name, ":") {
		return "", "" // an IPv6 address
	}
	// What is ASCII is left as it is: browsers send names that idna refuses (xn--qei, a heart), and DNS has them.
	if strings.ContainsFunc(name, func(r rune) bool { return r > unicode.MaxASCII }) {
		if !utf8.ValidString(name) {
			return "", "must be valid UTF-8"
		}
		var err error
		if name, err = idna.Lookup.ToASCII(name); err != nil {
			return "", "must be a host: " + err.Error()
		}
	}
	name = strings.TrimSuffix(strings.ToLower(name), ".")
	if len(name) > maxHost {
		return "", fmt.Sprintf("must have at most %d bytes", maxHost)
	}
	var last string
	for label := range strings.SplitSeq(name, ".") {
		if rule := checkLabel(label); rule != "" {
			return "", rule
		}
		last = label
	}
	if numeric(last) {
		return "", "" // 127.1 and the like: what ends in a number is an IPv4 address (https://url.spec.whatwg.org/#ends-in-a-number-checker)
	}
	return name, ""
}

// cutPort returns the host without the port, an IPv6 address with its brackets. It reports false where what follows the
// host is no port.
func cutPort(host string) (name string, ok bool) {
	if _, err := netip.ParseAddr(host); err == nil {
		return host, true // an IPv6 address without brackets
	}
	end := strings.IndexByte(host, ':')
	if host[0] == '[' {
		end = strings.IndexByte(host, ']') + 1
		addr, err := netip.ParseAddr(host[1:max(end-1, 1)])
		if err != nil || !addr.Is6() {
			return "", false
		}
	}
	if end < 0 || end == len(host) {
		return host, true
	}
	if host[end] != ':' || strings.Trim(host[end+1:], "0123456789") != "" {
		return "", false
	}
	return host[:end], true
}

// checkLabel checks a label of a host in lower case and returns the rule that it breaks.
func checkLabel(label string) (rule string) {
	switch {
	case label == "":
		return "must not have an empty label"
	case len(label) > maxLabel:
		return fmt.Sprintf("must have at most %d bytes between two dots", maxLabel)
	case label[0] == '-' || label[len(label)-1] == '-':
		return "must not have a label that begins or ends with '-'"
	}
	for i := range len(label) {
		if c := label[i]; !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
			return "must have only letters, digits, '-' and '.'"
		}
	}
	return ""
}

// numeric reports whether a label is a number as URLs have it in IPv4 addresses.
func numeric(label string) bool {
	if hex, ok := strings.CutPrefix(label, "0x"); ok {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return strings.Trim(label, "0123456789") == ""
}

// checkDomain returns the canonical form of a domain name without port, or the rule that it breaks.
func checkDomain(domain string) (canonical, rule string) {
	if strings.ContainsAny(domain, ":[]") {
		return "", "must be a domain name, without port"
	}
	canonical, rule = canonicalHost(domain)
	if canonical == "" && rule == "" {
		rule = "must be a domain name"
	}
	return canonical, rule
}

// canonicalDomain returns the canonical form of a domain that is to belong to a tenant. The error is an *InvalidError.
func canonicalDomain(domain string) (string, error) {
	canonical, rule := checkDomain(domain)
	return canonical, invalid("Domain", domain, rule)
}
