"Files as people have them: what is sound is read, what is another format is called by its name, previews are not photographs."
import io, os, struct, sys, warnings, zlib
from pathlib import Path

import numpy as np, pytest
from PIL import Image, PngImagePlugin

from clca.tools.preparation import Preparation
from clca.training.checking import examine, inspect_file, inspect_files
from clca.training.images import Images
from clca.training.paths import data_dir
from clca.training.reading import decode, read_image, use_limit, use_plugins

@pytest.fixture(autouse=True)
def own_root(tmp_path, monkeypatch):
    "What is remembered of a test goes to its own folder."
    monkeypatch.setenv("CLCA_ROOT", str(tmp_path/"root"))

# EXIF ----------------------------------------------------------------------------------------------------------------

def exif(orientation, kind, count, value):
    "A block with two tags, the orientation and a horizontal resolution."
    head = struct.pack("<HHHII", 2, 0x112, 3, 1, orientation) + struct.pack("<HHII", 0x11a, kind, count, 38) + bytes(4)
    return b"Exif\0\0II*\0\x08\0\0\0" + head + value

ODD = {"rational": (10, 1, struct.pack("<ii", -1, 0)), "text": (2, 5, b"300 \0"), "bytes": (7, 2, b"ab"),
       "nan": (12, 1, struct.pack("<d", float("nan"))), "too short": (5, 9, b"1"), "no such kind": (99, 1, b"1234")}

@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
@pytest.mark.parametrize("odd", ODD)
def test_an_odd_value_beside_the_orientation(tmp_path, ending, odd):
    picture = Image.new("RGB", (40, 20), "red"); picture.paste("blue", (0, 0, 20, 20))
    for orientation, size, corner in (6, (20, 40), "top"), (1, (40, 20), "left"):
        picture.save(file := tmp_path/f"x.{ending}", exif=exif(orientation, *ODD[odd]))
        assert inspect_file(str(file))[1] == ""
        read = read_image(file)
        assert read.size == size and read.getpixel((2, 2))[2] > 200
        far = (17, 37) if corner == "top" else (37, 17)
        assert read.getpixel(far)[0] > 200

def test_a_block_that_is_no_exif_turns_nothing(tmp_path):
    for block in (b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"):
        Image.new("RGB", (40, 20)).save(tmp_path/"x.jpg", exif=block)
        assert examine(str(tmp_path/"x.jpg")).why == "" and read_image(tmp_path/"x.jpg").size == (40, 20)

@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_that_of_pillow(orientation):
    from PIL import ImageOps
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8))
    tags = Image.Exif(); tags[0x112] = orientation
    picture.save(file := io.BytesIO(), "png", exif=tags)
    assert (np.asarray(decode(file.getvalue())[0]) == np.asarray(ImageOps.exif_transpose(Image.open(file)))).all()

# Texts, profiles and limits of a PNG ---------------------------------------------------------------------------------

def chunk(kind, body): return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

def with_chunk(png, extra, at_the_end=False):
    place = len(png) - 12 if at_the_end else 33
    return png[:place] + extra + png[place:]

LONG = zlib.compress(bytes(2**21))
@pytest.mark.parametrize("extra", [
    chunk(b"zTXt", b"k\0\0" + LONG), chunk(b"iTXt", b"k\0\1\0\0\0" + LONG), chunk(b"iCCP", b"k\0\0" + LONG)],
    ids=["zTXt", "iTXt", "iCCP"])
@pytest.mark.parametrize("at_the_end", [False, True])
def test_long_texts_and_profiles(extra, at_the_end):
    tags = Image.Exif(); tags[0x112] = 6
    Image.new("RGB", (4, 3), "red").save(file := io.BytesIO(), "png", exif=tags)
    rgb, _ = decode(with_chunk(file.getvalue(), extra, at_the_end))
    assert rgb.size == (3, 4) and rgb.getpixel((0, 0)) == (255, 0, 0)

