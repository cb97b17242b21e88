package history

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"slices"
	"time"

	"futurebridge/internal/publish"
)

// keptPerLog is how many records of a log the states stream keeps: the beginning of a longer one is gone.
const keptPerLog = 64

// request gathers what was stored of one id.
type request struct {
	submission Submission   // the first
	others     []Submission // of the same id

	logged    int    // records of the log
	last      state  // the last of them that is a state
	previous  string // what the first of them says came before it
	scripted  [][2]string
	asked     bool // scripted was asked for
	results   []result
	closed    bool
	closedAt  time.Time
	closing   publish.ClosingBody
	closingBy string // its header's status
	closingOK bool
}

type state struct{ name, reason string }

type result struct {
	stream      string
	seq         uint64
	status      string
	polls       int
	bytes       int64
	contentType string
	object      string
}

func (q *request) submit(s Submission) {
	if q.submission.ID == "" {
		q.submission = s
		return
	}
	q.others = append(q.others, s)
}

// each calls f for each submission of the id.
func (q *request) each(f func(Submission)) {
	f(q.submission)
	for _, s := range q.others {
		f(s)
	}
}

// copies is how many work items the id may have had.
func (q *request) copies() (n int) {
	q.each(func(s Submission) { n += max(1, s.Copies) })
	return n
}

func (q *request) submittedAt(at time.Time, skew time.Duration) (known bool) {
	q.each(func(s Submission) {
		known = known || s.Sent.IsZero() || !at.Before(s.Sent.Add(-skew)) && !at.After(s.Acked.Add(skew))
	})
	return known
}

// deadlines are the earliest and the latest time at which the first deadline to pass may have been.
func (q *request) deadlines() (earliest, latest time.Time, known bool) {
	known = true
	q.each(func(s Submission) {
		if s.Timeout == 0 || s.Sent.IsZero() {
			known = false
			return
		}
		if d := s.Sent.Add(s.Timeout); earliest.IsZero() || d.Before(earliest) {
			earliest = d
		}
		if d := s.Acked.Add(s.Timeout); latest.IsZero() || d.Before(latest) {
			latest = d
		}
	})
	return earliest, latest, known
}

func (j *judge) addState(q *request, r Record) {
	report := &j.report
	defer func() { q.logged++ }()
	if q.closed {
		report.violate(&report.AfterTerminal, NothingAfter, r.RequestID, "it has %s at sequence %d of %s", r.Status, r.Seq, r.Stream)
		return
	}
	body, err := r.State()
	if err != nil {
		report.violate(&report.Disordered, Genuine, r.RequestID, "message %d of %s is a state whose body is no JSON: %v", r.Seq, r.Stream, err)
		return
	}
	if body.RequestID != r.RequestID || body.QueueState != r.Status || body.Poll != r.Polls {
		report.violate(&report.Disordered, Headers, r.RequestID, "message %d of %s says other things than its headers", r.Seq, r.Stream)
	}
	now := state{body.QueueState, string(body.Reason)}
	switch {
	case q.logged == 0:
		q.previous = string(body.Previous)
	case now == q.last:
		report.violate(&report.Disordered, NoRepeat, r.RequestID, "it has the state %s twice, again at sequence %d", now.name, r.Seq)
	}
	if q.logged > 0 && string(body.Previous) != q.last.name {
		report.violate(&report.Disordered, Chained, r.RequestID, "it goes to %s from %q at sequence %d, but the log has %q before",
			now.name, body.Previous, r.Seq, q.last.name)
	}
	q.last = now
	if j.run.Upstream == nil {
		return
	}
	if !q.asked {
		q.scripted, q.asked = j.run.Upstream.States(r.RequestID), true
	}
	at := slices.Index(q.scripted, [2]string{now.name, now.reason})
	if at < 0 {
		report.violate(&report.Disordered, Order, r.RequestID, "it has the state %q for the reason %q at sequence %d, which the upstream did not give at that point",
			now.name, now.reason, r.Seq)
		return
	}
	q.scripted = q.scripted[at+1:]
}

func (j *judge) addClosing(q *request, r Record) {
	report := &j.report
	defer func() { q.logged++ }()
	if q.closed {
		report.violate(&report.AfterTerminal, OneClosing, r.RequestID, "it has another, %s, at sequence %d of %s", r.Status, r.Seq, r.Stream)
		return
	}
	q.closed, q.closedAt, q.closingBy = true, r.Time, r.Status
	var err error
	if q.closing, err = r.Closing(); err != nil {
		report.violate(&report.Disordered, Genuine, r.RequestID, "message %d of %s is a closing record whose body is no JSON: %v", r.Seq, r.Stream, err)
		return
	}
	q.closingOK = true
	q.closing.Labels, q.closing.Error = nil, nil // not judged, and they hold on to the message
	if q.closing.RequestID != r.RequestID || q.closing.Polls != r.Polls {
		report.violate(&report.Disordered, Headers, r.RequestID, "message %d of %s says other things than its headers", r.Seq, r.Stream)
	}
	if q.logged == 0 {
		q.previous = string(q.closing.Previous)
	} else if string(q.closing.Previous) != q.last.name {
		report.violate(&report.Disordered, Chained, r.RequestID, "its closing record comes from %q, but the log has %q before", q.closing.Previous, q.last.name)
	}
}

