"""From a budget to the widths that it has room for: which families may hold it, and how wide each candidate is made."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import keras
import numpy as np

from keras_distill._checks import error_message
from keras_distill._types import Teacher
from keras_distill.deploy.calibration import drawn_rows
from keras_distill.models.inference import all_logits
from keras_distill.models.layer_roles import is_readable
from keras_distill.search.cost import Cost, Meter, features_of
from keras_distill.search.families import (
    MLP,
    ConvNet,
    Family,
    Own,
    Pruned,
    SeparableConvNet,
    Shape,
    TextBag,
    TextConv,
    for_texts,
    hand_made,
)
from keras_distill.search.training import score_of
from keras_distill.search.trials import Trial

if TYPE_CHECKING:
    from keras_distill.data import Dataset

# How near to its share of the budget a candidate's measured cost must come, and how often it is made anew for that.
_NEAR, _MOST_TRIES = 0.85, 4
# Than one that was too wide, whatever is predicted.
_NARROWER = 0.93
_NARROWEST = 1.0 / 512.0
_NUM_BISECTIONS = 8
_NUM_CALIBRATION = 1024


class Fitter:
    """Makes candidates as wide as their share of a budget allows.

    Args:
        meter: measures and predicts.
        max_bytes: of the served file; `None` for no limit.
        max_latency_ms: of one example; `None` for no limit.
        seed: of the weights that are new.
        max_arena: of a microcontroller, in bytes; `None` for no limit.

    Attributes:
        families: that may hold the budget, by name; empty before `within_reach`.
    """

    def __init__(
        self,
        meter: Meter,
        max_bytes: float | None,
        max_latency_ms: float | None,
        seed: int,
        max_arena: float | None = None,
    ):
        self._meter, self._seed = meter, seed
        self._max_bytes, self._max_latency_ms, self._max_arena = max_bytes, max_latency_ms, max_arena
        self.families: dict[str, Family] = {}

    def share(self, cost: Cost) -> float:
        """How much of the tighter limit a cost is."""
        return cost.share_of(self._max_bytes, self._max_latency_ms, self._max_arena)

    def student(self, trial: Trial, seed: int | None = None) -> keras.Model:
        """A candidate's model with the weights to begin from, those that are new by another seed if one is given."""
        assert trial.width is not None
        keras.utils.set_random_seed(self._seed if seed is None else seed)
        return self.families[trial.family].begin(trial.shape, trial.width)

    def within_reach(self, families: Sequence[Family], precisions: Sequence[str]) -> list[str]:
        """Keeps the families whose narrowest member holds the budget; returns what to say of the others.

        Raises:
            ValueError: no family does. The message names the nearest.
        """
        notes, nearest = [], []
        for family in families:
            found: list[tuple[float, str, Cost]] = []
            for precision in precisions:
                try:
                    model = self._build(family, family.default(), _NARROWEST)
                    cost = self._meter.measure(model, precision, family.name)
                    found.append((self.share(cost), precision, cost))
                except Exception:
                    # One width that a converter dies of says nothing about others.
                    continue
            if not found or min(found)[0] <= 1.0:
                self.families[family.name] = family
                continue
            share, precision, cost = min(found)
            nearest.append((share, family.name, precision, cost))
            notes.append(f"No {family.name} holds the budget: the narrowest takes {cost}.")
        if self.families:
            return notes
        _, name, precision, cost = min(nearest)
        limits = [f"{self._max_bytes:,} bytes"] if self._max_bytes is not None else []
        limits += [f"{self._max_latency_ms:.4g} ms"] if self._max_latency_ms is not None else []
        limits += [f"an arena of {self._max_arena:,} bytes"] if self._max_arena is not None else []
        remedy = f"The nearest is the narrowest {name} in {precision}, which takes {cost}."
        raise ValueError(
            error_message("the budget must be one that some candidate can hold", " and ".join(limits), remedy)
        )

    def recall(self, trials: Sequence[Trial]) -> None:
        """Tells the meter what an earlier run measured."""
        for trial in trials:
            if trial.cost is not None and trial.family in self.families:
                model = self._build(self.families[trial.family], trial.shape, trial.width or 1.0)
                self._meter.learn(features_of(model), trial.cost, trial.precision, trial.family)

    def fit(self, trial: Trial) -> tuple[float, Cost]:
        """The greatest width that a candidate's share of the budget has room for, and its measured cost.

        What is predicted finds a width, what is measured decides; where they differ, the prediction has learnt.

        Raises:
            ValueError: no width that was tried holds; also whatever a converter says.
        """
        family = self.families[trial.family]
        best: tuple[float, Cost] | None = None
        tried: list[tuple[float, Cost]] = []
        too_wide = math.inf
        for _ in range(_MOST_TRIES):
            width = min(self._predicted_width(family, trial), _NARROWER * too_wide)
            if width in [before for before, _ in tried]:
                break
            cost = self._meter.measure(self._build(family, trial.shape, width), trial.precision, family.name)
            tried.append((width, cost))
            share = self.share(cost)
            too_wide = min(too_wide, width) if share > 1.0 else too_wide
            if share <= 1.0 and (best is None or width > best[0]):
                best = (width, cost)
            if share <= 1.0 and (share >= _NEAR * trial.fill or width == 1.0):
                break
        if best is None:
            width, cost = tried[-1]
            expectation = f"a {family.name} in {trial.precision} must hold the budget at some width"
            raise ValueError(error_message(expectation, f"{cost} at width {width:.3g}"))
        return best

    def _predicted_width(self, family: Family, trial: Trial) -> float:
        """The greatest width whose predicted cost is the candidate's share of the budget, by bisection."""

        def is_within(width: float) -> bool:
            model = self._build(family, trial.shape, width)
            return self.share(self._meter.predict(model, trial.precision, family.name)) <= trial.fill

        if is_within(1.0):
            return 1.0
        low, high = math.log(_NARROWEST), 0.0
        for _ in range(_NUM_BISECTIONS):
            middle = (low + high) / 2.0
            low, high = (middle, high) if is_within(math.exp(middle)) else (low, middle)
        return math.exp(low)

    def _build(self, family: Family, shape: Shape, width: float) -> keras.Model:
        keras.utils.set_random_seed(self._seed)
        return family.build(shape, width)


