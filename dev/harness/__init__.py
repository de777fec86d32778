"""The real stack for tests, benchmarks, chaos steps and the demo: starts it, loads it, injects faults, reads it.

Nothing is imported here: a scripted runner imports `scripted_engine` alone and starts in milliseconds.
"""
