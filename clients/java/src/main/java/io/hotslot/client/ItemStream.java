package io.hotslot.client;

import com.google.protobuf.MessageLite;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.Status;
import io.grpc.SynchronizationContext;
import io.grpc.stub.ClientCallStreamObserver;
import io.grpc.stub.ClientCalls;
import io.grpc.stub.ClientResponseObserver;
import java.time.Duration;
import java.util.ArrayDeque;
import java.util.HashMap;
import java.util.HashSet;
import java.util.Map;
import java.util.Objects;
import java.util.Queue;
import java.util.Set;
import java.util.TreeMap;
import java.util.concurrent.Flow;
import java.util.concurrent.TimeUnit;

/**
 * One subscription to a stream of outcomes. All fields belong to `sync`: it runs one step at a time, in the thread of
 * whoever brings it.
 */
final class ItemStream<Q, M extends MessageLite, R, P> implements Flow.Subscription {
    /** An item without an outcome. */
    private static final class Entry<M> {
        final long index;
        final String id;
        final M message;
        int attempts;

        Entry(long index, String id, M message) {
            this.index = index;
            this.id = id;
            this.message = message;
        }
    }

    private final ClientParts parts;
    private final Channel channel;
    private final StreamProtocol<Q, M, R, P> protocol;
    private final CallOptions callOptions;
    private final StreamOptions options;
    private final RetryRules rules;
    private final Flow.Subscriber<? super Outcome<P>> subscriber;
    private final SynchronizationContext sync = new SynchronizationContext((thread, error) -> crash(error));

    private Flow.Subscription source;
    private boolean isSourceDone;
    private Throwable sourceError;
    private long read; // items

    private final TreeMap<Long, Entry<M>> queue = new TreeMap<>(); // to be sent
    private final Map<Long, Entry<M>> inFlight = new HashMap<>(); // sent over the open call
    private final Set<Long> alone = new HashSet<>(); // sent one at a time: one of them ends the call
    private final Map<Long, Entry<M>> delayed = new HashMap<>(); // to be sent later
    private final Map<Long, Outcome<P>> held = new HashMap<>(); // until those before them are there
    private long next; // index that is delivered next, if in order
    private final Queue<Outcome<P>> ready = new ArrayDeque<>();
    private long demand;
    private HotslotException failure; // of the stream, for good
    private boolean hasEnded;
    private boolean isDelivering;

    private Call call;
    private boolean isOpening;
    private int failures; // of calls in a row, without an outcome between them
    private long failingSince;

    ItemStream(
            ClientParts parts,
            Channel channel,
            StreamProtocol<Q, M, R, P> protocol,
            CallOptions callOptions,
            StreamOptions options,
            Flow.Subscriber<? super Outcome<P>> subscriber) {
        this.parts = parts;
        this.channel = channel;
        this.protocol = protocol;
        this.callOptions = callOptions;
        this.options = options;
        this.rules = new RetryRules(parts.firstPause, parts.maxPause, callOptions.getDeadline(), parts.hasRetries);
        this.subscriber = subscriber;
    }

    void start(Flow.Publisher<Item<Q>> items) {
        sync.execute(() -> {
            subscriber.onSubscribe(this);
            items.subscribe(new Source());
        });
    }

    // What the subscriber does.

    @Override
    public void request(long count) {
        sync.execute(() -> {
            if (hasEnded) {
                return;
            }
            if (count <= 0) {
                end();
                subscriber.onError(new IllegalArgumentException("request(" + count + ") is not positive"));
                return;
            }
            demand = demand + count < 0 ? Long.MAX_VALUE : demand + count;
            deliver();
        });
    }

    @Override
    public void cancel() {
        sync.execute(this::end);
    }

    // What the caller's items do.

    private final class Source implements Flow.Subscriber<Item<Q>> {
        @Override
        public void onSubscribe(Flow.Subscription given) {
            sync.execute(() -> {
                source = given;
                if (hasEnded) {
                    given.cancel();
                } else {
                    given.request(options.window());
                }
            });
        }

