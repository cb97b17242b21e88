// Package fleet counts the bridges that poll one upstream, so that each can take its part of a limit that is for all.
//
// Every bridge writes a key of its own into a bucket once a second, and reads the others'. One that leaves deletes its
// key when it has made its last poll. One that falls silent counts until its leases are over: till then it may poll. One
// that joins has announced itself for as long as the others need to make room before it makes its first poll. A bridge
// that cannot reach the bucket goes on with the part that it had until its leases are over, and then joins anew.
package fleet

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
)

const (
	every   = time.Second // between two beats, each of which writes the key
	joining = 3           // beats until a new bridge may poll: the others have seen it by then
	timeout = 5 * time.Second
)

// Config is what a Member is made of. All of it is required.
type Config struct {
	JetStream jetstream.JetStream
	Bucket    string                      // it keeps keys for longer than AckWait and two beats
	Make      func(context.Context) error // makes the bucket anew, if somebody deleted it
	AckWait   time.Duration               // of the leases: no bridge polls for longer after it has lost its connection
	Changed   func(bridges int)           // this one included; called before Size says so
	Log       *slog.Logger
}

// Member is one bridge.
type Member struct {
	cfg  Config
	key  string
	size atomic.Int32
}

// New makes a member; nothing happens before Run.
func New(cfg Config) *Member {
	return &Member{cfg: cfg, key: nuid.Next()}
}

// Size is how many bridges there are, this one included; 0: it has not joined them, and must not take work.
func (m *Member) Size() int { return int(m.size.Load()) }

// Run takes part until ctx ends, and then leaves: nothing may be polled after that.
func (m *Member) Run(ctx context.Context) {
	next := time.NewTicker(every)
	defer next.Stop()
	heard := time.Now() // when the last good beat was sent
	for beats, told := 0, false; ctx.Err() == nil; {
		if time.Since(heard) > m.cfg.AckWait { // the others forget it about now
			m.size.Store(0)
			beats = 0
		}
		sent := time.Now()
		switch n, err := m.beat(ctx); {
		case ctx.Err() != nil:
		case err != nil && !told:
			m.cfg.Log.Warn("cannot tell how many bridges share --polls-per-second; going on with the part of before, if any", "bucket", m.cfg.Bucket, "error", err)
			told = true
		case err == nil:
			told, heard = false, sent
			if beats++; beats >= joining && n != m.Size() {
				m.cfg.Log.Info("sharing --polls-per-second", "bridges", n)
				m.cfg.Changed(n)
				m.size.Store(int32(n))
			}
		}
		select {
		case <-next.C:
		case <-ctx.Done():
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	if bucket, err := m.cfg.JetStream.KeyValue(ctx, m.cfg.Bucket); err == nil {
		_ = bucket.Delete(ctx, m.key) // else it counts until it is old
	}
}

// beat writes this bridge's key and counts those that live.
func (m *Member) beat(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	bucket, err := m.bucket(ctx)
	if err != nil {
		return 0, err
	}
	if _, err := bucket.Put(ctx, m.key, nil); err != nil {
		return 0, err
	}
	own, err := bucket.Get(ctx, m.key)
	if err != nil {
		return 0, err
	}
	stream, err := m.cfg.JetStream.Stream(ctx, "KV_"+m.cfg.Bucket)
	if err != nil {
		return 0, err
	}
	subjects := "$KV." + m.cfg.Bucket + "."
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter(subjects+">"))
	if err != nil {
		return 0, err
	}
	live := 0
	for subject := range info.State.Subjects {
		switch entry, err := bucket.Get(ctx, strings.TrimPrefix(subject, subjects)); {
		case errors.Is(err, jetstream.ErrKeyNotFound): // it has left
		case err != nil:
			return 0, err
		case own.Created().Sub(entry.Created()) < m.lasts(): // by the server's clock, both
			live++
		}
	}
	return live, nil
}

// lasts is how long a bridge counts after its last beat: its connection may have held for one more, and then a lease.
func (m *Member) lasts() time.Duration { return m.cfg.AckWait + 2*every }

// bucket is the bucket, made anew if it is missing.
func (m *Member) bucket(ctx context.Context) (jetstream.KeyValue, error) {
	bucket, err := m.cfg.JetStream.KeyValue(ctx, m.cfg.Bucket)
	if !errors.Is(err, jetstream.ErrBucketNotFound) {
		return bucket, err
	}
	if err := m.cfg.Make(ctx); err != nil {
		return nil, err
	}
	return m.cfg.JetStream.KeyValue(ctx, m.cfg.Bucket)
}
