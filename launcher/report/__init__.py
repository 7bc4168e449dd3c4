"""What became of a run: its lives, where its time went, how it recovered, whether its curve is whole.

`history` reads the files, `timeline` finds the lives in them, `goodput` gives every second to one part, `recovery`
looks at failures, `curve` at the steps; `report` brings them together for `text` and `plot`.
"""
