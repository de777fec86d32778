package hotslot

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	entailmentv1 "hotslot.io/client-go/gen/entailment/v1"
)

// What grpc-go makes of the service config: the column of docs/service-config.md.

// failing answers its first calls UNAVAILABLE, with the given trailers, then OK.
func failing(times int, trailer metadata.MD) *fakeServer {
	server := &fakeServer{}
	server.predict = func(ctx context.Context, attempt int, request *entailmentv1.PredictRequest) (
		*entailmentv1.PredictResponse, error,
	) {
		if attempt > times {
			return server.answer(request), nil
		}
		_ = grpc.SetTrailer(ctx, trailer)
		return nil, status.Error(codes.Unavailable, "for now")
	}
	return server
}

func TestPushBackOfMinusOneEndsTheAttempts(t *testing.T) {
	server := failing(1, metadata.Pairs("grpc-retry-pushback-ms", "-1")).start(t)
	_, err := connect(t, []*fakeServer{server}).Predict(within(t), request)
	if status.Code(err) != codes.Unavailable || server.attempts.Load() != 1 {
		t.Errorf("%v after %d attempts", err, server.attempts.Load())
	}
}

func TestACallHasFiveAttempts(t *testing.T) {
	server := failing(9, metadata.Pairs("grpc-retry-pushback-ms", "1")).start(t)
	_, err := connect(t, []*fakeServer{server}).Predict(within(t), request)
	if status.Code(err) != codes.Unavailable || server.attempts.Load() != 5 {
		t.Errorf("%v after %d attempts", err, server.attempts.Load())
	}
}

func TestACallWithoutRetriesHasOneAttempt(t *testing.T) {
	server := failing(9, nil).start(t)
	_, err := connect(t, []*fakeServer{server}, WithoutRetries()).Predict(within(t), request)
	if status.Code(err) != codes.Unavailable || server.attempts.Load() != 1 {
		t.Errorf("%v after %d attempts", err, server.attempts.Load())
	}
}

func TestARequestThatIsLargerThanTheRetryBufferHasOneAttempt(t *testing.T) {
	server := failing(1, nil).start(t)
	defaultBuffer := WithDialOptions(grpc.WithDefaultCallOptions(grpc.MaxRetryRPCBufferSize(256 << 10)))
	large := PredictRequest{Picture: make([]byte, 300<<10), Statements: request.Statements}
	_, err := connect(t, []*fakeServer{server}, defaultBuffer).Predict(within(t), large)
	if status.Code(err) != codes.Unavailable || server.attempts.Load() != 1 {
		t.Errorf("%v after %d attempts", err, server.attempts.Load())
	}
}

func TestACallThatHasReceivedHeadersHasOneAttempt(t *testing.T) {
	server := (&fakeServer{predict: func(ctx context.Context, _ int, _ *entailmentv1.PredictRequest) (
		*entailmentv1.PredictResponse, error,
	) {
		_ = grpc.SendHeader(ctx, metadata.Pairs("x-request-id", "mine"))
		return nil, status.Error(codes.Unavailable, "for now")
	}}).start(t)
	_, err := connect(t, []*fakeServer{server}).Predict(within(t), request)
	if status.Code(err) != codes.Unavailable || server.attempts.Load() != 1 {
		t.Errorf("%v after %d attempts", err, server.attempts.Load())
	}
	if failure := (*Error)(nil); !errors.As(err, &failure) || failure.RequestID != "mine" {
		t.Errorf("request id of %v", err)
	}
}

func TestACallIsTriedAgainIfNoServerCouldBePicked(t *testing.T) {
	server := (&fakeServer{}).start(t)
	service := entailmentv1.EntailmentService_ServiceDesc.ServiceName
	server.health.SetServingStatus(service, healthpb.HealthCheckResponse_NOT_SERVING)
	client := connect(t, []*fakeServer{server})
	serve := time.AfterFunc(20*time.Millisecond, func() {
		server.health.SetServingStatus(service, healthpb.HealthCheckResponse_SERVING)
	})
	defer serve.Stop()
	if _, err := client.Predict(within(t), request); err != nil {
		t.Error(err)
	}
}

func TestAnEmptyHealthNameIsTheServerAsAWhole(t *testing.T) {
	a, b := (&fakeServer{node: "a"}).start(t), (&fakeServer{node: "b"}).start(t)
	a.health.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
	client := connect(t, []*fakeServer{a, b}, WithDialOptions(grpc.WithDefaultServiceConfig(sharedConfig)))
	for range 20 {
		response, err := client.Predict(within(t), request)
		if err != nil || response.GetServedBy().GetNode() != "b" {
			t.Fatalf("%v, %v", response.GetServedBy(), err)
		}
	}
}

func TestTheTimeoutOfTheConfigIsACap(t *testing.T) {
	server := (&fakeServer{predict: func(ctx context.Context, _ int, _ *entailmentv1.PredictRequest) (
		*entailmentv1.PredictResponse, error,
	) {
		<-ctx.Done()
		return nil, status.FromContextError(ctx.Err()).Err()
	}}).start(t)
	config := strings.Replace(sharedConfig, `"timeout": "60s"`, `"timeout": "0.05s"`, 1)
	began := time.Now()
	_, err := connect(t, []*fakeServer{server}, WithServiceConfig(config)).Predict(within(t), request)
	if took := time.Since(began); !errors.Is(err, context.DeadlineExceeded) || took < 50*time.Millisecond || took > 5*time.Second {
		t.Errorf("%v after %v", err, took)
	}
}

func TestALargeAnswerNeedsBothLimits(t *testing.T) {
	server := (&fakeServer{predict: func(context.Context, int, *entailmentv1.PredictRequest) (
		*entailmentv1.PredictResponse, error,
	) {
		return &entailmentv1.PredictResponse{ServedBy: &entailmentv1.ServedBy{Node: strings.Repeat("x", 5<<20)}}, nil
	}}).start(t)
	if _, err := connect(t, []*fakeServer{server}).Predict(within(t), request); err != nil {
		t.Error(err)
	}
	_, err := connect(t, []*fakeServer{server}, WithMaxResponseBytes(4<<20)).Predict(within(t), request)
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("5 MiB with a limit of 4: %v", err)
	}
}
