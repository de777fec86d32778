package io.hotslot.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.rpc.BadRequest;
import io.grpc.InsecureServerCredentials;
import io.grpc.Metadata;
import io.grpc.Server;
import io.grpc.ServerCall;
import io.grpc.ServerCallHandler;
import io.grpc.ServerInterceptor;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.TlsChannelCredentials;
import io.grpc.health.v1.HealthCheckResponse.ServingStatus;
import io.grpc.protobuf.services.HealthStatusManager;
import io.grpc.stub.ServerCallStreamObserver;
import io.grpc.stub.StreamObserver;
import io.hotslot.entailment.v1.EntailmentServiceGrpc;
import io.hotslot.entailment.v1.PredictRequest;
import io.hotslot.entailment.v1.PredictResponse;
import io.hotslot.entailment.v1.ServedBy;
import java.io.IOException;
import java.net.ServerSocket;
import java.time.Duration;
import java.time.temporal.ChronoUnit;
import java.util.List;
import java.util.Optional;
import java.util.concurrent.CancellationException;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicReference;
import java.util.function.Supplier;
import java.util.stream.Stream;
import java.util.stream.StreamSupport;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

@Timeout(20)
class HotslotClientTest {
    private static final byte[] PICTURE = "picture".getBytes();

    private FakeServer server;

    @BeforeEach
    void start() throws IOException {
        server = new FakeServer();
    }

    @AfterEach
    void stop() {
        server.close();
    }

    @Test
    void aFailureHasReasonFieldAndRetryHint() {
        BadRequest bad = BadRequest.newBuilder()
                .addFieldViolations(BadRequest.FieldViolation.newBuilder().setField("image.content"))
                .build();
        server.predict = (attempt, result) -> {
            StatusRuntimeException failed = FakeServer.thrown(
                    Status.Code.INVALID_ARGUMENT, "IMAGE_UNREADABLE", bad, FakeServer.retryIn(250));
            failed.getTrailers().put(Metadata.Key.of("x-request-id", Metadata.ASCII_STRING_MARSHALLER), "id-7");
            result.onError(failed);
        };
        try (HotslotClient client = server.client()) {
            HotslotException error =
                    assertThrows(HotslotException.InvalidRequest.class, () -> client.predict(PICTURE, "a"));
            assertEquals("IMAGE_UNREADABLE", error.reason());
            assertEquals("image.content", error.field());
            assertEquals("id-7", error.requestId());
            assertEquals(Optional.of(Duration.ofMillis(250)), error.retryAfter());
            assertEquals("INVALID_ARGUMENT IMAGE_UNREADABLE (image.content): refused", error.getMessage());
            assertTrue(
                    error.getStackTrace()[3].getClassName().startsWith("io.hotslot.client.HotslotClient"),
                    "the stack is the waiting thread's");
        }
    }

    @Test
    void aCallAndAStreamSayWhichVersionIsToAnswerAndToWhichKeyTheyBelong() {
        Metadata.Key<String> key = Metadata.Key.of("x-routing-key", Metadata.ASCII_STRING_MARSHALLER);
        Metadata.Key<String> version = Metadata.Key.of("x-model-version", Metadata.ASCII_STRING_MARSHALLER);
        try (HotslotClient client = server.client()) {
            HotslotClient view = client.withRoutingKey("other").withModelVersion("canary").withRoutingKey("shop-17");
            view.predict(PICTURE, "a");
            assertEquals(List.of("shop-17"), values(key));
            assertEquals(List.of("canary"), values(version));
            PredictRequest one = HotslotClient.request(PICTURE, List.of("a"));
            try (Stream<Outcome<PredictResponse>> outcomes =
                    view.predictMany(List.of(new Item<>("", one)), StreamOptions.DEFAULT)) {
                assertEquals(1, outcomes.count());
            }
            assertEquals(List.of("shop-17"), values(key));
            client.predict(PICTURE, "a");
            assertEquals(List.of(), values(key));
            for (String bad : List.of("", "M\u00fcller", " a", "a\n", "x".repeat(257))) {
                assertThrows(IllegalArgumentException.class, () -> client.withRoutingKey(bad));
            }
        }
    }

    private List<String> values(Metadata.Key<String> key) {
        Iterable<String> found = server.headers.getAll(key);
        return found == null ? List.of() : StreamSupport.stream(found.spliterator(), false).toList();
    }

