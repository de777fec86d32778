package hotslot

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	entailmentv1 "hotslot.io/client-go/gen/entailment/v1"
)

func numbered(count int) iter.Seq[PredictItem] {
	return func(yield func(PredictItem) bool) {
		for n := range count {
			if !yield(PredictItem{ID: fmt.Sprint("item ", n), PredictRequest: request}) {
				return
			}
		}
	}
}

// collect returns the outcomes by index and the error that ended the iteration; an item with two outcomes fails the test.
func collect(t *testing.T, outcomes iter.Seq2[PredictOutcome, error]) (map[int]PredictOutcome, error) {
	t.Helper()
	found := map[int]PredictOutcome{}
	for outcome, err := range outcomes {
		if err != nil {
			return found, err
		}
		if _, isTwice := found[outcome.Index]; isTwice {
			t.Errorf("item %d has two outcomes", outcome.Index)
		}
		if (outcome.Response == nil) == (outcome.Err == nil) {
			t.Errorf("item %d: %v and %v", outcome.Index, outcome.Response, outcome.Err)
		}
		found[outcome.Index] = outcome
	}
	return found, nil
}

func expectAnswers(t *testing.T, found map[int]PredictOutcome, err error, count int) {
	t.Helper()
	if err != nil || len(found) != count {
		t.Fatalf("%d outcomes of %d, %v", len(found), count, err)
	}
	for index, outcome := range found {
		if outcome.Err != nil || outcome.ID != fmt.Sprint("item ", index) {
			t.Errorf("item %d: %q, %v", index, outcome.ID, outcome.Err)
		}
	}
}

func TestEveryItemHasOneOutcomeWhenStreamsDrainAndBreak(t *testing.T) {
	server := &fakeServer{}
	server.stream = func(attempt int, stream predictStream) error {
		if attempt > 8 {
			return answerAll(stream)
		}
		var ids []string
		for range 5 {
			ids = append(ids, receive(t, stream))
		}
		if err := send(stream, ids[3], ids[1]); err != nil { // three are left without an outcome
			return err
		}
		return []error{
			refusal(codes.Unavailable, "DRAINING").Err(),
			status.Error(codes.Unavailable, "connection reset"),
			status.Error(codes.Canceled, "of the server"),
			nil, // ends as if all was done
		}[attempt%4]
	}
	server.start(t)

	found, err := collect(t, connect(t, []*fakeServer{server}).PredictMany(within(t), numbered(100), Window(7)))

	expectAnswers(t, found, err, 100)
	if attempts := server.attempts.Load(); attempts != 9 {
		t.Errorf("%d streams", attempts)
	}
}

func TestAConnectionThatBreaksLosesNoItem(t *testing.T) {
	server := &fakeServer{}
	server.stream = func(attempt int, stream predictStream) error {
		if attempt > 1 {
			return answerAll(stream)
		}
		_ = send(stream, receive(t, stream))
		receive(t, stream)
		go server.server.Stop() // closes all connections
		<-stream.Context().Done()
		return nil
	}
	server.start(t)
	other := (&fakeServer{stream: func(_ int, stream predictStream) error { return answerAll(stream) }}).start(t)

	found, err := collect(t, connect(t, []*fakeServer{server, other}).PredictMany(within(t), numbered(50)))

	expectAnswers(t, found, err, 50)
}

func TestAnItemThatIsRefusedForNowIsSentAgain(t *testing.T) {
	server := (&fakeServer{stream: func(_ int, stream predictStream) error {
		first := receive(t, stream)
		_ = sendFailure(stream, first, refusal(codes.Unavailable, "NOT_READY").Proto())
		again := receive(t, stream)
		if again != first {
			t.Errorf("%s, then %s", first, again)
		}
		for range maxItemAttempts {
			_ = sendFailure(stream, again, refusal(codes.ResourceExhausted, "QUEUE_FULL", retryIn(0)).Proto())
			again = receive(t, stream)
		}
		return nil
	}}).start(t)

	found, err := collect(t, connect(t, []*fakeServer{server}).PredictMany(within(t), numbered(1)))

	var failure *Error
	if err != nil || !errors.As(found[0].Err, &failure) || failure.Reason != "QUEUE_FULL" {
		t.Errorf("%v, %v", found, err)
	}
}

func TestAFailedItemEndsNothing(t *testing.T) {
	server := (&fakeServer{stream: func(_ int, stream predictStream) error {
		_ = sendFailure(stream, receive(t, stream), refusal(codes.InvalidArgument, "IMAGE_UNREADABLE").Proto())
		return answerAll(stream)
	}}).start(t)
	items := func(yield func(PredictItem) bool) {
		_ = yield(PredictItem{PredictRequest: request}) &&
			yield(PredictItem{PredictRequest: PredictRequest{Statements: []string{"\xff"}}}) &&
			yield(PredictItem{PredictRequest: PredictRequest{Picture: make([]byte, 2<<20)}}) &&
			yield(PredictItem{PredictRequest: request})
	}

	found, err := collect(t, connect(t, []*fakeServer{server}, WithMaxRequestBytes(1<<20)).PredictMany(within(t), items))

	var codesOf [4]codes.Code
	for index := range codesOf {
		codesOf[index] = status.Code(found[index].Err)
	}
	if want := [...]codes.Code{codes.InvalidArgument, codes.InvalidArgument, codes.ResourceExhausted, codes.OK}; err != nil || codesOf != want {
		t.Errorf("%v, %v", codesOf, err)
	}
}

