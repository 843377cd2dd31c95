//go:build unix

package pgserver

import (
	"context"
	"crypto/rand"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

//go:embed supervise.sh
var supervise string

// Server is a running server.
type Server struct {
	url   string
	dir   string
	sh    *exec.Cmd
	alive io.Closer // the write end of the supervisor's standard input: the server runs until it is closed
}

// running keeps every server reachable: the garbage collector would close the pipe of a dropped one, and so stop it.
var running sync.Map

// Start makes a cluster with the binaries in bin and starts a server on it, listening on 127.0.0.1 on a free port, with
// the superuser postgres, who needs no password. ctx governs the start only. It runs as the user of this process, or as
// postgres or else nobody where that is root. Its files are in a new directory under [os.TempDir].
func Start(ctx context.Context, bin string) (*Server, error) {
	bin, err := filepath.Abs(bin)
	if err != nil {
		return nil, err
	}
	for attempt := 1; ; attempt++ {
		port, err := freePort()
		if err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		s, err := start(ctx, bin, port)
		if err == nil {
			return s, nil
		}
		if !errors.Is(err, errPortTaken) || attempt == 3 {
			return nil, err
		}
	}
}

var errPortTaken = errors.New("somebody took the port meanwhile")

// freePort is a variable for the tests.
var freePort = func() (int, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

func start(ctx context.Context, bin string, port int) (*Server, error) {
	temp, err := filepath.Abs(os.TempDir())
	if err != nil {
		return nil, err
	}
	s := &Server{
		url: fmt.Sprintf("postgres://postgres@127.0.0.1:%d/postgres?sslmode=disable", port),
		dir: filepath.Join(temp, "pgtenancytest-"+rand.Text()[:10]),
	}
	s.sh = exec.Command("/bin/sh", "-c", supervise, "pgtenancytest", s.dir, bin, strconv.Itoa(port))
	s.sh.Dir = "/"
	s.sh.Env = environ()
	s.sh.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // out of reach of the terminal's Ctrl-C
	asUser := ""
	if os.Geteuid() == 0 {
		u, cred, err := unprivileged()
		if err != nil {
			return nil, err
		}
		asUser = " (as user " + u + ")"
		s.sh.SysProcAttr.Credential = cred
	}

	stdin, alive, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer stdin.Close()
	gone, stdout, err := os.Pipe()
	if err != nil {
		_ = alive.Close()
		return nil, err
	}
	defer gone.Close()
	s.alive, s.sh.Stdin, s.sh.Stdout = alive, stdin, stdout
	err = s.sh.Start()
	_ = stdout.Close()
	if err != nil {
		_ = alive.Close()
		return nil, fmt.Errorf("start /bin/sh%s: %w", asUser, err)
	}
	running.Store(s, nil)

	if err := s.waitReady(ctx, gone); err != nil {
		log := s.logTail()
		_ = s.Stop() // the error that counts is the one above
		if strings.Contains(log, "could not create any TCP/IP sockets") {
			err = fmt.Errorf("%w %d", errPortTaken, port)
		}
		return nil, fmt.Errorf("start PostgreSQL%s: %w%s", asUser, err, log)
	}
	return s, nil
}

// waitReady waits until the server accepts connections. gone reads as EOF when the server, or what should become it, ended.
func (s *Server) waitReady(ctx context.Context, gone *os.File) error {
	var said []byte
	buf := make([]byte, 4096)
	for {
		// The read is the pause between two looks as well.
		_ = gone.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
		n, err := gone.Read(buf)
		said = append(said, buf[:n]...)
		switch {
		case errors.Is(err, io.EOF) && len(said) > 0:
			return errors.New(strings.TrimSpace(string(said)))
		case errors.Is(err, io.EOF):
			return errors.New("it ended at once")
		case err != nil && !errors.Is(err, os.ErrDeadlineExceeded):
			return err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
		pidFile, err := os.ReadFile(filepath.Join(s.dir, "data", "postmaster.pid"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if lines := strings.Split(string(pidFile), "\n"); len(lines) >= 8 && strings.TrimSpace(lines[7]) == "ready" {
			return nil
		}
	}
}

// logTail returns the last lines of the log of initdb and the server, indented and after a new line, or nothing.
func (s *Server) logTail() string {
	log, err := os.ReadFile(filepath.Join(s.dir, "log"))
	if err != nil || len(log) == 0 {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(log)), "\n")
	lines = lines[max(0, len(lines)-15):]
	return "\n\t" + strings.Join(lines, "\n\t")
}

// URL returns the superuser's connection URL to the database postgres.
func (s *Server) URL() string { return s.url }

// Stop stops the server, whoever is connected, removes what it left on disk, and waits for both. Call it once.
func (s *Server) Stop() error {
	running.Delete(s)
	_ = s.alive.Close()
	if err := s.sh.Wait(); err != nil {
		return fmt.Errorf("stop the server in %s: %w", s.dir, err)
	}
	return nil
}

// environ returns what the server needs of this process's environment. The rest would set it up behind our back (PGPORT,
// PGCLIENTENCODING), or make a user's secrets readable in it.
func environ() []string {
	env := []string{"LC_ALL=C", "TZ=UTC"}
	for _, name := range []string{"PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// unprivileged returns the user that the server runs as where this process is root, as whom PostgreSQL refuses to run.
func unprivileged() (string, *syscall.Credential, error) {
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.ParseInt(u.Uid, 10, 64)
		if err != nil {
			return "", nil, err
		}
		gid, err := strconv.ParseInt(u.Gid, 10, 64)
		if err != nil {
			return "", nil, err
		}
		return name, &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
	}
	return "", nil, errors.New("PostgreSQL does not run as root, and there is no user postgres or nobody to run it as")
}
