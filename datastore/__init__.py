"""Prepared data: raw rows -> a store on disk -> batches.

A store is a directory:
    schema.json      columns, rows per table, split, options, source checksum, format version
    rows.npy         structured [N]: labels int8 (-1: unknown), dense and one-hot ids, each in its narrowest type
    bags/            multi-hot tables: <table>.offsets.npy int64 [N + 1], <table>.ids.npy
    counts.npy       int64 [sum of (n + 1)]: how often each id occurs in the training part, table after table, the
                     unknown id n last in each
    best_scores.npy  float32 [N] or [N, labels]: planted data only, the teacher's probability of each label
    vocabulary/      <table>.parquet: the raw value of id 0, 1, 2 ... in column "value"

`collect` reads the raw rows once and writes them in encoded `parts`, from which an interrupted run goes on; `assemble`
makes the store of the parts. The store is written aside and renamed when it is complete. `history` makes one of older
rows in the ids of another store, without a vocabulary of its own.

Legend, here and in the modules: N rows, M dense features, T tables, n counted ids of a table, B batch.
"""
