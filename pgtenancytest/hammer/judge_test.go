package hammer

import (
	"context"
	"errors"
	"io"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy"
)

// A row that breaks off is no leak, unless it has what belongs to another.
func TestJudge(t *testing.T) {
	var tenants []pgtenancy.Tenant
	for _, id := range []string{"acme", "globex"} {
		tenant, err := pgtenancy.NewTenant(pgtenancy.TenantInfo{ID: id})
		if err != nil {
			t.Fatal(err)
		}
		tenants = append(tenants, tenant)
	}
	c := &call{hammer: &hammer{tenants: tenants}, tenant: tenants[0]}
	tests := []struct {
		name string
		err  error
		end  error
		leak bool
	}{
		{"another tenant's row", c.check("globex", "globex", "globex", int64(amount)), nil, true},
		{"another tenant's row, and the connection is lost", c.check("globex", "gloE\x00", "", nil), io.ErrUnexpectedEOF, true},
		{"the decoy's row, and the connection is lost", c.check("nobody", "nobody", "nobody", "4200"), io.ErrUnexpectedEOF, true},
		{"a tenant's row where there is no tenant", c.expectAll(nobody, "acme"), io.ErrUnexpectedEOF, true},
		{"a row that breaks off", c.check("acme", "acE\x00", "", nil), io.ErrUnexpectedEOF, false},
		{"nobody's row that breaks off", c.expectAll(nobody, nobody, "nobE\x00"), io.ErrUnexpectedEOF, false},
		{"a row that breaks off, while all is well", c.check("acme", "acE\x00", "", nil), nil, true},
		{"a row that breaks off before another error", c.check("acme", "acE\x00", "", nil), errors.New("sorry"), true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := c.judge(tt.err, tt.end)
			if errors.Is(got, ErrLeak) != tt.leak {
				t.Errorf("error %v, want a leak: %v", got, tt.leak)
			}
		})
	}
	for _, value := range []any{int32(4200), int64(4200), 4200.0, "4200"} {
		if err := checkAmount(value); err != nil {
			t.Error(err)
		}
	}
	for _, value := range []any{nil, int64(4201), 2.075e-320, "420"} {
		if err := checkAmount(value); !errors.Is(err, errValue) {
			t.Errorf("%v: error %v, want a wrong value", value, err)
		}
	}
}

// cut is a DB whose first row breaks off.
type cut struct {
	DB
	err error // of its first row
}

func (d *cut) QueryRow(context.Context, string, ...any) pgx.Row {
	row := cutRow{d.err}
	d.err = nil
	return row
}

type cutRow struct{ err error }

func (r cutRow) Scan(dest ...any) error {
	for i, v := range []string{"tenant_acme", "acme", "app", "tenant_acme"} {
		*dest[i].(*string) = v
	}
	return r.err
}

func TestServe(t *testing.T) {
	acme, err := pgtenancy.NewTenant(pgtenancy.TenantInfo{ID: "acme"})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		err    error
		pooled bool
		served bool
	}{
		{"the connection is lost", io.ErrUnexpectedEOF, false, true},
		{"a row breaks off behind a pooler", pgx.ScanArgError{Err: errors.New("array claims too much")}, true, true},
		{"a row breaks off without a pooler", pgx.ScanArgError{Err: errors.New("array claims too much")}, false, false},
		{"another error", errors.New("sorry"), true, false},
	} {
		h := &hammer{db: &cut{err: tt.err}, pooled: tt.pooled, value: pgtenancy.Tenant.ID, setting: pgtenancy.SettingDefault}
		if err := h.serve(t.Context(), acme); (err == nil) != tt.served {
			t.Errorf("%s: error %v, want it served: %v", tt.name, err, tt.served)
		}
	}
}
