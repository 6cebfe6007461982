"""What the parser says of names that are nearly right."""

import pytest

from keras_distill import __version__
from keras_distill.cli import build_parser, main


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["distil"], "invalid choice: 'distil' (choose from"),
        (["distil"], ". Did you mean distill?\n"),
        (["--vrsion"], "error: there is no option --vrsion. Did you mean --version?\n"),
        (["ship", "--targts", "onnx"], "error: there is no option --targts. Did you mean --targets?\n"),
        (["ship", "--targts=onnx"], "error: there is no option --targts. Did you mean --targets?\n"),
        (["ship", "s.keras", "--targets", "onx"], ". Did you mean onnx?\n"),
        (["label", "--zzz"], "error: there is no option --zzz.\n"),
    ],
)
def test_nearest_name_is_suggested(arguments, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_beginnings_of_options_and_what_follows_two_dashes_stay_as_argparse_has_them():
    arguments = build_parser().parse_args(["ship", "--dat", "digits", "--out", "o", "--", "--odd-name.keras"])
    assert (arguments.data, arguments.student) == ("digits", "--odd-name.keras")


def test_litert_has_its_former_name_too():
    given = ["ship", "s.keras", "--data", "digits", "--out", "o", "--targets", "tflite", "tflite-int8", "onnx"]
    assert build_parser().parse_args(given).targets == ["litert", "litert-int8", "onnx"]


def test_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"keras-distill {__version__}\n"
