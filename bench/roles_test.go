package main

import (
	"strings"
	"testing"
	"time"

	"github.com/pgtenancy/pgtenancy/pgtenancytest"
)

func TestCompareRoles(t *testing.T) {
	server, err := pgtenancytest.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	var out strings.Builder
	o := &options{conns: 2, goroutines: 2, rounds: 1, round: 50 * time.Millisecond, warm: 10 * time.Millisecond, rolesTenants: 10}
	if err := compareRoles(t.Context(), o, &out, server); err != nil {
		t.Fatal(err)
	}
	if s := out.String(); strings.Count(s, "\n| ") != 3 || strings.Contains(s, " 0s |") {
		t.Error(s)
	}
}
