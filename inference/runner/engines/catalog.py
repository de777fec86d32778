"""Which code opens which engine's bundles; an engine is imported only when one of its bundles is."""

import importlib
from collections.abc import Mapping
from typing import cast

from inference.runner.engines.base import BundleRefused, EngineLoader, NeedsOf

BUILT_IN: Mapping[str, str] = {"ofa": "inference.runner.engines.ofa.load:load_ofa"}
NEEDS: Mapping[str, str] = {"ofa": "inference.runner.engines.ofa.needs:ofa_needs"}
NEEDS_NAME = "NEEDS"  # in the module of an extra engine


def loader_for(engine: str, extra: Mapping[str, str] | None = None) -> EngineLoader:
    """Find what opens a bundle.

    Args:
        engine: name, as the bundle says.
        extra: more engines, name to "module:function". From settings only, never from a bundle:
            to import what a bundle names would be to run its code.

    Raises:
        BundleRefused: this build has no such engine.
        RuntimeError: an extra engine is not "module:function", or not there.
    """
    known = {**(extra or {}), **BUILT_IN}
    if engine not in known:
        raise BundleRefused(f"engine {engine[:80]!r} is unknown; this build has {', '.join(sorted(known))}")
    return cast("EngineLoader", _found(engine, known[engine]))


def needs_of(engine: str, extra: Mapping[str, str] | None = None) -> NeedsOf | None:
    """Find what foretells an engine's loads: an extra engine may bring a `NEEDS` in its module; None if nothing does.

    Raises:
        RuntimeError: it is not there.
    """
    if engine in NEEDS:
        return cast("NeedsOf", _found(engine, NEEDS[engine]))
    module, _, _ = (extra or {}).get(engine, "").partition(":")
    own: NeedsOf | None = getattr(importlib.import_module(module), NEEDS_NAME, None) if module else None
    return own


def _found(engine: str, where: str) -> object:
    module, _, function = where.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise RuntimeError(f"engine {engine!r} cannot be imported from {where!r}") from error
