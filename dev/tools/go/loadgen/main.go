// Command loadgen sends one request over and over from many clients and says how it went.
//
// It never retries: every attempt is counted. One connection a client. In a stream every client keeps
// -window items outstanding; each item carries an id of its own.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
)

// rawCodec passes bytes through: the load is prepared once, outside.
type rawCodec struct{}

func (rawCodec) Marshal(v any) ([]byte, error)      { return *v.(*[]byte), nil }
func (rawCodec) Unmarshal(data []byte, v any) error { *v.(*[]byte) = slices.Clone(data); return nil }
func (rawCodec) Name() string                       { return "proto" }

type result struct {
	Answered  int            `json:"answered"`
	Failed    int            `json:"failed"`
	Codes     map[string]int `json:"codes"`
	Seconds   float64        `json:"seconds"`
	P50Ms     float64        `json:"p50_ms"`
	P99Ms     float64        `json:"p99_ms"`
	LongestMs float64        `json:"longest_ms"`
	GapMs     float64        `json:"gap_ms"` // longest time without any answer
}

type tally struct {
	mutex   sync.Mutex
	took    []time.Duration
	failed  int
	codes   map[string]int
	last    time.Time
	longest time.Duration
}

func (t *tally) add(started time.Time, err error) {
	now := time.Now()
	t.mutex.Lock()
	defer t.mutex.Unlock()
	if err != nil {
		t.failed++
		t.codes[status.Code(err).String()]++
		return
	}
	t.took = append(t.took, now.Sub(started))
	t.longest = max(t.longest, now.Sub(t.last))
	t.last = now
}

func main() {
	address := flag.String("addr", "127.0.0.1:50051", "server")
	method := flag.String("method", "/hotslot.entailment.v1.EntailmentService/Predict", "full method")
	mode := flag.String("mode", "unary", "unary or stream")
	clients := flag.Int("clients", 1, "clients, one connection each")
	window := flag.Int("window", 1, "items outstanding a stream")
	seconds := flag.Float64("seconds", 5, "how long")
	deadline := flag.Float64("deadline", 10, "seconds a unary call may take")
	path := flag.String("request", "", "file with the bytes of one request")
	flag.Parse()
	body, err := os.ReadFile(*path)
	if err != nil {
		fmt.Fprintln(os.Stderr, "loadgen: name a request file:", err)
		os.Exit(2)
	}
	encoding.RegisterCodec(rawCodec{})
	counts := &tally{codes: map[string]int{}, last: time.Now()}
	begun := time.Now()
	end := begun.Add(time.Duration(*seconds * float64(time.Second)))
	var clientsDone sync.WaitGroup
	for range *clients {
		clientsDone.Go(func() {
			connection, err := grpc.NewClient(*address, grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				counts.add(begun, err)
				return
			}
			defer connection.Close()
			if *mode == "stream" {
				runStream(connection, *method, body, *window, end, counts)
				return
			}
			runUnary(connection, *method, body, time.Duration(*deadline*float64(time.Second)), end, counts)
		})
	}
	clientsDone.Wait()
	report(counts, time.Since(begun))
}

func runUnary(connection *grpc.ClientConn, method string, body []byte, deadline time.Duration, end time.Time, counts *tally) {
	for time.Now().Before(end) {
		started := time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), deadline)
		var answer []byte
		err := connection.Invoke(ctx, method, &body, &answer)
		cancel()
		counts.add(started, err)
		if err != nil {
			time.Sleep(time.Millisecond)
		}
	}
}

func runStream(connection *grpc.ClientConn, method string, body []byte, window int, end time.Time, counts *tally) {
	ctx, cancel := context.WithDeadline(context.Background(), end.Add(10*time.Second))
	defer cancel()
	description := &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}
	stream, err := connection.NewStream(ctx, description, method)
	if err != nil {
		counts.add(time.Now(), err)
		return
	}
	sent := make([]time.Time, window)
	send := func(slot int) error {
		sent[slot] = time.Now()
		message := item(fmt.Sprint(slot), body)
		return stream.SendMsg(&message)
	}
	for slot := range window {
		if err = send(slot); err != nil {
			counts.add(time.Now(), err)
			return
		}
	}
	for outstanding := window; outstanding > 0; {
		var answer []byte
		if err = stream.RecvMsg(&answer); err != nil {
			counts.add(time.Now(), err)
			return
		}
		for _, slot := range slots(answer) {
			counts.add(sent[slot], nil)
			outstanding--
			if time.Now().Before(end) && send(slot) == nil {
				outstanding++
			}
		}
	}
	_ = stream.CloseSend()
}

// item is a StreamPredictRequest {items: [{item_id, request}]}.
func item(id string, request []byte) []byte {
	inner := protowire.AppendTag(nil, 1, protowire.BytesType)
	inner = protowire.AppendString(inner, id)
	inner = protowire.AppendTag(inner, 2, protowire.BytesType)
	inner = protowire.AppendBytes(inner, request)
	outer := protowire.AppendTag(nil, 1, protowire.BytesType)
	return protowire.AppendBytes(outer, inner)
}

// slots are the item ids of a StreamPredictResponse.
func slots(answer []byte) []int {
	var found []int
	for len(answer) > 0 {
		_, _, tag := protowire.ConsumeTag(answer)
		result, size := protowire.ConsumeBytes(answer[tag:])
		_, _, inner := protowire.ConsumeTag(result)
		id, _ := protowire.ConsumeString(result[inner:])
		var slot int
		fmt.Sscan(id, &slot)
		found = append(found, slot)
		answer = answer[tag+size:]
	}
	return found
}

func report(counts *tally, took time.Duration) {
	slices.Sort(counts.took)
	at := func(share float64) float64 {
		if len(counts.took) == 0 {
			return 0
		}
		return float64(counts.took[int(share*float64(len(counts.took)-1))].Microseconds()) / 1000
	}
	_ = json.NewEncoder(os.Stdout).Encode(result{
		Answered: len(counts.took), Failed: counts.failed, Codes: counts.codes, Seconds: took.Seconds(),
		P50Ms: at(0.5), P99Ms: at(0.99), LongestMs: at(1), GapMs: float64(counts.longest.Microseconds()) / 1000,
	})
}
