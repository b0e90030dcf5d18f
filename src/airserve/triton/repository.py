"""Write a whole Triton model repository: configurations, Python models, the table and the compiled ranker.

The repository is self-contained (table and graph are copied in), so that the same folder can be mounted into a
container or pushed to a bucket. It is written beside its place and renamed, never half-written.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from airserve import contract
from airserve.artifacts import (
    MANIFEST_FILE,
    MODEL_CONFIG_FILE,
    ONNX_FILE,
    PLAN_FILE,
    PLAN_MANIFEST,
    SERVING_FOLDER,
    TABLE_FOLDER,
    WARMUP_FOLDER,
)
from airserve.errors import ArtifactError
from airserve.export.tensorrt import check_plan
from airserve.triton.config import ServingSettings, Target, all_configs, warmup_files
from airserve.triton.config_names import FUSED_SOURCE

VERSION = "1"
MODEL_SOURCE = '''"""Source: airserve/triton/python_models/{name}.py."""

from airserve.triton.python_models.{name} import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


@dataclass(frozen=True, kw_only=True)
class RepositorySource:
    """What a repository is made of."""

    tables: Path
    """The tables folder, with `serving/` in it."""
    engine: Path
    """The folder with the exported graph, and the plan when there is one."""
    target: Target = "embedded"
    settings: ServingSettings = field(default_factory=ServingSettings)

    def __post_init__(self) -> None:
        for path, script in (
            (self.tables / SERVING_FOLDER / MANIFEST_FILE, "offline/encode_table.py"),
            (self.engine / MANIFEST_FILE, "build/export_onnx.py"),
        ):
            if not path.exists():
                raise ArtifactError(str(path), expected="a manifest", got="no such file", remedy=f"run {script} first")


def check_same_encoder(source: RepositorySource) -> dict[str, int]:
    """Refuse a table whose rows another encoder made than the engine belongs to.

    Returns:
        The encoder's sizes.

    Raises:
        ArtifactError: naming both sides.
    """
    table = json.loads((source.tables / SERVING_FOLDER / MANIFEST_FILE).read_text())
    engine = json.loads((source.engine / MANIFEST_FILE).read_text())
    for key, remedy in (
        ("contract_version", "make both again with this release"),
        ("encoder", "make the table's rows with this engine: offline/encode_table.py"),
    ):
        if table.get(key) != engine.get(key):
            raise ArtifactError(
                f"{source.engine} with {source.tables}",
                expected=f"{key} {engine.get(key)} (the engine's)",
                got=f"{table.get(key)} (the table's)",
                remedy=remedy,
            )
    sizes: dict[str, int] = engine["sizes"]
    return sizes


def write_static(
    folder: Path,
    target: Target,
    settings: ServingSettings | None = None,
    sizes: Mapping[str, int] = contract.USUAL_SIZES,
) -> None:
    """Write what does not depend on data: config.pbtxt files, Python models and warm-up requests."""
    for name, text in all_configs(target, settings, sizes).items():
        version = folder / name / VERSION
        version.mkdir(parents=True, exist_ok=True)
        (folder / name / MODEL_CONFIG_FILE).write_text(text)
        if 'backend: "python"' in text:
            source = FUSED_SOURCE if name == contract.ENSEMBLE_MODEL else name
            (version / "model.py").write_text(MODEL_SOURCE.format(name=source))
        elif name == contract.ENSEMBLE_MODEL:
            (version / ".gitkeep").touch()
        if "input_data_file" in text:
            (folder / name / WARMUP_FOLDER).mkdir(exist_ok=True)
            for file_name, content in warmup_files().items():
                (folder / name / WARMUP_FOLDER / file_name).write_bytes(content)


def write_repository(source: RepositorySource, out: Path) -> Path:
    """Write the repository to `out`, replacing one that is there.

    Returns:
        `out`.

    Raises:
        ArtifactError: when table and engine do not fit, or the target's engine file is missing.
    """
    fused = source.settings.variant_for(source.target) == "fused"
    sizes = check_same_encoder(source)
    engine_file = PLAN_FILE if source.target == "tensorrt" else ONNX_FILE
    if not (source.engine / engine_file).exists():
        raise ArtifactError(
            str(source.engine / engine_file),
            expected=f"the engine of target {source.target}",
            got="no such file",
            remedy="run build/compile_engine.py" if source.target == "tensorrt" else "run build/export_onnx.py",
        )
    if source.target == "tensorrt":
        check_plan(source.engine)
    fresh = out.with_name(f"{out.name}.tmp-{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    write_static(fresh, source.target, source.settings, sizes)
    table_model = contract.ENSEMBLE_MODEL if fused else contract.LOOKUP_MODEL
    engine_model = contract.ENSEMBLE_MODEL if fused else contract.RANKER_MODEL
    shutil.copytree(source.tables / SERVING_FOLDER, fresh / table_model / VERSION / TABLE_FOLDER)
    shutil.copy2(source.engine / engine_file, fresh / engine_model / VERSION / engine_file)
    if source.target == "tensorrt":
        shutil.copy2(source.engine / PLAN_MANIFEST, fresh / engine_model / VERSION / PLAN_MANIFEST)
    old = out.with_name(f"{out.name}.old-{os.getpid()}")
    if out.exists():
        out.rename(old)
    fresh.rename(out)
    shutil.rmtree(old, ignore_errors=True)
    return out
