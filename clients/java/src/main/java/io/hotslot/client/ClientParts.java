package io.hotslot.client;

import com.google.protobuf.MessageLite;
import io.grpc.ConnectivityState;
import io.grpc.ManagedChannel;
import io.grpc.Status;
import java.time.Duration;
import java.util.List;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Flow;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.ThreadFactory;
import java.util.concurrent.TimeUnit;

/** What all views of one client share. */
final class ClientParts implements AutoCloseable {
    private static final long CLOSE_SECONDS = 5;
    private static final long RECONNECT_SECONDS = 5;

    final ManagedChannel entailmentChannel;
    final ManagedChannel taggingChannel;
    final StreamProtocol.Entailment entailment;
    final StreamProtocol.Tagging tagging;
    final int maxRequestBytes;
    final boolean hasRetries;
    final ScheduledExecutorService timer = Executors.newSingleThreadScheduledExecutor(daemons("hotslot-timer"));
    private final ExecutorService readers = Executors.newCachedThreadPool(daemons("hotslot-items"));

    /** The pause before a stream is opened again, the first time; it doubles up to the second. */
    Duration firstPause = Duration.ofMillis(50);

    Duration maxPause = Duration.ofSeconds(2);

    ClientParts(
            ManagedChannel entailmentChannel,
            ManagedChannel taggingChannel,
            String model,
            int maxRequestBytes,
            boolean hasRetries) {
        this.entailmentChannel = entailmentChannel;
        this.taggingChannel = taggingChannel;
        this.hasRetries = hasRetries;
        this.entailment = new StreamProtocol.Entailment(model);
        this.tagging = new StreamProtocol.Tagging(model);
        this.maxRequestBytes = maxRequestBytes;
        // By default gRPC waits for up to two minutes before it connects again to a server that was away.
        timer.scheduleWithFixedDelay(this::reconnect, RECONNECT_SECONDS, RECONNECT_SECONDS, TimeUnit.SECONDS);
    }

    private void reconnect() {
        for (ManagedChannel channel : List.of(entailmentChannel, taggingChannel)) {
            if (channel.getState(false) != ConnectivityState.IDLE) {
                channel.resetConnectBackoff();
            }
        }
    }

    /** Returns a publisher whose items are read by threads of this client. */
    <T> Flow.Publisher<T> publish(Iterable<T> items) {
        return new IterablePublisher<>(items, readers);
    }

    /** Returns the failure of a request that is not sent; null if it is. */
    <Q> HotslotException check(StreamProtocol<Q, ?, ?, ?> protocol, Q request, MessageLite message) {
        String field = protocol.findMalformed(request);
        if (field != null) {
            return HotslotException.malformed(field, field + " has half of a surrogate pair");
        }
        int size = message.getSerializedSize();
        if (size > maxRequestBytes) {
            String text = "the message has " + size + " bytes, the limit is " + maxRequestBytes;
            return HotslotException.of(Status.RESOURCE_EXHAUSTED.withDescription(text));
        }
        return null;
    }

    boolean isClosed() {
        return entailmentChannel.isShutdown();
    }

    @Override
    public void close() {
        entailmentChannel.shutdownNow();
        taggingChannel.shutdownNow();
        readers.shutdownNow();
        timer.shutdown();
        try {
            entailmentChannel.awaitTermination(CLOSE_SECONDS, TimeUnit.SECONDS);
            taggingChannel.awaitTermination(CLOSE_SECONDS, TimeUnit.SECONDS);
        } catch (InterruptedException interruption) {
            Thread.currentThread().interrupt();
        }
    }

    private static ThreadFactory daemons(String name) {
        return task -> {
            Thread thread = new Thread(task, name);
            thread.setDaemon(true);
            return thread;
        };
    }
}
