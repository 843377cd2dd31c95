package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgtenancy/pgtenancy"
	"github.com/pgtenancy/pgtenancy/pgtenancytest"
)

// testDatabase makes a database that goes with the test.
func testDatabase(tb testing.TB, tenants, tables int) *database {
	tb.Helper()
	if err := checkServer(); err != nil {
		tb.Fatal(err)
	}
	var db *database
	tb.Cleanup(func() { // after the database is dropped
		if db != nil {
			if err := db.dropRole(context.Background()); err != nil {
				tb.Error(err)
			}
		}
	})
	url := pgtenancytest.Database(tb)
	var err error
	if db, err = newDatabase(tb.Context(), url, tenants, tables); err != nil {
		tb.Fatal(err)
	}
	return db
}

// BenchmarkRead reads a row of a tenant, each time another, on 8 connections.
func BenchmarkRead(b *testing.B) {
	db := testDatabase(b, 100, 1)
	for _, s := range strategies {
		b.Run(s.key, func(b *testing.B) {
			read, closeRead, err := s.open(b.Context(), db, 8)
			if errors.Is(err, errSkipped) {
				b.Skip(err)
			}
			if err != nil {
				b.Fatal(err)
			}
			defer closeRead()
			var seed atomic.Uint64
			b.ReportAllocs()
			b.SetParallelism(8)
			b.RunParallel(func(pb *testing.PB) {
				r := rand.New(rand.NewPCG(1, seed.Add(1)))
				for pb.Next() {
					if err := readOne(b.Context(), read, &db.tenants[r.IntN(len(db.tenants))], 0, r.IntN(rows)); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

// BenchmarkQueryRow is a statement that one connection has prepared, for one tenant whose context is there already.
func BenchmarkQueryRow(b *testing.B) {
	db := testDatabase(b, 1, 1)
	t := &db.tenants[0]
	b.Run("pgxpool", func(b *testing.B) {
		pool, err := pgxpool.NewWithConfig(b.Context(), db.conns(1))
		if err != nil {
			b.Fatal(err)
		}
		defer pool.Close()
		benchmarkQueryRow(b, b.Context(), pool.QueryRow, t.selects[0])
	})
	b.Run("pgtenancy", func(b *testing.B) {
		pool, err := newPool(b.Context(), db, 1)
		if err != nil {
			b.Fatal(err)
		}
		defer pool.Close()
		benchmarkQueryRow(b, pgtenancy.WithTenant(b.Context(), t.handle), pool.QueryRow, db.selects[0])
	})
}

func benchmarkQueryRow[R interface{ Scan(...any) error }](b *testing.B, ctx context.Context, queryRow func(context.Context, string, ...any) R, sql string) {
	var name string
	for range 5 { // warm
		if err := queryRow(ctx, sql, 1).Scan(&name); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := queryRow(ctx, sql, 1).Scan(&name); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkMemory serves 20 tenants of 10 tables on one connection and reports what the backend grew by for each.
func BenchmarkMemory(b *testing.B) {
	db := testDatabase(b, 20, memoryTables)
	for _, key := range memoryStrategies {
		b.Run(key, func(b *testing.B) {
			s, err := byKey(key)
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				g, err := memory(b.Context(), db, s)
				if errors.Is(err, errSkipped) {
					b.Skip(err)
				}
				if err != nil {
					b.Fatal(err)
				}
				first, last := g[0], g[len(g)-1]
				b.ReportMetric(float64(last.bytes-first.bytes)/float64(last.tenants-first.tenants), "backend-B/tenant")
			}
		})
	}
}

// BenchmarkFairness is one tenant's request of 2 ms, alone and while another makes 100 at once, on 8 connections.
func BenchmarkFairness(b *testing.B) {
	db := testDatabase(b, 2, 1)
	plain, ours, closePools, err := openRequests(b.Context(), db, 8, 2*time.Millisecond)
	if err != nil {
		b.Fatal(err)
	}
	defer closePools()
	for _, bm := range []struct {
		name  string
		do    request
		flood int
	}{
		{"pgxpool/alone", plain, 0},
		{"pgxpool/flood", plain, 100},
		{"pgtenancy/alone", ours, 0},
		{"pgtenancy/flood", ours, 100},
	} {
		b.Run(bm.name, func(b *testing.B) {
			if err := bm.do(b.Context(), &db.tenants[1]); err != nil {
				b.Fatal(err)
			}
			stop := flood(b.Context(), bm.do, &db.tenants[0], bm.flood)
			for b.Loop() {
				if err := bm.do(b.Context(), &db.tenants[1]); err != nil {
					b.Error(err)
					break
				}
			}
			if _, err := stop(); err != nil {
				b.Error(err)
			}
		})
	}
}

// BenchmarkRoundTrip is an empty query with and without the proxy, to see what the proxy adds.
func BenchmarkRoundTrip(b *testing.B) {
	direct := testDatabase(b, 1, 1)
	network, address := direct.address()
	p, err := startProxy(network, address, 500*time.Microsecond)
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	for _, bm := range []struct {
		name string
		db   *database
	}{{"loopback", direct}, {"loopback+1ms", direct.through(p)}} {
		b.Run(bm.name, func(b *testing.B) {
			pool, err := pgxpool.NewWithConfig(b.Context(), bm.db.conns(1))
			if err != nil {
				b.Fatal(err)
			}
			defer pool.Close()
			for b.Loop() {
				if _, err := pool.Exec(b.Context(), "select"); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestProxy sends far more than fits into the buffers on the way, and gets it back unchanged and late.
func TestProxy(t *testing.T) {
	t.Parallel()
	echo, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	go func() {
		conn, err := echo.Accept()
		if err != nil {
			return
		}
		io.Copy(conn, conn)
		conn.Close()
	}()
	const delay = 20 * time.Millisecond
	p, err := startProxy("tcp", echo.Addr().String(), delay)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	conn, err := net.Dial("tcp", p.listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	sent := make([]byte, 30<<20)
	rand.NewChaCha8([32]byte{}).Read(sent)
	start := time.Now()
	go func() {
		conn.Write(sent)
		conn.(*net.TCPConn).CloseWrite()
	}()
	first := make([]byte, 1)
	if _, err := io.ReadFull(conn, first); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took < 2*delay {
		t.Errorf("the first byte came back after %v, want at least %v", took, 2*delay)
	}
	rest, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(append(first, rest...), sent) {
		t.Errorf("%d bytes came back, not the %d that were sent", len(rest)+1, len(sent))
	}
}

// TestRun runs everything once, as briefly as can be.
func TestRun(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	svg, raw := filepath.Join(dir, "plot.svg"), filepath.Join(dir, "raw.txt")
	var out bytes.Buffer
	err := run(t.Context(), []string{
		"-tenants=3,120", "-conns=2", "-goroutines=3", "-rounds=2", "-round=20ms", "-warm=20ms",
		"-memory-tenants=3", "-flood=20", "-svg=" + svg, "-raw=" + raw,
	}, &out)
	t.Logf("%s", &out)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range strategies {
		if n := strings.Count(out.String(), "\n| "+s.what+" |"); n != 8 {
			t.Errorf("%d tables have a row for %s, want 8", n, s.key)
		}
	}
	if n := strings.Count(out.String(), "\n### "); n != 10 {
		t.Errorf("there are %d tables, want 10", n)
	}
	if plot, err := os.ReadFile(svg); err != nil || strings.Count(string(plot), "stroke-width") != 4 {
		t.Errorf("the plot has not 4 lines: %v\n%s", err, plot)
	}
	if lines, err := os.ReadFile(raw); err != nil || strings.Count(string(lines), "/by=qualified-3 ") != 16 {
		t.Errorf("want 16 lines of the first strategy: %v\n%s", err, lines)
	}
}

func TestOptions(t *testing.T) {
	t.Parallel()
	for _, args := range []string{
		"-rounds=0", "-round=2h", "-tenants=1000000", "-tenants=x", "-delays=1h", "-choices=x", "-strategies=x", "-what=x", "-flood=9999999", "x",
		"-fsync=x", "-migrate-tenants=0", "-fsync-tenants=0", "-goose-tenants=0", "-migrate-rounds=0", "-workers=0",
	} {
		if _, err := parse([]string{args}, io.Discard); err == nil {
			t.Errorf("%s is accepted", args)
		}
	}
}

func TestCheckServer(t *testing.T) {
	for url, want := range map[string]bool{
		"": true, "postgres://127.0.0.1/x": true, "postgres://localhost/x": true, "postgres://[::1]/x": true, "host=/run/postgresql": true,
		"postgres://db.invalid/x": false, "postgres://192.0.2.1/x": false, "postgres://127.0.0.1,db.invalid/x": false,
	} {
		t.Setenv("DATABASE_URL", url)
		if err := checkServer(); (err == nil) != want {
			t.Errorf("%s: %v", url, err)
		}
	}
}
