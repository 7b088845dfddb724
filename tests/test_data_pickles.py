"""Pickles of every protocol come back as they were; hostile ones run nothing and stay small."""

from __future__ import annotations

import codecs
import collections
import io
import math
import os
import pickle
import struct
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.data.arrays.pickles import read_pickle
from engine.errors import UserError
from tests.tiny import call


def read(content: bytes) -> Any:
    return read_pickle(io.BytesIO(content), len(content), "x.pkl")


def python2_pickle(text: bytes, array: np.ndarray) -> bytes:
    """{text: array} as Python 2 and numpy 1 wrote it in protocol 2: byte strings throughout."""

    def string(value: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(value)) + value

    shape = b"(" + b"".join(b"J" + struct.pack("<i", n) for n in array.shape) + b"t"
    dtype = b"cnumpy\ndtype\n(" + string(b"u1") + b"K\x00K\x01tR(K\x03" + string(b"|") + b"NNN"
    dtype += b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    empty = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + string(b"b") + b"tR"
    )
    state = b"(K\x01" + shape + dtype + b"\x89" + string(array.tobytes()) + b"tb"
    return b"\x80\x02}" + string(text) + empty + state + b"s."


def test_pickles_of_python_2_are_read():
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    for name, text in ((b"image_data", "image_data"), ("Å".encode(), "Å"), (b"\xc5", "Å")):
        content = read(python2_pickle(name, array))
        assert list(content) == [text]
        assert np.array_equal(content[text], array)
    pairs = b"ccollections\nOrderedDict\n((lp0\n(lp1\nS'a\\n\\x41'\naI7\naatR."
    assert read(pairs) == {"a\nA": 7}
    assert read(b"c__builtin__\nxrange\n(I2\nI9\nI3\ntR.") == range(2, 9, 3)
    assert read(b"(dp1\nS'a'\nL12345678901234567890L\nsVb\nI01\ns.") == {
        "a": 12345678901234567890,
        "b": True,
    }


ORDERS = {
    "C": lambda a: a,
    "F": np.asfortranarray,
    "turned": lambda a: np.stack([a] * 2).transpose(1, 2, 0),
    "strided": lambda a: np.repeat(a, 2, 1)[:, ::2],
}


TYPES = ["u1", "<i8", ">i4", "<u2", "?", "<f2", ">f4", "f8", "U5", ">U5", "S3"]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("order", ORDERS)
def test_arrays_come_back_as_they_were(order, protocol):
    for dtype in TYPES:
        array = ORDERS[order](np.asarray(np.arange(6).reshape(2, 3), dtype))
        back, empty, one = read(pickle.dumps([array, array[:0], array[:1, :1]], protocol))
        assert back.dtype == one.dtype == array.dtype
        assert np.array_equal(back, array)
        assert empty.shape == array[:0].shape
        assert np.array_equal(one, array[:1, :1])


@pytest.mark.parametrize("protocol", range(6))
def test_numpy_1_and_2_are_read(protocol):
    content = pickle.dumps([np.arange(3), np.int16(-4)], protocol)
    for ours, theirs in ((b"numpy._core", b"numpy.core"), (b"numpy.core", b"numpy._core")):
        other = content.replace(ours, theirs)
        if protocol >= 4:  # the lengths of the names and of the frame change
            for name in (b"multiarray", b"numeric"):
                old, new = (x + b"." + name for x in (ours, theirs))
                other = other.replace(bytes([len(old)]) + new, bytes([len(new)]) + new)
        assert read(other)[0].tolist() == [0, 1, 2]
        assert read(other)[1] == -4


VALUES = {
    "numbers": [0, 1, -1, 255, 256, 65536, -(2**31), 2**31, 2**62, -(2**70), 2.5, True, None],
    "text": ["", "a", "é\n'\\", "\U0001f600", "x" * 300, "y" * 70_000],
    "bytes": [b"", b"a", b"\xff\n'\\", b"x" * 300, bytearray(b"abc"), bytearray()],
    "numpy": [np.int64(3), np.uint8(255), np.float32(0.5), np.bool_(True)],
    "numpy's text": [np.str_("é"), np.bytes_(b"a")],
    "nested": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], [[]], {}, {"a": {1: [2]}}],
    "ordered": collections.OrderedDict([("b", 1), ("a", [2])]),
    "default": collections.defaultdict(list, {"b": [1]}),
    "counted": collections.defaultdict(int, {"b": 1}),
    "range": [range(3), range(2, 9, 3), range(5, 0, -1), range(0)],
    "many": list(range(3000)),
}  # fmt: skip


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", VALUES)
def test_values_come_back_as_lists_and_dicts(name, protocol):
    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(v) for key, v in value.items()}
        if isinstance(value, tuple | list):
            return [plain(v) for v in value]
        return value.item() if isinstance(value, np.generic) else value

    back = read(pickle.dumps(VALUES[name], protocol))
    assert back == plain(VALUES[name])
    if name == "numbers":
        assert [type(v) for v in back] == [type(v) for v in VALUES[name]]


