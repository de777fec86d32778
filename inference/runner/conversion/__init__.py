"""Converts published weights and configuration to an engine's layout; imported only by the convert program."""
