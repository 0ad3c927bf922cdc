"""One rank's part of `test_zero`: steps of each family's tiny model, where one half of every batch has neither image nor label."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.backbones.families import FAMILIES
from tests.train.toy import toy_run
from vla.backbones.adapters import LoRA
from vla.decoders.conditioning import CrossAttention
from vla.decoders.dit import DiT
from vla.model import Model
from vla.noise import Noise
from vla.train.engine import make_engine
from vla.train.job import assemble
from vla.train.optim import AdamW, Zero
from vla.train.ranks import Ranks

STEPS = 2
DECODER = DiT(conditioning=CrossAttention(width=16, depth=1, heads=2), samples_per_context=2)


def steps(root: str, out: str, stage: int) -> None:
    """Weights and losses after `STEPS` steps, as files in `out`, of every family, checkpointed, and of one with adapters."""
    ranks = Ranks.join()
    cases = {name: replace(config, gradient_checkpointing=True) for name, config in FAMILIES.items()}
    cases["adapted"] = replace(FAMILIES["qwen3_vl"], lora=LoRA(rank=2), freeze=("vision",))
    for case, backbone in cases.items():
        # eps: the gradient of a key's bias is zero but for rounding, which Adam would blow up.
        optim = AdamW(lr=1e-2, eps=1e-3, betas=(0.9, 0.99), weight_decay=0.1, grad_clip=0.0)
        run = toy_run(model=Model(backbone, DECODER), microbatch=2, batch_size=4, optim=optim, zero=Zero(stage) if stage else None)
        job = assemble(run, Path(root), Path(root))
        engine = make_engine(run, job.model, ranks)
        losses = []
        for step in range(STEPS):
            samples = list(job.train.samples(range(4 * step, 4 * step + 4)))
            blind = [replace(each, observation=replace(each.observation, images={}, embodiment=""), action_TA=None) for each in samples[2:]]
            batches = [job.batch(samples[:2]), job.batch(blind)]
            noises = [Noise(batch.position_B, 0) for batch in batches]
            rows = [job.model.weights(batch, noise) for batch, noise in zip(batches, noises, strict=True)]
            weights = {name: sum(row[name] for row in rows) for name in rows[0]}
            mine = [ranks.rank] if ranks.world > 1 else [0, 1]
            for which in mine:
                engine.forward_backward(batches[which], noises[which], weights, last=which == mine[-1])
            losses.append(engine.step(1e-3).loss)
        found = {name: tensor for name, tensor in engine.state().items() if name.startswith("weight/")}
        if ranks.first:
            save_file({name: tensor.contiguous().clone() for name, tensor in found.items()}, f"{out}/{case}-{stage}.safetensors")
            Path(f"{out}/{case}-{stage}.json").write_text(json.dumps(losses))
        torch.distributed.barrier() if ranks.world > 1 else None
