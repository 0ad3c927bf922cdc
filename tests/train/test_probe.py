"""The grounding probe: it tells a policy that listens from one that looks at the images alone."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest
import simplejpeg

from tests.train.toy import NARROW, toy_run
from vla.data.mixture import Mixture
from vla.data.shard import DatasetInfo, ShardWriter
from vla.train.log import Watch
from vla.train.loop import train
from vla.train.optim import AdamW, Cosine
from vla.train.probe import shuffled
from vla.train.progress import Bar
from vla.types import Episode, Frames, Span

WORDS = ("left", "right", "up")


def write(folder, told: bool) -> Mixture:
    """Episodes in which one of three things is done. It stands in the instruction alone (`told`), or shows in the image alone."""
    with ShardWriter(folder, DatasetInfo(name=folder.name, embodiment=NARROW.to_json(), supervision="actions")) as writer:
        for number in range(30):
            rng = np.random.default_rng(number)
            meant, shown = number % 3, number // 3 % 3
            what = meant if told else shown
            image = np.full((16, 16, 3), 40 + 80 * shown, dtype=np.uint8) + rng.integers(0, 9, (16, 16, 3), dtype=np.uint8)
            action = np.tile([what - 1.0, 1.0 - what], (8, 1)) + rng.normal(scale=0.02, size=(8, 2))
            writer.add(
                Episode(
                    id=f"e{number}",
                    embodiment="narrow",
                    rate_hz=Fraction(10),
                    supervision="actions",
                    instructions=(Span(WORDS[meant], 0, 8),),
                    time_s=np.arange(8) / 10,
                    frames={"front": Frames(np.arange(8), tuple(simplejpeg.encode_jpeg(image) for _ in range(8)))},
                    state=rng.normal(size=(8, 2)),
                    action=action,
                )
            )
    return Mixture.of([folder], val_fraction=0.3, name=folder.name)


@pytest.mark.thorough
@pytest.mark.parametrize("told", [True, False])
def test_only_who_listens_is_disturbed_by_other_instructions(tmp_path, told, capsys):
    run = toy_run(mixture=write(tmp_path / "data", told), embodiments=(NARROW,), steps=120, batch_size=24, log_every=60)
    run = toy_run(**{**vars(run), "optim": AdamW(lr=5e-3), "schedule": Cosine(warmup_steps=5), "val_batches": 2})
    watch: Watch = Bar()
    result = train(run, tmp_path / "run", watch=watch)
    probe = result.validation["probe"]
    row = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-2])
    assert row["kind"] == "validation" and row["probe"] == probe and probe["changed"] == 1.0
    said = capsys.readouterr().out
    if told:
        assert probe["rise"] > 1.0 and probe["blank"] > 1.5 * row["loss"]
    else:
        assert abs(probe["rise"]) < 0.25
    assert "with shuffled instructions" in said


def test_the_probe_changes_no_step_and_can_be_left_out(shards, tmp_path):
    losses = {}
    for probe in (True, False):
        train(toy_run(probe=probe, validate_every=3), tmp_path / str(probe), data_root=shards, near=shards)
        rows = [json.loads(line) for line in (tmp_path / str(probe) / "log.jsonl").read_text().splitlines()]
        losses[probe] = [row["loss"] for row in rows if row["kind"] in ("train", "validation")]
        assert all(("probe" in row) == probe for row in rows if row["kind"] == "validation")
    assert losses[True] == losses[False]


def test_shuffling_gives_each_another_text_where_there_is_one():
    assert shuffled(["a", "a", "b"]) == ["b", "b", "a"]
    assert shuffled(["a", "b", "c"]) == ["b", "c", "a"]
    assert shuffled(["a", "a"]) == ["a", "a"]
