package api

import (
	"net/http"
	"time"
)

// Dialect is what a kind of server wants to be asked with. How it answers needs no dialect: pending, failed, gone and
// the rest are told apart by the answers themselves. docs/dialects.md says where each comes from.
type Dialect struct {
	Name      string
	Path      string
	KeyHeader string
	Header    http.Header   // further headers; nil: none
	Timeout   time.Duration // of one poll: longer than the server holds it
}

// Dialects are all that have a name; the first one is the default.
var Dialects = []Dialect{
	{"auto", DefaultPath, DefaultKeyHeader, nil, 65 * time.Second},
	{"bearer", DefaultPath, "Authorization", nil, 65 * time.Second},
	{"skyrl", DefaultPath, DefaultKeyHeader, nil, 310 * time.Second},
	{"tinkerbell", "/retrieve_future", DefaultKeyHeader, nil, 65 * time.Second},
	{"tinkex", "/api/v1/future/retrieve", DefaultKeyHeader, nil, 65 * time.Second},
	{"tuft", DefaultPath, DefaultKeyHeader, nil, 130 * time.Second},
	{"twinkle", DefaultPath, "Authorization", http.Header{"X-Request-Id": {"future-bridge"}}, 65 * time.Second},
}

// FindDialect returns the dialect of a name.
func FindDialect(name string) (d Dialect, ok bool) {
	for _, d := range Dialects {
		if d.Name == name {
			return d, true
		}
	}
	return Dialect{}, false
}
