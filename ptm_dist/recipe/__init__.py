"""The recipe: what a run learns and where it is computed.

schema.py is the list of keys; loading.py reads YAML with `base:` and dotted overrides, places.py remembers where values
were written; fingerprint.py says whether two recipes learn the same; checks.py refuses values that contradict each
other, layout_checks.py layouts that do not fit; nearest.py finds one that does.
"""
