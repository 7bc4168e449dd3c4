"""The recipe: what a run learns and where it is computed.

schema.py is the list of keys; loading.py reads YAML with `base:` and dotted overrides; fingerprint.py says
whether two recipes learn the same thing; checks.py refuses values that contradict each other.
"""
