"""Ask a running server to rank items for one user of a log, and print the answer."""

import sys
from pathlib import Path

import cyclopts
from rich.console import Console

from airserve.cli import run_script
from airserve.client import NodeTexts, RankClient
from airserve.showcase import Catalogue, Presenter, as_record, logged_users


def main(
    *,
    url: str = "127.0.0.1:8001",
    data: Path = Path("artifacts/demo/data"),
    tables: Path = Path("artifacts/demo/tables"),
    seed: int = 0,
    candidates: int = 128,
    top: int = 5,
) -> dict[str, object]:
    """Rank once.

    Args:
        url: host:port of the server's gRPC endpoint.
        data: data folder that users and candidates are drawn from.
        tables: tables folder, for the texts of the chains.
        seed: which user.
        candidates: items to rank.
        top: items to show.
    """
    catalogue = Catalogue.open(data)
    texts = NodeTexts.open(tables)
    user = logged_users(data, catalogue, count=1, candidates=candidates, seed=seed)[0]
    with RankClient(url) as client:
        answer = client.rank([user.request], explain=True)[0]
    Presenter(Console(file=sys.stderr), catalogue, texts).show(user, answer, top=top)
    return as_record(user, answer, catalogue, texts, top)


if __name__ == "__main__":
    run_script(cyclopts.App(default_command=main, help=__doc__))
