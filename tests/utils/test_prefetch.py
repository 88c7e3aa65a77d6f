"""What is computed beforehand is what a loop computes, by threads and by processes."""

import os

import h5py
import numpy as np
import pytest
import torch

from locore.descriptors import ames_files
from locore.reranking import Shortlist
from locore.utils import prefetch


@pytest.fixture(params=[0, 3], ids=["threads", "processes"])
def workers(request, monkeypatch):
    monkeypatch.setattr(prefetch, "_workers", lambda: request.param)
    return request.param


def test_results_come_in_the_order_of_the_items(workers):
    state, own = torch.get_rng_state(), os.getpid()
    found = list(prefetch.ahead(lambda n: (torch.full((2, 3), n), os.getpid()), range(20)))
    assert [int(value[0, 0]) for value, _ in found] == list(range(20))
    assert len({process for _, process in found} - {own}) == workers
    assert torch.equal(torch.get_rng_state(), state)
    assert list(prefetch.ahead(str, [])) == []


def test_an_error_keeps_its_message(workers):
    def function(n):
        if n == 5:
            raise ValueError("Cannot read the image 'a.jpg'; get it again.")
        return n

    read = prefetch.ahead(function, range(20))
    assert [next(read) for _ in range(5)] == list(range(5))
    with pytest.raises(ValueError, match=r"^Cannot read the image 'a\.jpg'; get it again\.$"):
        next(read)


@pytest.mark.parametrize("chunks", [None, (2, 4, 9)])
def test_descriptors_on_disk_are_read_by_others(workers, tmp_path, chunks):
    features = np.random.default_rng(0).normal(size=(40, 4, 9)).astype(np.float16)
    with h5py.File(tmp_path / "local.hdf5", "w") as file:
        file.create_dataset(ames_files.LOCALS, data=features, chunks=chunks)
    ames_files.write_globals(tmp_path / "global.f32", np.eye(40, dtype=np.float32))
    table = ames_files.Stored(np.eye(40, dtype=np.float32), ames_files.Locals(tmp_path / "local.hdf5", 40))
    table[torch.arange(3)]  # opened before it is read by others

    def gathered(row):
        near = torch.tensor([[row + 1, row + 2]])
        return Shortlist.gather(table, torch.tensor([row]), table, near, torch.device("cpu"))

    for row, found in enumerate(prefetch.ahead(gathered, range(12))):
        expected = gathered(row)
        assert torch.equal(found.candidates.local, expected.candidates.local)
        assert torch.equal(found.similarities, expected.similarities)


def test_an_iteration_that_is_left_ends_its_workers(workers):
    read = prefetch.ahead(lambda n: (n, os.getpid()), range(1000))
    _, process = next(read)
    read.close()
    if workers:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_cores_are_shared_by_the_processes_that_were_launched(monkeypatch):
    monkeypatch.setattr(prefetch.os, "cpu_count", lambda: 16)
    for count, expected in ((1, 8), (2, 7), (8, 1)):
        monkeypatch.setattr(prefetch.distributed, "count", lambda count=count: count)
        assert prefetch._workers() == expected
