import gzip

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sources import DataError, Layout
from sources.table import TableFormat, read_tables, table_blocks, table_kind

LAYOUT = Layout(("click",), {"price": "log1p", "age": "none"}, ("user", "tags"), multi_hot=("tags",))
ROWS = [(1.5, -3.0, "u1", ["a", "b"]), (None, 7.0, None, None), (0.0, None, "x, y", ["c"])]
TEXT = 'click,price,user,tags,age,other\n1,1.5,u1,a|b,-3,\n5,,,,7,"q"\n,0,"x, y",|c|,,\n'


def rows(path, layout=LAYOUT):
    frame = pl.concat([block.frame for block in table_blocks(path, layout)])
    return frame.select("price", "age", "user", "tags").rows()


def test_text_and_parquet_read_alike_labels_ignored(tmp_path):
    (tmp_path / "a.csv").write_text(TEXT)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(TEXT.encode()))
    (tmp_path / "A.TSV").write_text(TEXT.replace('"x, y"', "@").replace(",", "\t").replace("@", "x, y"))
    columns = list(zip(*ROWS, strict=True))
    table = {"user": columns[2], "age": columns[1], "price": columns[0], "tags": columns[3]}
    pq.write_table(pa.table({k: pa.array(v) for k, v in table.items()}), tmp_path / "a.parquet")
    table["tags"] = ["a|b", None, "|c|"]
    pq.write_table(pa.table({k: pa.array(v) for k, v in table.items()}), tmp_path / "b.parquet")
    for name in ("a.csv", "a.csv.gz", "A.TSV", "a.parquet", "b.parquet"):
        assert rows(tmp_path / name) == ROWS, name
        (block,) = table_blocks(tmp_path / name, LAYOUT)
        assert set(block.frame.columns) == {"price", "age", "user", "tags"}


@pytest.mark.parametrize("name", ["a.txt", "a", "a.parquet.gz", "a.gz"])
def test_a_suffix_that_tells_nothing_is_refused(tmp_path, name):
    with pytest.raises(DataError, match=f"{name}: the name ends in none of .csv, .csv.gz"):
        table_kind(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        list(table_blocks(tmp_path / "none.csv", LAYOUT))
    with pytest.raises(FileNotFoundError):
        list(table_blocks(tmp_path / "none.parquet", LAYOUT))
    with pytest.raises(DataError, match="a.csv and .*b.tsv: give files of one kind"):
        list(read_tables([tmp_path / "a.csv", tmp_path / "b.tsv"], TableFormat(())))
