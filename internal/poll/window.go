package poll

import "time"

// window is the answers that are judged together.
type window struct {
	begin           time.Time
	all, good       int
	faults, refused int // refused, by a gateway, are faults too
	// Of requests whose poll before ended in a fault as well: those that were got over, and those that were not.
	recovered, faultsAgain, refusedAgain int
}

const (
	windowLeast = 16 // answers; fewer in windowMost are no load on anybody
	windowTime  = 200 * time.Millisecond
	windowFull  = 400 // answers; so many need no windowTime
	windowMost  = 5 * time.Second
)

func (w *window) add(fault, refused, again bool, at time.Time) {
	if w.all == 0 || w.all < windowLeast && at.Sub(w.begin) > windowMost {
		*w = window{begin: at}
	}
	count := func(n *int, yes bool) {
		if yes {
			*n++
		}
	}
	w.all++
	count(&w.good, !fault)
	count(&w.recovered, again && !fault)
	count(&w.faults, fault && !again)
	count(&w.refused, refused && !again)
	count(&w.faultsAgain, fault && again)
	count(&w.refusedAgain, refused && again)
}

// sum is how many faults, and how many refusals among them, count. A job that failed says so at each poll, and a few of
// them must not stop everyone: faults that repeat count only as far as others are got over, or if nothing is good at all.
func (w *window) sum() (faults, refused int) {
	if w.good == 0 {
		return w.faults + w.faultsAgain, w.refused + w.refusedAgain
	}
	return w.faults + min(w.faultsAgain, w.recovered), w.refused + min(w.refusedAgain, w.recovered)
}
