from __future__ import annotations

from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler

import pytest

from vla.data.mixture import Mixture
from vla.data.pipeline import Pipeline
from vla.data.shard import DatasetInfo, ShardWriter
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


def test_nonsense_is_refused(folders):
    for bad in ({"batch_size": 0}, {"batch_size": 1, "rank": 2, "world": 2}, {"batch_size": 1, "start_position": -1}):
        with pytest.raises(UserError, match="no batches for"):
            next(open_pipeline(folders).batches(collate=names, **bad))
