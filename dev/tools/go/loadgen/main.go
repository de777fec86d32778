// Command loadgen plays a load on a gRPC server, or on an HTTP server, and writes every outcome as a JSON line.
//
//	loadgen plan.json
//
// It never retries: each call or item is one outcome. The connections are shared by the groups of the plan, so that two
// kinds of callers can be put on one connection or on different ones.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
)

// plan is the whole load.
type plan struct {
	Address     string  `json:"address"`
	Connections int     `json:"connections"`
	Seconds     float64 `json:"seconds"`
	Seed        uint64  `json:"seed"`
	Groups      []group `json:"groups"`
}

// group is a number of callers of one kind.
type group struct {
	Method      string            `json:"method"`       // of gRPC, or the path of a URL
	Mode        string            `json:"mode"`         // "unary", "stream", "plain" (a stream without ids, answered in order) or "http"
	Clients     int               `json:"clients"`      // closed loop: callers; streams: how many
	Window      int               `json:"window"`       // items outstanding a stream
	Rate        float64           `json:"rate"`         // open loop: calls a second of the whole group; 0: closed loop
	Arrivals    string            `json:"arrivals"`     // open loop: "poisson" or "uniform"
	Deadline    float64           `json:"deadline"`     // seconds of a unary call; of a stream after its last item
	Requests    []string          `json:"requests"`     // files with serialized requests, sent in turn
	Metadata    map[string]string `json:"metadata"`     // sent with each call
	Connections []int             `json:"connections"`  // that these callers use in turn; all if empty
	Begin       float64           `json:"begin"`        // seconds after the start of the load
	End         float64           `json:"end"`          // 0: the end of the load
	Pause       float64           `json:"pause"`        // closed loop: seconds between two calls of a caller
	ReadPause   float64           `json:"read_pause"`   // streams: seconds before each message is read
	CancelShare float64           `json:"cancel_share"` // of unary calls that the caller cancels …
	CancelAfter float64           `json:"cancel_after"` // … at a random time up to this many seconds
	Digest      bool              `json:"digest"`       // whether outcomes carry the digest of the answer
	Leave       bool              `json:"leave"`        // streams: whether they are cancelled at the end, without an outcome for what is outstanding

	number int
	bodies [][]byte
}

// outcome is one line of the output.
type outcome struct {
	Group    int     `json:"g"`
	Request  int     `json:"q"`                  // index of the request file
	Caller   int     `json:"c"`                  // number of the caller in its group; of an open loop, of the call
	Number   int     `json:"n"`                  // of the request: in place of the placeholder in its body
	At       float64 `json:"at"`                 // when it was sent, seconds after the start of the load
	Took     float64 `json:"took"`               // seconds until its outcome
	Code     int     `json:"code"`               // of gRPC; -1: a result that belongs to no item
	Reason   string  `json:"reason,omitempty"`   // ErrorInfo's
	Retry    float64 `json:"retry,omitempty"`    // RetryInfo's delay, seconds
	Pushback string  `json:"pushback,omitempty"` // trailing metadata grpc-retry-pushback-ms
	Revision string  `json:"revision,omitempty"` // that answered
	Digest   string  `json:"digest,omitempty"`   // of the results in the answer
	Detail   string  `json:"detail,omitempty"`   // message of a failure
}

// load is a plan that runs.
type load struct {
	plan        plan
	began       time.Time
	connections []*grpc.ClientConn
	web         *http.Client
	outcomes    chan outcome
	sent        atomic.Int64 // requests
}

// rawCodec passes bytes through: the requests are prepared once, outside.
type rawCodec struct{}

func (rawCodec) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }
func (rawCodec) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}
func (rawCodec) Name() string { return "proto" }

func main() {
	if len(os.Args) != 2 {
		fail("name a plan")
	}
	chosen, err := read(os.Args[1])
	if err != nil {
		fail(err)
	}
	encoding.RegisterCodec(rawCodec{})
	run := &load{plan: chosen, outcomes: make(chan outcome, 4096), web: webClient(chosen)}
	for range chosen.Connections {
		connection, err := grpc.NewClient(chosen.Address,
			grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry(), grpc.WithNoProxy())
		if err != nil {
			fail(err)
		}
		defer connection.Close()
		if !chosen.isWeb() {
			connection.Connect()
		}
		run.connections = append(run.connections, connection)
	}
	var written sync.WaitGroup
	run.began = time.Now()
	written.Go(func() { write(run) })
	var groups sync.WaitGroup
	for number := range chosen.Groups {
		groups.Go(func() { run.play(&chosen.Groups[number]) })
	}
	groups.Wait()
	close(run.outcomes)
	written.Wait()
}

func read(path string) (plan, error) {
	chosen := plan{Connections: 1}
	text, err := os.ReadFile(path)
	if err != nil {
		return chosen, err
	}
	if err := json.Unmarshal(text, &chosen); err != nil {
		return chosen, err
	}
	for number := range chosen.Groups {
		group := &chosen.Groups[number]
		group.number = number
		if group.End == 0 {
			group.End = chosen.Seconds
		}
		for _, path := range group.Requests {
			body, err := os.ReadFile(path)
			if err != nil {
				return chosen, err
			}
			group.bodies = append(group.bodies, body)
		}
		if len(group.bodies) == 0 {
			return chosen, fmt.Errorf("group %d has no requests", number)
		}
	}
	return chosen, nil
}

// write prints the head, then each outcome within a tenth of a second.
func write(run *load) {
	out := bufio.NewWriterSize(os.Stdout, 1<<16)
	encoder := json.NewEncoder(out)
	_ = encoder.Encode(map[string]float64{"began": float64(run.began.UnixNano()) / 1e9})
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case row, open := <-run.outcomes:
			if !open {
				_ = out.Flush()
				return
			}
			_ = encoder.Encode(row)
		case <-tick.C:
			_ = out.Flush()
		}
	}
}

func (run *load) since(moment time.Time) float64 { return moment.Sub(run.began).Seconds() }

func (run *load) at(seconds float64) time.Time {
	return run.began.Add(time.Duration(seconds * float64(time.Second)))
}

// connection is the one of a group's n-th caller.
func (run *load) connection(group *group, number int) *grpc.ClientConn {
	if len(group.Connections) == 0 {
		return run.connections[number%len(run.connections)]
	}
	return run.connections[group.Connections[number%len(group.Connections)]]
}

func fail(why any) {
	fmt.Fprintln(os.Stderr, "loadgen:", why)
	os.Exit(2)
}
