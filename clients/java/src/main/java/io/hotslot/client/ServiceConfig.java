package io.hotslot.client;

import com.google.gson.Gson;
import com.google.gson.JsonParseException;
import com.google.gson.reflect.TypeToken;
import java.io.IOException;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;
import java.util.List;
import java.util.Map;

/** The service config that all clients of hotslot share, as gRPC takes it. */
final class ServiceConfig {
    private static final Gson GSON = new Gson();
    private static final TypeToken<Map<String, Object>> OBJECT = new TypeToken<>() {};

    /** As JSON. */
    static final String SHARED = read();

    private ServiceConfig() {}

    private static String read() {
        try (InputStream file = ServiceConfig.class.getResourceAsStream("service_config.json")) {
            return new String(file.readAllBytes(), StandardCharsets.UTF_8);
        } catch (IOException error) {
            throw new IllegalStateException("the service config of this jar cannot be read", error);
        }
    }

    static Map<String, ?> parse(String json) {
        try {
            return GSON.fromJson(json, OBJECT);
        } catch (JsonParseException error) {
            throw new IllegalArgumentException("service config: " + error.getMessage(), error);
        }
    }

    /** Replaces the name that stands for the whole server. */
    static void checkHealthOf(Map<String, ?> config, String service) {
        if (config.get("healthCheckConfig") instanceof Map<?, ?> check) {
            @SuppressWarnings("unchecked") // of JSON
            Map<String, Object> fields = (Map<String, Object>) check;
            fields.replace("serviceName", "", service);
        }
    }

    /**
     * Sets the limit of responses: gRPC takes the smaller one of the config's and the channel's. That of requests is
     * left to the client, because a call that exceeds it would not fail: gRPC throws in a thread of its own, and the call
     * never ends, not even at its deadline.
     */
    static void limit(Map<String, ?> config, int maxResponseBytes) {
        if (!(config.get("methodConfig") instanceof List<?> methods)) {
            return;
        }
        for (Object method : methods) {
            @SuppressWarnings("unchecked") // of JSON
            Map<String, Object> fields = (Map<String, Object>) method;
            fields.remove("maxRequestMessageBytes");
            fields.replace("maxResponseMessageBytes", (double) maxResponseBytes);
        }
    }
}
