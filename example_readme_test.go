package pgtenancy_test

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"os"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgtenancy/pgtenancy"
	"github.com/pgtenancy/pgtenancy/middleware"
)

// The program of README.md.
func Example_readme() {
	ctx := context.Background()
	app, err := pgxpool.ParseConfig(os.Getenv("APP_DATABASE_URL")) // a role that owns nothing
	must(err)
	owner, err := pgxpool.ParseConfig(os.Getenv("OWNER_DATABASE_URL")) // the role that owns the schemas
	must(err)
	fleet, err := pgtenancy.Open(ctx, pgtenancy.FleetConfig{
		PoolConfig: pgtenancy.PoolConfig{Conns: app},
		Owner:      owner,
		Migrations: os.DirFS("migrations"), // shared/001_users.sql, tenant/001_orders.sql, ...
	})
	must(err)
	defer fleet.Close()
	_, err = fleet.Migrate(ctx, nil) // the shared tables, and every tenant's
	must(err)

	mux := http.NewServeMux()
	mux.HandleFunc("GET /orders", func(w http.ResponseWriter, r *http.Request) {
		var n int // acme.app.example counts acme's orders, globex.app.example its own
		err := fleet.Pool().QueryRow(r.Context(), "select count(*) from orders").Scan(&n)
		fmt.Fprintln(w, n, err)
	})
	tenant := middleware.Tenant(fleet, pgtenancy.Subdomain("app.example"), nil)
	must(http.ListenAndServe(":8080", tenant(mux)))
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
