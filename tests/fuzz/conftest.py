"""How long the readers are fuzzed: a moment by default, and with ``--hypothesis-profile long`` for about an hour."""

from hypothesis import HealthCheck, settings

# Milliseconds for one input. Reading is bounded, whatever the input says.
DEADLINE = 5000
COMMON = {
    "deadline": DEADLINE,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    "print_blob": True,
}
# The same inputs in every call, so that CI's result does not depend on luck.
settings.register_profile("short", max_examples=60, derandomize=True, database=None, **COMMON)
settings.register_profile("long", max_examples=60_000, **COMMON)
settings.load_profile("short")
