"""How the committed revision makes room for a candidate, as durable records. Decided in `updater.stages.bridge`."""

from dataclasses import dataclass, field

from updater.core.comparison import GoldenAnswer

# A field that an older build does not know: it is written only if it is set, so that such a build can read the journal.
_ADDED = {"omit_default": True}


@dataclass(frozen=True, slots=True)
class KeptAnswers:
    """The golden answers of the committed revision, kept while it is unloaded for a candidate."""

    golden_digest: str
    seconds: float  # device time of all
    answers: tuple[GoldenAnswer, ...]  # in the order of the questions


@dataclass(frozen=True, slots=True)
class Bridge:
    """The committed revision makes room for a candidate: it answers from the CPU, or is on its way there or back."""

    device: str  # that it has left, and where the candidate is tried
    is_gap: bool = False  # it does not answer from the CPU: it is unloaded, and nothing answers
    answers: KeptAnswers | None = None  # its own, before it is unloaded: what the candidate's are compared with
    failed: int = 0  # attempts to move it
    gaps: int = field(default=0, metadata=_ADDED)  # how often it was unloaded, the attempt under way included
    counted_load_id: str = field(default="", metadata=_ADDED)  # of its last load that is counted in `gaps`
    retry_in_seconds: float = 0.0  # wait before it is moved again
