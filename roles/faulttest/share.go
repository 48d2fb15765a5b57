package faulttest

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// A share is the mount that all controllers have: a directory on a small file system.
// What becomes of it must not matter to requests.

// shareDisk is where the file system of the share is mounted, shareDir the share on it.
func shareDisk(dir string) string { return filepath.Join(dir, "mnt") }
func shareDir(dir string) string  { return filepath.Join(shareDisk(dir), "share") }

// makeShare makes the share of the cluster in dir.
func (r *networkRunner) makeShare() error {
	if err := os.Mkdir(shareDisk(r.dir), 0o700); err != nil {
		return err
	}
	if err := mountDisk(shareDisk(r.dir)); err != nil {
		return err
	}
	r.disks = append(r.disks, shareDisk(r.dir))
	if err := os.Mkdir(shareDir(r.dir), 0o700); err != nil {
		return err
	}
	return run("", r.program, "mount", "init", shareDir(r.dir), "--cluster", "net")
}

// shareKinds are the faults of the share.
func shareKinds() []Kind {
	ways := []struct {
		name         string
		inject, heal func(c *Cluster) error
	}{
		{
			"is gone",
			func(c *Cluster) error { return os.Rename(shareDir(c.dir), shareDir(c.dir)+".away") },
			func(c *Cluster) error { return os.Rename(shareDir(c.dir)+".away", shareDir(c.dir)) },
		},
		{
			"is full",
			func(c *Cluster) error { return fill(filepath.Join(shareDisk(c.dir), "filler")) },
			func(c *Cluster) error { return os.Remove(filepath.Join(shareDisk(c.dir), "filler")) },
		},
		{
			"is read-only",
			func(c *Cluster) error {
				if err := unix.Mount("", shareDisk(c.dir), "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); errors.Is(err, unix.EBUSY) {
					return fmt.Errorf("%w: %w", errNotInjected, err) // somebody is writing
				} else if err != nil {
					return err
				}
				if _, err := os.Create(filepath.Join(shareDisk(c.dir), "probe")); !errors.Is(err, unix.EROFS) {
					return fmt.Errorf("%w: a write comes to %w", errNotInjected, errors.Join(err, fs.ErrInvalid))
				}
				return nil
			},
			func(c *Cluster) error { return unix.Mount("", shareDisk(c.dir), "", unix.MS_REMOUNT, "") },
		},
		{
			"hangs", // reads go on, writes wait where no signal reaches them
			func(c *Cluster) error { return run("", "fsfreeze", "--freeze", shareDisk(c.dir)) },
			func(c *Cluster) error { return run("", "fsfreeze", "--unfreeze", shareDisk(c.dir)) },
		},
	}
	var kinds []Kind
	for _, way := range ways {
		kinds = append(kinds, Kind{Name: "mount", Needs: NeedMount, Holds: moments[1:], Make: func(*rand.Rand) Fault {
			return &fault{name: "the shared mount " + way.name, needs: NeedMount, inject: way.inject, heal: way.heal}
		}})
	}
	return kinds
}
