package io.hotslot.client;

import java.time.Duration;

/**
 * How a stream reads its items and what it does when servers fail.
 *
 * @param window how many items are read and not delivered yet, at most; at least 1
 * @param inOrder whether outcomes come in the order of the items; one slow item then delays all after it
 * @param maxOutage how long the stream goes on trying while no server answers any of its items
 */
public record StreamOptions(int window, boolean inOrder, Duration maxOutage) {
    /** A window of 64, any order, outages of up to a minute. */
    public static final StreamOptions DEFAULT = new StreamOptions(64, false, Duration.ofMinutes(1));

    /**
     * Checks the window.
     *
     * @param window how many items are read and not delivered yet, at most
     * @param inOrder whether outcomes come in the order of the items
     * @param maxOutage how long the stream goes on trying while no server answers
     */
    public StreamOptions {
        if (window < 1) {
            throw new IllegalArgumentException("window: " + window + " is less than 1");
        }
    }

    /**
     * Returns these options with another window.
     *
     * @param window how many items are read and not delivered yet, at most
     * @return the changed options
     */
    public StreamOptions withWindow(int window) {
        return new StreamOptions(window, inOrder, maxOutage);
    }

    /**
     * Returns these options with outcomes in the order of the items.
     *
     * @return the changed options
     */
    public StreamOptions ordered() {
        return new StreamOptions(window, true, maxOutage);
    }

    /**
     * Returns these options with another limit for outages.
     *
     * @param maxOutage how long the stream goes on trying while no server answers
     * @return the changed options
     */
    public StreamOptions withMaxOutage(Duration maxOutage) {
        return new StreamOptions(window, inOrder, maxOutage);
    }
}
