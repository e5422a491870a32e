"""Keeps the DSPy routing modules of every tenant improving from Phoenix traces."""

import os

# DSPy (before the first answer of a model) and LiteLLM (when it is imported) look these up on GitHub otherwise. Set
# here, because nothing of ours, and no process of a run, comes earlier. Who wants other prices sets them to False.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS", "True")

__version__ = "0.1.0"
