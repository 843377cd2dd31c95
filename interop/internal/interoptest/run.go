package interoptest

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgtenancy/pgtenancy"
)

// Each calls f with a database on a direct connection, and through each PgBouncer that there is.
func Each(t *testing.T, f func(*testing.T, *Fleet), opts ...Option) {
	t.Run("direct", func(t *testing.T) { f(t, open(t, nil, opts)) })
	t.Run("PgBouncer", func(t *testing.T) {
		bouncers := findBouncers(t)
		if len(bouncers) == 0 {
			t.Skipf("no pgbouncer in PATH, /usr/sbin or %s", bouncersEnv)
		}
		for _, b := range bouncers {
			t.Run(b.version, func(t *testing.T) { f(t, open(t, b, opts)) })
		}
	})
}

// Test tests a data layer, on both.
func Test(t *testing.T, open func(*testing.T, *pgtenancy.Pool) Shop, opts ...Option) {
	Each(t, func(t *testing.T, fleet *Fleet) {
		shop := open(t, fleet.Pool())
		tests := []struct {
			name string
			test func(t *testing.T, shop Shop, fleet *Fleet, acme, globex context.Context)
		}{
			{"CRUD", testCRUD},
			{"Tx", testTx},
			{"SharedTable", testSharedTable},
			{"Errors", testErrors},
			{"Concurrent", testConcurrent},
		}
		for i, tt := range tests {
			t.Run(tt.name, func(t *testing.T) { // with two tenants of its own
				tt.test(t, shop, fleet, fleet.As(t, fmt.Sprintf("acme-%d", i)), fleet.As(t, fmt.Sprintf("globex-%d", i)))
			})
		}
	}, opts...)
}

// testCRUD does the same as two tenants, a statement at a time: on one connection, while the other connection is free, and on
// the other, while a transaction holds the first.
func testCRUD(t *testing.T, shop Shop, _ *Fleet, acme, globex context.Context) {
	both := func(what string, f func(ctx context.Context, tenant string) error) {
		t.Helper()
		check(t, what+" as acme", f(acme, "acme"))
		check(t, what+" as globex", f(globex, "globex"))
	}
	crud := func() {
		ids := map[string]int64{}
		both("AddCustomer", func(ctx context.Context, tenant string) (err error) {
			ids[tenant], err = shop.AddCustomer(ctx, Customer{Email: "ann@example.com", Name: "Ann of " + tenant})
			return err
		})
		both("PlaceOrder", func(ctx context.Context, tenant string) error {
			order := Order{Item: tenant + "'s anvil", Quantity: 2, Options: map[string]string{"wrapped by": tenant}}
			return shop.PlaceOrder(ctx, ids[tenant], order)
		})
		want := func(tenant, name string) Customer {
			return Customer{Email: "ann@example.com", Name: name, Orders: []Order{
				{Item: tenant + "'s anvil", Quantity: 2, Status: "open", Options: map[string]string{"wrapped by": tenant}},
			}}
		}
		both("Customer", func(ctx context.Context, tenant string) error {
			got, err := shop.Customer(ctx, "ann@example.com")
			checkEqual(t, "the customer", got, want(tenant, "Ann of "+tenant))
			return err
		})
		both("Rename", func(ctx context.Context, tenant string) error {
			return shop.Rename(ctx, "ann@example.com", "Anna of "+tenant)
		})
		both("Customers", func(ctx context.Context, tenant string) error {
			got, err := shop.Customers(ctx)
			checkEqual(t, "the customers", got, []Customer{want(tenant, "Anna of "+tenant)})
			return err
		})
		check(t, "Remove as acme", shop.Remove(acme, "ann@example.com"))
		both("Customers, of which acme has none now", func(ctx context.Context, tenant string) error {
			got, err := shop.Customers(ctx)
			checkEqual(t, "the number of customers", len(got), map[string]int{"acme": 0, "globex": 1}[tenant])
			return err
		})
		check(t, "Remove as globex", shop.Remove(globex, "ann@example.com"))
	}
	for range 3 { // a statement is another one when it is prepared
		crud()
	}
	check(t, "InTx", shop.InTx(acme, func(tx Shop) error {
		_, err := tx.Customers(acme)
		for range 3 {
			crud()
		}
		return err
	}))
}

