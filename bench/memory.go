package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
)

// memoryTables is how many tables a tenant has here.
const memoryTables = 10

// memoryStrategies are those that are asked: what PostgreSQL's own caches grow by, and what the statements do on top.
var memoryStrategies = []string{"qualified", "pgtenancy", "prepareconn"}

// grown is a backend's memory after it has served a number of tenants.
type grown struct {
	tenants int
	bytes   int64
	conn    int // the how many-th connection it is: the pool may have replaced it
}

// compareMemory lets one connection of each strategy serve all tenants one after the other, and prints how the backend grows.
func compareMemory(ctx context.Context, out io.Writer, db *database) error {
	var all [][]grown
	var b strings.Builder
	head, line := "| tenants |", "|--:|"
	for _, key := range memoryStrategies {
		s, err := byKey(key)
		if err != nil {
			return err
		}
		g, err := memory(ctx, db, s)
		if errors.Is(err, errSkipped) {
			fmt.Fprintf(&b, "\nMemory of a backend: %v\n", err)
			return write(out, &b)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		all = append(all, g)
		head, line = head+" "+s.what+" |", line+"--:|"
	}
	fmt.Fprintf(&b, "\n### Memory of one backend that has read %d tables of each of N tenants, twice, in MiB\n\n%s\n%s\n", len(db.tables), head, line)
	for i, first := range all[0] {
		fmt.Fprintf(&b, "| %d |", first.tenants)
		for _, g := range all {
			fmt.Fprintf(&b, " %.1f", float64(g[i].bytes)/(1<<20))
			if g[i].conn > 1 {
				fmt.Fprintf(&b, " (connection %d)", g[i].conn)
			}
			b.WriteString(" |")
		}
		b.WriteString("\n")
	}
	return write(out, &b)
}

// memory measures after 1, 2, 5, 10, ... tenants, and at the last.
func memory(ctx context.Context, db *database, s strategy) ([]grown, error) {
	named := *db
	named.app = db.app.Copy()
	name := "bench_memory_" + s.key
	named.app.ConnConfig.RuntimeParams["application_name"] = name
	read, closeRead, err := s.open(ctx, &named, 1)
	if err != nil {
		return nil, err
	}
	defer closeRead()
	admin, err := pgx.ConnectConfig(ctx, db.admin.ConnConfig.Copy())
	if err != nil {
		return nil, err
	}
	defer admin.Close(context.WithoutCancel(ctx))

	var all []grown
	pids := make(map[int]bool)
	note := func(tenants int) error {
		var pid int
		if err := admin.QueryRow(ctx, "select pid from pg_stat_activity where application_name = $1 order by backend_start desc limit 1",
			name).Scan(&pid); err != nil {
			return err
		}
		pids[pid] = true
		bytes, err := anonymous(pid)
		all = append(all, grown{tenants, bytes, len(pids)})
		return err
	}
	next := 1
	for i := range db.tenants {
		for range 2 { // a statement is worth keeping when it comes again
			for table := range db.tables {
				if err := readOne(ctx, read, &db.tenants[i], table, 0); err != nil {
					return nil, err
				}
			}
		}
		if n := i + 1; n == next || n == len(db.tenants) {
			if err := note(n); err != nil {
				return nil, err
			}
			for n >= next {
				next = after(next)
			}
		}
	}
	return all, nil
}

// after returns what follows n in 1, 2, 5, 10, 20, 50, ...
func after(n int) int {
	if strconv.Itoa(n)[0] == '2' {
		return n / 2 * 5
	}
	return 2 * n
}

// anonymous returns the memory that a process has for itself, without what is shared, as the server's buffers.
func anonymous(pid int) (int64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, fmt.Errorf("%w: it needs Linux, and the server as a process of the same user or root: %w", errSkipped, err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if kB, ok := strings.CutPrefix(lines.Text(), "Anonymous:"); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(kB, "kB")), 10, 64)
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("%w: smaps_rollup has no line Anonymous", errSkipped)
}
