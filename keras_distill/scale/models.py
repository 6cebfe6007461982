"""`make_models`: many models made by workers, each saved whole, those that are there left as they are."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import keras

from keras_distill._files import folder_aside, whole_file
from keras_distill._progress import progress_bar
from keras_distill.scale.engine import Engine, Job
from keras_distill.scale.engines import engine_of


def make_models(
    make: Callable[[int], keras.Model],
    paths: Sequence[str | os.PathLike],
    *,
    engine: Engine | str = "local",
    progress: bool | None = None,
) -> list[Path]:
    """Makes one model a path, the members of an ensemble for example, a task each.

    A run that was killed goes on when called again: what is saved stays. A path appears whole or not at all.

    Args:
        make: from a position in `paths` to the model; called in a worker. It must seed what it draws by the position
            alone, so that every engine makes the same models.
        paths: `.keras` files; with engines past this machine, on a disk that all share.
        engine: `"local"`, `"ray"`, or an engine of `keras_distill.scale`.
        progress: show a progress bar; `None` does where standard error is a terminal.

    Returns:
        The paths.

    Raises:
        WorkersLostError: workers died at the same model again and again.
        Exception: what `make` raised.

    Example:
        >>> import tempfile
        >>> from keras_distill.data.networks import mlp
        >>> from keras_distill.scale import Processes
        >>> def member(position):
        ...     keras.utils.set_random_seed(position)
        ...     return mlp((4,), 2, (3,))
        >>> folder = Path(tempfile.mkdtemp())
        >>> made = make_models(member, [folder / "a.keras", folder / "b.keras"], engine=Processes(1))
        >>> [path.name for path in made]
        ['a.keras', 'b.keras']
    """
    files = [Path(path).absolute() for path in paths]
    missing = [position for position, file in enumerate(files) if not file.exists()]
    with ExitStack() as stack:
        # An error in one worker ends the others in the midst of their work, and what they began goes with these.
        parents = {files[position].parent for position in missing}
        asides = {parent: stack.enter_context(folder_aside(parent)) for parent in parents}
        advance = stack.enter_context(progress_bar("models", len(files), progress, num_done=len(files) - len(missing)))
        for _ in engine_of(engine).run(Job(_opened, (make, files, asides)), missing):
            advance(1)
    return files


def _opened(
    make: Callable[[int], keras.Model], files: list[Path], asides: Mapping[Path, Path]
) -> Callable[[int], None]:
    def work(position: int) -> None:
        model = make(position)
        with whole_file(files[position], within=asides[files[position].parent]) as aside:
            model.save(aside)

    return work
