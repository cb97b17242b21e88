package intake

import (
	"fmt"
	"strings"
	"sync/atomic"
	"time"
)

// Lease is the right to poll one request, and the duty to settle its work item. It implements poll.Lease.
type Lease struct {
	keeper *Keeper
	seq    uint64
	reply  string       // where the server takes acknowledgements, without the keeper's prefix
	taken  int64        // on the keeper's clock; guarded by its mutex
	sent   atomic.Int64 // when the fetch or the last extension was sent, on the keeper's clock; negative: gone
}

const gone = -1 << 62 // also of taken: this lease is not extended again

// subject is where the server takes acknowledgements of this delivery.
func (l *Lease) subject() string {
	if strings.HasPrefix(l.reply, "$") { // of another form than the first that the keeper saw
		return l.reply
	}
	return l.keeper.prefix + l.reply // set before there was any lease, and never changed
}

// Trusted reports whether the server still keeps the work item for this bridge. It is counted from when the fetch or
// the extension was sent, and with a margin: a process that was stopped finds deliveries in its socket that have long
// gone to somebody else.
func (l *Lease) Trusted() bool {
	age := int64(time.Since(l.keeper.start)) - l.sent.Load()
	return age < l.keeper.trust()
}

// announce has the server write down that an old work item was taken now. Of a delivery it keeps the time at which the
// message was stored, and only of an extension the time at which it came: a server that restarted before the next burst
// would find everything old that was just taken expired, and give it to a second bridge beside this one.
func (l *Lease) announce() {
	if l.Trusted() {
		_ = l.keeper.nc.Publish(l.subject(), []byte("+WPI")) // lost: the next burst does it
	}
}

// Ack settles the work item. It may only be called after the closing record is stored: the server takes an
// acknowledgement from anybody, so an early one would delete the item under whoever holds it.
func (l *Lease) Ack() { l.settle("+ACK") }

// Term settles a work item that is no request, after its rejection is stored.
func (l *Lease) Term() { l.settle("+TERM") }

func (l *Lease) settle(how string) {
	k := l.keeper
	k.mu.Lock()
	mine := k.live[l.seq] == l
	if mine {
		delete(k.live, l.seq)
		k.settling[l.seq] = settlement{l, how, int64(time.Since(k.start))}
	}
	k.mu.Unlock()
	if mine { // else it is for the later delivery's lease to settle
		k.send(l, how)
	}
}

// Nak hands the work item to another bridge after so long, 0 for now, or with StopsWithServer to the next one.
func (l *Lease) Nak(after time.Duration) {
	if l.forget() && !l.keeper.keepFor(l, after) {
		l.handBack(after)
	}
}

// handBack is lost if the connection is: then the item goes after AckWait.
func (l *Lease) handBack(after time.Duration) {
	how := []byte("-NAK")
	if after > 0 {
		// The server writes down whole seconds, rounded down: a second more, or the item would be early when it is started again.
		// And whenever one is due it looks at all of them, so they are due together.
		due := time.Now().Add(after + 2*time.Second - 1).Truncate(time.Second)
		how = fmt.Appendf(how, ` {"delay":%d}`, time.Until(due))
	}
	_ = l.keeper.nc.Publish(l.subject(), how)
}

// Drop lets go of a work item that somebody else has.
func (l *Lease) Drop() { l.forget() }

// forget reports whether the lease was this bridge's to give away.
func (l *Lease) forget() bool {
	k := l.keeper
	trusted := l.Trusted()
	k.mu.Lock()
	mine := k.live[l.seq] == l
	doubtful := l.taken == gone // then somebody else may have it too, and would lose it
	if mine {
		delete(k.live, l.seq)
	}
	k.mu.Unlock()
	k.free()
	return mine && trusted && !doubtful
}
