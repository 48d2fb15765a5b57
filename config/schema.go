package config

import (
	"reflect"
	"slices"
	"strings"
)

// field is one setting: a leaf of a settings struct.
type field struct {
	key   string // dotted
	index []int  // for reflect's FieldByIndex
	rules
}

// rules are what a field's type and tags say about its values.
type rules struct {
	typ    reflect.Type
	secret bool
	bytes  bool
	oneof  []string
}

// schema lists the leaves of a settings struct in the order of their
// declaration.
type schema []field

// schemaOf returns the schema of a struct type. Every field must have a yaml
// tag; a field that is itself a struct is a section.
func schemaOf(t reflect.Type) schema { return appendFields(nil, t, "", nil) }

func appendFields(s schema, t reflect.Type, prefix string, index []int) schema {
	for i := range t.NumField() {
		f := t.Field(i)
		key, at := prefix+f.Tag.Get("yaml"), slices.Concat(index, []int{i})
		if f.Type.Kind() == reflect.Struct {
			s = appendFields(s, f.Type, key+".", at)
			continue
		}
		s = append(s, field{key: key, index: at, rules: rulesOf(f)})
	}
	return s
}

func rulesOf(f reflect.StructField) rules {
	return rules{
		typ:    f.Type,
		secret: f.Tag.Get("secret") == "true",
		bytes:  f.Tag.Get("unit") == "bytes",
		oneof:  strings.Fields(f.Tag.Get("oneof")),
	}
}

// find returns the field of a key.
func (s schema) find(key string) (field, bool) {
	for _, f := range s {
		if f.key == key {
			return f, true
		}
	}
	return field{}, false
}

// keys returns all keys.
func (s schema) keys() []string {
	keys := make([]string, len(s))
	for i, f := range s {
		keys[i] = f.key
	}
	return keys
}

// sections returns the first parts of the keys that have several.
func (s schema) sections() []string {
	var out []string
	for _, f := range s {
		section, _, below := strings.Cut(f.key, ".")
		if below && (len(out) == 0 || out[len(out)-1] != section) {
			out = append(out, section)
		}
	}
	return out
}

// envName returns the environment variable of a key.
func envName(key string) string {
	return "UAC_" + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
}

// freeKeys reports whether a field is a map whose keys are user data. viper
// would lower-case them and split them at dots, so they bypass it.
func (f field) freeKeys() bool { return f.typ.Kind() == reflect.Map }