def test_many_texts(monkeypatch):
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_MEMORY", 1000)
    Image.new("RGB", (4, 3)).save(file := io.BytesIO(), "png")
    assert decode(with_chunk(file.getvalue(), chunk(b"tEXt", b"k\0" + bytes(600))*3))[0].size == (4, 3)

def test_a_bomb_is_refused_with_the_limit_and_what_lifts_it(tmp_path, monkeypatch):
    Image.new("1", (300, 100)).save(tmp_path/"x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    why = inspect_file(str(tmp_path/"x.png"))[1]
    assert "more than 20000 pixels" in why and "CLCA_MAX_PIXELS" in why
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 15_000)
    assert inspect_file(str(tmp_path/"x.png"))[1] == ""

HUGE = 60_000
BOMBS = {
    "png": b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", HUGE, HUGE, 8, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b""),
    "gif": b"GIF89a" + struct.pack("<HHBBB", HUGE, HUGE, 0, 0, 0) + b"," + struct.pack("<HHHHB", 0, 0, HUGE, HUGE, 0) + b"\2\1\0\0;",
    "bmp": b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, HUGE, HUGE, 1, 24, *[0]*6),
    "ppm": b"P6 %d %d 255\n" % (HUGE, HUGE)}
BOMBS["ico"] = struct.pack("<3H4BHHII", 0, 1, 1, 8, 8, 0, 0, 1, 32, len(BOMBS["png"]), 22) + BOMBS["png"] # a large one within a small

@pytest.mark.parametrize("kind", BOMBS)
def test_a_small_file_that_claims_to_be_huge_is_refused_before_it_is_decoded(kind):
    with pytest.raises(ValueError, match="it has more than 178956970 pixels, the limit"): decode(BOMBS[kind])

def test_data_beyond_the_picture_are_not_unpacked():
    "A quarter of a gigabyte of zeros in one kilobyte of pixels or of text."
    small, zeros = BOMBS["png"][:16] + struct.pack(">II", 1, 1) + b"\x08\2\0\0\0", zlib.compress(bytes(2**26))
    small += struct.pack(">I", zlib.crc32(small[12:]))
    for extra in b"", chunk(b"zTXt", b"k\0\0" + zeros):
        assert decode(small + extra + chunk(b"IDAT", zeros) + chunk(b"IEND", b""))[0].size == (1, 1)

