package migration_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/pgtenancy/pgtenancy/internal/migration"
	"github.com/pgtenancy/pgtenancy/internal/sqlsplit"
)

func FuzzLoad(f *testing.F) {
	for _, tt := range loadTests {
		for name, file := range tt.fsys {
			f.Add(strings.TrimPrefix(name, "tenant/"), string(file.Data))
		}
	}
	for _, tt := range aloneTests {
		f.Add("001_a.sql", tt.sql)
	}
	f.Fuzz(func(t *testing.T, name, text string) {
		if name == "." || strings.Contains(name, "/") {
			return // no name of a file
		}
		fsys := dir(name, text)
		ms, err := migration.Load(fsys, "tenant", nil)
		again, errAgain := migration.Load(fsys, "tenant", nil)
		if diff := cmp.Diff(ms, again, cmpopts.EquateEmpty()); diff != "" || (err == nil) != (errAgain == nil) {
			t.Fatalf("a second Load has %v, after %v (-first +second):\n%s", errAgain, err, diff)
		}
		if err != nil {
			var e *migration.Error
			if errors.As(err, &e) && (e.Line < 0 || e.Line > 1+strings.Count(text, "\n") || e.File != "tenant/"+name || e.Msg == "") {
				t.Fatalf("%+v; the file is %q and has %d lines", e, name, 1+strings.Count(text, "\n"))
			}
			return
		}
		checkPlaces(t, fsys, ms)
		for _, m := range ms {
			if len(m.Up.Statements) == 0 {
				t.Fatalf("%s has no way up", m.File)
			}
			for _, s := range []*migration.Script{&m.Up, m.Down} {
				if s != nil {
					checkAlone(t, s)
				}
			}
		}
		if !strings.Contains(text, "\r") {
			windows, err := migration.Load(dir(name, strings.ReplaceAll(text, "\n", "\r\n")), "tenant", nil)
			if err != nil || len(windows) != len(ms) {
				t.Fatalf("with CRLF: %v, %v", windows, err)
			}
			for i := range ms {
				if a, b := &ms[i], &windows[i]; a.Checksum != b.Checksum || !slices.Equal(scriptOf(&a.Up).Lines, scriptOf(&b.Up).Lines) ||
					a.Up.NoTx != b.Up.NoTx || (a.Down == nil) != (b.Down == nil) {
					t.Fatalf("with CRLF %+v differs from %+v", b, a)
				}
			}
		}
	})
}

// checkAlone checks that InTx has the statement's tokens but for CONCURRENTLY, and can run in a transaction.
func checkAlone(t *testing.T, s *migration.Script) {
	t.Helper()
	alone := false
	for _, st := range s.Statements {
		if st.Alone == nil {
			continue
		}
		alone = true
		if st.Alone.InTx == "" {
			continue
		}
		left := slices.Collect(sqlsplit.Tokens(st.SQL))
		for tok := range sqlsplit.Tokens(st.Alone.InTx) {
			for len(left) > 0 && left[0].Text != tok.Text {
				left = left[1:]
			}
			if len(left) == 0 {
				t.Fatalf("%q in a transaction is %q, with something else", st.SQL, st.Alone.InTx)
			}
			left = left[1:]
		}
		ms, err := migration.Load(dir("001_a.sql", st.Alone.InTx), "tenant", nil)
		if err != nil || len(ms[0].Up.Statements) != 1 || ms[0].Up.NoTx {
			t.Fatalf("%q in a transaction is %q: %+v, %v", st.SQL, st.Alone.InTx, ms, err)
		}
	}
	if alone && !s.NoTx {
		t.Fatalf("%+v is a transaction", s)
	}
}
