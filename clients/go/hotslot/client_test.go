package hotslot

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	entailmentv1 "hotslot.io/client-go/gen/entailment/v1"
)

var request = PredictRequest{Picture: []byte("picture"), Statements: []string{"a red square"}}

func TestAFailureHasReasonFieldAndRetryHint(t *testing.T) {
	violation := &errdetails.BadRequest_FieldViolation{Field: "image.content"}
	bad := &errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{violation}}
	server := (&fakeServer{predict: func(ctx context.Context, _ int, _ *entailmentv1.PredictRequest) (
		*entailmentv1.PredictResponse, error,
	) {
		_ = grpc.SetTrailer(ctx, metadata.Pairs("x-request-id", "id-7"))
		return nil, refusal(codes.InvalidArgument, "IMAGE_UNREADABLE", bad, retryIn(1500*time.Millisecond)).Err()
	}}).start(t)

	_, err := connect(t, []*fakeServer{server}).Predict(within(t), request)

	var failure *Error
	if !errors.As(err, &failure) {
		t.Fatalf("%T is not an *Error", err)
	}
	got := [...]string{failure.Code.String(), failure.Reason, failure.Field, failure.RequestID}
	if want := [...]string{"InvalidArgument", "IMAGE_UNREADABLE", "image.content", "id-7"}; got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	if after, isGiven := failure.RetryAfter(); !isGiven || after != 1500*time.Millisecond {
		t.Errorf("retry after %v %v", after, isGiven)
	}
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("package status sees %v", status.Code(err))
	}
}

func TestDeadlineAndCancellationAreThoseOfPackageContext(t *testing.T) {
	server := (&fakeServer{predict: func(ctx context.Context, _ int, _ *entailmentv1.PredictRequest) (
		*entailmentv1.PredictResponse, error,
	) {
		<-ctx.Done()
		return nil, status.FromContextError(ctx.Err()).Err()
	}}).start(t)
	client := connect(t, []*fakeServer{server})

	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	if _, err := client.Predict(ctx, request); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v is no DeadlineExceeded", err)
	}
	ctx, cancel = context.WithCancel(context.Background())
	cancel()
	if _, err := client.Predict(ctx, request); !errors.Is(err, context.Canceled) {
		t.Errorf("%v is no Canceled", err)
	}
}

func TestARefusalForNowIsSentAgainWhenTheServerSays(t *testing.T) {
	var began time.Time
	server := (&fakeServer{})
	server.predict = func(ctx context.Context, attempt int, request *entailmentv1.PredictRequest) (
		*entailmentv1.PredictResponse, error,
	) {
		if attempt == 1 {
			began = time.Now()
			_ = grpc.SetTrailer(ctx, metadata.Pairs("grpc-retry-pushback-ms", "40"))
			return nil, refusal(codes.ResourceExhausted, "QUEUE_FULL", retryIn(40*time.Millisecond)).Err()
		}
		return server.answer(request), nil
	}
	server.start(t)

	large := PredictRequest{Picture: bytes.Repeat([]byte("x"), 1<<20), Statements: request.Statements}
	response, err := connect(t, []*fakeServer{server}).Predict(within(t), large)

	if err != nil || len(response.GetResults()) != 1 || server.attempts.Load() != 2 {
		t.Fatalf("%v, %v after %d attempts", response, err, server.attempts.Load())
	}
	if waited := time.Since(began); waited < 40*time.Millisecond {
		t.Errorf("sent again after %v", waited)
	}
}

func TestAServerThatReportsNotServingGetsNoCalls(t *testing.T) {
	const service = "hotslot.entailment.v1.EntailmentService"
	a, b := (&fakeServer{node: "a"}).start(t), (&fakeServer{node: "b"}).start(t)
	a.health.SetServingStatus(service, healthpb.HealthCheckResponse_NOT_SERVING)
	client := connect(t, []*fakeServer{a, b})

	for range 20 {
		response, err := client.Predict(within(t), request)
		if err != nil || response.GetServedBy().GetNode() != "b" {
			t.Fatalf("%v, %v", response.GetServedBy(), err)
		}
	}
	a.health.SetServingStatus(service, healthpb.HealthCheckResponse_SERVING)
	b.health.SetServingStatus(service, healthpb.HealthCheckResponse_NOT_SERVING)
	for range 1000 {
		response, err := client.Predict(within(t), request)
		if err != nil {
			t.Fatal(err)
		}
		if response.GetServedBy().GetNode() == "a" {
			return
		}
	}
	t.Error("the server that serves again gets no calls")
}

