package pgtenancy_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pgtenancy/pgtenancy"
)

// A backup that was cut off, changed or lengthened is refused, and nothing is changed.
func TestBackupDamaged(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	fleet := db.migrated(t, shopFiles(db))
	acme := provision(t, fleet, "acme")
	db.execTenant(t, acme, "insert into notes (body) select md5(i::text) from generate_series(1, 300) i; insert into log (what) values (null), ('x')")
	store := newMemStore()
	name := backup(t, fleet, store, nil)["acme"].Name
	whole := store.objects[name]
	ctx := bare(t)
	if _, err := pgtenancy.Verify(ctx, store, name); err != nil {
		t.Fatal(err)
	}
	plain := func(b []byte) []byte {
		zr, err := gzip.NewReader(bytes.NewReader(b))
		if err != nil {
			return nil
		}
		text, err := io.ReadAll(zr)
		if err != nil {
			return nil
		}
		return text
	}
	bad := func(what string, b []byte, restore bool) {
		t.Helper()
		store.mu.Lock()
		store.objects["bad"] = b
		store.mu.Unlock()
		_, err := pgtenancy.Verify(ctx, store, "bad")
		if !errors.Is(err, pgtenancy.ErrBackupDamaged) {
			t.Errorf("Verify of one that %s: %v", what, err)
		}
		if !restore {
			return
		}
		_, err = fleet.Restore(ctx, store, "bad", &pgtenancy.RestoreOpts{Replace: true})
		if !errors.Is(err, pgtenancy.ErrBackupDamaged) {
			t.Errorf("Restore of one that %s: %v", what, err)
		}
	}
	state := func() []string {
		return db.texts(t, `select concat_ws(' ', 'tenant', id, schema_name, state) from pgtenancy.tenants
			union all select 'schema ' || nspname from pg_namespace where nspname like 'tenant%'
			union all select 'last note ' || max(id) from tenant_acme.notes order by 1`)
	}
	before := state()
	for n := range 400 {
		i := n * len(whole) / 400
		if n < 40 {
			i = n // of the header, each
		}
		b := bytes.Clone(whole)
		b[i] ^= 1 << (n % 8)
		if text := plain(b); i > 10 && text != nil && bytes.Equal(text, plain(whole)) {
			continue // a bit that fills up a byte, and says nothing
		}
		bad("has a wrong bit", b, n%40 == 3)
	}
	for n := range 40 {
		bad("ends too early", whole[:n*len(whole)/40], n%8 == 4)
	}
	bad("ends a byte too early", whole[:len(whole)-1], true)
	bad("goes on", append(bytes.Clone(whole), 0), true)
	bad("goes on with another one", append(bytes.Clone(whole), whole...), true)
	bad("is something else", []byte("hello, world; this is no backup at all"), true)
	bad("is empty", nil, true)
	for _, tt := range []struct {
		name string
		edit func(name string, text []byte) []byte // nil leaves the file out
	}{
		{"misses the end", func(name string, text []byte) []byte {
			if name == "end.json" {
				return nil
			}
			return text
		}},
		{"misses rows", func(name string, text []byte) []byte {
			if strings.HasPrefix(name, "tables/") {
				return text[:bytes.LastIndexByte(text[:len(text)-1], '\n')+1]
			}
			return text
		}},
		{"misses a table", func(name string, text []byte) []byte {
			if strings.HasPrefix(name, "tables/") {
				return nil
			}
			return text
		}},
		{"has other rows", func(name string, text []byte) []byte {
			if strings.HasPrefix(name, "tables/") {
				return bytes.Replace(text, []byte("1"), []byte("2"), 1)
			}
			return text
		}},
		{"has values that are none", func(name string, text []byte) []byte {
			if strings.HasPrefix(name, "tables/") {
				return bytes.Replace(text, []byte("1"), []byte("x"), 1)
			}
			return text
		}},
		{"has another migration", func(name string, text []byte) []byte {
			if strings.HasPrefix(name, "tenant/") {
				return append([]byte("create table pgtenancy.mine ();"), text...)
			}
			return text
		}},
		{"has another manifest", func(name string, text []byte) []byte {
			if name == "manifest.json" {
				return bytes.Replace(text, []byte(`"tenant": "acme"`), []byte(`"tenant": "evil"`), 1)
			}
			return text
		}},
	} {
		bad(tt.name, rewrite(t, whole, tt.edit), true)
	}
	checkList(t, "tenants and schemas", state(), before...)

	// A store that fails is not a damaged backup.
	store.objects["bad"] = whole
	broken := errors.New("connection reset")
	for _, n := range []int64{0, 100, int64(len(whole)) - 5} {
		_, err := fleet.Restore(ctx, failingStore{store, n, broken}, "bad", &pgtenancy.RestoreOpts{Replace: true})
		if !errors.Is(err, broken) || errors.Is(err, pgtenancy.ErrBackupDamaged) {
			t.Errorf("a store that fails after %d bytes: %v", n, err)
		}
	}
	checkList(t, "tenants and schemas", state(), before...)
	// Rows that are in the way are not a damaged backup.
	_, err := fleet.Restore(ctx, store, "bad", nil)
	if !errors.Is(err, pgtenancy.ErrTenantExists) || errors.Is(err, pgtenancy.ErrBackupDamaged) {
		t.Errorf("one that is there: %v", err)
	}
}

