"""Damages of one format each: sizes that a header declares, keys and entries that are there twice, and bombs: small files that unpack to much."""

import functools
import io
import json
import pickle
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.random import Generator

from tests.faults.mutations import BIG, BYTES, Damage, bending, dump_json, dump_npy, dump_npz, dump_torch, nested, one_bit

DEEP = 100_000  # levels
BOMB_BYTES = 1 << 30  # what a compressed bomb unpacks to


def npy(shape: str, dtype: str = "'<f4'", body: bytes = bytes(64)) -> bytes:
    header = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body


HUGE_NPY = (
    npy("(1000000000000, 3)"), npy("(2147483647, 2147483647)"), npy("(900000000, 3)"), npy("(100000000, 3)"), npy("(9999999999999999999999, 3)"),
    npy("(-1, 3)"), npy("(True, 3)"), npy("(66, 3)", "'<U500000000'"), npy("(66, 3)", "'|V2000000000'"), npy("(3, 4)", "'|O'"),
    npy("(66, 3)", "'<f9'"),
    npy("(0, 10000000000000)"), npy("(" + "1, " * 100 + ")"), npy("(" * 9000 + ")" * 9000), npy("(66, 3)", "[('x', '<f4')] * 10**9"),
    b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(100), b"\x93NUMPY\x03\x00\xff\xff\xff\x7f{", b"\x93NUMPY\x09\x09\x10\x00" + bytes(100),
    npy("(66, 3)", "[" * 4000 + "]" * 4000),
)


def huge_npy(data: bytes, rng: Generator) -> bytes:
    return HUGE_NPY[rng.integers(len(HUGE_NPY))]


def huge_in_npz(data: bytes, rng: Generator) -> bytes:
    """One member is an npy that declares too much, with a right checksum."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members[list(members)[rng.integers(len(members))]] = huge_npy(data, rng)
    return zipped(list(members.items()))


def zipped(members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a name that is there already
                archive.writestr(zipfile.ZipInfo(name), content, compress_type=compression)
    return file.getvalue()


def zip_directory(data: bytes, rng: Generator) -> bytes:
    """One field of one entry of the directory, or of a local header, or of the end record."""
    changed = bytearray(data)
    signature, fields = [(b"PK\x01\x02", ((10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (42, 4))),
                         (b"PK\x03\x04", ((8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2))),
                         (b"PK\x05\x06", ((8, 2), (10, 2), (12, 4), (16, 4), (20, 2)))][rng.integers(3)]
    places, place = [], data.find(signature)
    while place >= 0:
        places.append(place)
        place = data.find(signature, place + 4)
    offset, width = fields[rng.integers(len(fields))]
    start = places[rng.integers(len(places))] + offset if places else 0
    changed[start:start + width] = (int(rng.choice(np.array(BIG, dtype=object))) % 2**(8 * width)).to_bytes(width, "little")
    return bytes(changed)


def entries_twice(data: bytes, rng: Generator) -> bytes:
    """A second entry of the same name and other content: which of the two counts?"""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    name, content = members[rng.integers(len(members))]
    return zipped([*members, (name, one_bit(content, rng) if content else b"x")])


@functools.cache
def zeros_packed(before: bytes, size: int, adler: bool) -> tuple[bytes, int]:
    """`before` and so many zeros as a deflate stream, and their Adler-32 (CRC-32 without `adler`). Fast: one block, again and again."""
    block = bytes(1 << 24)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = packer.compress(before) + packer.flush(zlib.Z_FULL_FLUSH)
    one = packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)
    last = packer.compress(block[:size % len(block)]) + packer.flush()
    check, blocks = zlib.adler32 if adler else zlib.crc32, size // len(block)
    value = check(before)
    for _ in range(blocks):
        value = check(block, value)
    value = check(block[:size % len(block)], value)
    return head + one * blocks + last, value


def zlib_stream(before: bytes, size: int) -> bytes:
    packed, check = zeros_packed(before, size, True)
    return b"\x78\xda" + packed + struct.pack(">I", check)


def npz_bomb(data: bytes, rng: Generator) -> bytes:
    """A gigabyte of zeros in a megabyte, and the header of the array is true."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        name = archive.namelist()[0].encode()
    rows = BOMB_BYTES // 12
    head = npy(f"({rows}, 3)", body=b"")
    packed, crc = zeros_packed(head, rows * 12, False)
    sizes = (crc, len(packed), len(head) + rows * 12, len(name), 0)
    local = struct.pack("<4sHHHHHIIIHH", b"PK\x03\x04", 20, 0, 8, 0, 33, *sizes) + name
    entry = struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\x01\x02", 20, 20, 0, 8, 0, 33, *sizes, 0, 0, 0, 0, 0) + name
    return local + packed + entry + struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 1, 1, len(entry), len(local) + len(packed), 0)


