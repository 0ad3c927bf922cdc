"""What is checked and fitted before the first step."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.train.toy import MODEL, toy_run
from vla.codecs.bins import Bins
from vla.data.reader import Dataset
from vla.data.shard import ShardWriter
from vla.decoders.classes import ParallelClasses
from vla.decoders.dit import DiT
from vla.decoders.reasoning import ReasonThenAct
from vla.errors import UserError
from vla.train import job as jobs
from vla.train.job import assemble
from vla.train.loop import train
from vla.types import Span

QUANTILES = replace(MODEL, decoder=ParallelClasses(codec=Bins(edges=9, spacing="quantile")))
REASONS = replace(MODEL, decoder=ReasonThenAct(DiT(evaluations=2), length=8))
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


def test_what_is_said_before_acting_comes_from_the_data_or_the_run_is_refused(shards, tmp_path):
    run = toy_run(model=REASONS, validate_every=0)
    with pytest.raises(
        UserError, match=r"'toy': its decoder learns to say reasoning .* no source has any. Name its column in a source's card"
    ):
        train(run, tmp_path / "silent", data_root=shards, near=shards)
    assert not (tmp_path / "silent" / "checkpoints").exists()
    spoken = Dataset.open(shards / "a")
    with ShardWriter(tmp_path / "a", spoken.info) as writer:
        for index in range(len(spoken)):
            writer.add(replace(spoken.read(index), reasoning=(Span("near", 2, 6), Span("there", 6, 10))))
    for name in ("b", "c"):
        (tmp_path / name).symlink_to(shards / name)
    (tmp_path / "toy.yaml").write_text((shards / "toy.yaml").read_text())
    job = assemble(run, tmp_path, near=tmp_path)
    assert "note: no reasoning in b, c: the decoder learns to say nothing there" in job.notes
    rows = job.train.samples(range(48))
    said = [("" if row.step < 2 else "near" if row.step < 6 else "there") if row.source == "a" else "" for row in rows]
    assert [row.reasoning for row in rows] == said and {*said} == {"", "near", "there"}
    folder = train(run, tmp_path / "run", data_root=tmp_path, near=tmp_path)
    log = (tmp_path / "run" / "log.jsonl").read_text()
    assert folder is not None and '"text"' in log
