"""A hook of the documentation site: links from a page to a file outside docs/ become its path, since the site has no such page."""

from __future__ import annotations

import re
from typing import Any

OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)#]+)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    return OUTSIDE.sub(lambda link: f"{link[1]} (`{link[2]}`)" if link[1].strip("`") != link[2] else f"`{link[2]}`", markdown)
