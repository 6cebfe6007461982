"""What is tried as the oldest pair is what pyproject.toml allows."""

import tomllib

import versions


def test_the_oldest_pair_is_the_lower_bounds_of_the_project():
    project = tomllib.loads((versions.ROOT / "pyproject.toml").read_text())["project"]
    (keras,) = [text for text in project["dependencies"] if text.startswith("keras")]
    (tensorflow,) = [text for text in project["dependencies"] if text.startswith("tensorflow>")]
    bounds = versions.lower_bounds()
    assert keras.startswith(f"keras>={bounds['keras']}")
    assert tensorflow.startswith(f"tensorflow>={bounds['tensorflow']}")
    wanted = [part.format(**bounds) for part in versions.PAIRS["oldest"]]
    assert wanted == [f"tensorflow=={bounds['tensorflow']}.*", f"keras=={bounds['keras']}.*"]
