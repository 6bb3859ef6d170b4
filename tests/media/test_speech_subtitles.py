"""Words to cues: the rules a reader of subtitles relies on, and scripts that do not look like English."""

from __future__ import annotations

import itertools

import pytest
import srt
from hypothesis import given, settings
from hypothesis import strategies as st

from mediamill.media.speech_subtitles import Word, cues_of, joined, monotonic, to_srt, words_json


def spoken(text: str, *, word_s: float = 0.3, pause_s: float = 0.05, start_s: float = 0.0) -> list[Word]:
    """Words at an even pace; `|` is a pause of 1.5 s."""
    words: list[Word] = []
    at_s = start_s
    for token in text.split():
        if token == "|":
            at_s += 1.5
            continue
        words.append(Word(f" {token}", at_s, at_s + word_s))
        at_s += word_s + pause_s
    return monotonic(words)


def texts(words: list[Word]) -> list[str]:
    return [word.text for word in words]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([" 1", ",000", " men"], [" 1,000", " men"]),
        ([" twenty", "-five"], [" twenty-five"]),
        ([" don", "'t", " go", "."], [" don't", " go."]),
        ([" 3", ".", "14", " and", " 50", "%"], [" 3.14", " and", " 50%"]),
        ([" $", "5", ".", "99"], [" $5.99"]),
        (["今日", "は", "、", "晴れ", "。"], ["今日", "は、", "晴れ。"]),
        (["「", "今日", "」"], ["「今日」"]),
        (["สวัส", "ดี", "ครับ"], ["สวัส", "ดี", "ครับ"]),
        (["ค", "ุณ"], ["คุณ"]),
        ([" مرحبا", "،", " كيف"], [" مرحبا،", " كيف"]),
        ([" ", "", " word"], [" word"]),
        (["使", "用", "Py", "thon", "3", "吗"], ["使", "用", "Python3", "吗"]),
    ],
)
def test_pieces_of_a_recogniser_become_whole_words(pieces: list[str], expected: list[str]) -> None:
    timed = [Word(text, i * 0.2, i * 0.2 + 0.2) for i, text in enumerate(pieces)]
    assert texts(joined(timed)) == expected
    assert "".join(texts(joined(timed))).strip() == "".join(pieces).strip()


def test_a_joined_word_spans_its_pieces_and_is_as_sure_as_the_least_of_them() -> None:
    assert joined([Word(" 1", 1.0, 1.2, 0.9), Word(",000", 1.2, 1.7, 0.4)]) == [Word(" 1,000", 1.0, 1.7, 0.4)]


def test_times_never_run_backwards_or_overlap() -> None:
    messy = [Word(" a", 0.5, 0.9), Word(" b", 0.4, 0.6), Word(" c", 0.95, 0.7)]
    assert [(w.start_s, w.end_s) for w in monotonic(messy)] == [(0.5, 0.9), (0.9, 0.9), (0.95, 0.95)]


def test_cues_end_at_sentences_and_pauses() -> None:
    cues = cues_of(spoken("It was the best of times. It was the worst of times. | Then nothing came for a while"))
    assert [cue.text for cue in cues] == [
        "It was the best of times.\nIt was the worst of times.",
        "Then nothing came for a while",
    ] or [cue.text for cue in cues] == [
        "It was the best of times.",
        "It was the worst of times.",
        "Then nothing came for a while",
    ]


def test_a_comma_is_a_better_cut_than_the_middle_of_a_phrase() -> None:
    text = "although the committee had agreed upon every single point in the agenda, nobody in the hall wanted to vote"
    cues = cues_of(spoken(text))
    assert any(cue.text.endswith("agenda,") for cue in cues) or "agenda,\n" in cues[0].text


def test_a_short_cue_is_stretched_to_a_second_only_where_there_is_room() -> None:
    alone = cues_of([Word(" Yes.", 5.0, 5.2)])
    assert (alone[0].start_s, alone[0].end_s) == (5.0, 6.0)
    crowded = cues_of([Word(" Yes.", 5.0, 5.2), *spoken("No more of it now please.", start_s=6.5)])
    assert crowded[0].end_s == 6.0
    assert crowded[1].start_s == 6.5


def test_a_word_longer_than_a_line_is_split_and_nothing_of_it_lost() -> None:
    word = "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft"
    cues = cues_of([Word(f" {word}", 1.0, 4.0)])
    assert "".join(w.text for cue in cues for w in cue.words).strip() == word
    assert all(len(line) <= 42 for cue in cues for line in cue.text.split("\n"))


def test_chinese_lines_hold_sixteen_characters() -> None:
    text = "我们都知道今天的天气非常好所以大家决定一起去公园散步然后再去吃饭"
    words = monotonic([Word(char, i * 0.2, i * 0.2 + 0.18) for i, char in enumerate(text)])
    cues = cues_of(words)
    assert "".join(cue.text for cue in cues).replace("\n", "") == text
    assert max(len(line) for cue in cues for line in cue.text.split("\n")) <= 16


def test_right_to_left_text_keeps_its_logical_order() -> None:
    text = "مرحبا بالعالم، كيف حالك اليوم؟"
    assert [cue.text for cue in cues_of(spoken(text, word_s=0.5))] == [text]


def test_the_srt_file_is_read_back_by_another_library() -> None:
    cues = cues_of(spoken("One two three. | Four, five and six. | Seven --> eight."))
    read = list(srt.parse(to_srt(cues)))
    assert [s.content for s in read] == [cue.text for cue in cues]
    assert [s.index for s in read] == [1, 2, 3]
    assert [round(s.start.total_seconds(), 3) for s in read] == [cue.start_s for cue in cues]


def test_nothing_said_is_a_valid_empty_file() -> None:
    assert to_srt(cues_of([])) == ""
    assert words_json(cues_of([])) == []
    assert list(srt.parse(to_srt([]))) == []


_speech = st.lists(
    st.tuples(
        st.text("abcdefgh.,!?é世界あ", min_size=1, max_size=14), st.integers(0, 120), st.integers(0, 160), st.booleans()
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(_speech)
def test_whatever_is_said_the_rules_hold_and_every_word_is_kept(said: list[tuple[str, int, int, bool]]) -> None:
    words: list[Word] = []
    at_cs = 0
    for text, gap_cs, length_cs, spaced in said:
        at_cs += gap_cs
        words.append(Word(f" {text}" if spaced else text, at_cs / 100, (at_cs + length_cs) / 100))
        at_cs += length_cs
    cues = cues_of(monotonic(joined(words)))
    kept = "".join(w.text for cue in cues for w in cue.words)
    assert "".join(kept.split()) == "".join("".join(text for text, *_ in said).split())
    for cue in cues:
        lines = cue.text.split("\n")
        wide = any(ord(c) > 0x2E80 for c in cue.text)
        assert len(lines) <= 2
        assert max(map(len, lines)) <= (16 if wide else 42)
        assert 0 <= cue.start_s < cue.end_s + 1e-9
        assert cue.end_s - cue.start_s <= 7.0001
    assert all(a.end_s <= b.start_s + 1e-9 for a, b in itertools.pairwise(cues))
    listed = words_json(cues)
    assert all(w["start"] <= w["end"] for w in listed)
    assert all(a["end"] <= b["start"] + 1e-9 for a, b in itertools.pairwise(listed))
    assert [w["segment"] for w in listed] == sorted(w["segment"] for w in listed)
