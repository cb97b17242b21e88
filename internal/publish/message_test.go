package publish

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"futurebridge/internal/api"
	"futurebridge/internal/poll"
)

// pure makes messages and publishes none.
func pure() *Publisher { return New(Config{Names: tinker}) }

var (
	zone      = time.FixedZone("", 3600)
	submitted = time.Date(2026, 1, 2, 4, 4, 5, 6, zone)
	at        = time.Date(2026, 1, 2, 4, 4, 7, 500_000_000, zone)
)

// labelled is a request that uses everything a submission can say.
func labelled(id string) *poll.Request {
	return &poll.Request{
		ID: id, About: &poll.About{
			Type: "Sample", Traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", Labels: json.RawMessage(`{"run":"1"}`),
		},
		LogSeq: 41, State: poll.State{Submitted: submitted, QueueState: "active"},
	}
}

func bare(id string) *poll.Request {
	return &poll.Request{ID: id, State: poll.State{Submitted: submitted}}
}

func paused() poll.Transition {
	return poll.Transition{QueueState: "paused_capacity", Previous: "active", Reason: "full", Poll: 5, Time: at}
}

func ending(body string) poll.Result {
	return poll.Result{Status: poll.Completed, Body: []byte(body), ContentType: "application/json", HTTPStatus: 200, Polls: 5, Elapsed: 2500 * time.Millisecond, Time: at}
}

func failing() poll.Result {
	r := ending("")
	r.Status, r.Body, r.ContentType = poll.Failed, nil, "application/json"
	r.Failure = &api.Failure{Type: api.RequestFailed, Category: api.User, Message: "no <such> model"}
	return r
}

func reference() stored {
	return stored{status: "completed", polls: 5, elapsedMS: 2500, ref: ResultRef{Stream: "TINKER_RESULTS", Seq: 9, Bytes: 3, ContentType: "text/x"}}
}

func TestEveryEventCarriesTheHeadersOfTheContract(t *testing.T) {
	p := pure()
	common := func(kind, subject, expect, status, contentType string, more nats.Header) nats.Header {
		h := nats.Header{
			"Nats-Expected-Last-Subject-Sequence":         {expect},
			"Nats-Expected-Last-Subject-Sequence-Subject": {subject},
			"Bridge-Request-Id":                           {"a.b"},
			"Bridge-Status":                               {status},
			"Bridge-Polls":                                {"5"},
			"Bridge-Submitted-At":                         {"2026-01-02T03:04:05.000000006Z"},
			"Content-Type":                                {contentType},
			"ce-specversion":                              {"1.0"},
			"ce-type":                                     {"futurebridge." + kind},
			"ce-source":                                   {"/tinker"},
			"ce-time":                                     {"2026-01-02T03:04:07.5Z"},
			"ce-subject":                                  {subject},
		}
		for name, values := range more {
			h[name] = values
		}
		return h
	}
	asked := nats.Header{"Bridge-Request-Type": {"Sample"}, "traceparent": {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}}
	large := &LargeRef{Object: "=YS5i.N", Bytes: 1 << 40, Digest: "SHA-256=x"}
	untyped := ending("\x00")
	untyped.ContentType = ""
	for _, c := range []struct {
		name    string
		msg     *nats.Msg
		subject string
		want    nats.Header
	}{
		{"state", p.transitionMessage(labelled("a.b"), paused()), "tinker.state.=YS5i",
			common("state", "tinker.state.=YS5i", "41", "paused_capacity", "application/json", asked)},
		{"state of a bare submission", p.transitionMessage(bare("a.b"), paused()), "tinker.state.=YS5i",
			common("state", "tinker.state.=YS5i", "0", "paused_capacity", "application/json", nil)},
		{"closing record", p.closingMessage(labelled("a.b"), reference(), at), "tinker.state.=YS5i",
			common("closing", "tinker.state.=YS5i", "41", "completed", "application/json", asked)},
		{"result", p.resultMessage(labelled("a.b"), 0, ending("1"), []byte("1"), nil), "tinker.result.=YS5i",
			common("result", "tinker.result.=YS5i", "0", "completed", "application/json", asked)},
		{"result of no type", p.resultMessage(bare("a.b"), 0, untyped, untyped.Body, nil), "tinker.result.=YS5i",
			common("result", "tinker.result.=YS5i", "0", "completed", "application/octet-stream", nil)},
		{"failure", p.resultMessage(bare("a.b"), 0, failing(), []byte("{}"), nil), "tinker.result.=YS5i",
			common("result", "tinker.result.=YS5i", "0", "failed", "application/json", nil)},
		{"large result", p.resultMessage(bare("a.b"), 0, ending("1"), []byte("1"), large), "tinker.result.=YS5i",
			common("result", "tinker.result.=YS5i", "0", "completed", "application/json", nats.Header{
				"Bridge-Result-Object": {"=YS5i.N"}, "Bridge-Result-Bytes": {"1099511627776"}, "Bridge-Result-Digest": {"SHA-256=x"},
			})},
	} {
		t.Run(c.name, func(t *testing.T) {
			require.Equal(t, "ingest."+c.subject, c.msg.Subject)
			id := c.msg.Header.Get("Nats-Msg-Id")
			require.Regexp(t, `^`+c.subject+`\.\d+\.[0-9a-z]+$`, id)
			c.want["Nats-Msg-Id"], c.want["ce-id"] = []string{id}, []string{id}
			require.Equal(t, c.want, c.msg.Header)
			e, err := tinker.Decode(c.subject, c.msg.Header, c.msg.Data)
			require.NoError(t, err, "what the bridge writes it can read")
			require.Equal(t, c.want.Get("ce-type"), "futurebridge."+string(e.Kind))
		})
	}
}

