package pgtenancy_test

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/pgtenancy/pgtenancy"
)

// An hourly job that takes a sample, and tells of tenants which have become too large or grow too quickly.
func ExampleFleet_Usage() {
	hourly := func(ctx context.Context, fleet *pgtenancy.Fleet) error {
		limits := pgtenancy.UsageLimits{Bytes: 50 << 30, DeadShare: 0.3, BloatShare: 0.5, GrowthPerDay: 5 << 30}
		var total pgtenancy.Usage
		for u, err := range fleet.Usage(ctx, &pgtenancy.UsageOpts{Over: 24 * time.Hour}) {
			if err != nil {
				return err
			}
			total.Add(u.Usage)
			if beyond := u.Exceeds(limits); len(beyond) > 0 {
				slog.WarnContext(ctx, "tenant is beyond its limits", "tenant", u.Tenant, "limits", beyond)
			}
		}
		catalogs, err := fleet.CatalogUsage(ctx, nil)
		if err != nil {
			return err
		}
		slog.InfoContext(ctx, "usage", "bytes", total.Bytes(), "relations", total.Relations, "catalogs", catalogs.Bytes())
		return fleet.SampleUsage(ctx)
	}
	_ = hourly
}

func ExampleUsage_Exceeds() {
	u := pgtenancy.Usage{Relations: 1240, HeapBytes: 60 << 30, IndexBytes: 20 << 30, Rows: 6_000_000, DeadRows: 4_000_000}
	for _, line := range u.Exceeds(pgtenancy.UsageLimits{Bytes: 50 << 30, Relations: 2000, DeadShare: 0.3}) {
		fmt.Println(line)
	}
	// Output:
	// Bytes: 85899345920, limit 53687091200
	// DeadShare: 0.40, limit 0.30
}