def png_size(data: bytes, rng: Generator) -> bytes:
    """Another width, height, depth or kind in the first chunk, with a right checksum."""
    width, height = (int(rng.choice([0, 1, 63, 65, 5000, 30000, 100_000, 1 << 20, 2**31 - 1])) for _ in range(2))
    depth, kind, interlaced = int(rng.choice([8, 8, 1, 16, 3])), int(rng.choice([2, 2, 0, 3, 6, 9])), int(rng.choice([0, 0, 1]))
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlaced)
    return data[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]


def png_bomb(data: bytes, rng: Generator) -> bytes:
    """20000 x 20000 black pixels that are all there."""
    side = 20_000
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0), b"IDAT" + zlib_stream(b"", (1 + 3 * side) * side), b"IEND"]
    return data[:8] + b"".join(struct.pack(">I", len(one) - 4) + one + struct.pack(">I", zlib.crc32(one)) for one in chunks)


def jpeg_size(data: bytes, rng: Generator) -> bytes:
    place = next(data.find(bytes([0xFF, kind])) for kind in (0xC0, 0xC2) if data.find(bytes([0xFF, kind])) >= 0)
    height, width = (int(rng.choice([0, 1, 63, 65, 3000, 30000, 65535])) for _ in range(2))
    return data[:place + 5] + struct.pack(">HH", height, width) + data[place + 9:]


def ply_count(data: bytes, rng: Generator) -> bytes:
    count = ["1000000000000", "99999999999999999999999", "9" * 5000, "-1", "0", "1e9", "12 12", "１２", "2147483648"][rng.integers(9)]
    head, _, rest = data.partition(b"element vertex ")
    return head + b"element vertex " + count.encode() + rest[rest.index(b"\n"):]


def ply_header(data: bytes, rng: Generator) -> bytes:
    lines = [b"property double x" + b"x" * 60000, b"property list uchar int q", b"element face 3", b"format ascii 1.0", b"property float x",
             b"\xff\xfe", b"end_header", b"property float " + b"y" * 300]
    head, _, rest = data.partition(b"property float x\n")
    return head + lines[rng.integers(len(lines))] + b"\nproperty float x\n" + rest


def mp4_field(data: bytes, rng: Generator) -> bytes:
    """One number of a box that holds sizes, counts or times."""
    boxes = [name for name in b"stsz stts stsc stco mdhd tkhd avc1 avcC ctts elst mvhd stss".split() if name in data]
    start = data.index(boxes[rng.integers(len(boxes))]) - 4 + 4 * int(rng.integers(12))
    return data[:start] + (int(rng.choice(np.array(BIG, dtype=object))) % 2**32).to_bytes(4, "big") + data[start + 4:]


def mat_bomb(data: bytes, rng: Generator) -> bytes:
    packed = zlib_stream(struct.pack("<II", 14, BOMB_BYTES), BOMB_BYTES)
    return data[:128] + struct.pack("<II", 15, len(packed)) + packed


