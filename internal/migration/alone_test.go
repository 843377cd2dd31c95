package migration_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pgtenancy/pgtenancy/internal/migration"
)

var aloneTests = []struct {
	name   string
	reason string
	sql    string
	want   *migration.Alone // nil: it can run in a transaction
}{
	{
		"create index", "the usual form", "CREATE INDEX CONCURRENTLY orders_at ON orders (at)",
		&migration.Alone{Kind: migration.CreateIndex, Index: "orders_at", Table: "orders", InTx: "CREATE INDEX  orders_at ON orders (at)"},
	},
	{
		"create unique index", "with all that it may have", "create unique index /* a */ concurrently -- b\n if not exists \"I\"\"x\" on only ( S.\"T t\" ) using btree (concurrently)",
		&migration.Alone{
			Kind: migration.CreateIndex, Index: `I"x`, Schema: "s", Table: "T t",
			InTx: "create unique index /* a */  -- b\n if not exists \"I\"\"x\" on only ( S.\"T t\" ) using btree (concurrently)",
		},
	},
	{
		"create index if", "IF is a name too", "create index concurrently if on t*(a)",
		&migration.Alone{Kind: migration.CreateIndex, Index: "if", Table: "t", InTx: "create index  if on t*(a)"},
	},
	{
		"long and foreign names", "PostgreSQL folds ASCII only, and cuts at 63 bytes between characters",
		"create index concurrently " + strings.Repeat("A", 62) + "éZ on " + strings.Repeat("É", 31) + "Bcd (a)",
		&migration.Alone{
			Kind: migration.CreateIndex, Index: strings.Repeat("a", 62), Table: strings.Repeat("É", 31) + "b",
			InTx: "create index  " + strings.Repeat("A", 62) + "éZ on " + strings.Repeat("É", 31) + "Bcd (a)",
		},
	},
	{
		"database", "its name may come before the schema's", "create index concurrently i on d.s.t (a)",
		&migration.Alone{Kind: migration.CreateIndex, Index: "i", Schema: "s", Table: "t", InTx: "create index  i on d.s.t (a)"},
	},
	{"create index in a transaction", "it lacks the word", "create index i on t (a)", nil},
	{"a quoted concurrently", "it is the index's name", `create index "concurrently" on t (a)`, nil},
	{"create table", "it has nothing to do with it", "create table concurrently (a int)", nil},
	{
		"drop index", "the usual form", "DROP INDEX CONCURRENTLY IF EXISTS S.Orders_at",
		&migration.Alone{Kind: migration.DropIndex, Index: "orders_at", Schema: "s", InTx: "DROP INDEX  IF EXISTS S.Orders_at"},
	},
	{"drop index in a transaction", "it lacks the word", "drop index i, j", nil},
	{
		"reindex index", "the newer spelling", "reindex index concurrently I",
		&migration.Alone{Kind: migration.ReindexIndex, Index: "i", InTx: "reindex index  I"},
	},
	{
		"reindex table", "the options stay", `REINDEX (VERBOSE, TABLESPACE "x") TABLE CONCURRENTLY s.t`,
		&migration.Alone{Kind: migration.ReindexTable, Schema: "s", Table: "t", InTx: `REINDEX (VERBOSE, TABLESPACE "x") TABLE  s.t`},
	},
	{
		"reindex option", "empty parentheses are an error", "REINDEX (CONCURRENTLY) TABLE t",
		&migration.Alone{Kind: migration.ReindexTable, Table: "t", InTx: "REINDEX  TABLE t"},
	},
	{
		"reindex first option", "its comma goes with it", "reindex (concurrently on, verbose off) index i",
		&migration.Alone{Kind: migration.ReindexIndex, Index: "i", InTx: "reindex ( verbose off) index i"},
	},
	{
		"reindex last option", "its comma goes with it", "reindex (verbose, concurrently 'True') index i",
		&migration.Alone{Kind: migration.ReindexIndex, Index: "i", InTx: "reindex (verbose) index i"},
	},
	{
		"reindex middle option", "one comma stays", "reindex (verbose, concurrently 1, tablespace x) index i",
		&migration.Alone{Kind: migration.ReindexIndex, Index: "i", InTx: "reindex (verbose,  tablespace x) index i"},
	},
	{"reindex option off", "that is what it says", "reindex (concurrently false) index i", nil},
	{"reindex in a transaction", "it lacks the word", "reindex table t", nil},
	{"vacuum", "there is nothing to do for an empty schema", "VACUUM t", &migration.Alone{Kind: migration.Vacuum}},
	{"vacuum options", "both spellings of options", "vacuum (full, analyze) s.t, u (a)", &migration.Alone{Kind: migration.Vacuum}},
	{"vacuum words", "both spellings of options", "vacuum full freeze verbose analyze t", &migration.Alone{Kind: migration.Vacuum}},
	{
		"detach partition", "the usual form", "ALTER TABLE orders DETACH PARTITION Orders_2024 CONCURRENTLY",
		&migration.Alone{Kind: migration.DetachPartition, Table: "orders", Partition: "orders_2024", InTx: "ALTER TABLE orders DETACH PARTITION Orders_2024 "},
	},
	{
		"detach partition in a schema", "with all that it may have", `alter table if exists s.a * detach partition s."B" concurrently`,
		&migration.Alone{Kind: migration.DetachPartition, Schema: "s", Table: "a", Partition: "B", InTx: `alter table if exists s.a * detach partition s."B" `},
	},
	{
		"detach partition only", "it changes nothing", "alter table only a detach partition b concurrently",
		&migration.Alone{Kind: migration.DetachPartition, Table: "a", Partition: "b", InTx: "alter table only a detach partition b "},
	},
	{"detach partition in a transaction", "it lacks the word", "alter table a detach partition b", nil},
	{"finalize", "PostgreSQL runs it in a transaction", "alter table a detach partition b finalize", nil},
	{"alter table", "it has nothing to do with it", "alter table U&\"a\" add column b int", nil},
	{"analyze", "it runs in a transaction", "analyze t", nil},
	{"explain", "the index is not made", "explain create index concurrently i on t (a)", nil},
}

