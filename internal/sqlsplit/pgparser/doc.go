// Package pgparser has nothing but a fuzz test, of whether sqlsplit reads SQL
// as PostgreSQL does.
//
// The parser and the scanner that it compares with are PostgreSQL's own C code,
// as libpg_query takes them out of the server (version 17 now), in the build
// for WebAssembly of go-pgquery. That takes a few seconds of the Go compiler and
// 2 s at the first call, and reads a statement in a tenth of a millisecond,
// which is some thousand comparisons a second. By way of cgo libpg_query is
// faster to run, but each clean build would wait for a C compiler to go through
// PostgreSQL's sources.
//
// It is a module of its own so that nobody else's go.sum has to know a parser.
package pgparser
