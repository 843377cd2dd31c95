package main

import (
	"container/list"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"gorm.io/driver/postgres"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/pgtenancy/pgtenancy"
)

// read returns the name in row id of one of a tenant's tables.
type read func(ctx context.Context, t *tenant, table, id int) (name string, err error)

// strategy is one way to reach a tenant's tables.
type strategy struct {
	key  string // in flags and names of benchmarks
	what string // in tables
	// open returns a read that uses at most conns connections, and what closes it. The error is errSkipped where the
	// strategy cannot be measured here.
	open func(ctx context.Context, db *database, conns int) (read, func(), error)
}

// strategies are all strategies. The others are compared with the first.
var strategies = []strategy{
	{"qualified", "pgxpool, the schema written into the SQL", openQualified},
	{"pgtenancy", "pgtenancy", openPgtenancy},
	{"batch", "pgxpool, an unprepared batch of `set_config` and the query", openBatch},
	{"set-reset", "pgxpool, `SET`, the query, `SET` back", openSetReset},
	{"set-local", "pgxpool, `BEGIN`, `SET LOCAL`, the query, `COMMIT`", openSetLocal},
	{"prepareconn", "pgxpool, `SET` in PrepareConn where the tenant differs", openPrepareConn},
	{"pools", "a pgxpool a tenant, of 1 connection, at most 100 pools", openPools},
	{"gorm-qualified", "GORM, the schema written into the table's name", openGormQualified},
	{"gorm-pgtenancy", "GORM on pgtenancy", openGormPgtenancy},
	{"gorm-set", "GORM, a transaction with `SET` and `SET` back", openGormSet},
}

// errSkipped is the error of a strategy that cannot be measured here.
var errSkipped = errors.New("skipped")

// selected returns the strategies that a list of keys names, all for "".
func selected(keys string) ([]strategy, error) {
	if keys == "" {
		return strategies, nil
	}
	var chosen []strategy
	for key := range strings.SplitSeq(keys, ",") {
		s, err := byKey(key)
		if err != nil {
			return nil, err
		}
		chosen = append(chosen, s)
	}
	return chosen, nil
}

func byKey(key string) (strategy, error) {
	for _, s := range strategies {
		if s.key == key {
			return s, nil
		}
	}
	return strategy{}, fmt.Errorf("no strategy %q", key)
}

func openQualified(ctx context.Context, db *database, conns int) (read, func(), error) {
	pool, err := pgxpool.NewWithConfig(ctx, db.conns(conns))
	if err != nil {
		return nil, nil, err
	}
	return func(ctx context.Context, t *tenant, table, id int) (name string, err error) {
		err = pool.QueryRow(ctx, t.selects[table], id).Scan(&name)
		return name, err
	}, pool.Close, nil
}

func openPgtenancy(ctx context.Context, db *database, conns int) (read, func(), error) {
	pool, err := newPool(ctx, db, conns)
	if err != nil {
		return nil, nil, err
	}
	return func(ctx context.Context, t *tenant, table, id int) (name string, err error) {
		err = pool.QueryRow(pgtenancy.WithTenant(ctx, t.handle), db.selects[table], id).Scan(&name)
		return name, err
	}, pool.Close, nil
}

func newPool(ctx context.Context, db *database, conns int) (*pgtenancy.Pool, error) {
	return pgtenancy.NewPoolWithConfig(ctx, &pgtenancy.PoolConfig{Conns: db.conns(conns)})
}

// openBatch is what plain pgx can do in one round trip: a batch is one transaction. Nothing can be prepared, since pgx would
// prepare the query before the batch sets search_path.
func openBatch(ctx context.Context, db *database, conns int) (read, func(), error) {
	cfg := db.conns(conns)
	cfg.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, nil, err
	}
	return func(ctx context.Context, t *tenant, table, id int) (name string, err error) {
		var b pgx.Batch
		b.Queue("select set_config('search_path', $1, true)", t.schema+", public")
		b.Queue(db.selects[table], id)
		br := pool.SendBatch(ctx, &b)
		if _, err = br.Exec(); err == nil {
			err = br.QueryRow().Scan(&name)
		}
		return name, errors.Join(err, br.Close())
	}, pool.Close, nil
}