def deep_json(data: bytes, rng: Generator) -> bytes:
    return [b"[" * DEEP, b"[" * DEEP + b"]" * DEEP, b'{"frames":' * DEEP + b"1" + b"}" * DEEP, b'{"frames": ' + b"[" * DEEP + b"]" * DEEP + b"}",
            b'{"cameras": ' + b"9" * 10000 + b"}", b'{"frames": 1e999999}', b'{"size": ' + b"9" * 5000 + b"}"][rng.integers(7)]


def keys_twice_json(data: bytes, rng: Generator) -> bytes:
    """The last of two equal keys would count: the first says the same or nothing."""
    key = str(list(json.loads(data))[0])
    return b"{" + json.dumps(key).encode() + b": null, " + data.strip()[1:]


def alias_bomb(data: bytes, rng: Generator) -> bytes:
    """Ten times ten times ...: 10^9 values in ten lines; or a value that holds itself."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    maps = ["a0: &a0 {x: 1}"] + [f"a{n}: &a{n} {{p: *a{n - 1}, q: *a{n - 1}, r: *a{n - 1}, s: *a{n - 1}}}" for n in range(1, 16)]
    merges = ["a0: &a0 {x: 1}"] + [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 9)]
    texts = ["\n".join(lines), "\n".join(maps), "\n".join(merges), "dataset: &d {dataroot: *d}", "a: &a [*a]", "\n".join(lines) + "\ngpu_id: *a8",
             "\n".join(lines) + "\nrecorder: *a8", "a: &a {<<: *a}"]
    return texts[rng.integers(len(texts))].encode()


def deep_yaml(data: bytes, rng: Generator) -> bytes:
    deep = DEEP // 20
    return [b"[" * deep, b"dataset: " + b"[" * deep + b"]" * deep, b"{a: " * deep + b"1" + b"}" * deep, b"- " * deep, b"gpu_id: " + b"9" * 20000,
            b"? " * deep, b"batch_size: " + b"1_" * 3000, b"lr_lmk: 1e999999", b"gpu_id: 2001-99-99", b"gpu_id: !!python/object:os.system x",
            b"gpu_id: !!binary x", b"gpu_id: !!timestamp x", b"gpu_id: !!float x", b"gpu_id: !!int x", b"? [a, b]\n: 1", b"1: 2", b"null: 2",
            b"? {a: 1}\n: 2", b"gpu_id: !!set {a, b}", b"--- 1\n--- 2"][rng.integers(20)]


def keys_twice_yaml(data: bytes, rng: Generator) -> bytes:
    lines = data.splitlines(keepends=True)
    keyed = [number for number, line in enumerate(lines) if b":" in line and not line.lstrip().startswith((b"#", b"-"))]
    chosen = keyed[rng.integers(len(keyed))]
    indent = lines[chosen][:len(lines[chosen]) - len(lines[chosen].lstrip())]
    return b"".join([*lines[:chosen], indent + lines[chosen].split(b":")[0].lstrip() + b": 1\n", *lines[chosen:]])


class Call:
    """Pickled, it is a call of a function by name with arguments."""

    def __init__(self, module: str, name: str, *arguments: Any) -> None:
        self.module, self.name, self.arguments = module, name, arguments


class _Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """The pickler in Python, which can be taught to name functions that are not there."""

    def save(self, obj: Any, *arguments: Any, **options: Any) -> None:
        if isinstance(obj, Call):
            self.write(b"c" + obj.module.encode() + b"\n" + obj.name.encode() + b"\n")
            pickle._Pickler.save(self, obj.arguments)  # type: ignore[attr-defined]
            self.write(b"R")
            return
        super().save(obj, *arguments, **options)


def pickled(value: Any, protocol: int = 2) -> bytes:
    file = io.BytesIO()
    _Pickler(file, protocol=protocol).dump(value)
    return file.getvalue()


def huge_pickle(data: bytes, rng: Generator) -> bytes:
    """Declared or made by the few functions that a face model needs."""
    key = ["v_template", "meanshape", "f", "shapedirs", "full_lmk_faces_idx"][rng.integers(5)]
    laughs = b"\x80\x02](lp0\n0" + b"g0\ng0\n\x86p0\n0" * 40 + b"g0\n."
    return [
        b"\x80\x02X\xff\xff\xff\x7f", b"\x80\x04\x8e" + struct.pack("<Q", 10**12), b"\x80\x02U\xff",
        b"\x80\x04\x95" + struct.pack("<Q", 2**63 - 1) + b"}.",
        pickled({key: Call("numpy", "ndarray", (10**12,), "f8")}), pickled({key: Call("numpy", "ndarray", (1 << 28,), "f8")}),
        pickled({key: Call("numpy.core.multiarray", "_reconstruct", np.ndarray, (1 << 28,), "d")}),
        pickled({key: Call("numpy", "dtype", "V2000000000")}),
        pickled({key: Call("_codecs", "encode", "x" * 1000, "latin1")}), pickled({key: Call("posix", "system", "true")}),
        pickled({key: Call("collections", "OrderedDict", [[1, 2]] * 100)}), laughs, b"\x80\x02" + b"(" * DEEP,
        b"\x80\x02" + b"]" * DEEP + b"a" * (DEEP - 1) + b".",
        b"\x80\x02}" + b"q\x00h\x00" * 10 + b".", b"\x80\x02r\xff\xff\xff\x7f.", b"\x80\x02]r\xff\xff\xff\x0f.", pickled({key: nested(100, list)}),
        pickled({key: [[1.0] * 3, [1.0] * 2]}), pickled({key: 1 << 10000}),
    ][rng.integers(20)]


NPY = (Damage("sizes declared", "npy header", huge_npy),)
NPZ = (Damage("sizes declared", "npy header in npz", huge_in_npz), Damage("sizes declared", "zip directory", zip_directory),
       Damage("wrong content", "entry twice", entries_twice), Damage("bomb", "a gigabyte of zeros", npz_bomb))
ZIP = (Damage("sizes declared", "zip directory", zip_directory), Damage("sizes declared", "zip directory", zip_directory),
       Damage("wrong content", "entry twice", entries_twice))
PNG = (Damage("sizes declared", "IHDR", png_size), Damage("sizes declared", "IHDR", png_size), Damage("bomb", "400 million pixels", png_bomb))
JPEG = (Damage("sizes declared", "SOF", jpeg_size), Damage("sizes declared", "SOF", jpeg_size))
PLY = (Damage("sizes declared", "element count", ply_count), Damage("wrong content", "header line", ply_header))
MP4 = (Damage("sizes declared", "field of a box", mp4_field),) * 3
JSON = (Damage("bomb", "deeply nested", deep_json), Damage("wrong content", "key twice", keys_twice_json))
YAML = (Damage("bomb", "aliases", alias_bomb), Damage("bomb", "deeply nested, odd tags", deep_yaml),
        Damage("wrong content", "key twice", keys_twice_yaml))
PICKLE = (Damage("sizes declared", "calls and lengths", huge_pickle), Damage("sizes declared", "calls and lengths", huge_pickle))
MAT = (Damage("bomb", "a gigabyte of zeros", mat_bomb),)


def of_json(content: Any) -> tuple[Damage, ...]:
    """All that is done to a JSON file of this content; the others likewise."""
    return BYTES + bending(content, dump_json) + JSON


def of_npz(arrays: dict[str, np.ndarray]) -> tuple[Damage, ...]:
    return BYTES + bending(arrays, dump_npz) + NPZ


def of_npy(array: Any) -> tuple[Damage, ...]:
    return BYTES + bending(array, dump_npy) + NPY


def of_torch(content: Any) -> tuple[Damage, ...]:
    return BYTES + bending(content, dump_torch) + ZIP


def of_pickle(content: Any, dump: Callable[[Any], bytes]) -> tuple[Damage, ...]:
    return BYTES + bending(content, dump) + PICKLE
