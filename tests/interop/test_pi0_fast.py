"""pi0-FAST as lerobot publishes it -> the same codes as the library's own PaliGemma says, under the same guide."""

from __future__ import annotations

import json

import numpy as np
import torch

from tests.backbones.families import VOCABULARY, tokenizer_json
from tests.interop import layouts, pi0_layouts
from tests.interop.pi0_layouts import EMBEDDING, HEAD, VLM, T
from vla.codecs.fast import FAST
from vla.interop.formats import import_checkpoint
from vla.interop.source import Source
from vla.policy import Policy
from vla.roster import Roster
from vla.torchvision_cpu import prepare_torchvision
from vla.types import ActionSpec

CAMERAS = ("third_person", "wrist")
ROBOT = layouts.robot(CAMERAS, action=2, state=3)
CODES, WORDS = 256, VOCABULARY + 400


def library():
    prepare_torchvision()
    from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

    vlm = {**VLM, "text_config": {**VLM["text_config"], "vocab_size": WORDS}, "vocab_size": WORDS}
    model = PaliGemmaForConditionalGeneration(PaliGemmaConfig(**{k: v for k, v in vlm.items() if k != "model_type"})).eval()
    values = layouts.randomise(dict(model.state_dict()), 5)
    model.load_state_dict({name: t - (1 if "language" in name and "norm" in name else 0) for name, t in values.items()})
    model.tie_weights()
    return model


def published(model, folder) -> None:
    tensors = {f"paligemma_with_expert.paligemma.{name}": t for name, t in model.state_dict().items()}
    tensors = {name.replace("vision_tower.", "vision_tower.vision_model."): t for name, t in tensors.items()}
    assert EMBEDDING in tensors and HEAD in tensors
    pi0_layouts.lerobot(folder, "pi0_fast", tensors, 2, 3, modes="QUANTILES")
    (folder / "tokenizer.json").write_text(tokenizer_json())
    codec = FAST(vocabulary=CODES).build(Roster(("arm",), T, 2, 1))
    chunks = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (200, T, 2))).float()
    codec.fit(chunks, ActionSpec(torch.zeros(200, dtype=torch.int64), torch.ones(200, T, 2, dtype=torch.bool)))
    codec.write(folder / "action_tokenizer")


@torch.no_grad()
def test_it_says_the_same_codes(tmp_path):
    model = library()
    published(model, tmp_path / "pi0_fast")
    report = import_checkpoint("pi0_fast", Source(tmp_path / "pi0_fast", ROBOT, CAMERAS), tmp_path / "ours")
    assert not report.left
    policy = Policy.load(tmp_path / "ours")
    codec = policy.model.decoder.codes.codec
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["model"]["state"] == {"kind": "state.words"}
    for seed, text in enumerate(("open the door", "push it")):
        seen = layouts.observation(ROBOT, seed, pi0_layouts.SIDE, text)
        found = policy.act_batch([seen], [0])[0].action_TA
        numbers = pi0_layouts.statistics(3, 1)
        low, high = np.array(numbers["q01"]), np.array(numbers["q99"])
        normal = 2 * (seen.state[-1] - low) / (high - low) - 1
        state = " ".join(map(str, np.digitize(normal, np.linspace(-1, 1, 257)[:-1]) - 1))
        bos = layouts.ids_of("<bos>")
        prompt = [*bos, *layouts.ids_of(f"Task: {text}, State: {state};\n"), *bos]
        codes = theirs(model, seen, prompt, codec)
        like = ActionSpec(torch.zeros(1, dtype=torch.int64), torch.ones(1, T, 2, dtype=torch.bool))
        code_BN = torch.nn.functional.pad(torch.tensor([codes]), (0, codec.length(T, 2) - len(codes)))
        want = codec.decode(code_BN, like)[0].double().numpy()
        numbers = pi0_layouts.statistics(2, 2)
        low, high = np.array(numbers["q01"]), np.array(numbers["q99"])
        np.testing.assert_allclose(found, ((want + 1) * (high - low) / 2 + low).clip(-9, 9), atol=1e-6)  # the robot's limits


def theirs(model, seen, prompt: list[int], codec) -> list[int]:
    """`sample_actions_fast`: images and prompt see all of each other, what was said sees what stands before it; likeliest words, of those
    codes that can still complete the chunk."""
    pixels = torch.stack([torch.from_numpy(seen.images[c][0]).permute(2, 0, 1) / 255 * 2 - 1 for c in CAMERAS])
    features = model.model.get_image_features(pixels).pooler_output.flatten(0, 1)[None]
    embed = model.get_input_embeddings()
    said, codes = layouts.ids_of("Action: "), []
    spec = ActionSpec(torch.zeros(1, dtype=torch.int64), torch.ones(1, T, 2, dtype=torch.bool))
    left = codec.begin(spec)
    while (left > 0).any():
        ids = [*prompt, *said]
        x = torch.cat([features, embed(torch.tensor([ids]))], dim=1)
        S, P = x.shape[1], x.shape[1] - len(said)
        keep = torch.ones(S, S, dtype=torch.bool).tril()
        keep[:P, :P] = True
        mask = torch.zeros(1, 1, S, S).masked_fill(~keep, torch.finfo(torch.float32).min)
        hidden = model.model.language_model(inputs_embeds=x, attention_mask=mask, position_ids=torch.arange(S)[None]).last_hidden_state
        logits = model.lm_head(hidden[0, -1])[WORDS - 1 - 128 - torch.arange(CODES)]
        code = int(logits.masked_fill(~codec.allow(left)[0], -torch.inf).argmax())
        left = codec.spend(left, torch.tensor([code]))
        codes.append(code)
        said = [*said, WORDS - 1 - 128 - code]
    return codes
