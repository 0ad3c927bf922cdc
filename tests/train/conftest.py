from __future__ import annotations

import pytest

from tests.train.toy import write_shards


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """A data root with the toy datasets and `toy.yaml`."""
    return write_shards(tmp_path_factory.mktemp("shards"))
