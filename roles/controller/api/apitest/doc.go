// Package apitest holds a backend of the API that lives in memory, for tests of
// the API and of its clients. It keeps what it is told, records who told it, and
// fails on demand; it decides nothing.
package apitest
