"""Pickles from outside: what they may hold comes through, what would run code does not."""

import io
import os
import pickle

import numpy as np
import pytest
import torch

from locore.utils.unpickle import unpickle


class Hostile:
    def __reduce__(self):
        return os.mkdir, (self.folder,)


def hostile(folder) -> Hostile:
    value = Hostile()
    value.folder = str(folder)
    return value


PLAIN = [
    {"imlist": ["a", "b"], "gnd": [{"bbx": (1.5, 2), "easy": [1, 2], "none": None, "set": b"bytes"}]},
    np.arange(6, dtype=np.int64).reshape(2, 3),
    [np.float32(1.5), np.int64(3), np.array(["x", "yz"])],
    torch.arange(12, dtype=torch.float32).view(2, 3, 2),
    {"none": np.empty(0, dtype=np.int64)},
    {"half": torch.ones(3).half(), "long": torch.arange(4)[1:]},
]


@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
@pytest.mark.parametrize("number", range(len(PLAIN)))
def test_plain_values_arrays_and_tensors_come_through(tmp_path, number, protocol):
    value, path = PLAIN[number], tmp_path / "values.pkl"
    path.write_bytes(pickle.dumps(value, protocol))
    found = unpickle(path)
    assert type(found) is type(value)
    assert repr(found) == repr(value)


LARGE = np.random.default_rng(0).normal(size=(2, 300, 500))
MAPPED = {
    "array": LARGE,
    "by columns": np.asfortranarray(LARGE),
    "tensor": torch.from_numpy(LARGE),
    "bfloat16": torch.from_numpy(LARGE).bfloat16(),
    "bool": torch.from_numpy(LARGE > 0).repeat(1, 4, 1),
    "a view": torch.from_numpy(LARGE)[:, ::2, 3:],
}


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", MAPPED)
def test_large_values_are_views_of_the_file_and_are_as_they_were(tmp_path, kind, protocol):
    value, path = MAPPED[kind], tmp_path / "large.pkl"
    path.write_bytes(pickle.dumps([value, value], protocol))
    first, second = unpickle(path)
    assert first is second and type(first) is type(value) and first.dtype == value.dtype
    assert first.shape == value.shape and bool((first == value).all())


@pytest.mark.parametrize("cut", [1, 9, 10**6])
@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_a_large_value_that_is_cut_off_is_refused(tmp_path, kind, cut):
    path = tmp_path / "large.pkl"
    path.write_bytes(pickle.dumps(MAPPED[kind])[:-cut])
    with pytest.raises(ValueError, match=r"large.pkl' is not a pickle of plain values"):
        unpickle(path)


def test_the_header_of_a_large_tensor_runs_no_code(tmp_path):
    """Its storage is a pickle within the pickle."""

    class Storage:
        def __reduce__(self):
            data = io.BytesIO()
            torch.save(hostile(tmp_path / "made"), data, _use_new_zipfile_serialization=False)
            return torch.storage._load_from_bytes, (data.getvalue() + bytes(2**21),)

    (tmp_path / "large.pkl").write_bytes(pickle.dumps(Storage()))
    with pytest.raises(ValueError, match="it asks for"):
        unpickle(tmp_path / "large.pkl")
    assert not (tmp_path / "made").exists()


def inside_a_tensor(folder) -> bytes:
    """A pickle whose tensor's bytes are themselves a hostile pickle, as torch.load would run it."""

    class Storage:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (pickle.dumps(hostile(folder)),)

    return pickle.dumps(Storage())


def inside_a_saved_file(folder) -> bytes:
    data = io.BytesIO()
    torch.save(hostile(folder), data)

    class Storage:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (data.getvalue(),)

    return pickle.dumps([Storage()])


def inside_an_array(folder) -> bytes:
    return pickle.dumps(np.array([hostile(folder)], dtype=object))


