"""Our engine on a published folder, without processes: converted into a temporary place and loaded from there."""

import tempfile
from pathlib import Path

from inference.runner.conversion.mgeo import convert_mgeo
from inference.runner.engines.base import LoadOptions
from inference.runner.engines.mgeo.engine import MgeoEngine
from inference.runner.engines.mgeo.load import load_mgeo


def load_source(source: Path, precision: str = "float32", threads: int = 1, device: str = "cpu") -> MgeoEngine:
    """Convert a published folder and load it."""
    with tempfile.TemporaryDirectory() as name:
        bundle = convert_mgeo(source, Path(name), "test", precision)
        # The weights stay mapped when the files are gone.
        return load_mgeo(Path(name), bundle, LoadOptions(device, precision, threads), lambda _phase, _share: None)
