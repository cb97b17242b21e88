package intake

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"
)

// Headers that a submitter may set; they win over the body.
const (
	headerRequestID   = "Bridge-Request-Id"
	headerRequestType = "Bridge-Request-Type"
	headerTimeoutMS   = "Bridge-Timeout-Ms"
	headerTraceparent = "traceparent"
)

const (
	// MaxTimeout is the longest deadline a submission can ask for: its log must outlive it.
	MaxTimeout     = 7 * 24 * time.Hour
	maxTypeBytes   = 128
	maxLabelsBytes = 4 << 10
)

// Submission is what a message on the submit subject asks for.
type Submission struct {
	ID          string
	Type        string          // empty: not given
	Timeout     time.Duration   // 0: not given
	Labels      json.RawMessage // a JSON object of strings; nil: none
	Traceparent string          // W3C trace context; empty: none
}

var traceparent = regexp.MustCompile(`^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$`)

// Parse reads a submission: a JSON object, or a plain id. Its errors tell the submitter what to mend. Whether the id
// itself is allowed is checkID's to say.
func Parse(header nats.Header, data []byte, checkID func(string) error) (Submission, error) {
	var s Submission
	body := bytes.TrimSpace(data)
	id, haveID := first(header, headerRequestID)
	switch {
	case bytes.HasPrefix(body, []byte("{")):
		if err := s.parseJSON(body, haveID); err != nil {
			return s, err
		}
	case haveID: // the header says it all
	case len(body) == 0:
		return s, errors.New("the message is empty: want a request id, or a JSON object with request_id")
	default:
		s.ID = string(body)
	}
	if haveID {
		s.ID = strings.Clone(id) // not all the headers with it, for as long as the request is held
	}
	if v, ok := first(header, headerRequestType); ok {
		s.Type = v
	}
	if v, ok := first(header, headerTimeoutMS); ok {
		ms, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
		if err != nil {
			return s, fmt.Errorf("the header %s is %.40q: want whole milliseconds", headerTimeoutMS, v)
		}
		if s.Timeout, err = timeout(ms); err != nil {
			return s, err
		}
	}
	if v, ok := first(header, headerTraceparent); ok && traceparent.MatchString(v) {
		s.Traceparent = v
	}
	if err := checkType(s.Type); err != nil {
		return s, err
	}
	return s, checkID(s.ID)
}

func (s *Submission) parseJSON(body []byte, haveID bool) error {
	if !utf8.Valid(body) {
		return errors.New("the message is not valid UTF-8")
	}
	var in struct {
		RequestID   *string         `json:"request_id"`
		TimeoutMS   *int64          `json:"timeout_ms"`
		RequestType *string         `json:"request_type"`
		Labels      json.RawMessage `json:"labels"`
	}
	if err := json.Unmarshal(body, &in); err != nil {
		var wrong *json.UnmarshalTypeError
		if errors.As(err, &wrong) {
			want := "string"
			if wrong.Type.Kind() == reflect.Int64 {
				want = "whole number"
			}
			return fmt.Errorf("the field %q is a JSON %.40s: want a %s", wrong.Field, wrong.Value, want)
		}
		return fmt.Errorf("the message begins like a JSON object but is none: %w", err)
	}
	if in.RequestID == nil && !haveID {
		return errors.New("the JSON object has no request_id")
	}
	if in.RequestID != nil {
		s.ID = *in.RequestID
		if !haveID && mended(s.ID, body) {
			return errors.New("the request_id has half of a surrogate pair")
		}
	}
	if in.RequestType != nil {
		s.Type = *in.RequestType
	}
	if in.TimeoutMS != nil {
		var err error
		if s.Timeout, err = timeout(*in.TimeoutMS); err != nil {
			return err
		}
	}
	return s.parseLabels(in.Labels)
}

// mended reports whether the JSON decoder has put U+FFFD where body has no character: another id than the submitter's.
func mended(id string, body []byte) bool {
	return strings.ContainsRune(id, utf8.RuneError) && !bytes.ContainsRune(body, utf8.RuneError) &&
		!bytes.Contains(bytes.ToLower(body), []byte(`\ufffd`))
}

func (s *Submission) parseLabels(raw json.RawMessage) error {
	if len(raw) == 0 || string(raw) == "null" {
		return nil
	}
	var labels map[string]*string
	if err := json.Unmarshal(raw, &labels); err != nil || slices.Contains(slices.Collect(maps.Values(labels)), nil) {
		return errors.New("the field \"labels\" is no JSON object whose values are strings")
	}
	if len(labels) == 0 {
		return nil
	}
	canonical, err := json.Marshal(labels)
	if err != nil {
		return err
	}
	if len(canonical) > maxLabelsBytes {
		return fmt.Errorf("the labels have %d bytes: at most %d are carried", len(canonical), maxLabelsBytes)
	}
	s.Labels = canonical
	return nil
}

func timeout(ms int64) (time.Duration, error) {
	if ms <= 0 || ms > MaxTimeout.Milliseconds() {
		return 0, fmt.Errorf("the time-out is %d ms: want 1 to %d (7 days)", ms, MaxTimeout.Milliseconds())
	}
	return time.Duration(ms) * time.Millisecond, nil
}

func checkType(t string) error {
	if len(t) > maxTypeBytes {
		return fmt.Errorf("the request type has %d bytes: at most %d are allowed", len(t), maxTypeBytes)
	}
	for _, c := range []byte(t) {
		if c < ' ' || c > '~' {
			return errors.New("the request type has characters other than printable ASCII")
		}
	}
	return nil
}

// first returns a header's first value, whatever way its name is capitalised.
func first(header nats.Header, name string) (string, bool) {
	if v := header[name]; len(v) > 0 {
		return v[0], true
	}
	for k, v := range header {
		if len(v) > 0 && strings.EqualFold(k, name) {
			return v[0], true
		}
	}
	return "", false
}
