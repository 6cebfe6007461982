"""How many cases hypothesis tries: few and always the same in CI, many and new ones in `make reliability`."""

import os

from hypothesis import HealthCheck, Phase, settings

# A first call may trace or compile; what is slow is the machine and never the case. Cases are small as they are
# drawn: to shrink one further may take minutes.
_COMMON = {
    "deadline": None,
    "database": None,
    "suppress_health_check": [HealthCheck.too_slow],
    "phases": [Phase.explicit, Phase.generate],
}
settings.register_profile("ci", max_examples=20, derandomize=True, **_COMMON)
settings.register_profile("few", max_examples=5, derandomize=True, **_COMMON)
settings.register_profile("more", max_examples=100, derandomize=False, print_blob=True, **_COMMON)
settings.register_profile("long", max_examples=1000, derandomize=False, print_blob=True, **_COMMON)
settings.load_profile(os.environ.get("KERAS_DISTILL_HYPOTHESIS", "ci"))
