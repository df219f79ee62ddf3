"""What holds for all property tests, whichever of them are run."""

from __future__ import annotations

from hypothesis import settings


def test_no_example_is_timed() -> None:
    """Guarantee: no deadline, also where these tests are run without those of the contract.

    Seen to fail: with Hypothesis' own default, 200 ms of wall time, the replay tests failed on a busy machine.
    """
    assert settings().deadline is None
    assert settings.get_profile("default").deadline is not None
