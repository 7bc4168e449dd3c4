"""These tests run kernels in Triton's interpreter, which is chosen before triton is imported: `make test` gives them a
process of their own with TRITON_INTERPRET=1, and any other one does not collect them."""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
