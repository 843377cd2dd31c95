package hammer

import (
	"errors"
	"io"
	"testing"

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
