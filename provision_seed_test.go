package pgtenancy_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy"
)

var seedTables = sqlFiles("tenant/001_tables.sql", `create table countries (id int primary key, name text, note text default 'none');
	create table cities (country int references countries, name text);
	create table "Odd, ""name" ("a ""b" text);`,
	"shared/001_cities.sql", "create table shared_only (name text); grant all on shared_only to public;")

func TestProvisionSeedFS(t *testing.T) {
	t.Parallel()
	db := newFleetDB(t)
	fleet := db.migrated(t, seedTables)
	_, err := fleet.Provision(bare(t), "acme", &pgtenancy.ProvisionOpts{
		SeedFS: sqlFiles(
			"020_cities.csv", "country,name\n1,\"Berlin, \"\"Mitte\"\"\"\n1,\"two\nlines\"\n2,漢字\n",
			"010_countries.csv", "\ufeff\"name\",id\r\n,1\r\n\"\",2\r\n",
			"030_more.sql", "-- a comment\ninsert into cities values (2, 'a;b');\ninsert into shared_only values (current_setting('app.current_tenant'));",
			"040_empty.sql", "-- nothing",
			"Odd, \"name.csv", "\"a \"\"b\"\nx",
			"notes.txt", "not for us", "more/050.sql", "broken",
		),
		Seed: func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "insert into cities select 1, count(*)::text from cities")
			return err
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	checkList(t, "countries", db.texts(t, "select concat_ws('|', id, coalesce(name, 'NULL'), note) from tenant_acme.countries order by id"), "1|NULL|none", "2||none")
	checkList(t, "cities", db.texts(t, `select country || ' ' || name from tenant_acme.cities order by ctid`), `1 Berlin, "Mitte"`, "1 two\nlines", "2 漢字", "2 a;b", "1 4")
	checkList(t, "odd", db.texts(t, `select "a ""b" from tenant_acme."Odd, ""name"`), "x")
	checkList(t, "shared", db.texts(t, `select name from shared_only`), "acme")

	invalid := errors.New("an *InvalidError")
	tests := []struct {
		name, file, text string
		want             error  // or
		code, says       string // of PostgreSQL's, and what the error says
	}{
		{"CSV without a line", "countries.csv", "", invalid, "", "countries.csv"},
		{"CSV with a column without a name", "countries.csv", "id,\n1,2", invalid, "", "countries.csv"},
		{"CSV with a bad first line", "countries.csv", "id,\"na\"me\n", invalid, "", "countries.csv"},
		{"CSV of no table", "01_.csv", "id\n1", invalid, "", "01_.csv"},
		{"SQL that does not end", "a.sql", "select 'x", invalid, "", "a.sql"},
		{"no such table", "nothing.csv", "id\n1", nil, "42P01", "nothing.csv"},
		{"a table that is shared", "shared_only.csv", "name\nx", nil, "42P01", "shared_only.csv"},
		{"no such column", "countries.csv", "id,nothing\n1,2", nil, "42703", "countries.csv"},
		{"a value of a wrong type", "countries.csv", "id\n1\nx", nil, "22P02", "countries.csv"},
		{"too few values", "countries.csv", "id,name\n1", nil, "22P04", "countries.csv"},
		{"a statement that fails", "a.sql", "insert into countries values (1);\n\ninsert into countries\n values (1)", nil, "23505", "a.sql:3"},
		{"the end of the transaction", "a.sql", "insert into countries values (1);\ncommit", pgtenancy.ErrStatementRefused, "", "a.sql"},
	}
	for _, tt := range tests {
		_, err := fleet.Provision(bare(t), "globex", &pgtenancy.ProvisionOpts{SeedFS: sqlFiles(tt.file, tt.text)})
		if errors.As(err, new(*pgtenancy.InvalidError)) {
			checkInvalid(t, tt.name, err, "ProvisionOpts.SeedFS")
			err = errors.Join(invalid, err)
		}
		if tt.want != nil {
			checkIs(t, tt.name, err, tt.want)
		}
		checkEqual(t, tt.name+": code", sqlState(err), tt.code)
		if err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: error does not say %q: %v", tt.name, tt.says, err)
		}
	}
	checkEqual(t, "what stayed", db.leftoversOfSeeds(t), 0)
}

func (db *fleetDB) leftoversOfSeeds(t *testing.T) int {
	t.Helper()
	return db.count(t, "select (select count(*) from pgtenancy.tenants where id = 'globex') + (select count(*) from pg_namespace where nspname = 'tenant_globex')")
}
