package history

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"futurebridge/internal/publish"
)

// Rule is one promise. Its text is part of each violation.
type Rule string

// The rules.
const (
	Shown        Rule = "something was shown"
	Whole        Rule = "the whole history was read"
	Genuine      Rule = "only bridges write events"
	Accepted     Rule = "only what was accepted has events"
	Headers      Rule = "required headers"
	OneResult    Rule = "one result"
	OneClosing   Rule = "one closing record"
	Agreement    Rule = "result and closing record agree"
	NothingAfter Rule = "nothing after the closing record"
	NoRepeat     Rule = "no two equal states in a row"
	Chained      Rule = "each state names the one before"
	Order        Rule = "states are the upstream's, in its order"
	Ending       Rule = "the upstream's ending"
	Bytes        Rule = "the upstream's bytes"
	NothingLost  Rule = "nothing is lost"
	Deadline     Rule = "the deadline"
	WorkDone     Rule = "no work is left"
	Stored       Rule = "subscribers see what is stored"
	Once         Rule = "subscribers see it once"
	OneHolder    Rule = "one holder"
	Over         Rule = "no poll after the end"
)

// Upstream is what an upstream would have told a client that polled for ever.
type Upstream interface {
	// Expected is the terminal status of a request and, when that is completed, its bytes.
	Expected(id string) (status string, body []byte)
	// States are its queue states with their reasons, in order.
	States(id string) [][2]string
}

// Submission is one that JetStream accepted.
type Submission struct {
	ID      string
	Timeout time.Duration // 0: not known, and no deadline is judged
	// The stream stored it between these two: when it was sent first, and when its acknowledgement was there.
	Sent, Acked time.Time
	// Copies is how many messages it may be: an attempt without an answer may have been stored. 0 is 1.
	Copies int
}

// Poll is one poll as the upstream saw it.
type Poll struct {
	ID, Caller string
	Start, End time.Time
}

// Run is what is known of a run beside its streams. Only Accepted is required; what else is given is judged too.
type Run struct {
	Accepted []Submission
	Upstream Upstream
	// Object reads a result that is too large for a message; nil: only its digest and size are compared.
	Object func(name string) ([]byte, error)

	Polls []Poll
	Lease time.Duration // AckWait: how long two bridges may poll one request
	// PollGap is longer than any wait between two polls by one holder; default 40 s.
	PollGap time.Duration

	Live    []Sighting // what core subscribers saw
	Cluster bool       // a leader change may repeat a live message

	Work *Work             // what is left of it
	Held map[string]uint64 // messages of each stream, as its server says

	DeadlineSlack time.Duration // how late a result may be after its deadline; 0: any time
	ClockSkew     time.Duration // between the clocks of submitter, server and upstream
	// MayLose says of a request that a one-shot upstream's answer may have been in flight to a bridge that was killed, or
	// broken off on its way; nil: of none.
	MayLose    func(id string) bool
	WantFaults bool
	Faults     int // injected
}

// Report is the verdict: without violations every promise was kept. Each of them names the request and the rule.
type Report struct {
	Accepted, Terminal                         int // requests, not submissions
	Lost, Duplicate, AfterTerminal, Disordered int
	Events, Sighted, Polls, Faults             int // that were judged
	Endings                                    map[string]int
	Violations                                 []string // the first thousand
	Broken                                     map[Rule]int
}

const maxViolations = 1000

func (r *Report) violate(count *int, rule Rule, id, format string, args ...any) {
	*count++
	if r.Broken[rule]++; len(r.Violations) < maxViolations {
		r.Violations = append(r.Violations, fmt.Sprintf("request %q: %s: ", id, rule)+fmt.Sprintf(format, args...))
	}
}

// violateRun is for what is wrong with the run as a whole, not with a request.
func (r *Report) violateRun(rule Rule, format string, args ...any) {
	r.Broken[rule]++
	r.Violations = append(r.Violations, fmt.Sprintf("%s: ", rule)+fmt.Sprintf(format, args...))
}

// Check judges the records of the states and results streams, in stream order. upstream may be nil: then bytes and
// states are not compared.
func Check(accepted []string, states, results []Record, upstream Upstream) Report {
	run := Run{Upstream: upstream}
	for _, id := range accepted {
		run.Accepted = append(run.Accepted, Submission{ID: id})
	}
	j := newJudge(run)
	for _, records := range [][]Record{states, results} {
		for _, r := range records {
			j.add(r)
		}
	}
	return j.verdict()
}

