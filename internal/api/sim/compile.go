package sim

import (
	"cmp"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"time"
)

// profile and step are their scripted namesakes made ready to be played: words resolved, bodies rendered as far as
// they do not depend on the id.
type profile struct {
	name      string
	match     string
	weight    float64
	namedOnly bool
	style     Style
	steps     []step
	gone      step
}

type step struct {
	Step
	kind   string
	name   string // under which the answer is counted
	code   int
	ctype  []string
	header http.Header
	head   []byte // of the body
	tail   []byte // of the body, after what depends on the poll: the id, the result or the key
	insert insert
	hold   time.Duration
}

type insert int

const (
	insertNothing insert = iota
	insertID
	insertResult
	insertKey
)

const defaultResultBytes = 200

var (
	jsonType       = []string{"application/json"}
	defaultProfile = Profile{Name: "default", Steps: []Step{
		{State: "active", For: 2 * time.Second},
		{Answer: "completed"},
	}}
)

func compileProfile(p Profile, style Style) *profile {
	if p.Style != nil {
		style = *p.Style
	}
	c := &profile{name: p.Name, match: p.Match, weight: cmp.Or(p.Weight, 1), namedOnly: p.NamedOnly, style: style}
	for i, s := range p.Steps {
		if i < len(p.Steps)-1 && s.For == 0 && s.Polls == 0 {
			s.Polls = 1
		}
		c.steps = append(c.steps, compileStep(s, style))
	}
	c.gone = compileMissing(style.Gone, "gone", "already retrieved", style)
	return c
}

// compileMissing is the answer to an id whose job does not, or no longer, exist.
func compileMissing(style, name, message string, habits Style) step {
	var s step
	switch style {
	case "try_again":
		s = compileStep(Step{State: "active", Style: "try_again"}, habits)
	case "error":
		s = compileStep(Step{Status: http.StatusOK, Body: Text(`{"error":` + quote(message) + `}`)}, habits)
	case "410":
		s = compileStep(Step{Answer: "expired"}, habits)
	default:
		s = compileStep(Step{Status: http.StatusNotFound, Body: Text(`{"detail":` + quote(message) + `}`)}, habits)
	}
	s.name = name
	return s
}

func compileStep(scripted Step, style Style) step {
	s := step{
		Step: scripted, kind: scripted.kind(), header: scripted.header(), ctype: jsonType, code: http.StatusOK,
		hold: cmp.Or(scripted.Hold, style.Hold),
	}
	s.name = s.kind
	switch s.kind {
	case "pending":
		s.renderPending(cmp.Or(s.Style, style.PendingStyle, pendingStyles[0]))
	case "completed":
		s.renderCompleted(cmp.Or(s.Style, style.ResultStyle, resultStyles[0]))
	case "failed":
		s.renderFailed(cmp.Or(s.Style, style.FailureStyle, failureStyles[0]))
	case "expired":
		s.code = http.StatusGone
		s.head = s.detail("the promise has expired")
	case "status":
		s.code = s.Status
		s.name = "status_" + strconv.Itoa(s.code)
		s.head = []byte(s.Body)
		if s.Body == "" {
			s.head = s.detail(cmp.Or(http.StatusText(s.code), "status "+strconv.Itoa(s.code)))
		}
	case "empty":
		s.code = max(s.Status, http.StatusOK)
		s.name = "empty_" + strconv.Itoa(s.code)
	case "malformed":
		s.code = max(s.Status, http.StatusOK)
		s.head = []byte(cmp.Or(string(s.Body), `{"status":"completed","result":{"tokens":[1,2,`))
	case "redirect":
		s.code = cmp.Or(s.Status, http.StatusTemporaryRedirect)
		if s.header.Get("Location") == "" {
			s.header.Set("Location", redirectPath)
		}
		s.head = []byte(s.Body)
	case "reflect_key":
		s.code = cmp.Or(s.Status, http.StatusInternalServerError)
		s.insert = insertKey
		s.head, s.tail = []byte(`{"detail":"no quota for key `), []byte(`"}`)
	}
	return s
}

