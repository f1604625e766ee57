"""Wide tables that a test writes: CSV of several dialects, and Parquet."""

import io

SEMICOLONS = "id;site;depth;carbonate;ch0;ch1;ch2\na;C1;10;12.5;1;2;3\nb;C1;20;;4;5;6\n"
WIDE = "sample,core,depth_mm,gain_kev,offset_kev,channel_0,channel_1,channel_2\n" + (
    'a,C1,10.5,0.02,-0.1,1,2,3\n"b, again",C1,20,0.02,-0.1,4,5,6\n'
)


def parquet(rows: list[dict]) -> bytes:
    """Rows as an uncompressed Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer, compression="none", store_schema=False, use_dictionary=False)
    return buffer.getvalue()


def examples() -> dict[str, bytes]:
    decimal_comma = WIDE.replace(",", ";").replace('"b; again"', "b").replace(".", ",")
    wide = [{"sample": name, "gain_kev": 0.02, "channel_0": 1.5, "channel_1": 7} for name in "ab"]
    fields = {"gain_kev": 0.02, "metadata": '{"operator": "Ada"}', "target_units": '{"Fe": "wt%"}', "Fe": 2.5}
    corpus = [{"sample": "a", "counts": [1.0, 2.0]} | fields, {"sample": "b", "counts": [3.0, 0.0, 4.0]} | fields]
    return {
        "wide.csv": WIDE.encode(),
        "numbered.csv": b"sample,0,1,2\na,1,2,3\nb,4,5,6\n",
        "decimal_comma.csv": decimal_comma.replace("\n", "\r\n").encode("cp1252"),
        "carriage_returns.csv": WIDE.replace("\n", "\r").encode("utf-8-sig"),
        "tabs.txt": SEMICOLONS.replace("ch", "channel_").replace(";", "\t").encode("utf-16"),
        "wide.parquet": parquet(wide),
        "corpus.parquet": parquet(corpus),
    }
