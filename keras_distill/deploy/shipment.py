"""What `ship` was told and what it found."""

from dataclasses import dataclass, field
from pathlib import Path

from keras_distill.deploy.card import Figures
from keras_distill.deploy.quantize import Variant
from keras_distill.deploy.usefulness import Usefulness
from keras_distill.report.verdict import Verdict


@dataclass
class Outcome:
    """What became of one target.

    Attributes:
        target: its name.
        required: whether the bundle depends on it.
        variant: the artifact that ships; `None` where none does.
        reasons: why it does not ship.
    """

    target: str
    required: bool
    variant: Variant | None = None
    reasons: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether the artifact ships."""
        return self.variant is not None and not self.reasons


@dataclass(frozen=True)
class Shipment:
    """What `ship` found.

    Attributes:
        outcomes: one a target.
        variants: everything that was made, shipped or not.
        figures: accuracy, calibration, size and latency of every model, side by side.
        usefulness: whether the student is worth shipping.
        out: the bundle; `None` where a required target does not hold and there is none.
    """

    outcomes: tuple[Outcome, ...]
    variants: tuple[Variant, ...]
    figures: tuple[Figures, ...]
    usefulness: Usefulness
    out: Path | None


@dataclass(frozen=True)
class Provenance:
    """Where the student comes from, for the manifest, the artifacts and the card.

    Attributes:
        name: the student's name.
        source: the student's file.
        source_sha256: its checksum.
        licence: the licence of the student, in words; `None` where nobody said.
        preprocessing: what happens to an example before the student sees it; `None` describes the data's own values.
        verdict: what the run that distilled the student found; `None` where there was none.
        pixel_range: what `keras_distill.data.load` brought the data into; `None` leaves them as they were read.
    """

    name: str
    source: str | None = None
    source_sha256: str | None = None
    licence: str | None = None
    preprocessing: str | None = None
    verdict: Verdict | None = None
    pixel_range: str | None = None
