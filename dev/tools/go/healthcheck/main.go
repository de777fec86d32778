// Command healthcheck asks one gRPC server how it is and answers with an exit code.
//
// It is hotslot's own; its flags and exit codes are those of grpc_health_probe,
// so that the tests hold the server to what that probe would see.
//
//	0  the service is SERVING
//	1  wrong arguments
//	2  no connection within -connect-timeout
//	3  the call failed, or took longer than -rpc-timeout
//	4  the server answered, and it is not SERVING
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	_ "google.golang.org/grpc/encoding/gzip" // answers -gzip
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const (
	exitServing       = 0
	exitUsage         = 1
	exitNoConnection  = 2
	exitCallFailed    = 3
	exitNotServing    = 4
	defaultUserAgent  = "hotslot_healthcheck"
	defaultTimeout    = time.Second
	passthroughScheme = "passthrough:///"
)

func main() {
	chosen, err := parse(os.Args[1:], os.Stderr)
	if err != nil {
		fmt.Fprintf(os.Stderr, "error: %v\n", err)
		os.Exit(exitUsage)
	}
	os.Exit(check(chosen))
}

// check connects, asks once, says what it saw on standard error and returns the exit code.
func check(chosen options) int {
	connection, err := dial(chosen)
	if err != nil {
		fmt.Fprintf(os.Stderr, "error: %v\n", err)
		return exitUsage
	}
	defer connection.Close()

	started := time.Now()
	if !waitUntilReady(connection, chosen.connectTimeout) {
		fmt.Fprintf(os.Stderr, "timeout: failed to connect service %q within %v\n", chosen.addr, chosen.connectTimeout)
		return exitNoConnection
	}
	connected := time.Now()

	response, err := ask(connection, chosen)
	if err != nil {
		report(chosen, err)
		return exitCallFailed
	}
	if chosen.verbose {
		fmt.Fprintf(os.Stderr, "time elapsed: connect=%v rpc=%v\n", connected.Sub(started), time.Since(connected))
	}
	if response.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		fmt.Fprintf(os.Stderr, "service unhealthy (responded with %q)\n", response.GetStatus())
		return exitNotServing
	}
	fmt.Fprintf(os.Stdout, "status: %v\n", response.GetStatus())
	return exitServing
}

func dial(chosen options) (*grpc.ClientConn, error) {
	credentials, err := transportCredentials(chosen)
	if err != nil {
		return nil, err
	}
	target := chosen.addr
	if !hasScheme(target) {
		target = passthroughScheme + target // the address as it is: a probe follows no name service
	}
	settings := []grpc.DialOption{
		grpc.WithTransportCredentials(credentials),
		grpc.WithUserAgent(chosen.userAgent),
	}
	if chosen.gzip {
		settings = append(settings, grpc.WithDefaultCallOptions(grpc.UseCompressor("gzip")))
	}
	return grpc.NewClient(target, settings...)
}

func waitUntilReady(connection *grpc.ClientConn, limit time.Duration) bool {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	connection.Connect()
	for {
		state := connection.GetState()
		if state == connectivity.Ready {
			return true
		}
		if !connection.WaitForStateChange(ctx, state) {
			return false
		}
		connection.Connect() // after a failure it goes idle
	}
}

func ask(connection *grpc.ClientConn, chosen options) (*grpc_health_v1.HealthCheckResponse, error) {
	ctx, cancel := context.WithTimeout(context.Background(), chosen.rpcTimeout)
	defer cancel()
	ctx = metadata.NewOutgoingContext(ctx, metadata.MD(chosen.headers))
	request := &grpc_health_v1.HealthCheckRequest{Service: chosen.service}
	return grpc_health_v1.NewHealthClient(connection).Check(ctx, request)
}

func report(chosen options, err error) {
	switch status.Code(err) {
	case codes.Unimplemented:
		fmt.Fprintln(os.Stderr, "error: this server does not implement the grpc health protocol (grpc.health.v1.Health)")
	case codes.DeadlineExceeded:
		fmt.Fprintf(os.Stderr, "timeout: health rpc did not complete within %v\n", chosen.rpcTimeout)
	default:
		fmt.Fprintf(os.Stderr, "error: health rpc failed: %v\n", err)
	}
}
