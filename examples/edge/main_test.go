package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
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

// running is a service that runs, with the variables of a shell.
type running struct {
	*exampletest.Service
	vars map[string]string
}

var serving = regexp.MustCompile(`(?s)Serving on http://localhost:(\d+),.*\n\n$`)

// start runs the service on a database until the test is over.
func start(t *testing.T, url string) *running {
	t.Helper()
	return &running{
		Service: exampletest.Start(t, url, serving, func(ctx context.Context, out io.Writer) error { return run(ctx, "127.0.0.1:0", out) }),
		vars:    map[string]string{},
	}
}

var (
	word   = regexp.MustCompile(`'[^']*'|\S+`)
	assign = regexp.MustCompile(`^([A-Z])=\$\((.*)\)$`)
	loop   = regexp.MustCompile(`^for i in ([\d ]+); do (.*); done$`)
)

// shell does what a shell would with a line of the README, and returns what curl would print.
func (q *running) shell(line string) string {
	q.T.Helper()
	line = strings.ReplaceAll(line, ":8080/", ":"+q.Port+"/")
	if m := assign.FindStringSubmatch(line); m != nil {
		q.vars["$"+m[1]] = strings.TrimSpace(q.curl(m[2]))
		return ""
	}
	if m := loop.FindStringSubmatch(line); m != nil {
		var b strings.Builder
		for range strings.Fields(m[1]) {
			b.WriteString(q.curl(m[2]))
		}
		return b.String()
	}
	return q.curl(line)
}

func (q *running) curl(line string) string {
	q.T.Helper()
	args := word.FindAllString(line, -1)
	if args[0] != "curl" {
		q.T.Fatalf("no curl: %s", line)
	}
	var target string
	var data []string
	head, header := false, http.Header{}
	for i := 1; i < len(args); i++ {
		value := func() string {
			i++
			v := strings.Trim(args[i], "'")
			for name, is := range q.vars {
				v = strings.ReplaceAll(v, name, is)
			}
			return v
		}
		switch args[i] {
		case "-s":
		case "-i":
			head = true
		case "-b":
			header.Set("Cookie", value())
		case "-d":
			data = append(data, value())
			header.Set("Content-Type", "application/x-www-form-urlencoded")
		case "-H":
			k, v, _ := strings.Cut(value(), ": ")
			header.Set(k, v)
		default:
			target = args[i]
		}
	}
	method := http.MethodGet
	if data != nil {
		method = http.MethodPost
	}
	req, err := http.NewRequestWithContext(context.Background(), method, target, strings.NewReader(strings.Join(data, "&")))
	if err != nil {
		q.T.Fatalf("%s: %v", line, err)
	}
	req.Header = header
	resp, err := q.Client.Do(req)
	if err != nil {
		q.T.Fatalf("%s: %v", line, err)
	}
	defer resp.Body.Close()
	var b strings.Builder
	if head {
		fmt.Fprintf(&b, "%s %s\r\n", resp.Proto, resp.Status)
		resp.Header.Write(&b) // in the order of a Go server
		b.WriteString("\r\n")
	}
	if _, err := io.Copy(&b, resp.Body); err != nil {
		q.T.Fatal(err)
	}
	return strings.ReplaceAll(b.String(), "\r\n", "\n")
}

var (
	command = regexp.MustCompile(`(?m)^    \$ (.*)\n((?:    [^$\n].*\n)*)`)
	indent  = regexp.MustCompile(`(?m)^    `)
	clock   = regexp.MustCompile(`\b\d\d:\d\d:\d\d\b`)
	wait    = regexp.MustCompile(`(Retry-After: |;t=)\d\d\d\b`) // of the plan free, whose clock goes on
)

// timeless takes out of an answer what the time of day is and how fast the test.
func timeless(s string) string {
	return wait.ReplaceAllString(clock.ReplaceAllString(s, "hh:mm:ss"), "${1}nnn")
}

// The lines of the README do what it says they do.
func TestReadme(t *testing.T) {
	q := start(t, pgtenancytest.Database(t))
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	commands := command.FindAllStringSubmatch(string(readme), -1)
	if n := strings.Count(string(readme), "    $ "); n != len(commands) || n < 11 {
		t.Fatalf("%d commands, of which %d are understood", n, len(commands))
	}
	for _, m := range commands {
		line, slept := strings.CutPrefix(m[1], "sleep 1; ")
		want := timeless(indent.ReplaceAllString(m[2], ""))
		matches := func(got string) bool {
			var pattern strings.Builder
			for s := range strings.Lines(want) {
				if s == "...\n" {
					pattern.WriteString(`(?s:.*\n)?`)
				} else {
					pattern.WriteString(regexp.QuoteMeta(s))
				}
			}
			return regexp.MustCompile(`^` + pattern.String() + `$`).MatchString(timeless(got))
		}
		if strings.HasSuffix(line, "/audit") { // it asks once, since it is recorded itself
			q.Await("select count(*) >= 3 from pgtenancy.audit where tenant_id = 'acme'")
		}
		got := q.shell(line)
		// What the shell sleeps for: the new plan is known, and then a request has come back.
		for deadline := time.Now().Add(patience); slept && !matches(got) && time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
			if !strings.Contains(got, "429 Too Many Requests") {
				break
			}
			got = q.shell(line)
		}
		if !matches(got) {
			t.Errorf("%s\ngot:\n%s\nwant:\n%s", m[1], got, want)
		}
	}
	q.End()
}

