package sim

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The words of a script. The first of each is what an empty value means.
var (
	keyHeaders      = []string{"X-Api-Key", "Authorization"}
	unknownStyles   = []string{"create", "404", "error", "try_again"}
	pendingStyles   = []string{"try_again", "pending", "202", "408", "408_detail", "408_full"}
	failureStyles   = []string{"flat", "enveloped", "error_message", "400", "422", "500"}
	resultStyles    = []string{"enveloped", "bare"}
	retentionStyles = []string{"forever", "once", "ended", "delivered"}
	goneStyles      = []string{"404", "error", "410", "try_again"}
	answers         = []string{"pending", "completed", "failed", "expired", "status", "empty", "malformed", "redirect", "reflect_key"}
	wires           = []string{"ok", "truncated", "dead", "reset", "stall"}
)

// Check finds the first thing in a script that cannot be done, names its key and says how to mend it.
func (s Script) Check() error {
	if err := oneOf("id_format", s.IDFormat, idFormats); err != nil {
		return err
	}
	if err := oneOf("unknown", s.Unknown, unknownStyles); err != nil {
		return err
	}
	if s.Path != "" && !strings.HasPrefix(s.Path, "/") || strings.ContainsAny(s.Path, "{} ") || strings.HasPrefix(s.Path, "/sim/") {
		return fmt.Errorf("path: %q cannot be served: write one such as /api/v1/retrieve_future", s.Path)
	}
	if err := oneOf("key_header", http.CanonicalHeaderKey(s.KeyHeader), keyHeaders); err != nil {
		return err
	}
	if r := s.KeyRefusal; r != 0 && r != http.StatusUnauthorized && r != http.StatusForbidden {
		return fmt.Errorf("key_refusal: %d is no refusal of a key: write 401 or 403", r)
	}
	if err := s.Style.check("style"); err != nil {
		return err
	}
	if s.RateLimit.PerSecond < 0 || s.RateLimit.Burst < 0 {
		return fmt.Errorf("rate_limit: negative: write per_second and burst from 0 on")
	}
	if err := s.RateLimit.With.checkWith("rate_limit.with"); err != nil {
		return err
	}
	for i, n := range s.Noise {
		path := fmt.Sprintf("noise[%d]", i)
		if n.Rate < 0 || n.Rate > 1 {
			return fmt.Errorf("%s.rate: %v is no share: write a number from 0 to 1", path, n.Rate)
		}
		if n.With == nil {
			return fmt.Errorf(`%s.with: missing: say what the polls get, like {"status":503}`, path)
		}
		if err := n.With.checkWith(path + ".with"); err != nil {
			return err
		}
	}
	for i, o := range s.Outages {
		path := fmt.Sprintf("outages[%d]", i)
		if o.For <= 0 && !o.Forget {
			return fmt.Errorf(`%s.for: missing: say how long it lasts, like "30s"`, path)
		}
		if o.Every != 0 && o.Every <= o.For {
			return fmt.Errorf("%s.every: %v is not longer than its for: make it longer, or leave it out", path, o.Every)
		}
		if err := o.With.checkWith(path + ".with"); err != nil {
			return err
		}
	}
	names := make(map[string]bool)
	for i, p := range s.Profiles {
		path := fmt.Sprintf("profiles[%d]", i)
		if p.Name == "" || names[p.Name] {
			return fmt.Errorf("%s.name: %q is empty or taken: give each profile a name of its own", path, p.Name)
		}
		names[p.Name] = true
		if err := p.check(path); err != nil {
			return err
		}
	}
	return nil
}

// creates says whether an id that nobody made gets a job when it is asked for.
func (s *Script) creates() bool { return s.Unknown == "" || s.Unknown == "create" }

func (p Profile) check(path string) error {
	if p.Weight < 0 {
		return fmt.Errorf("%s.weight: negative: write a number above 0, or named_only for a profile that is only used by name", path)
	}
	if p.Style != nil {
		if err := p.Style.check(path + ".style"); err != nil {
			return err
		}
	}
	if len(p.Steps) == 0 {
		return fmt.Errorf(`%s.steps: missing: write at least one, like {"answer":"completed"}`, path)
	}
	for i := range p.Steps {
		if err := p.Steps[i].check(fmt.Sprintf("%s.steps[%d]", path, i)); err != nil {
			return err
		}
	}
	if last := p.Steps[len(p.Steps)-1]; last.For != 0 || last.Spread != 0 || last.Polls != 0 {
		return fmt.Errorf("%s.steps[%d]: the last step lasts for ever: remove its for, spread and polls, or add a step after it", path, len(p.Steps)-1)
	}
	return nil
}

func (s Style) check(path string) error {
	for _, word := range []struct {
		key, value string
		known      []string
	}{
		{"pending_style", s.PendingStyle, pendingStyles},
		{"failure_style", s.FailureStyle, failureStyles},
		{"result_style", s.ResultStyle, resultStyles},
		{"retention", s.Retention, retentionStyles},
		{"gone", s.Gone, goneStyles},
	} {
		if err := oneOf(join(path, word.key), word.value, word.known); err != nil {
			return err
		}
	}
	if ttl := s.Retention == "ended" || s.Retention == "delivered"; ttl != (s.RetentionTTL > 0) {
		return fmt.Errorf(`%s.retention_ttl: goes with retention "ended" or "delivered", and only with these: add or remove it`, path)
	}
	if s.MetadataThreshold < 0 || s.Hold < 0 || s.Latency < 0 {
		return fmt.Errorf("%s: negative: write metadata_threshold, hold and latency from 0 on", path)
	}
	return nil
}

