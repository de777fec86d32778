package hotslot

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"time"

	"google.golang.org/grpc"
)

const (
	defaultWindow       = 64
	defaultMaxOutage    = time.Minute
	defaultMessageBytes = 32 << 20 // as in the service config, and the server's own default limit
)

// Option configures a Client.
type Option func(*options)

type options struct {
	tls          *tls.Config
	plaintext    bool
	token        TokenSource
	insecureOK   bool
	noRetries    bool
	model        string
	maxRequest   int
	maxResponse  int
	config       string
	dial         []grpc.DialOption
	firstBackoff time.Duration
	maxBackoff   time.Duration
}

func defaultOptions() options {
	return options{
		maxRequest:   defaultMessageBytes,
		maxResponse:  defaultMessageBytes,
		config:       sharedConfig,
		firstBackoff: 50 * time.Millisecond,
		maxBackoff:   2 * time.Second,
	}
}

// WithTLS connects over TLS. A nil config trusts the system's certificate authorities; a certificate in the config is
// shown to servers that ask for one.
func WithTLS(config *tls.Config) Option {
	return func(o *options) {
		if config == nil {
			config = &tls.Config{MinVersion: tls.VersionTLS12}
		}
		o.tls = config.Clone()
	}
}

// WithPlaintext connects without TLS, as to a server on the same machine or behind a mesh.
func WithPlaintext() Option {
	return func(o *options) { o.plaintext = true }
}

// WithToken sends a bearer token with each call. It needs TLS, unless [WithTokenInPlaintext] allows to do without.
func WithToken(token string) Option {
	return func(o *options) { o.token = fixedToken(token) }
}

// WithTokenInPlaintext sends the token over connections that anybody on the way can read.
func WithTokenInPlaintext(token string) Option {
	return func(o *options) { o.token, o.insecureOK = fixedToken(token), true }
}

// TokenSource returns the token of a call. It may be called by several goroutines at once; it is called for each call,
// so one that asks another server keeps what it was told. Its error ends the call with UNAUTHENTICATED.
type TokenSource func(context.Context) (string, error)

// WithTokenSource sends a token that changes: one that expires, or a file that is replaced. It needs TLS, unless
// [WithTokenSourceInPlaintext] allows to do without.
func WithTokenSource(source TokenSource) Option {
	return func(o *options) { o.token = source }
}

// WithTokenSourceInPlaintext sends a token that changes over connections that anybody on the way can read.
func WithTokenSourceInPlaintext(source TokenSource) Option {
	return func(o *options) { o.token, o.insecureOK = source, true }
}

func fixedToken(token string) TokenSource {
	if token == "" {
		return nil
	}
	return func(context.Context) (string, error) { return token, nil }
}

// WithModel names the model of requests that name none. It may be left out while the server has one model of a task.
func WithModel(name string) Option {
	return func(o *options) { o.model = name }
}

// WithMaxRequestBytes limits the messages that are sent; the default is the server's, 32 MiB. A larger one fails
// here, with RESOURCE_EXHAUSTED.
func WithMaxRequestBytes(n int) Option {
	return func(o *options) { o.maxRequest = n }
}

// WithMaxResponseBytes limits the messages that are received. The default is 32 MiB.
func WithMaxResponseBytes(n int) Option {
	return func(o *options) { o.maxResponse = n }
}

// WithServiceConfig replaces the service config that all clients of hotslot share: load balancing, health checks,
// retries and deadlines. It is JSON.
func WithServiceConfig(config string) Option {
	return func(o *options) { o.config = config }
}

// WithoutRetries sends each call and each item once: the caller sees every refusal and every broken connection.
func WithoutRetries() Option {
	return func(o *options) { o.noRetries = true }
}

// WithDialOptions adds options of gRPC, for example for tracing. They come last and win.
func WithDialOptions(more ...grpc.DialOption) Option {
	return func(o *options) { o.dial = append(o.dial, more...) }
}

// serviceConfig returns the service config for the calls of one service, with the limits of messages that were chosen:
// gRPC takes the smaller one of the config's and the client's.
func (o *options) serviceConfig(service string) (string, error) {
	var config map[string]any
	if err := json.Unmarshal([]byte(o.config), &config); err != nil {
		return "", fmt.Errorf("hotslot: the service config is not JSON: %w", err)
	}
	if check, isThere := config["healthCheckConfig"].(map[string]any); isThere && check["serviceName"] == "" {
		check["serviceName"] = service
	}
	methods, _ := config["methodConfig"].([]any)
	for _, method := range methods {
		fields, _ := method.(map[string]any)
		for name, limit := range map[string]int{
			"maxRequestMessageBytes": o.maxRequest, "maxResponseMessageBytes": o.maxResponse,
		} {
			if _, isThere := fields[name]; isThere {
				fields[name] = limit
			}
		}
	}
	changed, err := json.Marshal(config)
	return string(changed), err
}

// StreamOption configures one PredictMany or TagMany.
type StreamOption func(*streamOptions)

type streamOptions struct {
	window    int
	inOrder   bool
	maxOutage time.Duration
}

// Window limits how many items are read from the caller and not answered yet. The default is 64: twice what a server
// accepts of one stream by default, so that the next item is there when it has room. At
// least 1. Their pictures are kept until then, to be sent again.
func Window(n int) StreamOption {
	return func(o *streamOptions) { o.window = max(1, n) }
}

// InOrder yields the outcomes in the order of the items. One slow item then delays all after it, and a window that is
// full of outcomes behind it sends nothing more.
func InOrder() StreamOption {
	return func(o *streamOptions) { o.inOrder = true }
}

// MaxOutage limits how long a stream goes on trying while no server answers any of its items. The default is one
// minute. The deadline of the context limits it too.
func MaxOutage(d time.Duration) StreamOption {
	return func(o *streamOptions) { o.maxOutage = d }
}
