import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sources.encoding import ValueIndex


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 40), max_size=20), max_size=5))
def test_value_index_numbers_by_first_appearance(blocks):
    index, seen = ValueIndex(), {}
    for block in blocks:
        got = index.grow(np.array(block, np.uint32))
        assert got.tolist() == [seen.setdefault(v, len(seen)) for v in block]
    assert index.values_by_id().tolist() == list(seen)
    again = ValueIndex(index.values_by_id())
    every = np.arange(60, dtype=np.uint32)
    assert again.encode(every).tolist() == [seen.get(v, len(seen)) for v in range(60)]
