"Published data sets by name: every layout, drawn small, at the true numbers where numbers are checked."
import io, itertools, pickle, sys, warnings
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from PIL import Image
from sklearn.metrics import f1_score
from clca.training import data as data_room, held as held_room, unpacking
from clca.training.data import add_splits, load_data
from clca.training.datasets import DATASETS, check_counts, counted, register_dataset
from clca.training.dafre import read_dafre
from clca.training.evaluation import grade
from clca.training.folders import TABLE
from clca.training.held import HELD, read_held
from clca.training.leaves import LEAVES, STAGES, read_leaves
from clca.training.paths import data_dir

@pytest.fixture(autouse=True)
def own_root(tmp_path, monkeypatch): monkeypatch.setenv("CLCA_ROOT", str(tmp_path/"root"))

number = itertools.count()

def draw(path: Path, side=8):
    "A small image that is like no other."
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(next(number)).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)
    return path

def touch(path: Path):
    if not path.parent.is_dir(): path.parent.mkdir(parents=True)
    path.touch()

def counts(data, split): return np.bincount(getattr(data, split).labels, minlength=len(data.classes)).tolist()
def load(name, place, **kw): return load_data(name, str(place), image_size=8, **kw)

# The leaves ----------------------------------------------------------------------------------------------------------

def leaves(name) -> list[tuple[str, int, str]]:
    "File, class from 1 and split of a set at its true numbers; the folder of a stage is part of the name."
    want, rows = LEAVES[name], []
    if name.startswith("soyageing"):
        stages = [name[-2:].upper()] if "_" in name else STAGES
        return [(f"{s}/yd{c:03}_{s}_{i}_{split}.png", c, split) for s in stages for split in ("train", "test")
                for c in range(1, 199) for i in range(1, 6)]
    for split in ("train", "test"):
        each = [want[split] // want["classes"]]*want["classes"]
        if name == "soygene" and split == "train": each[:2] = 3, 15
        for k in range(want[split] - sum(each)): each[2 + k % (len(each) - 2)] += 1
        rows += [(f"{c if name != 'soygene' else f'GDC{c:04}'}_{i}_{split}.png", c, split) for c, n in enumerate(each, 1) for i in range(1, n + 1)]
    return rows

def by_anno(place, rows, images="images"):
    lists = {}
    for file, c, split in rows:
        folder, _, name = file.rpartition("/")
        touch(place/folder/images/name)
        lists.setdefault(place/folder/"anno"/f"{split}.txt", []).append(f"{name} {c}")
    for path, lines in lists.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines) + "\n")

def by_csv(place, rows):
    place.mkdir(exist_ok=True)
    for file, _, _ in rows: touch(place/Path(file).parent/"images"/Path(file).name)
    for kind, split in (("train_val", "train"), ("test", "test")):
        lines = [f"{c - 1},{Path(file).parent}/images/{Path(file).name}" for file, c, s in rows if s == split]
        (place/f"{kind}.csv").write_text("class_id,dir\n" + "\n".join(lines).replace(",./", ",") + "\n")

def by_name(place, rows):
    for file, _, _ in rows: touch(place/file)

LAYOUTS = dict(anno=by_anno, csv=by_csv, flat=by_name)

