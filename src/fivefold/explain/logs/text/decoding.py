"""Bytes of a log as text: UTF-16, NULs, escape codes, JSON, HTML and quoted-printable are undone.

Each is undone only where it is there without doubt; what stays damaged is for the readers to leave out.
"""

from __future__ import annotations

import codecs
import html
import re
from collections.abc import Callable
from typing import Final

_ESCAPES: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])")
_CONTROLS: Final = re.compile(rb"[\x01-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_QUOTES: Final = re.compile(r"^(?:[ \t]*>)+ ?", re.M)
_ENTITY: Final = re.compile(r"&(?:lt|gt|amp|quot|nbsp|#\d{2,3}|#x[0-9a-f]{2});", re.I)
_TAG: Final = re.compile(
    r"</?(?:html|head|body|pre|p|br|div|span|code|a|font|b|i|u|em|strong|tt|td|tr|th|table|tbody|blockquote|samp|ul|li)"
    r"(?:\s[^<>\n]*)?/?>",
    re.I,
)
_BREAK: Final = re.compile(r"<(?:br|/p|/div|/tr|/li)\s*/?>(?!\n)", re.I)
_JSON: Final = re.compile(r"\\u00([0-7][0-9a-f])")
_SOFT: Final = re.compile(r"=[ \t]*\n")
_QUOTED: Final = re.compile(r"=([0-9A-F]{2})")
DAMAGED: Final = "\u017f"
"""Stands for damage beside a letter or digit. It is the long s, a letter of no number: to a pattern that ignores case
the number or word that it is in goes on there, so that none is read as far as the damage.
"""
_CHARACTERS: Final = tuple(map(chr, (*range(1, 9), 0x0B, *range(0x0E, 0x1B), *range(0x1C, 0x20), 0x7F, 0xFFFD)))
"""What is no character of a text, but for NUL, which files have where power was lost."""
_ODD: Final = f"[{''.join(_CHARACTERS)}]+"
_DAMAGE: Final = re.compile(rf"(?<=[0-9A-Za-z]){_ODD}|{_ODD}(?=[0-9A-Za-z])|(?<=[0-9A-Za-z])\0+(?=[0-9A-Za-z])")
_HEADER: Final = re.compile(r"^Content-Transfer-Encoding: *quoted-printable", re.I | re.M)


def decode(raw: bytes) -> str:
    """The text of *raw* with plain line ends; bytes that are no text are replaced."""
    text = _characters(raw).replace("\r\n", "\n").replace("\r", "\n")
    text = _replaced(text, _ESCAPES, "", "\x1b")
    text = _replaced(text, _DAMAGE, DAMAGED, "\0", *_CHARACTERS).replace("\0", "")
    text = _replaced(text, _JSON, lambda match: chr(int(match[1], 16)), "\\u00")
    text = _without_html(text)
    text = _without_quoted_printable(text)
    return _replaced(text, _QUOTES, "", ">")


def _replaced(text: str, pattern: re.Pattern[str], new: str | Callable[[re.Match[str]], str], *signs: str) -> str:
    """*text* with *new* for *pattern*, which is not there without one of *signs*: those are looked for much faster."""
    return pattern.sub(new, text) if any(sign in text for sign in signs) else text


def is_binary(head: bytes) -> bool:
    """Whether the first bytes of a file are no text in any encoding that logs come in.

    NULs alone do not make a file binary: a file system leaves them where power was lost.
    """
    if b"\0" not in head or head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return False
    if _utf16(head) is not None:
        return False
    rest = head.replace(b"\0", b"")
    odd = len(_CONTROLS.findall(rest)) + sum(byte >= 0xF8 or byte == 0x89 for byte in rest)
    return not rest or odd * 20 > len(rest)


def _characters(raw: bytes) -> str:
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return raw.decode("utf-16", "replace")
    if raw.startswith(codecs.BOM_UTF8):
        raw = raw[3:]
    if (name := _utf16(raw[:4096])) is not None:
        return raw.decode(name, "replace")
    return raw.decode("utf-8", "replace")


def _utf16(head: bytes) -> str | None:
    """The byte order of UTF-16 without a mark: every other byte of Latin text is NUL."""
    if len(head) < 4:
        return None
    even, odd = head[0::2], head[1::2]
    if odd.count(0) * 10 > len(odd) * 9 and even.count(0) * 10 < len(even):
        return "utf-16-le"
    if even.count(0) * 10 > len(even) * 9 and odd.count(0) * 10 < len(odd):
        return "utf-16-be"
    return None


def _without_html(text: str) -> str:
    text = _replaced(_replaced(text, _BREAK, "\n", "<"), _TAG, "", "<")
    # An archive may escape what a mail program had escaped before.
    for _ in range(2):
        if "&" not in text or not _ENTITY.search(text):
            break
        text = html.unescape(text)
    return text.replace("\xa0", " ")


def _without_quoted_printable(text: str) -> str:
    """Undo quoted-printable where every ``=`` of the text is one that it makes, or a header says so."""
    if "=" not in text:
        return text
    soft = len(_SOFT.findall(text))
    coded = len(_QUOTED.findall(text))
    if not soft and "=3D" not in text:
        return text
    if not _HEADER.search(text) and text.count("=") - soft - coded > (1 if text.endswith("=") else 0):
        return text
    joined = _SOFT.sub("", text)
    return re.sub(r"(?:=[0-9A-F]{2})+", _octets, joined)


def _octets(match: re.Match[str]) -> str:
    return bytes.fromhex(match[0].replace("=", "")).decode("utf-8", "replace")
