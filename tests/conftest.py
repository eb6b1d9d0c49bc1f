"""How tests run: hypothesis draws the same cases every time, and the tests below are marked slow.

`make test-fast` leaves out what is slow: whole runs, compilers, other processes and the long tables of models and
goldens. The list cannot rot: an entry that matches no test is an error, and pytest shows the slowest of the others."""
from fnmatch import fnmatch

import pytest
from hypothesis import settings

settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")

SLOW = """
test_compile.py::*
""".split()

def pytest_collection_modifyitems(session, config, items):
    ids = {item: item.nodeid.rpartition("tests/")[2] for item in items}
    matches = {pattern: [item for item, name in ids.items() if fnmatch(name, pattern)] for pattern in SLOW}
    for found in matches.values():
        for item in found: item.add_marker(pytest.mark.slow)
    everything = config.args == config.getini("testpaths") and not config.option.keyword
    if everything and (idle := [pattern for pattern, found in matches.items() if not found]):
        raise pytest.UsageError(f"tests/conftest.py lists {idle[0]} as slow, but no test is called so: correct the list")
