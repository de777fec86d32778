package io.hotslot.client;

/**
 * What became of one item of a stream: it has a response or a failure.
 *
 * @param index the place of the item, from 0
 * @param id the item's
 * @param response the answer; null if there is none
 * @param failure why there is none; null if there is one
 * @param <P> the type of the response
 */
public record Outcome<P>(long index, String id, P response, HotslotException failure) {
    /**
     * Returns the answer.
     *
     * @return the answer, never null
     * @throws HotslotException the failure, if there is one
     */
    public P get() {
        if (failure != null) {
            throw failure;
        }
        return response;
    }
}
