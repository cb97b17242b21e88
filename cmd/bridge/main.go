// Command bridge polls "retrieve future" APIs so that nobody else has to: ids come in on a NATS subject,
// queue-state transitions and results go out on each request's own subjects.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"unicode"

	"github.com/alecthomas/kong"

	"futurebridge/client"
	"futurebridge/internal/bench"
)

// Exit codes are a contract: scripts branch on them.
const (
	exitFailed   = 1 // the command could not do its work
	exitUsage    = 2 // a flag, argument, environment value or config line is wrong
	exitReqFail  = 3 // `result`, `wait`: the request failed
	exitReqEnded = 4 // `result`, `wait`: it timed out, expired, was lost or cancelled
	exitNotYet   = 5 // `result`: there is no result yet; `wait`: none within --timeout
)

// exitError carries the exit code that an error asks for; without one the code is exitFailed.
// An exitError with a nil err says nothing more on stderr.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Errorf(format, args...)}
}

// stdio is what a command reads and writes: data on out, talk on err.
type stdio struct {
	in  io.Reader
	out io.Writer
	err io.Writer
}

type commands struct {
	Demo     demoCmd     `cmd:"" help:"Show everything at work, in under a minute, with nothing installed."`
	Serve    serveCmd    `cmd:"" help:"Run the bridge: take request ids, poll them, publish states and results."`
	Simulate simulateCmd `cmd:"" help:"Run a scripted upstream, to try things against."`
	Submit   submitCmd   `cmd:"" help:"Hand request ids to the bridges."`
	Result   resultCmd   `cmd:"" help:"Print the result that is stored now."`
	Wait     waitCmd     `cmd:"" help:"Wait for results."`
	Watch    watchCmd    `cmd:"" help:"Follow queue states and ends as they come, from the start of each log."`
	Streams  streamsCmd  `cmd:"" help:"Print streams and consumer as configuration, for an admin to make them."`
	Bench    benchCmd    `cmd:"" help:"Measure the bridge on this machine."`

	BenchNATS benchNATSCmd `cmd:"" name:"bench-nats" hidden:""`
	BenchLoop benchLoopCmd `cmd:"" name:"bench-loop" hidden:""`
}

func main() {
	// Only the first signal is caught here: it drains. Commands that drain listen for the second themselves.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	profiled := bench.ProfileThisProcess()
	code := report(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr), os.Stderr)
	profiled()
	stop()
	os.Exit(code)
}

// report tells err, one line for each thing that is wrong, and returns the exit code that it asks for.
func report(err error, stderr io.Writer) (code int) {
	if err == nil {
		return 0
	}
	exit := &exitError{exitFailed, err}
	errors.As(err, &exit)
	if exit.err != nil {
		tell(err, stderr)
	}
	return exit.code
}

// tell is one line for each of the errors that err may be of. What an upstream wrote is one line at most.
func tell(err error, stderr io.Writer) {
	lines := strings.Split(strings.TrimRight(err.Error(), "\n"), "\n")
	if errors.As(err, new(*client.RequestError)) {
		lines = []string{err.Error()}
	}
	for _, line := range lines {
		fmt.Fprintln(stderr, "bridge:", harmless(line))
	}
}

// harmless quotes what a terminal would act upon, or not show.
func harmless(text string) string {
	var b strings.Builder
	for _, r := range text {
		if unicode.IsPrint(r) {
			b.WriteRune(r)
		} else {
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		}
	}
	return b.String()
}

func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	var cmds commands
	parsed, err := parse(&cmds, args, stdout, stderr)
	if err != nil || parsed == nil {
		return err
	}
	parsed.BindTo(ctx, (*context.Context)(nil))
	return parsed.Run(stdio{stdin, stdout, stderr})
}

// parse fills the selected command of grammar from flags, environment, config file and defaults and checks it. Its
// errors have exitUsage and one line for each thing that is wrong. After --help it returns nil, nil.
func parse(grammar any, args []string, stdout, stderr io.Writer) (*kong.Context, error) {
	helped := false
	from := newSources()
	parser, err := kong.New(grammar, append(mappers(),
		kong.Name("bridge"),
		kong.Description("Publish a request id; a durable service polls it and streams its queue states and its result to that request's own subjects."),
		kong.Writers(stdout, stderr),
		kong.Exit(func(int) { helped = true }),
		kong.ExplicitGroups(helpGroups),
		kong.ValueFormatter(helpLine),
		kong.Resolvers(from),
	)...)
	if err != nil {
		return nil, err
	}
	showEnv(parser)
	if len(args) == 0 {
		args = []string{"--help"}
	}
	parsed, err := parser.Parse(args)
	if helped {
		return nil, nil
	}
	if err != nil {
		if value := new(valueError); errors.As(err, &value) && value.label != "" {
			return nil, &exitError{exitUsage, value} // without the flag's name, which kong puts in front
		} else if errors.As(err, &value) {
			return nil, &exitError{exitUsage, err}
		}
		return nil, usagef("%w (see bridge %s--help)", err, chosen(parser, args))
	}
	for _, step := range parsed.Path {
		if step.Flag != nil && !step.Resolved {
			from.given[step.Flag.Name] = origin{byFlag, "--" + step.Flag.Name}
		}
	}
	command := parsed.Selected().Target.Addr().Interface()
	if c, ok := command.(interface{ setGiven(given) }); ok {
		c.setGiven(from.given)
	}
	if c, ok := command.(interface{ validate() error }); ok {
		if err := c.validate(); err != nil {
			return nil, &exitError{exitUsage, err}
		}
	}
	return parsed, nil
}

// chosen is the command that args name, for pointing at its help.
func chosen(parser *kong.Kong, args []string) string {
	for _, command := range parser.Model.Children {
		if command.Name == args[0] {
			return args[0] + " "
		}
	}
	return ""
}

// helpGroups order the flags of --help.
var helpGroups = []kong.Group{
	{Key: natsGroup, Title: "NATS:"},
	{Key: "embedded", Title: "A NATS server of its own:"},
	{Key: "upstream", Title: "Upstream:"},
	{Key: "streams", Title: "Streams and consumer (not given: as they stand):"},
	{Key: "requests", Title: "Requests:"},
	{Key: "polling", Title: "Polling:"},
	{Key: "results", Title: "Results:"},
	{Key: "observing", Title: "Observing:"},
}
