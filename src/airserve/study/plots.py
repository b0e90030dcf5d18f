"""The figures and the table of a study, drawn again from its JSON file alone.

Colours are the colour-blind safe set of Okabe and Ito; AIR is always the same one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from airserve.files import atomic_path, write_text
from airserve.study.metrics import METRICS, SLICE_TITLES
from airserve.training.measure import AIR

Results = Mapping[str, Any]
OURS_COLOUR, OTHER_COLOUR, SECOND_COLOUR = "#D55E00", "#0072B2", "#009E73"
LINE_COLOURS = (OTHER_COLOUR, SECOND_COLOUR, "#56B4E9", "#CC79A7", "#E69F00", "#000000")
TITLES = {
    **{f"{kind}{cut}": f"{kind.upper()}@{cut}" for kind in ("hr", "ndcg") for cut in (1, 5, 10)},
    "full_hr10": "HR@10, whole catalogue",
    "full_ndcg10": "NDCG@10, whole catalogue",
    "full_mrr": "MRR, whole catalogue",
}
TABLE_METRICS = ("hr1", "hr5", "hr10", "ndcg5", "ndcg10", "full_hr10", "full_ndcg10", "full_mrr")
assert set(TITLES) == set(METRICS)


def domains(results: Results) -> list[str]:
    """Slices that are one domain each; all users where there is one domain only."""
    found = [name for name in results["slices"] if name.startswith("domain:")]
    return found or ["all"]


def slice_title(name: str) -> str:
    """As readers are shown it."""
    return SLICE_TITLES.get(name, name.partition(":")[2])


def label(results: Results, model: str) -> str:
    """A model's name for readers."""
    return str(results["models"][model]["label"])


