//go:build unix

package download_test

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy/pgtenancytest/download"
)

func TestDownload(t *testing.T) {
	repo := newRepository(t)
	cache := environment(t, repo.URL)

	begin := time.Now()
	url, source, stop, err := download.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: %s in %v", source, url, time.Since(begin))
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var version string
	if err := conn.QueryRow(t.Context(), "SHOW server_version").Scan(&version); err != nil {
		t.Fatal(err)
	}
	version, _, _ = strings.Cut(version, " ")
	if source != "download PostgreSQL "+version {
		t.Errorf("source %q of a PostgreSQL %s", source, version)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if _, err := pgx.Connect(t.Context(), url); err == nil {
		t.Error("the server still answers")
	}

	// The second time it comes from the cache.
	jars := repo.jars.Load()
	begin = time.Now()
	_, _, stop, err = download.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("from the cache in %v", time.Since(begin))
	if err := stop(); err != nil {
		t.Error(err)
	}
	if jars != 1 || repo.jars.Load() != 1 {
		t.Errorf("downloaded %d times, then %d", jars, repo.jars.Load()-jars)
	}
	checkOnly(t, filepath.Join(cache, "pgtenancytest"), "postgres-18.3.0-")
	checkOnly(t, os.TempDir())
}

// Two processes may want the same version at the same time.
func TestDownloadRace(t *testing.T) {
	if testing.Short() {
		t.Skip("unpacking takes long")
	}
	repo := newRepository(t)
	cache := environment(t, repo.URL)
	errs := make(chan error, 2)
	for range cap(errs) {
		go func() {
			_, _, stop, err := download.Start(t.Context())
			if err == nil {
				err = stop()
			}
			errs <- err
		}()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	checkOnly(t, filepath.Join(cache, "pgtenancytest"), "postgres-18.3.0-")
	checkOnly(t, os.TempDir())
}

func TestDownloadFails(t *testing.T) {
	tests := []struct {
		name    string
		version string
		handler http.HandlerFunc
		want    string
	}{
		{"no such version", "77.7.0", http.NotFound, "77.7.0"},
		{"major version", "17", http.NotFound, "17.5.0"},
		{"wrong checksum", "", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "not what it should be") }, "checksum"},
		{"not an archive", "", func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, ".sha256") {
				http.NotFound(w, r)
				return
			}
			fmt.Fprint(w, "<html>log in to the proxy first</html>")
		}, "zip"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			repo := httptest.NewServer(tt.handler)
			defer repo.Close()
			cache := environment(t, repo.URL)
			t.Setenv("PGTENANCY_POSTGRES_VERSION", tt.version)
			_, _, stop, err := download.Start(t.Context())
			if err == nil {
				stop()
				t.Fatal("Start had no error")
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error does not say %q: %v", tt.want, err)
			}
			checkOnly(t, filepath.Join(cache, "pgtenancytest"))
			checkOnly(t, os.TempDir())
		})
	}
}

func TestDownloadCanceled(t *testing.T) {
	release := make(chan struct{})
	repo := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { <-release }))
	defer repo.Close()
	cache := environment(t, repo.URL)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, _, _, err := download.Start(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Start = %v, want %v", err, context.DeadlineExceeded)
	}
	close(release)
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if left, _ := filepath.Glob(filepath.Join(cache, "pgtenancytest", "*")); len(left) == 0 {
			break
		}
	}
	checkOnly(t, filepath.Join(cache, "pgtenancytest"))
}

// environment points the driver at a repository, and the cache and temporary files at new directories. It returns the former.
func environment(t *testing.T, url string) string {
	t.Helper()
	cache, temp := t.TempDir(), t.TempDir()
	// Root's server runs as another user.
	if err := errors.Join(os.Chmod(filepath.Dir(temp), 0o755), os.Chmod(temp, 0o777)); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PGTENANCY_POSTGRES_DOWNLOAD_URL", url+"/")
	t.Setenv("PGTENANCY_POSTGRES_VERSION", "")
	t.Setenv("XDG_CACHE_HOME", cache) // Linux and root
	t.Setenv("HOME", cache)           // macOS
	t.Setenv("TMPDIR", temp)
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	return cache
}

// checkOnly checks that a directory holds nothing, or but one entry with the prefix.
func checkOnly(t *testing.T, dir string, prefix ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Error(err)
	}
	if len(entries) != len(prefix) || len(prefix) == 1 && !strings.HasPrefix(entries[0].Name(), prefix[0]) {
		t.Errorf("%s has %v, want %q only", dir, entries, prefix)
	}
}

// repository is a Maven repository that has one artifact for every version and platform: this machine's PostgreSQL.
type repository struct {
	*httptest.Server
	jars atomic.Int32
}

func newRepository(t *testing.T) *repository {
	t.Helper()
	jar := archive(t)
	sum := sha256.Sum256(jar)
	repo := &repository{}
	repo.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, ".jar.sha256"):
			fmt.Fprintf(w, "%x", sum)
		case strings.HasSuffix(r.URL.Path, ".jar"):
			repo.jars.Add(1)
			w.Write(jar)
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(repo.Close)
	return repo
}

// archive makes what Zonky publishes: a jar with a txz of bin, lib and share.
func archive(t *testing.T) []byte {
	t.Helper()
	for _, tool := range []string{"tar", "xz"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s to make an archive: %v", tool, err)
		}
	}
	bin := os.Getenv("PGTENANCY_POSTGRES_BIN")
	if bin == "" {
		initdb, err := exec.LookPath("initdb")
		if err != nil {
			t.Skip("needs an installed PostgreSQL to make an archive of: no initdb in PATH, and PGTENANCY_POSTGRES_BIN is not set")
		}
		if initdb, err = filepath.EvalSymlinks(initdb); err != nil {
			t.Fatal(err)
		}
		bin = filepath.Dir(initdb)
	}
	home := filepath.Dir(bin)
	files := []string{"-C", home, "--exclude=bitcode", "--exclude=pgxs", "--exclude=*.a", "bin/initdb", "bin/postgres", "lib"}
	if _, err := os.Stat(filepath.Join(home, "share")); err == nil {
		files = append(files, "share")
	} // else, as on Debian, it is where the programs look for it wherever they are
	cmd := exec.Command("tar", append([]string{"-cJf", "-"}, files...)...)
	cmd.Env = append(os.Environ(), "XZ_OPT=-0 -T0")
	cmd.Stderr = os.Stderr
	txz, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var jar bytes.Buffer
	z := zip.NewWriter(&jar)
	w, err := z.Create("postgres-test.txz")
	if err != nil {
		t.Fatal(err)
	}
	w.Write(txz)
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return jar.Bytes()
}
