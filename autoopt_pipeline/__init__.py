"""Keeps the DSPy routing modules of every tenant improving from Phoenix traces."""

__version__ = "0.1.0"
