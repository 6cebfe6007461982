"""What `keras-distill distill` was told, checked."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DistillSettings:
    """The command's options; see `distill.add_arguments`."""

    teacher: list[str] | None
    store: str | None
    student: str
    data: str
    pixel_range: str | None
    label: str | None
    leave_out: list[str]
    text: str | None
    tokenizer: str | None
    pieces: int
    out: str
    temperature: float
    student_loss_weight: float
    epochs: int | None
    batch_size: int
    learning_rate: float
    early_stopping: int | None
    seed: int
    twin: bool
    tune: bool
    any_teacher: bool
    quantize_aware: bool
    distribute: str | None
    coordinator: str | None
    process: str
    log_dir: str | None
    verbose: bool
    quiet: bool
    overwrite: bool
    modules: list[str]
    trust_code: bool

    def check(self) -> None:
        """Raises `ValueError` where an option is out of its range or does not go with another one."""
        from keras_distill._checks import check_count, check_fraction, check_positive, error_message

        check_positive("--temperature", self.temperature, "Hinton et al. use 1 to 20.")
        check_positive("--learning-rate", self.learning_rate, "Adam is used to 1e-3.")
        check_fraction("--student-loss-weight", self.student_loss_weight)
        if self.epochs is not None:
            check_count("--epochs", self.epochs)
        check_count("--batch-size", self.batch_size)
        if self.early_stopping is not None:
            check_count("--early-stopping", self.early_stopping, remedy="Epochs without a smaller validation loss: 10.")
        if self.early_stopping is not None and self.quantize_aware:
            remedy = "The last epoch freezes the ranges: say how many with --epochs."
            received = "--early-stopping beside it"
            raise ValueError(error_message("--quantize-aware must train all its epochs", received, remedy))
        for option, is_given in {
            "--no-twin": not self.twin,
            "--early-stopping": self.early_stopping is not None,
            "--quantize-aware": self.quantize_aware,
            "--distribute": self.distribute is not None,
            "--log-dir": self.log_dir is not None,
        }.items():
            if self.tune and is_given:
                remedy = "Tune first; then train with what it chose, which OUT.json names."
                raise ValueError(error_message("--tune must be given alone", f"{option} beside it", remedy))
        if self.verbose and self.quiet:
            raise ValueError(
                error_message("at most one of --verbose and --quiet must be given", "both", "Leave one out.")
            )
        for name in ("student", "teacher"):
            files = getattr(self, name) or []
            if self.out in ([files] if isinstance(files, str) else files):
                remedy = "That file is not changed: name another --out."
                raise ValueError(error_message(f"--out must be another file than --{name}", self.out, remedy))
        if self.quantize_aware:
            self._check_for_int8()

    def _check_for_int8(self) -> None:
        import keras

        from keras_distill._checks import error_message

        backend = "jax" if self.distribute == "data-parallel" else keras.config.backend()
        if backend != "tensorflow":
            received = f"{backend} (--distribute {self.distribute})" if self.distribute else backend
            remedy = "Distil in float first, then its student once more, on TensorFlow, with --quantize-aware."
            raise ValueError(error_message("Keras's backend for --quantize-aware must be tensorflow", received, remedy))
