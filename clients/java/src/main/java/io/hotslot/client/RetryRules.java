package io.hotslot.client;

import io.grpc.Deadline;
import java.time.Duration;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;

/**
 * When an item or a stream is tried again.
 *
 * @param firstPause before the second attempt; it doubles with each one
 * @param maxPause the longest one
 * @param deadline of the caller; null if there is none
 * @param isOn whether anything is tried again
 */
record RetryRules(Duration firstPause, Duration maxPause, Deadline deadline, boolean isOn) {
    private static final int MAX_ITEM_ATTEMPTS = 5; // of an item that the server refuses for now, as of a unary call

    /** How long to wait after the given attempt, the first one being 1. */
    Duration pause(int attempt, HotslotException error) {
        if (error.retryAfter().isPresent()) {
            return error.retryAfter().get().plusNanos(random(firstPause));
        }
        Duration doubled = firstPause.multipliedBy(1L << Math.min(attempt - 1, 16));
        Duration limit = doubled.compareTo(maxPause) < 0 ? doubled : maxPause;
        return limit.dividedBy(2).plusNanos(random(limit.dividedBy(2)));
    }

    /** Whether the caller's deadline comes before the end of a pause. */
    boolean isTooLate(Duration pause) {
        return deadline != null && deadline.timeRemaining(TimeUnit.NANOSECONDS) < pause.toNanos();
    }

    /** Whether an item that has failed so is sent again after a pause. */
    boolean retryItem(int attempts, HotslotException error, Duration pause) {
        return isOn && error.isTemporary() && attempts < MAX_ITEM_ATTEMPTS && !isTooLate(pause);
    }

    /** Whether the items of a call that has failed so are sent over another one. */
    boolean retryStream(HotslotException error) {
        if (!isOn || isTooLate(Duration.ZERO)) {
            return false;
        }
        if (error.isTemporary()) {
            return true;
        }
        return switch (error.code()) {
            // The transport's or a proxy's; a server names its reasons.
            case CANCELLED, UNKNOWN, INTERNAL, ABORTED, DEADLINE_EXCEEDED -> error.reason().isEmpty();
            default -> false;
        };
    }

    /** The nanoseconds of a duration; the most there are of one of centuries. */
    static long nanos(Duration duration) {
        try {
            return duration.toNanos();
        } catch (ArithmeticException tooLong) {
            return duration.isNegative() ? Long.MIN_VALUE : Long.MAX_VALUE;
        }
    }

    private static long random(Duration limit) {
        return ThreadLocalRandom.current().nextLong(limit.toNanos() + 1);
    }
}
