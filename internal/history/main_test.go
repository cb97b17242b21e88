package history

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"futurebridge/internal/publish"
	"futurebridge/internal/testbed"
)

func TestMain(m *testing.M) { testbed.Main(m) }

var tinker = func() publish.Names {
	names, err := publish.NewNames("tinker")
	if err != nil {
		panic(err)
	}
	return names
}()

var begin = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

// kept is a history in which every promise was kept; tests break it.
type kept struct {
	run     Run
	states  []Record
	results []Record
}

// script is an upstream whose every request is paused once, then runs, then completes.
type script struct{}

func (script) States(string) [][2]string {
	return [][2]string{{"active", ""}, {"paused_rate_limit", "slow down"}, {"active", ""}}
}

func (script) Expected(id string) (string, []byte) { return "completed", []byte(`{"of":"` + id + `"}`) }

// history of n requests, each submitted a second after the one before, with two states and a time-out of a minute.
func history(n int) *kept {
	k := &kept{run: Run{
		Upstream: script{}, Lease: 30 * time.Second, DeadlineSlack: time.Second, WantFaults: true, Faults: 1,
		Work: &Work{}, Held: map[string]uint64{},
	}}
	for i := range n {
		id, at := fmt.Sprintf("req-%d", i), begin.Add(time.Duration(i)*time.Second)
		k.run.Accepted = append(k.run.Accepted, Submission{ID: id, Timeout: time.Minute, Sent: at, Acked: at.Add(time.Millisecond)})
		k.run.Polls = append(k.run.Polls, poll(id, "bridge-1", at, 1), poll(id, "bridge-1", at, 3), poll(id, "bridge-1", at, 5))
		k.state(id, at, "active", "", "", 1)
		k.state(id, at, "paused_rate_limit", "active", "slow down", 3)
		k.result(id, at, "completed", []byte(`{"of":"`+id+`"}`), 5)
		k.closing(id, at, "completed", "paused_rate_limit", 5)
	}
	k.hold()
	for _, records := range [][]Record{k.states, k.results} {
		for _, r := range records {
			k.run.Live = append(k.run.Live, sighting("watcher", r))
		}
	}
	return k
}

func (k *kept) hold() {
	k.run.Held = map[string]uint64{"TINKER_STATES": uint64(len(k.states)), "TINKER_RESULTS": uint64(len(k.results))}
}

func (k *kept) judge() Report {
	j := newJudge(k.run)
	for _, records := range [][]Record{k.states, k.results} {
		for _, r := range records {
			j.add(r)
		}
	}
	return j.verdict()
}

func poll(id, caller string, from time.Time, seconds float64) Poll {
	at := from.Add(time.Duration(seconds * float64(time.Second)))
	return Poll{ID: id, Caller: caller, Start: at, End: at.Add(10 * time.Millisecond)}
}

func sighting(who string, r Record) Sighting {
	return Sighting{Subscriber: who, Subject: r.Subject, RequestID: r.RequestID, Stream: r.Stream, Seq: r.Seq, Print: fingerprint(r.Subject, r.MsgID, r.Data)}
}

func (k *kept) state(id string, submitted time.Time, name, previous, reason string, polls int) {
	k.log(id, submitted, publish.KindState, name, polls, publish.StateBody{
		RequestID: id, QueueState: name, Previous: publish.Optional(previous), Reason: publish.Optional(reason), Poll: polls, Time: submitted,
	})
}

// closing closes on the latest result.
func (k *kept) closing(id string, submitted time.Time, status, previous string, polls int) {
	r := k.results[len(k.results)-1]
	ref := publish.ResultRef{Stream: r.Stream, Seq: r.Seq, Bytes: r.Bytes(), ContentType: r.ContentType}
	if r.Large != nil {
		ref.Object = r.Large.Object
	}
	k.log(id, submitted, publish.KindClosing, status, polls, publish.ClosingBody{
		RequestID: id, Status: status, Previous: publish.Optional(previous), Polls: polls, Time: submitted, Result: ref,
	})
}

func (k *kept) log(id string, submitted time.Time, kind publish.Kind, status string, polls int, body any) {
	data, err := json.Marshal(body)
	if err != nil {
		panic(err)
	}
	k.states = append(k.states, record("TINKER_STATES", len(k.states)+1, tinker.State(id), id, submitted, kind, status, polls, data))
}

func (k *kept) result(id string, submitted time.Time, status string, data []byte, polls int) {
	k.results = append(k.results, record("TINKER_RESULTS", len(k.results)+1, tinker.Result(id), id, submitted, publish.KindResult, status, polls, data))
}

func record(stream string, seq int, subject, id string, submitted time.Time, kind publish.Kind, status string, polls int, data []byte) Record {
	return Record{Stream: stream, Seq: uint64(seq), Time: submitted.Add(time.Duration(polls) * time.Second), Event: publish.Event{
		Kind: kind, Subject: subject, RequestID: id, Status: status, Polls: polls, SubmittedAt: submitted,
		MsgID: fmt.Sprint(subject, ".", seq), ContentType: "application/json", Data: data,
	}}
}
