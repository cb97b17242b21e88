package intake

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// fetchBytes is the most that one fetch brings: a thousand submissions may be as large as the server lets them.
const fetchBytes = 16 << 20

// Consumer is where work items come from.
type Consumer interface {
	// Info asks what it is now, and CachedInfo is the latest answer.
	Info(ctx context.Context) (*jetstream.ConsumerInfo, error)
	CachedInfo() *jetstream.ConsumerInfo
	// Fetch asks for items, as many as there are within the wait, most at most. The batch ends by itself.
	Fetch(most int, wait time.Duration) (Batch, error)
}

// Batch is what one fetch brings, as it comes. Error is to be asked when Messages is closed.
type Batch interface {
	Messages() <-chan *nats.Msg
	Error() error
}

// Puller fetches from a durable consumer. The library's own Fetch takes any empty message with a header Status for a word
// of the server: a submission like that would end each fetch that it is part of, and come back with the next, for ever.
// Here a message is the server's own when it cannot be acknowledged.
type Puller struct {
	nc       *nats.Conn
	consumer jetstream.Consumer
	next     string
	huge     atomic.Bool // the next item alone is over fetchBytes
}

// NewPuller makes a puller of a consumer that was found through a JetStream API whose subjects begin with apiPrefix.
func NewPuller(nc *nats.Conn, apiPrefix string, consumer jetstream.Consumer) *Puller {
	info := consumer.CachedInfo()
	return &Puller{nc: nc, next: apiPrefix + ".CONSUMER.MSG.NEXT." + info.Stream + "." + info.Name, consumer: consumer}
}

// Info implements Consumer.
func (p *Puller) Info(ctx context.Context) (*jetstream.ConsumerInfo, error) {
	return p.consumer.Info(ctx)
}

// CachedInfo implements Consumer.
func (p *Puller) CachedInfo() *jetstream.ConsumerInfo { return p.consumer.CachedInfo() }

// Fetch implements Consumer.
func (p *Puller) Fetch(most int, wait time.Duration) (Batch, error) {
	ask := struct {
		Expires  time.Duration `json:"expires"`
		Batch    int           `json:"batch"`
		MaxBytes int           `json:"max_bytes,omitempty"`
	}{wait, most, fetchBytes}
	if p.huge.Swap(false) {
		ask.Batch, ask.MaxBytes = 1, 0
	}
	request, err := json.Marshal(ask)
	if err != nil {
		return nil, err
	}
	b := &batch{messages: make(chan *nats.Msg, ask.Batch)}
	inbox, incoming := p.nc.NewInbox(), make(chan *nats.Msg, 2*ask.Batch+1)
	sub, err := p.nc.ChanSubscribe(inbox, incoming)
	if err != nil {
		return nil, err
	}
	if err := p.nc.PublishRequest(p.next, inbox, request); err != nil {
		_ = sub.Unsubscribe()
		return nil, err
	}
	go func() {
		defer close(b.messages)
		defer func() { _ = sub.Unsubscribe() }()
		quiet := time.NewTimer(wait + time.Second) // the server says when it is over, unless it is away
		defer quiet.Stop()
		for got, want := 0, ask.Batch; got < want; {
			select {
			case m := <-incoming:
				switch {
				case m.Reply != "":
					got++
					b.messages <- m
				case m.Header.Get("Status") != "100":
					want = got
					if left, err := strconv.Atoi(m.Header.Get("Nats-Pending-Messages")); err == nil {
						want = ask.Batch - left // with replicas the last messages wait for the followers, and this overtakes them
					}
					p.huge.Store(want == 0 && tooLarge(m))
					b.fail(ended(m))
				}
			case <-quiet.C:
				return
			}
		}
	}()
	return b, nil
}

func tooLarge(m *nats.Msg) bool {
	return strings.Contains(m.Header.Get("Description"), "Exceeds MaxBytes")
}

// ended is why the server ended a fetch; nil: because it was complete, or there was no more.
func ended(m *nats.Msg) error {
	switch status := m.Header.Get("Status"); {
	case status == "404", status == "408", tooLarge(m), m.Header.Get("Description") == "Batch Completed":
		return nil
	case status == "503":
		return nats.ErrNoResponders
	default:
		return fmt.Errorf("the server ended the fetch: %s %s", status, m.Header.Get("Description"))
	}
}

type batch struct {
	messages chan *nats.Msg
	mu       sync.Mutex
	err      error
}

func (b *batch) Messages() <-chan *nats.Msg { return b.messages }

func (b *batch) Error() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}

func (b *batch) fail(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err = err
}
