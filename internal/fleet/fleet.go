// Package fleet counts the bridges that poll one upstream, so that each can take its part of a limit that is for all.
//
// Every bridge writes a key of its own into a bucket once a second, and reads the others'. One that leaves deletes its
// key when it has made its last poll. One that falls silent counts until its leases are over: till then it may poll. One
// that joins has announced itself for as long as the others need to make room before it makes its first poll. A bridge
// that cannot reach the bucket goes on with the part that it had until its leases are over, and then joins anew.
//
// A key's value is the rate that its bridge was given. Where they differ the least one is for all.
package fleet

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"strconv"
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
	looking = time.Minute // between two looks of a bridge without a rate
)

// Config is what a Member is made of. All of it is required.
type Config struct {
	JetStream jetstream.JetStream
	Bucket    string                      // it keeps keys for longer than AckWait and two beats
	Make      func(context.Context) error // makes the bucket anew, if somebody deleted it
	AckWait   time.Duration               // of the leases: no bridge polls for longer after it has lost its connection
	Rate      float64                     // for all bridges together, as this one was told
	Changed   func(parts int)             // so many does Rate make now; called before Size says of how many bridges
	Log       *slog.Logger
}

// Member is one bridge.
type Member struct {
	cfg  Config
	key  string
	size atomic.Int32
}

// census is what the keys of bridges that live say.
type census struct {
	bridges     int
	least, most float64 // rates
}

func (c *census) add(rate float64) {
	if c.bridges++; c.bridges == 1 {
		c.least, c.most = rate, rate
	}
	c.least, c.most = min(c.least, rate), max(c.most, rate)
}

// parts is how many a bridge makes of its own rate, which is none below the least, for all to keep to that: rounded up,
// so that they never exceed it.
func (c *census) parts(rate float64) int {
	return int(min(math.Ceil(float64(c.bridges)*(rate/c.least)), math.MaxInt32))
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
	for beats, parts, told, differ := 0, 0, false, false; ctx.Err() == nil; {
		if time.Since(heard) > m.cfg.AckWait { // the others forget it about now
			m.size.Store(0)
			beats = 0
		}
		sent := time.Now()
		switch all, err := m.beat(ctx); {
		case ctx.Err() != nil:
		case err != nil && !told:
			m.cfg.Log.Warn("cannot tell how many bridges share --polls-per-second; going on with the part of before, if any", "bucket", m.cfg.Bucket, "error", err)
			told = true
		case err == nil:
			told, heard = false, sent
			if differs := all.least != all.most; differs != differ {
				differ = differs
				m.compare(all)
			}
			if beats++; beats >= joining && (all.bridges != m.Size() || all.parts(m.cfg.Rate) != parts) {
				parts = all.parts(m.cfg.Rate)
				m.cfg.Log.Info("sharing --polls-per-second", "bridges", all.bridges, "rate", all.least)
				m.cfg.Changed(parts)
				m.size.Store(int32(all.bridges))
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

// compare says that the rates differ, or no longer do.
func (m *Member) compare(all census) {
	if all.least == all.most {
		m.cfg.Log.Info("all bridges have the same --polls-per-second again", "rate", all.least)
		return
	}
	m.cfg.Log.Warn("bridges differ in --polls-per-second; together they keep to the least", "bucket", m.cfg.Bucket,
		"mine", m.cfg.Rate, "least", all.least, "most", all.most, "hint", "give all of them the same --polls-per-second")
}

// beat writes this bridge's key and reads those that live.
func (m *Member) beat(ctx context.Context) (census, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	bucket, err := m.bucket(ctx)
	if err != nil {
		return census{}, err
	}
	if _, err := bucket.Put(ctx, m.key, []byte(strconv.FormatFloat(m.cfg.Rate, 'g', -1, 64))); err != nil {
		return census{}, err
	}
	own, err := bucket.Get(ctx, m.key)
	if err != nil {
		return census{}, err
	}
	return m.cfg.read(ctx, bucket, own.Created())
}

// read is who lives at a time of the server's clock; zero: now.
func (c *Config) read(ctx context.Context, bucket jetstream.KeyValue, at time.Time) (census, error) {
	var all census
	stream, err := c.JetStream.Stream(ctx, "KV_"+c.Bucket)
	if err != nil {
		return all, err
	}
	subjects := "$KV." + c.Bucket + "."
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter(subjects+">"))
	if err != nil {
		return all, err
	}
	if at.IsZero() {
		at = info.TimeStamp
	}
	for subject := range info.State.Subjects {
		switch entry, err := bucket.Get(ctx, strings.TrimPrefix(subject, subjects)); {
		case errors.Is(err, jetstream.ErrKeyNotFound): // it has left
		case err != nil:
			return all, err
		case at.Sub(entry.Created()) < c.lasts(): // by the server's clock, both
			all.add(c.rate(entry.Value()))
		}
	}
	return all, nil
}

// rate is what a key says; one that says nothing, as before there were rates in them, agrees with this bridge.
func (c *Config) rate(value []byte) float64 {
	rate, err := strconv.ParseFloat(string(value), 64)
	if err != nil || !(rate > 0) || math.IsInf(rate, 0) {
		return c.Rate
	}
	return rate
}

// lasts is how long a bridge counts after its last beat: its connection may have held for one more, and then a lease.
func (c *Config) lasts() time.Duration { return c.AckWait + 2*every }

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

// Look is for a bridge without a rate, until ctx ends: it warns when others of its bucket have one. It writes nothing, and
// makes no bucket. Of Config it needs neither Make nor Rate nor Changed.
func Look(ctx context.Context, cfg Config) {
	next := time.NewTicker(looking)
	defer next.Stop()
	for told := false; ctx.Err() == nil; {
		switch all, err := cfg.look(ctx); {
		case err != nil: // it is as it was, for all that is known
		case all.bridges > 0 && !told:
			cfg.Log.Warn("other bridges of this prefix keep to --polls-per-second; this one has none and polls without it, beside them",
				"bucket", cfg.Bucket, "bridges", all.bridges, "hint", "give all of them the same --polls-per-second")
			told = true
		case all.bridges == 0 && told:
			cfg.Log.Info("no other bridge of this prefix has a --polls-per-second any more")
			told = false
		}
		select {
		case <-next.C:
		case <-ctx.Done():
		}
	}
}

func (c *Config) look(ctx context.Context) (census, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	bucket, err := c.JetStream.KeyValue(ctx, c.Bucket)
	switch {
	case errors.Is(err, jetstream.ErrBucketNotFound):
		return census{}, nil
	case err != nil:
		return census{}, err
	}
	return c.read(ctx, bucket, time.Time{})
}
