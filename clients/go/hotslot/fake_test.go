package hotslot

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	entailmentv1 "hotslot.io/client-go/gen/entailment/v1"
)

type predictStream = grpc.BidiStreamingServer[entailmentv1.StreamPredictRequest, entailmentv1.StreamPredictResponse]

// fakeServer answers as its functions say; attempt counts their calls from 1.
type fakeServer struct {
	entailmentv1.UnimplementedEntailmentServiceServer

	node     string
	predict  func(ctx context.Context, attempt int, request *entailmentv1.PredictRequest) (*entailmentv1.PredictResponse, error)
	stream   func(attempt int, stream predictStream) error
	health   *health.Server
	server   *grpc.Server
	listener *bufconn.Listener
	attempts atomic.Int64

	mu       sync.Mutex
	metadata metadata.MD // of the last call
}

func (f *fakeServer) Predict(ctx context.Context, request *entailmentv1.PredictRequest) (
	*entailmentv1.PredictResponse, error,
) {
	f.note(ctx)
	attempt := int(f.attempts.Add(1))
	if f.predict == nil {
		return f.answer(request), nil
	}
	return f.predict(ctx, attempt, request)
}

func (f *fakeServer) note(ctx context.Context) {
	found, _ := metadata.FromIncomingContext(ctx)
	f.mu.Lock()
	f.metadata = found
	f.mu.Unlock()
}

func (f *fakeServer) StreamPredict(stream predictStream) error {
	f.note(stream.Context())
	return f.stream(int(f.attempts.Add(1)), stream)
}

func (f *fakeServer) answer(request *entailmentv1.PredictRequest) *entailmentv1.PredictResponse {
	response := &entailmentv1.PredictResponse{ServedBy: &entailmentv1.ServedBy{Node: f.node}}
	for range request.GetStatements() {
		response.Results = append(response.Results, &entailmentv1.StatementResult{Label: entailmentv1.Label_LABEL_YES})
	}
	return response
}

// start serves until the end of the test.
func (f *fakeServer) start(t *testing.T, opts ...grpc.ServerOption) *fakeServer {
	t.Helper()
	f.listener = bufconn.Listen(1 << 20)
	f.server = grpc.NewServer(append([]grpc.ServerOption{grpc.MaxRecvMsgSize(64 << 20)}, opts...)...)
	f.health = health.NewServer()
	f.health.SetServingStatus(entailmentv1.EntailmentService_ServiceDesc.ServiceName, healthpb.HealthCheckResponse_SERVING)
	entailmentv1.RegisterEntailmentServiceServer(f.server, f)
	healthpb.RegisterHealthServer(f.server, f.health)
	go func() { _ = f.server.Serve(f.listener) }()
	t.Cleanup(f.server.Stop)
	return f
}

// connect returns a client of fake servers with short pauses; the first is "a:1", the second "b:1".
func connect(t *testing.T, servers []*fakeServer, opts ...Option) *Client {
	t.Helper()
	listeners := map[string]*bufconn.Listener{}
	target := ""
	for n, server := range servers {
		address := string(rune('a'+n)) + ":1"
		listeners[address] = server.listener
		target += address + ","
	}
	dial := func(ctx context.Context, address string) (net.Conn, error) {
		return listeners[address].DialContext(ctx)
	}
	hurry := func(o *options) { o.firstBackoff, o.maxBackoff = time.Millisecond, 4*time.Millisecond }
	all := append([]Option{WithPlaintext(), hurry, WithDialOptions(grpc.WithContextDialer(dial))}, opts...)
	client, err := New(target, all...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// refusal is the status of a server's error.
func refusal(code codes.Code, reason string, more ...protoadapt.MessageV1) *status.Status {
	details := append([]protoadapt.MessageV1{&errdetails.ErrorInfo{Reason: reason, Domain: "hotslot"}}, more...)
	s, err := status.New(code, "refused").WithDetails(details...)
	if err != nil {
		panic(err)
	}
	return s
}

func retryIn(d time.Duration) *errdetails.RetryInfo {
	return &errdetails.RetryInfo{RetryDelay: durationpb.New(d)}
}

// The steps of a scripted stream.

func receive(t *testing.T, stream predictStream) string {
	t.Helper()
	message, err := stream.Recv()
	if err != nil {
		return ""
	}
	return message.GetItems()[0].GetItemId()
}

func send(stream predictStream, ids ...string) error {
	response := &entailmentv1.StreamPredictResponse{}
	for _, id := range ids {
		outcome := &entailmentv1.StreamResult_Response{Response: &entailmentv1.PredictResponse{}}
		response.Results = append(response.Results, &entailmentv1.StreamResult{ItemId: id, Outcome: outcome})
	}
	return stream.Send(response)
}

func sendFailure(stream predictStream, id string, failure *spb.Status) error {
	result := &entailmentv1.StreamResult{ItemId: id, Outcome: &entailmentv1.StreamResult_Error{Error: failure}}
	return stream.Send(&entailmentv1.StreamPredictResponse{Results: []*entailmentv1.StreamResult{result}})
}

// answerAll answers each item at once, until the caller half-closes.
func answerAll(stream predictStream) error {
	for {
		message, err := stream.Recv()
		if err != nil {
			return nil
		}
		for _, item := range message.GetItems() {
			if err := send(stream, item.GetItemId()); err != nil {
				return err
			}
		}
	}
}
