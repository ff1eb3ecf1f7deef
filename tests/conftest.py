"""What all tests share: how hypothesis runs."""

import os

from hypothesis import HealthCheck, settings

# The machines that run this are shared: how long an example takes says nothing.
settings.register_profile(
    "default", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=100
)
settings.register_profile("ci", settings.get_profile("default"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")
