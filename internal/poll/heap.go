package poll

// dueHeap is a binary heap of waiting requests, the earliest due first. An entry is 16 bytes: sifting touches no row.
type dueHeap []entry

type entry struct {
	due int64 // nanoseconds on the engine's monotonic clock
	row *row
}

func (h *dueHeap) push(e entry) {
	*h = append(*h, e)
	h.rise(len(*h)-1, e)
}

// rise puts e where it belongs, at i or above it.
func (h dueHeap) rise(i int, e entry) {
	for i > 0 {
		parent := (i - 1) / 2
		if h[parent].due <= e.due {
			break
		}
		h[i] = h[parent]
		i = parent
	}
	h[i] = e
}

// hasten has a row that waits for longer be due at this time. It looks at every entry, so it is for what is rare.
func (h dueHeap) hasten(r *row, due int64) {
	for i := range h {
		if h[i].row == r && h[i].due > due {
			h.rise(i, entry{due, r})
			return
		}
	}
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
