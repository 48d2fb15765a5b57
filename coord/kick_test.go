package coord_test

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"uac/coord"
	"uac/coord/coordtest"
)

// The forced election is no documented use of etcd. These are the versions that
// the test below passed with: after an upgrade, run it, then change them.
func TestForcedElectionVersions(t *testing.T) {
	t.Parallel()
	mod, err := os.ReadFile("../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	for _, pin := range []string{"go.etcd.io/etcd/server/v3 v3.7.3", "go.etcd.io/raft/v3 v3.7.0"} {
		if !regexp.MustCompile(`(?m)^\s*` + regexp.QuoteMeta(pin) + `\s*(//.*)?$`).Match(mod) {
			t.Errorf("go.mod does not pin %s", pin)
		}
	}
}

// Raft's own election timeout is set so long that no election here is its work.
func TestForcedElection(t *testing.T) {
	t.Parallel()
	c := coordtest.Start(t, coordtest.Options{
		Controllers: 2, Watches: 1, Sessions: true,
		Change: func(c *coord.Config) { coord.SetElection(c, 50*time.Second) },
	})
	server := func(name string) uint64 { // the term that a member's raft is in
		if s := coord.EtcdServer(c.Node(name).Member); s != nil {
			return s.Term()
		}
		return 0
	}
	until(t, "etcd runs everywhere", func() bool {
		return !slices.ContainsFunc(c.Names(), func(n string) bool { return coord.EtcdServer(c.Node(n).Member) == nil })
	})
	until(t, "a first leader", func() bool {
		coord.Kick(t.Context(), c.Node("c1").Member, "c2") // nothing, once it leads
		return raftLeader(c, "c1") != ""
	})
	active := awaitActive(c, "w1", "c1", "c2")
	for _, name := range c.Names() {
		c.Node(name).Session()
	}
	leadRaft(t, c, active)
	before := server("w1")
	epoch := c.Node(active).Session().Epoch()
	passive := other(active)

	c.Kill(active)
	awaitActive(c, "w1", passive)
	mustCommit(t, c.Node(passive).Session(), put("y", ""))
	if after := server("w1"); after <= before {
		t.Errorf("raft went from term %d to %d without an election", before, after)
	}

	// The same when the watch leads, and the Active stays.
	c.Run(active).SessionAfter(epoch)
	leadRaft(t, c, "w1")
	c.Kill("w1")
	mustCommit(t, c.Node(passive).Session(), put("z", ""))
	if l := raftLeader(c, passive); l == "w1" || l == "" {
		t.Errorf("raft leader is %q", l)
	}
}

// A candidate that got no majority, as after a split vote, obeys MsgTimeoutNow no
// more. It must not have to wait for raft's own timeout.
func TestForcedElectionOfACandidate(t *testing.T) {
	t.Parallel()
	c := coordtest.Start(t, coordtest.Options{
		Controllers: 2, Watches: 1,
		Change: func(c *coord.Config) { coord.SetElection(c, 50*time.Second) },
	})
	runs := func(n string) bool { return coord.EtcdServer(c.Node(n).Member) != nil }
	until(t, "etcd runs everywhere", func() bool {
		return !slices.ContainsFunc(c.Names(), func(n string) bool { return !runs(n) })
	})
	until(t, "a first leader", func() bool {
		coord.Kick(t.Context(), c.Node("c2").Member, "c1")
		return raftLeader(c, "c1") == "c2"
	})
	c.Kill("w1")
	c.Kill("c2")
	coord.Kick(t.Context(), c.Node("c1").Member, "c2") // nobody votes for it
	until(t, "an election", func() bool { return raftLeader(c, "c1") == "" })
	c.Run("w1")
	until(t, "w1 runs", func() bool { return runs("w1") })
	until(t, "a leader", func() bool {
		coord.TryAgain(t.Context(), c.Node("c1").Member, "c2")
		return raftLeader(c, "c1") == "c1"
	})
}

// listeners are the addresses on which this process listens.
func listeners(t *testing.T) []string {
	t.Helper()
	own := map[string]bool{}
	fds, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil { // else closed meanwhile
			own[to] = true
		}
	}
	var found []string
	for _, name := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		f, err := os.Open(name)
		if errors.Is(err, fs.ErrNotExist) && strings.HasSuffix(name, "6") {
			continue // a kernel without IPv6
		}
		if err != nil {
			t.Fatal(err)
		}
		for lines := bufio.NewScanner(f); lines.Scan(); {
			fields := strings.Fields(lines.Text())
			const listen = "0A"
			if len(fields) < 10 || fields[3] != listen || !own["socket:["+fields[9]+"]"] {
				continue
			}
			addr, port, _ := strings.Cut(fields[1], ":")
			ip, err := hex.DecodeString(addr)
			if err != nil {
				t.Fatal(err)
			}
			for i := 0; i+4 <= len(ip); i += 4 {
				slices.Reverse(ip[i : i+4])
			}
			n, err := strconv.ParseUint(port, 16, 16)
			if err != nil {
				t.Fatal(err)
			}
			found = append(found, net.JoinHostPort(net.IP(ip).String(), fmt.Sprint(n)))
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
	return found
}

// Nobody but the members talks to etcd.
func TestListensOnlyForMembers(t *testing.T) {
	t.Parallel()
	c := start(t, 1, 0)
	peer := c.Peer("c1")
	ip, _, err := net.SplitHostPort(peer.Raft)
	if err != nil {
		t.Fatal(err)
	}
	var here []string
	for _, addr := range listeners(t) {
		host, port, err := net.SplitHostPort(addr)
		if err != nil {
			t.Fatal(err)
		}
		if port == "2379" || port == "2380" || net.ParseIP(host).IsUnspecified() {
			t.Errorf("listens on %s", addr)
		}
		if host == ip {
			here = append(here, addr)
		}
	}
	slices.Sort(here)
	want := []string{net.JoinHostPort(ip, "7600"), peer.Raft, peer.Link} // the first reserves the address
	if diff := cmp.Diff(want, here); diff != "" {
		t.Error(diff)
	}
}
