package main

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"hotslot.io/client-go/hotslot"
)

type load struct {
	UnaryCallers int `json:"unary_callers"`
	Streams      int
	Window       int
	Task         string
	Requests     []request
}

// counts is what callers have seen.
type counts struct {
	Calls       int            `json:"calls"`
	Failed      int            `json:"failed"`
	Items       int            `json:"items"`
	FailedItems int            `json:"failed_items"`
	Duplicated  int            `json:"duplicated"`
	Missing     int            `json:"missing"`
	Failures    map[string]int `json:"failures"`
	Longest     float64        `json:"longest_seconds"`
	Revisions   map[string]int `json:"revisions"`
}

// callers go on until end.
type callers struct {
	client   *hotslot.Client
	stopping atomic.Bool
	running  sync.WaitGroup
	answered sync.WaitGroup // of each caller the first

	mu   sync.Mutex
	seen counts
}

func begin(read command) *callers {
	client, err := open(read.Endpoint, true)
	if err != nil {
		fatal(err)
	}
	l := &callers{client: client, seen: counts{Failures: map[string]int{}, Revisions: map[string]int{}}}
	l.answered.Add(read.Load.UnaryCallers + read.Load.Streams)
	if read.Load.Task == "address" {
		start(l, tagging, *read.Load, read.Pictures)
	} else {
		start(l, entailment, *read.Load, read.Pictures)
	}
	l.answered.Wait()
	return l
}

func (l *callers) end() counts {
	l.stopping.Store(true)
	l.running.Wait()
	_ = l.client.Close()
	return l.seen
}

// note counts an outcome; fail and answer are its kinds.
func (l *callers) note(seen map[string]any) (isAnswer bool) {
	if seen["outcome"] == "answer" {
		l.seen.Revisions[seen["revision"].(string)]++
		return true
	}
	l.seen.Failures[seen["code"].(string)+" "+seen["reason"].(string)]++
	return false
}

func start[Request, Item, Response any](l *callers, t task[Request, Item, Response], given load, pictures string) {
	requests := make([]Request, len(given.Requests))
	for n, one := range given.Requests {
		requests[n] = t.request(one, pictures)
	}
	for n := range given.UnaryCallers {
		l.running.Go(func() { callOn(l, t, requests, n) })
	}
	for n := range given.Streams {
		l.running.Go(func() { streamOn(l, t, requests, n, given.Window) })
	}
}

func callOn[Request, Item, Response any](l *callers, t task[Request, Item, Response], requests []Request, first int) {
	var once sync.Once
	defer once.Do(l.answered.Done)
	for n := first; !l.stopping.Load(); n++ {
		began := time.Now()
		response, err := t.one(context.Background(), l.client, requests[n%len(requests)])
		took := time.Since(began).Seconds()
		seen := map[string]any{}
		if err != nil {
			seen = failure(err)
		} else {
			seen = t.seen(response)
		}
		l.mu.Lock()
		l.seen.Calls++
		l.seen.Longest = max(l.seen.Longest, took)
		if !l.note(seen) {
			l.seen.Failed++
		}
		l.mu.Unlock()
		once.Do(l.answered.Done)
	}
}

func streamOn[Request, Item, Response any](
	l *callers, t task[Request, Item, Response], requests []Request, first, window int,
) {
	var once sync.Once
	defer once.Do(l.answered.Done)
	taken := 0
	items := func(yield func(Item) bool) {
		for n := first; !l.stopping.Load(); n++ {
			taken++
			if !yield(t.item(requests[n%len(requests)])) {
				return
			}
		}
	}
	var options []hotslot.StreamOption
	if window > 0 {
		options = append(options, hotslot.Window(window))
	}
	found := map[int]bool{}
	for outcome, err := range t.many(context.Background(), l.client, items, options...) {
		seen := failure(err)
		if err == nil && outcome.Err == nil {
			seen = t.seen(outcome.Response)
		} else if err == nil {
			seen = failure(outcome.Err)
		}
		l.mu.Lock()
		isAnswer := l.note(seen)
		if err == nil && !isAnswer {
			l.seen.FailedItems++
		}
		if err == nil && found[outcome.Index] {
			l.seen.Duplicated++
		}
		l.mu.Unlock()
		if err == nil {
			found[outcome.Index] = true
		}
		once.Do(l.answered.Done)
	}
	l.mu.Lock()
	l.seen.Items += taken
	l.seen.Missing += taken - len(found)
	l.mu.Unlock()
}