// What is printed is in the README.
func TestPrintedLines(t *testing.T) {
	q := start(t, pgtenancytest.Database(t))
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(q.Out.String()) {
		if line, ok := strings.CutPrefix(line, "  "); ok {
			n++
			if !strings.Contains(string(readme), "    $ "+strings.ReplaceAll(line, ":"+q.Port+"/", ":8080/")) {
				t.Errorf("not in the README: %s", line)
			}
		}
	}
	if n != 11 {
		t.Errorf("%d lines:\n%s", n, q.Out)
	}
	q.End()
}

func TestRequests(t *testing.T) {
	q := start(t, pgtenancytest.Database(t))
	q.shell("S=$(curl http://acme.localhost:8080/login -d user=ann -d password=anvil)")
	q.shell("H=$(curl http://globex.localhost:8080/login -d user=hank -d password=hammock)")
	tests := []struct{ name, line, status string }{
		{"wrong password", "curl -i http://acme.localhost:8080/login -d user=ann -d password=x", "401"},
		{"no password", "curl -i http://acme.localhost:8080/login -d user=ann", "401"},
		{"user of another tenant", "curl -i http://acme.localhost:8080/login -d user=hank -d password=hammock", "401"},
		{"no tenant", "curl -i http://localhost:8080/login -d user=ann -d password=anvil", "404"},
		{"no such tenant", "curl -i http://nobody.localhost:8080/login -d user=ann -d password=anvil", "404"},
		{"session of nobody", "curl -i -b session=x http://acme.localhost:8080/notes", "403"},
		{"empty note", "curl -i -b session=$S http://acme.localhost:8080/notes -d body=", "400"},
		{"no such plan", "curl -i -b session=$S http://acme.localhost:8080/plan -d plan=x", "400"},
		{"no such page", "curl -i -b session=$S http://acme.localhost:8080/x", "404"},
		{"forged host", "curl -i -b session=$S -H 'Forwarded: host=acme.localhost' http://globex.localhost:8080/notes", "403"},
		{"own session", "curl -i -b session=$H http://globex.localhost:8080/audit", "200"},
	}
	for _, tt := range tests {
		if got := q.shell(tt.line); !strings.HasPrefix(got, "HTTP/1.1 "+tt.status+" ") {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.status)
		}
	}

	// Strangers use up nothing of what globex has, and the limit of one tenant is not the other's.
	for range 10 {
		q.shell("curl -i -b session=$S http://globex.localhost:8080/notes")
	}
	if got := q.shell("curl -i -b session=$H http://globex.localhost:8080/notes"); !strings.Contains(got, `"default";r=3;`) {
		t.Errorf("globex's second request: %s", got)
	}

	q.End() // by which all that was recorded is written
	conn, err := pgx.Connect(t.Context(), q.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var actors, statuses []string
	err = conn.QueryRow(t.Context(), `select array_agg(actor order by id), array_agg(status::text order by id) from pgtenancy.audit
		where tenant_id = 'acme' and route = 'POST /login'`).Scan(&actors, &statuses)
	if err != nil || fmt.Sprint(actors, statuses) != "[ann ann ann hank] [200 401 401 401]" {
		t.Errorf("the logins are recorded as %v %v, %v", actors, statuses, err)
	}
}

// The owner need not be a superuser, and a second run finds what the first has left.
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
	_, err = conn.Exec(t.Context(), "drop role if exists "+appRole+", edge_owner; create role edge_owner login createrole; "+
		"alter database "+database+" owner to edge_owner")
	conn.Close(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.User("edge_owner")
	for i := range 2 {
		q := start(t, u.String())
		q.shell("S=$(curl http://acme.localhost:8080/login -d user=ann -d password=anvil)")
		q.shell("curl -b session=$S http://acme.localhost:8080/notes -d body=x")
		q.Await(fmt.Sprintf("select count(*) = %d from pgtenancy.audit where action = 'note.add'", i+1))
		if got := q.shell("curl -b session=$S http://acme.localhost:8080/audit"); strings.Count(got, "note.add") != i+1 {
			t.Errorf("run %d: %s", i+1, got)
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
	if err := run(t.Context(), l.Addr().String(), io.Discard); err == nil {
		t.Error("no error")
	}
}
