package poll

import (
	"slices"
	"time"
)

// cadence learns how long requests of a type take, to poll short jobs often and long ones seldom: backing off to a
// fixed 30 s finds a job of 20 s six seconds late, and one of an hour with far too many polls.
type cadence struct {
	types map[string]*durations
}

const (
	cadenceSamples  = 64 // the median follows the last so many requests of a type
	cadenceKnown    = 8  // fewer say too little
	cadenceTypes    = 1000
	cadenceFraction = 5 // a poll comes a fifth of the median late at most
	cadenceLeast    = 2 * time.Second
)

type durations struct {
	last    []time.Duration
	next    int
	ceiling time.Duration
}

// ceiling is where the backoff of this type ends; at most the policy's.
func (c *cadence) ceiling(requestType string, most time.Duration) time.Duration {
	if c == nil {
		return most
	}
	if d := c.types[requestType]; d != nil && d.ceiling > 0 {
		return min(d.ceiling, most)
	}
	return most
}

// learn takes the time from a submission to its completion.
func (c *cadence) learn(requestType string, took time.Duration) {
	if c == nil {
		return
	}
	d := c.types[requestType]
	if d == nil {
		if len(c.types) >= cadenceTypes {
			return
		}
		d = &durations{}
		c.types[requestType] = d
	}
	if len(d.last) < cadenceSamples {
		d.last = append(d.last, took)
	} else {
		d.last[d.next] = took
		d.next = (d.next + 1) % cadenceSamples
	}
	if len(d.last) >= cadenceKnown && d.next%cadenceKnown == 0 {
		sorted := slices.Sorted(slices.Values(d.last))
		d.ceiling = max(cadenceLeast, sorted[len(sorted)/2]/cadenceFraction)
	}
}