def test_the_variable_sets_the_limit(tmp_path, monkeypatch):
    "And whoever set it is not warned of what lies below it."
    Image.new("1", (300, 100)).save(tmp_path/"x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for given, why in ("30000", ""), ("29998", "it has more than 29998 pixels"), ("", "it has more than 29998 pixels"):
        monkeypatch.setenv("CLCA_MAX_PIXELS", given)
        with warnings.catch_warnings(action="error"):
            use_limit()
            assert inspect_file(str(tmp_path/"x.png"))[1].startswith(why) and bool(why) == bool(inspect_file(str(tmp_path/"x.png"))[1])
    for wrong in ("many", "-1", "0", "1e9"):
        monkeypatch.setenv("CLCA_MAX_PIXELS", wrong)
        with pytest.raises(ValueError, match=f"CLCA_MAX_PIXELS is '{wrong}'"): use_limit()

# JPEG ----------------------------------------------------------------------------------------------------------------

def noisy_jpeg(**how):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    picture.save(file := io.BytesIO(), "jpeg", **how)
    return file.getvalue()

@pytest.mark.parametrize("how", [{}, dict(progressive=True), dict(exif=exif(6, *ODD["text"])), dict(restart_marker_blocks=1), dict(optimize=True)])
def test_a_jpeg_that_ends_in_zeros_was_cut_off(monkeypatch, how):
    "Its full size, as a broken download has it: Pillow alone would paint the rest grey."
    from PIL import ImageFile
    jpeg = noisy_jpeg(**how)
    whole = np.asarray(decode(jpeg)[0])
    for more in bytes(1000), b"what a telephone adds": assert (np.asarray(decode(jpeg + more)[0]) == whole).all()
    cut = jpeg[:len(jpeg)*2//3] + bytes(len(jpeg)//3)
    with pytest.raises(ValueError, match="truncated: the end of its pixels is missing"): decode(cut)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert decode(cut)[0].size == Image.open(io.BytesIO(cut)).size[::-1 if how.get("exif") else 1], "who asks for it has it"

@pytest.mark.parametrize("kind, bits", [(0xc1, 12), (0xc3, 8), (0xf7, 8), (0xc7, 8)])
def test_a_jpeg_of_a_rare_kind_is_called_so(kind, bits):
    frame = (jpeg := noisy_jpeg()).index(b"\xff\xc0")
    odd = jpeg[:frame + 1] + bytes([kind]) + jpeg[frame + 2:frame + 4] + bytes([bits]) + jpeg[frame + 5:]
    with pytest.raises(ValueError, match="a JPEG without loss or with more than 8 bits, .*: convert it to PNG"): decode(odd)

# Other formats -------------------------------------------------------------------------------------------------------

def box(brand, more=b"\0\0\0\0mif1heic"): return (16 + len(more)).to_bytes(4, "big") + b"ftyp" + brand + more + bytes(64)

FOREIGN = {
    "HEIC": box(b"heic"), "HEIC ": box(b"mif1"), "AVIF": box(b"mif1", b"\0\0\0\0mif1avif"),
    "camera raw": box(b"crx "), "camera raw ": b"FUJIFILMCCD-RAW 0201" + bytes(64), "camera raw  ": b"II*\0\x10\0\0\0CR\2\0" + bytes(64),
    "JPEG XL": b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(20), "JPEG XL ": b"\xff\x0a" + bytes(20), "DICOM": bytes(128) + b"DICM" + bytes(64),
    "a video": box(b"qt  "), "SVG": b'<?xml version="1.0"?>\n<svg xmlns="x"/>', "SVG ": b"\xef\xbb\xbf <svg/>", "PDF": b"%PDF-1.7",
    "a web page": b"\n<!DOCTYPE HTML><p>404", "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
    "a ZIP archive": b"PK\3\4" + bytes(30), "PAM": b"P7\nWIDTH 1\n", "a NumPy array": b"\x93NUMPY\1\0", "a TIFF of a kind": b"II*\0\x08\0\0\0\0\0" + bytes(40)}

@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_file_is_called_by_its_name(tmp_path, kind):
    (file := tmp_path/"x.jpg").write_bytes(FOREIGN[kind])
    digest, why = inspect_file(str(file))
    assert not digest and why.startswith(kind.strip()) and ": " in why and "\n" not in why
    if kind.strip() in ("HEIC", "AVIF"): assert "install pillow-heif" in why

@pytest.mark.parametrize("data, why", [(b"", "empty file"), (b"Dear all", "not an image"), (b"\0"*200, "not an image")])
def test_what_nobody_knows(tmp_path, data, why):
    (tmp_path/"x").write_bytes(data)
    assert inspect_file(str(tmp_path/"x")) == ("", why)

def test_an_optional_plugin_is_used_where_it_is_installed(tmp_path, monkeypatch):
    "What pillow-heif does to Pillow, done by a toy."
    (tmp_path/"pillow_heif.py").write_text(
        "from PIL import Image, ImageFile\n"
        "class Toy(ImageFile.ImageFile):\n"
        "    format = 'HEIF'\n"
        "    def _open(self): self._mode, self._size, self.tile = 'L', (4, 3), [('raw', (0, 0, 4, 3), 24, 'L')]\n"
        "def register_heif_opener(): Image.register_open('HEIF', Toy, lambda start: start[4:12] == b'ftypheic')\n")
    (tmp_path/"x.heic").write_bytes(box(b"heic"))
    file = str(tmp_path/"x.heic")
    assert "install pillow-heif" in inspect_files([file], "set")[file].why
    monkeypatch.setattr(Image, "ID", Image.ID.copy())
    monkeypatch.setattr(Image, "OPEN", Image.OPEN.copy())
    monkeypatch.setitem(sys.modules, "pillow_heif", None) # forgotten afterwards
    monkeypatch.delitem(sys.modules, "pillow_heif")
    monkeypatch.syspath_prepend(tmp_path)
    use_plugins()
    assert inspect_files([file], "set")[file].why == "" and read_image(file).size == (4, 3)

# Previews ------------------------------------------------------------------------------------------------------------

def page(at, size, pixels_at, *, reduced=0, sub=0, following=0, end="<", photometric=1, bits=8, old=False):
    "The directory of an uncompressed grey page."
    (w, h), bytes_ = size, size[0]*size[1]*bits//8
    tags = [(255, 3, 2 if reduced else 1) if old else (254, 4, reduced), (256, 4, w), (257, 4, h), (258, 3, bits), (259, 3, 1),
            (262, 3, photometric), (273, 4, pixels_at), (277, 3, 1), (278, 4, h), (279, 4, bytes_)] + [(330, 4, sub)]*bool(sub)
    def tag(number, kind, value): return struct.pack(end + ("HHIHH" if kind == 3 else "HHII"), number, kind, 1, value, *[0]*(kind == 3))
    return struct.pack(end + "H", len(tags)) + b"".join(tag(*t) for t in tags) + struct.pack(end + "I", following)

def tiff(*, inside, end="<", photometric=1, reduced=1, size=(400, 300), old=False):
    "A thumbnail of grey 200, and behind it or inside it a page of grey 7."
    small = (8, 6)
    first = page(8, small, 0, reduced=1, sub=inside, following=not inside, end=end, old=old)
    pixels = 8 + len(first)
    second = pixels + 48
    first = page(8, small, pixels, reduced=reduced, sub=second if inside else 0, following=0 if inside else second, end=end, old=old)
    length = len(page(second, size, 0, end=end))
    full = page(second, size, second + length, end=end, photometric=photometric)
    return (b"II*\0" if end == "<" else b"MM\0*") + struct.pack(end + "I", 8) + first + b"\xc8"*48 + full + b"\7"*(size[0]*size[1])

@pytest.mark.parametrize("how", [dict(inside=True), dict(inside=False), dict(inside=True, end=">"), dict(inside=False, end=">", old=True)])
def test_the_full_page_behind_a_preview_is_read(how):
    rgb, _ = decode(tiff(**how))
    assert rgb.size == (400, 300) and rgb.getpixel((0, 0)) == (7, 7, 7)

@pytest.mark.parametrize("how", [
    dict(inside=True, photometric=32803), dict(inside=False, photometric=32803), # the mosaic of a camera's sensor
    dict(inside=False, reduced=0), # nobody says which is meant
    dict(inside=True, size=(2, 2))])
def test_a_preview_is_refused(tmp_path, how):
    (tmp_path/"x.nef").write_bytes(tiff(**how))
    assert "preview of 8 x 6 pixels" in inspect_file(str(tmp_path/"x.nef"))[1]
    with pytest.raises(ValueError, match="x.nef cannot be read: its first page is a preview"): read_image(tmp_path/"x.nef")

@pytest.mark.parametrize("value", [b"x\0\0\0", b"\0\0\0\0"])
def test_an_odd_kind_of_tag_is_no_preview(value):
    "A text where the number should be that marks a reduced image."
    data = bytearray(grey_tiff([1, 2], 16))
    at = 10
    assert struct.unpack_from("<H", data, at) == (254,)
    data[at + 2:at + 12] = struct.pack("<HI", 2, 2) + value
    assert decode(bytes(data).replace(struct.pack("<2H", 1, 2), struct.pack("<2H", 1, 9000)))[0].size == (2, 1)

def test_a_book_of_pages_of_slightly_other_sizes_is_read():
    pages = [Image.new("L", size, 5) for size in ((90, 90), (100, 99))]
    pages[0].save(file := io.BytesIO(), "tiff", save_all=True, append_images=pages[1:])
    assert decode(file.getvalue())[0].size == (90, 90)

def test_a_stack_is_read_from_its_first_page():
    pages = [Image.new("L", (9, 9), k) for k in (5, 6, 7)]
    pages[0].save(file := io.BytesIO(), "tiff", save_all=True, append_images=pages[1:])
    assert decode(file.getvalue())[0].getpixel((0, 0)) == (5, 5, 5)

def test_a_circle_of_pages_ends():
    data = bytearray(tiff(inside=False, reduced=0, size=(8, 6)))
    first = page(8, (8, 6), 0, following=1)
    data[8 + len(first) - 4:8 + len(first)] = struct.pack("<I", 8)
    assert decode(bytes(data))[0].size == (8, 6)

# Bits ----------------------------------------------------------------------------------------------------------------

def grey_tiff(values, bits, photometric=1):
    "An uncompressed TIFF of one row; 12 bits are packed, two values in three bytes."
    if bits == 12: raw = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in zip(values[::2], values[1::2]))
    else: raw = np.array(values, "<u2").tobytes()
    head = page(8, (len(values), 1), 0, bits=bits)
    return b"II*\0" + struct.pack("<I", 8) + page(8, (len(values), 1), 8 + len(head), bits=bits, photometric=photometric) + raw

def test_12_bits_that_say_so_are_read_right():
    rgb, _ = decode(grey_tiff([0, 4095, 2048, 1024], 12))
    assert [rgb.getpixel((i, 0))[0] for i in range(4)] == [0, 255, 128, 64]

def test_white_may_be_zero():
    rgb, _ = decode(grey_tiff([0, 65535, 257*100], 16, photometric=0))
    assert [rgb.getpixel((i, 0))[0] for i in range(3)] == [255, 0, 155]

@pytest.mark.parametrize("dtype, ending", [(np.uint16, "png"), (np.uint16, "tif"), (np.int32, "tif")])
def test_8_bits_in_more_are_refused(tmp_path, dtype, ending):
    Image.fromarray(np.arange(256, dtype=dtype).reshape(16, 16)).save(tmp_path/f"x.{ending}")
    assert "brightest value is 255 of 65535" in inspect_file(str(tmp_path/f"x.{ending}"))[1]

@pytest.mark.parametrize("ending", ["png", "tif"])
def test_12_bits_in_16_are_told_and_black_and_bright_are_not_damaged(tmp_path, ending):
    def grey(values): Image.fromarray(np.array(values, np.uint16)).save(tmp_path/f"x.{ending}"); return examine(str(tmp_path/f"x.{ending}"))
    assert grey([[0, 4095]]).note and not grey([[0, 4095]]).why
    assert grey([[0, 9000]]) [1:] == ("", "") and not grey([[0, 0]]).why

def deep_png(values, kind): # kind: 2 colours, 4 grey and alpha, 6 colours and alpha
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in np.asarray(values))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", len(values[0]), len(values), 16, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")

