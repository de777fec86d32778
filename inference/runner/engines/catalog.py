"""Which code opens which engine's bundles; an engine is imported only when one of its bundles is."""

import importlib
from collections.abc import Mapping
from typing import cast

from inference.runner.engines.base import BundleRefused, EngineLoader

BUILT_IN: Mapping[str, str] = {"ofa": "inference.runner.engines.ofa.load:load_ofa"}


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
    module, _, function = known[engine].partition(":")
    try:
        return cast("EngineLoader", getattr(importlib.import_module(module), function))
    except (ImportError, AttributeError, ValueError) as error:
        raise RuntimeError(f"engine {engine!r} cannot be imported from {known[engine]!r}") from error
