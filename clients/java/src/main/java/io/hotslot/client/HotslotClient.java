package io.hotslot.client;

import com.google.protobuf.ByteString;
import com.google.protobuf.MessageLite;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.ClientInterceptor;
import io.grpc.ClientInterceptors;
import io.grpc.ForwardingClientCall.SimpleForwardingClientCall;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.stub.ClientCallStreamObserver;
import io.grpc.stub.ClientCalls;
import io.grpc.stub.ClientResponseObserver;
import io.hotslot.address.v1.AddressTaggingServiceGrpc;
import io.hotslot.entailment.v1.EntailmentServiceGrpc;
import io.hotslot.entailment.v1.Image;
import io.hotslot.entailment.v1.PredictRequest;
import io.hotslot.entailment.v1.PredictResponse;
import java.time.Duration;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Flow;
import java.util.concurrent.TimeUnit;
import java.util.stream.Stream;

/**
 * Calls the servers behind one target. Safe for use by many threads; make one and keep it.
 *
 * <pre>{@code
 * try (HotslotClient client = HotslotClient.builder("dns:///models.internal:50051")
 *         .credentials(TlsChannelCredentials.create())
 *         .token(token)
 *         .build()) {
 *     PredictResponse response = client.predict(picture, "a red square");
 * } catch (HotslotException.InvalidRequest error) {
 *     log.warn("{} {}", error.reason(), error.field());
 * }
 * }</pre>
 *
 * <p>Calls are pure, so all of them are sent again where that may help: unary calls by gRPC, as the service config says
 * that all clients of hotslot share, and the items of a stream by this class.
 *
 * <p>While a new revision is rolled out as a canary, {@link #withRoutingKey} keeps the calls of a key on one revision, and
 * {@link #withModelVersion} names the version that is to answer.
 */
public final class HotslotClient implements AutoCloseable {
    private static final int MAX_TAG_CHARS = 256;

    private final ClientParts parts;
    private final Duration deadline; // null: that of the service config
    private final ClientInterceptor[] interceptors;

    HotslotClient(ClientParts parts, Duration deadline, ClientInterceptor... interceptors) {
        this.parts = parts;
        this.deadline = deadline;
        this.interceptors = interceptors;
    }

    /**
     * Returns a builder for a target: {@code dns:///NAME:PORT} for all addresses of a name, {@code HOST:PORT,HOST:PORT}
     * for several servers, or any other target of gRPC.
     *
     * @param target the servers
     * @return a builder, which needs {@link HotslotClientBuilder#credentials} or {@link
     *     HotslotClientBuilder#plaintext}
     */
    public static HotslotClientBuilder builder(String target) {
        return new HotslotClientBuilder(target);
    }

    /**
     * Returns a client over the same connections whose calls each have this long. It needs no closing.
     *
     * @param deadline of each call, from its start; of a stream, for all of it
     * @return the other client
     */
    public HotslotClient withDeadline(Duration deadline) {
        return new HotslotClient(parts, Objects.requireNonNull(deadline, "deadline"), interceptors);
    }

    /**
     * Returns a client over the same connections whose calls pass through interceptors, for example to add metadata. It
     * needs no closing.
     *
     * @param interceptors the last one is called first
     * @return the other client
     */
    public HotslotClient withInterceptors(ClientInterceptor... interceptors) {
        ClientInterceptor[] all = Arrays.copyOf(this.interceptors, this.interceptors.length + interceptors.length);
        System.arraycopy(interceptors, 0, all, this.interceptors.length, interceptors.length);
        return new HotslotClient(parts, deadline, all);
    }

    /**
     * Returns a client over the same connections whose calls and streams belong to a key, for example a customer's
     * number: while a new revision is rolled out, all of them are assigned to the same revision. It needs no closing.
     *
     * @param key 1 to 256 printable ASCII characters; take a hash of another one
     * @return the other client
     * @throws IllegalArgumentException if the key cannot be sent as it is
     */
    public HotslotClient withRoutingKey(String key) {
        return withHeader("x-routing-key", key);
    }

    /**
     * Returns a client over the same connections whose calls and streams are answered by a version. A version that is
     * not there is a {@link HotslotException.NotFound} with the reason {@code VERSION_UNKNOWN}. It needs no closing.
     *
     * @param version {@code stable}, {@code canary}, a revision or a digest that is loaded
     * @return the other client
     * @throws IllegalArgumentException if the version cannot be sent as it is
     */
    public HotslotClient withModelVersion(String version) {
        return withHeader("x-model-version", version);
    }

