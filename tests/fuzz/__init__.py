"""Fuzzing: `make fuzz` looks for inputs that break a target; the tests replay those that it has kept."""