@pytest.mark.parametrize("name", LEAVES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_leaves_at_their_true_numbers(tmp_path, name, layout):
    "Whatever the layout, the same table; nothing is left out."
    if layout == "flat" and name == "soygene": pytest.skip("its names are of plants")
    rows = leaves(name)
    LAYOUTS[layout](tmp_path/"set", rows)
    table = read_leaves(tmp_path/"set", name)
    check_counts(name, table, LEAVES[name])
    assert not table.why.any()
    got = {(Path(n).name, label, split) for n, label, split in zip(table.name, table.label, table.split)}
    assert got == {(Path(file).name, str(c), split) for file, c, split in rows}

@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_missing_of_each(tmp_path, layout):
    rows = leaves("cotton")
    LAYOUTS[layout](tmp_path/"set", rows)
    for gone, said in ((rows[0], "239 training images instead of 240, 2 training images in its rarest class instead of 3"), (rows[-1], "239 test images instead of 240")):
        [path] = (tmp_path/"set").rglob(gone[0])
        path.unlink()
        with pytest.raises(ValueError, match=said) as caught: load("cotton", tmp_path/"set")
        assert "partial=True" in str(caught.value) and "\n" not in str(caught.value)
        if layout != "flat": assert f"1 listed, but not there, the first is images/{gone[0]}" in str(caught.value)
        path.touch()

def test_a_class_or_a_list_less(tmp_path):
    rows = leaves("soylocal")
    by_anno(tmp_path/"set", [r for r in rows if r[1] != 200])
    with pytest.raises(ValueError, match="199 classes instead of 200, 597 training images instead of 600, 597 test images instead of 600"): load("soylocal", tmp_path/"set")
    (tmp_path/"set/anno/test.txt").unlink()
    with pytest.raises(ValueError, match="0 test images instead of 600"): load("soylocal", tmp_path/"set")

def cotton(place, draw_them=True):
    rows = leaves("cotton")
    if draw_them:
        for file, _, _ in rows: draw(place/"images"/file)
    by_anno(place, rows)
    return rows

def test_cotton_end_to_end(tmp_path):
    "Three images a class: one of each goes to validation, by seed; test is left alone; the order is that of the numbers."
    cotton(tmp_path/"COTTON")
    data = load("cotton", tmp_path/"COTTON")
    assert [counts(data, s) for s in ("train", "val", "test")] == [[2]*80, [1]*80, [3]*80] and data.classes == [str(c) for c in range(1, 81)]
    assert all(Path(p).name.endswith("_test.png") for p in data.test.paths) and data.name == "cotton" and data.train.flip
    assert all(Path(p).name.endswith("_train.png") for p in data.train.paths + data.val.paths)
    other = load("cotton", tmp_path/"COTTON", data_seed=1)
    assert other.val.paths != data.val.paths and other.test.paths == data.test.paths and load("cotton", tmp_path/"COTTON").val.paths == data.val.paths
    assert data.summary().loc["val"].tolist() == [80, 80, 1, 1, 1]

def test_a_part_on_request(tmp_path):
    cotton(tmp_path/"set")
    (tmp_path/"set/images/1_1_train.png").unlink()
    with pytest.warns(UserWarning, match="239 training images instead of 240.*results are not those of the published set"):
        data = load("cotton", tmp_path/"set", partial=True)
    assert len(data.train) + len(data.val) == 239 and data.left_out.values.tolist() == [["images/1_1_train.png", "listed, but not there"]]

def test_a_class_with_one_image_is_refused_with_a_sentence(tmp_path):
    cotton(tmp_path/"set")
    for k in (1, 2): (tmp_path/f"set/images/7_{k}_train.png").unlink()
    with pytest.warns(UserWarning), pytest.raises(ValueError, match=r"class '7' has 1 image\(s\) to split: 2 are needed"): load("cotton", tmp_path/"set", partial=True)

def test_where_nothing_is(tmp_path):
    with pytest.raises(ValueError, match="cotton is not in .*downloads/cotton: put it there, or give its folder as data_root"): load_data("cotton")
    with pytest.raises(ValueError, match="does not exist: give the path of the folder with the files of cotton"): load("cotton", tmp_path/"no")
    touch(tmp_path/"set/readme.txt")
    with pytest.raises(ValueError, match="holds no cotton: it needs anno/train.txt and anno/test.txt, or train_val.csv"): load("cotton", tmp_path/"set")
    by_name(tmp_path/"set", leaves("cotton"))
    with pytest.raises(ValueError, match="holds no soygene: .*or a parquet file$"): load("soygene", tmp_path/"set")

def test_its_own_folder_is_the_default(tmp_path):
    cotton(data_dir()/"downloads/cotton")
    assert len(load_data("cotton", image_size=8).test) == 240

def test_images_pytorch(tmp_path):
    by_anno(tmp_path/"set", leaves("cotton"), "images_pytorch")
    check_counts("cotton", read_leaves(tmp_path/"set", "cotton"), LEAVES["cotton"])
    by_anno(tmp_path/"set", leaves("cotton"))
    table = read_leaves(tmp_path/"set", "cotton")
    check_counts("cotton", table, LEAVES["cotton"])
    assert table.name[table.why == ""].str.startswith("images/").all() and (table.why == "in none of the lists").sum() == 480

def test_all_sets_in_one_folder(tmp_path):
    names = dict(cotton="Cotton80/COTTON", soylocal="SoyLocal/soybean200", soyageing_r4="SoyAgeing")
    for name, folder in names.items(): by_anno(tmp_path/folder, leaves(name))
    for name in names:
        table = read_leaves(tmp_path, name)
        check_counts(name, table, LEAVES[name])
        assert not table.why.any()

def test_everything_is_accounted_for(tmp_path):
    cotton(tmp_path/"set", False)
    for name in ("images/Thumbs.db", "images/extra.png", "readme.txt", "anno/notes.txt", ".old/1_1_train.png"): touch(tmp_path/"set"/name)
    table = read_leaves(tmp_path/"set", "cotton")
    left = table[table.why != ""].set_index("name").why
    assert set(left.index) == {"images/Thumbs.db", "images/extra.png", "readme.txt", "anno/notes.txt", ".old/1_1_train.png"} and left["images/extra.png"] == "in none of the lists"

@pytest.mark.parametrize("lists, train", [
    (dict(train=lambda k: k % 3 < 2, val=lambda k: k % 3 == 2), 240), # a division of the published training images
    (dict(train=lambda k: k % 3 < 2, val=lambda k: k % 3 == 2, train_val=lambda k: True), 240),
    (dict(train=lambda k: True, val=lambda k: k % 3 == 2), 240)]) # some of them twice
def test_ready_made_validation_lists(tmp_path, lists, train):
    rows = leaves("cotton")
    by_csv(tmp_path/"set", rows)
    (tmp_path/"set/train_val.csv").unlink()
    own = [r for r in rows if r[2] == "train"]
    for kind, takes in lists.items():
        (tmp_path/f"set/{kind}.csv").write_text("".join(f"{c - 1},images/{file}\n" for k, (file, c, _) in enumerate(own) if takes(k)))
    table = read_leaves(tmp_path/"set", "cotton")
    check_counts("cotton", table, LEAVES["cotton"])
    assert set(table.split) == {"train", "test"} and not table.why.any()

def test_validation_is_never_taken_from_test(tmp_path):
    rows = cotton(tmp_path/"set", False)
    (tmp_path/"set/anno/val.txt").write_text("\n".join(f"{file} {c}" for file, c, split in rows if split == "test"))
    table = read_leaves(tmp_path/"set", "cotton")
    check_counts("cotton", table, LEAVES["cotton"])
    assert table.split.value_counts().to_dict() == dict(train=240, test=240)
    (tmp_path/"set/anno/test.txt").write_text("\n".join(f"{file} {c}" for file, c, split in rows[245:]))
    with pytest.raises(ValueError, match=r"cotton has files whose names say otherwise than the lists \(5\), the first is images/1_1_test.png, listed with class 1 for train"): read_leaves(tmp_path/"set", "cotton")

def test_lists_that_count_otherwise(tmp_path):
    "From 0 where a 0 occurs, from 1 otherwise; a list that is one off is told by the names."
    rows = leaves("cotton")
    by_anno(tmp_path/"zero", [(f, c - 1, s) for f, c, s in rows])
    assert read_leaves(tmp_path/"zero", "cotton").label.tolist() == [str(c) for _, c, _ in rows]
    by_anno(tmp_path/"off", [(f, c + 1, s) for f, c, s in rows])
    with pytest.raises(ValueError, match=r"otherwise than the lists \(480\).*class 2"): read_leaves(tmp_path/"off", "cotton")
    by_anno(tmp_path/"leak", [(f, c, "train" if f == "1_1_test.png" else s) for f, c, s in rows])
    with pytest.raises(ValueError, match=r"cotton has files .*\(1\).*for train"): read_leaves(tmp_path/"leak", "cotton")
    ageing = leaves("soyageing_r1")
    by_anno(tmp_path/"two", [(f, 3 if (c, s) == (1, "test") else c, s) for f, c, s in ageing])
    with pytest.raises(ValueError, match="soyageing_r1 has files whose names say otherwise"): read_leaves(tmp_path/"two", "soyageing_r1")

@pytest.mark.parametrize("layout, stage", [("anno", "R1"), ("anno", "R6"), ("csv", "R3"), ("flat", "R4")])
def test_a_stage_is_read_from_the_pooled_folder_or_its_own(tmp_path, layout, stage):
    name, few = f"soyageing_{stage.lower()}", [r for r in leaves("soyageing") if r[1] < 3 and not r[0].startswith(stage)]
    LAYOUTS[layout](tmp_path/"SoyAgeing", [(f"SoyAgeing-{f[:2]}/{f}", c, s) for f, c, s in leaves(name) + few])
    for place in (tmp_path/"SoyAgeing", *([] if layout == "csv" else [tmp_path/f"SoyAgeing/SoyAgeing-{stage}"])):
        table = read_leaves(place, name)
        check_counts(name, table, LEAVES[name])
        assert table.name.str.contains(f"_{stage}_").all() and not table.why.any()

@pytest.mark.parametrize("text, said", [("1_1_train.png", "line 1: a file name and a label"), ("1_1_train.png x", "line 1: 'x' is no number of a class")])
def test_a_list_that_is_none(tmp_path, text, said):
    cotton(tmp_path/"set", False)
    (tmp_path/"set/anno/train.txt").write_text(text)
    with pytest.raises(ValueError, match=said): load("cotton", tmp_path/"set")

# Parquet -------------------------------------------------------------------------------------------------------------

def png(k):
    file = io.BytesIO()
    Image.new("RGB", (2, 2), (k % 256, k // 256, 7)).save(file, "png")
    return file.getvalue()

def packed(rows, shift=1): return [unpacking.Packed(png(k), c - shift, split, f"leaf {c}") for k, (_, c, split) in enumerate(rows)]

@pytest.fixture
def parquet(monkeypatch):
    "Files that hold rows for `read_packed`, without pyarrow."
    def write(path, rows):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps([tuple(r) for r in rows]))
    monkeypatch.setattr(unpacking, "parquet_rows", lambda path: (unpacking.Packed(*r) for r in pickle.loads(path.read_bytes())))
    return write

@pytest.mark.parametrize("shift", [0, 1])
def test_cotton_in_parquet(tmp_path, parquet, shift):
    parquet(tmp_path/"set/cotton80_dataset.parquet", packed(leaves("cotton"), shift))
    for place in (tmp_path/"set", tmp_path/"set/cotton80_dataset.parquet"):
        data = load("cotton", place)
        assert [counts(data, s) for s in ("train", "val", "test")] == [[2]*80, [1]*80, [3]*80] and data.classes[:2] == ["1", "2"]
    assert len(list((data_dir()/"unpacked").iterdir())) == 1 and not data.left_out.size

def test_a_mirror_whose_validation_is_its_test(tmp_path, parquet):
    rows = packed(leaves("cotton"))
    parquet(tmp_path/"set/cotton80_dataset.parquet", rows + [r._replace(kind="val") for r in rows if r.kind == "test"])
    data = load("cotton", tmp_path/"set")
    assert [len(s) for s in (data.train, data.val, data.test)] == [160, 80, 240]
    assert not {Path(p).read_bytes() for p in data.val.paths} & {Path(p).read_bytes() for p in data.test.paths}
    parts = [r._replace(kind="val") if r.kind == "train" and k % 3 == 0 else r for k, r in enumerate(rows)]
    parquet(tmp_path/"other/cotton80_dataset.parquet", parts)
    assert len(load("cotton", tmp_path/"other").test) == 240

def test_a_mirror_with_all_sets_in_one_folder(tmp_path, parquet):
    files = dict(cotton="cotton80", soylocal="soybean", soyageing_r1="soy_ageing_R1", soyageing_r3="soy_ageing_R3")
    for name, file in files.items(): parquet(tmp_path/f"set/{file}_dataset.parquet", packed(leaves(name)))
    touch(tmp_path/"set/soygene_dataset.parquet"); touch(tmp_path/"set/soyglobal_dataset.parquet")
    for name in files: check_counts(name, read_leaves(tmp_path/"set", name), LEAVES[name])
    with pytest.raises(ValueError, match="1980 training images instead of 4950"): load("soyageing", tmp_path/"set")

def test_a_parquet_file_that_changed_is_unpacked_again(tmp_path, parquet):
    file = tmp_path/"set/cotton80.parquet"
    parquet(file, packed(leaves("cotton"))); first = load("cotton", file)
    parquet(file, packed(leaves("cotton"))[::-1]); second = load("cotton", file)
    assert first.train.paths[0] != second.train.paths[0]

def test_without_pyarrow(tmp_path, monkeypatch):
    touch(tmp_path/"set/cotton80.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None); monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match="can only be read with pyarrow: pip install pyarrow"): load("cotton", tmp_path/"set")

def test_real_parquet(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = packed(leaves("cotton"))
    plain = pa.table(dict(image=[r.image for r in rows], label=[r.number for r in rows], class_name=[r.name for r in rows], split=[r.kind for r in rows]))
    (tmp_path/"plain").mkdir(); pq.write_table(plain, tmp_path/"plain/cotton80_dataset.parquet")
    for split in ("train", "test"): # as the datasets library writes it
        some = [r for r in rows if r.kind == split]
        (tmp_path/"shards").mkdir(exist_ok=True)
        pq.write_table(pa.table(dict(image=[dict(bytes=r.image, path="x.png") for r in some], label=[r.number for r in some])), tmp_path/f"shards/{split}-00000-of-00001.parquet")
    for place in ("plain", "shards"): assert [len(s) for s in vars(load("cotton", tmp_path/place)).values() if hasattr(s, "paths")] == [160, 80, 240]
    touch(tmp_path/"broken/x.parquet")
    with pytest.raises(ValueError, match="cannot be read as parquet .*fetch it again"): load("cotton", tmp_path/"broken")

# The registry --------------------------------------------------------------------------------------------------------

def mine(place, name):
    rows = [(f"{k}.png", str(place/f"{k}.png"), "ab"[k % 2], "train" if k < 6 else "test", "") for k in range(10)]
    return pd.DataFrame(rows, columns=TABLE)

def test_a_set_of_ones_own(tmp_path):
    for k in range(10): draw(tmp_path/"d"/f"{k}.png")
    register_dataset("mine", counts=dict(train=6), flip=False)(mine)
    try:
        data = load("mine", tmp_path/"d")
        assert [counts(data, s) for s in ("train", "val", "test")] == [[2, 2], [1, 1], [2, 2]] and not data.train.flip and data.name == "mine"
    finally: del DATASETS["mine"]
    assert load(f"{__name__}:mine", tmp_path/"d").hash == data.hash
    with pytest.raises(ValueError, match="unknown dataset 'mine'"): load("mine", tmp_path/"d")

@pytest.mark.parametrize("name, said", [("coton", "did you mean 'cotton'"), ("soyageing_r2", "did you mean 'soyageing_r"), ("no.such:thing", "cannot be imported"), ("os:sep", "is no function")])
def test_unknown_names(name, said):
    with pytest.raises((ValueError, TypeError), match=said): load_data(name)

def test_every_name_has_its_numbers(): assert all(DATASETS[name].counts for name in [*LEAVES, *HELD, "cub", "dafre"])

# Birds and faces -----------------------------------------------------------------------------------------------------

def cub(place, classes=200, each=60, train=30):
    files = [f"{c:03}.Bird_{c}/{k}.jpg" for c in range(1, classes + 1) for k in range(each)]
    kinds = [int(k < train) for _ in range(classes) for k in range(each)]
    lines = {"images.txt": files, "image_class_labels.txt": [int(f[:3]) for f in files], "train_test_split.txt": kinds,
             "classes.txt": [f"{c:03}.Bird_{c}" for c in range(1, classes + 1)]}
    place.mkdir(parents=True)
    for name, values in lines.items(): (place/name).write_text("\n".join(f"{i} {v}" for i, v in enumerate(values, 1)))
    return files

def test_birds(tmp_path):
    for file in cub(tmp_path/"CUB_200_2011", 3, 6, 4): draw(tmp_path/"CUB_200_2011/images"/file)
    with pytest.raises(ValueError, match="3 classes instead of 200, 12 training images instead of 5994, 6 test images instead of 5794"): load("cub", tmp_path)
    with pytest.warns(UserWarning, match="not those of the published set"): data = load("cub", tmp_path, partial=True)
    assert [counts(data, s) for s in ("train", "val", "test")] == [[3]*3, [1]*3, [2]*3] and data.classes[0] == "001.Bird_1"
    touch(tmp_path/"CUB_200_2011/images/001.Bird_1/extra.jpg")
    with pytest.warns(UserWarning, match="in none of the lists"): load("cub", tmp_path/"CUB_200_2011", partial=True)
    (tmp_path/"CUB_200_2011/classes.txt").write_text("1 001.Bird_1")
    with pytest.raises(ValueError, match="do not know '2': unpack"): load("cub", tmp_path)
    with pytest.raises(ValueError, match="holds no cub: it needs CUB_200_2011 with images.txt"): load("cub", tmp_path/"CUB_200_2011/images")

def dafre(place, sizes, header=False):
    for name in ("labels", "faces/0291"): (place/name).mkdir(parents=True)
    lines = {"train": [], "val": [], "test": []}
    for c, n in enumerate(sizes):
        for k in range(n):
            draw(place/f"faces/0291/{c}-{k}.png")
            lines["test" if k % 5 == 4 else "val" if k % 10 == 3 else "train"].append(f"{c},0291/{c}-{k}.png")
    for split, some in lines.items(): (place/f"labels/{split}.csv").write_text("class_id,dir\n"*header + "\n".join(some))
    (place/"labels/classid_classname.csv").write_text("\n".join(f"{c},girl_{'abcdef'[c]}" for c in range(len(sizes))))

@pytest.mark.parametrize("header", [False, True])
def test_faces_and_their_long_tail(tmp_path, header):
    dafre(tmp_path/"dafre", [100, 40, 10, 5], header)
    touch(tmp_path/"dafre/fullMin256/0291/0-0.png") # the whole pictures, beside the faces
    with pytest.raises(ValueError, match="4 classes instead of 3263, 155 images instead of 463437"): load("dafre", tmp_path/"dafre")
    with warnings.catch_warnings(action="ignore"): data = load("dafre", tmp_path/"dafre", partial=True)
    assert data.classes == [f"girl_{x}" for x in "abcd"] and [len(s) for s in (data.train, data.val, data.test)] == [108, 16, 31]
    assert data.summary().loc["train"].tolist() == [108, 4, 3, 7, 70] and data.summary().columns.tolist() == ["images", "classes", "fewest", "middle", "most"]
    assert counts(data, "test") == [20, 8, 2, 1] and set(map(Path, data.left_out.name)) == {Path("fullMin256/0291/0-0.png")}
    (tmp_path/"dafre/labels/val.csv").write_text("")
    with pytest.raises(ValueError, match="val.csv"): read_dafre(tmp_path/"dafre")

def test_summary_with_absent_classes(tmp_path):
    "Over all classes: one that does not occur is the rarest."
    rows = [f"{k}.png,{'abbccc'[k % 6]},{'train' if k < 12 else 'test'}" for k in range(18)] + ["18.png,d,train", "19.png,d,train"]
    for k in range(20): draw(tmp_path/f"{k}.png")
    (tmp_path/"list.csv").write_text("path,label,split\n" + "\n".join(rows))
    with pytest.warns(UserWarning, match="1 of 4 classes have no test image: 'd'"): data = load("csv", tmp_path/"list.csv")
    assert data.summary().loc["test"].tolist() == [6, 3, 0, 1, 3]

def test_macro_f1_of_a_long_tail():
    "The mean over classes that occur, whatever their sizes: against the definition, and against what accuracy says."
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2, 5], [500, 30, 3, 1])
    guesses = np.where(rng.random(len(labels)) < .6, labels, rng.integers(0, 8, len(labels)))
    each = []
    for c in (0, 1, 2, 5):
        hit, said, real = ((guesses == c) & (labels == c)).sum(), (guesses == c).sum(), (labels == c).sum()
        each.append(2*hit/(said + real))
    got = grade(torch.eye(8)[torch.tensor(guesses)], torch.tensor(labels))
    assert abs(got["macro_f1"] - np.mean(each)) < 1e-6 and abs(got["top1"] - (guesses == labels).mean()) < 1e-6
    lazy = grade(torch.eye(8)[torch.zeros(len(labels), dtype=int)], torch.tensor(labels))
    assert lazy["top1"] > .9 and lazy["macro_f1"] < .25
    assert abs(got["macro_f1"] - f1_score(labels, guesses, labels=[0, 1, 2, 5], average="macro", zero_division=0)) < 1e-6

def test_splits_of_a_long_tail():
    "Every class gives at least one image to validation and keeps at least one."
    labels = np.repeat([f"c{k}" for k in range(6)], [2, 3, 4, 5, 50, 500])
    table = add_splits(pd.DataFrame(dict(label=labels, split="train")), 0)
    each = table.groupby(["label", "split"]).size().unstack()
    assert each.val.tolist() == [1, 1, 1, 1, 10, 100] and each.min().min() == 1

# torchvision ---------------------------------------------------------------------------------------------------------

def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows))

