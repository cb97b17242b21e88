package poll

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestARowThatIsHastenedComesInItsNewTurn(t *testing.T) {
	rows := make([]row, 100)
	var h dueHeap
	for i := range rows {
		h.push(entry{int64((i * 37) % 100), &rows[i]})
	}
	h.hasten(&rows[50], 3)  // it was due at 50
	h.hasten(&rows[1], 90)  // it is due at 37: no row is put off
	h.hasten(&row{}, 0)     // one that is not there
	h.hasten(&rows[99], -1) // to the front
	var dues []int64
	var order []*row
	for len(h) > 0 {
		e := h.pop()
		dues, order = append(dues, e.due), append(order, e.row)
	}
	require.Len(t, dues, 100)
	require.True(t, slices.IsSorted(dues))
	require.Same(t, &rows[99], order[0])
	require.Equal(t, int64(37), dues[slices.Index(order, &rows[1])])
	require.Equal(t, int64(3), dues[slices.Index(order, &rows[50])])
}
