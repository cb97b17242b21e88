package api

import (
	"cmp"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

const (
	redacted   = "[redacted]"
	maxScanned = 16 << 10 // bytes of a text that are looked at
	// maxPatterns bounds the secrets that are recognised when escaped: patterns are large and slow to make.
	maxPatterns = 8 << 10
	maxEscaped  = 12 // bytes that encoders make of one
	leastForm   = 8  // bytes of an encoded secret that can be told from other text
)

// redactor takes secrets out of what an upstream said; nil knows none.
type redactor struct {
	plain   *strings.Replacer
	escaped *regexp.Regexp
	longest int // bytes of any form of a secret
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
		for _, form := range encodings(s) {
			pairs = append(pairs, form, redacted)
		}
		if len(s) <= room {
			room -= len(s)
			patterns = append(patterns, escapedPattern(s))
		}
	}
	r := &redactor{plain: strings.NewReplacer(pairs...), longest: maxEscaped * len(secrets[0])}
	if len(patterns) > 0 {
		r.escaped = regexp.MustCompile(strings.Join(patterns, "|"))
	}
	return r
}

// encodings are what base64 and hex make of a text, wherever in a longer one it stands: of base64 the characters that
// depend on nothing else.
func encodings(s string) (forms []string) {
	for _, base64 := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		for before := range 3 {
			whole := base64.EncodeToString([]byte("xx"[:before] + s))
			forms = append(forms, whole[(8*before+5)/6:8*(before+len(s))/6])
		}
	}
	lower := hex.EncodeToString([]byte(s))
	forms = append(forms, lower, strings.ToUpper(lower))
	return slices.DeleteFunc(forms, func(form string) bool { return len(form) < leastForm })
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
		if s = r.plain.Replace(s); cut { // where a secret may have begun
			s = s[:max(0, len(s)-r.longest)]
		}
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
