"""Damage to files: bytes cut, flipped and repeated, other encodings, values of JSON and YAML trees swapped."""

import json
import math
import random
from typing import Any

import yaml

ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 3, 2**70, 0.5, 1e300, math.inf, math.nan),
    *("", "x", "3", "nan", "../x", "\x00", "\u202e"),
    *([], {}, [[]], [1, "a"], {"a": 1}, [None]),
)


def mutate(content: bytes, suffix: str, rng: random.Random) -> tuple[bytes, str, str]:
    """Return damaged content, what was done, and `key: type` where a value got another type, else an empty text."""
    if suffix in {".json", ".jsonl", ".yaml"} and rng.random() < 0.8:
        return mutate_tree(content, suffix, rng)
    if suffix in {".json", ".jsonl", ".yaml", ".csv", ".xml", ".txt"} and rng.random() < 0.3:
        return mutate_text(content, rng)
    return mutate_bytes(content, rng)


def mutate_bytes(content: bytes, rng: random.Random) -> tuple[bytes, str, str]:
    """Cut, flip, repeat, remove or replace bytes; returns as `mutate`."""
    size = len(content)
    place, length = rng.randrange(size), rng.randint(1, max(1, size // 4))
    match rng.choice(("cut", "flip", "flip", "flip", "zero", "repeat", "remove", "empty", "noise")):
        case "cut":
            return content[:place], f"cut at {place}", ""
        case "flip":
            changed = bytearray(content)
            for _ in range(rng.choice((1, 2, 8))):
                changed[rng.randrange(size)] ^= 1 << rng.randrange(8)
            return bytes(changed), "bits flipped", ""
        case "zero":
            return content[:place] + bytes(length) + content[place + length :], f"zeros at {place}", ""
        case "repeat":
            return content[:place] + content[max(0, place - length) :], f"{length} bytes twice", ""
        case "remove":
            return content[:place] + content[place + length :], f"{length} bytes gone", ""
        case "noise":
            return rng.randbytes(length), "noise", ""
        case _:
            return b"", "empty", ""


def mutate_text(content: bytes, rng: random.Random) -> tuple[bytes, str, str]:
    """Write a text in another encoding, with other line ends, or with what texts do not hold; returns as `mutate`."""
    text = content.decode(errors="replace")
    match rng.choice(("utf-16", "latin-1", "nul", "bom", "lines", "long")):
        case "utf-16":
            return text.encode("utf-16"), "UTF-16", ""
        case "latin-1":
            return (text + "\u00e9\u00fc").encode("latin-1", errors="replace"), "Latin-1", ""
        case "nul":
            place = rng.randrange(len(text) + 1)
            return (text[:place] + "\0" + text[place:]).encode(), "a NUL", ""
        case "bom":
            return b"\xef\xbb\xbf" + content, "a byte order mark", ""
        case "lines":
            return text.replace("\n", "\r\n").encode(), "CRLF", ""
        case _:
            return (text + "x" * 200_000 + "\n").encode(), "a very long line", ""


def mutate_tree(content: bytes, suffix: str, rng: random.Random) -> tuple[bytes, str, str]:
    """Swap, remove or nest one value of a JSON, JSON lines or YAML file; returns as `mutate`."""
    match suffix:
        case ".json":
            tree = json.loads(content)
        case ".jsonl":
            tree = [json.loads(line) for line in content.splitlines()]
        case _:
            tree = yaml.safe_load(content)
    whole = {"root": tree}
    holder: Any = whole
    key: Any = "root"
    for _ in range(rng.randint(0, 6)):
        inner = holder[key]
        if not isinstance(inner, dict | list) or not inner:
            break
        holder, key = inner, rng.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
    old, odd, change, other = holder[key], rng.choice(ODD_VALUES), rng.random(), ""
    depth = rng.choice((50, 100_000))
    if change < 0.1 and holder is not whole:
        del holder[key]
        what = f"{key} removed"
    elif change < 0.15:
        holder[key] = "@deep@"
        what = f"{key} nested {depth} deep"
    else:
        holder[key] = odd
        what = f"{key}: {str(old)[:30]!r} became {str(odd)[:30]!r}"
        quoted = suffix == ".yaml" and odd == "3" and kind_of(old) == "number"  # a setting is what its text says
        other = "" if quoted or kind_of(old) == kind_of(odd) else f"{key}: {kind_of(odd)}"
    text = dump(whole["root"], suffix)
    deep = "[" * depth + "]" * depth
    return text.replace('"@deep@"', deep).replace("'@deep@'", deep).encode(errors="surrogatepass"), what, other


def kind_of(value: Any) -> str:
    """Return the JSON type of a value; whole and other numbers are one."""
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def dump(tree: Any, suffix: str) -> str:
    """Return a tree as the text of a file with this suffix."""
    match suffix:
        case ".json":
            return json.dumps(tree, ensure_ascii=False)
        case ".jsonl":
            rows = tree if isinstance(tree, list) else [tree]
            return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        case _:
            return yaml.safe_dump(tree, allow_unicode=True, sort_keys=False)
