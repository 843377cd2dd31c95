package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgtenancy/pgtenancy"
)

// rows is how many rows every table has.
const rows = 10

// tenant is a tenant with all that the strategies need to read its tables, made beforehand so that none of them pays for
// it when it is measured.
type tenant struct {
	handle   pgtenancy.Tenant
	schema   string   // quoted
	selects  []string // the same as database.selects, with the schema
	tables   []string // the same as database.tables, with the schema
	names    []string // what row i+1 of its tables has for a name: the proof that a strategy read the right tenant
	set      string
	setLocal string
}

// database is a database with many tenants, and a role that may read their tables and owns nothing.
type database struct {
	admin, app *pgxpool.Config
	role       string
	max        int // connections that the server takes
	tables     []string
	selects    []string // one for each table; $1 is the row
	tenants    []tenant
}

// newDatabase makes tenants in the empty database at url.
func newDatabase(ctx context.Context, url string, tenants, tables int) (*database, error) {
	admin, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, err
	}
	db := &database{admin: admin, app: admin.Copy(), role: "bench_" + strings.ToLower(rand.Text()[:10])}
	db.app.ConnConfig.User, db.app.ConnConfig.Password = db.role, rand.Text()
	for i := range tables {
		table := "orders"
		if i > 0 {
			table += "_" + strconv.Itoa(i+1)
		}
		db.tables = append(db.tables, table)
		db.selects = append(db.selects, "select name from "+table+" where id = $1")
	}
	for i := range tenants {
		t, err := newTenant(fmt.Sprintf("t%05d", i), db.tables)
		if err != nil {
			return nil, err
		}
		db.tenants = append(db.tenants, t)
	}

	conn, err := pgx.ConnectConfig(ctx, admin.ConnConfig.Copy())
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if err := conn.QueryRow(ctx, "select current_setting('max_connections')::int").Scan(&db.max); err != nil {
		return nil, err
	}
	_, err = conn.Exec(ctx, fmt.Sprintf("create role %s login password '%s'", db.role, db.app.ConnConfig.Password))
	if err != nil {
		return nil, fmt.Errorf("create the role that is measured: %w", err)
	}
	if err := db.fill(ctx, conn); err != nil {
		_ = db.dropRole(ctx)
		return nil, err
	}
	return db, nil
}

func newTenant(id string, tables []string) (tenant, error) {
	h, err := pgtenancy.NewTenant(pgtenancy.TenantInfo{ID: id})
	if err != nil {
		return tenant{}, err
	}
	t := tenant{handle: h, schema: pgx.Identifier{h.Schema()}.Sanitize()}
	for _, table := range tables {
		t.tables = append(t.tables, t.schema+"."+table)
		t.selects = append(t.selects, "select name from "+t.schema+"."+table+" where id = $1")
	}
	for i := range rows {
		t.names = append(t.names, fmt.Sprintf("%s/%d", h.ID(), i+1))
	}
	t.set, t.setLocal = "set search_path to "+t.schema+", public", "set local search_path to "+t.schema+", public"
	return t, nil
}

// fill makes the schemas and tables, many in one round trip.
func (db *database) fill(ctx context.Context, conn *pgx.Conn) error {
	batch := max(1, 500/len(db.tables)) // each table locks itself and what belongs to it until the batch is committed
	var b strings.Builder
	for i := range db.tenants {
		t := &db.tenants[i]
		fmt.Fprintf(&b, "create schema %s; grant usage on schema %[1]s to %s;", t.schema, db.role)
		for _, table := range t.tables {
			fmt.Fprintf(&b, "create table %s (id int primary key, name text not null);"+
				"insert into %[1]s select i, '%s/' || i from generate_series(1, %d) i;", table, t.handle.ID(), rows)
		}
		fmt.Fprintf(&b, "grant select on all tables in schema %s to %s;", t.schema, db.role)
		if (i+1)%batch == 0 || i+1 == len(db.tenants) {
			if _, err := conn.Exec(ctx, b.String()); err != nil { // without arguments: the simple protocol, one transaction
				return fmt.Errorf("make tenants: %w", err)
			}
			b.Reset()
		}
	}
	_, err := conn.Exec(ctx, "vacuum analyze") // autovacuum would come while we measure
	return err
}

// dropRole drops the role of the database, which must be dropped before.
func (db *database) dropRole(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	cfg := db.admin.ConnConfig.Copy()
	cfg.Database = "postgres"
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, "drop role if exists "+db.role)
	return err
}

// conns returns the configuration of a pool of n connections for the role that is measured.
func (db *database) conns(n int) *pgxpool.Config {
	c := db.app.Copy()
	c.MaxConns = int32(n)
	return c
}

// through returns db with its connections going through p.
func (db *database) through(p *proxy) *database {
	c := *db
	c.app = db.app.Copy()
	c.app.ConnConfig.Host, c.app.ConnConfig.Port = "127.0.0.1", p.port()
	for _, f := range c.app.ConnConfig.Fallbacks { // the same without TLS
		f.Host, f.Port = "127.0.0.1", p.port()
	}
	return &c
}

// address returns where the server listens, for net.Dial.
func (db *database) address() (network, address string) {
	return pgconn.NetworkAddress(db.admin.ConnConfig.Host, db.admin.ConnConfig.Port)
}

// checkServer refuses a DATABASE_URL of another machine, before anything is sent there: what runs here is close to an attack.
func checkServer() error {
	url := os.Getenv("DATABASE_URL")
	if url == "" {
		return nil // pgtenancytest starts one here
	}
	cfg, err := pgconn.ParseConfig(url)
	if err != nil {
		return err
	}
	hosts := []string{cfg.Host}
	for _, f := range cfg.Fallbacks {
		hosts = append(hosts, f.Host)
	}
	for _, host := range hosts {
		if ip := net.ParseIP(host); host != "localhost" && !strings.HasPrefix(host, "/") && (ip == nil || !ip.IsLoopback()) {
			return fmt.Errorf("the server is at %s: only one on this machine is measured (127.0.0.1, ::1, localhost or a socket)", host)
		}
	}
	return nil
}
