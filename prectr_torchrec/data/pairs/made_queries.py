"""Queries made of the words of titles. A log's own queries know few words; a student of them alone knows no others.

A made query is as many words of a title as a query of the log has: a run of them, or some here and there in their order. It is
paired with that title, with one of the same category and with two that share a word with it. Users mistype, so some are made
once more with a typing error. A teacher can grade such pairs like any other; they have no clicks and no grades of their own.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from prectr_torchrec.config.text import PairsConfig
from prectr_torchrec.data.hashing import hash_id, hash_sql, normalised_sql
from prectr_torchrec.data.raw.source import Connection, one_row

SHARING_A_WORD = 2
COMMON = 0.05
"""A word of a greater share of the titles draws items only where a query has no other."""
MINIMUM_WORDS = 3
"""Of a title that queries are made of."""


def make_queries(con: Connection, pairs: PairsConfig, origin: int) -> None:
    """Adds made queries to table queries, and their pairs to table drawn; texts that the log's queries have are left out.

    Args:
        con: with tables known, items, queries, drawn, placed and spans.
        pairs: how many, and the seed.
        origin: what drawn calls them.
    """
    count = round(pairs.made_queries * one_row(con, "SELECT count(DISTINCT query) FROM known")[0])
    if not count:
        return
    con.execute(f"CREATE TABLE worded AS SELECT rowid AS item, {_words('title')} AS words FROM items")
    con.register("texts", _texts(con, count, pairs))
    con.execute(
        f"""CREATE TABLE made AS WITH known_texts AS (SELECT {normalised_sql("query")} AS text FROM queries)
        SELECT query_id, query, min(item) AS item FROM texts t
        ANTI JOIN known_texts k ON k.text = t.query ANTI JOIN known_texts m ON m.text = t.meant
        ANTI JOIN queries i ON i.query_id = t.query_id GROUP BY ALL ORDER BY query_id"""
    )
    con.unregister("texts")
    con.execute("INSERT INTO queries BY NAME SELECT query_id, query FROM made")
    con.execute("CREATE TABLE asking AS SELECT q.rowid AS query, m.query_id, item FROM made m JOIN queries q USING (query_id)")
    con.execute(
        f"""INSERT INTO drawn SELECT DISTINCT query, item, {origin} FROM (SELECT query, item FROM asking
        UNION ALL {_of_the_category(pairs.seed)} UNION ALL {_of_a_word(con, pairs.seed)})"""
    )


def _texts(con: Connection, count: int, pairs: PairsConfig) -> pa.Table:
    """`query_id`, `query`, what was `meant` by it if there is an error in it, and `item`, of drawn titles."""
    random, errors = np.random.default_rng(pairs.seed), np.random.default_rng((pairs.seed, 1))
    own = con.execute(
        f"SELECT len({_words('query')}) AS n FROM queries q SEMI JOIN known k ON k.query = q.rowid ORDER BY q.rowid"
    )
    number_of_words = random.choice(own.fetchnumpy()["n"], count)
    items = random.integers(0, one_row(con, "SELECT count(*) FROM items")[0], count)
    con.register("wanted", pa.table({"number": np.arange(count), "item": items}))
    found = con.sql("SELECT item, words FROM wanted JOIN worded USING (item) ORDER BY number").to_arrow_table()
    con.unregister("wanted")
    made = []
    for item, words, wanted in zip(*(found[name].to_pylist() for name in ("item", "words")), number_of_words, strict=True):
        wanted = min(max(int(wanted), 1), len(words))
        if random.random() < 0.5:
            start = int(random.integers(len(words) - wanted + 1))
            chosen = words[start : start + wanted]
        else:
            chosen = [words[place] for place in sorted(random.permutation(len(words))[:wanted])]
        if len(words) >= MINIMUM_WORDS:
            text = " ".join(chosen)
            made.append((hash_id(f"made query {text}"), text, text, item))
            if errors.random() < pairs.mistyped:
                wrong = mistype(text, errors)
                made.append((hash_id(f"made query {wrong}"), wrong, text, item))
    columns = zip(*made, strict=True) if made else ((), (), (), ())
    types = {"query_id": pa.int64(), "query": pa.string(), "meant": pa.string(), "item": pa.int64()}
    return pa.table([pa.array(column, type) for column, type in zip(columns, types.values(), strict=True)], list(types))


def mistype(text: str, random: np.random.Generator) -> str:
    """The text with one typing error behind its first letter: a letter left out, doubled, swapped with the next or replaced, a
    space too many, or one too few (a letter too many, where there is no space). A text of one letter stays as it is."""
    if len(text) < 2:
        return text
    spaces = [place for place, letter in enumerate(text) if letter == " "]
    kind = random.integers(6)
    if kind == 5 and spaces:
        place = int(random.choice(spaces))
        return text[:place] + text[place + 1 :]
    place = int(random.integers(1, len(text)))
    before, letter, after = text[:place], text[place], text[place + 1 :]
    other = chr(ord("a") + int(random.integers(26)))
    swapped = after[:1] + letter + after[1:]
    wrong = [after, letter * 2 + after, swapped, other + after, f" {letter}{after}", letter + other + after]
    return " ".join((before + wrong[kind]).split())


def _words(column: str) -> str:
    """What stands between spaces, without the punctuation around it: 1/2, 3-stage."""
    return rf"regexp_extract_all(lower({column}), '[\pL\pN](?:\S*[\pL\pN])?')"


def _of_the_category(seed: int) -> str:
    draw = hash_sql(f"concat_ws(' ', {seed}, 'category', query_id)")
    return f"""SELECT d.query, p.item FROM (
        SELECT a.query, s.first + {draw} % s.size AS place FROM asking a JOIN placed USING (item) JOIN spans s USING (category)
    ) d JOIN placed p USING (place)"""


def _of_a_word(con: Connection, seed: int) -> str:
    con.execute(
        """CREATE TABLE uses AS SELECT word, item, row_number() OVER (ORDER BY word, item) - 1 AS place
        FROM (SELECT DISTINCT unnest(words) AS word, item FROM worded)"""
    )
    con.execute("CREATE TABLE word_spans AS SELECT word, min(place) AS first, count(*) AS size FROM uses GROUP BY ALL")
    word, item = (hash_sql(f"concat_ws(' ', {seed}, '{what}', query_id, turn, word)") for what in ("word", "item"))
    return f"""SELECT c.query, u.item FROM (
        SELECT query, first + {item} % size AS place
        FROM (SELECT query_id, unnest({_words("query")}) AS word FROM made) JOIN asking USING (query_id)
        JOIN word_spans USING (word), range({SHARING_A_WORD}) t(turn)
        QUALIFY row_number() OVER (
            PARTITION BY query, turn ORDER BY size > {COMMON} * (SELECT count(*) FROM items), {word}, word) = 1
    ) c JOIN uses u USING (place)"""
