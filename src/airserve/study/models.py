"""The models of a study: what each is, how it is trained and how it scores.

Everything is trained on the same log and chosen on its `valid` split. A model that starts from another one (`base`)
takes that model's run of the same seed, so that AIR, its controls and its ablations stand on one and the same base.
The base sees title vectors only: intents enter through the intent stage alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch

import airserve.model.composition
import airserve.model.gather
import airserve.model.losses
import airserve.model.ranker
import airserve.model.retrieval
import airserve.model.sequence
import airserve.model.tree
import airserve.study.losses
import airserve.study.variants
import airserve.table.intents
import airserve.table.tree
import airserve.training.loop
from airserve.model.ranker import Ranker
from airserve.model.sequence import SequenceModel
from airserve.study import losses, variants
from airserve.study.cache import State, source_digest
from airserve.study.subject import Study
from airserve.table import company
from airserve.table.company import Company
from airserve.table.intents import IntentTable
from airserve.training import baselines, blend, checkpoint, evaluation, examples, objectives, stages
from airserve.training.evaluation import Scorer
from airserve.training.loop import FitReport
from airserve.training.measure import AIR
from airserve.training.stages import Training

Array = npt.NDArray[Any]
Report = dict[str, Any]
Given = Mapping[str, State]
"""The trained models that another one needs, by name."""
BASE, APART = "sasrec_id_text", "sasrec_apart"
WARM_BASE, WARM_APART = "sasrec_warm", "sasrec_warm_apart"
"""The same without id dropout."""
VALIDATION = (
    evaluation.draw_candidates, evaluation.rivals, evaluation.target_ranks, evaluation.rank_targets, evaluation.gains,
    evaluation.expected_gains, evaluation.popularity_weights, Training.__init__, Training._valid_ndcg,
)  # fmt: skip
"""What chooses a checkpoint."""


class Model(Protocol):
    """One line of the results table."""

    @property
    def label(self) -> str:
        """As readers are shown it."""

    @property
    def seeded(self) -> bool:
        """Whether its training is random; else there is one run."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The models it is trained with; the first is the one it starts from, its base."""

    def depends_on(self, study: Study) -> object:
        """Everything, seed and base apart, that a training depends on."""

    def learn(self, study: Study, seed: int, folder: Path, mark: str, given: Given) -> tuple[State, Report]:
        """Train it, taking up what an interrupted training of the same `mark` left in `folder`."""

    def scorer(self, study: Study, state: State, report: Report, given: Given) -> tuple[Scorer, IntentTable]:
        """The trained model and the table that its histories are looked up in."""


@dataclass(frozen=True, kw_only=True)
class Counted:
    """A model without gradients, its few numbers chosen on valid by NDCG@10 from a grid."""

    label: str
    grid: Mapping[str, tuple[float, ...]]
    make: Callable[[Study, Mapping[str, float]], Scorer]
    seeded: bool = False
    needs: tuple[str, ...] = ()

    def depends_on(self, study: Study) -> object:
        """See `Model`."""
        return [study.data_digest, dict(self.grid), source_digest([baselines, evaluation.gains, self.make])]

    def learn(self, study: Study, seed: int, folder: Path, mark: str, given: Given) -> tuple[State, Report]:
        """See `Model`."""
        tried = []
        for values in product(*self.grid.values()):
            choice = dict(zip(self.grid, values, strict=True))
            found = study.valid.rank(self.make(study, choice), study.table, title=f"tuning {self.label}", batch=16)
            tried.append({**choice, "valid_ndcg10": round(float(evaluation.gains(found.drawn_WX).mean()), 5)})
        best = max(tried, key=lambda one: one["valid_ndcg10"])
        chosen = {name: best[name] for name in self.grid}
        return {}, {"tuning": {"metric": "NDCG@10 on valid", "grid": tried, "chosen": chosen}}

    def scorer(self, study: Study, state: State, report: Report, given: Given) -> tuple[Scorer, IntentTable]:
        """See `Model`."""
        return self.make(study, report["tuning"]["chosen"]), study.table


