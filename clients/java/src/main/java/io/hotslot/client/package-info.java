/**
 * Calls hotslot servers: judges statements about pictures and tags addresses.
 *
 * <p>{@link io.hotslot.client.HotslotClient} is where to begin. Messages are the generated ones of {@code
 * io.hotslot.entailment.v1} and {@code io.hotslot.address.v1}.
 */
package io.hotslot.client;
