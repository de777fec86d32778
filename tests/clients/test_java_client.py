"""The Java client's own tests pass where there are a JDK and Maven."""

import shutil
import subprocess

import pytest

from dev.harness.process import ROOT

PROJECT = ROOT / "clients" / "java" / "pom.xml"


@pytest.mark.timeout(600)  # a first build downloads gRPC
def test_the_java_clients_own_tests_pass() -> None:
    """On fake servers in the same process; Javadoc and the jars are made by `make clients-java`."""
    maven = shutil.which("mvn")
    if maven is None or shutil.which("javac") is None:
        pytest.skip("there is no javac or no mvn on the path: the Java client was not tested")
    command = [maven, "-B", "-ntp", "-q", "-f", str(PROJECT), "test"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=590, check=False)
    assert (done.returncode, done.stdout + done.stderr if done.returncode else "") == (0, "")
