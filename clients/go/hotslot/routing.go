package hotslot

import (
	"context"

	"google.golang.org/grpc/metadata"
)

// ContextWithRoutingKey returns a context whose calls and streams belong to a key, for example a customer's number:
// while a new revision is rolled out, all of them are assigned to the same revision. A key is printable ASCII, of
// which the first 256 characters count; take a hash of another one. An empty key is none.
func ContextWithRoutingKey(ctx context.Context, key string) context.Context {
	return withMetadata(ctx, "x-routing-key", key)
}

// ContextWithModelVersion returns a context whose calls and streams are answered by a version: "stable", "canary", a
// revision or a digest that is loaded. A version that is not there is an [Error] with the reason VERSION_UNKNOWN. An
// empty version is any.
func ContextWithModelVersion(ctx context.Context, version string) context.Context {
	return withMetadata(ctx, "x-model-version", version)
}

// withMetadata sets a key of the calls' metadata in place of what it was.
func withMetadata(ctx context.Context, key, value string) context.Context {
	found, _ := metadata.FromOutgoingContext(ctx)
	changed := found.Copy()
	if value == "" {
		changed.Delete(key)
	} else {
		changed.Set(key, value)
	}
	return metadata.NewOutgoingContext(ctx, changed)
}
