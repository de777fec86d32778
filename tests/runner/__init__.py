"""The wire and the runner: pure parts, and real processes with the scripted engine."""