def aircraft(root):
    base = root/"fgvc-aircraft-2013b/data"
    lines(base/"variants.txt", ["707-320", "A300"])
    for split in ("trainval", "test"):
        names = [(f"{split}{k}", ["707-320", "A300"][k % 2]) for k in range(6)]
        for name, _ in names: draw(base/f"images/{name}.jpg")
        lines(base/f"images_variant_{split}.txt", [" ".join(n) for n in names])

def flowers(root):
    from scipy.io import savemat
    for k in range(1, 19): draw(root/f"flowers-102/jpg/image_{k:05}.jpg")
    savemat(root/"flowers-102/imagelabels.mat", dict(labels=np.arange(18) % 2 + 1))
    savemat(root/"flowers-102/setid.mat", dict(trnid=np.arange(1, 7), valid=np.arange(7, 13), tstid=np.arange(13, 19)))

def pets(root):
    base = root/"oxford-iiit-pet"
    for split in ("trainval", "test"):
        names = [(f"{'Abyssinian beagle'.split()[k % 2]}_{split}{k}", k % 2 + 1) for k in range(6)]
        for name, _ in names: draw(base/f"images/{name}.jpg")
        lines(base/f"annotations/{split}.txt", [f"{name} {c} 1 1" for name, c in names])

def cars(root):
    from scipy.io import savemat
    base = root/"stanford_cars"
    for split in ("train", "test"):
        for k in range(6): draw(base/f"cars_{split}/{k:05}.jpg")
    (base/"devkit").mkdir()
    notes = np.array([(f"{k:05}.jpg", k % 2 + 1) for k in range(6)], [("fname", object), ("class", int)])
    savemat(base/"devkit/cars_train_annos.mat", dict(annotations=notes))
    savemat(base/"cars_test_annos_withlabels.mat", dict(annotations=notes))
    savemat(base/"devkit/cars_meta.mat", dict(class_names=np.array(["Audi", "BMW"], object)))