func TestTheTokenIsSentOverTLSAlone(t *testing.T) {
	if _, err := New("localhost:1", WithPlaintext(), WithToken("secret")); err == nil {
		t.Error("a token over plaintext is taken without a word")
	}
	server := (&fakeServer{}).start(t)
	client := connect(t, []*fakeServer{server}, WithTokenInPlaintext("secret"))
	if _, err := client.Predict(within(t), request); err != nil {
		t.Fatal(err)
	}
	if got := server.metadata.Get("authorization"); len(got) != 1 || got[0] != "Bearer secret" {
		t.Errorf("authorization: %v", got)
	}
}

func TestATokenMayChange(t *testing.T) {
	if _, err := New("localhost:1", WithPlaintext(), WithTokenSource(fixedToken("secret"))); err == nil {
		t.Error("a token over plaintext is taken without a word")
	}
	server := (&fakeServer{}).start(t)
	var number atomic.Int32
	source := func(context.Context) (string, error) {
		if n := number.Add(1); n < 1000 {
			return fmt.Sprintf("token %d\n", n), nil
		}
		return "", errors.New("the issuer is away")
	}
	client := connect(t, []*fakeServer{server}, WithTokenSourceInPlaintext(source))
	var seen []string
	for range 2 {
		if _, err := client.Predict(within(t), request); err != nil {
			t.Fatal(err)
		}
		seen = append(seen, server.metadata.Get("authorization")...)
	}
	if len(seen) != 2 || seen[0] == seen[1] || strings.HasSuffix(seen[1], "\n") {
		t.Errorf("authorization: %q", seen)
	}
	number.Store(1000)
	_, err := client.Predict(within(t), request)
	var failed *Error
	if !errors.As(err, &failed) || failed.Code != codes.Unauthenticated || !strings.Contains(err.Error(), "the issuer is away") {
		t.Errorf("a source without a token: %v", err)
	}
}

func TestWhatCannotWorkIsRefusedByNew(t *testing.T) {
	for name, opts := range map[string][]Option{
		"no transport security chosen": nil,
		"both":                         {WithTLS(&tls.Config{}), WithPlaintext()}, //nolint:gosec
		"a config that is not JSON":    {WithPlaintext(), WithServiceConfig("{")},
	} {
		if _, err := New("localhost:1", opts...); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	for _, target := range []string{"a:1,b", "a:1,,b:2:3", ",", " , "} {
		if _, err := New(target, WithPlaintext()); err == nil {
			t.Errorf("%q: no error", target)
		}
	}
}

func TestTextThatIsNotUTF8IsRefusedWithItsField(t *testing.T) {
	client := connect(t, []*fakeServer{(&fakeServer{}).start(t)})
	_, err := client.Predict(within(t), PredictRequest{Picture: []byte("x"), Statements: []string{"a", "\xff"}})
	var failure *Error
	if !errors.As(err, &failure) || failure.Field != "statements[1]" || failure.Reason != "MESSAGE_MALFORMED" {
		t.Errorf("got %v", err)
	}
}

func TestTheLimitOfRequestsMayBeRaisedAndLowered(t *testing.T) {
	client := connect(t, []*fakeServer{(&fakeServer{}).start(t)}, WithMaxRequestBytes(48<<20))
	large := PredictRequest{Picture: make([]byte, 40<<20), Statements: request.Statements}
	if _, err := client.Predict(within(t), large); err != nil {
		t.Errorf("40 MiB with a limit of 48: %v", err)
	}
	client = connect(t, []*fakeServer{(&fakeServer{}).start(t)}, WithMaxRequestBytes(1<<10))
	_, err := client.Predict(within(t), PredictRequest{Picture: make([]byte, 2<<10), Statements: request.Statements})
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("2 KiB with a limit of 1: %v", err)
	}
}

func TestTheModelOfTheClientIsThatOfRequestsWithoutOne(t *testing.T) {
	for given, want := range map[string]string{"": "default", "other": "other"} {
		message, err := PredictRequest{Model: given}.message("default")
		if err != nil || message.GetModel() != want {
			t.Errorf("%q: %v, %v", given, message, err)
		}
	}
}

func TestAnErrorIsASentence(t *testing.T) {
	text := toError(refusal(codes.Unavailable, "DRAINING").Err()).Error()
	if !strings.HasPrefix(text, "hotslot: Unavailable DRAINING: ") {
		t.Error(text)
	}
}