@pytest.mark.parametrize("protocol", range(6))
def test_sets_come_back_as_lists(protocol):
    back = read(pickle.dumps([{1, 2}, frozenset("ab"), set()], protocol))
    assert [sorted(v) for v in back] == [[1, 2], ["a", "b"], []]


def test_the_file_stays_open_and_shared_values_stay_shared():
    shared = [1, 2]
    file = io.BytesIO(pickle.dumps({"a": shared, "b": shared, "c": [shared]}, 4))
    back = read_pickle(file, len(file.getvalue()), "x.pkl")
    assert back["a"] is back["b"] is back["c"][0]
    assert not file.closed


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def persistent(protocol: int) -> bytes:
    file = io.BytesIO()
    pickler = pickle.Pickler(file, protocol)
    pickler.persistent_id = lambda value: "id" if value == "x" else None
    pickler.dump(["x"])
    return file.getvalue()


def doubled(step: bytes, start: bytes = b"]", levels: int = 60) -> bytes:
    """``step`` with @ for the memo entry before it, over and over."""
    steps = b"".join(step.replace(b"@", b"h" + bytes([i])) + b"\x94" for i in range(levels))
    return b"\x80\x04" + start + b"\x94" + steps + b"."


def array_of(shape: bytes, data: bytes = b"C\x00", dtype: bytes = b"u1") -> bytes:
    """Protocol 5's form; ``shape`` and ``data`` as opcodes."""
    name = b"U" + bytes([len(dtype)]) + dtype
    kind = b"cnumpy\ndtype\n(" + name + b"tR"
    return b"\x80\x05cnumpy.core.numeric\n_frombuffer\n(" + data + kind + shape + b"U\x01CtR."


def sized(code: bytes, form: str, count: int) -> bytes:
    return b"\x80\x04" + code + struct.pack(form, count) + b"abc."