def dtd(root):
    for split in ("train", "val", "test"):
        names = [f"{c}/{c}_{split}{k}.jpg" for c in ("banded", "dotted") for k in range(3)]
        for name in names: draw(root/"dtd/dtd/images"/name)
        lines(root/f"dtd/dtd/labels/{split}1.txt", names)

def food101(root):
    import json
    for split in ("train", "test"):
        names = {c: [f"{c}/{split}{k}" for k in range(3)] for c in ("pie", "rice")}
        for name in itertools.chain(*names.values()): draw(root/f"food-101/images/{name}.jpg")
        lines(root/f"food-101/meta/{split}.json", [json.dumps(names)])

def sun397(root):
    lines(root/"SUN397/ClassName.txt", ["/a/abbey", "/b/bar/indoor"])
    for c in ("a/abbey", "b/bar/indoor"):
        for k in range(6): draw(root/f"SUN397/{c}/sun_{k}.jpg")

def eurosat(root):
    for c in ("Forest", "River"):
        for k in range(6): draw(root/f"eurosat/2750/{c}/{c}_{k}.jpg")

def country211(root):
    for split in ("train", "valid", "test"):
        for c in ("AD", "AE"):
            for k in range(3): draw(root/f"country211/{split}/{c}/{k}.jpg")

