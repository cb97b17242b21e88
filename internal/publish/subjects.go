package publish

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	maxIDBytes    = 1024
	maxPlainToken = 128 // ids of plain characters up to this length are their own token
	maxTokenIDLen = 384 // longer ids are hashed: a subject stays far below the 4,096 bytes at which a server hangs up
)

// CheckID says why an id cannot name a request: it must be valid UTF-8 of 1 to 1,024 bytes, without control
// characters (a header value would lose them) and without white space at its ends (nats.go trims header values).
func CheckID(id string) error {
	switch {
	case id == "":
		return errors.New("the request id is empty")
	case len(id) > maxIDBytes:
		return fmt.Errorf("the request id has %d bytes; at most %d are allowed", len(id), maxIDBytes)
	case !utf8.ValidString(id):
		return errors.New("the request id is not valid UTF-8")
	case strings.TrimSpace(id) != id:
		return errors.New("the request id has white space at its ends")
	}
	for _, r := range id {
		if unicode.IsControl(r) {
			return fmt.Errorf("the request id has the control character %U", r)
		}
	}
	return nil
}

// Token encodes a request id as one subject token. No two ids share a token:
//
//	[A-Za-z0-9_:-]{1,128}    the id as it is
//	other ids                "=" + base64url(id), no padding
//	over 384 bytes           "~" + base64url(SHA-256(id)); look the id up in Bridge-Request-Id
func Token(id string) string {
	switch {
	case plain(id):
		return id
	case len(id) <= maxTokenIDLen:
		return "=" + base64.RawURLEncoding.EncodeToString([]byte(id))
	default:
		sum := sha256.Sum256([]byte(id))
		return "~" + base64.RawURLEncoding.EncodeToString(sum[:])
	}
}

// ID is the inverse of Token. ok is false for a hashed token, whose id only the events' headers have, and for a
// token that Token never makes.
func ID(token string) (id string, ok bool) {
	if plain(token) {
		return token, true
	}
	if !strings.HasPrefix(token, "=") {
		return "", false
	}
	raw, err := base64.RawURLEncoding.DecodeString(token[1:])
	if err != nil || Token(string(raw)) != token {
		return "", false
	}
	return string(raw), true
}

func plain(s string) bool {
	if s == "" || len(s) > maxPlainToken {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == ':' || c == '-') {
			return false
		}
	}
	return true
}

// Names are the subjects, streams and the bucket that belong to one prefix.
type Names struct {
	prefix  string
	streams string // what the names of streams begin with; kept, for each closing record names one
}

// NewNames takes a prefix of subject tokens of [A-Za-z0-9_-], such as "tinker" or "acme.tinker".
func NewNames(prefix string) (Names, error) {
	for token := range strings.SplitSeq(prefix, ".") {
		if !plain(token) || strings.Contains(token, ":") {
			return Names{}, fmt.Errorf("prefix %q: want tokens of letters, digits, '_' and '-', joined by dots, such as \"tinker\"", prefix)
		}
	}
	if strings.HasPrefix(prefix+".", "ingest.") {
		return Names{}, fmt.Errorf("prefix %q: \"ingest\" is where the bridge itself publishes; choose another first token", prefix)
	}
	return Names{prefix, strings.ToUpper(strings.ReplaceAll(prefix, ".", "_")) + "_"}, nil
}

// Prefix is what the names were made from.
func (n Names) Prefix() string { return n.prefix }

// Submit is the subject that takes submissions; so does every subject below it.
func (n Names) Submit() string { return n.prefix + ".submit" }

// Submitter is the first token of the submitter's routing key in a subject that took a submission; empty: there is none.
func (n Names) Submitter(subject string) string {
	key := strings.TrimPrefix(strings.TrimPrefix(subject, n.Submit()), ".")
	submitter, _, _ := strings.Cut(key, ".")
	return submitter
}

// State is the subject of a request's log: its transitions, then its closing record.
func (n Names) State(id string) string { return n.prefix + ".state." + Token(id) }

// Result is the subject of a request's one result.
func (n Names) Result(id string) string { return n.prefix + ".result." + Token(id) }

// States and Results match those subjects for every request.
func (n Names) States() string  { return n.prefix + ".state.*" }
func (n Names) Results() string { return n.prefix + ".result.*" }

// Rejected is the subject that says why submission number seq of the work stream is no request.
func (n Names) Rejected(seq uint64) string { return fmt.Sprintf("%s.rejected.%d", n.prefix, seq) }

// ingest is where a bridge publishes what shall be stored on subject. Nobody may subscribe there: publishers race.
func ingest(subject string) string { return "ingest." + subject }

// The names of the streams and of the object store bucket.
func (n Names) WorkStream() string     { return n.stream("WORK") }
func (n Names) StatesStream() string   { return n.stream("STATES") }
func (n Names) ResultsStream() string  { return n.stream("RESULTS") }
func (n Names) RejectedStream() string { return n.stream("REJECTED") }
func (n Names) LargeBucket() string    { return n.stream("LARGE") }
func (n Names) LargeStream() string    { return "OBJ_" + n.LargeBucket() } // the bucket's own

// BridgesBucket is the key-value bucket in which bridges count each other.
func (n Names) BridgesBucket() string { return n.stream("BRIDGES") }
func (n Names) BridgesStream() string { return "KV_" + n.BridgesBucket() } // the bucket's own

// Consumer is the durable consumer of the work stream that all bridges share.
func (n Names) Consumer() string { return "bridge" }

func (n Names) stream(kind string) string { return n.streams + kind }
