package config

import (
	_ "embed" // for the sample
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"
)

//go:embed uac.sample.yaml
var sample string

// Sample returns an annotated configuration file with every key.
func Sample() string { return sample }

// mask stands for a secret wherever settings are shown.
const mask = "********"

// Setting is one effective value and where it was set.
type Setting struct {
	Key    string `json:"key"`
	Value  string `json:"value"`
	Origin string `json:"origin"`
}

// Settings lists the settings that are in effect, secrets masked.
func (c *Config) Settings(origins Origins) []Setting {
	var out []Setting
	add := func(key string, r rules, v reflect.Value) {
		out = append(out, Setting{Key: key, Value: format(r, v), Origin: origins.Of(key).String()})
	}
	root := reflect.ValueOf(c).Elem()
	for _, f := range schemaOf(root.Type()) {
		v := root.FieldByIndex(f.index)
		switch {
		case v.Kind() == reflect.Slice && f.typ.Elem().Kind() == reflect.Struct:
			for i := range v.Len() {
				for _, inner := range schemaOf(f.typ.Elem()) {
					add(fmt.Sprintf("%s[%d].%s", f.key, i, inner.key), inner.rules, v.Index(i).FieldByIndex(inner.index))
				}
			}
		default:
			add(f.key, f.rules, v)
		}
	}
	return out
}

// format renders one value as it can be written in a file or a variable.
func format(r rules, v reflect.Value) string {
	if r.secret {
		if v.IsZero() {
			return ""
		}
		return mask
	}
	switch value := v.Interface().(type) {
	case time.Duration:
		return value.String()
	case []string:
		return strings.Join(value, ",")
	case map[string]string:
		var words []string
		for _, name := range slices.Sorted(maps.Keys(value)) {
			words = append(words, name+"="+value[name])
		}
		return strings.Join(words, ",")
	case int64:
		if r.bytes {
			return formatSize(value)
		}
	}
	return fmt.Sprint(v.Interface())
}
