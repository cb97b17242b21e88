package bench

import (
	"fmt"
	"io"
	"strings"
)

// progress tells a person what is going on: on a terminal one line with a bar, elsewhere one line for each step.
type progress struct {
	out      io.Writer
	terminal bool
	step     string
}

func (p *progress) begin(format string, args ...any) {
	p.step = fmt.Sprintf(format, args...)
	if !p.terminal {
		fmt.Fprintln(p.out, p.step)
	}
}

// at shows how far the step has come.
func (p *progress) at(done, total int) {
	if !p.terminal {
		return
	}
	const width = 30
	filled := width * min(done, total) / max(1, total)
	fmt.Fprintf(p.out, "\r\x1b[K%s%s  %d of %d  %s", strings.Repeat("█", filled), strings.Repeat("░", width-filled), done, total, p.step)
}

func (p *progress) end() {
	if p.terminal {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
}
