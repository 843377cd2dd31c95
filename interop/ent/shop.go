// Package shop is the data layer of a shop, written with ent. Its client runs on a pool:
//
//	client := ent.NewClient(ent.Driver(entsql.OpenDB(dialect.Postgres, pool.DB()))) // entsql is entgo.io/ent/dialect/sql
//	...
//	orders, err := client.Order.Query().All(r.Context())
//
// Closing the client closes the *sql.DB and not the pool. Schema.Create needs the pool of the role that owns the schemas, and
// a transaction: the test shows it.
package shop

import (
	"context"
	"errors"

	"entgo.io/ent/dialect"
	entsql "entgo.io/ent/dialect/sql"

	"github.com/pgtenancy/pgtenancy"
	"github.com/pgtenancy/pgtenancy/interop/ent/ent"
	"github.com/pgtenancy/pgtenancy/interop/ent/ent/customer"
	"github.com/pgtenancy/pgtenancy/interop/ent/ent/order"
	"github.com/pgtenancy/pgtenancy/interop/ent/ent/user"
	"github.com/pgtenancy/pgtenancy/interop/internal/interoptest"
)

// Shop is the data layer.
type Shop struct{ client *ent.Client }

// New returns a shop on a pool.
func New(pool *pgtenancy.Pool) *Shop {
	return &Shop{ent.NewClient(ent.Driver(entsql.OpenDB(dialect.Postgres, pool.DB())))}
}

// InTx runs f in a transaction.
func (s *Shop) InTx(ctx context.Context, f func(interoptest.Shop) error) error {
	tx, err := s.client.Tx(ctx)
	if err != nil {
		return err
	}
	if err := f(&Shop{tx.Client()}); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}

// AddCustomer adds a customer.
func (s *Shop) AddCustomer(ctx context.Context, c interoptest.Customer) (int64, error) {
	row, err := s.client.Customer.Create().SetEmail(c.Email).SetName(c.Name).Save(ctx)
	if err != nil {
		return 0, err
	}
	return row.ID, nil
}

// PlaceOrder adds an order.
func (s *Shop) PlaceOrder(ctx context.Context, customerID int64, o interoptest.Order) error {
	create := s.client.Order.Create().SetCustomerID(customerID).SetItem(o.Item).SetQuantity(o.Quantity)
	if o.Options != nil {
		create.SetOptions(o.Options)
	}
	return create.Exec(ctx)
}

// Customer reads a customer with its orders.
func (s *Shop) Customer(ctx context.Context, email string) (interoptest.Customer, error) {
	c, err := s.client.Customer.Query().Where(customer.Email(email)).WithOrders().Only(ctx)
	if err != nil {
		return interoptest.Customer{}, err
	}
	return convert(c), nil
}

// Customers reads all customers with their orders.
func (s *Shop) Customers(ctx context.Context) ([]interoptest.Customer, error) {
	rows, err := s.client.Customer.Query().WithOrders(func(q *ent.OrderQuery) { q.Order(order.ByID()) }).Order(customer.ByEmail()).All(ctx)
	var all []interoptest.Customer
	for _, c := range rows {
		all = append(all, convert(c))
	}
	return all, err
}

func convert(c *ent.Customer) interoptest.Customer {
	converted := interoptest.Customer{Email: c.Email, Name: c.Name}
	for _, o := range c.Edges.Orders {
		converted.Orders = append(converted.Orders, interoptest.Order{
			Item: o.Item, Quantity: o.Quantity, Status: string(o.Status), Options: o.Options,
		})
	}
	return converted
}

// Rename changes the name of a customer.
func (s *Shop) Rename(ctx context.Context, email, name string) error {
	return s.client.Customer.Update().Where(customer.Email(email)).SetName(name).Exec(ctx)
}

// Remove deletes a customer.
func (s *Shop) Remove(ctx context.Context, email string) error {
	_, err := s.client.Customer.Delete().Where(customer.Email(email)).Exec(ctx)
	return err
}

// AddUser adds to the table that all tenants share.
func (s *Shop) AddUser(ctx context.Context, email string) error {
	return s.client.User.Create().SetEmail(email).Exec(ctx)
}

// Users reads from it.
func (s *Shop) Users(ctx context.Context) ([]interoptest.User, error) {
	rows, err := s.client.User.Query().Order(user.ByEmail()).All(ctx)
	var all []interoptest.User
	for _, u := range rows {
		all = append(all, interoptest.User{TenantID: u.TenantID, Email: u.Email})
	}
	return all, err
}
