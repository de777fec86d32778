"""Reasons of failures that one process gives and another one judges by, so that both have the same word."""

NOT_FINITE = "NOT_FINITE"  # the model returned NaN or infinity
RUNNER_DIED = "RUNNER_DIED"  # its process ended while it computed
OUT_OF_MEMORY = "OUT_OF_MEMORY"  # memory ran out at a single item, while loading, warming up or converting
DOES_NOT_FIT = "DOES_NOT_FIT"  # the memory plan of a load or a conversion exceeds the free memory
SHORTAGES = frozenset({OUT_OF_MEMORY, DOES_NOT_FIT})
TOO_SLOW = "TOO_SLOW"  # the trial had no answer in time, and the previous slot was asked
PREPARE_TIMEOUT = "PREPARE_TIMEOUT"  # the picture was not decoded in time
DEADLINE_EXPIRED = "DEADLINE_EXPIRED"  # it could not be answered within the caller's time
DEADLINE_TOO_SHORT = "DEADLINE_TOO_SHORT"  # even an idle model needs longer than the caller's time
