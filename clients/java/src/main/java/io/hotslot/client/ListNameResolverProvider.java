package io.hotslot.client;

import io.grpc.Attributes;
import io.grpc.EquivalentAddressGroup;
import io.grpc.NameResolver;
import io.grpc.NameResolverProvider;
import io.grpc.Status;
import io.grpc.StatusOr;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.URI;
import java.net.UnknownHostException;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.Executor;

/**
 * Resolves {@code hotslot:///HOST:PORT,HOST:PORT}, for servers that share no name. Used by gRPC, which finds it as a
 * service.
 */
public final class ListNameResolverProvider extends NameResolverProvider {
    static final String SCHEME = "hotslot";

    /** For gRPC. */
    public ListNameResolverProvider() {}

    /** Returns the target of a list of addresses; any other target as it is. */
    static String toTarget(String target) {
        if (!target.contains(",")) {
            return target;
        }
        String list = target.replaceFirst("^ipv[46]:", ""); // as C-based clients write it
        List<String> addresses = new ArrayList<>();
        for (String part : list.split(",")) {
            if (!part.isBlank()) {
                URI address = parse(part.strip());
                addresses.add(address.getHost() + ":" + address.getPort());
            }
        }
        if (addresses.isEmpty()) {
            throw new IllegalArgumentException("target: no address");
        }
        return SCHEME + ":///" + String.join(",", addresses);
    }

    private static URI parse(String address) {
        URI uri = URI.create("//" + address);
        if (uri.getHost() == null || uri.getPort() < 0) {
            throw new IllegalArgumentException("target: " + address + " is not HOST:PORT");
        }
        return uri;
    }

    @Override
    public NameResolver newNameResolver(URI target, NameResolver.Args args) {
        return SCHEME.equals(target.getScheme()) ? new ListResolver(target.getPath().substring(1), args) : null;
    }

    @Override
    protected boolean isAvailable() {
        return true;
    }

    @Override
    protected int priority() {
        return 5;
    }

    @Override
    public String getDefaultScheme() {
        return SCHEME;
    }

    private static final class ListResolver extends NameResolver {
        private final String list;
        private final Executor executor;
        private Listener2 listener;

        ListResolver(String list, Args args) {
            this.list = list;
            this.executor = args.getOffloadExecutor() == null ? Runnable::run : args.getOffloadExecutor();
        }

        @Override
        public String getServiceAuthority() {
            return list.split(",")[0];
        }

        @Override
        public void start(Listener2 listener) {
            this.listener = listener;
            refresh();
        }

        @Override
        public void refresh() {
            executor.execute(this::resolve); // asks the system, which may take long
        }

        private void resolve() {
            List<EquivalentAddressGroup> groups = new ArrayList<>();
            String unknown = "";
            for (String part : list.split(",")) {
                URI address = parse(part);
                String host = address.getHost().replaceAll("^\\[|]$", "");
                try {
                    InetAddress found = InetAddress.getByName(host);
                    groups.add(new EquivalentAddressGroup(
                            new InetSocketAddress(found, address.getPort()),
                            Attributes.newBuilder()
                                    .set(EquivalentAddressGroup.ATTR_AUTHORITY_OVERRIDE, part)
                                    .build()));
                } catch (UnknownHostException error) {
                    unknown = host;
                }
            }
            if (groups.isEmpty()) {
                listener.onError(Status.UNAVAILABLE.withDescription("unknown host " + unknown));
                return;
            }
            listener.onResult(ResolutionResult.newBuilder()
                    .setAddressesOrError(StatusOr.fromValue(groups))
                    .build());
        }

        @Override
        public void shutdown() {}
    }
}
