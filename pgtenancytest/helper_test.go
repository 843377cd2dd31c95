package pgtenancytest_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/pgtenancy/pgtenancy/pgtenancytest"
)

// childEnv makes this test binary run one of the children instead of the tests.
const childEnv = "PGTENANCYTEST_CHILD"

var children = map[string]func(){
	// Starts a server, says so and waits to be killed.
	"wait": func() {
		startServer()
		select {}
	},
	// Uses the server after an interrupt.
	"interrupt": func() {
		interrupted := make(chan os.Signal, 1)
		signal.Notify(interrupted, os.Interrupt)
		url := startServer()
		<-interrupted
		time.Sleep(100 * time.Millisecond) // for the server to stop if it wants to
		if _, err := query[int](context.Background(), url, "SELECT 1"); err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println("the server lives")
	},
	// Ends in the middle, past every deferred call, when told to.
	"exit": func() {
		startServer()
		bufio.NewReader(os.Stdin).ReadString('\n')
		os.Exit(3)
	},
	"database": func() {
		tb := &fakeTB{}
		defer func() { fmt.Print(tb.log) }()
		defer tb.end()
		fmt.Println("url", pgtenancytest.Database(tb))
	},
	"database of a failed test": func() {
		tb := &fakeTB{failed: true}
		pgtenancytest.Database(tb)
		tb.end()
		fmt.Print(tb.log)
	},
	"database without a server": func() {
		pgtenancytest.SetPlaces(nil)
		tb := &fakeTB{}
		defer func() {
			recover()
			fmt.Print(tb.log)
		}()
		pgtenancytest.Database(tb)
	},
}

func startServer() string {
	s, err := pgtenancytest.Start(context.Background())
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("url", s.URL())
	return s.URL()
}

func TestMain(m *testing.M) {
	if name := os.Getenv(childEnv); name != "" {
		children[name]()
		return
	}
	goleak.VerifyTestMain(m)
}

// child returns a command that runs a child, with more environment variables.
func child(t *testing.T, name string, env ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(append(os.Environ(), childEnv+"="+name), env...)
	cmd.Stderr = os.Stderr
	return cmd
}

// fakeTB is a test of which we say whether it fails.
type fakeTB struct {
	failed   bool
	log      string
	cleanups []func()
}

func (f *fakeTB) Helper()                           {}
func (f *fakeTB) Name() string                      { return "TestFake" }
func (f *fakeTB) Failed() bool                      { return f.failed }
func (f *fakeTB) Cleanup(fn func())                 { f.cleanups = append(f.cleanups, fn) }
func (f *fakeTB) Logf(format string, args ...any)   { f.log += fmt.Sprintf(format, args...) + "\n" }
func (f *fakeTB) Fatalf(format string, args ...any) { f.Logf(format, args...); panic("Fatalf") }
func (f *fakeTB) end() {
	for _, fn := range f.cleanups {
		fn()
	}
}

// installedOnly makes Start see nothing but this machine's server binaries; it skips the test where there are none.
func installedOnly(t *testing.T) {
	t.Helper()
	t.Setenv("DATABASE_URL", "")
	t.Setenv("PGTENANCY_POSTGRES_BIN", "")
	if runtime.GOOS == "windows" {
		t.Skip("server binaries are not run on Windows")
	}
	if len(pgtenancytest.Installed(t.Context())) == 0 {
		t.Skip("no PostgreSQL is installed on this machine")
	}
}

// nothing makes Start see nothing at all.
func nothing(t *testing.T) {
	t.Helper()
	t.Setenv("DATABASE_URL", "")
	t.Setenv("PGTENANCY_POSTGRES_BIN", "")
	t.Setenv("PATH", t.TempDir())
	pgtenancytest.SetPlaces(t, "/nowhere/postgresql-*/bin")
	pgtenancytest.SetDrivers(t, nil)
}

// tempDir sets TMPDIR to a directory of the test's own, in which every user may write.
func tempDir(t *testing.T) string {
	t.Helper()
	dir := openDir(t)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", dir)
	return dir
}

// openDir returns a new directory that every user gets at: root's server runs as another one.
func openDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// patience is how long what happens in other processes may take, initdb for one. It ends what hangs.
const patience = 2 * time.Minute

// checkNothingLeft waits until no file is left in dir and no process works there.
func checkNothingLeft(t *testing.T, dir string) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		left := leftovers(t, dir)
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("left behind: %v", left)
			return
		}
	}
}

func leftovers(t *testing.T, dir string) []string {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	procs, _ := filepath.Glob("/proc/[0-9]*") // on Linux; elsewhere the directory tells
	for _, proc := range procs {
		cwd, _ := os.Readlink(filepath.Join(proc, "cwd"))
		args, _ := os.ReadFile(filepath.Join(proc, "cmdline"))
		if strings.HasPrefix(cwd, dir) || strings.Contains(string(args), dir) {
			left = append(left, fmt.Sprintf("%s %q in %s", proc, args, cwd))
		}
	}
	return left
}

// query returns one value of the database at url.
func query[T any](ctx context.Context, url, sql string) (v T, err error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return v, err
	}
	defer conn.Close(ctx)
	return v, conn.QueryRow(ctx, sql).Scan(&v)
}

func mustQuery[T any](t *testing.T, url, sql string) T {
	t.Helper()
	v, err := query[T](t.Context(), url, sql)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// checkStopped checks that no server listens at url.
func checkStopped(t *testing.T, url string) {
	t.Helper()
	var connErr interface{ Unwrap() error }
	if _, err := query[int](t.Context(), url, "SELECT 1"); err == nil || !errors.As(err, &connErr) {
		t.Errorf("the server still answers: %v", err)
	}
}

func hasDatabase(t *testing.T, url, name string) bool {
	t.Helper()
	return mustQuery[bool](t, url, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = '"+name+"')")
}
