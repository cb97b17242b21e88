package main

import (
	"fmt"
	"io"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// mask stands for a secret. A config file that still has it is refused, so that a printed one cannot lose a secret
// silently.
const mask = "********"

// print writes the effective settings as a file for --config. Settings that follow what stands are comments unless
// they were given: written out, they would insist.
func (c *serveConfig) print(w io.Writer) error {
	var b strings.Builder
	b.WriteString("# bridge serve --config FILE. Where a value is \"" + mask + "\", put the secret in its place.\n")
	if c.apiKey != "" && c.APIKeyFile == "" {
		b.WriteString("# The API key comes from the environment.\n")
	}
	var err error
	eachFlag(reflect.ValueOf(c).Elem(), func(name string, v reflect.Value) {
		if name == "config" || name == "print-config" {
			return
		}
		line, marshalErr := yaml.Marshal(map[string]any{name: plainValue(name, v)})
		if marshalErr != nil {
			err = marshalErr
		}
		excluded := c.Embedded && name == "nats" || !c.Embedded && (name == "embedded-listen" || name == "store-dir") ||
			name == "nats" && c.contextWins()
		switch {
		case v.IsZero() && v.Kind() == reflect.String && name != "http", v.Kind() == reflect.Slice && v.Len() == 0, excluded:
			return
		case slices.Contains(following, name) && !c.given.has(name):
			fmt.Fprintf(&b, "# %s # unless what stands differs\n", strings.TrimSuffix(string(line), "\n"))
		default:
			b.Write(line)
		}
	})
	if err != nil {
		return err
	}
	_, err = io.WriteString(w, b.String())
	return err
}

// eachFlag calls f for every flag of a configuration struct, in the order of --help.
func eachFlag(v reflect.Value, f func(name string, v reflect.Value)) {
	for i := range v.NumField() {
		field := v.Type().Field(i)
		if name, ok := field.Tag.Lookup("name"); ok {
			f(name, v.Field(i))
		} else if field.Anonymous {
			eachFlag(v.Field(i), f)
		}
	}
}

func plainValue(name string, v reflect.Value) any {
	switch x := v.Interface().(type) {
	case time.Duration:
		return shortDuration(x)
	case byteSize:
		return x.String()
	case headers:
		var lines []string
		for _, h := range x {
			lines = append(lines, h.name+"="+mask)
		}
		return lines
	case string:
		if name == "nats" || name == "upstream-proxy" {
			return maskURLs(x)
		}
	}
	return v.Interface()
}

// maskURLs hides user names and passwords: for NATS a user name alone is a token.
func maskURLs(list string) string {
	urls := strings.Split(list, ",")
	for i, text := range urls {
		scheme, rest, ok := strings.Cut(text, "://")
		if !ok {
			scheme, rest = "", text
		}
		at := strings.LastIndex(rest, "@")
		if at < 0 {
			continue
		}
		urls[i] = mask + "@" + rest[at+1:]
		if ok {
			urls[i] = scheme + "://" + urls[i]
		}
	}
	return strings.Join(urls, ",")
}

// shortDuration is 24h where time.Duration says 24h0m0s.
func shortDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// parseNATSURL accepts what nats.go does, host:port without a scheme included.
func parseNATSURL(text string) (*url.URL, error) {
	text = strings.TrimSpace(text)
	if !strings.Contains(text, "://") {
		text = "nats://" + text
	}
	return url.Parse(text)
}