func (j *judge) addResult(q *request, r Record) {
	report := &j.report
	found := result{r.Stream, r.Seq, r.Status, r.Polls, r.Bytes(), r.ContentType, ""}
	if r.Large != nil {
		found.object = r.Large.Object
	}
	q.results = append(q.results, found)
	if len(q.results) > 1 {
		report.violate(&report.Duplicate, OneResult, r.RequestID, "it has another, %s, at sequence %d of %s", r.Status, r.Seq, r.Stream)
		return
	}
	report.Terminal++
	report.Endings[r.Status]++
	earliest, latest, timed := q.deadlines()
	skew := j.run.ClockSkew
	early := timed && r.Time.Before(earliest.Add(-skew))
	if timed && early && r.Status == publish.StatusTimedOut {
		report.violate(&report.Disordered, Deadline, r.RequestID, "it timed out %s before its deadline", earliest.Sub(r.Time))
	}
	if slack := j.run.DeadlineSlack; timed && slack > 0 && r.Time.After(latest.Add(slack+skew)) {
		report.violate(&report.Disordered, Deadline, r.RequestID, "it ended as %s, %s after its deadline", r.Status, r.Time.Sub(latest))
	}
	mayLose := j.run.MayLose != nil && j.run.MayLose(r.RequestID)
	if r.Status == publish.StatusLost && !mayLose {
		report.violate(&report.Lost, NothingLost, r.RequestID, "its result went to a poll that broke off, which nothing in this run excuses")
	}
	if j.run.Upstream == nil {
		return
	}
	status, body := j.run.Upstream.Expected(r.RequestID)
	switch {
	case r.Status == publish.StatusTimedOut && timed && !early: // it would have gone on for longer
	case r.Status == publish.StatusLost && mayLose: // nothing tells whether the answer could have arrived
	case r.Status != status:
		report.violate(&report.Disordered, Ending, r.RequestID, "it ended as %s, but the upstream says %s", r.Status, status)
	case status == publish.StatusCompleted:
		j.compare(r, body)
	}
}

// compare judges the bytes of a completed result, wherever they are.
func (j *judge) compare(r Record, want []byte) {
	report := &j.report
	data := r.Data
	if r.Large != nil {
		sum := sha256.Sum256(want)
		if r.Large.Bytes != int64(len(want)) || r.Large.Digest != "SHA-256="+base64.URLEncoding.EncodeToString(sum[:]) {
			report.violate(&report.Disordered, Bytes, r.RequestID, "result %d names an object of another size or digest than the upstream's bytes have", r.Seq)
		}
		if j.run.Object == nil {
			return
		}
		var err error
		if data, err = j.run.Object(r.Large.Object); err != nil {
			report.violate(&report.Lost, Bytes, r.RequestID, "result %d is the object %s, which cannot be read: %v", r.Seq, r.Large.Object, err)
			return
		}
	}
	if !bytes.Equal(data, want) {
		report.violate(&report.Disordered, Bytes, r.RequestID, "result %d has other bytes than the upstream sent", r.Seq)
	}
}

// conclude judges what can be said of a request only when all is there.
func (j *judge) conclude(id string, q *request) {
	report := &j.report
	if q.previous != "" && q.logged < keptPerLog {
		report.violate(&report.Disordered, Chained, id, "its log begins after the state %q, which is not there", q.previous)
	}
	if len(q.results) == 0 {
		report.violate(&report.Lost, OneResult, id, "it has none")
	}
	switch {
	case !q.closed:
		report.violate(&report.Lost, OneClosing, id, "it has none")
		return
	case len(q.results) == 0:
		report.violate(&report.Disordered, Agreement, id, "it has a closing record without a result")
		return
	case !q.closingOK:
		return
	}
	c, r := &q.closing, &q.results[0]
	if c.Status != r.status || q.closingBy != r.status {
		report.violate(&report.Disordered, Agreement, id, "the closing record says %s in its body and %s in its header, the result %s", c.Status, q.closingBy, r.status)
	}
	if c.Result.Stream != r.stream || c.Result.Seq != r.seq || c.Result.Bytes != r.bytes || c.Result.ContentType != r.contentType || c.Result.Object != r.object {
		report.violate(&report.Disordered, Agreement, id, "the closing record names the result %+v, but it is %d of %s with %d bytes of %s in object %q",
			c.Result, r.seq, r.stream, r.bytes, r.contentType, r.object)
	}
	if c.Polls != r.polls {
		report.violate(&report.Disordered, Agreement, id, "the closing record counts %d polls, the result %d", c.Polls, r.polls)
	}
}
