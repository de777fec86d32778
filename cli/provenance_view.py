"""Where a bundle came from and what it passed, in a line each."""

from common.provenance import HubKind

NOT_SAID = "does not say: sealed by an older hotslot"
_KINDS = {
    HubKind.FOLDER.value: "a folder hub",
    HubKind.MODELSCOPE.value: "the hub at",
    HubKind.IMPORT.value: "by hand, with `hotslot bundle import`",
}


def came_from(kind: str, endpoint: str, model: str, revision: str, when: str) -> str:
    """One line for people.

    Args:
        kind: of the hub, as the bundle says.
        endpoint: its host; may be empty.
        model: as the hub calls it.
        revision: as the hub called it.
        when: it was fetched.
    """
    where = " ".join(part for part in (_KINDS.get(kind, kind), endpoint) if part)
    return f"{where}: {model} {revision}, fetched {when}"


def was_checked(checked: tuple[str, ...]) -> str:
    """The numbers of the list that it passed, without their names where they are many."""
    return ", ".join(checked) or "nothing"