def gtsrb(root):
    for c in range(2):
        for k in range(3): draw(root/f"gtsrb/GTSRB/Training/{c:05}/{k}.ppm"); draw(root/f"gtsrb/GTSRB/Final_Test/Images/{c}{k}.ppm")
    lines(root/"gtsrb/GT-final_test.csv", ["Filename;ClassId", *(f"{c}{k}.ppm;{c}" for c in range(2) for k in range(3))])

def rendered_sst2(root):
    for split in ("train", "valid", "test"):
        for c in ("negative", "positive"):
            for k in range(3): draw(root/f"rendered-sst2/{split}/{c}/{k}.png")

def imagenette(root):
    from torchvision.datasets import Imagenette
    for split in ("train", "val"):
        for c in list(Imagenette._WNID_TO_CLASS)[:10]:
            for k in range(3): draw(root/f"imagenette2/{split}/{c}/{k}.JPEG")

def mnist(root, name="MNIST"):
    for kind, n in (("train", 40), ("t10k", 20)):
        for what, array in (("images-idx3", np.arange(n*784).reshape(n, 28, 28) % 251), ("labels-idx1", np.arange(n) % 10)):
            path = root/name/"raw"/f"{kind}-{what}-ubyte"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.astype(np.uint8).tobytes())

def fashion_mnist(root): mnist(root, "FashionMNIST")
def kmnist(root): mnist(root, "KMNIST")

