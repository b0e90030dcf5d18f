"""File names inside a model version; standard library only, so that Triton's Python models can import it."""

ONNX_FILE = "ranker.onnx"
PLAN_FILE = "model.plan"
TABLE_FOLDER = "table"
