"""Documents of the user's as passages: what is read of each format, where it is cut, what a folder becomes."""

from __future__ import annotations

import codecs
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.answers import normalise_title
from agent.errors import UserError
from agent.records import Passage
from retrieval_service.corpus import document_of, read_corpus
from retrieval_service.documents import folder as folder_module
from retrieval_service.documents import kept, readers
from retrieval_service.documents.chunks import Paragraph, chunks
from retrieval_service.documents.decoding import named_in_html
from retrieval_service.documents.folder import documents_corpus
from retrieval_service.documents.html_blocks import blocks
from retrieval_service.documents.readers import Document, read_html, read_markdown, read_pdf, read_text
from tracking import run_folder


def paragraphs(*texts: str) -> list[Paragraph]:
    """Those that begin with ``#`` are headings."""
    return [Paragraph(text=text.lstrip("# "), heading=text.startswith("#")) for text in texts]


def said(document: Document) -> list[str]:
    """The paragraphs' texts, headings with a ``#``."""
    return [f"# {p.text}" if p.heading else p.text for p in document.paragraphs]


# --- cutting ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "words", "overlap", "expected"),
    [
        ([], 4, 1, []),
        (["One two.", "Three four."], 4, 1, ["One two.\nThree four."]),
        # Whole paragraphs; the last piece of a passage begins the next one, if it is short enough.
        (["One two.", "Three four.", "Five six."], 4, 2, ["One two.\nThree four.", "Three four.\nFive six."]),
        (["One two.", "Three four.", "Five six."], 4, 0, ["One two.\nThree four.", "Five six."]),
        # Of a longer one its last words do.
        (["One two three four.", "Five six."], 5, 1, ["One two three four.", "four.\nFive six."]),
        # A paragraph that is too long is cut between sentences, and a sentence between words.
        (["A b c. D e f. G h."], 6, 0, ["A b c. D e f.", "G h."]),
        (["a b c d e f g"], 4, 1, ["a b c", "c d e f", "f g"]),
        # A heading goes with what follows.
        (["One two.", "# Part", "Three four."], 4, 0, ["One two.", "Part\nThree four."]),
        (["# Part", "# Sub", "One two three."], 4, 0, ["Part", "Sub\nOne two three."]),
        (["One.", "# Part", "# Sub", "Two three."], 4, 0, ["One.", "Part\nSub\nTwo three."]),
        # And counts: what is repeated is less then, or nothing.
        (["One two.", "# Part", "Three four."], 4, 2, ["One two.", "two.\nPart\nThree four."]),
        (["One two.", "# Part", "Three four five."], 5, 2, ["One two.", "two.\nPart\nThree four five."]),
        # Quotes and brackets belong to the sentence that they end.
        (['"A b." c d. (E f!) G h.'], 3, 0, ['"A b."', "c d.", "(E f!)", "G h."]),
        # Chinese and Japanese: a character is a word, and a sentence ends without a blank.
        (["你好吗？我很好。「再见。」"], 6, 0, ["你好吗？我很好。", "「再见。」"]),
        (["日本語の文章 in English"], 4, 1, ["日本語", "語の文章", "章 in English"]),
        (["x" * 250], 2, 0, ["x" * 200, "x" * 50]),
    ],
)
def test_passages_by_hand(texts: list[str], words: int, overlap: int, expected: list[str]) -> None:
    assert chunks(paragraphs(*texts), words, overlap) == expected


@pytest.mark.parametrize("overlap", [0, 3, 7])
def test_no_word_is_lost_or_moved_and_no_passage_is_too_long(overlap: int) -> None:
    texts = [" ".join(f"{p}-{n}{'.' if n % 5 == 4 else ''}" for n in range(1 + p * 7 % 40)) for p in range(30)]
    marked = [f"# {text}" if n % 3 == 0 else text for n, text in enumerate(texts)]
    found = [text.split() for text in chunks(paragraphs(*marked), 12, overlap)]
    assert max(map(len, found)) <= 12
    order = {word: n for n, word in enumerate(" ".join(texts).split())}
    reached = -1
    for words in found:
        places = [order[word] for word in words]
        assert places == list(range(places[0], places[-1] + 1))
        assert places[0] <= reached + 1 < places[-1] + 1, "each goes on where the last one ended, and further"
        assert reached + 1 - places[0] <= overlap
        reached = places[-1]
    assert reached == len(order) - 1


# --- formats ---------------------------------------------------------------------------------------


