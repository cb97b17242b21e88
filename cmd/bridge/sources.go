package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/alecthomas/kong"
	"go.yaml.in/yaml/v3"
)

// rank orders who gave a value, for flags that exclude each other: the one given with more purpose holds.
type rank int

const (
	byDefault  rank = iota
	byOtherEnv      // a variable that other programs read too, such as NATS_URL
	byFile
	byEnv
	byFlag
)

// origin is where a flag's value comes from; label is what an error calls it.
type origin struct {
	rank  rank
	label string
}

// given holds the flags that somebody gave, by name.
type given map[string]origin

func (g given) has(flag string) bool  { return g[flag].rank > byDefault }
func (g given) rank(flag string) rank { return g[flag].rank }

func (g given) label(flag string) string {
	if o, ok := g[flag]; ok {
		return o.label
	}
	return "--" + flag
}

// complaint says what is wrong with the value of a flag, and how to mend it.
type complaint func(flag, format string, args ...any)

// errorf is an error about the value of flag, named as it was given.
func (g given) errorf(flag, format string, args ...any) error {
	return &valueError{g.label(flag), fmt.Sprintf(format, args...)}
}

// sources is the kong resolver behind every flag that the command line does not give: flag > environment > config
// file > default. The environment counts for `serve` and for the NATS flags of every command; an empty variable is
// none at all.
type sources struct {
	given  given
	loaded bool
	file   string
	nodes  map[string]*yaml.Node // the config file's values by key
}

func newSources() *sources { return &sources{given: given{}} }

func envName(flag string) string {
	return "BRIDGE_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// envNames are the variables that give a flag's value, the first one wins.
func envNames(flag *kong.Flag) []string {
	names := []string{envName(flag.Name)}
	if further := flag.Tag.Get("further"); further != "" {
		names = append(names, further)
	}
	return names
}

func configurable(command string, flag *kong.Flag) bool {
	return flag.Name != "help" && (command == "serve" || flag.Group != nil && flag.Group.Key == natsGroup)
}

// showEnv makes --help name the variables.
func showEnv(k *kong.Kong) {
	for _, command := range k.Model.Children {
		for _, flag := range command.Flags {
			if configurable(command.Name, flag) {
				flag.Envs = envNames(flag)
			}
		}
	}
}

// helpLine is a flag's help with its variables, and its default where the placeholder hides it.
func helpLine(v *kong.Value) string {
	line := v.Help
	if v.Flag == nil {
		return line
	}
	if v.HasDefault && v.Flag.PlaceHolder != "" {
		line += " Default: " + v.Default + "."
	}
	if len(v.Flag.Envs) > 0 {
		line += " ($" + strings.Join(v.Flag.Envs, ", $") + ")"
	}
	return line
}

func (s *sources) Validate(*kong.Application) error { return nil }

func (s *sources) Resolve(ctx *kong.Context, parent *kong.Path, flag *kong.Flag) (any, error) {
	if parent.Command == nil || !configurable(parent.Command.Name, flag) {
		return nil, nil
	}
	if err := s.load(ctx, parent); err != nil {
		return nil, err
	}
	for i, name := range envNames(flag) {
		value := os.Getenv(name)
		if value == "" {
			continue
		}
		o := origin{byEnv, name}
		if i > 0 {
			o.rank = byOtherEnv
		}
		return value, s.try(flag, value, o)
	}
	node, ok := s.nodes[flag.Name]
	if !ok {
		return nil, nil
	}
	o := origin{byFile, fmt.Sprintf("%s:%d: %s", s.file, node.Line, flag.Name)}
	value, err := fileValue(flag, node)
	if err != nil {
		return nil, &valueError{o.label, err.Error()}
	}
	return value, s.try(flag, value, o)
}

// try parses the value as kong will, for an error that names where it came from, and notes that it was given.
func (s *sources) try(flag *kong.Flag, value any, o origin) error {
	scratch := reflect.New(flag.Target.Type()).Elem()
	scan := kong.Scan().PushTyped(value, kong.FlagValueToken)
	if err := flag.Mapper.Decode(&kong.DecodeContext{Value: flag.Value, Scan: scan}, scratch); err != nil {
		return &valueError{o.label, err.Error()}
	}
	if enum := flag.EnumSlice(); flag.Enum != "" && !slices.Contains(enum, fmt.Sprint(scratch.Interface())) {
		return &valueError{o.label, fmt.Sprintf("%q is not one of %s", value, strings.Join(enum, ", "))}
	}
	s.given[flag.Name] = o
	return nil
}

// load reads the file of --config once.
func (s *sources) load(ctx *kong.Context, parent *kong.Path) error {
	if s.loaded {
		return nil
	}
	s.loaded = true
	known := map[string]bool{}
	label := "--config"
	for _, flag := range parent.Flags {
		switch flag.Name {
		case "config":
			if s.file, _ = ctx.FlagValue(flag).(string); s.file == "" {
				label = envNames(flag)[0]
				s.file = os.Getenv(label)
			}
		case "help", "print-config":
		default:
			known[flag.Name] = true
		}
	}
	if s.file == "" {
		return nil
	}
	text, err := os.ReadFile(s.file)
	if err != nil {
		return &valueError{label, fmt.Sprintf("%v; name a YAML file that can be read", err)}
	}
	s.nodes, err = parseConfig(s.file, text, known)
	return err
}

// parseConfig reads YAML whose keys are flag names. Its errors begin with file:line.
func parseConfig(file string, text []byte, known map[string]bool) (map[string]*yaml.Node, error) {
	at := func(line int, format string, args ...any) error {
		return &valueError{fmt.Sprintf("%s:%d", file, line), fmt.Sprintf(format, args...)}
	}
	var doc, more yaml.Node
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	if err := decoder.Decode(&doc); err != nil {
		if len(bytes.TrimSpace(text)) == 0 || errors.Is(err, io.EOF) {
			return nil, nil // nothing, or nothing but comments
		}
		line, reason := 1, strings.TrimPrefix(err.Error(), "yaml: ")
		if n, _ := fmt.Sscanf(reason, "line %d:", &line); n == 1 {
			_, reason, _ = strings.Cut(reason, ": ")
		}
		return nil, at(line, "not YAML: %s; write one `flag: value` a line", reason)
	}
	if err := decoder.Decode(&more); err == nil {
		return nil, at(more.Line, "a second document begins here; put everything into one")
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		return nil, at(root.Line, "want one `flag: value` a line, such as `max-polls: 256`")
	}
	nodes := map[string]*yaml.Node{}
	for i := 0; i < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		switch {
		case key.Value == "api-key":
			return nil, at(key.Line, "api-key: the key itself does not belong here; use api-key-file, or BRIDGE_API_KEY in the environment")
		case !known[key.Value]:
			return nil, at(key.Line, "%s: no such setting%s", key.Value, nearest(key.Value, known))
		case nodes[key.Value] != nil:
			return nil, at(key.Line, "%s: already set in line %d; delete one of the two", key.Value, nodes[key.Value].Line)
		}
		if value.Kind == yaml.AliasNode {
			value = value.Alias
		}
		nodes[key.Value] = value
		value.Line = key.Line // errors name the line of the key
	}
	return nodes, nil
}

