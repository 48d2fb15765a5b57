package controller

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"uac/codestation/mount"
)

func TestParseKept(t *testing.T) {
	k := parseKept("d", []mount.Entry{
		{Name: "0-1-70-0", Size: 100}, {Name: "1-1-60-90", Size: 50}, {Name: "3-1-60-200", Size: 10}, {Name: "2-1-60-140", Size: 0}, // nothing is in that yet
		{Name: "end-210", Size: 0}, {Name: "gone-5", Size: 0},
		// Not ours, or not of this program.
		{Name: "end-", Size: 0}, {Name: "end--1", Size: 0}, {Name: "end-x", Size: 0}, {Name: "gone", Size: 0}, {Name: "1-2-3", Size: 5}, {Name: "1-2-3-4-5", Size: 5}, {Name: "01-2-3-4", Size: 5}, {Name: "-1-2-3-4", Size: 5}, {Name: ".nfs0001", Size: 5}, {Name: "1-2-3-x", Size: 5},
	})
	want := keptOutput{end: 210, gone: 5, segments: []segment{
		{name: "d/0-1-70-0", generation: 1, epoch: 70, size: 100},
		{name: "d/1-1-60-90", number: 1, generation: 1, epoch: 60, start: 90, size: 50},
		{name: "d/3-1-60-200", number: 3, generation: 1, epoch: 60, start: 200, size: 10},
	}}
	if diff := cmp.Diff(want, k, cmp.AllowUnexported(keptOutput{}, segment{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, tt := range []struct {
		offset int64
		file   string
		n      int64
	}{{0, "d/0-1-70-0", 90}, {89, "d/0-1-70-0", 1}, {90, "d/1-1-60-90", 50}, {139, "d/1-1-60-90", 1}, {140, "", 0}, {199, "", 0}, {200, "d/3-1-60-200", 10}, {210, "", 0}} {
		s, n, _ := k.at(tt.offset)
		if s.name != tt.file || n != tt.n {
			t.Errorf("at %d: %d bytes of %q, want %d of %q", tt.offset, n, s.name, tt.n, tt.file)
		}
	}
	if a, b := k.next(140, -1), k.next(200, -1); a != 200 || b != -1 {
		t.Errorf("behind 140 comes %d, behind 200 %d", a, b)
	}
	if offset, number := k.resume(); offset != 0 || number != 4 {
		t.Errorf("the next writer begins at %d with number %d", offset, number)
	}
}

// Writers die at any point, some together with the file server, which then has rubbish
// where it had acknowledged nothing. The last one comes to the end. Readers get what
// the attempt wrote.
func TestSegmentsJoin(t *testing.T) {
	content := make([]byte, 6*collectSize)
	for i := range content {
		content[i] = byte(i*7 + i>>8 + i>>16)
	}
	rapid.Check(t, func(t *rapid.T) {
		total := rapid.Int64Range(1, int64(len(content))).Draw(t, "total")
		files := map[string][]byte{}
		list := func() keptOutput {
			var all []mount.Entry
			for name, data := range files {
				all = append(all, mount.Entry{Name: name, Size: int64(len(data))})
			}
			return parseKept("", all)
		}
		write := func(epoch, until int64) (last string) {
			s := segment{generation: 1, epoch: epoch}
			s.start, s.number = list().resume()
			if s.start < until {
				files[s.file()] = bytes.Clone(content[s.start:until])
			}
			return s.file()
		}
		for i := range rapid.IntRange(0, 4).Draw(t, "writers that die") {
			// Epochs of sessions say nothing about who came first.
			last := write(rapid.Int64Range(int64(i)*10, int64(i)*10+5).Draw(t, "epoch")*7%50, rapid.Int64Range(0, total).Draw(t, "until"))
			if data := files[last]; rapid.Bool().Draw(t, "with the server") {
				bad := min(rapid.IntRange(0, collectOverlap).Draw(t, "rubbish"), len(data))
				clear(data[len(data)-bad:])
			}
		}
		write(99, total)
		kept := list()
		for offset := int64(0); offset < total; {
			s, n, ok := kept.at(offset)
			if !ok || n <= 0 {
				t.Fatalf("nothing at %d of %d", offset, total)
			}
			if data := files[s.name][offset-s.start:]; !bytes.Equal(data[:n], content[offset:offset+n]) {
				t.Fatalf("from %d on, %d bytes of %s are not what was written", offset, n, s.name)
			}
			offset += n
		}
		if _, _, ok := kept.at(total); ok {
			t.Fatal("something is behind the end")
		}
	})
}

func TestOutputDir(t *testing.T) {
	for key, want := range map[attemptKey]string{
		{"01JD8Z6V9YB6W7N2Q5T3R4S8XA", "switch", 3}: "logs/01JD8Z/01JD8Z6V9YB6W7N2Q5T3R4S8XA/switch.3",
		{"R", "a.b", 1}: "logs/R/R/a.b.1",
	} {
		if got := outputDir(key); got != want {
			t.Errorf("%v: %s, want %s", fmt.Sprint(key), got, want)
		}
	}
}
