package pgserver

import "context"

// Start always fails on Windows, where there is no /bin/sh to supervise the server.
func Start(context.Context, string) (*Server, error) { return nil, ErrUnsupported }

// Server is a running server. There is none on Windows.
type Server struct{}

// URL returns the superuser's connection URL to the database postgres.
func (*Server) URL() string { return "" }

// Stop stops the server and removes what it left on disk.
func (*Server) Stop() error { return ErrUnsupported }