// fileValue checks a YAML value against the flag's type; a text that only looks right is told apart from a number.
func fileValue(flag *kong.Flag, node *yaml.Node) (any, error) {
	t := flag.Target.Type()
	if t == reflect.TypeFor[headers]() && node.Kind == yaml.SequenceNode {
		lines := []string{}
		for _, item := range node.Content {
			if item.Kind != yaml.ScalarNode {
				return nil, errors.New("want a list of Name=value")
			}
			lines = append(lines, item.Value)
		}
		return lines, nil
	}
	var tags []string
	var want string
	switch {
	case t == reflect.TypeFor[time.Duration]():
		tags, want = []string{"!!str"}, "a duration such as 90s, 2m or 24h"
	case t == reflect.TypeFor[byteSize]():
		tags, want = []string{"!!str", "!!int"}, "a size such as 512KiB or 64MiB"
	case t.Kind() == reflect.Int:
		tags, want = []string{"!!int"}, "a whole number, without quotes"
	case t.Kind() == reflect.Float64:
		tags, want = []string{"!!int", "!!float"}, "a number, without quotes"
	case t.Kind() == reflect.Bool:
		tags, want = []string{"!!bool"}, "true or false"
	case t == reflect.TypeFor[headers]():
		tags, want = []string{"!!str"}, "a list of Name=value"
	default:
		tags, want = []string{"!!str"}, "a text; put it in quotes"
	}
	if node.Kind != yaml.ScalarNode || !slices.Contains(tags, node.ShortTag()) {
		return nil, fmt.Errorf("want %s", want)
	}
	return node.Value, nil
}

// nearest suggests the known name that shares the longest beginning and end with a wrong one.
func nearest(name string, known map[string]bool) string {
	best, score := "", 2
	for _, candidate := range slices.Sorted(maps.Keys(known)) {
		n := min(len(name), len(candidate))
		head, tail := 0, 0
		for head < n && name[head] == candidate[head] {
			head++
		}
		for tail < n-head && name[len(name)-1-tail] == candidate[len(candidate)-1-tail] {
			tail++
		}
		if head+tail > score {
			best, score = candidate, head+tail
		}
	}
	if best == "" {
		return "; settings are named like the flags of bridge serve --help, without dashes in front"
	}
	return fmt.Sprintf("; did you mean %s?", best)
}
