package hammer

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pgtenancy/pgtenancy"
)

// nobody is whose the rows of the decoy are.
const nobody = "nobody"

// errValue says that a value was read that nobody wrote.
var errValue = errors.New("hammer: a wrong value")

// builtins are the built-in operations.
var builtins = []operation{
	{name: "insert", weight: 10, do: func(c *call) error { return c.insert(c.target(), kept) }},
	{name: "update", weight: 4, do: func(c *call) error { return c.update(c.target(), kept) }},
	{name: "delete", weight: 3, do: func(c *call) error { return c.delete(c.target()) }},
	{name: "query", weight: 13, do: func(c *call) error { return c.query(c.target()) }},
	{name: "big", weight: 2, do: func(c *call) error { return c.big(c.target()) }},
	{name: "whose", weight: 8, do: func(c *call) error { return c.whose(c.target()) }},
	{name: "peek", weight: 5, do: func(c *call) error { return c.peek(c.target()) }, needs: hasShared},
	{name: "batch", weight: 8, do: (*call).batchAlone},
	{name: "copy", weight: 3, do: func(c *call) error { return c.copy(c.target(), kept) }},
	{name: "shared", weight: 8, do: func(c *call) error { return c.sharedTable(c.target(), kept) }, needs: hasShared},
	{name: "nobody", weight: 2, do: (*call).nobody, needs: func(h *hammer) bool { return h.bind != nil && hasShared(h) }},
	{name: "missing", weight: 2, do: (*call).withoutSchema, needs: hasShared},
	{name: "tx", weight: 14, do: func(c *call) error { return c.transaction(c.target()) }},
	{name: "session", weight: 3, do: (*call).session, needs: func(h *hammer) bool { return h.acquire != nil }},
	{name: "sql", weight: 8, do: (*call).sql, needs: func(h *hammer) bool { return h.sqlDB != nil }},
	{name: "stray", weight: 5, do: func(c *call) error { return c.stray(c.target(), true) }, fault: Settings},
	{name: "panic", weight: 2, do: (*call).panics, fault: Panic},
}

func hasShared(h *hammer) bool { return h.shared != "" }

// target returns what to run a statement on: the DB, or what its For returns for the tenant.
func (c *call) target() DB {
	if c.bind != nil && c.rnd.IntN(4) == 0 {
		return c.bind.For(c.tenant)
	}
	return c.db
}

// step returns the context of one statement of several, which may end before the others'.
func (c *call) step() context.Context {
	if !c.calm && c.with(Cancel) && c.rnd.IntN(60) == 0 {
		return c.hurry(c.ctx)
	}
	return c.ctx
}

// other returns another tenant.
func (c *call) other() pgtenancy.Tenant {
	for {
		if t := c.tenants[c.rnd.IntN(len(c.tenants))]; t != c.tenant {
			return t
		}
	}
}

// args puts one of pgx's options before the arguments at times.
func (c *call) args(args ...any) []any {
	switch c.rnd.IntN(20) {
	case 0:
		return slices.Insert(args, 0, any(pgx.QueryExecModeExec))
	case 1:
		return slices.Insert(args, 0, any(pgx.QueryExecModeCacheDescribe))
	}
	return args
}

// leakError is an ErrLeak with what was read in the place of what belongs there.
type leakError struct {
	got []string
	of  string
}

func (e *leakError) Error() string { return fmt.Sprintf("%v: %q in %s", ErrLeak, e.got, e.of) }

func (e *leakError) Unwrap() error { return ErrLeak }

// expectAll checks that all values read are want.
func (c *call) expectAll(want string, got ...string) error {
	wrong := slices.DeleteFunc(slices.Clone(got), func(s string) bool { return s == want })
	if len(wrong) == 0 {
		return nil
	}
	return &leakError{wrong, fmt.Sprintf("a row %q as %q", got, c.tenant.ID())}
}

