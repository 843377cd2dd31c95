package main

import (
	"strings"
	"testing"
	"time"
)

func TestCompareAudit(t *testing.T) {
	db := testDatabase(t, 3, 1)
	var out strings.Builder
	o := &options{conns: 2, goroutines: 2, rounds: 1, round: 50 * time.Millisecond, warm: 10 * time.Millisecond}
	if err := compareAudit(t.Context(), o, &out, db); err != nil {
		t.Fatal(err)
	}
	if s := out.String(); !strings.Contains(s, "| with middleware.Audit |") || strings.Contains(s, "\n0 events") {
		t.Error(s)
	}
}