    /** The view that was made last is asked first, so its value replaces an earlier one. */
    private HotslotClient withHeader(String name, String value) {
        boolean isPrintable = value.chars().allMatch(one -> one >= ' ' && one <= '~');
        if (value.isEmpty() || value.length() > MAX_TAG_CHARS || !isPrintable || !value.equals(value.strip())) {
            throw new IllegalArgumentException(
                    name + ": not 1 to " + MAX_TAG_CHARS + " printable ASCII characters without a space at its ends");
        }
        return withInterceptors(new Tag(Metadata.Key.of(name, Metadata.ASCII_STRING_MARSHALLER), value));
    }

    /** Sets a key of the calls' metadata, unless a later view has. */
    private record Tag(Metadata.Key<String> key, String value) implements ClientInterceptor {
        @Override
        public <Q, P> ClientCall<Q, P> interceptCall(
                MethodDescriptor<Q, P> method, CallOptions options, Channel next) {
            return new SimpleForwardingClientCall<>(next.newCall(method, options)) {
                @Override
                public void start(Listener<P> listener, Metadata headers) {
                    if (!headers.containsKey(key)) {
                        headers.put(key, value);
                    }
                    super.start(listener, headers);
                }
            };
        }
    }

    /**
     * Judges statements about one picture.
     *
     * @param picture a JPEG, PNG or WebP file
     * @param statements 1 to 32 sentences
     * @return one result a statement, in their order
     * @throws HotslotException if there is no answer
     */
    public PredictResponse predict(byte[] picture, String... statements) {
        return predict(request(picture, List.of(statements)));
    }

    /**
     * Judges statements about one picture.
     *
     * @param request the picture, the statements, and what else the contract offers
     * @return one result a statement, in their order
     * @throws HotslotException if there is no answer
     */
    public PredictResponse predict(PredictRequest request) {
        return await(predictAsync(request));
    }

    /**
     * Judges statements about one picture.
     *
     * @param request the picture, the statements, and what else the contract offers
     * @return the answer, or a {@link HotslotException}; cancelling it ends the call
     */
    public CompletableFuture<PredictResponse> predictAsync(PredictRequest request) {
        return call(entailmentChannel(), EntailmentServiceGrpc.getPredictMethod(), parts.entailment, request);
    }

    /**
     * Cuts addresses into their parts.
     *
     * @param addresses 1 to 64, each of at most 500 characters
     * @return one result an address, in their order
     * @throws HotslotException if there is no answer
     */
    public io.hotslot.address.v1.PredictResponse tag(String... addresses) {
        return tag(tagRequest(List.of(addresses)));
    }

    /**
     * Cuts addresses into their parts.
     *
     * @param request the addresses, and what else the contract offers
     * @return one result an address, in their order
     * @throws HotslotException if there is no answer
     */
    public io.hotslot.address.v1.PredictResponse tag(io.hotslot.address.v1.PredictRequest request) {
        return await(tagAsync(request));
    }

    /**
     * Cuts addresses into their parts.
     *
     * @param request the addresses, and what else the contract offers
     * @return the answer, or a {@link HotslotException}; cancelling it ends the call
     */
    public CompletableFuture<io.hotslot.address.v1.PredictResponse> tagAsync(
            io.hotslot.address.v1.PredictRequest request) {
        return call(taggingChannel(), AddressTaggingServiceGrpc.getPredictMethod(), parts.tagging, request);
    }

    /**
     * Judges any number of items over one stream.
     *
     * <p>Each item that is read has exactly one outcome, of the server or, after the stream has failed for good, with
     * its failure. A failed item ends nothing. When the stream itself fails, the last outcomes are followed by a
     * {@link HotslotException} from the stream's next step. What a server that drains or breaks leaves without an
     * outcome is sent again, to another server or when there is one.
     *
     * @param items read by a thread of the client's own, at most a window ahead
     * @param options of the stream
     * @return the outcomes; close it, as in try-with-resources, to end the call early
     */
    public Stream<Outcome<PredictResponse>> predictMany(
            Iterable<Item<PredictRequest>> items, StreamOptions options) {
        return OutcomeIterator.stream(predictMany(parts.publish(items), options), options.window());
    }

    /**
     * Judges any number of items over one stream, with back-pressure in both directions: no more than a window of items
     * is requested, and no more outcomes are sent than the subscriber requests.
     *
     * <p>Outcomes are those of {@link #predictMany(Iterable, StreamOptions)}. When the stream fails for good, {@code
     * onError} follows the last outcome. Each subscription is a call of its own and subscribes to {@code items}.
     *
     * @param items to judge
     * @param options of the stream
     * @return the outcomes
     */
    public Flow.Publisher<Outcome<PredictResponse>> predictMany(
            Flow.Publisher<Item<PredictRequest>> items, StreamOptions options) {
        return subscriber ->
                new ItemStream<>(parts, entailmentChannel(), parts.entailment, callOptions(), options, subscriber).start(items);
    }