def cifar10(root, folder="cifar-10-batches-py", key="labels", parts=(*[f"data_batch_{i}" for i in range(1, 6)], "test_batch"), meta=("batches.meta", "label_names")):
    (root/folder).mkdir(parents=True)
    for i, part in enumerate(parts):
        (root/folder/part).write_bytes(pickle.dumps({"data": np.random.default_rng(i).integers(0, 256, (20, 3072), dtype=np.uint8), key: [k % 10 for k in range(20)]}))
    (root/folder/meta[0]).write_bytes(pickle.dumps({meta[1]: [f"class {c}" for c in range(10)]}))

def cifar100(root): cifar10(root, "cifar-100-python", "fine_labels", ("train", "test"), ("meta", "fine_label_names"))

def svhn(root):
    from scipy.io import savemat
    root.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        savemat(root/f"{split}_32x32.mat", dict(X=np.random.default_rng(len(split)).integers(0, 256, (32, 32, 3, 20), dtype=np.uint8), y=np.arange(20)[:, None] % 10 + 1))

def stl10(root):
    base = root/"stl10_binary"
    lines(base/"class_names.txt", [f"class {c}" for c in range(10)])
    lines(base/"fold_indices.txt", ["0"])
    touch(base/"unlabeled_X.bin")
    for split in ("train", "test"):
        (base/f"{split}_X.bin").write_bytes(np.random.default_rng(len(split)).integers(0, 256, (20, 3, 96, 96), dtype=np.uint8).tobytes())
        (base/f"{split}_y.bin").write_bytes((np.arange(20) % 10 + 1).astype(np.uint8).tobytes())

