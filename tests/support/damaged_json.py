"""Records that are damaged, odd or hostile: one that is sound, changed in any of its parts, or cut, or no file."""

from __future__ import annotations

import copy
import hashlib
import json
import lzma
import os
import random
from pathlib import Path
from typing import Any

HOSTILE = "a|b`c`<script>alert(1)</script>\n# x\x00\x1b[2J $\\frac$ _y_ [l](http://x) @all \u202e"
# Not strings of JSON: these stand for what `json.dumps` does not write.
LITERALS = {"@1e999": "1e999", "@-1e999": "-1e999", "@5000": "9" * 5000, "@400": "9" * 400, "@deep": "[" * 10**5}
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 3.5, 2**63, 1e308, 1e-320, -0.0, float("nan"), float("inf")),
    *LITERALS,
    *("", HOSTILE, "\udcff", "x" * 5000, "_x", "$x$", "../../x", "NaN", "1.5", "2026-99-99T00:00:00Z"),
    *([], {}, [None], [[]], ["a", 1], [1, 2], {"": 1}, {"a": {"b": [1]}}, {HOSTILE: HOSTILE}),
]
DEEP: Any = 1
for _ in range(80):
    DEEP = {"a": DEEP}
VALUES.append(DEEP)


def places(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The keys that lead to every value within; of long lists the first three."""
    inner = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    return [above, *(place for key, v in inner for place in places(v, (*above, key)))]


def changed(raw: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """One to three values of a record replaced, taken away, renamed or added."""
    raw = copy.deepcopy(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        # a key near the top as likely as one of many far below
        deep = rng.randrange(1, 5)
        found = [p for p in places(raw) if p and len(p) <= deep]
        *above, key = rng.choice(found or [("kind",)])
        parent: Any = raw
        for step in above:
            parent = parent[step]
        match rng.randrange(5):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[rng.choice(("unknown", HOSTILE, "x_ms", "", "ms_per_video"))] = rng.choice(VALUES)
            case 2 if isinstance(parent, list):
                parent.append(rng.choice(VALUES))
            case _:
                parent[key] = rng.choice(VALUES)
    return raw


def content_of(raw: object) -> bytes:
    """JSON as a careless or hostile program writes it, with what Python's does not."""
    text = json.dumps(raw)
    for word, literal in LITERALS.items():
        text = text.replace(f'"{word}"', literal)
    return text.encode("utf-8", "surrogatepass")


def broken(content: bytes, rng: random.Random) -> bytes:
    """The bytes of a record, damaged on a disk or by another program."""
    at = rng.randrange(1, len(content))
    match rng.randrange(8):
        case 0:
            return content[:at]
        case 1:
            return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
        case 2:
            return content[:at] + b"\xff\xfe\x80" + content[at:]
        case 3:
            return b"\xef\xbb\xbf" + content
        case 4:
            return content.decode().encode("utf-16")
        case 5:
            return content + content
        case 6:
            return bytes(at)
        case _:
            return rng.choice((b"", b"{", b"[" * 10**6, b"null", b"[]", b'"x"', b"{}", b'{"a":' * 10**5))


def write_odd(path: Path, raw: dict[str, Any], rng: random.Random) -> str:
    """Put a damaged record at `path`, and say of which sort."""
    sort = rng.choices(("changed", "broken", "samples", "no file"), (70, 15, 8, 7))[0]
    if sort == "changed":
        path.write_bytes(content_of(changed(raw, rng)))
    elif sort == "broken":
        path.write_bytes(broken(content_of(raw), rng))
    elif sort == "samples":
        _odd_samples(path, raw, rng)
    else:
        makers = (os.mkdir, os.mkfifo, lambda p: os.symlink("nowhere", p), lambda p: os.symlink(path.name, p))
        rng.choice((*makers, lambda p: os.symlink("/dev/zero", p)))(path)
    return sort


def _odd_samples(path: Path, raw: dict[str, Any], rng: random.Random) -> None:
    """A record whose compressed samples are cut, a bomb, missing, another's, or elsewhere."""
    beside = path.with_name(f"{path.stem}.samples.json.xz")
    whole = lzma.compress(json.dumps(raw["samples"]).encode())
    bomb = lzma.compress(bytes(2**28), preset=0)
    content = rng.choice(
        (whole, whole[:-20], b"", b"no xz", bomb, lzma.compress(b'{"a": ["x"]}'), lzma.compress(b"[1]"))
    )
    name = rng.choice((beside.name, beside.name, beside.name, f"../{beside.name}", "/dev/zero", "", 5))
    if rng.randrange(6):
        beside.write_bytes(content)
    elif rng.randrange(2):
        os.mkfifo(beside)
    digest = rng.choice((hashlib.sha256(content).hexdigest(),) * 4 + ("0" * 64, None))
    said = {"name": name, "sha256": digest, "count_min_median_max": {}}
    path.write_text(json.dumps(raw | {"samples": {}, "samples_file": said}))
