package shop_test

import (
	"context"
	"errors"
	"testing"

	"entgo.io/ent/dialect"
	entsql "entgo.io/ent/dialect/sql"
	"entgo.io/ent/dialect/sql/schema"

	"github.com/pgtenancy/pgtenancy"
	shop "github.com/pgtenancy/pgtenancy/interop/ent"
	"github.com/pgtenancy/pgtenancy/interop/ent/ent"
	"github.com/pgtenancy/pgtenancy/interop/ent/ent/migrate"
	"github.com/pgtenancy/pgtenancy/interop/internal/interoptest"
)

func Test(t *testing.T) {
	interoptest.Test(t, func(_ *testing.T, pool *pgtenancy.Pool) interoptest.Shop {
		return shop.New(pool)
	})
}

// The errors of ent itself are there too.
func TestErrors(t *testing.T) {
	fleet := interoptest.Open(t)
	acme := fleet.As(t, "acme")
	client := ent.NewClient(ent.Driver(entsql.OpenDB(dialect.Postgres, fleet.Pool().DB())))
	if err := client.Order.Create().SetCustomerID(1).SetItem("anvil").SetQuantity(1).Exec(acme); !ent.IsConstraintError(err) {
		t.Errorf("an order of nobody's: %v", err)
	}
	if _, err := client.Customer.Get(acme, 1); !ent.IsNotFound(err) {
		t.Errorf("a customer who is not there: %v", err)
	}
}

// Schema.Create works as the role that owns the schemas, for one tenant at a time, and needs a transaction: ent has queries
// without the context in it, which then are the transaction's tenant's. The tables are listed, since each tenant would get
// tables of its own for those that all tenants share, which hide them.
func TestSchemaCreate(t *testing.T) {
	fleet := interoptest.Open(t)
	pool := fleet.OwnerPool(t)
	client := ent.NewClient(ent.Driver(entsql.OpenDB(dialect.Postgres, pool.DB())))
	create := func(ctx context.Context) error {
		tx, err := client.Tx(ctx)
		if err != nil {
			return err
		}
		if err := migrate.Create(ctx, tx.Client().Schema, []*schema.Table{migrate.CustomersTable, migrate.OrdersTable}); err != nil {
			return errors.Join(err, tx.Rollback())
		}
		return tx.Commit()
	}
	acme, globex := fleet.As(t, "acme"), fleet.As(t, "globex")
	for _, ctx := range []context.Context{acme, globex} {
		for _, sql := range []string{
			"select", // the tables are as they should be
			"alter table customers drop column name",
			"drop table orders, customers",
		} {
			if _, err := pool.Exec(ctx, sql); err != nil {
				t.Error(err)
			}
			if err := create(ctx); err != nil {
				t.Errorf("after %s: %v", sql, err)
			}
			if _, err := pool.Exec(ctx, "select c.name, o.item from customers c join orders o on o.customer_id = c.id"); err != nil {
				t.Errorf("after %s: %v", sql, err)
			}
			var n int
			err := pool.QueryRow(ctx, "select count(*) from pg_tables where schemaname = current_schema()").Scan(&n)
			if err != nil || n != 2 {
				t.Errorf("after %s there are %d tables, %v", sql, n, err)
			}
		}
	}
	if err := client.Schema.Create(acme); !errors.Is(err, pgtenancy.ErrNoTenant) {
		t.Errorf("Schema.Create without a transaction: %v, if it works now, this test can be simpler", err)
	}
}
