import shutil
import struct
from pathlib import Path

import pytest

from mediamill.errors import InvalidRequest
from mediamill.media import fonts


@pytest.mark.parametrize(
    "text",
    [
        "Ação, coração: é ñ ü ß Œ ł",
        "Γειά σου ἄνθρωπος",
        "Привет, Україно",
        "你好，世界",
        "日本のかな漢字",
        "안녕하세요",
        "€ “” … ♪ → ½ Tiếng Việt",
    ],
)
def test_the_scripts_that_are_promised_come_along(text):
    chosen, missing = fonts.assign(text)
    assert missing == []
    assert {face.path.parent.name for face in chosen.values()} <= {"files", "noto_cjk_sans_otc"}


def test_han_is_drawn_the_way_of_the_text_around_it():
    families = [fonts.assign(text)[0]["漢"].family for text in ("漢字", "漢字かな", "漢字 한국")]
    assert families == ["Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR"]


def test_a_character_without_a_font_is_named_and_invisible_ones_are_not_missed():
    missing = fonts.uncovered("a\U0001f9ff b\U0001f9ff \u200d\ufe0f\u00a0\n\u2028 \U000f0000")
    assert missing == ["\U0001f9ff", "\U000f0000"]
    assert fonts.named(missing) == "U+1F9FF NAZAR AMULET, U+F0000 UNNAMED"
    assert fonts.named(list("abcdefg")).endswith("LATIN SMALL LETTER E and 2 more")


def _tiny_font(path: Path, source: Path, family: bytes, codepoint: int) -> Path:
    """A copy of a real font whose only character is another one, under another name of the same length."""
    data = bytearray(source.read_bytes())
    tables = {}
    for i in range(struct.unpack_from(">H", data, 4)[0]):
        tag, _sum, offset, length = struct.unpack_from(">4sIII", data, 12 + 16 * i)
        tables[tag] = (12 + 16 * i, offset, length)
    cmap = struct.pack(">HHHHI", 0, 1, 3, 10, 12) + struct.pack(">HHIIIIII", 12, 0, 28, 0, 1, codepoint, codepoint, 5)
    entry, _, _ = tables[b"cmap"]
    struct.pack_into(">II", data, entry + 8, len(data), len(cmap))
    data += cmap
    _, at, length = tables[b"name"]
    for encoding in ("utf-16-be", "latin-1"):
        old, new = "Noto Sans".encode(encoding), family.decode().encode(encoding)
        data[at : at + length] = bytes(data[at : at + length]).replace(old, new)
    path.write_bytes(data)
    return path


def test_the_operators_folder_adds_characters_and_broken_files_in_it_do_no_harm(tmp_path):
    amulet = "\U0001f9ff"
    noto = fonts.bundled()[0].path
    folder = tmp_path / "fonts"
    (folder / "deep").mkdir(parents=True)
    _tiny_font(folder / "deep" / "one.ttf", noto, b"Zoto Sans", ord(amulet))
    (folder / "broken.ttf").write_bytes(b"not a font")
    (folder / "cut.ttf").write_bytes(noto.read_bytes()[:5000])
    (folder / "empty.otf").touch()
    shutil.copy(__file__, folder / "text.py")
    chosen, missing = fonts.assign(f"a{amulet}", folder)
    assert missing == []
    assert chosen[amulet].family == "Zoto Sans"
    assert chosen["a"].family == "Noto Sans"
    assert fonts.uncovered(amulet, tmp_path / "nowhere") == [amulet]


def test_a_family_that_was_named_comes_first_and_others_fill_in(tmp_path):
    amulet = "\U0001f9ff"
    _tiny_font(tmp_path / "one.ttf", fonts.bundled()[0].path, b"Zoto Sans", ord("b"))
    for family in ("Zoto Sans", "zoto sans"):
        chosen, missing = fonts.assign(f"ab{amulet}", tmp_path, family)
        assert {char: face.family for char, face in chosen.items()} == {"a": "Noto Sans", "b": "Zoto Sans"}
        assert missing == [amulet]
    assert fonts.assign("a漢", family="Noto Sans CJK JP")[0]["a"].family == "Noto Sans CJK JP"


def test_a_family_that_is_not_here_is_refused_with_those_that_are(tmp_path):
    with pytest.raises(InvalidRequest, match=r"style\.font: .*'Comic Sans'.*Noto Sans, Noto Sans CJK"):
        fonts.assign("a", tmp_path, "Comic Sans")
