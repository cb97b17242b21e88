package publish

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// replies is the one inbox for the acks of all publishes under way, of which there are as many as waiters. A publish
// costs neither a subscription nor a timer nor a context of its own: that is a third of what a request of nats.go costs.
type replies struct {
	nc      *nats.Conn
	free    chan *waiter
	waiters []*waiter
	listen  func() (inbox string, err error) // once
}

// lateAcks is how many acks of publishes that were given up a waiter has room for, so that its own finds a place.
const lateAcks = 7

// waiter is one publish under way at a time.
type waiter struct {
	number string
	turn   uint64 // tells a late ack of an earlier publish apart
	got    chan *nats.Msg
	timer  *time.Timer
}

func newReplies(nc *nats.Conn, waiters int) *replies {
	r := &replies{nc: nc, free: make(chan *waiter, waiters)}
	r.listen = sync.OnceValues(func() (string, error) {
		inbox := nc.NewRespInbox()
		sub, err := nc.Subscribe(inbox+".*.*", func(m *nats.Msg) { r.take(strings.TrimPrefix(m.Subject, inbox+"."), m) })
		if err != nil {
			return "", err
		}
		return inbox, sub.SetPendingLimits(-1, -1)
	})
	for i := range waiters {
		w := &waiter{number: strconv.Itoa(i), got: make(chan *nats.Msg, lateAcks+1)}
		r.waiters = append(r.waiters, w)
		r.free <- w
	}
	return r
}

// take gives an ack to the waiter in whose inbox it came. What finds no room is late or a repetition.
func (r *replies) take(rest string, m *nats.Msg) {
	number, _, _ := strings.Cut(rest, ".")
	i, err := strconv.Atoi(number)
	if err != nil || i < 0 || i >= len(r.waiters) {
		return
	}
	select {
	case r.waiters[i].got <- m:
	default:
	}
}

// errSilent: a stream that cannot write, or that has no leader, does not answer at all.
var errSilent = errors.New("no answer; if that lasts, the logs of this bridge and of the NATS server say why: a permission that is missing, or a disk that is full")

// ask publishes and waits for the ack, for ackTimeout at most.
func (r *replies) ask(ctx context.Context, msg *nats.Msg) (*nats.Msg, error) {
	inbox, err := r.listen()
	if err != nil {
		return nil, err
	}
	var w *waiter
	select {
	case w = <-r.free:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { r.free <- w }()
	w.turn++
	msg.Reply = inbox + "." + w.number + "." + strconv.FormatUint(w.turn, 10)
	if err := r.nc.PublishMsg(msg); err != nil {
		return nil, err
	}
	if w.timer == nil {
		w.timer = time.NewTimer(ackTimeout)
	} else {
		w.timer.Reset(ackTimeout)
	}
	defer w.timer.Stop()
	for {
		select {
		case m := <-w.got:
			switch {
			case m.Subject != msg.Reply: // an ack that came after its publish had been given up
				continue
			case len(m.Data) == 0 && statusOf(m) == "503":
				return nil, nats.ErrNoResponders
			}
			return m, nil
		case <-w.timer.C:
			return nil, errSilent
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
