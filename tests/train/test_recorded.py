"""A run's robot that is another than its data's of the same name: said, or refused."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest

from tests.train.toy import NARROW, WIDE, toy_run
from vla.cli import main
from vla.embodiment import Field, Space
from vla.errors import SchemaError
from vla.train.job import assemble
from vla.train.recorded import disagreements

RECIPE = """
from fractions import Fraction
from dataclasses import replace
from tests.train.toy import NARROW, WIDE, toy_run

RUN = toy_run(embodiments=(replace(NARROW, rate_hz=Fraction(5), limits=((-0.5, 0.5),) * 2, horizon=4), WIDE))
"""


def test_a_robot_like_its_data_is_not_mentioned(shards):
    job = assemble(toy_run(), shards, near=shards)
    assert disagreements(job.mixture, (NARROW, WIDE)) == []
    assert not any("robot_differs" in note or "outside_limits" in note for note in job.notes)


def test_rate_limits_and_chunk_are_said_before_training_and_by_check(shards, tmp_path, capsys):
    (tmp_path / "recipe.py").write_text(RECIPE)
    (tmp_path / "toy.yaml").write_text((shards / "toy.yaml").read_text())
    said = []
    assert main(["check", str(tmp_path / "recipe.py"), "--data-root", str(shards)]) == 0
    said.append(capsys.readouterr().out)
    assert "recipe, sound; also 2 warnings, 1 note" in said[0]
    assert main(["train", str(tmp_path / "recipe.py"), "--data-root", str(shards), "--dry-run"]) == 0
    said.append(capsys.readouterr().out)
    for text in said:
        text = " ".join(text.split())
        assert "rate_hz is 5 in the run, so that rows are resampled (a chunk of 4 covers 0.8 s, at the other rate 0.4 s); it is 10" in text
        assert "sent within -0.5..0.5 by the run's limits (what lies beyond is clipped); it is -9..9 in a" in text
        assert "a chunk is 4 commands in the run; it is 3 in a" in text


def test_demonstrations_beyond_the_limits_are_said_before_training(shards):
    near = replace(NARROW, limits=((-9.0, 9.0), (-0.5, 0.5)))
    job = assemble(toy_run(embodiments=(near, WIDE)), shards, near=shards)
    (note,) = [note for note in job.notes if "outside_limits" in note]
    assert "robot 'narrow': outside_limits (warning): position[1] is demonstrated in" in note and "clipped to the run's -0.5..0.5" in note
    at = replace(NARROW, limits=((-1.0, 1.0),) * 2)  # tanh: to the limit, not beyond
    assert not any("outside_limits" in note for note in assemble(toy_run(embodiments=(at, WIDE)), shards, near=shards).notes)


def test_another_frame_of_commands_is_a_warning_and_another_unit_is_refused(shards):
    job = assemble(toy_run(), shards, near=shards)
    steps = Space((Field("position", 2, "m", "step"),))
    (found,) = disagreements(job.mixture, (replace(NARROW, command=steps, action=NARROW.action), WIDE))
    assert found.severity == "warning" and "the command frame of 'position' is step in the run; it is absolute in a" in found.detail
    (found,) = disagreements(job.mixture, (replace(NARROW, action=steps), WIDE))
    assert found.severity == "note" and "learned frame" in found.detail
    angles = Space((Field("position", 2, "rad"),))
    with pytest.raises(SchemaError, match="'narrow'"):
        assemble(toy_run(embodiments=(replace(NARROW, command=angles, action=angles), WIDE)), shards, near=shards)
    assert disagreements(job.mixture, (replace(NARROW, rate_hz=Fraction(20)), WIDE))[0].evidence == {"sources": ["a"]}