// Judge reads streams, object store and work of names, and judges everything.
func (run Run) Judge(ctx context.Context, js jetstream.JetStream, names publish.Names) (Report, error) {
	work, err := ReadWork(ctx, js, names)
	if err != nil {
		return Report{}, err
	}
	run.Work, run.Held, run.Object = &work, map[string]uint64{}, objects(ctx, js, names)
	streams := []string{names.StatesStream(), names.ResultsStream()}
	for _, name := range streams {
		s, err := js.Stream(ctx, name)
		if err != nil {
			return Report{}, err
		}
		run.Held[name] = s.CachedInfo().State.Msgs
	}
	j := newJudge(run)
	for _, name := range streams {
		if err := readEach(ctx, js, names, name, j.add); err != nil {
			return Report{}, err
		}
	}
	return j.verdict(), nil
}

// judge takes a history record by record and keeps of each request only what its verdict needs: a million events fit
// into memory.
type judge struct {
	run      Run
	report   Report
	requests map[string]*request
	order    []string // of their first submissions
	read     map[string]uint64
	stored   map[place]uint64 // fingerprints; only where there are sightings to compare
}

// newJudge begins to judge a run. Run's fields are not read before the verdict, but for Accepted, Upstream, Object, MayLose and
// whether Live is empty.
func newJudge(run Run) *judge {
	j := &judge{
		run: run, requests: make(map[string]*request, len(run.Accepted)), read: map[string]uint64{},
		report: Report{Broken: map[Rule]int{}, Endings: map[string]int{}, Faults: run.Faults},
	}
	if len(run.Live) > 0 {
		j.stored = make(map[place]uint64)
	}
	for _, s := range run.Accepted {
		q := j.requests[s.ID]
		if q == nil {
			q = &request{}
			j.requests[s.ID] = q
			j.order = append(j.order, s.ID)
		}
		q.submit(s)
	}
	j.report.Accepted = len(j.order)
	return j
}

// add takes the next record of its stream. Records of one stream come in its order.
func (j *judge) add(r Record) {
	j.report.Events++
	j.read[r.Stream]++
	if j.stored != nil {
		j.stored[place{r.Stream, r.Seq}] = fingerprint(r.Subject, r.MsgID, r.Data)
	}
	q := j.requests[r.RequestID]
	switch {
	case r.Err != nil:
		j.report.violate(&j.report.Disordered, Genuine, r.RequestID, "message %d of %s, on %s, is no event: %v", r.Seq, r.Stream, r.Subject, r.Err)
		return
	case q == nil:
		j.report.violate(&j.report.Disordered, Accepted, r.RequestID, "message %d of %s, on %s, belongs to no submission", r.Seq, r.Stream, r.Subject)
		return
	case r.Missing != "":
		j.report.violate(&j.report.Disordered, Headers, r.RequestID, "message %d of %s lacks, or has wrong: %s", r.Seq, r.Stream, r.Missing)
	}
	if !q.submittedAt(r.SubmittedAt, j.run.ClockSkew) {
		j.report.violate(&j.report.Disordered, Headers, r.RequestID, "message %d of %s says that it was submitted at %s, when nobody did",
			r.Seq, r.Stream, r.SubmittedAt.Format(time.RFC3339Nano))
	}
	switch r.Kind {
	case publish.KindResult:
		j.addResult(q, r)
	case publish.KindClosing:
		j.addClosing(q, r)
	default:
		j.addState(q, r)
	}
}

// verdict is what the run comes to, once everything was added.
func (j *judge) verdict() Report {
	r := &j.report
	if len(j.order) == 0 {
		r.violateRun(Shown, "no request was accepted")
	}
	if j.run.WantFaults && j.run.Faults == 0 {
		r.violateRun(Shown, "no fault was injected")
	}
	for stream, held := range j.run.Held {
		if j.read[stream] < held {
			r.violateRun(Whole, "stream %s holds %d messages, but only %d were judged", stream, held, j.read[stream])
		}
	}
	if w := j.run.Work; w != nil && (w.Messages > 0 || w.Pending > 0 || w.AckPending > 0) {
		r.violateRun(WorkDone, "%d submissions are not settled, %d not delivered, %d not acknowledged", w.Messages, w.Pending, w.AckPending)
	}
	for _, id := range j.order {
		j.conclude(id, j.requests[id])
	}
	j.judgePolls()
	j.judgeLive()
	return *r
}
