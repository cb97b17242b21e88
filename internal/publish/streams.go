package publish

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Options are what an operator may choose about streams and consumer. A nil field follows what stands, or the default
// where nothing stands yet; a set field that differs from what stands is an error.
type Options struct {
	Replicas        *int           // 1, 3 or 5; default 1
	StatesMaxAge    *time.Duration // how long logs are kept; default 8 d. Longer than any timeout
	ResultsMaxAge   *time.Duration // how long results are kept; default 8 d
	ResultsMaxBytes *int64         // of the results stream; default no limit
	CompressResults *bool          // S2 on the results stream; default off
	AckWait         *time.Duration // default 2 min
	MaxAckPending   *int           // requests held by all bridges together; default 200,000
	Timeout         *time.Duration // of requests that name none: what stands has to keep logs for longer
	Bridges         bool           // with the bucket in which bridges that share a rate count each other
	// Check is asked of the consumer, that stands or is to be made, before anything is made; nil: nothing.
	Check func(consumer jetstream.ConsumerConfig, stands bool) error
}

// DefaultAckWait is how long a bridge may be silent before another one gets its requests, where nobody says otherwise.
const DefaultAckWait = 2 * time.Minute

const (
	defaultMaxAge        = 8 * 24 * time.Hour // a day more than the longest timeout of a submission
	defaultMaxAckPending = 200_000
	// The fence carries the promise. A wide window would keep millions of message ids in the server's memory.
	duplicateWindow = 10 * time.Second
	statesPerLog    = 64
	// Servers cap a stream's consumers at 1,000 where its config does not say; watchers are consumers.
	maxConsumers     = 100_000
	rejectedMaxBytes = 64 << 20
	rejectedMaxMsgs  = 100_000
	// A bridge that fell silent counts for AckWait and two seconds (internal/fleet). Its key has to stay for longer.
	bridgesSilence = 5 * time.Second
)

// Streams are the configurations of the streams of n; the last ones are those of the buckets.
//
// A stream of events listens on its ingest subject, where bridges race, and stores under the public subject, to which
// it republishes what it stored: so a core subscriber sees only what is stored, and never what lost a race.
func (n Names) Streams(o Options) []jetstream.StreamConfig {
	replicas := value(o.Replicas, 1)
	events := func(name, kind, description string, age time.Duration) jetstream.StreamConfig {
		subject := n.prefix + "." + kind + ".*"
		return jetstream.StreamConfig{
			Name: name, Description: description,
			Subjects:         []string{ingest(subject)},
			SubjectTransform: &jetstream.SubjectTransformConfig{Source: ingest(subject), Destination: n.prefix + "." + kind + ".{{wildcard(1)}}"},
			RePublish:        &jetstream.RePublish{Source: subject, Destination: n.prefix + "." + kind + ".{{wildcard(1)}}"},
			Retention:        jetstream.LimitsPolicy, Storage: jetstream.FileStorage, Replicas: replicas,
			Discard: jetstream.DiscardNew, MaxAge: age, MaxMsgsPerSubject: statesPerLog, MaxMsgs: -1, MaxBytes: -1,
			Duplicates: duplicateWindow, AllowDirect: true, DenyDelete: true, MaxConsumers: maxConsumers,
		}
	}
	work := jetstream.StreamConfig{
		Name: n.WorkStream(), Description: "submissions that no bridge has finished",
		Subjects:  []string{n.Submit(), n.Submit() + ".>"},
		Retention: jetstream.WorkQueuePolicy, Storage: jetstream.FileStorage, Replicas: replicas,
		Discard: jetstream.DiscardNew, MaxMsgs: -1, MaxBytes: -1, MaxMsgsPerSubject: -1,
		Duplicates: duplicateWindow, AllowDirect: true, MaxConsumers: -1,
	}
	states := events(n.StatesStream(), "state", "each request's log: transitions, then one closing record", value(o.StatesMaxAge, defaultMaxAge))
	results := events(n.ResultsStream(), "result", "each request's one result", value(o.ResultsMaxAge, defaultMaxAge))
	results.MaxBytes = value(o.ResultsMaxBytes, -1)
	if value(o.CompressResults, false) {
		results.Compression = jetstream.S2Compression
	}
	rejected := events(n.RejectedStream(), "rejected", "submissions that are no requests", defaultMaxAge)
	rejected.Discard, rejected.MaxBytes, rejected.MaxMsgs = jetstream.DiscardOld, rejectedMaxBytes, rejectedMaxMsgs
	objects := "$O." + n.LargeBucket()
	large := jetstream.StreamConfig{ // what an object store is made of, by its specification (ADR-20 of NATS)
		Name: n.LargeStream(), Description: "results too large for a message",
		Subjects:  []string{objects + ".C.>", objects + ".M.>"},
		Retention: jetstream.LimitsPolicy, Storage: jetstream.FileStorage, Replicas: replicas,
		Discard: jetstream.DiscardNew, MaxAge: results.MaxAge, MaxMsgs: -1, MaxBytes: -1, MaxMsgsPerSubject: -1,
		AllowDirect: true, AllowRollup: true, MaxConsumers: maxConsumers,
	}
	all := []jetstream.StreamConfig{work, states, results, rejected, large}
	if o.Bridges {
		all = append(all, jetstream.StreamConfig{ // what a key-value bucket is made of (ADR-8 of NATS)
			Name: n.BridgesStream(), Description: "the bridges that share a rate",
			Subjects:  []string{"$KV." + n.BridgesBucket() + ".>"},
			Retention: jetstream.LimitsPolicy, Storage: jetstream.FileStorage, Replicas: replicas,
			Discard: jetstream.DiscardNew, MaxAge: bridgesMaxAge(value(o.AckWait, DefaultAckWait)), MaxMsgs: -1, MaxBytes: -1, MaxMsgsPerSubject: 1,
			Duplicates: duplicateWindow, AllowDirect: true, AllowRollup: true, DenyDelete: true, MaxConsumers: -1,
		})
	}
	return all
}

