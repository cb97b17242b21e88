package main

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kong"
	"github.com/dustin/go-humanize"
)

// valueError says what is wrong with the value of one flag, whoever gave it, and how to mend it. It never repeats a
// value that may be a secret.
type valueError struct {
	label string // --flag, environment variable or file:line: key; empty while kong's own prefix names the flag
	text  string
}

func (e *valueError) Error() string {
	if e.label == "" {
		return e.text
	}
	return e.label + ": " + e.text
}

func badValue(format string, args ...any) error {
	return &valueError{text: fmt.Sprintf(format, args...)}
}

// byteSize is a number of bytes, written as 512KiB or 64MiB.
type byteSize int64

func (b *byteSize) UnmarshalText(text []byte) error {
	n, err := humanize.ParseBytes(string(text))
	if err != nil || n > math.MaxInt64 {
		return badValue("%q is not a size; give one such as 512KiB, 64MiB or 1GiB", text)
	}
	*b = byteSize(n)
	return nil
}

// String is exact: it uses the largest unit that leaves no remainder.
func (b byteSize) String() string {
	unit, n := 0, int64(b)
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	for n != 0 && n%1024 == 0 && unit < len(units)-1 {
		n /= 1024
		unit++
	}
	return strconv.FormatInt(n, 10) + units[unit]
}

// header is one K=V.
type header struct{ name, value string }

// headers collects --upstream-header. Values are taken as they are, with commas and equals signs.
type headers []header

// Decode takes one K=V a flag, a list from the config file, and one a line from the environment.
func (h *headers) Decode(ctx *kong.DecodeContext) error {
	token, err := ctx.Scan.PopValue("header")
	if err != nil {
		return badValue("needs a value, such as X-Team=research")
	}
	var lines []string
	switch v := token.Value.(type) {
	case []string:
		lines = v
	default:
		for line := range strings.Lines(token.String()) {
			lines = append(lines, strings.TrimRight(line, "\r\n"))
		}
	}
	for _, line := range lines {
		name, value, ok := strings.Cut(line, "=")
		if !ok || !isToken(name) {
			return badValue("want a header as Name=value, such as X-Team=research")
		}
		*h = append(*h, header{name, value})
	}
	return nil
}

// isToken says whether s can be the name of an HTTP header (RFC 9110, token).
func isToken(s string) bool {
	for _, r := range s {
		if r > 126 || r <= ' ' || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r) {
			return false
		}
	}
	return s != ""
}

// isHeaderValue says whether s can be the value of an HTTP header.
func isHeaderValue(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' && s[i] != '\t' || s[i] == 127 {
			return false
		}
	}
	return true
}

// mappers replaces kong's parsers where their errors do not say what to write instead.
func mappers() []kong.Option {
	return []kong.Option{
		kong.TypeMapper(reflect.TypeFor[time.Duration](), parseValue("2m", func(s string) (time.Duration, error) {
			d, err := time.ParseDuration(s)
			if err != nil {
				return 0, badValue("%q is not a duration; give one such as 500ms, 90s, 2m or 24h", s)
			}
			return d, nil
		})),
		kong.TypeMapper(reflect.TypeFor[byteSize](), parseValue("64MiB", func(s string) (b byteSize, err error) {
			return b, b.UnmarshalText([]byte(s))
		})),
		kong.KindMapper(reflect.Int, parseValue("1000", func(s string) (int, error) {
			n, err := strconv.Atoi(s)
			if errors.Is(err, strconv.ErrRange) {
				return 0, badValue("%q is too large a number", s)
			}
			if err != nil {
				return 0, badValue("%q is not a whole number; give one such as 1000", s)
			}
			return n, nil
		})),
		kong.KindMapper(reflect.Float64, parseValue("100", func(s string) (float64, error) {
			f, err := strconv.ParseFloat(s, 64)
			if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
				return 0, badValue("%q is not a number; give one such as 100 or 0.5", s)
			}
			return f, nil
		})),
		kong.KindMapper(reflect.Bool, boolMapper{}),
	}
}

func parseValue[T any](example string, parse func(string) (T, error)) kong.MapperFunc {
	return func(ctx *kong.DecodeContext, target reflect.Value) error {
		token, err := ctx.Scan.PopValue("value")
		if err != nil {
			return badValue("needs a value, such as %s", example)
		}
		v, err := parse(token.String())
		if err != nil {
			return err
		}
		target.Set(reflect.ValueOf(v).Convert(target.Type()))
		return nil
	}
}

type boolMapper struct{}

func (boolMapper) IsBool() bool { return true }

func (boolMapper) Decode(ctx *kong.DecodeContext, target reflect.Value) error {
	if ctx.Scan.Peek().Type != kong.FlagValueToken { // a bare --flag
		target.SetBool(true)
		return nil
	}
	token := ctx.Scan.Pop()
	v, err := strconv.ParseBool(fmt.Sprint(token.Value))
	if err != nil {
		return badValue("%q is neither true nor false", token)
	}
	target.SetBool(v)
	return nil
}
