"""How tests run: hypothesis draws the same cases every time, and what is listed below is marked slow.

`make test-fast` leaves out what is slow: compilers, whole runs, notebooks that draw or measure, and most of the long
tables of models and goldens, of which every n-th case stays. It runs on one thread, on which tiny models are faster.
The list cannot rot: an entry that matches no test is an error, and pytest shows the slowest of the tests that stay."""
from fnmatch import fnmatch

import pytest
from hypothesis import settings

settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")

@pytest.fixture
def one_thread():
    """Models this small are done before a second thread has started; on a busy machine waiting for it takes ten times
    as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
