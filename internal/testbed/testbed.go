// Package testbed is what tests of several packages stand on: virtual time, a NATS server in this process that stops and
// starts again, connections to it that wait for it, and a log that is read while it is written. Only tests import it.
package testbed

import (
	"fmt"
	"os"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats-server/v2/server/ats"
	"go.uber.org/goleak"
)

// Main is what TestMain of a package that runs servers does: it runs the tests and exits, with an error if goroutines are left.
func Main(m *testing.M) {
	// The server's process-wide clock goroutine must not be born inside a bubble, where it would never end.
	ats.Register()
	code := m.Run()
	ats.Unregister()
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// Bubble runs a test in virtual time, which begins at the next minute but one. The server ages messages by a clock from
// outside the bubble: what bears the date at which time begins in a bubble, years ago, would be too old for any stream.
func Bubble(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	ForgetTimers()
	present := time.Now().Truncate(time.Minute).Add(2 * time.Minute)
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(present))
		test(t)
		synctest.Wait() // what a test has set going comes to rest before its context ends
	})
}

// ForgetTimers empties the sync.Pool in which nats.go keeps timers: one of another test's bubble is fatal in this test. Two
// collections do it.
func ForgetTimers() {
	runtime.GC()
	runtime.GC()
}