def deep_tiff(values, end, packed=False, separation=False):
    "A TIFF of 16-bit colours, ink if `separation`, the fourth of four a true alpha otherwise."
    values = np.asarray(values); samples = values.shape[2]
    raw = values.astype(f"{end}u2").tobytes()
    raw = zlib.compress(raw) if packed else raw
    rows = [(256, values.shape[1]), (257, values.shape[0]), (259, 8 if packed else 1), (262, 5 if separation else 2), (277, samples), (278, values.shape[0]), (279, len(raw))]
    rows += [(338, 2)]*(samples == 4 and not separation)
    at = 8 + 2 + 12*(len(rows) + 2) + 4
    entries = [(tag, 3, 1, struct.pack(f"{end}HH", v, 0)) for tag, v in rows] + [
        (258, 3, samples, struct.pack(f"{end}I", at)), (273, 4, 1, struct.pack(f"{end}I", at + 2*samples))]
    ifd = struct.pack(f"{end}H", len(entries)) + b"".join(struct.pack(f"{end}HHI", *e[:3]) + e[3] for e in sorted(entries)) + bytes(4)
    return (b"II*\0" if end == "<" else b"MM\0*") + struct.pack(f"{end}I", 8) + ifd + struct.pack(f"{end}{samples}H", *[16]*samples) + raw

