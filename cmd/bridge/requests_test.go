package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"futurebridge/internal/api"
	"futurebridge/internal/embedded"
	"futurebridge/internal/poll"
	"futurebridge/internal/publish"
	"futurebridge/internal/testbed"
)

// desk is a NATS server with a bridge's streams, on which the commands for requests are tried.
type desk struct {
	t         *testing.T
	url       string
	js        jetstream.JetStream
	names     publish.Names
	publisher *publish.Publisher
}

func newDesk(t *testing.T) *desk {
	clearEnv(t)
	testbed.ForgetTimers()
	server, err := embedded.Start(embedded.Options{StoreDir: t.TempDir(), Listen: "127.0.0.1:0"})
	require.NoError(t, err)
	t.Cleanup(server.Shutdown)
	d := &desk{t: t, url: server.ClientURL()}
	nc, err := nats.Connect(d.url)
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	d.js, err = jetstream.New(nc)
	require.NoError(t, err)
	d.names, err = publish.NewNames("tinker")
	require.NoError(t, err)
	_, err = publish.Ensure(t.Context(), d.js, d.names, publish.Options{})
	require.NoError(t, err)
	d.publisher = publish.New(publish.Config{Conn: nc, JetStream: d.js, Names: d.names, MaxInline: 64 << 10})
	return d
}

type deskLease struct{}

func (deskLease) Trusted() bool     { return true }
func (deskLease) Ack()              {}
func (deskLease) Nak(time.Duration) {}
func (deskLease) Drop()             {}

// end writes a log of one state and an end.
func (d *desk) end(id string, status poll.Status, body string) {
	d.t.Helper()
	at := time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)
	r := &poll.Request{ID: id, Lease: deskLease{}, State: poll.State{Submitted: at}}
	_, err := d.publisher.Transition(d.t.Context(), r, poll.Transition{QueueState: "queued", Reason: "line\nbreak", Poll: 1, Time: at})
	require.NoError(d.t, err)
	r.State.QueueState = "queued"
	result := poll.Result{Status: status, Polls: 2, Elapsed: 1500 * time.Millisecond, Time: at.Add(time.Second)}
	if status == poll.Completed {
		result.Body, result.ContentType = []byte(body), "application/json"
	} else {
		result.Failure = &api.Failure{Type: api.RequestFailed, Category: api.User, Message: body}
	}
	require.NoError(d.t, d.publisher.Finish(d.t.Context(), r, result))
}

// body is the result that is stored of an id.
func (d *desk) body(id string) string {
	d.t.Helper()
	stream, err := d.js.Stream(d.t.Context(), d.names.ResultsStream())
	require.NoError(d.t, err)
	msg, err := stream.GetLastMsgForSubject(d.t.Context(), "tinker.result."+id)
	require.NoError(d.t, err)
	return string(msg.Data)
}

// run runs a command to its end.
func (d *desk) run(stdin string, args ...string) (code int, stdout, stderr string) {
	d.t.Helper()
	var out, errs bytes.Buffer
	args = append([]string{args[0], "--nats=" + d.url}, args[1:]...)
	err := run(d.t.Context(), args, strings.NewReader(stdin), &out, &errs)
	code = report(err, &errs)
	return code, out.String(), errs.String()
}

