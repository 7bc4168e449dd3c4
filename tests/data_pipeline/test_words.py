from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.words import PieceTable, sentence_starts

ENGLISH = """
Mr. Smith went to Washington.| He was late.
Dr. J. K. Rowling met Prof. Ann Lee.| They talked.
I saw Mrs. Jones and Ms. Brown today.| She waved.
The U.S. Army moved in.| Nobody noticed.
He moved to the U.S.| The move took years.
We use tools (e.g. This One) daily.| It works.
Both work.| E.g. This one.
It is fast, i.e. Linear in time.
Pi is 3.14159 and e is 2.718.| Both are irrational.
Version 3.11.7 is out.| Upgrade now!
It cost $4.50.| That is cheap.
Really?| Yes!| Good...| Fine.
"Stop!" he cried.| "Why?" she asked.
He said "go."| She went.
(It rained.)| Then the sun came out.
See Fig. 3 and Eq. 4 on p. 12 of vol. 2.| More follows.
The answer is No. 5 of the list.
He drove home.| 5 people left.
On Jan. 5 we met.| In Feb. we parted.
Meet me on Sept. 3.| Bring Sgt. Pepper.
Acme Inc. CEO Bob Jr. Smith resigned.| He is rich.
He works at Acme Corp.| She does not.
Smith et al. (2019) agree.| Jones et al. Disagree.
Smith et al.| The others disagree.
At 5 p.m. Monday it closed.| Then at 6 a.m.| It opened.
She has a Ph.D. from MIT.| He does not.
I am he and he is I.| John left.
St. Louis is far.| Mt. Everest is high.
We live on Main St.| It is quiet.
This is plan B.| However, plan C. Smith is better.
Wait ... what?| No.
She likes it, etc.| Python does not.
One.|  Two.
The end of war.|\u00a0A new day.
He left.| \u201cGood,\u201d she said.| \u2018Bye.\u2019| It was over.
Gen. Lee and Col. Sanders vs. Capt. Hook.| All lost.
What a day!!!| So what?!| OK.
It was about 20.| 30 would do.
Visit example.com.| It is nice.
He asked, "Are you O.K.?"| She was.
"""

LINES = [
    ["1. Open the lid.\n", "2. Close it.\n"],
    ["Do this:\n\n", "  10. Wait.\n", "  11. Go on."],
    ["The heading\n\n", "A line\nwrapped by Mr.\nSmith again.\n", "Next line."],
    ["It runs in C.\n\n", "=item one of Prof.\n \n", "=item \u00e9l\u00e9ment.\n\n", "\u00e9t\u00e9"],
    ["He was born in 1999.", " The year was good."],
    ["\u042d\u0442\u043e \u0442. \u0435. \u0442\u0430\u043a.", " \u0414\u0430."],
    ["Das ist z.B. Gutes.", " Ja, d.h. Nein."],
    ["\u00c7a va, p. ex. \u00e9norme.", " \u00c9norme!", " \u00c0 bient\u00f4t."],
    ["\u06a9\u06cc\u0627 \u06c1\u06d2\u061f", " \u06c1\u0627\u06ba\u06d4", " \u0646\u06c1\u06cc\u06ba\u06d4"],
]

CHINESE = """
你好。|世界很大。
真的吗\uff1f|是的\uff01|好。
他说\uff1a“我走了。”|她没有回答。
「是。」|他点头。
『去吧\uff01』|他喊道。
\uff08这是注释。\uff09|正文在这里。
他看了《红楼梦》。|书很好。
《“你好。”》|是书名。
我想……也许吧。|再说。
真的\uff1f……|他走了。
不\uff01……\uff01|怎么会\uff1f
她沉默了……然后离开。
她沉默了。……|然后离开。
什么?|真的!|好的。
是吗?!|当然。
价格是3.14元。|很便宜。
版本2.0发布了。|请升级。
第一\uff0c吃饭\uff1b第二\uff0c睡觉。|完了。
我爱Python.它很好。
在Yahoo!奇摩上。|他说。
今天天气好。| We went out.| 明天呢\uff1f
【新闻。】|今天下雨。
日本語です。|そうですか\uff1f|はい\uff01
一行｡|二行。
"""


@pytest.mark.parametrize("marked", [line for line in (ENGLISH + CHINESE).splitlines() if line])
def test_sentences_begin_where_a_reader_says(marked):
    assert split(marked.replace("|", "")) == marked.split("|")


@pytest.mark.parametrize("sentences", LINES)
def test_lines_lists_and_other_languages(sentences):
    assert split("".join(sentences)) == sentences


def split(text):
    starts = sentence_starts(text)
    return [text[begin:end] for begin, end in zip(starts, [*starts[1:], len(text)], strict=True)]


@given(st.text(st.sampled_from('aA1.!?…。\uff01”") \n中\u0301éI')))
def test_sentences_are_the_whole_text_and_none_is_empty(text):
    sentences = split(text)
    assert "".join(sentences) == text
    assert all(sentences) or not text


@pytest.mark.parametrize("text", [". " * 100_000, "\n" * 200_000, "A. " * 70_000, "。”" * 70_000, '."' * 100_000])
@pytest.mark.timeout(5)
def test_no_text_makes_splitting_slow(text):
    sentence_starts(text)


PIECES = [None, *(bytes([byte]) for byte in range(256)), "中".encode()[:2], "a国".encode()[:-1], b" the"]


@given(rows=st.lists(st.lists(st.integers(1, len(PIECES) - 1)), min_size=1, max_size=5))
def test_words_of_documents_in_a_row_are_those_of_each_alone_even_where_one_ends_within_a_character(rows):
    table = PieceTable(PIECES)
    documents = [np.array([*row, 0], dtype=np.int64) for row in rows]
    together = table.word_starts(np.concatenate(documents))
    assert together.tolist() == np.concatenate([table.word_starts(ids) for ids in documents]).tolist()
