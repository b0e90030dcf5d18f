"""Names of the files and folders that the offline half writes and everything behind it reads.

The offline half's counterpart of `contract.py`: a name stands here and nowhere else, grouped by the folder that holds
the file. The Arrow schemas of the Parquet files are in `artifact_schemas.py`, because they need pyarrow. This module
needs the standard library only, so that Triton's Python models and the client can import it.
"""

MANIFEST_FILE = "manifest.json"
"""What a folder was made of and by which contract version: of an intents, a serving and an engine folder."""
REPORT_FILE = "report.html"
"""The report for people: of an intents and of a tables folder."""

# Data folder.
ITEMS_FILE = "items.parquet"
"""One row an item; `artifact_schemas.ITEMS_SCHEMA`."""
BEHAVIOURS_FILE = "behaviours.parquet"
"""One row an event, by user, then time; `artifact_schemas.BEHAVIOURS_SCHEMA`."""
TRUTH_FILE = "truth.parquet"
"""The intent that each item of the demo world was made from; `artifact_schemas.TRUTH_SCHEMA`."""

# Intents folder.
ANSWERS_FILE = "answers.parquet"
"""The LLM's answer for each event kind; `artifact_schemas.ANSWERS_SCHEMA`."""
DEAD_LETTERS_FILE = "dead_letters.parquet"
"""Prompts without a usable answer, and why; `artifact_schemas.DEAD_LETTERS_SCHEMA`."""
PARTS_FOLDER = "parts"
"""Answers of each finished chunk of prompts, one Parquet file each; `artifact_schemas.PARTS_SCHEMA`."""
VECTORS_FILE = "vectors.npz"
"""Item vectors in the own space of a source of intents; only where the source has one."""

# Tables folder.
VOCABULARY_FILE = "vocabulary.parquet"
"""Nodes of the intent tree; `artifact_schemas.VOCABULARY_SCHEMA`."""
ATOMIC_INTENTS_FILE = "atomic_intents.parquet"
"""Paths of node ids of each event kind; `artifact_schemas.ATOMIC_INTENTS_SCHEMA`."""
MERGES_FILE = "merges.json"
"""Near-duplicate nodes that went into others."""
PROJECTION_FILE = "projection.npz"
"""The linear map from text embeddings to the vectors that are served."""
TITLE_VECTORS_FILE = "title_vectors.npy"
"""Vectors of the items' titles, in catalogue rows."""
INTENTS_FOLDER = "intents"
"""Of a tables folder: the intent table, ids and frozen vectors, that rankers are trained on."""
SERVING_FOLDER = "serving"
"""The published table that a server opens; its arrays are named by `table.format.file_name`."""

# Ranker folder.
RANKER_FILE = "ranker.safetensors"
"""The trained ranker's weights, without the frozen vectors."""
CONFIG_FILE = "config.json"
"""The trained ranker's settings, and the catalogue and vocabulary it belongs to; written last."""
METRICS_FILE = "metrics.json"
"""What the ranker and its baselines reached on the test split."""

# Engine folder; the graph and the plan also lie in a model's version folder, under the same names.
ITEM_ENCODER_FILE = "item_encoder.onnx"
"""What makes the served rows of items."""
NODE_ENCODER_FILE = "node_encoder.onnx"
"""What makes the served rows of intent nodes."""
LEARNED_FILE = "learned.npz"
"""Learned vectors of the items and nodes that training knew."""
ONNX_FILE = "ranker.onnx"
"""The exported graph, fp32; with `MANIFEST_FILE` beside it."""
FP16_FILE = "ranker.fp16.onnx"
"""The graph with fp16 weights and activations, for TensorRT."""
PLAN_FILE = "model.plan"
"""The compiled TensorRT engine."""
PLAN_MANIFEST = "plan.json"
"""What the plan was compiled from and on, checked before it is loaded."""

# Model repository.
MODEL_CONFIG_FILE = "config.pbtxt"
"""Triton's settings of one model."""
TABLE_FOLDER = "table"
"""Copy of the serving folder inside the lookup's version folder."""
WARMUP_FOLDER = "warmup"
"""Requests that Triton runs before a model is ready; the name is Triton's."""

# Folder of a language model.
CHECKPOINT_CONFIG_FILE = "config.json"
"""Settings of a Hugging Face checkpoint; the name is transformers'."""
LM_REPORT_FILE = "report.json"
"""What the shipped intent model reached, and how it was trained."""
LM_CARD_FILE = "REPORT.md"
"""The same, for people."""

# Study.
RUN_FILE = "run.json"
"""How one training of a study went; a run's folder that has it is trained."""
RUN_STATE_FILE = "state.safetensors"
"""What one training of a study learned."""
RESULTS_FILE = "results.json"
"""All figures of a study."""

# Folder of the main job.
SAMPLE_ANSWERS_FILE = "answers.json"
"""Ranked sample users, with the intents that explain them."""
SUMMARY_FILE = "summary.json"
"""The main job's one JSON object."""
