// Package wiretest makes throw-away certificates for tests of whatever talks over
// the wire package. Nothing but tests may import it.
package wiretest
