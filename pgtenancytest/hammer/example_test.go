package hammer_test

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/pgtenancy/pgtenancy"
	"github.com/pgtenancy/pgtenancy/pgtenancytest/hammer"
)

// Orders is some code of one's own that has to keep tenants apart.
type Orders struct{ pool *pgtenancy.Pool }

// Seller returns who sells in the newest order.
func (o *Orders) Seller(ctx context.Context) (seller string, err error) {
	err = o.pool.QueryRow(ctx, "select seller from orders order by id desc limit 1").Scan(&seller)
	return seller, err
}

// A test of one's own code: each tenant's orders say who sells.
func Example() {
	var (
		t           *testing.T         // of the test
		pool        *pgtenancy.Pool    // as the service opens it
		tenants     []pgtenancy.Tenant // with tables and some rows
		databaseURL string             // of the owner of their schemas, on a database of the test's own
	)
	orders := &Orders{pool}
	hammer.Run(t, pool, hammer.Config{
		Admin:    databaseURL,
		Tenants:  tenants,
		Duration: 10 * time.Second,
		Ops: []hammer.Op{{Name: "seller", Weight: 50, Do: func(ctx context.Context, tenant pgtenancy.Tenant, _ *rand.Rand) error {
			seller, err := orders.Seller(ctx)
			if err != nil {
				return err
			}
			return hammer.Check(tenant, seller)
		}}},
	})
}
