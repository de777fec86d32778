package hotslot

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
)

const maxItemAttempts = 5 // of an item that the server refuses for now, as of a unary call

// entry is one item that has no outcome yet.
type entry[Message any] struct {
	index    int
	id       string
	message  *Message
	err      error // why it is not sent
	attempts int
	due      time.Time // when it may be sent again
}

// run is one PredictMany or TagMany. One goroutine, the caller's, owns all fields.
type run[Request, Message, Reply, Response any] struct {
	ctx      context.Context
	cancel   context.CancelFunc
	client   options
	isClosed *atomic.Bool // the client
	options  streamOptions
	protocol protocol[Request, Message, Reply, Response]
	yield    func(Outcome[Response], error) bool

	source chan *entry[Message] // holds a window
	room   chan struct{}        // one for each item that has been read and not yielded
	stop   chan struct{}        // closed: no further item is asked for

	hasStopped atomic.Bool // set with stop
	panicked   any         // of the caller's items; read after source is closed

	queue    []*entry[Message]       // to be sent, in the order of their indices
	delayed  []*entry[Message]       // to be sent later
	inFlight map[int]*entry[Message] // sent over the open stream
	held     map[int]Outcome[Response]
	next     int // index that is yielded next, if in order

	session      *session[Message, Response]
	openAt       time.Time
	failures     int // of streams in a row, without an outcome between them
	failingSince time.Time
	// alone: one item at a time is sent, because one of those in flight ends the stream and nobody says which.
	alone map[int]bool
}

func newRun[Request, Message, Reply, Response any](
	ctx context.Context,
	c *Client,
	o streamOptions,
	p protocol[Request, Message, Reply, Response],
	yield func(Outcome[Response], error) bool,
) *run[Request, Message, Reply, Response] {
	ctx, cancel := context.WithCancel(ctx)
	return &run[Request, Message, Reply, Response]{
		ctx: ctx, cancel: cancel, client: c.options, isClosed: c.isClosed, options: o, protocol: p, yield: yield,
		source:   make(chan *entry[Message], o.window),
		room:     make(chan struct{}, o.window),
		stop:     make(chan struct{}),
		inFlight: map[int]*entry[Message]{},
		held:     map[int]Outcome[Response]{},
		alone:    map[int]bool{},
	}
}

// do yields the outcomes of all items that read emits.
func (r *run[Request, Message, Reply, Response]) do(read func(emit func(string, *Request, error) bool)) {
	defer r.cancel()
	defer r.stopReading()
	go r.readAll(read)
	source := r.source
	for source != nil || r.open() > 0 {
		var send chan *entry[Message]
		var events chan event[Response]
		var head *entry[Message]
		if r.session != nil {
			events = r.session.events
			if len(r.queue) > 0 && (len(r.alone) == 0 || len(r.inFlight) == 0) {
				send, head = r.session.send, r.queue[0]
			}
		}
		timer, stopTimer := r.timer()
		goesOn := true
		select {
		case read, isOpen := <-source:
			if !isOpen {
				if r.panicked != nil {
					panic(r.panicked) // where the caller can recover from it
				}
				source = nil
				break
			}
			goesOn = r.accept(read)
		case send <- head:
			r.queue = r.queue[1:]
			r.inFlight[head.index] = head
		case received := <-events:
			goesOn = r.receive(received)
		case <-timer:
			r.wake(time.Now())
		case <-r.ctx.Done():
			r.fail(toError(r.ctx.Err()))
			goesOn = false
		}
		stopTimer()
		if !goesOn {
			return
		}
	}
	r.finish()
}

// readAll reads the caller's items, each when the window has room for it.
func (r *run[Request, Message, Reply, Response]) readAll(read func(emit func(string, *Request, error) bool)) {
	defer close(r.source)
	defer func() { r.panicked = recover() }()
	waitForRoom := func() bool {
		select {
		case <-r.stop:
			return false
		case r.room <- struct{}{}:
			return !r.hasStopped.Load()
		}
	}
	index := 0
	if !waitForRoom() {
		return
	}
	read(func(id string, request *Request, err error) bool {
		one := &entry[Message]{index: index, id: id, err: err}
		if err == nil {
			one.message = r.protocol.wrap(strconv.Itoa(index), request)
			one.err = r.checkSize(one.message)
		}
		index++
		r.source <- one // has room: `room` has been taken
		return waitForRoom()
	})
}

