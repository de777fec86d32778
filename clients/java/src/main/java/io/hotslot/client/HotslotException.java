package io.hotslot.client;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Message;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.ResourceInfo;
import com.google.rpc.RetryInfo;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusException;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import java.time.Duration;
import java.util.Map;
import java.util.Optional;

/**
 * The failure of a call or of one item of a stream. Its class says whose fault it is and what to do; {@link #reason()}
 * is the server's stable name of the failure.
 */
public abstract sealed class HotslotException extends RuntimeException {
    private static final long serialVersionUID = 1;
    private static final String DOMAIN = "hotslot";
    private static final int MAX_CAUSES = 8;
    private static final Metadata.Key<String> REQUEST_ID =
            Metadata.Key.of("x-request-id", Metadata.ASCII_STRING_MARSHALLER);

    /** The parts of a failure. */
    private final transient Facts facts;

    private HotslotException(Facts facts, Throwable cause) {
        super(facts.sentence(), cause);
        this.facts = facts;
    }

    /** The request is wrong; sending it again does not help. {@link #field()} names its wrong field. */
    public static final class InvalidRequest extends HotslotException {
        private static final long serialVersionUID = 1;

        InvalidRequest(Facts facts, Throwable cause) {
            super(facts, cause);
        }
    }

    /** The call shows no token that is valid, or one that may not do this. */
    public static final class Unauthenticated extends HotslotException {
        private static final long serialVersionUID = 1;

        Unauthenticated(Facts facts, Throwable cause) {
            super(facts, cause);
        }
    }

    /** The named model, or this kind of call, does not exist at the server. */
    public static final class NotFound extends HotslotException {
        private static final long serialVersionUID = 1;

        NotFound(Facts facts, Throwable cause) {
            super(facts, cause);
        }
    }

    /** A queue or quota is full, or a message is larger than allowed. */
    public static final class Overloaded extends HotslotException {
        private static final long serialVersionUID = 1;

        Overloaded(Facts facts, Throwable cause) {
            super(facts, cause);
        }
    }

    /** No server can answer now: it starts, drains, or cannot be reached. */
    public static final class Unavailable extends HotslotException {
        private static final long serialVersionUID = 1;

        Unavailable(Facts facts, Throwable cause) {
            super(facts, cause);
        }
    }

    /** The deadline has passed, or is too short for the request. */
    public static final class DeadlineExceeded extends HotslotException {
        private static final long serialVersionUID = 1;

        DeadlineExceeded(Facts facts, Throwable cause) {
            super(facts, cause);
        }
    }

    /** The caller has ended the call. */
    public static final class Cancelled extends HotslotException {
        private static final long serialVersionUID = 1;

        Cancelled(Facts facts, Throwable cause) {
            super(facts, cause);
        }
    }

    /** The server failed. */
    public static final class Failed extends HotslotException {
        private static final long serialVersionUID = 1;

        Failed(Facts facts, Throwable cause) {
            super(facts, cause);
        }
    }

    /**
     * Returns the gRPC code.
     *
     * @return the code, never OK
     */
    public Status.Code code() {
        return facts == null ? Status.Code.UNKNOWN : facts.code;
    }

    /**
     * Returns the server's stable name of the failure, for example {@code IMAGE_UNREADABLE}.
     *
     * @return the reason; empty if the failure is not the server's own, but the connection's or this process's
     */
    public String reason() {
        return facts == null ? "" : facts.reason;
    }

    /**
     * Returns the path of the wrong field of the request, for example {@code image.content}.
     *
     * @return the path; empty if no field is wrong
     */
    public String field() {
        return facts == null ? "" : facts.field;
    }

    /**
     * Returns when the same request may succeed.
     *
     * @return the delay; empty if the server gives none
     */
    public Optional<Duration> retryAfter() {
        return facts == null ? Optional.empty() : Optional.ofNullable(facts.retryAfter);
    }

    /**
     * Returns the name of what does not exist, for example that of a model.
     *
     * @return the name; empty for other failures
     */
    public String resource() {
        return facts == null ? "" : facts.resource;
    }

    /**
     * Returns further facts, for example {@code needed_bytes}.
     *
     * @return name and value of each; unmodifiable
     */
    public Map<String, String> metadata() {
        return facts == null ? Map.of() : facts.metadata;
    }

    /**
     * Returns the id by which the call is found in the server's log.
     *
     * @return the id; empty if no server has answered
     */
    public String requestId() {
        return facts == null ? "" : facts.requestId;
    }

    /**
     * Returns whether the same request may succeed later, unchanged.
     *
     * @return whether to send it again
     */
    public boolean isTemporary() {
        return retryAfter().isPresent()
                || code() == Status.Code.UNAVAILABLE
                || (code() == Status.Code.RESOURCE_EXHAUSTED && !reason().isEmpty());
    }

    /** Whether the code says that a transport refused a message and nothing says which one. */
    boolean isUnexplained() {
        return code() == Status.Code.RESOURCE_EXHAUSTED && reason().isEmpty() && retryAfter().isEmpty();
    }

