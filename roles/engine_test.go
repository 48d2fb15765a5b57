package roles

import (
	"fmt"
	"strings"
)

const testID = "01J9ZK8Q3V4W5X6Y7Z8A9BCDEF"

// summary returns the statuses of a request and its steps in one line.
func summary(s State) string {
	words := []string{string(s.Record.Status)}
	for _, st := range s.Steps {
		words = append(words, fmt.Sprintf("%s=%s", st.Name, st.Status))
	}
	return strings.Join(words, " ")
}
