package migration

import (
	"fmt"
	"strings"

	"github.com/pgtenancy/pgtenancy/internal/sqlsplit"
)

// byteOrderMark is what some editors put first.
const byteOrderMark = "\uFEFF"

// isAnnotation tells goose's annotations, those that it refuses too: a line comment with its name in it, wherever it is. goose
// reads lines, and knows of no string, comment or dollar quote that such a line could be in.
func isAnnotation(line string) bool {
	return strings.HasPrefix(strings.TrimSpace(line), "--") && strings.Contains(line, "+goose")
}

// gooseMark returns the first annotation of a file, "" where there is none.
func gooseMark(source string) string {
	for line := range strings.Lines(strings.TrimPrefix(source, byteOrderMark)) {
		if isAnnotation(line) {
			return strings.TrimSpace(line)
		}
	}
	return ""
}

// gooseHalves is what the annotations of a file say.
type gooseHalves struct {
	downAt int // the start of the line of -- +goose Down, -1 where there is none
	noTx   bool
}

// gooseHalves reads the annotations, and refuses those that goose refuses. They stay where they are: to SQL they are comments.
func (f *file) gooseHalves() (gooseHalves, error) {
	halves := gooseHalves{downAt: -1}
	up, block := false, false
	at := len(f.source) - len(strings.TrimPrefix(f.source, byteOrderMark))
	for line := range strings.Lines(f.source[at:]) {
		start := at
		at += len(line)
		if !isAnnotation(line) {
			continue
		}
		refuse := func(rule string) (gooseHalves, error) {
			return gooseHalves{}, f.errorAt(start, fmt.Sprintf("%q %s", strings.TrimSpace(line), rule))
		}
		if line[0] != '-' {
			return refuse("must be at the start of its line, or goose does not read it")
		}
		// goose drops all dashes in pairs, and so those at the end of the line.
		name := strings.TrimSpace(strings.Replace(strings.ReplaceAll(line, "--", ""), "+goose", "", 1))
		switch strings.ToLower(name) {
		case "up":
			if up {
				return refuse("must be there once, before the way down")
			}
			for range sqlsplit.Tokens(f.source[:start]) {
				return refuse("must come before the first statement")
			}
			up = true
		case "down":
			switch {
			case !up:
				return refuse(`must come after "-- +goose Up"`)
			case halves.downAt >= 0:
				return refuse("must be there once")
			case block:
				return refuse(`must come after "-- +goose StatementEnd"`)
			}
			halves.downAt = start
		case "statementbegin":
			if !up || block {
				return refuse(`must come after "-- +goose Up", and not in a statement that has begun already`)
			}
			block = true
		case "statementend":
			if !block {
				return refuse(`must come after "-- +goose StatementBegin"`)
			}
			block = false
		case "no transaction":
			halves.noTx = true
		case "envsub on":
			return refuse("must not be there: nothing replaces ${NAME}, since a migration must be the same everywhere. " +
				"Write the values into the file, or use a Go function")
		case "envsub off":
		default:
			return refuse("must be one of goose's annotations Up, Down, NO TRANSACTION, StatementBegin and StatementEnd; " +
				"in a comment that is none, write goose without the +")
		}
	}
	switch {
	case !up:
		return gooseHalves{}, &Error{File: f.path, Msg: `must have "-- +goose Up"`}
	case block:
		return gooseHalves{}, &Error{File: f.path, Msg: `must have "-- +goose StatementEnd" for each "-- +goose StatementBegin"`}
	}
	return halves, nil
}