func TestAlone(t *testing.T) {
	t.Parallel()
	for _, tt := range aloneTests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ms, err := migration.Load(dir("001_a.sql", "select 1;\n"+tt.sql+";"), "tenant", nil)
			if err != nil {
				t.Fatal(err)
			}
			up := ms[0].Up
			if diff := cmp.Diff(tt.want, up.Statements[1].Alone); diff != "" {
				t.Errorf("Alone of %q (-want +got); want it because %s:\n%s", tt.sql, tt.reason, diff)
			}
			if up.NoTx != (tt.want != nil) {
				t.Errorf("NoTx of %q is %v", tt.sql, up.NoTx)
			}
			if tt.want != nil && tt.want.InTx != "" {
				ms, err := migration.Load(dir("001_a.sql", tt.want.InTx), "tenant", nil)
				if err != nil || ms[0].Up.NoTx {
					t.Errorf("InTx of %q is none: %+v, %v", tt.sql, ms, err)
				}
			}
		})
	}
}

func TestAlone_Error(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		sql  string
		part string // of the message
	}{
		{"no name", "create index concurrently on t (a)", "must name the index, so that it can be found again after a crash"},
		{"no name but IF", "create index concurrently if not exists on t (a)", "must name the index"},
		{"index in a schema", "create index concurrently s.i on t (a)", "must be CREATE"},
		{"escapes in the index", `create index concurrently U&"i" on t (a)`, "U&"},
		{"escapes in the table", `create index concurrently i on U&"t" (a)`, "U&"},
		{"empty name", `create index concurrently "" on t (a)`, "must be CREATE"},
		{"no table", "create index concurrently i on", "must be CREATE"},
		{"end", "create index concurrently", "must be CREATE"},
		{"two indexes", "drop index concurrently i, j", "one index"},
		{"no index", "drop index concurrently", "must be DROP"},
		{"number", "drop index concurrently 1", "must be DROP"},
		{"string", "drop index concurrently e'a'", "must be DROP"},
		{"reindex schema", "reindex schema s", "after a crash"},
		{"reindex schema concurrently", "reindex (verbose) schema concurrently s", "after a crash"},
		{"reindex database", "reindex database", "after a crash"},
		{"reindex system", "reindex (concurrently) system d", "after a crash"},
		{"reindex twice", "reindex (concurrently) index concurrently i", "once"},
		{"reindex options twice", "reindex (concurrently, concurrently) index i", "once"},
		{"reindex odd option", "reindex (concurrently maybe) index i", "options"},
		{"reindex open options", "reindex () index i", "options"},
		{"reindex many", "reindex index concurrently i, j", "must be REINDEX"},
		{"reindex nothing", "reindex table concurrently", "must be REINDEX"},
		{"vacuum all", "vacuum", "must name its tables"},
		{"vacuum all with options", "vacuum (analyze)", "must name its tables"},
		{"vacuum all with words", "vacuum full freeze verbose analyze analyse", "must name its tables"},
		{"detach in another schema", "alter table s.a detach partition b concurrently", "same schema"},
		{"detach with escapes", `alter table a detach partition U&"b" concurrently`, "U&"},
		{"detach from escapes", `alter table U&"a" detach partition b concurrently`, "U&"},
		{"detach and more", "alter table a detach partition b concurrently, add c int", "must be ALTER"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := migration.Load(dir("001_a.sql", "select 1;\n"+tt.sql+";"), "tenant", nil)
			var e *migration.Error
			if !errors.As(err, &e) || e.Line != 2 || !strings.Contains(e.Msg, tt.part) {
				t.Errorf("Load with %q: %v; want an *Error of line 2 with %q", tt.sql, err, tt.part)
			}
		})
	}
}
