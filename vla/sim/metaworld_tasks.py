"""Meta-World's 50 tasks in words, with the difficulty groups of Seo et al. 2022 (Masked World Models), appendix."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """One task: the sentence for the policy, and the published group of difficulty."""

    instruction: str
    group: str


MT50: dict[str, Row] = {
    "assembly": Row("pick up the nut and put it onto the peg", "hard"),
    "basketball": Row("dunk the basketball into the basket", "medium"),
    "bin-picking": Row("move the puck from one bin to the other", "medium"),
    "box-close": Row("grasp the cover and close the box with it", "medium"),
    "button-press": Row("press the button on the front", "easy"),
    "button-press-topdown": Row("press the button from above", "easy"),
    "button-press-topdown-wall": Row("press the button behind the wall from above", "easy"),
    "button-press-wall": Row("go around the wall and press the button", "easy"),
    "coffee-button": Row("press the button of the coffee machine", "easy"),
    "coffee-pull": Row("pull the mug away from the coffee machine", "medium"),
    "coffee-push": Row("push the mug under the coffee machine", "medium"),
    "dial-turn": Row("turn the dial", "easy"),
    "disassemble": Row("take the nut off the peg", "very hard"),
    "door-close": Row("close the door", "easy"),
    "door-lock": Row("lock the door", "easy"),
    "door-open": Row("open the door", "easy"),
    "door-unlock": Row("unlock the door", "easy"),
    "drawer-close": Row("close the drawer", "easy"),
    "drawer-open": Row("open the drawer", "easy"),
    "faucet-close": Row("close the faucet", "easy"),
    "faucet-open": Row("open the faucet", "easy"),
    "hammer": Row("hammer the screw into the wall", "medium"),
    "hand-insert": Row("put the hand into the hole", "hard"),
    "handle-press": Row("press the handle down", "easy"),
    "handle-press-side": Row("press the handle down from the side", "easy"),
    "handle-pull": Row("pull the handle up", "easy"),
    "handle-pull-side": Row("pull the handle up from the side", "easy"),
    "lever-pull": Row("pull the lever up", "easy"),
    "peg-insert-side": Row("insert the peg into the hole in the side of the box", "medium"),
    "peg-unplug-side": Row("unplug the peg from the side of the box", "easy"),
    "pick-out-of-hole": Row("pick the puck out of the hole", "hard"),
    "pick-place": Row("pick up the puck and hold it at the goal", "hard"),
    "pick-place-wall": Row("pick up the puck and carry it over the wall to the goal", "very hard"),
    "plate-slide": Row("slide the plate into the cabinet", "easy"),
    "plate-slide-back": Row("slide the plate out of the cabinet", "easy"),
    "plate-slide-back-side": Row("slide the plate out of the cabinet sideways", "easy"),
    "plate-slide-side": Row("slide the plate into the cabinet sideways", "easy"),
    "push": Row("push the puck to the goal", "hard"),
    "push-back": Row("pull the puck back to the goal", "hard"),
    "push-wall": Row("push the puck around the wall to the goal", "medium"),
    "reach": Row("reach the goal", "easy"),
    "reach-wall": Row("reach over the wall to the goal", "easy"),
    "shelf-place": Row("pick up the puck and place it on the shelf", "very hard"),
    "soccer": Row("kick the ball into the net", "medium"),
    "stick-pull": Row("grasp the stick and pull the box with it", "very hard"),
    "stick-push": Row("grasp the stick and push the box with it", "very hard"),
    "sweep": Row("sweep the puck off the table", "medium"),
    "sweep-into": Row("sweep the puck into the hole", "medium"),
    "window-close": Row("close the window", "easy"),
    "window-open": Row("open the window", "easy"),
}

MT10 = (
    "reach",
    "push",
    "pick-place",
    "door-open",
    "drawer-open",
    "drawer-close",
    "button-press-topdown",
    "peg-insert-side",
    "window-open",
    "window-close",
)

ML45_HELD_OUT = ("bin-picking", "box-close", "hand-insert", "door-lock", "door-unlock")
"""The five tasks of ML45's test set; the other 45 of MT50 are its training set."""
