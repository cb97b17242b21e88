package sim

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// maxQuery bounds a poll's body in bytes: an id and a flag.
const maxQuery = 64 << 10

// poll is one retrieve request in flight.
type poll struct {
	id           string
	metadataOnly bool
	refusal      *step // set when the request is answered without looking at the job
	job          *job
	noise        *step
	arrived      time.Duration
	interruption int // Restart's count at arrival
	admitted     bool
	patient      bool // the poll goes on without its client
	gzip         bool // its answer may be compressed
	record       Poll
}

// reply is the answer to a poll.
type reply struct {
	step     *step
	wire     *step // whose wire and drip the answer takes
	metadata bool
}

// refusals are the answers that depend on no job.
type refusals struct{ unauthorized, forbidden, noHeader, invalid, down step }

func compileRefusals(style Style) refusals {
	named := func(name string, s Step) step {
		c := compileStep(s, style)
		c.name = name
		return c
	}
	return refusals{
		unauthorized: named("unauthorized", Step{Status: http.StatusUnauthorized, Body: `{"detail":"invalid API key"}`}),
		forbidden:    named("unauthorized", Step{Status: http.StatusForbidden, Body: `{"detail":"Invalid API key"}`}),
		noHeader:     named("missing_header", Step{Status: http.StatusBadRequest, Body: `{"detail":"a required header is missing"}`}),
		invalid:      named("invalid", Step{Status: http.StatusUnprocessableEntity, Body: `{"detail":"the body wants a string request_id"}`}),
		down:         named("down", Step{Answer: "empty", Wire: "dead"}),
	}
}

func (s *Sim) retrieve(w http.ResponseWriter, r *http.Request) {
	p := s.read(r)
	s.arrive(p)
	defer s.leave(p) // also when send ends the connection by a panic
	for {
		s.mu.Lock()
		a, wait := s.decide(p, r.Context())
		interrupt := s.interrupt
		s.mu.Unlock()
		if wait <= 0 {
			s.send(w, r, p, a)
			return
		}
		if !sleep(r.Context(), wait, interrupt, p.patient) {
			s.abandon(p)
			panic(http.ErrAbortHandler) // a plain return would be an empty 200 to a client that is told of a shutdown
		}
	}
}

// read takes a poll's request apart and refuses what no server would look at.
func (s *Sim) read(r *http.Request) *poll {
	p := &poll{record: Poll{Caller: r.Header.Get(s.callerHeader), Conn: r.RemoteAddr, Iteration: -1}}
	if n, err := strconv.Atoi(r.Header.Get("X-Tinker-Request-Iteration")); err == nil {
		p.record.Iteration = n
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxQuery))
	var query struct {
		RequestID    *string `json:"request_id"`
		MetadataOnly bool    `json:"allow_metadata_only"`
	}
	if err == nil {
		err = json.Unmarshal(body, &query)
	}
	if query.RequestID != nil {
		p.id, p.metadataOnly = *query.RequestID, query.MetadataOnly
	}
	p.record.ID, p.record.MetadataOnly = p.id, p.metadataOnly
	switch {
	case !s.authorized(r):
		p.refusal = &s.refusals.unauthorized
		if s.script.KeyRefusal == http.StatusForbidden && sentKey(r) != "" {
			p.refusal = &s.refusals.forbidden
		}
	case !hasHeaders(r, s.script.RequireHeaders):
		p.refusal = &s.refusals.noHeader
	case err != nil || p.id == "":
		p.refusal = &s.refusals.invalid
	}
	return p
}

// authorized says whether a request carries the API key, where one is wanted.
func (s *Sim) authorized(r *http.Request) bool {
	s.mu.Lock()
	want := s.apiKey
	s.mu.Unlock()
	if len(want) == 0 {
		return true
	}
	key := sentKey(r)
	switch http.CanonicalHeaderKey(s.script.KeyHeader) {
	case "X-Api-Key":
		key = r.Header.Get("X-Api-Key")
	case "Authorization":
		key, _ = strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	}
	return subtle.ConstantTimeCompare([]byte(key), want) == 1
}

