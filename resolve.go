package pgtenancy

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
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
// ByID("acme"). Bases may lie below each other; the longest counts, and a label that makes another base is no tenant's.
//
//   - A base itself and hosts below none of the bases are ErrUnresolved.
//   - So are the labels that a service wants for itself: admin, api, app, assets, auth, cdn, login, mail, static, status
//     and www. A tenant with such an ID cannot be reached by subdomain.
//   - More labels than one, as in www.acme.app.example, are an *InvalidError: a certificate for *.app.example would not cover
//     them, and they most likely are a mistake in DNS or in a link, which ought to be seen.
//   - So is a label that no tenant's ID can be, such as an internationalized one (xn--...).
//
// The host is the request's Host, which a client can set to what it likes; it is as good as any other name that the client
// asks for. A request over HTTP/2 whose header Host differs from that is an *InvalidError. A proxy must pass the Host on, or
// middleware.ForwardedHost has to go around.
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
		host, rule := requestHost(r)
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

// requestHost returns the canonical host of a request. Over HTTP/2 there may be a header Host beside :authority, which
// net/http makes Request.Host. Whoever sees a request that names two hosts may take the other (RFC 9113, section 8.3.1).
func requestHost(r *http.Request) (canonical, rule string) {
	for _, host := range r.Header["Host"] {
		if !strings.EqualFold(host, r.Host) {
			return "", fmt.Sprintf("must not differ from the header Host, %.128q", host)
		}
	}
	return canonicalHost(r.Host)
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
		host, rule := requestHost(r)
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

// PathPrefix resolves by the segment of the path right after a prefix: with the prefix /t, /t/acme/orders is ByID("acme"). The
// prefix "/" takes the first segment. Unlike PathValue it needs no mux, so it goes around one. To have the prefix and the ID
// removed before the next handler, give middleware.TenantOpts.StripPrefix the same prefix.
//
//   - Other paths, and those that end right after the prefix, are ErrUnresolved.
//   - The path counts as the client escaped it. A segment that only becomes an ID when it is unescaped, as %61cme, is an
//     *InvalidError, and so is a prefix that is escaped: a proxy or a log would take it for another path.
//   - So are a path with the segments . or .. anywhere, and an empty segment right after the ID: what cleans such a path makes
//     it another tenant's, or another host's when the rest is used in a redirect.
//
// The path is the client's to choose, which is as good as any other name that it asks for. All tenants share one host then,
// and so one origin in browsers: cookies, storage and scripts of one tenant's pages are those of all.
//
// PathPrefix panics with a prefix that does not begin with '/', or has a segment with characters other than letters,
// digits, '-', '_', '.' and '~'. A '/' at its end makes no difference.
func PathPrefix(prefix string) Resolver {
	if rule := checkPrefix(prefix); rule != "" {
		panic(fmt.Sprintf("pgtenancy.PathPrefix: %q %s", prefix, rule))
	}
	prefix = strings.TrimSuffix(prefix, "/") + "/"
	field := "PathPrefix " + prefix
	return func(r *http.Request) (Key, error) {
		escaped := sentPath(r.URL)
		rest, ok := strings.CutPrefix(escaped, prefix)
		if !ok {
			if strings.HasPrefix(r.URL.Path, prefix) {
				return Key{}, malformed(field, escaped, "must not be escaped")
			}
			return Key{}, ErrUnresolved
		}
		if rest == "" {
			return Key{}, ErrUnresolved
		}
		id, _, _ := strings.Cut(rest, "/")
		k, err := idKey(field, id)
		if err != nil {
			return Key{}, err
		}
		below := r.URL.Path[len(prefix)+len(id):] // neither of the two has anything escaped
		if strings.HasPrefix(below, "//") {
			return Key{}, malformed(field, escaped, "must not have an empty segment after the ID")
		}
		for segment := range strings.SplitSeq(below, "/") {
			if segment == "." || segment == ".." {
				return Key{}, malformed(field, escaped, "must not have the segments . and ..")
			}
		}
		return k, nil
	}
}

// sentPath returns the path of a URL as the client escaped it. URL.EscapedPath does so unless the path has a character that
// ought to be escaped and is not, as '|'. Then it escapes Path anew, in which %61 has become a, and %2F a slash.
func sentPath(u *url.URL) string {
	if u.RawPath != "" {
		if path, err := url.PathUnescape(u.RawPath); err == nil && path == u.Path {
			return u.RawPath
		}
	}
	return u.EscapedPath()
}

// checkPrefix checks the prefix of a path and returns the rule that it breaks. What passes reads the same escaped and not.
func checkPrefix(prefix string) (rule string) {
	if prefix == "/" {
		return ""
	}
	rest, ok := strings.CutPrefix(prefix, "/")
	if !ok {
		return "must begin with '/'"
	}
	for segment := range strings.SplitSeq(strings.TrimSuffix(rest, "/"), "/") {
		if segment == "" || segment == "." || segment == ".." {
			return "must not have a segment that is empty, . or .."
		}
		for i := range len(segment) {
			if c := segment[i]; !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-_.~", c) >= 0) {
				return "must have only letters, digits, '-', '_', '.' and '~' between its slashes"
			}
		}
	}
	return ""
}

