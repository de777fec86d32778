"""Lists the files of the server that one Predict visits, in order: `python -m dev.scripts.visited`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("tests.server.request_path", run_name="__main__")  # it stands beside the simulator that it needs
