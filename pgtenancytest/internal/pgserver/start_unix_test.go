//go:build unix

package pgserver

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

func TestStartPortTaken(t *testing.T) {
	initdb, err := exec.LookPath("initdb")
	if err != nil {
		t.Skip("no initdb in PATH")
	}
	if initdb, err = filepath.EvalSymlinks(initdb); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	free := freePort
	t.Cleanup(func() { freePort = free })

	tests := []struct {
		name  string
		taken int
		want  error
	}{
		{"once", 1, nil},
		{"always", 99, errPortTaken},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			// Root's server runs as another user.
			if err := errors.Join(os.Chmod(filepath.Dir(dir), 0o755), os.Chmod(dir, 0o777)); err != nil {
				t.Fatal(err)
			}
			t.Setenv("TMPDIR", dir)
			freePort = func() (int, error) {
				if tt.taken--; tt.taken >= 0 {
					return l.Addr().(*net.TCPAddr).Port, nil
				}
				return free()
			}
			s, err := Start(t.Context(), filepath.Dir(initdb))
			if !errors.Is(err, tt.want) {
				t.Errorf("Start = %v, want %v", err, tt.want)
			}
			if err == nil {
				if err := s.Stop(); err != nil {
					t.Error(err)
				}
			}
			if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}