def _style(width: float, height: float, columns: int = 1, *, sharey: bool = False) -> tuple[Figure, list[Any]]:
    plt.rcParams.update(
        {
            "svg.hashsalt": "airserve",
            "svg.fonttype": "none",
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )
    figure, axes = plt.subplots(1, columns, figsize=(width, height), squeeze=False, sharey=sharey, layout="constrained")
    return figure, list(axes[0])


def _save(figure: Figure, path: Path) -> None:
    """Write atomically, the same bytes each time."""
    with atomic_path(path) as part:
        figure.savefig(part, format=path.suffix[1:], metadata={"Date": None})
    plt.close(figure)


def _error(mean: float, interval: Sequence[float]) -> list[list[float]]:
    return [[max(mean - interval[0], 0.0)], [max(interval[1] - mean, 0.0)]]


def plot_models(results: Results, path: Path) -> None:
    """HR@10 and NDCG@10 of every model with 95 % intervals, a panel a domain."""
    parts = domains(results)
    models = list(results["models"])
    figure, panels = _style(4.2 * len(parts), 0.36 * len(models) + 1.3, len(parts), sharey=True)
    for panel, part in zip(panels, parts, strict=True):
        for place, model in enumerate(models):
            for metric, marker, shift, colour in (
                ("ndcg10", "s", 0.14, SECOND_COLOUR),
                ("hr10", "o", -0.14, OTHER_COLOUR),
            ):
                found = results["slices"][part]["metrics"][model][metric]
                shade = OURS_COLOUR if model == AIR else colour
                panel.errorbar(
                    found["mean"], place + shift, xerr=_error(found["mean"], found["interval"]),
                    fmt=marker, color=shade, capsize=2, markersize=4,
                    label=TITLES[metric] if model == models[0] else None,
                )  # fmt: skip
        panel.set_yticks(range(len(models)), [label(results, model) for model in models])
        panel.set_ylim(len(models) - 0.5, -0.5)
        panel.set_xlim(left=0)
        panel.grid(axis="x", alpha=0.3)
        panel.set_title(f"{slice_title(part)} ({results['slices'][part]['users']} targets)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    _save(figure, path)


def plot_differences(results: Results, path: Path) -> None:
    """AIR minus every other model, paired, in points, a panel a domain."""
    parts = domains(results)
    others = [model for model in results["models"] if model != AIR]
    figure, panels = _style(4.2 * len(parts), 0.36 * len(others) + 1.3, len(parts), sharey=True)
    for panel, part in zip(panels, parts, strict=True):
        for place, model in enumerate(others):
            for metric, marker, shift, colour in (
                ("ndcg10", "s", 0.14, SECOND_COLOUR),
                ("hr10", "o", -0.14, OTHER_COLOUR),
            ):
                found = results["slices"][part]["air_minus"][model][metric]
                mean, interval = 100 * found["mean"], [100 * bound for bound in found["interval"]]
                panel.errorbar(
                    mean, place + shift, xerr=_error(mean, interval), fmt=marker, color=colour, capsize=2,
                    markersize=4, label=TITLES[metric] if model == others[0] else None,
                )  # fmt: skip
        panel.axvline(0, color="black", linewidth=0.8)
        # Baselines without training are far behind and would hide the rest.
        panel.set_xscale("symlog", linthresh=4)
        ticks = [-4, -2, 0, 2, 4, 10, 40]
        panel.set_xticks(ticks, [f"{tick:+d}" if tick else "0" for tick in ticks])
        panel.set_yticks(range(len(others)), [label(results, model) for model in others])
        panel.set_ylim(len(others) - 0.5, -0.5)
        panel.grid(axis="x", alpha=0.3)
        panel.set_xlabel("points of AIR over it (log scale beyond 4)")
        panel.set_title(slice_title(part))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    _save(figure, path)


def plot_slices(results: Results, path: Path) -> None:
    """HR@10 of AIR and its base on every slice of users."""
    names = [name for name in SLICE_TITLES if name in results["slices"]]
    base = results["models"][AIR]["base"]
    figure, panels = _style(9.0, 0.5 * len(names) + 1.2, 2)
    for place, name in enumerate(names):
        found = results["slices"][name]
        for model, shift, colour in ((AIR, -0.12, OURS_COLOUR), (base, 0.12, OTHER_COLOUR)):
            measured = found["metrics"][model]["hr10"]
            panels[0].errorbar(
                measured["mean"], place + shift, xerr=_error(measured["mean"], measured["interval"]), fmt="o",
                color=colour, capsize=2, markersize=4, label=label(results, model) if place == 0 else None,
            )  # fmt: skip
        change = found["air_minus"][base]["hr10"]
        if change["relative"] is not None:
            relative, interval = 100 * change["relative"], [100 * bound for bound in change["relative_interval"]]
            panels[1].errorbar(
                relative, place, xerr=_error(relative, interval), fmt="o", color=OURS_COLOUR, capsize=2, markersize=4
            )
    titles = [f"{slice_title(name)} ({results['slices'][name]['users']})" for name in names]
    for panel, ticks in zip(panels, (titles, [""] * len(names)), strict=True):
        panel.set_yticks(range(len(names)), ticks)
        panel.set_ylim(len(names) - 0.5, -0.5)
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_xlim(left=0)
    panels[0].set_xlabel("HR@10")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    panels[1].axvline(0, color="black", linewidth=0.8)
    panels[1].set_xlabel("AIR over its base, HR@10, relative %")
    _save(figure, path)


def plot_training(results: Results, path: Path) -> None:
    """NDCG@10 on valid after every epoch, a line a seed."""
    trained = [name for name, model in results["models"].items() if "fit" in model["runs"][0]]
    towers = [name for name in trained if not results["models"][name]["base"]]
    groups = [group for group in (towers, [name for name in trained if name not in towers]) if group]
    figure, panels = _style(4.8 * len(groups), 3.2, len(groups))
    for panel, group in zip(panels, groups, strict=True):
        for number, name in enumerate(group):
            for run in results["models"][name]["runs"]:
                curve = run["fit"]["curve"]
                panel.plot(
                    [epoch for epoch, _, _ in curve],
                    [measured for _, _, measured in curve],
                    color=OURS_COLOUR if name == AIR else LINE_COLOURS[number % len(LINE_COLOURS)],
                    alpha=0.8,
                    marker=".",
                    linewidth=1,
                    label=label(results, name) if run is results["models"][name]["runs"][0] else None,
                )
        panel.set_xlabel("epoch")
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    panels[0].set_ylabel("NDCG@10 on valid")
    _save(figure, path)


def _cell(found: Mapping[str, Any]) -> str:
    low, high = found["interval"]
    return f"{found['mean']:.3f} [{low:.3f}, {high:.3f}]"


def _points(found: Mapping[str, Any]) -> str:
    low, high = (100 * bound for bound in found["interval"])
    return f"{100 * found['mean']:+.2f} [{low:+.2f}, {high:+.2f}]"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]


def _left_out(sample: Mapping[str, Any]) -> list[str]:
    """What a study's training log is without, as sentences."""
    said = []
    if sample.get("thin", 1.0) < 1.0:
        said.append(f"{100 * sample['thin']:g} % of the training users are kept.")
    if sample.get("cold_items"):
        said.append(f"{100 * sample['cold_items']:g} % of the items are cold: nothing is learned from their events.")
    return said


def markdown(results: Results) -> str:
    """The tables of a study: metrics, AIR minus the others, slices, what was chosen on valid, where it was made."""
    data, made = results["data"], results["provenance"]
    lines = [
        "# Ranker study",
        "",
        "Written by `offline/plot_results.py` from `results.json`; intervals are 95 % bootstrap intervals over users "
        "and training seeds.",
        "",
        f"{data['items']:,} items, {data['users']:,} users, {data['training_events']:,} events learned from, "
        f"{data['test_targets']} test targets. {results['protocol']['draws']} draws of "
        f"{results['protocol']['negatives']} negatives. Intents: {data['intents']}. Commit {made['commit'][:12]}"
        f"{' with uncommitted changes' if made['uncommitted_changes'] else ''}, torch {made['packages']['torch']}, "
        f"{made['cpu']}.",
        *_left_out(data.get("sample", {})),
        "",
    ]
    models = results["models"]
    for part in domains(results):
        found = results["slices"][part]
        lines += [f"## {slice_title(part)} ({found['users']} targets)", ""]
        rows = [
            [
                label(results, name),
                str(len(models[name]["runs"])),
                *(_cell(found["metrics"][name][m]) for m in TABLE_METRICS),
            ]
            for name in models
        ]
        lines += _table(["model", "runs", *(TITLES[metric] for metric in TABLE_METRICS)], rows)
    if AIR in models:
        lines += _differences(results)
    lines += ["## Chosen on valid", ""]
    tuned = [
        [
            label(results, name),
            ", ".join(f"{key} {value:g}" for key, value in run["tuning"]["chosen"].items()) or "nothing",
        ]
        for name, model in models.items()
        for run in model["runs"][:1]
        if "tuning" in run
    ]
    tuned += [
        [
            label(results, name),
            "epoch " + ", ".join(f"{run['fit']['best_epoch']}" for run in model["runs"]) + " by NDCG@10",
        ]
        for name, model in models.items()
        if "fit" in model["runs"][0]
    ]
    return "\n".join([*lines, *_table(["model", "choice"], tuned)])


def _differences(results: Results) -> list[str]:
    models = results["models"]
    parts = domains(results)
    lines = ["## AIR minus the others, points", ""]
    header = ["against", *(f"{TITLES[m]}, {slice_title(part)}" for part in parts for m in ("hr10", "ndcg10"))]
    rows = [
        [
            label(results, name),
            *(_points(results["slices"][part]["air_minus"][name][m]) for part in parts for m in ("hr10", "ndcg10")),
        ]
        for name in models
        if name != AIR
    ]
    lines += _table(header, rows)
    base = models[AIR]["base"]
    lines += [f"## Slices: AIR against its base ({label(results, base)})", ""]
    rows = []
    for name in (name for name in results["slices"] if name in SLICE_TITLES):
        found = results["slices"][name]
        change = found["air_minus"][base]
        relative, interval = change["hr10"]["relative"], change["hr10"]["relative_interval"]
        shown = "-" if relative is None else f"{relative:+.1%} [{interval[0]:+.1%}, {interval[1]:+.1%}]"
        rows.append(
            [
                slice_title(name),
                str(found["users"]),
                *(f"{found['metrics'][m]['hr10']['mean']:.3f}" for m in (base, AIR)),
                _points(change["hr10"]),
                shown,
                _points(change["ndcg10"]),
            ]
        )
    return lines + _table(
        ["slice", "users", "base HR@10", "AIR HR@10", "HR@10 points", "relative", "NDCG@10 points"], rows
    )


def write_figures(results: Results, out: Path) -> list[str]:
    """Write everything that can be drawn of a study into a folder; returns the files' names."""
    drawings = {"models.svg": plot_models, "training.svg": plot_training}
    if AIR in results["models"] and len(results["models"]) > 1:
        drawings["differences.svg"] = plot_differences
        if results["models"][AIR]["base"] in results["models"]:
            drawings["slices.svg"] = plot_slices
    if not any("fit" in model["runs"][0] for model in results["models"].values()):
        del drawings["training.svg"]
    for name, draw in drawings.items():
        draw(results, out / name)
    table = out / "README.md"
    write_text(table, markdown(results) + "\n")
    return [*drawings, table.name]
