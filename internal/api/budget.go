package api

import (
	"context"
	"sync"
)

// freeBody is how many bytes of each body need no room of the budget: what is pending, failed or small is never held up.
// Buffers up to that size are used again.
const freeBody = 32 << 10

// budget is the memory that the bodies of all polls take together, from when they are read until their outcomes are
// released. Where there is no room a poll waits with its answer half read, so that nothing is lost of it. One of those
// that wait goes ahead all the same: else all of them could wait for each other.
type budget struct {
	mu    sync.Mutex
	left  int64         // bytes; the poll ahead may bring it below zero
	kept  int64         // of it, for the poll ahead
	ahead *room         // nil: nobody had to wait
	freed chan struct{} // closed when there is room again; nil: nobody waits for that
}

// newBudget keeps back what one poll ahead takes for a body of most bytes: while the buffer grows for the last time
// there are two of it. A budget without so much is exceeded by it.
func newBudget(memory, most int64) *budget { return &budget{left: memory, kept: most + most/2} }

// free is what a poll that is not ahead may take.
func (b *budget) free() int64 {
	if b.ahead == nil {
		return b.left - b.kept
	}
	return b.left - max(0, b.kept-b.ahead.bytes)
}

// room is what one poll has of a budget, and of buffers that others will use.
type room struct {
	budget *budget // nil: without bounds
	bytes  int64
	buffer *[]byte // nil: none, or given back
	pool   *sync.Pool
}

// take waits for so many bytes more. Its error is ctx's.
func (r *room) take(ctx context.Context, bytes int64) error {
	b := r.budget
	for {
		b.mu.Lock()
		if bytes > b.free() && b.ahead == nil {
			b.ahead = r
		}
		if b.ahead == r || bytes <= b.free() {
			b.left -= bytes
			r.bytes += bytes
			b.mu.Unlock()
			return nil
		}
		if b.freed == nil {
			b.freed = make(chan struct{})
		}
		freed := b.freed
		b.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// give gives bytes back. When it was all, the poll's turn ahead is over.
func (r *room) give(bytes int64) {
	b := r.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left += bytes
	if r.bytes -= bytes; r.bytes == 0 && b.ahead == r {
		b.ahead = nil
	}
	if b.freed != nil {
		close(b.freed)
		b.freed = nil
	}
}

// Full reports whether polls wait for memory with their answers half read: then no other one is to begin.
func (c *Client) Full() bool {
	if c.budget == nil {
		return false
	}
	c.budget.mu.Lock()
	defer c.budget.mu.Unlock()
	return c.budget.freed != nil
}

// release gives back all that the poll has.
func (r *room) release() {
	if r == nil {
		return
	}
	if r.bytes > 0 {
		r.give(r.bytes)
	}
	if r.buffer != nil && cap(*r.buffer) <= freeBody {
		r.pool.Put(r.buffer)
	}
	r.buffer = nil
}

// Release gives back the memory of the result, which must not be used any more. Until then it counts against what the
// client may hold.
func (o *Outcome) Release() { o.room.release() }
