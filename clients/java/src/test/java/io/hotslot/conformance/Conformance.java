package io.hotslot.conformance;

import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import io.grpc.TlsChannelCredentials;
import io.hotslot.client.HotslotClient;
import io.hotslot.client.HotslotClientBuilder;
import io.hotslot.client.HotslotException;
import io.hotslot.client.Outcome;
import io.hotslot.client.StreamOptions;
import java.io.BufferedReader;
import java.io.File;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.CancellationException;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.stream.IntStream;
import java.util.stream.Stream;

/**
 * Runs rows of the conformance table with the Java client: JSON lines in, JSON lines out. The README of
 * clients/conformance describes them.
 */
public final class Conformance {
    private static final Gson GSON = new GsonBuilder().serializeNulls().create();
    private static final String LOCALHOST = "127.0.0.1 localhost\n";
    private static final PrintStream OUT = new PrintStream(System.out, true, StandardCharsets.UTF_8);

    private static final Path HOSTS = makeHosts();

    private Conformance() {}

    private static Path makeHosts() {
        try {
            return Files.writeString(Files.createTempFile("hosts", ""), LOCALHOST);
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
    }

    public static void main(String[] arguments) throws IOException {
        // Read at each look-up of a name; its path is read once, before the first.
        HOSTS.toFile().deleteOnExit();
        System.setProperty("jdk.net.hosts.file", HOSTS.toString());
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        Load load = null;
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            if (line.isBlank()) {
                continue;
            }
            JsonObject command = GSON.fromJson(line, JsonObject.class);
            if (command.has("row")) {
                report(run(command));
            } else if (command.has("load")) {
                load = new Load(command);
                load.begin();
                report(object("load", "begun"));
            } else if (command.has("stop") && load != null) {
                JsonObject ended = new JsonObject();
                ended.add("load", load.end());
                report(ended);
            }
        }
        System.exit(0);
    }

    static void report(JsonObject line) {
        synchronized (OUT) {
            OUT.println(GSON.toJson(line));
        }
    }

    static JsonObject object(String key, String value) {
        JsonObject made = new JsonObject();
        made.addProperty(key, value);
        return made;
    }

    private static JsonObject run(JsonObject command) throws IOException {
        JsonObject row = command.getAsJsonObject("row");
        boolean hasRetries = !row.has("retry") || row.get("retry").getAsBoolean();
        JsonObject answer = object("row", row.get("id").getAsString());
        answer.addProperty("language", "java");
        try (HotslotClient client = open(command.getAsJsonObject("endpoint"), hasRetries)) {
            HotslotClient view = row.has("deadline_seconds")
                    ? client.withDeadline(seconds(row.get("deadline_seconds").getAsDouble()))
                    : client;
            if (row.has("model_version")) {
                view = view.withModelVersion(row.get("model_version").getAsString());
            }
            if (row.has("routing_key")) {
                view = view.withRoutingKey(row.get("routing_key").getAsString());
            }
            Task<?, ?> task = Task.of(row.get("task").getAsString());
            Path pictures = Path.of(command.get("pictures").getAsString());
            long began = System.nanoTime();
            JsonObject seen = "stream".equals(row.get("call").getAsString())
                    ? stream(view, task, row, pictures)
                    : unary(view, task, row, pictures);
            double took = (System.nanoTime() - began) / 1e9;
            answer.add("seen", seen);
            answer.addProperty("seconds", took);
            answer.addProperty("passed", hasPassed(row, seen, took));
        }
        return answer;
    }

    static Duration seconds(double count) {
        return Duration.ofNanos((long) (count * 1e9));
    }

    static HotslotClient open(JsonObject endpoint, boolean hasRetries) throws IOException {
        String address = endpoint.get("address").getAsString();
        if (endpoint.has("hosts_file")) { // gRPC asks no DNS server by its address
            String hosts = Files.readString(Path.of(endpoint.get("hosts_file").getAsString()));
            Files.writeString(HOSTS, LOCALHOST + hosts);
            address = address.replaceFirst("^dns://[^/]*/", "dns:///");
        }
        HotslotClientBuilder builder = HotslotClient.builder(address);
        boolean hasTls = endpoint.has("ca_file");
        if (hasTls) {
            TlsChannelCredentials.Builder tls = TlsChannelCredentials.newBuilder();
            tls.trustManager(new File(endpoint.get("ca_file").getAsString()));
            if (endpoint.has("certificate_file")) {
                tls.keyManager(
                        new File(endpoint.get("certificate_file").getAsString()),
                        new File(endpoint.get("key_file").getAsString()));
            }
            builder.credentials(tls.build());
        } else {
            builder.plaintext();
        }
        if (endpoint.has("token_file")) {
            String token = Files.readString(Path.of(endpoint.get("token_file").getAsString()))
                    .strip();
            if (hasTls) {
                builder.token(token);
            } else {
                builder.tokenInPlaintext(token);
            }
        }
        return hasRetries ? builder.build() : builder.withoutRetries().build();
    }

    private static <Q, P> JsonObject unary(HotslotClient client, Task<Q, P> task, JsonObject row, Path pictures) {
        Q request = task.request(row.getAsJsonObject("request"), pictures);
        if (row.has("report_at") && row.get("report_at").getAsInt() == 0) {
            reached(row, 0);
        }
        CompletableFuture<P> future = task.call(client, request);
        if (row.has("cancel_after_seconds")) {
            long nanos = seconds(row.get("cancel_after_seconds").getAsDouble()).toNanos();
            CompletableFuture.delayedExecutor(nanos, TimeUnit.NANOSECONDS).execute(() -> future.cancel(true));
        }
        try {
            return task.seen(future.get());
        } catch (CancellationException cancelled) {
            return cancelled();
        } catch (ExecutionException failed) {
            return failure(failed.getCause());
        } catch (InterruptedException interruption) {
            throw new IllegalStateException(interruption);
        }
    }

