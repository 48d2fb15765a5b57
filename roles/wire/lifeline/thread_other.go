//go:build !linux

package lifeline

import (
	"errors"
	"net"
)

func hold(*net.TCPConn, chan<- struct{}) (end func(), err error) { return nil, errors.ErrUnsupported }

func listen(*net.TCPListener) (net.Listener, error) { return nil, errors.ErrUnsupported }
