package io.hotslot.client;

import com.google.protobuf.Any;
import com.google.protobuf.Duration;
import com.google.protobuf.Message;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import io.grpc.ManagedChannelBuilder;
import io.grpc.Metadata;
import io.grpc.Server;
import io.grpc.ServerCall;
import io.grpc.ServerCallHandler;
import io.grpc.ServerInterceptor;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.health.v1.HealthCheckResponse.ServingStatus;
import io.grpc.inprocess.InProcessChannelBuilder;
import io.grpc.inprocess.InProcessServerBuilder;
import io.grpc.protobuf.StatusProto;
import io.grpc.protobuf.services.HealthStatusManager;
import io.grpc.stub.ServerCallStreamObserver;
import io.grpc.stub.StreamObserver;
import io.hotslot.entailment.v1.EntailmentServiceGrpc;
import io.hotslot.entailment.v1.PredictRequest;
import io.hotslot.entailment.v1.PredictResponse;
import io.hotslot.entailment.v1.StreamPredictRequest;
import io.hotslot.entailment.v1.StreamPredictResponse;
import io.hotslot.entailment.v1.StreamResult;
import java.io.IOException;
import java.util.List;
import java.util.UUID;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.BiConsumer;
import java.util.function.IntFunction;

/** A server in this process that answers as its functions say; attempts are counted from 1. */
final class FakeServer extends EntailmentServiceGrpc.EntailmentServiceImplBase implements AutoCloseable {
    /** One call of StreamPredict. */
    interface StreamScript {
        /** Takes the id of the next item; empty when the caller half-closes. */
        void onItem(String id, ServerCallStreamObserver<StreamPredictResponse> results);
    }

    final AtomicInteger attempts = new AtomicInteger();
    volatile Metadata headers; // of the last call
    BiConsumer<Integer, StreamObserver<PredictResponse>> predict = (attempt, result) -> answer(result);
    IntFunction<StreamScript> stream = attempt -> FakeServer::answerEach;

    private final String name = UUID.randomUUID().toString();
    private final Server server;

    FakeServer() throws IOException {
        HealthStatusManager health = new HealthStatusManager();
        health.setStatus(EntailmentServiceGrpc.SERVICE_NAME, ServingStatus.SERVING);
        server = InProcessServerBuilder.forName(name)
                .maxInboundMessageSize(64 << 20)
                .addService(this)
                .addService(health.getHealthService())
                .intercept(new Headers())
                .build()
                .start();
    }

    private final class Headers implements ServerInterceptor {
        @Override
        public <Q, P> ServerCall.Listener<Q> interceptCall(
                ServerCall<Q, P> call, Metadata given, ServerCallHandler<Q, P> next) {
            if (call.getMethodDescriptor().getServiceName().equals(EntailmentServiceGrpc.SERVICE_NAME)) {
                headers = given;
            }
            return next.startCall(call, given);
        }
    }

    /** A client with short pauses. */
    HotslotClient client() {
        return client(new HotslotClientBuilder("fake"));
    }

    HotslotClient client(HotslotClientBuilder builder) {
        HotslotClient made = builder.build(this::channel);
        made.parts().firstPause = java.time.Duration.ofMillis(1);
        made.parts().maxPause = java.time.Duration.ofMillis(4);
        return made;
    }

    private ManagedChannelBuilder<?> channel() {
        return InProcessChannelBuilder.forName(name);
    }

    @Override
    public void predict(PredictRequest request, StreamObserver<PredictResponse> result) {
        predict.accept(attempts.incrementAndGet(), result);
    }

    @Override
    public StreamObserver<StreamPredictRequest> streamPredict(StreamObserver<StreamPredictResponse> results) {
        ServerCallStreamObserver<StreamPredictResponse> open =
                (ServerCallStreamObserver<StreamPredictResponse>) results;
        open.setOnCancelHandler(() -> {});
        StreamScript script = stream.apply(attempts.incrementAndGet());
        return new StreamObserver<>() {
            @Override
            public void onNext(StreamPredictRequest message) {
                script.onItem(message.getItems(0).getItemId(), open);
            }

            @Override
            public void onError(Throwable error) {}

            @Override
            public void onCompleted() {
                script.onItem("", open);
            }
        };
    }

    static void answer(StreamObserver<PredictResponse> result) {
        result.onNext(PredictResponse.getDefaultInstance());
        result.onCompleted();
    }

    static void answerEach(String id, ServerCallStreamObserver<StreamPredictResponse> results) {
        if (results.isCancelled()) {
            return;
        }
        if (id.isEmpty()) {
            results.onCompleted();
        } else {
            results.onNext(resultsOf(List.of(id)));
        }
    }

    static StreamPredictResponse resultsOf(List<String> ids) {
        StreamPredictResponse.Builder made = StreamPredictResponse.newBuilder();
        for (String id : ids) {
            made.addResults(StreamResult.newBuilder().setItemId(id).setResponse(PredictResponse.newBuilder()));
        }
        return made.build();
    }

    static StreamPredictResponse failureOf(String id, com.google.rpc.Status error) {
        return StreamPredictResponse.newBuilder()
                .addResults(StreamResult.newBuilder().setItemId(id).setError(error))
                .build();
    }

    static com.google.rpc.Status refusal(Status.Code code, String reason, Message... more) {
        com.google.rpc.Status.Builder made = com.google.rpc.Status.newBuilder()
                .setCode(code.value())
                .setMessage("refused")
                .addDetails(Any.pack(
                        ErrorInfo.newBuilder().setReason(reason).setDomain("hotslot").build()));
        for (Message detail : more) {
            made.addDetails(Any.pack(detail));
        }
        return made.build();
    }

    static StatusRuntimeException thrown(Status.Code code, String reason, Message... more) {
        return StatusProto.toStatusRuntimeException(refusal(code, reason, more));
    }

    /** With the push-back that gRPC reads. */
    static StatusRuntimeException pushedBack(Status.Code code, String reason, int millis) {
        Metadata trailers = new Metadata();
        trailers.put(
                Metadata.Key.of("grpc-retry-pushback-ms", Metadata.ASCII_STRING_MARSHALLER), Integer.toString(millis));
        return StatusProto.toStatusRuntimeException(refusal(code, reason, retryIn(millis)), trailers);
    }

    static RetryInfo retryIn(int millis) {
        return RetryInfo.newBuilder()
                .setRetryDelay(Duration.newBuilder().setNanos(millis * 1_000_000))
                .build();
    }

    @Override
    public void close() {
        server.shutdownNow();
    }
}
