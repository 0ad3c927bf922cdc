"""What is checked and fitted before the first step."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.train.toy import MODEL, toy_run
from vla.codecs.bins import Bins
from vla.decoders.classes import ParallelClasses
from vla.errors import UserError
from vla.train import job as jobs
from vla.train.job import assemble

QUANTILES = replace(MODEL, decoder=ParallelClasses(codec=Bins(edges=9, spacing="quantile")))
RARE = """
name: rare
why: one robot that hardly comes up
val_fraction: 0.0
sources:
  - {path: a, weight: 0.9999, why: narrow}
  - {path: b, weight: 0.0001, why: wide}
"""


def test_a_codec_is_fitted_on_a_robot_that_hardly_comes_up(shards, tmp_path, monkeypatch):
    (tmp_path / "rare.yaml").write_text(RARE)
    run = toy_run(mixture="rare.yaml", model=QUANTILES)
    seen = []
    monkeypatch.setattr(jobs.Job, "batch", lambda self, rows, batch=jobs.Job.batch: seen.extend(rows) or batch(self, rows))
    job = assemble(run, shards, near=tmp_path)
    assert job.model.decoder.codes.codec.fitted_E.tolist() == [1, 1]
    first, more = seen[:48], seen[48:]
    assert [row.position for row in first] == list(range(48)) and {row.source for row in first} == {"a"}
    assert {row.source for row in more} == {"b"} and len(more) == 24  # an even share of what the run has
    assert [row.position for row in more] == sorted(row.position for row in more)
    job.model(job.batch(more[:4]), jobs.Noise(job.batch(more[:4]).position_B))  # it learns and is not refused
    monkeypatch.setattr(jobs, "FIT_LOOKED_AT", 100)
    with pytest.raises(UserError, match=r"no sample of wide comes up in the first 100 .*'rare': raise the weight"):
        assemble(run, shards, near=tmp_path)