@dataclass(frozen=True, kw_only=True)
class Sequential:
    """A causal transformer over the history (SASRec with our sizes), on ids alone or with title vectors."""

    label: str
    use_titles: bool
    bce: bool = False
    """Binary cross entropy with one uniform negative a position, as in the SASRec paper, instead of sampled softmax."""
    apart: bool = False
    """Without the users that the intent stage learns from, see `TrainSettings.apart_share`."""
    cold: bool = True
    """Trained for cold items too, with id dropout."""
    seeded: bool = True
    needs: tuple[str, ...] = ()

    def depends_on(self, study: Study) -> object:
        """See `Model`."""
        s = study.train
        code = [
            airserve.model.sequence, airserve.model.losses, airserve.model.gather, airserve.training.loop,
            examples.sequence_batches, examples.next_targets, objectives.sequence_loss, objectives.hidesome,
            Training.fit_sequence, *VALIDATION,
        ]  # fmt: skip
        code += [airserve.study.losses] if self.bce else []
        sizes = [asdict(s.ranker.sequence), asdict(s.sequence_fit), s.sequence_negatives, s.sequence_batch]
        which = [s.apart_share, source_digest([Training.is_apart, Training.fit_apart])] if self.apart else []
        return [study.data_digest, self.use_titles, self.bce, self.cold, sizes, s.steps_per_epoch, s.valid_examples,
                s.valid_as_popular_as_training, source_digest(code), *which]  # fmt: skip

    def network(self, study: Study) -> SequenceModel:
        """An untrained one."""
        settings = replace(study.train.ranker.sequence, use_item_vectors=self.use_titles)
        # An item that has nothing but its id cannot do without it.
        if not (self.use_titles and self.cold):
            settings = replace(settings, id_dropout=0.0)
        if self.bce:  # as published: plain dot products
            settings = replace(settings, temperature=0.0)
        return SequenceModel(torch.from_numpy(np.array(study.titles_NE)), settings).to(study.device)

    def learn(self, study: Study, seed: int, folder: Path, mark: str, given: Given) -> tuple[State, Report]:
        """See `Model`."""
        torch.manual_seed(seed)
        model = self.network(study)
        training = study.training(study.table, seed, folder, mark)
        if self.bce:
            report = losses.fit_with_bce(training, model, folder / "resume-bce.pt", mark)
        else:
            report = (training.fit_apart if self.apart else partial(training.fit_sequence, self.label))(model, 1.0)
        return checkpoint.on_cpu(model.state_dict()), {"fit": fit_report(report)}

    def scorer(self, study: Study, state: State, report: Report, given: Given) -> tuple[Scorer, IntentTable]:
        """See `Model`."""
        model = self.network(study)
        model.load_state_dict(state)
        return baselines.sequence_scorer(model), study.table