// testTx has a transaction of each tenant open at once, on a connection each.
func testTx(t *testing.T, shop Shop, _ *Fleet, acme, globex context.Context) {
	add := func(ctx context.Context, shop Shop, email string) {
		t.Helper()
		id, err := shop.AddCustomer(ctx, Customer{Email: email})
		if err == nil {
			err = shop.PlaceOrder(ctx, id, Order{Item: "anvil", Quantity: 1})
		}
		check(t, "add "+email, err)
	}
	emails := func(ctx context.Context, shop Shop) (emails []string) {
		t.Helper()
		customers, err := shop.Customers(ctx)
		check(t, "Customers", err)
		for _, c := range customers {
			emails = append(emails, c.Email)
		}
		return emails
	}

	undo := errors.New("undo")
	check(t, "the transaction that commits", shop.InTx(acme, func(a Shop) error {
		err := shop.InTx(globex, func(g Shop) error {
			for i := range 3 {
				add(acme, a, fmt.Sprintf("acme-%d@example.com", i))
				add(globex, g, fmt.Sprintf("globex-%d@example.com", i))
			}
			checkEqual(t, "what acme sees", emails(acme, a), []string{"acme-0@example.com", "acme-1@example.com", "acme-2@example.com"})
			checkEqual(t, "what globex sees", emails(globex, g), []string{"globex-0@example.com", "globex-1@example.com", "globex-2@example.com"})

			// A transaction keeps its tenant: a context without one is fine, one of another tenant is not.
			checkEqual(t, "customers without a tenant in the context", len(emails(t.Context(), g)), 3)
			_, err := g.Customers(acme)
			checkIs(t, "acme's context in globex's transaction", err, pgtenancy.ErrTenantMismatch)
			return undo
		})
		checkIs(t, "the transaction that is rolled back", err, undo)
		return nil
	}))
	checkEqual(t, "acme's customers after the commit", len(emails(acme, shop)), 3)
	checkEqual(t, "globex's customers after the rollback", len(emails(globex, shop)), 0)
}

// testSharedTable writes to and reads from a table that both tenants share, under row level security.
func testSharedTable(t *testing.T, shop Shop, _ *Fleet, acme, globex context.Context) {
	check(t, "AddUser", shop.AddUser(acme, "ann@example.com"))
	check(t, "AddUser", shop.AddUser(acme, "art@example.com"))
	check(t, "AddUser", shop.AddUser(globex, "ann@example.com")) // unique within each tenant
	for ctx, want := range map[context.Context][]string{acme: {"ann@example.com", "art@example.com"}, globex: {"ann@example.com"}} {
		tenant, _ := pgtenancy.TenantFromContext(ctx)
		users, err := shop.Users(ctx)
		check(t, "Users", err)
		var got []string
		for _, u := range users {
			got = append(got, u.Email)
			checkEqual(t, "whose user it is", u.TenantID, tenant.ID())
		}
		checkEqual(t, "users of "+tenant.ID(), got, want)
	}
}

