//go:build !linux

package wire

import "net"

// newDirect returns the connection itself: see direct on Linux.
func newDirect(c net.Conn) net.Conn { return c }
