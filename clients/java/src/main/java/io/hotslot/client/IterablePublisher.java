package io.hotslot.client;

import java.util.Iterator;
import java.util.concurrent.Executor;
import java.util.concurrent.Flow;
import java.util.concurrent.atomic.AtomicLong;

/** Publishes the items of an iterable, which may block: its iterator runs in the executor, one thread at a time. */
final class IterablePublisher<T> implements Flow.Publisher<T> {
    private final Iterable<T> items;
    private final Executor executor;

    IterablePublisher(Iterable<T> items, Executor executor) {
        this.items = items;
        this.executor = executor;
    }

    @Override
    public void subscribe(Flow.Subscriber<? super T> subscriber) {
        subscriber.onSubscribe(new Reading(subscriber));
    }

    private final class Reading implements Flow.Subscription {
        private final Flow.Subscriber<? super T> subscriber;
        private final AtomicLong demand = new AtomicLong();
        private volatile boolean hasEnded;
        private Iterator<T> iterator; // used by the reading thread alone

        Reading(Flow.Subscriber<? super T> subscriber) {
            this.subscriber = subscriber;
        }

        @Override
        public void request(long count) {
            if (demand.getAndAdd(count) == 0) {
                executor.execute(this::read);
            }
        }

        @Override
        public void cancel() {
            hasEnded = true;
        }

        private void read() {
            try {
                if (iterator == null) {
                    iterator = items.iterator();
                }
                do {
                    if (hasEnded) {
                        return;
                    }
                    if (!iterator.hasNext()) {
                        hasEnded = true;
                        subscriber.onComplete();
                        return;
                    }
                    subscriber.onNext(iterator.next());
                } while (demand.decrementAndGet() > 0);
            } catch (Throwable error) { // the caller's iterator failed
                hasEnded = true;
                subscriber.onError(error);
            }
        }
    }
}
