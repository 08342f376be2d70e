import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from sources.prefetch import in_order_ahead, prefetch


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


def squares(stop, error=None):
    yield from range(stop)
    if error:
        raise error


@pytest.mark.parametrize("ahead", [0, 1, 5])
def test_results_come_in_order_whatever_takes_long(ahead):
    def work(number):
        time.sleep(0.005 * (number % 3 == 0))
        return number**2

    with ThreadPoolExecutor(3) as pool:
        assert list(in_order_ahead(pool, work, squares(20), ahead)) == [n**2 for n in range(20)]


@pytest.mark.parametrize("ahead", [0, 2, 50])
def test_errors_come_out_behind_what_was_before_them_and_nothing_after(ahead):
    def work(number):
        if number == 4:
            raise ValueError("four")
        return number

    for items, error, before in ((squares(9), "four", 4), (squares(3, ValueError("items")), "items", 3)):
        got = []
        with ThreadPoolExecutor(3) as pool, pytest.raises(ValueError, match=error):
            for result in in_order_ahead(pool, work, items, ahead):
                got.append(result)
        assert got == list(range(before))
