package pgtenancytest

import (
	"context"
	"crypto/rand"
	"net/url"
	"strings"
	"sync"
	"time"
)

// TB is what [Database] needs of [testing.TB]. It is an interface of its own so that programs which only [Start] a server
// do not link package testing.
type TB interface {
	Helper()
	Name() string
	Failed() bool
	Cleanup(func())
	Logf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// How long the one server of a test binary may take to start, an image or a download included, and a database to come or go.
const (
	startTimeout    = 5 * time.Minute
	databaseTimeout = time.Minute
)

// shared starts the server of this test binary. A failure is kept as well: the next test would only wait for the same.
var shared = sync.OnceValues(func() (*Server, error) {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	return Start(ctx)
})

// Database returns the connection URL of a new, empty database for the test, which is dropped when the test and its subtests
// are over, with the connections to it. When the test failed on a server that outlives it, the database stays and its
// name is logged.
//
// All tests of a test binary share one server, which [Start] starts at the first call and which ends with the binary; tests may
// run in parallel. Without a server the test fails, with an error that says what to do about it.
func Database(t TB) string {
	t.Helper()
	s, err := shared()
	if err != nil {
		t.Fatalf("%v", err)
	}
	name := databaseName(t.Name())
	ctx, cancel := context.WithTimeout(context.Background(), databaseTimeout)
	defer cancel()
	dbURL, err := s.CreateDatabase(ctx, name)
	if err != nil {
		t.Fatalf("pgtenancytest: %v", err)
	}
	t.Cleanup(func() {
		t.Helper()
		if t.Failed() && s.external {
			t.Logf("pgtenancytest: the test failed, its database stays: %s", redacted(dbURL, name))
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), databaseTimeout)
		defer cancel()
		if err := s.DropDatabase(ctx, name); err != nil {
			t.Fatalf("pgtenancytest: %v", err)
		}
	})
	return dbURL
}

// databaseName makes a new name that shows whose database it is, within PostgreSQL's 63 bytes.
func databaseName(test string) string {
	test = strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', '0' <= r && r <= '9':
			return r
		case 'A' <= r && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '_'
	}, test)
	return test[:min(len(test), 50)] + "_" + strings.ToLower(rand.Text()[:12])
}

// redacted returns what to show of a database's connection URL: all but a password.
func redacted(conn, name string) string {
	if u, err := url.Parse(conn); err == nil && u.Scheme != "" {
		return u.Redacted()
	}
	return name
}
