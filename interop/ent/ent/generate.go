// Package ent is generated from the schema.
package ent

//go:generate go tool ent generate ./schema
