// Package interoptest is the test that every tool in this module has to pass: a small data layer of a shop, for two
// customers of the shop's maker at once, on a direct connection and through PgBouncer.
package interoptest

import (
	"context"
	"embed"
	"io/fs"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgtenancy/pgtenancy"
	"github.com/pgtenancy/pgtenancy/pgtenancytest"
)

// Shop is a data layer, written with one of the tools.
type Shop interface {
	// AddCustomer adds a customer without orders and returns its ID.
	AddCustomer(ctx context.Context, c Customer) (id int64, err error)
	// PlaceOrder adds an order. Its status comes from the database.
	PlaceOrder(ctx context.Context, customerID int64, o Order) error
	// Customer reads a customer, with its orders.
	Customer(ctx context.Context, email string) (Customer, error)
	// Customers reads all customers, with their orders, ordered by e-mail address.
	Customers(ctx context.Context) ([]Customer, error)
	// Rename changes the name of a customer.
	Rename(ctx context.Context, email, name string) error
	// Remove deletes a customer.
	Remove(ctx context.Context, email string) error

	// AddUser adds to a table that all tenants share.
	AddUser(ctx context.Context, email string) error
	// Users reads from it.
	Users(ctx context.Context) ([]User, error)

	// InTx calls f with a shop whose methods run in one transaction, which is rolled back when f returns an error.
	InTx(ctx context.Context, f func(Shop) error) error
}

// Customer is a customer of the shop.
type Customer struct {
	Email, Name string
	Orders      []Order
}

// Order is what a customer has ordered.
type Order struct {
	Item     string
	Quantity int
	Status   string // of a type that each tenant has for itself
	Options  map[string]string
}

// User is a row of the table that all tenants share.
type User struct {
	TenantID, Email string
}

//go:embed migrations
var migrations embed.FS

// Two tenants that use the pool at once need two connections.
const maxConns = 2

// Decoys are in the way of statements that have lost their tenant. The application may read and write them.
const decoysSQL = `
	create type public.order_status as enum ('open', 'paid');
	create table public.customers (
		id bigint generated always as identity primary key, email text default 'decoy', name text default 'decoy');
	create table public.orders (
		id bigint generated always as identity primary key, customer_id bigint default 1, item text default 'decoy', quantity int default 1,
		status public.order_status default 'open', options jsonb default '{}', created_at timestamptz default now());
	insert into public.customers default values;
	insert into public.orders default values;
	grant select, insert, update, delete on public.customers, public.orders to interop_app;
`

// Fleet is a new database with the tables of the shop, reached directly or through a PgBouncer.
type Fleet struct {
	*pgtenancy.Fleet
	url string
}

// An Option changes how the application connects.
type Option func(*pgx.ConnConfig)

// Open makes a database and opens it on a direct connection. What it made ends with the test.
func Open(t *testing.T, opts ...Option) *Fleet {
	t.Helper()
	return open(t, nil, opts)
}

// open does it through PgBouncer where that is not nil.
func open(t *testing.T, b *bouncer, opts []Option) *Fleet {
	t.Helper()
	f := &Fleet{url: pgtenancytest.Database(t)}
	f.exec(t, `do $$ begin create role interop_app login; exception when duplicate_object or unique_violation then null; end $$`)

	owner := config(t, f.url)
	cfg := pgtenancy.FleetConfig{PoolConfig: pgtenancy.PoolConfig{Conns: owner.Copy()}, Owner: owner}
	cfg.PoolConfig.Conns.ConnConfig.User = "interop_app"
	cfg.PoolConfig.Conns.MaxConns = maxConns
	for _, o := range opts {
		o(cfg.PoolConfig.Conns.ConnConfig)
	}
	if b != nil {
		cfg.PoolConfig.Direct = cfg.PoolConfig.Conns.Copy()
		b.use(t, cfg.PoolConfig.Conns)
	}
	var err error
	if cfg.Migrations, err = fs.Sub(migrations, "migrations"); err != nil {
		t.Fatal(err)
	}
	if f.Fleet, err = pgtenancy.Open(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	t.Cleanup(func() { f.checkIdle(t) })
	if _, err := f.Migrate(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	f.exec(t, decoysSQL)
	t.Cleanup(func() { f.checkDecoys(t) })
	return f
}

func config(t *testing.T, url string) *pgxpool.Config {
	t.Helper()
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// As provisions a tenant and returns a context that carries it, as middleware.Tenant puts it into that of a request.
func (f *Fleet) As(t *testing.T, id string) context.Context {
	t.Helper()
	tenant, err := f.Provision(t.Context(), id, nil)
	if err != nil {
		t.Fatal(err)
	}
	return pgtenancy.WithTenant(t.Context(), tenant)
}

// OwnerPool returns a pool of the role that owns the schemas, for tools that make tables.
func (f *Fleet) OwnerPool(t *testing.T) *pgtenancy.Pool {
	t.Helper()
	pool, err := pgtenancy.NewPool(t.Context(), f.url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// exec runs statements as the superuser, without a tenant.
func (f *Fleet) exec(t *testing.T, sql string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), f.url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%.100s: %v", sql, err)
	}
}

// checkIdle checks that the tool has given back all connections.
func (f *Fleet) checkIdle(t *testing.T) {
	for deadline := time.Now().Add(time.Minute); f.Pool().Stat().AcquiredConns() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("%d connections are still in use", f.Pool().Stat().AcquiredConns())
			return
		}
	}
}

// checkDecoys checks that no statement has come to the decoys.
func (f *Fleet) checkDecoys(t *testing.T) {
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, f.url)
	if err != nil {
		t.Error(err)
		return
	}
	defer conn.Close(ctx)
	var got string
	if err := conn.QueryRow(ctx, `select concat_ws(' ', string_agg(c.name, ','), string_agg(o.item, ','))
		from public.customers c full join public.orders o on false`).Scan(&got); err != nil || got != "decoy decoy" {
		t.Errorf("the decoys have become %q, %v", got, err)
	}
}
