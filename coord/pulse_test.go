package coord

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func frameOf(body string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
}

var sampleMessages = []message{
	{Hello: &helloMsg{Node: "c1", Run: "r", Epoch: 3, Version: "1.2", Generation: 2,
		origin: origin{Incarnation: "i", Recorded: map[string]string{"c2": "j"}, HasData: true}, Refused: "no"}},
	{Pulse: &pulseMsg{Seq: 7, Run: "r", Epoch: 3, Generation: -1, Acting: true, WriteAge: -1, Heard: 6, Maintenance: true}},
	{Echo: &echoMsg{Seq: 7, Epoch: 3}},
	{Ask: &askMsg{Suspect: "c1", Epoch: 3, Number: 9}},
	{Vote: &voteMsg{Suspect: "c1", Epoch: 3, Number: 9, Yes: true, Evidence: "silence"}},
}

func TestFramesRoundTrip(t *testing.T) {
	var stream []byte
	for i := range sampleMessages {
		var err error
		if stream, err = appendFrame(stream, &sampleMessages[i]); err != nil {
			t.Fatal(err)
		}
	}
	in := newFrameReader(bytes.NewReader(stream))
	for _, want := range sampleMessages {
		got, err := in.next()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(helloMsg{})); diff != "" {
			t.Error(diff)
		}
	}
	if _, err := in.next(); !errors.Is(err, io.EOF) {
		t.Errorf("after the last frame: %v, want io.EOF", err)
	}
}

func TestFrames(t *testing.T) {
	tests := []struct {
		name   string
		stream []byte
		want   error // nil: accepted
	}{
		{"unknown field", frameOf(`{"echo":{"seq":1,"epoch":2,"more":[1,2]}}`), nil},
		{"unknown kind", frameOf(`{"gossip":{"seq":"x"}}`), nil},
		{"missing field with a possible zero", frameOf(`{"echo":{"seq":1}}`), nil},
		{"cut in the length", []byte{0, 0}, io.ErrUnexpectedEOF},
		{"cut in the body", frameOf(`{"echo":{"seq":1}}`)[:9], io.ErrUnexpectedEOF},
		{"cut before the body", []byte{0, 0, 0, 9}, io.ErrUnexpectedEOF},
		{"empty", frameOf(""), errFrameSize},
		{"too long", []byte{0, 1, 0, 1}, errFrameSize},
		{"far too long", []byte{255, 255, 255, 255}, errFrameSize},
		{"longest", frameOf(`{"x":"` + strings.Repeat("a", maxFrame-8) + `"}`), nil},
		{"no JSON", frameOf("pulse"), errFrame},
		{"no object", frameOf("[]"), errFrame},
		{"two values", frameOf(`{} {}`), errFrame},
		{"wrong type", frameOf(`{"echo":{"seq":"1"}}`), errFrame},
		{"negative number", frameOf(`{"echo":{"seq":-1}}`), errFrame},
		{"fraction", frameOf(`{"echo":{"seq":1.5}}`), errFrame},
		{"number out of range", frameOf(`{"echo":{"seq":1,"epoch":1e30}}`), errFrame},
		{"two kinds", frameOf(`{"echo":{"seq":1},"ask":{"suspect":"a","epoch":1,"number":1}}`), errFrame},
		{"echo of nothing", frameOf(`{"echo":{"epoch":1}}`), errFrame},
		{"pulse that heard itself", frameOf(`{"pulse":{"seq":1,"heard":1,"run":"r"}}`), errFrame},
		{"pulse of nobody", frameOf(`{"pulse":{"seq":1}}`), errFrame},
		{"ask about no session", frameOf(`{"ask":{"suspect":"a","number":1}}`), errFrame},
		{"vote without number", frameOf(`{"vote":{"suspect":"a","epoch":1}}`), errFrame},
		{"hello without incarnation", frameOf(`{"hello":{"node":"a","run":"r"}}`), errFrame},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := newFrameReader(bytes.NewReader(tt.stream)).next(); !errors.Is(err, tt.want) {
				t.Errorf("error is %v, want %v", err, tt.want)
			}
		})
	}
}

func TestFrameTooLongToSend(t *testing.T) {
	_, err := appendFrame(nil, &message{Vote: &voteMsg{Evidence: strings.Repeat("a", maxFrame)}})
	if !errors.Is(err, errFrameSize) {
		t.Errorf("error is %v, want errFrameSize", err)
	}
}

func FuzzFrameReader(f *testing.F) {
	for i := range sampleMessages {
		frame, err := appendFrame(nil, &sampleMessages[i])
		if err != nil {
			f.Fatal(err)
		}
		f.Add(frame)
		f.Add(append(frame, frame...))
	}
	f.Add(frameOf(`{"pulse":null}`))
	f.Add([]byte{255, 255, 255, 255, 0})
	f.Fuzz(func(t *testing.T, stream []byte) {
		in := newFrameReader(bytes.NewReader(stream))
		for {
			m, err := in.next()
			if cap(in.buf) > maxFrame {
				t.Fatalf("the reader holds %d bytes", cap(in.buf))
			}
			if err != nil {
				return
			}
			// What was accepted means the same when it is sent on.
			frame, err := appendFrame(nil, &m)
			if errors.Is(err, errFrameSize) {
				continue // escapes can make it longer
			} else if err != nil {
				t.Fatal(err)
			}
			again, err := newFrameReader(bytes.NewReader(frame)).next()
			if err != nil {
				t.Fatalf("accepted and refused: %v", err)
			}
			if diff := cmp.Diff(m, again, cmp.AllowUnexported(helloMsg{})); diff != "" {
				t.Fatal(diff)
			}
		}
	})
}

func TestMilliseconds(t *testing.T) {
	for _, tt := range []struct {
		wrote time.Time
		want  int64
	}{{time.Time{}, -1}, {at(0), 1500}, {at(2 * time.Second), 0}} {
		if got := milliseconds(at(1500*ms), tt.wrote); got != tt.want {
			t.Errorf("age of a write at %v is %d, want %d", tt.wrote, got, tt.want)
		}
	}
}