@dataclass(frozen=True, kw_only=True)
class Intents:
    """AIR's intent stage, with its own table and switches; trained for a `Blended`, not reported by itself."""

    label: str
    variant: str = "true"
    """`true`, `shuffled` (over all items that have intents) or `items` (every item its own intent: no intents)."""
    use_tree: bool = True
    use_target: bool = True
    seeded: bool = True
    cold: bool = True
    """Trained for cold items too, with id dropout."""

    @property
    def needs(self) -> tuple[str, ...]:
        """See `Model`."""
        return (BASE, APART) if self.cold else (WARM_BASE, WARM_APART)

    def depends_on(self, study: Study) -> object:
        """See `Model`."""
        code = [
            airserve.model.ranker, airserve.model.composition, airserve.model.retrieval, airserve.model.tree,
            airserve.model.losses, airserve.training.loop, airserve.table.intents, airserve.table.tree, variants,
            examples.rank_batches, examples.make_request, examples.history, examples.training_targets,
            examples.last_of_users, objectives.intent_loss, Training.fit_intents, Training.is_apart,
            stages.summed,
            checkpoint.new_ranker, checkpoint.item_nodes, *VALIDATION,
        ]  # fmt: skip
        s = asdict(study.train)
        settings = {name: value for name, value in s.items() if not name.startswith("sequence")}
        return [study.data_digest, study.table_digest, self.variant, self.use_tree, self.use_target, self.cold,
                settings, source_digest(code)]  # fmt: skip

    def table(self, study: Study, seed: int) -> IntentTable:
        """The intents that it is given; shuffled ones are shuffled anew for each seed."""
        if self.variant == "shuffled":
            return variants.with_shuffled_intents(study.table, study.titles_NE, seed)
        return variants.with_items_for_intents(study.table, study.titles_NE) if self.variant == "items" else study.table

    def network(self, study: Study, table: IntentTable, given: Given) -> Ranker:
        """An untrained intent stage on a trained base."""
        sequence = study.train.ranker.sequence if self.cold else replace(study.train.ranker.sequence, id_dropout=0.0)
        settings = replace(
            study.train.ranker,
            sequence=sequence,
            use_intents=True,
            use_tree=self.use_tree,
            use_target=self.use_target,
        )
        ranker = checkpoint.new_ranker(table, settings, torch.from_numpy(np.array(study.titles_NE)))
        ranker.base.load_state_dict(given[self.needs[0]])
        return ranker.to(study.device)

    def learn(self, study: Study, seed: int, folder: Path, mark: str, given: Given) -> tuple[State, Report]:
        """See `Model`."""
        torch.manual_seed(seed)
        table = self.table(study, seed)
        ranker = self.network(study, table, given)
        apart = copy.deepcopy(ranker.base)
        apart.load_state_dict(given[self.needs[1]])
        report = study.training(table, seed, folder, mark).fit_intents(ranker, 1.0, apart)
        whole = checkpoint.on_cpu(ranker.state_dict())
        state = {name: tensor for name, tensor in whole.items() if not name.startswith("base.")}
        return state, {"fit": fit_report(report), "parameters": parameters_beside_base(ranker), "table_seed": seed}

    def assembled(self, study: Study, table: IntentTable, given: Given, state: State) -> Ranker:
        """The whole ranker, base and intent stage, in evaluation mode."""
        ranker = self.network(study, table, given)
        ranker.load_state_dict({**state, **{f"base.{name}": tensor for name, tensor in given[self.needs[0]].items()}})
        return ranker.eval()

    def scorer(self, study: Study, state: State, report: Report, given: Given) -> tuple[Scorer, IntentTable]:
        """See `Model`."""
        table = self.table(study, report["table_seed"])
        return stages.air_scorer(self.assembled(study, table, given, state)), table


@dataclass(frozen=True, kw_only=True)
class Blended:
    """Base, an intent stage and what is met together, weighed on valid: what `train_ranker` makes."""

    label: str
    stage: str
    """The intent stage, of `HELPERS`."""
    seeded: bool = True

    @property
    def needs(self) -> tuple[str, ...]:
        """See `Model`."""
        return (*HELPERS[self.stage].needs, self.stage)

    def depends_on(self, study: Study) -> object:
        """See `Model`."""
        code = [blend, company, baselines.neighbour_scorer, Training.choose_blend, stages.intent_scorer,
                stages.air_scorer]  # fmt: skip
        return [study.data_digest, study.table_digest, source_digest(code)]

    def learn(self, study: Study, seed: int, folder: Path, mark: str, given: Given) -> tuple[State, Report]:
        """See `Model`; chooses the weights."""
        stage = self._stage()
        table = stage.table(study, seed)
        ranker = stage.assembled(study, table, given, given[self.stage])
        chosen = study.training(table, seed, folder, mark).choose_blend(ranker).company
        scales = {"base": float(ranker.base_scale), "intents": float(cast(torch.Tensor, ranker.intent_scale))}
        parameters = parameters_beside_base(ranker)
        return {}, {"blend": scales, "company": asdict(chosen), "parameters": parameters, "table_seed": seed}

    def _stage(self) -> Intents:
        stage = HELPERS[self.stage]
        assert isinstance(stage, Intents)
        return stage

    def trained(self, study: Study, report: Report, given: Given) -> tuple[Ranker, IntentTable]:
        """The whole ranker with its weights."""
        stage = self._stage()
        table = stage.table(study, report["table_seed"])
        ranker = stage.assembled(study, table, given, given[self.stage])
        ranker.base_scale.data.fill_(report["blend"]["base"])
        cast(torch.Tensor, ranker.intent_scale).fill_(report["blend"]["intents"])
        return ranker, table

    def scorer(self, study: Study, state: State, report: Report, given: Given) -> tuple[Scorer, IntentTable]:
        """See `Model`."""
        ranker, table = self.trained(study, report, given)
        return stages.air_scorer(ranker, study.log, Company(**report["company"])), table


