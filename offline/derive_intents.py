"""Derive atomic intents from titles and behaviour, without a language model: a source for measuring on public data.

    python offline/derive_intents.py --data DATA --out INTENTS

Writes answers.parquet as offline/generate_intents.py does; offline/build_tables.py takes it from there.
"""

from pathlib import Path

import cyclopts

from airserve.cli import run_script
from airserve.intents.derived import DeriveSettings, derive_folder


def main(*, data: Path, out: Path, skip_last: int = 1, seed: int = 0, cache: Path = Path("artifacts/cache")) -> object:
    """Derive them.

    Args:
        data: folder with items.parquet and behaviours.parquet; only the train split is read.
        out: the intents folder to write.
        skip_last: last training events of each user that are left for the ranker to learn from.
        seed: of decomposition and clustering.
        cache: where embedded titles are kept between runs.
    """
    return derive_folder(data, out, DeriveSettings(skip_last=skip_last, seed=seed), cache)


if __name__ == "__main__":
    run_script(cyclopts.App(default_command=main, help=__doc__))
