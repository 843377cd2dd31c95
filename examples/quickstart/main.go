// Command quickstart is a small order service for many customers, each with a schema of its own.
//
//	go run ./examples/quickstart
//
// It starts a throwaway PostgreSQL unless DATABASE_URL names one, and prints curl lines to paste.
package main

import (
	"context"
	"crypto/rand"
	"embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgtenancy/pgtenancy"
	"github.com/pgtenancy/pgtenancy/middleware"
	"github.com/pgtenancy/pgtenancy/pgtenancytest"
	_ "github.com/pgtenancy/pgtenancy/pgtenancytest/container" // where no PostgreSQL is installed: Docker,
	_ "github.com/pgtenancy/pgtenancy/pgtenancytest/download"  // or a download
)

//go:embed migrations
var embedded embed.FS

// appRole is the role of the data plane. It owns nothing.
const appRole = "quickstart_app"

func main() {
	addr := flag.String("addr", "localhost:8080", "address to listen on")
	tenants := flag.Int("tenants", 0, "number of further tenants to provision")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *addr, *tenants, os.Stdout); err != nil {
		stop()
		log.Fatal(err)
	}
}

// run serves until ctx is cancelled.
func run(ctx context.Context, addr string, tenants int, out io.Writer) error {
	server, err := pgtenancytest.Start(ctx) // DATABASE_URL, where it is set
	if err != nil {
		return err
	}
	defer server.Close()
	fmt.Fprintf(out, "PostgreSQL: %s\n", server.Source())

	fleet, err := open(ctx, server.URL())
	if err != nil {
		return err
	}
	defer fleet.Close()
	if _, err := fleet.Migrate(ctx, nil); err != nil {
		return err
	}
	if err := provision(ctx, fleet, tenants, out); err != nil {
		return err
	}

	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	fmt.Fprintf(out, usage, port)
	srv := &http.Server{Handler: handler(fleet), ReadHeaderTimeout: 10 * time.Second}
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		stopped <- srv.Shutdown(ctx) // lets requests under way end
	})
	defer stop()
	if err := srv.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-stopped
}

const usage = `Serving on http://localhost:%[1]s, until Ctrl-C. Try:

  curl http://acme.localhost:%[1]s/orders
  curl http://globex.localhost:%[1]s/orders
  curl http://acme.localhost:%[1]s/users
  curl http://acme.localhost:%[1]s/orders -d '{"customer": "wile@acme.example", "sku": "ANVIL", "quantity": 2}'
  curl -i http://nobody.localhost:%[1]s/orders
  curl http://localhost:%[1]s/signup -d '{"id": "initech", "email": "bill@initech.example"}'
  curl http://initech.localhost:%[1]s/orders
  curl 'http://localhost:%[1]s/login?email=bill@initech.example'

`

// open connects the control plane as the owner of the schemas, and the data plane as a role that owns nothing. A real
// service has both roles set up for it; this one makes the second one on the way.
func open(ctx context.Context, url string) (*pgtenancy.Fleet, error) {
	owner, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, err
	}
	app := owner.Copy()
	app.ConnConfig.User, app.ConnConfig.Password = appRole, rand.Text()
	if err := makeRole(ctx, owner.ConnConfig, app.ConnConfig.Password); err != nil {
		return nil, err
	}
	migrations, err := fs.Sub(embedded, "migrations")
	if err != nil {
		return nil, err
	}
	return pgtenancy.Open(ctx, pgtenancy.FleetConfig{
		PoolConfig: pgtenancy.PoolConfig{Conns: app},
		Owner:      owner,
		Migrations: migrations,
	})
}

func makeRole(ctx context.Context, owner *pgx.ConnConfig, password string) error {
	conn, err := pgx.ConnectConfig(ctx, owner)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	var exists bool
	if err := conn.QueryRow(ctx, "select exists (select from pg_roles where rolname = $1)", appRole).Scan(&exists); err != nil {
		return err
	}
	verb := "create"
	if exists {
		verb = "alter"
	}
	_, err = conn.Exec(ctx, verb+" role "+appRole+" login password '"+password+"'") // letters and digits only
	return err
}

