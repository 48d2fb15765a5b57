package pki

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"path"
	"strings"
	"time"

	"uac/roles"
)

// Tokens are bearer secrets: whoever has one may use it. Their text is
//
//	uacj_<id>_<secret>_<root fingerprint and checksum>    join token
//	uac_<id>_<secret and checksum>                        API token
//
// in lower-case base32, so that they survive URLs, shells and a double click. The
// checksum tells a typing error from a wrong token without asking anyone; it is no
// protection.
//
// Records hold the SHA-256 of the secret. A fast hash is right here: the secret has
// 256 random bits, so nobody finds it by trying, however fast. Slow hashes are for
// what people choose.

const (
	joinPrefix = "uacj"
	apiPrefix  = "uac"

	idSize     = 10 // bytes: no two tokens of a cluster will ever have the same id
	secretSize = 32
	sumSize    = 4
)

// Errors that a verification wraps. Only ErrTokenWrong may be met by someone who does
// not know the token: all others come after the secret has been proved.
var (
	ErrTokenMalformed = errors.New("malformed token")
	ErrTokenWrong     = errors.New("wrong token")
	ErrTokenExpired   = errors.New("token has expired")
	ErrTokenUsed      = errors.New("token has been used already")
	ErrTokenNotFor    = errors.New("token is for another node")
)

var base32Lower = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// Access is what the holder of an API token may do; each level includes the ones
// before it.
type Access string

// The levels of access.
const (
	Viewer   Access = "viewer"
	Operator Access = "operator"
	Admin    Access = "admin"
)

func (a Access) level() int {
	switch a {
	case Viewer:
		return 1
	case Operator:
		return 2
	case Admin:
		return 3
	}
	return 0
}

// ParseAccess returns the level of access called s.
func ParseAccess(s string) (Access, error) {
	if Access(s).level() == 0 {
		return "", fmt.Errorf("role %q: must be one of viewer, operator, admin", s)
	}
	return Access(s), nil
}

// Allows reports whether someone with access a may do what needs the level need. An
// unknown level allows nothing and is never allowed.
func (a Access) Allows(need Access) bool { return need.level() > 0 && a.level() >= need.level() }

// APIToken is the stored record of an API token. It holds no secret.
type APIToken struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"` // whom the token stands for, in audit events
	Role      Access    `json:"role"`
	Hash      string    `json:"hash"` // SHA-256 of the secret, hexadecimal
	Created   time.Time `json:"created"`
	CreatedBy string    `json:"created_by"`
	Expires   time.Time `json:"expires,omitzero"` // zero: never
}

// APITokenSpec says what [NewAPIToken] makes.
type APITokenSpec struct {
	Name      string
	Role      Access
	TTL       time.Duration // zero: never expires
	CreatedBy string
}

// NewAPIToken returns a new token, to be shown once and never stored, and its record.
func NewAPIToken(spec APITokenSpec, now time.Time) (string, APIToken, error) {
	if _, err := ParseAccess(string(spec.Role)); err != nil {
		return "", APIToken{}, err
	}
	if spec.Name == "" {
		return "", APIToken{}, errors.New("an API token needs the name of whom it stands for")
	}
	if spec.TTL < 0 {
		return "", APIToken{}, fmt.Errorf("lifetime %v of a token: must not be negative", spec.TTL)
	}
	id, secret := newSecret()
	rec := APIToken{ID: id, Name: spec.Name, Role: spec.Role, Hash: hashSecret(secret), Created: now.UTC(), CreatedBy: spec.CreatedBy}
	if spec.TTL > 0 {
		rec.Expires = now.Add(spec.TTL).UTC()
	}
	return formatToken(secret, apiPrefix, id), rec, nil
}

// APITokenID returns the id in an API token, under which its record is found.
func APITokenID(token string) (string, error) {
	id, _, err := parseAPIToken(token)
	return id, err
}

// Verify reports whether token is the one of this record and still valid.
func (t APIToken) Verify(token string, now time.Time) error {
	id, secret, err := parseAPIToken(token)
	if err != nil {
		return err
	}
	if !matches(id, secret, t.ID, t.Hash) {
		return ErrTokenWrong
	}
	if !t.Expires.IsZero() && !now.Before(t.Expires) {
		return ErrTokenExpired
	}
	return nil
}

func parseAPIToken(token string) (id string, secret []byte, err error) {
	fields, secret, err := parseToken(token, apiPrefix, 1, secretSize)
	if err != nil {
		return "", nil, err
	}
	return fields[0], secret, nil
}

