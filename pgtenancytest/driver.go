package pgtenancytest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
)

// Driver is one more way to get a server: it starts one and returns the superuser's connection URL, a short text for
// [Server.Source], and what stops the server and removes everything of it. stop is called at most once. ctx governs the
// start only; a Driver that fails, or whose ctx is done meanwhile, leaves nothing behind.
type Driver func(ctx context.Context) (url, source string, stop func() error, err error)

var (
	driversMu sync.Mutex
	drivers   = map[string]Driver{}
)

// Register makes a driver known to [Start]. Driver packages call it when they are initialized; programs import them for that:
//
//	import _ "github.com/pgtenancy/pgtenancy/pgtenancytest/container"
//
// It panics when the name is taken or d is nil.
func Register(name string, d Driver) {
	driversMu.Lock()
	defer driversMu.Unlock()
	if d == nil {
		panic(fmt.Sprintf("pgtenancytest: Register of a nil driver %q", name))
	}
	if _, ok := drivers[name]; ok {
		panic(fmt.Sprintf("pgtenancytest: Register called twice for driver %q", name))
	}
	drivers[name] = d
}

// registered returns the drivers and their names in order.
func registered() ([]string, map[string]Driver) {
	driversMu.Lock()
	defer driversMu.Unlock()
	return slices.Sorted(maps.Keys(drivers)), maps.Clone(drivers)
}
