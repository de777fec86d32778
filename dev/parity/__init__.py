"""The stock pipeline as the oracle that the engine must agree with; in an environment of its own."""
