package api

import (
	"bytes"
	"encoding/json"
	"strings"
	"unsafe"

	"github.com/tidwall/gjson"
)

const (
	maxDepth    = 10_000 // nesting of JSON, as in encoding/json: the validator recurses
	maxProgress = 256
)

// fields are the top-level members that mean something. They alias the body.
type fields struct {
	secrets *redactor

	kind, status                                gjson.Result
	queueState, reason                          gjson.Result
	retryAfterMS, retryAfterS                   gjson.Result
	payloadSize, result                         gjson.Result
	error, errorMessage, detail                 gjson.Result
	message, category                           gjson.Result
	queuePosition, estimatedWaitS, progressInfo gjson.Result
}

// scan looks at the top level of a JSON body once; a result is validated but never decoded. why is empty for any
// valid JSON value but null. Of a key that is there twice the last counts, as in most decoders.
func (f *fields) scan(a answer) (why string) {
	body := a.body
	f.secrets = a.secrets
	switch {
	case len(bytes.TrimSpace(body)) == 0:
		return "the body is empty"
	case tooDeep(body):
		return "the body is nested too deeply"
	case !gjson.ValidBytes(body):
		return "the body is not JSON"
	}
	// No copy: the body outlives the fields, and nothing here writes to it.
	root := gjson.Parse(unsafe.String(unsafe.SliceData(body), len(body)))
	if root.Type == gjson.Null {
		return "the body is null"
	}
	if !root.IsObject() {
		return ""
	}
	root.ForEach(func(key, value gjson.Result) bool {
		switch key.Str {
		case "type":
			f.kind = value
		case "status":
			f.status = value
		case "queue_state":
			f.queueState = value
		case "queue_state_reason":
			f.reason = value
		case "retry_after_ms":
			f.retryAfterMS = value
		case "retry_after_s":
			f.retryAfterS = value
		case "response_payload_size":
			f.payloadSize = value
		case "result":
			f.result = value
		case "error":
			f.error = value
		case "error_message":
			f.errorMessage = value
		case "detail":
			f.detail = value
		case "message":
			f.message = value
		case "category":
			f.category = value
		case "queue_position":
			f.queuePosition = value
		case "estimated_wait_s":
			f.estimatedWaitS = value
		case "progress":
			f.progressInfo = value
		}
		return true
	})
	return ""
}

// tooDeep guards the recursive validator. Counting brackets is nearly free; only a body with very many is walked.
func tooDeep(body []byte) bool {
	if bytes.Count(body, []byte{'['})+bytes.Count(body, []byte{'{'}) <= maxDepth {
		return false
	}
	depth, inString := 0, false
	for i := 0; i < len(body); i++ {
		switch c := body[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString:
		case c == '[' || c == '{':
			if depth++; depth > maxDepth {
				return true
			}
		case c == ']' || c == '}':
			depth--
		}
	}
	return false
}

func present(r gjson.Result) bool { return r.Exists() && r.Type != gjson.Null }

func (f *fields) progress(o *Outcome) {
	if f.queueState.Type == gjson.String {
		switch s := strings.ToLower(strings.TrimSpace(f.queueState.Str)); s {
		case "active", "paused_rate_limit", "paused_capacity":
			o.QueueState = strings.Clone(s)
		default:
			o.QueueState = "unknown"
		}
	} else if present(f.queueState) {
		o.QueueState = "unknown"
	}
	o.Reason = f.text(f.reason)
	p := Progress{f.raw(f.queuePosition), f.raw(f.estimatedWaitS), f.raw(f.progressInfo), nil}
	if f.kind.String() == "try_again" { // elsewhere the status is what says "pending"
		p.Status = f.raw(f.status)
	}
	if p.QueuePosition != nil || p.EstimatedWaitS != nil || p.Progress != nil || p.Status != nil {
		o.Progress = &p
	}
}

// failure reads every form of error that is known; it always returns one with a message.
func (f *fields) failure(a answer) *Failure {
	out := &Failure{Type: RequestFailed, Category: Unknown}
	category := f.category
	for _, r := range []gjson.Result{f.error, f.errorMessage, f.detail, f.message} {
		if !present(r) {
			continue
		}
		if r.IsObject() {
			if c := r.Get("category"); present(c) {
				category = c
			}
			if m := r.Get("message"); present(m) {
				r = m
			}
		}
		if out.Message = f.text(r); out.Message != "" {
			break
		}
	}
	if present(category) {
		word := f.text(category)
		out.Category = categoryOf(word)
		if word != string(out.Category) {
			out.RawCategory = word
		}
	}
	if out.Message == "" {
		out.Message = statusText(a.status) + a.excerpt()
	}
	return out
}

func categoryOf(word string) Category {
	switch strings.ToLower(strings.TrimSpace(word)) {
	case "user", "user_error":
		return User
	case "server", "server_error", "application", "system":
		return Server
	}
	return Unknown
}

// text is a JSON value as text of bounded length: a string's content, anything else as its JSON.
func (f *fields) text(r gjson.Result) string {
	switch r.Type {
	case gjson.Null:
		return ""
	case gjson.String:
		return f.secrets.quote(r.Str, maxText)
	}
	return f.secrets.quote(r.Raw, maxText)
}

// raw copies a small JSON value; what is absent, null or large is left out, and so is what is no JSON without its
// secrets.
func (f *fields) raw(r gjson.Result) json.RawMessage {
	if !present(r) || len(r.Raw) > maxProgress {
		return nil
	}
	quoted := f.secrets.quote(r.Raw, 4*maxProgress)
	if !gjson.Valid(quoted) {
		return nil
	}
	return json.RawMessage(quoted)
}
