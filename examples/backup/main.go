// Command backup shows a nightly backup of all tenants, and two ways to give one of them back what a mistake took: the data of
// before beside the present, or in its place.
//
//	go run ./examples/backup
//
// It starts a throwaway PostgreSQL unless DATABASE_URL names one.
package main

import (
	"context"
	"embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgtenancy/pgtenancy"
	"github.com/pgtenancy/pgtenancy/pgtenancytest"
	_ "github.com/pgtenancy/pgtenancy/pgtenancytest/container" // where no PostgreSQL is installed: Docker,
	_ "github.com/pgtenancy/pgtenancy/pgtenancytest/download"  // or a download
)

//go:embed migrations
var embedded embed.FS

// keep is how many backups of a tenant are kept.
const keep = 2

func main() {
	dir := flag.String("dir", "", "directory for the backups, which stay there; a temporary one unless told")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *dir, os.Stdout); err != nil {
		stop()
		log.Fatal(err)
	}
}

func run(ctx context.Context, dir string, out io.Writer) (err error) {
	server, err := pgtenancytest.Start(ctx) // DATABASE_URL, where it is set
	if err != nil {
		return err
	}
	defer server.Close()
	fmt.Fprintf(out, "PostgreSQL: %s\n", server.Source())
	if dir == "" {
		if dir, err = os.MkdirTemp("", "backup-"); err != nil {
			return err
		}
		defer os.RemoveAll(dir)
	}
	store := pgtenancy.DirStore(dir) // or a bucket: see Store
	fleet, err := open(ctx, server.URL())
	if err != nil {
		return err
	}
	defer fleet.Close()
	owner, err := pgx.Connect(ctx, server.URL()) // the role that owns the schemas of all tenants
	if err != nil {
		return err
	}
	defer owner.Close(context.WithoutCancel(ctx))
	if err := provision(ctx, fleet); err != nil {
		return err
	}

	for range 2 {
		if err := day(ctx, fleet); err != nil {
			return err
		}
		if err := nightly(ctx, fleet, store, out); err != nil {
			return err
		}
	}
	// Today there are new orders and a new customer, and then two people make mistakes. Nobody notices before the next backup.
	if err := day(ctx, fleet); err != nil {
		return err
	}
	var before time.Time
	if err := owner.QueryRow(ctx, "select now()").Scan(&before); err != nil {
		return err
	}
	if err := today(ctx, fleet, out); err != nil {
		return err
	}
	if err := nightly(ctx, fleet, store, out); err != nil {
		return err
	}

	if err := beside(ctx, fleet, owner, store, before, out); err != nil {
		return err
	}
	return inPlace(ctx, fleet, store, before, out)
}

func open(ctx context.Context, url string) (*pgtenancy.Fleet, error) {
	conns, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, err
	}
	migrations, err := fs.Sub(embedded, "migrations")
	if err != nil {
		return nil, err
	}
	return pgtenancy.Open(ctx, pgtenancy.FleetConfig{PoolConfig: pgtenancy.PoolConfig{Conns: conns}, Migrations: migrations})
}

// nightly backs up all tenants, reads back what was written, and then removes what is too old. A service calls it from its
// scheduler, on a machine other than the database's.
func nightly(ctx context.Context, fleet *pgtenancy.Fleet, store pgtenancy.Store, out io.Writer) error {
	report, err := fleet.Backup(ctx, store, &pgtenancy.BackupOpts{Parallel: 4})
	// Some may have failed, which the error lists. The others are in the report.
	for _, o := range report.Objects {
		if _, damaged := pgtenancy.Verify(ctx, store, o.Name); damaged != nil {
			err = errors.Join(err, damaged)
		}
		for _, d := range o.Drift {
			fmt.Fprintf(out, "%s is not as its migrations make it, and its backup needs AcceptDrift: %s\n", o.Tenant, d.Object)
		}
	}
	if err != nil {
		return err // for somebody to look at, before anything is removed
	}
	removed, err := removeOld(ctx, store)
	fmt.Fprintf(out, "nightly backup: %d tenants, %d rows, all verified; %d old ones removed\n", len(report.Objects), report.Rows, removed)
	return err
}

// removeOld keeps the last backups of each tenant, also of one that is no more. Rules are the service's own: it may go by the
// time in the name as well, or by what was promised to customers who leave.
func removeOld(ctx context.Context, store pgtenancy.Store) (removed int, err error) {
	objects := map[string][]string{} // by tenant
	for o, err := range store.List(ctx, "") {
		if err != nil {
			return 0, err
		}
		tenant, _, _ := strings.Cut(o.Name, "/")
		objects[tenant] = append(objects[tenant], o.Name) // in the order in which they were made
	}
	for _, names := range objects {
		for _, name := range names[:max(0, len(names)-keep)] {
			if err := store.Delete(ctx, name); err != nil {
				return removed, err
			}
			removed++
		}
	}
	return removed, nil
}

// lastBefore returns the name of a tenant's last backup that was made before a moment.
func lastBefore(ctx context.Context, store pgtenancy.Store, tenant string, moment time.Time) (name string, err error) {
	most := tenant + "/" + moment.UTC().Format("20060102T150405.000000Z")
	for o, err := range store.List(ctx, tenant+"/") {
		if err != nil {
			return "", err
		}
		if o.Name < most {
			name = o.Name
		}
	}
	if name == "" {
		return "", fmt.Errorf("there is no backup of %s before %s", tenant, moment)
	}
	return name, nil
}

