"""File names inside a model version; standard library only, so that Triton's Python models can import it."""

ONNX_FILE = "ranker.onnx"
PLAN_FILE = "model.plan"
PLAN_MANIFEST = "plan.json"
TABLE_FOLDER = "table"
WARMUP_FOLDER = "warmup"
FUSED_SOURCE = "intent_fused"
"""The Python model that does both steps in one process."""
