package poll

import (
	"cmp"
	"context"
	"slices"
	"time"
)

const (
	tick = 10 * time.Millisecond // due polls go out together, at most this late
	// clockEvery is how often deadlines are compared with the wall clock apart from what is due: it may have been set
	// forward, or have gone on while the machine slept and the monotonic clock stood.
	clockEvery = time.Minute
	maxEnding  = 512 // requests past their deadline that are ended at a time, beside the polls
)

// dispatch sends out what is due and allowed. It returns when to come back, or -1: when something happens.
func (e *Engine) dispatch(ctx context.Context, draining bool) int64 {
	for !draining {
		now := e.now()
		if now-e.swept >= int64(clockEvery) && len(e.heap)+e.due.length > 0 {
			e.sweep(ctx, now)
			continue
		}
		for len(e.heap) > 0 && e.heap[0].due <= now {
			w := e.heap.pop()
			if early := w.row.early(now); early > 0 {
				e.heap.push(entry{now + int64(early), w.row})
				continue
			}
			e.due.push(w)
		}
		if e.due.length == 0 {
			if len(e.heap) == 0 {
				return -1
			}
			return max(min(e.heap[0].due, e.swept+int64(clockEvery)), now+int64(tick))
		}
		if !e.room(e.due.first(e.gate.doubts(e.at(now))).row) {
			e.sweep(ctx, now)
			return now + int64(tick) // results leave memory without a word to this goroutine
		}
		ok, next := e.gate.admit(e.at(now))
		if !ok {
			wake := e.sweep(ctx, now)
			if !next.IsZero() {
				wake = min(wake, max(int64(next.Sub(e.start)), now+int64(tick)))
			}
			return wake
		}
		e.send(ctx, e.due.pop(e.gate.doubts(e.at(now))), false)
	}
	return -1
}

func (e *Engine) at(now int64) time.Time { return e.start.Add(time.Duration(now)) }

// room reports whether results in memory leave room for what this poll is to bring: an announced result needs it before
// it is asked for. One that is larger than all the room gets all of it.
func (e *Engine) room(r *row) bool {
	if e.cfg.Full != nil && e.cfg.Full() {
		return false
	}
	held := e.bytes.Load()
	return held <= 0 || held+max(1, r.reserved) <= e.cfg.ResultMemory
}

func (e *Engine) send(ctx context.Context, due entry, overdue bool) {
	due.row.inFlight = true
	e.bytes.Add(due.row.reserved)
	policy := e.cadence.pace(e.cfg.Policy, due.row.about.orNothing().Type)
	p := e.poller(ctx)
	p.request = due.row.unpack()
	p.jobs <- job{due.row, due.due, policy, overdue, e.told}
}

// sweep ends what passed its deadline while the gate lets nothing out, or what waits for longer: that takes no poll, so no
// limit on polls may delay it. It looks at everything that waits, so it does so once a second only, and returns when it wants to again.
func (e *Engine) sweep(ctx context.Context, now int64) (next int64) {
	if next = e.swept + int64(time.Second); now < next {
		return next
	}
	e.swept = now
	at := time.Now().UnixNano()
	over := func(w entry) bool {
		if d := w.row.deadline; d == 0 || d > at || e.ending >= maxEnding {
			return false
		}
		e.ending++
		e.send(ctx, w, true)
		return true
	}
	e.due.remove(over)
	if waiting := slices.DeleteFunc(e.heap, over); len(waiting) < len(e.heap) {
		slices.SortFunc(waiting, func(a, b entry) int { return cmp.Compare(a.due, b.due) }) // what is sorted is a heap
		e.heap = waiting
	}
	return now + int64(time.Second)
}
