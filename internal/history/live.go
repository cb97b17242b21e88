package history

import (
	"cmp"
	"slices"
	"strconv"
	"sync"

	"github.com/cespare/xxhash/v2"
	"github.com/nats-io/nats.go"

	"futurebridge/internal/publish"
)

// Sighting is a message that a core subscriber received.
type Sighting struct {
	Subscriber string
	Subject    string
	RequestID  string
	Stream     string // as the server says, which sends only what it stored
	Seq        uint64 // 0: it did not say
	Print      uint64 // of subject, message id and body
}

type place struct {
	stream string
	seq    uint64
}

func fingerprint(subject, msgID string, data []byte) uint64 {
	hash := xxhash.New()
	_, _ = hash.WriteString(subject)
	_, _ = hash.Write([]byte{0})
	_, _ = hash.WriteString(msgID)
	_, _ = hash.Write([]byte{0})
	_, _ = hash.Write(data)
	return hash.Sum64()
}

// Listener is a core subscriber of all states and results that remembers what it saw.
type Listener struct {
	name string
	subs []*nats.Subscription
	mu   sync.Mutex
	seen []Sighting
}

// Listen subscribes, and returns when the server knows.
func Listen(nc *nats.Conn, names publish.Names, name string) (*Listener, error) {
	l := &Listener{name: name}
	for _, subject := range []string{names.States(), names.Results()} {
		sub, err := nc.Subscribe(subject, l.saw)
		if err == nil {
			err = sub.SetPendingLimits(-1, -1)
		}
		if err != nil {
			return nil, err
		}
		l.subs = append(l.subs, sub)
	}
	return l, nc.Flush()
}

func (l *Listener) saw(m *nats.Msg) {
	s := Sighting{
		Subscriber: l.name, Subject: m.Subject, RequestID: m.Header.Get(publish.HeaderRequestID),
		Print: fingerprint(m.Subject, m.Header.Get(nats.MsgIdHdr), m.Data),
	}
	// The server's own headers come after those of the message.
	if v := m.Header["Nats-Stream"]; len(v) > 0 {
		s.Stream = v[len(v)-1]
	}
	if v := m.Header["Nats-Sequence"]; len(v) > 0 {
		s.Seq, _ = strconv.ParseUint(v[len(v)-1], 10, 64)
	}
	l.mu.Lock()
	l.seen = append(l.seen, s)
	l.mu.Unlock()
}

// Sightings are all so far.
func (l *Listener) Sightings() []Sighting {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.seen)
}

// judgeLive compares what core subscribers saw with what is stored. They may miss events, and are promised no more than
// that: nothing that is not stored, nothing twice.
func (j *judge) judgeLive() {
	report := &j.report
	report.Sighted = len(j.run.Live)
	seen := make(map[string]map[place]bool)
	for _, s := range j.run.Live {
		at := place{s.Stream, s.Seq}
		if seen[s.Subscriber] == nil {
			seen[s.Subscriber] = make(map[place]bool)
		}
		stored, ok := j.stored[at]
		q := j.requests[s.RequestID]
		switch {
		case !ok && q != nil && q.logged >= keptPerLog: // it may have been, once
		case !ok:
			report.violate(&report.Disordered, Stored, s.RequestID, "%s saw message %d of %s, on %s, which is not stored", s.Subscriber, s.Seq, cmp.Or(s.Stream, "no stream"), s.Subject)
		case stored != s.Print:
			report.violate(&report.Disordered, Stored, s.RequestID, "%s saw message %d of %s with other content than is stored", s.Subscriber, s.Seq, s.Stream)
		case seen[s.Subscriber][at] && !j.run.Cluster:
			report.violate(&report.Duplicate, Once, s.RequestID, "%s saw message %d of %s twice", s.Subscriber, s.Seq, s.Stream)
		}
		seen[s.Subscriber][at] = true
	}
}
