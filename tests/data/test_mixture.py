from __future__ import annotations

import io

import pytest
from rich.console import Console

from vla.data.mixture import Mixture
from vla.data.shard import DatasetInfo, ShardWriter
from vla.errors import Damaged, SchemaError, UnknownName, UserError

from .episodes import ROBOT, make_episode


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    for name, lengths in (("big", (30, 30, 30, 30)), ("small", (20, 20)), ("third", (10,))):
        with ShardWriter(root / "demo" / name, DatasetInfo(name=name, embodiment=ROBOT.to_json(), licence="MIT")) as writer:
            for i, n in enumerate(lengths):
                writer.add(make_episode(f"e{i}", n, i))
    return root


@pytest.fixture
def load(root, tmp_path):
    def load(text, **others):
        for name, body in others.items():
            (tmp_path / f"{name}.yaml").write_text(body)
        (tmp_path / "mix.yaml").write_text(text)
        return Mixture.load(tmp_path / "mix.yaml", root)

    return load


TWO = "sources: [{path: demo/big, weight: 3, why: most}, {path: demo/small, weight: 1, max_epochs: 2}]"


def shares(mixture):
    return {source.name: source.share for source in mixture.sources}


def test_weights_are_relative(load):
    mixture = load(f"name: two\nval_fraction: 0.1\n{TWO}")
    assert (mixture.name, mixture.val_fraction, shares(mixture)) == ("two", 0.1, {"big": 0.75, "small": 0.25})
    assert mixture.source("small").max_epochs == 2 and mixture.source("big").why == "most"
    with pytest.raises(UnknownName, match=r"source 'huge'\. Choices: big, small"):
        mixture.source("huge")


def test_natural_weights(load):
    mixture = load("sources: [{path: demo/big, weight: steps}, {path: demo/small, weight: steps}]")
    assert shares(mixture) == {"big": 0.75, "small": 0.25}
    with pytest.raises(SchemaError, match="`steps` for every source"):
        load("sources: [{path: demo/big, weight: steps}, {path: demo/small, weight: 2}]")


def test_all_sources_that_are_missing_are_named_at_once(load):
    with pytest.raises(UserError, match=r"source 2 \('oxe/a'\): no folder .* 2 more of its sources are missing: oxe/b, oxe/c\.$"):
        load("sources: [{path: demo/big}, {path: oxe/a}, {path: oxe/b}, {path: demo/small}, {path: oxe/c}]")


def test_published_weights_multiply_the_steps(load):
    rows = "sources: [{path: demo/big, weight: 0.5}, {path: demo/small, weight: 2}, {path: demo/third, weight: 1}]"
    mixture = load(f"weights: per_step\n{rows}")
    steps = {name: mixture.source(name).dataset.anchors for name in ("big", "small", "third")}
    assert steps == {"big": 120, "small": 40, "third": 10}
    assert shares(mixture) == pytest.approx({"big": 60 / 150, "small": 80 / 150, "third": 10 / 150})
    with pytest.raises(SchemaError, match="must be numbers"):
        load("weights: per_step\nsources: [{path: demo/big, weight: steps}, {path: demo/small, weight: steps}]")
    with pytest.raises(UnknownName, match="per_step, shares"):
        load("weights: per_episode\nsources: [{path: demo/big}]")


def test_mixtures_nest(load):
    mixture = load("sources: [{mixture: inner.yaml, weight: 1, why: robots}, {path: demo/third, weight: 3}]", inner=TWO)
    assert shares(mixture) == {"big": 0.25 * 0.75, "small": 0.25 * 0.25, "third": 0.75}
    with pytest.raises(SchemaError, match="outermost"):
        load("sources: [{mixture: inner.yaml}]", inner=f"val_fraction: 0.5\n{TWO}")
    with pytest.raises(SchemaError, match="includes itself"):
        load("sources: [{mixture: mix.yaml}]")
    with pytest.raises(SchemaError, match="'big' stands in it twice"):
        load("sources: [{mixture: inner.yaml}, {path: demo/big}]", inner=TWO)
    assert len(load("sources: [{mixture: inner.yaml}, {path: demo/big, name: again}]", inner=TWO).sources) == 3


def render(mixture, positions=None):
    console = Console(file=io.StringIO(), width=200)
    console.print(mixture.tree(positions))
    return console.file.getvalue()