def usps(root):
    import bz2
    root.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(("usps.bz2", "usps.t.bz2")):
        rng = np.random.default_rng(i)
        rows = [f"{k % 10 + 1} " + " ".join(f"{j + 1}:{v:.3f}" for j, v in enumerate(rng.uniform(-1, 1, 256))) for k in range(20)]
        (root/name).write_bytes(bz2.compress("\n".join(rows).encode()))

DRAWN = dict(aircraft=aircraft, flowers=flowers, pets=pets, cars=cars, dtd=dtd, food101=food101, sun397=sun397, eurosat=eurosat, country211=country211, gtsrb=gtsrb,
             rendered_sst2=rendered_sst2, imagenette=imagenette, mnist=mnist, fashion_mnist=fashion_mnist, kmnist=kmnist, cifar10=cifar10, cifar100=cifar100,
             svhn=svhn, stl10=stl10, usps=usps)

def test_all_that_can_be_drawn_is(): assert set(HELD) - set(DRAWN) == {"imagenet"}

@pytest.fixture
def no_checksums(monkeypatch):
    "What is drawn has other bytes than what is published."
    for module in {sys.modules[getattr(held_room.torchvision_datasets, h.kind).__module__] for h in HELD.values()}:
        if hasattr(module, "check_integrity"): monkeypatch.setattr(module, "check_integrity", lambda path, md5=None: Path(path).is_file())

