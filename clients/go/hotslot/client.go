package hotslot

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/health" // without it gRPC ignores the service config's health checks
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	addressv1 "hotslot.io/client-go/gen/address/v1"
	entailmentv1 "hotslot.io/client-go/gen/entailment/v1"
)

//go:embed service_config.json
var sharedConfig string

// Client calls the servers behind one target. It is safe for concurrent use; make one and keep it.
type Client struct {
	conns      []*grpc.ClientConn
	entailment entailmentv1.EntailmentServiceClient
	tagging    addressv1.AddressTaggingServiceClient
	options    options
	isClosed   *atomic.Bool
}

// New returns a client of a target: "dns:///NAME:PORT" for all addresses of a name, "HOST:PORT,HOST:PORT" for several
// servers, or any other target of gRPC. It needs [WithTLS] or [WithPlaintext]. It connects with the first call.
func New(target string, opts ...Option) (*Client, error) {
	o := defaultOptions()
	for _, apply := range opts {
		apply(&o)
	}
	entailment, err := dial(target, o, entailmentv1.EntailmentService_ServiceDesc.ServiceName)
	if err != nil {
		return nil, err
	}
	tagging, err := dial(target, o, addressv1.AddressTaggingService_ServiceDesc.ServiceName)
	if err != nil {
		return nil, errors.Join(err, entailment.Close())
	}
	return &Client{
		conns:      []*grpc.ClientConn{entailment, tagging},
		entailment: entailmentv1.NewEntailmentServiceClient(entailment),
		tagging:    addressv1.NewAddressTaggingServiceClient(tagging),
		options:    o,
		isClosed:   new(atomic.Bool),
	}, nil
}

// dial returns a connection for the calls of one service: servers that are not ready for it are left out, those that
// are not ready for another one are not.
func dial(target string, o options, service string) (*grpc.ClientConn, error) {
	transport, err := o.credentials()
	if err != nil {
		return nil, err
	}
	target, options, err := readTarget(target)
	if err != nil {
		return nil, err
	}
	config, err := o.serviceConfig(service)
	if err != nil {
		return nil, err
	}
	options = append(options, convertErrors()...)
	options = append(
		options,
		transport,
		grpc.WithDefaultServiceConfig(config),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallSendMsgSize(o.maxRequest),
			grpc.MaxCallRecvMsgSize(o.maxResponse),
			// gRPC sends again only what is in this buffer; its default of 256 KiB is less than many pictures.
			grpc.MaxRetryRPCBufferSize(o.maxRequest+messageOverhead),
		),
		grpc.WithConnectParams(reconnect),
		grpc.WithKeepaliveParams(keepAlive),
	)
	if o.token != nil {
		options = append(options, grpc.WithPerRPCCredentials(bearer{o.token, !o.insecureOK}))
	}
	if o.noRetries {
		options = append(options, grpc.WithDisableRetry())
	}
	conn, err := grpc.NewClient(target, append(options, o.dial...)...)
	if err != nil {
		return nil, fmt.Errorf("hotslot: %w", err)
	}
	return conn, nil
}

const messageOverhead = 1 << 10 // framing of a message in the buffer for retries

var (
	// By default gRPC waits for up to two minutes before it connects again to a server that was away.
	reconnect = grpc.ConnectParams{
		Backoff: backoff.Config{
			BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 5 * time.Second,
		},
		MinConnectTimeout: 5 * time.Second,
	}
	// A server or its machine that is gone without a word is noticed within 40 s. Servers accept a ping every 5 s.
	keepAlive = keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}
)

// Close ends all calls and connections.
func (c *Client) Close() error {
	c.isClosed.Store(true)
	var found []error
	for _, conn := range c.conns {
		found = append(found, conn.Close())
	}
	return errors.Join(found...)
}

// Entailment returns the generated stub, over the same connection: for messages of your own. Its errors are *Error too.
func (c *Client) Entailment() entailmentv1.EntailmentServiceClient { return c.entailment }

// Tagging returns the generated stub, over the same connection: for messages of your own. Its errors are *Error too.
func (c *Client) Tagging() addressv1.AddressTaggingServiceClient { return c.tagging }

