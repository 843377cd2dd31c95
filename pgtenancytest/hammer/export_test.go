package hammer

import "time"

// SetTimeouts makes the timeouts short, and returns what makes them long again.
func SetTimeouts(d time.Duration) (reset func()) {
	hang, quiet := hangTimeout, quietTimeout
	hangTimeout, quietTimeout = d, d
	return func() { hangTimeout, quietTimeout = hang, quiet }
}
