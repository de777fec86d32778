"""Compares the MGeo engine with ModelScope's pipeline."""
