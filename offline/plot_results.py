"""Draw a study's figures and write its table again from its JSON file.

python offline/plot_results.py --results results.json --out docs/results/ranker
"""

import json
import logging
from pathlib import Path

import cyclopts

from airserve.artifacts import RESULTS_FILE
from airserve.cli import run_script
from airserve.errors import DataError
from airserve.files import write_json
from airserve.study.plots import write_figures

log = logging.getLogger("plot_results")


def main(
    *, results: Path = Path("docs/results/ranker") / RESULTS_FILE, out: Path = Path("docs/results/ranker")
) -> dict[str, object]:
    """Draw a study.

    Args:
        results: the JSON file that offline/evaluate_ranker.py wrote.
        out: folder for the figures (SVG), the table (README.md) and a copy of the JSON file.
    """
    try:
        study = json.loads(results.read_text(encoding="utf-8"))
        missing = {"models", "slices", "protocol", "provenance", "data"} - set(study)
    except (OSError, ValueError, TypeError) as error:
        study, missing = None, {type(error).__name__}
    if study is None or missing:
        raise DataError(
            str(results),
            expected="results of offline/evaluate_ranker.py",
            got=f"none of {', '.join(sorted(missing))}" if study is not None else ", ".join(missing),
            remedy="run offline/evaluate_ranker.py --out FILE",
        )
    files = write_figures(study, out)
    write_json(out / RESULTS_FILE, study)
    log.info("wrote %s in %s", ", ".join(files), out)
    return {"out": str(out), "files": files}


if __name__ == "__main__":
    run_script(cyclopts.App(default_command=main, help=__doc__))
