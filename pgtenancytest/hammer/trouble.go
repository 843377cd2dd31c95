package hammer

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
)

// application is the application_name of the hammer's own connections, which it does not end.
const application = "pgtenancy hammer"

// connect returns a connection of the admin's.
func (h *hammer) connect(ctx context.Context) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(h.cfg.Admin)
	if err != nil {
		return nil, err
	}
	cfg.RuntimeParams["application_name"] = application
	cfg.DefaultQueryExecMode = pgx.QueryExecModeExec
	return pgx.ConnectConfig(ctx, cfg)
}

// trouble calls f with a connection of the admin's again and again, about every interval, until ctx ends. An error of f's fails
// the run.
func (h *hammer) trouble(ctx context.Context, fault Fault, stream uint64, every time.Duration, f func(context.Context, *pgx.Conn, *rand.Rand) error) {
	rnd := rand.New(rand.NewPCG(h.cfg.Seed, stream))
	conn, err := h.connect(ctx)
	if err != nil {
		if ctx.Err() == nil {
			h.fail("%s: %v", fault, err)
		}
		return
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }() // it was only used to make trouble
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Duration(rnd.Int64N(int64(2 * every)))):
		}
		// Not on ctx: a statement that is cut off half way would look like a failure.
		if err := f(context.WithoutCancel(ctx), conn, rnd); err != nil {
			h.fail("%s: %v", fault, err)
			return
		}
	}
}

// terminate ends a backend, or what it is doing.
func (h *hammer) terminate(ctx context.Context, conn *pgx.Conn, rnd *rand.Rand) error {
	signal := "pg_terminate_backend"
	if rnd.IntN(2) == 0 {
		signal = "pg_cancel_backend"
	}
	var n int
	err := conn.QueryRow(ctx, fmt.Sprintf(`select count(*) from (
		select %s(pid) from (
			select pid from pg_stat_activity
			where datname = current_database() and backend_type = 'client backend' and application_name <> $1
			order by random() limit 1) victim) ended`, signal), application).Scan(&n)
	h.made(Terminate, n)
	return err
}

// migrate changes the table of a tenant.
func (h *hammer) migrate(ctx context.Context, conn *pgx.Conn, rnd *rand.Rand) error {
	t := h.anyTenant(rnd)
	schema := quote(t.Schema())
	var sql string
	switch rnd.IntN(5) {
	case 0:
		sql = fmt.Sprintf("alter table %s.hammer_rows add column if not exists extra text default %s", schema, literal(t.ID()))
	case 1:
		sql = fmt.Sprintf("alter table %s.hammer_rows drop column if exists extra", schema)
	case 2, 3:
		sql = fmt.Sprintf("alter table %s.hammer_rows alter column amount type %s", schema, amountTypes[rnd.IntN(len(amountTypes))])
	case 4: // the same name, another OID
		sql = fmt.Sprintf(`alter table %[1]s.hammer_rows alter column kind drop default, alter column kind type text;
			drop type %[1]s.hammer_kind;
			create type %[1]s.hammer_kind as enum (%[2]s);
			alter table %[1]s.hammer_rows alter column kind type %[1]s.hammer_kind using kind::%[1]s.hammer_kind,
				alter column kind set default %[2]s`, schema, literal(t.ID()))
	}
	err := exec(ctx, conn, "set lock_timeout = '200ms'; "+sql)
	switch code(err) {
	case "":
		if err == nil {
			h.made(Migrate, 1)
		}
		return err
	case "55P03", "40P01", "2BP01":
		return nil // the table was in use for too long, or the type by a temporary table
	}
	return err
}
