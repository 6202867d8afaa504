"""Tables as JSON."""

from functools import partial

from moeworks.records import as_record

as_json = partial(as_record, digits=6)
"""A value for json.dumps(allow_nan=False), its numbers with six significant digits."""
