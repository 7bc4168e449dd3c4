from __future__ import annotations

import random
import subprocess
import sys
import unicodedata

import datasketch
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.filters import DocumentFilter, FilterOptions, band_hashes, content_hash
from data_pipeline.filters.scrubbing import scrub_email, scrub_ip, scrub_phone
from data_pipeline.sources import Document


def run(*texts, **options):
    """The texts that come out, and the counts."""
    kept_by = DocumentFilter(FilterOptions(**options))
    documents = [kept_by.apply(Document("key", text, {"n": 1})) for text in texts]
    assert all(document.key == "key" and document.info == {"n": 1} for document in documents if document)
    return [document.text for document in documents if document], dict(kept_by.counts)


@given(st.text(min_size=1))
def test_by_default_nothing_changes_and_only_blank_texts_go(text):
    assert run(text) == (([text], {}) if text.strip() else ([], {"too_short": 1}))


@given(st.text(st.sampled_from("aé\u0301ﬁ①中\ufa0e가\u1100\u1161 ")), st.sampled_from(["NFC", "NFKC"]))
def test_texts_are_brought_to_the_normal_form_and_counted_when_it_changes_them(text, form):
    text = f"x{text}"
    normal = unicodedata.normalize(form, text)
    assert run(text, normalize=form) == ([normal], {} if normal == text else {"normalized": 1})


def test_lengths_are_measured_in_characters_after_all_changes():
    texts = ["中" * 4, "中" * 5, "中" * 9, "中" * 10, "e\u0301" * 5, "a@b.cn"]
    kept, counts = run(*texts, normalize="NFC", scrub=("email",), min_characters=5, max_characters=9)
    assert kept == ["中" * 5, "中" * 9, "é" * 5, "<email>"]
    assert counts == {"too_short": 1, "too_long": 1, "normalized": 1, "scrubbed_email": 1}


def test_documents_are_counted_once_for_each_kind_that_was_scrubbed():
    text = "a@b.org, c@d.org, 93.184.216.34, +49 30 1234567"
    kept, counts = run(text, "nothing here", scrub=("phone", "ip", "email"))
    assert kept == ["<email>, <email>, <ip>, <phone>", "nothing here"]
    assert counts == {"scrubbed_email": 1, "scrubbed_ip": 1, "scrubbed_phone": 1}
    assert run(text, scrub=("ip",))[0] == ["a@b.org, c@d.org, <ip>, +49 30 1234567"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_characters": 9, "max_characters": 8}, "max_characters=8 leaves out every text; give at least 9"),
        ({"near_threshold": 1.0}, r"near_threshold=1\.0 must lie between 0 and 1"),
        ({"scrub": ("name",)}, "cannot scrub 'name'; use email, ip, phone"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(DataError, match=message):
        FilterOptions(**options)


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("write to john.doe+news@mail.example.co.uk.", "write to <email>."),
        ("<a@b.org>, (c_d@e-f.museum)", "<<email>>, (<email>)"),
        ("邮箱zhang.san@qq.com或电话", "邮箱<email>或电话"),
        ("mailto:X%Y@EXAMPLE.COM?subject=hi", "mailto:<email>?subject=hi"),
        ("a@b.com;c@d.com", "<email>;<email>"),
        ("@property\ndef f(self): ...", None),
        ("meet @ 5.30pm", None),
        ("lodash@4.17.21 and user@localhost", None),
        ("matrix A@B.T @ C", None),
        ("@handle.name said", None),
        ("a@b@c.org", None),
        ("5 apples @ 2.50 each", None),
    ],
)
def test_e_mail_addresses_are_scrubbed_and_nothing_else(text, scrubbed):
    assert scrub_email(text) == (text if scrubbed is None else scrubbed)


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("from 93.184.216.34, port 80", "from <ip>, port 80"),
        ("http://93.184.216.34:8080/index", "http://<ip>:8080/index"),
        ("来自93.184.216.34。", "来自<ip>。"),
        ("[2606:4700:4700::1111]:53", "[<ip>]:53"),
        ("address 2a00:1450:4001:0830:0000:0000:0000:200e: ok", "address <ip>: ok"),
        ("ends 93.184.216.34.", "ends <ip>."),
        ("192.168.1.10, 10.0.0.1 and 127.0.0.1 and 255.255.255.0", None),
        ("version 12.0.33.1 and v12.0.33.1, release: 12.10.33.1", None),
        ("Chrome/120.0.6099.71 and Chrome/12.0.99.71", None),
        ("section 12.3.4.5, 第 12.3.4.5 章, paragraph 3.2.1.4", None),
        ("12.10.33.1-rc2, 1.2.3.4.5, 300.184.216.34, 93.184.216.3456", None),
        ("1.10.2023 and 2023.10.12 and 3.14159 and 1.234.567.890", None),
        ("std::vector, a::b, 12:30:45, 2024:10:12 10:20:30, ::1, fe80::1, 2001:db8::1", None),
        ("beef:cafe, 2048:ratio", None),
    ],
)
def test_public_ip_addresses_are_scrubbed_and_nothing_else(text, scrubbed):
    assert scrub_ip(text) == (text if scrubbed is None else scrubbed)


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("call +1 555 234 5678 now", "call <phone> now"),
        ("+49 (0)30 1234-567.", "<phone>."),
        ("+8613812345678或", "<phone>或"),
        ("(555) 234-5678 or 555-234-5678", "<phone> or <phone>"),
        ("fax 212-555-0123, 212.555.0123", "fax <phone>, <phone>"),
        ("手机13812345678。电话010-12345678", "手机<phone>。电话<phone>"),
        ("138 1234 5678, 138-1234-5678", "<phone>, <phone>"),
        ("Tel.: 030/123 45 67", "Tel.: <phone>"),
        ("Phone number: 020 7946 0958\nNext", "Phone number: <phone>\nNext"),
        ("电话\uff1a8765 4321", "电话\uff1a<phone>"),
        ("2023-10-12, 12.10.2023, 10/12/2023, 2023/10/12 10:20", None),
        ("ISBN 978-0-306-40615-7, 0-306-40615-2, 9780306406157", None),
        ("$1,234,567.89, 12345678901元, 13812345678 元, € 13812345678", None),
        ("version 3.11.7-1234567, 1.2.840.113549", None),
        ("2 + 2 = 4, x=+123456789, 5+15551234567", None),
        ("3.14159265358979, 0.13812345678, 1697123456789, 1697123456", None),
        ("DOI 10.1000/555-234-5678, arXiv 1910.10683, ISSN 0378-5955", None),
        ("4111 1111 1111 1111 and 123-45-6789 and 90210-1234", None),
        ("1990-2000, 1939-1945, pp. 555-2345", None),
        ("Total: 12345678, ratio: 1234567", None),
        ("hotel: 1234567", None),
    ],
)
def test_phone_numbers_are_scrubbed_and_nothing_else(text, scrubbed):
    assert scrub_phone(text) == (text if scrubbed is None else scrubbed)


