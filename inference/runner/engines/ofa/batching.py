"""Which texts are computed together: pure, from their lengths alone."""

from collections.abc import Sequence

_CPU_ROWS, _CUDA_ROWS = 8, 32
_CPU_CALL_BYTES = 4 << 20  # of a layer's widest activations: about what lies in a core's cache


def rows_that_pay(kind: str, row_bytes: int) -> int:
    """How many rows one device call takes.

    On a CPU rows gain from each other only while they share a cache: beyond it each costs what it costs alone, and
    a call of many takes more memory and cannot be interrupted.

    Args:
        kind: "cpu" or "cuda".
        row_bytes: of one row where a layer is widest.
    """
    return _CUDA_ROWS if kind == "cuda" else max(1, min(_CPU_ROWS, _CPU_CALL_BYTES // row_bytes))


def group_rows(lengths: Sequence[int], max_masked_rows: int) -> list[list[int]]:
    """Group rows so that padding never costs more memory than it is worth.

    Rows of one length share one attention bias. As soon as lengths differ, each row has a copy of
    it with its padding hidden, for a large model some 50 MB a row and layer: then only so many
    rows stand together.

    Args:
        lengths: tokens of each row's text.
        max_masked_rows: rows of a group whose lengths differ, at least 1.

    Returns:
        Row numbers, grouped; every row once.
    """
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        group = groups[-1] if groups else []
        is_even = bool(group) and lengths[group[0]] == lengths[row]
        if is_even or 0 < len(group) < max_masked_rows:
            group.append(row)
        else:
            groups.append([row])
    return groups