def test_text(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("A Title\n\nOne line\nand another.\n \nThe second paragraph.\n", encoding="utf-8")
    document = read_text(file)
    assert (document.title, said(document)) == ("A Title", ["One line and another.", "The second paragraph."])
    file.write_bytes("Größe\r\n\r\nMaß".encode("cp1252"))
    assert (read_text(file).title, said(read_text(file))) == ("Größe", ["Maß"])
    file.write_bytes("Größe".encode("utf-16"))
    assert (read_text(file).title, said(read_text(file))) == ("", ["Größe"]), "a title alone is the text"
    file.write_bytes(b"")
    assert said(read_text(file)) == []


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("text", ["Größe\n\nMaß und Zahl", "東京\n\n首都 である"])
def test_utf_16_is_known_without_a_mark(tmp_path: Path, text: str, encoding: str) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(text.encode(encoding))
    title, _, body = text.partition("\n\n")
    assert (read_text(file).title, said(read_text(file))) == (title, [body])


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252"])
@pytest.mark.parametrize("text", ["Größe und Maß\0", "Où est la forêt ?\0", "Paris\0"])
def test_a_stray_zero_byte_is_no_utf_16(tmp_path: Path, text: str, encoding: str) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(text.encode(encoding))
    assert said(read_text(file)) == [text]


@pytest.mark.parametrize("data", [b"\x7fELF\2\1\1\0\0\0\0\0\0\0\3\0", b"PK\3\4\n\0\0\0\0\0\x8a\xd8", b"a\0\0\0b\0\0\0"])
@pytest.mark.parametrize("read", [read_text, read_markdown, read_html])
def test_a_file_that_is_no_text_is_named(tmp_path: Path, data: bytes, read: Callable[[Path], Document]) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.txt: is no text, it has zero bytes; save it as UTF-8"):
        read(file)


JAPANESE = "東京は日本の首都です。"


@pytest.mark.parametrize("mark", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("read", [read_text, read_html])
def test_a_byte_order_mark_says_how_a_file_is_read(tmp_path: Path, mark: str, read: Callable[[Path], Document]) -> None:
    file = tmp_path / "a.html"
    file.write_bytes(f'<meta charset="shift_jis"><p>{JAPANESE}</p>'.encode(mark))
    assert JAPANESE in said(read(file))[-1]
    big = codecs.BOM_UTF32_BE + JAPANESE.encode("utf-32-be") if mark == "utf-32" else JAPANESE.encode(mark)
    file.write_bytes(big)
    assert (said(read(file)), read(file).guessed) == ([JAPANESE], "")


@pytest.mark.parametrize("mark", ["utf-16", "utf-32"])
def test_a_file_that_is_not_what_its_mark_says_is_named(tmp_path: Path, mark: str) -> None:
    (tmp_path / "a.txt").write_bytes("Größe und Maß".encode(mark)[:-1])
    with pytest.raises(UserError, match=rf"a\.txt: begins with the mark of {mark.upper()}, which it is not \(.*; save"):
        read_text(tmp_path / "a.txt")


def test_a_damaged_byte_behind_a_mark_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(codecs.BOM_UTF8 + "Les élèves de la forêt à l'été".encode()[:-1])
    document = read_text(tmp_path / "a.txt")
    assert document.guessed == "are not UTF-8 and are read as UTF-8, with � for what is none"
    assert said(document) == ["Les élèves de la forêt à l'ét�"]


META = '<meta charset="{}">'
TYPE = "<META HTTP-EQUIV='Content-Type' CONTENT='text/html; charset={}'>"
XML = '<?xml version="1.0" encoding="{}"?>'
DECOY = (
    '<!-- <meta charset="utf-8"> --><script>x = "<meta charset=koi8-r>"</script>'
    '<meta name="d" content="charset=koi8-r">'
)


@pytest.mark.parametrize(
    "head", [META, TYPE, XML + "<html>", DECOY + META, "<title>x</title>" * 200 + META, META + META.format("gbk")]
)
def test_where_a_page_names_its_encoding(head: str) -> None:
    assert named_in_html(head.format("iso-8859-7").encode()) == "iso-8859-7"


@pytest.mark.parametrize("head", [META, XML])
@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("iso-2022-jp", JAPANESE),
        ("Shift_JIS", JAPANESE),
        ("x-sjis", JAPANESE + "①"),
        ("euc-jp", JAPANESE),
        ("gb2312", "联通"),  # these bytes are UTF-8, too
        ("gbk", "中国的首都是北京，喆"),
        ("big5", "台北是首都"),
        ("ks_c_5601-1987", "서울은 대한민국의 수도이다"),
        ("iso-8859-1", "Größe: “quoted” – 5 €"),  # as browsers read it
        ("windows-1251", "Москва"),
        ("windows-874", "กรุงเทพ"),
        ("utf-8", JAPANESE),
        ("utf-16", JAPANESE),  # which a page that could be read so far is not
        ("none-such", JAPANESE),
    ],
)
def test_a_page_is_read_in_the_encoding_that_it_names(tmp_path: Path, head: str, encoding: str, text: str) -> None:
    written = {"iso-8859-1": "cp1252", "x-sjis": "cp932", "windows-874": "cp874"}.get(encoding, encoding)
    data = text.encode("utf-8" if encoding in ("utf-16", "none-such") else written)
    file = tmp_path / "a.html"
    file.write_bytes(head.format(encoding).encode() + b"<p>" + data + b"</p>")
    document = read_html(file)
    assert (said(document), document.guessed) == ([text], "")


@pytest.mark.parametrize(
    ("named", "data", "reason"),
    [
        ("none-such", b"Gr\xf6\xdfe", r"'none-such', an encoding that isn't known; save it as UTF-8"),
        ("hex", b"Gr\xf6\xdfe", r"'hex', an encoding that isn't known"),
        ("undefined", b"Gr\xf6\xdfe", r"'undefined', an encoding that isn't known"),
        ("euc-jp", b"Gr\xf6\xdfe\xff", r"'euc-jp', which it is not \(.*position \d+.*; save it as UTF-8, or take"),
        ("iso-2022-jp", b"\x1b$Bx\x1b(B", r"'iso-2022-jp', which it is not \("),
    ],
)
def test_a_page_that_is_not_in_the_encoding_that_it_names_is_refused(
    tmp_path: Path, named: str, data: bytes, reason: str
) -> None:
    (tmp_path / "a.html").write_bytes(META.format(named).encode() + b"<p>" + data)
    with pytest.raises(UserError, match=rf"a\.html: says that it is in {reason}") as caught:
        read_html(tmp_path / "a.html")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("named", ["iso-8859-1", "gbk", "shift_jis"])