@pytest.mark.parametrize(
    "make",
    [
        lambda f: pickle.dumps(hostile(f)),
        lambda f: pickle.dumps({"imlist": [hostile(f)]}),
        inside_an_array,
        inside_a_tensor,
        inside_a_saved_file,
    ],
)
def test_code_is_refused(tmp_path, make):
    path, folder = tmp_path / "values.pkl", tmp_path / "made"
    path.write_bytes(make(folder))
    with pytest.raises(ValueError, match="is not a pickle of plain values, arrays and tensors"):
        unpickle(path)
    assert not folder.exists()


@pytest.mark.parametrize(
    "name", ["builtins eval", "os system", "codecs open", "torch load", "numpy load", "_codecs encode"]
)
def test_functions_are_refused_by_name(tmp_path, name):
    path = tmp_path / "values.pkl"
    module, function = name.split()
    argument = "(S'a'\nS'rot13'\nt" if name == "_codecs encode" else "(S'1'\nt"
    path.write_bytes(f"c{module}\n{function}\n{argument}R.".encode())
    with pytest.raises(ValueError, match="is not a pickle of plain values"):
        unpickle(path)


def test_a_type_made_of_parts_and_state_of_functions_are_refused(tmp_path):
    """A field of objects in a type that says it has none would make numpy follow whatever the bytes say."""

    class Type:
        def __reduce__(self):
            fields = {"a": (np.dtype("O"), 0)}
            return np.dtype, ("V8", False, True), (3, "|", None, ("a",), fields, 8, 1, 0)

    path = tmp_path / "values.pkl"
    function = b"cnumpy._core.numeric\n_frombuffer\nN}(X\x0c\x00\x00\x00__defaults__K\x01\x85u\x86b."
    for content in (pickle.dumps(Type()), function):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="it sets the state of a"):
            unpickle(path)
    assert np._core.numeric._frombuffer.__defaults__ != (1,)


def test_damage_is_reported(tmp_path):
    path = tmp_path / "values.pkl"
    path.write_bytes(pickle.dumps(np.arange(1000))[:200])
    with pytest.raises(ValueError, match="get another"):
        unpickle(path)


def _pickled(*parts: bytes) -> bytes:
    return b"\x80\x03" + b"".join(parts) + b"."


NDARRAY, DTYPE = b"cnumpy\nndarray\n", b"cnumpy\ndtype\n(X\x02\x00\x00\x00i8tR"
ADDRESS = b"B\x08\x00\x00\x00AAAAAAAA"


@pytest.mark.parametrize(
    "content",
    [
        # An array of one object, at an address that the file names.
        _pickled(NDARRAY, b"(K\x01\x85X\x01\x00\x00\x00O", ADDRESS, b"tR"),
        # The same in parts.
        _pickled(NDARRAY, b"(K\x01\x85](X\x01\x00\x00\x00aX\x01\x00\x00\x00Ote", ADDRESS, b"tR"),
        # More numbers than there are bytes of.
        _pickled(
            b"cnumpy._core.multiarray\n_reconstruct\n(",
            NDARRAY,
            b"K\x00\x85C\x01btR(K\x01K\x64\x85",
            DTYPE,
            b"\x89",
            ADDRESS,
            b"tb",
        ),
        # Text of a negative length.
        _pickled(
            b"cnumpy._core.multiarray\nscalar\n(cnumpy\ndtype\n(X\x02\x00\x00\x00S8tR",
            b"(K\x03X\x01\x00\x00\x00|NNNJ\xff\xff\xff\xffK\x01K\x00tb",
            ADDRESS,
            b"tR",
        ),
        _pickled(b"cnumpy._core.multiarray\nscalar\n(cnumpy\ndtype\n(X\x01\x00\x00\x00OtR", ADDRESS, b"tR"),
    ],
)
def test_no_address_is_taken_from_a_file(tmp_path, content):
    path = tmp_path / "values.pkl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a pickle of plain values"):
        unpickle(path)
