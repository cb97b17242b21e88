package api

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

const (
	redacted = "[redacted]"
	// maxScanned is how much of a text is looked at. It is so much more than the most that is quoted that no part of a
	// secret at its end gets into the quote.
	maxScanned = 16 << 10
	// maxPatterns bounds the secrets that are recognised when escaped: patterns are large and slow to make.
	maxPatterns = 8 << 10
)

// redactor takes secrets out of what an upstream said; nil knows none.
type redactor struct {
	plain   *strings.Replacer
	escaped *regexp.Regexp
}

func newRedactor(secrets []string) *redactor {
	if len(secrets) == 0 {
		return nil
	}
	slices.SortFunc(secrets, func(a, b string) int { return cmp.Compare(len(b), len(a)) }) // one may be a part of another
	var pairs, patterns []string
	room := maxPatterns
	for _, s := range secrets {
		pairs = append(pairs, s, redacted)
		if len(s) <= room {
			room -= len(s)
			patterns = append(patterns, escapedPattern(s))
		}
	}
	r := &redactor{plain: strings.NewReplacer(pairs...)}
	if len(patterns) > 0 {
		r.escaped = regexp.MustCompile(strings.Join(patterns, "|"))
	}
	return r
}

// escapedPattern matches a text whatever JSON, URL and HTML encoders did to its characters.
func escapedPattern(s string) string {
	names := map[rune]string{'<': "|&lt;", '>': "|&gt;", '&': "|&amp;", '"': "|&quot;", '\'': "|&apos;", ' ': `|\+`}
	var b strings.Builder
	for _, r := range s {
		fmt.Fprintf(&b, `(?:\\*%s|(?i:\\+u%04x|&#0*%d;|&#x0*%x;`, regexp.QuoteMeta(string(r)), r, r, r)
		for i, c := range []byte(string(r)) {
			if i == 0 {
				b.WriteByte('|')
			}
			fmt.Fprintf(&b, "%%%02x", c)
		}
		b.WriteString(names[r] + "))")
	}
	return b.String()
}

// quote is how an upstream's words get out: without secrets, as valid UTF-8, in a copy of at most so many bytes.
func (r *redactor) quote(s string, most int) string {
	cut := len(s) > maxScanned
	s = s[:min(len(s), maxScanned)]
	if r != nil {
		if r.escaped != nil && strings.ContainsAny(s, `\%&`) {
			s = r.escaped.ReplaceAllLiteralString(s, redacted)
		}
		s = r.plain.Replace(s)
	}
	if s = strings.ToValidUTF8(s, "\uFFFD"); cut || len(s) > most {
		end := min(len(s), most-len("…"))
		for end > 0 && end < len(s) && !utf8.RuneStart(s[end]) {
			end--
		}
		s = s[:end] + "…"
	}
	return strings.Clone(s)
}
