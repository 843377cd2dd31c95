package container

// ErrNoEngine is what start's error wraps where no engine answers.
var ErrNoEngine = errNoEngine

// Start is the driver.
var Start = start
