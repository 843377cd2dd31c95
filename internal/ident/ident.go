// Package ident is the one place that validates identifiers and the one place that quotes them.
//
// The checks return the rule that the value breaks, or "" when it breaks none, so that a caller can say
// which field it was and what would be right.
package ident

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// MaxBytes is the length of the longest identifier that PostgreSQL keeps (NAMEDATALEN - 1). It cuts longer
// ones off without an error, which would make two names one.
const MaxBytes = 63

// CheckID checks a tenant's ID: a DNS label without underscore, so that it can be a subdomain, and so that
// replacing '-' by '_' in the schema's name is injective. max is the number of bytes that the schema's prefix leaves.
func CheckID(id string, max int) (rule string) {
	switch {
	case id == "":
		return "must not be empty"
	case len(id) > max:
		return fmt.Sprintf("must have at most %d bytes, has %d", max, len(id))
	case id[0] == '-' || id[len(id)-1] == '-':
		return "must not begin or end with '-'"
	case len(id) >= 4 && id[2:4] == "--":
		return "must not have '--' as its third and fourth character, which DNS reserves for encoded names (RFC 5891)"
	}
	for i := range len(id) {
		switch c := id[i]; {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-':
		case 'A' <= c && c <= 'Z':
			return "must be lower case"
		case c == '_':
			return "must not have '_', which a schema name has in the place of '-'"
		default:
			return "must have only the characters a to z, 0 to 9 and '-'"
		}
	}
	return ""
}

// SchemaOf returns the schema name of a tenant with a valid ID.
func SchemaOf(prefix, id string) string {
	return prefix + strings.ReplaceAll(id, "-", "_")
}

// CheckPrefix checks the prefix that SchemaOf puts before an ID. An ID of at least 20 bytes must fit behind it.
func CheckPrefix(prefix string) (rule string) {
	if len(prefix) > MaxBytes-20 {
		return fmt.Sprintf("must have at most %d bytes, has %d", MaxBytes-20, len(prefix))
	}
	for i := range len(prefix) {
		c := prefix[i]
		if !('a' <= c && c <= 'z' || c == '_' || i > 0 && '0' <= c && c <= '9') {
			return "must have only the characters a to z, 0 to 9 and '_', and not begin with a digit"
		}
	}
	if reserved(prefix) {
		return "must not begin with 'pg_', which PostgreSQL reserves"
	}
	return ""
}

// CheckName checks any identifier: what passes survives quoting and PostgreSQL's length limit unchanged.
func CheckName(name string) (rule string) {
	switch {
	case name == "":
		return "must not be empty"
	case len(name) > MaxBytes:
		return fmt.Sprintf("must have at most %d bytes, has %d", MaxBytes, len(name))
	case strings.IndexByte(name, 0) >= 0:
		return "must not have a NUL byte"
	case !utf8.ValidString(name):
		return "must be valid UTF-8"
	}
	return ""
}

// CheckSchema checks the name of a schema that goes into search_path.
func CheckSchema(name string) (rule string) {
	if rule := CheckName(name); rule != "" {
		return rule
	}
	switch {
	case reserved(name):
		return "must not begin with 'pg_', which PostgreSQL reserves"
	case name == "$user":
		return "must not be '$user', which search_path replaces by the name of the role, quoted or not"
	case name == "information_schema":
		return "must not be 'information_schema', which belongs to PostgreSQL"
	}
	return ""
}

// CheckTenantSchema checks the name of a schema that is to belong to one tenant.
func CheckTenantSchema(name string) (rule string) {
	if rule := CheckSchema(name); rule != "" {
		return rule
	}
	if name == "public" || name == "pgtenancy" {
		return fmt.Sprintf("must not be %q, which is shared by all tenants", name)
	}
	return ""
}

// CheckSetting checks the name of a custom setting such as app.current_tenant.
func CheckSetting(name string) (rule string) {
	parts := strings.Split(name, ".")
	if len(parts) < 2 {
		return "must be a custom setting, with a dot in its name, as app.current_tenant"
	}
	for _, p := range parts {
		if p == "" {
			return "must not have an empty part"
		}
		for i := range len(p) {
			c := p[i]
			if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '_' || i > 0 && '0' <= c && c <= '9') {
				return "must have only letters, digits and '_' between its dots, and no digit first"
			}
		}
	}
	if CheckName(name) != "" {
		return fmt.Sprintf("must have at most %d bytes", MaxBytes)
	}
	return ""
}

func reserved(name string) bool { return strings.HasPrefix(name, "pg_") }

// Quote returns name as a quoted identifier. The name must have passed one of the checks, which refuse NUL.
func Quote(name string) string {
	return `"` + strings.ReplaceAll(name, `"`, `""`) + `"`
}

// QuoteAll quotes the parts of a name and joins them with dots.
func QuoteAll(parts ...string) string {
	quoted := make([]string, len(parts))
	for i, p := range parts {
		quoted[i] = Quote(p)
	}
	return strings.Join(quoted, ".")
}

// Literal returns s as a string literal that reads the same whatever standard_conforming_strings is.
func Literal(s string) string {
	q := "'" + strings.ReplaceAll(s, "'", "''") + "'"
	if strings.Contains(s, `\`) {
		return " E" + strings.ReplaceAll(q, `\`, `\\`)
	}
	return q
}
