"""A folder hub with fault injection: the shipped hub server with faults injected through its hook."""
