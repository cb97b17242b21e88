package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/dustin/go-humanize"
)

// Print writes the figures as a table, or as JSON.
func (r *Report) Print(w io.Writer, asJSON bool) error {
	if asJSON {
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		return encoder.Encode(r)
	}
	fmt.Fprintf(w, "%d CPUs, %s, %s, seed %d\n", r.CPUs, r.System, r.Go, r.Seed)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, result := range r.Scenarios {
		fmt.Fprintf(t, "\n%s, %s requests: %s\n", result.Scenario, count(result.Requests), result.Case)
		for _, f := range result.Figures {
			fmt.Fprintf(t, "  %s\t%s\n", f.Name, strings.TrimSpace(digits(f.Value)+" "+f.Unit))
		}
	}
	return t.Flush()
}

// costs are the rows of a worker, the NATS server and the upstream.
func costs[T any](worker string, turns []T, now func(T) spent) []Figure {
	return slices.Concat(
		cost(worker, turns, func(t T) usage { return now(t).worker }),
		cost("NATS server", turns, func(t T) usage { return now(t).server }),
		cost("upstream", turns, func(t T) usage { return now(t).upstream }),
	)
}

// cost are the rows of a process, medians of what it took from its start on: with starting, and with what was stored before.
func cost[T any](process string, turns []T, now func(T) usage) []Figure {
	return []Figure{
		{process + ": CPU time", of(turns, func(t T) float64 { return now(t).cpu }), "s"},
		{process + ": peak memory", of(turns, func(t T) float64 { return now(t).peak }) / mb, "MB"},
	}
}

func count(n int) string { return humanize.Comma(int64(n)) }

// digits is a value with three digits that count, and no fraction beyond 100.
func digits(v float64) string {
	switch size := math.Abs(v); {
	case size >= 100:
		return count(int(math.Round(v)))
	case size >= 10:
		return fmt.Sprintf("%.1f", v)
	case size >= 1 || size == 0:
		return fmt.Sprintf("%.2f", v)
	default:
		return fmt.Sprintf("%.3g", v)
	}
}
