package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// placeholder is what makes each request with it another one.
var placeholder = []byte("#REQUEST-NUMBER#")

// play runs one group to its end; all its calls have ended then.
func (run *load) play(group *group) {
	time.Sleep(time.Until(run.at(group.Begin)))
	var callers sync.WaitGroup
	if group.Rate > 0 {
		run.arrive(group, &callers)
	} else {
		for number := range group.Clients {
			callers.Go(func() { run.call(group, number) })
		}
	}
	callers.Wait()
}

// arrive begins calls at random or equal intervals, whether or not earlier ones have ended.
func (run *load) arrive(group *group, callers *sync.WaitGroup) {
	chance := rand.New(rand.NewPCG(run.plan.Seed, uint64(group.number)))
	for next, number := run.at(group.Begin), 0; ; number++ {
		interval := 1 / group.Rate
		if group.Arrivals != "uniform" {
			interval *= chance.ExpFloat64()
		}
		next = next.Add(time.Duration(interval * float64(time.Second)))
		if !next.Before(run.at(group.End)) {
			return
		}
		time.Sleep(time.Until(next))
		callers.Go(func() { run.unary(group, number, number) })
	}
}

// call is one caller of a closed loop.
func (run *load) call(group *group, number int) {
	if group.Mode == "stream" || group.Mode == "plain" {
		for begun := 0; time.Now().Before(run.at(group.End)); begun++ {
			if begun > 0 {
				time.Sleep(100 * time.Millisecond) // the one before has failed
			}
			run.stream(group, number)
		}
		return
	}
	for turn := number; time.Now().Before(run.at(group.End)); turn++ {
		if !run.unary(group, number, turn) {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Duration(group.Pause * float64(time.Second)))
	}
}

func (run *load) unary(group *group, number, turn int) bool {
	request := turn % len(group.bodies)
	body, serial := run.body(group, request)
	started := time.Now()
	ctx, cancel := context.WithTimeout(group.context(), time.Duration(group.Deadline*float64(time.Second)))
	defer cancel()
	if group.CancelShare > rand.Float64() {
		time.AfterFunc(time.Duration(rand.Float64()*group.CancelAfter*float64(time.Second)), cancel)
	}
	var answer []byte
	var trailer metadata.MD
	var err error
	if group.Mode == "http" {
		answer, err = run.post(ctx, group, body)
	} else {
		err = run.connection(group, number).Invoke(ctx, group.Method, &body, &answer, grpc.Trailer(&trailer))
	}
	row := run.outcome(group, number, sent{request, serial, started})
	if err != nil {
		row.failed(status.Convert(err))
		if values := trailer.Get("grpc-retry-pushback-ms"); len(values) > 0 {
			row.Pushback = values[0]
		}
	} else {
		row.answered(answer, group.Digest)
	}
	run.outcomes <- row
	return err == nil
}

// results are those of one message of a stream.
func (group *group) results(answer []byte) []result {
	if group.Mode == "plain" {
		return []result{{slot: 0, response: answer}} // its window is 1
	}
	return results(answer)
}

func (group *group) context() context.Context {
	return metadata.NewOutgoingContext(context.Background(), metadata.New(group.Metadata))
}

// items are those of one stream that have no outcome yet.
type items struct {
	caller int
	mutex  sync.Mutex
	open   map[int]sent
}

type sent struct {
	request int
	number  int
	at      time.Time
}

// stream keeps a window of items outstanding until the group's end, and waits for their outcomes.
func (run *load) stream(group *group, number int) {
	ctx, cancel := context.WithDeadline(group.context(), run.at(group.End+group.Deadline))
	defer cancel()
	description := &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}
	stream, err := run.connection(group, number).NewStream(ctx, description, group.Method)
	if err != nil {
		row := run.outcome(group, number, sent{at: time.Now()})
		row.failed(status.Convert(err))
		run.outcomes <- row
		return
	}
	waiting := &items{caller: number, open: map[int]sent{}}
	free := make(chan int, group.Window)
	for slot := range group.Window {
		free <- slot
	}
	over, ended := context.WithDeadline(ctx, run.at(group.End))
	defer ended()
	var sending sync.WaitGroup
	sending.Go(func() { run.send(over, group, stream, waiting, free) })
	if group.Leave {
		context.AfterFunc(over, cancel)
	}
	for err == nil {
		time.Sleep(time.Duration(group.ReadPause * float64(time.Second)))
		var answer []byte
		if err = stream.RecvMsg(&answer); err == nil {
			for _, result := range group.results(answer) {
				run.settle(group, waiting, free, result)
			}
		}
	}
	ended()
	cancel()
	sending.Wait()
	if group.Leave && !time.Now().Before(run.at(group.End)) {
		return
	}
	for _, item := range waiting.open { // the call ended without their outcomes
		row := run.outcome(group, waiting.caller, item)
		row.failed(status.Convert(err))
		run.outcomes <- row
	}
}

// send sends an item for each free place, then half-closes.
func (run *load) send(ctx context.Context, group *group, stream grpc.ClientStream, waiting *items, free chan int) {
	for turn := waiting.caller; ; turn++ {
		select {
		case <-ctx.Done():
			_ = stream.CloseSend()
			return
		case slot := <-free:
			request := turn % len(group.bodies)
			body, number := run.body(group, request)
			message := body
			if group.Mode == "stream" {
				message = item(fmt.Sprint(slot), body)
			}
			waiting.mutex.Lock()
			waiting.open[slot] = sent{request, number, time.Now()}
			waiting.mutex.Unlock()
			if stream.SendMsg(&message) != nil {
				return
			}
		}
	}
}

// settle records the outcome of an item and frees its place.
func (run *load) settle(group *group, waiting *items, free chan int, result result) {
	waiting.mutex.Lock()
	item, known := waiting.open[result.slot]
	delete(waiting.open, result.slot)
	waiting.mutex.Unlock()
	row := run.outcome(group, waiting.caller, item)
	switch {
	case !known:
		row = run.outcome(group, waiting.caller, sent{at: time.Now()})
		row.Code, row.Detail = -1, "a result for no item"
	case result.err != nil:
		row.failed(result.err)
	default:
		row.answered(result.response, group.Digest)
	}
	run.outcomes <- row
	if known {
		free <- result.slot
	}
}

// outcome is the outcome, now, of what was sent.
func (run *load) outcome(group *group, caller int, of sent) outcome {
	return outcome{
		Group: group.number, Request: of.request, Caller: caller, Number: of.number,
		At: run.since(of.at), Took: time.Since(of.at).Seconds(),
	}
}

// body is the next request's, with its number in the place of the placeholder, if it has one.
func (run *load) body(group *group, request int) ([]byte, int) {
	number := int(run.sent.Add(1))
	body := group.bodies[request]
	place := bytes.Index(body, placeholder)
	if place < 0 {
		return body, number
	}
	body = bytes.Clone(body)
	copy(body[place:], fmt.Sprintf("%0*d", len(placeholder), number))
	return body, number
}
