package poll

import (
	"slices"
	"time"
)

// cadence learns how long requests of a type take, to poll at a pace that suits them: doubling up to a fixed 30 s spends
// its first polls on what cannot be done yet, and then finds a job of 20 s six seconds late.
type cadence struct {
	types map[string]*durations
}

const (
	// The median follows the last so many requests of a type. Of those that were submitted together the long ones end last:
	// few samples would be all long then.
	cadenceSamples = 256
	cadenceKnown   = 8 // fewer say too little
	cadenceTypes   = 1000
	cadencePart    = 0.3 // of the median is how late a poll comes at most
	cadenceLeast   = 2 * time.Second
)

type durations struct {
	last    []time.Duration
	next    int
	seen    int
	ceiling time.Duration
}

// pace is the policy for a type: its backoff ends where the type's does, and begins with half of that.
func (c *cadence) pace(p Policy, requestType string) Policy {
	if c == nil {
		return p
	}
	if d := c.types[requestType]; d != nil && d.ceiling > 0 {
		p.BackoffMax = min(d.ceiling, p.BackoffMax)
		p.pace = max(p.BackoffInitial, p.BackoffMax/2)
	}
	return p
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
	if d.seen++; d.seen%max(cadenceKnown, len(d.last)/8) == 0 {
		sorted := slices.Sorted(slices.Values(d.last))
		d.ceiling = max(cadenceLeast, time.Duration(cadencePart*float64(sorted[len(sorted)/2])))
	}
}
