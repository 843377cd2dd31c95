package pgtenancytest

import "testing"

// Installed is the search for server binaries.
var Installed = installed

// SetPlaces replaces the usual places of server binaries, for good or, with a test, for its duration.
func SetPlaces(t testing.TB, p ...string) {
	before := places
	places = p
	if t != nil {
		t.Cleanup(func() { places = before })
	}
}

// SetDrivers replaces the registered drivers for the duration of a test.
func SetDrivers(t testing.TB, d map[string]Driver) {
	driversMu.Lock()
	defer driversMu.Unlock()
	before := drivers
	drivers = d
	t.Cleanup(func() {
		driversMu.Lock()
		defer driversMu.Unlock()
		drivers = before
	})
}