// check checks a row of hammer_rows.
func (c *call) check(tenant, home, kind string, value any) error {
	if err := c.expectAll(c.tenant.ID(), tenant, home, kind); err != nil {
		return err
	}
	return checkAmount(value)
}

func checkAmount(value any) error {
	switch v := value.(type) {
	case int32:
		value = int64(v)
	case float64:
		if v == amount {
			value = int64(v)
		}
	case string:
		if v == "4200" {
			value = int64(amount)
		}
	case pgtype.Numeric:
		if n, err := v.Int64Value(); err == nil {
			value = n.Int64
		}
	}
	if value != int64(amount) {
		return fmt.Errorf("%w: amount is %v (%[2]T)", errValue, value)
	}
	return nil
}

const columns = "tenant, home, kind, amount"

// scan reads and checks columns of a row.
func (c *call) scan(row pgx.Row) error {
	var tenant, home, kind string
	var value any
	if err := row.Scan(&tenant, &home, &kind, &value); err != nil {
		return err
	}
	return c.check(tenant, home, kind, value)
}

// scanAny is scan where there may be no row.
func (c *call) scanAny(row pgx.Row) error {
	if err := c.scan(row); !errors.Is(err, pgx.ErrNoRows) {
		return err
	}
	return nil
}

// scanAll reads and checks rows; some of them, at times.
func (c *call) scanAll(rows pgx.Rows) error {
	defer rows.Close()
	stop := -1
	if c.rnd.IntN(5) == 0 {
		stop = c.rnd.IntN(5)
	}
	for n := 0; n != stop && rows.Next(); n++ {
		if err := c.scan(rows); err != nil {
			return c.verdict(err, rows)
		}
	}
	rows.Close()
	return rows.Err()
}

// verdict returns err, which is what is wrong with one of the rows; but the error that ends the rows, if there is one that explains
// it. When a server's connection breaks inside a message, PgBouncer sends the client an error message in the place of the rest: the
// last row then has some of the error's bytes in it. It must not have another tenant's.
func (c *call) verdict(err error, rows pgx.Rows) error {
	rows.Close()
	return c.judge(err, rows.Err())
}

func (c *call) judge(err, end error) error {
	if end == nil || !isLost(end) && !isGarbled(end) {
		return err
	}
	var leak *leakError
	if errors.As(err, &leak) {
		for _, t := range c.tenants {
			if slices.Contains(leak.got, t.ID()) {
				return err
			}
		}
		if slices.Contains(leak.got, nobody) {
			return err
		}
	}
	return end
}

func (c *call) insert(q DB, note string) error {
	ctx := c.step()
	switch c.rnd.IntN(3) {
	case 0:
		tag, err := q.Exec(ctx, "insert into hammer_rows (tenant, note) values ($1, $2)", c.args(c.tenant.ID(), note)...)
		if err == nil && tag.RowsAffected() != 1 {
			err = fmt.Errorf("insert says %s", tag)
		}
		return err
	case 1:
		return c.scan(q.QueryRow(ctx, "insert into hammer_rows (tenant, note, kind, amount) values (@tenant, @note, @kind, @amount) returning "+columns,
			pgx.NamedArgs{"tenant": c.tenant.ID(), "note": note, "kind": c.tenant.ID(), "amount": amount}))
	default:
		return c.scan(q.QueryRow(ctx, "insert into hammer_rows (tenant, note, kind, amount) values ($1, $2, $3, $4) returning "+columns,
			c.args(c.tenant.ID(), note, c.tenant.ID(), int64(amount))...))
	}
}

// update and delete take no row that another transaction has, so that they neither wait nor deadlock.

func (c *call) update(q DB, note string) error {
	return c.scanAny(q.QueryRow(c.step(), `update hammer_rows set tenant = $1, note = $2
		where id = (select id from hammer_rows order by id desc limit 1 for update skip locked) returning `+columns, c.args(c.tenant.ID(), note)...))
}