        @Override
        public void onNext(Item<Q> item) {
            Objects.requireNonNull(item, "item");
            sync.execute(() -> accept(item));
        }

        @Override
        public void onError(Throwable error) {
            sync.execute(() -> {
                isSourceDone = true;
                sourceError = error;
                deliver();
            });
        }

        @Override
        public void onComplete() {
            sync.execute(() -> {
                isSourceDone = true;
                deliver();
            });
        }
    }

    private void accept(Item<Q> item) {
        if (hasEnded) {
            return;
        }
        Entry<M> entry = new Entry<>(read, item.id(), protocol.wrap(Long.toString(read), item.request()));
        read++;
        HotslotException refusal = failure != null ? failure : parts.check(protocol, item.request(), entry.message);
        if (refusal != null) {
            settle(entry, null, refusal);
        } else {
            queue.put(entry.index, entry);
            send();
        }
    }

    // Sending.

    private void send() {
        if (hasEnded || queue.isEmpty()) {
            return;
        }
        if (call == null) {
            if (!isOpening) {
                call = new Call();
                call.start();
            }
            return; // the call says when it is ready
        }
        while (!queue.isEmpty() && call.requests.isReady() && (alone.isEmpty() || inFlight.isEmpty())) {
            Entry<M> entry = queue.pollFirstEntry().getValue();
            inFlight.put(entry.index, entry);
            call.requests.onNext(entry.message);
        }
    }

    /** One call to a server. */
    private final class Call implements ClientResponseObserver<M, R> {
        private ClientCallStreamObserver<M> requests;

        void start() {
            ClientCall<M, R> started = channel.newCall(protocol.method(), callOptions);
            ClientCalls.asyncBidiStreamingCall(started, this);
        }

        @Override
        public void beforeStart(ClientCallStreamObserver<M> given) {
            requests = given;
            given.disableAutoRequestWithInitial(1);
            given.setOnReadyHandler(() -> sync.execute(() -> {
                if (call == this) {
                    send();
                }
            }));
        }

        @Override
        public void onNext(R reply) {
            sync.execute(() -> {
                if (call == this) {
                    receive(reply);
                }
                requests.request(1);
            });
        }

        @Override
        public void onError(Throwable error) {
            sync.execute(() -> ended(this, HotslotException.of(error)));
        }

        @Override
        public void onCompleted() {
            String text = "the stream ended before all of its items were answered";
            sync.execute(() -> ended(this, HotslotException.of(Status.UNAVAILABLE.withDescription(text))));
        }
    }

    // Receiving.

    private void receive(R reply) {
        for (StreamProtocol.Result<P> result : protocol.unwrap(reply)) {
            HotslotException error = result.error() == null ? null : HotslotException.of(result.error());
            if (result.wireId().isEmpty() && error != null) { // of a message that the server could not read
                isolate(error);
                return;
            }
            Entry<M> entry = inFlight.remove(indexOf(result.wireId()));
            if (entry == null) {
                continue; // not an item of this call
            }
            alone.remove(entry.index);
            failures = 0;
            entry.attempts++;
            Duration pause = error == null ? Duration.ZERO : rules.pause(entry.attempts, error);
            if (error != null && rules.retryItem(entry.attempts, error, pause)) {
                delayed.put(entry.index, entry);
                after(pause, () -> {
                    queue.put(entry.index, delayed.remove(entry.index));
                    send();
                });
            } else {
                settle(entry, error == null ? result.response() : null, error);
            }
        }
        send();
    }

    private static long indexOf(String wireId) {
        try {
            return Long.parseLong(wireId);
        } catch (NumberFormatException foreign) {
            return -1;
        }
    }

