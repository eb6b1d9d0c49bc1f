"Where things go: into a checkout, where CLCA_ROOT says, or into the user's cache; never where somebody works."
import os
import re
import sys
from pathlib import Path

import pytest
from helpers import ROOT, code_cells, runnable

from clca.training import paths, typefaces as made_pictures
from clca.training.data import load_data
from clca.training.paths import checkout, data_dir, destination, locate, printable, root, shipped
from clca.training.typefaces import typefaces

@pytest.fixture
def guest(tmp_path, monkeypatch):
    "An installed package: the working directory is no checkout, and nothing says where to go."
    (work := tmp_path/"work").mkdir()
    for name in ("CLCA_ROOT", "XDG_CACHE_HOME", "LOCALAPPDATA"): monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path/"home"))
    monkeypatch.chdir(work)
    return work

def test_a_checkout_keeps_its_data(guest, monkeypatch):
    monkeypatch.chdir(ROOT/"nbs"/"training")
    assert root() == ROOT and data_dir() == ROOT/"data"

def test_the_variable_wins_everywhere(guest, monkeypatch, tmp_path):
    monkeypatch.setenv("CLCA_ROOT", str(tmp_path/"disk"))
    for place in (guest, ROOT):
        monkeypatch.chdir(place)
        assert root() == tmp_path/"disk" and data_dir() == tmp_path/"disk"/"data"

def test_a_user_without_a_home(guest, monkeypatch):
    "As in a container that runs under any number."
    monkeypatch.delenv("HOME")
    def unknown(number): raise KeyError(number)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    with pytest.raises(OSError, match="no home folder here: set CLCA_ROOT"): data_dir()

def test_nothing_is_like_an_empty_name(): assert not paths.why_missing("")

@pytest.mark.parametrize("platform, variable, value, expected", [
    ("linux", "XDG_CACHE_HOME", None, "home/.cache/clca"),
    ("linux", "XDG_CACHE_HOME", "caches", "caches/clca"),
    ("darwin", "XDG_CACHE_HOME", "caches", "home/Library/Caches/clca"),
    ("win32", "LOCALAPPDATA", "local", "local/clca"),
    ("win32", "LOCALAPPDATA", None, "home/AppData/Local/clca")])
def test_a_guest_uses_the_cache_of_the_platform(guest, monkeypatch, tmp_path, platform, variable, value, expected):
    monkeypatch.setattr(sys, "platform", platform)
    if value: monkeypatch.setenv(variable, str(tmp_path/value))
    assert data_dir() == tmp_path/expected and not list(guest.iterdir())

def test_a_relative_cache_is_none(guest, monkeypatch, tmp_path):
    "Or it would be another folder in every working directory, and in that one."
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert data_dir() == tmp_path/"home"/".cache"/"clca" and not list(guest.iterdir())

def test_a_strange_settings_file_is_nobody_of_ours(guest):
    for text in ("no section", "[DEFAULT]\nlib_name = other", "\0\xff"):
        Path("settings.ini").write_text(text, encoding="latin-1")
        assert root() == guest

def test_data_of_a_guest_leave_the_working_directory_alone(guest, tmp_path):
    "Neither the generated pictures nor what was learnt about files."
    data = load_data("typefaces", image_size=16, images_per_class=1)
    cache = tmp_path/"home"/".cache"/"clca"
    assert Path(data.train.paths[0]).is_relative_to(cache) and list((cache/"cache").iterdir())
    assert not list(guest.iterdir())

def test_what_is_given_is_seen_from_the_working_directory_first(guest, monkeypatch, tmp_path):
    monkeypatch.setenv("CLCA_ROOT", str(tmp_path/"disk"))
    (tmp_path/"disk"/"photos").mkdir(parents=True)
    assert locate("photos") == tmp_path/"disk"/"photos"
    (guest/"photos").mkdir()
    assert locate("photos") == guest/"photos" and locate(guest/"photos") == guest/"photos"
    (tmp_path/"home"/"mine").mkdir(parents=True)
    assert locate("~/mine") == tmp_path/"home"/"mine" and locate("gone") == tmp_path/"disk"/"gone"

def test_what_is_written_goes_to_one_place(guest, monkeypatch, tmp_path):
    monkeypatch.setenv("CLCA_ROOT", str(tmp_path/"disk"))
    (guest/"runs").mkdir()
    assert destination("runs/x") == tmp_path/"disk"/"runs"/"x" and destination("~/x") == tmp_path/"home"/"x"
    assert destination(guest/"x") == guest/"x" and not (tmp_path/"disk").exists()

def test_what_ships_is_beside_the_package(guest, monkeypatch, tmp_path):
    "From any directory and with any root."
    monkeypatch.setenv("CLCA_ROOT", str(tmp_path/"disk"))
    assert checkout() == ROOT and shipped("data/published") == ROOT/"data"/"published"
    assert locate("data/published/README.md") == ROOT/"data"/"published"/"README.md"
    (mine := tmp_path/"disk"/"data"/"published").mkdir(parents=True)
    assert locate("data/published") == mine and shipped("data/published") == ROOT/"data"/"published"

def test_a_home_of_nobody(guest):
    for resolve in (locate, destination):
        with pytest.raises(ValueError, match="'~nobody-here/x' begins with the home folder of nobody here"): resolve("~nobody-here/x")

def test_a_root_that_cannot_be_made_names_the_variable(guest, monkeypatch, tmp_path):
    (tmp_path/"file").write_text("")
    monkeypatch.setenv("CLCA_ROOT", str(tmp_path/"file"/"below"))
    with pytest.raises(OSError, match="set CLCA_ROOT"): data_dir()

@pytest.mark.parametrize("raw", [b"caf\xe9", "caf\u00e9".encode(), b"a\xff/b\xfe", b"back\\slash", b"plain", "\u871c\u8702".encode()])
def test_every_name_can_be_printed(raw):
    shown = printable(os.fsdecode(raw))
    assert shown.encode() and (shown == os.fsdecode(raw)) == (raw not in (b"caf\xe9", b"a\xff/b\xfe"))

def test_every_path_of_a_runnable_notebook_goes_through_the_resolvers():
    "Neither the root nor the working directory is joined by hand, and nobody expands `~` twice."
    odd = re.compile(r"\broot\(\)|expanduser|\bcwd\(\)")
    assert not [p.name for p in runnable() for c in code_cells(p) if odd.search(c.source)]

@pytest.mark.parametrize("trouble", [PermissionError(13, "Permission denied"), OSError(28, "No space left on device")])
def test_pictures_that_cannot_be_written(guest, monkeypatch, tmp_path, trouble):
    "Whether it is the folder or the disk: a sentence that names the remedy, and nothing is left."
    monkeypatch.setenv("CLCA_ROOT", str(tmp_path/"disk"))
    def refuse(*_, **__): raise trouble
    where, what = (paths.tempfile, "mkdtemp") if trouble.errno == 13 else (made_pictures, "_write")
    monkeypatch.setattr(where, what, refuse)
    with pytest.raises(type(trouble), match=rf"cannot be written to .*disk/data \({trouble.strerror}\).*CLCA_ROOT"):
        typefaces(16, 1)
    assert not list((tmp_path/"disk"/"data").iterdir())
