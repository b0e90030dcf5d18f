"""Compare intents composed from the table with those the same model writes when it reads the whole history.

    python perf/measure_consistency.py --data artifacts/demo/data --intents artifacts/demo/intents

A measure of quality, not of speed. The control is the same table with its answers shuffled over the kinds.
"""

from dataclasses import asdict
from pathlib import Path

import cyclopts

from airserve.cli import run_script
from airserve.intents.consistency import measure_consistency
from airserve.intents.engine_vllm import vllm_version
from airserve.intents.settings import GenerateSettings
from airserve.table.embed import BUNDLED, SentenceEmbedder, embed_texts


def main(
    *,
    data: Path,
    intents: Path,
    model: str = "offline/intent_lm",
    users: int = 50,
    behaviours: int = 20,
    leaves: int = 10,
    embedder: str = BUNDLED,
    cache: Path = Path("artifacts/cache"),
) -> dict[str, object]:
    """Print leaf overlap and embedding similarity, and both for the shuffled table.

    Args:
        data: data folder.
        intents: folder with answers.parquet, written by the same model.
        model: a checkpoint's folder, or its name on a hub.
        users: sample size.
        behaviours: length of a history.
        leaves: composed leaves kept of each user.
        embedder: the bundled model, a folder, or any sentence-transformers name.
        cache: where embedded texts are kept between runs.
    """
    settings = GenerateSettings(model=model, workers=1)
    encoder = SentenceEmbedder(embedder)
    found = measure_consistency(
        data,
        intents,
        settings,
        lambda texts: embed_texts(encoder, list(texts), cache)[0],
        users=users,
        behaviours=behaviours,
        leaves=leaves,
    )
    return {**asdict(found), "model": model, "embedder": embedder, "vllm_version": vllm_version()}


if __name__ == "__main__":
    run_script(cyclopts.App(default_command=main, help=__doc__))
