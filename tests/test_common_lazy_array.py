"""A lazy array is Flower's array for everyone who asks."""

import pickle

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord

from common.lazy_array import LazyArray


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_it_serialises_to_what_flowers_own_would(dtype):
    values = np.arange(6, dtype=dtype).reshape(2, 3)
    ours, theirs = LazyArray(values), Array(values)
    assert (ours.dtype, ours.shape, ours.stype) == (theirs.dtype, theirs.shape, theirs.stype)
    assert ours.data == theirs.data
    # The id is a hash of everything that Flower would send.
    assert ArrayRecord({"x": ours}).object_id == ArrayRecord({"x": theirs}).object_id


def test_it_arrives_in_another_process_as_flowers_own():
    arrived = pickle.loads(pickle.dumps(LazyArray(np.ones(3, np.float32))))
    assert type(arrived) is Array
    assert arrived.numpy().tolist() == [1.0, 1.0, 1.0]


def test_a_receiver_cannot_change_the_senders_memory():
    values = np.zeros(2)
    with pytest.raises(ValueError, match="read-only"):
        LazyArray(values).numpy()[0] = 1.0