def test_a_page_that_is_utf_8_in_spite_of_what_it_names_is_told(tmp_path: Path, named: str) -> None:
    (tmp_path / "a.html").write_text(META.format(named) + f"<p>{JAPANESE}")
    document = read_html(tmp_path / "a.html")
    assert said(document) == [JAPANESE]
    assert document.guessed == "name another encoding, but are UTF-8 and are read as that"


def test_a_text_about_pages_names_no_encoding_and_iso_2022_jp_needs_none(tmp_path: Path) -> None:
    file = tmp_path / "a.md"
    file.write_text("`<meta charset=shift_jis>` is for Größe")
    assert said(read_markdown(file)) == ["<meta charset=shift_jis> is for Größe"]
    file.write_bytes(JAPANESE.encode("iso-2022-jp"))
    assert (said(read_text(file)), read_text(file).guessed) == ([JAPANESE], "are not UTF-8 and are read as ISO-2022-JP")


def test_markdown(tmp_path: Path) -> None:
    file = tmp_path / "a.md"
    file.write_text(
        "# The *Title*\n\nSome **bold** text\nwith a [link](http://x.y) and `code`.\n\n## A part\n\n- one\n- two\n\n"
        "| a | b |\n|---|---|\n| 1 | 2 |\n\n```python\nx = 1\n```\n\n<div>In HTML &amp; so on</div>\n\n"
        "![A picture](p.png)\n"
    )
    document = read_markdown(file)
    assert document.title == "The Title"
    assert said(document) == [
        "Some bold text with a link and code.",
        "# A part",
        *("one", "two", "a b", "1 2"),
        "x = 1",
        "In HTML & so on",
        "A picture",
    ]
    file.write_text("<h1>Its title</h1>\n\n<p>One</p>\n\n<h2>A part</h2>\n\n<p>Two</p>\n")
    assert (read_markdown(file).title, said(read_markdown(file))) == ("Its title", ["One", "# A part", "Two"])
    file.write_text('---\ntitle: "From the front"\nother: x\n---\n# A heading\n\nText.')
    assert (read_markdown(file).title, said(read_markdown(file))) == ("From the front", ["# A heading", "Text."])
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    assert (read_markdown(file).title, said(read_markdown(file))) == ("From the front", ["# A heading", "Text."])


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("front", "title"),
    [
        ("title:\nauthor: Jane", "Heading"),
        ("title: >-\n  Two\n  lines\nauthor: Jane", "Two lines"),
        ("title: 'It''s here' # a comment", "It's here"),
        ('title: "\\u0041 quote \\" in it"', 'A quote " in it'),
        ("title: 'Tis", "Heading"),
        ("title: ~", "Heading"),
        ("title: 007", "007"),
        ("title: 2024-99-99", "2024-99-99"),
        ("title: [a, b]", "Heading"),
        ("title: !!python/object/apply:os.getcwd []", "Heading"),
        ("book:\n  title: Another's\nx: y", "Heading"),
        ("x: " + "[" * 3000, "Heading"),
        ("title: From the front\r\nx: y", "From the front"),
        ("# a comment\n# and another\ntitle: From the front\n\ntags:\n- a", "From the front"),
        ("title: two: colons\nx: y", "Heading"),
        ("tags: [a,\nb]\ntitle: From the front", "From the front"),
        ('title: "\\U99999999"', "Heading"),
    ],
)
def test_the_title_of_front_matter_is_read_as_yaml(tmp_path: Path, front: str, title: str) -> None:
    file = tmp_path / "a.md"
    file.write_bytes(f"---\n{front}\n---\n# Heading\n\nText.".encode())
    expected = ["Text."] if title == "Heading" else ["# Heading", "Text."]
    assert (read_markdown(file).title, said(read_markdown(file))) == (title, expected)


PROSE = "---\nNote: this is prose\nthat goes on.\n\n---\n\nText."
DEEP = "x = " + "[" * 3000
LONG = "x = " + "1" * 5000


@pytest.mark.parametrize(
    ("text", "title", "texts"),
    [
        ('+++\ntitle = "In front"\ndate = 2024-01-01\n[x]\ntitle = "y"\n+++\nText.', "In front", ["Text."]),
        ('+++\r\ntitle = """\r\nTwo\r\nlines"""\r\n+++\r\nText.', "Two lines", ["Text."]),
        ("+++\ntitle = 7\n+++\n# Heading\n\nText.", "Heading", ["Text."]),
        ("+++\nno TOML\n+++\n\nText.", "", ["+++ no TOML +++", "Text."]),
        (f"+++\n{DEEP}\n+++\n\nText.", "", [f"+++ {DEEP} +++", "Text."]),
        (f"+++\n{LONG}\n+++\n\nText.", "", [f"+++ {LONG} +++", "Text."]),
        ("---\ntitle: Alone\n---", "Alone", []),
        ("---\r\ntitle: Dots\r\n... \r\nText.", "Dots", ["Text."]),
        # A document that begins with a rule.
        (PROSE, "", ["Note: this is prose that goes on.", "Text."]),
        ("---\nhttp://x.y is a page\n\n---\n\nText.", "", ["http://x.y is a page", "Text."]),
        ("---\n# Heading\n\nNote: prose\n\n---\n\nText.", "Heading", ["Note: prose", "Text."]),
        ("---\n# Heading\n---\n\nText.", "Heading", ["Text."]),
        ("---\ntitle: x\n\nText.", "", ["title: x", "Text."]),
    ],
)
def test_what_is_front_matter_and_what_is_a_part_of_the_text(
    tmp_path: Path, text: str, title: str, texts: list[str]
) -> None:
    file = tmp_path / "a.md"
    file.write_bytes(text.encode())
    assert (read_markdown(file).title, said(read_markdown(file))) == (title, texts)


