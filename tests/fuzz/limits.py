"""How much memory a coverage-guided search may take."""

from __future__ import annotations

import resource

OWN_MB = 2048
"""What a search may take itself."""


def memory_limit() -> str:
    """The option that limits a search started from this process.

    It is held against the process's peak, which on Linux begins with that of whoever started it: a search behind a test
    worker that once had more than the limit would end at once.
    """
    ours_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return f"-rss_limit_mb={ours_mb + OWN_MB}"
