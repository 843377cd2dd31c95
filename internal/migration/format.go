package migration

import (
	"fmt"
	"path"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// format is the tool that a file was written for.
type format int

const (
	plain  format = iota
	upDown        // golang-migrate's
	goose
	tern
)

// family is the same for formats that may be in one directory: a file of tern's without a way down looks like plain SQL.
func (f format) family() format {
	if f == tern {
		return plain
	}
	return f
}

// file is a file that is named as a migration.
type file struct {
	path    string // with the directory
	version int64
	name    string // without ".sql", ".up.sql" or ".down.sql"
	down    bool   // the file is golang-migrate's way down
	source  string
	format  format
	mark    string // what told the format, "" for plain SQL
}

var (
	versioned = regexp.MustCompile(`^([0-9]+)_`)

	// A name of golang-migrate's ends with one of these. Elsewhere in a name they are somebody's idea of a direction that
	// nobody here would heed.
	direction = regexp.MustCompile(`(?i)\.(up|down)(\.|$)`)

	// dbmate and sql-migrate have both ways in a file too. Read as plain SQL, they would run one after the other.
	foreign = regexp.MustCompile(`(?m)^--[ \t]*(?:migrate:(?:up|down)|\+migrate[ \t]+(?i:up|down))\b`)
)

// parseName returns the version that a name begins with, or the rule that the name breaks.
func parseName(name string) (version int64, rule string) {
	digits := versioned.FindStringSubmatch(name)
	if digits == nil {
		return 0, "must be named NNN_name.sql, or NNN_name.up.sql and NNN_name.down.sql, where NNN is a number or a timestamp"
	}
	if !utf8.ValidString(name) || strings.ContainsFunc(name, func(r rune) bool { return r == '/' || !unicode.IsPrint(r) }) {
		return 0, "must have only printable characters in its name, and no slash"
	}
	version, err := strconv.ParseInt(digits[1], 10, 64)
	switch {
	case err != nil:
		return 0, "must have a number that fits into 64 bits"
	case version < 1:
		return 0, "must have a number from 1 on"
	}
	return version, ""
}

// newFile tells the format of a file by its name and its text.
func newFile(dir, name, source string) (file, error) {
	f := file{path: path.Join(dir, name), source: source}
	var rule string
	if f.version, rule = parseName(name); rule == "" {
		var ok bool
		if f.name, ok = strings.CutSuffix(name, ".sql"); !ok {
			rule = "must end with .sql in lower case"
		}
	}
	if rule != "" {
		return file{}, &Error{File: f.path, Msg: rule}
	}

	var marks []string
	mark := func(as format, text string) {
		if text != "" {
			f.format, f.mark = as, text
			marks = append(marks, text)
		}
	}
	for _, suffix := range []string{".up", ".down"} {
		if title, ok := strings.CutSuffix(f.name, suffix); ok {
			f.name, f.down = title, suffix == ".down"
			mark(upDown, suffix+".sql")
			break
		}
	}
	if f.format != upDown && direction.MatchString(f.name) {
		return file{}, &Error{File: f.path, Msg: "must have .up or .down nowhere in its name but in .up.sql or .down.sql at its end"}
	}
	mark(goose, gooseMark(source))
	text, err := ternMark(f.path, source)
	if err != nil {
		return file{}, err
	}
	mark(tern, text)

	if at := foreign.FindStringIndex(source); at != nil {
		return file{}, f.errorAt(at[0], fmt.Sprintf("must not have %q, which is dbmate's or sql-migrate's: "+
			"put the two ways into files of their own, NNN_name.up.sql and NNN_name.down.sql", source[at[0]:at[1]]))
	}
	if len(marks) > 1 {
		msg := fmt.Sprintf("must be of one format: it has %q of one tool and %q of another", marks[0], marks[1])
		return file{}, &Error{File: f.path, Msg: msg}
	}
	return f, nil
}

// errorAt returns the error of the text at byte at.
func (f *file) errorAt(at int, msg string) error {
	return &Error{File: f.path, Line: lineAt(f.source, at), Msg: msg}
}

// lineAt returns the line that byte at is on, 1 for the first.
func lineAt(source string, at int) int { return 1 + strings.Count(source[:at], "\n") }

// takenFor says what the file was taken for, and why.
func (f *file) takenFor() string {
	switch f.format {
	case upDown:
		return fmt.Sprintf("for golang-migrate's, as its name ends with %q", f.mark)
	case goose:
		return fmt.Sprintf("for goose's, as it has %q", f.mark)
	case tern:
		return fmt.Sprintf("for tern's, as it has %q", f.mark)
	default:
		return "for plain SQL, as it has no mark of a tool"
	}
}

// checkFormats checks that the files of a directory have one format.
func checkFormats(files []file) error {
	isTern := false
	for _, f := range files {
		if first := files[0]; f.format.family() != first.format.family() {
			return &Error{File: f.path, Msg: fmt.Sprintf("must have the format of %s: that was taken %s, and this one %s",
				first.path, first.takenFor(), f.takenFor())}
		}
		isTern = isTern || f.format == tern
	}
	for _, f := range files {
		if err := f.checkTemplate(isTern); err != nil {
			return err
		}
	}
	return nil
}
