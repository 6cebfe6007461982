"""Look into a store of soft targets: what is in it, whether it is whole, and what it would cost as another kind.

Every shard is read once and compared with its checksum, about a second per GB. Exit code 1: labelling has not finished,
or a shard is damaged. --upgrade OUT writes a store of an older format anew in today's.
"""

import argparse
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_distill.targets.manifest import Manifest

SUMMARY = "look into a store of soft targets"
# Of the largest logits, and of classes drawn, as other kinds.
_TOP_K, _SAMPLE = 16, 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add = parser.add_argument
    add("path", metavar="STORE", help="the store's folder")
    add("--json", action="store_true", help="print JSON")
    add("--upgrade", metavar="OUT", help="write it anew in today's format, into a new folder")


def run(arguments: argparse.Namespace) -> int:
    """Says what is there."""
    from pathlib import Path

    from rich.console import Console

    from keras_distill._checks import error_message
    from keras_distill.targets.manifest import DamagedShardError, FormatVersionError, Manifest
    from keras_distill.targets.shards import labelled_shards
    from keras_distill.targets.store import SoftTargetStore
    from keras_distill.targets.upgrading import upgrade

    path = Path(arguments.path)
    file = path / "manifest.json"
    if not file.is_file():
        expectation = f"{arguments.path} must be a store, a folder with a manifest.json"
        raise FormatVersionError(error_message(expectation, "none", "Write one with keras-distill label."))
    manifest = Manifest.from_json(file.read_bytes(), file)
    problem = ""
    if manifest.shards is None:
        num_there = len(labelled_shards(path, manifest))
        problem = f"unfinished: {num_there} of {manifest.num_shards} shards. Run the same label again."
    else:
        try:
            SoftTargetStore(path, manifest).verify()
        except DamagedShardError as error:
            problem = str(error)
    console = Console()
    if arguments.json:
        print(json.dumps(described(manifest) | {"problem": problem or None}, indent=1))
    else:
        for line in lines_of(arguments.path, manifest, problem):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    if arguments.upgrade and not problem:
        console.print(f"{upgrade(path, arguments.upgrade)} written", markup=False, highlight=False, soft_wrap=True)
    return 1 if problem else 0


def described(manifest: "Manifest") -> dict[str, Any]:
    """What a manifest says, for programs."""
    return {
        "format": manifest.version,
        "kind": kind_of(manifest),
        "num_items": manifest.num_items,
        "num_views": manifest.num_views,
        "num_classes": manifest.num_classes,
        "example_shape": list(manifest.example_shape),
        "temperature": manifest.only_temperature,
        "augmentation": manifest.augmentation,
        "teacher_fingerprint": manifest.teacher_fingerprint,
        "dataset_fingerprint": manifest.dataset_fingerprint,
        "folds": manifest.folds,
        "runtime": manifest.runtime,
        "num_shards": manifest.num_shards,
        "bytes_an_item": bytes_an_item(manifest),
        "num_bytes": manifest.num_bytes,
        "as_other_kinds": {kind_of(other): bytes_an_item(other) for other in other_kinds(manifest)},
    }


def lines_of(path: str, manifest: "Manifest", problem: str) -> list[str]:
    """The same, and whether the store is whole, for people."""
    from keras_distill.targets.calibration import DIVIDED_BY

    views = "1 view" if manifest.num_views == 1 else f"{manifest.num_views:,} views"
    shape = f" at each of {' × '.join(map(str, manifest.example_shape))} places" if manifest.example_shape else ""
    only = manifest.only_temperature
    serves = "every temperature" if only is None else f"the temperature {only:g} alone"
    teacher, data = (name[:16] or "unknown" for name in (manifest.teacher_fingerprint, manifest.dataset_fingerprint))
    _, is_calibrated, divisor = manifest.teacher_fingerprint.rpartition(DIVIDED_BY)
    teacher += f"{DIVIDED_BY}{divisor}" if is_calibrated else ""
    items = "tokens" if manifest.id_scheme == "token" else "items"
    if manifest.folds:
        how = ", calibrated" if manifest.folds.get("calibrated_on") else ""
        teacher += f", each of {manifest.folds['num_folds']} folds by one that was trained without it{how}"
    teacher += f", answered by {manifest.runtime}" if manifest.runtime else ""
    kinds = [manifest, *other_kinds(manifest)]
    names = [f"{kind_of(kinds[0])} (this one)", *map(kind_of, kinds[1:])]
    width = max(map(len, names))
    return [
        f"{path}: {manifest.num_items:,} {items} of {manifest.num_classes:,} classes{shape}, {views} each, format "
        f"{manifest.version}",
        f"teacher {teacher}, data {data}; serves {serves}",
        f"not whole: {problem}" if problem else f"whole: {manifest.num_shards:,} shards, each with its checksum",
        f"{'kind':{width}}  bytes an item         in all",
        *(
            f"{name:{width}}  {bytes_an_item(kind):13,}  {kind.num_bytes / 1e6:9,.2f} MB"
            for name, kind in zip(names, kinds, strict=True)
        ),
    ]


def kind_of(manifest: "Manifest") -> str:
    """What a row keeps, in words."""
    kept = {
        "dense": "all logits",
        "top_k": f"the {manifest.top_k} largest logits",
        "members": f"{len(manifest.member_weights or ())} members' logits",
        "sampled": f"{manifest.sample} classes drawn",
    }[manifest.kind]
    return kept if manifest.kind == "sampled" else f"{kept}, {manifest.dtype}"


def bytes_an_item(manifest: "Manifest") -> int:
    """Of all its views."""
    return manifest.num_views * manifest.bytes_per_row


def other_kinds(manifest: "Manifest") -> list["Manifest"]:
    """The same items as other rows would keep them."""
    from dataclasses import replace

    plain = replace(
        manifest,
        version=0,
        shards=None,
        kind="dense",
        top_k=None,
        member_weights=None,
        temperature=None,
        sample=None,
        sampling_temperature=None,
        sampling_seed=None,
    )
    top_k, sample = (min(number, manifest.num_classes) for number in (_TOP_K, _SAMPLE))
    kinds = [replace(plain, dtype="float16"), replace(plain, dtype="float32")]
    kinds += [replace(plain, kind="top_k", top_k=top_k, dtype=dtype) for dtype in ("float16", "float32")]
    kinds += [replace(plain, version=0, kind="sampled", sample=sample, sampling_temperature=1.0, sampling_seed=0)]
    return [each for each in kinds if kind_of(each) != kind_of(manifest)]
