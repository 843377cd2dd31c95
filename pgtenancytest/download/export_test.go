package download

// Start is the driver.
var Start = start
