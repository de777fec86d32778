"""A folder hub that goes wrong on command: the shipped hub server with faults injected through its hook."""