    static HotslotException of(Throwable error) {
        if (error instanceof HotslotException known) {
            return known;
        }
        Metadata trailers = null;
        if (error instanceof StatusRuntimeException failed) {
            trailers = failed.getTrailers();
        } else if (error instanceof StatusException failed) {
            trailers = failed.getTrailers();
        }
        String requestId = trailers == null ? null : trailers.get(REQUEST_ID);
        com.google.rpc.Status details = StatusProto.fromThrowable(error);
        Status status = Status.fromThrowable(error);
        if (details == null || details.getDetailsCount() == 0) { // no server of ours has answered
            details = com.google.rpc.Status.newBuilder()
                    .setCode(status.getCode().value())
                    .setMessage(explain(status))
                    .build();
        }
        return make(Facts.of(details, requestId == null ? "" : requestId), error);
    }

    /** Returns a status's description with its causes: "io exception" alone does not name what failed. */
    private static String explain(Status status) {
        StringBuilder text = new StringBuilder(status.getDescription() == null ? "" : status.getDescription());
        Throwable cause = status.getCause();
        for (int depth = 0; cause != null && depth < MAX_CAUSES; depth++, cause = cause.getCause()) {
            if (cause.getMessage() == null || text.indexOf(cause.getMessage()) < 0) {
                text.append(text.isEmpty() ? "" : "; caused by ").append(cause);
            }
        }
        return text.toString();
    }

    static HotslotException of(com.google.rpc.Status details) {
        return make(Facts.of(details, ""), null);
    }

    static HotslotException of(Status status) {
        return of(status.asRuntimeException());
    }

    /** Returns the failure of a request that the server could not read as it is meant. */
    static HotslotException malformed(String field, String text) {
        ErrorInfo info = ErrorInfo.newBuilder()
                .setReason("MESSAGE_MALFORMED")
                .setDomain(DOMAIN)
                .build();
        BadRequest bad = BadRequest.newBuilder()
                .addFieldViolations(BadRequest.FieldViolation.newBuilder()
                        .setField(field)
                        .setDescription(text))
                .build();
        return of(com.google.rpc.Status.newBuilder()
                .setCode(Status.Code.INVALID_ARGUMENT.value())
                .setMessage(text)
                .addDetails(Any.pack(info))
                .addDetails(Any.pack(bad))
                .build());
    }

    /** Returns the same failure with the stack of the thread that waited for it. */
    HotslotException here() {
        return make(facts, this);
    }

    private static HotslotException make(Facts facts, Throwable cause) {
        return switch (facts.code) {
            case INVALID_ARGUMENT, OUT_OF_RANGE, FAILED_PRECONDITION -> new InvalidRequest(facts, cause);
            case UNAUTHENTICATED, PERMISSION_DENIED -> new Unauthenticated(facts, cause);
            case NOT_FOUND, UNIMPLEMENTED -> new NotFound(facts, cause);
            case RESOURCE_EXHAUSTED -> new Overloaded(facts, cause);
            case UNAVAILABLE -> new Unavailable(facts, cause);
            case DEADLINE_EXCEEDED -> new DeadlineExceeded(facts, cause);
            case CANCELLED -> new Cancelled(facts, cause);
            default -> new Failed(facts, cause);
        };
    }

    /** What the details of a status say. */
    private record Facts(
            Status.Code code,
            String message,
            String reason,
            String field,
            String resource,
            Duration retryAfter,
            Map<String, String> metadata,
            String requestId) {

        static Facts of(com.google.rpc.Status details, String requestId) {
            ErrorInfo info = find(details, ErrorInfo.class, ErrorInfo.getDefaultInstance());
            boolean isOurs = DOMAIN.equals(info.getDomain());
            BadRequest bad = find(details, BadRequest.class, BadRequest.getDefaultInstance());
            RetryInfo retry = find(details, RetryInfo.class, null);
            ResourceInfo resource = find(details, ResourceInfo.class, ResourceInfo.getDefaultInstance());
            return new Facts(
                    Status.fromCodeValue(details.getCode()).getCode(),
                    details.getMessage(),
                    isOurs ? info.getReason() : "",
                    bad.getFieldViolationsCount() == 0 ? "" : bad.getFieldViolations(0).getField(),
                    resource.getResourceName(),
                    retry == null
                            ? null
                            : Duration.ofSeconds(
                                    retry.getRetryDelay().getSeconds(),
                                    retry.getRetryDelay().getNanos()),
                    isOurs ? Map.copyOf(info.getMetadataMap()) : Map.of(),
                    requestId);
        }

        private static <M extends Message> M find(com.google.rpc.Status details, Class<M> kind, M otherwise) {
            for (Any detail : details.getDetailsList()) {
                if (detail.is(kind)) {
                    try {
                        return detail.unpack(kind);
                    } catch (InvalidProtocolBufferException broken) {
                        return otherwise;
                    }
                }
            }
            return otherwise;
        }

        String sentence() {
            return code
                    + (reason.isEmpty() ? "" : " " + reason)
                    + (field.isEmpty() ? "" : " (" + field + ")")
                    + (message.isEmpty() ? "" : ": " + message);
        }
    }
}
