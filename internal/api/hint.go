package api

import (
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/tidwall/gjson"
)

// MaxHint bounds every wait that an upstream asks for.
const MaxHint = 5 * time.Minute

// hint is what one answer asks for in all the ways that there are. The longest wait wins: a poll must not come early for
// any of them.
type hint struct {
	wait time.Duration // in [0, MaxHint]
	odd  string        // one that could not be granted as it is; empty: none
}

func (h *hint) add(text string, wait time.Duration, ok bool) {
	if h.wait = max(h.wait, min(wait, MaxHint)); (!ok || wait > MaxHint) && h.odd == "" {
		h.odd = text
	}
}

// header reads the headers of an answer that arrived at now.
func (h *hint) header(header http.Header, now time.Time) {
	seconds, ms := unfold(header["Retry-After"]), unfold(header["Retry-After-Ms"])
	for _, v := range ms {
		h.number(v, time.Millisecond)
	}
	for _, v := range seconds {
		if at, err := http.ParseTime(v); err == nil {
			h.add(v, max(0, at.Sub(now)), !at.Before(now.Add(-time.Second))) // a date has no fractions
		} else {
			h.number(v, time.Second)
		}
	}
	if len(seconds) > 1 || len(ms) > 1 {
		h.add(strings.Join(append(seconds, ms...), ", "), 0, false)
	}
}

// unfold takes apart what a proxy on the way made one line of. Some dates have a comma of their own.
func unfold(lines []string) (values []string) {
	for _, line := range lines {
		for more := true; more; {
			var value string
			value, line, more = strings.Cut(line, ",")
			day, rest, _ := strings.Cut(line, ",")
			if date := strings.TrimSpace(value + "," + day); more && isDate(date) {
				value, line = date, rest
				more = rest != ""
			}
			if value = strings.TrimSpace(value); value != "" {
				values = append(values, value)
			}
		}
	}
	return values
}

// isDate knows dates that have a comma.
func isDate(text string) bool {
	if len(text) < len(http.TimeFormat) { // the shortest of them: thousands of commas are cheap
		return false
	}
	_, err := http.ParseTime(text)
	return err == nil
}

func (h *hint) body(ms, s gjson.Result) {
	h.number(ms.String(), time.Millisecond)
	h.number(s.String(), time.Second)
}

// number reads a decimal number of units. What is no number, or negative, is no wait.
func (h *hint) number(text string, unit time.Duration) {
	s := strings.TrimSpace(text)
	if s == "" {
		return
	}
	f, err := strconv.ParseFloat(s, 64)
	switch {
	case strings.ContainsAny(s, "xX"): // hexadecimal to ParseFloat
		h.add(text, 0, false)
	case math.IsNaN(f) || err != nil && !math.IsInf(f, 0) || f < 0:
		h.add(text, 0, false)
	case f*float64(unit) > float64(MaxHint):
		h.add(text, MaxHint, false)
	default:
		h.add(text, time.Duration(f*float64(unit)), true)
	}
}
