// Command edge is a service behind a proxy: whom a request is for, who sent it, how many requests a plan allows, and a page that
// shows a customer what was done.
//
//	go run ./examples/edge
//
// It starts a throwaway PostgreSQL unless DATABASE_URL names one, and prints curl lines to paste. The proxy is in the same program.
package main

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgtenancy/pgtenancy"
	"github.com/pgtenancy/pgtenancy/middleware"
	"github.com/pgtenancy/pgtenancy/pgtenancytest"
	_ "github.com/pgtenancy/pgtenancy/pgtenancytest/container" // where no PostgreSQL is installed: Docker,
	_ "github.com/pgtenancy/pgtenancy/pgtenancytest/download"  // or a download
)

//go:embed migrations
var embedded embed.FS

// appRole is the role of the data plane. It owns nothing.
const appRole = "edge_app"

func main() {
	addr := flag.String("addr", "127.0.0.1:8080", "address that the proxy listens on")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *addr, os.Stdout); err != nil {
		stop()
		log.Fatal(err)
	}
}

const usage = `Serving on http://localhost:%[1]s, until Ctrl-C. Try:

  S=$(curl -s http://acme.localhost:%[1]s/login -d user=ann -d password=anvil)
  curl -i -b session=$S http://acme.localhost:%[1]s/notes -d 'body=buy rockets'
  curl -b session=$S http://acme.localhost:%[1]s/notes
  curl -i http://acme.localhost:%[1]s/notes
  curl -i -b session=$S http://globex.localhost:%[1]s/notes
  sleep 1; curl -b session=$S http://acme.localhost:%[1]s/audit
  H=$(curl -s http://globex.localhost:%[1]s/login -d user=hank -d password=hammock)
  for i in 1 2 3 4 5 6; do curl -i -b session=$H http://globex.localhost:%[1]s/notes; done
  curl -b session=$H http://globex.localhost:%[1]s/plan -d plan=pro
  sleep 1; curl -i -b session=$H http://globex.localhost:%[1]s/notes
  sleep 1; curl -i -b session=$H http://globex.localhost:%[1]s/notes

`

// run serves until ctx is cancelled.
func run(ctx context.Context, addr string, out io.Writer) (err error) {
	server, err := pgtenancytest.Start(ctx) // DATABASE_URL, where it is set
	if err != nil {
		return err
	}
	defer server.Close()
	fmt.Fprintf(out, "PostgreSQL: %s\n", server.Source())
	fleet, err := open(ctx, server.URL())
	if err != nil {
		return err
	}
	defer fleet.Close()
	if _, err := fleet.Migrate(ctx, nil); err != nil {
		return err
	}
	for id, plan := range map[string]string{"acme": "pro", "globex": "free"} {
		_, err := fleet.Provision(ctx, id, &pgtenancy.ProvisionOpts{Attributes: map[string]string{"plan": plan}})
		if err != nil && !errors.Is(err, pgtenancy.ErrTenantExists) {
			return err
		}
	}

	handler, auditor := newHandler(fleet)
	defer func() { // once nothing is served any more: what is in memory is written
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		err = errors.Join(err, auditor.Close(ctx))
	}()
	service, err := net.Listen("tcp", "127.0.0.1:0") // which nobody but the proxy is to reach
	if err != nil {
		return err
	}
	front, err := net.Listen("tcp", addr)
	if err != nil {
		_ = service.Close() // nobody has used it
		return err
	}
	_, port, _ := net.SplitHostPort(front.Addr().String())
	fmt.Fprintf(out, usage, port)
	stop, cancel := context.WithCancel(ctx)
	defer cancel()
	served := make(chan error, 1)
	go func() {
		defer cancel() // the one does not go on without the other
		served <- serve(stop, service, handler)
	}()
	err = serve(stop, front, newProxy(service.Addr().String()))
	cancel()
	return errors.Join(err, <-served)
}

// serve serves until ctx is cancelled, and lets requests under way end.
func serve(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		stopped <- srv.Shutdown(ctx)
	})
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-stopped
}

