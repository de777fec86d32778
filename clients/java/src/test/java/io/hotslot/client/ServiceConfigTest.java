package io.hotslot.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.grpc.Metadata;
import io.grpc.Server;
import io.grpc.ServerBuilder;
import io.grpc.Status;
import io.grpc.health.v1.HealthCheckResponse.ServingStatus;
import io.grpc.protobuf.services.HealthStatusManager;
import io.grpc.stub.StreamObserver;
import io.hotslot.entailment.v1.EntailmentServiceGrpc;
import io.hotslot.entailment.v1.PredictRequest;
import io.hotslot.entailment.v1.PredictResponse;
import io.hotslot.entailment.v1.ServedBy;
import java.io.IOException;
import java.time.Duration;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.BiConsumer;
import java.util.function.UnaryOperator;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

/** What grpc-java makes of the service config, over a real connection: the column of docs/service-config.md. */
@Timeout(20)
class ServiceConfigTest extends EntailmentServiceGrpc.EntailmentServiceImplBase {
    private final AtomicInteger attempts = new AtomicInteger();
    private final HealthStatusManager health = new HealthStatusManager();
    private BiConsumer<Integer, StreamObserver<PredictResponse>> predict;
    private Server server;

    @BeforeEach
    void start() throws IOException {
        serve(ServingStatus.SERVING);
        server = ServerBuilder.forPort(0)
                .addService(this)
                .addService(health.getHealthService())
                .build()
                .start();
    }

    @AfterEach
    void stop() {
        server.shutdownNow();
    }

    private void serve(ServingStatus status) {
        health.setStatus(EntailmentServiceGrpc.SERVICE_NAME, status);
    }

    @Override
    public void predict(PredictRequest request, StreamObserver<PredictResponse> result) {
        predict.accept(attempts.incrementAndGet(), result);
    }

    private HotslotClient client(UnaryOperator<HotslotClientBuilder> options) {
        return options.apply(HotslotClient.builder("127.0.0.1:" + server.getPort()).plaintext())
                .build();
    }

    /** Its first calls are refused, with a push-back; null: without. */
    private void fail(int times, String pushback) {
        predict = (attempt, result) -> {
            if (attempt > times) {
                FakeServer.answer(result);
                return;
            }
            Metadata trailers = new Metadata();
            if (pushback != null) {
                trailers.put(Metadata.Key.of("grpc-retry-pushback-ms", Metadata.ASCII_STRING_MARSHALLER), pushback);
            }
            result.onError(Status.UNAVAILABLE.asRuntimeException(trailers));
        };
    }

    private void expectUnavailable(HotslotClient client, int bytes, int expectedAttempts) {
        try (client) {
            assertThrows(HotslotException.Unavailable.class, () -> client.predict(new byte[bytes], "a"));
        }
        assertEquals(expectedAttempts, attempts.get());
    }

    @Test
    void pushBackOfMinusOneEndsTheAttempts() {
        fail(1, "-1");
        expectUnavailable(client(one -> one), 1, 1);
    }

    @Test
    void aCallHasFiveAttempts() {
        fail(9, "1");
        expectUnavailable(client(one -> one), 1, 5);
    }

    @Test
    void aCallWithoutRetriesHasOneAttempt() {
        fail(9, null);
        expectUnavailable(client(HotslotClientBuilder::withoutRetries), 1, 1);
    }

    @Test
    void aRequestThatIsLargerThanTheRetryBufferHasOneAttempt() {
        fail(1, "1");
        expectUnavailable(client(one -> one.customize(channel -> channel.perRpcBufferLimit(1 << 20))), 2 << 20, 1);
    }

    @Test
    void aCallThatHasReceivedHeadersHasOneAttempt() {
        predict = (attempt, result) -> {
            // The first message sends the headers.
            result.onNext(PredictResponse.getDefaultInstance());
            result.onError(Status.UNAVAILABLE.asRuntimeException());
        };
        expectUnavailable(client(one -> one), 1, 1);
    }

    @Test
    void aCallIsTriedAgainIfNoServerCouldBePicked() {
        serve(ServingStatus.NOT_SERVING);
        predict = (attempt, result) -> FakeServer.answer(result);
        try (HotslotClient client = client(one -> one)) {
            CompletableFuture.delayedExecutor(50, TimeUnit.MILLISECONDS)
                    .execute(() -> serve(ServingStatus.SERVING));
            client.predict(new byte[1], "a");
        }
    }

    @Test
    void theTimeoutIsACap() {
        predict = (attempt, result) -> {};
        String config = ServiceConfig.SHARED.replaceFirst("\"60s\"", "\"0.05s\"");
        try (HotslotClient client = client(one -> one.serviceConfig(config))) {
            long began = System.nanoTime();
            assertThrows(HotslotException.DeadlineExceeded.class, () -> client.predict(new byte[1], "a"));
            assertTrue(System.nanoTime() - began >= 50_000_000, "too early");
        }
    }

    @Test
    void aRequestOverTheLimitHasNoAttempt() {
        try (HotslotClient client = client(one -> one.maxRequestBytes(1 << 10))) {
            assertThrows(HotslotException.Overloaded.class, () -> client.predict(new byte[2 << 10], "a"));
        }
        assertEquals(0, attempts.get());
    }

    @Test
    void aRequestOverTheConfigsOwnLimitHangsLongerThanItsDeadline() {
        String config = ServiceConfig.SHARED.replace("33554432", "1024");
        UnaryOperator<HotslotClientBuilder> whole =
                one -> one.customize(channel -> channel.defaultServiceConfig(ServiceConfig.parse(config)));
        try (HotslotClient client = client(whole).withDeadline(Duration.ofMillis(500))) {
            PredictRequest large = HotslotClient.request(new byte[2 << 10], List.of("a"));
            CompletableFuture<PredictResponse> future = client.predictAsync(large);
            assertThrows(TimeoutException.class, () -> future.get(2, TimeUnit.SECONDS));
        }
        assertEquals(0, attempts.get());
    }

    @Test
    void aLargeAnswerNeedsBothLimits() {
        predict = (attempt, result) -> {
            result.onNext(PredictResponse.newBuilder()
                    .setServedBy(ServedBy.newBuilder().setNode("x".repeat(5 << 20)))
                    .build());
            result.onCompleted();
        };
        try (HotslotClient client = client(one -> one)) {
            client.predict(new byte[1], "a");
        }
        try (HotslotClient client = client(one -> one.maxResponseBytes(4 << 20))) {
            assertThrows(HotslotException.Overloaded.class, () -> client.predict(new byte[1], "a"));
        }
    }

    @Test
    void anEmptyHealthNameIsTheServerAsAWhole() {
        health.setStatus("", ServingStatus.NOT_SERVING);
        serve(ServingStatus.SERVING);
        predict = (attempt, result) -> FakeServer.answer(result);
        UnaryOperator<HotslotClientBuilder> whole =
                one -> one.withoutRetries().customize(channel -> channel.defaultServiceConfig(
                        ServiceConfig.parse(ServiceConfig.SHARED)));
        try (HotslotClient client = client(whole)) {
            assertThrows(HotslotException.Unavailable.class, () -> client.predict(new byte[1], "a"));
        }
        assertEquals(0, attempts.get());
    }
}
