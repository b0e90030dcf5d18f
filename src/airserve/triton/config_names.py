"""Names of model parameters; standard library only, for Triton's Python models. File names are in `artifacts.py`."""

FUSED_SOURCE = "intent_fused"
"""The Python model that does both steps in one process."""
QUEUE_SIZE = "max_queue_size"
QUEUE_TIMEOUT_US = "queue_timeout_us"
"""Parameters of the Python models; see `airserve/triton/admission.py`."""
PADS = "pads_for_batching"
"""Parameter of the lookup: `1` where the ranker batches equal shapes only; see `airserve/triton/padding.py`."""
WARMUP_BATCHES = (1, 8)
"""Requests of each warm-up that Triton runs before a model is ready."""
