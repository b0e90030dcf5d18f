"""Source: airserve/triton/python_models/intent_lookup.py."""

from airserve.triton.python_models.intent_lookup import TritonPythonModel

__all__ = ["TritonPythonModel"]
