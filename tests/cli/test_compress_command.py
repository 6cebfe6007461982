"""`keras-distill compress`: what reaches the search, what is said of what it finds, and how it ends."""

import json
import os
import re
import signal
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

from keras_distill import search
from keras_distill.cli import build_parser, main
from keras_distill.cli.config_file import with_config
from keras_distill.deploy import Budgets
from keras_distill.deploy.shipment import Outcome, Shipment
from keras_distill.deploy.usefulness import Usefulness
from keras_distill.report.verdict import compare_models
from keras_distill.search import Compression, Progress, Recipe, Trial
from keras_distill.search.cost import Cost

pytest.importorskip("optuna", reason="Optuna is not installed: pip install keras-distill[tune]")
pytestmark = pytest.mark.tensorflow


def teacher_of(middle, scale):
    """A network that calls an image bright or dark by whether the mean of its pixels is over `middle`."""
    network = keras.Sequential([keras.Input((3, 3, 1)), layers.Flatten(), layers.Dense(2)])
    kernel = np.tile([1.0, -1.0], (9, 1)) * scale / 9
    network.layers[1].set_weights([kernel, np.array([-1.0, 1.0]) * scale * middle])
    return network


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Bright and dark images of nine pixels as an .npz; a teacher of pixels up to 1, another of pixels up to 255."""
    folder = tmp_path_factory.mktemp("compress")
    generator, arrays = np.random.default_rng(0), {}
    for split, num_items in (("train", 80), ("validation", 60), ("test", 40)):
        labels = np.arange(num_items) % 2
        brightness = np.where(labels == 0, 160, 90)[:, None, None, None]
        arrays[f"x_{split}"] = (brightness + generator.integers(-40, 40, (num_items, 3, 3, 1))).astype("uint8")
        arrays[f"y_{split}"] = labels
    np.savez(folder / "data.npz", **arrays)
    teacher_of(125 / 255, 20.0).save(folder / "teacher.keras")
    teacher_of(125.0, 0.1).save(folder / "bytes.keras")
    return folder


def compress(folder, *switches, teacher="teacher.keras", data="data.npz", out="out"):
    data = str(folder / data) if "." in data else data
    return main(["compress", str(folder / teacher), "--data", data, "--out", str(folder / out), *switches])


def found(*, ships):
    """What a search might find: two candidates, and a gate that says yes or no."""
    cost = Cost(num_parameters=1234, multiply_adds=4321, num_bytes=5678, latency_ms=0.0123)
    best = Trial(0, 0, "mlp", {}, "int8", 1.0, 0.5, cost, {8: 0.25}, {8: 0.125}, "finished")
    failed = Trial(1, 0, "pruned", {}, "float32", 1.0, state="failed", reason="the converter died")
    labels = np.arange(40) % 2
    right = 4.0 * np.eye(2)[labels]
    half_wrong = np.where(np.arange(40)[:, None] < 20, right, -right)
    shipment = Shipment(
        outcomes=(Outcome("litert-int8", True, None, [] if ships else ["it takes 5,678 bytes, over 5,000"]),),
        variants=(),
        figures=(),
        usefulness=Usefulness.__new__(Usefulness),
        out=Path("out/bundle") if ships else None,
    )
    return Compression(
        student=keras.Sequential([keras.Input((2,))]),
        quantized=None,
        trial=best,
        recipe=Recipe(2.0, 0.5, 1e-3),
        bundle=shipment.out,
        shipment=shipment,
        verdict=compare_models(labels, right, half_wrong),
        teacher_error=0.0,
        test_errors={"teacher": 0.01, "labels": 0.04, "distilled": 0.03, "student": 0.03, "file": 0.035},
        num_judged=2,
        trials=(best, failed),
        front=(best,),
        cost=6.5,
        seconds=90.0,
        notes=("Nothing is cut from the teacher: it is too small.",),
    )


class Recorder:
    """In place of the search: keeps what it was called with, says one sentence, and finds what it is given."""

    def __init__(self, result, meanwhile=lambda is_stopped: None):
        self.result, self.meanwhile = result, meanwhile

    def __call__(self, teacher, dataset, budgets, out, *, on_progress, is_stopped, **options):
        self.teacher, self.dataset, self.budgets, self.out, self.options = teacher, dataset, budgets, out, options
        on_progress(Progress("candidate 2, mlp in int8: to epoch 8", 1, 4, self.result.trial, 150.0))
        self.meanwhile(is_stopped)
        return self.result


def replaced(monkeypatch, *, ships=True, meanwhile=lambda is_stopped: None):
    recorder = Recorder(found(ships=ships), meanwhile)
    monkeypatch.setattr(search, "compress", recorder)
    return recorder


def test_workers_become_an_engine(folder, monkeypatch):
    recorder = replaced(monkeypatch)
    switches = ("--max-size", "12kB", "--workers", "2", "--pixel-range", "0-255")
    assert compress(folder, *switches, teacher="bytes.keras") == 0
    assert (type(recorder.options["engine"]).__name__, recorder.options["engine"].num_workers) == ("Processes", 2)


def test_every_option_reaches_the_search(folder, monkeypatch):
    recorder = replaced(monkeypatch)
    switches = "--max-latency 200us --max-size 12kB --runtime onnx --precisions int8 --max-accuracy-drop 0.02 "
    switches += "--min-accuracy 0.9 --max-drop-from-teacher 0.03 --trials 5 --minutes 2.5 --epochs 7 --batch-size 16 "
    assert (
        compress(
            folder, *switches.split(), "--seed", "3", "--seeds", "2", "--pixel-range", "0-255", teacher="bytes.keras"
        )
        == 0
    )
    assert recorder.budgets == Budgets(0.02, 12_000, 0.2, 0.9, 0.03)
    assert recorder.out == str(folder / "out")
    assert recorder.options == {
        "runtime": "onnx", "precisions": ["int8"], "num_trials": 5, "minutes": 2.5, "epochs": 7, "batch_size": 16,
        "seeds": 2, "seed": 3, "pixel_range": "0-255", "any_teacher": True, "engine": None,
    }  # fmt: skip
    assert 100 < recorder.dataset.train.inputs.max() <= 255
    answers = np.asarray(recorder.teacher(recorder.dataset.test.inputs)).argmax(-1)
    assert (answers == recorder.dataset.test.labels).all()


def test_what_is_left_out_is_what_the_python_function_has(folder, monkeypatch):
    recorder = replaced(monkeypatch)
    assert compress(folder, "--max-size", "12kB") == 0
    assert recorder.budgets == Budgets(max_size=12_000)
    options = recorder.options
    assert (options["runtime"], options["precisions"]) == ("litert", ["float32", "int8"])
    assert (options["num_trials"], options["minutes"], options["epochs"]) == (16, None, None)


def test_several_teachers_are_averaged_and_litert_has_its_former_name_too(folder, monkeypatch):
    recorder = replaced(monkeypatch)
    another = str(folder / "teacher.keras")
    argv = ["compress", another, another, "--data", str(folder / "data.npz"), "--out", str(folder / "out")]
    assert main([*argv, "--max-size", "12kB", "--runtime", "tflite"]) == 0
    assert len(recorder.teacher.models) == 2
    assert recorder.options["runtime"] == "litert"


def test_what_happens_and_what_was_found_is_said(folder, monkeypatch, capsys):
    replaced(monkeypatch)
    assert compress(folder, "--max-size", "12kB") == 0
    said = capsys.readouterr().out
    progress = "candidate 2, mlp in int8: to epoch 8 (1 of 4 candidates; best: mlp in int8, 12.50 % errors; about 2 min"
    for sentence in (
        progress,
        "Nothing is cut from the teacher: it is too small.",
        "student: mlp in int8, distilled, 1,234 weights, 5,678 bytes, 0.0123 ms",
        "test errors: teacher 1.00 %, labels 4.00 %, distilled 3.00 %; the student 3.00 %, its file 3.50 %",
        "distilling: BETTER: 0.00 % errors against 50.00 %",
        f"2 candidates for 6.5 × one training, 1.5 minutes. {folder / 'out'}: read report.html.",
    ):
        assert sentence in said


def test_quiet_prints_nothing(folder, monkeypatch, capfd):
    replaced(monkeypatch)
    assert compress(folder, "--max-size", "12kB", "--quiet") == 0
    assert capfd.readouterr() == ("", "")


def test_exit_code_is_one_and_the_reason_is_said_where_nothing_ships(folder, monkeypatch, capsys):
    replaced(monkeypatch, ships=False)
    assert compress(folder, "--max-size", "5kB") == 1
    assert "litert-int8 does not hold: it takes 5,678 bytes, over 5,000" in capsys.readouterr().out


def test_the_first_interrupt_finishes_the_best_so_far(folder, monkeypatch, capfd):
    asked = []

    def interrupted(is_stopped):
        asked.append(is_stopped())
        os.kill(os.getpid(), signal.SIGINT)
        asked.append(is_stopped())

    replaced(monkeypatch, meanwhile=interrupted)
    before = signal.getsignal(signal.SIGINT)
    assert compress(folder, "--max-size", "12kB") == 0
    assert asked == [False, True]
    said = capfd.readouterr()
    assert "press it again to end at once" in said.err
    assert "student: mlp in int8" in said.out
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_interrupt_ends_the_command(folder, monkeypatch, capsys):
    def interrupted(is_stopped):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    replaced(monkeypatch, meanwhile=interrupted)
    assert compress(folder, "--max-size", "12kB") == 130
    said = capsys.readouterr()
    assert "Run the same command again." in said.err
    assert "student:" not in said.out


@pytest.mark.parametrize(
    ("switches", "changes", "said"),
    [
        ([], {}, r"there must be a budget; got none\. Give --max-latency 0\.1ms, --max-size 60kB or both\."),
        (["--max-size", "12 stone"], {}, r"--max-size must be a number > 0 and a unit \(B, kB, .*got '12 stone'"),
        (["--max-size", "12kB"], {"data": "digitz"}, r"got 'digitz'.*Did you mean digits\?"),
        (["--max-size", "12kB"], {"teacher": "none.keras"}, "none.keras"),
        (["--max-size", "12kB"], {"data": "digits"}, r"\(3, 3, 1\)"),
        (["--max-size", "12kB"], {"teacher": "bytes.keras"}, r"the teacher \S+bytes.keras must know .* add "
            r"--pixel-range 0-255\."),
        (["--max-size", "12kB", "--min-accuracy", "90"], {}, "--min-accuracy must be"),
        (["--max-size", "12kB", "--trials", "0"], {}, "--trials must be >= 1; got 0"),
        (["--max-size", "10", "--precisions", "float32", "--epochs", "1"], {}, r"the budget must be one that some "
            r"candidate can hold; got 10 bytes\. The nearest is the narrowest mlp in float32, which takes \d,?\d+ b"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(folder, tmp_path, capsys, switches, changes, said):
    assert compress(folder, *switches, out=tmp_path / "out", **changes) == 2
    error = capsys.readouterr().err
    assert re.search(said, error), error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["compres"], ". Did you mean compress?\n"),
        (["compress", "--max-sise", "9kB"], "error: there is no option --max-sise. Did you mean --max-size?\n"),
        (["compress", "t", "--data", "d", "--out", "o", "--runtime", "litrt"], ". Did you mean litert?\n"),
    ],
)
def test_nearest_name_is_suggested(arguments, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_options_are_read_from_a_file(tmp_path):
    file = tmp_path / "compress.toml"
    file.write_text(
        'data = "digits"\nout = "small"\nmax-size = "12kB"\nprecisions = ["int8"]\ntrials = 4\nquiet = true\n'
    )
    parser = build_parser()
    argv = with_config(["compress", "t.keras", "--config", str(file), "--trials", "8"], parser)
    parsed = parser.parse_args(argv)
    assert (parsed.teacher, parsed.data, parsed.max_size) == (["t.keras"], "digits", "12kB")
    assert (parsed.precisions, parsed.trials, parsed.quiet) == (["int8"], 8, True)


def test_a_folder_of_somebody_elses_is_refused(folder, tmp_path, capsys):
    (tmp_path / "student.keras").write_bytes(b"of months ago")
    assert compress(folder, "--max-size", "12kB", out=tmp_path) == 2
    error = capsys.readouterr().err
    assert "must be new or hold a search; got student.keras of another's. Name another folder." in error
    assert (tmp_path / "student.keras").read_bytes() == b"of months ago"


@pytest.mark.slow
def test_on_digits_from_a_budget_to_a_bundle_that_holds_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["new", "teacher.keras", "--like", "convnet", "--data", "digits", "--epochs", "12"]) == 0
    argv = ["compress", "teacher.keras", "--data", "digits", "--max-size", "12kB", "--out", "small"]
    argv += ["--trials", "1", "--epochs", "20", "--precisions", "float32"]
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert {"student.keras", "bundle", "report.html", "compression.json", "study.db"} <= set(os.listdir("small"))
    manifest = json.loads(Path("small/bundle/manifest.json").read_text())
    (artifact,) = manifest["artifacts"].values()
    assert (tmp_path / "small/bundle" / artifact["file"]).stat().st_size <= 12_000
    record = json.loads(Path("small/compression.json").read_text())
    assert record["shipped"]
    assert f"the student {100 * record['test_errors']['student']:.2f} %" in said
    # Every field that a reader finds is in the documentation.
    page = (Path(__file__).parents[2] / "docs/compress.md").read_text()
    named = {*record, *record["student"], *record["trials"][0], *record["trials"][0]["cost"]}
    assert {name for name in named if f"`{name}`" not in page} == set()
    # The same command again trains nothing: it judges what is there.
    began = [trial["scores"] for trial in record["trials"]]
    assert main(argv) == 0
    assert [trial["scores"] for trial in json.loads(Path("small/compression.json").read_text())["trials"]] == began
    assert "to epoch" not in capsys.readouterr().out