DEEP = {f"png of kind {kind}": (lambda v, kind=kind: deep_png(v, kind), count) for kind, count in ((2, 3), (4, 2), (6, 4))}
DEEP |= {f"tiff {end}{count}{packed}": (lambda v, end=end, packed=packed: deep_tiff(v, end, packed), count)
         for end in "<>" for count in (3, 4) for packed in (False, True)}

@pytest.mark.parametrize("kind", DEEP)
def test_colours_of_8_and_12_bits_in_16(tmp_path, kind):
    "8 are refused, 12 told, black and bright are nothing odd; alpha is judged before anything is laid on white."
    made, count = DEEP[kind]
    def verdict(*samples): (tmp_path/"x").write_bytes(made(np.array(samples)[:, :count][None])); return examine(str(tmp_path/"x"))
    assert "brightest value is 250 of 65535, as if 8 bits" in verdict([250]*4, [7]*4, [250]*4).why
    assert "16 bits, but no pixel brighter than 15 of 255" == verdict([4000]*4, [100]*4).note
    assert verdict([40000]*4, [65535]*4) [1:] == ("", "")
    black = verdict([0]*(count - 1 + (count == 3)) + [65535])
    assert black.digest and not black.why
    if count != 3: assert "more opaque than 15" in verdict([40000]*(count - 1) + [4000]).note
    if count != 3: assert "as if 8 bits" in verdict([200]*(count - 1) + [65535]).why