func TestSubmitPrintsWhatWasAccepted(t *testing.T) {
	d := newDesk(t)
	code, stdout, stderr := d.run("", "submit", "--type=sample", "--timeout=1m", "--label=a=b=c;d,e", "--key=team", "--", "r1", "-5", "=x", "a b")
	require.Empty(t, stderr)
	require.Equal(t, "r1\n-5\n=x\na b\n", stdout)
	require.Zero(t, code)
	stream, err := d.js.Stream(t.Context(), d.names.WorkStream())
	require.NoError(t, err)
	msg, err := stream.GetMsg(t.Context(), 2)
	require.NoError(t, err)
	require.Equal(t, "tinker.submit.team", msg.Subject)
	require.JSONEq(t, `{"request_id":"-5","timeout_ms":60000,"request_type":"sample","labels":{"a":"b=c;d,e"}}`, string(msg.Data))

	code, stdout, stderr = d.run("r2\r\n\n  r3  \n"+`{"request_id":"r4","timeout_ms":5,"request_type":"train","labels":{}}`+"\n"+
		`{"request_id":"r5","timeout":5}`+"\n"+`{"request_id":7}`+"\n"+`{"request_id":"r6"} {}`+"\n"+`{"request_id":"r7","timeout_ms":-1}`+"\n"+
		"bad\x01id\nr8", "submit", "--type=sample")
	require.Equal(t, "r2\nr3\nr4\nr8\n", stdout)
	require.Equal(t, 1, code)
	for _, want := range []string{
		"line 5: not a request: json: unknown field \"timeout\"", "line 6: not a request", "line 7: more than one JSON value",
		"line 8: timeout_ms is -1", `"bad\x01id": the request id has the control character`, "bridge: 4 accepted, 5 not\n",
	} {
		require.Contains(t, stderr, want)
	}
	msg, err = stream.GetMsg(t.Context(), 7)
	require.NoError(t, err)
	require.JSONEq(t, `{"request_id":"r4","timeout_ms":5,"request_type":"train"}`, string(msg.Data))
}

func TestSubmitWithoutABridgeSaysSoOnce(t *testing.T) {
	d := newDesk(t)
	code, stdout, stderr := d.run("a\nb\nc\n", "submit", "--prefix=other")
	require.Equal(t, 1, code)
	require.Empty(t, stdout)
	require.Equal(t, 1, strings.Count(stderr, "\n"), stderr)
	require.Contains(t, stderr, "no bridge has been set up here: stream OTHER_WORK does not exist; start `bridge serve`")
}

func TestResultPrintsTheUpstreamsBytesAndItsExitCode(t *testing.T) {
	d := newDesk(t)
	odd := "{\"n\": 12345678901234567890,\n \"s\":\"<>\"}\n"
	d.end("done", poll.Completed, odd)
	d.end("-5", poll.Completed, "1")
	d.end("text", poll.Completed, "no json")
	d.end("large", poll.Completed, strings.Repeat("x", 100<<10))
	d.end("bad", poll.Failed, "bad prompt")
	for status, id := range map[poll.Status]string{poll.TimedOut: "t", poll.Expired: "e", poll.Lost: "l", poll.Cancelled: "c"} {
		d.end(id, status, "gone")
	}
	for _, c := range []struct {
		args           []string
		code           int
		stdout, stderr string
	}{
		{[]string{"done"}, 0, odd, ""},
		{[]string{"--", "-5"}, 0, "1", ""},
		{[]string{"large"}, 0, strings.Repeat("x", 100<<10), ""},
		{[]string{"--json", "done"}, 0, `{"request_id":"done","status":"completed","polls":2,"content_type":"application/json","bytes":39,"result":{"n":12345678901234567890,"s":"<>"}}` + "\n", ""},
		{[]string{"--json", "text"}, 0, `{"request_id":"text","status":"completed","polls":2,"content_type":"application/json","bytes":7,"result_base64":"bm8ganNvbg=="}` + "\n", ""},
		{[]string{"bad"}, 3, `{"type":"request_failed","category":"user","message":"bad prompt","retryable":false,"polls":2,"elapsed_ms":1500}`, "bridge: request \"bad\" failed: bad prompt\n"},
		{[]string{"--json", "bad"}, 3, `{"request_id":"bad","status":"failed","polls":2,"error":{"type":"request_failed","category":"user","message":"bad prompt","retryable":false,"polls":2,"elapsed_ms":1500}}` + "\n", "bridge: request \"bad\" failed: bad prompt\n"},
		{[]string{"never"}, 5, "", "bridge: request \"never\": there is no result yet\n"},
		{[]string{"--json", "never"}, 5, "", "bridge: request \"never\": there is no result yet\n"},
		{[]string{" "}, 2, "", "bridge: id \" \": the request id has white space at its ends\n"},
	} {
		code, stdout, stderr := d.run("", append([]string{"result"}, c.args...)...)
		require.Equal(t, c.code, code, c.args)
		require.Equal(t, c.stdout, stdout, c.args)
		require.Equal(t, c.stderr, stderr, c.args)
	}
	for _, id := range []string{"t", "e", "l", "c"} {
		code, _, _ := d.run("", "result", id)
		require.Equal(t, 4, code, id)
	}
}

