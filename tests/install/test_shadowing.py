"""hotslot beside packages whose modules have the same names: it works, or it stops at the start with one sentence."""

from pathlib import Path

import pytest

from hotslot_watchdog.launch import WRONG_ENVIRONMENT
from tests.install.environments import Environment, build_small_wheel

PROGRAMS = (
    "inference.server.main",
    "inference.runner.main",
    "inference.runner.convert",
    "updater.daemon",
    "hotslot_watchdog",
    "hotslot_watchdog.stack",
)
INFERENCE = {
    "inference/__init__.py": "from inference.core import models\n",
    "inference/core/__init__.py": "",
    "inference/core/models.py": "raise SystemExit('a foreign module was run')\n",
}
WATCHDOG = {"watchdog/__init__.py": "", "watchdog/events.py": ""}


def starts(environment: Environment) -> list[tuple[int, str]]:
    """How the command and every program start, without anything to do: exit code, standard error."""
    launch: list[str | Path] = [environment.python, "-P", "-m", "hotslot_watchdog.launch", "-m"]
    done = [environment.run(environment.hotslot, "--version")]
    done += [environment.run(*launch, program, "--help") for program in PROGRAMS]
    return [(one.returncode, one.stderr) for one in done]


def assert_refused(environment: Environment, file: Path) -> None:
    """Every program ends with one line that names the file, and says what to do."""
    for code, stderr in starts(environment):
        assert str(file) in stderr
        assert "install hotslot into an environment of its own" in stderr
        assert (code, stderr.count("\n")) == (WRONG_ENVIRONMENT, 1)


def test_alone_every_program_starts(installed: Environment) -> None:
    """The wheel and its dependencies are enough; the source tree is not used."""
    where = installed.run(installed.python, "-c", "import inference; print(inference.__file__)").stdout.strip()
    assert Path(where) == installed.site_packages / "inference" / "__init__.py"
    assert starts(installed) == [(0, "")] * (1 + len(PROGRAMS))


@pytest.mark.parametrize("comes_first", [True, False])
def test_beside_a_package_called_watchdog_every_program_starts(
    environment: Environment, wheel: Path, tmp_path: Path, *, comes_first: bool
) -> None:
    """None of its files has the name of one of hotslot's, in either order of installation."""
    other = build_small_wheel(tmp_path, "watchdog", "6.0.0", WATCHDOG)
    environment.install(*((other, wheel) if comes_first else (wheel, other)))
    assert starts(environment) == [(0, "")] * (1 + len(PROGRAMS))


def test_a_package_called_inference_that_came_before_does_no_harm(
    environment: Environment, wheel: Path, tmp_path: Path
) -> None:
    """Where both have a file, hotslot's is there."""
    environment.install(build_small_wheel(tmp_path, "inference", "0.50.0", INFERENCE), wheel)
    assert starts(environment) == [(0, "")] * (1 + len(PROGRAMS))


def test_a_package_called_inference_that_came_later_is_named(
    environment: Environment, wheel: Path, tmp_path: Path
) -> None:
    """It has replaced a file; its code is not run."""
    environment.install(wheel, build_small_wheel(tmp_path, "inference", "0.50.0", INFERENCE))
    assert_refused(environment, environment.site_packages / "inference" / "__init__.py")
    assert "(inference-0.50.0 brings one of the same name)" in environment.run(environment.hotslot).stderr


def test_what_another_package_took_with_it_is_named(environment: Environment, wheel: Path, tmp_path: Path) -> None:
    """It was removed again, and a file that both had went with it."""
    environment.install(wheel, build_small_wheel(tmp_path, "inference", "0.50.0", INFERENCE))
    environment.uninstall("inference")
    assert_refused(environment, environment.site_packages / "inference")


def test_a_folder_of_the_same_name_where_it_is_started_does_no_harm(installed: Environment, tmp_path: Path) -> None:
    """A user's own `common` beside his hotslot.toml is not imported."""
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "__init__.py").write_text("raise SystemExit('a foreign module was run')\n")
    done = installed.run(installed.hotslot, "config", "check", folder=tmp_path)
    assert (done.returncode, "no such file" in done.stderr) == (2, True)


def test_the_demo_is_refused_with_the_way_to_it(installed: Environment, tmp_path: Path) -> None:
    """Its model is 7 MB of no use to anyone else, so it is not shipped."""
    done = installed.run(installed.hotslot, "serve", "--demo", folder=tmp_path)
    assert "hotslot's source tree" in done.stderr
    assert done.returncode == 1