// JoinToken is the stored record of a join token. It holds no secret. It is good for
// one node: whoever enrols that node stores the result of [JoinToken.Consume] in place
// of the record, provided that the record has not changed meanwhile.
type JoinToken struct {
	ID        string    `json:"id"`
	Role      Role      `json:"role"`
	Name      string    `json:"name"`            // a name, or a pattern as of path.Match
	Hosts     []string  `json:"hosts,omitempty"` // see JoinTokenSpec
	Replace   bool      `json:"replace"`
	Hash      string    `json:"hash"` // SHA-256 of the secret, hexadecimal
	Created   time.Time `json:"created"`
	CreatedBy string    `json:"created_by"`
	Expires   time.Time `json:"expires"`
	Used      *TokenUse `json:"used,omitempty"`
}

// TokenUse says which node has used a join token.
type TokenUse struct {
	Name string    `json:"name"`
	Key  string    `json:"key"` // of its Requests
	At   time.Time `json:"at"`
}

// JoinTokenSpec says what [NewJoinToken] makes.
type JoinTokenSpec struct {
	Role Role
	Name string // a name, or a pattern as of path.Match; "" means "*", any
	// Hosts are the host names and addresses of the node's API certificate. Without
	// any they are DefaultHosts of an exact name; but a node that chooses its name
	// to fit a pattern does not get a certificate for a host of that name, which
	// may be a controller's.
	Hosts           []string
	Replace         bool // a node of that name may exist and loses its place
	TTL             time.Duration
	CreatedBy       string
	RootFingerprint string
}

