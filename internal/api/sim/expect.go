package sim

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
)

// QueueState is what a try_again answer says about the queue, in a client's words: State is active,
// paused_rate_limit, paused_capacity or unknown; a Reason that is no string is its JSON text.
type QueueState struct {
	State  string
	Reason string
}

// Expected is what a correct client ends up with: status completed, failed, expired, lost or timed_out, and the
// result's bytes, or of a failure its message. A correct client bears what the script does for a bounded number of
// polls. Status is "" where the script leaves the ending to the client's taste (a scripted 2xx body).
// An id that nobody knows yet is judged as if it were polled now.
func (s *Sim) Expected(id string) (status string, body []byte) {
	p, lost := s.expectedProfile(id)
	if p == nil {
		if s.script.Unknown == "try_again" {
			return "timed_out", nil
		}
		return "failed", nil
	}
	if lost {
		return "lost", nil
	}
	for i := range p.steps {
		step := &p.steps[i]
		status, ends := step.ending(p.style.Retention == "once", i == len(p.steps)-1)
		switch {
		case !ends:
		case status == "completed":
			return status, s.filler.appendResult(nil, id, step)
		case status == "failed" && step.kind == "failed":
			return status, []byte(step.Message)
		case status == "failed":
			return status, slices.Clone(step.head)
		default:
			return status, nil
		}
	}
	return "timed_out", nil
}

// States are the queue states that an id's script goes through, without repetition. A client sees some of them, in
// this order.
func (s *Sim) States(id string) []QueueState {
	p, _ := s.expectedProfile(id)
	if p == nil {
		return nil
	}
	var states []QueueState
	for i := range p.steps {
		state, ok := p.steps[i].queueState()
		if ok && (len(states) == 0 || states[len(states)-1] != state) {
			states = append(states, state)
		}
	}
	return states
}

// expectedProfile is the profile that decides an id's end, nil without one; lost says that its only delivery is over
// and did not arrive.
func (s *Sim) expectedProfile(id string) (p *profile, lost bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	j, ok := s.jobs[id]
	switch {
	case ok && j.profile != nil && (s.script.creates() || j.epoch == s.currentEpoch(s.now())):
		return j.profile, j.firstLost && j.profile.style.Retention == "once"
	case s.script.creates():
		return s.choose(id, ""), false
	default:
		return nil, false
	}
}

// ending is the end that a step brings to a client that meets it; ends is false when the client polls on.
func (s *step) ending(once, last bool) (status string, ends bool) {
	switch {
	case s.broken() && once && s.ends():
		return "lost", true
	case s.broken():
		return "timed_out", last
	}
	switch s.kind {
	case "completed":
		return "completed", true
	case "failed":
		// Once destroyed, a failure that would have been polled again cannot be told better.
		return "failed", last || once || s.code == http.StatusBadRequest || s.code == http.StatusUnprocessableEntity || isUser(s.Category)
	case "pending":
		return "timed_out", last
	case "expired":
		return "expired", last // another answer within the grace would win
	}
	if s.ShouldRetry != nil && (s.code < 200 || s.code > 299) {
		return "failed", last || !*s.ShouldRetry
	}
	switch s.code {
	case http.StatusUnauthorized, http.StatusPaymentRequired, http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusAccepted:
		return "timed_out", last
	case http.StatusNotFound:
		return "failed", last
	case http.StatusGone:
		return "expired", last
	}
	switch {
	case s.code < 300 && s.kind == "status":
		if _, pending := s.queueState(); pending {
			return "timed_out", last
		}
		return "", true
	case s.code >= 400 && s.code < 500 && s.kind != "empty":
		return "failed", true
	default:
		return "failed", last // malformed, redirected, 5xx, blank: bounded by the client
	}
}

func isUser(category string) bool {
	return strings.EqualFold(category, "user") || strings.EqualFold(category, "user_error")
}

// queueState reads what the step's body says, as a client would.
func (s *step) queueState() (QueueState, bool) {
	if s.code != http.StatusRequestTimeout && (s.code < 200 || s.code > 299) || s.broken() {
		return QueueState{}, false
	}
	body := slices.Clone(s.head)
	if s.insert == insertID {
		body = append(appendString(body, "id"), s.tail...)
	}
	var answer struct {
		Type   string          `json:"type"`
		State  *string         `json:"queue_state"`
		Reason json.RawMessage `json:"queue_state_reason"`
	}
	if json.Unmarshal(body, &answer) != nil || answer.Type != "try_again" || answer.State == nil {
		return QueueState{}, false
	}
	state := QueueState{State: strings.ToLower(*answer.State)}
	if !slices.Contains([]string{"active", "paused_rate_limit", "paused_capacity"}, state.State) {
		state.State = "unknown"
	}
	if len(answer.Reason) > 0 && string(answer.Reason) != "null" && json.Unmarshal(answer.Reason, &state.Reason) != nil {
		state.Reason = string(answer.Reason)
	}
	return state, true
}
