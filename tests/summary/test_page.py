"""The page of a run: one file that shows data as text."""

import re
from html.parser import HTMLParser

from summaries import CONFIG, made

from ibsgl import summary


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def tags_of(page):
    parser = Tags()
    parser.feed(page)
    return parser.found


def test_the_page_has_the_answer_the_tables_and_the_figures(tmp_path):
    page = summary.page("a run", summary.results(CONFIG, made(tmp_path)))
    assert "<h1>a run</h1>" in page
    assert page.index("Guidance improves localisation: supported") < page.index("Table 1: resnet")
    assert "<td><strong>supported</strong></td>" in page
    assert re.search(r"<td[^>]*><u>65\.07</u></td>", page)
    assert "commit c0ffee0 with changes, data 0123456789ab" in page
    assert [attrs["src"][:22] for tag, attrs in tags_of(page) if tag == "img"] == ["data:image/png;base64,"]
    # The paragraphs about each claim come last.
    assert page.index("<blockquote>") > page.index("Figure 4")


def test_the_page_needs_no_other_file_and_runs_nothing(tmp_path):
    page = summary.page("<i>name</i>", summary.results(CONFIG, made(tmp_path)))
    assert "&lt;i&gt;name&lt;/i&gt;" in page
    assert "&lt;b&gt;resnet&lt;/b&gt;" in page
    assert "&lt;script&gt;" in page
    tags = tags_of(page)
    assert not {"script", "link", "iframe", "a", "b", "i"} & {tag for tag, _ in tags}
    sources = [value for _, attrs in tags for key, value in attrs.items() if key in ("src", "href")]
    assert all(source.startswith("data:") for source in sources)


def test_a_missing_result_names_its_command():
    page = summary.page("empty", summary.results(CONFIG, []))
    assert page.count("Not made yet with this config. Make it with <code>snakemake ") == 10
    assert "<code>snakemake table1</code>" in page
    assert "<img" not in page
