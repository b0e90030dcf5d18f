"""Source: airserve/triton/python_models/intent_ranker.py."""

from airserve.triton.python_models.intent_ranker import TritonPythonModel

__all__ = ["TritonPythonModel"]
