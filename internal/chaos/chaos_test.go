//go:build unix

package chaos

import (
	"fmt"
	"io"
	"os"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/stretchr/testify/require"

	"futurebridge/internal/history"
)

// Scenario is one way to break things. Run breaks them, judges what is left, and adds both to its row.
type Scenario struct {
	Name  string
	Run   func(t *testing.T, row *Row)
	Alone bool // in full it needs the machine for itself; else it runs beside others
}

// scenarios are all there are, in the order of the table.
var scenarios = []Scenario{
	{Name: "leaders of a cluster", Run: clusterLeaders, Alone: true},
	{Name: "a server is killed", Run: serverKills},
	{Name: "crash at each step", Run: crashMatrix},
	{Name: "lost acknowledgements", Run: lostAcks},
	{Name: "half-open connections", Run: halfOpen},
	{Name: "reconnect storms", Run: reconnects},
	{Name: "zombies", Run: zombies},
	{Name: "two holders", Run: twoHolders},
	{Name: "no space", Run: noSpace},
	{Name: "lame duck", Run: lameDuck},
}

// Row is what came of a scenario. It is safe for concurrent use.
type Row struct {
	mu                                       sync.Mutex
	accepted, terminal                       int
	lost, duplicate, afterTerminal, disorder int
	faults                                   int
	took                                     time.Duration
}

// Add counts a verdict, and the faults under which it came about.
func (r *Row) Add(report history.Report, faults int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.accepted += report.Accepted
	r.terminal += report.Terminal
	r.lost += report.Lost
	r.duplicate += report.Duplicate
	r.afterTerminal += report.AfterTerminal
	r.disorder += report.Disordered
	r.faults += faults
}

// TestChaos runs the scenarios, once or for as long as is asked, and prints a table of them.
func TestChaos(t *testing.T) {
	rows := make([]Row, len(scenarios))
	for begin := time.Now(); ; *seed++ {
		round := time.Now()
		fmt.Printf("chaos: -chaos.seed=%d\n", *seed)
		passed := t.Run("scenarios", func(t *testing.T) { runScenarios(t, rows) })
		if !passed || time.Since(begin)+time.Since(round) > *lasts {
			break
		}
	}
	printTable(os.Stdout, rows)
	for i := range rows {
		if r := &rows[i]; r.took > 0 { // else -run has left it out
			require.NotZero(t, r.accepted, "%s: nothing was accepted", scenarios[i].Name)
			require.NotZero(t, r.faults, "%s: no fault was injected", scenarios[i].Name)
			require.Equal(t, r.accepted, r.terminal, scenarios[i].Name)
		}
	}
}

func runScenarios(t *testing.T, rows []Row) {
	for i, s := range scenarios {
		t.Run(s.Name, func(t *testing.T) {
			if !s.Alone || !*full {
				t.Parallel()
			}
			begin := time.Now()
			t.Cleanup(func() { rows[i].took += time.Since(begin) })
			s.Run(t, &rows[i])
		})
	}
}

func printTable(to io.Writer, rows []Row) {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "scenario\taccepted\tterminal\tlost\tduplicate\tafter terminal\tdisorder\tfaults\tseconds\t")
	for i := range rows {
		if r := &rows[i]; r.took > 0 {
			fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%.1f\t\n", scenarios[i].Name, r.accepted, r.terminal, r.lost, r.duplicate,
				r.afterTerminal, r.disorder, r.faults, r.took.Seconds())
		}
	}
	_ = w.Flush()
}
