package intake

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// confirmEvery is how often an acknowledgement is repeated until the server has confirmed it.
	confirmEvery = 2 * time.Second
	flushTimeout = 5 * time.Second
	// settleTime is how long a delivery may be known to a consumer's leader alone: one that has lost the majority goes on for
	// about that long before it steps down, and its successor knows nothing of what it delivered meanwhile.
	settleTime = 10 * time.Second
	// stopTime is longer than a server that stops takes until its consumers have.
	stopTime = 2 * time.Second
)

// Keeper holds the leases of one bridge: it extends those that are trusted, all in one burst, because the server
// rewrites its pending state as long as anything in it changes; and it repeats acknowledgements until each is confirmed.
type Keeper struct {
	nc      *nats.Conn
	ackWait time.Duration
	start   time.Time
	log     *slog.Logger
	metrics *Metrics

	inbox string
	sub   *nats.Subscription
	freed chan struct{} // a slot came free

	mu       sync.Mutex
	consumer Consumer              // which gives the leases; nil before it was found
	memory   memory                // what that one remembers its deliveries in
	looked   int64                 // when it was last asked, on the keeper's clock
	bursts   [2]int64              // when the last two bursts were sent that it answered, the older first
	live     map[uint64]*Lease     // by stream sequence
	settling map[uint64]settlement // acknowledged, not yet confirmed
	prefix   string                // what the acknowledgement subjects of the consumer begin with
	latest   *Lease                // of the latest delivery; nil: there was none
	stopping bool                  // the server ends with this process
	returned []returned            // what goes back when it does
}

// settlement is an acknowledgement under way.
type settlement struct {
	lease *Lease
	how   string
	tried int64 // when it was sent last, on the keeper's clock
}

// returned is a work item that is to be handed back.
type returned struct {
	lease *Lease
	due   time.Time // to the next bridge, not before
}

// memory names what a consumer remembers its deliveries in. It changes when a leader is elected or a server starts, and what
// the former one delivered last may be forgotten by that.
type memory struct {
	created int64  // the consumer's
	leader  string // with when it became that, or from servers that do not say so the server that answered
}

func (k *Keeper) memoryOf(info *jetstream.ConsumerInfo) memory {
	m := memory{created: info.Created.UnixNano()}
	if c := info.Cluster; c != nil && c.LeaderSince != nil {
		m.leader = c.Leader + " since " + c.LeaderSince.String()
	} else {
		m.leader = k.nc.ConnectedServerId()
	}
	return m
}

// NewKeeper makes a keeper for a consumer with this AckWait.
func NewKeeper(nc *nats.Conn, ackWait time.Duration, metrics *Metrics, log *slog.Logger) (*Keeper, error) {
	k := &Keeper{
		nc: nc, ackWait: ackWait, start: time.Now(), log: log, metrics: metrics,
		inbox: nc.NewRespInbox(), freed: make(chan struct{}, 1),
		live: make(map[uint64]*Lease), settling: make(map[uint64]settlement),
	}
	var err error
	k.sub, err = nc.Subscribe(k.inbox+".*", k.confirmed)
	if err != nil {
		return nil, err
	}
	return k, k.sub.SetPendingLimits(-1, -1)
}

// Held is the number of work items that this bridge has to settle.
func (k *Keeper) Held() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.live) + len(k.settling)
}

// Run extends and repeats until ctx ends.
func (k *Keeper) Run(ctx context.Context) {
	burst := time.NewTimer(k.ackWait / 3)
	defer burst.Stop()
	repeat := time.NewTicker(confirmEvery)
	defer repeat.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-burst.C:
			next := k.ackWait / 3
			if err := k.extend(ctx); err != nil {
				k.metrics.failedBursts.Inc()
				k.log.Warn("leases could not be extended; what is not extended in time is let go", "error", err)
				next = min(next, time.Second)
			}
			burst.Reset(next)
		case <-repeat.C:
			k.repeat()
		}
	}
}

// StopsWithServer says that the server will end with this process: what is handed back goes there by Flush, and to whoever
// asks when the server has started again. A plain nak it only remembers, and would then give the item to nobody until
// AckWait has passed.
func (k *Keeper) StopsWithServer() { k.stopping = true }