// bridgesMaxAge only sweeps up: bridges judge each other's age by themselves.
func bridgesMaxAge(ackWait time.Duration) time.Duration { return 2 * (ackWait + bridgesSilence) }

// ConsumerConfig is the configuration of the durable consumer that all bridges share.
func (n Names) ConsumerConfig(o Options) jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{
		Durable: n.Consumer(), Description: "the bridges",
		AckPolicy: jetstream.AckExplicitPolicy, AckWait: value(o.AckWait, DefaultAckWait), MaxDeliver: -1,
		MaxAckPending: value(o.MaxAckPending, defaultMaxAckPending),
	}
}

// MismatchError lists how what stands differs from what a bridge needs. Nothing has been changed.
type MismatchError struct {
	Differences []string
	Asked       bool // all of them from what the Options ask for
}

func (e *MismatchError) Error() string {
	return "streams or consumer stand with another configuration, and were left as they are:\n  " +
		strings.Join(e.Differences, "\n  ") + "\nedit or remove them, choose another --prefix, or drop the flag that differs"
}

// Ensure creates the streams and the consumer of n that are missing, and checks those that stand. It returns the
// consumer's configuration in force. When anything that stands differs it returns a *MismatchError, when o.Check fails its
// error, and has changed nothing. Where all stand it only reads: a bridge may do without the permission to create.
func Ensure(ctx context.Context, js jetstream.JetStream, n Names, o Options) (jetstream.ConsumerConfig, error) {
	differences := differ{}
	var missing []jetstream.StreamConfig
	consumer, found := n.ConsumerConfig(o), false
	for _, want := range n.Streams(o) {
		if want.Name == n.BridgesStream() { // the consumer, which is that of the first stream, may have another AckWait than o
			want.MaxAge = bridgesMaxAge(consumer.AckWait)
		}
		stream, err := js.Stream(ctx, want.Name)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			missing = append(missing, want)
			continue
		}
		if err != nil {
			return consumer, fmt.Errorf("look up stream %s: %w", want.Name, err)
		}
		differences.add(n.streamDifferences(stream.CachedInfo().Config, want, o))
		if want.Name != n.WorkStream() {
			continue
		}
		switch standing, err := stream.Consumer(ctx, n.Consumer()); {
		case err == nil:
			differences.add(n.consumerDifferences(standing.CachedInfo().Config, consumer, o))
			consumer, found = standing.CachedInfo().Config, true
		case errors.Is(err, jetstream.ErrNotPullConsumer):
			d := differ{where: n.consumerPlace()}
			d.check("delivery", "push", "pull")
			differences.add(d)
		case !errors.Is(err, jetstream.ErrConsumerNotFound):
			return consumer, fmt.Errorf("look up consumer %s of %s: %w", n.Consumer(), want.Name, err)
		}
	}
	if len(differences.found) > 0 {
		return consumer, &MismatchError{differences.found, !differences.needed}
	}
	if o.Check != nil {
		if err := o.Check(consumer, found); err != nil {
			return consumer, err
		}
	}
	for _, want := range missing {
		// Another bridge may create the same at the same time; an equal configuration is no error.
		if _, err := js.CreateStream(ctx, want); err != nil {
			return consumer, fmt.Errorf("create stream %s: %w", want.Name, err)
		}
	}
	if found {
		return consumer, nil
	}
	created, err := js.CreateConsumer(ctx, n.WorkStream(), consumer)
	if err != nil {
		return consumer, fmt.Errorf("create consumer %s of %s: %w", n.Consumer(), n.WorkStream(), err)
	}
	return created.CachedInfo().Config, nil
}

