"""Tags of runs that one part of the pipeline writes and another reads."""

WINDOW_END_TAG = "autoopt/window_end"
"""Traces before this moment (UTC) are read, so that a retried run sees the same."""

NEW_EVIDENCE_TAG = "autoopt/new_evidence"
"""`module=traces+annotations`, comma-separated, that made each module due."""

ATTEMPT_TAG = "autoopt/attempt"
"""The run whose work this one takes up, because that run was lost."""

SKIPPED_TAG = "autoopt/skipped"
"""Why a module of the run was left to another run, in words. Such a run succeeds, and has no outcome of the module."""

FAILED_TAG = "autoopt/failed"
"""That a step of the run failed with an error of its own. A run that failed without it was lost: its process, or a
step's, was killed, or it never began. The same for all steps, for of two that are added at once one may be lost."""
