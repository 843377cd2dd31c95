// Package shop is the data layer of a shop, written with sqlc. What [sqlc] generates runs on a pool as it is:
//
//	queries := db.New(pool)              // db is what sqlc has generated, pool a *pgtenancy.Pool
//	customers, err := queries.Customers(r.Context())
//
// In sqlc.yaml, sql_package is pgx/v5, and schema may be the directories of the migrations. A pgtenancy.Scope, a
// pgtenancy.Conn and a transaction are a DBTX too.
//
// [sqlc]: https://sqlc.dev
package shop

import (
	"context"
	"encoding/json"

	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy"
	"github.com/pgtenancy/pgtenancy/interop/internal/interoptest"
	"github.com/pgtenancy/pgtenancy/interop/sqlc/db"
)

//go:generate go run github.com/sqlc-dev/sqlc/cmd/sqlc@v1.31.1 generate

// Shop is the data layer.
type Shop struct {
	conn    conn
	queries *db.Queries
}

// conn is a pool or a transaction.
type conn interface {
	db.DBTX
	Begin(ctx context.Context) (pgx.Tx, error)
}

// New returns a shop on a pool.
func New(pool *pgtenancy.Pool) *Shop { return &Shop{pool, db.New(pool)} }

// InTx runs f in a transaction.
func (s *Shop) InTx(ctx context.Context, f func(interoptest.Shop) error) error {
	return pgx.BeginFunc(ctx, s.conn, func(tx pgx.Tx) error {
		return f(&Shop{tx, s.queries.WithTx(tx)})
	})
}

// AddCustomer adds a customer.
func (s *Shop) AddCustomer(ctx context.Context, c interoptest.Customer) (int64, error) {
	return s.queries.AddCustomer(ctx, db.AddCustomerParams{Email: c.Email, Name: c.Name})
}

// PlaceOrder adds an order.
func (s *Shop) PlaceOrder(ctx context.Context, customerID int64, o interoptest.Order) error {
	options, err := json.Marshal(o.Options)
	if err != nil {
		return err
	}
	return s.queries.PlaceOrder(ctx, db.PlaceOrderParams{
		CustomerID: customerID, Item: o.Item, Quantity: int32(o.Quantity), Options: options,
	})
}

// Customer reads a customer with its orders.
func (s *Shop) Customer(ctx context.Context, email string) (interoptest.Customer, error) {
	c, err := s.queries.Customer(ctx, email)
	if err != nil {
		return interoptest.Customer{}, err
	}
	customers, err := s.withOrders(ctx, []db.Customer{c})
	if err != nil {
		return interoptest.Customer{}, err
	}
	return customers[0], nil
}

// Customers reads all customers with their orders.
func (s *Shop) Customers(ctx context.Context) ([]interoptest.Customer, error) {
	customers, err := s.queries.Customers(ctx)
	if err != nil {
		return nil, err
	}
	return s.withOrders(ctx, customers)
}

func (s *Shop) withOrders(ctx context.Context, customers []db.Customer) ([]interoptest.Customer, error) {
	ids := make([]int64, len(customers))
	for i, c := range customers {
		ids[i] = c.ID
	}
	orders, err := s.queries.OrdersOf(ctx, ids)
	if err != nil {
		return nil, err
	}
	of := map[int64][]interoptest.Order{}
	for _, o := range orders {
		order := interoptest.Order{Item: o.Item, Quantity: int(o.Quantity), Status: string(o.Status)}
		if err := json.Unmarshal(o.Options, &order.Options); err != nil {
			return nil, err
		}
		of[o.CustomerID] = append(of[o.CustomerID], order)
	}
	var all []interoptest.Customer
	for _, c := range customers {
		all = append(all, interoptest.Customer{Email: c.Email, Name: c.Name, Orders: of[c.ID]})
	}
	return all, nil
}

// Rename changes the name of a customer.
func (s *Shop) Rename(ctx context.Context, email, name string) error {
	return s.queries.Rename(ctx, db.RenameParams{Email: email, Name: name})
}

// Remove deletes a customer.
func (s *Shop) Remove(ctx context.Context, email string) error {
	return s.queries.Remove(ctx, email)
}

// AddUser adds to the table that all tenants share.
func (s *Shop) AddUser(ctx context.Context, email string) error {
	return s.queries.AddUser(ctx, email)
}

// Users reads from it.
func (s *Shop) Users(ctx context.Context) ([]interoptest.User, error) {
	users, err := s.queries.Users(ctx)
	var all []interoptest.User
	for _, u := range users {
		all = append(all, interoptest.User{TenantID: u.TenantID, Email: u.Email})
	}
	return all, err
}
