// Package download lets [pgtenancytest.Start] download PostgreSQL, where no other server is at hand:
//
//	import _ "github.com/pgtenancy/pgtenancy/pgtenancytest/download"
//
// The binaries are those that Zonky builds for embedded tests, by way of embedded-postgres. PGTENANCY_POSTGRES_VERSION picks the version: a
// major one from 14 to 18, or a full one such as 18.3.0; the newest known when unset. PGTENANCY_POSTGRES_DOWNLOAD_URL is the Maven repository to
// take them from, Maven Central when unset. They are downloaded once and kept in the directory pgtenancytest of the user's
// cache directory, which for root is /var/cache unless XDG_CACHE_HOME says otherwise. Not on Windows.
package download

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"time"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"

	"github.com/pgtenancy/pgtenancy/pgtenancytest"
	"github.com/pgtenancy/pgtenancy/pgtenancytest/internal/pgserver"
)

const (
	versionEnv = "PGTENANCY_POSTGRES_VERSION"
	urlEnv     = "PGTENANCY_POSTGRES_DOWNLOAD_URL"
)

func init() { pgtenancytest.Register("download", start) }

func start(ctx context.Context) (url, source string, stop func() error, err error) {
	if runtime.GOOS == "windows" {
		return "", "", nil, pgserver.ErrUnsupported
	}
	bin, err := binaries(ctx, version(os.Getenv(versionEnv)))
	if err != nil {
		return "", "", nil, err
	}
	ver, err := pgserver.Version(ctx, bin)
	if err != nil {
		return "", "", nil, fmt.Errorf("%s: %w", bin, err)
	}
	s, err := pgserver.Start(ctx, bin)
	if err != nil {
		return "", "", nil, fmt.Errorf("%s: %w", bin, err)
	}
	return s.URL(), "download " + ver, s.Stop, nil
}

// version makes a full version of what the user asked for.
func version(asked string) embeddedpostgres.PostgresVersion {
	known := map[string]embeddedpostgres.PostgresVersion{
		"":   embeddedpostgres.V18,
		"18": embeddedpostgres.V18,
		"17": embeddedpostgres.V17,
		"16": embeddedpostgres.V16,
		"15": embeddedpostgres.V15,
		"14": embeddedpostgres.V14,
	}
	return cmp.Or(known[asked], embeddedpostgres.PostgresVersion(asked))
}

// binaries returns the bin directory of a version, downloaded unless it is in the cache. Where processes race for it, the
// first one's copy stays.
func binaries(ctx context.Context, v embeddedpostgres.PostgresVersion) (string, error) {
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	final := filepath.Join(cache, fmt.Sprintf("postgres-%s-%s-%s", v, runtime.GOOS, runtime.GOARCH))
	bin := filepath.Join(final, "bin")
	if _, err := os.Stat(bin); err == nil {
		return bin, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	removeStale(cache)
	temp, err := os.MkdirTemp(cache, "download-")
	if err != nil {
		return "", err
	}
	unpacked := make(chan error, 1)
	go func() {
		err := unpack(v, temp, filepath.Join(temp, "postgres"))
		if err == nil {
			err = os.Rename(filepath.Join(temp, "postgres"), final)
			if errors.Is(err, fs.ErrExist) {
				err = nil
			}
		}
		_ = os.RemoveAll(temp) // what stays is removed when it is stale
		unpacked <- err
	}()
	// embedded-postgres takes no context: after ctx is done its download goes on unseen, and cleans up.
	select {
	case err = <-unpacked:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		return "", fmt.Errorf("download PostgreSQL %s: %w", v, err)
	}
	return bin, nil
}

// removeStale removes what downloads left whose process was killed.
func removeStale(cache string) {
	dirs, _ := filepath.Glob(filepath.Join(cache, "download-*")) // the only error is a malformed pattern
	for _, dir := range dirs {
		if info, err := os.Stat(dir); err == nil && time.Since(info.ModTime()) > time.Hour {
			_ = os.RemoveAll(dir) // the next download tries again
		}
	}
}

// cacheDir returns the directory for downloads. It must be open to the user that the server runs as, which for root's own
// cache directory is not so.
func cacheDir() (string, error) {
	if os.Geteuid() == 0 && os.Getenv("XDG_CACHE_HOME") == "" {
		return "/var/cache/pgtenancytest", nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "pgtenancytest"), nil
}

// unpack downloads a version's archive to temp and unpacks it to dir.
//
// We want no more of embedded-postgres: it does not drop root, and a killed test leaves its server running. Its API has a Start
// only, which unpacks and goes on to make a data directory. That one's name here has a NUL in it, which no operating system
// takes, so Start ends there, before it runs anything.
func unpack(v embeddedpostgres.PostgresVersion, temp, dir string) error {
	cfg := embeddedpostgres.DefaultConfig().
		Version(v).
		Port(0). // it wants to listen on the port once, and 0 is always free
		CachePath(temp).
		RuntimePath(dir).
		DataPath(filepath.Join(temp, "no\x00data")).
		Logger(io.Discard)
	if url := os.Getenv(urlEnv); url != "" {
		cfg = cfg.BinaryRepositoryURL(strings.TrimSuffix(url, "/"))
	}
	pg := embeddedpostgres.NewDatabase(cfg)
	err := pg.Start()
	removeLog(pg)
	if err != nil && strings.HasPrefix(err.Error(), "unable to clean up data directory") {
		return nil
	}
	return cmp.Or(err, errors.New("embedded-postgres started a server that was not asked for"))
}

// removeLog removes the log file that embedded-postgres makes in the temporary directory and forgets, if it is still made so.
func removeLog(pg *embeddedpostgres.EmbeddedPostgres) {
	logger := reflect.ValueOf(pg).Elem().FieldByName("syncedLogger")
	if logger.Kind() != reflect.Pointer || logger.IsNil() {
		return
	}
	file := logger.Elem().FieldByName("file")
	if file.Type() == reflect.TypeFor[*os.File]() && !file.IsNil() {
		f := (*os.File)(file.UnsafePointer())
		_ = f.Close()
		_ = os.Remove(f.Name())
	}
}
