// Package container lets [pgtenancytest.Start] run PostgreSQL in a container, where no other server is at hand:
//
//	import _ "github.com/pgtenancy/pgtenancy/pgtenancytest/container"
//
// It needs Docker, or an engine with its API such as Podman, found the way testcontainers-go finds it (DOCKER_HOST, the
// current Docker context, the usual sockets). The image is PGTENANCY_POSTGRES_IMAGE, postgres:18-alpine when that is unset; it is pulled
// when it is not there, and must understand what the official image does. The server is set up like an installed one: no
// durability, UTF8 with the locale C, and no passwords asked.
package container

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/log"
	"github.com/testcontainers/testcontainers-go/modules/postgres"

	"github.com/pgtenancy/pgtenancy/pgtenancytest"
)

const (
	imageEnv     = "PGTENANCY_POSTGRES_IMAGE"
	defaultImage = "postgres:18-alpine"

	engineTimeout = 10 * time.Second // for an engine to answer at all
	stopTimeout   = 30 * time.Second
)

func init() {
	pgtenancytest.Register("container", start)
	log.SetDefault(&quiet)
}

var errNoEngine = errors.New("no container engine")

func start(ctx context.Context) (url, source string, stop func() error, err error) {
	quiet.starting.Add(1)
	defer quiet.starting.Add(-1)
	defer recovered(&err) // testcontainers panics where it cannot find out about an engine

	if err := findEngine(ctx); err != nil {
		return "", "", nil, fmt.Errorf("%w: %w", errNoEngine, err)
	}
	image := cmp.Or(os.Getenv(imageEnv), defaultImage)
	c, err := postgres.Run(ctx, image,
		testcontainers.WithLogger(log.NewNoopLogger()),
		testcontainers.WithEnv(map[string]string{
			"POSTGRES_HOST_AUTH_METHOD": "trust",
			"POSTGRES_INITDB_ARGS":      "-E UTF8 --locale=C --no-sync",
		}),
		testcontainers.WithCmd("postgres", "-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off",
			"-c", "max_connections=200", "-c", "max_prepared_transactions=8", "-c", "shared_buffers=64MB"),
		postgres.BasicWaitStrategies(),
	)
	stop = func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		return c.Terminate(ctx, testcontainers.StopTimeout(0))
	}
	if err == nil {
		url, err = c.ConnectionString(ctx, "sslmode=disable")
	}
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		err = fmt.Errorf("image %s: %w", image, err)
		if c != nil {
			err = errors.Join(fmt.Errorf("%w%s", err, logTail(c)), stop())
		}
		return "", "", nil, err
	}
	return url, "container " + image, stop, nil
}

// findEngine fails soon where no engine answers. testcontainers would take its own time, with a context of its own.
func findEngine(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, engineTimeout, fmt.Errorf("none answered within %v", engineTimeout))
	defer cancel()
	done := make(chan error, 1)
	go func() {
		var err error
		defer func() { done <- err }()
		defer recovered(&err)
		p, err := testcontainers.NewDockerProvider()
		if err == nil {
			err = p.Health(ctx)
		}
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func recovered(err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("testcontainers: %v", r)
	}
}

// logTail returns the last lines of what the container wrote, indented and after a new line, or nothing.
func logTail(c testcontainers.Container) string {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	r, err := c.Logs(ctx)
	if err != nil {
		return ""
	}
	defer r.Close()
	log, _ := io.ReadAll(r)
	if len(log) == 0 {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(log)), "\n")
	return "\n\t" + strings.Join(lines[max(0, len(lines)-15):], "\n\t")
}

// quiet takes the place of testcontainers' global logger: silent while we start a server, else what it was before, for
// programs that use testcontainers themselves.
var quiet = silencer{before: log.Default()}

type silencer struct {
	before   log.Logger
	starting atomic.Int32
}

func (s *silencer) Printf(format string, args ...any) {
	if s.starting.Load() == 0 {
		s.before.Printf(format, args...)
	}
}