@pytest.mark.filterwarnings("ignore:.*published with other numbers", "ignore:.*byte for byte")
@pytest.mark.parametrize("name", DRAWN)
def test_what_torchvision_holds(tmp_path, no_checksums, name):
    "Refused for its numbers, then read as it is: our splits, true paths, the same again, from the folder above and the one within."
    DRAWN[name](tmp_path/"set")
    with pytest.raises(ValueError, match=f"{name} is published with other numbers, here are"): load(name, tmp_path/"set")
    data = load(name, tmp_path/"set", partial=True)
    table = read_held(tmp_path/"set", name)
    found, own = counted(table), set(HELD[name].splits)
    assert not table.why.any() and found["classes"] == len(data.classes) and set(table.split) == own
    assert {*data.train.paths, *data.val.paths, *data.test.paths} == set(table.path) and all(map(Path.is_file, map(Path, table.path)))
    if "val" not in own and "train" in own: assert len(data.train) + len(data.val) == found["train"]
    if "test" in own: assert set(data.test.paths) == set(table.path[table.split == "test"])
    assert data.train.flip == HELD[name].flip and load(name, tmp_path/"set", partial=True).hash == data.hash

def test_labels_of_torchvision_are_kept(tmp_path, no_checksums):
    cars(tmp_path); pets(tmp_path); sun397(tmp_path); svhn(tmp_path)
    def pairs(name): t = read_held(tmp_path, name); return set(zip(t.label, t.name.str.rsplit("/").str[-1]))
    assert ("Audi", "00000.jpg") in pairs("cars") and ("BMW", "00001.jpg") in pairs("cars")
    assert all(label.lower() == file.split("_")[0].lower() for label, file in pairs("pets"))
    assert {label for label, _ in pairs("sun397")} == {"abbey", "bar/indoor"} # as torchvision calls them
    assert set(read_held(tmp_path, "svhn").label) == {str(c) for c in range(1, 11)}

@pytest.mark.parametrize("name", HELD)
def test_no_network(tmp_path, monkeypatch, name):
    "One sentence that says what to put where, at once; nothing is left behind that would look like a data set."
    def refuse(*args, **kw): raise OSError(101, "Network is unreachable")
    monkeypatch.setattr("socket.socket.connect", refuse); monkeypatch.setattr("socket.getaddrinfo", refuse)
    with pytest.raises(ValueError) as caught: load_data(name)
    said = str(caught.value)
    assert HELD[name].there in said and str(data_dir()/"downloads"/name) in said and "\n" not in said.strip()
    assert not list((data_dir()/"downloads").glob("*"))
    if HELD[name].url: assert f"obtained from {HELD[name].url}" in said and "the download failed" in said
    with pytest.raises(ValueError, match="put "): load_data(name)

def test_a_download_fills_our_own_folder_only(tmp_path, monkeypatch):
    asked = []
    class Fake(held_room.torchvision_datasets.DTD):
        def _download(self):
            asked.append(self.root)
            dtd(Path(self.root))
            if len(asked) == 1: raise KeyboardInterrupt # killed after the last file, before anything is checked
    monkeypatch.setattr(held_room.torchvision_datasets, "DTD", type("DTD", (Fake,), {}))
    (tmp_path/"theirs").mkdir()
    with pytest.raises(ValueError, match="only the data folder's own downloads/"): load("dtd", tmp_path/"theirs")
    assert not asked and not list((tmp_path/"theirs").iterdir())
    with pytest.raises(KeyboardInterrupt): load_data("dtd", image_size=8, partial=True)
    assert not list((data_dir()/"downloads").iterdir()), "half a set would be taken for a whole one"
    with pytest.warns(UserWarning, match="not those of the published"): data = load_data("dtd", image_size=8, partial=True)
    assert {Path(p).parent for p in asked} == {data_dir()/"downloads"} and len(data.test) == 6
    with warnings.catch_warnings(action="ignore"): assert load_data("dtd", image_size=8, partial=True).hash == data.hash

def test_the_memory_of_checks_is_kept_for_each_name(tmp_path, monkeypatch):
    "Stages of one folder do not forget each other."
    rows = [r for stage in ("r1", "r3") for r in leaves(f"soyageing_{stage}") if r[1] < 3]
    for file, _, _ in rows: draw(tmp_path/"set"/file)
    with warnings.catch_warnings(action="ignore"):
        for stage in ("r1", "r3"): load(f"soyageing_{stage}", tmp_path/"set", partial=True)
        monkeypatch.setattr("clca.training.checking.examine", lambda path: 1/0)
        for stage in ("r1", "r3"): load(f"soyageing_{stage}", tmp_path/"set", partial=True)
    assert data_room.DATASETS is DATASETS

@pytest.mark.parametrize("classes", [2, 7, 40])
def test_accuracies_are_those_of_torchmetrics(classes):
    "Which takes minutes and gigabytes for the five best of three thousand classes."
    from torchmetrics.functional.classification import multiclass_accuracy
    logits, labels = torch.randn(501, classes, generator=torch.Generator().manual_seed(0)), torch.arange(501) % classes
    for name, k in (("top1", 1), ("top5", min(5, classes))):
        want = multiclass_accuracy(logits, labels, classes, top_k=k, average="micro").item()
        assert grade(logits, labels)[name] == round(want, 6)
