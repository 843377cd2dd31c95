package pgtenancy

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"
	"time"
)

// A backup is a tar file, compressed with gzip, so that it can be read without this library. It has, in this order:
//
//	manifest.json                the Manifest, without what is known only at the end
//	manifest.sha256              of the file before, in hexadecimal
//	tenant/001_notes.sql, ...    the migrations in files, by version
//	shared/0001/000001.copy, ... for each of Manifest.Shared its rows as COPY writes them in the text format, in parts
//	tables/0001/000001.copy, ... the same for Manifest.Tables
//	end.json                     rows, size and checksum of each table
//
// The checksums find damage, not malice: who can write to the store can make a backup whose migrations do anything.

const (
	backupFormat = 1

	manifestFile    = "manifest.json"
	manifestSumFile = "manifest.sha256"
	endFile         = "end.json"
	tablesDir       = "tables"
	sharedDir       = "shared"

	partSize    = 1 << 20  // of a table; what a tar file has must be of known size
	mostInSmall = 64 << 20 // of the other files, which are held in memory
)

// gzipHeader is how every backup begins: no name, no time.
var gzipHeader = []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 4, 255}

// Manifest says what is in a backup.
type Manifest struct {
	Format    int       `json:"format"`     // 1
	CreatedAt time.Time `json:"created_at"` // the moment that its rows are of, by the database's clock
	Server    string    `json:"server"`     // PostgreSQL's version

	Tenant     string            `json:"tenant"` // its ID
	Schema     string            `json:"schema"`
	Attributes map[string]string `json:"attributes,omitempty"`
	Domains    []string          `json:"domains,omitempty"`

	Version    int64               `json:"version"` // the last migration
	Digest     int64               `json:"digest"`  // of all that the schema has had, as the registry has it
	Migrations []ManifestMigration `json:"migrations,omitempty"`

	// Fingerprint is of the schema's structure: that of another backup is the same where the structure is, on the same version of
	// PostgreSQL.
	Fingerprint string `json:"fingerprint"`

	// Drift is how the schema differs from what its migrations make.
	Drift []Difference `json:"drift,omitempty"`

	Tables    []ManifestTable    `json:"tables,omitempty"` // of the schema
	Shared    []ManifestTable    `json:"shared,omitempty"` // BackupOpts.Shared
	Sequences []ManifestSequence `json:"sequences,omitempty"`
	Views     []string           `json:"views,omitempty"` // the materialized ones that were populated, whose rows are not in it
}

// ManifestMigration is a migration that the schema has had.
type ManifestMigration struct {
	Version  int64  `json:"version"`
	Name     string `json:"name"`
	File     string `json:"file,omitempty"` // in the backup; "" for one in Go, which the backup has not got
	Checksum string `json:"checksum"`       // as the registry has it
	SHA256   string `json:"sha256,omitempty"`
}

// ManifestTable is a table and its rows.
type ManifestTable struct {
	Schema  string           `json:"schema,omitempty"` // of a shared table
	Name    string           `json:"name"`
	Columns []ManifestColumn `json:"columns,omitempty"` // those that take values
	ManifestRows
}

// ManifestColumn is a column and its type, as PostgreSQL writes it.
type ManifestColumn struct {
	Name string `json:"name"`
	Type string `json:"type"`
}

// ManifestRows are the rows of a table.
type ManifestRows struct {
	Rows   int64  `json:"rows"`
	Bytes  int64  `json:"bytes"`  // as COPY writes them
	SHA256 string `json:"sha256"` // of these bytes, in hexadecimal
}

// ManifestSequence is a sequence and its state.
type ManifestSequence struct {
	Name      string `json:"name"`
	LastValue int64  `json:"last_value"`
	IsCalled  bool   `json:"is_called"`
}

// tables returns all tables, the shared ones first: others may reference them.
func (m *Manifest) tables() []*ManifestTable {
	var all []*ManifestTable
	for i := range m.Shared {
		all = append(all, &m.Shared[i])
	}
	for i := range m.Tables {
		all = append(all, &m.Tables[i])
	}
	return all
}

