package wire

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Step is one statement of Run: the entering of a scope, or SQL with arguments whose types PostgreSQL can tell from them.
type Step struct {
	Scope *Scope
	SQL   string
	Args  []any
	Keep  bool // prepared on the server, for a statement that comes again and again
}

// Run sends the steps as one pipeline, one statement a message, and returns the command tags of those that succeeded.
// Their number is the index of the one that failed, where there is an error: each of them is seen by the next one, and the
// first that fails is the last that runs. Without a BEGIN among the steps they are one implicit transaction, or belong to
// the one that is open. A transaction that Run opened is rolled back when a step fails.
func (c *Conn) Run(ctx context.Context, run []Step) (tags []pgconn.CommandTag, err error) {
	c.pipeline++
	steps := make([]step, 0, len(run))
	for _, s := range run {
		if s.Scope != nil {
			steps = c.enterSteps(steps, s.Scope, false)
			c.text, c.values = nil, nil // the steps keep them
			continue
		}
		var eqb pgx.ExtendedQueryBuilder // the values of all steps are needed at once
		if err := eqb.Build(c.types, nil, s.Args); err != nil {
			return nil, c.unsent(steps, err)
		}
		st := step{parse: s.SQL}
		if s.Keep {
			st = c.statement(stmtKey{sql: s.SQL}, c.shared.mode, nil, true)
		}
		st.values, st.formats = eqb.ParamValues, eqb.ParamFormats
		steps = append(steps, st)
	}
	outer := c.TxStatus() == 'I'
	var r results
	c.send(ctx, steps, &r)
	for i := range run {
		var tag pgconn.CommandTag
		if run[i].Scope != nil {
			err = c.entered(&r, false)
		} else {
			var rr *pgconn.ResultReader
			if rr, err = r.next(); err == nil {
				tag, err = rr.Close()
			}
		}
		if err != nil {
			break
		}
		tags = append(tags, tag)
	}
	if endErr := r.end(); err == nil {
		err = endErr // a deferred constraint of an implicit transaction, say
	}
	if err != nil {
		c.unkeep(&r)
		if outer && !c.pg.IsClosed() && c.TxStatus() != 'I' {
			_ = c.Rollback(ctx) // a connection on which that fails is closed
		}
	}
	return tags, explain(err)
}