// provision makes acme, globex and n more tenants, unless they are there from a run before.
func provision(ctx context.Context, fleet *pgtenancy.Fleet, n int, out io.Writer) error {
	for id, seed := range map[string]shop{
		"acme":   {user: "road@acme.example", customer: "Wile E. Coyote", email: "wile@acme.example", sku: "ANVIL", product: "Anvil", price: 9900, orders: 2},
		"globex": {user: "hank@globex.example", customer: "Homer Simpson", email: "homer@globex.example", sku: "HAMMOCK", product: "Hammock", price: 4550, orders: 1},
	} {
		_, err := fleet.Provision(ctx, id, &pgtenancy.ProvisionOpts{Attributes: map[string]string{"plan": "pro"}, Seed: seed.insert})
		if err != nil && !errors.Is(err, pgtenancy.ErrTenantExists) {
			return err
		}
	}
	if n == 0 {
		return nil
	}
	var (
		mu     sync.Mutex
		done   int
		failed error
		wg     sync.WaitGroup
		ids    = make(chan string)
	)
	started := time.Now()
	for range 4 {
		wg.Go(func() {
			for id := range ids {
				_, err := fleet.Provision(ctx, id, &pgtenancy.ProvisionOpts{Seed: newShop(id, "owner@"+id+".example").insert})
				mu.Lock()
				if done++; err != nil && !errors.Is(err, pgtenancy.ErrTenantExists) && failed == nil {
					failed = err
				}
				fmt.Fprintf(out, "\rtenants: %d of %d, %.0f a second", done, n, float64(done)/time.Since(started).Seconds())
				mu.Unlock()
			}
		})
	}
	for i := 1; i <= n && ctx.Err() == nil; i++ {
		ids <- fmt.Sprintf("shop-%05d", i)
	}
	close(ids)
	wg.Wait()
	fmt.Fprintln(out)
	return errors.Join(failed, ctx.Err())
}

// shop is what a tenant starts with.
type shop struct {
	user, customer, email, sku, product string
	price, orders                       int
}

func newShop(id, user string) shop {
	return shop{user: user, customer: "First Customer", email: "first@" + id + ".example", sku: "THING", product: "Thing", price: 1000, orders: 1}
}

// insert runs in the transaction that provisions the tenant, in its scope.
func (s shop) insert(ctx context.Context, tx pgx.Tx) error {
	b := &pgx.Batch{}
	b.Queue("insert into users (email) values ($1)", s.user) // shared; its tenant_id defaults to the tenant of the statement
	b.Queue("insert into warehouses (name) values ('main')")
	b.Queue("insert into products (sku, name, price_cents) values ($1, $2, $3)", s.sku, s.product, s.price)
	b.Queue("insert into stock (product_id, warehouse_id, quantity) select p.id, w.id, 1000 from products p, warehouses w")
	b.Queue("insert into customers (name, email) values ($1, $2)", s.customer, s.email)
	for range s.orders {
		b.Queue(`with o as (insert into orders (customer_id) select id from customers returning id)
			insert into order_items (order_id, line, product_id, quantity, price_cents)
			select o.id, 1, p.id, 3, p.price_cents from o, products p`)
	}
	return tx.SendBatch(ctx, b).Close()
}

// service has the handlers. Its pool runs each statement as the tenant in the request's context.
type service struct {
	fleet *pgtenancy.Fleet
	db    *pgtenancy.Pool
}

func handler(fleet *pgtenancy.Fleet) http.Handler {
	s := &service{fleet: fleet, db: fleet.Pool()}
	tenant := http.NewServeMux()
	tenant.HandleFunc("GET /orders", s.listOrders)
	tenant.HandleFunc("POST /orders", s.createOrder)
	tenant.HandleFunc("GET /users", s.listUsers)

	mux := http.NewServeMux()
	mux.Handle("/", middleware.Tenant(fleet, pgtenancy.Subdomain("localhost"), nil)(tenant))
	mux.HandleFunc("POST localhost/signup", s.signup) // without a tenant
	mux.HandleFunc("GET localhost/login", s.login)
	return mux
}