// NewJoinToken returns a new token, to be shown once and never stored, and its record.
func NewJoinToken(spec JoinTokenSpec, now time.Time) (string, JoinToken, error) {
	fail := func(err error) (string, JoinToken, error) { return "", JoinToken{}, err }
	if _, err := ParseRole(string(spec.Role)); err != nil {
		return fail(err)
	}
	if spec.Role == Controller {
		return fail(errors.New("a controller cannot enrol with a token: issue its directory with uac pki issue"))
	}
	if spec.Name == "" {
		spec.Name = "*"
	}
	pattern := strings.ContainsAny(spec.Name, `*?[\`)
	if _, err := path.Match(spec.Name, ""); err != nil {
		return fail(fmt.Errorf("name pattern %q: %w", spec.Name, err))
	}
	if err := roles.CheckNodeName(spec.Name); err != nil && !pattern {
		return fail(fmt.Errorf("node name: %w", err))
	}
	if pattern && spec.Replace {
		return fail(fmt.Errorf("name pattern %q: only a token for one exact name may replace a node", spec.Name))
	}
	if spec.TTL <= 0 {
		return fail(fmt.Errorf("lifetime %v of a join token: must be positive", spec.TTL))
	}
	if len(spec.Hosts) > 0 {
		if err := ValidateHosts(spec.Hosts); err != nil {
			return fail(err)
		}
	}
	root, err := hex.DecodeString(spec.RootFingerprint)
	if err != nil || len(root) != sha256.Size {
		return fail(fmt.Errorf("root fingerprint %q: must be a SHA-256 in hexadecimal", spec.RootFingerprint))
	}
	id, secret := newSecret()
	rec := JoinToken{
		ID: id, Role: spec.Role, Name: spec.Name, Hosts: spec.Hosts, Replace: spec.Replace, Hash: hashSecret(secret),
		Created: now.UTC(), CreatedBy: spec.CreatedBy, Expires: now.Add(spec.TTL).UTC(),
	}
	return formatToken(root, joinPrefix, id, base32Lower.EncodeToString(secret)), rec, nil
}

// ParseJoinToken returns the id in a join token, under which its record is found, and
// the fingerprint of the root certificate that the joining node is to trust.
func ParseJoinToken(token string) (id, rootFingerprint string, err error) {
	id, _, root, err := parseJoinToken(token)
	return id, root, err
}

func parseJoinToken(token string) (id string, secret []byte, rootFingerprint string, err error) {
	fields, root, err := parseToken(token, joinPrefix, 2, sha256.Size)
	if err != nil {
		return "", nil, "", err
	}
	secret, err = decodeField(fields[1], secretSize)
	if err != nil {
		return "", nil, "", err
	}
	return fields[0], secret, hex.EncodeToString(root), nil
}

// Ask is what a node that joins says of itself.
type Ask struct {
	Role Role
	Name string
	Key  string // see Requests.Key
}

// Verify returns what token, if it is the one of this record, lets the node become. A
// node that repeats its request with the same key, because the answer was lost, is
// let in again.
func (t JoinToken) Verify(token string, ask Ask, now time.Time) (Grant, error) {
	id, secret, _, err := parseJoinToken(token)
	if err != nil {
		return Grant{}, err
	}
	if !matches(id, secret, t.ID, t.Hash) {
		return Grant{}, ErrTokenWrong
	}
	if !now.Before(t.Expires) {
		return Grant{}, ErrTokenExpired
	}
	if ask.Role != t.Role {
		return Grant{}, fmt.Errorf("%w: it is for role %s, not %s", ErrTokenNotFor, t.Role, ask.Role)
	}
	if err := roles.CheckNodeName(ask.Name); err != nil {
		return Grant{}, fmt.Errorf("node name: %w", err)
	}
	if ok, err := path.Match(t.Name, ask.Name); err != nil || !ok {
		return Grant{}, fmt.Errorf("%w: it is for %q, not %q", ErrTokenNotFor, t.Name, ask.Name)
	}
	g := Grant{Role: t.Role, Name: ask.Name, Hosts: t.Hosts, Replace: t.Replace}
	if len(g.Hosts) == 0 && t.Name == ask.Name {
		g.Hosts = DefaultHosts(ask.Name)
	}
	if t.Used != nil {
		if t.Used.Name != ask.Name || t.Used.Key != ask.Key {
			return Grant{}, fmt.Errorf("%w by %s", ErrTokenUsed, t.Used.Name)
		}
		g.Replace = true // the node that exists is the one that asks
	}
	return g, nil
}

// Consume returns the record of the token after the node has used it.
func (t JoinToken) Consume(ask Ask, now time.Time) JoinToken {
	if t.Used == nil {
		t.Used = &TokenUse{Name: ask.Name, Key: ask.Key, At: now.UTC()}
	}
	return t
}

// newSecret returns a random id and secret. (crypto/rand.Read never fails.)
func newSecret() (id string, secret []byte) {
	raw := make([]byte, idSize)
	rand.Read(raw)
	secret = make([]byte, secretSize)
	rand.Read(secret)
	return base32Lower.EncodeToString(raw), secret
}

func hashSecret(secret []byte) string {
	sum := sha256.Sum256(secret)
	return hex.EncodeToString(sum[:])
}

// matches compares in constant time.
func matches(id string, secret []byte, wantID, wantHash string) bool {
	sameID := subtle.ConstantTimeCompare([]byte(id), []byte(wantID))
	sameSecret := subtle.ConstantTimeCompare([]byte(hashSecret(secret)), []byte(wantHash))
	return sameID&sameSecret == 1
}

// formatToken joins the fields and the last one, to which it adds the checksum of all.
func formatToken(last []byte, fields ...string) string {
	head := strings.Join(fields, "_") + "_"
	return head + base32Lower.EncodeToString(append(last[:len(last):len(last)], checksum(head, last)...))
}

func checksum(head string, last []byte) []byte {
	sum := crc32.ChecksumIEEE(append([]byte(head), last...))
	return binary.BigEndian.AppendUint32(nil, sum)
}

// parseToken splits a token into count fields, the first of them an id, and the last
// field of size bytes, whose checksum it verifies. It accepts exactly what formatToken
// produces.
func parseToken(token, prefix string, count, size int) (fields []string, last []byte, err error) {
	all := strings.Split(token, "_")
	if all[0] != prefix {
		return nil, nil, fmt.Errorf("%w: it does not begin with %s_", ErrTokenMalformed, prefix)
	}
	if len(all) != count+2 {
		return nil, nil, fmt.Errorf("%w: it has %d parts instead of %d", ErrTokenMalformed, len(all), count+2)
	}
	fields = all[1 : count+1]
	if _, err := decodeField(fields[0], idSize); err != nil {
		return nil, nil, err
	}
	raw, err := decodeField(all[count+1], size+sumSize)
	if err != nil {
		return nil, nil, err
	}
	last = raw[:size]
	head := token[:len(token)-len(all[count+1])]
	if string(checksum(head, last)) != string(raw[size:]) {
		return nil, nil, fmt.Errorf("%w: its checksum is wrong, it was mistyped or cut off", ErrTokenMalformed)
	}
	return fields, last, nil
}

// decodeField decodes size bytes of base32. A text that decodes to them but is not
// their encoding is refused, so that a token has one spelling.
func decodeField(s string, size int) ([]byte, error) {
	raw, err := base32Lower.DecodeString(s)
	if err != nil || len(raw) != size || base32Lower.EncodeToString(raw) != s {
		return nil, fmt.Errorf("%w: it was mistyped or cut off", ErrTokenMalformed)
	}
	return raw, nil
}
