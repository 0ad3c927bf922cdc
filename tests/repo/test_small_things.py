"""The benchmark of what a stem finds, on dots before clouds instead of simulators' pictures."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks.small_things import TASKS, Pictures, measure


def test_a_dot_is_found_in_standard_maps_and_not_in_maps_as_they_come():
    draw = torch.Generator().manual_seed(0)
    count, side = 600, 32
    goal_N3 = torch.rand(count, 3, generator=draw) * 2 - 1
    clouds = torch.randint(0, 255, (count, 3, 6, 6), generator=draw).float()
    image = F.interpolate(clouds, size=(side, side), mode="bilinear").to(torch.uint8)
    for row, (x, y, _) in enumerate(((goal_N3 + 1) / 2 * (side - 3)).round().long().tolist()):
        image[row, :, y : y + 2, x : x + 2] = torch.tensor([250, 20, 20], dtype=torch.uint8)[:, None, None]
    varies_N3 = torch.tensor([True, True, False]).expand(count, -1)  # the third is not in the picture, and not asked for
    rows = measure(Pictures(image, torch.arange(count) % len(TASKS), goal_N3, varies_N3), (None, 2.0), steps=200)
    plain, standard = rows["maps as they come"], rows["standard maps, sharpness 2"]
    assert all(standard[task] > 0.7 > 0.5 > plain[task] for task in TASKS), rows
