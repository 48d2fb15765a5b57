package main

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"strconv"
	"syscall"
	"time"

	"uac/config"
)

// Every cluster has a /24 of the loopback network for itself, so that its nodes
// use the default ports. The 65,000 there are are spread by directory: two
// clusters rarely want the same, even if one of them does not run now. Whoever
// runs a cluster holds a port in its subnet that no node uses.

const (
	// devMaxListening is how many nodes with an address a cluster can have.
	devMaxListening = 200
	// devGuardHost is the last part of the address that says that a subnet is
	// taken.
	devGuardHost = 254
)

// errSubnetTaken is returned for a subnet that is in use.
var errSubnetTaken = errors.New("in use")

// findSubnet takes a free subnet for a new cluster in dir.
func findSubnet(ctx context.Context, dir string, hosts int) (subnet string, guard net.Listener, err error) {
	h := fnv.New32a()
	_, _ = h.Write([]byte(dir)) // cannot fail
	for i := range uint32(100) {
		n := h.Sum32() + i*7919
		// 127.0 and 127.1 are where other programs are.
		subnet = fmt.Sprintf("127.%d.%d", 2+n%250, n/250%256)
		guard, err = takeSubnet(ctx, subnet)
		if err == nil {
			if err = portsFree(ctx, subnet, hosts); err == nil {
				return subnet, guard, nil
			}
			_ = guard.Close() // nothing was accepted
		}
		if !errors.Is(err, errSubnetTaken) {
			return "", nil, err
		}
	}
	return "", nil, fmt.Errorf("no free addresses on the loopback network: %w", err)
}

// takeSubnet takes a subnet until the listener is closed.
func takeSubnet(ctx context.Context, subnet string) (net.Listener, error) {
	return bind(ctx, devAddress(subnet, devGuardHost), config.PortAPI)
}

// portsFree reports whether nobody uses the ports of the first hosts.
func portsFree(ctx context.Context, subnet string, hosts int) error {
	for host := 1; host <= hosts; host++ {
		if err := addressFree(ctx, devAddress(subnet, host)); err != nil {
			return err
		}
	}
	return nil
}

func addressFree(ctx context.Context, address string) error {
	for _, port := range []int{config.PortAPI, config.PortRaft, config.PortLink} {
		l, err := bind(ctx, address, port)
		if err != nil {
			return err
		}
		if err := l.Close(); err != nil {
			return err
		}
	}
	return nil
}

// awaitFree waits for the ports of a node that has just ended. The kernel needs
// a moment to take back those of a killed process.
func awaitFree(ctx context.Context, address string) error {
	for deadline := time.Now().Add(3 * time.Second); ; {
		err := addressFree(ctx, address)
		if err == nil || !errors.Is(err, errSubnetTaken) || time.Now().After(deadline) {
			return err
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
}

func devAddress(subnet string, host int) string { return fmt.Sprintf("%s.%d", subnet, host) }

func bind(ctx context.Context, address string, port int) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", net.JoinHostPort(address, strconv.Itoa(port)))
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("%s:%d is %w", address, port, errSubnetTaken)
	}
	if err != nil {
		return nil, fmt.Errorf("an address for each node is needed, as Linux has on its loopback network: %w", err)
	}
	return l, nil
}

// pause waits for d or until ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