    @Test
    void aRefusalForNowIsSentAgainWhenTheServerSays() {
        AtomicReference<Long> refused = new AtomicReference<>();
        server.predict = (attempt, result) -> {
            if (attempt > 1) {
                FakeServer.answer(result);
                return;
            }
            refused.set(System.nanoTime());
            result.onError(FakeServer.pushedBack(Status.Code.RESOURCE_EXHAUSTED, "QUEUE_FULL", 40));
        };
        try (HotslotClient client = server.client()) {
            client.predict(new byte[2 << 20], "a"); // more than gRPC keeps by default
            assertEquals(2, server.attempts.get());
            assertTrue(System.nanoTime() - refused.get() >= 40_000_000, "sent again too early");
        }
    }

    @Test
    void aFailureOfTheConnectionNamesItsCause() throws IOException {
        int port;
        try (ServerSocket socket = new ServerSocket(0)) {
            port = socket.getLocalPort();
        }
        try (HotslotClient client = HotslotClient.builder("127.0.0.1:" + port)
                .plaintext()
                .withoutRetries()
                .build()) {
            HotslotException error =
                    assertThrows(HotslotException.Unavailable.class, () -> client.predict(PICTURE, "a"));
            assertTrue(error.getMessage().contains("Connection refused"), error.getMessage());
        }
    }

    @Test
    void aDeadlineEndsTheCall() {
        server.predict = (attempt, result) -> {};
        try (HotslotClient client = server.client()) {
            HotslotClient hurried = client.withDeadline(Duration.ofMillis(5));
            assertThrows(HotslotException.DeadlineExceeded.class, () -> hurried.predict(PICTURE, "a"));
        }
    }

    @Test
    void aFutureFailsWithTheSameException() {
        server.predict = (attempt, result) ->
                result.onError(FakeServer.thrown(Status.Code.NOT_FOUND, "MODEL_UNKNOWN"));
        try (HotslotClient client = server.client()) {
            ExecutionException error = assertThrows(
                    ExecutionException.class,
                    () -> client.predictAsync(PredictRequest.getDefaultInstance()).get());
            assertEquals("MODEL_UNKNOWN", ((HotslotException) error.getCause()).reason());
            assertInstanceOf(HotslotException.NotFound.class, error.getCause());
        }
    }

    @Test
    void cancellingAFutureEndsTheCall() throws InterruptedException {
        CountDownLatch begun = new CountDownLatch(1);
        CountDownLatch ended = new CountDownLatch(1);
        server.predict = (attempt, result) -> {
            ((ServerCallStreamObserver<?>) result).setOnCancelHandler(ended::countDown);
            begun.countDown();
        };
        try (HotslotClient client = server.client()) {
            CompletableFuture<?> future = client.predictAsync(PredictRequest.getDefaultInstance());
            begun.await();
            future.cancel(true);
            assertThrows(CancellationException.class, future::join);
            assertTrue(ended.await(10, TimeUnit.SECONDS), "the server was told");
        }
    }

    @Test
    void anInterruptedThreadGetsItsFlagBack() throws InterruptedException {
        CountDownLatch begun = new CountDownLatch(1);
        server.predict = (attempt, result) -> begun.countDown();
        AtomicReference<Object> seen = new AtomicReference<>();
        try (HotslotClient client = server.client()) {
            Thread caller = new Thread(() -> {
                try {
                    client.predict(PICTURE, "a");
                } catch (HotslotException.Cancelled error) {
                    seen.set(Thread.currentThread().isInterrupted());
                }
            });
            caller.start();
            begun.await();
            caller.interrupt();
            caller.join();
            assertEquals(true, seen.get());
        }
    }

    @Test
    void aTextWithoutUtf8IsRefusedWithItsField() {
        try (HotslotClient client = server.client()) {
            HotslotException error = assertThrows(
                    HotslotException.InvalidRequest.class, () -> client.predict(PICTURE, "fine \ud83d\ude00", "\ud83d"));
            assertEquals("statements[1]", error.field());
            assertEquals("MESSAGE_MALFORMED", error.reason());
            assertEquals(0, server.attempts.get());
        }
    }

    @Test
    void theClientsModelIsThatOfRequestsWithoutOne() {
        StreamProtocol.Entailment protocol = new StreamProtocol.Entailment("default");
        PredictRequest none = PredictRequest.getDefaultInstance();
        assertEquals("default", protocol.complete(none).getModel());
        PredictRequest other = none.toBuilder().setModel("other").build();
        assertEquals("other", protocol.complete(other).getModel());
    }

    @Test
    void whatCannotWorkIsRefused() {
        assertThrows(IllegalStateException.class, () -> HotslotClient.builder("localhost:1").build());
        assertThrows(IllegalStateException.class, () -> HotslotClient.builder("localhost:1")
                .plaintext()
                .credentials(TlsChannelCredentials.create())
                .build());
        assertThrows(IllegalStateException.class, () -> HotslotClient.builder("localhost:1")
                .plaintext()
                .token("secret")
                .build());
        assertThrows(
                IllegalArgumentException.class,
                () -> HotslotClient.builder("localhost:1").serviceConfig("{"));
        for (String target : new String[] {"a:1,b", "a:1,b:x", ",", " , "}) {
            assertThrows(IllegalArgumentException.class, () -> HotslotClient.builder(target), target);
        }
    }