def test_the_tree_tells_hours_steps_epochs_and_licence(load):
    mixture = load("why: to test\nval_fraction: 0\nsources: [{mixture: inner.yaml, weight: 1}, {path: demo/third, weight: 1}]", inner=TWO)
    text = render(mixture, 20_000)
    for part in ("170 steps", "to test", "50.0%  inner", "37.5%  big", "120 steps", "4 episodes", "MIT", "at most 2 epochs"):
        assert part in text, (part, text)
    # small is used up after 80 draws; from then on the others share its place in proportion.
    assert "2.00 epochs" in text and "71.1" in text.split("big")[1].split("\n")[0]
    assert "2.00 epochs" not in render(mixture)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("sources: []", SchemaError, "at least one source"),
        ("- 1", SchemaError, "must be a mapping"),
        ("sources: [{path: demo/big, wieght: 2}]", UnknownName, "key 'wieght'. Choices: cameras, card, foreign, latents, lerobot"),
        ("surces: []", UnknownName, "key 'surces'"),
        ("sources: [{weight: 2}]", SchemaError, "source 1 needs one of `path`, `name`, `foreign`, `lerobot` or `mixture`"),
        ("sources: [{path: demo/big, weight: 0}]", SchemaError, "must be positive"),
        ("sources: [{path: demo/big, weight: -1}]", SchemaError, "at least 0"),
        ("sources: [{path: demo/big, weight: .nan}]", SchemaError, "weight is nan"),
        ("sources: [{path: demo/big, weight: true}]", SchemaError, "weight is True"),
        ("sources: [{path: demo/big, max_epochs: many}]", SchemaError, "max_epochs is 'many'"),
        ("sources: [{path: demo/big, max_epochs: 0}]", SchemaError, "max_epochs is 0"),
        ("sources: [{path: demo/big, cameras: [top]}]", UnknownName, "camera role 'top'. Choices: front, wrist"),
        ("sources: [{path: demo/bog}]", UserError, "source 1 \\('demo/bog'\\): no folder .* holds demo/big, demo/small, demo/third"),
        ("sources: [{path: demo}]", UserError, "is no dataset"),
        ("sources: [{mixture: none.yaml}]", UserError, "no mixture file .*; there are mix.yaml"),
        ("sources: [{path: demo/big}, {path: demo/big}]", SchemaError, "twice"),
        ("sources: [", SchemaError, "no YAML"),
        ("!!python/object/apply:os.system ['true']", SchemaError, "no YAML"),
    ],
)
def test_mistakes_name_the_place_and_the_choices(load, text, error, message):
    with pytest.raises(error, match=message) as found:
        load(text)
    assert "\n" not in str(found.value) and found.value.exit_code == 2


def test_cameras_left_out_are_written_down(load):
    assert load("sources: [{path: demo/big, cameras: [wrist]}]").sources[0].cameras == ("wrist",)


def test_a_damaged_source_stops_with_its_name(load, root):
    path = root / "demo" / "small" / "shard-00000.tar"
    data = path.read_bytes()
    try:
        path.write_bytes(data[:-1])
        with pytest.raises(Damaged, match=r"source 2 \('demo/small'\): shard-00000\.tar: truncated"):
            load(TWO)
        path.write_bytes(data[:5000] + b"\x00\x01" + data[5002:])
        with pytest.raises(Damaged, match=r"altered.*does not start on damaged data"):
            load(TWO)
    finally:
        path.write_bytes(data)
    load(TWO)


def test_the_data_root_comes_from_the_environment(root, tmp_path, monkeypatch):
    (tmp_path / "m.yaml").write_text(TWO)
    monkeypatch.setenv("VLA_DATA", str(root))
    assert len(Mixture.load(tmp_path / "m.yaml").sources) == 2
    monkeypatch.delenv("VLA_DATA")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="the data root data holds no dataset"):
        Mixture.load(tmp_path / "m.yaml")


def test_a_fingerprint_changes_with_data_and_weights(load, root):
    one, again = load(TWO).fingerprint(), load(TWO).fingerprint()
    assert one == again and one != load(TWO.replace("3", "2")).fingerprint()
    folders = [root / "demo" / "big"]
    assert Mixture.of(folders).fingerprint() != Mixture.of([root / "demo" / "small"]).fingerprint()
    for weight in (0, -1, float("nan")):
        with pytest.raises(UserError, match="must be positive numbers"):
            Mixture.of({folders[0]: weight, root / "demo" / "small": 2})
