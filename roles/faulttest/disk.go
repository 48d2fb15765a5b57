package faulttest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// diskSize is the size of a file system of a node's own. A member's logs alone are
// two files of 64 MB.
const diskSize = 400 << 20

// mountDisk puts a small ext4 file system over a directory.
func mountDisk(dir string) error {
	image := filepath.Join(filepath.Dir(dir), "disk.img")
	f, err := os.Create(image)
	if err == nil {
		err = errors.Join(f.Truncate(diskSize), f.Close())
	}
	if err != nil {
		return err
	}
	if err := run("", "mkfs.ext4", "-q", "-m", "0", image); err != nil {
		return err
	}
	return run("", "mount", "-o", "loop", image, dir)
}

// noDisks says why nodes cannot have file systems of their own here, "" if they can.
func noDisks(t testing.TB) string {
	for _, tool := range []string{"mkfs.ext4", "mount", "umount", "fsfreeze"} {
		if _, err := exec.LookPath(tool); err != nil {
			return "the program " + tool + " is missing (packages e2fsprogs, mount and util-linux)"
		}
	}
	dir := filepath.Join(t.TempDir(), "disk")
	if err := errors.Join(os.Mkdir(dir, 0o700), mountDisk(dir)); err != nil {
		return "file systems cannot be mounted here: " + err.Error()
	}
	if err := run("", "umount", dir); err != nil {
		return err.Error()
	}
	return ""
}

// diskKinds are the faults of disks.
func diskKinds() []Kind {
	return []Kind{{Name: "disk full", Needs: NeedDisk, Takes: true, Holds: []time.Duration{silence, 3 * silence}, Make: func(chance *rand.Rand) Fault {
		n, node := chance.IntN(100), ""
		var full string
		return &fault{
			name: "full disk", needs: NeedDisk,
			inject: func(c *Cluster) error {
				node = c.disks[n%len(c.disks)]
				full = filepath.Join(c.node(node).DataDir, "filler")
				return fill(full)
			},
			heal: func(c *Cluster) error {
				if err := os.Remove(full); err != nil {
					return err
				}
				// It may have given up, and is started again when there is room, as a service
				// manager does.
				c.await(node+" runs", func() string {
					if n := c.node(node); n.PID == 0 {
						if err := c.run.start(node); err != nil {
							return err.Error()
						}
					}
					return ""
				})
				return nil
			},
		}
	}}}
}

// fill takes all the room that a file system has.
func fill(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // it holds nothing
	size := int64(0)
	for step := int64(64 << 20); step >= 4096; {
		err := unix.Fallocate(int(f.Fd()), 0, size, step)
		switch {
		case err == nil:
			size += step
		case errors.Is(err, unix.ENOSPC):
			step /= 2
		case errors.Is(err, unix.EINTR):
		default:
			return err
		}
	}
	if size == 0 {
		return fmt.Errorf("%w: %s was full before", errNotInjected, path)
	}
	return nil
}
