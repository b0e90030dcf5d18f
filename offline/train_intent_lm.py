"""Train the project's own small intent model on titles of the demonstration world.

python offline/train_intent_lm.py --minutes 20 --out offline/intent_lm
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path

# Threads that wait must not spin: on cores that are busy with other work, spinning costs ten times what it saves.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import cyclopts
import torch

from airserve.errors import UserError
from airserve.lm.job import JobSettings, train_intent_model
from airserve.lm.training import TrainingSettings
from airserve.world.ontology import load_ontology

app = cyclopts.App(help=__doc__)


@app.default
def main(
    *,
    out: Path = Path("artifacts/intent_lm"),
    minutes: float = 20.0,
    steps: int = 0,
    seed: int = 0,
    threads: int = 2,
    ontology: Path | None = None,
    evaluation_titles: int = 2_000,
    state: Path = Path("artifacts/intent_lm.state.pt"),
) -> None:
    """Train, evaluate and save the model.

    Parameters
    ----------
    out
        Folder of the checkpoint.
    minutes
        Budget of the training loop; about two more go into the rest.
    steps
        Train this many steps instead, which repeats exactly.
    seed
        Of data, initial weights and order.
    threads
        CPU threads.
    ontology
        Folder of TOML parts; the package's own when not given.
    evaluation_titles
        Held-out titles of each kind to report on.
    state
        File from which an unfinished run of the same settings is resumed; removed at the end.
    """
    torch.set_num_threads(threads)
    training = TrainingSettings(minutes=minutes, steps=steps, seed=seed)
    command = shlex.join(["python", *sys.argv])
    settings = JobSettings(training=training, evaluation_titles=evaluation_titles, command=command)
    state.parent.mkdir(parents=True, exist_ok=True)
    report = train_intent_model(load_ontology(ontology), out, settings, state)
    print(f"wrote {out}: leaf accuracy {report['leaf_accuracy']:.1%} on titles never seen", file=sys.stderr)
    print(json.dumps({"out": str(out), **report}))


if __name__ == "__main__":
    try:
        app()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