// partName returns the name of a part of the table with that place among all tables.
func (m *Manifest) partName(table, part int) string {
	dir := sharedDir
	if table >= len(m.Shared) {
		dir, table = tablesDir, table-len(m.Shared)
	}
	return fmt.Sprintf("%s/%04d/%06d.copy", dir, table+1, part)
}

// rowsSum counts and sums what is written to it: the rows of a table in the text format, each a line.
type rowsSum struct {
	rows, bytes int64
	hash        hash.Hash
}

func (s *rowsSum) Write(b []byte) (int, error) {
	if s.hash == nil {
		s.hash = sha256.New()
	}
	s.rows += int64(bytes.Count(b, []byte{'\n'}))
	s.bytes += int64(len(b))
	return s.hash.Write(b)
}

func (s *rowsSum) sum() ManifestRows {
	_, _ = s.Write(nil)
	return ManifestRows{s.rows, s.bytes, hex.EncodeToString(s.hash.Sum(nil))}
}

func sha256Hex(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// archiveWriter writes a backup.
type archiveWriter struct {
	manifest *Manifest
	tar      *tar.Writer
	zip      *gzip.Writer
	ends     []ManifestRows

	table, part int // what is being written
	sum         rowsSum
	buf         []byte
}

// zips are writers that are not in use: each has a megabyte of tables. They compress fast rather than well.
var zips = sync.Pool{New: func() any {
	zip, _ := gzip.NewWriterLevel(nil, gzip.BestSpeed) // a level that there is
	return zip
}}

// newArchiveWriter begins a backup on w. source returns the text of a migration.
func newArchiveWriter(w io.Writer, m *Manifest, source func(file string) []byte) (*archiveWriter, error) {
	zip := zips.Get().(*gzip.Writer)
	zip.Reset(w)
	a := &archiveWriter{manifest: m, zip: zip, tar: tar.NewWriter(zip)}
	text, err := json.MarshalIndent(m, "", "\t")
	if err != nil {
		return nil, err
	}
	if len(text) > mostInSmall {
		return nil, fmt.Errorf("the manifest has %d bytes, of which there may be %d", len(text), mostInSmall)
	}
	if err := a.file(manifestFile, text); err != nil {
		return nil, err
	}
	if err := a.file(manifestSumFile, []byte(sha256Hex(text))); err != nil {
		return nil, err
	}
	for _, mig := range m.Migrations {
		if mig.File != "" {
			if err := a.file(mig.File, source(mig.File)); err != nil {
				return nil, err
			}
		}
	}
	return a, nil
}

func (a *archiveWriter) file(name string, text []byte) error {
	if err := a.tar.WriteHeader(&tar.Header{Name: name, Size: int64(len(text)), Mode: 0o600, Typeflag: tar.TypeReg}); err != nil {
		return err
	}
	_, err := a.tar.Write(text)
	return err
}

// Write writes rows of the table that is next.
func (a *archiveWriter) Write(b []byte) (n int, err error) {
	_, _ = a.sum.Write(b)
	for len(b) > 0 {
		k := min(len(b), partSize-len(a.buf))
		a.buf = append(a.buf, b[:k]...)
		b = b[k:]
		n += k
		if len(a.buf) == partSize {
			if err := a.flush(); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

func (a *archiveWriter) flush() error {
	if len(a.buf) == 0 {
		return nil
	}
	a.part++
	err := a.file(a.manifest.partName(a.table, a.part), a.buf)
	a.buf = a.buf[:0]
	return err
}

// endTable ends the rows of a table, of which COPY has counted rows.
func (a *archiveWriter) endTable(rows int64) error {
	if err := a.flush(); err != nil {
		return err
	}
	end := a.sum.sum()
	if end.Rows != rows {
		return fmt.Errorf("table %s: COPY counted %d rows, and wrote %d", a.manifest.tables()[a.table].Name, rows, end.Rows)
	}
	a.ends = append(a.ends, end)
	a.table, a.part, a.sum = a.table+1, 0, rowsSum{}
	return nil
}

// close ends the backup.
func (a *archiveWriter) close() error {
	text, err := json.MarshalIndent(a.ends, "", "\t")
	if err != nil {
		return err
	}
	if err := a.file(endFile, text); err != nil {
		return err
	}
	if err := a.tar.Close(); err != nil {
		return err
	}
	if err := a.zip.Close(); err != nil {
		return err
	}
	zips.Put(a.zip)
	return nil
}

// damaged returns the error of a backup that is not as it was written.
func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrBackupDamaged, fmt.Errorf(format, args...))
}

// sourceReader keeps the error of the store, which is not that of a backup that ends too early.
type sourceReader struct {
	io.Reader
	err error
}

func (r *sourceReader) Read(b []byte) (int, error) {
	n, err := r.Reader.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		r.err = err
	}
	return n, err
}

// archiveReader reads a backup from its beginning to its end, once.
type archiveReader struct {
	manifest *Manifest
	files    map[string][]byte // the migrations

	source *sourceReader
	buf    *bufio.Reader
	zip    *gzip.Reader
	tar    *tar.Reader
	ends   []ManifestRows

	next    *tar.Header  // that was read and is not used yet
	table   int          // tables that are done
	current *tableReader // the last
}

// newArchiveReader reads a backup up to its tables. Their rows come with read, one table after the other, then end.
func newArchiveReader(r io.Reader) (*archiveReader, error) {
	a := &archiveReader{source: &sourceReader{Reader: r}, files: map[string][]byte{}}
	if err := a.begin(); err != nil {
		return nil, a.explain(err)
	}
	return a, nil
}

// explain returns the store's error where there was one.
func (a *archiveReader) explain(err error) error {
	if err != nil && a.source.err != nil {
		return fmt.Errorf("pgtenancy: read the backup: %w", a.source.err)
	}
	return err
}

func (a *archiveReader) begin() error {
	a.buf = bufio.NewReaderSize(a.source, 1<<16)
	head, err := a.buf.Peek(len(gzipHeader))
	if err != nil || !bytes.Equal(head, gzipHeader) {
		return damaged("it does not begin as a backup does")
	}
	if a.zip, err = gzip.NewReader(a.buf); err != nil {
		return damaged("%w", err)
	}
	a.zip.Multistream(false)
	a.tar = tar.NewReader(a.zip)

	text, err := a.small(manifestFile)
	if err != nil {
		return err
	}
	sum, err := a.small(manifestSumFile)
	if err != nil {
		return err
	}
	if string(sum) != sha256Hex(text) {
		return damaged("%s is not what it was", manifestFile)
	}
	if err := json.Unmarshal(text, &a.manifest); err != nil {
		return damaged("%s: %w", manifestFile, err)
	}
	if a.manifest == nil || a.manifest.Format < 1 {
		return damaged("%s has no format", manifestFile)
	}
	if a.manifest.Format != backupFormat {
		return fmt.Errorf("pgtenancy: the backup has format %d, and this version of the library reads %d", a.manifest.Format, backupFormat)
	}
	for _, m := range a.manifest.Migrations {
		if m.File == "" {
			continue
		}
		text, err := a.small(m.File)
		if err != nil {
			return err
		}
		if sha256Hex(text) != m.SHA256 {
			return damaged("%s is not what it was", m.File)
		}
		a.files[m.File] = text
	}
	return nil
}

// peek returns the header of the next file.
func (a *archiveReader) peek() (*tar.Header, error) {
	if a.next != nil {
		return a.next, nil
	}
	h, err := a.tar.Next()
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, damaged("%w", err)
	}
	a.next = h
	return h, nil
}