    /**
     * Tags any number of items over one stream, as {@link #predictMany(Iterable, StreamOptions)} judges them.
     *
     * @param items read by a thread of the client's own, at most a window ahead
     * @param options of the stream
     * @return the outcomes; close it, as in try-with-resources, to end the call early
     */
    public Stream<Outcome<io.hotslot.address.v1.PredictResponse>> tagMany(
            Iterable<Item<io.hotslot.address.v1.PredictRequest>> items, StreamOptions options) {
        return OutcomeIterator.stream(tagMany(parts.publish(items), options), options.window());
    }

    /**
     * Tags any number of items over one stream, as {@link #predictMany(Flow.Publisher, StreamOptions)} judges them.
     *
     * @param items to tag
     * @param options of the stream
     * @return the outcomes
     */
    public Flow.Publisher<Outcome<io.hotslot.address.v1.PredictResponse>> tagMany(
            Flow.Publisher<Item<io.hotslot.address.v1.PredictRequest>> items, StreamOptions options) {
        return subscriber ->
                new ItemStream<>(parts, taggingChannel(), parts.tagging, callOptions(), options, subscriber).start(items);
    }

    /**
     * Returns a request to judge statements about one picture.
     *
     * @param picture a JPEG, PNG or WebP file
     * @param statements 1 to 32 sentences
     * @return the request
     */
    public static PredictRequest request(byte[] picture, List<String> statements) {
        return PredictRequest.newBuilder()
                .setImage(Image.newBuilder().setContent(ByteString.copyFrom(picture)))
                .addAllStatements(statements)
                .build();
    }

    /**
     * Returns a request to tag addresses.
     *
     * @param addresses 1 to 64
     * @return the request
     */
    public static io.hotslot.address.v1.PredictRequest tagRequest(List<String> addresses) {
        return io.hotslot.address.v1.PredictRequest.newBuilder()
                .addAllAddresses(addresses)
                .build();
    }

    /**
     * Returns the channel for generated stubs of {@code hotslot.entailment.v1}.
     *
     * @return the channel, which this client closes
     */
    public Channel entailmentChannel() {
        return ClientInterceptors.intercept(parts.entailmentChannel, interceptors);
    }

    /**
     * Returns the channel for generated stubs of {@code hotslot.address.v1}.
     *
     * @return the channel, which this client closes
     */
    public Channel taggingChannel() {
        return ClientInterceptors.intercept(parts.taggingChannel, interceptors);
    }

    /** Ends all calls and connections. */
    @Override
    public void close() {
        parts.close();
    }

    /** For tests. */
    ClientParts parts() {
        return parts;
    }

    CallOptions callOptions() {
        CallOptions options = CallOptions.DEFAULT;
        return deadline == null ? options : options.withDeadlineAfter(RetryRules.nanos(deadline), TimeUnit.NANOSECONDS);
    }

    private <Q extends MessageLite, P> CompletableFuture<P> call(
            Channel channel, MethodDescriptor<Q, P> method, StreamProtocol<Q, ?, ?, P> protocol, Q given) {
        Q request = protocol.complete(given);
        HotslotException refusal = parts.check(protocol, request, request);
        if (refusal != null) {
            return CompletableFuture.failedFuture(refusal);
        }
        PendingCall<Q, P> pending = new PendingCall<>();
        ClientCalls.asyncUnaryCall(channel.newCall(method, callOptions()), request, pending);
        return pending.future;
    }

    private static <P> P await(CompletableFuture<P> pending) {
        try {
            return pending.get();
        } catch (InterruptedException interruption) {
            pending.cancel(true);
            Thread.currentThread().interrupt();
            throw HotslotException.of(
                    io.grpc.Status.CANCELLED.withDescription("interrupted").withCause(interruption));
        } catch (ExecutionException failed) {
            throw HotslotException.of(failed.getCause()).here();
        }
    }

    /** A unary call whose future ends it when it is cancelled. */
    private static final class PendingCall<Q, P> implements ClientResponseObserver<Q, P> {
        final CompletableFuture<P> future = new CompletableFuture<>();
        private P response; // which a failure may still follow

        @Override
        public void beforeStart(ClientCallStreamObserver<Q> call) {
            future.whenComplete((response, error) -> {
                if (future.isCancelled()) {
                    call.cancel("cancelled by the caller", null);
                }
            });
        }

        @Override
        public void onNext(P given) {
            response = given;
        }

        @Override
        public void onError(Throwable error) {
            future.completeExceptionally(HotslotException.of(error));
        }

        @Override
        public void onCompleted() {
            future.complete(response);
        }
    }
}