func openSetReset(ctx context.Context, db *database, conns int) (read, func(), error) {
	pool, err := pgxpool.NewWithConfig(ctx, db.conns(conns))
	if err != nil {
		return nil, nil, err
	}
	return func(ctx context.Context, t *tenant, table, id int) (name string, err error) {
		err = pool.AcquireFunc(ctx, func(c *pgxpool.Conn) error {
			if _, err := c.Exec(ctx, t.set); err != nil {
				return err
			}
			err := c.QueryRow(ctx, db.selects[table], id).Scan(&name)
			_, setErr := c.Exec(ctx, "set search_path to public")
			return errors.Join(err, setErr)
		})
		return name, err
	}, pool.Close, nil
}

func openSetLocal(ctx context.Context, db *database, conns int) (read, func(), error) {
	pool, err := pgxpool.NewWithConfig(ctx, db.conns(conns))
	if err != nil {
		return nil, nil, err
	}
	return func(ctx context.Context, t *tenant, table, id int) (name string, err error) {
		err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, t.setLocal); err != nil {
				return err
			}
			return tx.QueryRow(ctx, db.selects[table], id).Scan(&name)
		})
		return name, err
	}, pool.Close, nil
}

// openPrepareConn leaves search_path on the connection. It is cheap where tenants seldom change, and a query that gets a
// connection in any other way runs as the tenant before.
func openPrepareConn(ctx context.Context, db *database, conns int) (read, func(), error) {
	type key struct{}
	cfg := db.conns(conns)
	cfg.PrepareConn = func(ctx context.Context, c *pgx.Conn) (bool, error) {
		t := ctx.Value(key{}).(*tenant)
		data := c.PgConn().CustomData()
		if data["tenant"] == t {
			return true, nil
		}
		delete(data, "tenant")
		if _, err := c.Exec(ctx, t.set); err != nil {
			return false, err
		}
		data["tenant"] = t
		return true, nil
	}
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, nil, err
	}
	return func(ctx context.Context, t *tenant, table, id int) (name string, err error) {
		err = pool.QueryRow(context.WithValue(ctx, key{}, t), db.selects[table], id).Scan(&name)
		return name, err
	}, pool.Close, nil
}

// openPools keeps a pool for each of the 100 tenants used last: PostgreSQL takes no more connections than that unless told,
// and each of them is a process.
func openPools(_ context.Context, db *database, conns int) (read, func(), error) {
	const limit = 100
	if most := min(limit, len(db.tenants)) + conns; most > db.max {
		return nil, nil, fmt.Errorf("%w: the server takes %d connections, and this may need %d", errSkipped, db.max, most)
	}
	pools := &pools{limit: limit, of: make(map[*tenant]*list.Element), order: list.New(), db: db}
	return func(ctx context.Context, t *tenant, table, id int) (name string, err error) {
		e, err := pools.get(ctx, t)
		if err != nil {
			return "", err
		}
		defer pools.release(e)
		err = e.pool.QueryRow(ctx, db.selects[table], id).Scan(&name)
		return name, err
	}, pools.close, nil
}

// pools is a cache of pools with a bound.
type pools struct {
	limit int
	db    *database
	mu    sync.Mutex
	of    map[*tenant]*list.Element
	order *list.List // of *pooled, the one used last in front
}

type pooled struct {
	tenant *tenant
	pool   *pgxpool.Pool
	users  int
}

