"Data: what is read from files of every kind, what is refused and in which words, and that nothing depends on chance."
import hashlib, os, subprocess, sys, threading, warnings
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from PIL import Image
from torch.utils.data import DataLoader
from clca.training import checking, checks, typefaces as tf
from clca.tools.preparation import Preparation
from clca.training.data import load_data
from clca.training.evaluation import grade
from clca.training.folders import find_files
from clca.training.reading import read_image
from clca.training.paths import data_dir, root

@pytest.fixture(autouse=True)
def own_root(tmp_path, monkeypatch):
    "Generated data and caches of a test go to its own folder."
    monkeypatch.setenv("CLCA_ROOT", str(tmp_path/"root"))

def picture(path: Path, k=0, side=12):
    "A small distinct image."
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(k).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)
    return path

@pytest.fixture
def flat(tmp_path):
    "Three classes with 5, 10 and 15 images."
    for c, n in {"ant": 5, "bee": 10, "cow": 15}.items():
        for k in range(n): picture(tmp_path/"flat"/c/f"{k}.png", 100*n + k)
    return tmp_path/"flat"

@pytest.fixture
def listed(tmp_path):
    "Writes a CSV from rows over ten images and returns its path."
    for k in range(10): picture(tmp_path/"csv"/f"{k}.png", k)
    def write(text): (tmp_path/"csv/list.csv").write_text(text); return str(tmp_path/"csv/list.csv")
    return write

def folder(path, **kw): return load_data("folder", str(path), image_size=8, **kw)
def csv(path, **kw): return load_data("csv", path, image_size=8, **kw)
def counts(data, split): return np.bincount(getattr(data, split).labels, minlength=len(data.classes)).tolist()

# Reading -------------------------------------------------------------------------------------------------------------

def test_flat_folder_is_divided_by_class(flat):
    data = folder(flat)
    assert data.classes == ["ant", "bee", "cow"] and data.name == "flat" and len(data.hash) == 16
    assert [counts(data, s) for s in ("train", "val", "test")] == [[3, 6, 9], [1, 2, 3], [1, 2, 3]]
    paths = data.train.paths + data.val.paths + data.test.paths
    assert len(paths) == len(set(paths)) == 30
    labels = data.train.labels + data.val.labels + data.test.labels
    assert [data.classes[y] for y in labels] == [Path(p).parent.name for p in paths]
    assert folder(flat).train.paths == data.train.paths != folder(flat, data_seed=1).train.paths

def test_folder_with_splits(tmp_path):
    for split, n in dict(train=10, val=2, test=3).items():
        for c in "ab":
            for k in range(n): picture(tmp_path/"d"/split/c/f"{k}.png", 100*n + k)
    data = folder(tmp_path/"d")
    assert [counts(data, s) for s in ("train", "val", "test")] == [[10, 10], [2, 2], [3, 3]]
    for p in (tmp_path/"d/val").rglob("*.png"): p.unlink()
    for p in ("a", "b"): (tmp_path/"d/val"/p).rmdir()
    with pytest.raises(ValueError, match="val holds no class folder: fill or remove it"): folder(tmp_path/"d")
    (tmp_path/"d/val").rmdir()
    data = folder(tmp_path/"d")
    assert [counts(data, s) for s in ("train", "val", "test")] == [[8, 8], [2, 2], [3, 3]]

def test_desktop_litter_is_no_image(flat):
    (flat/"ant/.DS_Store").write_text("x"); (flat/"ant/Thumbs.db").write_text("x"); (flat/".cache").mkdir()
    assert sum(counts(folder(flat), s)[0] for s in ("train", "val", "test")) == 5

def test_the_bin_of_a_disk_is_no_class(flat):
    for name in ("$RECYCLE.BIN", "System Volume Information", "#recycle"): picture(flat/name/"x.png")
    (flat/"lost+found").mkdir(); put(flat/"ant/thumbs.db"); put(flat/"ant/Desktop.ini")
    data = folder(flat)
    assert data.classes == ["ant", "bee", "cow"] and len(data.left_out) == 5

def test_a_split_that_loses_all_its_images_is_not_made_anew(tmp_path):
    for k, split in enumerate(("train", "val", "test")):
        for c in "ab": picture(tmp_path/"d"/split/c/"0.png", 10*k + ord(c)); picture(tmp_path/"d"/split/c/"1.png", 10*k + ord(c) + 5)
    for path in (tmp_path/"d/val").rglob("*.png"): path.write_text("")
    with pytest.raises(ValueError, match=r"4 of 12 files .* \(empty file\).*; no image is left in val$"):
        folder(tmp_path/"d", skip_bad=True)

