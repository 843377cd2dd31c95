package migration

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"regexp"
	"strings"

	"github.com/pgtenancy/pgtenancy/internal/sqlsplit"
)

// half is one way in a file: source[from:to].
type half struct {
	source   string
	from, to int
	marked   bool // a mark is what ends it
	noTx     bool
}

// halves returns the ways of a file. down is nil where there is none.
func (f *file) halves() (up half, down *half, err error) {
	up = half{source: f.source, to: len(f.source)}
	at := -1
	switch f.format {
	case goose:
		h, err := f.gooseHalves()
		if err != nil {
			return half{}, nil, err
		}
		up.noTx = h.noTx
		if at = h.downAt; at >= 0 {
			down = &half{source: f.source, from: at, to: len(f.source), noTx: h.noTx}
		}
	case tern:
		if at = strings.Index(f.source, ternSeparator); at >= 0 {
			down = &half{source: f.source, from: at + len(ternSeparator), to: len(f.source)}
			down.noTx = ternNoTx.MatchString(down.text())
			if strings.TrimSpace(down.text()) == "" {
				down = nil
			}
		}
	}
	if at >= 0 {
		up.to, up.marked = at, true
	}
	if f.format == tern {
		up.noTx = ternNoTx.MatchString(up.text())
	}
	return up, down, nil
}

func (h *half) text() string { return h.source[h.from:h.to] }

// checksum is Migration.Checksum.
func (h *half) checksum() string {
	text := strings.ReplaceAll(h.text(), "\r\n", "\n")
	if h.marked {
		text = strings.TrimRight(text, " \t\r\n") + "\n" // as it was before there was a way down
	}
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// inPlace returns the half with white space for what comes before it, which keeps the lines and offsets of the file.
func (h *half) inPlace() string {
	before := []byte(h.source[:h.from])
	for i, c := range before {
		if c != '\n' {
			before[i] = ' '
		}
	}
	return string(before) + h.text()
}

// script reads one way of a file.
func (f *file) script(h half) (Script, error) {
	s := Script{File: f.path, NoTx: h.noTx}
	text := h.inPlace()
	stmts, err := sqlsplit.Split(text)
	if err != nil {
		e := &Error{File: f.path, Msg: err.Error()}
		var splitErr *sqlsplit.Error
		if errors.As(err, &splitErr) {
			e.Line, e.Msg = splitErr.Line, splitErr.Msg
		}
		return Script{}, e
	}
	noTx, err := f.noTransaction(text, stmts)
	if err != nil {
		return Script{}, err
	}
	s.NoTx = s.NoTx || noTx
	for _, st := range stmts {
		alone, rule := newAlone(st.SQL)
		if rule != "" {
			return Script{}, &Error{File: f.path, Line: st.Line, Msg: rule}
		}
		s.NoTx = s.NoTx || alone != nil
		s.Statements = append(s.Statements, Statement{Statement: st, Alone: alone})
	}
	if !s.NoTx && isTransaction(s.Statements) {
		s.Statements = s.Statements[1 : len(s.Statements)-1]
	}
	return s, nil
}

var noTxComment = regexp.MustCompile(`(?m)^[ \t]*--[ \t]*pgtenancy:[ \t]*no transaction[ \t]*\r?$`)

// noTransaction tells whether there is "-- pgtenancy: no transaction" before the first statement. After it, where it would mean
// nothing, it is an error.
func (f *file) noTransaction(text string, stmts []sqlsplit.Statement) (bool, error) {
	for _, at := range noTxComment.FindAllStringIndex(text, -1) {
		before, err := sqlsplit.Split(text[:at[0]])
		switch {
		case err != nil: // in a string or a comment that is open there
		case len(before) == 0:
			return true, nil
		case before[len(before)-1] == stmts[len(before)-1]: // and not in the middle of a statement
			return false, f.errorAt(at[0], `"-- pgtenancy: no transaction" must come before the first statement`)
		}
	}
	return false, nil
}

// isTransaction tells whether the statements are BEGIN, COMMIT and between them none that begins or ends a transaction.
func isTransaction(stmts []Statement) bool {
	if len(stmts) < 2 || !isBegin(stmts[0].SQL) || !isCommit(stmts[len(stmts)-1].SQL) {
		return false
	}
	for _, st := range stmts[1 : len(stmts)-1] {
		switch first, second := sqlsplit.Keywords(st.SQL); first {
		case "BEGIN", "START", "COMMIT", "END", "ABORT":
			return false
		case "ROLLBACK":
			if second != "TO" { // a savepoint
				return false
			}
		case "PREPARE":
			if second == "TRANSACTION" {
				return false
			}
		}
	}
	return true
}

// isBegin tells BEGIN without the modes of a transaction.
func isBegin(sql string) bool {
	p := newParser(sql)
	if p.accept("START", "TRANSACTION") {
		return p.end()
	}
	return p.accept("BEGIN") && p.work()
}

// isCommit tells COMMIT that starts no other transaction and is not about a prepared one.
func isCommit(sql string) bool {
	p := newParser(sql)
	return (p.accept("COMMIT") || p.accept("END")) && p.work()
}

// work passes over the noise word that BEGIN and COMMIT may have, and tells whether that was all.
func (p *parser) work() bool {
	_ = p.accept("WORK") || p.accept("TRANSACTION")
	return p.end()
}
