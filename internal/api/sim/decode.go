package sim

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"
)

// Load reads the script in a file. See Parse.
func Load(path string) (Script, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Script{}, err
	}
	script, err := Parse(data)
	if err != nil {
		return Script{}, fmt.Errorf("%s: %w", path, err)
	}
	return script, nil
}

// Parse reads a script strictly: every error names the key by its path and says how to mend it.
func Parse(data []byte) (Script, error) {
	var script Script
	if err := json.Unmarshal(data, new(json.RawMessage)); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			line := 1 + bytes.Count(data[:min(int(syntax.Offset), len(data))], []byte("\n"))
			return Script{}, fmt.Errorf("line %d is not JSON: %w", line, err)
		}
		return Script{}, err
	}
	d := decoder{style: &script.Style}
	if err := d.value("", data, reflect.ValueOf(&script).Elem()); err != nil {
		return Script{}, err
	}
	return script, script.Check()
}

// decoder fills a Script from JSON. encoding/json alone can neither name the path of an unknown key nor start one
// value from another; with this, fields stay plain (time.Duration, strings) for scripts written in Go.
type decoder struct{ style *Style }

func (d decoder) value(path string, raw json.RawMessage, v reflect.Value) error {
	raw = bytes.TrimSpace(raw)
	if v.Type() == reflect.TypeFor[JSON]() {
		v.SetString(string(raw))
		return nil
	}
	if string(raw) == "null" {
		return nil
	}
	switch target := v.Addr().Interface().(type) {
	case *time.Duration:
		var text string
		err := json.Unmarshal(raw, &text)
		if err == nil {
			*target, err = time.ParseDuration(text)
		}
		if err != nil || *target < 0 {
			return fmt.Errorf(`%s: %s is not a duration: write it like "1500ms" or "3s"`, path, raw)
		}
		return nil
	case *Text:
		var text string
		if json.Unmarshal(raw, &text) != nil {
			text = string(raw)
		}
		*target = Text(text)
		return nil
	case **Style:
		// A profile's style is written as a difference to the script's.
		style := *d.style
		*target = &style
		return d.value(path, raw, v.Elem())
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		return d.value(path, raw, v.Elem())
	case reflect.Struct:
		return d.object(path, raw, v)
	case reflect.Map:
		var values map[string]json.RawMessage
		if json.Unmarshal(raw, &values) != nil {
			return fmt.Errorf("%s: %s is not an object: write it in { }", path, short(raw))
		}
		v.Set(reflect.MakeMap(v.Type()))
		for key, raw := range values {
			element := reflect.New(v.Type().Elem()).Elem()
			if err := d.value(join(path, key), raw, element); err != nil {
				return err
			}
			v.SetMapIndex(reflect.ValueOf(key), element)
		}
	case reflect.Slice:
		var values []json.RawMessage
		if json.Unmarshal(raw, &values) != nil {
			return fmt.Errorf("%s: %s is not a list: write it in [ ]", path, short(raw))
		}
		v.Set(reflect.MakeSlice(v.Type(), len(values), len(values)))
		for i, raw := range values {
			if err := d.value(fmt.Sprintf("%s[%d]", path, i), raw, v.Index(i)); err != nil {
				return err
			}
		}
	default:
		if json.Unmarshal(raw, v.Addr().Interface()) != nil {
			return fmt.Errorf("%s: %s does not fit: write %s", path, short(raw), wanted(v.Kind()))
		}
	}
	return nil
}

func (d decoder) object(path string, raw json.RawMessage, v reflect.Value) error {
	dec := json.NewDecoder(bytes.NewReader(raw))
	if token, _ := dec.Token(); token != json.Delim('{') {
		if path == "" {
			path = "the script"
		}
		return fmt.Errorf("%s: %s is not an object: write it in { }", path, short(raw))
	}
	values := make(map[string]json.RawMessage)
	for dec.More() {
		token, err := dec.Token()
		if err != nil {
			return err
		}
		key := token.(string)
		if _, twice := values[key]; twice {
			return fmt.Errorf("%s: the key stands twice: remove one", join(path, key))
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return err
		}
		values[key] = value
	}
	// In the order of the fields, not of the file: the script's style comes before the profiles that build on it.
	var known []string
	for i := range v.NumField() {
		key := v.Type().Field(i).Tag.Get("json")
		known = append(known, key)
		if value, ok := values[key]; ok {
			if err := d.value(join(path, key), value, v.Field(i)); err != nil {
				return err
			}
			delete(values, key)
		}
	}
	if len(values) == 0 {
		return nil
	}
	key := slices.Min(slices.Collect(maps.Keys(values)))
	return fmt.Errorf("%s: unknown key: %s", join(path, key), suggest(key, known))
}

// suggest names the known key that is one typing mistake away, or all of them.
func suggest(key string, known []string) string {
	for _, k := range known {
		if distance(strings.ToLower(key), k) <= 2 {
			return fmt.Sprintf("did you mean %q?", k)
		}
	}
	known = slices.Clone(known)
	slices.Sort(known)
	return "the keys here are " + strings.Join(known, ", ")
}

// distance is the number of edits between two short strings.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			substitute := diagonal
			if a[i] != b[j] {
				substitute++
			}
			diagonal = row[j+1]
			row[j+1] = min(substitute, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func short(raw []byte) string {
	if len(raw) > 40 {
		return string(raw[:40]) + "…"
	}
	return string(raw)
}

func wanted(kind reflect.Kind) string {
	switch kind {
	case reflect.String:
		return "a string in quotes"
	case reflect.Bool:
		return "true or false"
	case reflect.Float64:
		return "a number"
	case reflect.Uint64:
		return "a whole number from 0 on"
	default:
		return "a whole number"
	}
}
