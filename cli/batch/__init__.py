"""`hotslot batch`: the rows of a folder or a file, sent over streams, and one line of results for each.

`records` and `sources` read the input, `ordering` finds the rows without a result, `window` decides what is sent next
(pure), `sender` runs the streams, `results` is the output file, `tasks` has what is different for each task, `run` puts
them together.
"""
