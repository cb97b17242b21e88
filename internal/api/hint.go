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

// hints are all the ways in which one answer can ask for a wait. The longest wins: a poll must not come early for any.
func headerHint(h http.Header, now time.Time) time.Duration {
	if len(h["Retry-After"]) == 0 && len(h["Retry-After-Ms"]) == 0 {
		return 0
	}
	var hint time.Duration
	for _, v := range h["Retry-After-Ms"] {
		hint = max(hint, parseWait(v, time.Millisecond))
	}
	for _, v := range h["Retry-After"] {
		if at, err := http.ParseTime(v); err == nil {
			hint = max(hint, clampHint(at.Sub(now)))
		} else {
			hint = max(hint, parseWait(v, time.Second))
		}
	}
	return hint
}

func bodyHint(ms, s gjson.Result) time.Duration {
	return max(parseWait(ms.String(), time.Millisecond), parseWait(s.String(), time.Second))
}

// parseWait reads a decimal number of units. What is no number, or negative, is no hint.
func parseWait(s string, unit time.Duration) time.Duration {
	if s = strings.TrimSpace(s); s == "" {
		return 0
	}
	f, err := strconv.ParseFloat(s, 64)
	if math.IsNaN(f) || (err != nil && !math.IsInf(f, 0)) || f <= 0 {
		return 0
	}
	if f *= float64(unit); f >= float64(MaxHint) {
		return MaxHint
	}
	return time.Duration(f)
}

func clampHint(d time.Duration) time.Duration { return min(max(d, 0), MaxHint) }
