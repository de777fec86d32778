package hotslot

import (
	"context"
	"time"

	"google.golang.org/grpc"
)

const finishLimit = time.Second

// event is what a stream delivers: results, or its end.
type event[Response any] struct {
	results []wireResult[Response]
	end     error // io.EOF: in order
}

// session is one stream to a server.
type session[Message, Response any] struct {
	send   chan *entry[Message] // to the server
	close  chan struct{}        // closed to half-close
	events chan event[Response]
	cancel context.CancelFunc
}

// connect opens a stream, in goroutines that end with it.
func (r *run[Request, Message, Reply, Response]) connect() {
	r.openAt = time.Time{}
	ctx, cancel := context.WithCancel(r.ctx)
	opened := &session[Message, Response]{
		send: make(chan *entry[Message]), close: make(chan struct{}), events: make(chan event[Response]), cancel: cancel,
	}
	r.session = opened
	go func() {
		// What is in a stream is sent again here, so gRPC keeps none of it.
		calls, err := r.protocol.open(ctx, grpc.MaxRetryRPCBufferSize(0))
		if err != nil {
			opened.emit(ctx, event[Response]{end: err})
			return
		}
		go sendAll(ctx, calls, opened)
		for {
			reply, err := calls.Recv()
			if err != nil {
				opened.emit(ctx, event[Response]{end: err})
				return
			}
			opened.emit(ctx, event[Response]{results: r.protocol.unwrap(reply)})
		}
	}()
}

func (s *session[Message, Response]) emit(ctx context.Context, e event[Response]) {
	select {
	case s.events <- e:
	case <-ctx.Done():
	}
}

func sendAll[Message, Reply, Response any](
	ctx context.Context, calls grpc.BidiStreamingClient[Message, Reply], s *session[Message, Response],
) {
	for {
		select {
		case one := <-s.send:
			if calls.Send(one.message) != nil {
				return // the receiver gets the status
			}
		case <-s.close:
			_ = calls.CloseSend()
			return
		case <-ctx.Done():
			return
		}
	}
}

// finish half-closes the stream and waits a moment for its end, so that the server's call ends with OK.
func (r *run[Request, Message, Reply, Response]) finish() {
	if r.session == nil {
		return
	}
	close(r.session.close)
	timer := time.NewTimer(finishLimit)
	defer timer.Stop()
	for {
		select {
		case received := <-r.session.events:
			if received.end != nil {
				return
			}
		case <-timer.C:
			return
		case <-r.ctx.Done():
			return
		}
	}
}