func (s *step) renderPending(style string) {
	var tail []byte
	switch style {
	case "408":
		s.code = http.StatusRequestTimeout
		return
	case "408_detail":
		s.code = http.StatusRequestTimeout
		s.head = s.detail("the future is not ready")
		return
	case "pending", "202":
		if style == "202" {
			s.code = http.StatusAccepted
		}
		s.head = []byte(`{"status":"pending","request_id":`)
	default:
		if style == "408_full" {
			s.code = http.StatusRequestTimeout
		}
		s.head = []byte(`{"type":"try_again","request_id":`)
		tail = appendField(tail, "queue_state", s.State)
		tail = appendField(tail, "queue_state_reason", s.Reason)
	}
	tail = s.appendBodyHints(tail)
	for _, key := range slices.Sorted(maps.Keys(s.Fields)) {
		tail = append(appendString(append(tail, ','), key), ':')
		tail = append(tail, s.Fields[key]...)
	}
	s.insert = insertID
	s.tail = append(tail, '}')
}

func (s *step) renderCompleted(style string) {
	s.insert = insertResult
	if s.Result == "" && s.ResultBytes == 0 {
		s.ResultBytes = defaultResultBytes
	}
	switch {
	case !s.isJSON():
		s.ctype = []string{s.ContentType}
	case style == "enveloped":
		s.head, s.tail = []byte(`{"status":"completed","result":`), []byte(`}`)
	}
}

// size is the length of a completed body.
func (s *step) size() int { return len(s.head) + max(len(s.Result), s.ResultBytes) + len(s.tail) }

func (s *step) renderFailed(style string) {
	s.Message = cmp.Or(s.Message, "the job failed")
	message := quote(s.Message)
	var category string
	if s.Category != "" {
		category = `,"category":` + quote(s.Category)
	}
	switch style {
	case "flat":
		s.head = []byte(`{"error":` + message + category + `}`)
	case "enveloped":
		s.head = []byte(`{"status":"failed","error":{"message":` + message + category + `}}`)
	case "error_message":
		s.head = []byte(`{"error_message":` + message + category + `}`)
	default:
		s.code, _ = strconv.Atoi(style)
		s.head = []byte(`{"detail":` + message + category + `}`)
	}
}

func (s *step) detail(message string) []byte {
	return append(s.appendBodyHints([]byte(`{"detail":`+quote(message))), '}')
}

func (s *step) appendBodyHints(dst []byte) []byte {
	if s.RetryAfterMS != 0 {
		dst = append(dst, `,"retry_after_ms":`...)
		dst = strconv.AppendInt(dst, int64(s.RetryAfterMS), 10)
	}
	if s.RetryAfterS != 0 {
		dst = append(dst, `,"retry_after_s":`...)
		dst = strconv.AppendFloat(dst, s.RetryAfterS, 'g', -1, 64)
	}
	return dst
}

// ends says whether a step ends its job.
func (s *step) ends() bool { return s.kind == "completed" || s.kind == "failed" }

// onlyWire says that a step only breaks or slows the answer that was due anyway.
func (s *step) onlyWire() bool {
	return s.Answer == "" && s.Status == 0 && s.State == "" && s.Fields == nil && (s.Wire != "" || s.Drip != 0)
}

// broken says that a step's answer does not arrive whole.
func (s *Step) broken() bool { return s.Wire != "" && s.Wire != "ok" }

func appendField(dst []byte, key, value string) []byte {
	if value == "" {
		return dst
	}
	dst = append(append(append(dst, ',', '"'), key...), '"', ':')
	return appendString(dst, value)
}

func quote(s string) string {
	quoted, _ := json.Marshal(s) // cannot fail for a string
	return string(quoted)
}
