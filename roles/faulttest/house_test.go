package faulttest

import (
	"bufio"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestListeners looks at what all processes of a cluster listen on: the three
// ports of members and nothing else, above all no port of etcd's own.
func TestListeners(t *testing.T) {
	t.Parallel()
	c := startDev(t)
	c.healthy()
	for _, n := range c.run.nodes() {
		want := []int{7600, 7601, 7602}
		if n.Role == "agent" {
			want = nil
		}
		if got := listening(t, n.PID); !slices.Equal(got, want) {
			t.Errorf("%s listens on %v, want %v", n.Name, got, want)
		}
	}
}

// listening returns the ports on which a process listens.
func listening(t *testing.T, pid int) []int {
	t.Helper()
	sockets := map[string]bool{}
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	// Some threads have files of their own.
	fds, err := filepath.Glob(filepath.Join(proc, "task", "*", "fd", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if target, err := os.Readlink(fd); err == nil && strings.HasPrefix(target, "socket:[") {
			sockets[strings.Trim(target, "socket:[]")] = true
		}
	}
	var ports []int
	for _, table := range []string{"tcp", "tcp6", "udp", "udp6"} {
		f, err := os.Open(filepath.Join(proc, "net", table))
		if err != nil {
			continue // no such protocol here
		}
		for in := bufio.NewScanner(f); in.Scan(); {
			fields := strings.Fields(in.Text())
			// State 0A is LISTEN; a UDP socket that is not connected (07) takes
			// from anybody.
			if len(fields) < 10 || !sockets[fields[9]] || fields[3] != "0A" && fields[3] != "07" {
				continue
			}
			_, hex, _ := strings.Cut(fields[1], ":")
			port, err := strconv.ParseInt(hex, 16, 32)
			if err != nil {
				t.Fatal(err)
			}
			ports = append(ports, int(port))
		}
		_ = f.Close()
	}
	slices.Sort(ports)
	return slices.Compact(ports)
}

// TestWipedMember empties a member's coordination data, as a new disk does. It
// has forgotten its votes and must not give them again.
func TestWipedMember(t *testing.T) {
	t.Parallel()
	c := startDev(t)
	c.apply(single("0"))
	name := c.other(c.healthy())
	c.kill(name)
	if err := os.RemoveAll(filepath.Join(c.node(name).DataDir, "coord")); err != nil {
		t.Fatal(err)
	}
	c.refuses(name, "has lost its data", "leave it stopped")
	c.submit("single", 2) // the others go on
	c.settled().succeeded(t)
}

// refuses starts a node that must not come back: it says why, and exits with 2.
func (c *Cluster) refuses(name string, why ...string) {
	c.t.Helper()
	if err := c.run.start(name); err != nil {
		c.note("%s was refused at once: %v", name, err)
	}
	if pid := c.node(name).PID; pid != 0 {
		c.awaitEnd(name, pid)
	}
	log, err := os.ReadFile(c.node(name).Log)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, part := range why {
		if !strings.Contains(string(log), part) {
			c.t.Errorf("the log of %s does not say %q", name, part)
		}
	}
	c.exited(name, 2)
}
