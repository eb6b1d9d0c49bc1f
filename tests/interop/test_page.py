"docs/works_with.md says what the tests say. No client is needed for that."
import test_clients
import test_light
from page import PAGE, declared, page, rows
from packaging.utils import canonicalize_name
from test_repository import pins

ROWS = rows([test_light, test_clients])

def test_the_page_says_what_the_tests_say():
    pinned = pins()
    def version(package: str) -> str: return pinned[canonicalize_name(package)]
    assert PAGE.read_text() == page([(row, declared(row)) for row in ROWS], version), "run make interop"

def test_every_row_has_a_name_of_its_own_and_fits_into_its_cells():
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert not [row for row in ROWS if "|" in row.says + row.name + "".join(row.fails.values())]
