package io.hotslot.client;

import io.grpc.Status;
import java.util.Iterator;
import java.util.NoSuchElementException;
import java.util.Spliterator;
import java.util.Spliterators;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.Flow;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.stream.Stream;
import java.util.stream.StreamSupport;

/** Takes what a publisher sends, in the caller's thread; never more than the window is on its way. */
final class OutcomeIterator<T> implements Iterator<T>, Flow.Subscriber<T>, AutoCloseable {
    private sealed interface Signal<T> {}

    private record Next<T>(T value) implements Signal<T> {}

    private record End<T>(Throwable error) implements Signal<T> {}

    private final BlockingQueue<Signal<T>> signals = new LinkedBlockingQueue<>(); // holds a window and the end
    private final int window;
    private Flow.Subscription subscription; // set before subscribe returns
    private Signal<T> head;

    private OutcomeIterator(int window) {
        this.window = window;
    }

    /** Returns a stream that subscribes when its first element is asked for. */
    static <T> Stream<T> stream(Flow.Publisher<T> publisher, int window) {
        OutcomeIterator<T> iterator = new OutcomeIterator<>(window);
        return StreamSupport.stream(
                        () -> {
                            publisher.subscribe(iterator);
                            return Spliterators.spliteratorUnknownSize(
                                    iterator, Spliterator.ORDERED | Spliterator.NONNULL);
                        },
                        Spliterator.ORDERED | Spliterator.NONNULL,
                        false)
                .onClose(iterator::close);
    }

    @Override
    public boolean hasNext() {
        if (head == null) {
            try {
                head = signals.take();
            } catch (InterruptedException interruption) {
                close();
                Thread.currentThread().interrupt();
                throw HotslotException.of(
                        Status.CANCELLED.withDescription("interrupted").withCause(interruption));
            }
        }
        if (head instanceof End<T> end && end.error != null) {
            throw end.error instanceof HotslotException known ? known.here() : rethrow(end.error);
        }
        return head instanceof Next<T>;
    }

    /** Throws what the caller's own items threw. */
    private static RuntimeException rethrow(Throwable error) {
        if (error instanceof Error fatal) {
            throw fatal;
        }
        return error instanceof RuntimeException known ? known : new IllegalStateException(error);
    }

    @Override
    public T next() {
        if (!hasNext()) {
            throw new NoSuchElementException();
        }
        T value = ((Next<T>) head).value;
        head = null;
        subscription.request(1);
        return value;
    }

    @Override
    public void close() {
        if (subscription != null) {
            subscription.cancel();
        }
        signals.add(new End<>(null));
    }

    @Override
    public void onSubscribe(Flow.Subscription given) {
        subscription = given;
        given.request(window);
    }

    @Override
    public void onNext(T value) {
        signals.add(new Next<>(value));
    }

    @Override
    public void onError(Throwable error) {
        signals.add(new End<>(error));
    }

    @Override
    public void onComplete() {
        signals.add(new End<>(null));
    }
}
