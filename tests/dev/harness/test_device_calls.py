"""Scripted engines tell which rows they computed."""

from pathlib import Path

import pytest

from common.bundle import bundle_folder
from dev.harness.device_calls import read_device_calls
from dev.harness.scripted_engine import (
    CALLS_VARIABLE,
    SHARED_DEVICE_VARIABLE,
    load_scripted,
    make_scripted_bundle,
    picture_key,
)
from inference.runner.engines.base import EntailmentItem, LoadOptions, RowRange


def test_every_call_is_counted_with_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By picture, so that a benchmark's rows are told from those of a self-test; on a shared device too."""
    monkeypatch.setenv(CALLS_VARIABLE, str(tmp_path / "calls"))
    monkeypatch.setenv(SHARED_DEVICE_VARIABLE, str(tmp_path / "device"))
    bundle = make_scripted_bundle(tmp_path, "r1")
    folder = bundle_folder(tmp_path, bundle.bundle_digest)
    engine = load_scripted(folder, bundle, LoadOptions("cpu", "", 0), lambda _phase, _share: None)
    ours, other = (engine.prepare(EntailmentItem(picture, ("a", "b", "c"), "")) for picture in (b"ours", b"other"))

    engine.compute([RowRange(ours, 0, 2), RowRange(other, 0, 1)])
    engine.compute([RowRange(ours, 2, 3)])

    calls = list(read_device_calls(tmp_path / "calls"))
    assert [call.rows_of({picture_key(b"ours")}) for call in calls] == [2, 1]
    assert [call.revision for call in calls] == ["r1", "r1"]
