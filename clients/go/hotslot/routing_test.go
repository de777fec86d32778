package hotslot

import (
	"errors"
	"slices"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
)

func TestACallAndAStreamSayWhichVersionIsToAnswerAndToWhichKeyTheyBelong(t *testing.T) {
	server := (&fakeServer{stream: func(_ int, stream predictStream) error { return answerAll(stream) }}).start(t)
	client := connect(t, []*fakeServer{server})
	ctx := metadata.AppendToOutgoingContext(within(t), "x-request-id", "mine")
	ctx = ContextWithModelVersion(ContextWithRoutingKey(ContextWithRoutingKey(ctx, "other"), "shop-17"), "canary")

	sent := func() [3]string {
		server.mu.Lock()
		defer server.mu.Unlock()
		var found [3]string
		for n, key := range []string{"x-routing-key", "x-model-version", "x-request-id"} {
			if values := server.metadata.Get(key); len(values) == 1 {
				found[n] = values[0]
			}
		}
		return found
	}
	want := [3]string{"shop-17", "canary", "mine"}
	if _, err := client.Predict(ctx, request); err != nil || sent() != want {
		t.Errorf("a call: %v, %v", sent(), err)
	}
	for _, err := range client.PredictMany(ctx, slices.Values([]PredictItem{{PredictRequest: request}})) {
		if err != nil || sent() != want {
			t.Errorf("a stream: %v, %v", sent(), err)
		}
	}
	if _, err := client.Predict(ContextWithModelVersion(ctx, ""), request); err != nil || sent()[1] != "" {
		t.Errorf("an empty version: %v, %v", sent(), err)
	}
}

func TestARoutingKeyThatCannotBeSentIsAnError(t *testing.T) {
	server := (&fakeServer{}).start(t)
	client := connect(t, []*fakeServer{server})

	_, err := client.Predict(ContextWithRoutingKey(within(t), "Müller"), request)

	if failure := (*Error)(nil); !errors.As(err, &failure) || failure.Code != codes.Internal || server.attempts.Load() != 0 {
		t.Errorf("%v after %d attempts", err, server.attempts.Load())
	}
}
