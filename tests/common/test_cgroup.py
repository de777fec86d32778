"""The memory and the CPUs that control groups leave to a process, in both versions, nested and mixed."""

from pathlib import Path

import pytest

from common import cgroup
from tests.common.cgroup_trees import (
    MIB,
    NO_GROUPS,
    V1_CONTAINER,
    V1_NESTED,
    V2_CONTAINER,
    V2_FOREIGN_PATH,
    V2_NESTED,
    Tree,
    in_folder,
    v1_memory,
    v2_memory,
    write_tree,
)

_GIB = 1024 * MIB


@pytest.mark.fault("L14")
@pytest.mark.parametrize(
    ("tree", "total", "used"),
    [
        pytest.param(V1_NESTED, _GIB, 324673536 - 314671104, id="v1, the outer group is narrower, recorded"),
        pytest.param(V1_CONTAINER, _GIB, 324 * MIB, id="v1 in a container"),
        pytest.param(V2_CONTAINER, 4 * _GIB, 600 * MIB, id="v2 in a container"),
        pytest.param(V2_NESTED, 3000 * MIB, 2650 * MIB, id="v2, the slice is fuller than the service"),
        pytest.param(V2_FOREIGN_PATH, 600 * MIB, 100 * MIB, id="v2, a path outside of what is mounted"),
        pytest.param(NO_GROUPS, 24 * _GIB, 12 * _GIB, id="no groups"),
    ],
)
def test_the_narrowest_group_is_the_memory_of_the_process(tree: Tree, total: int, used: int, tmp_path: Path) -> None:
    """Whatever its version, and wherever in the hierarchy its limit stands."""
    write_tree(tree, tmp_path)
    memory = cgroup.read_memory(tmp_path)

    assert memory is not None
    assert (memory.total, memory.used) == (total, used)
    assert cgroup.read_available_bytes(tmp_path) == total - used


@pytest.mark.fault("L15")
@pytest.mark.parametrize(
    ("stat", "used"),
    [
        ("file 800\nshmem 0\nfile_mapped 0\ninactive_file 800\n", 100),
        ("file 800\nshmem 0\nfile_mapped 0\ninactive_file 0\nactive_file 800\n", 100),  # read twice
        ("file 800\nshmem 300\nfile_mapped 0\ninactive_file 0\n", 400),  # a file system in memory
        ("file 800\nshmem 0\nfile_mapped 600\ninactive_file 100\n", 700),  # the weights of a model
        ("file 800\nshmem 0\nfile_mapped 900\ninactive_file 0\n", 900),
        ("inactive_file 5000\n", 0),  # larger than the usage, which is read at another moment
        ("file many\n", 900),
        ("", 900),
    ],
)
def test_page_cache_that_can_be_reclaimed_is_free(stat: str, used: int, tmp_path: Path) -> None:
    """Shared memory and mapped files are not; a group that is full of other cache has room."""
    write_tree({**V2_CONTAINER, **in_folder("sys/fs/cgroup", v2_memory("1000\n", 900, stat))}, tmp_path)

    assert cgroup.read_memory(tmp_path) == cgroup.Memory(1000, used)
    assert cgroup.read_available_bytes(tmp_path) == 1000 - used


def test_a_group_wider_than_the_machine_does_not_limit(tmp_path: Path) -> None:
    """What the machine has is the limit then; its free memory also counts inside of a narrow group."""
    wide = in_folder("sys/fs/cgroup/memory", v1_memory(f"{64 * _GIB}\n", 0, ""))
    write_tree({**V1_CONTAINER, **wide}, tmp_path / "wide")
    write_tree({**V1_CONTAINER, "proc/meminfo": "MemTotal: 4000000 kB\nMemAvailable: 2000 kB\n"}, tmp_path / "full")

    assert cgroup.read_memory(tmp_path / "wide") == cgroup.Memory(24 * _GIB, 12 * _GIB)
    assert cgroup.read_available_bytes(tmp_path / "full") == 2000 * 1024


def test_a_limit_above_the_mount_point_holds(tmp_path: Path) -> None:
    """Version 1 reports the least limit of all groups around this one, also of those that are not mounted."""
    hidden = in_folder("sys/fs/cgroup/memory", v1_memory(f"{_GIB}\n", 0, f"hierarchical_memory_limit {300 * MIB}\n"))
    write_tree({**V1_CONTAINER, **hidden}, tmp_path)

    assert cgroup.read_memory(tmp_path) == cgroup.Memory(300 * MIB, 0)


def test_what_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    """Without /proc nothing is known, and nothing fails."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_bytes(b"\xff garbage\n")

    assert cgroup.read_memory(tmp_path) is None
    assert cgroup.read_available_bytes(tmp_path) is None
    assert cgroup.count_oom_kills(tmp_path) == 0


def test_this_machine_is_read() -> None:
    """The real files of whatever runs the tests."""
    memory = cgroup.read_memory()

    assert memory is not None
    assert memory.total >= memory.free > 0
    assert cgroup.count_usable_cpus() >= 1


@pytest.mark.parametrize(("tree", "kills"), [(V1_NESTED, 3), (V2_CONTAINER, 1), (NO_GROUPS, 0)])
def test_kills_by_the_kernel_are_counted(tree: Tree, kills: int, tmp_path: Path) -> None:
    """By the process's own group."""
    assert cgroup.count_oom_kills(write_tree(tree, tmp_path)) == kills


@pytest.mark.fault("L16")
@pytest.mark.parametrize(
    ("tree", "cpus"), [(V1_NESTED, 2), (V1_CONTAINER, 1), (V2_CONTAINER, 2), (V2_NESTED, 3), (NO_GROUPS, 8)]
)
def test_threads_follow_the_quota(tree: Tree, cpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More threads would only be throttled; on a machine with eight CPUs."""
    monkeypatch.setattr("common.cgroup.os.sched_getaffinity", lambda _process: set(range(8)))

    assert cgroup.count_usable_cpus(write_tree(tree, tmp_path)) == cpus
