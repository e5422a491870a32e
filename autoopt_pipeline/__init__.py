"""Keeps the DSPy routing modules of every tenant improving from Phoenix traces."""

import os

# Otherwise DSPy (before a model's first answer) and LiteLLM (on import) fetch these from GitHub. They are set here
# because every process imports this module first. Set them to False for current prices.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS", "True")

__version__ = "0.1.0"