def parameters_beside_base(ranker: Ranker) -> int:
    """How many numbers the intent stage learns."""
    return sum(p.numel() for name, p in ranker.named_parameters() if not name.startswith("base."))


def fit_report(report: FitReport) -> Report:
    """How a training went, for the results file."""
    return {
        "chosen_by": "NDCG@10 on valid, 499 negatives of the target's domain",
        "valid_ndcg10": round(report.best, 5),
        "best_epoch": report.best_epoch,
        "epochs": report.epochs,
        "seconds": round(report.seconds, 1),
        "curve": [[epoch, round(loss, 5), round(measured, 5)] for epoch, loss, measured in report.curve],
    }


def _popularity(study: Study, choice: Mapping[str, float]) -> Scorer:
    return baselines.popularity_scorer(study.log, study.task)


def _item_knn(study: Study, choice: Mapping[str, float]) -> Scorer:
    recency = baselines.Recency(last=int(choice["last"]), decay=choice["decay"])
    return baselines.neighbour_scorer(baselines.log_neighbours(study.log, choice["shrinkage"]), recency)


def _text_cosine(study: Study, choice: Mapping[str, float]) -> Scorer:
    recency = baselines.Recency(last=int(choice["last"]), decay=choice["decay"])
    return baselines.text_scorer(torch.from_numpy(np.array(study.titles_NE)), recency)


MODELS: dict[str, Model] = {
    "popularity": Counted(label="popularity", grid={}, make=_popularity),
    "item_knn": Counted(
        label="item-kNN",
        grid={"shrinkage": (0.0, 10.0, 50.0), "decay": (1.0, 0.9, 0.75), "last": (10, 50)},
        make=_item_knn,
    ),
    "text_cosine": Counted(
        label="text cosine", grid={"decay": (1.0, 0.9, 0.75, 0.5), "last": (5, 50)}, make=_text_cosine
    ),
    "sasrec_id_bce": Sequential(label="SASRec (ID), BCE", use_titles=False, bce=True),
    "sasrec_id": Sequential(label="SASRec (ID)", use_titles=False),
    BASE: Sequential(label="SASRec (ID + text)", use_titles=True),
    "air_warm": Blended(label="AIR, not trained for cold items", stage="stage_warm"),
    "no_intents": Blended(label="re-ranker without intents", stage="stage_no_intents"),
    "air_shuffled": Blended(label="AIR, intents shuffled", stage="stage_shuffled"),
    "air_no_tree": Blended(label="AIR without tree", stage="stage_no_tree"),
    "air_no_target": Blended(label="AIR without target-aware retrieval", stage="stage_no_target"),
    "air_neither": Blended(label="AIR without both", stage="stage_neither"),
    AIR: Blended(label="AIR", stage="stage_air"),
}
"""In the order of the report."""
HELPERS: dict[str, Model] = {
    APART: Sequential(label="base of other users", use_titles=True, apart=True),
    WARM_BASE: Sequential(label="base without id dropout", use_titles=True, cold=False),
    WARM_APART: Sequential(label="base of other users, no id dropout", use_titles=True, cold=False, apart=True),
    "stage_warm": Intents(label="stage without id dropout", cold=False),
    "stage_no_intents": Intents(label="stage without intents", variant="items"),
    "stage_shuffled": Intents(label="stage of shuffled intents", variant="shuffled"),
    "stage_no_tree": Intents(label="stage without tree", use_tree=False),
    "stage_no_target": Intents(label="stage without target", use_target=False),
    "stage_neither": Intents(label="stage without both", use_tree=False, use_target=False),
    "stage_air": Intents(label="stage of AIR"),
}
"""Trained for the sake of others; not reported."""
