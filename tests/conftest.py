"""For all tests: what the page of faults promises must have run; tests that drive processes are marked."""

pytest_plugins = ["pytester", "tests.faults_ran", "tests.process_marks"]
