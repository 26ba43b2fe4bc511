import pytest

pytest.register_assert_rewrite("tests.core.small_runs", "tests.core.data.loaders")
