"""What `keras-distill prune` was told, checked."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PruneSettings:
    """The command's options; see `prune.add_arguments`."""

    teacher: str
    keep: float
    multiple_of: int
    drop_every_second_block: bool
    drop_blocks: list[str]
    input_scale: float
    importance: str
    data: str
    pixel_range: str | None
    label: str | None
    leave_out: list[str]
    text: str | None
    tokenizer: str | None
    pieces: int
    out: str
    overwrite: bool
    quiet: bool
    modules: list[str]
    trust_code: bool

    def check(self) -> None:
        """Raises `ValueError` where an option is out of its range or nothing is to be cut."""
        from keras_distill._checks import check_count, check_number, error_message

        for name, share in (("--keep", self.keep), ("--input-scale", self.input_scale)):
            if not 0.0 < check_number(name, share) <= 1.0:
                raise ValueError(error_message(f"{name} must be in (0, 1]", share, "0.25 keeps a quarter."))
        check_count("--multiple-of", self.multiple_of)
        if self.keep == self.input_scale == 1.0 and not self.drop_blocks and not self.drop_every_second_block:
            remedy = "Say --keep 0.25, --drop-every-second-block or --input-scale 0.5."
            raise ValueError(error_message("prune must be told what to cut", "nothing", remedy))
        if self.importance in ("activations", "taylor") and not self.data:
            remedy = "Name the data that the teacher was trained on, or leave --importance out."
            raise ValueError(error_message(f"--importance {self.importance} needs --data", "none", remedy))
