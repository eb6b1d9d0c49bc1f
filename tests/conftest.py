import pytest, torch
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
