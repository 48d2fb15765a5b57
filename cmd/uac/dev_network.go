package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// devNetwork is a network that can be cut: every member of a cluster is in a
// network namespace of its own, tied to a bridge. It needs root, and the
// programs ip and nft. This process and the agents stay outside and reach all
// of them.
type devNetwork struct {
	id      string // prefix of the names of everything that it makes
	subnet  string // a /24 of 198.18.0.0/15, which is set aside for measurements
	members []string
}

// Hosts in the subnet.
const devBridgeHost = 254

// newDevNetwork makes the network. The caller closes it.
func newDevNetwork(ctx context.Context, members ...string) (_ *devNetwork, err error) {
	if os.Getuid() != 0 {
		return nil, usageError("cutting a network needs root")
	}
	for program, pkg := range map[string]string{"ip": "iproute2", "nft": "nftables"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, usageError("cutting a network needs the program %s: apt-get install %s", program, pkg)
		}
	}
	pid := os.Getpid()
	n := &devNetwork{
		// Names of links have at most 15 bytes.
		id: fmt.Sprintf("uac%x", pid), members: members,
		subnet: fmt.Sprintf("198.%d.%d", 18+pid/256%2, pid%256),
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.close(context.WithoutCancel(ctx)))
		}
	}()
	if err := command(ctx, "", "ip", "link", "add", n.id, "type", "bridge"); err != nil {
		return nil, err
	}
	if err := n.ip(ctx,
		fmt.Sprintf("addr add %s/24 dev %s", devAddress(n.subnet, devBridgeHost), n.id),
		"link set "+n.id+" up",
	); err != nil {
		return nil, err
	}
	for i, name := range members {
		ns, outer := n.id+"-"+name, n.outer(name)
		if err := n.ip(ctx,
			"netns add "+ns,
			fmt.Sprintf("link add %s type veth peer name eth0 netns %s", outer, ns),
			fmt.Sprintf("link set %s master %s up", outer, n.id),
			fmt.Sprintf("-n %s addr add %s/24 dev eth0", ns, n.address(i)),
			fmt.Sprintf("-n %s link set eth0 up", ns),
			fmt.Sprintf("-n %s link set lo up", ns),
		); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// address returns that of the i-th member.
func (n *devNetwork) address(i int) string { return devAddress(n.subnet, i+1) }

// namespace returns the file that stands for a member's namespace; "" for nodes
// that are outside.
func (n *devNetwork) namespace(name string) string {
	for _, m := range n.members {
		if m == name {
			return filepath.Join("/run/netns", n.id+"-"+name)
		}
	}
	return ""
}

// outer is the bridge's end of a member's link.
func (n *devNetwork) outer(name string) string { return n.id + name }

// cut takes a member off the network: what it sends and what is sent to it
// vanishes without a word.
func (n *devNetwork) cut(ctx context.Context, name string) error {
	return command(ctx, fmt.Sprintf(`table bridge %[1]s {
 chain from {
  type filter hook prerouting priority 0;
  iifname "%[2]s" drop;
 }
 chain to {
  type filter hook postrouting priority 0;
  oifname "%[2]s" drop;
 }
}
`, n.id, n.outer(name)), "nft", "-f", "-")
}

// heal ends a cut.
func (n *devNetwork) heal(ctx context.Context) error {
	return command(ctx, "", "nft", "delete", "table", "bridge", n.id)
}

// close removes everything that was made.
func (n *devNetwork) close(ctx context.Context) error {
	_ = n.heal(ctx) // there is hardly a cut
	var errs []error
	for _, name := range n.members {
		if _, err := os.Stat(n.namespace(name)); err == nil {
			errs = append(errs, n.ip(ctx, "netns del "+n.id+"-"+name))
		}
	}
	if _, err := os.Stat(filepath.Join("/sys/class/net", n.id)); err == nil {
		errs = append(errs, n.ip(ctx, "link del "+n.id))
	}
	return errors.Join(errs...)
}

// ip runs the program of that name, once for each line.
func (n *devNetwork) ip(ctx context.Context, lines ...string) error {
	for _, line := range lines {
		if err := command(ctx, "", "ip", strings.Fields(line)...); err != nil {
			return err
		}
	}
	return nil
}

// command runs a program with this standard input.
func command(ctx context.Context, input, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = strings.NewReader(input)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// startIn starts a process in a network namespace, "" for that of this process.
func startIn(namespace string, cmd *exec.Cmd) error {
	return inNamespace(namespace, cmd.Start)
}

// dialIn connects from a network namespace to an address.
func dialIn(ctx context.Context, namespace, address string) (conn net.Conn, err error) {
	err = inNamespace(namespace, func() error {
		// One address: the socket is made by the calling goroutine.
		conn, err = (&net.Dialer{}).DialContext(ctx, "tcp", address)
		return err
	})
	return conn, err
}

// inNamespace calls f on a thread that is in a network namespace.
func inNamespace(namespace string, f func() error) (err error) {
	if namespace == "" {
		return f()
	}
	runtime.LockOSThread()
	defer func() {
		// A thread that could not come back must not be used again: it ends with
		// this goroutine, if that ends locked to it.
		if err == nil || !errors.Is(err, errNoWayBack) {
			runtime.UnlockOSThread()
		}
	}()
	here, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer func() { _ = here.Close() }() // only a name
	there, err := os.Open(namespace)
	if err != nil {
		return err
	}
	defer func() { _ = there.Close() }() // the same
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter %s: %w", namespace, err)
	}
	err = f()
	if back := unix.Setns(int(here.Fd()), unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, fmt.Errorf("%w: %w", errNoWayBack, back))
	}
	return err
}

var errNoWayBack = errors.New("cannot leave a network namespace")
