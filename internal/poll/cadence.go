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
	cadencePart    = 0.2 // of the median is what waits begin with,
	cadenceAge     = 4   // and a quarter of a request's age what they grow to
	cadenceLeast   = 2 * time.Second
)

type durations struct {
	last []time.Duration
	next int
	seen int
	pace time.Duration
}

// pace is the policy for a type.
func (c *cadence) pace(p Policy, requestType string) Policy {
	if c == nil {
		return p
	}
	if d := c.types[requestType]; d != nil && d.pace > 0 {
		p.pace = max(p.BackoffInitial, d.pace)
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
		d.pace = max(cadenceLeast, time.Duration(cadencePart*float64(sorted[len(sorted)/2])))
	}
}
