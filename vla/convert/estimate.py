"""How much disk and time a conversion will take, from a few of its episodes, before it begins."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vla.convert.card import Card
from vla.convert.fields import BadEpisode
from vla.convert.lanes import LANES
from vla.convert.mapping import Mapper, check_against
from vla.convert.pictures import Encoding
from vla.convert.raw import Reader, Size, Unreadable
from vla.data.format import pack_camera
from vla.errors import Damaged, UserError
from vla.types import Episode

SAMPLED = 4
SAMPLE_S = 20.0
"""Sampling stops after this long, whatever it has."""
MARGIN = 1.1


@dataclass(frozen=True)
class Estimate:
    """`episodes`, `seconds`: None where nothing says how much there is. `bytes`: of the shards. `sampled`: episodes it stands on;
    without any, `bytes` is that of the source. `unused`: what the source has and the card does not mention. `first`: the first of the
    sampled episodes, to look at. `problems`: what was wrong with others, each once."""

    parts: int
    source: Size
    episodes: int | None
    bytes: int
    seconds: float | None
    sampled: int
    unused: tuple[str, ...]
    first: Episode | None = None
    problems: tuple[str, ...] = ()


def estimate(open_reader: Callable[[], Reader], card: Card, encoding: Encoding, workers: int) -> Estimate:
    """Reads up to SAMPLED episodes of the first part. UserError where the card does not fit the source."""
    reader = open_reader()
    unused = check_against(card, reader.features())
    reader.wanted = card.wanted
    parts, size, mapper = reader.parts(), reader.size(), Mapper(card, encoding, reader.rate_hz)
    if not parts:
        raise UserError("the source has no parts: nothing to convert")
    seconds: list[float] = []
    written: list[int] = []
    problems: list[str] = []
    ended = False
    first: Episode | None = None
    start_s = time.monotonic()
    raws = reader.episodes(parts[0])
    while len(seconds) < SAMPLED and time.monotonic() - start_s < SAMPLE_S:
        before_s = time.monotonic()
        try:
            raw = next(raws, None)
            if raw is None:
                ended = True
                break
            if isinstance(raw, Unreadable):
                raise BadEpisode("damaged", raw.detail)
            episode = mapper.episode(raw).episode
            first = first or episode
            written.append(stored_bytes(episode) if episode is not None else 0)
        except (BadEpisode, Damaged) as error:
            problems.append(str(error))
            if isinstance(error, Damaged):
                break
        seconds.append(time.monotonic() - before_s)
    episodes = size.episodes if size.episodes is not None else len(seconds) * len(parts) if ended else None
    if not written or episodes is None:
        return Estimate(len(parts), size, episodes, size.bytes, None, len(written), tuple(unused), first, tuple(dict.fromkeys(problems)))
    total = int(statistics.mean(written) * episodes)
    total_s = statistics.median(seconds) * episodes / max(min(workers, LANES), 1)
    return Estimate(len(parts), size, episodes, total, total_s, len(written), tuple(unused), first, tuple(dict.fromkeys(problems)))


def check_disk(needed: int, out: Path) -> None:
    """UserError, with bytes needed and free, where the disk of `out` will not hold them."""
    place = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())
    free, held = shutil.disk_usage(place).free, sum(path.stat().st_size for path in out.glob("shard-*"))
    if needed * MARGIN - held > free:
        raise UserError(
            f"{out}: about {int(needed * MARGIN):,} bytes are needed and {free:,} are free on that disk. Choose another, or a smaller "
            "--image-size, --quality or --limit-episodes; --no-disk-check goes on regardless"
        )


def stored_bytes(episode: Episode) -> int:
    """About what an episode takes in a shard: its pictures, and its numbers twice."""
    stored = [pack_camera(frames) for frames in episode.frames.values()]
    pictures = sum(sum(map(len, member.pieces)) + 24 * len(member.start) for member in stored)
    numbers = sum(rows.nbytes for rows in (episode.state, episode.action, episode.time_s) if rows is not None)
    return pictures + 2 * numbers + 4096
