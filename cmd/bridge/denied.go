package main

import (
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// deniedFor is how long a denied publish counts as trouble. What has to be published is tried again sooner than that.
const deniedFor = time.Minute

// denials keep what the server does not permit to a connection. NATS tells of it beside the conversation: whoever
// published waits for an answer and sees a time-out.
type denials struct {
	mu   sync.Mutex
	last *deniedError // of publishing
	at   time.Time
	// A denied subscription is told of once, and stands until the connection ends.
	subscription *deniedError
	told         map[string]time.Time // by kind of subject, when the log said so
}

// deniedError is a permission that is missing.
type deniedError struct{ action, subject string }

func (e *deniedError) Error() string {
	return fmt.Sprintf("NATS does not permit this user to %s %q: see docs/security.md for what each role needs", e.action, e.subject)
}

// The server's words; nats.go hands them on as text.
var deniedText = regexp.MustCompile(`(?i)permissions violation for (publish|subscription) (?:with reply of|to) "([^"]+)"`)

// asDenied is the permission that an error of nats.go is about; nil: it is about something else.
func asDenied(err error) *deniedError {
	if !errors.Is(err, nats.ErrPermissionViolation) {
		return nil
	}
	found := deniedText.FindStringSubmatch(err.Error())
	switch {
	case found == nil:
		return &deniedError{"do this:", err.Error()}
	case strings.EqualFold(found[1], "publish"):
		return &deniedError{"publish to", found[2]}
	}
	return &deniedError{"subscribe to", found[2]}
}

// note takes an error that came beside the conversation, and reports whether it was a missing permission. Each kind of
// subject is logged once a minute: a bridge may try for thousands of requests. Nothing subscribes again what was denied,
// even if it is permitted later: reconnect does, and is called after a while.
func (d *denials) note(err error, log *slog.Logger, reconnect func()) bool {
	denied := asDenied(err)
	if denied == nil {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if denied.action == "subscribe to" {
		if d.subscription == nil {
			time.AfterFunc(deniedFor, reconnect)
		}
		d.subscription = denied
	} else {
		d.last, d.at = denied, time.Now()
	}
	kind := denied.action + kindOf(denied.subject)
	if told, ok := d.told[kind]; ok && time.Since(told) < time.Minute {
		return true
	}
	if d.told == nil {
		d.told = map[string]time.Time{}
	}
	d.told[kind] = time.Now()
	log.Error("a permission is missing", "error", denied)
	return true
}

// kindOf is a subject without what differs from request to request, so that there are few of them.
func kindOf(subject string) string {
	tokens := strings.Split(subject, ".")
	if tokens[0] == "$JS" && len(tokens) > 4 && tokens[1] == "ACK" {
		return strings.Join(tokens[:4], ".")
	}
	return strings.Join(tokens[:len(tokens)-1], ".")
}

// forget is for the end of a connection: the next one has the permissions that hold then.
func (d *denials) forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.last, d.subscription, d.told = nil, nil, nil
}

// current is the missing permission that is trouble at present; nil: none.
func (d *denials) current() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.subscription != nil:
		return d.subscription
	case d.last != nil && time.Since(d.at) < deniedFor:
		return d.last
	}
	return nil
}

// explain puts a missing permission in front of what it leads to, or in the place of nothing: a bridge that may not
// fetch or acknowledge notices no failure of its own.
func (d *denials) explain(reason string) string {
	switch denied := d.current(); {
	case denied == nil:
		return reason
	case reason == "":
		return denied.Error()
	default:
		return denied.Error() + " (" + reason + ")"
	}
}