// PredictRequest is one picture and the statements to judge.
type PredictRequest struct {
	// Picture is a JPEG, PNG or WebP file.
	Picture []byte
	// Statements are 1 to 32 sentences.
	Statements []string
	// Premise is a sentence that is assumed to be true. Optional.
	Premise string
	// Model is the name of the served model. Empty: that of [WithModel], else the server's only one.
	Model string
}

func (r PredictRequest) message(model string) (*entailmentv1.PredictRequest, error) {
	if err := checkText("statements", r.Statements...); err != nil {
		return nil, err
	}
	if err := checkText("premise", r.Premise); err != nil {
		return nil, err
	}
	if r.Model != "" {
		model = r.Model
	}
	if err := checkText("model", model); err != nil {
		return nil, err
	}
	message := &entailmentv1.PredictRequest{Model: model, Statements: r.Statements, Premise: r.Premise}
	if r.Picture != nil {
		message.Image = &entailmentv1.Image{Source: &entailmentv1.Image_Content{Content: r.Picture}}
	}
	return message, nil
}

// Predict judges statements about one picture: one result a statement, in their order. Its error is an *Error.
//
// The deadline is that of the context; without one, that of the service config.
func (c *Client) Predict(ctx context.Context, request PredictRequest, opts ...grpc.CallOption) (
	*entailmentv1.PredictResponse, error,
) {
	message, err := request.message(c.options.model)
	if err != nil {
		return nil, err
	}
	return c.entailment.Predict(ctx, message, opts...)
}

// TagRequest is the addresses to tag.
type TagRequest struct {
	// Addresses are 1 to 64, each of at most 500 characters.
	Addresses []string
	// Model is the name of the served model. Empty: that of [WithModel], else the server's only one.
	Model string
}

func (r TagRequest) message(model string) (*addressv1.PredictRequest, error) {
	if err := checkText("addresses", r.Addresses...); err != nil {
		return nil, err
	}
	if r.Model != "" {
		model = r.Model
	}
	if err := checkText("model", model); err != nil {
		return nil, err
	}
	return &addressv1.PredictRequest{Model: model, Addresses: r.Addresses}, nil
}

// Tag cuts addresses into their parts: one result an address, in their order. Its error is an *Error.
func (c *Client) Tag(ctx context.Context, request TagRequest, opts ...grpc.CallOption) (
	*addressv1.PredictResponse, error,
) {
	message, err := request.message(c.options.model)
	if err != nil {
		return nil, err
	}
	return c.tagging.Predict(ctx, message, opts...)
}

// checkText refuses what protobuf would refuse to write, with the name of the field.
func checkText(field string, texts ...string) error {
	for number, text := range texts {
		if utf8.ValidString(text) {
			continue
		}
		if len(texts) > 1 || strings.HasSuffix(field, "s") {
			field = fmt.Sprintf("%s[%d]", field, number)
		}
		return refuse(field, field+" is not valid UTF-8")
	}
	return nil
}

// checkSize refuses what gRPC would refuse to send; in a stream it would end the call.
func checkSize(message proto.Message, limit int) error {
	if size := proto.Size(message); size > limit {
		text := fmt.Sprintf("the message has %d bytes, the limit is %d", size, limit)
		return fromCode(codes.ResourceExhausted, text)
	}
	return nil
}

func (o *options) credentials() (grpc.DialOption, error) {
	switch {
	case o.tls != nil && o.plaintext:
		return nil, errors.New("hotslot: WithTLS and WithPlaintext exclude each other")
	case o.tls != nil:
		return grpc.WithTransportCredentials(credentials.NewTLS(o.tls)), nil
	case o.plaintext && o.token != nil && !o.insecureOK:
		return nil, errors.New("hotslot: a token needs WithTLS; WithTokenInPlaintext sends it unprotected")
	case o.plaintext:
		return grpc.WithTransportCredentials(insecure.NewCredentials()), nil
	default:
		return nil, errors.New("hotslot: use WithTLS or WithPlaintext")
	}
}

type bearer struct {
	token    TokenSource
	needsTLS bool
}

func (b bearer) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	token, err := b.token(ctx)
	if err != nil {
		return nil, status.Errorf(codes.Unauthenticated, "there is no token: %v", err)
	}
	return map[string]string{"authorization": "Bearer " + strings.TrimSpace(token)}, nil
}

func (b bearer) RequireTransportSecurity() bool { return b.needsTLS }