// small returns the content of the next file, which must have that name.
func (a *archiveReader) small(name string) ([]byte, error) {
	h, err := a.peek()
	if err != nil {
		return nil, err
	}
	if h.Name != name || h.Typeflag != tar.TypeReg || h.Size > mostInSmall {
		return nil, damaged("it has %q where %s must be", h.Name, name)
	}
	a.next = nil
	text, err := io.ReadAll(a.tar)
	if err != nil {
		return nil, damaged("%s: %w", name, err)
	}
	return text, nil
}

// tableReader reads the rows of one table.
type tableReader struct {
	*archiveReader
	part int
	open bool // within a part
	sum  rowsSum
	err  error
}

// read returns a reader of the next table's rows, in its order.
func (a *archiveReader) read() *tableReader {
	a.current = &tableReader{archiveReader: a}
	return a.current
}

func (t *tableReader) Read(b []byte) (n int, err error) {
	if t.err == nil {
		n, t.err = t.step(b)
		if t.err != nil && !errors.Is(t.err, io.EOF) {
			t.err = t.explain(t.err)
		}
	}
	return n, t.err
}

func (t *tableReader) step(b []byte) (int, error) {
	for len(b) > 0 {
		if !t.open {
			h, err := t.peek()
			if err != nil {
				return 0, err
			}
			if h.Name != t.manifest.partName(t.table, t.part+1) {
				return 0, t.close()
			}
			t.next, t.open = nil, true
			t.part++
		}
		n, err := t.tar.Read(b)
		_, _ = t.sum.Write(b[:n])
		if errors.Is(err, io.EOF) {
			t.open, err = false, nil
		}
		if err != nil {
			return n, damaged("%s: %w", t.manifest.partName(t.table, t.part), err)
		}
		if n > 0 {
			return n, nil
		}
	}
	return 0, nil
}

