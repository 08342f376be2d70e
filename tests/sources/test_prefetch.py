import pytest

from sources.prefetch import prefetch


def test_prefetch_keeps_the_order_passes_errors_and_ends_early():
    assert list(prefetch(iter(range(50)), depth=3)) == list(range(50))

    def broken():
        yield 1
        raise OSError("disk gone")

    batches = prefetch(broken())
    assert next(batches) == 1
    with pytest.raises(OSError, match="disk gone"):
        next(batches)
    endless = prefetch(iter(int, 1))
    next(endless)
    endless.close()  # joins the reader, or hangs
