"""The candidates of a compression, in SQLite: what was proposed, what it costs, how it did at each rung.

Optuna proposes and keeps them; its dashboard opens the file. Each candidate is kept at every step, so that a search
that was killed goes on with what it knew.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from keras_distill.search.cost import Cost
from keras_distill.search.families import Family
from keras_distill.search.training import start_again

State = Literal["proposed", "running", "stopped", "finished", "failed"]
# How much of the budget a candidate may leave.
_LEAST_FILL = 0.5
_IN_REACH = "families in reach"
# Proposals before Optuna's sampler learns from what became of earlier ones.
_NUM_RANDOM = 8


@dataclass(frozen=True)
class Trial:
    """One candidate.

    Attributes:
        number: from 0, in the order in which they were proposed.
        bracket: the halving that it belongs to.
        family: the name of its family.
        shape: the numbers of that family's shape.
        precision: `"float32"` or `"int8"`, as it would be served.
        fill: the share of the budget that it was made for.
        width: of the family, found for that share; `None` until then.
        cost: measured; `None` until then.
        scores: negative log-likelihood on validation data, in nats, by epochs trained.
        errors: share of the validation examples that it has wrong, by epochs trained.
        state: what became of it.
        reason: why it failed.
    """

    number: int
    bracket: int
    family: str
    shape: Mapping[str, float]
    precision: str
    fill: float
    width: float | None = None
    cost: Cost | None = None
    scores: Mapping[int, float] = field(default_factory=dict)
    errors: Mapping[int, float] = field(default_factory=dict)
    state: State = "proposed"
    reason: str = ""

    @property
    def epochs(self) -> int:
        """Trained so far."""
        return max(self.scores, default=0)

    @property
    def score(self) -> float:
        """The last score; infinite before the first."""
        return self.scores[self.epochs] if self.scores else float("inf")

    def to_json(self) -> dict[str, Any]:
        """All of it as dictionaries, lists and numbers."""
        return asdict(self)

    @classmethod
    def from_json(cls, contents: Mapping[str, Any]) -> "Trial":
        """What `to_json` gave, also after JSON made strings of the epochs."""
        cost = contents["cost"]
        known = {
            "cost": None if cost is None else Cost(**cost),
            "scores": {int(epoch): score for epoch, score in contents["scores"].items()},
            "errors": {int(epoch): error for epoch, error in contents["errors"].items()},
        }
        return cls(**(dict(contents) | known))


class Trials:
    """The study in a file, and its candidates.

    Args:
        path: of the SQLite file.
        settings: what the study is of; one of other settings is refused.
        families: by name.
        precisions: that are tried.
        seed: of what is drawn.

    Raises:
        ValueError: the file holds the study of another teacher, other data or other settings.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        families: Mapping[str, Family],
        precisions: Sequence[str],
        seed: int,
    ):
        import optuna

        self._families, self._precisions, self._seed = families, list(precisions), seed
        storage = optuna.storages.RDBStorage(f"sqlite:///{path.resolve()}")
        self._study: optuna.Study = optuna.create_study(
            storage=storage, study_name="compress", directions=["minimize", "minimize"], load_if_exists=True
        )
        start_again(self._study, dict(settings), str(path))
        self._repair()

    def all(self) -> list[Trial]:
        """All candidates, in the order of their numbers."""
        attributes = self._study.user_attrs
        kept = sorted((key for key in attributes if attributes[key] and key.startswith("trial-")), key=_number_of)
        return [Trial.from_json(attributes[key]) for key in kept]

    def keep_families(self, candidates: Mapping[str, Family]) -> dict[str, Family]:
        """The families that the study began with: measured again, one at the edge of a budget may have left it.

        Args:
            candidates: by name, those out of reach too.
        """
        names = self._study.user_attrs.get(_IN_REACH)
        if names is None:
            names = list(self._families)
            self._study.set_user_attr(_IN_REACH, names)
        self._families = {name: candidates[name] for name in names}
        return dict(self._families)

    def keep(self, trial: Trial, **changes: Any) -> Trial:
        """Writes down what changed of a candidate, and returns it."""
        trial = replace(trial, **changes)
        self._study.set_user_attr(f"trial-{trial.number}", trial.to_json())
        return trial

    def propose(self, bracket: int, first: Mapping[str, Any] | None = None) -> Trial:
        """One more candidate: a given one, or what Optuna's multi-objective sampler makes of those before.

        Args:
            bracket: the halving that it is for.
            first: its parameters, as the study names them; what it leaves out is drawn.
        """
        import optuna

        known = self._study.trials
        # A sampler of its own for each proposal, on a copy: what it draws depends on the seed and on the candidates so
        # far, and not on how often the search was killed.
        sampler = optuna.samplers.TPESampler(
            seed=self._seed * 100_003 + len(known), n_startup_trials=_NUM_RANDOM, constant_liar=True
        )
        copy = optuna.create_study(directions=self._study.directions, sampler=sampler)
        copy.add_trials(known)
        if first is not None:
            copy.enqueue_trial(dict(first))
        asked = copy.ask()
        family = self._families[asked.suggest_categorical("family", list(self._families))]
        precision = str(asked.suggest_categorical("precision", self._precisions))
        fill = asked.suggest_float("fill", _LEAST_FILL, 1.0)
        shape = family.suggest(asked)
        trial = self.keep(Trial(len(known), bracket, family.name, shape, precision, fill))
        self._study.enqueue_trial(asked.params)
        self._study.ask(asked.distributions)
        return trial

    def _repair(self) -> None:
        """Where a kill came between our own note of a candidate and Optuna's, they agree again."""
        from optuna.trial import TrialState

        for trial in self.all()[len(self._study.trials) :]:
            self._study.set_user_attr(f"trial-{trial.number}", None)
        for _ in self._study.get_trials(states=(TrialState.WAITING,)):
            self._study.ask()

    def end(self, trial: Trial, state: State, values: tuple[float, float] | None, reason: str = "") -> Trial:
        """Tells Optuna what became of a candidate.

        Args:
            trial: the candidate.
            state: `"stopped"`, `"finished"` or `"failed"`.
            values: its projected score and its share of the budget; `None` where it failed.
            reason: why it failed.
        """
        import optuna

        if not self._study.trials[trial.number].state.is_finished():
            failed = optuna.trial.TrialState.FAIL if values is None else None
            self._study.tell(trial.number, values, state=failed)
        return self.keep(trial, state=state, reason=reason)


