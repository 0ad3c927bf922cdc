"""The bytes of a mixture's sources, so far as each kind of source lets them be compared; what was not looked at is said.

Folders of shards are compared with their manifests before anything else (`vla.data.check`).
"""

from __future__ import annotations

from itertools import islice

from vla.data.doctor.finding import Finding
from vla.data.doctor.sample import Sampled
from vla.data.foreign import ForeignDataset
from vla.data.reader import Dataset
from vla.data.remote import RemoteDataset
from vla.data.verify import verify_frames
from vla.errors import UserError

LISTED = 100
"""Altered pictures of one source that are named."""


def bytes_of(sample: Sampled, full: bool) -> tuple[list[Finding], str]:
    """(findings, what was compared in a few words)."""
    if isinstance(sample.dataset, RemoteDataset):
        return _remote(sample, sample.dataset)
    if isinstance(sample.dataset, ForeignDataset):
        return _foreign(sample, sample.dataset) if full else ([], "sizes and times of change, as indexed")
    if type(sample.dataset) is not Dataset:
        text = f"a '{type(sample.dataset).__name__}' source has no checksums: what was not among the frames and rows looked at may be damaged"
        return [Finding("not_examined", sample.name, text, "note")], "what was looked at"
    return [], "every byte" if full else "sizes"


def _remote(sample: Sampled, dataset: RemoteDataset) -> tuple[list[Finding], str]:
    found, total = [], len(dataset.shard_names)
    numbers = sample.shard_N if sample.budget.episodes else []
    for place, number in enumerate(numbers):
        sample.progress(f"{sample.name}: fetching shard {place + 1} of {len(numbers)}")
        try:
            dataset._open_shard(number)  # each file is compared with the manifest as it arrives
        except UserError as error:
            found.append(Finding("unreadable", f"{sample.name}: {dataset.shard_names[number]}", str(error)))
    if len(numbers) < total:
        rest = sum(facts["bytes"] for number in set(range(total)) - set(numbers) for facts in dataset.manifest["shards"][number]["files"].values())
        text = f"{total - len(numbers)} of {total} shards ({rest / 1e9:,.1f} GB) at {dataset.url} were not fetched and not looked at"
        fix = f"`--shards {total}` fetches them all; a run compares each with the manifest as it arrives."
        found.append(Finding("not_examined", sample.name, text, "note", {"shards": total, "fetched": len(numbers), "bytes": rest}, fix))
    return found, f"{len(numbers)} of {total} shards, as they arrived"


def _foreign(sample: Sampled, dataset: ForeignDataset) -> tuple[list[Finding], str]:
    sample.progress(f"{sample.name}: every picture against its checksum")
    fix = "restore the shard from where it came from."
    bad = list(islice(verify_frames(dataset), LISTED))
    found = [Finding("altered", f"{sample.name}: {p.file} [{p.member}]", p.detail, fix=fix) for p in bad]
    if len(bad) < LISTED:
        return found, "every picture, as indexed"
    text = f"after {LISTED} altered pictures no more were looked at"
    return [*found, Finding("not_examined", sample.name, text, "note")], f"pictures up to the {LISTED}th altered one"
