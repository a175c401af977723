"""Everything that lies on a disk or in a bucket, described once: names, and a strict reader for each format.

What is read here comes from outside: a reader gives a typed value or raises ``DamagedFile``, which says file, place and
what. No torch, and nothing of the other rooms but the errors. Read ``strict_json.py`` first.
"""
