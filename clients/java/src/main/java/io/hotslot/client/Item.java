package io.hotslot.client;

import java.util.Objects;

/**
 * One item of a stream.
 *
 * @param id the caller's own name for it, returned with its outcome; may be empty or occur twice, and the server does
 *     not get it
 * @param request what to judge or to tag
 * @param <Q> the type of the request
 */
public record Item<Q>(String id, Q request) {
    /**
     * Checks that both parts are there.
     *
     * @param id the caller's own name for it
     * @param request what to judge or to tag
     */
    public Item {
        Objects.requireNonNull(id, "id");
        Objects.requireNonNull(request, "request");
    }
}
