package api

import (
	"context"
	"errors"
	"io"
	"math/bits"
	"time"
)

const (
	readAtOnce = 512     // least room in a buffer for a read
	trusted    = 1 << 20 // bytes that are made room for because an answer announces them, before they are there
)

var errTooLarge = errors.New("the body is larger than the limit")

// body is an answer's body while it is read.
type body struct {
	from  io.Reader
	size  int64 // as announced, -1: not announced
	most  int64 // bytes
	room  *room
	clock *clock
}

// read appends the body to the buffer. It fails with errTooLarge, or with what broke the answer off.
func (b *body) read(ctx context.Context, buf []byte) ([]byte, error) {
	if n := min(b.size, trusted); b.size <= b.most && n+readAtOnce > int64(cap(buf)) {
		var err error
		if buf, err = b.grow(ctx, buf, n+readAtOnce); err != nil {
			return buf, err
		}
	}
	for {
		if len(buf) == cap(buf) {
			larger := min(2*int64(cap(buf)), b.most+readAtOnce)
			if b.size > 0 && b.size <= b.most {
				larger = min(larger, b.size+readAtOnce)
			}
			var err error
			if buf, err = b.grow(ctx, buf, max(larger, int64(cap(buf))+readAtOnce)); err != nil {
				return buf, err
			}
		}
		n, err := b.from.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		switch {
		case int64(len(buf)) > b.most:
			return buf, errTooLarge
		case err == io.EOF:
			return buf, nil
		case err != nil:
			return buf, err
		}
	}
}

// grow moves a buffer to a larger one. While there are two of them, both are in the budget.
func (b *body) grow(ctx context.Context, buf []byte, size int64) ([]byte, error) {
	if size <= freeBody {
		size = 1 << bits.Len64(uint64(size-1)) // a buffer that fits the next body too
	} else if b.room.budget != nil {
		begin := time.Now()
		b.clock.stop()
		err := b.room.take(ctx, size)
		b.clock.resume(time.Since(begin))
		if err != nil {
			return buf, err
		}
		if old := int64(cap(buf)); old > freeBody {
			defer b.room.give(old)
		}
	}
	return append(make([]byte, 0, size), buf...), nil
}

// clock is a poll's own time. It stands still while the poll waits for room, which is not the upstream's fault: nothing
// that it answered is given up for that. The request's deadline passes all the same.
type clock struct {
	timer    *time.Timer
	end      time.Time
	deadline time.Time // on the wall clock; zero: none
}

// newClock ends a poll by calling end.
func newClock(timeout time.Duration, deadline time.Time, end func()) *clock {
	c := &clock{end: time.Now().Add(timeout), deadline: deadline}
	c.timer = time.AfterFunc(c.left(timeout), end)
	return c
}

func (c *clock) left(d time.Duration) time.Duration {
	if c.deadline.IsZero() {
		return d
	}
	return min(d, time.Until(c.deadline))
}

func (c *clock) stop() {
	if c.deadline.IsZero() {
		c.timer.Stop()
		return
	}
	c.timer.Reset(time.Until(c.deadline))
}

func (c *clock) resume(stood time.Duration) {
	c.end = c.end.Add(stood)
	c.timer.Reset(c.left(time.Until(c.end)))
}
