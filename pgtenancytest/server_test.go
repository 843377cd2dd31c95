package pgtenancytest_test

import (
	"context"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy/pgtenancytest"
)

func TestStart(t *testing.T) {
	installedOnly(t)
	checkServer(t)
}

// PGTENANCY_TEST_POSTGRES_BINS lists more versions' bin directories.
func TestStartPostgresBin(t *testing.T) {
	bins := filepath.SplitList(os.Getenv("PGTENANCY_TEST_POSTGRES_BINS"))
	if len(bins) == 0 {
		t.Skip("PGTENANCY_TEST_POSTGRES_BINS is not set")
	}
	for _, bin := range bins {
		t.Run(bin, func(t *testing.T) {
			t.Setenv("DATABASE_URL", "")
			t.Setenv("PGTENANCY_POSTGRES_BIN", bin)
			if source := checkServer(t); !strings.HasPrefix(source, bin+" (PostgreSQL ") {
				t.Errorf("Source() = %q, want %s", source, bin)
			}
		})
	}
}

// checkServer starts a server, checks what Start promises of it, and returns its source.
func checkServer(t *testing.T) string {
	t.Helper()
	dir := tempDir(t)
	begin := time.Now()
	s, err := pgtenancytest.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	t.Logf("%s: %s in %v", s.Source(), s.URL(), time.Since(begin))

	for setting, want := range map[string]string{
		"fsync":                     "off",
		"synchronous_commit":        "off",
		"full_page_writes":          "off",
		"max_connections":           "200",
		"max_locks_per_transaction": "64",
		"max_prepared_transactions": "8",
		"server_encoding":           "UTF8",
		"TimeZone":                  "UTC",
		"is_superuser":              "on",
	} {
		if got := mustQuery[string](t, s.URL(), "SELECT current_setting('"+setting+"')"); got != want {
			t.Errorf("%s = %s, want %s", setting, got, want)
		}
	}

	dbURL, err := s.CreateDatabase(t.Context(), `o'dd "name" \ /`)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := mustQuery[string](t, dbURL, "SELECT current_database()"), `o'dd "name" \ /`; got != want {
		t.Errorf("connected to %q, want %q", got, want)
	}
	if _, err := s.CreateDatabase(t.Context(), `o'dd "name" \ /`); err == nil {
		t.Error("a database was made twice")
	}
	conn, err := pgx.Connect(t.Context(), dbURL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	for range 2 {
		if err := s.DropDatabase(t.Context(), `o'dd "name" \ /`); err != nil {
			t.Error(err)
		}
	}

	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	checkStopped(t, s.URL())
	checkNothingLeft(t, dir)
	return s.Source()
}

// A program that keeps the URL only must not lose its server to the garbage collector.
func TestStartKeepsServer(t *testing.T) {
	installedOnly(t)
	u := func() string {
		s, err := pgtenancytest.Start(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return s.URL()
	}()
	for range 3 {
		runtime.GC()
		time.Sleep(50 * time.Millisecond)
	}
	mustQuery[int](t, u, "SELECT 1")
}

func TestStartCanceled(t *testing.T) {
	installedOnly(t)
	tests := []struct {
		name  string
		file  string // in the server's directory, whose appearance cancels; "" for before it all
		mayBe bool   // the server may be faster than the cancelling
	}{
		{"before", "", false},
		{"initdb", "PG_VERSION", false}, // the first of a thousand files that initdb writes
		{"server", "postmaster.pid", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := tempDir(t)
			ctx, cancel := context.WithCancel(t.Context())
			var watcher sync.WaitGroup
			defer func() { cancel(); watcher.Wait() }()
			if tt.file == "" {
				cancel()
			} else {
				watcher.Go(func() {
					defer cancel()
					for ctx.Err() == nil && !appeared(dir, tt.file) {
						time.Sleep(time.Millisecond)
					}
				})
			}
			s, err := pgtenancytest.Start(ctx)
			switch {
			case err == nil && tt.mayBe:
				s.Close()
			case !errors.Is(err, context.Canceled):
				t.Errorf("Start = %v, %v, want context.Canceled", s, err)
			}
			if left := leftovers(t, dir); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// appeared reports whether there is a file of that name below dir.
func appeared(dir, name string) bool {
	found := false
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err == nil && e.Name() == name {
			found = true
			return filepath.SkipAll
		}
		return nil // what goes away meanwhile is not what is looked for
	})
	return found
}

func TestStartWrongPostgresBin(t *testing.T) {
	installedOnly(t)
	program := func(text string) string { return "#!/bin/sh\n" + text + "\n" }
	version := program(`[ "$1" = --version ] && echo "postgres (PostgreSQL) 99.1" || echo no room in the inn >&2`)
	tests := []struct {
		name             string
		initdb, postgres string
		want             string
	}{
		{"no such directory", "", "", "no such file"},
		{"no initdb", "", version, "initdb"},
		{"no postgres", program("exit 0"), "", "postgres"},
		{"something else", program("exit 0"), program("echo hello"), "hello"},
		{"initdb fails", program("echo the disk is on fire; exit 1"), version, "the disk is on fire"},
		{"server fails", program("mkdir data"), version, "no room in the inn"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := tempDir(t)
			bin := filepath.Join(openDir(t), "bin")
			for name, text := range map[string]string{"initdb": tt.initdb, "postgres": tt.postgres} {
				if text == "" {
					continue
				}
				if err := os.MkdirAll(bin, 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(bin, name), []byte(text), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			t.Setenv("PGTENANCY_POSTGRES_BIN", bin)
			pgtenancytest.SetDrivers(t, map[string]pgtenancytest.Driver{
				"works": func(context.Context) (string, string, func() error, error) {
					return "postgres://", "a driver", func() error { return nil }, nil
				},
			})
			s, err := pgtenancytest.Start(t.Context())
			if err == nil {
				s.Close()
				t.Fatalf("Start silently fell back on %s", s.Source())
			}
			for _, want := range []string{"PGTENANCY_POSTGRES_BIN", bin, tt.want} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error does not say %q:\n%v", want, err)
				}
			}
			checkNothingLeft(t, dir)
		})
	}
}

func TestStartNothingWorks(t *testing.T) {
	nothing(t)
	errBroken := errors.New("the engine is out of fuel")
	var order []string
	broken := func(name string) pgtenancytest.Driver {
		return func(context.Context) (string, string, func() error, error) {
			order = append(order, name)
			return "", "", nil, errBroken
		}
	}
	pgtenancytest.SetDrivers(t, map[string]pgtenancytest.Driver{"download": broken("download"), "container": broken("container")})
	_, err := pgtenancytest.Start(t.Context())
	if !errors.Is(err, errBroken) {
		t.Errorf("Start = %v, want %v", err, errBroken)
	}
	if got := strings.Join(order, " "); got != "container download" {
		t.Errorf("drivers tried: %s", got)
	}
	for _, want := range []string{
		"DATABASE_URL: not set", "/nowhere/postgresql-*/bin", "PATH", "pg_config",
		"driver container: the engine", "driver download: the engine", // what was tried
		"set DATABASE_URL", "apt-get install", "brew install", "PGTENANCY_POSTGRES_BIN", "/container", "/download", // what to do
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error does not say %q:\n%v", want, err)
		}
	}
}

func TestStartDriver(t *testing.T) {
	nothing(t)
	stopped := 0
	errStop := errors.New("would not stop")
	pgtenancytest.SetDrivers(t, map[string]pgtenancytest.Driver{
		"a": func(context.Context) (string, string, func() error, error) {
			return "", "", nil, errors.New("not today")
		},
		"b": func(context.Context) (string, string, func() error, error) {
			return "postgres://b", "the source", func() error { stopped++; return errStop }, nil
		},
	})
	s, err := pgtenancytest.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s.URL() != "postgres://b" || s.Source() != "the source" {
		t.Errorf("URL %q, source %q", s.URL(), s.Source())
	}
	for range 2 {
		if err := s.Close(); !errors.Is(err, errStop) {
			t.Errorf("Close = %v, want %v", err, errStop)
		}
	}
	if stopped != 1 {
		t.Errorf("stopped %d times", stopped)
	}
}

func TestStartDatabaseURL(t *testing.T) {
	installedOnly(t)
	owner, err := pgtenancytest.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer owner.Close()
	u, err := url.Parse(owner.URL())
	if err != nil {
		t.Fatal(err)
	}
	for name, conn := range map[string]string{
		"URL":       owner.URL(),
		"with name": owner.URL() + "&dbname=template1",
		"key=value": "host=" + u.Hostname() + " port=" + u.Port() + " user=postgres dbname=postgres sslmode=disable",
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("DATABASE_URL", conn)
			s, err := pgtenancytest.Start(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if s.URL() != conn || s.Source() != "DATABASE_URL" {
				t.Errorf("URL %q, source %q", s.URL(), s.Source())
			}
			for _, db := range []string{"plain", `o'dd "name" \ /`} {
				dbURL, err := s.CreateDatabase(t.Context(), db)
				if err != nil {
					t.Fatal(err)
				}
				if got := mustQuery[string](t, dbURL, "SELECT current_database()"); got != db {
					t.Errorf("connected to %q, want %q", got, db)
				}
				if err := s.DropDatabase(t.Context(), db); err != nil {
					t.Error(err)
				}
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			mustQuery[int](t, owner.URL(), "SELECT 1")
		})
	}
}

func TestStartWrongDatabaseURL(t *testing.T) {
	for name, conn := range map[string]string{
		"no server": "postgres://me:sekret@127.0.0.1:1/postgres",
		"not a URL": "postgres://me:sekret@[/postgres",
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("DATABASE_URL", conn)
			s, err := pgtenancytest.Start(t.Context())
			if err == nil {
				t.Fatalf("Start silently fell back on %s", s.Source())
			}
			if !strings.Contains(err.Error(), "DATABASE_URL") || strings.Contains(err.Error(), "sekret") {
				t.Errorf("error shows the password, or not the variable: %v", err)
			}
		})
	}
}

func TestRegisterPanics(t *testing.T) {
	pgtenancytest.SetDrivers(t, map[string]pgtenancytest.Driver{})
	d := func(context.Context) (string, string, func() error, error) { return "", "", nil, nil }
	pgtenancytest.Register("once", d)
	for name, d := range map[string]pgtenancytest.Driver{"once": d, "nil": nil} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("Register(%q) did not panic", name)
				}
			}()
			pgtenancytest.Register(name, d)
		}()
	}
}

func TestInstalledNewestFirst(t *testing.T) {
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", t.TempDir())
	var want []string
	for _, version := range []string{"18", "9.6", "15"} {
		bin := filepath.Join(root, "postgresql", version, "bin")
		if err := os.MkdirAll(bin, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"initdb", "postgres"} {
			if err := os.WriteFile(filepath.Join(bin, name), nil, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		want = append(want, bin)
	}
	want[1], want[2] = want[2], want[1]
	pgtenancytest.SetPlaces(t, filepath.Join(root, "postgresql", "*", "bin"))
	if got := pgtenancytest.Installed(t.Context()); strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("found %v, want %v", got, want)
	}
}
