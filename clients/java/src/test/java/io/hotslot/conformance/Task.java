package io.hotslot.conformance;

import com.google.gson.JsonArray;
import com.google.gson.JsonObject;
import com.google.protobuf.ByteString;
import io.hotslot.client.HotslotClient;
import io.hotslot.client.Item;
import io.hotslot.client.Outcome;
import io.hotslot.client.StreamOptions;
import io.hotslot.entailment.v1.Image;
import io.hotslot.entailment.v1.PredictRequest;
import io.hotslot.entailment.v1.PredictResponse;
import java.nio.file.Path;
import java.util.List;
import java.util.Locale;
import java.util.concurrent.CompletableFuture;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import java.util.stream.StreamSupport;

/** What differs between the two services, for a runner. */
interface Task<Q, P> {
    Q request(JsonObject given, Path pictures);

    CompletableFuture<P> call(HotslotClient client, Q request);

    Stream<Outcome<P>> many(HotslotClient client, Iterable<Q> requests, StreamOptions options);

    JsonObject seen(P response);

    static Task<?, ?> of(String name) {
        return "address".equals(name) ? new Tagging() : new Entailment();
    }

    private static <Q> Iterable<Item<Q>> items(Iterable<Q> requests) {
        return () -> StreamSupport.stream(requests.spliterator(), false)
                .map(one -> new Item<>("", one))
                .iterator();
    }

    private static JsonObject answer(List<String> labels, String model, String revision) {
        JsonObject seen = Conformance.object("outcome", "answer");
        JsonArray list = new JsonArray();
        labels.forEach(list::add);
        seen.add("labels", list);
        seen.addProperty("model", model);
        seen.addProperty("revision", revision);
        return seen;
    }

    private static List<String> strings(JsonObject given, String key) {
        JsonArray found = given.has(key) ? given.getAsJsonArray(key) : new JsonArray();
        return found.asList().stream().map(one -> one.getAsString()).toList();
    }

    private static String string(JsonObject given, String key) {
        return given.has(key) ? given.get(key).getAsString() : "";
    }

    final class Entailment implements Task<PredictRequest, PredictResponse> {
        @Override
        public PredictRequest request(JsonObject given, Path pictures) {
            PredictRequest.Builder made = PredictRequest.newBuilder()
                    .setModel(string(given, "model"))
                    .setPremise(string(given, "premise"))
                    .addAllStatements(strings(given, "statements"));
            byte[] picture = Conformance.picture(given, pictures);
            if (picture != null) {
                made.setImage(Image.newBuilder().setContent(ByteString.copyFrom(picture)));
            }
            return made.build();
        }

        @Override
        public CompletableFuture<PredictResponse> call(HotslotClient client, PredictRequest request) {
            return client.predictAsync(request);
        }

        @Override
        public Stream<Outcome<PredictResponse>> many(
                HotslotClient client, Iterable<PredictRequest> requests, StreamOptions options) {
            return client.predictMany(items(requests), options);
        }

        @Override
        public JsonObject seen(PredictResponse response) {
            List<String> labels = response.getResultsList().stream()
                    .map(one -> one.getLabel().name().replace("LABEL_", "").toLowerCase(Locale.ROOT))
                    .toList();
            return answer(labels, response.getServedBy().getModel(), response.getServedBy().getRevision());
        }
    }

    final class Tagging implements Task<io.hotslot.address.v1.PredictRequest, io.hotslot.address.v1.PredictResponse> {
        @Override
        public io.hotslot.address.v1.PredictRequest request(JsonObject given, Path pictures) {
            return io.hotslot.address.v1.PredictRequest.newBuilder()
                    .setModel(string(given, "model"))
                    .addAllAddresses(strings(given, "addresses"))
                    .build();
        }

        @Override
        public CompletableFuture<io.hotslot.address.v1.PredictResponse> call(
                HotslotClient client, io.hotslot.address.v1.PredictRequest request) {
            return client.tagAsync(request);
        }

        @Override
        public Stream<Outcome<io.hotslot.address.v1.PredictResponse>> many(
                HotslotClient client,
                Iterable<io.hotslot.address.v1.PredictRequest> requests,
                StreamOptions options) {
            return client.tagMany(items(requests), options);
        }

        @Override
        public JsonObject seen(io.hotslot.address.v1.PredictResponse response) {
            List<String> labels = response.getResultsList().stream()
                    .map(result -> result.getSpansList().stream()
                            .map(span -> span.getKind() + "=" + span.getText())
                            .collect(Collectors.joining("|")))
                    .toList();
            return answer(labels, response.getServedBy().getModel(), response.getServedBy().getRevision());
        }
    }
}