def test_ink_of_8_bits_in_16_is_refused(tmp_path):
    for end in "<>":
        (tmp_path/"x.tif").write_bytes(deep_tiff([[[3, 200, 0, 9]]], end, separation=True))
        assert "brightest value is 200 of 65535" in examine(str(tmp_path/"x.tif")).why

@pytest.mark.parametrize("in_letters", [False, True])
def test_a_portable_pixmap_of_8_bits_in_16_is_refused(tmp_path, in_letters):
    "As a PNG is: 256 is the first value that 8 bits could not hold, and black is black."
    def examined(*values, top=65535):
        samples = b"# r g b\n" + b" ".join(b"%d" % v for v in values) if in_letters else np.array(values, ">u2").tobytes()
        (tmp_path/"x.ppm").write_bytes(b"P%d 1 1 %d\n" % (3 if in_letters else 6, top) + samples)
        return examine(str(tmp_path/"x.ppm"))
    for value in 1, 128, 129, 255: assert f"brightest value is {value} of 65535" in examined(0, value, 0).why
    assert examined(0, 256, 0).note == "16 bits, but no pixel brighter than 1 of 255" and examined(0, 0, 0).why == ""
    assert examined(0, 200, 8, top=1000).note == examined(0, 200, 8, top=1000).why == "", "its range is what it says"

def test_a_dark_picture_of_8_bits_is_nothing_odd(tmp_path):
    Image.new("RGB", (4, 4), (3, 3, 3)).save(tmp_path/"x.png")
    assert examine(str(tmp_path/"x.png")).note == ""

# What is neither -----------------------------------------------------------------------------------------------------

@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_does_not_keep_the_check_waiting(tmp_path):
    os.mkfifo(tmp_path/"x.png")
    assert inspect_file(str(tmp_path/"x.png")) == ("", "neither a file nor a folder")

