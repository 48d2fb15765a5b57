package coord_test

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"uac/coord"
	"uac/coord/coordtest"
)

// wantReplace waits for a member to end and checks that it says what to do.
func wantReplace(t *testing.T, n *coordtest.Node, words ...string) {
	t.Helper()
	err := n.Err()
	if !errors.Is(err, coord.ErrReplace) {
		t.Fatalf("%s ended with %v", n.Name, err)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%s ended with %q, want it to say %q", n.Name, err, w)
		}
	}
}

func hasEtcd(t *testing.T, dir string) bool {
	t.Helper()
	_, err := os.Stat(filepath.Join(dir, "etcd"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return err == nil
}

func TestFirstStartWaitsForAll(t *testing.T) {
	t.Parallel()
	c := coordtest.New(t, coordtest.Options{Controllers: 2, Watches: 1, Sessions: true})
	waits := func(on, for_ string) {
		t.Helper()
		until(t, on+" waits for "+for_, func() bool {
			why := c.Node(on).Member.Status().Reason
			for _, name := range c.Names() {
				if name != on && strings.Contains(why, name) != strings.Contains(for_, name) {
					return false
				}
			}
			return true
		})
	}
	c.Run("c1")
	waits("c1", "c2 w1")
	c.Run("c2")
	waits("c1", "w1")
	waits("c2", "w1")
	// Who leaves again is waited for again.
	c.Kill("c2")
	waits("c1", "c2 w1")
	for _, name := range c.Names() {
		if hasEtcd(t, c.DataDir(name)) {
			t.Errorf("%s started etcd", name)
		}
	}
	c.Run("w1")
	c.Run("c2")
	for _, name := range c.Names() {
		c.Node(name).Session()
		if why := c.Node(name).Member.Status().Reason; why != "" {
			t.Errorf("%s: %s", name, why)
		}
	}
}

func TestRestartWithDataNeedsNobody(t *testing.T) {
	t.Parallel()
	c := start(t, 2, 1)
	s := c.Node("c1").Session()
	mustCommit(t, s, put("x", "1"))
	c.Await("c1", "x", func(s coord.Snapshot) bool { return has(s, "x") })
	c.Kill(c.Names()...)
	c.Run("c1")
	until(t, "waits for a majority only", func() bool {
		return strings.Contains(c.Node("c1").Member.Status().Reason, "a majority")
	})
	// It shows what it has, to whoever must decide how to go on.
	c.Await("c1", "the local copy", func(s coord.Snapshot) bool { return has(s, "x") && has(s, "nodes/c2") })
	c.Run("w1")
	c.Node("c1").SessionAfter(s.Epoch())
	awaitActive(c, "w1", "c1")
}

func TestWipedMemberRefuses(t *testing.T) {
	t.Parallel()
	c := start(t, 2, 1)
	awaitActive(c, "w1", "c1", "c2")
	for _, name := range []string{"c2", "w1"} {
		dir := c.DataDir(name)
		c.Kill(name)
		empty := t.TempDir()
		c.SetDataDir(name, empty)
		wantReplace(t, c.Run(name), name+" has lost its data", "leave it stopped")
		if hasEtcd(t, empty) {
			t.Errorf("%s started etcd", name)
		}
		c.Kill(name)
		c.SetDataDir(name, dir)
		c.Run(name).Session() // and with its data it is welcome
	}

	// Only etcd's own directory is gone: the rest still knows that it was there.
	c.Kill("c2")
	gone := filepath.Join(t.TempDir(), "etcd")
	if err := os.Rename(filepath.Join(c.DataDir("c2"), "etcd"), gone); err != nil {
		t.Fatal(err)
	}
	wantReplace(t, c.Run("c2"), "c2", "gone", "leave it stopped")
	if hasEtcd(t, c.DataDir("c2")) {
		t.Error("c2 started etcd")
	}
	c.Kill("c2")
	if err := os.Rename(gone, filepath.Join(c.DataDir("c2"), "etcd")); err != nil {
		t.Fatal(err)
	}
	c.Run("c2").Session()

	// A single one that remembers is enough, and it is waited for.
	c.Kill(c.Names()...)
	c.SetDataDir("c1", t.TempDir())
	n := c.Run("c1")
	until(t, "c1 waits", func() bool { return strings.Contains(n.Member.Status().Reason, "w1") })
	c.Run("w1")
	wantReplace(t, n, "c1 has lost its data")
}

func TestCopiedDataIsRefused(t *testing.T) {
	t.Parallel()
	c := start(t, 2, 1)
	copied := func(from string) string {
		to := t.TempDir()
		if err := os.CopyFS(to, os.DirFS(from)); err != nil {
			t.Fatal(err)
		}
		return to
	}
	epoch := c.Node("c1").Session().Epoch()
	c.Kill("c2")
	c.SetDataDir("c2", copied(c.DataDir("c1")))
	wantReplace(t, c.Run("c2"), "data of another member")
	if got := c.Node("c1").Session().Epoch(); got != epoch {
		t.Errorf("the copy ended the session of c1: %d after %d", got, epoch)
	}

	// A machine cloned before its first start.
	fresh := coordtest.New(t, coordtest.Options{Controllers: 2, Watches: 1})
	n := fresh.Run("c1")
	until(t, "c1 waits", func() bool { return strings.Contains(n.Member.Status().Reason, "c2") })
	fresh.SetDataDir("c2", copied(fresh.DataDir("c1")))
	clone := fresh.Run("c2")
	select { // who refuses first leaves the other one waiting for it
	case <-n.Done():
		wantReplace(t, n, "copy")
	case <-clone.Done():
		wantReplace(t, clone, "copy")
	}
}

func TestDamagedFiles(t *testing.T) {
	t.Parallel()
	for _, file := range []string{"origin.json", "generation.json"} {
		cfg := coord.DefaultConfig()
		cfg.Name, cfg.Role, cfg.Cluster, cfg.DataDir = "c1", coord.RoleController, "test", t.TempDir()
		cfg.Peers = []coord.Peer{{Name: "c1", Role: coord.RoleController, Raft: "127.0.0.1:0", Link: "127.0.0.1:0"}}
		path := filepath.Join(cfg.DataDir, file)
		if err := os.WriteFile(path, []byte("?"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := coord.New(cfg, coord.Deps{Log: slog.New(slog.DiscardHandler)}); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// Two processes with one data directory would both speak for the member.
func TestOneProcessHasTheDataDirectory(t *testing.T) {
	t.Parallel()
	c := start(t, 2, 1)
	awaitActive(c, "w1", "c1", "c2")
	c.Kill("c2")
	dir := c.DataDir("c2")
	c.SetDataDir("c2", c.DataDir("c1"))
	if err := c.Run("c2").Err(); !errors.Is(err, coord.ErrInUse) || !strings.Contains(err.Error(), c.DataDir("c1")) {
		t.Errorf("a second member on the directory of c1: %v", err)
	}
	c.Kill("c2")
	c.SetDataDir("c2", dir)
	c.Run("c2").Session()
}
