"""The demo's summary and page, from files as its stages write them."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image

from vla.demo.plan import stages
from vla.demo.stages import Done, State
from vla.demo.summary import write_summary
from vla.evaluate.result import EvalResult, Row, write_result


def result(tasks: dict[str, list[bool]], suite: str, robot: str) -> EvalResult:
    rows = [
        Row(task, i, 1000 + i, success, 50, "success" if success else "max_steps", float(success))
        for task, outcomes in tasks.items()
        for i, success in enumerate(outcomes)
    ]
    return EvalResult(
        policy={"name": "a policy"},
        suite=suite,
        embodiment=robot,
        held_out=False,
        seed=0,
        execute=10,
        ensemble="",
        image_size=64,
        max_steps=dict.fromkeys(tasks, 200),
        rows=tuple(rows),
        seconds=1.0,
        cpu_seconds=1.0,
        workers=1,
        time={},
    )


def test_summary_has_what_it_promises_and_the_page_stands_alone(tmp_path):
    good, bad = [True] * 9 + [False], [True, False] * 5
    write_result(tmp_path / "evaluate.json", result({"door-open": good, "drawer-open": bad}, "metaworld-objects", "metaworld_sawyer"))
    write_result(tmp_path / "zero-shot.json", result({"button-press": bad}, "metaworld-heldout", "metaworld_sawyer"))
    write_result(tmp_path / "evaluate_fine-tuned.json", result({"lift": good}, "panda", "panda"))
    write_result(tmp_path / "evaluate_from_scratch.json", result({"lift": bad}, "panda", "panda"))
    (tmp_path / "logs").mkdir()
    labels = [{"dataset": "video", "anchors": 10, "perplexity": [3.0], "dead_share": 0.0, "probe_r2": {"action/move": [0.5, 0.7]}}]
    (tmp_path / "logs" / "label.log").write_text("$ vla label\n" + json.dumps({"latents": "x", "datasets": labels}) + "\n")
    (tmp_path / "logs" / "pretrain.log").write_text("$ vla train\ndemo  1 min\n├── 90% sawyer\nbatch: 64\n")
    for run in ("pretrain", "fine-tune", "from_scratch"):
        (tmp_path / run).mkdir()
        (tmp_path / run / "log.jsonl").write_text(
            "".join(json.dumps({"kind": "train", "step": s, "loss": 1 / s}) + "\n" for s in (20, 40, 60))
        )
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "pretrain" / "first_batch.png")
    done = {s.name: Done(s.name, s.phase, s.line, 2.0, 3.0, 0.0, "") for s in stages("parallel", tmp_path)}
    summary = write_summary(tmp_path, "parallel", State(done=done, elapsed_s=20.0, peak_rss_mb=123.0))
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert summary["decoder"] == "parallel" and summary["pretrain"]["success"]["mean"] == 0.7
    assert summary["pretrain"]["success"]["tasks"]["door-open"]["successes"] == 9
    assert set(summary["pretrain"]["success"]["tasks"]["drawer-open"]) == {"successes", "episodes", "low", "high"}
    assert summary["finetune"]["success"]["rate"] == 0.9 and summary["finetune"]["from_scratch"]["rate"] == 0.5
    assert summary["finetune"]["paired_difference"]["difference"] == 0.4
    assert set(summary["seconds"]) == {"collect", "latent", "pretrain", "finetune", "evaluate", "total"}
    assert summary["cpu_seconds"] == 3.0 * len(done) and summary["peak_rss_mb"] == 123.0
    assert {"versions", "commit"} <= set(summary)
    page = (tmp_path / "report.html").read_text()
    for text in ("door-open", "90.0%", "├── 90% sawyer", "vla collect --suite metaworld-objects", "action/move 0.60"):
        assert text in page
    assert "<script" not in page and 'src="http' not in page
