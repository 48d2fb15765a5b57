package roles

import "testing"

func TestSize(t *testing.T) {
	for text, want := range map[string]Size{
		"1": 1, "1000": 1000, "64KiB": 64 << 10, "1024KiB": 1 << 20, "10MiB": 10 << 20, "3GiB": 3 << 30, "2TiB": 2 << 40, "512B": 512, "0": 0,
	} {
		var s Size
		if err := s.UnmarshalText([]byte(text)); err != nil || s != want {
			t.Errorf("%s: %d, %v", text, s, err)
		}
		var again Size
		if err := again.UnmarshalText([]byte(s.String())); err != nil || again != s {
			t.Errorf("%s written as %s is %d, %v", text, s, again, err)
		}
	}
	for _, text := range []string{"", "MiB", "-1", "+1", "1.5MiB", "10MB", "1 MiB", "9000000000GiB", "99999999999999999999"} {
		if s := Size(7); s.UnmarshalText([]byte(text)) == nil || s != 7 {
			t.Errorf("%q is %d", text, s)
		}
	}
}