func TestBodiesAreTheJSONOfTheContract(t *testing.T) {
	p := pure()
	progress := paused()
	progress.Progress = &api.Progress{
		QueuePosition: json.RawMessage(`3`), EstimatedWaitS: json.RawMessage(`1.50`),
		Progress: json.RawMessage(`{"step":18446744073709551616}`), Status: json.RawMessage(`"run<ning>"`),
	}
	broken := paused()
	broken.Progress = &api.Progress{QueuePosition: json.RawMessage(`[redacted]`), Status: json.RawMessage(`"kept"`)}
	odd := paused()
	odd.Reason = "a<b> & \"c\"\n\xff"
	first := poll.Transition{QueueState: "active", Poll: 1, Time: at}
	ended := reference()
	ended.ref.Object, ended.err = "a.N", json.RawMessage(`{"type":"<x>"}`)
	for _, c := range []struct {
		name string
		msg  *nats.Msg
		want string
	}{
		{"state", p.transitionMessage(bare("a>b"), paused()),
			`{"request_id":"a>b","queue_state":"paused_capacity","previous_queue_state":"active","reason":"full","poll":5,"time":"2026-01-02T03:04:07.5Z"}`},
		{"first state", p.transitionMessage(bare("a"), first),
			`{"request_id":"a","queue_state":"active","previous_queue_state":null,"reason":null,"poll":1,"time":"2026-01-02T03:04:07.5Z"}`},
		{"state with labels and progress", p.transitionMessage(labelled("a"), progress),
			`{"request_id":"a","queue_state":"paused_capacity","previous_queue_state":"active","reason":"full","poll":5,"time":"2026-01-02T03:04:07.5Z",` +
				`"labels":{"run":"1"},"queue_position":3,"estimated_wait_s":1.50,"progress":{"step":18446744073709551616},"status":"run<ning>"}`},
		{"progress that is no JSON is left out", p.transitionMessage(bare("a"), broken),
			`{"request_id":"a","queue_state":"paused_capacity","previous_queue_state":"active","reason":"full","poll":5,"time":"2026-01-02T03:04:07.5Z","status":"kept"}`},
		{"odd reason", p.transitionMessage(bare("a"), odd),
			`{"request_id":"a","queue_state":"paused_capacity","previous_queue_state":"active","reason":"a<b> & \"c\"\n\ufffd","poll":5,"time":"2026-01-02T03:04:07.5Z"}`},
		{"closing record", p.closingMessage(labelled("a"), reference(), at),
			`{"request_id":"a","status":"completed","previous_queue_state":"active","polls":5,"elapsed_ms":2500,"time":"2026-01-02T03:04:07.5Z",` +
				`"labels":{"run":"1"},"result":{"stream":"TINKER_RESULTS","seq":9,"bytes":3,"content_type":"text/x"}}`},
		{"closing record of one that was never seen waiting", p.closingMessage(bare("a"), ended, at),
			`{"request_id":"a","status":"completed","previous_queue_state":null,"polls":5,"elapsed_ms":2500,"time":"2026-01-02T03:04:07.5Z",` +
				`"result":{"stream":"TINKER_RESULTS","seq":9,"bytes":3,"content_type":"text/x","object":"a.N"},"error":{"type":"<x>"}}`},
	} {
		t.Run(c.name, func(t *testing.T) { require.Equal(t, c.want, string(c.msg.Data)) })
	}
}