def test_csv_labels_with_gaps(listed):
    data = csv(listed("path,label\n" + "\n".join(f"{k}.png,{[30, 4, 100][k % 3]}" for k in range(10))))
    assert data.classes == ["4", "30", "100"] and set(data.train.labels) == {0, 1, 2}
    assert "4 … 100 → 0 … 2" in str(data.summary()) and data.summary().loc["train", "images"] == len(data.train)

def test_csv_text_labels_with_splits(listed):
    splits = ["train", "train", "val", "test", "test"]
    rows = [f"""{k}.png,{['"NA"', '"b, c"'][k % 2]},{splits[k // 2]}""" for k in range(10)]
    data = csv(listed("\ufeffpath, label, split\n" + "\n".join(rows)))
    assert data.classes == ["NA", "b, c"] and [len(d) for d in (data.train, data.val, data.test)] == [4, 2, 4]

def test_csv_without_val(listed):
    rows = [f"{k}.png,{k % 2},{'train' if k < 6 else 'test'}" for k in range(10)]
    data = csv(listed("\n".join(["path,label,split", *rows])))
    assert [len(d) for d in (data.train, data.val, data.test)] == [4, 2, 4]

def test_relative_root(flat, monkeypatch):
    monkeypatch.chdir(flat.parent)
    assert folder("flat").hash == folder(flat).hash
    root().mkdir(exist_ok=True); os.rename(flat, root()/"flat")
    assert len(folder("flat").train) == 18

# Modes ---------------------------------------------------------------------------------------------------------------

RAMP = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)

@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_is_scaled(tmp_path, suffix):
    Image.fromarray(RAMP).save(tmp_path/f"x.{suffix}")
    assert (np.asarray(read_image(tmp_path/f"x.{suffix}"))[..., 1].ravel() == np.arange(256)).all()

def test_16_bit_is_rounded(tmp_path):
    "A shade of 8 bits is 257 of 16: what lies above the middle of two becomes the upper one."
    shades = np.arange(255).reshape(15, 17)
    for offset, want in (128, shades), (129, shades + 1):
        Image.fromarray((shades*257 + offset).astype(np.uint16)).save(tmp_path/"x.png")
        assert (np.asarray(read_image(tmp_path/"x.png"))[..., 0] == want).all()

def test_32_bit_integers(tmp_path):
    Image.fromarray(RAMP.astype(np.int32)).save(tmp_path/"x.tif")
    assert np.asarray(read_image(tmp_path/"x.tif")).max() == 255
    Image.fromarray(RAMP.astype(np.int32)*9).save(tmp_path/"x.tif")
    with pytest.raises(ValueError, match="more than 16 bits"): read_image(tmp_path/"x.tif")

@pytest.mark.parametrize("mode,colour,rgb", [
    ("L", 7, (7, 7, 7)), ("1", 1, (255,)*3), ("LA", (9, 255), (9, 9, 9)), ("RGB", (1, 2, 3), (1, 2, 3)),
    ("RGBA", (10, 20, 30, 0), (255,)*3), ("RGBA", (0, 0, 0, 128), (127,)*3)])
def test_modes(tmp_path, mode, colour, rgb):
    Image.new(mode, (4, 4), colour).save(tmp_path/"x.png")
    image = read_image(tmp_path/"x.png")
    assert image.mode == "RGB" and image.getpixel((1, 1)) == rgb

def test_palette_and_transparent_colour(tmp_path):
    image = Image.new("RGB", (4, 4), (200, 0, 0)).quantize(4)
    image.save(tmp_path/"p.png")
    assert read_image(tmp_path/"p.png").getpixel((0, 0)) == (200, 0, 0)
    image.save(tmp_path/"t.png", transparency=image.getpixel((0, 0)))
    assert read_image(tmp_path/"t.png").getpixel((0, 0)) == (255, 255, 255)
    Image.new("CMYK", (4, 4)).save(tmp_path/"c.jpg")
    assert read_image(tmp_path/"c.jpg").getpixel((0, 0)) == (255, 255, 255)

def test_exif_rotation(tmp_path):
    image = Image.new("RGB", (20, 10)); image.paste((255, 0, 0), (0, 0, 10, 10))
    exif = Image.Exif(); exif[0x0112] = 6
    image.save(tmp_path/"x.png", exif=exif)
    turned = read_image(tmp_path/"x.png")
    assert turned.size == (10, 20) and turned.getpixel((5, 2)) == (255, 0, 0) and turned.getpixel((5, 17)) == (0, 0, 0)

# Bad input -----------------------------------------------------------------------------------------------------------

