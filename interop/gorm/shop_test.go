package shop_test

import (
	"context"
	"errors"
	"testing"

	"gorm.io/driver/postgres"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/pgtenancy/pgtenancy"
	shop "github.com/pgtenancy/pgtenancy/interop/gorm"
	"github.com/pgtenancy/pgtenancy/interop/internal/interoptest"
)

func Test(t *testing.T) {
	tests := map[string]func(*gorm.Config){
		"defaults": func(*gorm.Config) {},
		"options": func(c *gorm.Config) {
			c.SkipDefaultTransaction = true
			c.PrepareStmt = true
			c.TranslateError = true
		},
	}
	for name, set := range tests {
		t.Run(name, func(t *testing.T) {
			interoptest.Test(t, func(t *testing.T, pool *pgtenancy.Pool) interoptest.Shop {
				cfg := &gorm.Config{Logger: logger.Discard}
				set(cfg)
				s, err := shop.New(pool, cfg)
				if err != nil {
					t.Fatal(err)
				}
				return s
			})
		})
	}
}

// A transaction in a transaction is a savepoint.
func TestNestedTransaction(t *testing.T) {
	interoptest.Each(t, func(t *testing.T, fleet *interoptest.Fleet) {
		db := open(t, fleet.Pool())
		for _, ctx := range []context.Context{fleet.As(t, "acme"), fleet.As(t, "globex")} {
			err := db.WithContext(ctx).Transaction(func(tx *gorm.DB) error {
				ann := shop.Customer{Email: "ann@example.com"}
				if err := tx.Create(&ann).Error; err != nil {
					return err
				}
				err := tx.Transaction(func(tx *gorm.DB) error {
					return tx.Create(&shop.Customer{Email: ann.Email}).Error
				})
				if !errors.Is(err, gorm.ErrDuplicatedKey) { // because of TranslateError
					t.Errorf("a second Ann: %v", err)
				}
				return tx.Create(&shop.Order{CustomerID: ann.ID, Item: "anvil", Quantity: 1, Options: map[string]string{}}).Error
			})
			if err != nil {
				t.Error(err)
			}
			var customers []shop.Customer
			if err := db.WithContext(ctx).Preload("Orders").Find(&customers).Error; err != nil || len(customers) != 1 || len(customers[0].Orders) != 1 {
				t.Errorf("customers %v, %v", customers, err)
			}
		}
	})
}

// What changes the session of a connection is refused, and what is local to a transaction works in one.
func TestSet(t *testing.T) {
	fleet := interoptest.Open(t)
	db := open(t, fleet.Pool()).WithContext(fleet.As(t, "acme"))
	const session, local = "set statement_timeout = '1h'", "set local statement_timeout = '1h'"
	if err := db.Exec(session).Error; !errors.Is(err, pgtenancy.ErrStatementRefused) {
		t.Errorf("%s: %v", session, err)
	}
	if err := db.Connection(func(tx *gorm.DB) error { // which is no session either
		return tx.Exec(session).Error
	}); !errors.Is(err, pgtenancy.ErrStatementRefused) {
		t.Errorf("%s in Connection: %v", session, err)
	}
	var timeout string
	if err := db.Transaction(func(tx *gorm.DB) error {
		if err := tx.Exec(local).Error; err != nil {
			return err
		}
		return tx.Raw("show statement_timeout").Scan(&timeout).Error
	}); err != nil || timeout != "1h" {
		t.Errorf("%s: %v, then %q", local, err, timeout)
	}
}

// Product is a table that GORM makes.
type Product struct {
	ID    int64
	Name  string `gorm:"size:40;uniqueIndex"`
	Price int
}

// ProductV2 is what becomes of it.
type ProductV2 struct {
	ID    int64
	Name  string `gorm:"size:80;uniqueIndex"`
	Price int64
	Stock int `gorm:"not null;default:1"`
}

func (ProductV2) TableName() string { return "products" }

// AutoMigrate works as the role that owns the schemas, for one tenant at a time. A table that all tenants share must not be in it: each
// tenant would get one of its own, which hides the shared one.
func TestAutoMigrate(t *testing.T) {
	fleet := interoptest.Open(t)
	// With no DriverName, or "pgx", it would send a statement by the simple protocol, which a Pool refuses.
	owner, err := gorm.Open(postgres.New(postgres.Config{Conn: fleet.OwnerPool(t).DB(), DriverName: "pgtenancy"}), config())
	if err != nil {
		t.Fatal(err)
	}
	app := open(t, fleet.Pool())
	acme, globex := fleet.As(t, "acme"), fleet.As(t, "globex")

	for range 2 {
		if err := owner.WithContext(acme).AutoMigrate(&Product{}); err != nil {
			t.Error(err)
		}
	}
	if err := app.WithContext(acme).Create(&Product{Name: "anvil"}).Error; err != nil {
		t.Error(err)
	}
	if owner.WithContext(globex).Migrator().HasTable("products") {
		t.Error("globex has acme's table")
	}
	if err := owner.WithContext(globex).AutoMigrate(&Product{}); err != nil {
		t.Error(err)
	}

	for range 2 {
		if err := owner.WithContext(acme).AutoMigrate(&ProductV2{}); err != nil {
			t.Error(err)
		}
	}
	var anvil ProductV2
	if err := app.WithContext(acme).First(&anvil).Error; err != nil || anvil.Name != "anvil" || anvil.Stock != 1 {
		t.Errorf("acme's product: %v, %v", anvil, err)
	}
	if owner.WithContext(globex).Migrator().HasColumn(&ProductV2{}, "stock") {
		t.Error("globex has acme's column")
	}
	if err := owner.AutoMigrate(&Product{}); !errors.Is(err, pgtenancy.ErrNoTenant) {
		t.Errorf("AutoMigrate without a tenant: %v", err)
	}
}

func open(t *testing.T, pool *pgtenancy.Pool) *gorm.DB {
	t.Helper()
	db, err := gorm.Open(postgres.New(postgres.Config{Conn: pool.DB()}), config())
	if err != nil {
		t.Fatal(err)
	}
	return db
}

// config does not log errors, which are on purpose here.
func config() *gorm.Config {
	return &gorm.Config{SkipDefaultTransaction: true, TranslateError: true, Logger: logger.Discard}
}