    private static <Q, P> JsonObject stream(HotslotClient client, Task<Q, P> task, JsonObject row, Path pictures) {
        List<Q> requests = new ArrayList<>();
        row.getAsJsonArray("items").forEach(one -> requests.add(task.request(one.getAsJsonObject(), pictures)));
        int count = requests.size() * (row.has("repeat") ? row.get("repeat").getAsInt() : 1);
        StreamOptions options = StreamOptions.DEFAULT;
        if (row.has("window")) {
            options = options.withWindow(row.get("window").getAsInt());
        }
        if (!row.has("order") || !"any".equals(row.get("order").getAsString())) {
            options = options.ordered();
        }
        JsonElement[] results = new JsonElement[count];
        Object[] failures = new Object[count];
        int[] duplicated = new int[1];
        int[] arrived = new int[1];
        int reportAt = row.has("report_at") ? row.get("report_at").getAsInt() : -1;
        if (reportAt == 0) {
            reached(row, 0);
        }
        Iterable<Q> items =
                () -> IntStream.range(0, count).mapToObj(n -> requests.get(n % requests.size())).iterator();
        boolean[] isCancelled = new boolean[1];
        try (Stream<Outcome<P>> outcomes = task.many(client, items, options)) {
            if (row.has("cancel_after_seconds")) {
                long nanos = seconds(row.get("cancel_after_seconds").getAsDouble()).toNanos();
                CompletableFuture.delayedExecutor(nanos, TimeUnit.NANOSECONDS).execute(() -> {
                    isCancelled[0] = true;
                    outcomes.close();
                });
            }
            outcomes.forEach(one -> {
                int index = (int) one.index();
                duplicated[0] += results[index] == null ? 0 : 1;
                results[index] = one.failure() == null ? task.seen(one.response()) : failure(one.failure());
                failures[index] = one.failure();
                if (++arrived[0] == reportAt) {
                    reached(row, reportAt);
                }
            });
        } catch (HotslotException error) {
            for (int n = 0; n < count; n++) {
                if (failures[n] != null && failures[n] == error.getCause()) {
                    results[n] = null; // the stream's failure is no outcome that has arrived
                }
            }
            return withResults(failure(error), results, duplicated[0]);
        }
        return withResults(isCancelled[0] ? cancelled() : object("outcome", "ended"), results, duplicated[0]);
    }

    private static JsonObject withResults(JsonObject seen, JsonElement[] results, int duplicated) {
        seen.add("results", GSON.toJsonTree(results));
        seen.addProperty("duplicated", duplicated);
        seen.addProperty("missing", Arrays.stream(results).filter(one -> one == null).count());
        return seen;
    }

    private static void reached(JsonObject row, int count) {
        JsonObject line = object("row", row.get("id").getAsString());
        line.addProperty("reached", count);
        report(line);
    }

    static JsonObject failure(Throwable error) {
        HotslotException known = (HotslotException) error;
        JsonObject seen = object("outcome", "error");
        seen.addProperty("code", known.code().name());
        seen.addProperty("reason", known.reason());
        seen.addProperty("field", known.field());
        seen.addProperty("retry_hint", known.retryAfter().isPresent());
        return seen;
    }

    private static JsonObject cancelled() {
        JsonObject seen = object("outcome", "error");
        seen.addProperty("code", "CANCELLED");
        seen.addProperty("reason", "");
        seen.addProperty("field", "");
        seen.addProperty("retry_hint", false);
        return seen;
    }

    private static boolean hasPassed(JsonObject row, JsonObject seen, double took) {
        JsonObject expected = row.getAsJsonObject("expected");
        if (expected.has("min_seconds") && took < expected.remove("min_seconds").getAsDouble()) {
            return false;
        }
        if (expected.has("max_seconds") && took > expected.remove("max_seconds").getAsDouble()) {
            return false;
        }
        if (expected.has("results") && row.has("repeat")) {
            JsonArray repeated = new JsonArray();
            for (int n = 0; n < row.get("repeat").getAsInt(); n++) {
                repeated.addAll(expected.getAsJsonArray("results"));
            }
            expected.add("results", repeated);
        }
        return matches(expected, seen);
    }

    /** Compares each key of what is expected; lists one by one. */
    private static boolean matches(JsonElement expected, JsonElement seen) {
        if (expected.isJsonObject()) {
            return seen != null
                    && seen.isJsonObject()
                    && expected.getAsJsonObject().entrySet().stream()
                            .allMatch(one -> matches(
                                    one.getValue(), seen.getAsJsonObject().get(one.getKey())));
        }
        if (expected.isJsonArray()) {
            JsonArray wanted = expected.getAsJsonArray();
            return seen != null
                    && seen.isJsonArray()
                    && seen.getAsJsonArray().size() == wanted.size()
                    && IntStream.range(0, wanted.size())
                            .allMatch(n -> matches(
                                    wanted.get(n), seen.getAsJsonArray().get(n)));
        }
        return expected.equals(seen);
    }

    static byte[] picture(JsonObject request, Path folder) {
        byte[] found = new byte[0];
        try {
            if (request.has("picture")) {
                found = Files.readAllBytes(folder.resolve(request.get("picture").getAsString()));
            } else if (request.has("picture_text")) {
                found = request.get("picture_text").getAsString().getBytes(StandardCharsets.UTF_8);
            } else if (!request.has("padding")) {
                return null;
            }
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
        return request.has("padding")
                ? Arrays.copyOf(found, found.length + request.get("padding").getAsInt())
                : found;
    }
}