def test_broken_files(flat):
    for k in range(4): (flat/f"cow/{k}.png").write_bytes((flat/f"cow/{k}.png").read_bytes()[:200])
    for name in ("a.txt", "b.png", "c.png"): (flat/"bee"/name).write_text("" if name == "c.png" else "no image")
    with pytest.raises(
        ValueError,
        match=r"7 of 33 files cannot be read as images: bee/a.txt \(not an image\).*bee/c.png \(empty file\), "
        r"cow/0.png .*truncated.* and 2 more; .*skip_bad=True",
    ): folder(flat)
    with pytest.warns(UserWarning, match="7 of 33.*left out"): data = folder(flat, skip_bad=True)
    assert data.skipped == [f"bee/{n}" for n in ("a.txt", "b.png", "c.png")] + [f"cow/{k}.png" for k in range(4)]
    assert sum(len(d) for d in (data.train, data.val, data.test)) == 26
    assert data.summary().loc["skipped", "images"] == 7

def test_float_image_is_refused(flat):
    Image.fromarray(np.zeros((4, 4), np.float32)).save(flat/"ant/f.tif")
    with pytest.raises(ValueError, match="ant/f.tif .*32-bit floats"): folder(flat)

def test_class_of_broken_files_only(flat):
    for p in (flat/"ant").iterdir(): p.write_text("x")
    with pytest.warns(UserWarning): data = folder(flat, skip_bad=True)
    assert data.classes == ["bee", "cow"]

def test_small_and_empty_classes(flat):
    (flat/"dog").mkdir()
    with pytest.raises(ValueError, match="dog holds no image"): folder(flat)
    picture(flat/"dog/1.png"); picture(flat/"dog/2.png", 1)
    with pytest.raises(ValueError, match=r"class 'dog' has 2 image\(s\) to split: 3 are needed"): folder(flat)

def test_class_without_training_images(tmp_path):
    for split, classes in dict(train="ab", val="ab", test="abz").items():
        for c in classes: picture(tmp_path/"d"/split/c/"0.png")
    with pytest.raises(ValueError, match="class 'z' has no training image"): folder(tmp_path/"d")

def test_one_class(flat):
    os.rename(flat/"ant", flat.parent/"ant"); os.rename(flat/"bee", flat.parent/"bee")
    with pytest.raises(ValueError, match="only 1 class"): folder(flat)

def test_too_high_root(flat):
    with pytest.raises(
        ValueError,
        match=r"only 1 class found, at least 2 are needed: if the folders in .*flat are the classes \(ant, bee, cow, …\), data_root",
    ):
        folder(flat.parent)

@pytest.mark.parametrize(
    "names", [("train", "valid", "test"), ("Train", "Test"), ("val", "test"), ("train", "test", "more")]
)
def test_splits_under_other_names(tmp_path, names):
    for name in names: picture(tmp_path/"d"/name/"a"/"0.png")
    with pytest.raises(
        ValueError,
        match=rf"looks like splits.* must be called train, val, test,.*\(it has {', '.join(sorted(names))}\)",
    ):
        folder(tmp_path/"d")

def test_classes_called_like_splits(flat):
    os.rename(flat/"ant", flat/"test"); (flat/"__pycache__").mkdir()
    assert folder(flat).classes == ["bee", "cow", "test"]

def test_folder_without_test(tmp_path):
    picture(tmp_path/"d/train/a/0.png"); picture(tmp_path/"d/val/a/0.png")
    with pytest.raises(ValueError, match="no test folder"): folder(tmp_path/"d")

def test_unknown_dataset_and_root(flat, tmp_path):
    with pytest.raises(ValueError, match="unknown dataset 'typeface': did you mean 'typefaces'"): load_data("typeface")
    with pytest.raises(ValueError, match="unknown dataset 'CSV'"): load_data("CSV")
    with pytest.raises(ValueError, match="data_root is empty"): load_data("folder")
    with pytest.raises(ValueError, match="data_root '/no/such' does not exist"): load_data("csv", "/no/such")
    with pytest.raises(ValueError, match="is not a CSV file"): load_data("csv", str(flat))
    with pytest.raises(ValueError, match="is not a folder"): load_data("folder", str(picture(tmp_path/"x.png")))
    (tmp_path/"void").mkdir()
    with pytest.raises(ValueError, match="holds no class folders"): folder(tmp_path/"void")
    with pytest.raises(ValueError, match="image_size is 0"): load_data("typefaces", image_size=0)
    with pytest.raises(ValueError, match="data_seed is -1: it must be at least 0"):
        load_data("typefaces", data_seed=-1)
    assert not data_dir().exists() or not list(data_dir().iterdir())

