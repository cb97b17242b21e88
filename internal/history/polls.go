package history

import (
	"slices"
	"time"
)

const (
	pollGap = 40 * time.Second // the longest backoff of the default policy with its jitter, and some
	// lookEvery is after what time at most a holder learns that another one has ended the request, by the design.
	lookEvery = 5 * time.Minute
)

// judgePolls judges who polled what.
func (j *judge) judgePolls() {
	j.report.Polls = len(j.run.Polls)
	byID := make(map[string][]int)
	for i, p := range j.run.Polls {
		byID[p.ID] = append(byID[p.ID], i)
	}
	for _, id := range j.order {
		q := j.requests[id]
		polls := make([]Poll, 0, len(byID[id]))
		for _, i := range byID[id] {
			polls = append(polls, j.run.Polls[i])
		}
		slices.SortStableFunc(polls, func(a, b Poll) int { return a.Start.Compare(b.Start) })
		j.judgeHolders(id, q, polls)
		j.judgeOver(id, q, polls)
	}
}

// judgeOver judges that an ended request is left alone. The end may come from a holder that was cut off with the result in
// its hands, or from that of another submission: whoever holds the request then learns of it at its next look.
func (j *judge) judgeOver(id string, q *request, polls []Poll) {
	if !q.closed || len(polls) == 0 {
		return
	}
	grace := max(j.run.Lease, lookEvery+j.gap()) + j.run.ClockSkew
	if last := polls[len(polls)-1]; last.Start.After(q.closedAt.Add(grace)) {
		j.report.violate(&j.report.AfterTerminal, Over, id, "%s polled it %s after its closing record", last.Caller, last.Start.Sub(q.closedAt))
	}
}

func (j *judge) gap() time.Duration {
	if j.run.PollGap > 0 {
		return j.run.PollGap
	}
	return pollGap
}

// tenure is a time in which one caller polled a request without a long pause.
type tenure struct {
	caller      string
	first, last time.Time // starts of its polls
	ended       time.Time // when the last of them did
}

// judgeHolders judges that no two callers polled a request side by side for longer than a lease. A request that goes
// to and fro is not that: a drain hands over at once, and may get it back. Side by side is when the polls of two
// callers alternate, at least twice each, in tenures that overlap for longer than a lease.
func (j *judge) judgeHolders(id string, q *request, polls []Poll) {
	if j.run.Lease == 0 || q.copies() > 1 {
		return
	}
	var tenures []*tenure
	current := map[string]*tenure{}
	for _, p := range polls {
		t := current[p.Caller]
		if t == nil || p.Start.Sub(t.ended) > max(j.gap(), j.run.Lease) {
			t = &tenure{caller: p.Caller, first: p.Start}
			current[p.Caller] = t
			tenures = append(tenures, t)
		}
		t.last, t.ended = p.Start, p.End
	}
	for i, a := range tenures {
		for _, b := range tenures[i+1:] {
			from, to := later(a.first, b.first), earlier(a.last, b.last)
			if a.caller == b.caller || to.Sub(from) <= j.run.Lease+j.run.ClockSkew || alternations(polls, a, b, from, to) < 3 {
				continue
			}
			j.report.violate(&j.report.Duplicate, OneHolder, id, "%s and %s both polled it for %s, with a lease of %s", a.caller, b.caller, to.Sub(from), j.run.Lease)
			return
		}
	}
}

// alternations counts how often the caller changes among the polls of two tenures.
func alternations(polls []Poll, a, b *tenure, from, to time.Time) (n int) {
	last := ""
	for _, p := range polls {
		if p.Start.Before(from) || p.Start.After(to) || p.Caller != a.caller && p.Caller != b.caller {
			continue
		}
		if last != "" && p.Caller != last {
			n++
		}
		last = p.Caller
	}
	return n
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
