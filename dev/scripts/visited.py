"""Lists the files that one Predict and one update visit, in order: `python -m dev.scripts.visited`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("tests.visits", run_name="__main__")  # it needs the tests' simulators
