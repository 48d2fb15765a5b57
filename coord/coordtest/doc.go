// Package coordtest runs real coordination members in one process, for tests:
// real etcd servers on loopback addresses, real pulses over TCP, no TLS.
package coordtest
