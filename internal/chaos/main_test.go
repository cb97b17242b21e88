//go:build unix

package chaos

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"go.uber.org/goleak"
)

var (
	full   = flag.Bool("chaos.full", false, "run everything in full, for minutes, instead of a slice")
	lasts  = flag.Duration("chaos.for", 0, "run it again, each time with the next seed, as often as fits into this time")
	with   = flag.String("chaos.bridge", "", "a program to test instead of the bridge that is built here, such as one that is broken on purpose")
	server = flag.String("chaos.nats", "", "a NATS server to use instead of the one that is built here")
	seed   = flag.Uint64("chaos.seed", 0, "what is left to chance follows from it; 0: choose one")
)

func TestMain(m *testing.M) {
	flag.Parse()
	if *seed == 0 {
		*seed = rand.Uint64N(1 << 32)
	}
	parallel := true
	flag.Visit(func(f *flag.Flag) { parallel = parallel && f.Name != "test.parallel" })
	if parallel { // scenarios wait most of the time, for leases to run out
		_ = flag.Set("test.parallel", "12")
	}
	code := run(m)
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) int {
	var err error
	if built, err = os.MkdirTemp("", "chaos"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(built)
	return m.Run()
}

// chance is a source of its own for each name, so that a scenario finds the same whatever ran before it.
func chance(name string) *rand.Rand {
	var h uint64 = 14695981039346656037
	for _, c := range []byte(name) {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return rand.New(rand.NewPCG(*seed, h))
}