@pytest.mark.parametrize(("nested", "deepest"), [("list", 95), ("quote", 190)])
def test_what_is_nested_in_markdown_is_read_to_the_end_or_refused(tmp_path: Path, nested: str, deepest: int) -> None:
    def text(depth: int) -> str:
        items = "".join(f"{'  ' * at}- item {at}\n" for at in range(depth))
        return (items if nested == "list" else f"{'>' * depth} said\n") + "\n# After\n\nThe end.\n"

    file = tmp_path / "a.md"
    file.write_text(text(deepest))
    assert (read_markdown(file).title, said(read_markdown(file))[-1]) == ("After", "The end.")
    file.write_text(text(250))
    with pytest.raises(UserError, match=r"a\.md: has lists or quotes within one another too deeply; flatten it"):
        read_markdown(file)


def test_a_break_in_markdown_parts_words_and_a_rule_is_no_front_matter(tmp_path: Path) -> None:
    file = tmp_path / "a.md"
    file.write_text("| a | b |\n|---|---|\n| one<br>two | three<BR />four |\n\n- x<br>y\n")
    assert said(read_markdown(file)) == ["a b", "one two three four", "x y"]
    file.write_text("Write `<br>` for a break.")
    assert said(read_markdown(file)) == ["Write <br> for a break."]
    file.write_text("---\n\nAn introduction.\n\n---\n\n# Title\n\nBody.\n")
    assert said(read_markdown(file)) == ["An introduction.", "Body."]
    file.write_text("---\nOnly a rule: no key\n---\nBody.\n")
    assert said(read_markdown(file))[-1] == "Body."


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        ("One <script>if (a < b) { *c* }</script>two", ["One two"]),
        ("One <STYLE type=x>p {}</STYLE>two <template>x</template>three", ["One two three"]),
        ("# A <style>p {}</style>part\n\n| a |\n|---|\n| b<script>c()</script> |", ["a", "b"]),
        ("A <script> tag runs code, `<script>` too.", ["A tag runs code, <script> too."]),
        ("One <script-x>two</script-x> <b>three</b></script>", ["One two three"]),
    ],
)
def test_scripts_and_styles_within_a_line_of_markdown_are_not_read(tmp_path: Path, text: str, texts: list[str]) -> None:
    (tmp_path / "a.md").write_text(text)
    document = read_markdown(tmp_path / "a.md")
    assert (document.title, said(document)) == ("A part" if text.startswith("#") else "", texts)


def test_html(tmp_path: Path) -> None:
    file = tmp_path / "a.html"
    file.write_text(
        "<!doctype html><html><head><title>A &amp; B</title><style>p {}</style><script>if (a < b) {}</script></head>"
        "<body><nav><a href=x>Home</a></nav><h1>A &amp; B</h1><p>One <b>bo</b>ld\n word.<p>Unclosed<br>line"
        "<h2>Part</h2><ul><li>first<li>second</ul><table><tr><td>1<td>2</tr></table><footer>Imprint</footer>tail"
    )
    document = read_html(file)
    assert document.title == "A & B"
    assert said(document) == ["One bold word.", "Unclosed", "line", "# Part", "first", "second", "1 2", "tail"]
    file.write_bytes(b'<meta charset="iso-8859-7"><h1>\xe1\xe2\xe3</h1><p>\xe4')
    assert (read_html(file).title, said(read_html(file))) == ("αβγ", ["δ"])
    file.write_text("<h1>The Battle<br>of Hastings</h1><p>One<br/>two</br>three")
    assert (read_html(file).title, said(read_html(file))) == ("The Battle of Hastings", ["One", "two", "three"])
    file.write_text("<p>No <scr")
    assert said(read_html(file)) == ["No <scr"]


