"""The search that validates."""

import numpy as np
import torch
from labelled import Labelled

from locore.pipeline.validation import held_out, validation_search
from locore.reranking import Shortlist


def test_whole_classes_are_held_out_and_fill_a_list():
    labels = np.repeat(np.arange(50), 4)
    made_by = np.zeros(200, dtype=int)
    held = held_out(labels, made_by, 8)
    assert len(np.unique(labels[held])) == 5 and not set(labels[held]) & set(labels[~held])
    assert held_out(labels, made_by, 40).sum() == 44  # more than forty, so that a list fits
    made_by[labels % 2 == 1] = 1
    assert set(labels[held_out(labels, made_by, 8)] % 2) == {0}


def test_held_out_queries_ask_for_images_of_the_whole_gallery():
    labels = np.repeat(np.arange(10), 6)
    images, table = Labelled(labels), Shortlist.random(60, 1, 4, 12, 20).query
    asking, searched = labels < 2, labels < 9
    search, rows = validation_search(images, table, asking, searched, candidates=7)
    assert rows.tolist() == np.flatnonzero(searched).tolist()
    asked = search.queries.rows.numpy()[search.rows]
    assert rows[asked].tolist() == np.flatnonzero(asking).tolist()
    torch.testing.assert_close(torch.from_numpy(search.queries.global_matrix), table.global_descriptor[rows[asked]])
    similar = table.global_descriptor @ table.global_descriptor.T
    for row, found, right in zip(rows[asked], search.neighbours.indices, search.right, strict=True):
        others = torch.from_numpy(np.setdiff1d(rows, row))
        nearest = others[similar[row, others].argsort(descending=True)]
        assert rows[found[:7]].tolist() == nearest[:7].tolist()
        assert (right == (labels[rows[found]] == labels[row])).all()
