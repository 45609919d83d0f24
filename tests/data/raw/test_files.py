"""Files of a raw log as others write them: their names and their dialects."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_logs import Raw, load, recast, small_log, write_log

from prectr_torchrec.config.data import DataConfig, RawLog, RawTable
from prectr_torchrec.data.hashing import hash_id
from prectr_torchrec.data.raw.files import MAX_TEXT, open_part
from prectr_torchrec.data.raw.source import RawLogError
from prectr_torchrec.data.raw.tables import open_sources


def clicks(con: duckdb.DuckDBPyConnection) -> int:
    return con.execute("SELECT sum(click) FROM events").fetchall()[0][0]


def csv_log() -> RawLog:
    return RawLog(**{name: RawTable(path=f"{name}.csv") for name in ("impressions", "items", "queries", "judgments")})


@pytest.mark.parametrize("folder", ["click=1", "user_id=off", "a[1]", "12:30", "what?*", "it's", "a\\b", "{a,b}", "**"])
@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_the_name_of_a_folder_means_nothing(tmp_path: Path, folder: str, suffix: str) -> None:
    raw = small_log()
    settings = {"raw": csv_log()} if suffix == "csv" else {}
    con, _ = load(write_log(raw, tmp_path / folder / "raw", suffix=suffix), **settings)
    assert clicks(con) == sum(row["click"] for row in raw["impressions"])


def test_brackets_in_the_name_of_a_file_are_no_pattern_where_the_file_is_there(tmp_path: Path) -> None:
    folder = write_log(small_log(), tmp_path)
    (folder / "items.parquet").rename(folder / "items[1].parquet")
    _, report = load(folder, raw=RawLog(items=RawTable(path="items[1].parquet")))
    assert report["rows"]["items"] == 20
    _, report = load(folder, raw=RawLog(items=RawTable(path="items?1*.parquet")))
    assert report["rows"]["items"] == 20


def test_a_folder_stands_for_its_parts_but_for_marks(tmp_path: Path) -> None:
    raw = small_log()
    folder = write_log(raw, tmp_path)
    for name in ("impressions", "items"):
        parts = folder / f"{name}.parquet"
        table = pq.read_table(parts)
        parts.unlink()
        (parts / "day=1").mkdir(parents=True)
        (parts / "_SUCCESS").touch()
        (parts / ".part.crc").touch()
        pq.write_table(table.slice(0, 5), parts / "part-0.snappy.parquet")
        pq.write_table(table.slice(5), parts / "day=1" / "part-1.snappy.parquet")
    for pattern in ("impressions.parquet", "impress*", "**/*.snappy.parquet"):
        with_items = RawLog(impressions=RawTable(path="impressions.parquet/**/*" if "**" in pattern else pattern))
        _, report = load(folder, raw=with_items)
        assert report["rows"]["impressions"] == len(raw["impressions"])
    assert report["rows"]["items"] == len(raw["items"])


def test_a_table_of_a_lake_is_no_folder_of_parts(tmp_path: Path) -> None:
    folder = write_log(small_log(), tmp_path)
    (folder / "delta" / "_delta_log").mkdir(parents=True)
    with pytest.raises(RawLogError, match="delta is a Delta table, of which some files may be void"):
        load(folder, raw=RawLog(items=RawTable(path="delta")))


def write_csv(raw: Raw, folder: Path, name: str, delimiter: str = ",", end: str = "\n", encoding: str = "utf-8") -> Path:
    """One table of a log as CSV, values as they are."""
    columns = list(raw[name][0])
    lines = [columns, *([str(row[column]) for column in columns] for row in raw[name])]
    file = folder / f"{name}.csv"
    file.write_bytes("".join(delimiter.join(line) + end for line in lines).encode(encoding))
    return file


@pytest.mark.parametrize(
    ("delimiter", "end", "encoding", "settings"),
    [
        (";", "\n", "utf-8", {}),
        ("\t", "\r\n", "utf-8-sig", {}),
        ("|", "\n", "latin-1", {"encoding": "latin-1"}),
        ("~", "\n", "utf-16", {"encoding": "utf-16", "delimiter": "~"}),
    ],
)
def test_every_dialect_gives_the_same_titles(
    tmp_path: Path, delimiter: str, end: str, encoding: str, settings: dict[str, Any]
) -> None:
    raw = small_log()
    for row in raw["items"]:
        row |= {"category_id": 1, "title": f"pencil #2, {row['title']}"}
    folder = write_log(raw, tmp_path)
    write_csv(raw, folder, "items", delimiter, end, encoding)
    con, _ = load(folder, raw=RawLog(items=RawTable(path="items.csv", **settings)))
    assert con.execute("SELECT title FROM items ORDER BY item_id").fetchall() == [(row["title"],) for row in raw["items"]]


def test_lines_that_begin_with_a_hash_are_rows(tmp_path: Path) -> None:
    folder = write_log(small_log(), tmp_path)
    rows = "".join(f"#{i},{5000 + i}\n" for i in range(5)) + '"#\n5",5005\n'
    (folder / "queries.csv").write_text(f"query,query_id\n\n{rows}", encoding="utf-8")
    con, report = load(folder, raw=RawLog(queries=RawTable(path="queries.csv")))
    assert report["rows"]["queries"] == 6
    assert con.execute("SELECT query FROM queries ORDER BY query_id").fetchall() == [*((f"#{i}",) for i in range(5)), ("#\n5",)]


def test_an_apostrophe_quotes_where_it_is_said_to(tmp_path: Path) -> None:
    folder = write_log(small_log(), tmp_path)
    rows = "".join(f"{5000 + i},'a, \"b\" {i}'\n" for i in range(6))
    (folder / "queries.csv").write_text(f"query_id,query\n{rows}", encoding="utf-8")
    con, _ = load(folder, raw=RawLog(queries=RawTable(path="queries.csv", quote="'")))
    assert con.execute("SELECT query FROM queries ORDER BY query_id LIMIT 1").fetchall() == [('a, "b" 0',)]
    (folder / "queries.csv").write_text("query_id,query\n" + "".join(f'{5000 + i},"6 in\n' for i in range(6)), encoding="utf-8")
    con, _ = load(folder, raw=RawLog(queries=RawTable(path="queries.csv", quote=None)))
    assert con.execute("SELECT DISTINCT query FROM queries").fetchall() == [('"6 in',)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("5006,lamp,red", "row 7 has 3 fields, the header has 2"),
        ("5006", "row 7 has 1 fields, the header has 2"),
        ('5006,"lamp', "row 7: a quote is never closed"),
        ('5006,"lamp"s', "row 7: ',' expected after '\"'"),
        ("5006,l\xe4mp", "row 7 is not utf-8"),
    ],
)
def test_a_row_that_is_none_is_named_with_its_reason(tmp_path: Path, line: str, reason: str) -> None:
    folder = write_log(small_log(), tmp_path)
    rows = "".join(f"{5000 + i},lamp\n" for i in range(6))
    (folder / "queries.csv").write_bytes(f"query_id,query\n{rows}{line}\n".encode("latin-1"))
    with pytest.raises(RawLogError, match=f"queries: .*queries.csv cannot be read: {reason}"):
        load(folder, raw=RawLog(queries=RawTable(path="queries.csv")))


def test_empty_parts_and_compressed_ones_are_read(tmp_path: Path) -> None:
    raw = small_log()
    for row in raw["items"]:
        row["category_id"] = 1
    folder = write_log(raw, tmp_path)
    items = write_csv(raw, folder, "items").read_bytes()
    (folder / "items").mkdir()
    with gzip.open(folder / "items" / "part-1.csv.gz", "wb") as file:
        file.write(items)
    (folder / "items" / "part-0.csv").touch()
    _, report = load(folder, raw=RawLog(items=RawTable(path="items")))
    assert report["rows"]["items"] == 20
    (folder / "items" / "part-1.csv.gz").unlink()
    with pytest.raises(RawLogError, match=r"part-0\.csv is empty; a CSV begins with the names"):
        load(folder, raw=RawLog(items=RawTable(path="items")))


def test_a_compressed_file_that_breaks_off_is_named(tmp_path: Path) -> None:
    folder = write_log(small_log(), tmp_path)
    rows = "".join(f"{5000 + i},lamp {i * 7919 % 1000}\n" for i in range(3000))
    whole = gzip.compress(f"query_id,query\n{rows}".encode())
    (folder / "queries.csv.gz").write_bytes(whole[:-200])
    with pytest.raises(RawLogError, match=r"queries: .*queries.csv.gz cannot be read: (after row \d+: )?Compressed file ended"):
        load(folder, raw=RawLog(queries=RawTable(path="queries.csv.gz")))


def test_a_tab_may_be_written_as_a_shell_hands_it_over() -> None:
    assert RawTable(path="x", delimiter="\\t").delimiter == "\t"
    for wrong in ({"delimiter": '"'}, {"delimiter": "\n"}, {"quote": "\0"}, {"delimiter": "||"}, {"quote": "ä"}):
        with pytest.raises(ValueError, match=r"must differ, and end no line|at most 1 character|must be an ASCII character"):
            RawTable(path="x", **wrong)


def test_a_quote_is_no_delimiter(tmp_path: Path) -> None:
    folder = write_log(small_log(), tmp_path)
    (folder / "queries.csv").write_text("query_id;query\n,1000,;,a;b,\n", encoding="utf-8")
    table = RawTable(path="queries.csv", quote=",")
    part = open_part(duckdb.connect(), "queries", table, folder / "queries.csv", ["query_id", "query"])
    assert part is not None and duckdb.sql(f"FROM {part.scan()}").fetchall() == [("1000", "a;b")]


@pytest.mark.parametrize(("written", "read"), [("4001.0", 4001), ("9007199254740993.0", None), ("4001.5", None)])
def test_ids_that_a_csv_has_as_floats_are_those_of_integers(tmp_path: Path, written: str, read: int | None) -> None:
    folder = write_log(small_log(), tmp_path)
    rows = "".join(f"{value},1\n" for value in ("1000.0", written, ""))
    (folder / "users.csv").write_text(f"user_id,age\n{rows}", encoding="utf-8")
    settings: dict[str, Any] = {"raw": RawLog(users=RawTable(path="users.csv")), "user_attributes": ["age"]}
    if written.endswith(".0") and read is None:
        with pytest.raises(RawLogError, match=r"column 'user_id', row 2: '9007199254740993.0'; expected an id"):
            load(folder, **settings)
        return
    con, report = load(folder, **settings)
    assert report["id_kinds"]["user_id"] == ("integer" if read else "text")
    found = con.execute("SELECT user_id FROM users ORDER BY user_id").fetchall()
    assert found == ([(1000,), (4001,)] if read else sorted((hash_id(text),) for text in ("1000.0", written)))


def test_what_a_file_has_instead_of_a_column_is_told_in_one_line(tmp_path: Path) -> None:
    folder = write_log(small_log(), tmp_path)
    pq.write_table(pa.table({"a\x1b[31m\nb": [1], **{f"x{i}": [1] for i in range(99)}}), folder / "queries.parquet")
    with pytest.raises(RawLogError) as error:
        load(folder)
    lines = str(error.value).splitlines()
    assert len(lines) == 2 and r"columns there: 'a\x1b[31m\nb', x0, " in lines[0] and " and 50 more." in lines[0]


def test_any_attribute_has_values_of_its_own(tmp_path: Path) -> None:
    raw = small_log()
    names = [
        "rowid",
        "user_id",
        "filename",
        "c0",
        "a1",
        "click#",
        "../../../../ESC",
        "Price EUR",
        'a"b',
        "request_id",
        "query",
        "NULL",
    ]
    for number, row in enumerate(raw["items"], 1):
        row |= {name: number * 100 + place for place, name in enumerate(names)}
    con, _ = load(write_log(raw, tmp_path), item_attributes=[*names, "category_id"])
    columns = ", ".join(f"items_{place}" for place in range(len(names)))
    found = con.execute(f"SELECT {columns} FROM items ORDER BY item_id").fetchall()
    assert found == [tuple(number * 100 + place for place in range(len(names))) for number in range(1, 21)]


@pytest.mark.parametrize(
    "name", ["shown", "age", "position", "title", "item_id", "query_id", "Title", "in_group", "title_tokens"]
)
def test_an_attribute_that_samples_have_anyway_is_refused_with_another_name(name: str) -> None:
    with pytest.raises(
        ValueError, match=f"'{name}' is the name of a column that the samples have anyway; .*{{item_{name}: {name}}}"
    ):
        DataConfig(item_attributes=["category_id", name])


@pytest.mark.parametrize("name", ["user_id", "events", "user_query_events", "clicked"])
def test_so_is_one_of_users(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' is the name of a column"):
        DataConfig(user_attributes=[name])


def test_attributes_are_told_from_each_other() -> None:
    with pytest.raises(ValueError, match="user_attributes: 'user_age' is there twice"):
        DataConfig(user_attributes=["age", "user_age"])


def test_a_text_of_many_bytes_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    folder = write_log(small_log(), tmp_path)
    recast(folder / "items.parquet", "title", lambda c: pa.array(["x" * 2**24, *c.to_pylist()[1:]]))
    with pytest.raises(
        RawLogError, match=f"column 'title', rows 1 to 20 take [0-9,]+ bytes; expected at most {MAX_TEXT:,} bytes a"
    ):
        open_sources(duckdb.connect(), DataConfig(), folder)


@pytest.mark.parametrize("name", ["title", "brand_id"])
def test_a_text_that_is_too_long_is_named(tmp_path: Path, name: str) -> None:
    folder = write_log(small_log(), tmp_path)
    recast(folder / "items.parquet", name, lambda c: pa.array(["x"] * 6 + ["y" * (MAX_TEXT + 1)] + ["z"] * 13))
    with pytest.raises(RawLogError, match=rf"column '{name}', row 7: 'y{{40}}'...; expected at most {MAX_TEXT:,} bytes"):
        load(folder)


def test_one_message_tells_all_that_is_wrong(tmp_path: Path) -> None:
    raw = small_log()
    raw["impressions"][3]["click"] = 5
    raw["impressions"][4]["position"] = -2
    raw["items"].append(raw["items"][0])
    raw["queries"].append(raw["queries"][2])
    raw["judgments"][1]["relevance"] = 99.0
    with pytest.raises(RawLogError) as error:
        load(write_log(raw, tmp_path))
    lines = str(error.value).splitlines()
    wrong = ["'click', row 4: 5", "'position', row 5: -2", "(item_id)", "(query_id)", "'relevance', row 2"]
    assert len(lines) == len(wrong) and all(w in line for w, line in zip(wrong, lines, strict=True)), error.value
    (tmp_path / "items.parquet").unlink()
    other = {"impressions": {"click": "clack"}, "queries": {"query": "querry"}}
    tables = {name: RawTable(path=f"{name}.parquet", columns=columns) for name, columns in other.items()}
    recast(tmp_path / "judgments.parquet", "item_id", lambda c: pa.array([[1]] * len(c)))
    with pytest.raises(RawLogError) as error:
        load(tmp_path, raw=RawLog(**tables))
    lines = str(error.value).splitlines()
    wrong = ["column 'clack' is missing", "items: there is no file", "'querry' is missing", "'position', row 5: -2"]
    wrong += ["'item_id' is BIGINT[]; expected ids", "'relevance', row 2"]
    assert len(lines) == len(wrong) and all(w in line for w, line in zip(wrong, lines, strict=True)), error.value


def test_a_name_of_a_column_that_is_no_text_is_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    pq.write_table(pa.table({"item_id": [1], "titré": ["a"]}), path)
    first, _, last = path.read_bytes().rpartition("é".encode())  # of the column's chunk; the schema has it before
    path.write_bytes(first + b"\xed\x28" + last)
    with duckdb.connect() as con, pytest.raises(RawLogError, match=r"items\.parquet cannot be read: "):
        open_part(con, "items", RawTable(path="items.parquet"), path, ["item_id"])


def test_a_footer_that_contradicts_itself_is_refused_and_ends_no_process(tmp_path: Path) -> None:
    """A column that has been written as optional and now says that it is not: PyArrow ends the process where it looks at it."""
    folder = write_log(small_log(), tmp_path)
    items = (folder / "items.parquet").read_bytes()
    optional = b"\x25\x02\x18\x05title"
    assert items.count(optional) == 1
    (folder / "items.parquet").write_bytes(items.replace(optional, b"\x25\x00\x18\x05title"))
    with pytest.raises(RawLogError, match=r"items.parquet"):
        load(folder)
