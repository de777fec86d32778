"""Simulated rollouts with true error rates: how often a trial is held by mistake, and how soon a worse one is found."""
