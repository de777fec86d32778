package io.hotslot.client;

import io.grpc.ChannelCredentials;
import io.grpc.CompositeChannelCredentials;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.hotslot.address.v1.AddressTaggingServiceGrpc;
import io.hotslot.entailment.v1.EntailmentServiceGrpc;
import java.util.Map;
import java.util.Objects;
import java.util.concurrent.TimeUnit;
import java.util.function.Consumer;
import java.util.function.Supplier;

/** Builds a {@link HotslotClient}. */
public final class HotslotClientBuilder {
    private static final int DEFAULT_MESSAGE_BYTES = 32 << 20; // as in the service config, and the server's own limit
    private static final int FRAMING_BYTES = 1 << 10;
    private static final long BUFFERED_REQUESTS = 16;

    private final String target;
    private ChannelCredentials credentials;
    private boolean isPlaintext;
    private Supplier<String> token;
    private boolean isTokenAllowedInPlaintext;
    private String model = "";
    private int maxRequestBytes = DEFAULT_MESSAGE_BYTES;
    private int maxResponseBytes = DEFAULT_MESSAGE_BYTES;
    private String serviceConfig = ServiceConfig.SHARED;
    private boolean hasRetries = true;
    private Consumer<ManagedChannelBuilder<?>> customization = channel -> {};

    HotslotClientBuilder(String target) {
        this.target = ListNameResolverProvider.toTarget(Objects.requireNonNull(target, "target"));
    }

    /**
     * Connects over TLS.
     *
     * @param credentials {@code TlsChannelCredentials.create()} to trust the system's certificate authorities, or {@code
     *     TlsChannelCredentials.newBuilder()} with a {@code trustManager} and, for servers that ask for a certificate, a
     *     {@code keyManager}
     * @return this
     */
    public HotslotClientBuilder credentials(ChannelCredentials credentials) {
        this.credentials = Objects.requireNonNull(credentials, "credentials");
        return this;
    }

    /**
     * Connects without TLS, as to a server on the same machine or behind a mesh.
     *
     * @return this
     */
    public HotslotClientBuilder plaintext() {
        this.isPlaintext = true;
        return this;
    }

    /**
     * Sends a bearer token with each call, over TLS.
     *
     * @param token the server's for this caller
     * @return this
     */
    public HotslotClientBuilder token(String token) {
        Objects.requireNonNull(token, "token");
        return token(() -> token);
    }

    /**
     * Sends a bearer token that changes with each call, over TLS: one that expires, or a file that is replaced.
     *
     * @param token is asked for each call, by several threads at once, so one that asks another server keeps what it was
     *     told; what it throws ends the call with {@code UNAUTHENTICATED}
     * @return this
     */
    public HotslotClientBuilder token(Supplier<String> token) {
        this.token = Objects.requireNonNull(token, "token");
        return this;
    }

    /**
     * Sends a bearer token with each call, over connections that anybody on the way can read too.
     *
     * @param token the server's for this caller
     * @return this
     */
    public HotslotClientBuilder tokenInPlaintext(String token) {
        this.isTokenAllowedInPlaintext = true;
        return token(token);
    }

    /**
     * Sends a bearer token that changes with each call, over connections that anybody on the way can read too.
     *
     * @param token as of {@link #token(Supplier)}
     * @return this
     */
    public HotslotClientBuilder tokenInPlaintext(Supplier<String> token) {
        this.isTokenAllowedInPlaintext = true;
        return token(token);
    }

    /**
     * Names the model of requests that name none. It may be left out while the server has one model of a task.
     *
     * @param name of the served model
     * @return this
     */
    public HotslotClientBuilder model(String name) {
        this.model = Objects.requireNonNull(name, "name");
        return this;
    }

    /**
     * Limits the messages that are sent; the default is the server's, 32 MiB. A larger one fails here.
     *
     * @param bytes of one message
     * @return this
     */
    public HotslotClientBuilder maxRequestBytes(int bytes) {
        this.maxRequestBytes = bytes;
        return this;
    }

    /**
     * Limits the messages that are received; the default is 32 MiB.
     *
     * @param bytes of one message
     * @return this
     */
    public HotslotClientBuilder maxResponseBytes(int bytes) {
        this.maxResponseBytes = bytes;
        return this;
    }

    /**
     * Replaces the service config that all clients of hotslot share: load balancing, health checks, retries, deadlines.
     *
     * @param json of gRPC's service config
     * @return this
     */
    public HotslotClientBuilder serviceConfig(String json) {
        ServiceConfig.parse(json);
        this.serviceConfig = json;
        return this;
    }

    /**
     * Sends each call and each item once: the caller sees every refusal and every broken connection.
     *
     * @return this
     */
    public HotslotClientBuilder withoutRetries() {
        this.hasRetries = false;
        return this;
    }

    /**
     * Changes the channels' builders, for example to add interceptors for tracing.
     *
     * @param customization is called last
     * @return this
     */
    public HotslotClientBuilder customize(Consumer<ManagedChannelBuilder<?>> customization) {
        this.customization = this.customization.andThen(customization);
        return this;
    }

    /**
     * Returns the client. It connects with the first call.
     *
     * @return a client, to be closed
     * @throws IllegalStateException if transport security is not chosen, or a token would be sent without it
     */
    public HotslotClient build() {
        ChannelCredentials chosen = channelCredentials();
        return build(() -> Grpc.newChannelBuilder(target, chosen));
    }

    HotslotClient build(Supplier<ManagedChannelBuilder<?>> channels) {
        ManagedChannel entailment = open(channels.get(), EntailmentServiceGrpc.SERVICE_NAME);
        ManagedChannel tagging = open(channels.get(), AddressTaggingServiceGrpc.SERVICE_NAME);
        return new HotslotClient(new ClientParts(entailment, tagging, model, maxRequestBytes, hasRetries), null);
    }

    /**
     * Opens the channel for the calls of one service: servers that are not ready for it are left out, those that are not
     * ready for another one are not.
     */
    private ManagedChannel open(ManagedChannelBuilder<?> channel, String service) {
        Map<String, ?> config = ServiceConfig.parse(serviceConfig);
        ServiceConfig.checkHealthOf(config, service);
        ServiceConfig.limit(config, maxResponseBytes);
        channel.defaultServiceConfig(config)
                .maxInboundMessageSize(maxResponseBytes)
                // gRPC sends again only what is in these buffers; by default one call has 1 MiB, all have 16.
                .perRpcBufferLimit((long) maxRequestBytes + FRAMING_BYTES)
                .retryBufferSize(BUFFERED_REQUESTS * maxRequestBytes)
                // A server or its machine that is gone without a word is noticed within 40 s. Servers accept a ping every
                // 5 s.
                .keepAliveTime(30, TimeUnit.SECONDS)
                .keepAliveTimeout(10, TimeUnit.SECONDS);
        if (hasRetries) {
            channel.enableRetry();
        } else {
            channel.disableRetry();
        }
        customization.accept(channel);
        return channel.build();
    }

    private ChannelCredentials channelCredentials() {
        if (isPlaintext == (credentials != null)) {
            throw new IllegalStateException("use either credentials(…) or plaintext()");
        }
        if (isPlaintext && token != null && !isTokenAllowedInPlaintext) {
            throw new IllegalStateException("a token needs TLS; tokenInPlaintext(…) sends it unprotected");
        }
        ChannelCredentials chosen = isPlaintext ? InsecureChannelCredentials.create() : credentials;
        if (token == null) {
            return chosen;
        }
        return CompositeChannelCredentials.create(chosen, new BearerToken(token, isTokenAllowedInPlaintext));
    }
}
