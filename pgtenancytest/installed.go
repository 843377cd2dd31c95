package pgtenancytest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/pgtenancy/pgtenancy/pgtenancytest/internal/pgserver"
)

// binEnv names a directory of server binaries to use instead of those that are found.
const binEnv = "PGTENANCY_POSTGRES_BIN"

const advice = `To have one, do one of these:
- set DATABASE_URL to a server in which databases may be created, postgres://user:password@host:5432/postgres
- install PostgreSQL 14 or newer (Debian, Ubuntu: apt-get install postgresql; Fedora: dnf install postgresql-server; macOS: brew install postgresql@18)
- set ` + binEnv + ` to the directory that has its initdb and postgres
- have Docker, and import _ "github.com/pgtenancy/pgtenancy/pgtenancytest/container"
- have access to the internet, and import _ "github.com/pgtenancy/pgtenancy/pgtenancytest/download"`

// places are the usual homes of server binaries; in each, the newest version counts first. A variable for the tests.
var places = []string{
	"/usr/lib/postgresql/*/bin", // Debian, Ubuntu
	"/usr/pgsql-*/bin",          // Red Hat, from postgresql.org
	"/opt/homebrew/opt/postgresql*/bin",
	"/usr/local/opt/postgresql*/bin",
	"/opt/homebrew/bin",
	"/Applications/Postgres.app/Contents/Versions/*/bin",
}

// startInstalled starts the server binaries of this machine, the first that work, or returns what is wrong with each.
func startInstalled(ctx context.Context) (*Server, []error) {
	bins := []string{os.Getenv(binEnv)}
	if bins[0] == "" {
		bins = installed(ctx)
	}
	if len(bins) == 0 {
		return nil, []error{fmt.Errorf("server binaries: no initdb and postgres in PATH, in pg_config --bindir, in %s",
			strings.Join(places, ", "))}
	}
	var tried []error
	for _, bin := range bins {
		version, err := pgserver.Version(ctx, bin)
		if err == nil {
			var s *pgserver.Server
			if s, err = pgserver.Start(ctx, bin); err == nil {
				return &Server{url: s.URL(), source: bin + " (" + version + ")", stop: sync.OnceValue(s.Stop)}, nil
			}
		}
		tried = append(tried, fmt.Errorf("%s: %w", bin, err))
		if ctx.Err() != nil || errors.Is(err, pgserver.ErrUnsupported) {
			break
		}
	}
	return nil, tried
}

// installed returns the directories with server binaries on this machine, each once, the best first.
func installed(ctx context.Context) []string {
	var found []string
	add := func(dir string) {
		// Package managers link single programs into a directory in PATH; the rest of the server is where they point to.
		initdb, err := filepath.EvalSymlinks(filepath.Join(dir, "initdb"))
		if err != nil {
			return
		}
		dir = filepath.Dir(initdb)
		if _, err := os.Stat(filepath.Join(dir, "postgres")); err == nil && !slices.Contains(found, dir) {
			found = append(found, dir)
		}
	}
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		if filepath.IsAbs(dir) {
			add(dir)
		}
	}
	if out, err := exec.CommandContext(ctx, "pg_config", "--bindir").Output(); err == nil {
		add(strings.TrimSpace(string(out)))
	}
	for _, place := range places {
		dirs, _ := filepath.Glob(place) // the only error is a malformed pattern
		slices.SortFunc(dirs, func(a, b string) int { return cmp.Compare(versionIn(b), versionIn(a)) })
		for _, dir := range dirs {
			add(dir)
		}
	}
	return found
}

var number = regexp.MustCompile(`[0-9]+(\.[0-9]+)?`)

// versionIn returns the last number in a path, 9.6 or 18, else 0.
func versionIn(path string) float64 {
	all := number.FindAllString(path, -1)
	if len(all) == 0 {
		return 0
	}
	v, _ := strconv.ParseFloat(all[len(all)-1], 64)
	return v
}
