from __future__ import annotations

import os

# Before torch is imported anywhere: forked workers share two cores, and no test may reach for a hub.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
