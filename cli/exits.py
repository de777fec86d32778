"""The exit codes of every command but `healthcheck`, which has a prober's own."""

DONE = 0
FAILED = 1  # the server, the model or the machine did not do it
WRONG_USE = 2  # the command line or the settings
INTERRUPTED = 130