// rewrite returns a backup with other files, whole as gzip and tar.
func rewrite(t *testing.T, b []byte, edit func(name string, text []byte) []byte) []byte {
	t.Helper()
	zr, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	tr := tar.NewReader(zr)
	var out bytes.Buffer
	zw, _ := gzip.NewWriterLevel(&out, gzip.BestSpeed)
	tw := tar.NewWriter(zw)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		text, _ := io.ReadAll(tr)
		if text = edit(h.Name, text); text == nil {
			continue
		}
		h.Size = int64(len(text))
		if err := errors.Join(err, tw.WriteHeader(h)); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write(text); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(tw.Close(), zw.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// failingStore's objects fail after some bytes.
type failingStore struct {
	*memStore
	n   int64
	err error
}

func (s failingStore) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	r, err := s.memStore.Get(ctx, name)
	return io.NopCloser(io.MultiReader(io.LimitReader(r, s.n), errReader{s.err})), err
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

func TestDirStore(t *testing.T) {
	t.Parallel()
	ctx := bare(t)
	dir := filepath.Join(t.TempDir(), "new", "dir")
	s := pgtenancy.DirStore(dir)
	names := func(prefix string) (names []string) {
		t.Helper()
		for o, err := range s.List(ctx, prefix) {
			check(t, "List", err)
			names = append(names, o.Name)
		}
		return names
	}
	checkList(t, "nothing", names(""))
	check(t, "Delete of nothing", s.Delete(ctx, "a/1"))
	for _, name := range []string{"a/2", "a/1", "a-b/1", "ab/1", "c"} {
		check(t, "Put", s.Put(ctx, name, strings.NewReader(name)))
	}
	check(t, "Put again", s.Put(ctx, "c", strings.NewReader("c, again")))
	broken := errors.New("broken")
	err := s.Put(ctx, "a/3", io.MultiReader(strings.NewReader("x"), errReader{broken}))
	checkIs(t, "a reader that fails", err, broken)
	done, cancel := context.WithCancel(ctx)
	cancel()
	checkIs(t, "a context that is done", s.Put(done, "a/3", strings.NewReader("x")), context.Canceled)
	checkList(t, "all", names(""), "a-b/1", "a/1", "a/2", "ab/1", "c")
	checkList(t, "a/", names("a/"), "a/1", "a/2")
	checkList(t, "a", names("a"), "a-b/1", "a/1", "a/2", "ab/1")
	r, err := s.Get(ctx, "c")
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	check(t, "read", errors.Join(err, r.Close()))
	checkEqual(t, "content", string(b), "c, again")
	_, err = s.Get(ctx, "a/3")
	checkIs(t, "what is not there", err, fs.ErrNotExist)
	for _, name := range []string{"", "../x", "/etc/passwd", "a/../b", "a//b", ".hidden", "a/.partial-x", "."} {
		_, err := s.Get(ctx, name)
		checkInvalid(t, "Get "+name, err, "Object.Name")
		checkInvalid(t, "Put "+name, s.Put(ctx, name, strings.NewReader("x")), "Object.Name")
		checkInvalid(t, "Delete "+name, s.Delete(ctx, name), "Object.Name")
	}
	checkList(t, "outside", names("../"))

	// What a killed process left goes after a day.
	left := filepath.Join(dir, "a", ".partial-left")
	young := filepath.Join(dir, "a", ".partial-young")
	for _, file := range []string{left, young} {
		check(t, "WriteFile", os.WriteFile(file, []byte("x"), 0o600))
	}
	old := time.Now().Add(-25 * time.Hour)
	check(t, "Chtimes", os.Chtimes(left, old, old))
	checkList(t, "a/", names("a/"), "a/1", "a/2")
	check(t, "Put", s.Put(ctx, "a/4", strings.NewReader("x")))
	if _, err := os.Stat(left); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what was left is there still: %v", err)
	}
	if _, err := os.Stat(young); err != nil {
		t.Errorf("what is being written was removed: %v", err)
	}
	check(t, "Delete", s.Delete(ctx, "a/4"))
	checkList(t, "a/", names("a/"), "a/1", "a/2")
}
