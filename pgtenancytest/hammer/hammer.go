// Package hammer tries to make rows of one tenant reach another.
//
// [Run] sends random operations of many tenants through few connections at once, and does to them what production does
// sooner or later: contexts that end at any moment, backends that are terminated, timeouts, errors and panics inside
// transactions, SQL that sets search_path itself, migrations of tables in use. Every row that the hammer writes says
// whose it is, every row that it reads is checked, and at the end every table is:
//
//	func TestIsolation(t *testing.T) {
//		hammer.Run(t, pool, hammer.Config{Admin: databaseURL})
//	}
//
// The pool's role must be no superuser, whom row level security does not bind. By itself that tests the pool and what lies
// between it and the server: a pooler, a proxy, settings of a role. Operations
// of one's own in [Config.Ops] make it test one's own code as well: repositories, an ORM, jobs.
package hammer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgtenancy/pgtenancy"
)

// ErrLeak is what Check returns. An Op that returns it, wrapped or not, fails the run.
var ErrLeak = errors.New("hammer: a row of another tenant")

// Check returns ErrLeak with both names where got, the ID of a tenant that was read from a row, is not want's.
func Check(want pgtenancy.Tenant, got string) error {
	if got == want.ID() {
		return nil
	}
	return fmt.Errorf("%w: as %q, row of %q", ErrLeak, want.ID(), got)
}

// TB is what Run needs of testing.TB.
type TB interface {
	Helper()
	Context() context.Context
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// DB is what is hammered: a *pgtenancy.Pool, or anything else that runs statements as the tenant in their context. What
// has more of a Pool's methods (Acquire, For and Shared, DB, Stat) gets them hammered too.
type DB interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
	CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, src pgx.CopyFromSource) (int64, error)
	Begin(ctx context.Context) (pgx.Tx, error)
}

var _ DB = (*pgtenancy.Pool)(nil)

// Op is an operation of the caller's.
type Op struct {
	// Name names it in the report. Required.
	Name string

	// Weight says how often it runs. The built-in operations have 100 together. Defaults to 10.
	Weight int

	// Do runs it once. ctx carries tenant and may end at any moment; rnd is this worker's. It is called by many goroutines
	// at once, must check what it reads with Check, and must not hold a connection while it asks for another. Required.
	//
	// Errors other than ErrLeak are counted only, since the faults cause many, but an Op that never succeeds fails the run.
	// So does a panic.
	Do func(ctx context.Context, tenant pgtenancy.Tenant, rnd *rand.Rand) error
}

// Fault is a kind of trouble that the hammer makes.
type Fault string

// The faults.
const (
	Cancel    Fault = "cancel"    // contexts that have ended or end within milliseconds
	Terminate Fault = "terminate" // pg_terminate_backend and pg_cancel_backend of anyone in the database; without it no connection may be lost
	Timeout   Fault = "timeout"   // statement_timeout
	Fail      Fault = "fail"      // errors inside transactions and batches
	Panic     Fault = "panic"     // panics in callbacks, recovered by the caller
	Settings  Fault = "settings"  // SQL that sets search_path, the tenant's setting, or all of them
	Migrate   Fault = "migrate"   // columns that come, go and change their type
)

var faults = []Fault{Cancel, Terminate, Timeout, Fail, Panic, Settings, Migrate}

// Config configures Run. Only Admin is required.
type Config struct {
	// Admin is a connection string, past any pooler, for a role that may create tables in the schemas of Tenants, or schemas
	// where Tenants is nil; and that may end other backends, unless Without has Terminate. Everyone's backends in the database
	// are ended, so it should be the test's own. Required.
	Admin string

	// Tenants are whom to run as. The hammer makes tables, types and functions whose names begin with hammer_ in their schemas
	// and in the first shared schema, and drops them afterwards. Defaults to 200 tenants in schemas that the hammer creates.
	Tenants []pgtenancy.Tenant

	// Ops are operations of the caller's, in addition to the built-in ones.
	Ops []Op

	// Without are faults that are not wanted.
	Without []Fault

	// Workers is the number of goroutines. It should be well above the number of connections. Defaults to 64.
	Workers int

	// Duration is how long they work. The environment variable PGTENANCY_HAMMER_DURATION (as "10m") overrides it. Defaults to 2 s.
	Duration time.Duration

	// Seed starts the random choices of each worker. It does not repeat how the workers, the server and the network interleave. The
	// environment variable PGTENANCY_HAMMER_SEED overrides it. Defaults to a new one for each run, which the report names.
	Seed uint64
}

// The environment variables.
const (
	durationEnv = "PGTENANCY_HAMMER_DURATION"
	seedEnv     = "PGTENANCY_HAMMER_SEED"
)

func (cfg Config) withDefaults() (Config, error) {
	if cfg.Admin == "" {
		return cfg, errors.New("Config.Admin must be a connection string")
	}
	for _, op := range cfg.Ops {
		if op.Name == "" || op.Do == nil || op.Weight < 0 {
			return cfg, fmt.Errorf("Config.Ops: %q must have a name, a function, and no negative weight", op.Name)
		}
	}
	for _, f := range cfg.Without {
		if !slices.Contains(faults, f) {
			return cfg, fmt.Errorf("Config.Without: there is no fault %q", f)
		}
	}
	if cfg.Workers <= 0 {
		cfg.Workers = 64
	}
	if cfg.Duration <= 0 {
		cfg.Duration = 2 * time.Second
	}
	if s := os.Getenv(durationEnv); s != "" {
		var err error
		if cfg.Duration, err = time.ParseDuration(s); err != nil {
			return cfg, fmt.Errorf("%s: %w", durationEnv, err)
		}
	}
	for cfg.Seed == 0 {
		cfg.Seed = rand.Uint64()
	}
	if s := os.Getenv(seedEnv); s != "" {
		var err error
		if cfg.Seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			return cfg, fmt.Errorf("%s: %w", seedEnv, err)
		}
	}
	return cfg, nil
}

// Run hammers db as cfg says, and fails the test where
//
//   - a row was read, written or left in the wrong tenant, or had a value that was never written;
//   - something stayed of a transaction or batch that was rolled back;
//   - an operation failed with an error that none of the faults explains, or one of Config.Ops never succeeded;
//   - an operation did not return in time, or a connection was not given back;
//   - the database does not serve every tenant once the faults are over.
//
// It logs how often each operation ran and each fault was made, which errors came of them, and the seed. After a failure
// the tables stay.
func Run(t TB, db DB, cfg Config) {
	t.Helper()
	cfg, err := cfg.withDefaults()
	if err != nil {
		t.Fatalf("hammer: %v", err)
	}
	h, err := newHammer(t.Context(), db, cfg)
	if err != nil {
		t.Fatalf("hammer: %v", err)
	}
	if err := h.create(t.Context()); err != nil {
		t.Fatalf("hammer: create the tables: %v", err)
	}
	if err := h.first(t.Context()); err != nil {
		t.Fatalf("hammer: before anything was hammered: %v", err)
	}
	h.work(t.Context())
	h.afterwards(t.Context())
	failed := h.report(t)
	if failed {
		return
	}
	if err := h.drop(t.Context()); err != nil {
		t.Errorf("hammer: drop the tables: %v", err)
	}
}
