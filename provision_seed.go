package pgtenancy

import (
	"bufio"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy/internal/ident"
	"github.com/pgtenancy/pgtenancy/internal/migration"
	"github.com/pgtenancy/pgtenancy/internal/sqlsplit"
)

// seedFile is a file of ProvisionOpts.SeedFS.
type seedFile struct {
	fsys    fs.FS
	script  *migration.Script // nil for CSV
	name    string
	table   string
	columns []string
}

// seedNumber may stand before the name of a table.
var seedNumber = regexp.MustCompile(`^[0-9]+_`)

// loadSeeds reads all that can be wrong with the files but the rows, which are many.
func loadSeeds(fsys fs.FS) (files []seedFile, err error) {
	if fsys == nil {
		return nil, nil
	}
	entries, err := fs.ReadDir(fsys, ".") // sorted
	if err != nil {
		return nil, fmt.Errorf("pgtenancy: ProvisionOpts.SeedFS: %w", err)
	}
	for _, entry := range entries {
		name := entry.Name()
		ext := path.Ext(name)
		if entry.IsDir() || ext != ".sql" && ext != ".csv" {
			continue
		}
		f := seedFile{fsys: fsys, name: name}
		if ext == ".sql" {
			err = f.loadSQL()
		} else {
			f.table = seedNumber.ReplaceAllString(strings.TrimSuffix(name, ext), "")
			err = f.loadColumns()
		}
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

func (f *seedFile) loadSQL() error {
	source, err := fs.ReadFile(f.fsys, f.name)
	if err != nil {
		return fmt.Errorf("pgtenancy: ProvisionOpts.SeedFS: %w", err)
	}
	statements, err := sqlsplit.Split(string(source))
	if err != nil {
		return invalid("ProvisionOpts.SeedFS", f.name, "must be SQL: "+err.Error())
	}
	f.script = &migration.Script{File: f.name}
	for _, s := range statements {
		f.script.Statements = append(f.script.Statements, migration.Statement{Statement: s})
	}
	return nil
}

const byteOrderMark = "\ufeff"

func (f *seedFile) loadColumns() error {
	if rule := ident.CheckName(f.table); rule != "" {
		return invalid("ProvisionOpts.SeedFS", f.name, "must be named after a table, whose name "+rule)
	}
	file, err := f.fsys.Open(f.name)
	if err != nil {
		return fmt.Errorf("pgtenancy: ProvisionOpts.SeedFS: %w", err)
	}
	defer file.Close()
	source := bufio.NewReader(file)
	if mark, _ := source.Peek(len(byteOrderMark)); string(mark) == byteOrderMark { // some editors put it first
		_, _ = source.Discard(len(mark))
	}
	columns, err := csv.NewReader(source).Read()
	switch {
	case errors.Is(err, io.EOF):
		return invalid("ProvisionOpts.SeedFS", f.name, "must have a first line with the names of the columns")
	case errors.As(err, new(*csv.ParseError)):
		return invalid("ProvisionOpts.SeedFS", f.name, "must be CSV: "+err.Error())
	case err != nil:
		return fmt.Errorf("pgtenancy: ProvisionOpts.SeedFS: %w", err)
	}
	for _, c := range columns {
		if rule := ident.CheckName(c); rule != "" {
			return invalid("ProvisionOpts.SeedFS", f.name, fmt.Sprintf("must have the names of columns in its first line: %q %s", c, rule))
		}
	}
	f.columns = columns
	return nil
}

// run puts the rows of a file into the tenant's schema.
func (f *seedFile) run(ctx context.Context, t *tx) error {
	if f.script != nil {
		return f.runSQL(ctx, t)
	}
	file, err := f.fsys.Open(f.name)
	if err != nil {
		return err
	}
	defer file.Close()
	columns := make([]string, len(f.columns))
	for i, c := range f.columns {
		columns[i] = ident.Quote(c)
	}
	// The schema is named, so that the rows never go into a table that others see too.
	sql := fmt.Sprintf("copy %s (%s) from stdin with (format csv, header true, encoding 'utf8')",
		ident.QuoteAll(t.tenant.schema, f.table), strings.Join(columns, ", "))
	if _, err := t.conn.Pgx().PgConn().CopyFrom(ctx, file, sql); err != nil {
		return fmt.Errorf("%s: %w", f.name, err)
	}
	return nil
}

func (f *seedFile) runSQL(ctx context.Context, t *tx) error {
	b := &pgx.Batch{}
	for _, s := range f.script.Statements {
		b.Queue(s.SQL)
	}
	if b.Len() == 0 {
		return nil
	}
	results := t.SendBatch(ctx, b)
	for i := range f.script.Statements {
		if _, err := results.Exec(); err != nil {
			_ = results.Close() // the error that counts is this one
			if errors.Is(err, ErrStatementRefused) {
				return fmt.Errorf("%s: %w", f.name, err) // it is about the batch, and names the statement
			}
			return fmt.Errorf("%s:%d: %w", f.name, failedAt("", f.script, i, err).Line, err)
		}
	}
	return results.Close()
}
