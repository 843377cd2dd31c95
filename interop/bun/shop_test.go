package shop_test

import (
	"context"
	"errors"
	"testing"
	"testing/fstest"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/pgdialect"
	"github.com/uptrace/bun/migrate"

	"github.com/pgtenancy/pgtenancy"
	shop "github.com/pgtenancy/pgtenancy/interop/bun"
	"github.com/pgtenancy/pgtenancy/interop/internal/interoptest"
)

func Test(t *testing.T) {
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeExec, pgx.QueryExecModeCacheStatement} {
		t.Run(mode.String(), func(t *testing.T) {
			interoptest.Test(t, func(_ *testing.T, pool *pgtenancy.Pool) interoptest.Shop {
				return shop.New(pool)
			}, func(c *pgx.ConnConfig) { c.DefaultQueryExecMode = mode })
		})
	}
}

// A transaction in a transaction is a savepoint.
func TestNestedTransaction(t *testing.T) {
	interoptest.Each(t, func(t *testing.T, fleet *interoptest.Fleet) {
		db := bun.NewDB(fleet.Pool().DB(), pgdialect.New())
		add := func(ctx context.Context, db bun.IDB, email string) error {
			_, err := db.NewInsert().Model(&shop.Customer{Email: email}).Exec(ctx)
			return err
		}
		for _, ctx := range []context.Context{fleet.As(t, "acme"), fleet.As(t, "globex")} {
			err := db.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error {
				if err := add(ctx, tx, "ann@example.com"); err != nil {
					return err
				}
				err := tx.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error {
					return add(ctx, tx, "ann@example.com")
				})
				var pgErr *pgconn.PgError
				if !errors.As(err, &pgErr) || pgErr.Code != "23505" {
					t.Errorf("a second Ann: %v", err)
				}
				return tx.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error {
					return add(ctx, tx, "art@example.com")
				})
			})
			if err != nil {
				t.Error(err)
			}
			if n, err := db.NewSelect().Model((*shop.Customer)(nil)).Count(ctx); err != nil || n != 2 {
				t.Errorf("%d customers, %v", n, err)
			}
		}
	})
}

// Bun's migrations work as the role that owns the schemas, for one tenant at a time. Each tenant's schema then has a table of
// those that were applied. Several statements in a file are separated by --bun:split.
func TestMigrations(t *testing.T) {
	fleet := interoptest.Open(t)
	migrations := migrate.NewMigrations()
	if err := migrations.Discover(fstest.MapFS{
		"20260101000000_products.tx.up.sql": {Data: []byte("create table products (name text);\n--bun:split\ninsert into products values ('anvil');")},
		"20260102000000_stock.up.sql":       {Data: []byte("create table stock (n int)")},
	}); err != nil {
		t.Fatal(err)
	}
	migrator := migrate.NewMigrator(bun.NewDB(fleet.OwnerPool(t).DB(), pgdialect.New()), migrations)
	app := bun.NewDB(fleet.Pool().DB(), pgdialect.New())
	for _, id := range []string{"acme", "globex"} {
		ctx := fleet.As(t, id)
		if err := migrator.Init(ctx); err != nil {
			t.Fatal(err)
		}
		for _, want := range []int{2, 0} {
			if err := migrator.Lock(ctx); err != nil {
				t.Fatal(err)
			}
			group, err := migrator.Migrate(ctx)
			if err != nil || len(group.Migrations) != want {
				t.Errorf("Migrate as %s: %v, %v", id, group, err)
			}
			if err := migrator.Unlock(ctx); err != nil {
				t.Error(err)
			}
		}
		var names []string
		if err := app.NewSelect().Table("products").Column("name").Scan(ctx, &names); err != nil || len(names) != 1 {
			t.Errorf("products of %s: %q, %v", id, names, err)
		}
	}
	if err := migrator.Init(t.Context()); !errors.Is(err, pgtenancy.ErrNoTenant) {
		t.Errorf("Init without a tenant: %v", err)
	}
}
