package wire

import (
	"context"

	"github.com/jackc/pgx/v5/pgconn"
)

// describeKey tells descriptions apart. Tenants at one version have tables of one shape, unless types of their own are
// in it: those have other OIDs in every schema.
type describeKey struct {
	schema, sql string // schema is "" where it makes no difference
	version     int64
}

type description struct {
	*pgconn.StatementDescription
	perSchema bool // look again under the schema's name
}

// firstUserOID is the first OID that PostgreSQL gives to what users create (FirstNormalObjectId in access/transam.h).
const firstUserOID = 16384

// SharedVersion is the version of the scope without a tenant, which no tenant's schema has.
const SharedVersion = -1

func (sh *Shared) lookup(s *Scope, sql string) *pgconn.StatementDescription {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	d, ok := sh.descriptions.Get(describeKey{"", sql, s.Version})
	if ok && d.perSchema {
		d, ok = sh.descriptions.Get(describeKey{s.Schema, sql, s.Version})
	}
	if !ok {
		return nil
	}
	return d.StatementDescription
}

// store keeps a description. differs says that what was known turned out wrong: from then on every schema is asked about
// the statement by itself, since it seems to differ from the others at its version.
func (sh *Shared) store(s *Scope, sql string, sd *pgconn.StatementDescription, differs bool) {
	perSchema := differs
	for _, oid := range sd.ParamOIDs {
		perSchema = perSchema || oid >= firstUserOID
	}
	for i := range sd.Fields {
		perSchema = perSchema || sd.Fields[i].DataTypeOID >= firstUserOID
	}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if perSchema {
		sh.descriptions.Put(describeKey{"", sql, s.Version}, description{perSchema: true})
		sh.descriptions.Put(describeKey{s.Schema, sql, s.Version}, description{StatementDescription: sd})
	} else {
		sh.descriptions.Put(describeKey{"", sql, s.Version}, description{StatementDescription: sd})
	}
}

// distrust forgets a description, and that others may do with it.
func (sh *Shared) distrust(s *Scope, sql string) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	sh.descriptions.Put(describeKey{"", sql, s.Version}, description{perSchema: true})
	sh.descriptions.Delete(describeKey{s.Schema, sql, s.Version})
}

func (sh *Shared) forget(s *Scope, sql string) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	sh.descriptions.Delete(describeKey{"", sql, s.Version})
	sh.descriptions.Delete(describeKey{s.Schema, sql, s.Version})
}

// describe asks the server about statements in the scope, in one round trip. enter is false inside a transaction that has
// the scope already.
func (c *Conn) describe(ctx context.Context, s *Scope, enter bool, sqls ...string) ([]*pgconn.StatementDescription, error) {
	p := c.pg.StartPipeline(ctx)
	if enter {
		steps := c.enterSteps(nil, s, false)
		st := steps[len(steps)-1] // the tenant's setting makes no difference to a description
		text := st.parse
		if st.stmt != nil {
			text = st.stmt.key.sql
		}
		p.SendQueryParams(text, st.values, st.oids, nil, nil)
		if st.stmt != nil && st.parse != "" {
			c.prepared.Delete(st.stmt.key) // it was not parsed under its name
		}
	}
	for _, sql := range sqls {
		p.SendPrepare("", tagged(stmtKey{schema: s.Schema, role: s.Role, sql: sql}), nil)
	}
	r := &results{p: p, err: p.Sync()}
	var err error
	if enter {
		err = c.guarded(r)
	}
	sds := make([]*pgconn.StatementDescription, 0, len(sqls))
	for err == nil && len(sds) < len(sqls) {
		var result any
		if result, err = p.GetResults(); err == nil {
			sd, ok := result.(*pgconn.StatementDescription)
			if !ok {
				err = errNoMoreResults
				break
			}
			sds = append(sds, sd)
		}
	}
	if endErr := r.end(); err == nil {
		err = endErr
	}
	if err != nil {
		return nil, err
	}
	return sds, nil
}
