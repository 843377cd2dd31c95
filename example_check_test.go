package pgtenancy_test

import (
	"fmt"
	"log"
	"testing/fstest"

	"github.com/pgtenancy/pgtenancy"
)

// A unit test of a service calls it with the migrations that the service embeds, and fails for each finding.
func ExampleCheck() {
	migrations := fstest.MapFS{
		"tenant/001_orders.sql": {Data: []byte("create table orders (id bigint primary key, customer text);")},
		"tenant/002_customer.sql": {Data: []byte(`
create index orders_customer on orders (customer);

-- pgtenancy:allow breaks-old-code no release has ever read it
alter table orders drop column note;
`)},
	}
	findings, err := pgtenancy.Check(migrations, nil)
	if err != nil {
		log.Fatal(err)
	}
	for _, f := range findings {
		fmt.Println(f)
	}
	// Output:
	// tenant/002_customer.sql:2: CREATE INDEX keeps everybody from writing to orders until the index is built: write CREATE INDEX CONCURRENTLY with a name for the index, in a file of its own (index-blocks-writes)
}
