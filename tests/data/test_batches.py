from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import time
from dataclasses import dataclass
from functools import partial
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest

from vla.data.memory import stacked
from vla.data.mixture import Mixture
from vla.data.pipeline import Pipeline
from vla.data.shard import DatasetInfo, ShardWriter
from vla.data.workers import LoaderFailed
from vla.errors import Damaged, UserError

from .episodes import ROBOT, make_episode
from .test_pipeline import spoil


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("batches")
    for name, count in (("one", 3), ("two", 2)):
        with ShardWriter(root / name, DatasetInfo(name=name, embodiment=ROBOT.to_json())) as writer:
            for i in range(count):
                writer.add(make_episode(f"e{i}", 20 + i, i))
    return root


def open_pipeline(root, **options):
    mixture = Mixture.of({root / "one": 3.0, root / "two": 1.0}, val_fraction=0.0)
    return Pipeline(mixture, {"arm": ROBOT}, seed=4, block=40, **options)


def names(samples):
    return [(s.position, s.source, s.episode, s.step, s.action_TA.tobytes()) for s in samples]


def rows(pipeline, **options):
    """Everything handed out, flat, with positions checked against the samples."""
    out = []
    for positions, batch in pipeline.batches(collate=names, **options):
        assert positions.tolist() == [row[0] for row in batch]
        out += batch
    return out


