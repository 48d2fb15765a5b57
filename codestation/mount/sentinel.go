package mount

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"
)

const (
	sentinelFile = ".uac-mount"
	tempDir      = ".uac-tmp"
	ownPrefix    = ".uac-"

	filePerm = 0o640
	dirPerm  = 0o750
)

// Sentinel tells the mount from the empty directory under it.
type Sentinel struct {
	Version int `json:"version"`
	// ID is random: nodes that read the same one have the same mount.
	ID string `json:"id"`
	// Cluster is the name of the cluster that the mount belongs to.
	Cluster string    `json:"cluster"`
	Created time.Time `json:"created"`
}

// Init makes dir the shared mount of a cluster. It touches the file system in this
// process: it is for the command line, and for a mount that works. If the directory
// has a sentinel already, Init returns that one, and fs.ErrExist if it is of another
// cluster.
func Init(dir, cluster string) (Sentinel, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return Sentinel{}, fmt.Errorf("mount init: %w", err)
	}
	defer root.Close()
	if s, err := readSentinel(root); err == nil || !errors.Is(err, fs.ErrNotExist) {
		if err == nil && s.Cluster != cluster {
			err = fmt.Errorf("mount init: %s belongs to cluster %q: %w", dir, s.Cluster, fs.ErrExist)
		}
		return s, err
	}
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails
	s := Sentinel{Version: 1, ID: hex.EncodeToString(id), Cluster: cluster, Created: time.Now().UTC().Truncate(time.Second)}
	text, err := json.Marshal(s)
	if err != nil {
		return Sentinel{}, err
	}
	tmp := newTemp()
	if err := writeTemp(root, tmp, 0, append(text, '\n')); err != nil {
		return Sentinel{}, fmt.Errorf("mount init: %w", err)
	}
	if err := commit(root, tmp, sentinelFile); errors.Is(err, fs.ErrExist) {
		return Init(dir, cluster) // somebody else was faster
	} else if err != nil {
		return Sentinel{}, fmt.Errorf("mount init: %w", err)
	}
	return s, nil
}

// readSentinel returns fs.ErrNotExist if there is none.
func readSentinel(root *os.Root) (Sentinel, error) {
	text, err := root.ReadFile(sentinelFile)
	if err != nil {
		return Sentinel{}, err
	}
	var s Sentinel
	if err := json.Unmarshal(text, &s); err != nil || s.Version != 1 || s.ID == "" {
		return Sentinel{}, errSentinel{Foreign, fmt.Sprintf("%s in it cannot be read as version 1", sentinelFile)}
	}
	return s, nil
}

// open opens the directory of the mount and makes sure that it is the mount.
func open(dir, cluster string) (*os.Root, Sentinel, error) {
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, Sentinel{}, errSentinel{Absent, fmt.Sprintf("there is no directory %s", dir)}
	}
	if err != nil {
		return nil, Sentinel{}, err
	}
	s, err := readSentinel(root)
	if errors.Is(err, fs.ErrNotExist) {
		err = errSentinel{Absent, fmt.Sprintf("%s has no %s: nothing is mounted there, or \"uac mount init %s\" was never run", dir, sentinelFile, dir)}
	}
	if err == nil && cluster != "" && s.Cluster != cluster {
		err = errSentinel{Foreign, fmt.Sprintf("%s belongs to cluster %q, not %q", dir, s.Cluster, cluster)}
	}
	if err != nil {
		_ = root.Close()
		return nil, Sentinel{}, err
	}
	return root, s, nil
}
