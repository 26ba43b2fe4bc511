import os

import pytest

pytest.register_assert_rewrite("tests.core.small_runs", "tests.core.data.loaders")

# What is written is there for everybody who reads it; only a power cut, which no test brings about, asks for more. The
# disk would be waited for longer than most runs of tests compute. A descriptor that is not open is refused as before.
os.fsync = os.fstat  # type: ignore[assignment]
