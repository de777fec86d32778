"""The sentence for a file of another schema than this build reads."""


def describe_schema(what: str, version: object, newest: int) -> str:
    """Why a file cannot be read; after a downgrade, what to do."""
    if type(version) is int and version > newest:
        return (
            f"{what} was written by a newer hotslot (schema {version}, this build reads 1 to {newest}); start the newer"
            " hotslot again, or restore a backup that this one made"
        )
    return f"{what} has schema version {version!r}, this build reads 1 to {newest}"
