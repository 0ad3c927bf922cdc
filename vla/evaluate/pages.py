"""The pages of evaluations: `vla eval --html` and `vla compare --html`. What was run, what came of it, and every raw row."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vla.evaluate.compare import compare
from vla.evaluate.ranking import Ranking, rank
from vla.evaluate.report import Code, Gallery, Report, Section, Successes, Table, Text, Times, gallery_of
from vla.evaluate.result import EvalResult


def evaluation_page(result: EvalResult) -> Report:
    """One evaluation."""
    pooled, name = result.pooled, str(result.policy["name"])
    lead = (
        f"{name} on {result.suite}, {len(result.rows)} episodes from unseen seeds"
        + (f", shard {result.shard}" if result.shard else "")
        + (f"; probe {result.probe['spec']}: {result.probe['what']}" if result.probe else "")
        + "."
    )
    _, share, interval = pooled.cells
    tiles = {
        "success": share,
        "95% Wilson interval": interval,
        "95% exact interval": f"{pooled.exact_low:.1%} – {pooled.exact_high:.1%}",
        "episodes": str(pooled.episodes),
    }
    if result.mean_over_groups is not None:
        tiles["mean over groups of tasks"] = f"{result.mean_over_groups:.1%}"
    sections: list[Section] = [Successes("Success", {_short(name): result}, note="95% Wilson intervals.")]
    if result.videos:
        sections.append(Gallery("Rollouts", gallery_of(result), "The first successes and the first failures of each task."))
    sections += [
        Times("Where the time went", _activities(result), "CPU seconds over all processes."),
        *_how_made({name: result}),
        _rows({name: result}),
    ]
    return Report(f"Evaluation on {result.suite}", lead, sections, tiles, _footer(result))


def compared_page(results: Mapping[str, EvalResult]) -> Report:
    """Several evaluations of one suite side by side: policies, or one policy and its probes (the base run first)."""
    first = next(iter(results.values()))
    names = _names(results)
    shown = {names[path]: result for path, result in results.items()}
    sections: list[Section] = [Successes("Success", shown, note="95% Wilson intervals.")]
    if any(result.probe for result in shown.values()):
        sections.append(_probes(shown))
    ranking = rank(shown)
    sections += [_ranking(ranking), _pairs(ranking)]
    if ranking.notes:
        sections.append(Text("Beside it", "\n\n".join(ranking.notes)))
    sections += [
        Gallery(f"Rollouts: {name}", gallery_of(result)) for name, result in shown.items() if result.videos and _videos_are_there(result)
    ]
    sections += [*_how_made(shown), _rows(shown)]
    lead = f"{len(shown)} evaluations on {first.suite}, seed {first.seed}."
    return Report(f"Comparison on {first.suite}", lead, sections, {}, _footer(first))


def _ranking(ranking: Ranking) -> Table:
    rows = [
        [
            row.name,
            *row.rate.cells[:2],
            row.letters,
            "–" if row.strength is None else f"{row.strength:+.2f}",
            "–" if row.interval is None else f"{row.interval.low:+.2f} to {row.interval.high:+.2f}",
        ]
        for row in ranking.policies
    ]
    note = (
        f"Sharing a letter: not shown to differ at level {ranking.level:.2g}, after Holm's correction. Bradley-Terry: log-odds of "
        "winning an episode that only one of two solves, against the average."
    )
    return Table("Ranking", ("policy", "successes", "rate", "letters", "Bradley-Terry", "95%"), rows, note)


def _pairs(ranking: Ranking) -> Table:
    rows = []
    for pair in ranking.pairs:
        found = pair.compared.pooled.comparison
        interval = f"{100 * found.interval.low:+.1f} to {100 * found.interval.high:+.1f}"
        p_values = f"{found.p_value:.3g}", f"{pair.adjusted:.3g}"
        rows.append([pair.a, pair.b, f"{100 * found.difference:+.1f}", interval, *p_values, found.test])
    return Table("Pairs", ("A", "B", "A - B", "95%", "p", "p (Holm)", "test"), rows, "Points of success rate over all tasks.")


def _probes(shown: Mapping[str, EvalResult]) -> Table:
    """What each probe costs, against the first run without one."""
    base_name = next((name for name, result in shown.items() if not result.probe), next(iter(shown)))
    rows = []
    for name, result in shown.items():
        if name == base_name:
            continue
        found = compare(shown[base_name], result).pooled.comparison
        interval = f"{100 * -found.interval.high:+.1f} to {100 * -found.interval.low:+.1f}"
        what = result.probe["what"] if result.probe else "no probe"
        rows.append([name, what, f"{result.pooled.rate:.1%}", f"{100 * -found.difference:+.1f}", interval, f"{found.p_value:.3g}"])
    header = ("run", "what is changed", "success", "change", "95%", "p")
    return Table("Probes", header, rows, f"Against {base_name} ({shown[base_name].pooled.rate:.1%}); points of success rate.")


def _how_made(shown: Mapping[str, EvalResult]) -> list[Section]:
    first = next(iter(shown.values()))
    table = Table(
        "How each was made",
        ("", *shown),
        [
            ["policy", *(str(result.policy["name"]) for result in shown.values())],
            ["manifest sha256", *(str(result.policy.get("manifest_sha256", "–"))[:16] for result in shown.values())],
            ["seed", *(str(result.seed) for result in shown.values())],
            ["commands of a chunk executed", *(str(result.execute) for result in shown.values())],
            ["ensemble", *(result.ensemble for result in shown.values())],
            ["image size", *(str(result.image_size) for result in shown.values())],
            ["probe", *(result.probe["spec"] if result.probe else "none" for result in shown.values())],
            ["stopping rule", *(_stopping(result) for result in shown.values())],
            ["commit", *((result.commit or "–")[:16] for result in shown.values())],
            *([name, *(result.versions.get(name, "–") for result in shown.values())] for name in first.versions),
        ],
    )
    commands = "\n".join(result.command for result in shown.values() if result.command)
    notes = [note for result in shown.values() for note in result.notes]
    sections: list[Section] = [
        Text("When an episode ends", "\n\n".join(dict.fromkeys(result.termination for result in shown.values()))),
        table,
    ]
    sections += [Code("Commands", commands)] if commands else []
    return sections + ([Text("Notes", "\n\n".join(dict.fromkeys(notes)))] if notes else [])


def _stopping(result: EvalResult) -> str:
    if not result.stopping:
        return "all episodes"
    end = result.stopping
    return f"{end['rule']}: {end['verdict']} after {end['pairs']} pairs"


def _rows(shown: Mapping[str, EvalResult]) -> Table:
    rows = [
        [
            name,
            row.task,
            str(row.episode),
            str(row.seed),
            "success" if row.success else "failure",
            str(row.steps),
            str(row.decisions),
            f"{row.reward:g}",
            row.reason,
        ]
        for name, result in shown.items()
        for row in result.rows
    ]
    return Table("Every episode", ("run", "task", "episode", "seed", "outcome", "steps", "decisions", "score", "ended by"), rows)


def _activities(result: EvalResult) -> dict[str, float]:
    return {name: seconds for name, seconds in result.time.items() if not name.startswith("cpu_") and seconds > 0}


def _videos_are_there(result: EvalResult) -> bool:
    return all((Path(video["folder"]) / video["file"]).is_file() for video in result.videos)


def _names(results: Mapping[str, EvalResult]) -> dict[str, str]:
    """Paths cut to their file names, where those tell them apart."""
    stems = [Path(path).stem for path in results]
    return {path: stem if stems.count(stem) == 1 else path for path, stem in zip(results, stems, strict=True)}


def _short(name: str) -> str:
    return name if len(name) <= 40 else "…" + name[-39:]


def _footer(result: EvalResult) -> str:
    took = f"{result.seconds:.0f} s on {result.workers} simulator processes"
    return f"seed {result.seed} · {result.embodiment} · {len(result.rows)} episodes · {took}"
