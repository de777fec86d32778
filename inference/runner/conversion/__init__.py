"""Foreign weights and configuration to an engine's own layout; only the convert program imports this."""