@pytest.mark.parametrize(
    ("html", "title", "texts"),
    [
        ("<h2><button aria-x>What is gamma?</button></h2><p>It is a ray.</p>", "What is gamma?", ["It is a ray."]),
        ("<p>Text<button>Copy</button></p><p>More</p>", "", ["Text", "More"]),
        ("<button>Open<h2>A part</h2><p>Text</p>", "A part", ["Text"]),
        ("<h1>Q</h1><svg viewBox='0'><path d='M0'><p>One</p><p>Two</p>", "Q", ["One", "Two"]),
        ("<nav><nav>x</nav>menu</nav><p>Text</p>", "", ["Text"]),
        ("<svg><title>A picture</title></svg><h1>Q</h1><p>Text", "Q", ["Text"]),
        ("<h1><svg><title>A picture</title></svg>Q</h1><p>One <svg><title>x</title></svg>two", "Q", ["One two"]),
        # What its parent's end ends, as in a browser.
        ("<p>One</p><div><nav><a>x</a></div><p>Two</p>", "", ["One", "Two"]),
        ("<article><p>One</p><footer>by me</article><article><p>Two</p></article>", "", ["One", "Two"]),
        ("<div><nav><div>x</div>menu</nav>One</div><p>Two", "", ["One", "Two"]),
        ("<p>One<nav><p>x</p>menu</nav>two", "", ["One", "two"]),
        ("<form><select><option>1</form>Text", "", ["Text"]),
        ("<head><noscript><link rel=x></head>Text", "", ["Text"]),
        # And what can't be within it.
        ("<select><option>1<p>Text", "", ["Text"]),
        ("<table><tr><td><select><option>1<td>Text", "", ["Text"]),
        ("<noscript><link rel=x><body>Text", "", ["Text"]),
        ("<nav><a>x</a><main><p>Text", "", ["Text"]),
        ("<noscript><p>Switch it on</p></noscript><p>Text", "", ["Text"]),
        # Its end was forgotten, if there is more than links before that of its parent.
        ("<div><nav><ul><li><a>Home</a></ul><p>One two</p></div><p>Three", "", ["Home", "One two", "Three"]),
        ("<header><nav><a>Home</a><h1>Title</h1>One two</header><p>Three", "Title", ["Home", "One two", "Three"]),
        ("<header><nav>Menu <a>Home</a> <a>Away</a><script>a b c</script></header><p>One", "", ["One"]),
        # Only the end of the page would end it.
        ("<body><nav><a>Home</a><p>One</p><p>Two</p></body></html>", "", ["Home", "One", "Two"]),
        ("<nav>x</nav><nav><ul><li>Home</ul><nav>y</nav><p>One", "", ["Home", "One"]),
        ("<body><nav>x<nav>y<select><option>z</select><p>One</body><p>Two", "", ["x", "y", "One", "Two"]),
        ("<p>One</p><!-- two <p>Three</p>", "", ["One", "<!-- two", "Three"]),
        ("<p>One</p><!-- two", "", ["One", "<!-- two"]),
        ("<script><!-- x --></script><p>One &amp", "", ["One &"]),
    ],
)
def test_what_a_page_leaves_open_or_makes_a_button_of_is_read(
    tmp_path: Path, html: str, title: str, texts: list[str]
) -> None:
    (tmp_path / "a.html").write_text(html)
    document = read_html(tmp_path / "a.html")
    assert (document.title, said(document)) == (title, texts)


@pytest.mark.parametrize(
    ("html", "title", "texts"),
    [
        ("<table><tr><td><p>Name</p></td><td><p>Value</p></td></tr></table>", "", ["Name Value"]),
        ("<table><tr><td>a<br>b<td><div>c</div>d<tr><th>e</table>f", "", ["a b c d", "e", "f"]),
        ("<table><tbody><tr><td><ul><li>a<li>b</ul></td><td>c</td></tr><tr><td>d", "", ["a b c", "d"]),
        ("<div><table><tr><td>a<p>b</div><p>c<p>d", "", ["a b", "c", "d"]),
        # Tables that lay out a page.
        ("<table><tr><td>menu<td><h1>Title</h1><p>One</p><p>Two</p></table>", "Title", ["menu", "One", "Two"]),
        ("<table><tr><td>a<table><tr><td>b<td><p>c</table>d<p>e</table>", "", ["a", "b c", "d", "e"]),
    ],
)
def test_a_row_of_a_table_is_one_line(tmp_path: Path, html: str, title: str, texts: list[str]) -> None:
    (tmp_path / "a.html").write_text(html)
    document = read_html(tmp_path / "a.html")
    assert (document.title, said(document)) == (title, texts)


@pytest.mark.parametrize("piece", ["<!--", "<a ", "<a x='", "<p", "<![CDATA["])
@pytest.mark.parametrize("end", ["", "<p>The end."])
def test_a_page_in_which_nothing_ends_takes_a_time_like_its_length(piece: str, end: str) -> None:
    page = 40_000 * piece + end
    began = time.process_time()
    blocks(page, xhtml=True)
    assert time.process_time() - began < 5, "it took a minute, and four for twice as much"


def test_a_cdata_section_is_text_in_xhtml_alone(tmp_path: Path) -> None:
    page = "<p>One <![CDATA[a < b && <c>]]> two <![CDATA[never ended</p>"
    (tmp_path / "a.xhtml").write_text(page)
    assert said(read_html(tmp_path / "a.xhtml")) == ["One a < b && <c> two"]
    (tmp_path / "a.html").write_text(f'<?xml version="1.0"?>{page}')
    assert said(read_html(tmp_path / "a.html")) == ["One a < b && <c> two"]
    (tmp_path / "a.html").write_text(page)
    assert said(read_html(tmp_path / "a.html")) == ["One ]]> two"]


@pytest.mark.parametrize(
    "odd", ["<![foo[x]]>", "<![ endif]>", "<![if !vml]>", "<![endif]-->", "<![]>", "<![CDATA[x]]>", "<!x>"]
)
def test_a_declaration_that_is_none_is_a_comment(tmp_path: Path, odd: str) -> None:
    (tmp_path / "a.html").write_text(f"<p>One</p>{odd}<p>Two</p>")
    assert said(read_html(tmp_path / "a.html")) == ["One", "Two"]
    (tmp_path / "a.md").write_text(f"<div>{odd}</div>\n\nText.")
    assert said(read_markdown(tmp_path / "a.md")) == ["Text."]
    assert named_in_html(f"{odd}<meta charset=euc-jp>".encode()) == "euc-jp"