def first_parameters(families: Sequence[Family], precisions: Sequence[str]) -> list[dict[str, Any]]:
    """The candidates to begin with: each family in each precision as it is unless somebody searches, the first twice.

    Example:
        >>> from keras_distill.search.families import hand_made
        >>> [first["precision"] for first in first_parameters(hand_made((9,), 2), ["float32", "int8"])]
        ['float32', 'int8']
    """
    return [
        {"family": family.name, "precision": precision, "fill": 1.0}
        | {f"{family.name}.{name}": value for name, value in family.default().items()}
        for family in families
        for precision in precisions
    ]


def pareto_front(trials: Iterable[Trial]) -> list[Trial]:
    """The trained candidates that no other beats in both latency and score, from the fastest on.

    Example:
        >>> made = [Trial(n, 0, "mlp", {}, "int8", 1.0, 0.1, Cost(1, 1, 1, ms), {5: nll})
        ...         for n, (ms, nll) in enumerate([(1.0, 0.3), (2.0, 0.2), (3.0, 0.4)])]
        >>> [trial.number for trial in pareto_front(made)]
        [0, 1]
    """
    known = [trial for trial in trials if trial.cost is not None and trial.scores]
    front: list[Trial] = []
    for trial in sorted(known, key=lambda trial: (trial.cost.latency_ms if trial.cost else 0.0, trial.score)):
        if not front or trial.score < front[-1].score:
            front.append(trial)
    return front


def _number_of(key: str) -> int:
    return int(key.removeprefix("trial-"))