func (c *call) delete(q DB) error {
	rows, err := q.Query(c.step(), `delete from hammer_rows
		where id in (select id from hammer_rows order by id desc offset 40 for update skip locked) returning `+columns)
	if err != nil {
		return err
	}
	return c.scanAll(rows)
}

func (c *call) query(q DB) error {
	ctx := c.step()
	switch c.rnd.IntN(4) {
	case 0: // whatever columns there are
		rows, err := q.Query(ctx, "select * from hammer_rows where tenant <> $1 or id > 0 order by id desc limit 10", c.args("")...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			values, err := rows.Values()
			if err != nil {
				return c.verdict(err, rows)
			}
			for i, f := range rows.FieldDescriptions() {
				switch f.Name {
				case "tenant", "home", "kind", "extra":
					err = c.expectAll(c.tenant.ID(), fmt.Sprint(values[i]))
				case "amount":
					err = checkAmount(values[i])
				}
				if err != nil {
					return c.verdict(fmt.Errorf("%w in column %s", err, f.Name), rows)
				}
			}
		}
		return rows.Err()
	case 1:
		rows, err := q.Query(ctx, "select "+columns+" from hammer_rows where kind = $1 and amount = $2 order by id desc limit 5", c.args(c.tenant.ID(), int64(amount))...)
		if err != nil {
			return err
		}
		return c.scanAll(rows)
	case 2:
		return c.scanAny(q.QueryRow(ctx, "select "+columns+" from hammer_rows order by id desc limit 1", c.args()...))
	default:
		rows, err := q.Query(ctx, "select "+columns+" from hammer_rows order by id desc limit 10", c.args()...)
		if err != nil {
			return err
		}
		return c.scanAll(rows)
	}
}

// big reads some of an answer that is longer than the buffers on its way.
func (c *call) big(q DB) error {
	rows, err := q.Query(c.step(), "select "+columns+" from (select * from hammer_rows order by id limit 20) r, generate_series(1, 200), repeat(home, 10)", c.args()...)
	if err != nil {
		return err
	}
	return c.scanAll(rows)
}

// whose asks PostgreSQL in which scope it is.
func (c *call) whose(q DB) error {
	var schema, value, role, own string
	var homes []string
	err := q.QueryRow(c.step(), "select current_schema()::text, current_setting("+literal(c.setting)+"), current_user::text, "+
		"(select n.nspname::text from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = 'hammer_rows'::regclass), "+
		"array(select distinct home from hammer_view)").Scan(&schema, &value, &role, &own, &homes)
	if err != nil {
		return err
	}
	c.mu.Lock()
	if c.hammer.role == "" && c.tenant.Role() == "" {
		c.hammer.role = role // the very first call
	}
	wantRole := c.hammer.role
	c.mu.Unlock()
	if c.tenant.Role() != "" {
		wantRole = c.tenant.Role()
	}
	if schema != c.tenant.Schema() || own != c.tenant.Schema() || value != c.value(c.tenant) || role != wantRole && wantRole != "" {
		return fmt.Errorf("%w: as %q with setting %q in schema %q: setting %q, schema %q, hammer_rows in %q, role %q (want %q)",
			ErrLeak, c.tenant.ID(), c.value(c.tenant), c.tenant.Schema(), value, schema, own, role, wantRole)
	}
	for _, home := range homes {
		if err := Check(c.tenant, home); err != nil {
			return err
		}
	}
	return nil
}

// peek calls a function that all tenants share, and that keeps its plans.
func (c *call) peek(q DB) error {
	rows, err := q.Query(c.step(), "select tenant, home from hammer_peek()", c.args()...)
	if err != nil {
		return err
	}
	return c.pairs(rows, c.tenant.ID(), c.tenant.ID())
}

