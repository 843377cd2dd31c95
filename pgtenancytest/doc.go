// Package pgtenancytest gives tests and examples a throwaway PostgreSQL.
//
// A test asks for a database of its own; all tests of a test binary share one server, which is started when the first of
// them asks and which is gone when the binary is:
//
//	func TestOrders(t *testing.T) {
//		t.Parallel()
//		pool, err := pgtenancy.NewPool(t.Context(), pgtenancytest.Database(t))
//		...
//	}
//
// A program starts a server of its own:
//
//	server, err := pgtenancytest.Start(ctx)
//	if err != nil {
//		return err
//	}
//	defer server.Close()
//
// # Where the server comes from
//
// [Start] uses the server in DATABASE_URL, else the PostgreSQL that is installed on this machine, else what the program imports:
//
//	import _ "github.com/pgtenancy/pgtenancy/pgtenancytest/container" // an image, by Docker or what speaks its protocol
//	import _ "github.com/pgtenancy/pgtenancy/pgtenancytest/download"  // binaries from Maven Central, kept in the user's cache
//
// These are packages of their own so that nobody compiles a Docker client unasked.
//
// # Environment variables
//
//	DATABASE_URL                     a server to use as it is
//	PGTENANCY_POSTGRES_BIN           the directory of the initdb and postgres to run
//	PGTENANCY_POSTGRES_IMAGE         container: the image, postgres:18-alpine when unset
//	PGTENANCY_POSTGRES_VERSION       download: the version, 18 or 18.3.0, say
//	PGTENANCY_POSTGRES_DOWNLOAD_URL  download: the Maven repository to take it from
//	TMPDIR                           where an installed or downloaded server keeps its data; a directory in memory, such as
//	                                 /dev/shm on Linux, can make it several times faster
//
// # What is left behind
//
// Nothing, even of a process that was killed: installed and downloaded servers run under a small supervisor which stops them and
// removes their directory when this process ends in any way; containers are reaped by testcontainers-go. Databases of
// killed tests stay in a server from DATABASE_URL, which is nobody's to clean up.
package pgtenancytest