def test_a_damaged_byte_leaves_the_rest_utf_8_and_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "cut.txt").write_bytes("Zoë\n\nLes élèves de la forêt sont à Besançon, à l'été".encode()[:-1])
    (folder / "old.txt").write_bytes("Le café\n\nOù est la forêt ?".encode("cp1252"))
    (folder / "new.txt").write_text("Der Bär\n\nEr schläft.")
    lines: list[str] = []
    passages = {p.id: p for p in read_corpus(documents_corpus(folder, tmp_path / "cache", 50, 0, lines.append))}
    assert (passages["cut.txt#0"].title, passages["old.txt#0"].title) == ("Zoë", "Le café")
    assert passages["cut.txt#0"].text.endswith("à l'ét�")
    assert passages["old.txt#0"].text == "Où est la forêt ?"
    assert [line.partition(": ")[2] for line in lines[:2]] == [
        "1 files are not UTF-8 and are read as UTF-8, with � for what is none, such as cut.txt",
        "1 files are not UTF-8 and are read as Windows-1252, such as old.txt",
    ]
    assert len(lines) == 3


def pdf(*lines: str, title: str = "") -> bytes:
    """A PDF of one page, written by hand."""
    text = "BT /F1 12 Tf 50 700 Td 14 TL " + " ".join(f"({line}) Tj T*" for line in lines) + " ET"
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R"
        " /Resources << /Font << /F1 5 0 R >> >> >>",
        f"<< /Length {len(text)} >>\nstream\n{text}\nendstream",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        f"<< /Title ({title}) >>",
    ]
    data, places = "%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        places.append(len(data))
        data += f"{number} 0 obj\n{body}\nendobj\n"
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    end = f"trailer << /Size 7 /Root 1 0 R /Info 6 0 R >>\nstartxref\n{len(data)}\n%%EOF"
    return f"{data}xref\n0 7\n0000000000 65535 f \n{table}{end}".encode()


def test_pdf(tmp_path: Path) -> None:
    pytest.importorskip("pypdf")
    file = tmp_path / "a.pdf"
    file.write_bytes(pdf("One line and an-", "other one.", title="The Title"))
    document = read_pdf(file)
    assert (document.title, said(document)) == ("The Title", ["One line and another one."])
    for broken in (b"", b"%PDF-1.4\nnothing", pdf("x")[:200]):
        file.write_bytes(broken)
        with pytest.raises(UserError, match=r"^.*a\.pdf: can't be read as a PDF \(.*\); repair it") as caught:
            read_pdf(file)
        assert "\n" not in str(caught.value)


def test_a_pdf_without_its_reader_is_named_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pypdf", None)
    (tmp_path / "a.pdf").write_bytes(pdf("x"))
    with pytest.raises(UserError, match=r"a\.pdf: reading a PDF needs pypdf: `pip install pypdf`"):
        documents_corpus(tmp_path, tmp_path / ".cache", 10, 2)


# --- a folder --------------------------------------------------------------------------------------


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "read_me.md").write_text("# Read me\n\n" + "A sentence of five words. " * 6)
    (folder / "read-me.md").write_text("# Read me\n\nAnother file.")
    (folder / "some_name.TXT").write_text("Only one paragraph.")
    (folder / "empty.txt").write_text(" \n")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    (folder / ".hidden.md").write_text("# Hidden")
    return folder


