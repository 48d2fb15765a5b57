package coord

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// Members talk to each other in frames: a length of four bytes, big endian,
// and that many bytes of JSON. Each connection carries, in the order of a
// dialer's view:
//
//	dialer -> acceptor   hello, then pulse and ask
//	acceptor -> dialer   hello, then echo and vote
//
// A frame is an object with one field, named after the kind of message.
// Unknown kinds and unknown fields are skipped, so that members of different
// versions can talk during a rolling upgrade; known fields must have their
// type and a possible value.

// maxFrame bounds the JSON of one frame, so that a hostile peer can cost a
// member no more memory than this per connection.
const maxFrame = 64 << 10

var (
	errFrame     = errors.New("malformed frame")
	errFrameSize = fmt.Errorf("%w: length out of bounds", errFrame)
)

// origin is what a member durably knows about the beginning of its data.
type origin struct {
	// Incarnation is a random id, written before the member first talks to
	// anybody and never changed as long as its data directory lives.
	Incarnation string `json:"incarnation"`
	// Recorded holds the incarnations with which the member bootstrapped.
	Recorded map[string]string `json:"recorded,omitempty"`
	// HasData is set before etcd is started for the first time: from then on
	// this member may have voted.
	HasData bool `json:"has_data"`
}

// helloMsg is the first message in each direction.
type helloMsg struct {
	Node    string `json:"node"`
	Run     string `json:"run"`
	Epoch   int64  `json:"epoch"`
	Version string `json:"version"`
	// Generation counts how often the cluster's history was cut on purpose (an
	// operator went on without a quorum, or restored a backup); 0 is not known.
	Generation int64 `json:"generation"`
	origin
	// Refused is set in an answer: why the acceptor closes the connection.
	Refused string `json:"refused,omitempty"`
}

// pulseMsg is a sign of life.
type pulseMsg struct {
	// Seq numbers the pulses of one connection from 1.
	Seq uint64 `json:"seq"`
	// Run is the id of the sender's process.
	Run string `json:"run"`
	// Epoch of the sender's session, 0 if it has none.
	Epoch      int64 `json:"epoch"`
	Generation int64 `json:"generation"`
	// Acting says that the sender holds a session and trust.
	Acting bool `json:"acting"`
	// WriteAge is the age of the sender's last acknowledged guarded write in
	// milliseconds, -1 if there was none.
	WriteAge int64 `json:"write_age_ms"`
	// Heard is the highest Seq of which the receiver's echo had arrived, 0 if
	// that is too long ago to support trust.
	Heard uint64 `json:"heard"`
	// Maintenance announces that writes of the sender will stand still. It
	// stays set until a write went through again.
	Maintenance bool `json:"maintenance,omitempty"`
}

// echoMsg answers a pulse.
type echoMsg struct {
	Seq uint64 `json:"seq"`
	// Epoch of the pulsing node's session as the echoing member knows it, 0 if
	// it knows none.
	Epoch int64 `json:"epoch"`
}

// askMsg asks a voter whether it too has evidence against a session. Number
// grows with each ask of one asker.
type askMsg struct {
	Suspect string `json:"suspect"`
	Epoch   int64  `json:"epoch"`
	Number  uint64 `json:"number"`
	// Dead is the asker's own evidence in words, if that says that the process has
	// ended: then the question is the asker's vote, too.
	Dead string `json:"dead,omitempty"`
}

// voteMsg answers the ask that it numbers: yes, or no more.
type voteMsg struct {
	Suspect  string `json:"suspect"`
	Epoch    int64  `json:"epoch"`
	Number   uint64 `json:"number"`
	Yes      bool   `json:"yes"`
	Evidence string `json:"evidence,omitempty"`
}

// message is one frame: at most one field is set, none if the kind is unknown.
type message struct {
	Hello *helloMsg `json:"hello,omitempty"`
	Pulse *pulseMsg `json:"pulse,omitempty"`
	Echo  *echoMsg  `json:"echo,omitempty"`
	Ask   *askMsg   `json:"ask,omitempty"`
	Vote  *voteMsg  `json:"vote,omitempty"`
}

// check reports what no honest member would send.
func (m *message) check() error {
	kinds := 0
	bad := func(what string) error { return fmt.Errorf("%w: %s", errFrame, what) }
	if h := m.Hello; h != nil {
		kinds++
		if h.Node == "" || h.Run == "" || h.Incarnation == "" || h.Epoch < 0 || h.Generation < -1 {
			return bad("hello")
		}
	}
	if p := m.Pulse; p != nil {
		kinds++
		if p.Seq == 0 || p.Heard >= p.Seq || p.Run == "" || p.Epoch < 0 || p.WriteAge < -1 || p.Generation < -1 {
			return bad("pulse")
		}
	}
	if e := m.Echo; e != nil {
		kinds++
		if e.Seq == 0 || e.Epoch < 0 {
			return bad("echo")
		}
	}
	if a := m.Ask; a != nil {
		kinds++
		if a.Suspect == "" || a.Epoch <= 0 || a.Number == 0 {
			return bad("ask")
		}
	}
	if v := m.Vote; v != nil {
		kinds++
		if v.Suspect == "" || v.Epoch <= 0 || v.Number == 0 {
			return bad("vote")
		}
	}
	if kinds > 1 {
		return bad("more than one message")
	}
	return nil
}

// appendFrame appends the frame of m to dst.
func appendFrame(dst []byte, m *message) ([]byte, error) {
	body, err := json.Marshal(m)
	if err != nil {
		return dst, fmt.Errorf("encode frame: %w", err)
	}
	if len(body) > maxFrame {
		return dst, fmt.Errorf("encode frame of %d bytes: %w", len(body), errFrameSize)
	}
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(body)))
	return append(dst, body...), nil
}

// frameReader reads frames from a connection. It keeps one buffer, so it holds
// at most maxFrame bytes whatever the peer sends.
type frameReader struct {
	r   *bufio.Reader
	buf []byte
}

func newFrameReader(r io.Reader) *frameReader {
	return &frameReader{r: bufio.NewReader(r)}
}

// next returns the next message. The message does not share memory with the
// reader. io.EOF means that the stream ended between two frames.
func (f *frameReader) next() (message, error) {
	var m message
	var head [4]byte
	if _, err := io.ReadFull(f.r, head[:]); err != nil {
		return m, err
	}
	n := int(binary.BigEndian.Uint32(head[:]))
	if n == 0 || n > maxFrame {
		return m, fmt.Errorf("%w: %d", errFrameSize, n)
	}
	if cap(f.buf) < n {
		f.buf = make([]byte, n)
	}
	body := f.buf[:n]
	if _, err := io.ReadFull(f.r, body); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return m, err
	}
	if err := json.Unmarshal(body, &m); err != nil {
		return message{}, fmt.Errorf("%w: %w", errFrame, err)
	}
	if err := m.check(); err != nil {
		return message{}, err
	}
	return m, nil
}

// milliseconds turns the age of a write into what a pulse carries.
func milliseconds(now, at time.Time) int64 {
	if at.IsZero() {
		return -1
	}
	return max(0, now.Sub(at).Milliseconds())
}
