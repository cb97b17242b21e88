package intake

import (
	"bytes"
	"cmp"
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
	"github.com/tidwall/gjson"
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
// itself is allowed is checkID's to say. What can be read in two ways is an error: the next bridge that reads it might
// choose the other one.
func Parse(header nats.Header, data []byte, checkID func(string) error) (Submission, error) {
	var s Submission
	body := bytes.TrimSpace(data)
	id, haveID, err := only(header, headerRequestID)
	if err != nil {
		return s, err
	}
	switch {
	case bytes.HasPrefix(body, []byte("\ufeff")):
		return s, errors.New("the message begins with a byte order mark: leave it out")
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
		s.ID = id
	}
	if v, ok, err := only(header, headerRequestType); err != nil {
		return s, err
	} else if ok {
		s.Type = v
	}
	if v, ok, err := only(header, headerTimeoutMS); err != nil {
		return s, err
	} else if ok {
		ms, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
		if err != nil {
			return s, fmt.Errorf("the header %s is %.40q: want whole milliseconds", headerTimeoutMS, v)
		}
		if s.Timeout, err = timeout(ms); err != nil {
			return s, err
		}
	}
	if v, ok, err := only(header, headerTraceparent); err == nil && ok && traceparent.MatchString(v) {
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
	if !json.Valid(body) {
		return fmt.Errorf("the message begins like a JSON object but is none: %w", json.Unmarshal(body, new(json.RawMessage)))
	}
	f, err := fieldsOf(body)
	if err != nil {
		return err
	}
	var id, kind *string
	var ms *int64
	if err := cmp.Or(field(f.id, "request_id", &id), field(f.kind, "request_type", &kind), field(f.timeout, "timeout_ms", &ms)); err != nil {
		return err
	}
	if id == nil && !haveID {
		return errors.New("the JSON object has no request_id")
	}
	if id != nil {
		s.ID = *id
		if !haveID && mended(s.ID, body) {
			return errors.New("the request_id has half of a surrogate pair")
		}
	}
	if kind != nil {
		s.Type = *kind
	}
	if ms != nil {
		if s.Timeout, err = timeout(*ms); err != nil {
			return err
		}
	}
	return s.parseLabels(json.RawMessage(f.labels))
}

// fields are the values of a submission's fields, as JSON; empty: not there.
type fields struct{ id, kind, timeout, labels string }

// fieldsOf reads the fields of a valid JSON object. Their names are taken as they are written, and each of ours only once:
// the decoder of the library would take "Request_ID" too, and the last one.
func fieldsOf(body []byte) (f fields, err error) {
	gjson.ParseBytes(body).ForEach(func(name, value gjson.Result) bool {
		var into *string
		switch name.Str {
		case "request_id":
			into = &f.id
		case "request_type":
			into = &f.kind
		case "timeout_ms":
			into = &f.timeout
		case "labels":
			into = &f.labels
		default:
			return true
		}
		if *into != "" {
			err = fmt.Errorf("the JSON object has the field %q twice", name.Str)
		}
		*into = value.Raw
		return err == nil
	})
	return f, err
}

func field[T string | int64](raw, name string, into **T) error {
	if raw == "" {
		return nil
	}
	if plain, ok := any(into).(**string); ok && raw[0] == '"' && !strings.Contains(raw, `\`) {
		text := strings.Clone(raw[1 : len(raw)-1]) // which need not keep the whole message as long as the request is held
		*plain = &text
		return nil
	}
	var wrong *json.UnmarshalTypeError
	err := json.Unmarshal([]byte(raw), into)
	if !errors.As(err, &wrong) {
		return err
	}
	want := "string"
	if wrong.Type.Kind() == reflect.Int64 {
		want = "whole number"
	}
	return fmt.Errorf("the field %q is a JSON %.40s: want a %s", name, wrong.Value, want)
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

// only returns a header's value, whatever way its name is capitalised. Two that differ are an error. The value is a copy:
// those of the library are parts of all the headers together, which nobody wants to keep as long as a request is held.
func only(header nats.Header, name string) (value string, ok bool, err error) {
	for k, values := range header {
		if !strings.EqualFold(k, name) {
			continue
		}
		for _, v := range values {
			if ok && v != value {
				return "", false, fmt.Errorf("the header %s is given twice, with different values", name)
			}
			value, ok = v, true
		}
	}
	return strings.Clone(value), ok, nil
}
