"""Serving library for applications: every tenant's promoted program, within seconds of its promotion.

    serving = Serving("s3://bucket/artifacts")
    decision = serving.decide("acme", "routing", agents=["search_agent", "report_agent"], query="where is the report?")
    decision.values["agent"]

docs/serving.md has the rest.
"""

from autoopt_pipeline.serving._answers import Decision, Loaded, Problem, Status
from autoopt_pipeline.serving._serving import Serving, language_model, trace_to_phoenix

__all__ = ["Decision", "Loaded", "Problem", "Serving", "Status", "language_model", "trace_to_phoenix"]