@pytest.mark.parametrize("scrub", [scrub_email, scrub_ip, scrub_phone])
@given(text=st.text(st.sampled_from("a@.:+-()/ 0129f中\n$")))
def test_scrubbing_twice_changes_nothing_more(scrub, text):
    assert scrub(scrub(text)) == scrub(text)


@pytest.mark.parametrize("text", ["a@" * 50_000, "1." * 50_000, "2aaa:" * 20_000, "+1 " * 30_000, "Tel: 1" * 20_000])
@pytest.mark.timeout(5)
def test_no_text_makes_scrubbing_slow(text):
    run(text, scrub=("email", "ip", "phone"))


def test_content_hashes_are_equal_for_equal_texts_alone():
    hashes = {content_hash(text) for text in ("a", "A", "a ", "a\u0301", "á")}
    assert len(hashes) == 5
    assert all(len(digest) == 16 for digest in hashes)
    assert content_hash("text") == content_hash("te" + "xt")


def words(count, seed):
    draw = random.Random(seed)
    return ["".join(draw.choices("abcdefghij", k=5)) for _ in range(count)]


def characters(count, seed):
    draw = random.Random(seed)
    return [chr(draw.randrange(0x4E00, 0x6000)) for _ in range(count)]


def share(one, two):
    """The share of common shingles, by the definition."""
    one, two = ({tuple(units[at : at + 5]) for at in range(len(units) - 4)} for units in (one, two))
    return len(one & two) / len(one | two)


def meets(one, two, threshold=0.8):
    return bool(set(band_hashes(one, threshold).tolist()) & set(band_hashes(two, threshold).tolist()))


@pytest.mark.parametrize(("units", "space"), [(words, " "), (characters, "")])
@pytest.mark.parametrize("changed", [1, 3, 6, 10])
def test_texts_meet_as_often_as_the_formula_says(units, space, changed):
    lsh = datasketch.MinHashLSH(threshold=0.8, num_perm=128)
    met, expected, trials = 0, 0.0, 60
    for trial in range(trials):
        one = units(200, trial)
        two = [*one]
        for place in random.Random(trial).sample(range(200), changed):
            two[place] = units(1, 1_000 + trial)[0]
        met += meets(space.join(one), space.join(two))
        expected += 1 - (1 - share(one, two) ** lsh.r) ** lsh.b
    assert abs(met - expected) < 4.5 * max(1.0, np.sqrt(expected * (1 - expected / trials)))


def test_case_white_space_and_punctuation_do_not_part_texts():
    assert meets("One two, three four five six!", "one  TWO three\nfour five; six")
    assert meets("\u4e00\u4e01\u3002\u4e03\u4e08\u4e09\u4e0a", "\u4e00\u4e01\u4e03 \u4e08\u4e09\uff0c\u4e0a")
    assert not meets("One two three four five six", "one two three four five seven eight nine")
    assert not meets("", "!")
    assert not meets("one", "two")
    assert meets("...", "...")


def test_band_hashes_are_the_same_on_every_machine():
    code = (
        "from data_pipeline.filters import band_hashes\n"
        "print([int(h) for h in band_hashes('The quick brown fox jumps over the lazy dog.', 0.8)[:2]],"
        "[int(h) for h in band_hashes('\\u6211\\u4eec\\u7684\\u4e2d\\u56fd\\u8bdd\\u6587\\u672c', 0.7)[:2]])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == (
        "[10778446335589307685, 16787153328201498763] [3954229678134726960, 16930224313665717232]"
    )
    assert band_hashes("text", 0.8).dtype == np.uint64
    assert len(band_hashes("text", 0.8)) == datasketch.MinHashLSH(threshold=0.8, num_perm=128).b


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(DataError, match=r"near duplicates need datasketch; run pip install 'ptm-dist\[data\]'"):
        band_hashes("text", 0.123)
