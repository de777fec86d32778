package hotslot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const (
	domain       = "hotslot"
	requestIDKey = "x-request-id"
)

// Error is the failure of a call or of one item of a stream. Use errors.As to get it.
type Error struct {
	// Code is the gRPC code: whose fault it is, roughly.
	Code codes.Code
	// Reason is the server's stable name of the failure, for example "IMAGE_UNREADABLE". Empty if the failure is not
	// the server's own: of the connection, or of this process.
	Reason string
	// Message is a sentence for people.
	Message string
	// Field is the path of the wrong field of the request, for example "image.content". Empty if none is.
	Field string
	// Resource is the name of what does not exist, for example that of a model. Empty for other failures.
	Resource string
	// Metadata has further facts, for example "needed_bytes".
	Metadata map[string]string
	// RequestID finds the call in the server's log. Empty if no server has answered.
	RequestID string

	retryAfter    time.Duration
	hasRetryAfter bool
	status        *status.Status
}

// Error returns a sentence with code, reason and field.
func (e *Error) Error() string {
	var text strings.Builder
	fmt.Fprintf(&text, "hotslot: %s", e.Code)
	if e.Reason != "" {
		fmt.Fprintf(&text, " %s", e.Reason)
	}
	if e.Field != "" {
		fmt.Fprintf(&text, " (%s)", e.Field)
	}
	if e.Message != "" {
		fmt.Fprintf(&text, ": %s", e.Message)
	}
	return text.String()
}

// RetryAfter returns when the same request may succeed, if the server says so.
func (e *Error) RetryAfter() (time.Duration, bool) { return e.retryAfter, e.hasRetryAfter }

// Temporary reports whether the same request may succeed later, unchanged.
func (e *Error) Temporary() bool {
	return e.hasRetryAfter || e.Code == codes.Unavailable || (e.Code == codes.ResourceExhausted && e.Reason != "")
}

// GRPCStatus returns the status with all details, for package status.
func (e *Error) GRPCStatus() *status.Status { return e.status }

// Is reports whether the target is the error of package context that means the same.
func (e *Error) Is(target error) bool {
	return (target == context.DeadlineExceeded && e.Code == codes.DeadlineExceeded) ||
		(target == context.Canceled && e.Code == codes.Canceled)
}

func toError(err error) *Error {
	if known := (*Error)(nil); errors.As(err, &known) {
		return known
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return fromStatus(status.FromContextError(err))
	}
	return fromStatus(status.Convert(err))
}

func fromProto(failure *spb.Status) *Error { return fromStatus(status.FromProto(failure)) }

func fromStatus(s *status.Status) *Error {
	e := &Error{Code: s.Code(), Message: s.Message(), status: s}
	for _, detail := range s.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			if detail.GetDomain() == domain {
				e.Reason, e.Metadata = detail.GetReason(), detail.GetMetadata()
			}
		case *errdetails.BadRequest:
			if violations := detail.GetFieldViolations(); len(violations) > 0 {
				e.Field = violations[0].GetField()
			}
		case *errdetails.RetryInfo:
			e.retryAfter, e.hasRetryAfter = detail.GetRetryDelay().AsDuration(), true
		case *errdetails.ResourceInfo:
			e.Resource = detail.GetResourceName()
		}
	}
	return e
}

// refuse returns the error of a request that is not sent because the server could not read it.
func refuse(field, message string) *Error {
	info := &errdetails.ErrorInfo{Reason: "MESSAGE_MALFORMED", Domain: domain}
	violation := &errdetails.BadRequest_FieldViolation{Field: field, Description: message}
	bad := &errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{violation}}
	s, err := status.New(codes.InvalidArgument, message).WithDetails(info, bad)
	if err != nil { // only for a message that cannot be marshalled
		s = status.New(codes.InvalidArgument, message)
	}
	return fromStatus(s)
}

func fromCode(code codes.Code, message string) *Error { return fromStatus(status.New(code, message)) }

func idOf(header, trailer metadata.MD) string {
	for _, from := range []metadata.MD{trailer, header} {
		if values := from.Get(requestIDKey); len(values) > 0 {
			return values[0]
		}
	}
	return ""
}

// convertErrors makes the errors of all calls of a connection *Error, those of generated stubs too.
func convertErrors() []grpc.DialOption {
	unary := func(ctx context.Context, method string, request, response any, conn *grpc.ClientConn,
		invoke grpc.UnaryInvoker, opts ...grpc.CallOption,
	) error {
		var header, trailer metadata.MD
		opts = append(opts[:len(opts):len(opts)], grpc.Header(&header), grpc.Trailer(&trailer))
		err := invoke(ctx, method, request, response, conn, opts...)
		if err == nil {
			return nil
		}
		failure := toError(err)
		failure.RequestID = idOf(header, trailer)
		return failure
	}
	stream := func(ctx context.Context, description *grpc.StreamDesc, conn *grpc.ClientConn, method string,
		open grpc.Streamer, opts ...grpc.CallOption,
	) (grpc.ClientStream, error) {
		opened, err := open(ctx, description, conn, method, opts...)
		if err != nil {
			return nil, toError(err)
		}
		return convertingStream{opened}, nil
	}
	return []grpc.DialOption{grpc.WithChainUnaryInterceptor(unary), grpc.WithChainStreamInterceptor(stream)}
}

type convertingStream struct{ grpc.ClientStream }

func (s convertingStream) RecvMsg(message any) error {
	err := s.ClientStream.RecvMsg(message)
	if err == nil || err == io.EOF {
		return err
	}
	failure := toError(err)
	failure.RequestID = idOf(nil, s.Trailer())
	return failure
}

func (s convertingStream) SendMsg(message any) error {
	err := s.ClientStream.SendMsg(message)
	if err == nil || err == io.EOF {
		return err
	}
	return toError(err)
}
