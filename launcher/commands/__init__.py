"""The commands of `ptm`, a file per group; torch and its like are imported inside them, to keep `--help` quick."""
