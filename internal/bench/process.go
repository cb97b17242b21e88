package bench

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/pprof"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/procfs"
)

// process is one program that is measured, or needed.
type process struct {
	name   string
	cmd    *exec.Cmd
	stat   procfs.Proc
	exited chan struct{}

	mu  sync.Mutex
	log bytes.Buffer
}

// Write takes what the process says on standard error.
func (p *process) Write(text []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.Write(text)
}

func (r *run) start(ctx context.Context, args ...string) (*process, error) {
	p := &process{name: "bridge " + args[0], exited: make(chan struct{})}
	var err error
	if p.cmd, err = r.Command(ctx, args...); err != nil {
		return nil, err
	}
	p.cmd.Stderr = p
	if r.Profile != "" && r.profileAs != "" {
		p.cmd.Env = append(p.cmd.Env, profileInto+"="+filepath.Join(r.Profile, r.profileAs+args[0]+".pprof"))
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", p.name, err)
	}
	go func() {
		_ = p.cmd.Wait()
		close(p.exited)
	}()
	if p.stat, err = procfs.NewProc(p.cmd.Process.Pid); err != nil {
		p.end(os.Kill)
		return nil, fmt.Errorf("%s: %w: %s", p.name, err, p.said())
	}
	return p, nil
}

// end sends a signal and waits until the process is gone.
func (p *process) end(s os.Signal) {
	_ = p.cmd.Process.Signal(s) // fails only when it is gone
	<-p.exited
}

func (p *process) said() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.TrimSpace(p.log.String())
}

// find waits for what the process says about itself in the first group of a pattern.
func (p *process) find(ctx context.Context, pattern *regexp.Regexp) (string, error) {
	var found []string
	err := until(ctx, 10*time.Second, 5*time.Millisecond, func() (bool, error) {
		found = pattern.FindStringSubmatch(p.said())
		return found != nil, p.alive()
	})
	if found == nil {
		return "", fmt.Errorf("%s does not start: %w", p.name, err)
	}
	return found[1], nil
}

// alive is an error once the process has ended by itself.
func (p *process) alive() error {
	select {
	case <-p.exited:
		return fmt.Errorf("%s ended (%s), its last words: %s", p.name, p.cmd.ProcessState, tail(p.said()))
	default:
		return nil
	}
}

func tail(text string) string { return text[max(0, len(text)-1000):] }

// usage is what a process has taken so far: CPU time in seconds, memory in bytes.
type usage struct{ cpu, resident, peak float64 }

func (p *process) usage() (usage, error) { return usageOf(p.stat) }

func usageOf(p procfs.Proc) (usage, error) {
	stat, err := p.Stat()
	if err != nil {
		return usage{}, err
	}
	status, err := p.NewStatus()
	if err != nil {
		return usage{}, err
	}
	return usage{stat.CPUTime(), float64(stat.ResidentMemory()), float64(status.VmHWM)}, nil
}

// usageOfThisProcess tells whether usage can be told on this system.
func usageOfThisProcess() (usage, error) {
	self, err := procfs.Self()
	if err != nil {
		return usage{}, fmt.Errorf("CPU time and memory of other processes are read from /proc, which this system does not have (%w): run it on Linux", err)
	}
	return usageOf(self)
}

// until asks again and again until a condition holds. It fails with the condition's own error, or after a time.
func until(ctx context.Context, patience, interval time.Duration, condition func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		switch done, err := condition(); {
		case err != nil:
			return err
		case done:
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// profileInto is the variable that names the file for a process's CPU profile.
const profileInto = "FUTURE_BRIDGE_CPUPROFILE"

// ProfileThisProcess writes a CPU profile of a process that a run with Profile started, until the returned function
// is called. It does nothing in any other process.
func ProfileThisProcess() (stop func()) {
	name := os.Getenv(profileInto)
	if name == "" {
		return func() {}
	}
	file, err := os.Create(name)
	if err == nil {
		err = pprof.StartCPUProfile(file)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "no CPU profile:", err)
	}
	return func() {
		pprof.StopCPUProfile()
		_ = file.Close()
	}
}