// Cookie resolves by a cookie that holds the tenant's ID. A request without the cookie is ErrUnresolved. An empty value is an
// *InvalidError, and so are several cookies of the name that differ: nothing tells which of them the service set.
//
// A cookie is the client's to choose, and not the client's alone. Whoever controls a host below the same domain, such as
// the customer behind another subdomain or a script that got into its pages, can set one for the whole domain, and the browser
// then sends it to the service as if it were the service's own. With a planted cookie a user works in a tenant of the
// attacker's choice, and, where both cookies are sent, gets no tenant at all. A name that begins with __Host- keeps that
// out: browsers take such a cookie only from the host itself, over TLS. Whatever the name, the user's right to the tenant has to
// be checked: middleware.MatchTenant does that. Where a cache stands in front, answers must have Cookie in Vary.
//
// The header is read strictly: a cookie that net/http would drop for a character that it does not like counts here.
//
// Cookie panics where name is not the name of a cookie.
func Cookie(name string) Resolver {
	if !httpguts.ValidHeaderFieldName(name) { // which has the characters that the name of a cookie has
		panic(fmt.Sprintf("pgtenancy.Cookie: %q is not the name of a cookie", name))
	}
	field := "Cookie " + name
	return func(r *http.Request) (Key, error) {
		var id string
		found := false
		for _, line := range r.Header["Cookie"] {
			for pair := range strings.SplitSeq(line, ";") {
				n, value, _ := strings.Cut(strings.Trim(pair, " \t"), "=")
				if strings.TrimRight(n, " \t") != name {
					continue
				}
				if found && value != id {
					return Key{}, malformed(field, id+"; "+value, "must not be given twice with different values")
				}
				id, found = value, true
			}
		}
		if !found {
			return Key{}, ErrUnresolved
		}
		return idKey(field, id)
	}
}

// Claim resolves by what the service's own authentication put into the request's context, such as a claim of a token that it
// verified. claim returns the tenant's ID, and false where the request has no such claim, which is ErrUnresolved. An
// empty ID with true is an *InvalidError. claim must be safe for concurrent use.
//
// It can be trusted as far as the authentication, which has to come before it: the middleware that verifies the token goes
// around middleware.Tenant. In First a Claim comes first, so that a client cannot choose another source by which it is not
// checked.
//
// Claim panics where claim is nil.
func Claim(claim func(context.Context) (id string, ok bool)) Resolver {
	if claim == nil {
		panic("pgtenancy.Claim: the function is nil")
	}
	return func(r *http.Request) (Key, error) {
		id, ok := claim(r.Context())
		if !ok {
			return Key{}, ErrUnresolved
		}
		return idKey("Claim", id)
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
	// What is ASCII is left as it is: browsers send names that idna refuses (xn--qei, a heart), and DNS has them. A label that is
	// encoded in an unusual way stays a name of its own, and so cannot become another.
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
	end := strings.IndexByte(host, ':')
	if end >= 0 && end != strings.LastIndexByte(host, ':') { // otherwise ParseAddr would make an error for every name
		if _, err := netip.ParseAddr(host); err == nil {
			return host, true // an IPv6 address without brackets
		}
	}
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