// close ends a table. It returns io.EOF.
func (t *tableReader) close() error {
	t.ends = append(t.ends, t.sum.sum())
	t.table++
	return io.EOF
}

// end reads what is left, and checks all of it. The manifest is complete then.
func (a *archiveReader) end() error { return a.explain(a.checkEnd()) }

func (a *archiveReader) checkEnd() error {
	tables := a.manifest.tables()
	if a.current != nil {
		if _, err := io.Copy(io.Discard, a.current); err != nil {
			return err
		}
	}
	for a.table < len(tables) {
		if _, err := io.Copy(io.Discard, a.read()); err != nil {
			return err
		}
	}
	text, err := a.small(endFile)
	if err != nil {
		return err
	}
	if h, err := a.tar.Next(); err == nil {
		return damaged("it has %q after its end", h.Name)
	} else if !errors.Is(err, io.EOF) {
		return damaged("%w", err)
	}
	if _, err := io.Copy(io.Discard, a.zip); err != nil { // whose checksum comes last
		return damaged("%w", err)
	}
	if _, err := a.buf.ReadByte(); err == nil {
		return damaged("it goes on after its end")
	} else if !errors.Is(err, io.EOF) {
		return damaged("%w", err)
	}
	var ends []ManifestRows
	if err := json.Unmarshal(text, &ends); err != nil {
		return damaged("%s: %w", endFile, err)
	}
	if len(ends) != len(tables) {
		return damaged("%s is about %d tables, of which there are %d", endFile, len(ends), len(tables))
	}
	for i, t := range tables {
		if got := a.ends[i]; got != ends[i] {
			return damaged("table %s: it has %d rows in %d bytes, checksum %.12s, and must have %d in %d, checksum %.12s",
				t.Name, got.Rows, got.Bytes, got.SHA256, ends[i].Rows, ends[i].Bytes, ends[i].SHA256)
		}
		t.ManifestRows = ends[i]
	}
	return nil
}

// Verify reads a whole backup, without a database, and checks that it is as it was written: its rows against their counts and
// checksums, the migrations against theirs. It returns what is in it. The error is ErrBackupDamaged, with the reason, or
// the store's.
//
// That tells that the backup can be read, and not that it can be restored: for that, restore it now and then, under another ID.
func Verify(ctx context.Context, store Store, object string) (*Manifest, error) {
	r, err := store.Get(ctx, object)
	if err != nil {
		return nil, fmt.Errorf("%w (%s)", err, object)
	}
	defer r.Close()
	a, err := newArchiveReader(contextReader{ctx, r})
	if err == nil {
		err = a.end()
	}
	if err != nil {
		return nil, fmt.Errorf("%w (%s)", err, object)
	}
	return a.manifest, nil
}

// objectName returns the name of a tenant's backup.
func objectName(id string, at time.Time) string {
	return id + "/" + at.UTC().Format("20060102T150405.000000Z") + ".tar.gz"
}