func TestAnItemThatNoServerTakesIsFoundAmongTheOthers(t *testing.T) {
	server := (&fakeServer{stream: func(_ int, stream predictStream) error {
		for {
			id := receive(t, stream)
			if id == "" {
				return nil
			}
			if id == "5" {
				return status.Error(codes.ResourceExhausted, "message larger than max")
			}
			if err := send(stream, id); err != nil {
				return err
			}
		}
	}}).start(t)

	found, err := collect(t, connect(t, []*fakeServer{server}).PredictMany(within(t), numbered(20)))

	if err != nil || len(found) != 20 || status.Code(found[5].Err) != codes.ResourceExhausted {
		t.Fatalf("%d outcomes, item 5: %v, %v", len(found), found[5].Err, err)
	}
	delete(found, 5)
	for index, outcome := range found {
		if outcome.Err != nil {
			t.Errorf("item %d: %v", index, outcome.Err)
		}
	}
}

func TestOutcomesMayComeInTheOrderOfTheItems(t *testing.T) {
	server := (&fakeServer{stream: func(_ int, stream predictStream) error {
		for {
			ids := []string{receive(t, stream), receive(t, stream), receive(t, stream)}
			slices.Reverse(ids)
			if ids[2] == "" {
				return nil
			}
			if err := send(stream, ids...); err != nil {
				return err
			}
		}
	}}).start(t)

	next := 0
	for outcome, err := range connect(t, []*fakeServer{server}).PredictMany(within(t), numbered(30), Window(6), InOrder()) {
		if err != nil || outcome.Index != next {
			t.Fatalf("%d instead of %d, %v", outcome.Index, next, err)
		}
		next++
	}
	if next != 30 {
		t.Errorf("%d outcomes", next)
	}
}

func TestNoMoreItemsAreReadThanTheWindowHolds(t *testing.T) {
	server := (&fakeServer{stream: func(_ int, stream predictStream) error { return answerAll(stream) }}).start(t)
	read, yielded := make(chan int, 1), 0
	read <- 0
	items := func(yield func(PredictItem) bool) {
		for item := range numbered(200) {
			count := <-read + 1
			read <- count
			if !yield(item) {
				return
			}
		}
	}
	for _, err := range connect(t, []*fakeServer{server}).PredictMany(within(t), items, Window(3)) {
		count := <-read
		read <- count
		if err != nil || count-yielded > 3 {
			t.Fatalf("%d read, %d yielded, %v", count, yielded, err)
		}
		yielded++
	}
	if yielded != 200 {
		t.Errorf("%d outcomes", yielded)
	}
}

func TestOutcomesComeWhileTheNextItemIsAwaited(t *testing.T) {
	server := (&fakeServer{stream: func(_ int, stream predictStream) error { return answerAll(stream) }}).start(t)
	more := make(chan bool, 1)
	more <- true
	items := func(yield func(PredictItem) bool) {
		for range more {
			if !yield(PredictItem{PredictRequest: request}) {
				return
			}
		}
	}
	count := 0
	for _, err := range connect(t, []*fakeServer{server}).PredictMany(within(t), items) {
		if err != nil {
			t.Fatal(err)
		}
		if count++; count == 5 {
			close(more)
			continue
		}
		more <- true // the next item comes only after this outcome
	}
	if count != 5 {
		t.Errorf("%d outcomes", count)
	}
}

func TestALoopThatIsLeftEarlyEndsEverything(t *testing.T) {
	server := (&fakeServer{stream: func(_ int, stream predictStream) error { return answerAll(stream) }}).start(t)
	client := connect(t, []*fakeServer{server})
	if _, err := client.Predict(within(t), request); err != nil { // the connection is there
		t.Fatal(err)
	}
	before := runtime.NumGoroutine()
	hasEnded := make(chan bool, 1)
	items := func(yield func(PredictItem) bool) {
		defer func() { hasEnded <- true }()
		for item := range numbered(1 << 30) {
			if !yield(item) {
				return
			}
		}
	}
	for range client.PredictMany(within(t), items) {
		break
	}
	<-hasEnded
	for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
		}
	}
}

