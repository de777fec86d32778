package io.hotslot.conformance;

import com.google.gson.JsonArray;
import com.google.gson.JsonObject;
import io.hotslot.client.HotslotClient;
import io.hotslot.client.HotslotException;
import io.hotslot.client.Outcome;
import io.hotslot.client.StreamOptions;
import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.BitSet;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.CompletionException;
import java.util.concurrent.CountDownLatch;
import java.util.stream.Stream;

/** Callers that go on until they are told to stop, and what they have seen. */
final class Load {
    private final HotslotClient client;
    private final JsonObject given;
    private final Path pictures;
    private final List<Thread> threads = new ArrayList<>();
    private final CountDownLatch answered; // of each caller the first
    private volatile boolean isStopping;

    private int calls;
    private int failed;
    private int items;
    private int failedItems;
    private int duplicated;
    private int missing;
    private double longest;
    private final Map<String, Integer> failures = new TreeMap<>();
    private final Map<String, Integer> revisions = new TreeMap<>();

    Load(JsonObject command) throws IOException {
        client = Conformance.open(command.getAsJsonObject("endpoint"), true);
        given = command.getAsJsonObject("load");
        pictures = Path.of(command.get("pictures").getAsString());
        answered = new CountDownLatch(count("unary_callers") + count("streams"));
    }

    private int count(String key) {
        return given.has(key) ? given.get(key).getAsInt() : 0;
    }

    void begin() {
        begin(Task.of(given.has("task") ? given.get("task").getAsString() : "entailment"));
        try {
            answered.await();
        } catch (InterruptedException interruption) {
            throw new IllegalStateException(interruption);
        }
    }

    private <Q, P> void begin(Task<Q, P> task) {
        List<Q> requests = new ArrayList<>();
        JsonArray all = given.getAsJsonArray("requests");
        all.forEach(one -> requests.add(task.request(one.getAsJsonObject(), pictures)));
        for (int n = 0; n < count("unary_callers"); n++) {
            int first = n;
            start(() -> callOn(task, requests, first));
        }
        for (int n = 0; n < count("streams"); n++) {
            int first = n;
            start(() -> streamOn(task, requests, first));
        }
    }

    private void start(Runnable work) {
        Thread thread = new Thread(work);
        threads.add(thread);
        thread.start();
    }

    private <Q, P> void callOn(Task<Q, P> task, List<Q> requests, int first) {
        for (int n = first; !isStopping; n++) {
            long began = System.nanoTime();
            JsonObject seen;
            try {
                seen = task.seen(task.call(client, requests.get(n % requests.size())).join());
            } catch (CompletionException error) {
                seen = Conformance.failure(error.getCause());
            }
            double took = (System.nanoTime() - began) / 1e9;
            synchronized (this) {
                calls++;
                longest = Math.max(longest, took);
                failed += note(seen) ? 0 : 1;
            }
            if (n == first) {
                answered.countDown();
            }
        }
    }

    private <Q, P> void streamOn(Task<Q, P> task, List<Q> requests, int first) {
        int[] taken = new int[1];
        Iterator<Q> each = new Iterator<>() {
            @Override
            public boolean hasNext() {
                return !isStopping;
            }

            @Override
            public Q next() {
                return requests.get((first + taken[0]++) % requests.size());
            }
        };
        StreamOptions options = StreamOptions.DEFAULT;
        if (given.has("window")) {
            options = options.withWindow(count("window"));
        }
        BitSet found = new BitSet();
        try (Stream<Outcome<P>> outcomes = task.many(client, () -> each, options)) {
            outcomes.forEach(one -> {
                JsonObject seen =
                        one.failure() == null ? task.seen(one.response()) : Conformance.failure(one.failure());
                synchronized (this) {
                    failedItems += note(seen) ? 0 : 1;
                    duplicated += found.get((int) one.index()) ? 1 : 0;
                }
                if (found.isEmpty()) {
                    answered.countDown();
                }
                found.set((int) one.index());
            });
        } catch (HotslotException error) {
            synchronized (this) {
                note(Conformance.failure(error));
            }
        }
        synchronized (this) {
            items += taken[0];
            missing += taken[0] - found.cardinality();
        }
    }

    /** Counts an outcome; returns whether it is an answer. */
    private boolean note(JsonObject seen) {
        if ("answer".equals(seen.get("outcome").getAsString())) {
            revisions.merge(seen.get("revision").getAsString(), 1, Integer::sum);
            return true;
        }
        failures.merge(seen.get("code").getAsString() + " " + seen.get("reason").getAsString(), 1, Integer::sum);
        return false;
    }

    JsonObject end() {
        isStopping = true;
        try {
            for (Thread thread : threads) {
                thread.join();
            }
        } catch (InterruptedException interruption) {
            throw new IllegalStateException(interruption);
        }
        client.close();
        JsonObject seen = new JsonObject();
        seen.addProperty("calls", calls);
        seen.addProperty("failed", failed);
        seen.addProperty("items", items);
        seen.addProperty("failed_items", failedItems);
        seen.addProperty("duplicated", duplicated);
        seen.addProperty("missing", missing);
        seen.add("failures", object(failures));
        seen.addProperty("longest_seconds", longest);
        seen.add("revisions", object(revisions));
        return seen;
    }

    private static JsonObject object(Map<String, Integer> counts) {
        JsonObject made = new JsonObject();
        counts.forEach(made::addProperty);
        return made;
    }
}
