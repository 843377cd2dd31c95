package pgtenancy

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgtenancy/pgtenancy/internal/wire"
)

// query is one of a pipeline: with a table it copies that out, else its result does not matter.
type query struct{ table, sql string }

// mostAhead is how many bytes of SQL are on their way at a time. The server does not read while we do not, and so what is sent
// must fit into the buffers in between.
const mostAhead = 16 << 10

// copyOut runs queries in their order, and writes the rows of their tables. pgconn has no COPY in its pipelines, and waits for
// the server between one and the next: with small tables that is most of the time. So each query is a simple one of its own,
// and several are sent ahead. A connection on which it fails in the middle is closed.
func copyOut(ctx context.Context, pg *pgconn.PgConn, queries []query, a *archiveWriter) (err error) {
	stop := context.AfterFunc(ctx, func() { _ = pg.Conn().SetDeadline(time.Unix(0, 1)) })
	clean := false // nothing of it is under way
	defer func() {
		if !stop() {
			err, clean = context.Cause(ctx), false
		}
		if !clean {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), wire.CleanupTimeout)
			defer cancel()
			_ = pg.Close(ctx) // the error that counts is the one above
		}
	}()
	for len(queries) > 0 {
		n, size := 0, 0
		for n < len(queries) && (n == 0 || size+len(queries[n].sql) <= mostAhead) {
			pg.Frontend().SendQuery(&pgproto3.Query{String: queries[n].sql})
			size += len(queries[n].sql)
			n++
		}
		if err := pg.Frontend().Flush(); err != nil {
			return err
		}
		var failed error // the first; what comes after it in the transaction fails too
		for _, q := range queries[:n] {
			pgErr, err := receiveCopy(pg, q, a)
			if err != nil {
				return err
			}
			if failed == nil && pgErr != nil {
				failed = pgErr
			}
		}
		if failed != nil {
			clean = true
			return failed
		}
		queries = queries[n:]
	}
	clean = true
	return nil
}

// receiveCopy reads the result of one query. failed is its error, err one after which the connection is of no use.
func receiveCopy(pg *pgconn.PgConn, q query, a *archiveWriter) (failed, err error) {
	var rows int64
	for {
		msg, err := pg.ReceiveMessage(context.Background()) // a watch of the context for each row would cost more than the row
		if err != nil {
			return nil, err
		}
		switch msg := msg.(type) {
		case *pgproto3.CopyData:
			if _, err := a.Write(msg.Data); err != nil {
				return nil, err
			}
		case *pgproto3.CommandComplete:
			rows = pgconn.NewCommandTag(string(msg.CommandTag)).RowsAffected()
		case *pgproto3.ErrorResponse:
			failed = pgconn.ErrorResponseToPgError(msg)
			if q.table != "" {
				failed = fmt.Errorf("table %s: %w", q.table, failed)
			}
		case *pgproto3.ReadyForQuery:
			if failed != nil || q.table == "" {
				return failed, nil
			}
			return nil, a.endTable(rows)
		case *pgproto3.CopyInResponse:
			return nil, errors.New("the server wants to be sent rows")
		}
	}
}