func TestBodiesReadBackAsTheyWere(t *testing.T) {
	p := pure()
	e := must(tinker.Decode("tinker.state.a", headers("a", "active"), p.transitionMessage(bare("a"), paused()).Data))
	state, err := e.State()
	require.NoError(t, err)
	require.Equal(t, StateBody{RequestID: "a", QueueState: "paused_capacity", Previous: "active", Reason: "full", Poll: 5, Time: at.UTC()}, state)
	e = must(tinker.Decode("tinker.state.a", headers("a", "completed"), p.closingMessage(bare("a"), reference(), at).Data))
	closing, err := e.Closing()
	require.NoError(t, err)
	require.Equal(t, ClosingBody{RequestID: "a", Status: "completed", Polls: 5, ElapsedMS: 2500, Time: at.UTC(), Result: reference().ref}, closing)
}

func TestAResultIsTheUpstreamsBytes(t *testing.T) {
	for _, body := range []string{"", " {\"n\" : 12345678901234567890, \"x\":\"<\\u003e\"}\r\n", "\x00\xff\xfe", "null"} {
		require.Equal(t, body, string(resultBody(ending(body))))
	}
}

func TestAFailureIsTheErrorOfTheContract(t *testing.T) {
	for _, c := range []struct {
		name    string
		failure api.Failure
		http    int
		retry   bool
		want    string
	}{
		{"the user's", api.Failure{Type: api.RequestFailed, Category: api.User, Message: "no <such> model"}, 200, false,
			`{"type":"request_failed","category":"user","message":"no <such> model","http_status":200,"retryable":false,"polls":5,"elapsed_ms":2500}`},
		{"with the upstream's own word", api.Failure{Type: api.RequestFailed, Category: api.Server, RawCategory: "system", Message: "m"}, 500, true,
			`{"type":"request_failed","category":"server","raw_category":"system","message":"m","http_status":500,"retryable":true,"polls":5,"elapsed_ms":2500}`},
		{"no answer ever", api.Failure{Type: api.APIConnection, Category: api.Unknown}, 0, true,
			`{"type":"api_connection","category":"unknown","message":"","retryable":true,"polls":5,"elapsed_ms":2500}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := failing()
			r.Failure, r.HTTPStatus, r.Retryable = &c.failure, c.http, c.retry
			require.Equal(t, c.want, string(resultBody(r)))
		})
	}
}

func TestTheSameMessageHasTheSameIDAndAnyOtherAnother(t *testing.T) {
	p := pure()
	state := func(r *poll.Request, tr *poll.Transition) *nats.Msg { return p.transitionMessage(r, *tr) }
	ids := map[string]string{}
	add := func(what string, m *nats.Msg) {
		id := m.Header.Get(nats.MsgIdHdr)
		require.Empty(t, ids[id], "%s has the id of another message", what)
		ids[id] = what
	}

	base := func() (*poll.Request, *poll.Transition) { r, tr := labelled("a"), paused(); return r, &tr }
	r, tr := base()
	r2, tr2 := base()
	require.Equal(t, state(r, tr).Header, state(r2, tr2).Header)
	add("state", state(r, tr))
	for what, change := range map[string]func(*poll.Request, *poll.Transition){
		"state of another id":            func(r *poll.Request, _ *poll.Transition) { r.ID = "b" },
		"state on another log":           func(r *poll.Request, _ *poll.Transition) { r.LogSeq++ },
		"state of another type":          func(r *poll.Request, _ *poll.Transition) { r.About.Type = "Train" },
		"state of another trace":         func(r *poll.Request, _ *poll.Transition) { r.About.Traceparent = "" },
		"state of another label":         func(r *poll.Request, _ *poll.Transition) { r.About.Labels = json.RawMessage(`{"run":"2"}`) },
		"state of another submission":    func(r *poll.Request, _ *poll.Transition) { r.State.Submitted = r.State.Submitted.Add(1) },
		"another state":                  func(_ *poll.Request, tr *poll.Transition) { tr.QueueState = "active" },
		"state with another reason":      func(_ *poll.Request, tr *poll.Transition) { tr.Reason = "" },
		"state with another predecessor": func(_ *poll.Request, tr *poll.Transition) { tr.Previous = "" },
		"state at another poll":          func(_ *poll.Request, tr *poll.Transition) { tr.Poll++ },
		"state at another time":          func(_ *poll.Request, tr *poll.Transition) { tr.Time = tr.Time.Add(1) },
		"state with another queue length": func(_ *poll.Request, tr *poll.Transition) {
			tr.Progress = &api.Progress{QueuePosition: json.RawMessage("1")}
		},
	} {
		r, tr := base()
		change(r, tr)
		add(what, state(r, tr))
	}

	result := func(change func(*poll.Request, *poll.Result), large *LargeRef) *nats.Msg {
		r, res := labelled("a"), ending("1")
		if change != nil {
			change(r, &res)
		}
		return p.resultMessage(r, 0, res, resultBody(res), large)
	}
	require.Equal(t, result(nil, nil).Header, result(nil, nil).Header)
	add("result", result(nil, nil))
	for what, change := range map[string]func(*poll.Request, *poll.Result){
		"result of another id":         func(r *poll.Request, _ *poll.Result) { r.ID = "b" },
		"result of another type":       func(r *poll.Request, _ *poll.Result) { r.About.Type = "" },
		"result of another trace":      func(r *poll.Request, _ *poll.Result) { r.About.Traceparent = "" },
		"result of another submission": func(r *poll.Request, _ *poll.Result) { r.State.Submitted = at },
		"result with other bytes":      func(_ *poll.Request, res *poll.Result) { res.Body = []byte("2") },
		"result of another media type": func(_ *poll.Request, res *poll.Result) { res.ContentType = "text/plain" },
		"result at another poll":       func(_ *poll.Request, res *poll.Result) { res.Polls++ },
		"result at another time":       func(_ *poll.Request, res *poll.Result) { res.Time = res.Time.Add(1) },
		"failure":                      func(_ *poll.Request, res *poll.Result) { *res = failing() },
		"time-out with the same body":  func(_ *poll.Request, res *poll.Result) { res.Status = poll.TimedOut },
	} {
		add(what, result(change, nil))
	}
	add("large result", result(nil, &LargeRef{Object: "a.1"}))
	add("the same large result, uploaded again", result(nil, &LargeRef{Object: "a.2"}))

	closing := func(change func(*stored)) *nats.Msg {
		s := reference()
		if change != nil {
			change(&s)
		}
		return p.closingMessage(labelled("a"), s, at)
	}
	require.Equal(t, closing(nil).Header, closing(nil).Header)
	add("closing record", closing(nil))
	for what, change := range map[string]func(*stored){
		"closing record of another status": func(s *stored) { s.status = "failed" },
		"closing record of another result": func(s *stored) { s.ref.Seq++ },
		"closing record at another poll":   func(s *stored) { s.polls++ },
		"closing record with an error":     func(s *stored) { s.err = json.RawMessage(`{}`) },
	} {
		add(what, closing(change))
	}
	require.Len(t, ids, 13+11+2+5)
}

func TestAnEndIsReadBackFromItsResult(t *testing.T) {
	p := pure()
	decode := func(status, data string, pairs ...string) Event {
		return must(tinker.Decode("tinker.result.a", headers("a", status, pairs...), []byte(data)))
	}
	ref := func(bytes int64, object string) ResultRef {
		return ResultRef{Stream: "TINKER_RESULTS", Seq: 9, Bytes: bytes, ContentType: "text/x", Object: object}
	}
	for _, c := range []struct {
		name  string
		event Event
		after time.Duration // of the submission
		want  stored
	}{
		{"completed", decode("completed", `{"a":1}`), 2500 * time.Millisecond, stored{"completed", 7, 2500, ref(7, ""), nil}},
		{"failed", decode("failed", `{"a":1}`), 0, stored{"failed", 7, 0, ref(7, ""), json.RawMessage(`{"a":1}`)}},
		{"failed, with a body that is no JSON", decode("failed", `{"a":`), 0, stored{"failed", 7, 0, ref(5, ""), nil}},
		{"large", decode("completed", "", HeaderResultObject, "o", HeaderResultBytes, "77"), 0, stored{"completed", 7, 0, ref(77, "o"), nil}},
		{"clocks that disagree", decode("completed", ""), -time.Second, stored{"completed", 7, 0, ref(0, ""), nil}},
	} {
		t.Run(c.name, func(t *testing.T) {
			require.Equal(t, c.want, p.storedFrom(tail{seq: 9, at: c.event.SubmittedAt.Add(c.after), event: c.event}))
		})
	}
}

func TestTheLongestEventsFitIntoAMessageWithRoomToSpare(t *testing.T) {
	p := pure()
	id := strings.Repeat("<", maxIDBytes)
	r := labelled(id)
	r.About.Labels = json.RawMessage(`{"a":"` + strings.Repeat("x", 4<<10) + `"}`)
	res := failing()
	res.Failure.Message = strings.Repeat("\x01", 1<<10) // six bytes each as JSON
	s := reference()
	s.err = resultBody(res)
	m := p.closingMessage(r, s, at)
	size := len(m.Data)
	for name, values := range m.Header {
		size += len(name) + len(values[0]) + 4
	}
	require.Less(t, size, headerRoom)
}
