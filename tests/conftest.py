"""For all tests: what the page of faults promises must have run."""

pytest_plugins = ["pytester", "tests.faults_ran"]
