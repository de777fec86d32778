"""Files of control groups as kernels show them, by their paths.

`V1_NESTED` was recorded on a machine with version 1 (Linux 6.18): a group of 1 GiB around one of 2 GiB, in which a file
of 300 MB was written and then read twice; the quota is 1.5 CPUs. That machine also mounts version 2, without
controllers, as systemd's hybrid layout does. The others are written as the kernel's documentation has them, and as
Docker, Kubernetes and systemd arrange them.
"""

from pathlib import Path

MIB = 1 << 20
Tree = dict[str, str]

MEMINFO = "MemTotal: 25165824 kB\nMemFree: 8388608 kB\nMemAvailable: 12582912 kB\n"  # 24 GiB, of which 12 are free
_V1_MOUNTS = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 {cpu} /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 {memory} /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
_V2_MOUNTS = "29 23 0:26 {group} /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw,nsdelegate\n"
NO_LIMIT = "9223372036854771712\n"


def v1_memory(limit: str, usage: int, stat: str) -> Tree:
    """The files of one group of version 1."""
    return {"memory.limit_in_bytes": limit, "memory.usage_in_bytes": f"{usage}\n", "memory.stat": stat}


def v2_memory(limit: str, current: int, stat: str, high: str = "max\n") -> Tree:
    """The files of one group of version 2."""
    return {"memory.max": limit, "memory.high": high, "memory.current": f"{current}\n", "memory.stat": stat}


def in_folder(folder: str, files: Tree) -> Tree:
    """The same files in a folder."""
    return {f"{folder}/{name}": text for name, text in files.items()}


def write_tree(tree: Tree, root: Path) -> Path:
    """Write the files below a folder; returns it."""
    for name, text in {"proc/meminfo": MEMINFO, **tree}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


_V1_OUTER = """\
cache 0
rss 0
shmem 0
mapped_file 0
inactive_file 0
active_file 0
hierarchical_memory_limit 1073741824
hierarchical_memsw_limit 9223372036854771712
total_cache 314671104
total_rss 192512
total_shmem 0
total_mapped_file 0
total_dirty 314576896
total_inactive_anon 81920
total_active_anon 0
total_inactive_file 90112
total_active_file 314580992
total_unevictable 0
"""
_V1_INNER = """\
cache 314671104
rss 200704
shmem 0
mapped_file 0
dirty 314576896
inactive_file 90112
active_file 314580992
hierarchical_memory_limit 1073741824
hierarchical_memsw_limit 9223372036854771712
total_cache 314671104
total_rss 200704
total_shmem 0
total_mapped_file 0
total_inactive_anon 135168
total_active_anon 4096
total_inactive_file 90112
total_active_file 314580992
total_unevictable 0
"""
V1_NESTED: Tree = {
    "proc/self/cgroup": "9:name=systemd:/\n4:memory:/outer/inner\n1:cpu,cpuacct:/outer\n0::/\n",
    "proc/self/mountinfo": _V1_MOUNTS.format(cpu="/", memory="/"),
    **in_folder("sys/fs/cgroup/memory", v1_memory(NO_LIMIT, 5_000_000_000, "total_cache 0\n")),
    **in_folder("sys/fs/cgroup/memory/outer", v1_memory("1073741824\n", 324460544, _V1_OUTER)),
    **in_folder("sys/fs/cgroup/memory/outer/inner", v1_memory("2147483648\n", 324673536, _V1_INNER)),
    "sys/fs/cgroup/memory/outer/inner/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
    "sys/fs/cgroup/cpu,cpuacct/outer/cpu.cfs_quota_us": "150000\n",
    "sys/fs/cgroup/cpu,cpuacct/outer/cpu.cfs_period_us": "100000\n",
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    "sys/fs/cgroup/unified/cgroup.controllers": "hugetlb\n",
}
# Docker, version 1: the container's group is mounted, under the path that the host knows.
V1_CONTAINER: Tree = {
    "proc/self/cgroup": "4:memory:/docker/5f3a\n1:cpu,cpuacct:/docker/5f3a\n",
    "proc/self/mountinfo": _V1_MOUNTS.format(cpu="/docker/5f3a", memory="/docker/5f3a"),
    **in_folder("sys/fs/cgroup/memory", v1_memory(f"{1024 * MIB}\n", 924 * MIB, f"total_cache {600 * MIB}\n")),
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000\n",
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
}
# Kubernetes, version 2 with a namespace: the container's own group is the root of what is mounted.
V2_CONTAINER: Tree = {
    "proc/self/cgroup": "0::/\n",
    "proc/self/mountinfo": _V2_MOUNTS.format(group="/"),
    **in_folder(
        "sys/fs/cgroup",
        v2_memory(
            f"{4096 * MIB}\n",
            3900 * MIB,
            f"anon {500 * MIB}\nfile {3400 * MIB}\nfile_mapped {100 * MIB}\nshmem 0\ninactive_file {700 * MIB}\n",
        ),
    ),
    "sys/fs/cgroup/cpu.max": "200000 100000\n",
    "sys/fs/cgroup/memory.events": "low 0\nhigh 0\nmax 12\noom 1\noom_kill 1\noom_group_kill 0\n",
}
# systemd, version 2 on the host: a service in a slice; the slice has the limit, the service is only slowed down.
V2_NESTED: Tree = {
    "proc/self/cgroup": "0::/system.slice/hotslot.service\n",
    "proc/self/mountinfo": _V2_MOUNTS.format(group="/"),
    "sys/fs/cgroup/cgroup.controllers": "cpu memory\n",
    **in_folder(
        "sys/fs/cgroup/system.slice",
        v2_memory(f"{3000 * MIB}\n", 2800 * MIB, f"file {200 * MIB}\nfile_mapped 0\nshmem {50 * MIB}\n"),
    ),
    **in_folder(
        "sys/fs/cgroup/system.slice/hotslot.service", v2_memory("max\n", 900 * MIB, "file 0\n", high=f"{2000 * MIB}\n")
    ),
    "sys/fs/cgroup/system.slice/cpu.max": "max 100000\n",
    "sys/fs/cgroup/system.slice/hotslot.service/cpu.max": "300000 100000\n",
}
# Version 2 without a namespace: the host's path is not below what is mounted; with blanks in a mount point.
V2_FOREIGN_PATH: Tree = {
    "proc/self/cgroup": "0::/../../kubepods/pod7\n",
    "proc/self/mountinfo": _V2_MOUNTS.format(group="/").replace("/sys/fs/cgroup", r"/sys/fs/c\040group"),
    **in_folder("sys/fs/c group", v2_memory(f"{600 * MIB}\n", 100 * MIB, "")),
}
NO_GROUPS: Tree = {}
