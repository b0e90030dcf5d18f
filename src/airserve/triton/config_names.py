"""Names of model parameters; standard library only, for Triton's Python models. File names are in `artifacts.py`."""

# Under these names for export/, triton/{config,repository,model_answers}.py and the Python models.
from airserve.artifacts import FP16_FILE as FP16_FILE
from airserve.artifacts import ONNX_FILE as ONNX_FILE
from airserve.artifacts import PLAN_FILE as PLAN_FILE
from airserve.artifacts import PLAN_MANIFEST as PLAN_MANIFEST
from airserve.artifacts import TABLE_FOLDER as TABLE_FOLDER
from airserve.artifacts import WARMUP_FOLDER as WARMUP_FOLDER

FUSED_SOURCE = "intent_fused"
"""The Python model that does both steps in one process."""
QUEUE_SIZE = "max_queue_size"
QUEUE_TIMEOUT_US = "queue_timeout_us"
"""Parameters of the Python models; see `airserve/triton/admission.py`."""
PADS = "pads_for_batching"
"""Parameter of the lookup: `1` where the ranker batches equal shapes only; see `airserve/triton/padding.py`."""
WARMUP_BATCHES = (1, 8)
"""Requests of each warm-up that Triton runs before a model is ready."""
