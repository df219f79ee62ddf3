"""What Python's collector of cycles looks at while calls are taken.

Place: beside the server, in the processes that are a collector's own: where one runs inside another program, that
program decides.
Invariant: what was loaded before the first call is not looked at again until the process ends, where libraries want
their own back; what calls leave behind is.
"""

from __future__ import annotations

import atexit
import gc


def settle() -> None:
    """Leave what there is out of full rounds: some 60,000 objects, which would hold all calls for 50 ms each time."""
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)
