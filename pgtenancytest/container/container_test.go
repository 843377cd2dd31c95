package container_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgtenancy/pgtenancy/pgtenancytest/container"
)

// skipWithoutEngine skips the test where a container cannot be started for reasons that are not ours.
func skipWithoutEngine(t *testing.T, err error) {
	t.Helper()
	switch {
	case err == nil:
	case errors.Is(err, container.ErrNoEngine):
		t.Skipf("needs a container engine: %v", err)
	case os.Getenv("PGTENANCY_POSTGRES_IMAGE") == "" && strings.Contains(err.Error(), "create container"):
		t.Skipf("the default image is not here and cannot be pulled; set PGTENANCY_POSTGRES_IMAGE to one that is here: %v", err)
	}
}

func TestContainer(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	begin := time.Now()
	url, source, stop, err := container.Start(ctx)
	skipWithoutEngine(t, err)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: %s in %v", source, url, time.Since(begin))
	stopped := false
	defer func() {
		if !stopped {
			stop()
		}
	}()
	if !strings.HasPrefix(source, "container ") {
		t.Errorf("source %q", source)
	}

	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	for setting, want := range map[string]string{
		"fsync":           "off",
		"max_connections": "200",
		"server_encoding": "UTF8",
		"is_superuser":    "on",
	} {
		var got string
		if err := conn.QueryRow(ctx, "SELECT current_setting($1)", setting).Scan(&got); err != nil || got != want {
			t.Errorf("%s = %s, %v, want %s", setting, got, err, want)
		}
	}
	// A role without a password can connect, as on an installed server.
	if _, err := conn.Exec(ctx, "CREATE ROLE app LOGIN"); err != nil {
		t.Fatal(err)
	}
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	cfg.User, cfg.Password = "app", ""
	app, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	app.Close(ctx)

	stopped = true
	if err := stop(); err != nil {
		t.Error(err)
	}
	if _, err := pgx.Connect(ctx, url); err == nil {
		t.Error("the server still answers")
	}
}

func TestContainerCanceled(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	_, _, stop, err := container.Start(ctx)
	skipWithoutEngine(t, err)
	if err == nil {
		stop()
		t.Skip("this engine is faster than the test")
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Start = %v, want %v", err, context.DeadlineExceeded)
	}
}

func TestContainerWrongImage(t *testing.T) {
	t.Setenv("PGTENANCY_POSTGRES_IMAGE", "localhost:1/no/such-image:1")
	begin := time.Now()
	_, _, stop, err := container.Start(t.Context())
	skipWithoutEngine(t, err)
	if err == nil {
		stop()
		t.Fatal("Start had no error")
	}
	if !strings.Contains(err.Error(), "localhost:1/no/such-image:1") {
		t.Errorf("error does not name the image: %v", err)
	}
	if d := time.Since(begin); d > 2*time.Minute {
		t.Errorf("it took %v to find out", d)
	}
	t.Log(err)
}
