package fair

// list is a doubly linked list of items that have their links in them, so that it allocates nothing.
type list[T any] struct {
	first, last *T
	len         int
}

type links[T any] struct{ next, prev *T }

func (l *links[T]) link() *links[T] { return l }

// link returns the links of an item, which embeds them.
func link[T any](item *T) *links[T] { return any(item).(interface{ link() *links[T] }).link() }

func (l *list[T]) pushBack(item *T) {
	*link(item) = links[T]{prev: l.last}
	if l.last != nil {
		link(l.last).next = item
	} else {
		l.first = item
	}
	l.last = item
	l.len++
}

func (l *list[T]) remove(item *T) {
	at := link(item)
	if at.prev != nil {
		link(at.prev).next = at.next
	} else {
		l.first = at.next
	}
	if at.next != nil {
		link(at.next).prev = at.prev
	} else {
		l.last = at.prev
	}
	*at = links[T]{}
	l.len--
}
