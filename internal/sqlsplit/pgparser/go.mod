module github.com/pgtenancy/pgtenancy/internal/sqlsplit/pgparser

go 1.26.0

replace github.com/pgtenancy/pgtenancy => ../../../

require (
	github.com/pgtenancy/pgtenancy v0.0.0-00010101000000-000000000000
	github.com/wasilibs/go-pgquery v0.0.0-20260728010200-155ebad2880e
	google.golang.org/protobuf v1.36.11
)

require (
	github.com/pganalyze/pg_query_go/v6 v6.2.2 // indirect
	github.com/tetratelabs/wazero v1.12.0 // indirect
	github.com/wasilibs/wazero-helpers v0.0.0-20250123031827-cd30c44769bb // indirect
	golang.org/x/sys v0.49.0 // indirect
)