func (p *pools) get(ctx context.Context, t *tenant) (*pooled, error) {
	p.mu.Lock()
	if e := p.of[t]; e != nil {
		p.order.MoveToFront(e)
		pe := e.Value.(*pooled)
		pe.users++
		p.mu.Unlock()
		return pe, nil
	}
	victim := p.evict()
	cfg := p.db.conns(1)
	cfg.ConnConfig.RuntimeParams["search_path"] = t.schema + ", public"
	pool, err := pgxpool.NewWithConfig(context.WithoutCancel(ctx), cfg)
	pe := &pooled{tenant: t, pool: pool, users: 1}
	if err == nil {
		p.of[t] = p.order.PushFront(pe)
	}
	p.mu.Unlock()
	if victim != nil {
		victim.pool.Close()
	}
	return pe, err
}

// evict takes the pool out that was not used for the longest time, where there are too many.
func (p *pools) evict() *pooled {
	if p.order.Len() < p.limit {
		return nil
	}
	for e := p.order.Back(); e != nil; e = e.Prev() {
		if pe := e.Value.(*pooled); pe.users == 0 {
			p.order.Remove(e)
			delete(p.of, pe.tenant)
			return pe
		}
	}
	return nil
}

func (p *pools) release(pe *pooled) {
	p.mu.Lock()
	pe.users--
	p.mu.Unlock()
}

func (p *pools) close() {
	for e := p.order.Front(); e != nil; e = e.Next() {
		e.Value.(*pooled).pool.Close()
	}
}

// order is the model of all tables.
type order struct{ Name string }

func take(db *gorm.DB, table string, id int) (string, error) {
	var o order
	err := db.Table(table).Select("name").Where("id = ?", id).Take(&o).Error
	return o.Name, err
}

func openGorm(db *sql.DB) (*gorm.DB, error) {
	return gorm.Open(postgres.New(postgres.Config{Conn: db}), &gorm.Config{Logger: logger.Discard})
}

func plainGorm(db *database, conns int) (*gorm.DB, func(), error) {
	d := stdlib.OpenDB(*db.conns(conns).ConnConfig)
	d.SetMaxOpenConns(conns)
	d.SetMaxIdleConns(conns)
	closeDB := func() { _ = d.Close() }
	g, err := openGorm(d)
	if err != nil {
		closeDB()
	}
	return g, closeDB, err
}

func openGormQualified(_ context.Context, db *database, conns int) (read, func(), error) {
	g, closeDB, err := plainGorm(db, conns)
	if err != nil {
		return nil, nil, err
	}
	return func(ctx context.Context, t *tenant, table, id int) (string, error) {
		return take(g.WithContext(ctx), t.tables[table], id)
	}, closeDB, nil
}

func openGormPgtenancy(ctx context.Context, db *database, conns int) (read, func(), error) {
	pool, err := newPool(ctx, db, conns)
	if err != nil {
		return nil, nil, err
	}
	p, ok := any(pool).(interface{ DB() *sql.DB })
	if !ok {
		pool.Close()
		return nil, nil, fmt.Errorf("%w: there is no Pool.DB yet", errSkipped)
	}
	d := p.DB()
	closeDB := func() { _ = d.Close(); pool.Close() }
	g, err := openGorm(d)
	if err != nil {
		closeDB()
		return nil, nil, err
	}
	return func(ctx context.Context, t *tenant, table, id int) (string, error) {
		return take(g.WithContext(pgtenancy.WithTenant(ctx, t.handle)), db.tables[table], id)
	}, closeDB, nil
}

// openGormSet sends what gorm-multitenancy's DB.WithTenant sends (github.com/bartventer/gorm-multitenancy, v8): BEGIN, SET,
// the query, SET to public, COMMIT. It is not that library.
func openGormSet(_ context.Context, db *database, conns int) (read, func(), error) {
	g, closeDB, err := plainGorm(db, conns)
	if err != nil {
		return nil, nil, err
	}
	return func(ctx context.Context, t *tenant, table, id int) (name string, err error) {
		err = g.WithContext(ctx).Transaction(func(tx *gorm.DB) error {
			if err := tx.Exec("SET search_path TO " + t.schema).Error; err != nil {
				return err
			}
			var err error
			name, err = take(tx, db.tables[table], id)
			return errors.Join(err, tx.Exec("SET search_path TO public").Error)
		})
		return name, err
	}, closeDB, nil
}
