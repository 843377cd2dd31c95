package pgtenancy_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgtenancy/pgtenancy"
)

// installEnter has the registry installed, and the stored function with it, which app may call.
func (db *testDB) installEnter(t *testing.T) {
	t.Helper()
	owner, err := pgxpool.ParseConfig(db.url)
	check(t, "ParseConfig", err)
	f, err := pgtenancy.Open(t.Context(), pgtenancy.FleetConfig{PoolConfig: pgtenancy.PoolConfig{Conns: db.conns(t)}, Owner: owner})
	check(t, "Open", err)
	defer f.Close()
	_, err = f.Migrate(t.Context(), nil)
	check(t, "Migrate", err)
}

// sentSQL keeps what a pool's connections send.
type sentSQL struct {
	mu   sync.Mutex
	sent []*bytes.Buffer // by connection
}

func (r *sentSQL) option(c *pgtenancy.PoolConfig) {
	dial := c.Conns.ConnConfig.DialFunc
	c.Conns.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		b := &bytes.Buffer{}
		r.sent = append(r.sent, b)
		return &recordedConn{conn, r, b}, nil
	}
}

type recordedConn struct {
	net.Conn
	r *sentSQL
	b *bytes.Buffer
}

func (c *recordedConn) Write(p []byte) (int, error) {
	c.r.mu.Lock()
	c.b.Write(p)
	c.r.mu.Unlock()
	return c.Conn.Write(p)
}

// messages returns the SQL that was sent for parsing or as a simple query, and "sync" where a pipeline ended.
func (r *sentSQL) messages(t *testing.T) (all []string) {
	t.Helper()
	r.each(t, func(msg pgproto3.FrontendMessage) {
		switch msg := msg.(type) {
		case *pgproto3.Parse:
			all = append(all, msg.Query)
		case *pgproto3.Query:
			all = append(all, msg.String, "sync")
		case *pgproto3.Sync:
			all = append(all, "sync")
		}
	})
	return all
}

// each calls f for all messages that were sent, a connection after the other.
func (r *sentSQL) each(t *testing.T, f func(pgproto3.FrontendMessage)) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, b := range r.sent {
		backend := pgproto3.NewBackend(bytes.NewReader(b.Bytes()), nil)
		if _, err := backend.ReceiveStartupMessage(); err != nil {
			t.Fatal(err)
		}
		for {
			msg, err := backend.Receive()
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			f(msg)
		}
	}
}

// everything uses all of a pool but Acquire, for two tenants in turn.
func (db *testDB) everything(t *testing.T, p *pgtenancy.Pool) {
	t.Helper()
	for range 3 {
		for _, tenant := range []pgtenancy.Tenant{db.acme, db.globex} {
			ctx := as(t, tenant)
			checkWhose(t, p, ctx, tenant)
			_, err := p.Exec(ctx, "update notes set n = $1 where id = $2", 1, 1)
			check(t, "Exec", err)
			_, err = p.Exec(ctx, "do $$ begin perform 1; end $$")
			check(t, "DO", err)
			check(t, "SendBatch", p.SendBatch(ctx, batchOf("select 1 from notes", "update notes set n = 2")).Close())
			_, err = p.CopyFrom(ctx, pgx.Identifier{"log"}, []string{"note"}, pgx.CopyFromRows([][]any{{"copied"}}))
			check(t, "CopyFrom", err)
			_, err = p.Exec(ctx, "insert into notes (body) values ('bad')")
			checkCode(t, "a constraint", err, "23514")
			check(t, "BeginFunc", pgx.BeginFunc(ctx, p, func(tx pgx.Tx) error {
				checkWhose(t, tx, ctx, tenant)
				if _, err := tx.Exec(ctx, "insert into users (name) values ($1)", "new"); err != nil {
					return err
				}
				return pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return second(tx.Exec(ctx, "update notes set n = 3")) })
			}))
			var others int
			check(t, "users", p.QueryRow(ctx, "select count(*) from users where tenant <> $1", tenant.ID()).Scan(&others))
			if others != 0 {
				t.Errorf("as %s: %d users of others", tenant, others)
			}
		}
		missing := newTenant(t, "missing")
		_, err := p.Exec(as(t, missing), "update notes set n = 0")
		checkIs(t, "a tenant without a schema", err, pgtenancy.ErrTenantNotFound)
		_, err = p.Begin(as(t, missing))
		checkIs(t, "its Begin", err, pgtenancy.ErrTenantNotFound)
	}
}

