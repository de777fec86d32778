"""Finds an engine's code by its name; an engine's module is imported only when one of its bundles is loaded."""

import importlib
from collections.abc import Mapping
from typing import cast

from inference.runner.engines.base import BundleRefused, EngineLoader, MemoryEstimator

BUILT_IN: Mapping[str, str] = {"ofa": "inference.runner.engines.ofa.load:load_ofa"}
ESTIMATORS: Mapping[str, str] = {"ofa": "inference.runner.engines.ofa.memory:estimate_ofa_memory"}
ESTIMATOR_NAME = "MEMORY_ESTIMATOR"  # attribute of an extra engine's module


def loader_for(engine: str, extra: Mapping[str, str] | None = None) -> EngineLoader:
    """Return the function that opens an engine's bundles.

    Args:
        engine: name, from the bundle.
        extra: additional engines, name to "module:function". Only settings may supply it, never a bundle: importing a
            module that a bundle names would run the bundle's code.

    Raises:
        BundleRefused: this build has no such engine.
        RuntimeError: an extra engine is not "module:function" or cannot be imported.
    """
    known = {**(extra or {}), **BUILT_IN}
    if engine not in known:
        raise BundleRefused(f"engine {engine[:80]!r} is unknown; this build has {', '.join(sorted(known))}")
    return cast("EngineLoader", _import(engine, known[engine]))


def estimator_for(engine: str, extra: Mapping[str, str] | None = None) -> MemoryEstimator | None:
    """Return the engine's memory estimator; an extra engine may define `MEMORY_ESTIMATOR` in its module.

    Raises:
        RuntimeError: the built-in estimator cannot be imported.
    """
    if engine in ESTIMATORS:
        return cast("MemoryEstimator", _import(engine, ESTIMATORS[engine]))
    module, _, _ = (extra or {}).get(engine, "").partition(":")
    own: MemoryEstimator | None = getattr(importlib.import_module(module), ESTIMATOR_NAME, None) if module else None
    return own


def _import(engine: str, location: str) -> object:
    module, _, function = location.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise RuntimeError(f"engine {engine!r} cannot be imported from {location!r}") from error