func (n Names) streamDifferences(have, want jetstream.StreamConfig, o Options) differ {
	d := differ{where: "stream " + want.Name}
	slices.Sort(have.Subjects)
	slices.Sort(want.Subjects)
	d.check("subjects", have.Subjects, want.Subjects)
	d.check("retention", have.Retention, want.Retention)
	d.check("storage", have.Storage, want.Storage)
	d.check("discard", have.Discard, want.Discard)
	d.check("discard new per subject", have.DiscardNewPerSubject, want.DiscardNewPerSubject)
	d.check("no ack", have.NoAck, want.NoAck)
	d.check("sealed", have.Sealed, want.Sealed)
	d.check("subject transform", deref(have.SubjectTransform), deref(want.SubjectTransform))
	d.check("republish", deref(have.RePublish), deref(want.RePublish))
	d.check("allow direct", have.AllowDirect, want.AllowDirect)
	if want.Name != n.RejectedStream() { // at worst it drops old ones early
		d.check("max msgs per subject", have.MaxMsgsPerSubject, want.MaxMsgsPerSubject)
	}
	if o.Replicas != nil {
		d.asked("replicas", have.Replicas, want.Replicas)
	}
	switch want.Name {
	case n.WorkStream():
		d.check("max age", have.MaxAge, want.MaxAge)
	case n.StatesStream():
		if o.StatesMaxAge != nil {
			d.asked("max age", have.MaxAge, want.MaxAge)
		}
		if o.Timeout != nil && have.MaxAge > 0 && have.MaxAge <= *o.Timeout {
			d.asked("max age", have.MaxAge, fmt.Sprintf("more than %v (--timeout)", *o.Timeout))
		}
	case n.ResultsStream():
		if o.ResultsMaxAge != nil {
			d.asked("max age", have.MaxAge, want.MaxAge)
		}
		if o.ResultsMaxBytes != nil {
			d.asked("max bytes", have.MaxBytes, want.MaxBytes)
		}
		if o.CompressResults != nil {
			d.asked("compression", have.Compression, want.Compression)
		}
	case n.BridgesStream():
		if least := want.MaxAge / 2; have.MaxAge > 0 && have.MaxAge < least {
			d.check("max age", have.MaxAge, fmt.Sprintf("at least %v (AckWait and %v)", least, bridgesSilence))
		}
	}
	return d
}

func (n Names) consumerDifferences(have, want jetstream.ConsumerConfig, o Options) differ {
	d := differ{where: n.consumerPlace()}
	d.check("headers only", have.HeadersOnly, want.HeadersOnly)
	d.check("ack policy", have.AckPolicy, want.AckPolicy)
	d.check("max deliver", have.MaxDeliver, want.MaxDeliver)
	d.check("backoff", fmt.Sprint(have.BackOff), fmt.Sprint(want.BackOff))
	d.check("filter subjects", have.FilterSubject+strings.Join(have.FilterSubjects, ","), "")
	if o.AckWait != nil {
		d.asked("ack wait (--ack-wait)", have.AckWait, want.AckWait)
	}
	if o.MaxAckPending != nil {
		d.asked("max ack pending (--max-ack-pending)", have.MaxAckPending, want.MaxAckPending,
			fmt.Sprintf(": nats consumer edit %s %s --max-pending=%d", n.WorkStream(), n.Consumer(), want.MaxAckPending))
	}
	return d
}

func (n Names) consumerPlace() string {
	return "consumer " + n.Consumer() + " of stream " + n.WorkStream()
}

type differ struct {
	where  string
	found  []string
	needed bool // one of them is what no bridge can do without
}

func (d *differ) add(more differ) {
	d.found, d.needed = append(d.found, more.found...), d.needed || more.needed
}

// check compares what every bridge needs.
func (d *differ) check(field string, have, want any) {
	before := len(d.found)
	d.asked(field, have, want)
	d.needed = d.needed || len(d.found) > before
}

// asked compares what somebody asked for.
func (d *differ) asked(field string, have, want any, mend ...string) {
	if h, w := fmt.Sprint(have), fmt.Sprint(want); h != w {
		d.found = append(d.found, fmt.Sprintf("%s: %s is %s, want %s%s", d.where, field, h, w, strings.Join(mend, "")))
	}
}

func deref[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

func value[T any](p *T, otherwise T) T {
	if p != nil {
		return *p
	}
	return otherwise
}
