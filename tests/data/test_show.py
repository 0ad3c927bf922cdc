"""`vla show`: trees with hours and licences, pictures that show what is there, samples of a batch, recordings."""

from __future__ import annotations

import builtins
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.data.episodes import ROBOT, jpeg, make_episode, make_video
from vla.cli import main
from vla.data.pictures import CHART, LINE, TILE, batch_sheet, motion_plot, spread_episodes
from vla.data.recording import write_recording
from vla.data.shard import Dataset, DatasetInfo, ShardWriter
from vla.errors import UserError
from vla.types import Frames, Observation, Sample, Span


@pytest.fixture
def root(tmp_path):
    for name, licence in (("arms", "CC-BY-4.0"), ("more", "MIT")):
        with ShardWriter(tmp_path / name, DatasetInfo(name=name, embodiment=ROBOT.to_json(), licence=licence)) as writer:
            for i in range(4):
                writer.add(make_episode(f"{name}{i}", 40, i))
    with ShardWriter(tmp_path / "clips", DatasetInfo(name="clips", supervision="none", licence="CC-BY-NC-4.0")) as writer:
        writer.add(make_video("a", 90))
    (tmp_path / "inner.yaml").write_text("name: robots\nwhy: two of them\nsources: [{path: arms, weight: 3}, {path: more, weight: 1}]")
    (tmp_path / "mix.yaml").write_text("name: all\nsources: [{mixture: inner.yaml, weight: 4}, {path: clips, weight: 1, max_epochs: 200}]")
    return tmp_path


def sample(steps=4, valid=4, labelled=True):
    images = {"front": np.full((1, 20, 20, 3), 200, np.uint8), "wrist": np.full((1, 20, 20, 3), 90, np.uint8)}
    action = np.linspace(0, 1, steps)[:, None] * np.ones((1, 2)) if labelled else None
    seen = Observation(images, np.zeros((1, 4)), "open it", "arm")
    return Sample(0, "arms", "e0", 7, seen, action, np.arange(steps) < valid)


