package pgtenancy_test

import (
	"bytes"
	"go/format"
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestReadme_GoSnippet keeps README's program the one that example_test.go compiles.
func TestReadme_GoSnippet(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	snippet := regexp.MustCompile("(?s)```go\nfunc main\\(\\) \\{\n(.*?)\n\\}\n```").FindSubmatch(readme)
	if snippet == nil {
		t.Fatal("README.md has no Go program")
	}
	source, err := os.ReadFile("example_readme_test.go")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := bytes.Cut(source, []byte("func Example_readme() {\n"))
	body, _, ok := bytes.Cut(after, []byte("\n}\n"))
	if !ok {
		t.Fatal("example_readme_test.go has no Example_readme")
	}
	if got, want := string(snippet[1]), string(body); got != want {
		t.Errorf("README's program is not that of Example_readme:\n%s\nwant:\n%s", got, want)
	}
	formatted, err := format.Source(snippet[0][len("```go\n") : len(snippet[0])-len("```")])
	if err != nil || strings.TrimSpace(string(formatted)) != strings.TrimSpace(string(snippet[0][len("```go\n"):len(snippet[0])-len("```")])) {
		t.Errorf("README's program is not formatted: %v", err)
	}
}
