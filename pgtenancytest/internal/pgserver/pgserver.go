// Package pgserver runs a PostgreSQL server from a directory of binaries, such that nothing of it outlives this process.
package pgserver

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
)

// ErrUnsupported is what [Start] returns on Windows, which has no /bin/sh to supervise the server.
var ErrUnsupported = errors.New("server binaries cannot be run on Windows: set DATABASE_URL or import the container driver")

// Version checks that bin holds the programs that [Start] needs, and returns what the server says that it is,
// for instance "PostgreSQL 18.3".
func Version(ctx context.Context, bin string) (string, error) {
	if _, err := exec.LookPath(filepath.Join(bin, "initdb")); err != nil {
		return "", fmt.Errorf("no usable initdb: %w", err)
	}
	out, err := exec.CommandContext(ctx, filepath.Join(bin, "postgres"), "--version").Output()
	if err != nil {
		return "", fmt.Errorf("no usable postgres: %w", err)
	}
	// postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)
	_, version, ok := strings.Cut(string(out), "(PostgreSQL) ")
	if !ok {
		return "", fmt.Errorf("postgres --version says %q", out)
	}
	version, _, _ = strings.Cut(strings.TrimSpace(version), " ")
	return "PostgreSQL " + version, nil
}