func (r *run[Request, Message, Reply, Response]) stopReading() {
	if !r.hasStopped.Swap(true) {
		close(r.stop)
	}
}

func (r *run[Request, Message, Reply, Response]) checkSize(message *Message) error {
	return checkSize(any(message).(proto.Message), r.client.maxRequest)
}

// open returns how many items have no outcome.
func (r *run[Request, Message, Reply, Response]) open() int {
	return len(r.queue) + len(r.delayed) + len(r.inFlight)
}

func (r *run[Request, Message, Reply, Response]) accept(one *entry[Message]) bool {
	if one.err != nil {
		return r.deliver(one, nil, one.err)
	}
	r.queue = append(r.queue, one)
	if r.session == nil && r.openAt.IsZero() {
		r.connect()
	}
	return true
}

// deliver yields an outcome, or holds it until those before it are there.
func (r *run[Request, Message, Reply, Response]) deliver(one *entry[Message], response *Response, err error) bool {
	outcome := Outcome[Response]{Index: one.index, ID: one.id, Response: response, Err: err}
	if !r.options.inOrder {
		return r.pass(outcome)
	}
	r.held[one.index] = outcome
	for {
		first, isThere := r.held[r.next]
		if !isThere {
			return true
		}
		delete(r.held, r.next)
		r.next++
		if !r.pass(first) {
			return false
		}
	}
}

func (r *run[Request, Message, Reply, Response]) pass(outcome Outcome[Response]) bool {
	goesOn := r.yield(outcome, nil)
	<-r.room
	return goesOn
}

func (r *run[Request, Message, Reply, Response]) receive(received event[Response]) bool {
	if received.end != nil {
		return r.streamEnded(received.end)
	}
	for _, result := range received.results {
		if result.wireID == "" && result.failure != nil { // of a message that the server could not read
			return r.isolate(fromProto(result.failure))
		}
		index, err := strconv.Atoi(result.wireID)
		one := r.inFlight[index]
		if err != nil || one == nil {
			continue // not an item of this stream
		}
		delete(r.inFlight, index)
		delete(r.alone, index)
		r.failures, r.failingSince = 0, time.Time{}
		if !r.settle(one, result) {
			return false
		}
	}
	return true
}

// settle delivers the outcome of an item, or puts it aside to be sent again.
func (r *run[Request, Message, Reply, Response]) settle(one *entry[Message], result wireResult[Response]) bool {
	if result.response != nil {
		return r.deliver(one, result.response, nil)
	}
	failure := errNoOutcome
	if result.failure != nil {
		failure = fromProto(result.failure)
	}
	one.attempts++
	due := time.Now().Add(r.pause(one.attempts, failure))
	if !failure.Temporary() || one.attempts >= maxItemAttempts || r.client.noRetries || r.isTooLate(due) {
		return r.deliver(one, nil, failure)
	}
	one.due = due
	r.delayed = append(r.delayed, one)
	return true
}

// isTooLate reports whether the caller's deadline comes first.
func (r *run[Request, Message, Reply, Response]) isTooLate(moment time.Time) bool {
	deadline, hasOne := r.ctx.Deadline()
	return hasOne && deadline.Before(moment)
}

// streamEnded decides what becomes of the items of a stream that has ended.
func (r *run[Request, Message, Reply, Response]) streamEnded(end error) bool {
	r.session.cancel()
	r.session = nil
	if r.ctx.Err() != nil {
		r.fail(toError(r.ctx.Err()))
		return false
	}
	failure := toError(end)
	if errors.Is(end, io.EOF) {
		failure = toError(errEndedEarly)
	}
	if isUnexplained(failure) && len(r.inFlight) > 0 && !r.client.noRetries {
		return r.isolate(failure)
	}
	if r.isClosed.Load() || r.client.noRetries || !maySendAgain(failure) {
		r.fail(failure)
		return false
	}
	r.requeue()
	if r.open() == 0 {
		return true
	}
	now := time.Now()
	if r.failures == 0 {
		r.failingSince = now
	}
	r.failures++
	pause := r.pause(r.failures, failure)
	if next := now.Add(pause); next.Sub(r.failingSince) > r.options.maxOutage || r.isTooLate(next) {
		r.fail(failure)
		return false
	}
	r.openAt = now.Add(pause)
	return true
}