func TestACancelledStreamGivesEveryItemItsOutcome(t *testing.T) {
	server := (&fakeServer{stream: func(_ int, stream predictStream) error {
		_ = send(stream, receive(t, stream))
		<-stream.Context().Done()
		return nil
	}}).start(t)
	ctx, cancel := context.WithCancel(within(t))
	defer cancel()
	answered, failed := 0, 0
	var end error
	for outcome, err := range connect(t, []*fakeServer{server}).PredictMany(ctx, numbered(1000), Window(8)) {
		switch {
		case err != nil:
			end = err
		case outcome.Err == nil:
			answered++
			cancel()
		case errors.Is(outcome.Err, context.Canceled):
			failed++
		default:
			t.Error(outcome.Err)
		}
	}
	if !errors.Is(end, context.Canceled) || answered != 1 || failed > 8 {
		t.Errorf("%d answered, %d failed, %v", answered, failed, end)
	}
}

func TestAnOutageThatLastsTooLongEndsTheStream(t *testing.T) {
	server := (&fakeServer{stream: func(int, predictStream) error {
		return refusal(codes.Unavailable, "NOT_READY").Err()
	}}).start(t)

	outcomes := connect(t, []*fakeServer{server}).PredictMany(within(t), numbered(10), MaxOutage(30*time.Millisecond))
	found, err := collect(t, outcomes)

	var failure *Error
	if !errors.As(err, &failure) || failure.Reason != "NOT_READY" || len(found) != 10 {
		t.Errorf("%d outcomes, %v", len(found), err)
	}
	if attempts := server.attempts.Load(); attempts < 5 {
		t.Errorf("%d attempts", attempts)
	}
}

func TestAFailureForGoodEndsTheStreamAtOnce(t *testing.T) {
	server := (&fakeServer{stream: func(int, predictStream) error {
		return refusal(codes.Unauthenticated, "TOKEN_UNKNOWN").Err()
	}}).start(t)

	_, err := collect(t, connect(t, []*fakeServer{server}).PredictMany(within(t), numbered(10)))

	if status.Code(err) != codes.Unauthenticated || server.attempts.Load() != 1 {
		t.Errorf("%v after %d attempts", err, server.attempts.Load())
	}
}

func TestNoItemsNeedNoServer(t *testing.T) {
	client, err := New("127.0.0.1:1", WithPlaintext())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	found, err := collect(t, client.PredictMany(within(t), numbered(0)))
	expectAnswers(t, found, err, 0)
}

func TestAStreamEndsInOrderAtTheServer(t *testing.T) {
	ended := make(chan error, 1)
	server := (&fakeServer{stream: func(_ int, stream predictStream) error {
		err := answerAll(stream)
		ended <- stream.Context().Err()
		return err
	}}).start(t)

	found, err := collect(t, connect(t, []*fakeServer{server}).PredictMany(within(t), numbered(3)))

	expectAnswers(t, found, err, 3)
	if err := <-ended; err != nil {
		t.Errorf("the server saw %v", err)
	}
}

func TestAPanicInTheLoopIsThatOfTheLoop(t *testing.T) {
	server := (&fakeServer{stream: func(_ int, stream predictStream) error { return answerAll(stream) }}).start(t)
	defer func() {
		if found := fmt.Sprint(recover()); !strings.Contains(found, "mine") {
			t.Error(found)
		}
	}()
	for range connect(t, []*fakeServer{server}).PredictMany(within(t), numbered(10)) {
		panic("mine")
	}
}

func TestAPanicInTheItemsIsThatOfTheLoop(t *testing.T) {
	server := (&fakeServer{stream: func(_ int, stream predictStream) error { return answerAll(stream) }}).start(t)
	defer func() {
		if found := fmt.Sprint(recover()); found != "mine" {
			t.Error(found)
		}
	}()
	items := func(yield func(PredictItem) bool) {
		_ = yield(PredictItem{PredictRequest: request})
		panic("mine")
	}
	for _, err := range connect(t, []*fakeServer{server}).PredictMany(within(t), items) {
		if err != nil {
			t.Error(err)
		}
	}
	t.Error("the loop goes on")
}

func TestAResultWithoutAnOutcomeIsAFailure(t *testing.T) {
	server := (&fakeServer{stream: func(_ int, stream predictStream) error {
		result := &entailmentv1.StreamResult{ItemId: receive(t, stream)}
		_ = stream.Send(&entailmentv1.StreamPredictResponse{Results: []*entailmentv1.StreamResult{result}})
		return answerAll(stream)
	}}).start(t)

	found, err := collect(t, connect(t, []*fakeServer{server}).PredictMany(within(t), numbered(1)))

	if err != nil || status.Code(found[0].Err) != codes.Internal {
		t.Errorf("%v, %v", found, err)
	}
}

func TestARefusalThatLastsLongerThanTheDeadlineIsTheOutcome(t *testing.T) {
	server := (&fakeServer{stream: func(_ int, stream predictStream) error {
		_ = sendFailure(stream, receive(t, stream), refusal(codes.ResourceExhausted, "QUEUE_FULL", retryIn(time.Hour)).Proto())
		return answerAll(stream)
	}}).start(t)

	found, err := collect(t, connect(t, []*fakeServer{server}).PredictMany(within(t), numbered(1)))

	var failure *Error
	if err != nil || !errors.As(found[0].Err, &failure) || failure.Reason != "QUEUE_FULL" {
		t.Errorf("%v, %v", found, err)
	}
}
