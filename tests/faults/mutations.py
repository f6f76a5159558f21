"""Ways to damage a file: of bytes, whatever they mean; and of values, written again as a whole file.

A damage is a function of the file's bytes and a random generator alone, so that (file, number of the trial) names it for ever.
"""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import yaml
from numpy.random import Generator

BIG = (0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF, 10**12, 2**31, 2**32 - 2, 65535, 0)


@dataclass(frozen=True)
class Damage:
    """`family`: the row of the table that it belongs to."""

    family: str
    name: str
    apply: Callable[[bytes, Generator], bytes]


# Bytes -------------------------------------------------------------------------------------------------------------


def one_bit(data: bytes, rng: Generator) -> bytes:
    changed = bytearray(data)
    changed[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def some_bytes(data: bytes, rng: Generator) -> bytes:
    changed = bytearray(data)
    for place in rng.integers(len(data), size=rng.integers(2, 17)):
        changed[place] ^= int(rng.integers(1, 256))
    return bytes(changed)


def header_bytes(data: bytes, rng: Generator) -> bytes:
    """Where sizes and types usually are."""
    changed = bytearray(data)
    for place in rng.integers(min(len(data), 128), size=rng.integers(1, 4)):
        changed[place] = int(rng.choice([0, 0x7F, 0x80, 0xFF, rng.integers(256)]))
    return bytes(changed)


def run_of(value: int | None) -> Callable[[bytes, Generator], bytes]:
    def apply(data: bytes, rng: Generator) -> bytes:
        start, length = int(rng.integers(len(data))), int(rng.integers(1, 513))
        filling = rng.bytes(length) if value is None else bytes([value]) * length
        return (data[:start] + filling + data[start + length:])[:len(data)]
    return apply


def big_number(data: bytes, rng: Generator) -> bytes:
    """Over four or eight bytes at any place."""
    width, order = int(rng.choice([4, 8])), str(rng.choice(["little", "big"]))
    start = int(rng.integers(max(1, len(data) - width)))
    value = int(rng.choice(np.array(BIG, dtype=object))) % 2**(8 * width)
    return data[:start] + value.to_bytes(width, order) + data[start + width:]


def piece_lost(data: bytes, rng: Generator) -> bytes:
    start = int(rng.integers(len(data)))
    return data[:start] + data[start + int(rng.integers(1, max(2, len(data) // 4))):]


def piece_twice(data: bytes, rng: Generator) -> bytes:
    start, length = int(rng.integers(len(data))), int(rng.integers(1, max(2, len(data) // 4)))
    return data[:start + length] + data[start:]


BYTES = (
    Damage("bytes flipped", "one bit", one_bit), Damage("bytes flipped", "some bytes", some_bytes), Damage("bytes flipped", "header", header_bytes),
    Damage("bytes flipped", "zeros", run_of(0)), Damage("bytes flipped", "ones", run_of(255)), Damage("bytes flipped", "noise", run_of(None)),
    Damage("bytes flipped", "big number", big_number),
    Damage("cut off", "end lost", lambda data, rng: data[:rng.integers(len(data))]),
    Damage("cut off", "beginning lost", lambda data, rng: data[rng.integers(1, len(data)):]),
    Damage("cut off", "piece lost", piece_lost), Damage("cut off", "empty", lambda data, rng: b""),
    Damage("cut off", "piece twice", piece_twice), Damage("cut off", "something appended", lambda data, rng: data + rng.bytes(rng.integers(1, 300))),
)


# Values ------------------------------------------------------------------------------------------------------------


def nested(levels: int, kind: type) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value] if kind is list else {"a": value}
    return value


def bent(value: Any, rng: Generator) -> Any:
    """A tree of dicts, lists, arrays, tensors and plain values with one place changed; the deeper the place, the rarer."""
    if isinstance(value, dict) and value:
        key = list(value)[rng.integers(len(value))]
        if rng.random() < 0.75:
            return value | {key: bent(value[key], rng)}
        rest = {name: item for name, item in value.items() if name != key}
        return [rest, rest | {f"{key}x": value[key]}, value | {"more": value[key]}, value | {key: None}, {}][rng.integers(5)]
    if isinstance(value, list | tuple) and value:
        place = int(rng.integers(len(value)))
        if rng.random() < 0.75:
            return type(value)([*value[:place], bent(value[place], rng), *value[place + 1:]])
        lost = [*value[:place], *value[place + 1:]]
        return type(value)([lost, [*value, value[place]], [], [value], list(value) * 50][rng.integers(5)])
    if isinstance(value, torch.Tensor):
        return _bent_tensor(value, rng)
    if isinstance(value, np.ndarray):
        return _bent_array(value, rng)
    return _odd(value, rng)


def _odd(value: Any, rng: Generator) -> Any:
    odd: list[Any] = [None, "", "text", "1e3", "../../x", -1, 0, 1, True, 2**31, 10**30, -1e308, 1e39, float("nan"), float("inf"), [], {}, [[]],
                      [float("nan")], {"a": 1}, "\0", "é" * 300, nested(50, list)]
    if isinstance(value, int | float) and not isinstance(value, bool):
        odd += [-value, value + 1, float(value) * 1e20, str(value), [value]]
    return odd[rng.integers(len(odd))]


def _bent_array(array: np.ndarray, rng: Generator) -> np.ndarray:
    if array.dtype.kind not in "fiu":
        return np.zeros(array.shape)
    wide, flat = array.astype(np.float64), array.astype(np.float64).reshape(-1)
    place = int(rng.integers(max(1, array.size)))

    def with_value(number: float) -> np.ndarray:
        copy = flat.copy()
        copy[place:place + 1] = number
        return copy.reshape(array.shape).astype(array.dtype if array.dtype.kind == "f" else np.float64)

    with np.errstate(all="ignore"):
        made: list[Callable[[], np.ndarray]] = [
            lambda: with_value(np.nan), lambda: with_value(np.inf), lambda: with_value(-np.inf), lambda: with_value(1e300),
            lambda: with_value(-1e30), lambda: wide * 0, lambda: -wide, lambda: wide * 1e6,
            lambda: wide, lambda: wide.astype(np.float16), lambda: wide.astype(np.int8), lambda: wide.astype(np.uint64), lambda: wide.astype(complex),
            lambda: wide.astype(bool), lambda: wide.astype(str), lambda: wide.astype(">f8"), lambda: wide.astype(np.longdouble),
            lambda: wide.astype("datetime64[s]"), lambda: flat, lambda: wide[None], lambda: wide[..., None], lambda: wide.T, lambda: wide[:0],
            lambda: wide[:-1] if wide.ndim else flat[:0], lambda: np.concatenate([wide, wide]) if wide.ndim else wide, lambda: wide[..., :1],
            lambda: np.float64(3.0) * np.ones(()), lambda: np.zeros((0, 0)), lambda: np.zeros((1,) * 30), lambda: np.asfortranarray(wide),
            lambda: np.zeros(2, dtype=[("a", "f4"), ("b", "i4")]), lambda: np.zeros((3, 0, 4)), lambda: np.array(b"bytes"),
        ]
        return np.asarray(made[rng.integers(len(made))]())


def _bent_tensor(tensor: torch.Tensor, rng: Generator) -> Any:
    wide = tensor.detach().double()
    flat = wide.reshape(-1).clone()
    with_nan = flat.clone()
    with_nan[rng.integers(max(1, flat.numel())):][:1] = float(rng.choice([np.nan, np.inf, -np.inf]))
    made: list[Callable[[], Any]] = [
        lambda: with_nan.reshape(tensor.shape).to(tensor.dtype if tensor.is_floating_point() else torch.float32), lambda: wide, lambda: tensor.half(),
        lambda: tensor.to(torch.complex64), lambda: tensor.bool(), lambda: tensor.to(torch.int8), lambda: tensor.bfloat16(), lambda: flat,
        lambda: tensor[None], lambda: tensor[..., None],
        lambda: tensor[:0] if tensor.ndim else tensor, lambda: tensor[:-1] if tensor.ndim else tensor,
        lambda: torch.zeros(()), lambda: torch.zeros(1).expand(10**12), lambda: tensor[None].expand(10**9, *tensor.shape), lambda: tensor.to_sparse(),
        lambda: tensor.to("meta"), lambda: tensor.mT.contiguous() if tensor.ndim > 1 else tensor, lambda: None, lambda: "text", lambda: [tensor],
        lambda: tensor * 1e30 if tensor.is_floating_point() else tensor - 1, lambda: torch.nn.Parameter(wide), lambda: -tensor, lambda: tensor * 0,
    ]
    return made[rng.integers(len(made))]()


def dump_npz(value: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **{str(key): np.asarray(item, dtype=object) if isinstance(item, list | dict) else np.asarray(item) for key, item in value.items()})
    return file.getvalue()


def dump_npy(value: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, value)
    return file.getvalue()


def dump_torch(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def dump_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def dump_yaml(value: Any) -> bytes:
    return yaml.safe_dump(value).encode()


def bending(content: Any, dump: Callable[[Any], bytes]) -> tuple[Damage, ...]:
    """Other keys, types, shapes and values, written by the same program as the right ones. Six in turn: they are the most various."""
    return (Damage("wrong content", "bent", lambda data, rng: dump(bent(content, rng))),) * 6
