//go:build unix

package chaos

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"futurebridge/internal/testbed"
)

// built is where programs are built, once in a run of the tests.
var built string

var (
	bridgeProgram = sync.OnceValues(func() (string, error) {
		if *with != "" {
			return *with, nil
		}
		return build("futurebridge/cmd/bridge")
	})
	natsProgram = sync.OnceValues(func() (string, error) {
		if *server != "" {
			return *server, nil
		}
		return build("github.com/nats-io/nats-server/v2")
	})
)

func build(pkg string, flags ...string) (string, error) {
	file, err := os.CreateTemp(built, "program")
	if err != nil {
		return "", err
	}
	_ = file.Close()
	path := file.Name()
	if out, err := exec.Command("go", slices.Concat([]string{"build", "-o", path}, flags, []string{pkg})...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", pkg, err, out)
	}
	return path, nil
}

// process is a program, running.
type process struct {
	t      testing.TB
	name   string
	cmd    *exec.Cmd
	exited chan struct{}
	err    error // once exited
	out    testbed.Log
}

// start runs a program until the test ends; its output is shown if the test failed.
func start(t testing.TB, name string, program func() (string, error), args ...string) *process {
	t.Helper()
	path, err := program()
	require.NoError(t, err)
	p := &process{t: t, name: name, cmd: exec.Command(path, args...), exited: make(chan struct{})}
	p.cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "BRIDGE_") || strings.HasPrefix(v, "NATS_") || strings.HasPrefix(v, "TINKER_")
	})
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	require.NoError(t, p.cmd.Start())
	go func() {
		p.err = p.cmd.Wait()
		close(p.exited)
	}()
	t.Cleanup(func() {
		p.kill()
		if text := p.out.String(); t.Failed() {
			t.Logf("%s said, in the end:\n%s", name, text[max(0, len(text)-3000):])
		}
	})
	return p
}

func (p *process) signal(s syscall.Signal) { _ = p.cmd.Process.Signal(s) }

// kill returns when the process is gone.
func (p *process) kill() {
	p.signal(syscall.SIGKILL)
	<-p.exited
}

// stop lets the process end in its own way.
func (p *process) stop() {
	p.t.Helper()
	p.signal(syscall.SIGTERM)
	select {
	case <-p.exited:
		require.NoError(p.t, p.err, p.name)
	case <-time.After(time.Minute):
		require.Fail(p.t, "does not end", p.name)
	}
}

// said waits for a text in the output and returns what stands behind it, up to the end of the word.
func (p *process) said(text string) string {
	p.t.Helper()
	var word string
	await(p.t, p.name+" says "+text, time.Minute, func() bool {
		_, rest, found := strings.Cut(p.out.String(), text)
		word, _, _ = strings.Cut(rest, "\n")
		word, _, _ = strings.Cut(word, " ")
		return found && len(rest) > len(word)
	})
	return word
}

// await returns when a condition holds.
func await(t testing.TB, what string, within time.Duration, holds func() bool) {
	t.Helper()
	if !until(within, holds) {
		require.Fail(t, "did not happen within "+within.String(), what)
	}
}

// until reports whether a condition came to hold in time.
func until(within time.Duration, holds func() bool) bool {
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for !holds() {
		select {
		case <-again.C:
		case <-deadline.C:
			return false
		}
	}
	return true
}

// natsServer runs a NATS server with JetStream and returns its address.
func natsServer(t testing.TB) (*process, string) {
	t.Helper()
	p := start(t, "nats-server", natsProgram, "--jetstream", "--store_dir", t.TempDir(), "--addr", "127.0.0.1", "--port", "-1")
	address := p.said("Listening for client connections on ")
	p.said("Server is ready")
	return p, address
}
