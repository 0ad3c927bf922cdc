"""The look at many machines before a run, on the ranks of a loopback job."""

from __future__ import annotations

import pytest

from tests.train.processes import warm
from vla.errors import UserError
from vla.train import nodes


def facts(**changes):
    usual = {"host": "a", "time": 100.0, "python": "3.11.7", "torch": "2.6", "vla": "0.1.0", "nccl": "none", "device": "cpu"}
    return [usual, {**usual, "host": "b"}, {**usual, "host": "c", **changes}]


def test_what_differs_is_said_with_its_rank_and_host():
    assert nodes._same(facts()).good and nodes._clocks(facts()).good
    odd = nodes._same(facts(torch="2.5"))
    assert not odd.good and odd.detail == "rank 2 on c has torch 2.5, not 2.6" and odd.fix
    late = nodes._clocks(facts(time=160.0))
    assert not late.good and "rank 2 on c is +60.0 s off" in late.detail
    assert nodes._who(facts()).detail == "3 on 3 hosts: a 1, b 1, c 1"


def test_alone_there_is_nothing_to_examine(tmp_path):
    with pytest.raises(UserError, match="torchrun"):
        nodes.examine(tmp_path)


@pytest.mark.slow
def test_two_ranks_see_one_folder_or_are_told(tmp_path):
    with warm() as processes:
        said = tmp_path / "said"
        words = ["doctor", "--nodes", "--path"]
        assert processes.run("command", world=2, words=[*words, tmp_path / "runs"], said=said) == [0, 0]
        text = said.read_text()
        for line in ("ranks", "versions", "clocks", "folder", "all-reduce"):
            assert text.count(f"ok    {line}") == 1
        assert list((tmp_path / "runs").iterdir()) == []
        (tmp_path / "file").write_text("no folder")
        assert processes.run("command", world=2, words=[*words, tmp_path / "file"], said=said)[0] == 1
        assert "rank 1 cannot write there" in said.read_text()
