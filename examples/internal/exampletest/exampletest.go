// Package exampletest runs the service of an example, for its test.
package exampletest

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"regexp"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Patience is how long anything may take. It ends what hangs.
const Patience = time.Minute

// Service is a service that runs.
type Service struct {
	T       *testing.T
	URL     string // of the database
	Port    string
	Out     *Output
	Stop    context.CancelFunc
	Stopped chan error   // what run has returned
	Client  *http.Client // which goes to the service whatever the host, as curl does for *.localhost
}

// Output is what a service prints.
type Output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *Output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// Start runs a service on the database at url until the test is over. It returns when the service has printed what serving matches, whose
// first group is the port.
func Start(t *testing.T, url string, serving *regexp.Regexp, run func(ctx context.Context, out io.Writer) error) *Service {
	t.Helper()
	t.Setenv("DATABASE_URL", url)
	ctx, cancel := context.WithCancel(context.Background())
	s := &Service{T: t, URL: url, Out: &Output{}, Stop: cancel, Stopped: make(chan error, 1)}
	go func() { s.Stopped <- run(ctx, s.Out) }()
	for deadline := time.Now().Add(Patience); s.Port == ""; time.Sleep(5 * time.Millisecond) {
		select {
		case err := <-s.Stopped:
			cancel()
			t.Fatalf("run: %v\n%s", err, s.Out)
		default:
		}
		if m := serving.FindStringSubmatch(s.Out.String()); m != nil {
			s.Port = m[1]
		}
		if time.Now().After(deadline) {
			cancel()
			t.Fatalf("does not serve:\n%s", s.Out)
		}
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, "127.0.0.1:"+s.Port)
	}}
	s.Client = &http.Client{Transport: transport, Timeout: Patience}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		cancel()
	})
	return s
}

// End stops the service, and checks that nothing is left of it.
func (s *Service) End() {
	s.T.Helper()
	s.Stop()
	select {
	case err := <-s.Stopped:
		if err != nil {
			s.T.Errorf("run: %v", err)
		}
	case <-time.After(Patience):
		s.T.Fatal("does not stop")
	}
	s.Await("select count(*) = 0 from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'")
}

// Await waits until a query says true.
func (s *Service) Await(sql string) {
	s.T.Helper()
	conn, err := pgx.Connect(s.T.Context(), s.URL)
	if err != nil {
		s.T.Fatal(err)
	}
	defer conn.Close(context.Background())
	for deadline := time.Now().Add(Patience); ; time.Sleep(5 * time.Millisecond) {
		var yes bool
		if err := conn.QueryRow(s.T.Context(), sql).Scan(&yes); err != nil {
			s.T.Fatal(err)
		}
		if yes {
			return
		}
		if time.Now().After(deadline) {
			s.T.Fatalf("it does not become true: %s", sql)
		}
	}
}