// keepFor reports whether an item that is handed back waits for Flush.
func (k *Keeper) keepFor(l *Lease, after time.Duration) bool {
	if !k.stopping {
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.returned = append(k.returned, returned{l, time.Now().Add(after)})
	return true
}

// Flush returns when the consumer has taken all that was sent to it. Nothing may be settled or handed back after it.
func (k *Keeper) Flush(ctx context.Context) error {
	k.mu.Lock()
	back := k.returned
	k.returned = nil
	k.mu.Unlock()
	// With a delay the server writes down when the item is due. It stops before that: what is due it remembers as delivered.
	for _, r := range back {
		if r.lease.Trusted() {
			r.lease.handBack(max(stopTime, time.Until(r.due)))
		}
	}
	return k.answered(ctx)
}

// answered returns when the consumer has taken all that was sent to it: it takes what comes in order, and answers also what is
// about an item that is not there. A flush would only show that it is at the server at the other end of the connection; while
// the consumer has no leader, that one drops it.
func (k *Keeper) answered(ctx context.Context) error {
	k.mu.Lock()
	latest := k.latest
	k.mu.Unlock()
	if latest == nil {
		return nil // nothing was delivered, nor sent
	}
	subject := latest.subject()
	prefix := ackPrefix(subject)
	parts := strings.SplitN(subject[len(prefix):], ".", 3)
	if len(parts) < 3 {
		return fmt.Errorf("deliveries have no known form: %q", subject)
	}
	parts[1] = strconv.FormatInt(math.MaxInt64, 10) // in place of the item's sequence
	_, err := k.nc.RequestWithContext(ctx, prefix+strings.Join(parts, "."), []byte("+WPI"))
	return err
}

// Close stops listening for confirmations. What is unconfirmed by then is delivered again, and acknowledged then.
func (k *Keeper) Close() error { return k.sub.Unsubscribe() }

// take makes the lease of a delivery that a fetch sent at this time brought. The lease of an earlier delivery of the
// same work item is void from now on.
func (k *Keeper) take(seq uint64, reply string, sent time.Time) *Lease {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.prefix == "" {
		k.prefix = ackPrefix(reply)
	}
	// A hundred thousand leases of one consumer need not hold its name each.
	l := &Lease{keeper: k, seq: seq, reply: strings.Clone(strings.TrimPrefix(reply, k.prefix)), taken: int64(time.Since(k.start))}
	l.sent.Store(int64(sent.Sub(k.start)))
	if old := k.live[seq]; old != nil {
		old.sent.Store(gone)
	}
	delete(k.settling, seq)
	k.live[seq], k.latest = l, l
	return l
}

// ackPrefix is what all acknowledgement subjects of a consumer have in common, $JS.ACK.<stream>.<consumer>. or, in the
// newer form, $JS.ACK.<domain>.<account>.<stream>.<consumer>.
func ackPrefix(reply string) string {
	tokens, end := 4, 0
	if strings.Count(reply, ".") > 8 {
		tokens = 6
	}
	for range tokens {
		next := strings.IndexByte(reply[end:], '.')
		if next < 0 {
			return ""
		}
		end += next + 1
	}
	return reply[:end]
}

// follow compares the consumer as it is now with what it was at the last look.
//
// One that was made anew delivers the work items of its predecessor again, to anybody, and if the stream too is new then
// their sequences name other ones: all leases are void. One that remembers in something else may have forgotten the latest
// deliveries and the latest burst, and then gives what it knows nothing of, or what by the burst before has run out, to a
// second bridge beside this one. It tells neither of the two, not even when they extend. So those leases are not extended:
// whoever has the item keeps it, or it is delivered again.
func (k *Keeper) follow(consumer Consumer, asked time.Time) {
	now, at := k.memoryOf(consumer.CachedInfo()), int64(asked.Sub(k.start))
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.consumer != nil && at < k.looked:
		return // a later look was answered first
	case k.consumer == nil || now == k.memory:
	case now.created != k.memory.created:
		k.log.Warn("the consumer was made anew: what was held is delivered again", "held", len(k.live)+len(k.settling))
		for _, l := range k.live {
			l.sent.Store(gone)
		}
		clear(k.live)
		clear(k.settling)
	default:
		doubtful := 0
		for _, l := range k.live {
			forgotten := l.taken > k.looked-int64(settleTime)
			ranOut := at-max(l.taken, k.bursts[0]) > k.trust()
			if forgotten || ranOut {
				l.taken = gone
				doubtful++
			}
		}
		k.log.Warn("the consumer has another leader, or its server was started again: what that may have forgotten is let go when its lease ends",
			"leases", doubtful, "of", len(k.live), "leader", now.leader)
	}
	k.consumer, k.memory, k.looked = consumer, now, at
}

