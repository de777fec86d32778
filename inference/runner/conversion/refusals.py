"""Refusals that say which file, and which keys, must be changed."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from common.source import ConversionRefused

KeyName = tuple[str, str]  # location of the section and the key, for example ("config.json: ", "d_model")


class KeyRefused(ConversionRefused):
    """A configuration's value is not supported.

    Attributes:
        location: of the section.
        key: in the section.
        needs: other keys, of which the supported values follow.
    """

    def __init__(self, location: str, key: str, what: str, needs: Iterable[KeyName] = ()) -> None:
        super().__init__("CONFIG_UNSUPPORTED", f"{location}{key} {what}", file=location.partition(": ")[0])
        self.location = location
        self.key = key
        self.needs = tuple(needs)


class DisagreementRefused(ConversionRefused):
    """Two files do not belong together.

    Attributes:
        keys: of the configuration from which this follows; if they are refused themselves, so is this.
        blames_keys: whether other values of the keys would do.
    """

    def __init__(
        self, reason: str, message: str, file: str, keys: Iterable[KeyName], *, blames_keys: bool = True
    ) -> None:
        super().__init__(reason, message, file=file)
        self.keys = tuple(keys)
        self.blames_keys = blames_keys


@contextmanager
def refusing(file: str, *, names_it: bool = False) -> Iterator[None]:
    """Name the file in refusals from within the block that name none; with `names_it`, in their sentences too."""
    try:
        yield
    except ConversionRefused as error:
        error.file = error.file or file
        if names_it and file not in str(error):
            error.args = (f"{file}: {error}",)
        raise
