package mount

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
)

const (
	// chunk is how many bytes one call carries at most. It bounds how much a
	// deadline has to allow for.
	chunk = 1 << 20
	// maxHeader bounds the header of a frame; lists are the longest, and JSON may
	// make six bytes of one.
	maxHeader = 4 << 20
)

// The operations of a call.
const (
	opProbe  = "probe"  // write, sync, read and remove a file; measure the room
	opWrite  = "write"  // write bytes of a file in the making
	opCommit = "commit" // sync a file in the making and give it its name
	opDrop   = "drop"   // remove a file in the making
	opAppend = "append"
	opRead   = "read"
	opList   = "list"
	opRemove = "remove"
)

// call is what the child is asked to do.
type call struct {
	ID uint64 `json:"id"`
	Op string `json:"op"`
	// Cluster is the one that the mount must belong to, "" for any.
	Cluster string `json:"cluster,omitempty"`
	Name    string `json:"name,omitempty"`
	Temp    string `json:"temp,omitempty"`
	At      int64  `json:"at,omitempty"`
	N       int    `json:"n,omitempty"`
	// Sync makes an append durable.
	Sync bool `json:"sync,omitempty"`
	// After is the last name of the page of a list before this one.
	After string `json:"after,omitempty"`
}

// answer is what came of a call.
type answer struct {
	ID    uint64   `json:"id"`
	Fault *fault   `json:"fault,omitempty"`
	EOF   bool     `json:"eof,omitempty"`
	List  []Entry  `json:"list,omitempty"`
	More  bool     `json:"more,omitempty"`
	Found *finding `json:"found,omitempty"`
}

// finding is what a probe found.
type finding struct {
	ID      string `json:"id"`
	Cluster string `json:"cluster"`
	Free    uint64 `json:"free"`
	Total   uint64 `json:"total"`
}

// writeFrame writes the lengths of header and body, header and body.
func writeFrame(w io.Writer, header any, body []byte) error {
	text, err := json.Marshal(header)
	if err != nil {
		return err
	}
	if len(text) > maxHeader || len(body) > chunk {
		return fmt.Errorf("frame of %d and %d bytes is too long", len(text), len(body))
	}
	frame := make([]byte, 8, 8+len(text)+len(body))
	binary.BigEndian.PutUint32(frame, uint32(len(text)))
	binary.BigEndian.PutUint32(frame[4:], uint32(len(body)))
	frame = append(append(frame, text...), body...)
	_, err = w.Write(frame)
	return err
}

// readFrame reads what writeFrame wrote.
func readFrame(r io.Reader, header any) (body []byte, err error) {
	var lengths [8]byte
	if _, err := io.ReadFull(r, lengths[:]); err != nil {
		return nil, err
	}
	n, m := binary.BigEndian.Uint32(lengths[:]), binary.BigEndian.Uint32(lengths[4:])
	if n > maxHeader || m > chunk {
		return nil, fmt.Errorf("frame of %d and %d bytes is too long", n, m)
	}
	frame := make([]byte, n+m)
	if _, err := io.ReadFull(r, frame); err != nil {
		return nil, fmt.Errorf("frame ends early: %w", err)
	}
	if err := json.Unmarshal(frame[:n], header); err != nil {
		return nil, fmt.Errorf("header of a frame: %w", err)
	}
	return frame[n:], nil
}
