package interoptest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// bouncersEnv names programs of PgBouncer to test through, separated by colons; it is looked for where that is not set.
const bouncersEnv = "PGTENANCY_PGBOUNCER"

// bouncer is a program of PgBouncer.
type bouncer struct {
	program  string
	version  string // as "1.24.1"
	prepares bool   // prepared statements work in transaction mode
}

// findBouncers returns the programs that there are.
func findBouncers(t *testing.T) (found []*bouncer) {
	t.Helper()
	programs := filepath.SplitList(os.Getenv(bouncersEnv))
	for _, name := range []string{"pgbouncer", "/usr/sbin/pgbouncer"} {
		if p, err := exec.LookPath(name); err == nil && len(programs) == 0 {
			programs = append(programs, p)
		}
	}
	for _, p := range programs {
		out, err := exec.Command(p, "--version").Output()
		if err != nil {
			t.Fatalf("%s --version: %v", p, err)
		}
		line, _, _ := strings.Cut(string(out), "\n")
		b := &bouncer{program: p, version: strings.TrimPrefix(line, "PgBouncer ")}
		var major, minor int
		if _, err := fmt.Sscanf(b.version, "%d.%d", &major, &minor); err != nil {
			t.Fatalf("%s says it is %q", p, line)
		}
		b.prepares = major > 1 || minor >= 21
		found = append(found, b)
	}
	return found
}

// use starts a PgBouncer in transaction mode in front of the server of cfg, and makes cfg go through it.
func (b *bouncer) use(t *testing.T, cfg *pgxpool.Config) {
	t.Helper()
	address := b.start(t, cfg.ConnConfig)
	host, port, _ := net.SplitHostPort(address)
	n, _ := strconv.Atoi(port)
	cfg.ConnConfig.Host, cfg.ConnConfig.Port, cfg.ConnConfig.Fallbacks = host, uint16(n), nil
	if !b.prepares && cfg.ConnConfig.DefaultQueryExecMode == pgx.QueryExecModeCacheStatement {
		cfg.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
	}
}

// start returns the address of a new PgBouncer. It ends with the test, and at the latest with the process.
func (b *bouncer) start(t *testing.T, server *pgx.ConnConfig) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().(*net.TCPAddr)
	_ = l.Close() // PgBouncer takes the port
	dir, err := os.MkdirTemp("", "pgbouncer")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	ini := fmt.Sprintf(`[databases]
* = host=%s port=%d

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = trust
auth_file = %s/users.txt
pool_mode = transaction
default_pool_size = %d
server_login_retry = 0.05
server_round_robin = 1
`, server.Host, server.Port, address.Port, dir, maxConns)
	if b.prepares {
		ini += "max_prepared_statements = 20\n" // fewer than clients have
	}
	err = os.WriteFile(filepath.Join(dir, "pgbouncer.ini"), []byte(ini), 0o644)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "users.txt"), []byte(fmt.Sprintf("%q \"\"\n", server.User)), 0o644)
	}
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}

	// The shell reads to the end of the pipe, whose other end is this process's, and then ends PgBouncer.
	args := []string{"-c", `"$@" & read -r eof; kill -KILL $!`, "sh", b.program}
	if os.Geteuid() == 0 { // as whom it refuses to run
		name := "nobody"
		if _, err := user.Lookup("postgres"); err == nil {
			name = "postgres"
		}
		args = append(args, "-u", name)
	}
	sh := exec.Command("/bin/sh", append(args, filepath.Join(dir, "pgbouncer.ini"))...)
	var log strings.Builder
	sh.Stdout, sh.Stderr = &log, &log
	alive, err := sh.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := sh.Start(); err != nil {
		t.Fatal(err)
	}
	stop := sync.OnceFunc(func() {
		_ = alive.Close() // which ends it
		_ = sh.Wait()
	})
	t.Cleanup(func() {
		stop()
		if t.Failed() {
			t.Logf("PgBouncer says:\n%s", log.String())
		}
	})
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if conn, err := net.Dial("tcp", address.String()); err == nil {
			_ = conn.Close() // it was to see that somebody listens
			return address.String()
		} else if time.Now().After(deadline) {
			stop()
			t.Fatalf("PgBouncer does not start: %v\n%s", err, log.String())
		}
	}
}
