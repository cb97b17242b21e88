package poll

// dueHeap is a binary heap of waiting requests, the earliest due first. An entry is 16 bytes: sifting touches no row.
type dueHeap []entry

type entry struct {
	due int64 // nanoseconds on the engine's monotonic clock
	row *row
}

func (h *dueHeap) push(e entry) {
	s := append(*h, e)
	i := len(s) - 1
	for i > 0 {
		parent := (i - 1) / 2
		if s[parent].due <= e.due {
			break
		}
		s[i] = s[parent]
		i = parent
	}
	s[i] = e
	*h = s
}

// pop takes the earliest entry from a heap that is not empty.
func (h *dueHeap) pop() entry {
	s := *h
	first, last := s[0], s[len(s)-1]
	s[len(s)-1] = entry{}
	s = s[:len(s)-1]
	*h = s
	if len(s) == 0 {
		return first
	}
	i := 0
	for {
		child := 2*i + 1
		if child >= len(s) {
			break
		}
		if child+1 < len(s) && s[child+1].due < s[child].due {
			child++
		}
		if last.due <= s[child].due {
			break
		}
		s[i] = s[child]
		i = child
	}
	s[i] = last
	return first
}
