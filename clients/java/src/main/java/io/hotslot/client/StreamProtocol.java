package io.hotslot.client;

import com.google.protobuf.MessageLite;
import io.grpc.MethodDescriptor;
import io.hotslot.address.v1.AddressTaggingServiceGrpc;
import io.hotslot.entailment.v1.EntailmentServiceGrpc;
import java.util.ArrayList;
import java.util.List;

/**
 * What differs between the streams of the two services.
 *
 * @param <Q> a request
 * @param <M> a message of requests
 * @param <R> a message of results
 * @param <P> a response
 */
interface StreamProtocol<Q, M extends MessageLite, R, P> {
    MethodDescriptor<M, R> method();

    /** Returns the request with the client's model, unless it names its own. */
    Q complete(Q request);

    /** Returns the path of a text that has no UTF-8, for which protobuf would send another; null if there is none. */
    String findMalformed(Q request);

    M wrap(String wireId, Q request);

    List<Result<P>> unwrap(R reply);

    /** One outcome as the server sends it: a response or an error. */
    record Result<P>(String wireId, P response, com.google.rpc.Status error) {}

    /** The error of a result that has neither. */
    com.google.rpc.Status NO_OUTCOME = com.google.rpc.Status.newBuilder()
            .setCode(io.grpc.Status.Code.INTERNAL.value())
            .setMessage("the server sent a result without an outcome")
            .build();

    private static String findMalformed(String field, List<String> texts) {
        for (int number = 0; number < texts.size(); number++) {
            if (!isWellFormed(texts.get(number))) {
                return field + "[" + number + "]";
            }
        }
        return null;
    }

    private static boolean isWellFormed(String text) {
        for (int at = 0; at < text.length(); at++) {
            char one = text.charAt(at);
            if (!Character.isSurrogate(one)) {
                continue;
            }
            boolean isPair = Character.isHighSurrogate(one)
                    && at + 1 < text.length()
                    && Character.isLowSurrogate(text.charAt(at + 1));
            if (!isPair) {
                return false;
            }
            at++;
        }
        return true;
    }

    record Entailment(String model)
            implements StreamProtocol<
                    io.hotslot.entailment.v1.PredictRequest,
                    io.hotslot.entailment.v1.StreamPredictRequest,
                    io.hotslot.entailment.v1.StreamPredictResponse,
                    io.hotslot.entailment.v1.PredictResponse> {
        @Override
        public MethodDescriptor<
                        io.hotslot.entailment.v1.StreamPredictRequest, io.hotslot.entailment.v1.StreamPredictResponse>
                method() {
            return EntailmentServiceGrpc.getStreamPredictMethod();
        }

        @Override
        public io.hotslot.entailment.v1.PredictRequest complete(io.hotslot.entailment.v1.PredictRequest request) {
            boolean isComplete = model.isEmpty() || !request.getModel().isEmpty();
            return isComplete ? request : request.toBuilder().setModel(model).build();
        }

        @Override
        public String findMalformed(io.hotslot.entailment.v1.PredictRequest request) {
            String field = StreamProtocol.findMalformed("statements", request.getStatementsList());
            return field != null || StreamProtocol.isWellFormed(request.getPremise()) ? field : "premise";
        }

        @Override
        public io.hotslot.entailment.v1.StreamPredictRequest wrap(
                String wireId, io.hotslot.entailment.v1.PredictRequest request) {
            return io.hotslot.entailment.v1.StreamPredictRequest.newBuilder()
                    .addItems(io.hotslot.entailment.v1.StreamItem.newBuilder()
                            .setItemId(wireId)
                            .setRequest(complete(request)))
                    .build();
        }

        @Override
        public List<Result<io.hotslot.entailment.v1.PredictResponse>> unwrap(
                io.hotslot.entailment.v1.StreamPredictResponse reply) {
            List<Result<io.hotslot.entailment.v1.PredictResponse>> found = new ArrayList<>(reply.getResultsCount());
            for (io.hotslot.entailment.v1.StreamResult one : reply.getResultsList()) {
                found.add(new Result<>(
                        one.getItemId(),
                        one.getResponse(),
                        one.hasResponse() ? null : one.hasError() ? one.getError() : NO_OUTCOME));
            }
            return found;
        }
    }

    record Tagging(String model)
            implements StreamProtocol<
                    io.hotslot.address.v1.PredictRequest,
                    io.hotslot.address.v1.StreamPredictRequest,
                    io.hotslot.address.v1.StreamPredictResponse,
                    io.hotslot.address.v1.PredictResponse> {
        @Override
        public MethodDescriptor<io.hotslot.address.v1.StreamPredictRequest, io.hotslot.address.v1.StreamPredictResponse>
                method() {
            return AddressTaggingServiceGrpc.getStreamPredictMethod();
        }

        @Override
        public io.hotslot.address.v1.PredictRequest complete(io.hotslot.address.v1.PredictRequest request) {
            boolean isComplete = model.isEmpty() || !request.getModel().isEmpty();
            return isComplete ? request : request.toBuilder().setModel(model).build();
        }

        @Override
        public String findMalformed(io.hotslot.address.v1.PredictRequest request) {
            return StreamProtocol.findMalformed("addresses", request.getAddressesList());
        }

        @Override
        public io.hotslot.address.v1.StreamPredictRequest wrap(
                String wireId, io.hotslot.address.v1.PredictRequest request) {
            return io.hotslot.address.v1.StreamPredictRequest.newBuilder()
                    .addItems(io.hotslot.address.v1.StreamItem.newBuilder()
                            .setItemId(wireId)
                            .setRequest(complete(request)))
                    .build();
        }

        @Override
        public List<Result<io.hotslot.address.v1.PredictResponse>> unwrap(
                io.hotslot.address.v1.StreamPredictResponse reply) {
            List<Result<io.hotslot.address.v1.PredictResponse>> found = new ArrayList<>(reply.getResultsCount());
            for (io.hotslot.address.v1.StreamResult one : reply.getResultsList()) {
                found.add(new Result<>(
                        one.getItemId(),
                        one.getResponse(),
                        one.hasResponse() ? null : one.hasError() ? one.getError() : NO_OUTCOME));
            }
            return found;
        }
    }
}