ENCODED_OFTEN = (
    b"c_codecs\nencode\np0\nX\xa0\x86\x01\x00" + b"a" * 100_000 + b"U\x06latin1\x86q\x01"
    b"" + b"h\x00h\x01R" * 10_000 + b"."
)
PAIRS = b"](" + b"".join(b"(J" + struct.pack("<i", i) + b"Nt" for i in range(20_000)) + b"e\x85"
MADE_OFTEN = (
    b"(ccollections\nOrderedDict\nq\x00" + PAIRS + b"q\x01" + b"h\x00h\x01R" * 20_000 + b"l."
)
UNICODE = b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n(U\x02U1tRC\x04"
INTEGER = b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n(U\x02i8tR"
KEYS = b"".join(b"J" + struct.pack("<i", i) + b"N" for i in range(140_000))
LARGE = b"\x8a\x08" + bytes(7) + b"\x40"  # 2**62

HOSTILE = {
    # what would run
    "a command": pickle.dumps(Call(os.system, "touch ran")),
    "a command in protocol 0": pickle.dumps(Call(os.system, "touch ran"), 0),
    "evaluation": pickle.dumps(Call(eval, "open('ran', 'w')")),
    "a file": pickle.dumps(Call(open, "ran", "w")),
    "numpy's loader": pickle.dumps(Call(np.load, "x.npy")),
    "another codec": pickle.dumps(Call(codecs.encode, "abc", "rot13"), 2),
    "objects": pickle.dumps(np.array([Call(os.system, "touch ran")], dtype=object), 2),
    "only objects": pickle.dumps(np.array([None], dtype=object), 2),
    "objects in protocol 5": array_of(b"K\x01\x85", b"C\x08abcdefgh", b"O8"),
    "a structure": pickle.dumps(np.zeros(2, "u1,u1"), 4),
    "dotted name": b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__dict__\x93.",
    "a name of two lines": b"\x80\x04\x8c\x03o\ns\x8c\x06system\x93.",
    "a name that is a number": b"\x80\x04K\x01K\x02\x93.",
    "INST": b"(S'touch ran'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nS'touch ran'\no.",
    "OBJ of a known name": b"(c__builtin__\nlist\no.",
    "NEWOBJ": b"\x80\x02c__builtin__\nlist\n)\x81.",
    "NEWOBJ_EX": b"\x80\x04c__builtin__\nlist\n)}\x92.",
    "a type's call": b"cnumpy\nndarray\n)R.",
    "EXT1": b"\x80\x02\x82\x01.",
    "EXT2": b"\x80\x02\x83\x01\x00.",
    "EXT4": b"\x80\x02\x84\x01\x00\x00\x00.",
    "a persistent object": persistent(2),
    "a persistent object in protocol 0": persistent(0),
    "a buffer elsewhere": b"\x80\x05\x97.",
    "a read-only buffer": b"\x80\x05C\x01a\x98.",
    "a changed function": b"cnumpy.core.multiarray\n_reconstruct\nN}S'__defaults__'\nNs\x86b.",
    "a changed class": b"cnumpy\nndarray\nN}S'value'\nNs\x86b.",
    "a changed dict": b"}}S'__class__'\nNsb.",
    "a changed list": b"]}b.",
    "a called list": b"])R.",
    "a called text": b"S'a'\n)R.",
    "a call by no tuple": b"c__builtin__\nlist\nK\x01R.",
    "a function as a value": b"cnumpy\nndarray\n.",
    "a dtype as a value": b"cnumpy\ndtype\n(U\x02u1tR.",
    "an array without its state": b"cnumpy.core.multiarray\n_reconstruct\n)R.",
    # what would grow or never end
    "lists of lists": doubled(b"](@@e"),
    "pairs of pairs": doubled(b"@@\x86", b")"),
    "dicts of dicts": doubled(b"}(K\x01@K\x02@u", b"}"),
    "sets of sets": doubled(b"\x8f(@@\x90", b"\x8f"),
    "pairs by DUP": b"\x80\x02)" + b"2\x86" * 60 + b".",
    "one array, often": pickle.dumps([np.zeros(60_000, np.uint8)] * 20_000, 4),
    "a list in itself": b"]\x94h\x00a.",
    "a dict in itself": b"}\x94K\x01h\x00s.",
    "a list in its dict": b"]\x94}K\x01h\x00sa.",
    "bytes of 2**62": sized(b"\x8e", "<Q", 2**62),
    "bytes of 2**64": sized(b"\x8e", "<Q", 2**64 - 1),
    "bytes of 2**32": sized(b"B", "<I", 2**32 - 1),
    "a byte array of 2**62": sized(b"\x96", "<Q", 2**62),
    "text of 2**62": sized(b"\x8d", "<Q", 2**62),
    "text of 2**32": sized(b"X", "<I", 2**32 - 1),
    "a string of 2**31": sized(b"T", "<i", 2**31 - 1),
    "a string of -1": sized(b"T", "<i", -1),
    "a number of 2**31 bytes": sized(b"\x8b", "<i", 2**31 - 1),
    "a number of -1 bytes": sized(b"\x8b", "<i", -1),
    "a number of 255 bytes": b"\x80\x02\x8a\xff" + bytes(254) + b"\x01.",
    "a number of 1e6 digits": b"L" + b"9" * 1_000_000 + b"L\n.",
    "a place of 1e6 digits": b"Np" + b"9" * 1_000_000 + b"\n.",
    "one text encoded often": ENCODED_OFTEN,
    "one list made a dict often": MADE_OFTEN,
    "a range of 1e12": b"c__builtin__\nrange\n\x8a\x05\x00\x00\x00\x00\x7f\x85R.",
    "a range of 1e70": b"c__builtin__\nrange\nL" + b"9" * 70 + b"L\n\x85R.",
    "a range without steps": b"c__builtin__\nrange\nK\x01K\x02K\x00\x87R.",
    "a range of text": b"c__builtin__\nrange\nU\x01a\x85R.",
    "many ranges": b"(" + b"c__builtin__\nrange\nJ\x00\x50\x01\x00\x85R" * 4_000 + b"l.",
    "a shape of 2**40": array_of(b"\x8a\x06\x00\x00\x00\x00\x00\x01K\x00\x86"),
    "a shape of 2**124": array_of(LARGE + LARGE + b"\x86"),
    "a shape of -1": array_of(b"J\xff\xff\xff\xff\x85", b"C\x01a"),
    "a shape of text": array_of(b"U\x01a\x85"),
    "a shape of 100,000 axes": array_of(b"(" + b"K\x01" * 100_000 + b"t", b"C\x01a"),
    "a shape of 40 axes": array_of(b"(" + b"K\x01" * 40 + b"t", b"C\x01a"),
    "a shape that is itself": array_of(b"]\x94h\x00a", b"C\x01a"),
    "axes that are none": array_of(b"K\x01\x85U\x01KK\x05\x85", b"C\x01a")[:-6] + b"tR.",
    "too few bytes": python2_pickle(b"x", np.zeros((2, 3, 4), np.uint8)).replace(
        b"J\x02\x00\x00\x00", b"J\xff\xff\xff\x7f"
    ),
    "a number of no bytes": INTEGER + b"C\x00\x86R.",
    "a letter of no alphabet": UNICODE + b"\xff\xff\xff\xff\x86R.",
    "a million lists": b"]" * 1_000_000 + b".",
    "a million marks": b"(" * 1_000_000 + b".",
    "a million memo entries": b"N" + b"\x94" * 1_000_000 + b".",
    "140,000 keys": b"}(" + KEYS + b"u.",
    # what is no pickle
    "nothing": b"",
    "only the protocol": b"\x80\x04",
    "no value": b"\x80\x04.",
    "no end": b"\x80\x04]",
    "POP of nothing": b"0.",
    "POP_MARK of nothing": b"1.",
    "DUP of nothing": b"2.",
    "TUPLE3 of one": b"N\x87.",
    "APPEND to nothing": b"Na.",
    "APPENDS without a mark": b"Ne.",
    "items of a dict": b"}Na.",
    "items of None": b"N(NNe.",
    "entries of a list": b"]NNs.",
    "odd entries": b"}(NNNu.",
    "an odd dict": b"(Nd.",
    "a list as a key": b"}]Ns.",
    "a tuple as a key": b"})Ns.",
    "a fraction as a key": b"}G\x00\x00\x00\x00\x00\x00\x00\x00Ns.",
    "NaN as a key": b"}Fnan\nNs.",
    "a key of 1,001 letters": b"}X\xe9\x03\x00\x00" + b"a" * 1001 + b"Ns.",
    "one key twice": b"}(U\x01aK\x01X\x01\x00\x00\x00aK\x02u.",
    "no such memo entry": b"h\x00.",
    "no such place": b"g99999999999999999999\n.",
    "no number": b"Iabc\n.",
    "no fraction": b"Fabc\n.",
    "text without quotes": b"Sabc\n.",
    "a wrong escape": b"S'\\q'\n.",
    "a wrong escape of an escape": b"S'\\\\\\8'\n.",
    "wrong UTF-8": b"X\x02\x00\x00\x00\xff\xff.",
    "a wrong \\u": b"V\\uzzzz\n.",
    "a name without UTF-8": b"c\xff\n\xff\n.",
    "an unknown opcode": b"\xff.",
    "another kind of file": b"PK\x03\x04" + bytes(100),
}  # fmt: skip

HARMLESS = {  # odd, but what they hold is small and plain
    "a memo entry of 2**32": (b"Nr\xff\xff\xff\xff.", None),
    "a memo entry of 1e70": (b"Np" + b"9" * 70 + b"\n.", None),
    "a frame of 2**64": (b"\x80\x04\x95" + b"\xff" * 8 + b"N.", None),
    "protocol 255": (b"\x80\xffN.", None),
    "infinity": (b"Finf\n.", math.inf),
    "half a surrogate pair": (b"X\x03\x00\x00\x00\xed\xa0\x80.", "\ud800"),
    "what follows the end": (b"N.cos\nsystem\n", None),
}


def check_hostile() -> None:
    """Reads every one; prints the longest time and the memory taken on top, in seconds and KiB."""
    import resource  # which Windows has not

    status = Path("/proc/self/status").read_text().splitlines()
    taken = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmSize:"))
    limit = taken + (1 << 28)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    longest = 0.0
    for name, content in HOSTILE.items():
        start = time.process_time()
        try:
            raise SystemExit(f"{name} was read: {type(read(content)).__name__}")
        except UserError as error:
            message = str(error)
        if "\n" in message or len(message) > 500 or "memory" in message:
            raise SystemExit(f"{name}: {message}")
        longest = max(longest, time.process_time() - start)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{longest:.1f} {after - before} {sorted(os.listdir())}")


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match="nothing in it was run|is truncated or no pickle"
    ) as caught:
        read(HOSTILE[name])
    assert list(tmp_path.iterdir()) == []
    assert len(str(caught.value)) < 500


@pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded and read as on Linux")
def test_hostile_pickles_take_little_time_and_memory(tmp_path):
    code, out, err = call("tests.test_data_pickles", cwd=tmp_path)
    assert code == 0, err
    longest, memory, files = out.split(maxsplit=2)
    assert float(longest) < 5
    assert int(memory) < 200_000
    assert files.strip() == "[]"


@pytest.mark.parametrize("name", HARMLESS)
def test_odd_pickles_are_read(name):
    content, value = HARMLESS[name]
    assert read(content) == value


def test_deep_nesting_is_read():
    value = read(b"]" * 60_000 + b"a" * 59_999 + b".")
    depth = 0
    while value:
        (value,) = value
        depth += 1
    assert depth == 59_999


def test_steps_are_bounded(monkeypatch):
    monkeypatch.setattr("engine.data.arrays.opcodes._MOST_STEPS", 100)
    assert read(b"N0" * 49 + b"N.") is None
    with pytest.raises(UserError, match="more than 100 steps"):
        read(b"N0" * 50 + b"N.")


@pytest.mark.parametrize("protocol", [1, 2, 4])
def test_bounds_leave_room_for_honest_files(protocol):
    """Those that make most of fewest bytes."""
    numbers = read(pickle.dumps(list(np.arange(20_000)), protocol))
    assert numbers == list(range(20_000))
    small = read(pickle.dumps([np.zeros(1, np.uint8) for _ in range(9_000)], protocol))
    assert {a.shape for a in small} == {(1,)}
    pairs = read(pickle.dumps([(i, i) for i in range(70_000)], protocol))
    assert pairs[-1] == [69_999, 69_999]
    names = [name for name in ("n01532829", "n01558993") for _ in range(60_000)]
    assert read(pickle.dumps(names, protocol)) == names


def test_what_a_pickle_asks_for_is_printable():
    with pytest.raises(UserError, match=r"asks for 'a\\x1b\[31m\.b'") as caught:
        read(b"ca\x1b[31m\nb\n.")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("keep", [0, 1, 40, 3000, -1])
@pytest.mark.parametrize("protocol", range(6))
def test_truncated_pickles_are_explained(protocol, keep):
    whole = pickle.dumps({"a": np.zeros(9999, np.uint8), "b": list(range(999))}, protocol)
    with pytest.raises(UserError, match="is truncated or no pickle"):
        read(whole[:keep])


def test_every_opcode_is_known():
    """Those of pickletools and no others, so that a new protocol is noticed."""
    from pickletools import opcodes

    from engine.data.arrays.opcodes import _FOREIGN, _STEPS

    assert {o.code.encode("latin-1") for o in opcodes} - {b"."} == set(_STEPS) | set(_FOREIGN)
    assert not set(_STEPS) & set(_FOREIGN)


VALID = [
    pickle.dumps(value, protocol)
    for protocol in range(6)
    for value in (
        {"image_data": np.zeros((2, 3, 3, 3), np.uint8), "class_dict": {"a": [0], "b": range(2)}},
        collections.OrderedDict(x=[np.int64(3), np.str_("é"), None, 2.5, -70000, 2**40, b"ab"]),
        collections.defaultdict(set, {"f": {1, 2}, 3: (1, (2, 3), frozenset([4]))}),
    )
]
PLAIN = (list, dict, range, str, bytes, int, float, bool, type(None), np.ndarray)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_changed_pickles_are_read_or_refused(data):
    content = bytearray(data.draw(st.sampled_from(VALID)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content)))
        length = data.draw(st.integers(0, 3))
        codes = st.sampled_from(bytes(range(256))) | st.sampled_from(
            b"()]}ReabustqrhjlN02.\x94\x86"
        )
        content[at : at + length] = bytes(data.draw(st.lists(codes, max_size=4)))
    try:
        value = read(bytes(content))
    except UserError as error:
        assert str(error).isprintable() and len(str(error)) < 500
    else:
        assert isinstance(value, PLAIN)


if __name__ == "__main__":
    check_hostile()