// beside has acme's data of before the mistake beside the present, and copies back the addresses, and nothing else: the orders
// that came since stay.
func beside(ctx context.Context, fleet *pgtenancy.Fleet, owner *pgx.Conn, store pgtenancy.Store, before time.Time, out io.Writer) error {
	object, err := lastBefore(ctx, store, "acme", before)
	if err != nil {
		return err
	}
	old, err := fleet.Restore(ctx, store, object, &pgtenancy.RestoreOpts{As: "acme-before", Reason: "addresses overwritten"})
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "\n%s is restored as %s\n", object, old.ID())
	// It is a tenant like any other now: nobody shall log in there, and no job send its customers a second mail.
	if err := fleet.Suspend(ctx, old.ID(), nil); err != nil {
		return err
	}
	acme, err := fleet.Lookup(ctx, pgtenancy.ByID("acme"))
	if err != nil {
		return err
	}

	// The owner sees both. First look, then copy.
	was := pgx.Identifier{old.Schema(), "customers"}.Sanitize()
	is := pgx.Identifier{acme.Schema(), "customers"}.Sanitize()
	rows, _ := owner.Query(ctx, "select i.name, i.email, coalesce(w.email, 'nothing') from "+is+" i left join "+was+" w using (id) "+
		"where i.email is distinct from w.email order by i.id") // the error is in rows
	var name, emailIs, emailWas string
	_, err = pgx.ForEachRow(rows, []any{&name, &emailIs, &emailWas}, func() error {
		_, err := fmt.Fprintf(out, "  %s has %s and had %s\n", name, emailIs, emailWas)
		return err
	})
	if err != nil {
		return err
	}
	// Only what has the wrong value: who has changed theirs since then was right.
	tag, err := owner.Exec(ctx, "update "+is+" i set email = w.email from "+was+" w "+
		"where w.id = i.id and i.email = $1 and w.email <> $1", oneAddress)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%d addresses are copied back\n", tag.RowsAffected())

	// The copy has served. Its data would be retained for some time, as everybody's, but it is in the backup.
	if err := fleet.Delete(ctx, old.ID(), nil); err != nil {
		return err
	}
	_, err = fleet.Purge(ctx, old.ID(), &pgtenancy.PurgeOpts{Force: true, Reason: "copied back"})
	return err
}

// inPlace has globex as it was before the mistake. What it did since is not in it, and is not lost either: what was there becomes
// a deleted tenant, which Undelete brings back beside the restored one, and Purge removes.
func inPlace(ctx context.Context, fleet *pgtenancy.Fleet, store pgtenancy.Store, before time.Time, out io.Writer) error {
	object, err := lastBefore(ctx, store, "globex", before)
	if err != nil {
		return err
	}
	globex, err := fleet.Restore(ctx, store, object, &pgtenancy.RestoreOpts{Replace: true, Reason: "orders deleted"})
	if err != nil {
		return err
	}
	var orders int
	if err := fleet.Pool().For(globex).QueryRow(ctx, "select count(*) from orders").Scan(&orders); err != nil {
		return err
	}
	fmt.Fprintf(out, "\n%s is restored in the place of %s, with %d orders\n", object, globex, orders)
	for t, err := range fleet.Tenants(ctx, &pgtenancy.TenantsOpts{States: []pgtenancy.State{pgtenancy.Deleted}}) {
		if err != nil {
			return err
		}
		if strings.HasPrefix(t.ID(), "globex-old-") {
			fmt.Fprintf(out, "  what was there is %s, %s\n", t.ID(), t.State())
		}
	}
	return nil
}

// oneAddress is what all customers of acme have after the mistake.
const oneAddress = "new@road.example"

// today is what happens to two tenants.
func today(ctx context.Context, fleet *pgtenancy.Fleet, out io.Writer) error {
	for _, do := range []struct{ tenant, sql string }{
		{"acme", "insert into customers (name, email) values ('Granny', 'granny@acme.example')"},
		{"acme", "update customers set email = '" + oneAddress + "'"},                               // where?
		{"acme", "update customers set email = 'sam@sheepdog.example' where name = 'Sam Sheepdog'"}, // he has seen it
		{"globex", "delete from orders"},                                                            // where?
	} {
		t, err := fleet.Lookup(ctx, pgtenancy.ByID(do.tenant))
		if err != nil {
			return err
		}
		tag, err := fleet.Pool().For(t).Exec(ctx, do.sql)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "%s: %s: %d\n", do.tenant, do.sql, tag.RowsAffected())
	}
	return nil
}

// provision makes the tenants, unless they are there from a run before.
func provision(ctx context.Context, fleet *pgtenancy.Fleet) error {
	if _, err := fleet.Migrate(ctx, nil); err != nil {
		return err
	}
	for id, names := range map[string][]string{
		"acme": {"Road Runner", "Wile E. Coyote", "Sam Sheepdog"}, "globex": {"Homer Simpson", "Hank Scorpio"}, "initech": {"Bill Lumbergh"},
	} {
		seed := func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "insert into customers (name, email) "+
				"select n, lower(split_part(n, ' ', 1)) || '@' || $2 || '.example' from unnest($1::text[]) n", names, id)
			return err
		}
		if _, err := fleet.Provision(ctx, id, &pgtenancy.ProvisionOpts{Seed: seed, IfNotExists: true}); err != nil {
			return err
		}
	}
	return nil
}

// day has each customer of each tenant order something.
func day(ctx context.Context, fleet *pgtenancy.Fleet) error {
	return fleet.Each(ctx, nil, func(ctx context.Context, _ pgtenancy.Tenant) error {
		_, err := fleet.Pool().Exec(ctx, "insert into orders (customer_id, total_cents) select id, 100 * id from customers")
		return err
	})
}
