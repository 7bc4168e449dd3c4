"""Plain modules, one small file per family, on one transformer core; nothing here knows of parallelism.

spec.py says what a model is, transformer.py and embeddings.py are the core, gpt.py a family, initialization.py
the first weights by parameter name, hf.py the names that Hugging Face gives to the same weights.
"""

from ptm_dist.models.factory import build_model, model_spec

__all__ = ["build_model", "model_spec"]
