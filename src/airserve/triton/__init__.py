"""Serving with NVIDIA Triton: configuration, repository, embedded server, Python models."""