// testErrors checks that errors come through the tool such that errors.Is and errors.As find them.
func testErrors(t *testing.T, shop Shop, fleet *Fleet, acme, globex context.Context) {
	ann := Customer{Email: "ann@example.com", Name: "Ann"}
	for _, ctx := range []context.Context{acme, globex} {
		_, err := shop.AddCustomer(ctx, ann)
		check(t, "AddCustomer", err)
	}
	unique := func(what string, err error) {
		t.Helper()
		var pgErr *pgconn.PgError
		if !errors.As(err, &pgErr) || pgErr.Code != "23505" || pgErr.ConstraintName != "customers_email_key" {
			t.Errorf("%s: %v, want the unique violation of customers_email_key", what, err)
		}
	}
	_, err := shop.AddCustomer(acme, ann)
	unique("a second Ann", err)
	unique("a second Ann, in a transaction", shop.InTx(acme, func(tx Shop) error {
		_, err := tx.AddCustomer(acme, ann)
		return err
	}))

	// Without a tenant there is nothing.
	none := t.Context()
	_, err = shop.AddCustomer(none, ann)
	checkIs(t, "AddCustomer without a tenant", err, pgtenancy.ErrNoTenant)
	_, err = shop.Customer(none, ann.Email)
	checkIs(t, "Customer without a tenant", err, pgtenancy.ErrNoTenant)
	_, err = shop.Customers(none)
	checkIs(t, "Customers without a tenant", err, pgtenancy.ErrNoTenant)
	checkIs(t, "Rename without a tenant", shop.Rename(none, ann.Email, "Anna"), pgtenancy.ErrNoTenant)
	checkIs(t, "Remove without a tenant", shop.Remove(none, ann.Email), pgtenancy.ErrNoTenant)
	_, err = shop.Users(none)
	checkIs(t, "Users without a tenant", err, pgtenancy.ErrNoTenant)
	checkIs(t, "InTx without a tenant", shop.InTx(none, func(Shop) error {
		t.Error("there is a transaction without a tenant")
		return nil
	}), pgtenancy.ErrNoTenant)

	// A tenant without a schema is not found, and its statements do not fall through to public.
	ghost, err := pgtenancy.NewTenant(pgtenancy.TenantInfo{ID: "ghost"})
	check(t, "NewTenant", err)
	_, err = shop.Customers(pgtenancy.WithTenant(none, ghost))
	checkIs(t, "Customers of a tenant without a schema", err, pgtenancy.ErrTenantNotFound)

	// A context that has ended ends the statement.
	ended, cancel := context.WithCancel(acme)
	cancel()
	_, err = shop.Customers(ended)
	checkIs(t, "Customers with a context that has ended", err, context.Canceled)

	// After all that it works.
	for _, ctx := range []context.Context{acme, globex} {
		got, err := shop.Customers(ctx)
		check(t, "Customers", err)
		checkEqual(t, "the customers", got, []Customer{ann})
	}
	fleet.checkIdle(t)
}

// testConcurrent has more goroutines than connections. Each is a tenant's, and does a bit of everything.
func testConcurrent(t *testing.T, shop Shop, _ *Fleet, acme, globex context.Context) {
	const goroutines, rounds = 16, 12
	undo := errors.New("undo")
	var wg sync.WaitGroup
	for g := range goroutines {
		ctx, name := acme, "acme"
		if g%2 == 1 {
			ctx, name = globex, "globex"
		}
		round := func(i int) error {
			email := fmt.Sprintf("ann-%d-%d@example.com", g/2, i) // both tenants have her
			order := Order{Item: name, Quantity: i + 1, Status: "open", Options: map[string]string{"of": name}}
			id, err := shop.AddCustomer(ctx, Customer{Email: email, Name: name})
			if err != nil {
				return fmt.Errorf("AddCustomer: %w", err)
			}
			if err := shop.InTx(ctx, func(tx Shop) error {
				if err := tx.PlaceOrder(ctx, id, order); err != nil {
					return err
				}
				return tx.Rename(ctx, email, name+"!")
			}); err != nil {
				return fmt.Errorf("the transaction that commits: %w", err)
			}
			if err := shop.InTx(ctx, func(tx Shop) error {
				if err := tx.Remove(ctx, email); err != nil {
					return err
				}
				return undo
			}); !errors.Is(err, undo) {
				return fmt.Errorf("the transaction that is rolled back: %w", err)
			}
			got, err := shop.Customer(ctx, email)
			if err != nil {
				return fmt.Errorf("Customer: %w", err)
			}
			checkEqual(t, "the customer", got, Customer{Email: email, Name: name + "!", Orders: []Order{order}})
			if i%4 > 0 {
				return nil
			}
			all, err := shop.Customers(ctx)
			for _, c := range all {
				if c.Name != name && c.Name != name+"!" {
					t.Errorf("%s sees %v", name, c)
				}
			}
			return err
		}
		wg.Go(func() {
			for i := range rounds {
				if err := round(i); err != nil {
					t.Errorf("as %s: %v", name, err)
				}
			}
		})
	}
	wg.Wait()
	for _, ctx := range []context.Context{acme, globex} {
		all, err := shop.Customers(ctx)
		check(t, "Customers", err)
		checkEqual(t, "the number of customers", len(all), goroutines/2*rounds)
	}
}

func check(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

func checkIs(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: error %v, want %v", what, err, want)
	}
}

func checkEqual[T any](t *testing.T, what string, got, want T) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s: %+v, want %+v", what, got, want)
	}
}
