package hammer

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/pgtenancy/pgtenancy"
)

// sqlQuerier is what *sql.DB, *sql.Conn and *sql.Tx have in common.
type sqlQuerier interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// sql goes through database/sql.
func (c *call) sql() error {
	switch c.rnd.IntN(5) {
	case 0:
		conn, err := c.sqlDB.Conn(c.step())
		if err != nil {
			return err
		}
		defer conn.Close()
		if c.rnd.IntN(3) == 0 {
			if err := c.sqlSession(conn); err != nil {
				return err
			}
		}
		for range 1 + c.rnd.IntN(3) {
			if err := c.sqlStep(conn, kept); err != nil {
				return err
			}
		}
		return conn.Close()
	case 1, 2:
		return c.sqlTx()
	default:
		return c.sqlStep(c.sqlDB, kept)
	}
}

// sqlSession makes conn a session, where the driver can do that, and leaves a setting behind that no other may see.
func (c *call) sqlSession(conn *sql.Conn) error {
	return conn.Raw(func(driverConn any) error {
		d, ok := driverConn.(interface {
			Acquire(ctx context.Context) (*pgtenancy.Conn, error)
		})
		if !ok {
			return nil
		}
		session, err := d.Acquire(c.step())
		if err != nil {
			return err
		}
		if err := c.whose(session); err != nil {
			return err
		}
		_, err = session.Exec(c.step(), "set statement_timeout = '1h'")
		return err
	})
}

func (c *call) sqlTx() error {
	tx, err := c.sqlDB.BeginTx(c.step(), nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	note := kept
	commit := c.rnd.IntN(2) == 0
	if !commit {
		note = never
	}
	for range c.rnd.IntN(4) {
		if err := c.sqlStep(tx, note); err != nil {
			return err
		}
	}
	if commit {
		return tx.Commit()
	}
	if c.with(Fail) && c.rnd.IntN(2) == 0 {
		c.made(Fail, 1)
		_, err := tx.ExecContext(c.ctx, "select 1/0")
		if err := expect(err, func(err error) bool { return code(err) == "22012" }); err != nil {
			return err
		}
	}
	return tx.Rollback()
}

func (c *call) sqlStep(q sqlQuerier, note string) error {
	ctx := c.step()
	switch c.rnd.IntN(4) {
	case 0:
		result, err := q.ExecContext(ctx, "insert into hammer_rows (tenant, note) values ($1, $2)", c.tenant.ID(), note)
		if err != nil {
			return err
		}
		if n, err := result.RowsAffected(); err != nil || n != 1 {
			return fmt.Errorf("insert says %d rows, %w", n, err)
		}
		return nil
	case 1:
		return c.scan(q.QueryRowContext(ctx, "insert into hammer_rows (tenant, note, kind, amount) values ($1, $2, $3, $4) returning "+columns,
			c.tenant.ID(), note, c.tenant.ID(), int64(amount)))
	case 2:
		err := c.scan(q.QueryRowContext(ctx, "select "+columns+" from hammer_rows order by id desc limit 1"))
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		return err
	default:
		rows, err := q.QueryContext(ctx, "select "+columns+" from hammer_rows order by id desc limit 10")
		if err != nil {
			return err
		}
		defer rows.Close()
		for n := 0; rows.Next(); n++ {
			if err := c.scan(rows); err != nil {
				for rows.Next() {
				}
				return c.judge(err, rows.Err())
			}
			if c.rnd.IntN(20) == 0 {
				return rows.Close()
			}
		}
		return rows.Err()
	}
}
