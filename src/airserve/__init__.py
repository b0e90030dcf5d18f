"""airserve: Atomic Intent Reasoning, LLM semantics for recommenders in milliseconds."""

__version__ = "0.1.0"