func TestWhatAnUpstreamWritesMovesNoCursor(t *testing.T) {
	d := newDesk(t)
	message := "\x1b[2J\x1b]0;owned\a a\rb\nbridge: all is well\u202e\u009b1m ä"
	d.end("bad", poll.Failed, message)
	d.end("gone", poll.Lost, message)
	body := d.body("bad")
	require.Contains(t, body, `\u001b[2J`)
	for _, command := range []string{"result", "wait"} {
		code, stdout, stderr := d.run("", command, "bad")
		require.Equal(t, exitReqFail, code)
		require.Equal(t, body, stdout, "the bytes that are stored")
		require.Equal(t, `bridge: request "bad" failed: \x1b[2J\x1b]0;owned\a a\rb\nbridge: all is well\u202e\u009b1m ä`+"\n", stderr)
	}
	code, _, stderr := d.run("", "wait", "bad", "gone")
	require.Equal(t, exitReqFail, code)
	require.Equal(t, 2, strings.Count(stderr, "\n"))
	require.NotContains(t, stderr, "\x1b")
}

func TestWaitOfOnePrintsItsBytes(t *testing.T) {
	d := newDesk(t)
	d.end("done", poll.Completed, "{ }")
	code, stdout, stderr := d.run("", "wait", "done")
	require.Equal(t, 0, code)
	require.Equal(t, "{ }", stdout)
	require.Empty(t, stderr)
	code, stdout, stderr = d.run("", "wait", "--timeout=10ms", "never")
	require.Equal(t, 5, code)
	require.Empty(t, stdout)
	require.Equal(t, "bridge: request \"never\": there is no result yet\n", stderr)
	code, _, stderr = d.run("", "wait", "--timeout=-1s", "never")
	require.Equal(t, 2, code, stderr)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := run(ctx, []string{"wait", "--nats=" + d.url, "never"}, nil, io.Discard, io.Discard)
	require.EqualError(t, err, "interrupted")
}

func TestWaitOfSeveralPrintsLinesAsTheyEnd(t *testing.T) {
	d := newDesk(t)
	d.end("early", poll.Completed, "1")
	d.end("lost", poll.Lost, "gone")
	pr, pw := io.Pipe()
	var errs bytes.Buffer
	var running sync.WaitGroup
	var err error
	running.Go(func() {
		err = run(t.Context(), []string{"wait", "--nats=" + d.url, "late", "early", "lost", "early", "late too"}, nil, pw, &errs)
		_ = pw.Close()
	})
	lines := bufio.NewScanner(pr)
	read := func() (id, status string) {
		require.True(t, lines.Scan())
		var line struct {
			RequestID string `json:"request_id"`
			Status    string
		}
		require.NoError(t, json.Unmarshal(lines.Bytes(), &line))
		return line.RequestID, line.Status
	}
	id, status := read()
	require.Equal(t, "early completed", id+" "+status)
	id, status = read()
	require.Equal(t, "lost lost", id+" "+status)
	d.end("late too", poll.Completed, "2")
	id, _ = read()
	require.Equal(t, "late too", id)
	d.end("late", poll.Completed, "3")
	id, _ = read()
	require.Equal(t, "late", id)
	require.False(t, lines.Scan())
	running.Wait()
	require.Equal(t, 4, report(err, &errs))
	require.Equal(t, "bridge: request \"lost\" lost: gone\n", errs.String())

	code, _, stderr := d.run("", "wait", "--timeout=100ms", "early", "never")
	require.Equal(t, 5, code)
	require.Contains(t, stderr, `request "never": there is no result yet`)
}

