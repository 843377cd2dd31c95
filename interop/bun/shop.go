// Package shop is the data layer of a shop, written with Bun. Its DB runs on a pool:
//
//	db := bun.NewDB(pool.DB(), pgdialect.New())
//	...
//	err := db.NewSelect().Model(&orders).Scan(r.Context())
//
// Bun writes arguments into the text of a statement. No two texts are then the same, so that there is nothing to prepare:
// set default_query_exec_mode=exec in the connection string.
package shop

import (
	"context"
	"database/sql"

	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/pgdialect"

	"github.com/pgtenancy/pgtenancy"
	"github.com/pgtenancy/pgtenancy/interop/internal/interoptest"
)

// Customer is a row of the tenant's customers.
type Customer struct {
	ID     int64 `bun:",pk,autoincrement"`
	Email  string
	Name   string
	Orders []*Order `bun:"rel:has-many,join:id=customer_id"`
}

// Order is a row of the tenant's orders.
type Order struct {
	ID         int64 `bun:",pk,autoincrement"`
	CustomerID int64
	Item       string
	Quantity   int
	Status     string            `bun:",nullzero,default:'open'"` // an enum of the tenant's own
	Options    map[string]string `bun:"type:jsonb,nullzero,default:'{}'"`
}

// User is a row of the users that all tenants share. The database knows whose it is.
type User struct {
	ID       int64  `bun:",pk,autoincrement"`
	TenantID string `bun:",nullzero"`
	Email    string
}

// Shop is the data layer.
type Shop struct{ db bun.IDB }

// New returns a shop on a pool.
func New(pool *pgtenancy.Pool) *Shop { return &Shop{bun.NewDB(pool.DB(), pgdialect.New())} }

// InTx runs f in a transaction.
func (s *Shop) InTx(ctx context.Context, f func(interoptest.Shop) error) error {
	return s.db.RunInTx(ctx, &sql.TxOptions{}, func(_ context.Context, tx bun.Tx) error {
		return f(&Shop{tx})
	})
}

// AddCustomer adds a customer.
func (s *Shop) AddCustomer(ctx context.Context, c interoptest.Customer) (int64, error) {
	row := Customer{Email: c.Email, Name: c.Name}
	_, err := s.db.NewInsert().Model(&row).Exec(ctx)
	return row.ID, err
}

// PlaceOrder adds an order.
func (s *Shop) PlaceOrder(ctx context.Context, customerID int64, o interoptest.Order) error {
	row := Order{CustomerID: customerID, Item: o.Item, Quantity: o.Quantity, Options: o.Options}
	_, err := s.db.NewInsert().Model(&row).Exec(ctx)
	return err
}

// Customer reads a customer with its orders.
func (s *Shop) Customer(ctx context.Context, email string) (interoptest.Customer, error) {
	var c Customer
	err := s.db.NewSelect().Model(&c).Relation("Orders").Where("email = ?", email).Scan(ctx)
	return c.shop(), err
}

// Customers reads all customers with their orders.
func (s *Shop) Customers(ctx context.Context) ([]interoptest.Customer, error) {
	var rows []Customer
	err := s.db.NewSelect().Model(&rows).Relation("Orders").Order("email").Scan(ctx)
	var all []interoptest.Customer
	for _, c := range rows {
		all = append(all, c.shop())
	}
	return all, err
}

func (c *Customer) shop() interoptest.Customer {
	customer := interoptest.Customer{Email: c.Email, Name: c.Name}
	for _, o := range c.Orders {
		customer.Orders = append(customer.Orders, interoptest.Order{
			Item: o.Item, Quantity: o.Quantity, Status: o.Status, Options: o.Options,
		})
	}
	return customer
}

// Rename changes the name of a customer.
func (s *Shop) Rename(ctx context.Context, email, name string) error {
	_, err := s.db.NewUpdate().Model((*Customer)(nil)).Set("name = ?", name).Where("email = ?", email).Exec(ctx)
	return err
}

// Remove deletes a customer.
func (s *Shop) Remove(ctx context.Context, email string) error {
	_, err := s.db.NewDelete().Model((*Customer)(nil)).Where("email = ?", email).Exec(ctx)
	return err
}

// AddUser adds to the table that all tenants share.
func (s *Shop) AddUser(ctx context.Context, email string) error {
	_, err := s.db.NewInsert().Model(&User{Email: email}).Exec(ctx)
	return err
}

// Users reads from it.
func (s *Shop) Users(ctx context.Context) ([]interoptest.User, error) {
	var rows []User
	err := s.db.NewSelect().Model(&rows).Order("email").Scan(ctx)
	var all []interoptest.User
	for _, u := range rows {
		all = append(all, interoptest.User{TenantID: u.TenantID, Email: u.Email})
	}
	return all, err
}
