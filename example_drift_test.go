package pgtenancy_test

import (
	"context"
	"fmt"

	"github.com/pgtenancy/pgtenancy"
)

// A nightly job that finds the schemas that somebody has changed by hand.
func ExampleFleet_Drift() {
	nightly := func(ctx context.Context, fleet *pgtenancy.Fleet) error {
		report, err := fleet.Drift(ctx, &pgtenancy.DriftOpts{Fresh: true})
		if err != nil {
			return err
		}
		if report.Drifted > 0 {
			return fmt.Errorf("schemas have drifted: %s", report)
		}
		return nil
	}
	_ = nightly
}

// What a report prints.
func ExampleDriftReport_String() {
	report := &pgtenancy.DriftReport{
		Tenants: 489,
		Drifted: 2,
		Groups: []pgtenancy.DriftGroup{{
			Version:   12,
			Tenants:   []string{"globex", "initech"},
			Reference: "acme",
			Differences: []pgtenancy.Difference{
				{Kind: "column", Object: "orders.total", Want: "numeric(10,2)", Have: "numeric(12,2)"},
				{Kind: "index", Object: "orders_note", Want: "CREATE INDEX orders_note ON orders USING btree (note)"},
				{Kind: "table", Object: "junk", Have: "table"},
			},
		}},
	}
	fmt.Println(report)
	// Output:
	// 489 tenants: 487 alike, 2 differ
	// 2 at version 12 differ from acme: globex, initech
	//     column orders.total: want numeric(10,2), have numeric(12,2)
	//     index orders_note: missing: CREATE INDEX orders_note ON orders USING btree (note)
	//     table junk: extra: table
}