func sentKey(r *http.Request) string {
	if key := r.Header.Get("X-Api-Key"); key != "" {
		return key
	}
	return strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
}

func hasHeaders(r *http.Request, names []string) bool {
	for _, name := range names {
		if r.Header.Get(name) == "" {
			return false
		}
	}
	return true
}

// decide is the whole behaviour of the server: what a poll gets now, or how long it has to wait before it is to be
// asked again. The caller holds s.mu.
func (s *Sim) decide(p *poll, client context.Context) (a reply, wait time.Duration) {
	at := s.now()
	p.gzip = s.script.Style.Gzip
	if with, ok := s.outage(at); ok {
		return s.conclude(p, with, at), 0
	}
	if p.interruption != s.interruptions {
		return s.conclude(p, &s.refusals.down, at), 0
	}
	if p.refusal != nil {
		return s.conclude(p, p.refusal, at), 0
	}
	if !p.admitted && !s.admit(at) {
		return s.conclude(p, &s.limited, at), 0
	}
	p.admitted = true

	j := p.job
	known := j.profile != nil && j.epoch == s.currentEpoch(at)
	if !known && s.script.creates() {
		j.begin(s.choose(j.id, ""), at, s.currentEpoch(at))
		known = true
	}
	style := &s.script.Style
	if known {
		style = &j.profile.style
	}
	p.patient, p.gzip = style.IgnoreDisconnect, style.Gzip
	if until := p.arrived + style.Latency; until > at {
		return reply{}, s.capWait(at, until)
	}
	if p.noise != nil && !p.noise.onlyWire() {
		return s.conclude(p, p.noise, at), 0
	}
	if !known {
		return s.conclude(p, &s.unknown, at), 0
	}
	j.advance(s.script.Seed, at)
	if j.gone(at) {
		return s.conclude(p, &j.profile.gone, at), 0
	}
	current := j.current()
	if current.kind == "pending" {
		until := p.arrived + current.hold
		if news, ok := j.nextNews(s.script.Seed); ok {
			until = min(until, news)
		}
		if until > at {
			return reply{}, s.capWait(at, until)
		}
	}
	a = s.conclude(p, current, at)
	a.metadata = current.kind == "completed" && p.metadataOnly && style.MetadataThreshold > 0 && current.size() > style.MetadataThreshold
	if a.metadata {
		s.counts.rename(p, "metadata")
		return a, 0
	}
	if current.ends() {
		s.deliver(j, at, a.wire.broken() || client.Err() != nil)
	}
	j.answered(at)
	return a, 0
}

// capWait ends a wait when an outage begins.
func (s *Sim) capWait(at, until time.Duration) time.Duration {
	if next, ok := s.nextOutage(at); ok {
		until = min(until, next)
	}
	return until - at
}

// conclude settles that a poll gets this step's answer. The caller holds s.mu.
func (s *Sim) conclude(p *poll, answer *step, at time.Duration) reply {
	a := reply{step: answer, wire: answer}
	if p.noise != nil && p.noise.onlyWire() && answer != &s.refusals.down {
		a.wire = p.noise
	}
	p.record.Status = answer.code
	name := answer.name
	var hint time.Duration
	if a.wire.broken() {
		p.record.Status = 0
		if answer != &s.refusals.down {
			name += "/" + a.wire.Wire
		}
	} else {
		hint = answer.hint(time.Now())
	}
	if p.job != nil {
		p.job.hinted = at + hint
	}
	s.counts.answer(p, name)
	return a
}

// sleep waits until a timer, a restart, or the client's leaving (false). A patient one does not see the client leave,
// only the server.
func sleep(client context.Context, d time.Duration, interrupt <-chan struct{}, patient bool) bool {
	left := client.Done()
	if patient {
		left = serverDone(client)
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-interrupt:
	case <-left:
		return false
	}
	return true
}