func (k *Keeper) trust() int64 { return int64(k.ackWait / 10 * 9) }

// send is confirmed by a reply to the keeper's inbox; nobody waits for it. An error is one more reason to repeat it.
func (k *Keeper) send(l *Lease, how string) {
	_ = k.nc.PublishRequest(l.subject(), k.inbox+"."+strconv.FormatUint(l.seq, 10), []byte(how))
}

func (k *Keeper) confirmed(m *nats.Msg) {
	seq, err := strconv.ParseUint(m.Subject[strings.LastIndexByte(m.Subject, '.')+1:], 10, 64)
	if err != nil || m.Header.Get("Status") == "503" { // no consumer answers: repeat until there is one
		return
	}
	k.mu.Lock()
	delete(k.settling, seq)
	k.mu.Unlock()
	k.free()
}

func (k *Keeper) free() {
	select {
	case k.freed <- struct{}{}:
	default:
	}
}

// repeat sends the acknowledgements again that were not confirmed in time.
func (k *Keeper) repeat() {
	now := int64(time.Since(k.start))
	k.mu.Lock()
	var late []settlement
	for seq, s := range k.settling {
		switch {
		case now-s.tried < int64(confirmEvery):
		case !s.lease.Trusted():
			// Delivered again by now, to whoever finds the closing record; nothing is left to do here.
			delete(k.settling, seq)
		default:
			s.tried = now
			k.settling[seq] = s
			late = append(late, s)
		}
	}
	k.mu.Unlock()
	for _, s := range late {
		k.send(s.lease, s.how)
	}
	k.free()
}

// look asks the consumer whether it is the one that it was.
func (k *Keeper) look(ctx context.Context) error {
	k.mu.Lock()
	consumer := k.consumer
	k.mu.Unlock()
	if consumer == nil {
		return nil // nothing was fetched yet
	}
	asked := time.Now()
	if _, err := consumer.Info(ctx); err != nil {
		return err
	}
	k.follow(consumer, asked)
	return nil
}

// progress says that a lease is held, unless it was given away meanwhile: after a nak with a delay the server would wait for
// AckWait instead.
func (k *Keeper) progress(l *Lease, progress []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.live[l.seq] != l {
		return nil
	}
	return k.nc.Publish(l.subject(), progress)
}

// extend asks for AckWait more for every trusted lease, and trusts in it only when the server has seen it all.
func (k *Keeper) extend(ctx context.Context) error {
	answer, done := context.WithTimeout(ctx, flushTimeout)
	defer done()
	if err := k.look(answer); err != nil {
		return err
	}
	begin := int64(time.Since(k.start))
	k.mu.Lock()
	leases := make([]*Lease, 0, len(k.live))
	for _, l := range k.live {
		if l.taken != gone && l.Trusted() {
			leases = append(leases, l)
		}
	}
	k.mu.Unlock()
	if len(leases) == 0 {
		return nil
	}
	progress := []byte("+WPI")
	for _, l := range leases {
		if err := k.progress(l, progress); err != nil {
			return err
		}
	}
	if err := k.answered(answer); err != nil {
		return err
	}
	k.mu.Lock()
	k.bursts = [2]int64{k.bursts[1], begin}
	k.mu.Unlock()
	for _, l := range leases {
		// Not if it was lost to a later delivery meanwhile.
		if was := l.sent.Load(); was >= 0 && was < begin {
			l.sent.CompareAndSwap(was, begin)
		}
	}
	k.metrics.extensions.Add(float64(len(leases)))
	return nil
}
