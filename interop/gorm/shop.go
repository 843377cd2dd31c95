// Package shop is the data layer of a shop, written with GORM. It takes its connections from a pool:
//
//	db, err := gorm.Open(postgres.New(postgres.Config{Conn: pool.DB()}), &gorm.Config{SkipDefaultTransaction: true})
//	...
//	err = db.WithContext(r.Context()).Find(&orders).Error
//
// A query without WithContext has no tenant, and is pgtenancy.ErrNoTenant. SkipDefaultTransaction saves two of the three
// round trips of a Create, Update or Delete. AutoMigrate needs the pool of the role that owns the schemas, and a DriverName
// in the postgres.Config: the test shows it.
package shop

import (
	"context"

	"gorm.io/driver/postgres"
	"gorm.io/gorm"

	"github.com/pgtenancy/pgtenancy"
	"github.com/pgtenancy/pgtenancy/interop/internal/interoptest"
)

// Customer is a row of the tenant's customers.
type Customer struct {
	ID     int64
	Email  string
	Name   string
	Orders []Order
}

// Order is a row of the tenant's orders.
type Order struct {
	ID         int64
	CustomerID int64
	Item       string
	Quantity   int
	Status     string            `gorm:"default:open"` // an enum of the tenant's own
	Options    map[string]string `gorm:"serializer:json"`
}

// User is a row of the users that all tenants share. The database knows whose it is.
type User struct {
	ID       int64
	TenantID string `gorm:"->"`
	Email    string
}

// Shop is the data layer.
type Shop struct{ db *gorm.DB }

// New returns a shop on a pool.
func New(pool *pgtenancy.Pool, cfg *gorm.Config) (*Shop, error) {
	db, err := gorm.Open(postgres.New(postgres.Config{Conn: pool.DB()}), cfg)
	if err != nil {
		return nil, err
	}
	return &Shop{db}, nil
}

// InTx runs f in a transaction.
func (s *Shop) InTx(ctx context.Context, f func(interoptest.Shop) error) error {
	return s.db.WithContext(ctx).Transaction(func(tx *gorm.DB) error {
		return f(&Shop{tx})
	})
}

// AddCustomer adds a customer.
func (s *Shop) AddCustomer(ctx context.Context, c interoptest.Customer) (int64, error) {
	row := Customer{Email: c.Email, Name: c.Name}
	err := s.db.WithContext(ctx).Create(&row).Error
	return row.ID, err
}

// PlaceOrder adds an order.
func (s *Shop) PlaceOrder(ctx context.Context, customerID int64, o interoptest.Order) error {
	row := Order{CustomerID: customerID, Item: o.Item, Quantity: o.Quantity, Options: o.Options}
	if o.Options == nil {
		row.Options = map[string]string{}
	}
	return s.db.WithContext(ctx).Create(&row).Error
}

// Customer reads a customer with its orders.
func (s *Shop) Customer(ctx context.Context, email string) (interoptest.Customer, error) {
	var c Customer
	err := s.db.WithContext(ctx).Preload("Orders").Where("email = ?", email).First(&c).Error
	return c.shop(), err
}

// Customers reads all customers with their orders.
func (s *Shop) Customers(ctx context.Context) ([]interoptest.Customer, error) {
	var rows []Customer
	err := s.db.WithContext(ctx).Preload("Orders").Order("email").Find(&rows).Error
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
	return s.db.WithContext(ctx).Model(&Customer{}).Where("email = ?", email).Update("name", name).Error
}

// Remove deletes a customer.
func (s *Shop) Remove(ctx context.Context, email string) error {
	return s.db.WithContext(ctx).Where("email = ?", email).Delete(&Customer{}).Error
}

// AddUser adds to the table that all tenants share.
func (s *Shop) AddUser(ctx context.Context, email string) error {
	return s.db.WithContext(ctx).Create(&User{Email: email}).Error
}

// Users reads from it.
func (s *Shop) Users(ctx context.Context) ([]interoptest.User, error) {
	var rows []User
	err := s.db.WithContext(ctx).Order("email").Find(&rows).Error
	var all []interoptest.User
	for _, u := range rows {
		all = append(all, interoptest.User{TenantID: u.TenantID, Email: u.Email})
	}
	return all, err
}
