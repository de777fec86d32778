package io.hotslot.client;

import io.grpc.CallCredentials;
import io.grpc.Metadata;
import io.grpc.SecurityLevel;
import io.grpc.Status;
import java.util.concurrent.Executor;
import java.util.function.Supplier;

/** Sends a token with every call, health checks included. */
final class BearerToken extends CallCredentials {
    private static final Metadata.Key<String> KEY =
            Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);

    private final Supplier<String> token;
    private final boolean isAllowedInPlaintext;

    BearerToken(Supplier<String> token, boolean isAllowedInPlaintext) {
        this.token = token;
        this.isAllowedInPlaintext = isAllowedInPlaintext;
    }

    @Override
    public void applyRequestMetadata(RequestInfo call, Executor executor, MetadataApplier applier) {
        if (!isAllowedInPlaintext && call.getSecurityLevel() != SecurityLevel.PRIVACY_AND_INTEGRITY) {
            applier.fail(Status.UNAUTHENTICATED.withDescription("a token is sent over TLS alone"));
            return;
        }
        executor.execute(() -> apply(applier)); // a supplier may ask another server
    }

    private void apply(MetadataApplier applier) {
        Metadata headers = new Metadata();
        try {
            headers.put(KEY, "Bearer " + token.get().strip());
        } catch (RuntimeException failure) {
            applier.fail(Status.UNAUTHENTICATED
                    .withDescription("there is no token: " + failure.getMessage())
                    .withCause(failure));
            return;
        }
        applier.apply(headers);
    }
}