// newProxy is what a load balancer or nginx is elsewhere. The service is sent another Host, and in X-Forwarded-Host the one that the
// client sent. What the client sent under that name is removed: ReverseProxy does so where Rewrite is set.
func newProxy(service string) http.Handler {
	transport := &http.Transport{DisableKeepAlives: true} // so that nothing is left of it when the program ends
	return &httputil.ReverseProxy{Transport: transport, Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: "http", Host: service})
		r.SetXForwarded()
	}}
}

// open connects the control plane as the owner of the schemas, and the data plane as a role that owns nothing.
func open(ctx context.Context, url string) (*pgtenancy.Fleet, error) {
	owner, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, err
	}
	app := owner.Copy()
	app.ConnConfig.User, app.ConnConfig.Password = appRole, rand.Text()
	if err := makeRole(ctx, owner.ConnConfig, app.ConnConfig.Password); err != nil {
		return nil, err
	}
	migrations, err := fs.Sub(embedded, "migrations")
	if err != nil {
		return nil, err
	}
	return pgtenancy.Open(ctx, pgtenancy.FleetConfig{
		PoolConfig: pgtenancy.PoolConfig{Conns: app},
		Owner:      owner,
		Migrations: migrations,
	})
}

// makeRole makes the role of the data plane. A real service has it set up.
func makeRole(ctx context.Context, owner *pgx.ConnConfig, password string) error {
	conn, err := pgx.ConnectConfig(ctx, owner)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	var exists bool
	if err := conn.QueryRow(ctx, "select exists (select from pg_roles where rolname = $1)", appRole).Scan(&exists); err != nil {
		return err
	}
	verb := "create"
	if exists {
		verb = "alter"
	}
	_, err = conn.Exec(ctx, verb+" role "+appRole+" login password '"+password+"'") // letters and digits only
	return err
}

// plans are what a tenant's attribute "plan" says. One that is not here is the zero Rate, which lets nothing pass.
var plans = map[string]middleware.Rate{
	"free": {Requests: 5, Per: time.Hour},
	"pro":  {Requests: 600, Per: time.Minute, Burst: 100},
}

func rateOf(t pgtenancy.Tenant) middleware.Rate {
	plan, _ := t.Attribute("plan")
	return plans[plan]
}

// A user belongs to one tenant. A real service has users in a table, and no passwords but their hashes.
type user struct{ name, password, tenant string }

var users = []user{{"ann", "anvil", "acme"}, {"hank", "hammock", "globex"}}

// service has the handlers.
type service struct {
	fleet    *pgtenancy.Fleet
	db       *pgtenancy.Pool
	sessions sync.Map // users by what their cookie holds. A real service lets them expire
}

// newHandler returns the service. From the outside in: the host that the client asked for; the tenant of that host; for all but the
// login, a session of that tenant; the tenant's rate, which only its own users can use up so; and the record of what they did.
func newHandler(fleet *pgtenancy.Fleet) (http.Handler, *middleware.Auditor) {
	s := &service{fleet: fleet, db: fleet.Pool()}
	forwarded := middleware.ForwardedHost(netip.MustParsePrefix("127.0.0.1/32")) // where the proxy is
	tenant := middleware.Tenant(fleet, pgtenancy.Subdomain("localhost"), nil)
	match := middleware.MatchTenant(func(r *http.Request) (string, bool) {
		u, ok := s.user(r)
		return u.tenant, ok
	}, nil)
	limited := middleware.RateLimit(rateOf, &middleware.RateLimitOpts{Cost: func(r *http.Request) int {
		if r.URL.Path == "/plan" {
			return 0 // who has reached the limit can still buy a larger one
		}
		return 1
	}})
	audit, auditor := middleware.Audit(fleet.Audit(), &middleware.AuditOpts{
		Actor: func(r *http.Request) string { u, _ := s.user(r); return u.name },
		Client: func(r *http.Request) netip.Addr { // the proxy's word, as the last of the list; nobody else reaches the service
			list := strings.Split(r.Header.Get("X-Forwarded-For"), ",")
			client, _ := netip.ParseAddr(strings.TrimSpace(list[len(list)-1]))
			return client
		},
	})

	pages := http.NewServeMux()
	pages.HandleFunc("GET /notes", s.notes)
	pages.HandleFunc("POST /notes", s.addNote)
	pages.HandleFunc("POST /plan", s.changePlan)
	pages.HandleFunc("GET /audit", s.auditPage)
	mux := http.NewServeMux()
	mux.Handle("POST /login", audit(http.HandlerFunc(s.login))) // a real proxy limits how often an address may try
	mux.Handle("/", match(limited(audit(pages))))
	return forwarded(tenant(mux)), auditor
}