def test_a_folder_is_a_corpus_of_passages_with_titles(notes: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    counted: list[tuple[int, int]] = []
    count = lambda done, total: counted.append((done, total))  # noqa: E731
    corpus = documents_corpus(notes, tmp_path / "cache", 12, 5, lines.append, count)
    assert counted == [(1, 4), (2, 4), (3, 4), (4, 4)]
    found = list(read_corpus(corpus))
    assert [(p.id, p.title) for p in found] == [
        *((f"deep/read_me.md#{n}", "Read me") for n in range(5)),
        ("read-me.md#0", "Read me (read-me.md)"),
        ("some_name.TXT#0", "some name"),
    ]
    assert found[1].text == "A sentence of five words. A sentence of five words."
    assert found[-1] == Passage(id="some_name.TXT#0", title="some name", text="Only one paragraph.")
    assert len({document_of(p) for p in found}) == 3, "reading on ends where the document does"
    assert lines == [
        f"{notes}: 1 files are no text, Markdown, HTML and PDF and are left out (1 .png)",
        f"{notes}: 1 files hold no text and are left out, such as empty.txt",
        f"{notes}: 3 documents are 7 passages, in {corpus}",
    ]


def test_linked_folders_are_read_once_and_what_is_no_file_is_counted(notes: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    (shared / ".git").mkdir(parents=True)
    (shared / ".git" / "notes.md").write_text("Hidden.")
    (shared / "b.md").write_text("Elsewhere.")
    (shared / "back").symlink_to(notes)
    (notes / "a link").symlink_to(notes / "deep")
    (notes / "linked").symlink_to(shared)
    (notes / "deep" / "up").symlink_to("..")
    (notes / "round").symlink_to("round")
    (notes / "gone.md").symlink_to("nowhere.md")
    (notes / "file.md").symlink_to(shared / "b.md")
    os.mkfifo(notes / "pipe.md")
    lines: list[str] = []
    found = read_corpus(documents_corpus(notes, tmp_path / "cache", 100, 5, lines.append))
    assert [p.id for p in found] == [
        *("deep/read_me.md#0", "file.md#0", "linked/b.md#0", "read-me.md#0", "some_name.TXT#0"),
    ]
    assert "4 files are no text, Markdown, HTML and PDF and are left out (2 dangling links, " in lines[0]
    assert "1 pipes and devices" in lines[0]


def test_a_folder_that_can_not_be_read_is_named(notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if Path(path).name == "deep":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"notes/deep: can't be read \(Permission denied\); make it readable"):
        documents_corpus(notes, tmp_path / "cache", 12, 5)


def test_folders_of_runs_are_no_documents(notes: Path, tmp_path: Path) -> None:
    for name in ("2026-11-30/12-00-00", "own"):
        with run_folder.claimed(notes / "outputs" / name, "output_dir"):
            (notes / "outputs" / name / "report.html").write_text("Who wrote Emma? Right: Jane Austen")
            (notes / "outputs" / name / "deep").mkdir()
            (notes / "outputs" / name / "deep" / "eval.md").write_text("| EM | 100 |")
    (notes / "deep" / ".lock").write_text("of another program")
    lines: list[str] = []
    found = documents_corpus(notes, tmp_path / "cache", 12, 5, lines.append)
    assert {p.id.partition("#")[0] for p in read_corpus(found)} == {"deep/read_me.md", "read-me.md", "some_name.TXT"}
    assert "3 files are no text, Markdown, HTML and PDF and are left out (2 folders of runs, 1 .png)" in lines[0]
    with run_folder.claimed(notes / "outputs" / "another", "output_dir"):
        assert documents_corpus(notes, tmp_path / "cache", 12, 5) == found, "a further run changes nothing"
    run = documents_corpus(notes / "outputs" / "own", tmp_path / "cache", 12, 5)
    assert [p.id for p in read_corpus(run)] == ["deep/eval.md#0", "report.html#0"], "what is named is read"


def test_any_name_of_a_file_will_do(tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    names = (
        b"caf\xe9.txt",
        b"caf\xe8.txt",
        b"two\nlines.txt",
        b"two\\nlines.txt",
        b"two lines.txt",
        b"a\xe2\x80\xa8b.txt",
    )
    for name in names:
        (folder / os.fsdecode(name)).write_text("x")
    (folder / os.fsdecode(b"none\xe9.txt")).write_text("")
    lines: list[str] = []
    found = [(p.id, p.title) for p in read_corpus(documents_corpus(folder, tmp_path / "cache", 12, 5, lines.append))]
    assert found == [
        ("a\\u2028b.txt#0", "a b"),
        ("caf\\udce8.txt#0", "caf?"),
        ("caf\\udce9.txt#0", "caf? (caf\\udce9.txt)"),
        ("two\\nlines.txt#0", "two lines"),
        ("two lines.txt#0", "two lines (two lines.txt)"),
        ("two\\\\nlines.txt#0", "two\\nlines"),
    ]
    assert lines[0].endswith("such as none\\udce9.txt")
    "".join(lines).encode()


def test_documents_whose_titles_and_names_are_alike_have_titles_of_their_own(tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    for name in ("0.txt", "A.txt", "a.txt", "c.txt"):
        (folder / name).write_text("The same\n\nA text.")
    titles = [normalise_title(p.title) for p in read_corpus(documents_corpus(folder, tmp_path / "cache", 12, 5))]
    assert len(set(titles)) == len(titles) == 4


@pytest.mark.parametrize("name", ["n" * 255, "é" * 127, "x" * 99 + "é"])
def test_any_name_of_a_folder_will_do(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "a.txt").write_text("x")
    corpus = documents_corpus(tmp_path / name, tmp_path / "cache", 12, 5)
    assert [p.id for p in read_corpus(corpus)] == ["a.txt#0"]
    start, _, digest = corpus.stem.rpartition("-")
    assert name.startswith(start)
    assert (len(start.encode()) >= 99, len(digest)) == (True, 32)


def test_it_is_read_again_only_if_something_has_changed(
    notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = documents_corpus(notes, tmp_path / "cache", 12, 5)
    monkeypatch.setattr(folder_module, "write_corpus", lambda path, passages: pytest.fail("read again"))
    assert documents_corpus(notes, tmp_path / "cache", 12, 5) == first
    monkeypatch.undo()
    assert documents_corpus(notes, tmp_path / "cache", 12, 0) != first
    (notes / "read-me.md").write_text("# Read me\n\nAnother text.")
    os.utime(notes / "read-me.md", (1e9, 1e9))
    second = documents_corpus(notes, tmp_path / "cache", 12, 5)
    assert second != first
    (notes / "read-me.md").write_text("# Read me\n\nAnother word.")
    os.utime(notes / "read-me.md", (1e9, 1e9))
    third = documents_corpus(notes, tmp_path / "cache", 12, 5)
    assert [p.text for p in read_corpus(third) if p.id == "read-me.md#0"] == ["Another word."]
    (notes / "picture.png").unlink()
    assert documents_corpus(notes, tmp_path / "cache", 12, 5) == third
    (notes / "read-me.md").rename(notes / "read.md")
    assert documents_corpus(notes, tmp_path / "cache", 12, 5) != third


def test_a_folder_without_documents_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows").mkdir()
    with pytest.raises(UserError, match=r"rows: holds no documents; text, Markdown, HTML and PDF are read"):
        documents_corpus(tmp_path / "rows", tmp_path, 12, 5)
    (tmp_path / "rows" / "corpus.jsonl").write_text("{}")
    with pytest.raises(UserError, match=r"rows: holds no documents \(it has 1 \.jsonl\); "):
        documents_corpus(tmp_path / "rows", tmp_path, 12, 5)
    (tmp_path / "rows" / "a.md").write_text("")
    with pytest.raises(UserError, match=r"rows: there is no text in its 1 documents; scanned pages need OCR first"):
        documents_corpus(tmp_path / "rows", tmp_path, 12, 5)
    # A process that is killed unlinks nothing: no corpus may be there before it is known to be one.
    monkeypatch.setattr(Path, "unlink", lambda path: pytest.fail(f"{path} was there"))
    with pytest.raises(UserError, match="there is no text in its 1 documents"):
        documents_corpus(tmp_path / "rows", tmp_path, 12, 5)
    monkeypatch.undo()
    assert not list((tmp_path / "corpora").iterdir())


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(13, "Permission denied"), r"can't be read \(Permission denied\)"),
        (AssertionError("of its\nreader"), r"can't be read \(of its reader\); repair it or take it out"),
        (UserError("says its own line"), "says its own line"),
    ],
)
def test_what_can_not_be_read_is_named(
    notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, line: str
) -> None:
    def refuse(file: Path) -> Document:
        raise UserError(f"{file}: {error}") if isinstance(error, UserError) else error

    monkeypatch.setitem(readers.READERS, ".md", refuse)
    (notes / "read-me.md").unlink()
    with pytest.raises(UserError, match=rf"read_me\.md: {line}$"):
        documents_corpus(notes, tmp_path / "cache", 12, 5)


def test_all_that_can_not_be_read_is_found_at_once(notes: Path, tmp_path: Path) -> None:
    for number in range(7):
        (notes / f"{number}.html").write_bytes(b'<meta charset="utf-7">\xff')
    lines: list[str] = []
    with pytest.raises(UserError) as caught:
        documents_corpus(notes, tmp_path / "cache", 12, 5, lines.append)
    told = str(caught.value)
    assert told.startswith(f"{notes}: 7 documents can't be read: (1) {notes}/0.html: says that it is in 'utf-7', which")
    assert told.count(".html: says") == 5
    assert told.endswith(" … (all are told above)")
    assert next(line for line in lines if "3.html" in line).endswith("; reading on, to find all that can't be read")
    assert len([line for line in lines if "reading on" in line]) == 7
    assert not list((tmp_path / "cache" / "corpora").iterdir())


def test_a_folder_of_which_nothing_can_be_read_is_given_up(
    notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(file: Path) -> Document:
        read.append(file)
        raise OSError(5, "Input/output error", str(file))

    read: list[Path] = []
    monkeypatch.setattr(folder_module, "MOST", 2)
    monkeypatch.setitem(readers.READERS, ".md", gone)
    monkeypatch.setitem(readers.READERS, ".txt", gone)
    with pytest.raises(UserError, match=r": 2 documents can't be read: \(1\) .*can't be read \(Input/output error\)"):
        documents_corpus(notes, tmp_path / "cache", 12, 5)
    assert len(read) == 2


def test_what_was_read_of_a_pdf_is_kept(notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def slowly(file: Path) -> Document:
        read.append(file.name)
        document = Document(title="Half a \ud83d pair")
        document.add(file.read_text(), heading=True)
        return document

    def interrupt(file: Path) -> Document:
        raise KeyboardInterrupt

    def corpus() -> list[Passage]:
        return list(read_corpus(documents_corpus(notes, tmp_path / "cache", 12, 5)))

    monkeypatch.setattr(folder_module, "pdf_package", lambda path: None)
    monkeypatch.setattr(kept, "version", lambda package: made_by)
    monkeypatch.setitem(readers.READERS, ".pdf", slowly)
    made_by = "6.0"
    (notes / "a.pdf").write_text("The first.")
    (notes / "b.PDF").write_text("The second.")
    with monkeypatch.context() as patched:
        patched.setitem(readers.READERS, ".md", interrupt)
        with pytest.raises(KeyboardInterrupt):
            corpus()
    found = corpus()
    assert read == ["a.pdf", "b.PDF"], "what an interrupted reading has read is there"
    (notes / "some_name.TXT").write_text("Another paragraph.")
    assert [p for p in corpus() if "pdf" in p.id.lower()] == [p for p in found if "pdf" in p.id.lower()]
    assert len(read) == 2, "another file has changed"
    (notes / "b.PDF").write_text("Another second.")
    assert "Another second." in [p.text for p in corpus()]
    assert read[2:] == ["b.PDF"]
    made_by = "6.1"
    (notes / "some_name.TXT").write_text("One paragraph more.")
    corpus()
    assert read[3:] == ["a.pdf", "b.PDF"], "another version may read otherwise"
    for file in (tmp_path / "cache" / "documents").rglob("*.json"):
        file.write_text('{"of": [], "paragraphs": 7}' if file.name < "8" else "half a")
    (notes / "some_name.TXT").write_text("Only one paragraph.")
    assert [p.text for p in corpus() if p.id == "a.pdf#0"] == ["The first."]
    assert read[5:] == ["a.pdf", "b.PDF"], "a damaged one is only read again"


def test_a_cache_that_can_not_keep_what_was_read_is_no_document_that_can_not_be_read(
    notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "pdf_package", lambda path: None)
    monkeypatch.setattr(kept, "version", lambda package: "6.0")
    monkeypatch.setitem(readers.READERS, ".pdf", lambda file: Document(title="A"))
    (notes / "a.pdf").write_text("x")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "documents").write_text("a file")
    with pytest.raises(UserError, match=r"^\S+/documents/\w\w: what was read of a\.pdf can't be kept there"):
        documents_corpus(notes, tmp_path / "cache", 12, 5)