// isolate sends the items of a stream again, one at a time: one of them is more than the server or a proxy takes, and
// it is not said which. Alone, it has that as its outcome.
func (r *run[Request, Message, Reply, Response]) isolate(failure *Error) bool {
	if r.session != nil {
		r.session.cancel()
		r.session = nil
	}
	if len(r.inFlight) == 1 {
		for index, one := range r.inFlight {
			delete(r.inFlight, index)
			delete(r.alone, index)
			if !r.deliver(one, nil, failure) {
				return false
			}
		}
	}
	for index := range r.inFlight {
		r.alone[index] = true
	}
	r.requeue()
	if r.open() > 0 {
		r.openAt = time.Now()
	}
	return true
}

func (r *run[Request, Message, Reply, Response]) requeue() {
	for _, one := range r.inFlight {
		r.queue = append(r.queue, one)
	}
	clear(r.inFlight)
	slices.SortFunc(r.queue, func(a, b *entry[Message]) int { return a.index - b.index })
}

// fail gives every item without an outcome the error as its outcome, then ends the iteration with it.
func (r *run[Request, Message, Reply, Response]) fail(failure *Error) {
	r.stopReading()
	for {
		select {
		case one, isOpen := <-r.source:
			if isOpen {
				r.queue = append(r.queue, one)
				continue
			}
		default:
		}
		break
	}
	r.queue = append(r.queue, r.delayed...)
	r.requeue()
	for _, one := range r.queue {
		err := one.err
		if err == nil {
			err = failure
		}
		if !r.deliver(one, nil, err) {
			return
		}
	}
	r.yield(Outcome[Response]{Index: -1}, failure)
}

// pause returns how long to wait before the given attempt, the first one after a failure being 1.
func (r *run[Request, Message, Reply, Response]) pause(attempt int, failure *Error) time.Duration {
	limit := min(r.client.maxBackoff, r.client.firstBackoff<<min(attempt-1, 16))
	pause := limit/2 + rand.N(limit/2+1)
	if after, isGiven := failure.RetryAfter(); isGiven {
		return after + rand.N(r.client.firstBackoff)
	}
	return pause
}

// timer fires when a stream is to be opened or an item to be sent again.
func (r *run[Request, Message, Reply, Response]) timer() (<-chan time.Time, func() bool) {
	due := r.openAt
	for _, one := range r.delayed {
		if due.IsZero() || one.due.Before(due) {
			due = one.due
		}
	}
	if due.IsZero() {
		return nil, func() bool { return false }
	}
	timer := time.NewTimer(time.Until(due))
	return timer.C, timer.Stop
}

func (r *run[Request, Message, Reply, Response]) wake(now time.Time) {
	isDue := func(one *entry[Message]) bool { return !one.due.After(now) }
	for _, one := range r.delayed {
		if isDue(one) {
			r.queue = append(r.queue, one)
		}
	}
	r.delayed = slices.DeleteFunc(r.delayed, isDue)
	if r.session == nil && !r.openAt.After(now) {
		r.connect()
	}
}

var errNoOutcome = fromCode(codes.Internal, "the server sent a result without an outcome")

var errEndedEarly = fromCode(codes.Unavailable, "the stream ended before all of its items were answered")

// maySendAgain reports whether the items of a stream that failed so may be sent over another one.
func maySendAgain(failure *Error) bool {
	if failure.Temporary() {
		return true
	}
	switch failure.Code {
	case codes.Canceled, codes.Unknown, codes.Internal, codes.Aborted, codes.DeadlineExceeded:
		return failure.Reason == "" // the transport's or a proxy's; a server names its reasons
	default:
		return false
	}
}

// isUnexplained reports whether one message of the stream was refused by a transport, which names none.
func isUnexplained(failure *Error) bool {
	_, hasRetryAfter := failure.RetryAfter()
	return failure.Code == codes.ResourceExhausted && failure.Reason == "" && !hasRetryAfter
}
