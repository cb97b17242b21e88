package poll

import (
	"hash/maphash"
	"slices"
	"strings"
)

// maxLanes bounds how many submitters with requests here have a share of their own; what comes beyond shares theirs, by
// hash.
const maxLanes = 1000

// lanes are the requests that are due: one queue for each submitter, in the order in which they became due. When limits
// make them wait, submitters take turns, a poll each; one alone has all turns.
type lanes struct {
	named  map[string]*lane
	all    []*lane
	seed   maphash.Seed
	busy   fifo[*lane] // those with a request that is due, the next one first
	length int
}

// lane belongs to a name until no row of it is held: names that are gone leave room for others. It has those whose last poll was
// at fault apart, so that others can go before them.
type lane struct {
	sound, doubtful fifo[entry]
	name            string
	at              int // its place in all
	rows            int // held: due, waiting for their time or being polled; those that share it, too
}

func (l *lane) length() int { return l.sound.length() + l.doubtful.length() }

// next is where the next one is: what became due first, or what is sound.
func (l *lane) next(soundFirst bool) *fifo[entry] {
	switch {
	case l.sound.length() == 0:
		return &l.doubtful
	case l.doubtful.length() == 0 || soundFirst || l.sound.first().due <= l.doubtful.first().due:
		return &l.sound
	}
	return &l.doubtful
}

func newLanes() *lanes { return &lanes{named: make(map[string]*lane), seed: maphash.MakeSeed()} }

// of is the lane of a submitter, for one row until that leaves it.
func (s *lanes) of(submitter string) *lane {
	l := s.named[submitter]
	switch {
	case l != nil:
	case len(s.all) < maxLanes:
		l = &lane{name: strings.Clone(submitter), at: len(s.all)}
		s.named[l.name], s.all = l, append(s.all, l)
	default:
		l = s.all[maphash.String(s.seed, submitter)%maxLanes]
	}
	l.rows++
	return l
}

// leave ends what of began, for a row that is neither due nor will be.
func (s *lanes) leave(l *lane) {
	if l.rows--; l.rows > 0 {
		return
	}
	delete(s.named, l.name)
	end := len(s.all) - 1
	last := s.all[end]
	s.all[l.at], last.at = last, l.at
	s.all[end] = nil
	s.all = s.all[:end]
}

func (s *lanes) push(e entry) {
	l := e.row.lane
	if e.row.faults > 0 {
		l.doubtful.push(e)
	} else {
		l.sound.push(e)
	}
	if s.length++; l.length() == 1 {
		s.busy.push(l)
	}
}

// first is whose turn it is; something must be due. With soundFirst a submitter's requests whose last poll was at fault come
// behind its others.
func (s *lanes) first(soundFirst bool) entry { return s.busy.first().next(soundFirst).first() }

// pop takes the first; the next one is another submitter's, if another one waits.
func (s *lanes) pop(soundFirst bool) entry {
	l := s.busy.pop()
	e := l.next(soundFirst).pop()
	if s.length--; l.length() > 0 {
		s.busy.push(l)
	}
	return e
}

// remove takes away what gone says. The turns stay as they are.
func (s *lanes) remove(gone func(entry) bool) {
	busy := s.busy.items[s.busy.front:]
	s.busy, s.length = fifo[*lane]{}, 0
	for _, l := range busy {
		for _, due := range []*fifo[entry]{&l.sound, &l.doubtful} {
			due.items, due.front = slices.DeleteFunc(due.items[due.front:], gone), 0
		}
		if s.length += l.length(); l.length() > 0 {
			s.busy.push(l)
		}
	}
}

// fifo is a queue in a slice, whose front is taken away by and by.
type fifo[T any] struct {
	items []T
	front int
}

func (q *fifo[T]) length() int { return len(q.items) - q.front }
func (q *fifo[T]) first() T    { return q.items[q.front] }

func (q *fifo[T]) push(item T) {
	if q.front > len(q.items)/2 && len(q.items) == cap(q.items) { // rather than grow
		n := copy(q.items, q.items[q.front:])
		clear(q.items[n:])
		q.items, q.front = q.items[:n], 0
	}
	q.items = append(q.items, item)
}

func (q *fifo[T]) pop() T {
	var none T
	item := q.items[q.front]
	q.items[q.front] = none
	if q.front++; q.front == len(q.items) {
		q.items, q.front = q.items[:0], 0
	}
	return item
}
