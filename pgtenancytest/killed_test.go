//go:build unix

package pgtenancytest_test

import (
	"bufio"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pgtenancy/pgtenancy/pgtenancytest"
)

// Nothing is left of a server whose process ended without closing it.
func TestProcessEnds(t *testing.T) {
	installedOnly(t)
	tests := []struct {
		name, child string
		end         func(t *testing.T, dir string, said *bufio.Reader, p *os.Process, tell func())
	}{
		{"killed", "wait", func(t *testing.T, dir string, said *bufio.Reader, p *os.Process, _ func()) {
			waitForServer(t, dir, said)
			p.Kill()
		}},
		{"exits", "exit", func(t *testing.T, dir string, said *bufio.Reader, _ *os.Process, tell func()) {
			waitForServer(t, dir, said)
			tell()
		}},
		{"killed as the directory is made", "wait", func(t *testing.T, dir string, _ *bufio.Reader, p *os.Process, _ func()) {
			waitForFile(t, filepath.Join(dir, "*"))
			p.Kill()
		}},
		{"killed in initdb", "wait", func(t *testing.T, dir string, _ *bufio.Reader, p *os.Process, _ func()) {
			waitForFile(t, filepath.Join(dir, "*", "data", "base", "1", "*"))
			p.Kill()
		}},
		{"killed as the server starts", "wait", func(t *testing.T, dir string, _ *bufio.Reader, p *os.Process, _ func()) {
			waitForFile(t, filepath.Join(dir, "*", "data", "postmaster.opts")) // initdb makes no such file
			p.Kill()
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := tempDir(t)
			cmd := child(t, tt.child)
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer cmd.Process.Kill()
			tt.end(t, dir, bufio.NewReader(stdout), cmd.Process, func() { stdin.Write([]byte("\n")) })
			cmd.Wait()
			begin := time.Now()
			checkNothingLeft(t, dir)
			t.Logf("gone after %v", time.Since(begin))
		})
	}
}

// Ctrl-C in a terminal reaches the whole group of processes, but not the server: the program may have to clean up in it.
func TestInterruptedFromTerminal(t *testing.T) {
	installedOnly(t)
	dir := tempDir(t)
	cmd := child(t, "interrupt")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	said := bufio.NewReader(stdout)
	waitForServer(t, dir, said)
	if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if line, err := said.ReadString('\n'); line != "the server lives\n" {
		t.Errorf("%q, %v", line, err)
	}
	cmd.Wait()
	checkNothingLeft(t, dir)
}

func waitForServer(t *testing.T, dir string, said *bufio.Reader) {
	t.Helper()
	if line, err := said.ReadString('\n'); !strings.HasPrefix(line, "url ") {
		t.Fatalf("no server: %q, %v", line, err)
	}
	if len(leftovers(t, dir)) == 0 {
		t.Fatal("the test does not see the server")
	}
}

func waitForFile(t *testing.T, pattern string) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if found, _ := filepath.Glob(pattern); len(found) > 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s never came", pattern)
		}
	}
}

// A server that crashes leaves nothing after Close either, and Close does not hang.
func TestServerCrashes(t *testing.T) {
	installedOnly(t)
	dir := tempDir(t)
	s, err := pgtenancytest.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	files, _ := filepath.Glob(filepath.Join(dir, "*", "data", "postmaster.pid"))
	if len(files) != 1 {
		t.Fatalf("postmaster.pid: %v", files)
	}
	text, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	line, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(line)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	checkNothingLeft(t, dir)
}

// Root's server runs as another user, who may not get at the temporary directory.
func TestStartInClosedDirectory(t *testing.T) {
	installedOnly(t)
	dir := tempDir(t)
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	s, err := pgtenancytest.Start(t.Context())
	if err == nil {
		s.Close()
		t.Fatal("Start had no error")
	}
	if !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "ermission denied") {
		t.Errorf("error does not say what is wrong: %v", err)
	}
}
