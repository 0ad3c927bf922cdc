"""Configurations walk to JSON and back; third parties bring kinds by plug-in, never through a file that is merely loaded."""

from __future__ import annotations

import pytest

from tests.parts import DECODERS, SOURCES, TINY, contents, samples
from vla.backbones.tiny import Tiny
from vla.config import KINDS, find_kind, from_json, load_plugin, to_json
from vla.errors import UnknownName, UserError
from vla.model import Model
from vla.noise import Noise

PLUGIN = '''
from dataclasses import dataclass
from typing import ClassVar
from vla.decoders.parallel import ParallelDecoder, Parallel

@dataclass(frozen=True)
class Louder:
    kind: ClassVar[str] = "decoder.louder_{tag}"
    gain: float = 2.0

    def build(self, width, roster):
        return LouderDecoder(self.gain, width, roster)

class LouderDecoder(ParallelDecoder):
    """Outside the package: parallel decoding, louder."""

    def __init__(self, gain, width, roster):
        super().__init__(Parallel(), width, roster)
        self.gain = gain

    def _predict(self, backbone, prefix, like):
        return super()._predict(backbone, prefix, like) * self.gain
'''


@pytest.mark.parametrize("name", DECODERS)
def test_json_round_trip(name):
    config = Model(TINY, DECODERS[name])
    assert from_json(to_json(config)) == config


@pytest.mark.parametrize("kind", KINDS)
def test_every_listed_kind_exists_and_says_so(kind):
    assert find_kind(kind).kind == kind


def test_a_setting_that_a_file_is_older_than_means_what_it_did():
    written = to_json(Tiny())
    assert from_json(written) == Tiny() and Tiny().sharpness is not None
    del written["sharpness"]
    assert from_json(written) == Tiny(sharpness=None)


def test_unknown_settings_are_errors_that_list_the_choices():
    with pytest.raises(UnknownName, match="evaluations"):
        from_json({"kind": "decoder.masked", "evaluation": 3})
    with pytest.raises(UnknownName, match="--plugin"):
        from_json({"kind": "os.system"})


def test_a_decoder_from_outside_is_one_file(tmp_path):
    path = tmp_path / "louder.py"
    path.write_text(PLUGIN.replace("{tag}", "a"))
    assert load_plugin(str(path)) == ["decoder.louder_a"]
    holds = contents(from_json({"kind": "decoder.louder_a", "gain": 3.0}))
    model = holds.build()
    batch = holds.collate(model).samples(samples(4), SOURCES)
    model(batch, Noise(batch.position_B)).parts["l1"].sum.backward()
    assert from_json(to_json(holds.model)) == holds.model


def test_a_plug_in_cannot_take_a_built_in_kind(tmp_path):
    path = tmp_path / "thief.py"
    path.write_text(PLUGIN.replace("louder_{tag}", "parallel"))
    with pytest.raises(UserError, match="already taken"):
        load_plugin(str(path))
    with pytest.raises(UserError, match="no plug-in file"):
        load_plugin(str(tmp_path / "none.py"))
