package pgtenancytest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"
)

// Server is a PostgreSQL server for tests and examples. Its methods may be called concurrently.
type Server struct {
	url      string
	source   string
	stop     func() error
	external bool // it was there before this process, and stays
}

// Start starts, or finds, a PostgreSQL server. It takes the first of these that there is:
//
//  1. the server that the environment variable DATABASE_URL names. It is used as it is and never stopped; its user needs
//     the right to create databases where [Server.CreateDatabase] or [Database] is used.
//  2. server binaries on this machine, run on a new cluster in a temporary directory. Those in the directory
//     PGTENANCY_POSTGRES_BIN where that is set, else those found in PATH, by pg_config, and where Linux distributions,
//     Homebrew and Postgres.app put them. Not on Windows.
//  3. the drivers that the program imports, in the order of their names: container, then download.
//
// A DATABASE_URL or PGTENANCY_POSTGRES_BIN that does not work is an error; nothing else is tried then. When nothing works, the
// error lists each thing that was tried, why it failed, and what to do.
//
// A started server listens on the loopback, trusts everyone who connects, and is set up to forget its data rather than
// to wait for a disk: never keep anything of value in it. It has UTF8 with the locale C and takes 200 connections. It
// ends with [Server.Close], and at the latest with this process, however that ends.
//
// ctx governs the start only. When it is done meanwhile, Start cleans up and returns its error.
func Start(ctx context.Context) (*Server, error) {
	if u := os.Getenv("DATABASE_URL"); u != "" {
		s := &Server{url: u, source: "DATABASE_URL", stop: func() error { return nil }, external: true}
		if err := s.exec(ctx, "SELECT"); err != nil {
			return nil, fmt.Errorf("pgtenancytest: the server in DATABASE_URL: %w", err)
		}
		return s, nil
	}
	s, tried := startInstalled(ctx)
	if s != nil {
		return s, nil
	}
	if dir := os.Getenv(binEnv); dir != "" {
		return nil, fmt.Errorf("pgtenancytest: the server in %s: %w", binEnv, errors.Join(tried...))
	}
	names, drivers := registered()
	for _, name := range names {
		if ctx.Err() != nil {
			break
		}
		u, source, stop, err := drivers[name](ctx)
		if err == nil {
			return &Server{url: u, source: source, stop: sync.OnceValue(stop)}, nil
		}
		tried = append(tried, fmt.Errorf("driver %s: %w", name, err))
	}
	if err := context.Cause(ctx); err != nil {
		return nil, fmt.Errorf("pgtenancytest: no PostgreSQL server yet: %w", errors.Join(append(tried, err)...))
	}
	return nil, fmt.Errorf("pgtenancytest: no PostgreSQL server. Tried:\nDATABASE_URL: not set\n%w\n%s", errors.Join(tried...), advice)
}

// URL returns a connection URL of the server: the superuser's to the database postgres, or DATABASE_URL as it is.
func (s *Server) URL() string { return s.url }

// Source says where the server comes from, for people: "DATABASE_URL", "/usr/lib/postgresql/18/bin (PostgreSQL 18.3)",
// "container postgres:18-alpine".
func (s *Server) Source() string { return s.source }

// CreateDatabase creates an empty database, owned by the user in [Server.URL], and returns its connection URL.
// The name may be anything PostgreSQL takes; it is quoted.
func (s *Server) CreateDatabase(ctx context.Context, name string) (string, error) {
	u, err := withDatabase(s.url, name)
	if err != nil {
		return "", fmt.Errorf("create database %q: %w", name, err)
	}
	// template1 may have got tables by somebody, and cannot be copied while anyone is connected to it.
	if err := s.exec(ctx, "CREATE DATABASE "+pgx.Identifier{name}.Sanitize()+" TEMPLATE template0"); err != nil {
		return "", fmt.Errorf("create database %q: %w", name, err)
	}
	return u, nil
}

// DropDatabase drops a database and the connections to it. One that does not exist is no error.
func (s *Server) DropDatabase(ctx context.Context, name string) error {
	if err := s.exec(ctx, "DROP DATABASE IF EXISTS "+pgx.Identifier{name}.Sanitize()+" WITH (FORCE)"); err != nil {
		return fmt.Errorf("drop database %q: %w", name, err)
	}
	return nil
}

// Close stops the server, whoever is connected, and removes everything of it, and waits for that. A second call
// returns what the first returned. It does nothing to a server of DATABASE_URL, nor to the databases created in it.
func (s *Server) Close() error {
	if err := s.stop(); err != nil {
		return fmt.Errorf("pgtenancytest: %w", err)
	}
	return nil
}

func (s *Server) exec(ctx context.Context, sql string) error {
	conn, err := pgx.Connect(ctx, s.url)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	_, err = conn.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol)
	return err
}

// withDatabase returns the connection string for another database of the same server. What comes in is a URL, or, in
// DATABASE_URL, the key=value form that pgx and libpq take as well.
func withDatabase(conn, name string) (string, error) {
	if !strings.HasPrefix(conn, "postgres://") && !strings.HasPrefix(conn, "postgresql://") {
		quoted := strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(name)
		return conn + " dbname='" + quoted + "'", nil // the last one counts
	}
	u, err := url.Parse(conn)
	if err != nil {
		// url.Error shows the whole URL, which may have a password in it.
		return "", errors.New("the server's connection URL cannot be parsed")
	}
	u.Path, u.RawPath = "/"+name, ""
	q := u.Query()
	if q.Has("dbname") || q.Has("database") {
		q.Del("dbname")
		q.Del("database")
		u.RawQuery = q.Encode()
	}
	return u.String(), nil
}