    private void ended(Call one, HotslotException error) {
        if (hasEnded || call != one) {
            return;
        }
        call = null;
        if (rules.isOn() && error.isUnexplained() && !inFlight.isEmpty()) {
            isolate(error);
            return;
        }
        if (parts.isClosed() || !rules.retryStream(error)) {
            fail(error);
            return;
        }
        requeue();
        if (queue.isEmpty() && delayed.isEmpty()) {
            return;
        }
        long now = System.nanoTime();
        if (failures++ == 0) {
            failingSince = now;
        }
        Duration pause = rules.pause(failures, error);
        boolean isOutage = now + pause.toNanos() - failingSince > RetryRules.nanos(options.maxOutage());
        if (isOutage || rules.isTooLate(pause)) {
            fail(error);
            return;
        }
        isOpening = true;
        after(pause, () -> {
            isOpening = false;
            send();
        });
    }

    /**
     * Sends the items of a call again, one at a time: one of them is more than the server or a proxy takes, and it is
     * not said which. Alone, it has that as its outcome.
     */
    private void isolate(HotslotException error) {
        hangUp();
        if (inFlight.size() == 1) {
            Entry<M> entry = inFlight.values().iterator().next();
            inFlight.clear();
            alone.remove(entry.index);
            settle(entry, null, error);
        }
        alone.addAll(inFlight.keySet());
        requeue();
        send();
    }

    private void requeue() {
        queue.putAll(inFlight);
        inFlight.clear();
    }

    /** Gives every item without an outcome the error as its outcome; the subscriber gets it after them. */
    private void fail(HotslotException error) {
        failure = error;
        hangUp();
        if (source != null) {
            source.cancel();
        }
        isSourceDone = true;
        queue.putAll(delayed);
        delayed.clear();
        requeue();
        while (!queue.isEmpty()) {
            settle(queue.pollFirstEntry().getValue(), null, error);
        }
        deliver();
    }

    // Delivering.

    private void settle(Entry<M> entry, P response, HotslotException error) {
        Outcome<P> outcome = new Outcome<>(entry.index, entry.id, response, error);
        if (!options.inOrder()) {
            ready.add(outcome);
        } else {
            held.put(entry.index, outcome);
            for (Outcome<P> first = held.remove(next); first != null; first = held.remove(next)) {
                ready.add(first);
                next++;
            }
        }
        deliver();
    }

    private void deliver() {
        if (isDelivering) {
            return; // the subscriber has requested more from within onNext
        }
        isDelivering = true;
        while (!hasEnded && demand > 0 && !ready.isEmpty()) {
            demand--;
            subscriber.onNext(ready.poll());
            if (!isSourceDone && source != null) {
                source.request(1);
            }
        }
        isDelivering = false;
        boolean isAnswered = queue.isEmpty() && inFlight.isEmpty() && delayed.isEmpty();
        if (hasEnded || !isSourceDone || !isAnswered || !held.isEmpty() || !ready.isEmpty()) {
            return;
        }
        Throwable error = failure != null ? failure : sourceError;
        hasEnded = true;
        if (call != null) {
            call.requests.onCompleted();
        }
        if (error == null) {
            subscriber.onComplete();
        } else {
            subscriber.onError(error);
        }
    }

    private void end() {
        if (hasEnded) {
            return;
        }
        hasEnded = true;
        if (source != null) {
            source.cancel();
        }
        hangUp();
        queue.clear();
        inFlight.clear();
        delayed.clear();
        ready.clear();
        held.clear();
    }

    private void hangUp() {
        if (call != null) {
            Call left = call;
            call = null;
            left.requests.cancel("no longer needed", null);
        }
    }

    private void crash(Throwable error) {
        end(); // a subscriber that throws has left
        Thread thread = Thread.currentThread();
        thread.getUncaughtExceptionHandler().uncaughtException(thread, error);
    }

    private void after(Duration pause, Runnable step) {
        sync.schedule(
                () -> {
                    if (!hasEnded && failure == null) {
                        step.run();
                    }
                },
                pause.toNanos(),
                TimeUnit.NANOSECONDS,
                parts.timer);
    }
}