type order struct {
	ID         int64     `json:"id"`
	Customer   string    `json:"customer"`
	Status     string    `json:"status"`
	CreatedAt  time.Time `json:"created_at"`
	TotalCents int64     `json:"total_cents"`
}

func (s *service) listOrders(w http.ResponseWriter, r *http.Request) {
	rows, _ := s.db.Query(r.Context(), "select id, customer, status, created_at, total_cents from order_totals order by id") // the error is in rows
	orders, err := pgx.CollectRows(rows, pgx.RowToStructByPos[order])
	answer(w, http.StatusOK, orders, err)
}

func (s *service) createOrder(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Customer string `json:"customer"`
		SKU      string `json:"sku"`
		Quantity int    `json:"quantity"`
	}
	if !read(w, r, &in) {
		return
	}
	if in.Quantity < 1 {
		http.Error(w, "quantity must be at least 1", http.StatusBadRequest)
		return
	}
	var id int64
	err := pgx.BeginFunc(r.Context(), s.db, func(tx pgx.Tx) error {
		ctx := r.Context()
		if err := tx.QueryRow(ctx, "insert into orders (customer_id) select id from customers where email = $1 returning id", in.Customer).Scan(&id); err != nil {
			return err // pgx.ErrNoRows: no such customer
		}
		tag, err := tx.Exec(ctx, `insert into order_items (order_id, line, product_id, quantity, price_cents)
			select $1, 1, id, $2, price_cents from products where sku = $3`, id, in.Quantity, in.SKU)
		if err == nil && tag.RowsAffected() == 0 {
			err = pgx.ErrNoRows // no such product: the order goes too
		}
		return err
	})
	answer(w, http.StatusCreated, map[string]int64{"id": id}, err)
}

func (s *service) listUsers(w http.ResponseWriter, r *http.Request) {
	// A shared table: row level security shows this tenant's rows.
	rows, _ := s.db.Query(r.Context(), "select email from users order by email") // the error is in rows
	emails, err := pgx.CollectRows(rows, pgx.RowTo[string])
	answer(w, http.StatusOK, emails, err)
}

func (s *service) signup(w http.ResponseWriter, r *http.Request) {
	var in struct{ ID, Email string }
	if !read(w, r, &in) {
		return
	}
	if in.Email == "" {
		http.Error(w, "email must not be empty", http.StatusBadRequest)
		return
	}
	t, err := s.fleet.Provision(r.Context(), in.ID, &pgtenancy.ProvisionOpts{
		Attributes: map[string]string{"plan": "trial"},
		Seed:       newShop(in.ID, in.Email).insert,
	})
	answer(w, http.StatusCreated, map[string]string{"id": t.ID()}, err)
}

// login finds the tenants of a user before one is known. A real one would check a password before it answers.
func (s *service) login(w http.ResponseWriter, r *http.Request) {
	rows, _ := s.db.Shared().Query(r.Context(), "select tenant_id from public.find_user($1) order by tenant_id", r.FormValue("email")) // the error is in rows
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	answer(w, http.StatusOK, ids, err)
}

func read(w http.ResponseWriter, r *http.Request, into any) bool {
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<16)).Decode(into); err != nil {
		http.Error(w, "the body must be JSON: "+err.Error(), http.StatusBadRequest)
		return false
	}
	return true
}

func answer(w http.ResponseWriter, status int, body any, err error) {
	var invalid *pgtenancy.InvalidError
	switch {
	case errors.As(err, &invalid):
		http.Error(w, invalid.Error(), http.StatusBadRequest)
	case errors.Is(err, pgtenancy.ErrTenantExists):
		http.Error(w, "this name is taken", http.StatusConflict)
	case errors.Is(err, pgx.ErrNoRows):
		http.Error(w, "no such customer or product", http.StatusUnprocessableEntity)
	case err != nil:
		log.Print(err)
		http.Error(w, "internal error", http.StatusInternalServerError)
	default:
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(body) // the client is gone, where that fails
	}
}
