"""One fuzzing process: `python -m tests.fuzz.child TARGET FLAG…`, with libFuzzer's flags and folders of inputs."""

import sys

import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]  # installed by `make fuzz` only

from tests.fuzz.target import TARGETS


def main() -> None:
    """Fuzz until the flags say to stop; does not return."""
    target = TARGETS[sys.argv[1]]
    with atheris.instrument_imports(include=list(target.modules)):
        check = target.load_check()
    atheris.Setup([sys.argv[0], *sys.argv[2:]], check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
