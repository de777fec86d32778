package hotslot

import (
	"fmt"
	"net"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/resolver"
)

const listScheme = "hotslot"

// listResolver resolves "hotslot:///HOST:PORT,HOST:PORT", for servers that share no name.
type listResolver struct{}

func (listResolver) Scheme() string { return listScheme }

func (listResolver) Build(target resolver.Target, conn resolver.ClientConn, _ resolver.BuildOptions) (
	resolver.Resolver, error,
) {
	var state resolver.State
	for part := range strings.SplitSeq(target.Endpoint(), ",") {
		host, _, err := net.SplitHostPort(part)
		if err != nil {
			return nil, fmt.Errorf("hotslot: address %q is not HOST:PORT", part)
		}
		address := resolver.Address{Addr: part, ServerName: host}
		state.Endpoints = append(state.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{address}})
	}
	return fixed{}, conn.UpdateState(state)
}

type fixed struct{}

func (fixed) ResolveNow(resolver.ResolveNowOptions) {}

func (fixed) Close() {}

// readTarget returns the target as gRPC takes it, with the options that it needs.
func readTarget(target string) (string, []grpc.DialOption, error) {
	if !strings.Contains(target, ",") {
		return target, nil, nil
	}
	list := strings.TrimPrefix(strings.TrimPrefix(target, "ipv6:"), "ipv4:") // as C-based clients write it
	var addresses []string
	for part := range strings.SplitSeq(list, ",") {
		if part = strings.TrimSpace(part); part != "" {
			addresses = append(addresses, part)
		}
	}
	if len(addresses) == 0 {
		return "", nil, fmt.Errorf("hotslot: %q has no address", target)
	}
	for _, address := range addresses {
		if _, _, err := net.SplitHostPort(address); err != nil {
			return "", nil, fmt.Errorf("hotslot: address %q is not HOST:PORT", address)
		}
	}
	return listScheme + ":///" + strings.Join(addresses, ","), []grpc.DialOption{grpc.WithResolvers(listResolver{})}, nil
}
