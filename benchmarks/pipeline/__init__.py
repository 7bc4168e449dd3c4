"""The data pipeline beside the peers' ones: same text, same tokenizer, same machine, in turn.

Each candidate runs in a process of its own, in the environment that it needs, and reports its figures as JSON:
``candidates`` has one module for each project, with one function for each task. ``run`` starts them in turn for some
rounds and writes one table for each task under benchmarks/results. ``corpora`` fetches the text; peers.txt has the
exact versions of the peers.

    python -m benchmarks.pipeline.corpora --out runs/corpora
    python -m benchmarks.pipeline.run --text runs/corpora/english.jsonl --work runs/bench-data
"""
