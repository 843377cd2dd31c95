package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/pgtenancy/pgtenancy/examples/internal/exampletest"
	"github.com/pgtenancy/pgtenancy/pgtenancytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = exampletest.Patience

// running is a quickstart that runs.
type running struct {
	*exampletest.Service
}

var serving = regexp.MustCompile(`(?s)Serving on http://localhost:(\d+),.*/login`)

// start runs the quickstart on a database until the test is over.
func start(t *testing.T, url string, tenants int) *running {
	t.Helper()
	return &running{exampletest.Start(t, url, serving, func(ctx context.Context, out io.Writer) error { return run(ctx, "127.0.0.1:0", tenants, out) })}
}

func (q *running) connect() *pgx.Conn {
	q.T.Helper()
	conn, err := pgx.Connect(q.T.Context(), q.URL)
	if err != nil {
		q.T.Fatal(err)
	}
	return conn
}

func (q *running) count(sql string) (n int) {
	q.T.Helper()
	conn := q.connect()
	defer conn.Close(context.Background())
	if err := conn.QueryRow(q.T.Context(), sql).Scan(&n); err != nil {
		q.T.Fatal(err)
	}
	return n
}

// response is the answer to a request.
type response struct {
	status      int
	contentType string
	body        string
}

// send sends what curl would: a POST where there is a body.
func (q *running) send(url, body string) (response, error) {
	method := http.MethodGet
	if body != "" {
		method = http.MethodPost
	}
	req, err := http.NewRequestWithContext(context.Background(), method, url, strings.NewReader(body))
	if err != nil {
		return response{}, err
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	resp, err := q.Client.Do(req)
	if err != nil {
		return response{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return response{resp.StatusCode, resp.Header.Get("Content-Type"), string(b)}, err
}

// do sends a request to a host, and checks the status of the answer.
func (q *running) do(host, path, body string, status int) response {
	q.T.Helper()
	r, err := q.send("http://"+host+":"+q.Port+path, body)
	if err != nil {
		q.T.Fatal(err)
	}
	if r.status != status {
		q.T.Errorf("%s%s %s: status %d, want %d: %s", host, path, body, r.status, status, r.body)
	}
	return r
}

// orders returns what a tenant sees of its orders.
func (q *running) orders(host string) string {
	q.T.Helper()
	return orders(q.T, q.do(host, "/orders", "", 200))
}

func orders(t *testing.T, r response) string {
	t.Helper()
	var list []order
	if err := json.Unmarshal([]byte(r.body), &list); err != nil {
		t.Errorf("%v: %s", err, r.body)
	}
	var s []string
	for _, o := range list {
		s = append(s, fmt.Sprintf("%d %s %s %d", o.ID, o.Customer, o.Status, o.TotalCents))
	}
	return strings.Join(s, ", ")
}

var curlLine = regexp.MustCompile(`(?m)^  curl (-i )?'?(http://[^ ']+)'?(?: -d '(.*)')?$`)

// The printed lines do what they are there to show, in their order.
func TestPrintedLines(t *testing.T) {
	q := start(t, pgtenancytest.Database(t), 0)
	body := func(want string) func(response) string {
		return func(r response) string {
			if r.status/100 != 2 || r.contentType != "application/json" || strings.TrimSpace(r.body) != want {
				return want
			}
			return ""
		}
	}
	sees := func(want string) func(response) string {
		return func(r response) string {
			if r.status != 200 || orders(t, r) != want {
				return want
			}
			return ""
		}
	}
	const acme = "1 Wile E. Coyote open 29700, 2 Wile E. Coyote open 29700"
	want := []struct {
		line  string
		check func(response) string // returns what was wanted
	}{
		{"http://acme.localhost/orders", sees(acme)},
		{"http://globex.localhost/orders", sees("1 Homer Simpson open 13650")},
		{"http://acme.localhost/users", body(`["road@acme.example"]`)},
		{`http://acme.localhost/orders {"customer": "wile@acme.example", "sku": "ANVIL", "quantity": 2}`, body(`{"id":3}`)},
		{"http://nobody.localhost/orders", func(r response) string {
			if r.status != 404 || r.contentType != "application/problem+json" {
				return "404 application/problem+json"
			}
			return ""
		}},
		{`http://localhost/signup {"id": "initech", "email": "bill@initech.example"}`, body(`{"id":"initech"}`)},
		{"http://initech.localhost/orders", sees("1 First Customer open 3000")},
		{"http://localhost/login?email=bill@initech.example", body(`["initech"]`)},
	}
	lines := curlLine.FindAllStringSubmatch(q.Out.String(), -1)
	if printed := strings.Count(q.Out.String(), "curl"); len(lines) != printed || len(lines) != len(want) {
		t.Fatalf("%d lines printed, %d understood, %d known:\n%s", printed, len(lines), len(want), q.Out)
	}
	for i, m := range lines {
		line := strings.TrimSpace(strings.Replace(m[2], ":"+q.Port, "", 1) + " " + m[3])
		if line != want[i].line {
			t.Fatalf("line %d is %s, want %s", i+1, line, want[i].line)
		}
		r, err := q.send(m[2], m[3])
		if err != nil {
			t.Fatal(err)
		}
		if wanted := want[i].check(r); wanted != "" {
			t.Errorf("%s: %+v, want %s", line, r, wanted)
		}
	}
	if got, want := q.orders("acme.localhost"), acme+", 3 Wile E. Coyote open 19800"; got != want {
		t.Errorf("orders of acme: %s, want %s", got, want)
	}
	if got, want := q.orders("globex.localhost"), "1 Homer Simpson open 13650"; got != want {
		t.Errorf("orders of globex: %s, want %s", got, want)
	}
	q.End()
}

func TestRequests(t *testing.T) {
	q := start(t, pgtenancytest.Database(t), 0)
	const acme = "1 Wile E. Coyote open 29700, 2 Wile E. Coyote open 29700"

	// Nothing stays of an order that cannot be made.
	for name, body := range map[string]string{
		"unknown product":             `{"customer": "wile@acme.example", "sku": "nothing", "quantity": 1}`,
		"unknown customer":            `{"customer": "nobody@acme.example", "sku": "ANVIL", "quantity": 1}`,
		"another tenant's product":    `{"customer": "wile@acme.example", "sku": "HAMMOCK", "quantity": 1}`,
		"another tenant's customer":   `{"customer": "homer@globex.example", "sku": "ANVIL", "quantity": 1}`,
		"more than one order's worth": `{"customer": "wile@acme.example' or true --", "sku": "ANVIL", "quantity": 1}`,
	} {
		q.do("acme.localhost", "/orders", body, http.StatusUnprocessableEntity)
		if got := q.orders("acme.localhost"); got != acme {
			t.Errorf("after an order of an %s: %s", name, got)
		}
	}
	q.do("acme.localhost", "/orders", `{"customer": "wile@acme.example", "sku": "ANVIL", "quantity": 0}`, http.StatusBadRequest)
	q.do("acme.localhost", "/orders", `nonsense`, http.StatusBadRequest)
	q.do("ACME.localhost", "/orders", "", 200)
	q.do("acme.localhost", "/signup", `{"id": "x", "email": "x"}`, http.StatusNotFound) // not a tenant's page
	q.do("localhost", "/orders", "", http.StatusNotFound)

	// Nobody sees what others have signed up.
	q.do("initech.localhost", "/orders", "", http.StatusNotFound) // and remembered as missing
	q.do("localhost", "/signup", `{"id": "initech", "email": "bill@initech.example"}`, http.StatusCreated)
	q.do("initech.localhost", "/orders", "", 200)
	for host, want := range map[string]string{"initech.localhost": `["bill@initech.example"]`, "acme.localhost": `["road@acme.example"]`} {
		if got := strings.TrimSpace(q.do(host, "/users", "", 200).body); got != want {
			t.Errorf("users of %s: %s, want %s", host, got, want)
		}
	}
	q.do("localhost", "/signup", `{"id": "initech", "email": "other@initech.example"}`, http.StatusConflict)
	q.do("localhost", "/signup", `{"id": "Not An ID", "email": "x@x.example"}`, http.StatusBadRequest)
	q.do("localhost", "/signup", `{"id": "noname"}`, http.StatusBadRequest)
	q.do("localhost", "/signup", `{"id": "hooli", "email": "bill@initech.example"}`, http.StatusCreated)
	for email, want := range map[string]string{
		"bill@initech.example":  `["hooli","initech"]`,
		"road@acme.example":     `["acme"]`,
		"other@initech.example": `[]`,
		"":                      `[]`,
		"%25":                   `[]`,
	} {
		if got := strings.TrimSpace(q.do("localhost", "/login?email="+email, "", 200).body); got != want {
			t.Errorf("login of %s: %s, want %s", email, got, want)
		}
	}
	q.End()
}

// A request under way ends before the service does.
func TestStop(t *testing.T) {
	q := start(t, pgtenancytest.Database(t), 0)
	conn, err := net.Dial("tcp", "127.0.0.1:"+q.Port)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	const body = `{"customer": "wile@acme.example", "sku": "ANVIL", "quantity": 1}`
	fmt.Fprintf(conn, "POST /orders HTTP/1.1\r\nHost: acme.localhost\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n", len(body))
	r := bufio.NewReader(conn)
	if line, err := r.ReadString('\n'); err != nil || !strings.Contains(line, " 100 ") { // the handler waits for the body
		t.Fatalf("%q, %v", line, err)
	}
	r.ReadString('\n')
	q.Stop()
	time.Sleep(50 * time.Millisecond)
	select {
	case err := <-q.Stopped:
		t.Errorf("stopped before the request had its answer: %v", err)
		q.Stopped <- err
	default:
	}
	io.WriteString(conn, body)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		t.Errorf("status %d", resp.StatusCode)
	}
	q.End()
}

// More tenants, and a second run on the same database.
func TestTenants(t *testing.T) {
	url := pgtenancytest.Database(t)
	for range 2 {
		q := start(t, url, 20)
		if out := q.Out.String(); !strings.Contains(out, "\rtenants: 1 of 20, ") || !strings.Contains(out, "\rtenants: 20 of 20, ") {
			t.Errorf("no progress:\n%s", out)
		}
		if n := q.count("select count(*) from pgtenancy.tenants where state = 'active'"); n != 22 {
			t.Errorf("%d tenants, want 22", n)
		}
		if got, want := q.orders("shop-00020.localhost"), "1 First Customer open 3000"; got != want {
			t.Errorf("orders of shop-00020: %s, want %s", got, want)
		}
		if n := q.count("select count(*) from users"); n != 22 {
			t.Errorf("%d users, want 22", n)
		}
		q.End()
	}
}

// The owner need not be a superuser.
func TestOwner(t *testing.T) {
	admin := pgtenancytest.Database(t)
	u, err := url.Parse(admin)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), admin)
	if err != nil {
		t.Fatal(err)
	}
	database := pgx.Identifier{conn.Config().Database}.Sanitize()
	_, err = conn.Exec(t.Context(), "drop role if exists "+appRole+", quickstart_owner; create role quickstart_owner login createrole; "+
		"alter database "+database+" owner to quickstart_owner")
	conn.Close(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.User("quickstart_owner")
	for range 2 {
		q := start(t, u.String(), 0)
		q.do("acme.localhost", "/users", "", 200)
		if got := strings.TrimSpace(q.do("localhost", "/login?email=road@acme.example", "", 200).body); got != `["acme"]` {
			t.Errorf("login: %s", got)
		}
		q.End()
	}
}

func TestAddressInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("DATABASE_URL", pgtenancytest.Database(t))
	if err := run(t.Context(), l.Addr().String(), 0, io.Discard); err == nil {
		t.Error("no error")
	}
}