def test_a_tree_gives_share_hours_steps_licence_and_epochs(root, capsys):
    assert main(["show", str(root / "mix.yaml"), "--data-root", str(root), "--samples", "800"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "410 steps" in text and "80.0% robots" in text and "two of them" in text
    for want in ("60.0% arms", "20.0% more", "20.0% clips", "CC-BY-4.0", "MIT", "CC-BY-NC-4.0", "16.0 s", "160 steps", "4 episodes"):
        assert want in text, want
    assert "at most 200 epochs" in text and "3.00 epochs" in text and "1.78 epochs" in text  # 480 draws of 160 samples, 160 of 90


def test_states_and_actions_have_a_panel_per_dimension(root, tmp_path):
    dataset = Dataset.open(root / "arms")
    for kind in ("state", "action"):
        figure = motion_plot(dataset, kind, 3)
        titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
        assert titles == ["position[0] (m)", "position[1] (m)", "position[2] (m)", "gripper (open01)"]
        lines = figure.axes[1].get_lines()
        assert len(lines) == 3
        want = dataset.episode(spread_episodes(dataset, 3)[1])
        np.testing.assert_array_equal(lines[1].get_ydata(), getattr(want, kind)[:, 1])
    assert motion_plot(Dataset.open(root / "clips"), "state") is None


def test_all_that_can_be_shown_is_named_for_what_cannot(capsys):
    assert main(["show", "checkpoints/arms-small"]) == 2
    said = "'checkpoint'. Choices: dataset, folder of a run, mixture, recording of a server. `vla check checkpoints/arms-small` knows it."
    assert said in capsys.readouterr().err


def test_a_batch_shows_every_camera_and_the_chunk(root, capsys):
    assert main(["show", str(root / "mix.yaml"), "--data-root", str(root), "--batch", "5", "--out", str(root / "out")]) == 0
    assert "all-batch.png" in capsys.readouterr().out
    sheet = Image.open(root / "out" / "all-batch.png")
    assert sheet.size == (2 * (TILE + 2) + CHART[0] + 4, 5 * (LINE + 4 + TILE + 2))
    assert main(["show", str(root / "mix.yaml"), "--data-root", str(root), "--batch", "-5", "--out", str(root / "out")]) == 2
    assert main(["show", str(root / "arms"), "--episodes", "0", "--out", str(root / "out")]) == 2
    assert "--episodes 0; give at least 1" in capsys.readouterr().err
    assert main(["show", str(root / "arms"), "--batch", "2", "--out", str(root / "out")]) == 0
    assert (root / "out" / "arms-batch.png").is_file() and (root / "out" / "arms-states.png").is_file()


def test_a_drawn_chunk_is_grey_past_the_end_and_says_where_there_is_none():
    whole, ended, none = (np.asarray(batch_sheet([s])) for s in (sample(), sample(valid=2), sample(labelled=False)))
    ink = np.array([0xD1, 0x57, 0x0C])  # of the second dimension, which lies over the first

    def drawn(sheet):
        return int((sheet[:, 2 * (TILE + 2) :] == ink).all(-1).sum())

    assert drawn(whole) > 2 * drawn(ended) > 0 == drawn(none)
    assert (whole[LINE + 20, 10] == 200).all() and (whole[LINE + 20, TILE + 20] == 90).all()


def test_the_listing_of_a_large_dataset_reads_a_part_of_it(root, capsys, monkeypatch):
    monkeypatch.setattr("vla.commands.show.MOST_EPISODES", 2)
    assert main(["show", str(root / "arms"), "--out", str(root / "out"), "--episodes", "1"]) == 0
    assert "in 2 of 4 episodes" in " ".join(capsys.readouterr().out.split())


def test_a_recording_holds_frames_texts_and_numbers(root, capsys):
    """Read back with rerun's own reader where it is installed; where it is not, the extra is named."""
    path = root / "out" / "arms.rrd"
    try:
        import rerun.chunk
    except ImportError:
        assert main(["show", str(root / "arms"), "--rerun", str(path), "--out", str(root / "out")]) == 2
        assert "pip install 'vla[show]'" in capsys.readouterr().err
        return
    assert main(["show", str(root / "arms"), "--rerun", str(path), "--out", str(root / "out"), "--episodes", "2"]) == 0
    store = rerun.chunk.RrdReader(path).store()
    text = str(store.schema())
    for episode in ("arms0", "arms3"):
        for place in ("front", "wrist", "instruction", "state/position", "action/gripper"):
            assert f"Entity path: /{episode}/{place}\n" in text
    assert "arms1" not in text and "EncodedImage:blob" in text
    assert main(["show", str(root / "mix.yaml"), "--data-root", str(root), "--rerun", str(path)]) == 2
    assert "one dataset" in capsys.readouterr().err


def test_texts_are_shown_as_they_are_and_reasoning_with_its_steps(tmp_path, capsys):
    """Brackets in an instruction are no markup: `[the]` was left out, and `[/INST]` ended the command."""
    episodes = [make_episode("plain", 8), make_episode("thinks", 8, 1)]
    said = (Span("the [red] cup is left of it [/think]", 2, 5), Span("close the hand", 5, 8))
    episodes[1] = replace(episodes[1], instructions=(Span("pick [the] cup [/INST]", 0, 8),), reasoning=said)
    with ShardWriter(tmp_path / "d", DatasetInfo(name="d", embodiment=ROBOT.to_json())) as writer:
        for episode in episodes:
            writer.add(episode)
    assert main(["show", str(tmp_path / "d"), "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "pick [the] cup [/INST]" in shown and "reasoning in episode 'thinks'" in shown
    rows = [" ".join(line.replace("│", " ").split()) for line in shown.splitlines()]
    assert "2..5 the [red] cup is left of it [/think]" in rows and "5..8 close the hand" in rows


def test_without_rerun_the_extra_is_named(root, monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.split(".")[0] == "rerun":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UserError, match=r"pip install 'vla\[show\]'"):
        write_recording(Dataset.open(root / "arms"), root / "x.rrd")
    assert not (root / "x.rrd").exists()


def test_a_sheet_of_frames_of_two_sizes_and_a_long_text(tmp_path):
    episode = make_episode("wide", 8)
    frames = {**episode.frames, "front": Frames(np.arange(8), tuple(jpeg(i, 64) for i in range(8)))}
    with ShardWriter(tmp_path / "d", DatasetInfo(name="d", embodiment=ROBOT.to_json())) as writer:
        writer.add(replace(episode, frames=frames, instructions=(replace(episode.instructions[0], text="x" * 900, stop=8),)))
    assert main(["show", str(tmp_path / "d"), "--out", str(tmp_path)]) == 0
    assert Image.open(tmp_path / "d-frames.png").size[0] == 8 * (TILE + 2)
