import pytest
from frames import FrameSource, make_frame


@pytest.fixture
def make_source(tmp_path, monkeypatch):
    """make_source(rows=..., size=...) -> a source; small parts, so that every data set has several."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datastore.collect.PART_ROWS", 20)

    def make(rows=200, seed=0, **options):
        return FrameSource(tmp_path, make_frame(rows, seed), **options)

    return make