// user returns who is logged in, whatever the tenant of the request.
func (s *service) user(r *http.Request) (user, bool) {
	c, err := r.Cookie("session")
	if err != nil {
		return user{}, false
	}
	u, ok := s.sessions.Load(c.Value)
	if !ok {
		return user{}, false
	}
	return u.(user), true
}

// login answers with the session, for curl. A browser has it in the cookie, which is of this host alone. Over TLS, which this is not,
// the cookie is to be Secure, and __Host-session its name, so that no other host of the domain can set it.
func (s *service) login(w http.ResponseWriter, r *http.Request) {
	t, _ := pgtenancy.TenantFromContext(r.Context())
	e := middleware.AuditEvent(r.Context())
	e.Action, e.Actor = "login", r.PostFormValue("user")
	for _, u := range users {
		if u.name == r.PostFormValue("user") && u.tenant == t.ID() &&
			subtle.ConstantTimeCompare([]byte(u.password), []byte(r.PostFormValue("password"))) == 1 {
			session := rand.Text()
			s.sessions.Store(session, u)
			http.SetCookie(w, &http.Cookie{Name: "session", Value: session, Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode})
			fmt.Fprintln(w, session)
			return
		}
	}
	http.Error(w, "wrong user or password", http.StatusUnauthorized)
}

type note struct {
	ID     int64  `json:"id"`
	Author string `json:"author"`
	Body   string `json:"body"`
}

func (s *service) notes(w http.ResponseWriter, r *http.Request) {
	rows, _ := s.db.Query(r.Context(), "select id, author, body from notes order by id") // the error is in rows
	notes, err := pgx.CollectRows(rows, pgx.RowToStructByPos[note])
	answer(w, http.StatusOK, notes, err)
}

func (s *service) addNote(w http.ResponseWriter, r *http.Request) {
	u, _ := s.user(r)
	n := note{Author: u.name, Body: r.PostFormValue("body")}
	if n.Body == "" {
		http.Error(w, "body must not be empty", http.StatusBadRequest)
		return
	}
	err := s.db.QueryRow(r.Context(), "insert into notes (author, body) values ($1, $2) returning id", n.Author, n.Body).Scan(&n.ID)
	e := middleware.AuditEvent(r.Context())
	e.Action, e.Fields = "note.add", map[string]any{"note": n.ID}
	answer(w, http.StatusCreated, n, err)
}

func (s *service) changePlan(w http.ResponseWriter, r *http.Request) {
	plan := r.PostFormValue("plan")
	if _, ok := plans[plan]; !ok {
		http.Error(w, "no such plan", http.StatusBadRequest)
		return
	}
	t, _ := pgtenancy.TenantFromContext(r.Context())
	e := middleware.AuditEvent(r.Context())
	e.Action, e.Fields = "plan.change", map[string]any{"plan": plan}
	err := s.fleet.SetAttributes(r.Context(), t.ID(), map[string]string{"plan": plan}, nil)
	answer(w, http.StatusOK, map[string]string{"plan": plan}, err)
}

// auditPage shows the last requests of the tenant. What is read is the tenant's: row level security sees to that.
func (s *service) auditPage(w http.ResponseWriter, r *http.Request) {
	var events []pgtenancy.AuditEvent
	for e, err := range s.fleet.Audit().Events(r.Context(), nil) { // the newest first
		if err != nil {
			answer(w, http.StatusOK, nil, err)
			return
		}
		if events = append(events, e); len(events) == 50 {
			break
		}
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "AT\tACTOR\tROUTE\tSTATUS\tACTION\tCLIENT")
	for _, e := range events {
		fmt.Fprintf(table, "%s\t%q\t%s\t%d\t%s\t%s\n", e.At.UTC().Format(time.TimeOnly), e.Actor, e.Route, e.Status, e.Action, e.Client)
	}
	_ = table.Flush() // the client is gone, where that fails
}

func answer(w http.ResponseWriter, status int, body any, err error) {
	if err != nil {
		log.Print(err)
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the client is gone, where that fails
}