func TestWaitOutPutsEachResultIntoAFile(t *testing.T) {
	d := newDesk(t)
	dir := filepath.Join(t.TempDir(), "new")
	long := strings.Repeat("ü", 100)
	for id, body := range map[string]string{"../a": "1", long: "2", "large": strings.Repeat("x", 100<<10)} {
		d.end(id, poll.Completed, body)
	}
	d.end("bad", poll.Failed, "bad prompt")
	code, stdout, _ := d.run("", "wait", "--out", dir, "../a", long, "large", "bad")
	require.Equal(t, 3, code)
	content := map[string]string{}
	for line := range strings.Lines(stdout) {
		var l terminalLine
		require.NoError(t, json.Unmarshal([]byte(line), &l))
		require.Empty(t, l.Result)
		require.Equal(t, dir, filepath.Dir(l.File))
		text, err := os.ReadFile(l.File)
		require.NoError(t, err)
		content[l.RequestID] = string(text)
	}
	require.Equal(t, "1", content["../a"])
	require.Equal(t, "2", content[long])
	require.Len(t, content["large"], 100<<10)
	require.Contains(t, content["bad"], "bad prompt")
	files, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, files, 4, "nothing half-written is left")

	code, _, stderr := d.run("", "wait", "--out", filepath.Join(dir, "bad.error.json"), "bad")
	require.Equal(t, 2, code)
	require.Contains(t, stderr, "--out: ")
}

func TestWatchEndsWhenAllItsRequestsHave(t *testing.T) {
	d := newDesk(t)
	d.end("a b", poll.Completed, strings.Repeat("x", 2048))
	d.end("bad", poll.Failed, "bad \x1b[2J prompt")
	code, stdout, stderr := d.run("", "watch", "a b", "bad")
	require.Equal(t, 0, code, stderr)
	require.Equal(t, `2026-01-31T12:00:00.000Z  "a b"  queued  "line\nbreak"
TIME  "a b"  completed  2.0 KiB  after 1.5s, 2 polls
2026-01-31T12:00:00.000Z  bad  queued  "line\nbreak"
TIME  bad  failed  "bad \x1b[2J prompt"  after 1.5s, 2 polls
`, regexp.MustCompile(`(?m)^\S+Z(  \S+( b")?  (completed|failed))`).ReplaceAllString(stdout, "TIME$1"))
	code, stdout, _ = d.run("", "watch", "--json", "bad")
	require.Equal(t, 0, code)
	lines := strings.Split(strings.TrimSpace(stdout), "\n")
	require.Len(t, lines, 2)
	var state publish.StateBody
	require.NoError(t, json.Unmarshal([]byte(lines[0]), &state))
	require.Equal(t, "queued", state.QueueState)
	var closing publish.ClosingBody
	require.NoError(t, json.Unmarshal([]byte(lines[1]), &closing))
	require.Equal(t, "failed", closing.Status)

	for _, c := range []struct{ args, want string }{
		{"watch", "nothing to watch: give request ids, or --all"},
		{"watch --all a", "--all: contradicts the ids"},
		{"watch --all --since=yesterday", `--since: "yesterday" is neither a time`},
	} {
		code, _, stderr := d.run("", strings.Fields(c.args)...)
		require.Equal(t, 2, code)
		require.Contains(t, stderr, c.want)
	}
}

func TestWatchAllRunsUntilItIsInterrupted(t *testing.T) {
	d := newDesk(t)
	d.end("old", poll.Completed, "1")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	pr, pw := io.Pipe()
	var running sync.WaitGroup
	var err error
	running.Go(func() {
		err = run(ctx, []string{"watch", "--nats=" + d.url, "--all", "--since=1h"}, nil, pw, io.Discard)
		_ = pw.Close()
	})
	lines := bufio.NewScanner(pr)
	for range 2 {
		require.True(t, lines.Scan())
		require.Contains(t, lines.Text(), "  old  ")
	}
	d.end("new", poll.Completed, "1")
	for range 2 {
		require.True(t, lines.Scan())
		require.Contains(t, lines.Text(), "  new  ")
	}
	cancel()
	require.False(t, lines.Scan())
	running.Wait()
	require.NoError(t, err)
}
