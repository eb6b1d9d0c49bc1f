"Data: what is read from files of every kind, what is refused and in which words, and that nothing depends on chance."
import hashlib, os, subprocess, sys, threading, warnings
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from torch.utils.data import DataLoader
from clca.training import images as images_module, typefaces as tf
from clca.tools.preparation import Preparation
from clca.training.data import load_data
from clca.training.images import read_image
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
    for p in ("a", "b", ""): (tmp_path/"d/val"/p).rmdir()
    data = folder(tmp_path/"d")
    assert [counts(data, s) for s in ("train", "val", "test")] == [[8, 8], [2, 2], [3, 3]]

def test_desktop_litter_is_no_image(flat):
    (flat/"ant/.DS_Store").write_text("x"); (flat/"ant/Thumbs.db").write_text("x"); (flat/".cache").mkdir()
    assert sum(counts(folder(flat), s)[0] for s in ("train", "val", "test")) == 5

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
        match="flat holds only folders: its images must lie directly in it .*data_root is one level too high",
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

# What is remembered --------------------------------------------------------------------------------------------------

def test_checks_are_remembered(flat, monkeypatch):
    first, before = folder(flat), sorted(p.name for p in flat.rglob("*"))
    def never(path): raise AssertionError(path)
    monkeypatch.setattr(images_module, "inspect_file", never)
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

def test_memory_changes_nothing(flat, monkeypatch):
    held = folder(flat)
    monkeypatch.setattr("clca.training.data.hold", lambda sets: None)
    read = folder(flat)
    assert held.train.memory is not None and read.train.memory is None
    assert all((a[0] == b[0]).all() for s in ("train", "val") for a, b in zip(getattr(held, s), getattr(read, s)))

@pytest.mark.filterwarnings("ignore:.*byte for byte")
def test_values(tmp_path):
    for c in "ab":
        for k in range(3): p = picture(tmp_path/"d"/c/f"{k}.png"); Image.new("RGB", (30, 20), (255, 0, 51)).save(p)
    x, _ = load_data("folder", str(tmp_path/"d"), image_size=8, preparation=Preparation(8, (.5, .5, 0), (.5, .5, .1))).test[0]
    assert torch.allclose(x.mean((1, 2)), torch.tensor([1., -1., 2.]), atol=1e-6) and x.shape == (3, 8, 8)
