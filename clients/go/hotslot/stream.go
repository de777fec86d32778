package hotslot

import (
	"context"
	"iter"

	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"

	addressv1 "hotslot.io/client-go/gen/address/v1"
	entailmentv1 "hotslot.io/client-go/gen/entailment/v1"
)

// PredictItem is one item of PredictMany.
type PredictItem struct {
	PredictRequest
	// ID is the caller's own name for the item, returned with its outcome. It may be empty or occur twice; the server
	// does not get it.
	ID string
}

// TagItem is one item of TagMany.
type TagItem struct {
	TagRequest
	// ID is the caller's own name for the item, returned with its outcome. It may be empty or occur twice; the server
	// does not get it.
	ID string
}

// Outcome is what became of one item.
type Outcome[Response any] struct {
	// Index is the place of the item, from 0.
	Index int
	// ID is the item's.
	ID string
	// Response is the answer; nil if there is none.
	Response *Response
	// Err says why there is no answer; an *Error.
	Err error
}

// PredictOutcome is the outcome of one item of PredictMany.
type PredictOutcome = Outcome[entailmentv1.PredictResponse]

// TagOutcome is the outcome of one item of TagMany.
type TagOutcome = Outcome[addressv1.PredictResponse]

// PredictMany judges any number of items over one stream: an iterator over their outcomes, in any order.
//
//	for outcome, err := range client.PredictMany(ctx, items) {
//		if err != nil {
//			return err // no server answers; the outcomes until now stand
//		}
//		use(outcome.ID, outcome.Response, outcome.Err)
//	}
//
// Each item that is read from items has exactly one outcome, of the server or, after the stream has failed for good,
// with its error in Err. A failed item does not end the iteration; the second value does: it is the last and says why
// the rest of items was not read. What a server that drains or breaks leaves without an outcome is sent again, to
// another server or when there is one.
//
// Items are read in a goroutine of their own, at most a [Window] ahead of the outcomes. A loop that is left early ends
// the stream; items is then asked for nothing more, but is not waited for if it is just about to return an item. A
// picture is not copied: leave it unchanged until its item has an outcome.
func (c *Client) PredictMany(
	ctx context.Context, items iter.Seq[PredictItem], opts ...StreamOption,
) iter.Seq2[PredictOutcome, error] {
	build := func(item PredictItem) (string, *entailmentv1.PredictRequest, error) {
		message, err := item.message(c.options.model)
		return item.ID, message, err
	}
	return stream(ctx, c, predictProtocol(c.entailment), items, build, opts)
}

// TagMany tags any number of items over one stream, as PredictMany judges them.
func (c *Client) TagMany(ctx context.Context, items iter.Seq[TagItem], opts ...StreamOption) iter.Seq2[TagOutcome, error] {
	build := func(item TagItem) (string, *addressv1.PredictRequest, error) {
		message, err := item.message(c.options.model)
		return item.ID, message, err
	}
	return stream(ctx, c, tagProtocol(c.tagging), items, build, opts)
}

func stream[Item, Request, Message, Reply, Response any](
	ctx context.Context,
	c *Client,
	protocol protocol[Request, Message, Reply, Response],
	items iter.Seq[Item],
	build func(Item) (string, *Request, error),
	opts []StreamOption,
) iter.Seq2[Outcome[Response], error] {
	chosen := streamOptions{window: defaultWindow, maxOutage: defaultMaxOutage}
	for _, apply := range opts {
		apply(&chosen)
	}
	return func(yield func(Outcome[Response], error) bool) {
		newRun(ctx, c, chosen, protocol, yield).do(func(emit func(string, *Request, error) bool) {
			for item := range items {
				if !emit(build(item)) {
					return
				}
			}
		})
	}
}

// protocol is what differs between the streams of the two services.
type protocol[Request, Message, Reply, Response any] struct {
	open   func(context.Context, ...grpc.CallOption) (grpc.BidiStreamingClient[Message, Reply], error)
	wrap   func(wireID string, request *Request) *Message
	unwrap func(*Reply) []wireResult[Response]
}

// wireResult is one outcome as the server sends it: a response or a failure.
type wireResult[Response any] struct {
	wireID   string
	response *Response
	failure  *spb.Status
}

type predictRequests = protocol[
	entailmentv1.PredictRequest, entailmentv1.StreamPredictRequest,
	entailmentv1.StreamPredictResponse, entailmentv1.PredictResponse,
]

func predictProtocol(stub entailmentv1.EntailmentServiceClient) predictRequests {
	return predictRequests{
		open: stub.StreamPredict,
		wrap: func(wireID string, request *entailmentv1.PredictRequest) *entailmentv1.StreamPredictRequest {
			item := &entailmentv1.StreamItem{ItemId: wireID, Request: request}
			return &entailmentv1.StreamPredictRequest{Items: []*entailmentv1.StreamItem{item}}
		},
		unwrap: func(reply *entailmentv1.StreamPredictResponse) []wireResult[entailmentv1.PredictResponse] {
			found := make([]wireResult[entailmentv1.PredictResponse], len(reply.GetResults()))
			for n, one := range reply.GetResults() {
				found[n] = wireResult[entailmentv1.PredictResponse]{one.GetItemId(), one.GetResponse(), one.GetError()}
			}
			return found
		},
	}
}

type tagRequests = protocol[
	addressv1.PredictRequest, addressv1.StreamPredictRequest,
	addressv1.StreamPredictResponse, addressv1.PredictResponse,
]

func tagProtocol(stub addressv1.AddressTaggingServiceClient) tagRequests {
	return tagRequests{
		open: stub.StreamPredict,
		wrap: func(wireID string, request *addressv1.PredictRequest) *addressv1.StreamPredictRequest {
			item := &addressv1.StreamItem{ItemId: wireID, Request: request}
			return &addressv1.StreamPredictRequest{Items: []*addressv1.StreamItem{item}}
		},
		unwrap: func(reply *addressv1.StreamPredictResponse) []wireResult[addressv1.PredictResponse] {
			found := make([]wireResult[addressv1.PredictResponse], len(reply.GetResults()))
			for n, one := range reply.GetResults() {
				found[n] = wireResult[addressv1.PredictResponse]{one.GetItemId(), one.GetResponse(), one.GetError()}
			}
			return found
		},
	}
}