    /** Keeps the token of the latest call. */
    private static ServerInterceptor lookAtTheToken(AtomicReference<String> seen) {
        return new ServerInterceptor() {
            @Override
            public <Q, P> ServerCall.Listener<Q> interceptCall(
                    ServerCall<Q, P> call, Metadata headers, ServerCallHandler<Q, P> next) {
                if (!call.getMethodDescriptor().getServiceName().startsWith("grpc.health")) {
                    seen.set(headers.get(Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER)));
                }
                return next.startCall(call, headers);
            }
        };
    }

    @Test
    void theTokenIsSent() throws IOException {
        AtomicReference<String> seen = new AtomicReference<>("");
        try (Node node = new Node("a", lookAtTheToken(seen));
                HotslotClient client = HotslotClient.builder(node.address())
                        .plaintext()
                        .tokenInPlaintext("secret")
                        .build()) {
            client.predict(PICTURE, "a");
            assertEquals("Bearer secret", seen.get());
        }
    }

    @Test
    void theTokenMayChange() throws IOException {
        AtomicReference<String> seen = new AtomicReference<>("");
        AtomicReference<String> token = new AtomicReference<>("first");
        try (Node node = new Node("a", lookAtTheToken(seen));
                HotslotClient client = HotslotClient.builder(node.address())
                        .plaintext()
                        .tokenInPlaintext(token::get)
                        .build()) {
            client.predict(PICTURE, "a");
            assertEquals("Bearer first", seen.get());
            token.set("second\n");
            client.predict(PICTURE, "a");
            assertEquals("Bearer second", seen.get());
            token.set(null);
            assertThrows(HotslotException.Unauthenticated.class, () -> client.predict(PICTURE, "a"));
        }
    }

    @Test
    void aDeadlineMayBeAsLongAsOneLikes() {
        try (HotslotClient client = server.client()) {
            for (Duration deadline : List.of(Duration.ofDays(365), ChronoUnit.FOREVER.getDuration())) {
                client.withDeadline(deadline).predict(PICTURE, "a");
            }
            assertThrows(
                    HotslotException.DeadlineExceeded.class,
                    () -> client.withDeadline(Duration.ZERO).predict(PICTURE, "a"));
        }
    }

    @Test
    void aServerThatReportsNotServingGetsNoCalls() throws IOException {
        try (Node a = new Node("a");
                Node b = new Node("b");
                HotslotClient client = HotslotClient.builder(a.address() + "," + b.address())
                        .plaintext()
                        .build()) {
            a.health(ServingStatus.NOT_SERVING);
            for (int n = 0; n < 20; n++) {
                assertEquals("b", client.predict(PICTURE, "a").getServedBy().getNode());
            }
            a.health(ServingStatus.SERVING);
            b.health(ServingStatus.NOT_SERVING);
            eventually(() -> client.predict(PICTURE, "a").getServedBy().getNode().equals("a"));
        }
    }

    private static void eventually(Supplier<Boolean> check) {
        for (int n = 0; n < 10_000; n++) {
            if (check.get()) {
                return;
            }
        }
        throw new AssertionError("it did not come to that");
    }

    /** A server on a port of this machine, with a health service. */
    private static final class Node extends EntailmentServiceGrpc.EntailmentServiceImplBase implements AutoCloseable {
        private final String name;
        private final HealthStatusManager health = new HealthStatusManager();
        private final Server server;

        Node(String name, ServerInterceptor... interceptors) throws IOException {
            this.name = name;
            var builder = io.grpc.Grpc.newServerBuilderForPort(0, InsecureServerCredentials.create())
                    .addService(this)
                    .addService(health.getHealthService());
            for (ServerInterceptor one : interceptors) {
                builder.intercept(one);
            }
            health(ServingStatus.SERVING);
            server = builder.build().start();
        }

        String address() {
            return "127.0.0.1:" + server.getPort();
        }

        void health(ServingStatus status) {
            health.setStatus(EntailmentServiceGrpc.SERVICE_NAME, status);
        }

        @Override
        public void predict(PredictRequest request, StreamObserver<PredictResponse> result) {
            result.onNext(PredictResponse.newBuilder()
                    .setServedBy(ServedBy.newBuilder().setNode(name))
                    .build());
            result.onCompleted();
        }

        @Override
        public void close() {
            server.shutdownNow();
        }
    }
}