// What AWS RDS Proxy says that it pins a session for, of what could be seen in a text of SQL.
// https://docs.aws.amazon.com/AmazonRDS/latest/AuroraUserGuide/rds-proxy-pinning.html
var pinning = regexp.MustCompile(`(?i)\b(set|reset|set_config|prepare|execute|deallocate|discard|declare|listen|load|nextval|setval|pg_(try_)?advisory_lock\w*|temp|temporary)\b`)

// With the stored function nothing is sent that a proxy would see as a change of the session.
func TestEntryFunctionPinsNothing(t *testing.T) {
	t.Parallel()
	needsDirect(t)
	forModes(t, func(t *testing.T, opts ...option) {
		db := newDB(t)
		db.installEnter(t)
		var r sentSQL
		p := db.pool(t, append(opts, r.option, func(c *pgtenancy.PoolConfig) { c.Entry = pgtenancy.EntryFunction })...)
		db.everything(t, p)
		messages := r.messages(t)
		if len(messages) < 50 {
			t.Fatalf("only %d messages were recorded", len(messages))
		}
		entered := 0
		for _, sql := range messages {
			if strings.HasPrefix(sql, "select pgtenancy.enter(") {
				entered++
			}
			bare := strings.ReplaceAll(strings.ReplaceAll(sql, "update notes set n", "update notes n"), "do update set", "")
			if what := pinning.FindString(bare); what != "" {
				t.Errorf("%q was sent, which pins the session for its %s", sql, what)
			}
			if len(sql) > 16<<10 {
				t.Errorf("a statement of %d bytes was sent, which pins the session", len(sql))
			}
		}
		if entered == 0 {
			t.Error("the function was never called")
		}
	})
}

// EntryFunction before Migrate says what is missing.
func TestEntryFunctionMissing(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	p := db.pool(t, func(c *pgtenancy.PoolConfig) { c.Entry = pgtenancy.EntryFunction })
	_, err := p.Exec(as(t, db.acme), "select 1")
	if err == nil || !strings.Contains(err.Error(), "Fleet.Migrate") {
		t.Errorf("got %v, want an error that says what installs the function", err)
	}
}

// With SET LOCAL each statement has a transaction block of its own, in which the tenant's setting is a message by itself,
// and is never set in another way.
func TestEntrySetLocal(t *testing.T) {
	t.Parallel()
	needsDirect(t)
	forModes(t, func(t *testing.T, opts ...option) {
		db := newDB(t)
		var r sentSQL
		var b backend
		p := db.pool(t, append(opts, r.option, b.option, func(c *pgtenancy.PoolConfig) { c.Entry = pgtenancy.EntrySetLocal })...)
		db.everything(t, p)
		b.check(t, "EntrySetLocal")
		var pipeline []string
		set := 0
		for _, sql := range r.messages(t) {
			if sql != "sync" {
				pipeline = append(pipeline, sql)
				continue
			}
			for i, sql := range pipeline {
				if !strings.HasPrefix(sql, "set local app.current_tenant = '") {
					if strings.Contains(sql, "set_config('app.current_tenant'") {
						t.Errorf("%q sets the setting in another way", sql)
					}
					continue
				}
				set++
				if i != 1 || pipeline[0] != "begin" {
					t.Errorf("SET LOCAL is number %d of the pipeline %q, want it behind BEGIN", i, pipeline)
				}
			}
			pipeline = nil
		}
		if set < 40 {
			t.Errorf("SET LOCAL was sent %d times only", set)
		}
	})
}