@pytest.mark.parametrize(
    "text,message",
    [
        ("file,label\n1.png,a", r"lacks the column\(s\) path: it has .file, label"),
        ("a,b\n1.png,a", r"lacks the column\(s\) path, label: it has .a, b"),
        ("path,label\n", "has no rows"),
        ("", "cannot be read as a CSV"),
        ("path,label\n1,2\n3,4,5,6", "line 3 has 4 columns, but the header 2"),
        (
            "path,label\na/0.png,a,7\na/1.png,b,7",
            "line 2 has 3 columns, but the header 2: put a text with a comma in double quotes",
        ),
        ("path;label\n0.png;a", "save it comma-separated, in UTF-8"),
        ("path\tlabel\n0.png\ta", "save it comma-separated, in UTF-8"),
        ('path,label\n"0.png,a\n1.png,b', "cannot be read as a CSV .*: save it"),
        ("\n\npath,label\n\n0.png,a\n , \n1.png,", "line 7: label is empty"),
        ("path,label\n0.png,a\n1.png", "line 3: label is empty"),
        ("path,label\n0.png,a\n1.png,", "line 3: label is empty"),
        ("path,label,split\n0.png,a,train\n1.png,a,", "line 3: split is empty"),
        ("path,label,split\n0.png,a,train\n1.png,a,valid", "the split 'valid': valid are train, val, test"),
        ("path,label,split\n0.png,a,train\n1.png,a,val", "no test row"),
        ("path,label\n0.png,a\nx.png,a\ny.png,b", "2 of 3 files in .* do not exist in .*, the first is x.png"),
        (
            "path,label,split\n0.png,a,train\n./0.png,a,test\n1.png,b,train",
            r"0.png is listed in two splits \(test, train\)",
        ),
        ("path,label\n0.png,a\n0.png,b", "0.png is listed with two labels"),
        ("path,label\n0.png,a\n0.png,a", "0.png is listed twice"),
        ("path,label,label\n0.png,a,b\n1.png,b,a", "two columns that are called label: rename"),
    ],
)
def test_bad_csv(listed, text, message):
    with pytest.raises(ValueError, match=message) as e: csv(listed(text))
    assert "\n" not in str(e.value)

@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1"])
def test_csv_in_another_encoding(listed, encoding):
    path = Path(listed("")); path.write_bytes("path,label\n0.png,\xe9\n1.png,b".encode(encoding))
    with pytest.raises(ValueError, match="save it comma-separated, in UTF-8"): csv(str(path))

def test_blank_lines_in_a_csv(listed):
    rows = [f"{k}.png,{k % 2}" for k in range(10)]
    want = csv(listed("\n".join(["path,label", *rows])))
    for blank in ("\n\n", "\r\n\r\n", "\n,\n"):
        with_blanks = csv(listed(blank.join(["path,label", *rows]) + blank))
        assert with_blanks.hash == want.hash and with_blanks.train.paths == want.train.paths

def test_link_to_nothing(flat):
    (flat/"ant/x.png").symlink_to(flat/"gone.png")
    for _ in range(2):
        message = r"1 of 31 files .*: ant/x.png \(No such file or directory\); .*skip_bad=True"
        with pytest.raises(ValueError, match=message): folder(flat)
    with pytest.warns(UserWarning, match="1 of 31"): assert folder(flat, skip_bad=True).skipped == ["ant/x.png"]

def test_same_bytes_in_train_and_test(tmp_path):
    for split, first in dict(train=0, val=10, test=20).items():
        for k, c in enumerate("ab"): picture(tmp_path/"d"/split/c/"0.png", first + k)
    with warnings.catch_warnings(action="error"): folder(tmp_path/"d")
    picture(tmp_path/"d/test/a/0.png", 0); picture(tmp_path/"d/test/b/1.png", 1)
    message = r"2 of 3 test images .*first is test/a/0.png \(the same as train/a/0.png\): remove"
    with pytest.warns(UserWarning, match=message): folder(tmp_path/"d")

def test_same_file_through_a_link(tmp_path):
    for split in ("train", "test"):
        for k, c in enumerate("ab"): picture(tmp_path/"d"/split/c/"0.png", k); picture(tmp_path/"d"/split/c/"1.png", k)
    (tmp_path/"d/test/a/1.png").unlink(); (tmp_path/"d/test/a/1.png").symlink_to(tmp_path/"d/train/a/1.png")
    with pytest.raises(ValueError, match="in two splits"): folder(tmp_path/"d")

def test_images_in_memory_within_a_bound(flat):
    "Those for training first, and the same pixels whether held or not."
    none, some, whole = (load_data("folder", str(flat), image_size=200, hold_mb=mb) for mb in (0, 2, 512))
    def held(data): return [len(s.memory) for s in (data.train, data.val, data.test)]
    assert held(none) == [0, 0, 0] and held(some) == [13, 0, 0] and held(whole) == [18, 6, 6], "228 x 228 pixels of 3 bytes"
    for data in some, whole: assert all((data.train[i][0] == none.train[i][0]).all() for i in (0, 12, 13, 17))
    assert all((a[0] == b[0]).all() for a, b in zip(none.val, whole.val))
    with pytest.raises(ValueError, match="hold_mb is -1: it must be at least 0"): load_data("folder", str(flat), hold_mb=-1)

