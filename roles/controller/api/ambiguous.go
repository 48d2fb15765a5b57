package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"
)

// What can be read in two ways is refused: the decoders would quietly choose one of
// two values, and put U+FFFD in the place of what is no character.
const (
	givenTwice = "is given twice"
	notUTF8    = "is not valid UTF-8"
)

// ambiguous is the problem of one place in a call.
func ambiguous(status int, location, message string) *huma.ErrorModel {
	p := problem(status, "validation failed")
	p.Errors = []*huma.ErrorDetail{{Message: message, Location: location}}
	return p
}

// checkTarget refuses a query and headers that can be read in two ways. No parameter
// may be repeated: lists are separated by commas.
func checkTarget(r *http.Request) *huma.ErrorModel {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil { // url.URL.Query would leave out what is wrong
		return ambiguous(http.StatusBadRequest, "query", err.Error())
	}
	for _, name := range slices.Sorted(maps.Keys(query)) {
		switch values := query[name]; {
		case !utf8.ValidString(name):
			return ambiguous(http.StatusBadRequest, "query", fmt.Sprintf("the name %q %s", name, notUTF8))
		case len(values) > 1:
			return ambiguous(http.StatusBadRequest, "query."+name, givenTwice)
		case !utf8.ValidString(values[0]):
			return ambiguous(http.StatusBadRequest, "query."+name, notUTF8)
		}
	}
	for _, name := range []string{HeaderIdempotencyKey, HeaderRevision} {
		if len(r.Header.Values(name)) > 1 {
			return ambiguous(http.StatusBadRequest, "header."+name, givenTwice)
		}
	}
	return nil
}

// maxDepth bounds how deep objects and arrays of a body lie in each other. Nothing of
// the API is half as deep, and each level takes memory.
const maxDepth = 20

// level is an object or array of a body that is being walked through.
type level struct {
	seen  map[string]bool // the names so far; nil in an array
	name  string          // the latest of them
	named bool            // its value comes next
	index int             // of the element that comes next, in an array
}

// checkBody refuses a JSON body with the same name twice in one object, with a
// name of the API in another case, or with half a character. What is no JSON at all
// is left to the decoder.
func checkBody(body []byte) *huma.ErrorModel {
	var levels []level
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	var end int64 // of the token
	for token, err := dec.Token(); err == nil; token, err = dec.Token() {
		start := end
		end = dec.InputOffset()
		var in *level
		if len(levels) > 0 {
			in = &levels[len(levels)-1]
		}
		text, isText := token.(string)
		isName := isText && in != nil && in.seen != nil && !in.named
		if isName {
			in.name, in.named = text, true
		}
		switch {
		case isText && halfCharacter(body[start:end]):
			return ambiguous(http.StatusBadRequest, place(levels), `has half a character: \ud800 to \udfff come in pairs`)
		case isName && in.seen[text]:
			return ambiguous(http.StatusBadRequest, place(levels), givenTwice)
		case isName && len(levels) == 1 && strings.ContainsFunc(text, func(r rune) bool { return (r < 'a' || r > 'z') && r != '_' }):
			// The decoder does not tell Process and process apart.
			return ambiguous(http.StatusUnprocessableEntity, place(levels), "unexpected property")
		case isName:
			in.seen[text] = true
			continue
		case (token == json.Delim('{') || token == json.Delim('[')) && len(levels) == maxDepth:
			return ambiguous(http.StatusBadRequest, place(levels), fmt.Sprintf("is deeper than %d levels", maxDepth))
		case token == json.Delim('{'):
			levels = append(levels, level{seen: map[string]bool{}})
			continue
		case token == json.Delim('['):
			levels = append(levels, level{})
			continue
		case token == json.Delim('}'), token == json.Delim(']'):
			levels = levels[:len(levels)-1]
		}
		// A value is complete.
		if len(levels) > 0 {
			in = &levels[len(levels)-1]
			in.named, in.index = false, in.index+1
		}
	}
	return nil
}

// place names what comes next at the innermost level, like body.steps[0].run.
func place(levels []level) string {
	var b strings.Builder
	b.WriteString("body")
	for _, l := range levels {
		if l.seen != nil {
			b.WriteString("." + l.name)
		} else {
			fmt.Fprintf(&b, "[%d]", l.index)
		}
	}
	return b.String()
}

// halfCharacter reports whether a string in JSON has one half of a surrogate pair
// without the other.
func halfCharacter(text []byte) bool {
	escaped := func(i int) rune {
		if i+6 > len(text) || text[i] != '\\' || text[i+1] != 'u' {
			return -1
		}
		r, err := strconv.ParseUint(string(text[i+2:i+6]), 16, 16)
		if err != nil {
			return -1
		}
		return rune(r)
	}
	for i := 0; i < len(text); i++ {
		if text[i] != '\\' {
			continue
		}
		if r := escaped(i); utf16.IsSurrogate(r) {
			if utf16.DecodeRune(r, escaped(i+6)) == utf8.RuneError {
				return true
			}
			i += 6 // the other half has an end of its own
		}
		i++ // what is escaped
	}
	return false
}
