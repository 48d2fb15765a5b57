package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path"
	"strconv"
	"strings"

	"uac/codestation/mount"
	"uac/roles/controller/api"
)

// OutputStore keeps output on the shared mount. Calls must return when their context
// ends, whatever the mount does.
type OutputStore interface {
	// Create makes a file, whole and durable. fs.ErrExist: there is one.
	Create(ctx context.Context, name string, data []byte) error
	// Append writes data at byte at, which must be the end of the file, and makes the
	// file at 0. It is durable when Append returns. After any error the file may have
	// all of it, a part, or nothing, also later.
	Append(ctx context.Context, name string, at int64, data []byte) error
	// ReadAt returns at most n bytes from byte off on, fewer only at the end, with
	// io.EOF.
	ReadAt(ctx context.Context, name string, off int64, n int) ([]byte, error)
	// List returns the files in a directory. fs.ErrNotExist: there is none.
	List(ctx context.Context, dir string) ([]mount.Entry, error)
}

// errStore marks errors of the store: the output may be there, and cannot be reached
// now.
var errStore = errors.New("the shared mount does not answer")

func storeError(err error) error { return fmt.Errorf("%w: %w: %w", api.ErrUnavailable, errStore, err) }

// The files of an attempt's output on the mount are
//
//	logs/<first of the request's id>/<request>/<step>.<attempt>/
//	  <number>-<generation>-<epoch>-<offset>   a segment: bytes from that offset on
//	  end-<size>                               all of it is here, and it is this long
//	  gone-<offset>                            its agent has lost it from there on
//
// A segment is written by one session of one controller, whose epoch it bears, and by
// nobody else ever. A writer numbers its segments above all that it finds. What two
// segments have of the same bytes is equal, except that the end of one whose writer
// died together with the file server may be rubbish: so the next writer begins
// collectOverlap before it, and of two segments the one with the higher number counts.

// collectOverlap is how much of a segment may not have become durable.
const collectOverlap = collectSize

// outputDir is the directory of an attempt's output.
func outputDir(k attemptKey) string {
	return path.Join("logs", k.request[:min(6, len(k.request))], k.request, fmt.Sprintf("%s.%d", k.step, k.attempt))
}

type segment struct {
	name              string // of the file, with its directory
	number            int64
	generation, epoch int64 // of the session that wrote it
	start, size       int64 // of the part of the output that it has
}

func (s segment) end() int64 { return s.start + s.size }

// later reports whether s was begun after o, as far as the writer of s knew of o.
func (s segment) later(o segment) bool {
	return cmp.Or(cmp.Compare(s.number, o.number), cmp.Compare(s.generation, o.generation), cmp.Compare(s.epoch, o.epoch)) > 0
}

func (s segment) file() string {
	return fmt.Sprintf("%d-%d-%d-%d", s.number, s.generation, s.epoch, s.start)
}

// keptOutput is what is on the mount of an attempt's output.
type keptOutput struct {
	segments []segment
	end      int64 // the length of the output; -1: more may come
	gone     int64 // from where on its agent has lost it; -1: nothing
}

// parseKept makes sense of the files in a directory. Others than ours are left alone.
func parseKept(dir string, files []mount.Entry) keptOutput {
	k := keptOutput{end: -1, gone: -1}
	for _, f := range files {
		kind, rest, _ := strings.Cut(f.Name, "-")
		if kind == "end" || kind == "gone" {
			if n, err := strconv.ParseInt(rest, 10, 64); err == nil && n >= 0 {
				if kind == "end" {
					k.end = max(k.end, n)
				} else {
					k.gone = max(k.gone, n)
				}
			}
			continue
		}
		parts := strings.Split(f.Name, "-")
		var n [4]int64
		ok := len(parts) == len(n)
		for i := range n {
			if ok {
				v, err := strconv.ParseInt(parts[i], 10, 64)
				n[i], ok = v, err == nil && v >= 0
			}
		}
		if s := (segment{path.Join(dir, f.Name), n[0], n[1], n[2], n[3], f.Size}); ok && s.file() == f.Name && f.Size > 0 {
			k.segments = append(k.segments, s)
		}
	}
	return k
}

// at returns the segment that counts at an offset, and for how many bytes.
func (k keptOutput) at(offset int64) (best segment, n int64, ok bool) {
	for _, s := range k.segments {
		if s.start <= offset && offset < s.end() && (!ok || s.later(best)) {
			best, ok = s, true
		}
	}
	if !ok {
		return best, 0, false
	}
	until := best.end()
	for _, s := range k.segments {
		if s.later(best) && s.start > offset {
			until = min(until, s.start)
		}
	}
	return best, until - offset, true
}

// next returns where the first segment behind an offset begins; otherwise, if there is
// none.
func (k keptOutput) next(offset, otherwise int64) int64 {
	first := int64(math.MaxInt64)
	for _, s := range k.segments {
		if s.start > offset {
			first = min(first, s.start)
		}
	}
	if first == math.MaxInt64 {
		return otherwise
	}
	return first
}

// size is where the last of what is here ends.
func (k keptOutput) size() int64 {
	var end int64
	for _, s := range k.segments {
		end = max(end, s.end())
	}
	return end
}

// resume returns from where on another writer collects, and under which number.
func (k keptOutput) resume() (offset, number int64) {
	for _, s := range k.segments {
		number = max(number, s.number+1)
	}
	return max(0, k.size()-collectOverlap), number
}

// kept looks up what is on the mount of an attempt's output.
func (c *Controller) kept(ctx context.Context, key attemptKey) (keptOutput, error) {
	dir := outputDir(key)
	files, err := c.deps.Output.List(ctx, dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return keptOutput{}, storeError(fmt.Errorf("list %s: %w", dir, err))
	}
	return parseKept(dir, files), nil
}
