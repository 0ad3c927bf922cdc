"""Every head on one trunk: the models of `pretrain/demo.py` on the same demonstrations of one arm, for as many steps each.

What      trunk, batches, optimizer and schedule of the demo; eight Sawyer tasks. A variant a head: `parallel` (L1), `tokens` (bins, one
          after another), `fast` (FAST codes), `masked` (discrete diffusion over bins), `flow` and `flow_8` (one and eight noise draws a
          context), `ddpm` (eight, by the other path), `latent` (latent actions and a readout). `latent_action`: the model whose codes
          `latent` learns; it watches the same frames, so that no head sees what others lack.
Hardware  one CPU core.
Time      2 to 4 minutes a head.
Expect    what `docs/results.md` has under "equal steps"; `python -m benchmarks.heads` trains, evaluates and compares all of them.
Command   vla train pretrain/heads.py:flow_8 --data-root runs/heads/data
"""

from dataclasses import replace
from pathlib import Path

from vla.diffusion.ddpm import DDPM
from vla.model import Model
from vla.train.run import Run, load_recipe

HERE = Path(__file__).parent
MIXTURE = "data_mixtures/heads.yaml"


def _of_demo(name: str, variant: str) -> Run:
    demo = load_recipe(f"{HERE / 'demo.py'}:{variant}")
    return replace(demo, name=f"heads_{name}", mixture=MIXTURE, embodiments=("metaworld_sawyer",), steps=1000)


def _denoiser(name: str, **settings: object) -> Run:
    """The flow with other settings of its decoder."""
    return replace(flow, name=f"heads_{name}", model=Model(flow.model.backbone, replace(flow.model.decoder, **settings)))


RUN = parallel = _of_demo("parallel", "parallel")
tokens = _of_demo("tokens", "tokens")
fast = _of_demo("fast", "fast")
masked = _of_demo("masked", "masked")
flow = _of_demo("flow", "dit_one")
flow_8 = _denoiser("flow_8", samples_per_context=8)
ddpm = _denoiser("ddpm", samples_per_context=8, path=DDPM(steps=50), evaluations=10)
latent = _of_demo("latent", "latent")
latent_action = replace(load_recipe(str(HERE / "demo_latent_action.py")), name="heads_latent_action", mixture=MIXTURE)
