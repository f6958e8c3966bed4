"""Reads HTML tables."""

from html.parser import HTMLParser

HOSTILE = '<script>alert("1")</script>&amp;'


class Table(HTMLParser):
    """The cells of a table, row by row, and the scopes of its header cells."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.scopes = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.scopes.append(dict(attributes).get("scope"))

    def handle_data(self, data):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data
