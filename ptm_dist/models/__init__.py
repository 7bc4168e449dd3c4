"""Plain modules, one small file per family, on one transformer core; nothing here knows of parallelism.

spec.py says what a model is; embeddings.py, transformer.py, heads.py and model.py are the core; gpt.py, bert.py,
roberta.py and albert.py read like their papers; initialization.py gives first weights by name; hf.py maps names.
"""

from ptm_dist.models.factory import build_model, model_spec, parameter_shapes
from ptm_dist.models.model import LanguageModel, ModelOutput, ModelScore

__all__ = ["LanguageModel", "ModelOutput", "ModelScore", "build_model", "model_spec", "parameter_shapes"]