# Every file is accounted for -----------------------------------------------------------------------------------------

def reasons(data): return dict(data.left_out.itertuples(index=False))
def used(data): return sum(len(s) for s in (data.train, data.val, data.test))

def put(path: Path, text="x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path

def test_what_lies_elsewhere_is_named(flat):
    picture(flat/"loose.png"); put(flat/"README.md")
    picture(flat/"ant/2024/1.png"); picture(flat/"ant/2024/deep/2.png"); picture(flat/".old/3.png"); picture(flat/"bee/.4.png")
    put(flat/"ant/Thumbs.db"); put(flat/".git/objects/00"); put(flat/"bee/.ipynb_checkpoints/1.png"); put(flat/"._loose.png")
    with pytest.warns(UserWarning) as said: data = folder(flat)
    [message] = [str(w.message) for w in said if "left out" in str(w.message)]
    assert message.startswith("4 of 40 files below data_root are left out: ")
    for part in ("2 beside the class folders (README.md, loose.png)", "2 hidden (.old/3.png, bee/.4.png)"): assert part in message
    [deep] = [str(w.message) for w in said if "within" in str(w.message)]
    assert deep.startswith("2 files lie in folders within class folders, the first is ant/2024/1.png, and are taken for")
    assert "Thumbs" not in message and "git" not in message
    on_disk = [p for p in flat.rglob("*") if not p.is_dir()]
    assert used(data) + len(data.left_out) == len(on_disk) == 40 and used(data) == 32 and not data.skipped
    assert {n for n, why in reasons(data).items() if "left behind" in why} == {
        "ant/Thumbs.db", ".git/objects/00", "bee/.ipynb_checkpoints/1.png", "._loose.png"}

def test_nothing_said_where_nothing_is_lost(flat):
    put(flat/"ant/.DS_Store"); put(flat/".gitattributes")
    with warnings.catch_warnings(action="error"): data = folder(flat)
    assert len(data.left_out) == 2 and data.hash == folder(flat).hash

def test_nested_and_loose_in_splits(tmp_path):
    for k, split in enumerate(("train", "val", "test")):
        for j, c in enumerate("ab"): picture(tmp_path/"d"/split/c/"0.png", 10*k + j)
        picture(tmp_path/"d"/split/"loose.png", 90 + k); picture(tmp_path/"d"/split/"a/more/0.png", 80 + k)
    picture(tmp_path/"d/top.png", 99)
    with pytest.warns(UserWarning, match="4 of 13 .* 4 beside the class folders"): data = folder(tmp_path/"d")
    assert used(data) == 9 and data.classes == ["a", "b"] and len(data.left_out) == 4

def test_class_folders_that_hold_only_folders(tmp_path):
    "Sorted by year, say: the classes are what data_root holds, and all that is below belongs to them."
    for j, c in enumerate("ab"):
        for k in range(6): picture(tmp_path/"d"/c/f"20{k % 2}"/f"{k}.png", 10*j + k)
    with pytest.warns(UserWarning, match="12 files lie in folders within class folders, the first is a/200/0.png"):
        data = folder(tmp_path/"d")
    assert used(data) == 12 and data.classes == ["a", "b"] and data.left_out.empty

def test_classes_may_be_linked(flat, tmp_path):
    os.rename(flat/"ant", tmp_path/"elsewhere"); (flat/"ant").symlink_to(tmp_path/"elsewhere")
    picture(tmp_path/"cow.png", 500); (flat/"cow/linked.png").symlink_to(tmp_path/"cow.png")
    assert used(folder(flat)) == 31

@pytest.mark.parametrize("where, why", [
    ("dog", "a link to what is not there"), ("ant/dog", "No such file or directory")])
def test_dead_links(flat, where, why):
    (flat/where).symlink_to(flat.parent/"unmounted")
    with pytest.warns(UserWarning, match=why): data = folder(flat, skip_bad=True)
    assert reasons(data) == {where: why}

def test_links_in_circles(flat):
    (flat/"ant/up").symlink_to(flat); (flat/"around").symlink_to(flat); (flat/"self").symlink_to(flat/"self")
    with pytest.warns(UserWarning, match="a link to a folder around it"): data = folder(flat)
    assert used(data) == 30 and set(reasons(data)) == {"ant/up", "around", "self"}

def test_a_class_twice_by_a_link(flat):
    (flat/"emmet").symlink_to(flat/"ant")
    with pytest.raises(ValueError, match="listed with two labels"): folder(flat)

@pytest.mark.parametrize("where", ["ant", "ant/more"])
def test_a_folder_that_cannot_be_read(flat, monkeypatch, where):
    "By root too, so the system's refusal is played."
    (flat/where).mkdir(exist_ok=True)
    real = Path.iterdir
    def refuse(self):
        if self == flat/where: raise PermissionError(13, "Permission denied")
        return real(self)
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(ValueError, match=rf"{where} \(a folder that cannot be read\).*skip_bad=True"): folder(flat)
    with pytest.warns(UserWarning) as said: data = folder(flat, skip_bad=True)
    assert data.skipped == [where] and data.classes == (["bee", "cow"] if where == "ant" else ["ant", "bee", "cow"])
    assert where != "ant" or any("with them all files of the class(es) 'ant'" in str(w.message) for w in said)
    monkeypatch.setattr(Path, "iterdir", lambda self: (_ for _ in ()).throw(PermissionError(13, "no")))
    with pytest.raises(ValueError, match="is a folder that cannot be read"): folder(flat)

def test_a_class_that_is_lost_is_named(flat):
    for p in (flat/"ant").iterdir(): p.write_text("x")
    with pytest.warns(UserWarning, match="5 of 30 .*with them all files of the class\\(es\\) 'ant'"): folder(flat, skip_bad=True)

def test_names_that_are_no_utf_8(flat):
    os.rename(flat/"ant/0.png", os.fsdecode(bytes(flat/"ant") + b"/caf\xe9.png"))
    with pytest.raises(ValueError, match=r"ant/caf\\xe9.png \(its name is no UTF-8: rename it\)"): folder(flat)
    with pytest.warns(UserWarning, match="caf"): data = folder(flat, skip_bad=True)
    assert data.skipped == [r"ant/caf\xe9.png"] and data.left_out.to_csv().encode()
    os.rename(flat/"bee", os.fsdecode(bytes(flat) + b"/b\xefe"))
    with pytest.warns(UserWarning, match=r"class\(es\) 'b"): assert folder(flat, skip_bad=True).classes == ["ant", "cow"]

def test_names_of_other_alphabets_stay(flat):
    for name in ("蜜蜂", "naïve", "a b", "50%", "x\ny"): picture(flat/"ant"/f"{name}.png", hash(name) % 1000)
    assert used(folder(flat)) == 35

def test_prediction_finds_what_training_finds(flat, tmp_path):
    "And what lies deeper, which has no label to lose."
    picture(flat/"ant/deep/9.png", 9); put(flat/"ant/Thumbs.db"); picture(flat/".old/3.png")
    (tmp_path/"more").mkdir(); picture(tmp_path/"more/8.png", 8); (flat/"linked").symlink_to(tmp_path/"more")
    found = find_files(flat)
    assert len(found.files) == 32 and set(found.left_out) == {"ant/Thumbs.db", ".old/3.png"}
    (flat/"linked").unlink()
    with pytest.warns(UserWarning): data = folder(flat)
    assert {*data.train.paths, *data.val.paths, *data.test.paths} <= set(map(str, found.files))

# Contradictions ------------------------------------------------------------------------------------------------------

def table(*rows): # label, split, digest
    return pd.DataFrame([(f"{i}.png", *row) for i, row in enumerate(rows)], columns=["name", "label", "split", "digest"])

def said(check, *args):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check(*args)
    return [str(w.message) for w in caught]

@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_the_same_bytes_under_two_labels(split):
    rows = [("a", split, "x"), ("b", split, "x"), ("a", split, "y"), ("a", split, "y"), ("b", "train", "z")]
    [message] = said(checks.warn_two_labels, table(*rows))
    assert message.startswith("2 of 5 files are the same, byte for byte, as one with another label, the first are 0.png, 1.png (labels 'a', 'b')")
    assert not said(checks.warn_two_labels, table(*rows[1:]))

@pytest.mark.parametrize("known, asked", [("train", "test"), ("train", "val"), ("val", "test")])
def test_a_leak_between_any_two_splits(known, asked):
    [message] = said(checks.warn_repeated, table(("a", known, "x"), ("a", asked, "x"), ("b", asked, "y")))
    assert message.startswith("1 of 2 ") and "1.png (the same as 0.png)" in message

def test_absent_classes_are_told(flat):
    assert not said(checks.warn_absent, table(*[(c, s, "") for c in "ab" for s in ("train", "val", "test")]))
    messages = said(checks.warn_absent, table(("a", "train", ""), ("b", "train", ""), ("a", "val", ""), ("b", "test", "")))
    assert [m[:40] for m in messages] == ["1 of 2 classes have no validation image:", "1 of 2 classes have no test image: 'a'; "]

@pytest.mark.parametrize("one, other", [
    ("Ant", "ant"), ("ANT", "ant"), ("Straße", "STRASSE"), ("red fox", "red  fox"), ("redfox", "red fox"), ("ant\u00a0", "ant"),
    ("ant\u200b", "ant"), ("\ufeffant", "ant"), ("1", "01"), ("1", "1.0"), ("1", "+1"), ("007", "7"), ("1.5", "1,50"), ("0", "00"),
    ("class 1", "class 01"), ("r2d2", "r02d2"), ("caf\u00e9", "cafe\u0301"), ("\uff21nt", "ant"), ("ﬁn", "fin")])
def test_labels_that_differ_in_nothing_one_sees(one, other):
    [message] = said(checks.warn_alike, [one, other, "zebra"])
    assert "groups of such labels: 1" in message and message.isprintable()

@pytest.mark.parametrize("one, other", [
    ("1", "10"), ("1", "-1"), ("1.05", "1.5"), ("a1.05", "a1.5"), ("0.5", "5"), ("a", "á"), ("ant", "aunt"), ("100", "1000"), ("1e3", "1000"), ("", "0a")])
def test_labels_that_differ(one, other): assert not said(checks.warn_alike, [one, other, "zebra"])

def test_files_that_are_nearly_black_are_told(flat):
    for k in range(4): Image.fromarray(np.full((4, 4), 300 + k*1000, np.uint16)).save(flat/f"ant/{k}.png")
    with pytest.warns(UserWarning, match="4 images are nearly black, as if 12 or fewer bits"): folder(flat)
    with pytest.warns(UserWarning, match="4 images are nearly black"): folder(flat) # from memory

@pytest.mark.parametrize("row, hint", [
    ("sub\\\\0.png", "write / instead of"), ("SUB/0.PNG", "the disk has 'sub/0.png'"), ("sub/cafe\u0301.png", r"the disk has 'sub/caf\\xe9.png'"),
    ("nothing.png", "nothing.png$")])
def test_a_list_from_another_machine(listed, tmp_path, row, hint):
    picture(tmp_path/"csv/sub/0.png"); picture(tmp_path/"csv/sub/caf\u00e9.png")
    with pytest.raises(ValueError, match=hint): csv(listed(f"path,label\n{row.replace(chr(92)*2, chr(92))},a\n"))

def test_a_root_from_another_machine(flat, monkeypatch):
    monkeypatch.chdir(flat.parent)
    for given, hint in ("FLAT", "the disk has 'flat'"), ("flat\\\\ant", "write / instead of"):
        with pytest.raises(ValueError, match=f"does not exist: .*{hint}"): folder(given.replace("\\\\", "\\"))

@pytest.mark.parametrize("number, want", [(2, 1.), (10, 1.)])
def test_macro_f1_of_the_perfect(number, want):
    labels = torch.tensor([0, 1, 0, 1])
    assert grade(torch.eye(number)[labels], labels)["macro_f1"] == want
    assert grade(torch.eye(number)[1 - labels], labels)["macro_f1"] == 0

# What is remembered --------------------------------------------------------------------------------------------------

def test_checks_are_remembered(flat, monkeypatch):
    first, before = folder(flat), sorted(p.name for p in flat.rglob("*"))
    def never(path): raise AssertionError(path)
    monkeypatch.setattr(checking, "examine", never)
    assert folder(flat).hash == first.hash and sorted(p.name for p in flat.rglob("*")) == before
    picture(flat/"ant/0.png", 99)
    with pytest.raises(AssertionError, match="ant/0.png"): folder(flat)
    monkeypatch.undo()

def test_damaged_cache_is_made_anew(flat, monkeypatch):
    want = folder(flat).hash
    for content in ('{"', "[]", "3"):
        for p in (data_dir()/"cache").iterdir(): p.write_text(content)
        assert folder(flat).hash == want

def test_hash(flat, tmp_path):
    want = folder(flat).hash
    os.rename(flat, tmp_path/"moved"); assert folder(tmp_path/"moved").hash == want
    assert folder(tmp_path/"moved", data_seed=1).hash != want
    os.rename(tmp_path/"moved/ant/0.png", tmp_path/"moved/ant/x.png"); assert folder(tmp_path/"moved").hash != want

def test_hash_sees_one_byte():
    want = load_data("typefaces", image_size=16, images_per_class=2)
    target = Path(want.train.paths[0])
    pixels = np.array(Image.open(target)); pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(target, compress_level=1)
    assert load_data("typefaces", image_size=16, images_per_class=2).hash != want.hash

# Typefaces -----------------------------------------------------------------------------------------------------------

def test_typefaces():
    data = load_data("typefaces", image_size=16, images_per_class=3)
    assert len(data.classes) == 22 and [len(d) for d in (data.train, data.val, data.test)] == [66]*3
    x, y = data.train[0]
    assert x.shape == (3, 16, 16) and x.dtype == torch.float32 and y == 0
    assert not data.train.flip and not data.val.augmented

def test_words_are_of_one_split():
    words = {s: {tf.word(s, np.random.default_rng([k])) for k in range(500)} for s in tf.SPLITS}
    for a, b in ("train", "test"), ("train", "val"), ("val", "test"): assert not words[a] & words[b]

def test_more_images_leave_the_first_alone():
    few, many = (tf.typefaces(16, n) for n in (1, 2))
    assert all((many/p.relative_to(few)).read_bytes() == p.read_bytes() for p in few.rglob("*.png"))

def test_killed_generation_leaves_nothing(monkeypatch):
    real, count = tf.picture, iter(range(30))
    def stop(*args):
        if next(count, None) is None: raise KeyboardInterrupt
        return real(*args)
    monkeypatch.setattr(tf, "picture", stop)
    with pytest.raises(KeyboardInterrupt): tf.typefaces(16, 1)
    assert not list(data_dir().iterdir())
    monkeypatch.setattr(tf, "picture", real)
    assert len(list(tf.typefaces(16, 1).rglob("*.png"))) == 66

def test_two_generations_at_once():
    done = []
    threads = [threading.Thread(target=lambda: done.append(tf.typefaces(16, 1))) for _ in range(3)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert len(done) == 3 and [p.name for p in data_dir().iterdir()] == ["typefaces-v2-16-1-0"]
    assert len(list(done[0].rglob("*.png"))) == 66

# Determinism ---------------------------------------------------------------------------------------------------------

def digest(workers):
    "Hash of the data set, and of the pictures of an epoch."
    data = load_data("typefaces", image_size=16, images_per_class=2, seed=3)
    data.train.set_epoch(5)
    pictures = b"".join(x.numpy().tobytes() for x, _ in DataLoader(data.train, 8, num_workers=workers))
    return data.hash, hashlib.sha256(pictures).hexdigest()

def test_same_in_every_process(tmp_path):
    env = {
        **os.environ,
        "CLCA_ROOT": str(tmp_path/"other"),
        "PYTHONPATH": os.pathsep.join(map(str, Path(__file__).parents[:2])),
        "PYTHONHASHSEED": "1",
    }
    command = [sys.executable, "-c", "import test_data; print(*test_data.digest(2))"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert tuple(done.stdout.split()) == digest(0)

def test_augmentation_depends_on_seed_epoch_and_image(flat):
    data, other = folder(flat), folder(flat, seed=1)
    def view(d, epoch): d.set_epoch(epoch); return torch.stack([x for x, _ in d])
    first = view(data.train, 0)
    torch.manual_seed(9); np.random.seed(9)
    assert (view(data.train, 1) != first).any() and (view(other.train, 0) != first).any()
    assert (view(data.train, 0) == first).all()
    assert (view(data.val, 0) == view(data.val, 1)).all()
    assert (view(folder(flat, augment=False).train, 0) == view(folder(flat, augment=False).train, 1)).all()

def test_global_random_state_is_left_alone(flat):
    torch.manual_seed(0); np.random.seed(0)
    want = torch.rand(1), np.random.rand()
    torch.manual_seed(0); np.random.seed(0)
    folder(flat).train[0]
    assert (torch.rand(1), np.random.rand()) == want

def test_living_workers_follow_the_epoch(flat):
    data = folder(flat)
    loader = DataLoader(data.train, 4, num_workers=1, persistent_workers=True)
    epochs = []
    for e in (0, 1, 0): data.train.set_epoch(e); epochs.append(torch.cat([x for x, _ in loader]))
    assert (epochs[0] == epochs[2]).all() and (epochs[0] != epochs[1]).any()

@pytest.mark.filterwarnings("ignore:.*byte for byte")
def test_values(tmp_path):
    for c in "ab":
        for k in range(3): p = picture(tmp_path/"d"/c/f"{k}.png"); Image.new("RGB", (30, 20), (255, 0, 51)).save(p)
    x, _ = load_data("folder", str(tmp_path/"d"), image_size=8, preparation=Preparation(8, (.5, .5, 0), (.5, .5, .1))).test[0]
    assert torch.allclose(x.mean((1, 2)), torch.tensor([1., -1., 2.]), atol=1e-6) and x.shape == (3, 8, 8)
