package main

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"futurebridge/internal/api"
)

var update = flag.Bool("update", false, "write docs/upstream-faults.md anew")

const faultsDoc = "../../docs/upstream-faults.md"

func TestTheFaultsOfTheUpstreamAreDocumented(t *testing.T) {
	want := document()
	if *update {
		require.NoError(t, os.WriteFile(faultsDoc, []byte(want), 0o644))
	}
	have, err := os.ReadFile(faultsDoc)
	require.NoError(t, err)
	require.Equal(t, want, string(have),
		"docs/upstream-faults.md differs from the table; write it anew with: go test ./cmd/bridge -run TestTheFaultsOfTheUpstreamAreDocumented -update")
}

// document is the table for people.
func document() string {
	var b strings.Builder
	b.WriteString(`# What the upstream can do wrong, and what comes of it

This is made of the table that ` + "`TestEachFaultOfTheUpstreamIsOutlived`" + ` (` + "`cmd/bridge`" + `) holds the bridge to; write it anew with
` + "`go test ./cmd/bridge -run TestTheFaultsOfTheUpstreamAreDocumented -update`" + `. Each fault is played to a request that never gets another
answer, to one that gets it once, and beside requests that get none. Of every one of them:

- The other requests end with the upstream's own bytes, and so does the one that meets the fault once, unless the table says that
  its first poll ends it.
- Connections and goroutines are given back. Nothing is sent to another host than the upstream, and no cookie.
- The log has one warning, ` + "`a fault of the upstream`" + `, with the request, the cause and what to do. While the same goes on, it has one
  more a minute, with how many there were; then one line when it was gone for a minute. Causes that differ in numbers, addresses and what is
  quoted are the same; of more than 48 at a time those are that want the same done. The API key is in none of these lines.
- Memory stays bounded when a thousand polls meet all of them at the same moment. What is resident beyond the start is at most
  ` + "`--result-memory`" + `, 80 KiB for each of ` + "`--max-polls`" + ` and 32 MiB of garbage, over HTTP/1.1 and over HTTP/2
  (` + "`TestAProcessStaysWithinItsMemory`" + `).

*Counts as* is the label of ` + "`bridge_polls_total`" + `. *May lose* says that an upstream which hands results out once may have handed one out to
that poll. *Ends as* is what becomes of a request that gets nothing else; its event\ntells the cause, as the log does. A poll that counts as ` + "`no_answer`" + ` is as good as pending: the
request is polled again at once.
`)
	section := func(title, text string, faults []upstreamFault) {
		fmt.Fprintf(&b, "\n## %s\n\n%s| fault | counts as | may lose | ends as | the bridge | logged, and told in the event |\n|---|---|---|---|---|---|\n", title, text)
		for _, f := range faults {
			b.WriteString(f.row())
		}
	}
	section("Connections and framing", "", connections())
	section("Bodies", "The id that an answer names is not compared with the one that was asked for: gateways have ids of their own.\n\n", bodies())
	section("Statuses", "No redirect is followed.\n\n", statuses())
	section("Waits", "A wait is kept within 0 and 5 minutes, counted in `bridge_odd_hints_total` when it cannot be granted as asked, and the longest of several counts.\nA poll comes no earlier, and a tenth later at most.\n\n", waits())
	section("HTTP/2", "All rows of above that are whole answers, or bodies that stall or never end, are played over HTTP/2 too, and come to the same. Here\npolls of several requests share a connection; what kills it makes each of them one more poll, and one that takes no poll within `--poll-timeout` is left for a new one.\n\n", http2Faults())
	section("What strikes everybody", "No request ends for it before its deadline. When key or bill is refused one poll at a time goes out until one is accepted, `/readyz` says why, and\nthe log has its own line; after 429 no poll goes out for a second, or for what `Retry-After` says, but one each ten seconds, which ends that\nif it is answered. While the upstream is tried out requests whose last poll was not at fault go first, and what is refused while others are\naccepted holds up itself alone (`TestRequestsThatGoWrongHoldNobodyUp`).\n\n", outages())

	b.WriteString("\n## What the log says to do\n\n| counts as | hint |\n|---|---|\n")
	for _, kind := range api.Kinds {
		o := api.Outcome{Kind: kind, Failure: &api.Failure{Type: api.APIStatus}}
		if mend := o.Mend(); mend != "" {
			fmt.Fprintf(&b, "| `%s` | %s |\n", kind, mend)
		}
	}
	o := api.Outcome{Kind: api.Refused, Failure: &api.Failure{Type: api.Validation}}
	fmt.Fprintf(&b, "| `%s`, over a limit | %s |\n", api.Refused, o.Mend())
	b.WriteString("\nOf `unreachable` it depends on the cause: a name, a certificate, TLS, nobody who listens, or the network.\n")
	return b.String()
}

func (f *upstreamFault) row() string {
	kinds := "`" + f.kind.String() + "`"
	for _, k := range f.also {
		kinds += ", `" + k.String() + "`"
	}
	lose := map[bool]string{true: "yes"}[f.lost]
	ends := f.ends
	switch {
	case f.everybody, f.ends == "timed_out":
		ends += " at its deadline"
	case f.polls == 1:
		ends += " at once"
	default:
		ends += fmt.Sprintf(" after %d polls", f.polls)
	}
	cause := cmp.Or(f.cause, "–")
	if f.wait > 0 {
		cause += fmt.Sprintf("; polls again after %v", f.wait)
	}
	bridge := "goes on"
	switch {
	case !f.everybody:
	case f.kind == api.Unauthorized:
		bridge = "holds, one probe at a time"
	case f.kind == api.Throttled:
		bridge = "pauses"
	default:
		bridge = "probes, then starts slowly"
	}
	clean := strings.NewReplacer("|", `\|`, "<", "&lt;", "\n", " ")
	return fmt.Sprintf("| %s | %s | %s | %s | %s | %s |\n", f.name, kinds, lose, ends, bridge, clean.Replace(cause))
}
