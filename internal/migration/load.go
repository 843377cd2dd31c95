package migration

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// Load reads the migrations in a directory of fsys, adds funcs, which are written in Go, and returns them all by version.
//
// A file is named NNN_name.sql, where NNN is a version and the name any text. A directory has one of these formats:
//   - plain SQL: the file is the way up, and there is no way down;
//   - golang-migrate's NNN_name.up.sql and, where there is a way down, NNN_name.down.sql, which may have another name and no
//     statement;
//   - goose's: the lines -- +goose Up, Down, NO TRANSACTION, StatementBegin and StatementEnd. What is between the latter two may
//     be several statements. ENVSUB ON is refused. A file without -- +goose Down has no way down; one that has no statement
//     behind it has a way down that does nothing, as with goose;
//   - tern's: ---- create above / drop below ----, and ---- tern: disable-tx ---- for each half. Files without them are plain SQL
//     beside it. As with tern, there is no way down where nothing but white space is behind the mark, and one that does
//     nothing where there are only comments. Templates are refused.
//
// In any of them the line comment "-- pgtenancy: no transaction" before the first statement of a way sets its NoTx. BEGIN at the
// start of a way and COMMIT at its end are left out, since it is a transaction anyway; any other statement that begins or ends
// transactions stays, as do all where NoTx is set.
//
// Versions below 10,000,000 are numbers, from 1 without a gap. Those from there on are timestamps, such as 20240101, 20240101120000
// and Unix time, for which there are no gaps; both may be in one directory. What is not named *.sql is ignored, and so are
// directories and hidden files.
//
// Of a function, Name ("003_backfill"), Up and Down are to be set, and its version is taken from the name; File is set to dir and
// Name where it is empty. With funcs, fsys may be nil and dir need not exist.
//
// The error is an [*Error] where a file or a function is wrong, and else that of fsys.
func Load(fsys fs.FS, dir string, funcs []Migration) ([]Migration, error) {
	files, err := readDir(fsys, dir)
	if err != nil && (len(funcs) == 0 || !errors.Is(err, fs.ErrNotExist)) {
		return nil, err
	}
	if err := checkFormats(files); err != nil {
		return nil, err
	}
	ms, err := migrations(files)
	if err != nil {
		return nil, err
	}
	for _, m := range funcs {
		if m.File == "" {
			m.File = path.Join(dir, m.Name)
		}
		if m.Up.Func == nil {
			return nil, &Error{File: m.File, Msg: "must have a function"}
		}
		var rule string
		if m.Version, rule = parseName(m.Name); rule == "" && strings.HasSuffix(strings.ToLower(m.Name), ".sql") {
			rule = "must be named without .sql, which it is not"
		}
		if rule != "" {
			return nil, &Error{File: m.File, Msg: rule}
		}
		ms = append(ms, m)
	}
	if err := order(ms); err != nil {
		return nil, err
	}
	return ms, nil
}

// readDir reads the files that are migrations, ordered by name.
func readDir(fsys fs.FS, dir string) ([]file, error) {
	if fsys == nil {
		return nil, fs.ErrNotExist
	}
	entries, err := fs.ReadDir(fsys, dir)
	if err != nil {
		return nil, err
	}
	var files []file
	for _, e := range entries {
		if e.IsDir() || strings.HasPrefix(e.Name(), ".") || !strings.EqualFold(path.Ext(e.Name()), ".sql") {
			continue
		}
		source, err := fs.ReadFile(fsys, path.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		f, err := newFile(dir, e.Name(), string(source))
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

// migrations makes migrations of files, in any order.
func migrations(files []file) ([]Migration, error) {
	var ms []Migration
	for _, f := range files {
		if f.down {
			continue
		}
		m := Migration{Version: f.version, Name: f.name, File: f.path}
		up, down, err := f.halves()
		if err != nil {
			return nil, err
		}
		m.Checksum = up.checksum()
		if m.Up, err = f.script(up); err != nil {
			return nil, err
		}
		if len(m.Up.Statements) == 0 {
			return nil, &Error{File: f.path, Msg: "must have a statement"}
		}
		if down != nil {
			s, err := f.script(*down)
			if err != nil {
				return nil, err
			}
			m.Down = &s
		}
		ms = append(ms, m)
	}
	for _, f := range files {
		if !f.down {
			continue
		}
		i := slices.IndexFunc(ms, func(m Migration) bool { return m.Version == f.version })
		switch {
		case i < 0:
			return nil, &Error{File: f.path, Msg: fmt.Sprintf("must have the file of the way up, %s.up.sql, beside it", f.name)}
		case ms[i].Down != nil:
			return nil, sameVersion(f.path, ms[i].Down.File)
		}
		s, err := f.script(half{source: f.source, to: len(f.source)})
		if err != nil {
			return nil, err
		}
		ms[i].Down = &s
	}
	return ms, nil
}

func sameVersion(file, other string) error {
	return &Error{File: file, Msg: "must not have the number of " + other}
}

// firstTimestamp is the least version that is a timestamp and no number: 8 digits, which a date has.
const firstTimestamp = 10_000_000

// order sorts by version, and checks that there are no two of one version and that no number is missing.
func order(ms []Migration) error {
	slices.SortStableFunc(ms, func(a, b Migration) int { return cmp.Compare(a.Version, b.Version) })
	for i, m := range ms {
		switch want := int64(i + 1); {
		case i > 0 && m.Version == ms[i-1].Version:
			return sameVersion(m.File, ms[i-1].File)
		case m.Version != want && m.Version < firstTimestamp:
			return &Error{File: m.File, Msg: fmt.Sprintf("must not leave a gap: number %d is missing", want)}
		}
	}
	return nil
}
