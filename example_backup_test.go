package pgtenancy_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	"github.com/pgtenancy/pgtenancy"
)

// Tuesday's data of a customer beside the present: a support person looks at it as the tenant acme-tuesday.
func ExampleFleet_Restore() {
	var fleet *pgtenancy.Fleet // from pgtenancy.Open
	ctx := context.Background()
	store := pgtenancy.DirStore("/var/backups/pgtenancy")

	tuesday := func() error {
		var object string
		for o, err := range store.List(ctx, "acme/") { // in the order in which they were made
			if err != nil {
				return err
			}
			if o.Name < "acme/20260114" {
				object = o.Name
			}
		}
		if object == "" {
			return errors.New("no backup of acme is as old as that")
		}
		acme, err := fleet.Restore(ctx, store, object, &pgtenancy.RestoreOpts{As: "acme-tuesday"})
		if err != nil {
			return err
		}
		fmt.Println(acme, "is at migration", acme.Version())
		return nil
	}
	if fleet != nil {
		if err := tuesday(); err != nil {
			log.Fatal(err)
		}
	}
}

// The nightly backup of all tenants. Those that could not be backed up are in the error; the others are safe.
func ExampleFleet_Backup() {
	var fleet *pgtenancy.Fleet // from pgtenancy.Open
	nightly := func(ctx context.Context) error {
		report, err := fleet.Backup(ctx, pgtenancy.DirStore("/var/backups/pgtenancy"), &pgtenancy.BackupOpts{Parallel: 4})
		if err != nil {
			return err
		}
		for _, o := range report.Objects {
			if len(o.Drift) > 0 {
				log.Printf("tenant %s is not as its migrations make it: a restore of %s would refuse it", o.Tenant, o.Name)
			}
		}
		return nil
	}
	if fleet != nil {
		if err := nightly(context.Background()); err != nil {
			log.Fatal(err)
		}
	}
}
