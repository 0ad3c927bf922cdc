"""The frame of a self-contained HTML page, and the function that writes one."""

from __future__ import annotations

from html import escape
from pathlib import Path

from vla.data.format import write_atomic


def document(title: str, policy: str, style: str, body: str) -> str:
    """`policy`: a Content-Security-Policy, by which the browser itself refuses whatever is not in the file. `title` is escaped; the
    others are not."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )


def write_document(path: str | Path, text: str) -> Path:
    """The page, in the place of an older one as a whole; its folder is made if need be."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text.encode())
    return path
