"""From an instruction to token ids: templates as data, tokenizers by value, and no way for a user's text to forge a special token."""

from __future__ import annotations

import base64
import json
import lzma
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from vla.errors import SchemaError, UserError

IMAGES, PATCHES, INSTRUCTION = "{images}", "{patches}", "{instruction}"


@dataclass(frozen=True)
class Prompt:
    """A template with {images} where the images stand and {instruction} where the task does.

    `image`: what each image becomes, {patches} being its soft tokens. `lower`: the instruction in lower case. `append`: ids at the end
    that no text makes (OpenVLA's 29871, the empty piece before the first action). `clean`: the instruction on one line, spaces for its
    underscores (openpi's). `lead`: ids behind all that, each of which sees what stands before it alone, whatever the backbone's blocks: the
    words an answer always begins with (pi0-FAST's `Action:`).
    """

    kind: ClassVar[str] = "prompt"
    text: str
    image: str = PATCHES
    lower: bool = False
    append: tuple[int, ...] = ()
    clean: bool = False
    lead: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.text.count(IMAGES) != 1 or self.text.count(INSTRUCTION) != 1 or self.image.count(PATCHES) != 1:
            raise UserError(
                f"a prompt names {IMAGES} and {INSTRUCTION} once, and its image {PATCHES} once; got {self.text!r}, {self.image!r}"
            )


class PromptEncoder:
    """Template and tokenizer -> ids. Pieces between soft tokens are encoded apart, as tokenizers do around special tokens."""

    def __init__(self, prompt: Prompt, packed_tokenizer: str) -> None:
        if not packed_tokenizer:
            raise UserError(
                "this backbone has no tokenizer: make its configuration by from_pretrained, or give `tokenizer=pack_tokenizer(path)`"
            )
        self.prompt, self.tokenizer = prompt, unpack_tokenizer(packed_tokenizer)
        added = self.tokenizer.get_added_tokens_decoder()
        self.reserved = {
            int(index): token.content for index, token in added.items() if len(token.content) > 1 and not token.content.isspace()
        }

    def ids(self, instruction: str, patches: Sequence[int]) -> list[int]:
        """Token ids, with image i as `patches[i]` times -1 - i. Raises SchemaError if the instruction could pass for a special token."""
        spoken = instruction.lower() if self.prompt.lower else instruction
        spoken = self.escape(clean(spoken) if self.prompt.clean else spoken)
        before, after = (part.replace(INSTRUCTION, spoken) for part in self.prompt.text.split(IMAGES))
        opening, closing = self.prompt.image.split(PATCHES)
        piece, found = before, []
        for image, count in enumerate(patches):
            found += [*self._encode(piece + opening), *[-1 - image] * count]
            piece = closing
        return [*found, *self._encode(piece + after), *self.prompt.append, *self.prompt.lead]

    def escape(self, text: str) -> str:
        """A user's text without special tokens: each gets a space after its first character, and stays readable."""
        for content in sorted(self.reserved.values(), key=len, reverse=True):
            text = text.replace(content, f"{content[0]} {content[1:]}")
        forged = [self.reserved[index] for index in self._encode(text) if index in self.reserved]
        if forged:
            raise SchemaError(f"the instruction {text!r} holds the special token {forged[0]!r}, which escaping did not undo")
        return text

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids if text else []


def clean(instruction: str) -> str:
    """On one line, without underscores."""
    return instruction.strip().replace("_", " ").replace("\n", " ")


def pack_tokenizer(tokenizer_json: str) -> str:
    """The text of a tokenizer.json -> a short string that a configuration holds by value."""
    compact = json.dumps(json.loads(tokenizer_json), separators=(",", ":"), ensure_ascii=False)
    return base64.b85encode(lzma.compress(compact.encode(), preset=6)).decode()


@lru_cache(maxsize=4)
def unpack_tokenizer(packed: str) -> Any:
    """The inverse of `pack_tokenizer`, as a `tokenizers.Tokenizer`. Raises SchemaError for a string that is none."""
    from tokenizers import Tokenizer

    try:
        text = lzma.LZMADecompressor(memlimit=1 << 28).decompress(base64.b85decode(packed), max_length=1 << 28).decode()
    except (ValueError, lzma.LZMAError) as error:
        raise SchemaError(f"the tokenizer of this configuration is not readable ({error})") from error
    return Tokenizer.from_str(text)
