package pgtenancy

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Store keeps backups: a directory (DirStore), a bucket. Its methods are called concurrently.
//
// Names have parts of lower-case letters, digits, '-', '.' and upper-case T and Z, with '/' in between, as
// "acme/20060102T150405.000000Z.tar.gz".
type Store interface {
	// Put stores what r has up to io.EOF, and returns when that is safe. Only then is there an object of that name: where r
	// fails with another error, or Put does, there is none, and no part of one. It must read r to its end or return an error.
	Put(ctx context.Context, name string, r io.Reader) error

	// Get returns a reader of the object. An error of an object that is not there is fs.ErrNotExist. Where the work is cancelled or the
	// database lost, Close may be called while a Read is under way, and should end that.
	Get(ctx context.Context, name string) (io.ReadCloser, error)

	// List iterates over the objects whose name begins with prefix, ordered by name. An error ends it.
	List(ctx context.Context, prefix string) iter.Seq2[Object, error]

	// Delete removes an object. One that is not there is no error.
	Delete(ctx context.Context, name string) error
}

// Object is one of a Store's.
type Object struct {
	Name    string
	Size    int64 // in bytes
	ModTime time.Time
}

// DirStore returns a Store that keeps each object as a file in dir, which it makes with the first. A file has another name
// until it is on the disk as a whole. What a process leaves that was killed in between, named ".partial-" and so on, is no
// object, and is removed after a day by another Put of the same tenant's.
// Files are not encrypted; the process's user alone can read them.
func DirStore(dir string) Store { return dirStore(dir) }

type dirStore string

const (
	partialPrefix = ".partial-"
	partialKept   = 24 * time.Hour
)

// file returns the path of an object.
func (d dirStore) file(name string) (string, error) {
	hidden := slices.ContainsFunc(strings.Split(name, "/"), func(part string) bool { return strings.HasPrefix(part, ".") })
	if !filepath.IsLocal(filepath.FromSlash(name)) || path.Clean(name) != name || hidden {
		return "", invalid("Object.Name", name, "must be a path below the directory, without parts that begin with a dot")
	}
	return filepath.Join(string(d), filepath.FromSlash(name)), nil
}

func (d dirStore) Put(ctx context.Context, name string, r io.Reader) (err error) {
	to, err := d.file(name)
	if err != nil {
		return err
	}
	dir := filepath.Dir(to)
	top := filepath.Clean(string(d)) // the directory above all those that are new
	for filepath.Dir(top) != top {
		if _, err := os.Stat(top); err == nil {
			break
		}
		top = filepath.Dir(top)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("pgtenancy: store: %w", err)
	}
	removePartial(dir)
	from := filepath.Join(dir, partialPrefix+strings.ToLower(rand.Text()))
	f, err := os.OpenFile(from, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("pgtenancy: store: %w", err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(from)
			err = fmt.Errorf("pgtenancy: store: %w", err)
		}
	}()
	if _, err := io.Copy(f, contextReader{ctx, r}); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(from, to); err != nil {
		return err
	}
	for ; ; dir = filepath.Dir(dir) { // the names of directories that are new are in those above
		if err := syncDir(dir); err != nil {
			return errors.Join(err, os.Remove(to))
		}
		if dir == top || filepath.Dir(dir) == dir {
			return nil
		}
	}
}

func removePartial(dir string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		info, err := e.Info()
		if err == nil && strings.HasPrefix(e.Name(), partialPrefix) && time.Since(info.ModTime()) > partialKept {
			_ = os.Remove(filepath.Join(dir, e.Name()))
		}
	}
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	return nil
}

// contextReader fails once its context is done.
type contextReader struct {
	ctx context.Context
	io.Reader
}

func (r contextReader) Read(b []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.Reader.Read(b)
}

func (d dirStore) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	file, err := d.file(name)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("pgtenancy: store: %w", err)
	}
	return f, nil
}

func (d dirStore) List(ctx context.Context, prefix string) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		objects, err := d.list(ctx, prefix)
		if err != nil {
			yield(Object{}, fmt.Errorf("pgtenancy: store: %w", err))
			return
		}
		for _, o := range objects {
			if !yield(o, nil) {
				return
			}
		}
	}
}

func (d dirStore) list(ctx context.Context, prefix string) (objects []Object, err error) {
	start := "."
	if i := strings.LastIndexByte(prefix, '/'); i >= 0 {
		start = prefix[:i]
		if !filepath.IsLocal(filepath.FromSlash(start)) {
			return nil, nil
		}
	}
	err = fs.WalkDir(os.DirFS(string(d)), path.Clean(start), func(name string, e fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // also what was deleted meanwhile
		case err != nil:
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case name != "." && strings.HasPrefix(e.Name(), "."):
			if e.IsDir() {
				return fs.SkipDir
			}
			return nil
		case !e.Type().IsRegular() || !strings.HasPrefix(name, prefix):
			return nil
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil {
			objects = append(objects, Object{Name: name, Size: info.Size(), ModTime: info.ModTime()})
		}
		return err
	})
	slices.SortFunc(objects, func(a, b Object) int { return strings.Compare(a.Name, b.Name) })
	return objects, err
}

func (d dirStore) Delete(ctx context.Context, name string) error {
	file, err := d.file(name)
	if err != nil {
		return err
	}
	err = os.Remove(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = syncDir(filepath.Dir(file))
	}
	if err != nil {
		return fmt.Errorf("pgtenancy: store: %w", err)
	}
	return nil
}