def families_for(
    teacher: Teacher, dataset: "Dataset", own: Mapping[str, Callable[[float], keras.Model]]
) -> tuple[list[Family], list[str]]:
    """The families that suit a teacher and its data, and what the user should know of the choice.

    Raises:
        ValueError: one of the user's own has the name of another.
    """
    if taken := sorted(set(own) & {each.name for each in (Pruned, ConvNet, SeparableConvNet, MLP, TextBag, TextConv)}):
        raise ValueError(error_message("families must have names of their own", ", ".join(taken), "Rename them."))
    families: list[Family] = []
    prunable, notes = _prunable(teacher, dataset)
    if prunable is not None:
        try:
            drawn = dataset.train.take(drawn_rows(len(dataset.train), _NUM_CALIBRATION)).inputs
            families.append(Pruned(prunable, drawn))
        except ValueError as error:
            notes.append(f"Nothing is cut from the teacher: {error}")
    if dataset.preparation is not None and dataset.preparation.kind == "text":
        specification = dataset.preparation.specification
        if specification["padding"] != 0:
            notes.append("The families of texts take padding for id 0, and the tokeniser does not: they are left out.")
        else:
            families += for_texts(specification["length"], specification["vocabulary_size"], dataset.num_classes)
    elif isinstance(dataset.input_shape, dict):
        names = ", ".join(dataset.input_shape)
        notes.append(f"The hand-made families take one array, and the data has {names}: they are left out.")
        if not families and not own:
            remedy = "Give a Keras model whose channels can be cut, or a family of your own (families={name: build})."
            raise ValueError(error_message("there must be a family for inputs of several arrays", "none", remedy))
    else:
        families += hand_made(dataset.input_shape, dataset.num_classes)
    families += [Own(name, build, dataset.train.inputs, dataset.num_classes) for name, build in own.items()]
    return families, notes


def _prunable(teacher: Teacher, dataset: "Dataset") -> tuple[keras.Model | None, list[str]]:
    """The model that candidates are cut from, if there is one."""
    from keras_distill.specialists import SpecialistEnsemble
    from keras_distill.teachers import Ensemble

    if isinstance(teacher, SpecialistEnsemble):
        model, notes = _prunable(teacher.generalist, dataset)
        return model, ["Of the specialists' ensemble the generalist is cut.", *notes]
    if isinstance(teacher, Ensemble):
        validation = dataset.validation
        scores = [score_of(all_logits(member, validation.inputs), validation.labels) for member in teacher.models]
        best = int(np.argmin(scores))
        model, notes = _prunable(teacher.models[best], dataset)
        said = f"Of the ensemble member {best + 1} is cut, the best of {len(scores)} on validation data."
        return model, [said, *notes]
    if not isinstance(teacher, keras.Model):
        return None, ["The teacher is no Keras model, so nothing is cut from it: hand-made families alone."]
    if not is_readable(teacher):
        return None, ["The teacher is a subclassed model, so nothing is cut from it: hand-made families alone."]
    return teacher, []