def test_odd_places(tmp_path):
    (tmp_path/"loop").symlink_to(tmp_path/"loop")
    for path in (tmp_path/"loop", tmp_path/"gone", tmp_path):
        digest, why = inspect_file(str(path))
        assert not digest and why

# Memory --------------------------------------------------------------------------------------------------------------

def test_a_failure_is_tried_again(tmp_path, monkeypatch):
    Image.new("L", (9, 9)).save(file := tmp_path/"x.png")
    good = file.read_bytes()
    file.write_bytes(good[:40])
    before = os.stat(file)
    assert inspect_files([str(file)], "set")[str(file)].why
    assert "x.png" not in next((data_dir()/"cache").iterdir()).read_text()
    monkeypatch.setattr("clca.training.checking.decode", lambda data: (Image.new("RGB", (1, 1)), False))
    assert os.stat(file) == before and inspect_files([str(file)], "set")[str(file)].why == ""

@pytest.mark.parametrize("what", ["limit", "text", "truncated", "plugin", "version"])
def test_another_reader_looks_again(tmp_path, monkeypatch, what):
    import PIL
    from PIL import ImageFile
    Image.new("L", (9, 9)).save(file := tmp_path/"x.png")
    first = inspect_files([str(file)], "set")
    looked = []
    real = examine
    monkeypatch.setattr("clca.training.checking.examine", lambda path: looked.append(path) or real(path))
    assert inspect_files([str(file)], "set") == first and not looked
    if what == "limit": monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**6)
    if what == "text": monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_CHUNK", 10**6)
    if what == "truncated": monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    if what == "plugin": monkeypatch.setitem(Image.OPEN, "TOY", Image.OPEN["PNG"])
    if what == "version": monkeypatch.setattr(PIL, "__version__", "0")
    assert inspect_files([str(file)], "set") == first and looked == [str(file)]

@pytest.mark.parametrize("how", ["in place", "renamed"])
def test_corrected_bytes_of_the_same_size_and_time(tmp_path, how):
    Image.new("RGB", (9, 9), "red").save(file := tmp_path/"x.bmp")
    before, was = os.stat(file), inspect_files([str(file)], "set")[str(file)].digest
    Image.new("RGB", (9, 9), "blue").save(other := tmp_path/("x.bmp" if how == "in place" else "y.bmp"))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.rename(file)
    after = os.stat(file)
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert inspect_files([str(file)], "set")[str(file)].digest != was

@pytest.mark.parametrize("harm", ["cut", "gone"])
def test_a_file_that_breaks_later_is_named(tmp_path, harm):
    Image.new("RGB", (90, 90)).save(file := tmp_path/"x.png")
    images = Images([str(file)], [0], Preparation(8, (0, 0, 0), (1, 1, 1)))
    if harm == "cut": file.write_bytes(file.read_bytes()[:60])
    else: Path(file).unlink()
    with pytest.raises(ValueError, match=r"x\.png cannot be read: .*(truncated|No such file)"): images[0]

def test_the_transparent_value_of_sixteen_bits_is_white(tmp_path):
    shades = np.array([[0, 30000], [60000, 30000]], np.uint16)
    Image.fromarray(shades).save(tmp_path/"a.png", transparency=0)
    seen = np.asarray(read_image(tmp_path/"a.png"))[..., 0]
    assert seen.tolist() == [[255, 117], [233, 117]]

@pytest.mark.parametrize("start,kind", [(b"\x89HDF\r\n\x1a\n", "HDF5"), (b"GRIB\0\0\0\1", "GRIB"), (b"BUFR\0\0\0\4", "BUFR"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"), (b"\xc5\xd0\xd3\xc6", "PostScript")])
def test_what_pillow_knows_by_name_only_or_would_run(start, kind, tmp_path):
    (tmp_path/"a.h5").write_bytes(start + bytes(100))
    with pytest.raises(ValueError, match=f"{kind}, which Pillow cannot read: (convert|draw) it"): read_image(tmp_path/"a.h5")
