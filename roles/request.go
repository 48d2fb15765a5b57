package roles

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"unicode/utf8"
)

// Limits of a request.
const (
	// MaxSpec is the most bytes of an encoded request: two thirds of what the store
	// takes in one transaction.
	MaxSpec = 1 << 20
	// MaxParamBytes is the most bytes of all parameter values together, so that
	// they always fit into the environment of a step.
	MaxParamBytes = 256 << 10
	// MaxKey is the most bytes of an idempotency key.
	MaxKey = 255
)

// format numbers the layout of all records of a request.
const format = 1

// Request is the spec of a request: what was asked for, frozen when it was
// accepted. It is never changed.
type Request struct {
	Format  int     `json:"format"`
	ID      string  `json:"id"` // a ULID
	Process Process `json:"process"`
	// Params has a value for every parameter of the process.
	Params         map[string]string `json:"params,omitempty"`
	RequestedBy    string            `json:"requested_by"`
	RequestedAt    Stamp             `json:"requested_at"`
	IdempotencyKey string            `json:"idempotency_key,omitempty"`
	// Digest tells requests with the same idempotency key apart: see ContentDigest.
	Digest string `json:"digest"`
}

// RequestOptions is what a request has besides its process.
type RequestOptions struct {
	ID             string // a new ULID
	Params         map[string]string
	RequestedBy    string
	RequestedAt    Stamp
	IdempotencyKey string // optional
}

// NewRequest returns the request to run p. P must have been read by [Decode] or
// passed Validate; it is copied into the request and must not be changed
// afterwards. The error is a Problems that lists every missing, unknown or
// oversized parameter and every other bad option.
func NewRequest(p *Process, o RequestOptions) (*Request, error) {
	wrong := problemList{file: "process " + p.Name}
	addf := func(field, format string, args ...any) { wrong.addf(0, 0, field, format, args...) }
	if err := checkID(o.ID); err != nil {
		addf("id", "%v", err)
	}
	if len(o.IdempotencyKey) > MaxKey || !utf8.ValidString(o.IdempotencyKey) {
		addf("idempotency key", "must be at most %d bytes of UTF-8", MaxKey)
	}
	known := make([]string, len(p.Params))
	values := make(map[string]string, len(p.Params))
	for i, q := range p.Params {
		known[i] = q.Name
		v, given := o.Params[q.Name]
		if !given {
			v = q.Default
		}
		if q.Required && v == "" {
			addf("params."+q.Name, "is required")
		}
		values[q.Name] = v
	}
	total := 0
	for _, name := range slices.Sorted(maps.Keys(o.Params)) {
		total += len(o.Params[name])
		if !slices.Contains(known, name) {
			addf("", "there is no parameter %s%s", quote(name), DidYouMean(Nearest(name, known)))
		} else if err := checkValue(o.Params[name]); err != nil {
			addf("params."+name, "%v", err)
		}
	}
	if total > MaxParamBytes {
		addf("params", "have %d bytes together, at most %d are allowed", total, MaxParamBytes)
	}
	if err := wrong.err(); err != nil {
		return nil, err
	}
	return &Request{
		Format:         format,
		ID:             o.ID,
		Process:        *p,
		Params:         values,
		RequestedBy:    o.RequestedBy,
		RequestedAt:    o.RequestedAt,
		IdempotencyKey: o.IdempotencyKey,
		Digest:         ContentDigest(p.Name, o.Params),
	}, nil
}

// ContentDigest returns the digest of what a client asks for: the name of a process
// and the parameters as given. A client that repeats itself gets the same digest,
// even if the definition of the process has changed in between.
func ContentDigest(process string, params map[string]string) string {
	h := sha256.New()
	write := func(s string) {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(s)))
		h.Write(n[:])
		h.Write([]byte(s))
	}
	write(process)
	for _, name := range slices.Sorted(maps.Keys(params)) {
		write(name)
		write(params[name])
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}

// Encode returns the request as JSON, the form in which it is stored. It refuses
// one that is larger than MaxSpec.
func (r *Request) Encode() ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // scripts are full of < and &
	if err := enc.Encode(r); err != nil {
		return nil, fmt.Errorf("encode request %s: %w", r.ID, err)
	}
	if b.Len() > MaxSpec {
		return nil, Problems{{File: "process " + r.Process.Name, Message: fmt.Sprintf(
			"the request has %d bytes with its process and parameters, at most %d are allowed", b.Len(), MaxSpec)}}
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}
