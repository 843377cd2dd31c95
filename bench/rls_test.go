package main

import (
	"bytes"
	"strings"
	"testing"
)

// TestRLS runs all ways with few rows, and looks at what they return.
func TestRLS(t *testing.T) {
	if err := checkServer(); err != nil {
		t.Fatal(err)
	}
	db := testDatabase(t, 7, 1)
	var out bytes.Buffer
	if err := compareRLS(t.Context(), &options{rounds: 2, rlsRows: 1003, rlsTenants: 7}, &out, db); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", &out)
	if rows, want := strings.Count(out.String(), "\n| "), 1+4*len(rlsQueries); rows != want {
		t.Errorf("%d rows, want %d", rows, want)
	}
}
