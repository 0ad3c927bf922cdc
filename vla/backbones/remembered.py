"""What a pass over a prefix left, as rows that can be kept and given back: for training on a backbone that stands still.

Rows hold valid tokens alone, one after another. Their places are in what is kept with them (positions, blocks), so where padding stood,
and how much of it, is forgotten, and a batch of rows is padded as far as its longest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vla.backbones.base import Hidden, Tokens


@dataclass(frozen=True)
class Reads:
    """What a decoder looks at of the prefix's `Hidden`, beside its final states. By default all of it.

    `keys_values`: those of each layer, as whoever runs tokens of its own behind the prefix does. `layers`: the states after these layers,
    counted as Python does; None: after all. `last`: of everything, the part of the last valid token alone.
    """

    keys_values: bool = True
    layers: tuple[int, ...] | None = None
    last: bool = False

    def __or__(self, other: Reads) -> Reads:
        """What two look at."""
        every = None in (self.layers, other.layers)
        layers = None if every else tuple(sorted({*(self.layers or ()), *(other.layers or ())}))
        return Reads(self.keys_values or other.keys_values, layers, self.last and other.last)


def rows_of(hidden: Hidden, reads: Reads) -> list[dict[str, Tensor]]:
    """Of each sample what `reads` asks for, on the host: (its tokens, ...) each.

    Extras that are floats stay behind: a pass over these tokens has used them up, and there is no other.
    """
    tokens = hidden.tokens
    columns = {"state_BSD": hidden.x_BSD, "position_BS": tokens.position_BS, "block_BS": tokens.block_BS}
    columns |= {f"extra.{name}": tensor for name, tensor in tokens.extras.items() if not tensor.is_floating_point()}
    if reads.keys_values:
        columns["key_BSLHC"], columns["value_BSLHC"] = (torch.stack(t).permute(1, 3, 0, 2, 4) for t in (hidden.keys, hidden.values))
    wanted = range(len(hidden.layers)) if reads.layers is None else reads.layers
    if wanted:
        columns["layer_BSND"] = torch.stack([hidden.layers[layer] for layer in wanted], dim=2)
    kept_BS = tokens.valid_BS
    if reads.last:
        place_S = torch.arange(len(tokens), device=kept_BS.device)
        kept_BS = place_S == torch.where(kept_BS, place_S, 0).amax(1, keepdim=True)
    host = {name: tensor.detach().cpu() for name, tensor in columns.items()}
    return [{name: tensor[row][kept_S] for name, tensor in host.items()} for row, kept_S in enumerate(kept_BS.cpu())]


def hidden_of(seen: Mapping[str, Tensor], reads: Reads, depth: int) -> Hidden:
    """Rows of equal length, with `valid_BS` and `x_BSD`, as the pass of a backbone of `depth` layers over their tokens left them.

    What `reads` did not ask for is no number, so that whoever reads it all the same finds out; of keys and values there are none.
    """
    state_BSD = seen["state_BSD"]
    extras = {name.removeprefix("extra."): tensor for name, tensor in seen.items() if name.startswith("extra.")}
    position_BS = seen["position_BS"]
    tokens = Tokens(seen["x_BSD"], seen["valid_BS"], seen["block_BS"], torch.zeros_like(position_BS), position_BS, extras)
    layers = [torch.full_like(state_BSD[:1, :1, :1], torch.nan).expand(state_BSD.shape)] * depth
    if "layer_BSND" in seen:
        wanted = range(depth) if reads.layers is None else reads.layers
        for place, layer in enumerate(wanted):
            layers[layer] = seen["layer_BSND"][:, :, place]
    keys, values = (seen[n].permute(2, 0, 3, 1, 4).unbind(0) if n in seen else () for n in ("key_BSLHC", "value_BSLHC"))
    return Hidden(tokens, state_BSD, tuple(layers), tuple(keys), tuple(values))
