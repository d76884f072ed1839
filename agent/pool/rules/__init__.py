"""Pool rules: how many queries a batch draws, which groups it trains on, what becomes of a query's weight.

A rule is one file here with one dataclass named ``Rule`` and one YAML file in ``conf/pool/``. Both are
found by the file's name; nothing else knows the list.
"""
