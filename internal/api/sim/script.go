package sim

import "time"

// Script is what an upstream does. The zero value is a well-behaved server. See the package comment for each field.
type Script struct {
	Seed           uint64    `json:"seed"`
	IDFormat       string    `json:"id_format"`
	Unknown        string    `json:"unknown"`
	Path           string    `json:"path"`
	KeyHeader      string    `json:"key_header"`
	KeyRefusal     int       `json:"key_refusal"`
	RequireHeaders []string  `json:"require_headers"`
	Style          Style     `json:"style"` // before Profiles: their styles start from it when a script is parsed
	RateLimit      RateLimit `json:"rate_limit"`
	Noise          []Noise   `json:"noise"`
	Outages        []Outage  `json:"outages"`
	Profiles       []Profile `json:"profiles"`
}

// Style is a server's habits.
type Style struct {
	Hold              time.Duration `json:"hold"`
	Latency           time.Duration `json:"latency"`
	PendingStyle      string        `json:"pending_style"`
	FailureStyle      string        `json:"failure_style"`
	ResultStyle       string        `json:"result_style"`
	Retention         string        `json:"retention"`
	RetentionTTL      time.Duration `json:"retention_ttl"`
	Gone              string        `json:"gone"`
	MetadataThreshold int           `json:"metadata_threshold"` // bytes; 0: never metadata only
	Gzip              bool          `json:"gzip"`
	IgnoreDisconnect  bool          `json:"ignore_disconnect"`
}

// RateLimit bounds polls per second, all ids together. PerSecond 0 is no limit; Burst 0 is one second's worth.
type RateLimit struct {
	PerSecond float64 `json:"per_second"`
	Burst     float64 `json:"burst"`
	With      *Step   `json:"with"`
}

// Noise gives With to a share (0 to 1) of the polls, picked by seed, id and the id's poll count.
type Noise struct {
	Rate float64 `json:"rate"`
	With *Step   `json:"with"`
}

// Outage is a window, or with Every a periodic window, in which the server is not itself.
type Outage struct {
	After  time.Duration `json:"after"` // since New
	For    time.Duration `json:"for"`
	Every  time.Duration `json:"every"` // from one begin to the next; 0: once
	Forget bool          `json:"forget"`
	With   *Step         `json:"with"` // nil: connections are refused
}

// Profile is the life of a kind of job. A nil Style is the script's.
type Profile struct {
	Name      string  `json:"name"`
	Match     string  `json:"match"`
	Weight    float64 `json:"weight"` // 0 is 1
	NamedOnly bool    `json:"named_only"`
	Style     *Style  `json:"style"`
	Steps     []Step  `json:"steps"`
}

// Step is one answer, and how long it is the answer.
type Step struct {
	For    time.Duration `json:"for"`
	Spread time.Duration `json:"spread"`
	Polls  int           `json:"polls"`

	Answer string        `json:"answer"`
	Style  string        `json:"style"`
	Hold   time.Duration `json:"hold"` // 0 is the style's

	State  string          `json:"state"`
	Reason string          `json:"reason"`
	Fields map[string]JSON `json:"fields"`

	Result      JSON   `json:"result"`
	ResultBytes int    `json:"result_bytes"`
	ContentType string `json:"content_type"`

	Message  string `json:"message"`
	Category string `json:"category"`

	Status      int               `json:"status"`
	Body        Text              `json:"body"`
	Headers     map[string]string `json:"headers"`
	ShouldRetry *bool             `json:"should_retry"`

	RetryAfter         int           `json:"retry_after"` // seconds
	RetryAfterDate     time.Duration `json:"retry_after_date"`
	RetryAfterMS       int           `json:"retry_after_ms"`
	RetryAfterS        float64       `json:"retry_after_s"`
	RetryAfterMSHeader int           `json:"retry_after_ms_header"`

	Wire string        `json:"wire"`
	Drip time.Duration `json:"drip"`
}

// JSON is a JSON value as its text, never re-encoded.
type JSON string

// Text is a body: in a script a JSON string stands for its text, any other value for its JSON.
type Text string
