//go:build unix

package chaos

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"futurebridge/internal/history"
)

// broken is the bridge with one rule of the delivery protocol broken: in a file of its source a piece of text, which
// has to be there once, gives way to another.
type broken struct {
	name      string
	file      string
	old, new  string
	scenario  string // that is meant for it, as -run takes it
	full      bool   // only in full, for longer, is it hard enough
	violation string // what the scenario has to say
}

var brokenBridges = []broken{
	{
		name: "acknowledges before the result is stored", file: "internal/poll/attempt.go",
		old: "if err := e.cfg.Sink.Finish(", new: "r.Lease.Ack()\n\tif err := e.cfg.Sink.Finish(",
		scenario: "crash at each step/^a result is about to be sent", violation: rule(history.OneResult) + "it has none",
	},
	{
		name: "acknowledges between result and closing record", file: "internal/publish/publisher.go",
		old: "\treturn p.close(ctx, r, end)\n}\n\n// Conclude", new: "\tr.Lease.Ack()\n\treturn p.close(ctx, r, end)\n}\n\n// Conclude",
		scenario: "crash at each step/^a closing record is about to be sent", violation: rule(history.OneClosing) + "it has none",
	},
	{
		name: "publishes with a message id and no fence", file: "internal/publish/message.go",
		old:      "{nats.ExpectedLastSubjSeqHdr, expected},\n\t\t{expectedSubjectHdr, subject},\n",
		scenario: "zombies/^result, until another has finished", violation: rule(history.OneResult) + "it has another",
	},
	{
		name: "publishes a result again without its expectation", file: "internal/publish/ack.go",
		old:      "reply, err := p.replies.ask(ctx, msg)",
		new:      "if attempt > 0 && kindOf(msg.Subject) == kindOf(ingest(p.names.Result(\"x\"))) {\n\tmsg.Header.Del(nats.ExpectedLastSubjSeqHdr)\n\tmsg.Header.Del(expectedSubjectHdr)\n}\nreply, err := p.replies.ask(ctx, msg)",
		scenario: "lost acknowledgements/^result", full: true, violation: rule(history.OneResult) + "it has another",
	},
	{
		name: "publishes a refused state on top", file: "internal/publish/publisher.go",
		old: "\t\treturn p.Conclude(ctx, r)\n", new: "\t\tt.Previous = r.State.QueueState\n",
		scenario: "two holders", violation: rule(history.Order),
	},
	{
		name: "takes an unknown outcome for a failure", file: "internal/publish/ack.go",
		old: "case ctx.Err() != nil:\n\t\t\treturn ack{}, ctx.Err()", new: "case verdict == \"unknown\":\n\t\t\treturn ack{}, why",
		scenario: "lost acknowledgements/^result", violation: "its result was in hand, and was asked for again",
	},
	{
		name: "does not read what is stored at a delivery", file: "cmd/bridge/bridge.go",
		old: "b.publisher.Lookup(ctx, requests)", new: "make([]bool, len(requests)), error(nil)",
		scenario: "crash at each step/^a closing record is about to be sent", violation: "had its result stored, and was polled again",
	},
	{
		name: "goes on polling when its trust has run out", file: "internal/intake/lease.go",
		old: "return age < l.keeper.trust()", new: "return age < 1<<61",
		scenario: "zombies/^extension, until another has taken over", violation: "polls of one bridge between those of another",
	},
	{
		name: "hands nothing back when it drains", file: "internal/intake/lease.go",
		old:      "_ = l.keeper.nc.Publish(l.subject(), how)",
		scenario: "crash at each step/^a drain hands back", violation: "the bridge ended before the point was reached",
	},
}

func rule(r history.Rule) string { return ": " + string(r) + ": " }

// TestABrokenBridgeIsCaught has this program play a scenario with a broken bridge, which has to fail by what is broken.
// TestChaos shows that the bridge itself passes it. In a slice one of those that a slice catches has its turn.
func TestABrokenBridgeIsCaught(t *testing.T) {
	all := slices.Clone(brokenBridges)
	if !*full && *lasts == 0 {
		all = slices.DeleteFunc(all, func(b broken) bool { return b.full })
		at := chance("broken").IntN(len(all))
		all = all[at : at+1]
	}
	nats, err := natsProgram()
	require.NoError(t, err)
	for _, b := range all {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			args := []string{
				"-test.run", "^TestChaos$/^scenarios/" + strings.ReplaceAll(b.scenario, " ", "_"), "-test.timeout", "5m", fmt.Sprint("-chaos.full=", b.full),
				"-chaos.for", "1m", // until it fails: on a slow machine the faults may once miss their moment
				fmt.Sprint("-chaos.seed=", *seed), "-chaos.nats", nats, "-chaos.bridge", b.build(t),
			}
			out, err := exec.CommandContext(t.Context(), os.Args[0], args...).CombinedOutput()
			var failed *exec.ExitError
			require.ErrorAs(t, err, &failed, "%s", out)
			require.Contains(t, string(out), b.violation)
			require.NotContains(t, string(out), "panic:")
			fmt.Printf("chaos: a bridge that %s fails %q: %s\n", b.name, strings.ReplaceAll(b.scenario, "/^", ": "), strings.Trim(b.violation, ": "))
		})
	}
}

func (b broken) build(t *testing.T) string {
	path, err := filepath.Abs(filepath.Join("..", "..", b.file))
	require.NoError(t, err)
	source, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, 1, strings.Count(string(source), b.old), "%s has not, once, the text %q", b.file, b.old)

	dir := t.TempDir()
	changed := filepath.Join(dir, "changed.go")
	require.NoError(t, os.WriteFile(changed, []byte(strings.Replace(string(source), b.old, b.new, 1)), 0o600))
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {path: changed}})
	require.NoError(t, err)
	list := filepath.Join(dir, "overlay.json")
	require.NoError(t, os.WriteFile(list, overlay, 0o600))
	program, err := build("futurebridge/cmd/bridge", "-overlay", list)
	require.NoError(t, err)
	return program
}