// checkWith checks a step that replaces another's answer and so has no duration of its own.
func (s *Step) checkWith(path string) error {
	if s == nil {
		return nil
	}
	if s.For != 0 || s.Spread != 0 || s.Polls != 0 || s.Hold != 0 {
		return fmt.Errorf("%s: has no duration of its own: remove for, spread, polls and hold", path)
	}
	if s.Answer == "completed" || s.Answer == "failed" {
		return fmt.Errorf("%s.answer: %q is for profiles: use another answer here", path, s.Answer)
	}
	return s.check(path)
}

func (s *Step) check(path string) error {
	if err := oneOf(path+".answer", s.Answer, answers); err != nil {
		return err
	}
	if err := oneOf(path+".wire", s.Wire, wires); err != nil {
		return err
	}
	if s.For != 0 && s.Polls != 0 {
		return fmt.Errorf("%s: has for and polls: keep one of them", path)
	}
	if s.For < 0 || s.Spread < 0 || s.Polls < 0 || s.Hold < 0 || s.Drip < 0 || s.ResultBytes < 0 {
		return fmt.Errorf("%s: negative: write durations, polls and result_bytes from 0 on", path)
	}
	if s.Spread != 0 && s.For == 0 {
		return fmt.Errorf(`%s.spread: has no for to add to: add one, like "1s"`, path)
	}
	kind := s.kind()
	styles := map[string][]string{"pending": pendingStyles, "completed": resultStyles, "failed": failureStyles}[kind]
	if s.Style != "" && !slices.Contains(styles, s.Style) {
		return fmt.Errorf("%s.style: %q is no style of the answer %s: use one of %s, or none", path, s.Style, kind, strings.Join(styles, ", "))
	}
	for _, use := range []struct {
		key  string
		used bool
		by   []string
	}{
		{"state", s.State != "", []string{"pending"}},
		{"reason", s.Reason != "", []string{"pending"}},
		{"fields", s.Fields != nil, []string{"pending"}},
		{"result", s.Result != "", []string{"completed"}},
		{"result_bytes", s.ResultBytes != 0, []string{"completed"}},
		{"content_type", s.ContentType != "", []string{"completed"}},
		{"message", s.Message != "", []string{"failed"}},
		{"category", s.Category != "", []string{"failed"}},
		{"status", s.Status != 0, []string{"status", "empty", "malformed", "redirect", "reflect_key"}},
		{"body", s.Body != "", []string{"status", "malformed", "redirect"}},
		{"retry_after_ms", s.RetryAfterMS != 0 && s.Body != "", nil},
		{"retry_after_s", s.RetryAfterS != 0 && s.Body != "", nil},
	} {
		switch {
		case use.used && use.by == nil:
			return fmt.Errorf("%s.%s: there is a body: write it into that", path, use.key)
		case use.used && !slices.Contains(use.by, kind):
			return fmt.Errorf("%s.%s: goes with the answer %s, not %s: remove it or change the answer", path, use.key, strings.Join(use.by, ", "), kind)
		}
	}
	if s.Result != "" && s.ResultBytes != 0 {
		return fmt.Errorf("%s: has result and result_bytes: keep one of them", path)
	}
	if s.isJSON() && s.Result != "" && !json.Valid([]byte(s.Result)) {
		return fmt.Errorf("%s.result: is not JSON: mend it, or give its content_type", path)
	}
	if kind == "status" && s.Status == 0 {
		return fmt.Errorf(`%s.status: missing: say which, like 503`, path)
	}
	if s.Status != 0 && (s.Status < 200 || s.Status > 599) {
		return fmt.Errorf("%s.status: %d is no final HTTP status: write 200 to 599", path, s.Status)
	}
	return nil
}

// kind is the answer that the step gives, with what may be left out filled in.
func (s *Step) kind() string {
	switch {
	case s.Answer != "":
		return s.Answer
	case s.Status != 0:
		return "status"
	default:
		return "pending"
	}
}

func (s *Step) isJSON() bool {
	return s.ContentType == "" || strings.HasPrefix(s.ContentType, "application/json")
}

func oneOf(path, value string, known []string) error {
	if value == "" || slices.Contains(known, value) {
		return nil
	}
	return fmt.Errorf("%s: %q is not known: use one of %s", path, value, strings.Join(known, ", "))
}

// header is what a step always sends; a Retry-After as an HTTP date is added when it is sent.
func (s *Step) header() http.Header {
	h := make(http.Header)
	if s.RetryAfter != 0 {
		h.Set("Retry-After", strconv.Itoa(s.RetryAfter))
	}
	if s.RetryAfterMSHeader != 0 {
		h.Set("Retry-After-Ms", strconv.Itoa(s.RetryAfterMSHeader))
	}
	if s.ShouldRetry != nil {
		h.Set("X-Should-Retry", strconv.FormatBool(*s.ShouldRetry))
	}
	for key, value := range s.Headers {
		h.Set(key, value)
	}
	return h
}

// hint is the shortest wait that a step asks for, 0 when it asks for none. At is the wall clock, for the HTTP-date
// form, which knows only whole seconds.
func (s *Step) hint(at time.Time) time.Duration {
	var shortest time.Duration
	for _, d := range [...]time.Duration{
		time.Duration(s.RetryAfter) * time.Second,
		time.Duration(s.RetryAfterMSHeader) * time.Millisecond,
		time.Duration(s.RetryAfterMS) * time.Millisecond,
		time.Duration(s.RetryAfterS * float64(time.Second)),
	} {
		if d > 0 && (shortest == 0 || d < shortest) {
			shortest = d
		}
	}
	if s.RetryAfterDate > 0 {
		if d := at.Add(s.RetryAfterDate).Truncate(time.Second).Sub(at); shortest == 0 || d < shortest {
			shortest = d
		}
	}
	return shortest
}
