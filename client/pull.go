package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"futurebridge/internal/publish"
)

const (
	pullBatch     = 500
	pullExpiry    = 30 * time.Second
	pullHeartbeat = 3 * time.Second // a consumer that is gone is noticed after two of these
)

// pull reads from a consumer that wants no acknowledgements. The library's own would take an empty message with a header
// Status for a word of the server, whoever has put it into the stream, and stop at it each time that it comes. Here
// a message is the server's own when nothing says where it was stored.
type pull struct {
	nc       *nats.Conn
	subject  string // of requests
	sub      *nats.Subscription
	incoming chan *nats.Msg
	left     int // messages that the request under way may still bring; 0: there is none
}

func (c *Client) pull(consumer *jetstream.ConsumerInfo) (*pull, error) {
	p := &pull{
		nc: c.nc, subject: publish.APIPrefix(c.js) + ".CONSUMER.MSG.NEXT." + consumer.Stream + "." + consumer.Name,
		incoming: make(chan *nats.Msg, pullBatch+2*int(pullExpiry/pullHeartbeat)),
	}
	var err error
	p.sub, err = c.nc.ChanSubscribe(c.nc.NewInbox(), p.incoming)
	return p, err
}

func (p *pull) stop() { _ = p.sub.Unsubscribe() }

// next waits for the next message. After an error the consumer is of no use any more.
func (p *pull) next(ctx context.Context) (*nats.Msg, error) {
	quiet := time.NewTimer(2 * pullHeartbeat)
	defer quiet.Stop()
	for {
		if p.left == 0 {
			if err := p.request(); err != nil {
				return nil, err
			}
		}
		select {
		case m := <-p.incoming:
			if m.Reply != "" {
				p.left--
				return m, nil
			}
			if err := p.heed(m); err != nil {
				return nil, err
			}
			quiet.Reset(2 * pullHeartbeat)
		case <-quiet.C:
			return nil, errors.New("the consumer does not answer")
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (p *pull) request() error {
	data, err := json.Marshal(map[string]any{"batch": pullBatch, "expires": pullExpiry, "idle_heartbeat": pullHeartbeat})
	if err != nil {
		return err
	}
	p.left = pullBatch
	return p.nc.PublishRequest(p.subject, p.sub.Subject, data)
}

// heed takes what the server says of the request.
func (p *pull) heed(m *nats.Msg) error {
	switch status := m.Header.Get("Status"); status {
	case "100": // a heartbeat
	case "404", "408": // it is over
		p.left = 0
	case "503":
		return nats.ErrNoResponders
	default:
		return fmt.Errorf("the server ended the reading: %s %s", status, m.Header.Get("Description"))
	}
	return nil
}
