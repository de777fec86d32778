"""Takes what is left of a card, as another program on it would."""

from typing import Any

MIB = 1 << 20
_PIECES = (1024 * MIB, 256 * MIB, 64 * MIB, 16 * MIB, 2 * MIB)  # largest first; 2 MiB is what the driver gives at least


class Filler:
    """Holds memory of the first card in this process.

    Args:
        torch: the library, with a card.
    """

    def __init__(self, torch: Any) -> None:  # noqa: ANN401  a module
        self._torch = torch
        self._held: list[Any] = []

    def fill(self) -> None:
        """Allocate all free memory; may be repeated when others have freed some."""
        for piece in _PIECES:
            try:
                while True:
                    self._held.append(self._torch.empty(piece, dtype=self._torch.uint8, device="cuda:0"))
            except self._torch.OutOfMemoryError:
                continue

    def release(self) -> None:
        """Give everything back."""
        self._held.clear()
        self._torch.cuda.empty_cache()
