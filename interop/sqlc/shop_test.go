package shop_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/pgtenancy/pgtenancy"
	"github.com/pgtenancy/pgtenancy/interop/internal/interoptest"
	shop "github.com/pgtenancy/pgtenancy/interop/sqlc"
	"github.com/pgtenancy/pgtenancy/interop/sqlc/db"
)

func Test(t *testing.T) {
	interoptest.Test(t, func(_ *testing.T, pool *pgtenancy.Pool) interoptest.Shop {
		return shop.New(pool)
	})
}

// All that DBTX may be: what sqlc generates for :copyfrom, :batchone, enums and sqlc.embed works on each.
func TestDBTX(t *testing.T) {
	interoptest.Each(t, func(t *testing.T, fleet *interoptest.Fleet) {
		acme, globex := fleet.As(t, "acme"), fleet.As(t, "globex")
		for _, ctx := range []context.Context{acme, globex} {
			tenant, _ := pgtenancy.TenantFromContext(ctx)
			conn, err := fleet.Pool().Acquire(ctx)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Release()
			tx, err := fleet.Pool().Begin(ctx)
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback(ctx)
			for name, dbtx := range map[string]db.DBTX{"Tx": tx, "Conn": conn} {
				useAll(t, ctx, tenant.ID()+name, db.New(dbtx))
			}
			if err := tx.Commit(ctx); err != nil {
				t.Error(err)
			}
			conn.Release()
			useAll(t, ctx, tenant.ID()+"Pool", db.New(fleet.Pool()))
			useAll(t, t.Context(), tenant.ID()+"Scope", db.New(fleet.Pool().For(tenant)))
		}
	})
}

func useAll(t *testing.T, ctx context.Context, name string, queries *db.Queries) {
	t.Helper()
	id, err := queries.AddCustomer(ctx, db.AddCustomerParams{Email: name + "@example.com", Name: name})
	if err != nil {
		t.Errorf("%s: AddCustomer: %v", name, err)
		return
	}
	var orders []db.PlaceOrdersParams
	for i := range 3 {
		orders = append(orders, db.PlaceOrdersParams{CustomerID: id, Item: fmt.Sprint(name, i), Quantity: 1, Options: []byte("{}")})
	}
	if n, err := queries.PlaceOrders(ctx, orders); err != nil || n != 3 {
		t.Errorf("%s: PlaceOrders: %d, %v", name, n, err)
	}
	placed, err := queries.OrdersOf(ctx, []int64{id})
	if err != nil || len(placed) != 3 {
		t.Errorf("%s: OrdersOf: %v, %v", name, placed, err)
	}
	var ids []int64
	for _, o := range placed[:min(2, len(placed))] {
		ids = append(ids, o.ID)
	}
	queries.Pay(ctx, ids).QueryRow(func(_ int, row db.PayRow, err error) {
		if err != nil || row.Status != db.OrderStatusPaid {
			t.Errorf("%s: Pay: %v, %v", name, row, err)
		}
	})
	open, err := queries.CustomersByStatus(ctx, db.OrderStatusOpen)
	last := len(open) - 1
	if err != nil || last < 0 || open[last].Customer.Name != name || open[last].Order.Item != name+"2" {
		t.Errorf("%s: CustomersByStatus: %v, %v", name, open, err)
	}
}

func TestNoTenant(t *testing.T) {
	fleet := interoptest.Open(t)
	queries := db.New(fleet.Pool())
	if _, err := queries.PlaceOrders(t.Context(), []db.PlaceOrdersParams{{Item: "anvil"}}); !errors.Is(err, pgtenancy.ErrNoTenant) {
		t.Errorf("PlaceOrders: %v", err)
	}
	queries.Pay(t.Context(), []int64{1}).QueryRow(func(_ int, _ db.PayRow, err error) {
		if !errors.Is(err, pgtenancy.ErrNoTenant) {
			t.Errorf("Pay: %v", err)
		}
	})
}