def test_workers_and_threads_change_nothing(folders):
    want = rows(open_pipeline(folders), batch_size=8, count=30, prefetch=0)
    assert [row[0] for row in want] == list(range(240))
    assert rows(open_pipeline(folders), batch_size=8, count=30, prefetch=3) == want
    for workers in (1, 2):
        assert rows(open_pipeline(folders), batch_size=8, count=30, workers=workers) == want


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_every_world_size_sees_every_position_once(folders, world):
    want = rows(open_pipeline(folders), batch_size=24, count=5, prefetch=0)
    parts = [rows(open_pipeline(folders), batch_size=24 // world, count=5, rank=r, world=world, prefetch=0) for r in range(world)]
    assert sorted(row for part in parts for row in part) == sorted(want)
    # Global batch g is the same set of positions, whatever the world size.
    size = 24 // world
    for g in range(5):
        assert sorted(row[0] for part in parts for row in part[g * size : (g + 1) * size]) == list(range(g * 24, g * 24 + 24))


def test_resuming_elsewhere_loses_and_repeats_nothing(folders):
    want = rows(open_pipeline(folders), batch_size=12, count=10, prefetch=0)
    first = [rows(open_pipeline(folders), batch_size=6, count=4, rank=r, world=2) for r in (0, 1)]
    rest = [rows(open_pipeline(folders), start_position=48, batch_size=4, count=6, rank=r, world=3) for r in (0, 1, 2)]
    assert sorted(row for part in (*first, *rest) for row in part) == sorted(want)


def test_a_finite_order_ends_with_whole_batches(folders):
    pipeline = open_pipeline(folders)
    capped = Mixture.of([folders / "one"], val_fraction=0.0)
    source = capped.sources[0]
    capped = Mixture("capped", (type(source)(source.name, source.dataset, 1.0, max_epochs=2),), 0.0)
    pipeline = Pipeline(capped, {"arm": ROBOT}, seed=4)
    assert pipeline.order.length == 2 * (20 + 21 + 22)
    assert len(rows(pipeline, batch_size=25)) == 125
    assert rows(pipeline, batch_size=25, start_position=126) == []
    assert len(rows(pipeline, batch_size=25, start_position=50, count=100)) == 75


@pytest.mark.parametrize("workers", [0, 1])
def test_the_ledger_holds_what_was_handed_out_and_no_more(folders, workers):
    ledger = []
    pipeline = open_pipeline(folders, ledger=lambda *row: ledger.append(row))
    batches = pipeline.batches(batch_size=5, collate=names, workers=workers)
    handed = [row for _ in range(3) for row in next(batches)[1]]
    batches.close()
    assert ledger == [row[:4] for row in handed]


@dataclass
class Broken(UserError):
    position: int = 0


def test_errors_reach_the_consumer(folders):
    def collate(samples):
        if samples[0].position >= 20:
            raise Broken("collate failed")
        return samples

    for options in ({"prefetch": 0}, {"prefetch": 2}):
        batches = open_pipeline(folders).batches(batch_size=10, collate=collate, **options)
        assert [next(batches)[0][0], next(batches)[0][0]] == [0, 10]
        with pytest.raises(Broken, match="collate failed"):
            next(batches)
    batches = open_pipeline(folders).batches(batch_size=10, collate=collate, workers=1)
    with pytest.raises(UserError, match=r"^collate failed$"):
        list(batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_samples_are_counted_at_home_and_stop_the_run(tmp_path, workers):
    with ShardWriter(tmp_path / "one", DatasetInfo(name="one", embodiment=ROBOT.to_json())) as writer:
        for i in range(4):
            writer.add(make_episode(f"e{i}", 20, i))
    spoil(tmp_path / "one", "e1", "front", range(20))
    mixture = Mixture.of([tmp_path / "one"], val_fraction=0.0)
    pipeline = Pipeline(mixture, {"arm": ROBOT}, max_bad_rate=0.05)
    with pytest.raises(Damaged, match=r"more than the allowed 5\.00%"):
        list(pipeline.batches(batch_size=8, count=100, collate=names, workers=workers))
    assert pipeline.quarantine.bad > 10 and pipeline.quarantine.records[0].episode == "e1"
    lenient = Pipeline(mixture, {"arm": ROBOT}, max_bad_rate=0.5)
    handed = rows(lenient, batch_size=8, count=10, workers=workers)
    assert len(handed) == 80 and {row[2] for row in handed} == {"e0", "e2", "e3"}
    assert lenient.quarantine.tried == 80 + lenient.quarantine.bad > 90


def test_a_pipeline_goes_to_a_spawned_process(folders):
    pipeline = open_pipeline(folders)
    pipeline.samples(range(50))
    sent = ForkingPickler.dumps(pipeline)
    assert len(sent) < 50_000  # datasets are opened again there; no frames travel
    arrived = ForkingPickler.loads(sent)
    assert names(arrived.samples(range(40, 60))) == names(pipeline.samples(range(40, 60)))


def _note(ledger, *row):
    ledger.append(row)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_and_workers_give_one_global_sequence(folders, world):
    """The ledger holds each position once, with the same sample, for 0, 1, 2 and 8 workers."""
    want = [row[:4] for row in rows(open_pipeline(folders), batch_size=12, count=8, prefetch=0)]
    for workers in (0, 1, 2, 8) if world < 3 else (0, 2):
        ledger: list[tuple] = []
        for rank in range(world):
            pipeline = open_pipeline(folders, ledger=partial(_note, ledger))
            rows(pipeline, batch_size=12 // world, count=8, rank=rank, world=world, workers=workers)
        assert len(ledger) == 96 and sorted(ledger) == want


def images(samples):
    """What a backbone does, but for the model: images joined, numbers as tensors."""
    import torch

    front = stacked([sample.observation.images["front"] for sample in samples])
    return {"front": torch.from_numpy(front), "position": np.array([sample.position for sample in samples]), "rest": "text"}


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_stay_what_they_were_while_they_are_held(folders, workers):
    """Memory is used again only once nothing refers to it: all batches are kept, and compared at the end."""
    pipeline = open_pipeline(folders, cache_bytes=0)
    held = [batch for _, batch in pipeline.batches(batch_size=6, count=20, collate=images, workers=workers)]
    plain = open_pipeline(folders)
    for number, batch in enumerate(held):
        assert batch["position"].tolist() == list(range(number * 6, number * 6 + 6)) and batch["rest"] == "text"
        want = np.stack([sample.observation.images["front"] for sample in plain.samples(batch["position"])])
        np.testing.assert_array_equal(batch["front"].numpy(), want)


def test_memory_is_used_again(folders):
    pipeline = open_pipeline(folders, cache_bytes=0)
    places = [batch["front"].data_ptr() for _, batch in pipeline.batches(batch_size=6, count=20, collate=images, workers=1)]
    assert len(set(places)) <= 6


def test_a_collate_that_joins_images_copies_none(folders):
    seen = []

    def collate(samples):
        roles = [[sample.observation.images[role] for sample in samples] for role in ("front", "wrist")]
        joined = [stacked(role) for role in roles]
        seen.append([np.shares_memory(batch, role[0]) for batch, role in zip(joined, roles, strict=True)])
        for batch, role in zip(joined, roles, strict=True):
            np.testing.assert_array_equal(batch, np.stack(role))
        return len(samples)

    assert [n for _, n in open_pipeline(folders, cache_bytes=0).batches(batch_size=6, count=4, collate=collate)] == [6] * 4
    assert seen == [[True, True]] * 4
    one, two = np.zeros((2, 3)), np.ones((2, 3))
    np.testing.assert_array_equal(stacked([one, two]), np.stack([one, two]))


def die(how, at):
    def collate(samples):
        if samples[0].position >= at:
            if how == "hang":
                time.sleep(600)
            faulthandler.disable()  # the crash is meant: no stack of it in the log of the tests
            os.kill(os.getpid(), how)
        return len(samples)

    return collate


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (signal.SIGKILL, r"was killed \(out of memory\?\)"),
        (signal.SIGSEGV, "crashed with SIGSEGV"),
        pytest.param("hang", "gave nothing for 5 s", marks=pytest.mark.thorough),
    ],
)
def test_a_loader_process_that_dies_or_hangs_is_named_with_its_sample(folders, how, says):
    pipeline = open_pipeline(folders)
    batches = pipeline.batches(batch_size=5, collate=die(how, 15), workers=2, timeout_s=5.0)
    assert [next(batches)[1] for _ in range(3)] == [5, 5, 5]
    with pytest.raises(
        LoaderFailed, match=f"loader process 1 of 2 {says}.* at position 19: source '(one|two)', shard-00000, episode 'e"
    ) as error:
        next(batches)
    assert error.value.exit_code == 1
    children = multiprocessing.active_children()
    assert not [child for child in children if child.name.startswith("vla-loader")]


def test_a_mistake_in_a_loader_process_shows_its_traceback_once(folders, capfd):
    def collate(samples):
        return 1 / (samples[0].position - 5)

    with pytest.raises(LoaderFailed, match="ended with exit code 1 .its traceback is above. at position 9"):
        list(open_pipeline(folders).batches(batch_size=5, count=3, collate=collate, workers=1))
    assert capfd.readouterr().err.count("ZeroDivisionError") == 1


def test_nonsense_is_refused(folders):
    for bad in ({"batch_size": 0}, {"batch_size": 1, "rank": 2, "world": 2}, {"batch_size": 1, "start_position": -1}):
        with pytest.raises(UserError, match="no batches for"):
            next(open_pipeline(folders).batches(collate=names, **bad))