// pairs reads rows of two strings that must be the wanted ones.
func (c *call) pairs(rows pgx.Rows, want1, want2 string) error {
	defer rows.Close()
	for rows.Next() {
		var got1, got2 string
		if err := rows.Scan(&got1, &got2); err != nil {
			return c.verdict(err, rows)
		}
		if err := errors.Join(c.expectAll(want1, got1), c.expectAll(want2, got2)); err != nil {
			return c.verdict(err, rows)
		}
	}
	return rows.Err()
}

// sharedTable uses the table that a policy guards.
func (c *call) sharedTable(q DB, note string) error {
	ctx := c.step()
	id, value := c.tenant.ID(), c.value(c.tenant)
	switch c.rnd.IntN(4) {
	case 0:
		_, err := q.Exec(ctx, "insert into hammer_shared (payload, note) values ($1, $2)", c.args(id, note)...)
		return err
	case 1:
		rows, err := q.Query(ctx, "delete from hammer_shared where id in (select id from hammer_shared order by id desc offset 20 for update skip locked) returning tenant_id, payload")
		if err != nil {
			return err
		}
		return c.pairs(rows, value, id)
	default:
		rows, err := q.Query(ctx, "select tenant_id, payload from hammer_shared order by id desc limit 10", c.args()...)
		if err != nil {
			return err
		}
		return c.pairs(rows, value, id)
	}
}

// nobody runs without a tenant.
func (c *call) nobody() error {
	rows, err := c.bind.Shared().Query(c.step(), "select tenant, home from hammer_rows union all select tenant_id, payload from hammer_shared", c.args()...)
	if err != nil {
		return err
	}
	return c.pairs(rows, nobody, nobody)
}

// withoutSchema runs as a tenant whose schema does not exist. Names must not be found in the shared schema instead.
func (c *call) withoutSchema() error {
	ctx := pgtenancy.WithTenant(c.ctx, c.missing)
	var err error
	switch c.rnd.IntN(5) {
	case 0:
		_, err = c.db.Exec(ctx, "insert into hammer_rows (tenant, note) values ($1, $2)", c.tenant.ID(), never)
	case 1:
		var home string
		err = c.db.QueryRow(ctx, "select home from hammer_rows limit 1").Scan(&home)
	case 2:
		b := &pgx.Batch{}
		b.Queue("select home from hammer_rows")
		err = c.db.SendBatch(ctx, b).Close()
	case 3:
		_, err = c.db.CopyFrom(ctx, pgx.Identifier{"hammer_rows"}, []string{"note"}, pgx.CopyFromRows([][]any{{never}}))
	case 4:
		err = pgx.BeginFunc(ctx, c.db, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "select home from hammer_rows")
			return err
		})
	}
	return expect(err, func(err error) bool { return errors.Is(err, pgtenancy.ErrTenantNotFound) })
}

func (c *call) copy(q DB, note string) error {
	n := 1 + c.rnd.IntN(50)
	fails := c.with(Fail) && c.rnd.IntN(10) == 0
	if fails {
		note = never
	}
	got, err := q.CopyFrom(c.step(), pgx.Identifier{"hammer_rows"}, []string{"tenant", "note", "amount"}, pgx.CopyFromSlice(n, func(i int) ([]any, error) {
		if fails && i == n-1 {
			return nil, errOwn
		}
		return []any{c.tenant.ID(), note, int64(amount)}, nil
	}))
	if fails {
		c.made(Fail, 1)
		return expect(err, func(err error) bool {
			return err.Error() == errOwn.Error() || code(err) == "57014" || errors.Is(err, errOwn)
		})
	}
	if err == nil && got != int64(n) {
		err = fmt.Errorf("%d rows copied, want %d", got, n)
	}
	return err
}

// errOwn is an error that the hammer makes.
var errOwn = errors.New("hammer: an error on purpose")

// expect returns nil for the error that a fault of the hammer's own must have, and any other error.
func expect(err error, expected func(error) bool) error {
	switch {
	case err == nil:
		return errors.New("no error of what must fail")
	case expected(err):
		return nil
	}
	return err
}
